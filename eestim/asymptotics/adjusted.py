"""Logistic inference with many covariates: SLOE, observable scale, intervals."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import linalg, optimize, special, stats

from eestim._arrays import IntVector, Matrix, Vector, as_float, check_finite
from eestim.asymptotics.corrupted import proportional_logistic_from_eta
from eestim.asymptotics.designs import constant_column
from eestim.asymptotics.existence import check_aspect, check_separation
from eestim.asymptotics.proportional import ProportionalLogistic, proportional_logistic
from eestim.errors import (
    ConvergenceError,
    DataError,
    IdentificationError,
    SeparationError,
)

__all__ = [
    "AdjustedLogistic",
    "LogisticScale",
    "adjusted_logistic",
    "observable_scale",
    "precision_multipliers",
    "rescaled_lrt",
    "sloe",
]

_STEP_LIMIT = 1e-6  # of a Newton step from beta, in predictors and standard errors
_SURE = 1e-10  # chance of the other class, below which sums over units forget a row
_ALONE = 1e-8  # one minus the leverage of a unit that alone decides a coefficient
_DEPENDENT = 10.0  # roundings a column, of the last pivot of dependent columns


@dataclass(frozen=True, slots=True)
class LogisticScale:
    """Estimates of sigma and lambda that need no signal strength."""

    sigma: float
    lambda_: float
    lrt_factor: float


@dataclass(frozen=True, slots=True)
class _Fit:
    """What the formulas need of a fit, one entry a row of the design."""

    predictor: Vector
    residual: Vector
    weight: Vector
    leverage: Vector


def _fit_terms(X: Any, y: Any, beta: Any) -> _Fit:
    """Return predictor, residual, weight and q_i = x_i' H^-1 x_i at the estimate."""
    design = check_finite(as_float(X, "X", ndim=2), "X")
    outcome = as_float(y, "y", ndim=1)
    coefficients = check_finite(as_float(beta, "beta", ndim=1), "beta")
    n, p = design.shape
    if outcome.shape != (n,) or coefficients.shape != (p,) or n == 0 or p == 0:
        raise DataError(
            f"`X` is {design.shape}, `y` {outcome.shape}, `beta` {coefficients.shape}; "
            "give n outcomes and p coefficients."
        )
    if not np.isin(outcome, (0.0, 1.0)).all():
        raise DataError("`y` must hold zeros and ones; recode the two classes.")
    predictor = design @ coefficients
    sign = 2.0 * outcome - 1.0
    wrong = special.expit(-sign * predictor)  # fitted probability of the other class
    weight = wrong * special.expit(sign * predictor)
    scaled, factor = _information_factor(design, weight)
    _check_root(design, outcome, scaled, factor, sign * wrong)
    half = linalg.solve_triangular(factor, scaled.T, trans="T")
    leverage = np.sum(half**2, axis=0)
    worst = int(np.argmax(weight * leverage))
    if weight[worst] * leverage[worst] > 1.0 - _ALONE:
        raise SeparationError(
            f"`X` row {worst} alone decides a coefficient (leverage one): without it "
            "the others are separated or dependent, and no left-out predictor exists. "
            "Drop the row with the covariate that rests on it."
        )
    return _Fit(predictor, sign * wrong, weight, leverage)


def _information_factor(design: Matrix, weight: Vector) -> tuple[Matrix, Matrix]:
    """Return the design in units of its information, and R with X'WX = R'R there."""
    root = np.sqrt(weight)[:, None] * design
    norms = np.linalg.norm(root, axis=0)
    units = np.where(norms > 0, norms, 1.0)  # the rank must not depend on units
    _, factor = np.linalg.qr(root / units)
    if _is_singular(factor, design.shape[1]):
        raise SeparationError(
            "`X` has a singular information at `beta`: covariates are dependent, or "
            "the data are separated and the estimate lies at infinity. Check with "
            "`separation` and `rank_report`."
        )
    return design / units, factor


