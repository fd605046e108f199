"""A root with the status of the search that found it, and its residual."""

from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

from eestim._arrays import Matrix, Vector
from eestim._linalg import symmetric_power
from eestim.errors import ConvergenceError
from eestim.moments import Moments

__all__ = ["Root", "Status", "noise_residual"]

_ROUNDING = 1e-11  # of the terms of an equation, generously


class Status(Enum):
    """How a search ended. The value is the advice that goes with it."""

    CONVERGED = ""
    GIVEN = "The root was supplied; read its residual in units of noise."
    STALLED = (
        "No step reduces the equations: psi may be discontinuous or have no root "
        "near this start. Try another `start`, or check the derivative."
    )
    CROSSED = (
        "Psi jumps across zero here (a quantile or a sign): its mean is within a few "
        "units' contributions of zero, which is as near as it comes."
    )
    DIVERGED = (
        "Psi vanishes while the parameters keep growing, so the root lies at "
        "infinity: look for complete separation or a redundant parameter."
    )
    TOO_MANY_STEPS = "Try a `start` nearer to the root, or rescale the equations."

    @property
    def advice(self) -> str:
        """What to do about it."""
        return str(self.value)


@dataclass(frozen=True, slots=True)
class Root:
    r"""A root of the mean of psi, or the best point found with its status.

    Attributes
    ----------
    theta : (p,) array
    status : Status
    residual : float
        Root mean square of the mean of psi in units of its noise,
        :math:`\sqrt{n \bar\psi^\top M^+ \bar\psi / \mathrm{rank} M}`; below 0.01
        the numerical error is a hundredth of a standard error.
    steps : int
        Newton steps taken.
    working : tuple or None
        ``(equation, eta, L)`` with ``theta = L @ eta``, where the equation was
        solved in a better-conditioned parameterisation.
    """

    theta: Vector
    status: Status
    residual: float
    steps: int
    working: tuple[Any, Vector, Matrix] | None = None

    @property
    def is_converged(self) -> bool:
        """Whether theta can be used as a root."""
        return self.status in (Status.CONVERGED, Status.CROSSED, Status.GIVEN)

    def require_converged(self) -> "Root":
        """Return this root.

        Raises
        ------
        ConvergenceError
            If the search failed, with the advice of its status.
        """
        if not self.is_converged:
            raise ConvergenceError(
                f"no root found ({self.status.name.lower().replace('_', ' ')} after "
                f"{self.steps} steps, residual {self.residual:.2g} in units of noise "
                f"at theta = {np.array2string(self.theta, precision=4)}). "
                f"{self.status.advice}"
            )
        return self


def noise_residual(moments: Moments, theta: Vector | None = None) -> float:
    r"""Return :math:`\sqrt{n \bar\psi^\top M^+ \bar\psi / r}`, r the rank of M.

    Equations without noise (a function of theta alone, as in a stacked functional)
    are measured by the rounding of their terms, ``1e-11 |A| |theta|``.

    Examples
    --------
    >>> noise_residual(Moments(100, np.array([0.1]), np.eye(1), np.eye(1)))
    1.0
    """
    scale = np.sqrt(np.diag(moments.meat))
    meat = moments.meat
    if theta is not None:
        floor = _ROUNDING * (np.abs(moments.sensitivity) @ np.abs(theta))
        silent = scale < floor
        scale = np.where(silent, floor, scale)
        meat = np.where(silent | silent[:, None], np.diag(scale**2), meat)
    safe = np.where(scale > 0, scale, 1.0)
    half, rank = symmetric_power(meat / np.outer(safe, safe), -0.5)
    standard = half @ (moments.mean / safe)
    return float(np.sqrt(moments.n * (standard @ standard) / max(rank, 1)))
