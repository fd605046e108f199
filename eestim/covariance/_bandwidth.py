"""Bandwidths chosen from the data: arrays in, numbers out.

Newey and West (1994) estimate the optimal constant from a few autocovariances,
Andrews (1991) from a parametric approximation of each column.
"""

from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
from scipy import linalg, optimize

from eestim._arrays import Matrix, Vector
from eestim.covariance._kernels import KernelName, canonical_kernel
from eestim.errors import ConvergenceError, DataError, InferenceError

__all__ = [
    "Approximation",
    "Rounding",
    "andrews_bandwidth",
    "arma11",
    "column_weights",
    "newey_west_bandwidth",
    "pilot_lags",
]

Approximation: TypeAlias = Literal["AR(1)", "ARMA(1,1)"]
Rounding: TypeAlias = Literal["floor", "ceil"]

_INTERCEPTS = frozenset({"intercept", "(intercept)", "const", "_cons", "1"})
# characteristic exponent, constant of the optimal bandwidth, rate of the pilot lags
_NEWEY_WEST = {
    "bartlett": (1, 1.1447, 2 / 9),
    "parzen": (2, 2.6614, 4 / 25),
    "quadratic-spectral": (2, 1.3221, 2 / 25),
}
_ANDREWS = {  # characteristic exponent and constant
    "truncated": (2, 0.6611),
    "bartlett": (1, 1.1447),
    "parzen": (2, 2.6614),
    "tukey-hanning": (2, 1.7462),
    "quadratic-spectral": (2, 1.3221),
}
_SETTLED = 1e-15  # the innovation variance has reached its limit
_EDGE = 1e-6  # an ARMA coefficient nearer to one than this is one


def column_weights(
    names: Sequence[str],
    weights: Sequence[float] | None,
    design: Matrix | None = None,
) -> Vector:
    """Return the weight of each column of psi in the choice of a bandwidth.

    By default one, and zero for an intercept among other columns, whose psi has
    other units of measure (Andrews, 1991, section 6).

    Parameters
    ----------
    names : sequence of q str
    weights : sequence of q numbers, optional
    design : (n, q) array, optional
        An intercept is a constant column of it, or is called so.

    Raises
    ------
    DataError
        If weights were given of another length, negative, or all zero.

    Examples
    --------
    >>> column_weights(["Intercept", "x"], None)
    array([0., 1.])
    """
    if weights is None:
        is_slope = np.array([name.lower() not in _INTERCEPTS for name in names])
        if design is not None and design.shape[1] == len(names):
            is_slope &= np.ptp(design, axis=0) > 0
        return is_slope.astype(float) if is_slope.any() else np.ones(len(names))
    given = np.asarray(weights, dtype=np.float64)
    if given.shape != (len(names),) or not (given >= 0).all() or not given.any():
        raise DataError(
            f"`weights` of the bandwidth are {given.tolist()}; one nonnegative number "
            f"for each of {list(names)} was expected, not all zero."
        )
    return given


# ------------------------------------------------------------ Newey and West (1994)


def pilot_lags(
    kernel: KernelName,
    n_times: int,
    *,
    is_prewhitened: bool = False,
    rounding: Rounding = "floor",
) -> int:
    r"""Return the number of autocovariances in Newey and West's pilot estimates.

    .. math:: \lfloor c\, (T / 100)^{r} \rfloor, \qquad
        r = \tfrac29, \tfrac4{25}, \tfrac2{25}

    for the Bartlett, Parzen and quadratic spectral kernels, c = 3 after
    prewhitening and 4 without.

    Raises
    ------
    ValueError
        For a kernel without a published rule.

    References
    ----------
    Newey and West (1994), Rev. Econ. Stud. 61, Tables I and II.

    Examples
    --------
    >>> pilot_lags("bartlett", 400), pilot_lags("bartlett", 400, is_prewhitened=True)
    (5, 4)
    """
    rate = _newey_west_constants(kernel)[2]
    size = (3 if is_prewhitened else 4) * (n_times / 100) ** rate
    count = np.ceil(size) if rounding == "ceil" else np.floor(size * (1 + 1e-12))
    return min(int(count), n_times - 1)


def _newey_west_constants(kernel: KernelName) -> tuple[int, float, float]:
    name = canonical_kernel(kernel)
    if name not in _NEWEY_WEST:
        raise ValueError(
            f"the Newey-West (1994) bandwidth is not defined for the {name} kernel, "
            f"only for {sorted(_NEWEY_WEST)}; use bandwidth='andrews' or a number."
        )
    return _NEWEY_WEST[name]


