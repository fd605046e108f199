"""Weights as values: each says what n is and which variance it implies."""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from eestim._arrays import IntVector, Matrix, Vector, as_float, check_finite, show_rows
from eestim.errors import DataError

__all__ = [
    "Frequency",
    "Importance",
    "Sampling",
    "Weights",
    "aligned_weights",
    "block_weights",
    "check_units_present",
    "combined_weights",
    "count_units",
    "effective_count",
    "effective_size",
    "weight_column",
    "weighted_rows",
]


@dataclass(frozen=True, slots=True)
class Frequency:
    """Row i stands for ``values[i]`` identical units; n is the sum.

    Estimates and every covariance equal those of the data written out in full.

    Attributes
    ----------
    values : str or (n,) array of nonnegative integers
        A column name, or one count a row.
    """

    values: Any


@dataclass(frozen=True, slots=True)
class Sampling:
    """Row i was drawn with probability proportional to ``1 / values[i]``.

    n is the number of rows; results do not depend on the scale of the weights. The
    sandwich uses the weighted contributions (a model-based covariance is refused).

    Attributes
    ----------
    values : str or (n,) array of nonnegative numbers
    """

    values: Any


@dataclass(frozen=True, slots=True)
class Importance:
    r"""Row i carries the likelihood ratio ``values[i]`` of target over sampling law.

    Self-normalised importance sampling: the same sandwich as `Sampling`, with the
    effective size :math:`(\sum w)^2 / \sum w^2` (Kish, 1965) as the n of
    finite-sample factors and degrees of freedom.

    Attributes
    ----------
    values : str or (n,) array of nonnegative numbers
    """

    values: Any


Weights: TypeAlias = Frequency | Sampling | Importance


def aligned_weights(weights: Weights | None, data: Any, n_rows: int) -> Vector | None:
    """Return the weights as a vector aligned with the rows of ``data``.

    Raises
    ------
    TypeError
        If a bare array was given: its meaning decides n and the variance.
    DataError
        If a weight is negative, missing or not an integer where counts are needed.
    """
    if weights is None:
        return None
    if not isinstance(weights, Frequency | Sampling | Importance):
        raise TypeError(
            "`weights` must say what they mean: ee.Frequency(w) for counts, "
            "ee.Sampling(w) for inverse inclusion probabilities, ee.Importance(w) for "
            f"likelihood ratios; got {type(weights).__name__}."
        )
    given = weights.values
    values = _checked_values(weights, data[given] if isinstance(given, str) else given)
    if len(values) != n_rows:
        raise DataError(f"`weights` has {len(values)} entries for {n_rows} rows.")
    if not (values > 0).any():
        raise DataError("`weights` are all zero.")
    return values


def _checked_values(weights: Weights, given: Any) -> Vector:
    values = check_finite(as_float(given, "weights", 1), "weights")
    if (values < 0).any():
        raise DataError(
            f"`weights` are negative in {show_rows(np.flatnonzero(values < 0))}."
        )
    if isinstance(weights, Frequency) and (values != np.rint(values)).any():
        raise DataError(
            "`weights` are frequencies and must be whole numbers; "
            f"{show_rows(np.flatnonzero(values != np.rint(values)))} are not. "
            "Use ee.Sampling for inverse probabilities."
        )
    return values


def weight_column(weights: Weights | None) -> str | None:
    """Return the name of the column of weights of data read in blocks.

    Raises
    ------
    TypeError
        If weights are an array, or do not say what they mean.
    """
    if weights is None:
        return None
    given = getattr(weights, "values", None)
    if not isinstance(weights, Frequency | Sampling | Importance) or not isinstance(
        given, str
    ):
        raise TypeError(
            "`weights` must be ee.Frequency, ee.Sampling or ee.Importance of the name "
            "of a column where data are read in blocks."
        )
    return given


def block_weights(weights: Any, given: Any) -> Vector:
    """Return the weights of one block, which may all be zero.

    Raises
    ------
    DataError
        As `aligned_weights`.
    """
    return _checked_values(weights, given)


def effective_size(values: Vector) -> float:
    r"""Return the Kish effective sample size :math:`(\sum w)^2 / \sum w^2`.

    >>> effective_size(np.array([1.0, 1.0, 2.0]))
    2.6666666666666665
    """
    return float(values.sum() ** 2 / np.square(values).sum())


def check_units_present(
    weights: Weights | None, values: Vector | None, codes: IntVector | None
) -> None:
    """Refuse frequencies that leave a unit without rows.

    Written out, the data do not have it; here it would count as one whose psi is zero.

    Raises
    ------
    DataError
        If all frequencies of a unit are zero.
    """
    if codes is None or values is None or not isinstance(weights, Frequency):
        return
    empty = np.flatnonzero(np.bincount(codes, weights=values) == 0.0)
    if empty.size:
        rows = np.flatnonzero(np.isin(codes, empty))
        raise DataError(
            f"`weights` leave {empty.size} unit(s) without a row: every frequency of "
            f"theirs is 0, at {show_rows(rows)}. Leave these rows out."
        )


def count_units(
    n_rows: int,
    values: Vector | None,
    kind: type | None,
    codes: IntVector | None = None,
) -> int:
    """Return the number of independent units: groups, the sum of frequencies, or rows.

    Parameters
    ----------
    n_rows : int
    values : (n_rows,) array or None
        Weights of the rows.
    kind : type or None
        What they mean, one of `Weights`; None where they multiply rows.
    codes : (n_rows,) integer array, optional
        The group of each row, 0 .. G - 1.

    Examples
    --------
    >>> count_units(3, np.array([1.0, 0.0, 4.0]), Frequency)
    5
    """
    if codes is not None:
        return int(codes.max()) + 1
    if kind is Frequency and values is not None:
        return int(values.sum())
    return n_rows


def effective_count(n_units: int, values: Vector | None, kind: type | None) -> float:
    """Return Kish's effective n under importance weights, else n."""
    if kind is Importance and values is not None:
        return effective_size(values)
    return float(n_units)


def weighted_rows(rows: Matrix, values: Vector | None, kind: type | None) -> Matrix:
    """Apply the weights: frequencies repeat a row, others multiply it.

    Parameters
    ----------
    rows : (n_rows, ...) array
    values, kind
        As for `count_units`.

    Examples
    --------
    >>> weighted_rows(np.array([1.0, 3.0]), np.array([2.0, 1.0]), Frequency)
    array([1., 1., 3.])
    >>> weighted_rows(np.array([1.0, 3.0]), np.array([2.0, 1.0]), Sampling)
    array([2., 3.])
    """
    if values is None:
        return rows
    if kind is Frequency:
        return np.repeat(rows, values.astype(int), axis=0)
    return rows * values.reshape(-1, *[1] * (rows.ndim - 1))


def combined_weights(
    weights: Vector, values: Vector | None, kind: type | None
) -> Vector:
    """Return weights of rows whose units are weighted once more, as a refit needs.

    Parameters
    ----------
    weights : (n,) array
        One for each unit: for a row of frequency m they are m in a row, of which the
        row gets the sum.
    values, kind
        As for `count_units`.

    Examples
    --------
    >>> units = np.array([1.0, 0.0, 2.0])
    >>> combined_weights(units, np.array([2.0, 1.0]), Frequency)
    array([1., 2.])
    """
    if values is None:
        return weights
    if kind is Frequency:
        edges = np.concatenate([[0], np.cumsum(values.astype(int))])
        totals = np.concatenate([[0.0], np.cumsum(weights)])
        combined: Vector = totals[edges[1:]] - totals[edges[:-1]]
        return combined
    return weights * values
