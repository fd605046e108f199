"""Where the search of a generalized linear model begins."""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from eestim._arrays import Vector
from eestim._linalg import equilibrated_factor
from eestim.models._blocked import gradient, gram
from eestim.roots import Root, solve

if TYPE_CHECKING:
    from eestim.models.generalized_linear import GeneralizedLinear

__all__ = ["scoring_start", "subsample_root", "subsampled"]

_SUBSAMPLE_SHARE = 0.01


def scoring_start(model: "GeneralizedLinear") -> Vector:
    """Return a step of Fisher scoring from the family's starting mean, (p,)."""
    y = model.response
    weights = model.row_weights if model.row_weights is not None else np.ones(len(y))
    mu = model.family.starting_mean(y, float(np.average(y, weights=weights)))
    if model.link.name in ("log", "inverse"):
        mu = np.maximum(mu, 1e-3 * max(float(np.abs(y).mean()), 1e-300))
    eta = model.link.forward(mu)
    slope = model.link.slope(eta)
    target = eta + (y - mu) / slope
    if model.offset is not None:
        target = target - model.offset
    weight = weights * slope**2 / model.family.variance(mu)
    right = gradient(model.design, weight * target)
    factor = equilibrated_factor(gram(model.design, weight))
    if factor.rank < len(model.names):
        return np.zeros(len(model.names))
    return factor.solve(right)


def subsampled(model: "GeneralizedLinear") -> "GeneralizedLinear":
    """Return the model of a hundredth of its rows, forty a parameter at the least."""
    n = len(model.response)
    size = max(int(_SUBSAMPLE_SHARE * n), 40 * len(model.names))
    rows = np.sort(np.random.default_rng(0).choice(n, min(size, n), replace=False))

    def part(values: Vector | None) -> Vector | None:
        return None if values is None else values[rows]

    return replace(
        model,
        design=model.design[rows],
        response=model.response[rows],
        offset=part(model.offset),
        row_weights=part(model.row_weights),
    )


def subsample_root(model: "GeneralizedLinear") -> Vector:
    """Return the root of a subsample, or its own start where there is none, (p,)."""
    small = subsampled(model)
    initial = scoring_start(small)
    if small.row_weights is not None and not small.row_weights.any():
        return initial
    root: Root = solve(small, initial)
    return root.theta if root.is_converged else initial
