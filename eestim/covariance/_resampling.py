r"""Resampling on arrays: seeds, random weights, and draws through influence functions.

Every replicate has its own child of one seed sequence, so what is drawn depends on
the seed and on the number of the replicate alone, never on how replicates are shared
among workers or batches.
"""

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from scipy import linalg

from eestim._arrays import Matrix, Vector
from eestim.errors import InferenceError

__all__ = [
    "MultiplierLaw",
    "batches",
    "block_counts",
    "draw_matrix",
    "draw_quantiles",
    "influence_draws",
    "multiplier_weights",
    "residual_draws",
    "restricted_root",
    "seed_of",
    "spawned",
    "stationary_counts",
    "unit_weights",
]

MultiplierLaw: TypeAlias = Literal["rademacher", "mammen", "webb", "normal"]
Seeds: TypeAlias = Sequence[np.random.SeedSequence]

_BATCH_ENTRIES = 1 << 21  # of the (draws, units) weights held at a time
_GOLDEN = (1.0 + 5.0**0.5) / 2.0
_WEBB: Vector = np.sqrt(np.array([0.5, 1.0, 1.5]))


# -------------------------------------------------------------------------- seeds


def seed_of(rng: int | np.random.Generator, argument: str = "rng") -> int:
    """Return a seed that can be recorded: the integer, or one drawn from a generator.

    Examples
    --------
    >>> seed_of(123)
    123

    Raises
    ------
    TypeError
        If it is neither.
    ValueError
        If it is negative.
    """
    if isinstance(rng, np.random.Generator):
        return int(rng.integers(2**63))
    if isinstance(rng, bool | np.bool_) or not isinstance(rng, int | np.integer):
        raise TypeError(
            f"`{argument}` must be a seed (a whole number) or a numpy Generator; got "
            f"{type(rng).__name__}."
        )
    if rng < 0:
        raise ValueError(f"`{argument}` must not be negative; got {rng}.")
    return int(rng)


def spawned(seed: int, draws: int) -> list[np.random.SeedSequence]:
    """Return one independent seed for each replicate, the same whatever follows."""
    return np.random.SeedSequence(seed).spawn(draws)


# ------------------------------------------------------------------------- weights


def multiplier_weights(
    rng: np.random.Generator, size: int, law: MultiplierLaw
) -> Vector:
    r"""Return independent multipliers of mean zero and variance one, (size,).

    "rademacher" is :math:`\pm 1`; "mammen" has two points and third moment one;
    "webb" has the six points :math:`\pm\sqrt{1/2}, \pm 1, \pm\sqrt{3/2}`, for few
    clusters; "normal" is the standard normal.

    References
    ----------
    Mammen (1993), Ann. Statist. 21, 255-285; Webb (2023), Can. J. Econ. 56, 839-858.

    Examples
    --------
    >>> np.unique(multiplier_weights(np.random.default_rng(1), 50, "webb")).round(4)
    array([-1.2247, -1.    , -0.7071,  0.7071,  1.    ,  1.2247])
    """
    if law == "normal":
        return rng.standard_normal(size)
    if law == "mammen":
        low = rng.random(size) < _GOLDEN / 5.0**0.5
        return np.where(low, 1.0 - _GOLDEN, _GOLDEN)
    sign = np.where(rng.random(size) < 0.5, -1.0, 1.0)
    return sign * _WEBB[rng.integers(0, 3, size)] if law == "webb" else sign


