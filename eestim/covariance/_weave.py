"""Empirical weights of Lumley and Heagerty: autocorrelations instead of a kernel."""

from typing import Literal, TypeAlias

import numpy as np

from eestim._arrays import Vector
from eestim.errors import InferenceError

__all__ = ["WeaveMethod", "isotonic_autocorrelation", "weave_weights"]

WeaveMethod: TypeAlias = Literal["truncate", "smooth"]


def isotonic_autocorrelation(residual: Vector) -> Vector:
    """Return the autocorrelations of a series, forced to decrease with the lag.

    Least-squares projection on nonincreasing sequences (pool adjacent violators).

    Parameters
    ----------
    residual : (n,) array
        In time order; centred here.

    Returns
    -------
    (n,) array
        At lags 0 to n - 1.

    Raises
    ------
    InferenceError
        If the series is constant.

    References
    ----------
    Lumley and Heagerty (1999), J. R. Stat. Soc. B 61, section 3.2; Robertson,
    Wright and Dykstra (1988), Order Restricted Statistical Inference.

    Examples
    --------
    The autocorrelations 1, -3/4, 1/2, -1/4 pool at the second and third lag:

    >>> isotonic_autocorrelation(np.array([1.0, -1.0, 1.0, -1.0])).round(9)
    array([ 1.   , -0.125, -0.125, -0.25 ])
    """
    centred = residual - residual.mean()
    n, size = len(centred), float(centred @ centred)
    if not size > 0:
        raise InferenceError(
            "the residuals are constant, so they have no autocorrelations; the "
            "empirical (weave) weights need a regression with random residuals."
        )
    power = np.abs(np.fft.rfft(centred, 2 * n)) ** 2
    return _nonincreasing(np.fft.irfft(power, 2 * n)[:n] / size)


def _nonincreasing(values: Vector) -> Vector:
    means: list[float] = []
    counts: list[int] = []
    for value in values:
        mean, count = float(value), 1
        while means and means[-1] < mean:
            other, size = means.pop(), counts.pop()
            mean = (mean * count + other * size) / (count + size)
            count += size
        means.append(mean)
        counts.append(count)
    return np.repeat(means, counts)


def weave_weights(
    residual: Vector, method: WeaveMethod = "truncate", cutoff: float | None = None
) -> Vector:
    r"""Return weights of lags read off the autocorrelations of the residuals.

    .. math:: w_j = 1\{n \rho_j^2 > C\} \ \text{(truncate)}, \qquad
        w_j = \min(1, C\, n \rho_j^2) \ \text{(smooth)}.

    Parameters
    ----------
    residual : (n,) array
        In time order.
    method : {"truncate", "smooth"}
    cutoff : float, optional
        C, by default 4 for "truncate" and 1 for "smooth".

    Returns
    -------
    (L + 1,) array
        Up to the last weight that is not zero; that of lag 0 is one.

    Raises
    ------
    ValueError
        If the method is unknown or the cutoff not positive.

    References
    ----------
    Lumley and Heagerty (1999), J. R. Stat. Soc. B 61, 459-477, section 3.
    """
    if method not in ("truncate", "smooth"):
        raise ValueError(f"`method` is {method!r}; choose 'truncate' or 'smooth'.")
    constant = (4.0 if method == "truncate" else 1.0) if cutoff is None else cutoff
    if not 0 < constant < np.inf:
        raise ValueError(f"`cutoff` is {cutoff!r}; a positive number was expected.")
    strength = len(residual) * isotonic_autocorrelation(residual) ** 2
    if method == "truncate":
        weights = np.where(strength > constant, 1.0, 0.0)
    else:
        weights = np.minimum(1.0, constant * strength)
    weights[0] = 1.0
    return weights[: np.flatnonzero(weights)[-1] + 1]
