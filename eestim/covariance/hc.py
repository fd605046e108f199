"""Heteroskedasticity-consistent covariances HC0 to HC5, with real leverages."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from eestim._arrays import Vector
from eestim.covariance.base import (
    Covariance,
    equation_sandwich,
    leverage,
    working_of,
)
from eestim.equations import EstimatingEquation, effective_n, moments_at
from eestim.errors import InferenceError
from eestim.roots import Root

__all__ = ["HC", "leverage_factor"]

_CITATION = {
    0: "White (1980), Econometrica 48, 817-838",
    1: "Hinkley (1977); MacKinnon and White (1985), J. Econom. 29, 305-325",
    2: "Horn, Horn and Duncan (1975); MacKinnon and White (1985)",
    3: "MacKinnon and White (1985), J. Econom. 29, 305-325",
    4: "Cribari-Neto (2004), Comput. Stat. Data Anal. 45, 215-233",
    "4m": "Cribari-Neto and da Silva (2011), AStA 95, 129-146",
    5: "Cribari-Neto, Souza and Vasconcellos (2007), Comm. Stat. 36, 1877-1888",
}


def leverage_factor(h: Vector, p: int, kind: int | str) -> Vector:
    r"""Return the factor of each squared residual, (n,).

    .. math::
        (1-h_i)^{-1},\ (1-h_i)^{-2},\ (1-h_i)^{-\delta_i}

    for HC2, HC3 and the others, with :math:`g_i = n h_i / p` and
    :math:`\delta_i = \min(4, g_i)` for HC4,
    :math:`\min(1, g_i) + \min(1.5, g_i)` for HC4m and half of
    :math:`\min\{g_i, \max(4, 0.7 g_{max})\}` for HC5.

    Examples
    --------
    >>> leverage_factor(np.array([0.5, 0.5]), 1, 3)
    array([4., 4.])
    """
    if kind in (0, 1):
        return np.ones_like(h)
    relative = len(h) * h / p
    if kind == 2:
        power = np.ones_like(h)
    elif kind == 3:
        power = np.full_like(h, 2.0)
    elif kind == 4:
        power = np.minimum(4.0, relative)
    elif kind == "4m":
        power = np.minimum(1.0, relative) + np.minimum(1.5, relative)
    else:
        power = np.minimum(relative, max(4.0, 0.7 * relative.max())) / 2.0
    return (1.0 - h) ** -power


@dataclass(frozen=True, slots=True)
class HC:
    r"""The sandwich for independent units.

    Attributes
    ----------
    kind : {0, 1, 2, 3, 4, "4m", 5}
        0 is the plain sandwich :math:`A^{-1} M A^{-\top}/n` of any psi; 1 multiplies
        it by n / (n - p). The others divide residuals by powers of one minus the
        leverage of the weighted hat matrix, and need a regression with a linear
        predictor (linear model or GLM).

    Notes
    -----
    Intervals use the normal law for HC0 and n - p degrees of freedom otherwise.
    """

    kind: Literal[0, 1, 2, 3, 4, 5, "4m"] = 0

    def __post_init__(self) -> None:
        if self.kind not in _CITATION:
            raise ValueError(
                f"`kind` must be one of {list(_CITATION)}; got {self.kind!r}."
            )

    def __call__(self, equation: EstimatingEquation, root: Root) -> Covariance:
        """Return the covariance of the root."""
        n, p = effective_n(equation), len(equation.names)
        if self.kind in (0, 1):
            moments = moments_at(equation, root.theta)
            sensitivity, meat = moments.sensitivity, moments.meat
        else:
            working = working_of(
                equation,
                root.theta,
                f"HC({self.kind!r})",
                "Use HC(0), HC(1), FayGraubard() or Jackknife(), which take any psi.",
            )
            h = leverage(working)
            _refuse_full_leverage(h)
            scaled = (
                working.design
                * (working.residual * np.sqrt(leverage_factor(h, p, self.kind)))[
                    :, None
                ]
            )
            sensitivity = equation.sensitivity(root.theta)
            meat = scaled.T @ scaled / equation.n_units
        matrix = equation_sandwich(equation, sensitivity, meat)
        if self.kind == 1:
            if n <= p:
                raise InferenceError(
                    f"HC(1) divides by n - p = {n:g} - {p}; more units than parameters "
                    "are needed."
                )
            matrix = matrix * (n / (n - p))
        return Covariance(
            matrix,
            f"HC{self.kind}",
            _CITATION[self.kind],
            factor="n/(n-p)" if self.kind == 1 else "",
            dof=float("inf") if self.kind == 0 else float(n - p),
            dof_kind="normal" if self.kind == 0 else "n-k",
        )


def _refuse_full_leverage(h: Vector) -> None:
    rows = np.flatnonzero(h > 1.0 - 1e-10)
    if len(rows):
        raise InferenceError(
            f"rows {rows[:5].tolist()} have leverage 1 (a parameter of their own), so "
            "their residuals are zero whatever the noise; drop that parameter or use "
            "HC(0) knowing that it is too small."
        )
