"""Moments of psi at one theta: additive over disjoint sets of units."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from eestim._arrays import Matrix, Vector
from eestim.errors import DataError

if TYPE_CHECKING:
    from eestim.equations import EstimatingEquation

__all__ = ["Moments", "moments_at", "moments_of"]


@dataclass(frozen=True, slots=True)
class Moments:
    r"""Means over n units of psi, of psi psi' and of minus the derivative of psi.

    ``a + b`` is the moments of the union of two disjoint sets of units at the same
    theta, so blocks, batches and workers stream.

    Attributes
    ----------
    n : float
        Number of units.
    mean : (q,) array
        :math:`\bar\psi`.
    meat : (q, q) array
        :math:`M = n^{-1} \sum_i \psi_i \psi_i^\top`.
    sensitivity : (q, p) array
        :math:`A = -n^{-1} \sum_i \partial \psi_i / \partial \theta^\top`.

    Examples
    --------
    >>> import numpy as np
    >>> one = Moments(1, np.array([2.0]), np.array([[4.0]]), np.eye(1))
    >>> two = Moments(3, np.array([0.0]), np.array([[8.0]]), np.eye(1))
    >>> (one + two).mean, (one + two).meat
    (array([0.5]), array([[7.]]))
    """

    n: float
    mean: Vector
    meat: Matrix
    sensitivity: Matrix

    def __add__(self, other: "Moments") -> "Moments":
        """Return the moments of the union."""
        if self.sensitivity.shape != other.sensitivity.shape:
            raise DataError(
                "`+` needs moments of the same equation; shapes of the sensitivity are "
                f"{self.sensitivity.shape} and {other.sensitivity.shape}."
            )
        n = self.n + other.n
        own, its = self.n / n, other.n / n
        return Moments(
            n,
            own * self.mean + its * other.mean,
            own * self.meat + its * other.meat,
            own * self.sensitivity + its * other.sensitivity,
        )


def moments_of(psi: Matrix, sensitivity: Matrix) -> Moments:
    """Return the moments of contributions held in memory.

    Parameters
    ----------
    psi : (n, q) array
    sensitivity : (q, p) array
        A, already a mean over the n units.
    """
    n = len(psi)
    return Moments(n, psi.mean(axis=0), psi.T @ psi / n, sensitivity)


def moments_at(equation: "EstimatingEquation", theta: Vector) -> Moments:
    """Return the moments of psi at theta, streamed where the equation can."""
    fast = getattr(equation, "moments", None)
    if fast is not None:
        result: Moments = fast(theta)
        return result
    return moments_of(equation.psi(theta), equation.sensitivity(theta))
