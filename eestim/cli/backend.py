"""The language-model backend, loaded when a command needs it."""

import os
from types import ModuleType
from typing import Any

__all__ = ["backend"]


def backend() -> ModuleType:
    """Return `eestim.llm`, with torch set up for a machine that others use too.

    Raises
    ------
    ImportError
        Naming the extra that installs what is missing.
    """
    # Waiting threads that spin starve a shared machine: ten times slower in a trial.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        from transformers.utils import logging

        import eestim.llm as found
    except ModuleNotFoundError as error:
        raise ImportError(
            f"language models need {error.name}: pip install 'eestim[llm]'"
        ) from error
    quiet: Any = logging.disable_progress_bar  # the commands have bars of their own
    quiet()
    return found
