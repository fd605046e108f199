"""Covariances that trust the model: inverse information and outer products."""

from dataclasses import dataclass

import numpy as np

from eestim._arrays import Matrix, Vector
from eestim.covariance.base import (
    Covariance,
    sensitivity_factor,
    working_of,
)
from eestim.equations import EstimatingEquation, moments_at, require
from eestim.errors import CapabilityError, InferenceError
from eestim.roots import Root

__all__ = ["OPG", "ModelBased"]


@dataclass(frozen=True, slots=True)
class ModelBased:
    r"""Inverse expected information, :math:`\phi (X^\top W X)^{-1}`.

    Right only if the model is; the same as for R's `glm` and statsmodels.

    Attributes
    ----------
    df_adjust : bool
        Divide the residual sum of squares by n - k rather than by n, where the
        dispersion is estimated (linear models).

    References
    ----------
    McCullagh and Nelder (1989), Generalized Linear Models, section 2.5.
    """

    df_adjust: bool = True

    def __call__(self, equation: EstimatingEquation, root: Root) -> Covariance:
        """Return the covariance of the root."""
        if getattr(equation, "is_sampling_weighted", False):
            raise InferenceError(
                "ModelBased is not defined under sampling or importance weights, which "
                "are not part of the model; use HC(0), Clustered or Survey."
            )
        information, dispersion = _information(equation, root.theta)
        n, k = equation.n_units, len(equation.names)
        is_estimated = bool(getattr(equation, "has_dispersion", True))
        if is_estimated and self.df_adjust:
            dispersion *= n / (n - k)
        factor = sensitivity_factor(information, equation.names)
        matrix = dispersion * factor.solve(np.eye(k))
        return Covariance(
            (matrix + matrix.T) / 2,
            "model-based" if self.df_adjust or not is_estimated else "model-based, /n",
            "McCullagh and Nelder (1989)",
            factor="n/(n-k)" if is_estimated and self.df_adjust else "",
            dof=float(n - k) if is_estimated else float("inf"),
            dof_kind="n-k" if is_estimated else "normal",
        )


def _information(equation: EstimatingEquation, theta: Vector) -> tuple[Matrix, float]:
    """Return X'WX and the dispersion, added up where data are read in blocks."""
    streamed = getattr(equation, "expected_information", None)
    if streamed is not None:
        summed: tuple[Matrix, float] = streamed(theta)
        return summed
    working = working_of(
        equation, theta, "ModelBased", "Use HC(0), which needs psi alone."
    )
    scaled = working.design * working.weight[:, None]
    return working.design.T @ scaled, working.dispersion


@dataclass(frozen=True, slots=True)
class OPG:
    r"""Outer product of gradients, :math:`M^{-1} / n`, for scores of a likelihood.

    References
    ----------
    Berndt, Hall, Hall and Hausman (1974), Ann. Econ. Soc. Meas. 3, 653-665.
    """

    def __call__(self, equation: EstimatingEquation, root: Root) -> Covariance:
        """Return the covariance of the root."""
        require(equation, "is_score", "OPG", "Use HC(0): psi need not be a score.")
        if not getattr(equation, "is_score", False):
            raise CapabilityError(
                "OPG needs psi to be the score of a likelihood with known dispersion; "
                "use HC(0) or ModelBased."
            )
        moments = moments_at(equation, root.theta)
        inverse = sensitivity_factor(moments.meat, equation.names).solve(
            np.eye(len(equation.names))
        )
        return Covariance(
            (inverse + inverse.T) / 2 / moments.n,
            "outer product of gradients",
            "Berndt, Hall, Hall and Hausman (1974)",
        )
