"""One BLAS thread: sums taken in one order, whatever the machine has cores.

A threaded matrix product splits its sums by the number of threads, so that a
replication run alone, in a worker or on another machine would differ in its last
bits. Small problems gain nothing from BLAS threads anyway.
"""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import scipy.linalg

__all__ = ["blas_threads", "one_blas_thread"]

_NAMES = tuple(
    f"{prefix}openblas_{{}}_num_threads{suffix}"
    for prefix in ("scipy_", "")
    for suffix in ("64_", "")
)


def _bundled_libraries() -> list[Path]:
    """Return the BLAS libraries that NumPy's and SciPy's wheels bring along."""
    found: list[Path] = []
    for package in (np, scipy):
        home = Path(str(package.__file__)).parent
        for folder in (home.parent / f"{home.name}.libs", home / ".dylibs"):
            if folder.is_dir():
                found += [file for file in folder.iterdir() if "blas" in file.name]
    return found


@cache
def _controls() -> list[tuple[Callable[[], int], Callable[[int], Any]]]:
    """Return how to read and set the threads of each library."""
    controls = []
    for file in _bundled_libraries():
        try:
            library = ctypes.CDLL(str(file))
        except OSError:  # not the one in use: nothing to control
            continue
        for name in _NAMES:
            if hasattr(library, name.format("set")):
                read = getattr(library, name.format("get"))
                controls.append((read, getattr(library, name.format("set"))))
                break
    return controls


def blas_threads() -> int:
    """Return how many threads BLAS uses now: OMP_NUM_THREADS, one within a study.

    It is one too where BLAS is none of those that `one_blas_thread` controls.
    """
    return max((int(read()) for read, _ in _controls()), default=1)


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Run on one BLAS thread and restore the number after.

    OpenBLAS as in the wheels of NumPy and SciPy is controlled; with another BLAS set
    its variable (``MKL_NUM_THREADS=1``, ``OMP_NUM_THREADS=1``) before Python starts,
    or results agree to rounding only.
    """
    before = [(read(), write) for read, write in _controls()]
    for _, write in before:
        write(1)
    try:
        yield
    finally:
        for count, write in before:
            write(count)