def _is_singular(factor: Matrix, p: int) -> bool:
    size = np.abs(np.diag(factor))
    if len(size) < p:
        return True
    return bool(size.min() <= _DEPENDENT * p * np.finfo(float).eps * size.max())


def _check_root(
    design: Matrix, outcome: Vector, scaled: Matrix, factor: Matrix, residual: Vector
) -> None:
    """Raise if a Newton step from beta still moves, as it does for ever if separated.

    Let s_i x_i'd >= 0 for all i and > 0 for some. The step h solves the score
    equation X'WX h = X'r, so sum_i p_i s_i x_i'd = d'X'r = sum_i w_i (x_i'd)(x_i'h),
    at most max|x_i'h| times the left side, as w_i <= p_i: then max|x_i'h| >= 1. A
    smaller step is a proof of overlap, in whatever basis the columns are given, as
    long as no p_i is so small that the sums lose it.
    """
    if np.abs(residual).min() < _SURE:
        check_separation(design, outcome)
    inner = linalg.solve_triangular(factor, scaled.T @ residual, trans="T")
    step = scaled @ linalg.solve_triangular(factor, inner)
    worst = float(max(np.abs(step).max(), np.linalg.norm(inner)))
    if not worst <= _STEP_LIMIT:
        check_separation(design, outcome)
        raise ConvergenceError(
            f"`beta` is not the maximum-likelihood estimate: a Newton step from it "
            f"moves a predictor, or beta in standard errors, by {worst:.1e} (limit "
            f"{_STEP_LIMIT:.0e}). Iterate further."
        )


def _left_out_predictors(fit: _Fit) -> Vector:
    return fit.predictor - fit.leverage * fit.residual / (
        1.0 - fit.weight * fit.leverage
    )


def sloe(X: Any, y: Any, beta: Any) -> float:
    r"""Return the standard deviation of x'beta-hat at a new x, without holding out.

    .. math:: \hat\eta^2 = \mathrm{Var}_i(S_i), \quad
       S_i = x_i'\hat\beta - \frac{q_i (y_i - \hat\mu_i)}{1 - w_i q_i}, \quad
       q_i = x_i'(X'WX)^{-1}x_i

    where S_i is the predictor of unit i after one Newton step, from the estimate,
    towards the fit without unit i. It estimates a limit for n and p large: with a few
    dozen rows it is a rough guide. A constant column adds the error of the intercept,
    of order 1/n.

    Parameters
    ----------
    X : (n, p) array
        Design.
    y : (n,) array
        Zeros and ones.
    beta : (p,) array
        Maximum-likelihood estimate.

    Raises
    ------
    ConvergenceError
        If beta is not the maximum-likelihood estimate.
    SeparationError
        If the data are separated, the information is singular at beta, or a row alone
        decides a coefficient.
    DataError
        If an array is not finite, y not binary, or shapes do not fit.

    References
    ----------
    Yadlowsky, Yun, McLean and D'Amour (2021), SLOE, NeurIPS 34, section 3.

    Examples
    --------
    With only a constant the left-out predictors are one Newton step from 0 towards
    the logits of 1/3 and 2/3:

    >>> y = np.array([0.0, 1.0, 1.0, 0.0])
    >>> round(sloe(np.ones((4, 1)), y, np.zeros(1)), 4)
    0.6667
    """
    return float(np.std(_left_out_predictors(_fit_terms(X, y, beta))))


def _scale_of(fit: _Fit, kappa: float) -> LogisticScale:
    curvature = float(np.mean(fit.weight - fit.weight**2 * fit.leverage))
    sigma = float(np.sqrt(np.mean(fit.residual**2))) / curvature
    lambda_ = kappa / curvature
    return LogisticScale(sigma, lambda_, curvature * sigma**2)  # kappa sigma^2/lambda


