r"""The law of the largest absolute value of correlated normal or t statistics.

``P(max_j |T_j| > c)`` for ``T`` multivariate normal, or t with common degrees of
freedom. Two quadratures are compared on few points, and the more accurate one is
carried on:

- sequential conditioning (Genz, 1992): coordinate after coordinate is drawn inside
  its bounds given the others, which leaves a smooth integrand on the unit cube; where
  one eigenvalue dominates, given a common factor along it, which is drawn first;
- spherical-radial: directions on the sphere are sampled, and the radius is
  integrated out in closed form; a singular correlation matrix does not hurt it.

Points are a Gauss-Legendre grid in few dimensions and otherwise eight shifted copies
of a Sobol sequence, whose spread is the standard error. The shifts are fixed, so that
results are reproducible without a seed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
from scipy import special
from scipy.interpolate import PchipInterpolator
from scipy.stats import qmc

from eestim._arrays import Matrix, Vector
from eestim.errors import InferenceError

__all__ = ["MaximumLaw", "critical_value", "exceedances", "marginal", "maximum_law"]

# c -> probability that the largest exceeds c, and its standard error
_Exceedance: TypeAlias = Callable[[float], tuple[float, float]]
_Rule: TypeAlias = Callable[[int], _Exceedance]  # number of points a shift -> rule

_SHIFTS = 8
_GRID = {0: 1, 1: 128, 2: 64, 3: 32}  # nodes a dimension
_FIRST = 256  # Sobol points a shift
_LEVELS = (1024, 4096, 16384, 65536)
_BUDGET = 340_000  # points a shift times rank
_BLOCK = 1024  # points held at a time
_NODES = 12  # of the interpolant of many probabilities
_P_SIZES = (4096, 1024, 512)  # Sobol points a shift, for each probability
_P_BUDGET = 1 << 15
_NULL = 1e-9  # a conditional variance that is rounding
_INDEFINITE = -1e-7
_DOMINANT = 0.15  # share of the largest eigenvalue above the next: a common factor
_STEP_SHARE = 0.05  # of a Newton step that its slope may get wrong
_ALMOST_ONE = 1.0 - 1e-16


@dataclass(frozen=True, slots=True)
class _Ordering:
    """Coordinates in the order in which they are drawn.

    Attributes
    ----------
    triangle : (k, r) array
        Statistics as combinations of r independent normals; row echelon.
    last : tuple of r tuples of int
        The rows whose last non-zero column is 0, 1, ..., r - 1.
    """

    triangle: Matrix
    last: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class MaximumLaw:
    """A correlation matrix prepared for quadrature.

    Attributes
    ----------
    k : int
        Number of statistics.
    dof : float
        Infinite for the normal law.
    ordering : _Ordering
        For sequential conditioning.
    directions : (k, rank) array
        Rows a_j with ``T_j = radius * a_j' u`` for u uniform on the sphere.
    """

    k: int
    dof: float
    ordering: _Ordering
    directions: Matrix

    @property
    def rank(self) -> int:
        """Rank of the correlation matrix."""
        return int(self.directions.shape[1])


def maximum_law(correlation: Matrix, dof: float = np.inf) -> MaximumLaw:
    """Return the prepared law.

    Parameters
    ----------
    correlation : (k, k) array
        Ones on the diagonal; may be singular.
    dof : float

    Raises
    ------
    InferenceError
        If the matrix is indefinite.
    """
    values, vectors = np.linalg.eigh(correlation)
    values, vectors = values[::-1], vectors[:, ::-1]
    if values[-1] < _INDEFINITE:
        raise InferenceError(
            f"the correlation matrix has the eigenvalue {values[-1]:.2g}, so no random "
            "vector has it; repair the covariance (`repair_psd=True`) first."
        )
    rank = int((values > _NULL * len(values)).sum())
    factor = np.zeros((len(correlation), 0))
    has_grid = rank - 1 + bool(np.isfinite(dof)) in _GRID
    if not has_grid and values[0] - values[1] > _DOMINANT * len(values):
        factor = vectors[:, :1] * np.sqrt(values[0] - values[1])
    ordering = _ordering(correlation - factor @ factor.T, factor)
    directions = vectors[:, :rank] * np.sqrt(np.maximum(values[:rank], 0.0))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return MaximumLaw(len(correlation), float(dof), ordering, directions)


def _ordering(remainder: Matrix, factor: Matrix) -> _Ordering:
    """Return the factor followed by the Cholesky factor of the remainder.

    The coordinate with the largest conditional variance comes first, as it is the
    most likely one to leave its bounds.
    """
    k, n_factors = factor.shape
    order, left = np.arange(k), np.diag(remainder).copy()
    triangle = np.concatenate([factor, np.zeros((k, k))], axis=1)
    own = triangle[:, n_factors:]
    rank = k
    for i in range(k):
        j = i + int(np.argmax(left[i:]))
        if left[j] < _NULL:
            rank = i
            break
        for array in (order, left, triangle):
            array[[i, j]] = array[[j, i]]
        rest = slice(i + 1, None)
        own[i, i] = np.sqrt(left[i])
        column = remainder[order[rest], order[i]] - own[rest, :i] @ own[i, :i]
        own[rest, i] = column / own[i, i]
        left[rest] -= own[rest, i] ** 2
    triangle = triangle[:, : n_factors + rank]
    final = [int(np.flatnonzero(np.abs(row) > _NULL)[-1]) for row in triangle]
    last = tuple(
        tuple(j for j in range(k) if final[j] == i) for i in range(n_factors + rank)
    )
    return _Ordering(triangle, last)


def marginal(law: MaximumLaw, c: float) -> float:
    """Return the probability that one given statistic exceeds c."""
    if np.isinf(law.dof):
        return 2.0 * float(special.ndtr(-c))
    return 2.0 * float(special.stdtr(law.dof, -c))


def _marginal_quantile(law: MaximumLaw, tail: float) -> float:
    if np.isinf(law.dof):
        return -float(special.ndtri(tail / 2.0))
    return -float(special.stdtrit(law.dof, tail / 2.0))


# ------------------------------------------------------------------------- points


def _chunks(size: int) -> list[slice]:
    return [slice(start, start + _BLOCK) for start in range(0, size, _BLOCK)]


def _sobol(dimension: int, size: int) -> tuple[Matrix, Matrix]:
    points = qmc.Sobol(dimension, scramble=False).random(size)
    shifts = np.random.default_rng(20).random((_SHIFTS, dimension))
    return points, shifts


def _grid(dimension: int, nodes: int) -> tuple[Matrix, Vector]:
    """Return points and weights of a product rule on the unit cube.

    The substitution 3 t^2 - 2 t^3 draws nodes to the ends, where quantile functions
    are singular.
    """
    t, mass = np.polynomial.legendre.leggauss(nodes)
    t = (t + 1.0) / 2.0
    axis, mass = t**2 * (3.0 - 2.0 * t), 3.0 * t * (1.0 - t) * mass
    points, weights = np.zeros((1, 0)), np.ones(1)
    for _ in range(dimension):
        points = np.concatenate(
            [np.repeat(points, nodes, axis=0), np.tile(axis, len(points))[:, None]], 1
        )
        weights = np.outer(weights, mass).ravel()
    return points, weights


def _mean_and_error(means: Vector) -> tuple[float, float]:
    return float(means.mean()), float(means.std(ddof=1) / np.sqrt(len(means)))


# --------------------------------------------------------- sequential conditioning


def _sequential(law: MaximumLaw, size: int) -> _Exceedance:
    """Return the rule of sequential conditioning."""
    dimension = len(law.ordering.last) - 1 + bool(np.isfinite(law.dof))
    if dimension in _GRID:
        fine = _grid(dimension, _GRID[dimension])
        coarse = _grid(dimension, max(1, (3 * _GRID[dimension]) // 4))

        def on_grid(c: float) -> tuple[float, float]:
            value, rough = (_average(law, c, *rule) for rule in (fine, coarse))
            return value, abs(value - rough)

        return on_grid
    points, shifts = _sobol(dimension, size)
    equal = np.full(size, 1.0 / size)

    def on_shifts(c: float) -> tuple[float, float]:
        means = [_average(law, c, (points + shift) % 1.0, equal) for shift in shifts]
        return _mean_and_error(np.array(means))

    return on_shifts


def _average(law: MaximumLaw, c: float, points: Matrix, weights: Vector) -> float:
    return sum(
        float(weights[rows] @ _exceeds(law.dof, law.ordering, c, points[rows]))
        for rows in _chunks(len(points))
    )


def _exceeds(dof: float, ordering: _Ordering, c: float, points: Matrix) -> Vector:
    r"""Return conditional probabilities that some ``|T_j| > c``, one a point.

    .. math:: 1 - \prod_i (1 - q_i) = \sum_i q_i \prod_{l < i} (1 - q_l),

    q_i being the conditional probability that coordinate i leaves its bounds; the
    sum keeps the digits of small probabilities.

    References
    ----------
    Genz (1992), J. Comput. Graph. Stat. 1, 141-149; Genz and Kwong (2000), J. Stat.
    Comput. Simul. 68, 1-21, for singular matrices.
    """
    bound: Vector | float = c
    if np.isfinite(dof):
        bound = c * np.sqrt(special.chdtri(dof, points[:, 0]) / dof)
        points = points[:, 1:]
    rank = len(ordering.last)
    drawn = np.empty((rank, len(points)))
    inside, outside = np.ones(len(points)), np.zeros(len(points))
    for i, rows in enumerate(ordering.last):
        below, above = _bounds(ordering.triangle, rows, i, drawn, bound)
        low, high = special.ndtr(below), special.ndtr(-above)
        leaves = np.minimum(low + high, 1.0)
        outside += inside * leaves
        inside *= 1.0 - leaves
        if i < rank - 1:
            quantile = low + points[:, i] * (1.0 - leaves)
            drawn[i] = special.ndtri(np.clip(quantile, 1e-300, _ALMOST_ONE))
    return outside


def _bounds(
    triangle: Matrix, rows: Sequence[int], i: int, drawn: Matrix, bound: Vector | float
) -> tuple[Vector, Vector]:
    """Return the interval that coordinate i may take, given those before it."""
    below = np.full(drawn.shape[1], -np.inf)
    above = np.full(drawn.shape[1], np.inf)
    for j in rows:
        size = triangle[j, i]
        centre = (triangle[j, :i] / -size) @ drawn[:i]
        half = bound / abs(size)
        np.maximum(below, centre - half, out=below)
        np.minimum(above, centre + half, out=above)
    return below, above


# ---------------------------------------------------------------- spherical-radial


def _radial(law: MaximumLaw, size: int) -> _Exceedance:
    r"""Return the rule of directions, the radius integrated out.

    .. math:: P(\max_j |T_j| > c) = E_u\, S(c / \max_j |a_j^\top u|)

    with S the survival function of the radius: chi for normal statistics, the root
    of r F(r, dof) for t.

    References
    ----------
    Monahan and Genz (1997), J. Am. Stat. Assoc. 92, 664-674.
    """
    reach = _reach(law.directions, size)
    rank = law.rank

    def exceedance(c: float) -> tuple[float, float]:
        square = (c / reach) ** 2
        if np.isinf(law.dof):
            tails = special.chdtrc(rank, square)
        else:
            tails = special.fdtrc(rank, law.dof, square / rank)
        return _mean_and_error(tails.mean(axis=1))

    return exceedance


def _reach(directions: Matrix, size: int) -> Matrix:
    """Return ``max_j |a_j' u|`` for directions u, one row a shift."""
    rank = directions.shape[1]
    if rank == 1:
        return np.ones((_SHIFTS, 1))
    if rank == 2:
        angle = (np.arange(4096 * _SHIFTS).reshape(4096, _SHIFTS).T + 0.5) * np.pi
        angle = angle / angle.size
        units = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
        largest: Matrix = np.abs(units @ directions.T).max(axis=2)
        return largest
    points, shifts = _sobol(rank, size)
    reach = np.empty((_SHIFTS, size))
    for s, shift in enumerate(shifts):
        for rows in _chunks(size):
            uniform = np.clip((points[rows] + shift) % 1.0, 1e-300, _ALMOST_ONE)
            normal = special.ndtri(uniform)
            largest = np.abs(normal @ directions.T).max(axis=1)
            reach[s, rows] = largest / np.linalg.norm(normal, axis=1)
    return reach


