"""Kernel weights, weighted sums of autocovariances, and prewhitening.

Array functions only: rows of psi are in time order and nothing here knows of a model.
Bandwidths follow Andrews (1991): the weight of lag j is ``k(j / bandwidth)``.
"""

import operator
from dataclasses import dataclass
from typing import Literal, SupportsIndex, TypeAlias, cast

import numpy as np
from scipy import linalg

from eestim._arrays import Matrix, Vector
from eestim.errors import DataError, InferenceError

__all__ = [
    "Kernel",
    "KernelName",
    "Prewhitened",
    "canonical_kernel",
    "checked_bandwidth",
    "checked_lags",
    "is_positive_kernel",
    "kernel_weights",
    "lag_rule",
    "lag_weights",
    "lags_to_bandwidth",
    "long_run_sum",
    "prewhiten",
]

Kernel: TypeAlias = Literal[
    "truncated", "bartlett", "parzen", "tukey-hanning", "quadratic-spectral"
]
KernelName: TypeAlias = str  # any spelling that `canonical_kernel` knows

_SPELLINGS: dict[str, Kernel] = {
    "truncated": "truncated",
    "uniform": "truncated",
    "bartlett": "bartlett",
    "newey-west": "bartlett",
    "parzen": "parzen",
    "gallant": "parzen",
    "tukey-hanning": "tukey-hanning",
    "tukey": "tukey-hanning",
    "quadratic-spectral": "quadratic-spectral",
    "qs": "quadratic-spectral",
    "andrews": "quadratic-spectral",
}
_POSITIVE: frozenset[Kernel] = frozenset({"bartlett", "parzen", "quadratic-spectral"})
_DIRECT_LAGS = 64  # up to here a loop over lags is cheaper than a transform
_UNIT_ROOT = 1e-10  # distance of I - sum(A_j) from singular, relative to its terms
_SERIES = 0.1  # below, the closed form of the quadratic spectral kernel cancels


def canonical_kernel(kernel: KernelName) -> Kernel:
    """Return the one name of a kernel, whatever its spelling.

    Case, blanks and underscores do not matter; ``"qs"``, ``"tukey"``,
    ``"newey-west"``, ``"gallant"``, ``"andrews"`` and ``"uniform"`` are synonyms.

    Raises
    ------
    ValueError
        If there is no such kernel.

    Examples
    --------
    >>> canonical_kernel("Quadratic Spectral"), canonical_kernel("QS")
    ('quadratic-spectral', 'quadratic-spectral')
    """
    if isinstance(kernel, str):
        key = "-".join(kernel.lower().replace("_", " ").replace("-", " ").split())
        if key in _SPELLINGS:
            return _SPELLINGS[key]
    raise ValueError(
        f"`kernel` is {kernel!r}; choose one of "
        + ", ".join(repr(name) for name in dict.fromkeys(_SPELLINGS.values()))
        + "."
    )


def is_positive_kernel(kernel: KernelName) -> bool:
    """Return whether every variance by this kernel is positive semidefinite.

    >>> [is_positive_kernel(k) for k in ("bartlett", "parzen", "qs", "truncated")]
    [True, True, True, False]
    """
    return canonical_kernel(kernel) in _POSITIVE


def kernel_weights(kernel: KernelName, ratio: Vector) -> Vector:
    r"""Return k(x) at the ratios x = lag / bandwidth.

    .. math::
        \text{truncated:}\ & 1\{|x| \le 1\} \qquad
        \text{Bartlett:}\ (1 - |x|)_+ \qquad
        \text{Tukey-Hanning:}\ \tfrac12 (1 + \cos \pi x)\, 1\{|x| \le 1\} \\
        \text{Parzen:}\ & 1 - 6x^2 + 6|x|^3 \ (|x| \le \tfrac12),\quad
        2 (1 - |x|)_+^3 \ \text{beyond} \\
        \text{quadratic spectral:}\ & \frac{3}{z^2}
        \Big(\frac{\sin z}{z} - \cos z\Big), \quad z = 6 \pi x / 5.

    Parameters
    ----------
    kernel : str
    ratio : array
        x, of any shape.

    Raises
    ------
    ValueError
        If there is no such kernel.

    References
    ----------
    Andrews (1991), Econometrica 59, eq. 2.7.

    Examples
    --------
    >>> kernel_weights("parzen", np.array([0.0, 0.5, 1.0]))
    array([1.  , 0.25, 0.  ])
    """
    name = canonical_kernel(kernel)
    x: Vector = np.abs(np.asarray(ratio, dtype=np.float64))
    below: Vector = np.maximum(1 - x, 0.0)
    if name == "bartlett":
        return below
    if name == "truncated":
        return np.where(x <= 1, 1.0, 0.0)
    if name == "parzen":
        return np.where(x <= 0.5, 1 - 6 * x**2 * (1 - x), 2 * below**3)
    if name == "tukey-hanning":
        return np.where(x <= 1, (1 + np.cos(np.pi * x)) / 2, 0.0)
    return _quadratic_spectral(x)