def observable_scale(X: Any, y: Any, beta: Any, *, intercept: bool) -> LogisticScale:
    r"""Return sigma and lambda of the proportional limit from residuals alone.

    .. math:: \hat v = n^{-1}\sum_i (w_i - w_i^2 q_i), \quad
       \hat\lambda = \kappa / \hat v, \quad
       \hat\sigma = \{n^{-1}\sum_i (y_i - \hat\mu_i)^2\}^{1/2} / \hat v

    They give tests of null coefficients and the likelihood-ratio factor without any
    estimate of the signal strength.

    Parameters
    ----------
    X, y, beta
        See `sloe`.
    intercept : bool
        Whether one column of X is the intercept, which does not count in kappa. It
        must agree with X: a constant column is an intercept.

    Raises
    ------
    TypeError
        If `intercept` is not a boolean.
    ValueError
        If it does not agree with X, or no covariate is left beside it.
    ConvergenceError, SeparationError, DataError
        See `sloe`.

    References
    ----------
    Bellec (2022), Observable adjustments in single-index models,
    arXiv:2204.06990.

    Examples
    --------
    >>> X = np.array([[1.0], [-1.0], [2.0], [0.5]])
    >>> y = np.array([1.0, 1.0, 0.0, 0.0])
    >>> from scipy.special import expit
    >>> beta = optimize.brentq(lambda b: X[:, 0] @ (y - expit(b * X[:, 0])), -5, 5)
    >>> scale = observable_scale(X, y, [beta], intercept=False)
    >>> scale.lrt_factor > 1
    True
    """
    if not isinstance(intercept, bool | np.bool_):
        raise TypeError(
            f"`intercept` is {intercept!r}; say whether X has a constant column, True "
            "or False, not which one it is."
        )
    fit = _fit_terms(X, y, beta)
    n, p = np.shape(X)
    place = constant_column(as_float(X, "X", ndim=2))
    if (place is not None) != bool(intercept):
        found = "none" if place is None else f"column {place}"
        raise ValueError(
            f"`intercept` is {intercept}, but the constant columns of X are: {found}. "
            "A constant column is an intercept, and does not count in kappa."
        )
    kappa = (p - int(intercept)) / n
    check_aspect(kappa)
    return _scale_of(fit, kappa)


def precision_multipliers(X: Any, columns: Any = None) -> Vector:
    r"""Return estimates of 1/tau_j, tau_j the conditional sd of covariate j.

    .. math:: \hat\omega_j^2 = (n - p)\{(X'X)^{-1}\}_{jj}

    Parameters
    ----------
    X : (n, p) array
        Design, with its intercept column if it has one; p < n.
    columns : sequence of int, optional
        The columns wanted; by default all.

    Raises
    ------
    ValueError
        If p >= n, where the precision cannot be estimated this way, or a column that
        is asked for does not exist.
    IdentificationError
        If columns of X are dependent.
    DataError
        If X is not a finite matrix.

    Examples
    --------
    >>> precision_multipliers(np.array([[1.0], [-1.0], [1.0], [-1.0], [1.0]]))
    array([0.89442719])
    """
    design = check_finite(as_float(X, "X", ndim=2), "X")
    n, p = design.shape
    if p >= n:
        raise ValueError(
            f"`X` has {p} columns for {n} rows; the precision of the covariates needs "
            "p < n. Give it from knowledge or from unlabelled data."
        )
    chosen = np.arange(p) if columns is None else np.asarray(columns)
    is_index = chosen.dtype.kind in "iu" or chosen.size == 0
    if not (is_index and chosen.ndim == 1 and ((chosen >= 0) & (chosen < p)).all()):
        raise ValueError(f"`columns` is {columns!r}; give integers in 0..{p - 1}.")
    norms = np.linalg.norm(design, axis=0)
    units = np.where(norms > 0, norms, 1.0)
    _, r_factor = np.linalg.qr(design / units)
    if _is_singular(r_factor, p):
        raise IdentificationError(
            "`X` has dependent columns, of which no precision exists. Drop them; "
            "`rank_report(X.T @ X)` names them."
        )
    inverse = linalg.solve_triangular(r_factor, np.eye(p))
    diagonal = np.sum(inverse**2, axis=1) / units**2
    multipliers: Vector = np.sqrt((n - p) * diagonal[chosen.astype(np.intp)])
    return multipliers


