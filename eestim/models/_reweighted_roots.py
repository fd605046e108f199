"""Roots of a generalized linear model under many sets of weights at once."""

from typing import Any

import numpy as np

from eestim._arrays import Matrix, Vector

__all__ = ["glm_roots"]

_SHRINKS = 0.6  # each step of a search that is to be trusted, relative to the last
_TINY_STEP = 1e-9  # standard errors, as in the solver
_MOST_STEPS = 25
_MOST_PRODUCTS = 1 << 22


def glm_roots(
    equation: Any, weights: Matrix, start: Vector, errors: Vector
) -> tuple[Matrix, Matrix]:
    r"""Return the roots of :math:`\sum_i w_{ri} \psi_i(\theta) = 0` for each r, and A.

    Newton's steps from one start for all rows of weights. A row whose step does not
    shrink by a factor 0.6 is given up.

    Parameters
    ----------
    equation : GeneralizedLinear
    weights : (R, n) array
        Of the units.
    start, errors : (p,) arrays
        Where to begin, and the unit in which steps are measured.

    Returns
    -------
    theta : (R, p) array
        NaN where the search was given up.
    sensitivity : (R, p, p) array
        A at the root, NaN likewise.
    """
    design, p = equation.design, len(start)
    theta = np.full((len(weights), p), np.nan)
    sensitivity = np.full((len(weights), p, p), np.nan)
    if design.size * (p + 1) / 2 > _MOST_PRODUCTS:  # products of columns, all pairs
        return theta, sensitivity
    first, second = np.triu_indices(p)
    products = design[:, first] * design[:, second]
    rows = np.array([equation.reweighted(w).row_weights for w in weights])
    places, current = np.arange(len(weights)), np.tile(start, (len(weights), 1))
    last = np.full(len(weights), np.inf)
    for _ in range(_MOST_STEPS):
        mean, slope = _sums(equation, design, products, rows, current)
        try:
            step = np.linalg.solve(slope, mean[:, :, None])[:, :, 0]
        except np.linalg.LinAlgError:  # one of them; left to searches one by one
            break
        length = np.abs(step / errors).max(axis=1)
        going = length <= _SHRINKS * last
        current = current + step
        done = going & (length <= _TINY_STEP)
        theta[places[done]] = current[done]
        sensitivity[places[done]] = slope[done] / equation.n_units
        left = going & ~done
        if not left.any():
            break
        places, current, last = places[left], current[left], length[left]
        rows = rows[left]
    return theta, sensitivity


def _sums(
    equation: Any, design: Matrix, products: Matrix, rows: Matrix, theta: Matrix
) -> tuple[Matrix, Matrix]:
    """Return sums over units of psi, (R, p), and of minus its derivative, (R, p, p)."""
    eta = theta @ design.T
    terms = equation.terms_at(eta if equation.offset is None else eta + equation.offset)
    weight = (rows * equation.observed_weight(terms)) @ products
    p = design.shape[1]
    first, second = np.triu_indices(p)
    slope = np.empty((len(theta), p, p))
    slope[:, first, second] = weight
    slope[:, second, first] = weight
    return (rows * terms.residual) @ design, slope
