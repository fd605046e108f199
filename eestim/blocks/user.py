"""A user's estimating equation over a block source."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from eestim._arrays import Matrix, Vector
from eestim._differentiate import vanishes
from eestim.blocks.sources import Block, BlockSource
from eestim.blocks.sums import (
    SummedEquation,
    refuse_blocks,
    summed_equation,
    sums_within,
    total_moments,
)
from eestim.errors import DataError, InterpolationError
from eestim.moments import Moments

__all__ = ["BlockedEquation"]


@dataclass(frozen=True, slots=True)
class BlockedEquation:
    """A user's estimating equation over a block source; made by `eestim.equation`.

    Attributes
    ----------
    source : BlockSource
    build : callable
        From a block and the factor of its weights to the equation of its rows.
    names : tuple of p str
    initial : (p,) array
    block_places : mapping
        Places of named blocks of parameters.
    n_rows, n_units : int
    n_effective : float
    weight_scale : float
        What brings sampling weights to mean one over the source.
    derivative_error : float
    units : str or None
        Column of the labels of independent units, which may span blocks.
    """

    source: BlockSource
    build: Callable[[Block, float], Any]
    names: tuple[str, ...]
    initial: Vector
    block_places: Any
    n_rows: int
    n_units: int
    n_effective: float
    weight_scale: float
    derivative_error: float
    units: str | None = None
    _last: dict[bytes, Moments] = field(default_factory=dict, init=False)

    @property
    def start(self) -> Vector:
        """Where the solver begins, (p,)."""
        return self.initial.copy()

    def blocks(self) -> Iterator[Any]:
        """Yield the equation of each block, its data in memory."""
        for block in self.source.blocks(n_rows=self.n_rows):
            yield self.build(block, self.weight_scale)

    def moments(self, theta: Vector) -> Moments:
        """Return the moments of psi over units, in one pass."""
        key = np.asarray(theta).tobytes()
        if key not in self._last:  # the solver's check and the rule meet at the root
            self._last.clear()
            self._last[key] = self._moments(theta)
        return self._last[key]

    def _moments(self, theta: Vector) -> Moments:
        by_row = total_moments(self.blocks(), theta)
        if self.units is None:
            return by_row
        table, _, _ = sums_within(self.blocks(), [self.units], theta)
        share = by_row.n / len(table)
        return Moments(
            float(len(table)),
            table.mean(axis=0),
            table.T @ table / len(table),
            by_row.sensitivity * share,
        )

    def newton_terms(self, theta: Vector) -> tuple[Vector, Vector, Matrix]:
        """Return the mean of psi, its squared size and A, in one pass.

        All are NaN where psi is not finite, which the solver steps back from.
        """
        try:
            made = self.moments(theta)
        except DataError as error:
            if "not finite" not in str(error):
                raise
            bad = np.full((len(self.names), len(self.names)), np.nan)
            return bad[0], bad[0], bad
        return made.mean, np.diag(made.meat), made.sensitivity

    def sensitivity(self, theta: Vector) -> Matrix:
        """Return A, minus the mean derivative of psi, (q, p)."""
        return self.moments(theta).sensitivity

    def summed_within(self, labels: Sequence[Any], theta: Vector) -> SummedEquation:
        """Return sums of psi within groups of rows, labelled by columns."""
        return summed_equation(self, self.blocks(), labels, theta)

    def check_root(self, root: Any) -> None:
        """Raise where psi vanishes at every unit, so that M says nothing.

        Raises
        ------
        InterpolationError
        """
        if not all(vanishes(part.psi, root.theta) for part in self.blocks()):
            return
        raise InterpolationError(
            "psi vanishes at every unit at the root, so the sandwich would be zero "
            "whatever the noise. Use fewer parameters or more units; see "
            "ee.asymptotics."
        )

    def psi(self, theta: Vector) -> Matrix:  # noqa: ARG002 - the protocol's argument
        """Refuse: contributions of all units are not held in memory."""
        refuse_blocks("psi of every unit")

    def working(self, theta: Vector) -> Any:  # noqa: ARG002
        """Refuse: there is no linear form of an equation of one's own."""
        refuse_blocks("`working`, the linear form of a regression,")

    def reweighted(self, weights: Vector) -> Any:  # noqa: ARG002
        """Refuse: refits need a weight for every unit."""
        refuse_blocks("a refit under other weights (bootstrap, jackknife, halves)")
