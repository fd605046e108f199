"""Fitted means at new rows: the linear predictor's interval, mapped by the link."""

from typing import Any

import numpy as np
import scipy

from eestim._arrays import Matrix, Vector
from eestim.covariance.base import Covariance
from eestim.errors import InferenceError
from eestim.estimation._delta import smallest_dof

__all__ = ["predictions"]


def predictions(
    made: Any, spread: Covariance, p: int, level: float, scale: str
) -> dict[str, Vector]:
    """Return the columns estimate, se, lower and upper at new rows.

    Parameters
    ----------
    made : Prediction
        The linear predictor, its derivative in theta, and the link.
    spread : Covariance
        Of the p parameters.
    level : float
    scale : {"mean", "link"}

    Raises
    ------
    InferenceError
        If a prediction has no positive variance.
    """
    inner, turn = spread.parts()
    rows = made.jacobian @ turn
    variance = np.einsum("ij,jk,ik->i", rows, inner, rows)
    if not (variance > 0).all():
        row = int(np.flatnonzero(~(variance > 0))[0])
        raise InferenceError(
            f"the prediction at row {row} has no positive variance "
            f"({variance[row]:.3g}): its row of the design is zero, or the "
            "covariance is indefinite. Check `new_data` and the covariance rule."
        )
    errors = np.sqrt(variance)
    laws = np.broadcast_to(_dof(spread, made.jacobian, p), len(errors))
    half = scipy.stats.t.ppf(0.5 + level / 2.0, laws) * errors
    bounds = np.sort([made.linear - half, made.linear + half], axis=0)
    columns = {"estimate": made.linear, "se": errors}
    columns |= {"lower": bounds[0], "upper": bounds[1]}
    if scale == "mean":
        mapped = np.sort(made.link.inverse(bounds), axis=0)
        columns = {
            "estimate": made.link.inverse(made.linear),
            "se": errors * np.abs(made.link.slope(made.linear)),
            "lower": mapped[0],
            "upper": mapped[1],
        }
    return columns


def _dof(spread: Covariance, rows: Matrix, p: int) -> Vector:
    """Return degrees of freedom for rows of a design, (m,)."""
    if spread.contrast_dof is not None:
        return spread.contrast_dof(rows)
    return smallest_dof(spread, rows, p)
