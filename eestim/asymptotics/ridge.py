"""Risk of minimum-norm and ridge regression when p/n tends to a constant."""

import numpy as np

__all__ = ["optimal_ridge_penalty", "ridge_risk", "ridgeless_risk"]


def _check(aspect: float, signal: float, noise: float) -> None:
    finite = bool(np.isfinite([aspect, signal, noise]).all())
    if not (finite and aspect > 0 and signal >= 0 and noise >= 0):
        raise ValueError(
            f"`aspect` is {aspect}, `signal` {signal}, `noise` {noise}; give p/n > 0, "
            "the squared norm of the coefficients and the error variance, both >= 0, "
            "all finite."
        )


def ridgeless_risk(aspect: float, signal: float, noise: float) -> float:
    r"""Return the limit excess risk of minimum-norm least squares.

    .. math:: R = \begin{cases} \sigma^2\gamma/(1-\gamma) & \gamma < 1 \\
       r^2(1 - 1/\gamma) + \sigma^2/(\gamma - 1) & \gamma > 1 \end{cases}

    for independent covariates of unit variance; infinite at gamma = 1.

    Parameters
    ----------
    aspect : float
        :math:`\gamma = p/n`, > 0.
    signal : float
        :math:`r^2 = \|\beta\|^2`, a squared norm.
    noise : float
        :math:`\sigma^2`, a variance.

    Raises
    ------
    ValueError
        If the aspect ratio is not positive or a variance is negative.

    References
    ----------
    Hastie, Montanari, Rosset and Tibshirani (2022), Annals of Statistics 50,
    949-986, theorem 1.

    Examples
    --------
    Beyond interpolation the risk falls again:

    >>> [round(ridgeless_risk(aspect, 5.0, 1.0), 4) for aspect in (0.5, 1.5, 2.0)]
    [1.0, 3.6667, 3.5]
    """
    _check(aspect, signal, noise)
    if aspect == 1.0:
        return float("inf") if noise > 0 else 0.0
    if aspect < 1.0:
        return noise * aspect / (1.0 - aspect)
    return signal * (1.0 - 1.0 / aspect) + noise / (aspect - 1.0)


def stieltjes(aspect: float, penalty: float) -> tuple[float, float]:
    r"""Return the Marchenko-Pastur transform m and its derivative at minus penalty.

    m solves :math:`\gamma\lambda m^2 + (1 - \gamma + \lambda)m - 1 = 0`.

    >>> m, slope = stieltjes(0.5, 0.2)
    >>> round(0.5 * 0.2 * m**2 + 0.7 * m, 12)
    1.0
    """
    linear = 1.0 - aspect + penalty
    root = float(np.sqrt(linear**2 + 4.0 * aspect * penalty))
    # of the two equal forms, the one that adds rather than cancels
    if linear > 0:
        m = 2.0 / (linear + root)
    else:
        m = (root - linear) / (2.0 * aspect * penalty)
    return m, (aspect * m**2 + m) / (2.0 * aspect * penalty * m + linear)


def ridge_risk(aspect: float, signal: float, noise: float, penalty: float) -> float:
    r"""Return the limit excess risk of ridge regression.

    .. math:: R = \sigma^2\gamma(m - \lambda m') + r^2\lambda^2 m', \quad
       \hat\beta = (X'X + n\lambda I)^{-1}X'y

    Parameters
    ----------
    aspect, signal, noise
        See `ridgeless_risk`, the value at penalty 0.
    penalty : float
        :math:`\lambda \ge 0`, multiplied by n in the normal equations.

    Raises
    ------
    ValueError
        If an argument is outside its domain.

    References
    ----------
    Hastie et al. (2022), Annals of Statistics 50, 949-986, corollary 5;
    Dobriban and Wager (2018), Annals of Statistics 46, 247-279, theorem 2.1.

    Examples
    --------
    >>> round(ridge_risk(2.0, 5.0, 1.0, optimal_ridge_penalty(2.0, 5.0, 1.0)), 4)
    3.1085
    """
    _check(aspect, signal, noise)
    if not (np.isfinite(penalty) and penalty >= 0):
        raise ValueError(f"`penalty` is {penalty}; give a finite one >= 0.")
    if penalty == 0.0:
        return ridgeless_risk(aspect, signal, noise)
    m, slope = stieltjes(aspect, penalty)
    return noise * aspect * (m - penalty * slope) + signal * penalty**2 * slope


def optimal_ridge_penalty(aspect: float, signal: float, noise: float) -> float:
    r"""Return the penalty of least limit risk, :math:`\lambda^* = \sigma^2\gamma/r^2`.

    Raises
    ------
    ValueError
        If an argument is outside its domain, or there is no signal.

    References
    ----------
    Dobriban and Wager (2018), Annals of Statistics 46, 247-279, theorem 2.1.

    Examples
    --------
    >>> optimal_ridge_penalty(2.0, 5.0, 1.0)
    0.4
    """
    _check(aspect, signal, noise)
    if signal == 0:
        raise ValueError("`signal` is 0: every finite penalty is too small.")
    return noise * aspect / signal
