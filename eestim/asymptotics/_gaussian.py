"""Gaussian expectations of analytic functions, and the logistic proximal map."""

import numpy as np
from scipy import special

from eestim._arrays import Vector

__all__ = ["logistic_prox", "normal_nodes"]

_REACH = 9.5  # the normal density beyond is below 1e-20 of its peak
_DECADES = 38.0  # exp(-38) is below rounding
_MOST_NODES = 20_001
_NEWTON_STEPS = 200


def normal_nodes(scale: float) -> tuple[Vector, Vector]:
    r"""Return nodes and weights for the mean of f(scale Z), Z standard normal.

    The trapezoidal rule: for f analytic within :math:`|\Im t| < \pi`, as every
    function of the logistic systems is, its error is
    :math:`\exp(-2\pi^2 / (h\,\mathrm{scale}))`, here below rounding. Gauss-Hermite
    rules need many more nodes for the same accuracy.

    Parameters
    ----------
    scale : float
        Standard deviation of the argument of f.

    Returns
    -------
    nodes, weights : (N,) arrays
        Of Z; the weights sum to one.

    References
    ----------
    Trefethen and Weideman (2014), SIAM Review 56, 385-458, theorem 5.1;
    Trefethen (2022), SIAM Review 64, 132-150, on the waste of Gauss-Hermite nodes.

    Examples
    --------
    >>> nodes, weights = normal_nodes(2.0)
    >>> bool(abs(weights @ np.cosh(nodes) - np.exp(0.5)) < 1e-14)
    True
    """
    step = min(0.2, 2.0 * np.pi**2 / (_DECADES * max(scale, 1e-300)))
    half = min(int(np.ceil(_REACH / step)), _MOST_NODES // 2)
    nodes = np.linspace(-_REACH, _REACH, 2 * half + 1)
    weights = np.exp(-0.5 * nodes**2)
    return nodes, weights / weights.sum()


def logistic_prox(target: Vector, lambda_: float) -> Vector:
    r"""Return the proximal map of :math:`\lambda\rho`, :math:`\rho = \log(1 + e^t)`.

    The root x of :math:`x + \lambda\rho'(x) = t`, by Newton steps kept inside the
    bracket :math:`[t - \lambda, t]`.

    Parameters
    ----------
    target : (N,) array
        t.
    lambda_ : float
        Positive.

    Examples
    --------
    >>> x = logistic_prox(np.array([2.0]), 3.0)
    >>> bool(abs(x + 3 * special.expit(x) - 2)[0] < 1e-14)
    True
    """
    low, high = target - lambda_, target.copy()
    x = target - lambda_ * special.expit(target - 0.5 * lambda_)
    previous = high - low
    for _ in range(_NEWTON_STEPS):
        mean = special.expit(x)
        excess = x + lambda_ * mean - target
        low, high = np.where(excess < 0, x, low), np.where(excess > 0, x, high)
        step = -excess / (1.0 + lambda_ * mean * (1.0 - mean))
        # bisect where Newton leaves the bracket or, as between two bends of a steep
        # curve, cycles without halving its steps
        safe = (x + step >= low) & (x + step <= high)
        safe &= np.abs(step) <= 0.5 * np.abs(previous)
        previous = np.where(safe, step, 0.5 * (low + high) - x)
        x = x + previous
        if (np.abs(previous) <= 4e-16 * (1.0 + np.abs(x))).all():
            break
    root: Vector = x
    return root