def block_counts(rng: np.random.Generator, n: int, length: int) -> Vector:
    """Return how often each of n ordered rows is drawn in moving blocks, (n,).

    Blocks of ``length`` rows start anywhere in 0 .. n - length; the last is cut so
    that n rows are drawn.

    References
    ----------
    Künsch (1989), Ann. Statist. 17, 1217-1241.

    Examples
    --------
    >>> block_counts(np.random.default_rng(1), 6, 6)
    array([1., 1., 1., 1., 1., 1.])
    """
    starts = rng.integers(0, n - length + 1, -(-n // length))
    rows = (starts[:, None] + np.arange(length)).ravel()[:n]
    return np.bincount(rows, minlength=n).astype(np.float64)


def stationary_counts(rng: np.random.Generator, n: int, length: float) -> Vector:
    """Return how often each row is drawn in blocks of geometric length, (n,).

    A block goes on with probability 1 - 1 / length and wraps around the end.

    References
    ----------
    Politis and Romano (1994), J. Am. Stat. Assoc. 89, 1303-1313.
    """
    begins = rng.random(n) < 1.0 / length
    begins[0] = True
    starts = rng.integers(0, n, n)
    first = np.maximum.accumulate(np.where(begins, np.arange(n), 0))
    rows = (starts[first] + np.arange(n) - first) % n
    return np.bincount(rows, minlength=n).astype(np.float64)


def unit_weights(
    rng: np.random.Generator, n: int, kind: str, length: float = 1.0
) -> Vector:
    """Return the weights of n units, clusters or times in one replicate, of mean one.

    Parameters
    ----------
    kind : {"pairs", "fractional", "moving", "stationary"}
        Multinomial counts; Dirichlet(1, ..., 1) weights times n; counts of moving
        blocks; counts of the stationary bootstrap.
    length : float
        Length of the blocks, the mean length for "stationary".

    References
    ----------
    Efron (1979), Ann. Statist. 7, 1-26; Xu, Gotwalt, Hong, King and Meeker (2020),
    Am. Stat. 74, 345-358, for the fractional weights.

    Examples
    --------
    >>> rng = np.random.default_rng(1)
    >>> [float(unit_weights(rng, 5, kind).sum().round(9))
    ...  for kind in ("pairs", "fractional")]
    [5.0, 5.0]
    """
    if kind == "pairs":
        drawn = rng.integers(0, n, n)
        return np.bincount(drawn, minlength=n).astype(np.float64)
    if kind == "fractional":
        gaps: Vector = rng.standard_exponential(n)
        gaps *= n / gaps.sum()
        return gaps
    if kind == "moving":
        return block_counts(rng, n, int(length))
    return stationary_counts(rng, n, length)


def draw_matrix(seeds: Seeds, size: int, law: MultiplierLaw) -> Matrix:
    """Return the multipliers of several replicates, one a row, (draws, size)."""
    rows = [multiplier_weights(np.random.default_rng(s), size, law) for s in seeds]
    return np.stack(rows)


def batches(seeds: Seeds, size: int) -> list[Seeds]:
    """Return the seeds in batches whose bounds depend on the sizes alone."""
    length = max(1, _BATCH_ENTRIES // max(size, 1))
    return [seeds[first : first + length] for first in range(0, len(seeds), length)]


# --------------------------------------------------------------------------- draws


def influence_draws(influence: Matrix, law: MultiplierLaw, seeds: Seeds) -> Matrix:
    r"""Return :math:`\sum_g v_g \phi_g` for each replicate, (draws, p).

    Parameters
    ----------
    influence : (m, p) array
        :math:`\phi_g`, influences divided by n and summed within clusters, so that
        the covariance of the draws is :math:`\sum_g \phi_g \phi_g^\top`.
    law : str
        Of the multipliers v.
    seeds : sequence of SeedSequence
        One a replicate.

    References
    ----------
    Kline and Santos (2012), J. Econom. Methods 1, 23-41, eq. 7.

    Examples
    --------
    >>> phi = np.array([[1.0], [0.0]])
    >>> np.abs(influence_draws(phi, "rademacher", spawned(1, 3))).ravel()
    array([1., 1., 1.])
    """
    parts = [
        draw_matrix(batch, len(influence), law) @ influence
        for batch in batches(seeds, len(influence))
    ]
    return np.concatenate(parts)


def residual_draws(
    design: Matrix, weight: Vector, residual: Vector, seeds: Seeds
) -> Matrix:
    r"""Return the moves of a weighted regression under resampled residuals.

    .. math::
        \delta^* = (X^\top W X)^{-1} \sum_i x_i \sqrt{W_i}\, z^*_i, \qquad
        z_i = r_i / \sqrt{W_i},

    with :math:`z^*` drawn from the z, centred and scaled by
    :math:`\sqrt{n / (n - p)}`, so that the mean of the replicated covariances is
    :math:`\hat\phi (X^\top W X)^{-1}`. Exact for a linear model, one scoring step for
    a GLM.

    Parameters
    ----------
    design : (n, p) array
    weight : (n,) array
        W, nonnegative; rows of weight zero take no part.
    residual : (n,) array
        Score residuals r, ``psi_i = x_i r_i``.
    seeds : sequence of SeedSequence

    References
    ----------
    Freedman (1981), Ann. Statist. 9, 1218-1228; Davison and Hinkley (1997),
    Bootstrap Methods and their Application, sections 6.2.3 and 7.2.3.
    """
    used = weight > 0
    root = np.sqrt(weight[used])
    n, p = int(used.sum()), design.shape[1]
    if n <= p:
        raise InferenceError(
            f"the residual bootstrap divides by n - p = {n} - {p}; more rows than "
            "parameters are needed."
        )
    standard = residual[used] / root
    standard = (standard - standard.mean()) * np.sqrt(n / (n - p))
    scaled = design[used] * root[:, None]
    basis, triangle = np.linalg.qr(scaled)
    effect = linalg.solve_triangular(triangle, basis.T).T  # scaled @ inv(X'WX)
    parts = []
    for batch in batches(seeds, n):
        drawn = [standard[np.random.default_rng(s).integers(0, n, n)] for s in batch]
        parts.append(np.stack(drawn) @ effect)
    return np.concatenate(parts)


def restricted_root(theta: Vector, information: Matrix, R: Matrix, r: Vector) -> Vector:
    r"""Return the root of a linear symmetric equation under :math:`R\theta = r`.

    .. math:: \tilde\theta = \hat\theta - H^{-1} R^\top (R H^{-1} R^\top)^{-1}
        (R \hat\theta - r), \qquad H = X^\top W X .

    Parameters
    ----------
    theta : (p,) array
        The unrestricted root.
    information : (p, p) array
        H, up to a factor.
    R, r : (m, p) and (m,) arrays
        Independent restrictions.

    Examples
    --------
    >>> restricted_root(np.array([1.0, 2.0]), np.eye(2), np.eye(2)[1:], np.zeros(1))
    array([1., 0.])
    """
    spread = linalg.solve(information, R.T, assume_a="sym")
    moved: Vector = theta - spread @ np.linalg.solve(R @ spread, R @ theta - r)
    return moved


# ----------------------------------------------------------------------- quantiles


def draw_quantiles(draws: Matrix, levels: Any) -> Matrix:
    r"""Return quantiles of each column at ``levels``, (k, p) or (k,).

    The order statistic number :math:`(R + 1) \alpha`, interpolated, so that an
    interval of R exchangeable draws has exactly its level.

    Raises
    ------
    InferenceError
        If a level lies beyond the outermost draw.

    References
    ----------
    Davison and Hinkley (1997), Bootstrap Methods and their Application, eq. 2.10.

    Examples
    --------
    >>> draw_quantiles(np.arange(1.0, 100.0), [0.05, 0.95])
    array([ 5., 95.])
    """
    wanted = np.atleast_1d(np.asarray(levels, dtype=np.float64))
    outermost = float(np.minimum(wanted, 1.0 - wanted).min())
    if (len(draws) + 1) * outermost < 1.0 - 1e-9:
        needed = int(np.ceil(1.0 / max(outermost, 1e-12))) - 1
        raise InferenceError(
            f"the quantile at {outermost:.2g} lies beyond the outermost of "
            f"{len(draws)} draws; at least {needed} `draws` are needed, or another "
            "kind of interval."
        )
    result: Matrix = np.quantile(draws, wanted, axis=0, method="weibull")
    return result
