"""Coercion to float64 and the checks of shape and missing data, in one place."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from eestim.errors import DataError

__all__ = [
    "IntVector",
    "Matrix",
    "Vector",
    "as_float",
    "as_start",
    "check_finite",
    "check_psi",
    "row_count",
    "show_rows",
]

Vector: TypeAlias = npt.NDArray[np.float64]
Matrix: TypeAlias = npt.NDArray[np.float64]
IntVector: TypeAlias = npt.NDArray[np.intp]

_SHOWN_ROWS = 5


def show_rows(rows: npt.NDArray[Any]) -> str:
    """Return the first few row numbers for an error message.

    >>> show_rows(np.arange(8))
    'rows 0, 1, 2, 3, 4 and 3 more'
    """
    head = ", ".join(str(int(row)) for row in rows[:_SHOWN_ROWS])
    rest = len(rows) - _SHOWN_ROWS
    noun = "row" if len(rows) == 1 else "rows"
    return f"{noun} {head}" + (f" and {rest} more" if rest > 0 else "")


def as_float(values: Any, argument: str, ndim: int | None = None) -> Matrix:
    """Return ``values`` as a float64 array.

    Parameters
    ----------
    values : array-like
        Numbers or booleans, in any container NumPy understands.
    argument : str
        The name that an error gives.
    ndim : int, optional
        The number of dimensions required.

    Raises
    ------
    DataError
        If the values are objects, text or complex, or have another dimension.
    """
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise DataError(
            f"`{argument}` has dtype {array.dtype}, which is not numeric; convert it "
            "(for instance with pandas.to_numeric) or code it as categories."
        )
    if ndim is not None and array.ndim != ndim:
        raise DataError(
            f"`{argument}` has shape {array.shape}; {ndim} dimension"
            f"{'s were' if ndim > 1 else ' was'} expected."
        )
    return np.asarray(array, dtype=np.float64)


def check_finite(array: Matrix, argument: str) -> Matrix:
    """Return ``array`` unchanged, or raise naming the rows that are not finite.

    Raises
    ------
    DataError
        If a value is NaN or infinite.
    """
    finite = np.isfinite(array)
    if not finite.all():
        bad = ~(finite if array.ndim <= 1 else finite.reshape(len(array), -1).all(1))
        kind = "missing" if np.isnan(array).any() else "infinite"
        raise DataError(
            f"`{argument}` has {kind} values in {show_rows(np.flatnonzero(bad))}; "
            'drop or impute those rows (formulas take `na="drop"`).'
        )
    return array


def row_count(data: Mapping[str, Any] | pd.DataFrame) -> int:
    """Return the common number of rows of a mapping of arrays.

    Scalars are constants and have no rows.

    Raises
    ------
    DataError
        If there are no rows, or the arrays differ in length.
    """
    if isinstance(data, pd.DataFrame):
        lengths = {"data": len(data)}
    else:
        lengths = {
            name: len(value) for name, value in data.items() if np.ndim(value) > 0
        }
    if len(set(lengths.values())) > 1:
        raise DataError(
            "`data` has columns of different length: "
            + ", ".join(f"{name} {length}" for name, length in lengths.items())
            + "; every array needs one entry per row."
        )
    count = next(iter(lengths.values()), 0)
    if count == 0:
        raise DataError("`data` has no rows; at least one unit is needed.")
    return count


def as_start(start: Any, argument: str = "start") -> Vector:
    """Return a start as a float64 vector, so that integers are never truncated into.

    >>> as_start([0, 2]).dtype
    dtype('float64')

    Raises
    ------
    DataError
        If it is not a finite vector of real numbers.
    """
    vector = np.atleast_1d(as_float(start, argument))
    if vector.ndim != 1:
        raise DataError(
            f"`{argument}` has shape {vector.shape}; a vector was expected."
        )
    if not np.isfinite(vector).all():
        raise DataError(f"`{argument}` has values that are not finite: {vector}.")
    return vector.copy()


def check_psi(psi: Any, n_rows: int, names: Sequence[str] | None = None) -> Matrix:
    """Return contributions as an (n, q) float64 array, or explain what is wrong.

    Raises
    ------
    DataError
        If psi is complex, not two-dimensional, has another number of rows, or is
        not finite (the first bad row is named).
    """
    array = np.asarray(psi)
    if array.dtype.kind == "c":
        raise DataError("`psi` returned complex values; return real numbers.")
    if array.ndim != 2 or array.shape[0] != n_rows:
        raise DataError(
            f"`psi` returned shape {array.shape}; expected ({n_rows}, q), one row for "
            "each row of the data (a single equation is `values[:, None]`; "
            "a (q, n) stack needs a transpose)."
        )
    array = as_float(array, "psi")
    if not np.isfinite(array).all():
        row = int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])
        column = int(np.flatnonzero(~np.isfinite(array[row]))[0])
        label = names[column] if names is not None else f"column {column}"
        raise DataError(
            f"`psi` is not finite: first in row {row}, {label} "
            f"(value {array[row, column]}). Check the data of that row and the start."
        )
    return array
