"""Checks that every equation passes; a new equation is one more row of cases.py."""

from typing import Any

import numpy as np
import pandas as pd
from tolerances import DERIVATIVE, EXACT, REFERENCE

import eestim as ee
from eestim.equations import moments_at
from eestim.moments import moments_of


def relative(a: Any, b: Any) -> float:
    """The largest difference in units of the larger array."""
    a, b = np.asarray(a), np.asarray(b)
    return float(np.max(np.abs(a - b)) / max(np.max(np.abs(b)), 1e-300))


def check_shapes(equation: Any, theta: np.ndarray) -> None:
    psi, slope = equation.psi(theta), equation.sensitivity(theta)
    p = len(equation.names)
    assert psi.shape == (equation.n_units, p)
    assert slope.shape == (p, p)
    assert psi.dtype == slope.dtype == np.float64
    assert len(set(equation.names)) == p


def check_sensitivity(equation: Any, theta: np.ndarray) -> None:
    """A against plain central differences of the mean of psi."""
    slope = equation.sensitivity(theta)
    for j in range(len(theta)):
        step = 1e-5 * max(1.0, abs(theta[j]))
        up, down = theta.copy(), theta.copy()
        up[j] += step
        down[j] -= step
        seen = -(equation.psi(up) - equation.psi(down)).mean(axis=0) / (2 * step)
        scale = np.abs(slope).max()
        assert np.max(np.abs(seen - slope[:, j])) <= DERIVATIVE * scale


def check_moments(equation: Any, theta: np.ndarray) -> None:
    """Streamed moments against those of psi held in memory."""
    streamed = moments_at(equation, theta)
    whole = moments_of(equation.psi(theta), equation.sensitivity(theta))
    assert relative(streamed.mean, whole.mean) < 100 * EXACT
    assert relative(streamed.meat, whole.meat) < EXACT
    assert relative(streamed.sensitivity, whole.sensitivity) < REFERENCE
    assert streamed.n == whole.n == equation.n_units


def check_row_order(build: Any, data: pd.DataFrame, rng: np.random.Generator) -> None:
    one = ee.estimate(build(data))
    shuffled = data.iloc[rng.permutation(len(data))].reset_index(drop=True)
    two = ee.estimate(build(shuffled))
    np.testing.assert_allclose(two.theta, one.theta, rtol=REFERENCE, atol=1e-10)
    assert relative(two.spread.matrix, one.spread.matrix) < REFERENCE


def check_merging(
    build: Any, data: pd.DataFrame, theta: np.ndarray, rng: np.random.Generator
) -> None:
    """Moments of a random partition add up to the moments of the whole."""
    part = rng.random(len(data)) < 0.4
    pieces = [data[part].reset_index(drop=True), data[~part].reset_index(drop=True)]
    first, second = (moments_at(build(piece), theta) for piece in pieces)
    merged, whole = first + second, moments_at(build(data), theta)
    assert relative(merged.mean, whole.mean) < 1e4 * EXACT
    assert relative(merged.meat, whole.meat) < 1e4 * EXACT
    assert relative(merged.sensitivity, whole.sensitivity) < DERIVATIVE


def check_linear_equivariance(equation: Any, rng: np.random.Generator) -> None:
    """theta = L eta: the covariance of eta is that of theta, transformed back."""
    fit = ee.estimate(equation)
    p = len(fit.names)
    transform = rng.normal(size=(p, p)) + 2 * np.eye(p)

    class Changed:
        n_units, names = equation.n_units, equation.names
        derivative_error = getattr(equation, "derivative_error", 0.0)
        start = np.linalg.solve(transform, fit.theta) + 0.01

        def psi(self, eta: np.ndarray) -> np.ndarray:
            return equation.psi(transform @ eta)

        def sensitivity(self, eta: np.ndarray) -> np.ndarray:
            return equation.sensitivity(transform @ eta) @ transform

    other = ee.estimate(Changed())
    back = transform @ other.spread.matrix @ transform.T
    errors = fit.se.to_numpy()
    assert np.max(np.abs(transform @ other.theta - fit.theta) / errors) < REFERENCE
    assert np.max(np.abs(back - fit.spread.matrix) / np.outer(errors, errors)) < 1e-7


def check_duplication(build: Any, data: pd.DataFrame) -> None:
    """Writing every row twice leaves the estimate and halves the covariance."""
    one = ee.estimate(build(data))
    two = ee.estimate(build(pd.concat([data, data], ignore_index=True)))
    errors = one.se.to_numpy()
    assert np.max(np.abs(two.theta - one.theta) / errors) < REFERENCE
    assert relative(2 * two.spread.matrix, one.spread.matrix) < REFERENCE
