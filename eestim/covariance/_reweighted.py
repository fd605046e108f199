"""Roots of reweighted equations: a short secant search, and the solver behind it."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from eestim._arrays import Matrix, Vector
from eestim._linalg import Factor, equilibrated_factor
from eestim.covariance._refits import reference_factor, unit_influence, unit_slopes
from eestim.errors import CapabilityError, EestimError
from eestim.roots import solve

__all__ = [
    "SINGULAR",
    "VANISHED",
    "Reference",
    "Refit",
    "quick_roots",
    "reference_of",
    "refit",
    "require_reweighted",
]

# Information of a replicate relative to the full sample, in its weakest direction:
# below this a root is on its way to infinity, as in a separated subsample.
VANISHED = 1e-5
SINGULAR = "information vanishes"

_MOST_SLOPES = 1 << 22  # entries of the unit derivatives that are kept for searches
_TINY_STEP = 1e-9  # standard errors, as in the solver
_MOST_STEPS = 25
_SHRINKS = 0.6  # each step of a search that is to be trusted, relative to the last


@dataclass(frozen=True, slots=True)
class Reference:
    """What the search for a replicate knows of the full sample.

    Attributes
    ----------
    factor : Factor
        Of A at the root.
    errors : (p,) array
        Standard errors (HC0), the unit in which steps are measured.
    slopes : (n, p, p) array or None
        Minus the derivative of each unit's psi at the root, kept where A of a
        reweighted equation would have to be found by differences.
    """

    factor: Factor
    errors: Vector
    slopes: Matrix | None


def reference_of(equation: Any, theta: Vector) -> Reference:
    """Return the reference of an equation at its root."""
    influence = unit_influence(equation, theta)
    errors = np.sqrt(np.square(influence).sum(axis=0))
    alike = equation.reweighted(np.ones(equation.n_units))
    is_numerical = float(getattr(alike, "derivative_error", 0.0)) > 0.0
    is_small = equation.n_units * len(theta) ** 2 <= _MOST_SLOPES
    slopes = unit_slopes(equation, theta) if is_numerical and is_small else None
    return Reference(reference_factor(equation, theta), errors, slopes)


@dataclass(frozen=True, slots=True)
class Refit:
    """The root of a reweighted equation.

    Attributes
    ----------
    theta : (p,) array
    equation : the reweighted equation
    """

    theta: Vector
    equation: Any

    def information(self) -> Matrix:
        r"""Return :math:`\sum_i w_i A_i` at the root, (p, p)."""
        slope: Matrix = self.equation.sensitivity(self.theta) * self.equation.n_units
        return slope


def refit(
    equation: Any, weights: Vector, start: Vector, reference: Reference
) -> Refit | str:
    """Return the root of the reweighted equation, or the name of what went wrong.

    A replicate fails where the solver does, where A is singular, and where the
    information in some direction is below 1e-5 of the full sample's: there the root
    lies at infinity, as in a subsample whose outcomes are separated, and the solver
    only stopped on its way.

    Parameters
    ----------
    equation : EstimatingEquation with `reweighted`
    weights : (n,) array
        One for each unit, of mean about one.
    start : (p,) array
    reference : Reference
        Of the full sample.
    """
    try:
        with np.errstate(all="ignore"):
            again = equation.reweighted(weights)
            if reference.slopes is not None:
                near = _secant_root(again, weights, start, reference)
                if near is not None:
                    return Refit(near, again)
            root = solve(again, start)
            if not root.is_converged:
                return root.status.name.lower().replace("_", " ")
            share = _information_share(reference, again.sensitivity(root.theta))
    except (EestimError, np.linalg.LinAlgError) as error:
        return type(error).__name__
    return Refit(root.theta, again) if share > VANISHED else SINGULAR


def quick_roots(
    equation: Any, weights: Matrix, start: Vector, reference: Reference
) -> Matrix:
    """Return the roots under each row of weights, NaN where `refit` has to look.

    Equations with `reweighted_roots` find them all at once by steps that have to
    shrink, as in `refit`; roots on their way to infinity are left to it.

    Parameters
    ----------
    equation : EstimatingEquation with `reweighted_roots`
    weights : (R, n) array
    start : (p,) array
    reference : Reference
        Of the full sample.
    """
    with np.errstate(all="ignore"):
        roots: Matrix
        roots, sensitivity = equation.reweighted_roots(weights, start, reference.errors)
        if sensitivity is None:
            return roots
        found = np.isfinite(sensitivity).all(axis=(1, 2))
        share = np.zeros(len(roots))
        share[found] = _information_shares(reference, sensitivity[found])
    roots[share <= VANISHED] = np.nan
    return roots


def _information_shares(reference: Reference, sensitivity: Matrix) -> Vector:
    """Return the smallest singular value of A^-1 A* for (R, p, p) A*, as below."""
    columns = reference.factor.columns
    p = len(columns)
    wide = sensitivity.transpose(1, 0, 2).reshape(p, -1)
    ratio = reference.factor.solve(wide).reshape(p, -1, p).transpose(1, 0, 2)
    ratio = ratio * (columns / columns[:, None])
    shares = np.asarray(np.linalg.svd(ratio, compute_uv=False), dtype=np.float64)
    smallest: Vector = shares[:, -1]
    return smallest


def _information_share(reference: Reference, sensitivity: Matrix) -> float:
    """Return the smallest singular value of A^-1 A*, in equilibrated units."""
    if not np.isfinite(sensitivity).all():
        return 0.0
    columns = reference.factor.columns
    ratio = reference.factor.solve(sensitivity) * (columns / columns[:, None])
    return float(np.linalg.svd(ratio, compute_uv=False)[-1])


def _secant_root(
    again: Any, weights: Vector, theta: Vector, reference: Reference
) -> Vector | None:
    """Return a root by Broyden's updates of the reweighted A, or None.

    A is known at the start as the weighted sum of the units' derivatives, so a step
    costs one evaluation of psi. The search is given up, and the solver takes over,
    unless every step is clearly shorter than the one before.

    References
    ----------
    Broyden (1965), Math. Comp. 19, 577-593.
    """
    assert reference.slopes is not None  # the caller looked
    slope = np.tensordot(weights, reference.slopes, axes=1) / again.n_units
    if _information_share(reference, slope) <= VANISHED:
        return None
    units = reference.errors
    slope = slope * units  # parameters in standard errors
    factor = equilibrated_factor(slope)
    mean, last = again.psi(theta).mean(axis=0), np.inf
    for _ in range(_MOST_STEPS):
        if factor.rank < len(theta):
            return None
        step = factor.solve(mean)
        length = float(np.abs(step).max())
        if not length <= _SHRINKS * last:
            return None
        theta = theta + step * units
        if length <= _TINY_STEP:
            return theta
        before, mean, last = mean, again.psi(theta).mean(axis=0), length
        gap = (before - mean) - slope @ step
        slope = slope + np.outer(gap, step) / (step @ step)
        factor = equilibrated_factor(slope)
    return None


def require_reweighted(equation: Any, wanted_by: str, instead: str) -> None:
    """Raise where an equation cannot be refitted under weights.

    Raises
    ------
    CapabilityError
        Naming `reweighted` and what works without it.
    """
    if getattr(equation, "reweighted", None) is None:
        raise CapabilityError(
            f"{wanted_by} refits under weights and needs `reweighted`, which "
            f"{type(equation).__name__} does not supply. {instead}"
        )