@dataclass(frozen=True, slots=True)
class AdjustedLogistic:
    r"""Logistic coefficients with bias and variance for p of the order of n.

    Attributes
    ----------
    columns : (k,) array
        Columns of X that the rows below refer to (the intercept has no interval).
    estimate, se : (k,) arrays
        :math:`\hat\beta_j/\hat\alpha` and its standard error.
    statistic, p_value : (k,) arrays
        Tests of zero coefficients with the observable scale.
    limit : ProportionalLogistic
        Limit solved from the SLOE estimate of eta.
    observable : LogisticScale
        Sigma, lambda and likelihood-ratio factor from residuals.
    eta : float
        SLOE estimate.
    signal_found : bool
        False if eta is no larger than noise alone gives; gamma is then zero.
    """

    columns: IntVector
    estimate: Vector
    se: Vector
    statistic: Vector
    p_value: Vector
    limit: ProportionalLogistic
    observable: LogisticScale
    eta: float
    signal_found: bool

    def interval(self, level: float = 0.95) -> Matrix:
        """Return lower and upper limits, (k, 2)."""
        if not 0 < level < 1:
            raise ValueError(f"`level` is {level}; choose one inside (0, 1).")
        half = stats.norm.ppf(0.5 + level / 2) * self.se
        return np.column_stack([self.estimate - half, self.estimate + half])


def _intercept_at_null(kappa: float, iota: float) -> ProportionalLogistic:
    """Return the limit without signal whose fitted intercept is iota."""
    if iota == 0.0:
        return proportional_logistic(kappa, 0.0)
    # a fitted intercept exaggerates the true one, so the root lies between 0 and iota
    size = abs(iota)

    def excess(theta: float) -> float:
        try:
            return proportional_logistic(kappa, 0.0, theta).iota - size
        except SeparationError:  # beyond the frontier the fit is infinite
            return size

    root = float(optimize.brentq(excess, 0.0, size, xtol=1e-12))
    intercept = float(np.copysign(root, iota))
    return proportional_logistic(kappa, 0.0, intercept)


