"""What is a sum over units is added up block by block; what is not is refused."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import pandas as pd

from eestim._arrays import Matrix, Vector, show_rows
from eestim.errors import CapabilityError, DataError
from eestim.moments import Moments, moments_at

__all__ = [
    "SummedEquation",
    "refuse_blocks",
    "summed_equation",
    "sums_within",
    "total_moments",
]

_WORKING = (
    "HC(0), HC(1), Clustered(column, kind='CR0', 'CR1', 'CR1p' or 'CR1S') and, for "
    "models, ModelBased() and OPG()"
)


def refuse_blocks(wanted: str) -> NoReturn:
    """Raise CapabilityError for what needs every row in memory.

    Raises
    ------
    CapabilityError
        Naming the covariance rules that work with blocks.
    """
    raise CapabilityError(
        f"{wanted} needs all rows in memory, and this equation reads its data in "
        f"blocks. With blocks use {_WORKING}; or pass the data as a DataFrame."
    )


def total_moments(parts: Iterable[Any], theta: Vector) -> Moments:
    """Return the moments of the union of equations over disjoint units.

    Raises
    ------
    DataError
        If there are none.
    """
    total: Moments | None = None
    for part in parts:
        if not part.n_units:  # frequencies of zero throughout
            continue
        own = moments_at(part, theta)
        total = own if total is None else total + own
    if total is None:
        raise DataError("there are no blocks.")
    return total


@dataclass(frozen=True, slots=True)
class SummedEquation:
    """Sums of psi within groups of rows at one theta, for rules of clusters.

    Attributes
    ----------
    names : tuple of p str
    n_units : int
        Of the equation itself, not of the groups.
    n_effective : float
    table : (G, q) array
        Sums within the groups (the finest intersections of the labels).
    labels : DataFrame
        The labels of each group, one column a name.
    slope : (q, p) array
        A.
    row_squares : (q,) array
        Sums over rows of squared psi.
    """

    names: tuple[str, ...]
    n_units: int
    n_effective: float
    table: Matrix
    labels: pd.DataFrame
    slope: Matrix
    row_squares: Vector
    derivative_error: float = 0.0

    @property
    def n_observations(self) -> int:
        """Number of groups, one label each."""
        return len(self.table)

    def psi(self, theta: Vector) -> Matrix:  # noqa: ARG002 - tabulated at one theta
        """Return the sums, (G, q)."""
        return self.table

    def sensitivity(self, theta: Vector) -> Matrix:  # noqa: ARG002
        """Return A, (q, p)."""
        return self.slope

    def column(self, name: str) -> Any:
        """Return the labels of the groups."""
        return self.labels[name].to_numpy()


def sums_within(
    parts: Iterable[Any], labels: Sequence[str], theta: Vector
) -> tuple[Matrix, pd.DataFrame, Vector]:
    """Return sums of psi within groups, their labels, and sums of squared rows.

    A group may span blocks: partial sums are keyed by label and merged, so that memory
    grows with the number of groups and not of rows.

    Parameters
    ----------
    parts : iterable of equations
        Each with `column` for the labels.
    labels : sequence of str
        Names of columns; groups are the combinations that occur.

    Raises
    ------
    DataError
        If a label is missing.
    """
    keys = list(labels)
    total: pd.DataFrame | None = None
    squares: Any = 0.0
    for number, part in enumerate(parts):
        rows = getattr(part, "psi_rows", part.psi)(theta)
        squares = squares + np.square(rows).sum(axis=0)
        table = pd.DataFrame(rows)
        for place, key in enumerate(keys):
            table[f"label{place}"] = _labels(part, key, number)
        named = [f"label{place}" for place in range(len(keys))]
        sums = table.groupby(named, sort=False, observed=True).sum()
        if total is not None:
            sums = pd.concat([total, sums])
            sums = sums.groupby(level=named, sort=False, observed=True).sum()
        total = sums
    if total is None:
        raise DataError("there are no blocks.")
    found = total.index.to_frame(index=False)
    found.columns = pd.Index(keys)
    return total.to_numpy(dtype=np.float64), found, np.asarray(squares)


def _labels(part: Any, key: str, number: int) -> Any:
    values = np.asarray(part.column(key))
    missing = np.flatnonzero(np.asarray(pd.isna(values)))
    if len(missing):
        raise DataError(
            f"`labels` {key!r} is missing in block {number}, {show_rows(missing)} of "
            "it; drop those rows or give them a group of their own."
        )
    return values


def summed_equation(
    equation: Any, parts: Iterable[Any], labels: Sequence[Any], theta: Vector
) -> SummedEquation:
    """Return sums of psi within groups as an equation for rules of clusters.

    Raises
    ------
    CapabilityError
        If labels are not names of columns.
    """
    if not all(isinstance(label, str) for label in labels):
        raise CapabilityError(
            "labels must be names of columns where data are read in blocks; an array "
            "has no place in the source. Write it into the table as a column."
        )
    table, found, squares = sums_within(parts, labels, theta)
    return SummedEquation(
        equation.names,
        equation.n_units,
        equation.n_effective,
        table,
        found,
        equation.sensitivity(theta),
        squares,
        float(getattr(equation, "derivative_error", 0.0)),
    )