def _best_rule(law: MaximumLaw, c: float) -> _Rule:
    """Return the rule with the smallest error at c, on few points."""
    sequential, radial = partial(_sequential, law), partial(_radial, law)
    # Directions beat coordinates where coordinates are bound by several statistics at
    # once; in full rank their error falls more slowly with the number of points.
    handicap = 4.0 if law.rank == law.k else 1.0
    is_better = handicap * radial(_FIRST)(c)[1] < sequential(_FIRST)(c)[1]
    return radial if is_better else sequential


# ----------------------------------------------------------------- what is asked for


def critical_value(
    law: MaximumLaw, level: float, tolerance: float
) -> tuple[float, float]:
    """Return c with ``P(max |T_j| <= c) = level``, and its standard error.

    The number of points grows until the error is below the tolerance or the budget
    is spent. Each set of points serves for Newton steps on the normal scale, on which
    the probability is nearly a straight line; they end where the noise begins.
    """
    tail = 1.0 - level
    lower = _marginal_quantile(law, tail)
    if law.rank == 1:
        return lower, 0.0
    upper = _marginal_quantile(law, tail / law.k)
    rule = _best_rule(law, upper)
    c, slope = _secant(rule(_FIRST), tail, lower, upper)
    goal, error = float(special.ndtri(tail)), np.inf
    budget = _BUDGET * (2 if law.rank < law.k else 1)  # directions are cheaper
    affordable = [size for size in _LEVELS if size * law.rank <= budget]
    for size in affordable or _LEVELS[:1]:
        exceedance = rule(size)
        for _ in range(4):
            value, spread = exceedance(c)
            height = float(special.ndtri(value))
            density = np.exp(-(height**2) / 2.0) / np.sqrt(2.0 * np.pi)
            noise = float(spread / density / abs(slope))
            moved = float(np.clip(c + (goal - height) / slope, lower, upper))
            error = max(noise, _STEP_SHARE * abs(moved - c))
            c = moved
            if error <= max(noise, tolerance):
                break
        if error <= tolerance:
            break
    return c, error


