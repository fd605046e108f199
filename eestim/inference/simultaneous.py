"""Simultaneous inference: max-t bands, Bonferroni, Holm and Romano-Wolf."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import pandas as pd
from scipy import special

from eestim._arrays import Matrix, Vector, as_float
from eestim.covariance.base import resolve_labels
from eestim.equations import sum_by_code
from eestim.errors import InferenceError
from eestim.inference._maximum import critical_value, exceedances, maximum_law

__all__ = [
    "AdjustmentMethod",
    "MaxT",
    "adjusted_p",
    "bonferroni",
    "correlation",
    "holm",
    "max_t",
    "max_t_p",
    "multiplier_statistics",
    "romano_wolf",
    "simultaneous_bounds",
    "simultaneous_quantiles",
]

AdjustmentMethod: TypeAlias = Literal["sup-t", "bonferroni", "holm", "romano-wolf"]
Multiplier: TypeAlias = Literal["rademacher", "normal", "mammen"]

_TOLERANCE = 5e-4  # of a critical value
_BLOCK_ENTRIES = 1 << 20  # multipliers drawn at a time


# ------------------------------------------------------------------------ max-t


@dataclass(frozen=True, slots=True)
class MaxT:
    r"""The critical value of the largest absolute statistic.

    Attributes
    ----------
    critical : float
        c with :math:`P(\max_j |T_j| \le c)` = level.
    level : float
    dof : float
        Infinite for the multivariate normal law.
    k, rank : int
        Number of statistics, and rank of their correlation.
    error : float
        Standard error of `critical` from the quadrature.
    """

    critical: float
    level: float
    dof: float
    k: int
    rank: int
    error: float


def correlation(covariance: Matrix) -> Matrix:
    """Return the correlation matrix of a covariance.

    Raises
    ------
    InferenceError
        If a variance is not positive.

    Examples
    --------
    >>> correlation(np.array([[4.0, 1.0], [1.0, 1.0]]))
    array([[1. , 0.5], [0.5, 1. ]])
    """
    variance = np.diag(covariance)
    bad = np.flatnonzero(~(variance > 0.0))
    if len(bad):
        raise InferenceError(
            f"parameter {bad[0]} has the variance {variance[bad[0]]:.3g}; simultaneous "
            "intervals need positive ones. Leave it out, or see `repair_psd=True`."
        )
    scale = np.sqrt(variance)
    standard: Matrix = covariance / np.outer(scale, scale)
    np.fill_diagonal(standard, 1.0)
    return np.clip((standard + standard.T) / 2.0, -1.0, 1.0)


def max_t(
    correlation: Matrix,
    level: float = 0.95,
    dof: float = np.inf,
    tolerance: float = _TOLERANCE,
) -> MaxT:
    r"""Return the two-sided critical value of correlated t or normal statistics.

    .. math:: P(\max_j |T_j| \le c) = \text{level}, \quad T \sim t_{dof}(0, R).

    Intervals ``estimate -+ c se`` then cover all parameters at once; c lies between
    the pointwise and the Bonferroni quantile. The quadrature is deterministic: a
    second call gives the same digits.

    Parameters
    ----------
    correlation : (k, k) array
        May be singular (more contrasts than parameters).
    level : float
    dof : float
    tolerance : float
        Wanted standard error of c; points are added until it is reached, within a
        budget of some tenths of a second.

    References
    ----------
    Genz and Bretz (2009), Computation of Multivariate Normal and t Probabilities,
    chapters 4 and 6; Hothorn, Bretz and Westfall (2008), Biom. J. 50, 346-363.

    Examples
    --------
    Independent statistics: c is the (1 + 0.95^(1/3)) / 2 quantile.

    >>> round(max_t(np.eye(3)).critical, 4)
    2.3877
    """
    _check_level(level)
    if not dof > 0:
        raise ValueError(f"`dof` must be positive; got {dof!r}.")
    law = maximum_law(correlation, dof)
    critical, error = critical_value(law, level, tolerance)
    return MaxT(critical, level, float(dof), law.k, law.rank, error)


def max_t_p(statistics: Vector, correlation: Matrix, dof: float = np.inf) -> Vector:
    r"""Return single-step adjusted p values, :math:`P(\max_l |T_l| \ge |t_j|)`.

    Parameters
    ----------
    statistics : (k,) array
    correlation : (k, k) array
    dof : float

    References
    ----------
    Westfall and Young (1993), Resampling-Based Multiple Testing, section 2.3.

    Examples
    --------
    >>> p = max_t_p(np.array([0.0, 2.0]), np.eye(2))
    >>> p.round(6)
    array([1.     , 0.08893])
    """
    law = maximum_law(correlation, dof)
    return exceedances(law, np.abs(np.asarray(statistics, dtype=np.float64)))


# ---------------------------------------------------------- Bonferroni and Holm


def bonferroni(p: Vector) -> Vector:
    """Return Bonferroni adjusted p values, ``min(1, k p)``.

    >>> bonferroni(np.array([0.01, 0.4, 0.03]))
    array([0.03, 1.  , 0.09])
    """
    return np.minimum(len(p) * np.asarray(p, dtype=np.float64), 1.0)


def holm(p: Vector) -> Vector:
    r"""Return Holm's step-down adjusted p values.

    .. math:: \tilde p_{(j)} = \max_{l \le j} \min\{1, (k - l + 1) p_{(l)}\} .

    References
    ----------
    Holm (1979), Scand. J. Statist. 6, 65-70.

    Examples
    --------
    >>> holm(np.array([0.01, 0.4, 0.03]))
    array([0.03, 0.4 , 0.06])
    """
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    stepped = (len(values) - np.arange(len(values))) * values[order]
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return adjusted


def _quantile(tail: Any, dof: Vector) -> Vector:
    """Return upper quantiles of t laws (normal where dof is infinite)."""
    with np.errstate(invalid="ignore"):
        student = -special.stdtrit(np.where(np.isinf(dof), 1.0, dof), tail)
    found: Vector = np.where(np.isinf(dof), -special.ndtri(tail), student)
    return found


def _two_sided(statistics: Vector, dof: Vector) -> Vector:
    size = -np.abs(statistics)
    finite = np.where(np.isinf(dof), 1.0, dof)
    p: Vector = 2.0 * np.where(
        np.isinf(dof), special.ndtr(size), special.stdtr(finite, size)
    )
    return p


# -------------------------------------------------------------------- intervals


def simultaneous_quantiles(
    theta: Vector,
    covariance: Matrix,
    dof: Any,
    level: float,
    kind: str,
) -> Vector:
    """Return the multiples of the standard errors of symmetric intervals, (k,).

    Parameters
    ----------
    theta : (k,) array
    covariance : (k, k) array
    dof : (k,) array or float
        "sup-t" uses the smallest, "bonferroni" each parameter's own.
    level : float
    kind : {"sup-t", "bonferroni"}
        Holm's intervals are not symmetric: see `simultaneous_bounds`.
    """
    _check_level(level)
    k = len(theta)
    every = np.broadcast_to(np.asarray(dof, dtype=np.float64), k)
    if kind == "sup-t":
        found = max_t(correlation(covariance), level, float(every.min()))
        return np.full(k, found.critical)
    if kind == "bonferroni":
        correlation(covariance)  # refuses variances that are not positive
        return _quantile((1.0 - level) / (2.0 * k), every)
    raise ValueError(
        f'`simultaneous` must be "sup-t" or "bonferroni" for symmetric intervals; got '
        f"{kind!r} (Holm's intervals come from `simultaneous_bounds`)."
    )


def simultaneous_bounds(
    theta: Vector,
    covariance: Matrix,
    dof: Any,
    level: float,
    kind: str,
) -> tuple[Vector, Vector]:
    r"""Return lower and upper bounds that cover all parameters at once.

    "holm" gives the confidence region that belongs to Holm's test of the 2k
    one-sided hypotheses :math:`\theta_j \le 0` and :math:`\theta_j \ge 0`: where r
    are rejected, each at its step :math:`\alpha / (2k - r + 1)`, the others have the
    bound of level :math:`\alpha / (2k - r)`, and a rejected one the bound 0. So
    intervals are shorter than Bonferroni's on every side but the one on which zero
    was excluded, where the decision is all that is claimed. (Shortening both sides
    step by step, as tables sometimes do, does not cover.)

    Parameters
    ----------
    theta, covariance, dof, level
        As in `simultaneous_quantiles`.
    kind : {"sup-t", "bonferroni", "holm"}

    References
    ----------
    Holm (1979); Guilbaud (2008), Biom. J. 50, 678-692; Strassburger and Bretz
    (2008), Stat. Med. 27, 4914-4927.

    Examples
    --------
    >>> bounds = simultaneous_bounds(
    ...     np.array([5.0, 0.0]), np.eye(2), np.inf, 0.95, "holm"
    ... )
    >>> [side.round(3).tolist() for side in bounds]
    [[0.0, -2.128], [7.128, 2.128]]
    """
    if kind != "holm":
        half = simultaneous_quantiles(theta, covariance, dof, level, kind)
        half = half * np.sqrt(np.diag(covariance))
        return theta - half, theta + half
    _check_level(level)
    correlation(covariance)  # refuses variances that are not positive
    k, errors = len(theta), np.sqrt(np.diag(covariance))
    every = np.broadcast_to(np.asarray(dof, dtype=np.float64), k)
    one_sided = np.sort(_two_sided(theta / errors, every) / 2.0)
    steps = (1.0 - level) / (2 * k - np.arange(k))
    passed = one_sided <= steps
    rejected = int(k if passed.all() else passed.argmin())
    half = _quantile((1.0 - level) / (2 * k - rejected), every) * errors
    is_rejected = np.zeros(k, dtype=bool)
    is_rejected[np.argsort(_two_sided(theta / errors, every))[:rejected]] = True
    lower = np.where(is_rejected & (theta > 0), 0.0, theta - half)
    upper = np.where(is_rejected & (theta < 0), 0.0, theta + half)
    return lower, upper


# ------------------------------------------------------------------- Romano-Wolf


def multiplier_statistics(
    influence: Matrix,
    draws: int,
    rng: np.random.Generator,
    multiplier: Multiplier = "rademacher",
) -> Matrix:
    r"""Return draws of studentised statistics under the null, (draws, k).

    .. math::
        t^*_{bj} = \frac{\sum_i \xi_{bi} \phi_{ij}}
        {\{\sum_i (\xi_{bi} \phi_{ij} - \overline{\xi_b \phi_j})^2\}^{1/2}}

    with independent multipliers of mean 0 and variance 1: one pass over the
    influence values, no refitting. Each draw is studentised by its own variance.

    Parameters
    ----------
    influence : (n, k) array
        Influence of each independent unit (sums within clusters, if there are).
    draws : int
    rng : numpy.random.Generator
    multiplier : {"rademacher", "normal", "mammen"}

    References
    ----------
    Chernozhukov, Chetverikov and Kato (2013), Ann. Statist. 41, 2786-2819.
    """
    n, k = influence.shape
    statistics = np.empty((draws, k))
    size = max(1, _BLOCK_ENTRIES // n)
    squares = influence**2
    for start in range(0, draws, size):
        rows = slice(start, min(start + size, draws))
        drawn = _multipliers(rng, (rows.stop - start, n), multiplier)
        total = drawn @ influence
        spread = (drawn**2) @ squares - total**2 / n
        statistics[rows] = total / np.sqrt(np.maximum(spread, 1e-300))
    return statistics


def _multipliers(
    rng: np.random.Generator, shape: tuple[int, int], kind: Multiplier
) -> Matrix:
    if kind == "normal":
        return rng.standard_normal(shape)
    uniform = rng.random(shape)
    if kind == "rademacher":
        return np.where(uniform < 0.5, -1.0, 1.0)
    root = np.sqrt(5.0)
    is_low = uniform < (root + 1.0) / (2.0 * root)
    drawn: Matrix = np.where(is_low, (1.0 - root) / 2.0, (1.0 + root) / 2.0)
    return drawn


def romano_wolf(statistics: Vector, draws: Matrix) -> Vector:
    r"""Return Romano and Wolf's step-down adjusted p values.

    .. math::
        \tilde p_{(j)} = \max_{l \le j}
        \frac{1 + \#\{b : \max_{m \ge l} |t^*_{b(m)}| \ge |t_{(l)}|\}}{B + 1}

    for statistics in decreasing order of size.

    Parameters
    ----------
    statistics : (k,) array
    draws : (B, k) array
        Statistics under the null, as from `multiplier_statistics` or centred
        bootstrap draws divided by their standard errors.

    References
    ----------
    Romano and Wolf (2005), Econometrica 73, 1237-1282; (2016), Stat. Probab. Lett.
    113, 38-40, algorithm 4.2.

    Examples
    --------
    >>> draws = np.array([[0.5, 2.5], [1.0, 0.1], [3.5, 0.2]])
    >>> romano_wolf(np.array([3.0, 1.0]), draws)
    array([0.5, 0.5])
    """
    size = np.abs(np.asarray(statistics, dtype=np.float64))
    if draws.ndim != 2 or draws.shape[1] != len(size):
        raise ValueError(
            f"`draws` has shape {draws.shape}; (B, {len(size)}) was expected, one "
            "column a statistic."
        )
    order = np.argsort(-size, kind="stable")
    sorted_draws = np.abs(draws[:, order])
    largest = np.maximum.accumulate(sorted_draws[:, ::-1], axis=1)[:, ::-1]
    count = (largest >= size[order]).sum(axis=0)
    adjusted = np.empty_like(size)
    adjusted[order] = np.maximum.accumulate((1.0 + count) / (len(draws) + 1.0))
    return adjusted


def adjusted_p(
    estimate: Any,
    method: AdjustmentMethod = "sup-t",
    *,
    null: Any = 0.0,
    subset: Sequence[str] | None = None,
    labels: Any = None,
    draws: int = 9999,
    rng: np.random.Generator | int = 0,
    multiplier: Multiplier = "rademacher",
) -> "pd.Series[float]":
    """Return p values of all parameters, adjusted for testing them together.

    Parameters
    ----------
    estimate : Estimate
    method : {"sup-t", "bonferroni", "holm", "romano-wolf"}
        "romano-wolf" draws multipliers of the influence of independent units and
        steps down; the others use the law of the covariance rule.
    null : float or (k,) array
        Values tested.
    subset : sequence of str, optional
        Parameters to test; all by default.
    labels : str or (n,) array, optional
        "romano-wolf": clusters within which influence is summed.
    draws, rng, multiplier
        "romano-wolf": number of draws, generator or seed, law of the multipliers.

    Raises
    ------
    InferenceError
        If a standard error is zero.
    """
    if method not in get_args(AdjustmentMethod):
        raise ValueError(
            f"`method` must be one of {', '.join(get_args(AdjustmentMethod))}; got "
            f"{method!r}."
        )
    chosen = _positions(estimate.names, subset)
    covariance = estimate.spread.matrix[np.ix_(chosen, chosen)]
    standard = correlation(covariance)
    tested = np.broadcast_to(as_float(null, "null"), len(chosen))
    errors = np.sqrt(np.diag(covariance))
    statistics = (estimate.theta[chosen] - tested) / errors
    dof = np.broadcast_to(estimate.spread.dof, len(estimate.names))[chosen]
    if method == "sup-t":
        values = max_t_p(statistics, standard, float(dof.min()))
    elif method == "romano-wolf":
        influence = _unit_influence(estimate, chosen, labels)
        drawn = multiplier_statistics(
            influence, draws, np.random.default_rng(rng), multiplier
        )
        values = romano_wolf(statistics, drawn)
    else:
        adjust = holm if method == "holm" else bonferroni
        values = adjust(_two_sided(statistics, dof))
    index = [estimate.names[j] for j in chosen]
    return pd.Series(values, index=index, name=f"p ({method})")


def _positions(names: Sequence[str], subset: Sequence[str] | None) -> list[int]:
    if subset is None:
        return list(range(len(names)))
    unknown = [name for name in subset if name not in names]
    if unknown or not subset:
        raise ValueError(
            f"`subset` names {unknown or 'nothing'}; parameters are {list(names)}."
        )
    return [list(names).index(name) for name in subset]


def _unit_influence(estimate: Any, chosen: Sequence[int], labels: Any) -> Matrix:
    if labels is None and estimate.spread.n_clusters:
        raise InferenceError(
            "the covariance is clustered, so the multipliers must be too: pass "
            "`labels=`, one way of clustering."
        )
    influence: Matrix = estimate.influence().to_numpy()[:, chosen]
    if labels is not None:
        codes, groups = resolve_labels(
            estimate.equation, labels, "labels", len(influence)
        )
        influence = sum_by_code(influence, codes, groups)
    if not influence.any(axis=0).all():
        raise InferenceError(
            "a parameter has no influence values, so multipliers cannot move it; leave "
            "it out with `subset`."
        )
    return influence


def _check_level(level: float) -> None:
    if not 0.0 < level < 1.0:
        raise ValueError(f"`level` must lie between 0 and 1; got {level!r}.")
