"""Logistic inference with many covariates: SLOE, observable scale, intervals."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import linalg, optimize, special, stats

from eestim._arrays import IntVector, Matrix, Vector, as_float, check_finite
from eestim.asymptotics.corrupted import proportional_logistic_from_eta
from eestim.asymptotics.existence import check_aspect
from eestim.asymptotics.proportional import ProportionalLogistic, proportional_logistic
from eestim.errors import ConvergenceError, DataError, SeparationError

__all__ = [
    "AdjustedLogistic",
    "LogisticScale",
    "adjusted_logistic",
    "observable_scale",
    "precision_multipliers",
    "rescaled_lrt",
    "sloe",
]

_SCORE_LIMIT = 1e-6  # of the score at beta, in standard deviations of one coordinate


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
    coefficients = as_float(beta, "beta", ndim=1)
    n, p = design.shape
    if outcome.shape != (n,) or coefficients.shape != (p,):
        raise DataError(
            f"`X` is {design.shape}, `y` {outcome.shape}, `beta` {coefficients.shape}; "
            "give n outcomes and p coefficients."
        )
    if not np.isin(outcome, (0.0, 1.0)).all():
        raise DataError("`y` must hold zeros and ones; recode the two classes.")
    predictor = design @ coefficients
    mean = special.expit(predictor)
    weight = mean * special.expit(-predictor)
    _check_root(design, outcome - mean)
    root = np.sqrt(weight)
    q_factor, r_factor = np.linalg.qr(root[:, None] * design)
    size = np.abs(np.diag(r_factor))
    if p > n or size.min() <= 10 * p * np.finfo(float).eps * size.max():
        raise SeparationError(
            "`X` has a singular information at `beta`: covariates are dependent, or "
            "the data are separated and the estimate lies at infinity. Check with "
            "`separation` and `rank_report`."
        )
    leverage = np.sum(q_factor**2, axis=1) / weight
    return _Fit(predictor, outcome - mean, weight, leverage)


def _check_root(design: Matrix, residual: Vector) -> None:
    """Raise if beta is not the maximum-likelihood estimate."""
    score = design.T @ residual
    spread = np.sqrt(np.sum((design * residual[:, None]) ** 2, axis=0))
    worst = float(np.max(np.abs(score) / np.where(spread > 0, spread, 1.0)))
    if worst > _SCORE_LIMIT:
        raise ConvergenceError(
            f"`beta` is not the maximum-likelihood estimate: its score is {worst:.1e} "
            f"standard deviations from zero (limit {_SCORE_LIMIT:.0e}). Iterate "
            "further, or check for separation."
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

    where S_i approximates the predictor of unit i fitted without unit i.

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
        If the information is singular at beta.

    References
    ----------
    Yadlowsky, Yun, McLean and D'Amour (2021), SLOE, NeurIPS 34, section 3.

    Examples
    --------
    With only a constant every left-out predictor is the logit of the others' mean:

    >>> y = np.array([0.0, 1.0, 1.0, 0.0])
    >>> round(sloe(np.ones((4, 1)), y, np.zeros(1)), 4)
    0.6667
    """
    return float(np.std(_left_out_predictors(_fit_terms(X, y, beta))))


def _scale_of(fit: _Fit, kappa: float) -> LogisticScale:
    curvature = float(np.mean(fit.weight - fit.weight**2 * fit.leverage))
    sigma = float(np.sqrt(np.mean(fit.residual**2))) / curvature
    lambda_ = kappa / curvature
    return LogisticScale(sigma, lambda_, kappa * sigma**2 / lambda_)


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
        Whether one column of X is the intercept, which does not count in kappa.

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
    fit = _fit_terms(X, y, beta)
    n, p = np.shape(X)
    return _scale_of(fit, (p - int(intercept)) / n)


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
        If p >= n, where the precision cannot be estimated this way.

    Examples
    --------
    >>> precision_multipliers(np.array([[1.0], [-1.0], [1.0], [-1.0], [1.0]]))
    array([0.89442719])
    """
    design = as_float(X, "X", ndim=2)
    n, p = design.shape
    if p >= n:
        raise ValueError(
            f"`X` has {p} columns for {n} rows; the precision of the covariates needs "
            "p < n. Give it from knowledge or from unlabelled data."
        )
    r_factor = np.linalg.qr(design, mode="r")
    inverse = linalg.solve_triangular(r_factor, np.eye(p))
    diagonal = np.sum(inverse**2, axis=1)
    chosen = np.arange(p) if columns is None else np.asarray(columns)
    multipliers: Vector = np.sqrt((n - p) * diagonal[chosen])
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
        Column of X that is constant.

    Raises
    ------
    ConvergenceError
        If beta is not the maximum-likelihood estimate, or the system has no
        solution.
    SeparationError
        If the estimate does not exist.

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
        If the factor is not positive, the statistic negative, or df not positive.

    References
    ----------
    Sur, Chen and Candes (2019), Probab. Theory Relat. Fields 175, 487-558, theorem 1.

    Examples
    --------
    >>> value, p = rescaled_lrt(5.0, proportional_logistic(0.3, 0.0).lrt_factor)
    >>> round(value, 2), round(p, 3)
    (3.3, 0.069)
    """
    if not (factor > 0 and statistic >= 0 and df >= 1):
        raise ValueError(
            f"`statistic` is {statistic}, `factor` {factor}, `df` {df}; they must be "
            ">= 0, > 0 and >= 1."
        )
    value = statistic / factor
    return value, float(stats.chi2.sf(value, df))
