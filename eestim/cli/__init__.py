"""The command line: ``eestim demo``, ``eestim fit``, ``eestim lm``."""

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Parameters
    ----------
    arguments : sequence of str, optional
        Those of the process by default.

    Returns
    -------
    int
        0 on success, 1 on bad input (one line names cause and cure), 2 on wrong
        usage, 130 when interrupted.
    """
    try:
        from eestim.cli.app import run
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich", "click"):
            raise
        print(
            f"error: the command line needs {error.name}: pip install 'eestim[cli]'",
            file=sys.stderr,
        )
        return 1
    return run(arguments)
