"""The delta method: names, steps of differences, and covariances of combinations."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd

from eestim._arrays import Matrix, Vector
from eestim._differentiate import response_steps
from eestim.covariance.base import Covariance

__all__ = ["contrast_spread", "default_names", "difference_steps", "smallest_dof"]


def default_names(count: int) -> tuple[str, ...]:
    """Return what values of h are called where nothing was given."""
    return ("h",) if count == 1 else tuple(f"h[{j}]" for j in range(count))


def difference_steps(
    h: Callable[[Vector], Vector], theta: Vector, errors: "pd.Series[float]"
) -> Vector:
    """Return steps for a derivative of h: at most a tenth of a standard error."""
    with np.errstate(all="ignore"):
        steps = response_steps(h, theta)
    bound = np.maximum(0.1 * errors.to_numpy(), 1e-6 * np.abs(theta))
    shorter: Vector = np.minimum(np.abs(steps), bound)
    return shorter


def contrast_spread(spread: Covariance, slope: Matrix, p: int) -> Covariance:
    """Return the covariance of linear combinations, with their own dof."""
    if spread.contrast_dof is not None:
        return spread.transformed(slope)
    taken = smallest_dof(spread, slope, p)
    return replace(spread.transformed(slope), dof=taken)


def smallest_dof(spread: Covariance, slope: Matrix, p: int) -> Vector:
    """Return the fewest degrees of freedom among the parameters of each row, (m,)."""
    dof = np.broadcast_to(spread.dof, p)
    smallest: Vector = np.where(slope != 0, dof, np.inf).min(axis=1)
    return smallest