def adjusted_logistic(
    X: Any, y: Any, beta: Any, *, intercept: int | None = None
) -> AdjustedLogistic:
    r"""Return adjusted estimates, errors and tests of a logistic fit.

    .. math:: \frac{\hat\beta_j \pm z\,\hat\sigma\hat\omega_j/\sqrt n}{\hat\alpha},
       \quad T_j = \sqrt n\hat\beta_j / (\hat\sigma_{obs}\hat\omega_j)

    alpha and sigma solve the proportional system at the SLOE estimate of eta; the
    test uses the observable scale. The theory assumes Gaussian covariates of any
    covariance: check kurtosis and leverage first.

    Parameters
    ----------
    X : (n, p) array
        Design, p < n / 2 or so, with its intercept column if it has one.
    y : (n,) array
        Zeros and ones.
    beta : (p,) array
        Maximum-likelihood estimate.
    intercept : int, optional
        Column of X that is constant, counted from 0.

    Raises
    ------
    ConvergenceError
        If beta is not the maximum-likelihood estimate, or the system has no
        solution.
    SeparationError
        If the estimate does not exist, in these data or in the limit (p/n at or beyond
        the existence frontier).
    ValueError
        If `intercept` is not the constant column of X, or missing where there is one.
    DataError
        If an array is not finite, y not binary, or shapes do not fit.

    References
    ----------
    Sur and Candes (2019), PNAS 116, 14516-14525; Zhao, Sur and Candes (2022),
    Bernoulli 28, 1835-1861, theorem 3.1; Yadlowsky et al. (2021), NeurIPS 34.

    Examples
    --------
    >>> rng = np.random.default_rng(1)
    >>> X = rng.standard_normal((400, 40))
    >>> y = (rng.random(400) < special.expit(2 * X[:, 0])).astype(float)
    >>> beta = np.zeros(40)
    >>> for _ in range(20):
    ...     mu = special.expit(X @ beta)
    ...     H = X.T @ ((mu * (1 - mu))[:, None] * X)
    ...     beta = beta + np.linalg.solve(H, X.T @ (y - mu))
    >>> fit = adjusted_logistic(X, y, beta)
    >>> bool(fit.limit.alpha > 1.05 and abs(fit.estimate[0] - 2) < 4 * fit.se[0])
    True
    """
    fit = _fit_terms(X, y, beta)
    n, p = np.shape(X)
    _check_intercept(as_float(X, "X", ndim=2), intercept)
    columns = np.array([j for j in range(p) if j != intercept], dtype=np.intp)
    kappa = len(columns) / n
    check_aspect(kappa)
    left_out = _left_out_predictors(fit)
    eta = float(np.std(left_out))
    iota = 0.0 if intercept is None else float(np.mean(left_out))
    least = _intercept_at_null(kappa, iota)
    signal_found = eta > least.eta
    limit = proportional_logistic_from_eta(kappa, eta, iota) if signal_found else least
    observable = _scale_of(fit, kappa)
    omega = precision_multipliers(X, columns) / np.sqrt(n)
    slopes = as_float(beta, "beta", ndim=1)[columns]
    statistic = slopes / (observable.sigma * omega)
    return AdjustedLogistic(
        columns=columns,
        estimate=slopes / limit.alpha,
        se=limit.sigma * omega / limit.alpha,
        statistic=statistic,
        p_value=2 * stats.norm.sf(np.abs(statistic)),
        limit=limit,
        observable=observable,
        eta=eta,
        signal_found=signal_found,
    )


def _check_intercept(design: Matrix, intercept: int | None) -> None:
    """Raise unless intercept is the constant column of the design, or both are none."""
    place = constant_column(design)
    is_index = isinstance(intercept, int | np.integer) and not isinstance(
        intercept, bool
    )
    if intercept is None if place is None else is_index and intercept == place:
        return
    found = "X has no constant column" if place is None else f"that of X is {place}"
    cure = "None" if place is None else f"intercept={place}"
    raise ValueError(
        f"`intercept` is {intercept!r}; it is the number of the constant column, and "
        f"{found}. Pass {cure}."
    )


def rescaled_lrt(statistic: float, factor: float, df: int = 1) -> tuple[float, float]:
    r"""Return a likelihood-ratio statistic divided by its inflation, and its p-value.

    Parameters
    ----------
    statistic : float
        Twice the log-likelihood ratio of df null coefficients.
    factor : float
        :math:`\kappa\sigma^2/\lambda`: `ProportionalLogistic.lrt_factor`, or
        `LogisticScale.lrt_factor` where the signal strength is unknown.
    df : int
        Number of coefficients tested; fixed while n grows.

    Raises
    ------
    ValueError
        If the factor is not positive, the statistic negative, one of them not finite,
        or df not a positive integer.

    References
    ----------
    Sur, Chen and Candes (2019), Probab. Theory Relat. Fields 175, 487-558, theorem 1.

    Examples
    --------
    >>> value, p = rescaled_lrt(5.0, proportional_logistic(0.3, 0.0).lrt_factor)
    >>> round(value, 2), round(p, 3)
    (3.3, 0.069)
    """
    counts = isinstance(df, int | np.integer) and not isinstance(df, bool) and df >= 1
    if not (np.isfinite([factor, statistic]).all() and factor > 0 and statistic >= 0):
        counts = False
    if not counts:
        raise ValueError(
            f"`statistic` is {statistic}, `factor` {factor}, `df` {df}; they must be "
            "finite and >= 0, finite and > 0, and an integer >= 1. A ratio that is "
            "infinite or negative is that of a fit that was not found (`separation`)."
        )
    value = statistic / factor
    return value, float(stats.chi2.sf(value, df))