def _quadratic_spectral(x: Vector) -> Vector:
    z = 6 * np.pi * x / 5
    far = np.where(z < _SERIES, 1.0, z)
    closed = 3 / far**2 * (np.sin(far) / far - np.cos(far))
    s = z * z  # 3 sum_k (-1)^k z^(2k) 2(k+1) / (2k+3)!
    series = 1 - s / 10 * (1 - s / 28 * (1 - s / 54 * (1 - s / 88)))
    return np.where(z < _SERIES, series, closed)


def lag_weights(kernel: KernelName, bandwidth: float, n_times: int) -> Vector:
    """Return the weights of lags 0, 1, ... up to the last that is not zero.

    Parameters
    ----------
    kernel : str
    bandwidth : float
        In time steps, positive.
    n_times : int
        Length of the series; lags beyond n_times - 1 do not exist.

    Examples
    --------
    Newey-West with 3 lags is the Bartlett kernel of bandwidth 4:

    >>> lag_weights("bartlett", 4, n_times=100)
    array([1.  , 0.75, 0.5 , 0.25])
    """
    weights = kernel_weights(kernel, np.arange(n_times) / bandwidth)
    return weights[: np.flatnonzero(weights)[-1] + 1]


def lags_to_bandwidth(kernel: KernelName, lags: int) -> float:
    """Return the bandwidth under which exactly ``lags`` lags have weight.

    ``lags + 1`` for the kernels that reach zero at the bandwidth, ``lags`` for the
    truncated kernel, which is one there.

    Raises
    ------
    ValueError
        For the quadratic spectral kernel, which weighs every lag.

    Examples
    --------
    >>> lags_to_bandwidth("bartlett", 4), lags_to_bandwidth("truncated", 4)
    (5.0, 4.0)
    """
    name = canonical_kernel(kernel)
    if name == "quadratic-spectral":
        raise ValueError(
            "`lags` has no meaning for the quadratic spectral kernel, which weighs "
            "every lag; give `bandwidth` (a number, 'newey-west' or 'andrews')."
        )
    if name == "truncated":
        return max(float(lags), 0.5)  # any bandwidth below 1 leaves lag 0 alone
    return float(lags + 1)


def checked_bandwidth(bandwidth: object) -> float:
    """Return a bandwidth given as a number, or raise unless it is positive.

    Raises
    ------
    ValueError
        If it is not a positive finite number.
    """
    known = isinstance(bandwidth, int | float | np.integer | np.floating)
    size = float(cast(float, bandwidth)) if known else np.nan
    if isinstance(bandwidth, bool) or not 0 < size < np.inf:
        raise ValueError(
            f"`bandwidth` is {bandwidth!r}; a positive number of time steps was "
            "expected (weights are k(lag / bandwidth)); `lags=0` gives HC0."
        )
    return size


def checked_lags(lags: object, n_times: int) -> int:
    """Return a number of lags that the series has, or raise.

    Raises
    ------
    ValueError
        If it is not an integer from 0 to n_times - 1.
    """
    try:
        count = operator.index(cast(SupportsIndex, lags))
    except TypeError:
        raise ValueError(f"`lags` is {lags!r}; an integer was expected.") from None
    if isinstance(lags, bool) or not 0 <= count < n_times:
        raise ValueError(
            f"`lags` is {lags!r}, but the series has {n_times} time points, hence lags "
            f"0 to {n_times - 1}. Newey and West (1987) take about "
            f"{lag_rule('newey-west-1987', n_times)} here."
        )
    return count


def lag_rule(rule: str, n_times: int) -> int:
    r"""Return a rule-of-thumb number of lags for a series of length T.

    .. math:: \lfloor T^{1/4} \rfloor \ \text{(1987)}, \qquad
        \lfloor 4 (T / 100)^{2/9} \rfloor \ \text{(1994)}, \qquad
        T - 1 \ \text{(max)}.

    Parameters
    ----------
    rule : {"newey-west-1987", "newey-west-1994", "max"}
        ``"NW1987"`` and ``"NW1994"`` are synonyms.
    n_times : int

    Raises
    ------
    ValueError
        If there is no such rule.

    References
    ----------
    Newey and West (1987), Econometrica 55, and (1994), Rev. Econ. Stud. 61;
    Petersen (2009), Rev. Financ. Stud. 22, for T - 1 lags.

    Examples
    --------
    >>> lag_rule("newey-west-1987", 81), lag_rule("newey-west-1994", 100)
    (3, 4)
    """
    key = str(rule).lower().replace("newey-west-", "nw")
    if key == "nw1987":
        count = _floor(n_times**0.25)
    elif key == "nw1994":
        count = _floor(4 * (n_times / 100) ** (2 / 9))
    elif key == "max":
        count = n_times - 1
    else:
        raise ValueError(
            f"`lags` is {rule!r}; give an integer, 'newey-west-1987', "
            "'newey-west-1994' or 'max'."
        )
    return min(count, n_times - 1)


