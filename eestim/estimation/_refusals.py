"""What is refused: roots that identify nothing, variances that are not above zero."""

from typing import TYPE_CHECKING

import numpy as np

from eestim._arrays import Matrix
from eestim._differentiate import vanishes
from eestim._linalg import equilibrated_factor
from eestim.covariance.base import sensitivity_factor
from eestim.equations import EstimatingEquation, Evaluated
from eestim.errors import (
    DataError,
    IdentificationError,
    InferenceError,
    InterpolationError,
)
from eestim.roots import DOUBTFUL, Root, Status, solve

if TYPE_CHECKING:
    from eestim.estimation.result import Estimate

__all__ = [
    "check_interpolation",
    "check_variances",
    "explain_singular",
    "refuse_unidentified",
]

_NO_DIGITS = 1e-8  # reciprocal condition whose square is the rounding of a variance
_ADDED = 1e3  # times what is left of psi, relative to its size: as much as A may gain
_FEW_STEPS = 10  # from a given root to the nearest one, which is near by


def refuse_unidentified(equation: EstimatingEquation, root: Root) -> None:
    """Raise where A is regular at a given root only through what is left of psi.

    What a root found elsewhere leaves of the equations adds to A; the nearest root
    solved to rounding shows whether anything else keeps A regular.
    """
    is_model = getattr(equation, "check_root", None) is not None
    if is_model or root.working is not None or isinstance(equation, Evaluated):
        return
    if getattr(equation, "blocks", None) is not None:
        return
    error = float(getattr(equation, "derivative_error", 0.0))
    psi, slope = equation.psi(root.theta), equation.sensitivity(root.theta)
    size = np.sqrt(np.mean(psi**2, axis=0))
    left = np.max(np.abs(psi.mean(axis=0)) / np.where(size > 0, size, 1.0))
    if slope.shape[0] != slope.shape[1]:
        return
    if equilibrated_factor(slope).rcond > min(DOUBTFUL, _ADDED * left):
        return
    nearest = solve(equation, root.theta, max_steps=_FEW_STEPS)
    if nearest.is_converged:
        sensitivity_factor(equation.sensitivity(nearest.theta), equation.names, error)


def check_interpolation(equation: EstimatingEquation, root: Root) -> None:
    """Raise where psi is zero to rounding at every unit, so that M says nothing."""
    if getattr(equation, "check_root", None) is not None:
        return  # models look at their residuals instead
    if isinstance(equation, Evaluated):
        return
    if vanishes(equation.psi, root.theta):
        largest = np.abs(equation.psi(root.theta)).max()
        raise InterpolationError(
            f"psi vanishes at every unit at the root (largest entry {largest:.1e}), so "
            "the sandwich would be zero whatever the noise. The equations interpolate "
            "the data: use fewer parameters or more units; see ee.asymptotics."
        )


def explain_singular(equation: EstimatingEquation, root: Root) -> None:
    """Raise IdentificationError where a failed search ended at a singular A."""
    if root.is_converged or root.status is Status.DIVERGED:
        return
    error = float(getattr(equation, "derivative_error", 0.0))
    try:
        sensitivity_factor(equation.sensitivity(root.theta), equation.names, error)
    except DataError:
        return
    except IdentificationError as singular:
        raise IdentificationError(f"no root found: {singular}") from None


def check_variances(made: "Estimate", slope: Matrix | None = None) -> None:
    """Raise where a standard error is not a number above 0.

    Parameters
    ----------
    made : Estimate
    slope : (m, p) array, optional
        Where the estimate is a function of p parameters, its derivative: a row of
        zeros says that it does not depend on them.

    Raises
    ------
    InferenceError, IdentificationError, InterpolationError
    """
    variance = np.diag(made.spread.matrix)
    bad = ~(np.isfinite(variance) & (variance > 0))
    if slope is not None:
        bad |= ~slope.any(axis=1)
    if not bad.any():
        return
    j = int(np.flatnonzero(bad)[0])
    if np.isfinite(variance[j]) and variance[j] < 0:
        _refuse_near_singular(made)
        raise InferenceError(
            f"the covariance rule {made.spread.rule} gives a negative variance for "
            f"{made.names[j]!r} ({variance[j]:.3g}). Use fewer ways of clustering, "
            "more clusters, or `repair_psd=True`."
        )
    if not np.isfinite(variance[j]):
        raise InferenceError(
            f"the variance of {made.names[j]!r} is {variance[j]}; check psi and its "
            "derivative at the root."
        )
    raise InterpolationError(
        f"the standard error of {made.names[j]!r} would be zero: no unit contributes "
        "to it at the root. The fit interpolates the data, or the quantity does not "
        "depend on them. Use fewer parameters or more units; for p near n see "
        "ee.asymptotics."
    )


def _refuse_near_singular(made: "Estimate") -> None:
    """Raise where a variance is negative because A^-1 M A^-T has no digits left."""
    equation = made.equation
    if made.root.working is not None or isinstance(equation, Evaluated):
        return
    factor = equilibrated_factor(equation.sensitivity(made.theta))
    if factor.rcond > _NO_DIGITS:
        return
    raise IdentificationError(
        f"`sensitivity` is singular to the digits of its sandwich (reciprocal "
        f"condition {factor.rcond:.1e} after scaling), whose variances come out "
        f"negative; nearly free direction: {factor.null_direction(equation.names)}. "
        "Fix or drop some of these parameters, or report an identified function of "
        "them."
    )