def _secant(
    exceedance: _Exceedance, tail: float, lower: float, upper: float
) -> tuple[float, float]:
    """Return the root of the exceedance less the tail, and its normal-scale slope."""

    def height(c: float) -> float:
        return float(special.ndtri(np.clip(exceedance(c)[0], 1e-300, _ALMOST_ONE)))

    goal = float(special.ndtri(tail))
    middle = (lower + upper) / 2.0
    points, heights = [middle, upper], [height(middle), height(upper)]
    slope = -1.0
    for _ in range(3):
        slope = (heights[-1] - heights[-2]) / (points[-1] - points[-2])
        step = (goal - heights[-1]) / slope
        if abs(step) < 1e-3:
            return points[-1] + step, slope
        points.append(float(np.clip(points[-1] + step, lower - 0.5, upper + 0.5)))
        heights.append(height(points[-1]))
    return points[-1], slope


def exceedances(law: MaximumLaw, bounds: Vector) -> Vector:
    """Return ``P(max |T_j| > c)`` for many c >= 0, (m,).

    More than a few values are interpolated on the normal scale, where they lie near
    a straight line; all lie between the marginal probability and k times it.
    """
    c = np.asarray(bounds, dtype=np.float64)
    single = np.array([marginal(law, value) for value in c])
    if law.rank == 1:
        return single
    distinct, where = np.unique(c, return_inverse=True)
    affordable = [size for size in _P_SIZES if size * law.rank <= _P_BUDGET]
    size = (affordable or _P_SIZES[-1:])[0]
    exceedance = _best_rule(law, float(np.median(distinct)))(size)
    nodes = distinct
    if len(distinct) > _NODES:
        nodes = np.linspace(distinct[0], distinct[-1], _NODES)
    found = np.array([exceedance(float(value))[0] for value in nodes])
    if len(distinct) > _NODES:
        heights = special.ndtri(np.clip(found, 1e-300, _ALMOST_ONE))
        found = special.ndtr(PchipInterpolator(nodes, heights)(distinct))
    bounded: Vector = np.clip(found[where], single, np.minimum(law.k * single, 1.0))
    return bounded