def newey_west_bandwidth(
    psi: Matrix,
    kernel: KernelName,
    weights: Vector,
    *,
    n_times: int | None = None,
    pilot: int | None = None,
) -> float:
    r"""Return the automatic bandwidth of Newey and West, a real number.

    .. math::
        \gamma = c \Big[ \Big(\frac{s^{(q)}}{s^{(0)}}\Big)^2 T \Big]^{1/(2q+1)},
        \quad s^{(q)} = 2 \sum_{j=1}^{m} j^q \sigma_j,
        \quad s^{(0)} = \sigma_0 + 2 \sum_{j=1}^{m} \sigma_j,

    with :math:`\sigma_j` the autocovariances of the weighted sum of the columns.

    Parameters
    ----------
    psi : (t, q) array
        In time order, prewhitened or not.
    kernel : {"bartlett", "parzen", "quadratic-spectral"}
    weights : (q,) array
        Weight of each column, see `column_weights`.
    n_times : int, optional
        T, the length before prewhitening.
    pilot : int, optional
        m; `pilot_lags` by default.

    Raises
    ------
    ValueError
        For a kernel without a published rule.
    InferenceError
        If the pilot estimate of the spectrum at zero vanishes.

    References
    ----------
    Newey and West (1994), Rev. Econ. Stud. 61, 631-653, Table II.
    """
    exponent, constant, _ = _newey_west_constants(kernel)
    size = len(psi) if n_times is None else n_times
    count = pilot_lags(kernel, size) if pilot is None else pilot
    series = psi @ weights
    sigma = np.array([series[j:] @ series[: len(series) - j] for j in range(count + 1)])
    powers = np.arange(count + 1.0) ** exponent
    flat = sigma[0] + 2 * sigma[1:].sum()
    slope = 2 * (powers[1:] * sigma[1:]).sum()
    if not abs(flat) > 1e-14 * sigma[0]:
        raise InferenceError(
            "the Newey-West bandwidth divides by a pilot estimate of the long-run "
            "variance of psi that is zero here; give `bandwidth` or `lags` as a number."
        )
    rate = 1.0 / (2 * exponent + 1)
    return float(constant * ((slope / flat) ** 2 * size) ** rate)


# ------------------------------------------------------------------- Andrews (1991)


def andrews_bandwidth(
    psi: Matrix,
    kernel: KernelName,
    weights: Vector,
    approximation: Approximation = "AR(1)",
) -> float:
    r"""Return the plug-in bandwidth of Andrews, a real number.

    .. math::
        1.1447\, (\alpha_1 T)^{1/3} \ \text{(Bartlett)}, \qquad
        c\, (\alpha_2 T)^{1/5} \ \text{(others)},

    .. math::
        \alpha_2 = \frac{\sum_a w_a\, 4 (1+\rho\psi)^2 (\rho+\psi)^2 \sigma^4
        / (1-\rho)^8}{\sum_a w_a\, (1+\psi)^4 \sigma^4 / (1-\rho)^4},

    with :math:`(1-\rho)^6 (1+\rho)^2` in place of :math:`(1-\rho)^8` in
    :math:`\alpha_1`; each column a is approximated by an autoregression with an
    intercept (least squares, :math:`\psi = 0`) or by an ARMA(1,1) of mean zero
    (maximum likelihood).

    Parameters
    ----------
    psi : (T, q) array
        In time order, prewhitened or not; T is its length.
    kernel : str
    weights : (q,) array
        Weight of each column, see `column_weights`.
    approximation : {"AR(1)", "ARMA(1,1)"}

    Raises
    ------
    DataError
        If the series is too short.
    InferenceError
        If a column has a unit root, so that no bandwidth is optimal.

    References
    ----------
    Andrews (1991), Econometrica 59, eqs. 5.3, 6.2, 6.4 and 6.6.
    """
    if approximation not in ("AR(1)", "ARMA(1,1)"):
        raise ValueError(
            f"`approximation` is {approximation!r}; choose 'AR(1)' or 'ARMA(1,1)'."
        )
    if len(psi) < 4:
        raise DataError(
            f"an autoregression on {len(psi)} time points has no Andrews bandwidth; "
            "give `bandwidth` or `lags` as a number."
        )
    fit = _ar1 if approximation == "AR(1)" else arma11
    used = np.flatnonzero((weights > 0) & (np.ptp(psi, axis=0) > 0))
    if not len(used):
        raise InferenceError(
            "every weighted column of psi is constant over time, so no bandwidth can "
            "be estimated; give `bandwidth` or `lags` as a number."
        )
    rho, moving, variance = np.array([fit(psi[:, a]) for a in used]).T
    if (np.abs(1 - rho) < 1e-8).any():
        raise InferenceError(
            "a column of psi has a unit root, so its long-run variance is infinite; "
            "difference the series, or give `bandwidth` or `lags` as a number."
        )
    return _plug_in(kernel, len(psi), weights[used], rho, moving, variance)


