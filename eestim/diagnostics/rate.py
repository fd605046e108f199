"""At which rate does the estimate concentrate: refits to subsamples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from eestim._arrays import IntVector, Matrix, Vector
from eestim.asymptotics.singular import rate_slope
from eestim.diagnostics._verdicts import not_applicable
from eestim.equations import require
from eestim.errors import EestimError, InferenceError
from eestim.findings import Finding
from eestim.roots import solve

__all__ = ["RateCurve", "rate_check", "rate_finding", "subsample_rate"]

_REGULAR, _SLOWEST = -0.5, -0.45  # slopes of log spread on log size: slower matters
_LEVEL = 0.05
_FOLDS = 10  # groups of draws that the jackknife leaves out in turn
_INSTEAD = "Only equations that can be reweighted can be refitted on parts."
_ASSUMES = "Independent units; the largest subsample still small beside all of them."


@dataclass(frozen=True, slots=True)
class RateCurve:
    """The spread of an estimate over subsamples of several sizes.

    Attributes
    ----------
    sizes : (k,) int array
    values : (k, draws) array
        Estimates from subsamples of each size; NaN where a refit failed.
    n_units : int
        Of the sample that they were drawn from.
    slope, error : float
        Slope of log spread on log size, and its jackknife standard error over draws.
    """

    sizes: IntVector
    values: Matrix
    n_units: int
    slope: float
    error: float

    @property
    def spreads(self) -> Vector:
        r"""Interquartile range over :math:`(1 - m/n)^{1/2}`, one a size."""
        return _ranges(self.values) / np.sqrt(1.0 - self.sizes / self.n_units)

    @property
    def n_failed(self) -> int:
        """Number of refits that found no root."""
        return int(np.isnan(self.values).sum())


def subsample_rate(
    fit: Any,
    rng: np.random.Generator,
    *,
    h: Callable[[Vector], float] | None = None,
    sizes: Sequence[int] | None = None,
    draws: int = 120,
    start: Any = None,
) -> RateCurve:
    r"""Return the spread of :math:`h(\hat\theta_m)` over subsamples of size m.

    Parameters
    ----------
    fit : Estimate or EstimatingEquation
        That can be reweighted; an equation (which need not be identified) needs h.
    rng : Generator
    h : callable, optional
        From theta to a number; the first parameter by default.
    sizes : sequence of int, optional
        At least three; four between n / 16 and n / 2 by default.
    draws : int
        Subsamples of each size, at least 20.
    start : (p,) array, optional
        Where refits begin; the estimate by default.

    Raises
    ------
    InferenceError
        With too few units, or where more than half of the refits of a size fail.
    """
    equation = getattr(fit, "equation", fit)
    n = equation.n_units
    begin = getattr(fit, "theta", None) if start is None else start
    reweighted = require(equation, "reweighted", "the rate check", _INSTEAD)
    given = sizes if sizes is not None else np.geomspace(n / 16, n / 2, 4).astype(int)
    smallest = 4 * len(equation.names)
    chosen = np.unique([m for m in given if smallest <= m < n]).astype(np.intp)
    if len(chosen) < 3:
        raise InferenceError(f"{n} units are too few for subsamples of three sizes.")
    if draws < 20:
        raise ValueError(f"`draws` must be at least 20; got {draws}.")
    values = np.full((len(chosen), draws), np.nan)
    for row, m in enumerate(chosen):
        for draw in range(draws):
            weights = np.zeros(n)
            weights[rng.choice(n, m, replace=False)] = 1.0
            values[row, draw] = _refit(reweighted(weights), begin, h)
    return _curve(chosen, values, n)


def _refit(equation: Any, start: Any, h: Callable[[Vector], float] | None) -> float:
    try:
        root = solve(equation, start)
    except EestimError:
        return np.nan
    if not root.is_converged:
        return np.nan
    return float(root.theta[0] if h is None else h(root.theta))


def _ranges(values: Matrix) -> Vector:
    quartiles = np.nanquantile(values, [0.25, 0.75], axis=1)
    spread: Vector = quartiles[1] - quartiles[0]
    return spread


def _curve(sizes: IntVector, values: Matrix, n: int) -> RateCurve:
    failed = np.isnan(values).mean(axis=1)
    if (failed > 0.5).any():
        m = int(sizes[int(np.argmax(failed))])
        raise InferenceError(
            f"{failed.max():.0%} of the refits to subsamples of {m} units found no "
            "root; give larger `sizes`."
        )

    def slope(part: Matrix) -> float:
        return rate_slope(sizes, _ranges(part), n_units=n).slope

    folds = np.arange(values.shape[1]) % _FOLDS
    try:
        left = np.array([slope(values[:, folds != k]) for k in range(_FOLDS)])
        full = slope(values)
    except ValueError as reason:
        raise InferenceError(
            f"the spread of h is zero at some size: {reason}"
        ) from None
    error = float(np.sqrt((_FOLDS - 1) * np.mean((left - left.mean()) ** 2)))
    return RateCurve(sizes, values, n, full, error)


def rate_finding(curve: RateCurve) -> Finding:
    r"""Judge the slope of a curve, with at most 5% of regular estimates warned.

    Warned where the slope exceeds -0.45 and, by more than chance, -1/2:
    :math:`(s + 1/2) / \mathrm{se} > t_{9, .95}`, the jackknife error of ten folds
    having nine degrees of freedom.
    """
    excess = (curve.slope - _REGULAR) / max(curve.error, 1e-300)
    p = float(stats.t.sf(excess, _FOLDS - 1))
    reach = stats.t.isf(_LEVEL, _FOLDS - 1) * curve.error
    bound = max(_SLOWEST, _REGULAR + float(reach))
    warned = not curve.slope <= bound
    return Finding(
        "rate",
        "warn" if warned else "pass",
        curve.slope,
        bound,
        f"The spread falls with the sample size to the power {curve.slope:.2f} "
        f"(se {curve.error:.2f}; regular: -0.50); {curve.n_failed} of "
        f"{curve.values.size} refits failed.",
        "The estimate converges more slowly than the square root of n: look for a "
        "singular point, a boundary or heavy tails; Wald intervals are not valid."
        if warned
        else "",
        _ASSUMES,
        dof=float(_FOLDS - 1),
        p=p,
    )


def rate_check(
    fit: Any,
    rng: np.random.Generator,
    *,
    h: Callable[[Vector], float] | None = None,
    sizes: Sequence[int] | None = None,
    draws: int = 120,
    start: Any = None,
) -> Finding:
    r"""Estimate the rate of convergence by subsampling.

    The slope of the log interquartile range of :math:`h(\hat\theta_m)` on log m, for
    subsamples without replacement, times :math:`(1 - m/n)^{-1/2}` for their overlap.
    A regular estimate has slope -1/2, one at a singular point -1/4. A regular one is
    warned about in 5% of cases at most; 120 draws of each size have an error of about
    0.07, which tells -1/4 nearly always. Parameters are those of `subsample_rate`.

    References
    ----------
    Politis, Romano and Wolf (1999), Subsampling, ch. 8; Bertail, Politis and Romano
    (1999), JASA 94, 569-579.
    """
    try:
        curve = subsample_rate(fit, rng, h=h, sizes=sizes, draws=draws, start=start)
    except InferenceError as error:
        return not_applicable("rate", str(error))
    return rate_finding(curve)
