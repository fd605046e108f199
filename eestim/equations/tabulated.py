"""Equations tabulated at one theta: scores computed elsewhere, loaded fits."""

from dataclasses import dataclass

import numpy as np

from eestim._arrays import Matrix, Vector
from eestim.errors import CapabilityError

__all__ = ["Evaluated"]


@dataclass(frozen=True, slots=True)
class Evaluated:
    """An equation tabulated at one theta: scores computed elsewhere, or a loaded fit.

    Covariance rules that are functions of psi and A work as usual; nothing can be
    solved or refitted.

    Attributes
    ----------
    names : tuple of p str
    table : (n, q) array
        Contributions at `theta`.
    slope : (q, p) array
        A at `theta`.
    theta : (p,) array
    """

    names: tuple[str, ...]
    table: Matrix
    slope: Matrix
    theta: Vector

    @property
    def n_units(self) -> int:
        """Number of independent units, n."""
        return len(self.table)

    def _check(self, theta: Vector) -> None:
        if not np.array_equal(np.asarray(theta), self.theta):
            raise CapabilityError(
                "this equation is tabulated at one theta and cannot be evaluated at "
                "another; build the original equation to solve or refit."
            )

    def psi(self, theta: Vector) -> Matrix:
        """Return the tabulated contributions, (n, q)."""
        self._check(theta)
        return self.table

    def sensitivity(self, theta: Vector) -> Matrix:
        """Return the tabulated A, (q, p)."""
        self._check(theta)
        return self.slope
