"""Columns of a table: checked, read by name, coded as groups, summed within them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from eestim._arrays import IntVector, Matrix, check_finite, row_count, show_rows
from eestim.errors import DataError

__all__ = ["checked_data", "column_of", "labels_of", "sum_by_code"]


def checked_data(data: Any) -> int:
    """Return the number of rows of a mapping or DataFrame, all values finite."""
    if not isinstance(data, Mapping | pd.DataFrame):
        raise TypeError(
            "`data` must be a mapping of arrays or a DataFrame; got "
            f"{type(data).__name__}. Wrap an array as {{'x': array}}."
        )
    n_rows = row_count(data)
    for name in data:
        values = np.asarray(data[name])
        if values.dtype.kind == "f":
            check_finite(np.asarray(values, dtype=np.float64), f"data[{name!r}]")
        elif values.dtype.kind == "O" and pd.isna(values).any():
            raise DataError(f"`data[{name!r}]` has missing values.")
    return n_rows


def column_of(data: Any, name: str) -> Any:
    """Return a named column of a DataFrame or mapping.

    Raises
    ------
    DataError
        If there is no such column.
    """
    try:
        return data[name]
    except (KeyError, TypeError, IndexError):
        known = list(data.keys()) if hasattr(data, "keys") else []
        raise DataError(f"no column {name!r} in `data`; columns are {known}.") from None


def labels_of(values: Any, argument: str, n_rows: int) -> tuple[IntVector, int]:
    """Return codes 0 .. G - 1 of group labels, in order of first appearance.

    Raises
    ------
    DataError
        If a label is missing or there is not one label a row.
    """
    array = np.asarray(values)
    if array.ndim != 1 or len(array) != n_rows:
        raise DataError(
            f"`{argument}` has shape {array.shape}; one label for each of {n_rows} "
            "rows was expected."
        )
    missing = np.flatnonzero(np.asarray(pd.isna(array)))
    if len(missing):
        raise DataError(
            f"`{argument}` has missing labels in {show_rows(missing)}; drop those "
            "rows or give them a group of their own."
        )
    codes, groups = pd.factorize(array)
    return codes.astype(np.intp), len(groups)


def sum_by_code(rows: Matrix, codes: IntVector, n_groups: int) -> Matrix:
    """Return the sums of rows within groups coded 0 .. n_groups - 1.

    >>> sum_by_code(np.array([[1.0], [2.0], [4.0]]), np.array([1, 0, 1]), 2)
    array([[2.], [5.]])
    """
    sums = np.empty((n_groups, rows.shape[1]))
    for j in range(rows.shape[1]):
        sums[:, j] = np.bincount(codes, weights=rows[:, j], minlength=n_groups)
    return sums
