r"""Robust regression with Huber's psi: kinks, and an exact A between them.

.. math:: \psi_i = x_i \max\{-k, \min(k, e_i / s)\}, \qquad
          A = \frac{1}{n s} \sum_i 1(|e_i| < k s)\, x_i x_i^\top
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from eestim._arrays import Matrix, Vector
from eestim._linalg import equilibrated_factor
from eestim.equations import Working
from eestim.errors import InterpolationError
from eestim.models._blocked import gram
from eestim.models._linear_predictor import LinearPredictor, linear_predictor_of
from eestim.models.quantiles import QuantileRegression
from eestim.roots import Root
from eestim.weights import Weights

__all__ = ["HuberRegression", "huber"]

_REWEIGHTINGS = 30
_INTERPOLATED = 1e-10  # residual size relative to the response


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class HuberRegression(LinearPredictor):
    """Estimating equation of Huber's regression at a known scale. Made by `huber`."""

    k: float = 1.345
    scale: float = 1.0

    def __repr__(self) -> str:
        shown = ", ".join(self.names[:6]) + (", ..." if len(self.names) > 6 else "")
        return (
            f"HuberRegression(k {self.k:g}, scale {self.scale:g}; {self.n_units} "
            f"units; {shown})"
        )

    def _clipped(self, theta: Vector) -> Vector:
        return np.clip(self.residual(theta) / self.scale, -self.k, self.k)

    def _slopes(self, theta: Vector) -> Vector:
        """Return minus the derivative of each clipped residual in the plane, (n,)."""
        inside = np.abs(self.residual(theta)) < self.k * self.scale
        return inside / self.scale

    def psi(self, theta: Vector) -> Matrix:
        """Return the contributions of the units, (n, p)."""
        return self.expanded(self.linear.design * self._clipped(theta)[:, None])

    def sensitivity(self, theta: Vector) -> Matrix:
        """Return A, minus the mean derivative of psi between its kinks, (p, p)."""
        weight = self.weights() * self._slopes(theta)
        return gram(self.linear.design, weight) / self.n_units

    def working(self, theta: Vector) -> Working:
        """Return the weighted linear form at theta."""
        clipped = self.expanded(self._clipped(theta))
        weight = self.expanded(self._slopes(theta))
        dispersion = float(np.mean(clipped**2) / np.mean(weight))
        design = self.expanded_design()
        return Working(design, weight, clipped, dispersion)

    def expanded_design(self) -> Matrix:
        """Return the rows of the design, repeated where weights are frequencies."""
        return self.linear.working(np.zeros(len(self.names))).design

    def unit_sensitivity(self, theta: Vector) -> Matrix:
        """Return minus the derivative of each unit's psi, (n, p, p)."""
        x = self.linear.design
        rows = self._slopes(theta)[:, None, None] * x[:, :, None] * x[:, None]
        return self.expanded(rows)

    def reweighted(self, weights: Vector) -> "HuberRegression":
        """Return the equation with its units weighted, for refitting bootstraps."""
        return replace(self, linear=self.linear.reweighted(weights))

    @property
    def start(self) -> Vector:
        """Where Newton's method begins: reweighted least squares from a median, (p,).

        Each reweighting lowers Huber's loss, from wherever it starts.
        """
        theta = QuantileRegression(self.linear).start
        design, response = self.linear.design, self.linear.response
        bound = self.k * self.scale
        for _ in range(_REWEIGHTINGS):
            size = np.maximum(np.abs(self.residual(theta)), 1e-300)
            weight = self.weights() * np.minimum(1.0, bound / size)
            factor = equilibrated_factor(gram(design, weight))
            if factor.rank < len(theta):
                break
            theta = factor.solve(design.T @ (weight * response))
        return theta

    def check_root(self, root: Root) -> None:
        """Raise where the fit passes through every outcome.

        Raises
        ------
        InterpolationError
            Since every residual is zero.
        """
        largest = float(np.abs(self.residual(root.theta)[self.weights() > 0]).max())
        if largest <= _INTERPOLATED * float(np.abs(self.linear.response).max()):
            raise InterpolationError(
                "the fitted plane passes through all outcomes, so that nothing is left "
                "to estimate a variance with. Use fewer covariates or more rows."
            )


def huber(
    formula: Any,
    data: Any = None,
    *,
    k: float = 1.345,
    scale: float = 1.0,
    weights: Weights | None = None,
    names: Sequence[str] | None = None,
    na: Literal["raise", "drop"] = "raise",
    unsafe: bool = False,
) -> HuberRegression:
    r"""Return the estimating equation of Huber's location or regression.

    .. math:: \psi_i = x_i \max\{-k, \min(k, e_i / s)\}

    Parameters
    ----------
    formula : str, or (n,) array
        A formula ``"y ~ x"``, the name of a column, or values.
    data : DataFrame or mapping, (n, p) array, or None
        The table, the design (no intercept is added), or nothing, for the location of
        the values.
    k : float
        Residuals beyond ``k * scale`` have bounded influence; 1.345 has 95% of the
        efficiency of the mean for normal errors of that scale.
    scale : float
        Known, or estimated beforehand and taken as known.
    weights, names, na, unsafe
        As for `eestim.glm`.

    Raises
    ------
    ValueError
        If k or the scale is not positive.
    DataError
        If the data cannot be used.

    References
    ----------
    Huber (1964), Ann. Math. Stat. 35, 73-101; Huber (1973), Ann. Stat. 1, 799-821.

    Examples
    --------
    The outlier pulls by no more than k:

    >>> import eestim as ee
    >>> values = [1.0, 2.0, 3.0, 100.0]
    >>> float(round(ee.estimate(huber(values, k=1.5)).theta[0], 9))
    2.5
    """
    if not (k > 0 and np.isfinite(k)):
        raise ValueError(f"`k` must be a positive number; got {k!r}.")
    if not (scale > 0 and np.isfinite(scale)):
        raise ValueError(f"`scale` must be a positive number; got {scale!r}.")
    linear = linear_predictor_of(
        formula,
        data,
        weights=weights,
        names=names,
        na=na,
        unsafe=unsafe,
        location="location",
    )
    return HuberRegression(linear, float(k), float(scale))
