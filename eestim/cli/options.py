"""Reading options of the form NAME=VALUE, and stopping a command to go on later."""

import glob
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

__all__ = ["Interrupted", "named", "named_paths", "paths", "resumable"]


class Interrupted(Exception):  # noqa: N818 - a request, not an error
    """The user stopped a command that can go on later."""


@contextmanager
def resumable() -> Iterator[None]:
    """Turn Ctrl-C into `Interrupted`, which the command line explains."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted from None


def named(option: str, given: Sequence[str]) -> list[tuple[str, str]]:
    """Return the pairs that ``NAME=VALUE`` options mean.

    Raises
    ------
    ValueError
        If one has another form.

    Examples
    --------
    >>> named("--model", ["base=out/base", "latent=out/latent"])
    [('base', 'out/base'), ('latent', 'out/latent')]
    """
    pairs = []
    for text in given:
        name, separator, value = text.partition("=")
        if not (name.strip() and separator and value):
            raise ValueError(f"`{option}` must be NAME=VALUE; got {text!r}.")
        pairs.append((name.strip(), value))
    return pairs


def named_paths(option: str, given: Sequence[str]) -> dict[str, list[Path]]:
    """Return the files of each ``NAME=FILES``; a name may be given several times.

    FILES is a file, a folder or a pattern.

    Raises
    ------
    ValueError
        If an option has another form, or names no file.
    """
    found: dict[str, list[Path]] = {}
    for name, pattern in named(option, given):
        matches = [Path(path) for path in sorted(glob.glob(pattern))]  # noqa: PTH207
        if not matches:
            raise ValueError(f"`{option} {name}={pattern}` names no file; check it.")
        found.setdefault(name, []).extend(matches)
    return found


def paths(option: str, given: Sequence[Path]) -> list[Path]:
    """Return paths after checking that they exist.

    Raises
    ------
    ValueError
        Naming the first that does not.
    """
    for path in given:
        if not path.exists():
            raise ValueError(f"`{option}` {path} does not exist; check the path.")
    return list(given)
