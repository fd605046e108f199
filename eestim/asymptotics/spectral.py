"""Roots that an algorithm picks: minimum norm, ridge, gradient flow, early stopping."""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from eestim._arrays import Vector, as_float, check_finite

__all__ = [
    "GradientDescent",
    "GradientFlow",
    "MinimumNorm",
    "Ridge",
    "SpectralRoot",
    "filter_weights",
    "spectral_root",
]


@dataclass(frozen=True, slots=True)
class MinimumNorm:
    """The root nearest to the start: gradient descent run to convergence.

    `rcond` is the relative singular value below which a direction is left alone;
    by default rounding.
    """

    rcond: float | None = None


@dataclass(frozen=True, slots=True)
class Ridge:
    """The root of the penalised equation, penalty n lambda."""

    penalty: float


@dataclass(frozen=True, slots=True)
class GradientFlow:
    """Gradient flow of half the residual sum of squares, stopped at a time."""

    time: float


@dataclass(frozen=True, slots=True)
class GradientDescent:
    """Gradient descent on half the residual sum of squares, stopped early."""

    step: float
    n_steps: int


SpectralFilter: TypeAlias = MinimumNorm | Ridge | GradientFlow | GradientDescent


@dataclass(frozen=True, slots=True)
class SpectralRoot:
    r"""A linear root :math:`\theta_0 + V f(S) U'(y - X\theta_0)`.

    Attributes
    ----------
    theta : (P,) array
        The root.
    fitted : (n,) array
        X theta.
    df : float
        :math:`\mathrm{tr}\,\partial\hat y/\partial y = \sum s f(s)`.
    singular_values, weights : (min(n, P),) arrays
        s and f(s).
    """

    theta: Vector
    fitted: Vector
    df: float
    singular_values: Vector
    weights: Vector


def filter_weights(rule: SpectralFilter, singular_values: Any, n_units: int) -> Vector:
    r"""Return the filter f(s) of each rule.

    ===================  ==========================================
    `MinimumNorm`        :math:`1/s`, zero where s is zero
    `Ridge`              :math:`s/(s^2 + n\lambda)`
    `GradientFlow`       :math:`(1 - e^{-ts^2})/s`
    `GradientDescent`    :math:`(1 - (1 - \eta s^2)^T)/s`
    ===================  ==========================================

    Parameters
    ----------
    rule : MinimumNorm, Ridge, GradientFlow or GradientDescent
        How the root is picked.
    singular_values : (k,) array
        Of the design.
    n_units : int
        n, which multiplies the ridge penalty.

    Raises
    ------
    ValueError
        If the rule's numbers are out of range, or the step makes descent diverge.
    TypeError
        If the rule is none of these.

    References
    ----------
    Ali, Kolter and Tibshirani (2019), AISTATS, PMLR 89, 1370-1378.

    Examples
    --------
    >>> filter_weights(GradientDescent(step=0.5, n_steps=1), [1.0], 10)
    array([0.5])
    """
    s = as_float(singular_values, "singular_values", ndim=1)
    check_finite(s, "singular_values")
    if (s < 0).any() or not n_units >= 1:
        raise ValueError(
            f"`singular_values` must be >= 0, and `n_units` ({n_units}) at least 1."
        )
    if isinstance(rule, Ridge):
        if not (np.isfinite(rule.penalty) and rule.penalty > 0):
            raise ValueError(
                f"`penalty` is {rule.penalty}; give a finite one > 0, or MinimumNorm."
            )
        return s / (s**2 + n_units * rule.penalty)
    if isinstance(rule, MinimumNorm):
        if rule.rcond is not None and not 0 <= rule.rcond < 1:
            raise ValueError(f"`rcond` is {rule.rcond}; choose one in [0, 1).")
        size = 10 * n_units * np.finfo(float).eps if rule.rcond is None else rule.rcond
        kept = s > size * s.max(initial=0.0)
        return np.where(kept, 1.0 / np.where(kept, s, 1.0), 0.0)
    if not isinstance(rule, GradientFlow | GradientDescent):
        raise TypeError(
            f"`rule` is {rule!r}; give MinimumNorm(), Ridge(penalty), "
            "GradientFlow(time) or GradientDescent(step, n_steps)."
        )
    positive = np.where(s > 0, s, 1.0)
    return np.where(s > 0, _progress(rule, s) / positive, 0.0)


def _progress(rule: GradientFlow | GradientDescent, s: Vector) -> Vector:
    """Return the share of each direction that has been fitted."""
    if isinstance(rule, GradientFlow):
        if not (np.isfinite(rule.time) and rule.time >= 0):
            raise ValueError(
                f"`time` is {rule.time}; give a finite one >= 0, or MinimumNorm."
            )
        return -np.expm1(-rule.time * s**2)
    whole = isinstance(rule.n_steps, int | np.integer)
    if not (rule.step > 0 and whole and rule.n_steps >= 0):
        raise ValueError(
            f"`step` is {rule.step} and `n_steps` {rule.n_steps}; give > 0, and an "
            "integer >= 0."
        )
    rate = rule.step * s**2
    if rate.max(initial=0.0) >= 2.0:
        raise ValueError(
            f"`step` is {rule.step}; descent diverges unless it is below "
            f"{2.0 / s.max() ** 2:.3g}, twice the inverse largest eigenvalue."
        )
    # expm1 of logs keeps the small rates accurate; powers take those beyond one
    slow = -np.expm1(rule.n_steps * np.log1p(-np.minimum(rate, 0.5)))
    return np.where(rate <= 0.5, slow, 1.0 - (1.0 - rate) ** rule.n_steps)


def spectral_root(
    X: Any, y: Any, rule: SpectralFilter, start: Any = None
) -> SpectralRoot:
    r"""Return the root of least squares that an algorithm picks from a start.

    .. math:: \hat\theta = \theta_0 + V f(S) U'(y - X\theta_0), \quad X = USV'

    Parameters
    ----------
    X : (n, P) array
        Design, or features of a linearised model; P may exceed n.
    y : (n,) array
        Response.
    rule : MinimumNorm, Ridge, GradientFlow or GradientDescent
        How the root is picked; see `filter_weights`.
    start : (P,) array, optional
        Start, zero by default; the part of it that X does not see is kept. Ridge
        shrinks towards it.

    Raises
    ------
    ValueError
        If the shapes do not fit, or the rule's numbers are out of range.
    DataError
        If an array is not finite.

    Examples
    --------
    Of all exact fits, the one nearest to the start:

    >>> spectral_root([[1.0, 1.0]], [2.0], MinimumNorm()).theta
    array([1., 1.])
    """
    design = check_finite(as_float(X, "X", ndim=2), "X")
    response = check_finite(as_float(y, "y", ndim=1), "y")
    n, p = design.shape
    origin = np.zeros(p) if start is None else as_float(start, "start", ndim=1)
    check_finite(origin, "start")
    if response.shape != (n,) or origin.shape != (p,) or n == 0 or p == 0:
        raise ValueError(
            f"`X` is {design.shape}, `y` {response.shape}, `start` {origin.shape}; "
            "they do not fit."
        )
    left, values, right = np.linalg.svd(design, full_matrices=False)
    weights = filter_weights(rule, values, n)
    theta = origin + right.T @ (weights * (left.T @ (response - design @ origin)))
    return SpectralRoot(
        theta=theta,
        fitted=design @ theta,
        df=float(values @ weights),
        singular_values=values,
        weights=weights,
    )
