"""Logistic regression with p of the order of n: bias, variance, likelihood ratio."""

from dataclasses import dataclass

import numpy as np
from scipy import optimize, special

from eestim._arrays import Vector
from eestim.asymptotics._gaussian import logistic_prox, normal_nodes
from eestim.asymptotics.existence import check_aspect, frontier_aspect
from eestim.errors import ConvergenceError, SeparationError

__all__ = [
    "ProportionalLogistic",
    "logistic_residuals",
    "proportional_logistic",
]

_RESIDUAL = 1e-12
_FIRST_ASPECT = 0.01
_FIRST_STEP, _SMALLEST_STEP = 0.4, 1e-3  # of log(frontier - kappa)
_FOLLOWED, _COARSE = 1e-5, 1e-7  # residual of an accepted step, and its xtol
_LARGEST_LOG = 30.0  # of an unknown
_NEAR = 0.98  # of the frontier, from where on the classical limit is a poor start


@dataclass(frozen=True, slots=True)
class ProportionalLogistic:
    r"""Limit of the logistic estimate when p/n tends to kappa.

    Attributes
    ----------
    kappa, gamma, intercept : float
        Aspect ratio p/n, standard deviation of x'beta, true intercept.
    alpha, lambda_, sigma : float
        :math:`\hat\beta_j \approx \alpha\beta_j + \sigma Z / (\sqrt n\tau_j)`, with
        tau_j the conditional standard deviation of covariate j.
    iota : float
        Limit of the fitted intercept.
    lrt_factor : float
        :math:`\kappa\sigma^2/\lambda`: twice the log-likelihood ratio of k null
        coefficients tends to this times chi-square with k degrees of freedom.
    eta : float
        Standard deviation of x'beta-hat for a new x,
        :math:`\eta^2 = \alpha^2\gamma^2 + \kappa\sigma^2`.
    residual : float
        Largest relative residual of the equations solved.
    """

    kappa: float
    gamma: float
    intercept: float
    alpha: float
    lambda_: float
    sigma: float
    iota: float
    lrt_factor: float
    eta: float
    residual: float


def logistic_residuals(
    alpha: float,
    lambda_: float,
    sigma: float,
    iota: float,
    *,
    kappa: float,
    gamma: float,
    intercept: float = 0.0,
) -> Vector:
    r"""Return the four equations of the proportional logistic limit, relative.

    With :math:`S_0 = \theta + \gamma Z_1`,
    :math:`S = \iota + \alpha\gamma Z_1 + \sqrt\kappa\sigma Z_2`,
    :math:`g = \rho' \circ \mathrm{prox}_{\lambda\rho}`:

    .. math::
        \kappa^2\sigma^2/\lambda^2 &= E[\rho'(S_0) g(-S)^2 + \rho'(-S_0) g(S)^2] \\
        \alpha\kappa/\lambda &= E[\rho''(S_0)\{g(S) + g(-S)\}] \\
        1 - \kappa &= E\Big[\frac{\rho'(S_0)}{1+\lambda\rho''(\mathrm{prox}(-S))}
            + \frac{\rho'(-S_0)}{1+\lambda\rho''(\mathrm{prox}(S))}\Big] \\
        0 &= E[\rho'(S_0) g(-S) - \rho'(-S_0) g(S)]

    The second is the usual :math:`E[Z_1(Y - \hat\mu)] = 0` after Stein's identity,
    which stays regular at gamma = 0. Expectations given S are taken first, so
    that the proximal map is needed on a line only.

    References
    ----------
    Sur and Candes (2019), PNAS 116, 14516-14525, eq. 5; Zhao, Sur and Candes
    (2022), Bernoulli 28, 1835-1861, for the intercept.

    Examples
    --------
    >>> found = proportional_logistic(0.1, 1.0)
    >>> float(abs(logistic_residuals(found.alpha, found.lambda_, found.sigma, 0.0,
    ...     kappa=0.1, gamma=1.0)).max()) < 1e-12
    True
    """
    noise = kappa * sigma**2
    eta = np.sqrt((alpha * gamma) ** 2 + noise)
    nodes, weights = normal_nodes(eta)
    s = iota + eta * nodes
    mean_0 = intercept + alpha * gamma**2 / eta * nodes
    positive, curvature = _conditional_means(mean_0, gamma * np.sqrt(noise) / eta)
    up, down = logistic_prox(-s, lambda_), logistic_prox(s, lambda_)  # y = 1, y = 0
    g_up, g_down = special.expit(up), special.expit(down)
    negative = 1.0 - positive
    variance = weights @ (positive * g_up**2 + negative * g_down**2)
    slope = weights @ (curvature * (g_up + g_down))
    # one minus the trace, which keeps its digits when kappa is small
    curve_up, curve_down = lambda_ * g_up * (1 - g_up), lambda_ * g_down * (1 - g_down)
    used = weights @ (
        positive * curve_up / (1.0 + curve_up)
        + negative * curve_down / (1.0 + curve_down)
    )
    balance = weights @ (positive * g_up - negative * g_down)
    return np.array(
        [
            variance * lambda_**2 / (kappa * noise) - 1.0,
            slope * lambda_ / kappa - alpha,
            1.0 - used / kappa,
            balance,
        ]
    )


def _conditional_means(mean: Vector, sd: float) -> tuple[Vector, Vector]:
    """Return E rho'(m + sd Z) and E rho''(m + sd Z) for each mean m."""
    nodes, weights = normal_nodes(sd)
    first = special.expit(mean[:, None] + sd * nodes)
    return first @ weights, (first * (1.0 - first)) @ weights


