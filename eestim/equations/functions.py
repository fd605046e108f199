"""Equations from functions of NumPy: data in memory, or read in blocks."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from eestim._differentiate import DIFFERENCE_ERROR
from eestim.blocks import Block, BlockedEquation, BlockSource, block_source, in_block
from eestim.equations._inputs import checked_inputs
from eestim.equations.columns import checked_data, column_of, labels_of
from eestim.equations.parameters import named_blocks
from eestim.equations.user import UserEquation, check_first_call
from eestim.errors import DataError
from eestim.weights import Frequency, Importance, Weights, block_weights, weight_column

__all__ = ["equation"]


def equation(
    psi: Callable[[Any, Any], Any],
    data: Mapping[str, Any] | pd.DataFrame,
    start: Any,
    *,
    names: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    jacobian: Callable[[Any, Any], Any] | None = None,
    units: Any = None,
    weights: Weights | None = None,
) -> UserEquation | BlockedEquation:
    r"""Return the estimating equation :math:`\sum_i \psi_i(\theta) = 0`.

    Parameters
    ----------
    psi : callable
        ``psi(theta, data) -> (n, q)``, one row for each row of the data.
    data : mapping of arrays, DataFrame, or block source
        Passed to psi as it is, after checks for missing and infinite values. A block
        source (a Parquet file or folder, a Dask DataFrame, or a function that returns
        an iterator of DataFrames) is passed block by block: psi of a row must not
        depend on other rows, and `units` and weights are names of columns.
    start : vector, number, or mapping of named blocks
        Where the solver begins. With named blocks, psi reads ``theta["beta"]``.
    names : optional
        Parameter names; for named blocks, a mapping to the names of their entries.
    jacobian : callable, optional
        ``jacobian(theta, data) -> (q, p)``, the mean over rows of the derivative of
        psi, without a change of sign. Checked once against a random directional
        difference. Without it, differences are used.
    units : str or (n,) array, optional
        Rows with the same label belong to one independent unit: psi is summed
        within.
    weights : Frequency, Sampling or Importance, optional

    Raises
    ------
    DataError
        If the data, the start or the shape of psi cannot be used.

    Examples
    --------
    The mean and the variance of five values:

    >>> def psi(theta, data):
    ...     centred = data["y"] - theta["mean"]
    ...     return np.column_stack([centred, centred**2 - theta["variance"]])
    >>> eq = equation(psi, {"y": [1.0, 2, 3, 4, 5]}, {"mean": 0, "variance": 1})
    >>> eq.names, eq.n_units
    (('mean', 'variance'), 5)
    """
    source = block_source(data)
    if source is not None:
        return _blocked(source, psi, start, names, jacobian, units, weights)
    given = checked_inputs(data, start, names, units, weights)
    values = given.row_weights
    if values is not None and not isinstance(weights, Frequency):
        values = values * (given.n_rows / values.sum())  # only their shares count
    made = UserEquation(
        psi,
        given.data,
        given.start,
        given.names,
        given.places,
        given.n_rows,
        jacobian,
        given.unit_codes,
        values,
        type(weights) if weights is not None else None,
    )
    check_first_call(made)
    return made


def _blocked(
    source: BlockSource,
    psi: Callable[[Any, Any], Any],
    start: Any,
    names: Any,
    jacobian: Any,
    units: Any,
    weights: Weights | None,
) -> BlockedEquation:
    """Return the equation of a block source, after one pass that checks every row."""
    vector, places, labels = named_blocks(start, names)
    column = weight_column(weights)
    kind = None if weights is None else type(weights)
    if units is not None and not isinstance(units, str):
        raise TypeError(
            "`units` must be the name of a column where data are read in blocks."
        )

    def rows_of(block: Block, scale: float) -> UserEquation:
        frame, values = block.frame, None
        count = checked_data(frame)
        if column is not None:
            values = scale * block_weights(weights, column_of(frame, column))
        return UserEquation(
            psi, frame, vector, labels, places, count, jacobian, None, values, kind
        )

    def build(block: Block, scale: float) -> UserEquation:
        try:
            return rows_of(block, scale)
        except DataError as error:
            raise in_block(block, error) from None

    counted = _counted(source, build, units)
    if column is not None and not counted.weight_sum > 0:
        raise DataError("`weights` are all zero.")
    effective = float(counted.n_units)
    if isinstance(weights, Importance):
        effective = counted.weight_sum**2 / counted.weight_squares
    is_scaled = column is not None and not isinstance(weights, Frequency)
    return BlockedEquation(
        source,
        build,
        labels,
        vector,
        places,
        counted.n_rows,
        counted.n_units,
        effective,
        counted.n_rows / counted.weight_sum if is_scaled else 1.0,
        0.0 if jacobian is not None and column is None else DIFFERENCE_ERROR,
        units,
    )


class _Counts(NamedTuple):
    """What one pass over a block source counts."""

    n_rows: int
    n_units: int
    weight_sum: float
    weight_squares: float


def _counted(
    source: BlockSource,
    build: Callable[[Block, float], UserEquation],
    units: str | None,
) -> _Counts:
    """Evaluate psi once at the start in every block, and count."""
    rows, n_units, total, squares, groups = 0, 0, 0.0, 0.0, set[Any]()
    for block in source.blocks():
        made = build(block, 1.0)
        try:
            if rows == 0:
                check_first_call(made)
            else:
                made._raw_rows(made.initial)
            if units is not None:
                given = column_of(block.frame, units)
                labels_of(given, "units", made.n_rows)
                groups.update(pd.unique(given))
        except DataError as error:
            raise in_block(block, error) from None
        rows, n_units = rows + made.n_rows, n_units + made.n_units
        if made.row_weights is not None:
            total += float(made.row_weights.sum())
            squares += float(np.square(made.row_weights).sum())
    return _Counts(rows, len(groups) if units else n_units, total, squares)