def _plug_in(
    kernel: KernelName,
    n_times: int,
    weights: Vector,
    rho: Vector,
    moving: Vector,
    variance: Vector,
) -> float:
    exponent, constant = _ANDREWS[canonical_kernel(kernel)]
    scaled = weights * (variance / variance.max()) ** 2
    level = (scaled * ((1 + moving) / (1 - rho)) ** 4).sum()
    if not level > 0:
        raise InferenceError(
            "the ARMA(1,1) approximation has no spectrum at frequency zero (psi "
            "looks over-differenced); use the AR(1) approximation or a number."
        )
    slope = 4 * scaled * ((1 + rho * moving) * (rho + moving)) ** 2
    if exponent == 1:
        curvature = (slope / ((1 - rho) ** 6 * (1 + rho) ** 2)).sum() / level
    else:
        curvature = (slope / (1 - rho) ** 8).sum() / level
    return float(constant * (curvature * n_times) ** (1.0 / (2 * exponent + 1)))


def _ar1(series: Vector) -> tuple[float, float, float]:
    """Return slope, 0 and residual sum of squares of a regression on the past."""
    past, now = series[:-1] - series[:-1].mean(), series[1:] - series[1:].mean()
    rho = float(past @ now / (past @ past)) if past.any() else 0.0
    return rho, 0.0, float(((now - rho * past) ** 2).sum())


def arma11(series: Vector) -> tuple[float, float, float]:
    r"""Return the exact Gaussian maximum-likelihood ARMA(1,1) of mean zero.

    .. math:: x_t = \rho x_{t-1} + e_t + \psi e_{t-1}, \quad
        e_t \sim (0, \sigma^2).

    Returns
    -------
    rho, psi, variance : float
        Stationary; psi in [-1, 1].

    Raises
    ------
    ConvergenceError
        If no interior maximum is found.

    References
    ----------
    Brockwell and Davis (1991), Time Series: Theory and Methods, eqs. 5.3.13, 8.7.4.
    """
    size = float(np.mean(series**2))
    x = series / np.sqrt(size)

    def objective(free: Vector) -> float:
        return _arma_deviance(x, *_inside(free))[0]

    starts = np.array([[0.1, 0.0], [0.8, -0.4], [-0.5, 0.3], [0.3, 0.8]])
    fits = [
        optimize.minimize(
            objective,
            start,
            method="Nelder-Mead",
            options={"xatol": 1e-9, "fatol": 1e-14, "maxiter": 4000, "maxfev": 4000},
        )
        for start in starts
    ]
    best = min(fits, key=lambda result: float(result.fun))
    rho, moving = _inside(best.x)
    if not best.success or abs(rho) > 1 - _EDGE:
        raise ConvergenceError(
            f"the ARMA(1,1) approximation of a column of psi ended at rho={rho:.6g}, "
            f"psi={moving:.6g}, on the edge of stationarity; use the AR(1) "
            "approximation or a number for `bandwidth`."
        )
    return rho, moving, _arma_deviance(x, rho, moving)[1] * size


def _inside(free: Vector) -> tuple[float, float]:
    """Map the plane to stationary rho; psi may reach -1, a differenced series."""
    rho, moving = np.tanh(free)
    if abs(moving) > 1 - _EDGE:
        moving = np.sign(moving)
    return float(np.clip(rho, -1 + 1e-12, 1 - 1e-12)), float(moving)


def _arma_deviance(x: Vector, rho: float, moving: float) -> tuple[float, float]:
    """Return the concentrated deviance over n, and the innovation variance."""
    n = len(x)
    ratio = (1 + 2 * rho * moving + moving**2) / (1 - rho**2)
    error, squares, logs = float(x[0]), 0.0, 0.0
    t = 0
    while True:
        squares += error**2 / ratio
        logs += float(np.log(ratio))
        if t == n - 1:
            break
        gain = moving / ratio
        ratio = 1 + moving**2 - moving * gain
        error = float(x[t + 1]) - rho * float(x[t]) - gain * error
        t += 1
        if abs(ratio - 1) < _SETTLED:  # from here on a filter with constant gain
            rest = x[t + 1 :] - rho * x[t:-1]
            errors = _recursion(rest, -moving, -moving * error)
            squares += error**2 + float(errors @ errors)
            break
    variance = squares / n
    return float(np.log(variance) + logs / n), variance


def _recursion(rest: Vector, slope: float, first: float) -> Vector:
    """Return e with e_s = slope e_(s-1) + rest_s, ``first`` added to rest_0."""
    if not len(rest):
        return rest
    right = rest.copy()
    right[0] += first
    bands = np.vstack([np.ones(len(rest)), np.full(len(rest), -slope)])
    solution: Vector = linalg.solve_banded((1, 0), bands, right)
    return solution
