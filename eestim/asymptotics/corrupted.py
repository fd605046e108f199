"""The proportional logistic limit from the strength of the fitted predictor."""

import numpy as np
from scipy import optimize

from eestim._arrays import Vector
from eestim.asymptotics.existence import check_aspect
from eestim.asymptotics.proportional import (
    ProportionalLogistic,
    logistic_residuals,
    proportional_logistic,
)
from eestim.errors import ConvergenceError, SeparationError

__all__ = ["proportional_logistic_from_eta"]

_RESIDUAL = 1e-10
_INTERCEPT_STEP = 0.25


def proportional_logistic_from_eta(
    kappa: float, eta: float, iota: float = 0.0
) -> ProportionalLogistic:
    r"""Return the logistic limit given what a fit shows, eta and iota.

    The signal strength gamma is not observed, but the standard deviation of the
    fitted predictor at a new x is (`sloe` estimates it):
    :math:`\eta^2 = \alpha^2\gamma^2 + \kappa\sigma^2` is solved for gamma, and the
    fitted intercept iota for the true one.

    Parameters
    ----------
    kappa : float
        Aspect ratio p/n.
    eta : float
        Standard deviation of x'beta-hat over new x (the corrupted signal strength).
    iota : float
        Limit of the fitted intercept; zero means that there is none.

    Raises
    ------
    ValueError
        If eta is below what estimation noise alone gives, or kappa not in (0, 1).
    ConvergenceError
        If the equations cannot be solved.

    References
    ----------
    Yadlowsky, Yun, McLean and D'Amour (2021), SLOE: A faster method for statistical
    inference in high-dimensional logistic regression, NeurIPS 34, section 3.

    Examples
    --------
    >>> found = proportional_logistic_from_eta(0.1, 8.881028475794636**0.5)
    >>> print(f"{found.alpha:.3f} {found.lambda_:.3f} {0.1**0.5 * found.sigma:.4f}")
    1.174 1.007 1.0861
    """
    check_aspect(kappa)
    if not (np.isfinite(eta) and eta > 0 and np.isfinite(iota)):
        raise ValueError(
            f"`eta` is {eta} and `iota` {iota}; give eta > 0, both finite."
        )
    gamma = _gamma_without_intercept(kappa, eta)
    if iota == 0.0:
        return proportional_logistic(kappa, gamma)
    state = _with_fitted_intercept(kappa, eta, iota, gamma)
    alpha, lambda_, sigma, gamma, intercept = _unpack(state, kappa, eta)
    residuals = _residuals(state, kappa, eta, iota)
    return ProportionalLogistic(
        kappa=float(kappa),
        gamma=gamma,
        intercept=intercept,
        alpha=alpha,
        lambda_=lambda_,
        sigma=sigma,
        iota=float(iota),
        lrt_factor=kappa * sigma**2 / lambda_,
        eta=float(eta),
        residual=float(np.abs(residuals).max()),
    )


def _gamma_without_intercept(kappa: float, eta: float) -> float:
    """Return the signal strength at which the fitted predictor has spread eta."""
    least = proportional_logistic(kappa, 0.0).eta
    if eta < least:
        raise ValueError(
            f"`eta` is {eta:.6g}, below the {least:.6g} that estimation noise alone "
            f"gives at kappa = {kappa}: there is no sign of signal. Use "
            "`proportional_logistic(kappa, 0.0)`."
        )

    def excess(gamma: float) -> float:
        try:
            return proportional_logistic(kappa, gamma).eta - eta
        except (SeparationError, ConvergenceError):  # at the frontier eta is infinite
            return eta

    # the estimate exaggerates, alpha >= 1, so gamma is below eta
    gamma = float(optimize.brentq(excess, 0.0, eta, xtol=1e-13, rtol=1e-13))
    if abs(excess(gamma)) > _RESIDUAL * eta:
        raise ConvergenceError(
            f"`eta` is {eta}: the signal strength {gamma:.6f} that gives it is within "
            "rounding of the existence frontier. Check the data with `separation`."
        )
    return gamma


def _unpack(
    state: Vector, kappa: float, eta: float
) -> tuple[float, float, float, float, float]:
    """Return alpha, lambda, sigma, gamma, theta from (alpha, log lambda, angle, theta).

    The angle splits eta^2 into signal and noise.
    """
    alpha, angle = float(state[0]), float(state[2])
    sigma = eta * np.sin(angle) / np.sqrt(kappa)
    gamma = eta * np.cos(angle) / alpha
    return alpha, float(np.exp(state[1])), float(sigma), float(gamma), float(state[3])


def _residuals(state: Vector, kappa: float, eta: float, iota: float) -> Vector:
    alpha, lambda_, sigma, gamma, intercept = _unpack(state, kappa, eta)
    return logistic_residuals(
        alpha, lambda_, sigma, iota, kappa=kappa, gamma=abs(gamma), intercept=intercept
    )


def _with_fitted_intercept(
    kappa: float, eta: float, iota: float, gamma: float
) -> Vector:
    """Follow the solution from no intercept to the fitted one."""
    start = proportional_logistic(kappa, gamma)
    angle = np.arctan2(np.sqrt(kappa) * start.sigma, start.alpha * gamma)
    state = np.array([start.alpha, np.log(start.lambda_), angle, 0.0])
    n_steps = int(np.ceil(abs(iota) / _INTERCEPT_STEP))
    for at in np.linspace(0.0, iota, n_steps + 1)[1:]:
        found = optimize.root(
            _residuals, state, args=(kappa, eta, float(at)), options={"xtol": 1e-14}
        )
        state = found.x
        if np.abs(found.fun).max() > _RESIDUAL or not 0 < state[2] <= np.pi / 2:
            raise ConvergenceError(
                f"`eta` is {eta} and `iota` {iota}: no signal strength and intercept "
                f"reproduce them at kappa = {kappa} (lost at iota = {at:.3f}). They "
                "are probably noise; use `proportional_logistic(kappa, 0.0, ...)`."
            )
    return state