def _unpack(state: Vector) -> tuple[float, float, float, float]:
    """Return alpha, lambda, sigma, iota from three logarithms and iota / alpha."""
    alpha, lambda_, sigma = np.exp(state[:3])
    iota = float(state[3] * alpha) if len(state) > 3 else 0.0
    return float(alpha), float(lambda_), float(sigma), iota


def _solve_from(
    state: Vector, kappa: float, gamma: float, intercept: float, xtol: float = 1e-14
) -> tuple[Vector, float]:
    """Return the root near a start, and its largest residual."""
    size = len(state)

    def residuals(x: Vector) -> Vector:
        if np.abs(x).max() > _LARGEST_LOG:  # keep the line search finite
            return np.full(size, 1e3) + x**2
        return logistic_residuals(
            *_unpack(x), kappa=kappa, gamma=gamma, intercept=intercept
        )[:size]

    found = optimize.root(residuals, state, method="hybr", options={"xtol": xtol})
    return found.x, float(np.abs(found.fun).max())


def _classical_limit(kappa: float, gamma: float, intercept: float) -> Vector:
    """Return the solution as kappa tends to zero: alpha 1, sigma^2 = 1 / E rho''."""
    information = _conditional_means(np.array([intercept]), gamma)[1][0]
    start = [0.0, np.log(kappa / information), -0.5 * np.log(information)]
    return np.array([*start, intercept] if intercept != 0.0 else start)


def _continue(
    kappa: float, gamma: float, intercept: float, frontier: float
) -> tuple[Vector, float]:
    """Follow the solution from small aspect ratios to kappa, halving failed steps.

    Steps are equal in log(frontier - kappa), in which the logarithms of the unknowns
    are nearly linear (they diverge as powers at the frontier), and each start is
    extrapolated from the last two solutions.
    """
    first = min(_FIRST_ASPECT, 0.5 * kappa)
    at, end = -np.log(frontier - first), -np.log(frontier - kappa)
    state, residual = _solve_from(
        _classical_limit(first, gamma, intercept), first, gamma, intercept
    )
    trend, step = np.zeros(len(state)), min(_FIRST_STEP, end - at)
    while at < end:
        ahead = min(at + step, end)
        aspect = kappa if ahead == end else frontier - np.exp(-ahead)
        trial, residual = _solve_from(
            state + trend * (ahead - at), aspect, gamma, intercept, _COARSE
        )
        if residual < _FOLLOWED:
            trend = (trial - state) / (ahead - at)
            at, state, step = ahead, trial, 1.5 * step
        elif step < _SMALLEST_STEP:
            return state, np.inf
        else:
            step *= 0.5
    return _solve_from(state, kappa, gamma, intercept)


def _record(
    state: Vector, kappa: float, gamma: float, intercept: float, residual: float
) -> ProportionalLogistic:
    alpha, lambda_, sigma, iota = _unpack(state)
    return ProportionalLogistic(
        kappa=float(kappa),
        gamma=float(gamma),
        intercept=float(intercept),
        alpha=alpha,
        lambda_=lambda_,
        sigma=sigma,
        iota=iota,
        lrt_factor=kappa * sigma**2 / lambda_,
        eta=float(np.sqrt((alpha * gamma) ** 2 + kappa * sigma**2)),
        residual=residual,
    )


def proportional_logistic(
    kappa: float, gamma: float, intercept: float = 0.0
) -> ProportionalLogistic:
    r"""Return the limit of the logistic estimate as p/n tends to kappa.

    For Gaussian covariates the estimate is biased away from zero by alpha, its
    standard deviation is sigma (classical theory: too small), and the likelihood
    ratio is inflated by :math:`\kappa\sigma^2/\lambda`. See `logistic_residuals`
    for the equations.

    Parameters
    ----------
    kappa : float
        Aspect ratio p/n, inside (0, 1).
    gamma : float
        Standard deviation of the signal x'beta, >= 0.
    intercept : float
        True intercept; when not zero, an intercept is fitted too.

    Raises
    ------
    ValueError
        If kappa or gamma is outside its domain.
    SeparationError
        If kappa is at or beyond the existence frontier of gamma.
    ConvergenceError
        If the equations cannot be solved to a relative residual of 1e-12.

    References
    ----------
    Sur and Candes (2019), PNAS 116, 14516-14525, theorems 1-4.

    Examples
    --------
    >>> found = proportional_logistic(0.2, 5**0.5)
    >>> print(f"{found.alpha:.4f} {found.lambda_:.4f} {found.sigma:.4f}")
    1.4994 3.0269 4.7436
    """
    check_aspect(kappa)
    frontier = frontier_aspect(gamma, intercept)
    if kappa >= frontier:
        raise SeparationError(
            f"`kappa` is {kappa}, at or beyond {frontier:.4f}, where the logistic "
            f"estimate ceases to exist for gamma = {gamma:g} and intercept "
            f"{intercept:g}: the data are separated with probability tending to one. "
            "Use fewer covariates, more data, or a penalty."
        )
    state, residual = np.zeros(0), np.inf
    if kappa < _NEAR * frontier:
        start = _classical_limit(kappa, gamma, intercept)
        state, residual = _solve_from(start, kappa, gamma, intercept)
    if residual > _RESIDUAL:
        state, residual = _continue(kappa, gamma, intercept, frontier)
    if residual > _RESIDUAL:
        raise ConvergenceError(
            f"`kappa` is {kappa} and `gamma` {gamma}: the equations were solved to "
            f"{residual:.1e} only (needed {_RESIDUAL:.0e}); the point is probably too "
            f"close to the existence frontier kappa = {frontier:.6f}."
        )
    return _record(state, kappa, gamma, intercept, residual)
