"""Known moments and simulated outcomes of unweighted GLM families."""

from collections.abc import Callable
from typing import Any

import numpy as np

from eestim._arrays import Vector

__all__ = ["FamilyMoments", "family_moments", "fitted_mean", "simulated_response"]

FamilyMoments = tuple[Vector, Vector, Vector, Vector]
_KNOWN = ("gaussian", "binomial", "poisson")


def _is_known(equation: Any) -> bool:
    name = getattr(getattr(equation, "family", None), "name", None)
    held = all(hasattr(equation, member) for member in ("design", "response", "link"))
    return name in _KNOWN and held and equation.row_weights is None


def fitted_mean(equation: Any, theta: Vector) -> Vector:
    """Return the fitted means of a GLM, (n,)."""
    prediction = equation.design @ theta
    if equation.offset is not None:
        prediction = prediction + equation.offset
    mean: Vector = equation.link.inverse(prediction)
    return mean


def family_moments(
    equation: Any, theta: Vector, *, linear: bool = False
) -> FamilyMoments | None:
    """Return residual and its second, third and fourth central moments.

    None unless the family is binomial or Poisson with its canonical link (or, if
    ``linear``, normal with the identity), outcomes are zero or one where binomial, and
    there are no weights.
    """
    if not _is_known(equation) or not equation.is_canonical:
        return None
    mu = fitted_mean(equation, theta)
    residual = equation.response - mu
    if equation.family.name == "gaussian":
        if not linear:
            return None
        variance = np.full(len(mu), float(np.mean(residual**2)))
        return residual, variance, np.zeros(len(mu)), 3 * variance**2
    if equation.family.name == "poisson":
        return residual, mu, mu, mu + 3 * mu**2
    if not np.isin(equation.response, (0.0, 1.0)).all():
        return None
    variance = mu * (1 - mu)
    return (
        residual,
        variance,
        variance * (1 - 2 * mu),
        variance * (1 - 3 * variance),
    )


def simulated_response(
    equation: Any, theta: Vector
) -> Callable[[np.random.Generator], Vector] | None:
    """Return a function that draws outcomes of the family, or None."""
    if not _is_known(equation):
        return None
    mu = fitted_mean(equation, theta)
    if equation.family.name == "poisson":
        return lambda rng: rng.poisson(mu).astype(np.float64)
    if equation.family.name == "binomial":
        if not np.isin(equation.response, (0.0, 1.0)).all():
            return None
        return lambda rng: (rng.random(len(mu)) < mu).astype(np.float64)
    spread = float(np.sqrt(np.mean((equation.response - mu) ** 2)))
    return lambda rng: mu + spread * rng.standard_normal(len(mu))
