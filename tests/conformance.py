"""Checks that every equation passes; a new equation is one more row of cases.py.

Those of a single equation are the ones of `eestim.testing`; the rest, on sums that are
merged, are written here.
"""

from typing import Any

import numpy as np
import pandas as pd
from tolerances import DERIVATIVE, EXACT, REFERENCE

from eestim.equations import moments_at
from eestim.moments import moments_of
from eestim.testing import check_equation


def relative(a: Any, b: Any) -> float:
    """The largest difference in units of the larger array."""
    a, b = np.asarray(a), np.asarray(b)
    return float(np.max(np.abs(a - b)) / max(np.max(np.abs(b)), 1e-300))


def check_contract(build: Any, data: pd.DataFrame) -> set[str]:
    """Shapes, memory, arguments, derivative, rows and capabilities, on examples."""
    held = check_equation(build, data=data, examples=1, properties=())
    return {one.name for one in held}


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