def _floor(value: float) -> int:
    """Return the floor, forgiving the rounding of an exact integer power."""
    return int(np.floor(value * (1 + 1e-12)))


def long_run_sum(psi: Matrix, weights: Vector) -> Matrix:
    r"""Return the weighted sum of autocovariances of the rows of psi.

    .. math::
        S = w_0 \Gamma_0 + \sum_{j \ge 1} w_j (\Gamma_j + \Gamma_j^\top), \qquad
        \Gamma_j = \sum_{t > j} \psi_t \psi_{t-j}^\top.

    Parameters
    ----------
    psi : (T, q) array
        In time order; not centred, as psi has mean zero at a root.
    weights : (L + 1,) array
        Weights of lags 0 to L, L < T.

    Returns
    -------
    (q, q) array
        A sum over time, T times the meat of independent time points.

    Examples
    --------
    >>> long_run_sum(np.array([[1.0], [2.0], [3.0]]), np.array([1.0, 0.5]))
    array([[22.]])
    """
    if len(weights) <= _DIRECT_LAGS:
        total: Matrix = weights[0] * (psi.T @ psi)
        for lag in range(1, len(weights)):
            gamma = psi[lag:].T @ psi[:-lag]
            total += weights[lag] * (gamma + gamma.T)
        return total
    first = np.zeros(len(psi))
    first[: len(weights)] = weights
    total = psi.T @ linalg.matmul_toeplitz(first, psi)
    return (total + total.T) / 2


@dataclass(frozen=True, slots=True)
class Prewhitened:
    """Residuals of a vector autoregression and what undoes it at frequency zero.

    Attributes
    ----------
    residuals : (T - order, q) array
    recolour : (q, q) array
        ``D = (I - A_1 - ... - A_order)^-1``; a long-run sum S of the residuals
        becomes ``D S D'``.
    radius : float
        Largest modulus of the autoregressive roots; the estimate describes a
        stationary psi only if it is below one.
    """

    residuals: Matrix
    recolour: Matrix
    radius: float


def prewhiten(psi: Matrix, order: int) -> Prewhitened:
    r"""Fit a vector autoregression to psi by least squares, without an intercept.

    .. math:: \psi_t = A_1 \psi_{t-1} + \dots + A_b \psi_{t-b} + e_t, \qquad
        D = (I - A_1 - \dots - A_b)^{-1}.

    Parameters
    ----------
    psi : (T, q) array
        In time order.
    order : int
        b; 0 returns psi unchanged.

    Raises
    ------
    DataError
        If the series is too short for the autoregression.
    InferenceError
        If the autoregression has a unit root, so that D does not exist.

    References
    ----------
    Andrews and Monahan (1992), Econometrica 60, eqs. 2.3 and 2.4 (without their
    optional shrinkage of the roots).
    """
    n, q = psi.shape
    if order == 0:
        return Prewhitened(psi, np.eye(q), 0.0)
    if n - order <= q * order:
        raise DataError(
            f"`prewhiten` is {order}, a vector autoregression of {q * order} "
            f"coefficients an equation on {max(n - order, 0)} time points; use a "
            "lower order (0 switches prewhitening off)."
        )
    scale = np.sqrt(np.mean(psi**2, axis=0))
    scale = np.where(scale > 0, scale, 1.0)  # units of measure must not matter
    series = psi / scale
    past = np.hstack([series[order - j : n - j] for j in range(1, order + 1)])
    solution = np.linalg.lstsq(past, series[order:], rcond=None)[0]
    coefficients = np.asarray(solution, dtype=np.float64)
    residuals = (series[order:] - past @ coefficients) * scale
    lag_matrices: Matrix = coefficients.T.reshape(q, order, q).swapaxes(0, 1)
    total = lag_matrices.sum(axis=0)
    filtered = np.eye(q) - total
    smallest = float(np.linalg.svd(filtered, compute_uv=False)[-1])
    if smallest <= _UNIT_ROOT * max(1.0, float(np.linalg.norm(total, 2))):
        raise InferenceError(
            f"`prewhiten`={order}: the autoregression of psi has a unit root, so its "
            "long-run variance is infinite. Difference the series, add a trend, or "
            "use prewhiten=0."
        )
    recolour = np.linalg.inv(filtered) * scale[:, None] / scale
    return Prewhitened(residuals, recolour, _spectral_radius(lag_matrices))


def _spectral_radius(lag_matrices: Matrix) -> float:
    """Return the largest modulus of the roots of a vector autoregression."""
    order, q, _ = lag_matrices.shape
    companion = np.eye(q * order, k=-q)
    companion[:q] = np.hstack(list(lag_matrices))
    return float(np.abs(np.linalg.eigvals(companion)).max())
