"""Rank of a sensitivity: what is identified, decided free of units of measure."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from eestim._arrays import Matrix, Vector, as_float, check_finite

__all__ = [
    "RankCut",
    "RankReport",
    "ScaledSVD",
    "WeakRank",
    "rank_report",
    "scaled_svd",
]

CLEAR_GAP = 1e3  # ratio of singular values around the cut that settles the rank
_MOST_PASSES, _FEWEST_PASSES, _ENTRIES = 2000, 50, 2e8  # of balancing, and its work
_BALANCED = 1e-10  # last relative change of the factors
_DRIFT, _DRIFT_PASSES, _DRIFT_SPREAD = 0.05, 10, 0.02  # a constant rate of growth
_SHARE_SHOWN = 0.05  # of the largest entry of a direction that is put in words
_SUMMED = 100.0  # roundings of its terms that an entry of A may be off by
WEAK_RATIO = 10.0  # a retained singular value below this many standard errors is weak

RankStatus = Literal["full_rank", "rank_deficient", "ambiguous_rank", "weak_rank"]


@dataclass(frozen=True, slots=True)
class ScaledSVD:
    """Singular value decomposition of ``rows[:, None] * A * columns``.

    Attributes
    ----------
    rows, columns : (q,) and (P,) arrays
        Factors that give every row and every column the same Euclidean norm.
    left : (q, q) array
        Left singular vectors, one a column.
    values : (min(q, P),) array
        Singular values divided by the largest, decreasing.
    right : (P, P) array
        Right singular vectors, one a column.
    """

    rows: Vector
    columns: Vector
    left: Matrix
    values: Vector
    right: Matrix


@dataclass(frozen=True, slots=True)
class RankCut:
    """One candidate rank: the values at each side of the cut and their ratio."""

    rank: int
    retained: float
    dropped: float
    gap: float
    range_violation: float


@dataclass(frozen=True, slots=True)
class WeakRank:
    """The singular value kept that is nearest to zero in units of its standard error.

    Attributes
    ----------
    is_weak : bool
        Whether `ratio` is below ten.
    ratio : float
        Singular value over standard error, the least of those kept; infinite where
        none of them varies.
    singular_value, se : float
        Both of the scaled A, relative to its largest singular value.
    direction : str
        The direction of theta that rests on this value, in words.
    """

    is_weak: bool
    ratio: float
    singular_value: float
    se: float
    direction: str = ""

    def __str__(self) -> str:
        if not self.is_weak:
            return (
                f"the singular values kept are {self.ratio:.1f} standard errors or "
                "more from zero"
            )
        return (
            f"a singular value that was kept is {self.ratio:.1f} standard errors from "
            f"zero (limit {WEAK_RATIO:g}): {self.direction} is weakly identified, and "
            "Wald intervals there may be far too short; invert a score test instead"
        )


@dataclass(frozen=True, slots=True)
class RankReport:
    r"""Rank of A, how clear it is, and which directions are free.

    Attributes
    ----------
    rank : int
        Number of scaled singular values above `tolerance`, or the rank given.
    status : {"full_rank", "rank_deficient", "ambiguous_rank", "weak_rank"}
        Ambiguous when the singular values have no gap of 1000 around the cut; weak
        when they have, but a value that was kept is within ten standard errors of
        zero (only known with `omega`; A may then be of full rank or not).
    singular_values : (min(q, P),) array
        After equilibration, relative to the largest: these decide.
    raw_singular_values : (min(q, P),) array
        Of A as given: these depend on units of measure.
    tolerance : float
        Relative size below which a scaled singular value counts as zero.
    gap : float
        Smallest value kept over largest dropped (over `tolerance` at full rank).
    cuts : tuple of RankCut
        Every rank the numbers allow: one if the rank is clear.
    null_space, left_null_space : (P, P - rank) and (q, q - rank) arrays
        Orthonormal bases of :math:`\{t: At = 0\}` and :math:`\{c: A'c = 0\}`,
        in the original units.
    range_violation : float
        :math:`\|(I-AA^+)M(I-AA^+)\|/\|M\|` after scaling rows; NaN without M.
    names : tuple of str
        Names of the P parameters.
    decomposition : ScaledSVD
        What the decisions were made on.
    weak : WeakRank or None
        How far the values kept are from zero in standard errors; None where the
        variance of A was not given.
    """

    rank: int
    status: RankStatus
    singular_values: Vector
    raw_singular_values: Vector
    tolerance: float
    gap: float
    cuts: tuple[RankCut, ...]
    null_space: Matrix
    left_null_space: Matrix
    range_violation: float
    names: tuple[str, ...]
    decomposition: ScaledSVD
    weak: WeakRank | None = None

    @property
    def n_parameters(self) -> int:
        """Return P."""
        return len(self.names)

    @property
    def is_ambiguous(self) -> bool:
        """Return whether more than one rank is compatible with the numbers."""
        return self.status == "ambiguous_rank"

    @property
    def is_weak(self) -> bool:
        """Return whether a value that was kept is known to be close to noise."""
        return self.weak is not None and self.weak.is_weak

    def with_weak(self, weak: WeakRank) -> "RankReport":
        """Return the report with a statistical verdict, which `status` then tells."""
        told: RankStatus = self.status
        if weak.is_weak and not self.is_ambiguous:
            told = "weak_rank"
        return replace(self, weak=weak, status=told)

    def free_directions(self) -> tuple[str, ...]:
        """Return the directions that A does not see, in words."""
        return tuple(
            describe_direction(column, self.decomposition.columns, self.names)
            for column in self.null_space.T
        )

    def __str__(self) -> str:
        lines = [
            f"rank {self.rank} of {self.n_parameters} ({self.status}), "
            f"gap {self.gap:.3g}",
            "scaled singular values: "
            + ", ".join(f"{value:.3g}" for value in self.singular_values),
        ]
        lines += [f"free direction: {text}" for text in self.free_directions()]
        if self.weak is not None:
            lines.append(("warning: " if self.is_weak else "") + str(self.weak))
        if self.is_ambiguous:
            lines += [
                f"candidate rank {cut.rank}: kept {cut.retained:.3g}, "
                f"dropped {cut.dropped:.3g}"
                for cut in self.cuts
            ]
        return "\n".join(lines)


def describe_direction(direction: Vector, columns: Vector, names: Sequence[str]) -> str:
    """Return a direction of theta as a sum of named parameters.

    Entries are chosen by their size in scaled units, shown in the original ones.
    """
    scaled = np.abs(direction / columns)
    shown = np.flatnonzero(scaled >= _SHARE_SHOWN * scaled.max(initial=0.0))
    peak = np.abs(direction[shown]).max(initial=0.0)
    if peak == 0.0:
        return "0"
    return " ".join(f"{direction[j] / peak:+.3g}*{names[int(j)]}" for j in shown)


def _balance(size: Matrix) -> tuple[Vector, Vector]:
    """Return factors giving all rows, and all columns, of ``size`` one 2-norm.

    Sinkhorn's alternation on the squares. Its limit does not depend on how rows
    and columns were scaled to begin with, so neither do the singular values. A
    pattern of zeros that forces a singular matrix has no limit: the factors then
    grow at a constant rate, and the alternation stops early.
    """
    square = size**2
    n_rows, n_columns = int(square.any(axis=1).sum()), int(square.any(axis=0).sum())
    aim = max(n_rows, 1) / max(
        n_columns, 1
    )  # rows of square sum to one, columns to this
    rows, columns = np.ones(len(size)), np.ones(size.shape[1])
    allowed = int(np.clip(_ENTRIES / max(size.size, 1), _FEWEST_PASSES, _MOST_PASSES))
    changes: list[float] = []
    for _ in range(allowed):
        new_columns = aim * _inverse_or_one(rows @ square)
        rows = _inverse_or_one(square @ new_columns)
        changes.append(float(np.abs(np.log(new_columns / columns)).max(initial=0.0)))
        columns = new_columns
        if changes[-1] < _BALANCED or _is_drifting(changes):
            break
    return np.sqrt(rows), np.sqrt(columns)


def _is_drifting(changes: list[float]) -> bool:
    """Return whether factors grow at a constant rate instead of converging."""
    if len(changes) <= _DRIFT_PASSES or changes[-1] < _DRIFT:
        return False
    return abs(changes[-1] / changes[-1 - _DRIFT_PASSES] - 1.0) < _DRIFT_SPREAD


def scaled_svd(A: Any) -> ScaledSVD:
    """Return the singular value decomposition of A with rows and columns balanced.

    Parameters
    ----------
    A : (q, P) array
        Rows and columns of zeros keep the factor one.

    Raises
    ------
    DataError
        If A is not a matrix of finite numbers.

    Examples
    --------
    >>> scaled_svd([[1.0, 0.0], [0.0, 1e-30]]).values
    array([1., 1.])
    """
    matrix = check_finite(as_float(A, "A", ndim=2), "A")
    # the two square roots keep intermediate squares inside the exponent range
    first_columns = _inverse_or_one(np.abs(matrix).max(axis=0, initial=0.0))
    first_rows = _inverse_or_one(
        np.abs(matrix * first_columns).max(axis=1, initial=0.0)
    )
    rows, columns = _balance(np.abs(first_rows[:, None] * matrix * first_columns))
    rows, columns = rows * first_rows, columns * first_columns
    left, values, right = np.linalg.svd(rows[:, None] * matrix * columns)
    largest = values[0] if values.size and values[0] > 0 else 1.0
    return ScaledSVD(rows / largest, columns, left, values / largest, right.T)


def _inverse_or_one(norms: Vector) -> Vector:
    return 1.0 / np.where(norms > 0, norms, 1.0)


def _violation(decomposition: ScaledSVD, M: Matrix | None, rank: int) -> float:
    if M is None:
        return float("nan")
    scaled = decomposition.rows[:, None] * M * decomposition.rows
    size = float(np.linalg.norm(scaled, 2)) if scaled.size else 0.0
    outside = decomposition.left[:, rank:]
    if size == 0.0 or outside.shape[1] == 0:
        return 0.0
    return float(np.linalg.norm(outside.T @ scaled @ outside, 2)) / size


def _cut(
    decomposition: ScaledSVD, M: Matrix | None, rank: int, tolerance: float
) -> RankCut:
    values = decomposition.values
    retained = float(values[rank - 1]) if rank > 0 else float("inf")
    dropped = float(values[rank]) if rank < len(values) else tolerance
    gap = retained / dropped if dropped > 0 else float("inf")
    return RankCut(rank, retained, dropped, gap, _violation(decomposition, M, rank))


def _orthonormal(columns: Matrix) -> Matrix:
    """Return an orthonormal basis of the span of independent columns."""
    scaled = columns / _column_norms(columns)
    basis: Matrix = np.linalg.qr(scaled)[0]
    return basis


def _column_norms(columns: Matrix) -> Vector:
    norms = np.linalg.norm(columns, axis=0)
    return np.where(norms > 0, norms, 1.0)


def rank_report(
    A: Any,
    M: Any = None,
    *,
    derivative_error: float = 0.0,
    rank: int | None = None,
    names: Sequence[str] | None = None,
    terms: Any = None,
    omega: Any = None,
    n_units: int | None = None,
) -> RankReport:
    r"""Return the rank of a sensitivity, how clear it is, and what is free.

    The matrix is first scaled so that all rows, and all columns, have one norm:
    the decision then does not depend on units of measure. A scaled singular value
    counts as zero when it is at most

    .. math:: \tau = \sigma_1 \max\{10 \max(q, P)\, \epsilon,\; 10\, \delta\}

    with :math:`\epsilon` the rounding of the dtype of A and :math:`\delta` the
    relative error of a numerical derivative. From A alone a column that is zero up
    to rounding looks like one in small units; with the size of its `terms` it counts
    as zero, and a small column whose terms are as small does not.

    Parameters
    ----------
    A : (q, P) array
        Sensitivity (either sign).
    M : (q, q) array, optional
        Variance of psi for one unit; gives `range_violation`.
    derivative_error : float
        Relative error of the entries of A if they are differences (about 1e-8 for
        central differences), 0 if they are analytic.
    rank : int, optional
        Use this rank instead of deciding, after looking at the `cuts`.
    names : sequence of str, optional
        Names of the P parameters, for messages.
    terms : (q, P) array, optional
        Mean size of the terms that each entry of A is a mean of (`term_sizes`).
        Entries below ``max(100 eps, 10 derivative_error) * terms`` are rounding,
        and count as zero.
    omega : (q P, q P) array, optional
        Variance of sqrt(n) vec(A), columns stacked (`jacobian_omega`), of an A that
        is not a Gram matrix; gives `weak` (see `weak_rank`) and the status that
        follows from it. Gram matrices vanish along a direction exactly or not at all.
    n_units : int, optional
        Number of independent units that A is a mean over, with `omega`.

    Raises
    ------
    DataError
        If A, M, `terms` or `omega` is not a finite matrix.
    ValueError
        If M, `rank`, `names`, `terms` or `omega` do not fit A, or one of `omega` and
        `n_units` is missing.

    References
    ----------
    Golub and Van Loan (2013), Matrix Computations, section 5.5.

    Examples
    --------
    A redundant parameter is found however its column is scaled:

    >>> report = rank_report([[1.0, 1e-9], [2.0, 2e-9]], names=["a", "b"])
    >>> report.rank, report.status, report.free_directions()
    (1, 'rank_deficient', ('-1e-09*a +1*b',))

    A rank that is clear in numbers may be within the noise of A:

    >>> print(rank_report([[0.2]], omega=[[1.0]], n_units=100).status)
    weak_rank
    """
    dtype = np.asarray(A).dtype
    matrix = check_finite(as_float(A, "A", ndim=2), "A")
    meat = None if M is None else check_finite(as_float(M, "M", ndim=2), "M")
    q, p = matrix.shape
    if meat is not None and meat.shape != (q, q):
        raise ValueError(f"`M` has shape {meat.shape}; A has {q} rows, so ({q}, {q}).")
    if not derivative_error >= 0:
        raise ValueError(f"`derivative_error` is {derivative_error}; give one >= 0.")
    labels = (
        tuple(names) if names is not None else tuple(f"theta[{j}]" for j in range(p))
    )
    if len(labels) != p:
        raise ValueError(f"`names` has {len(labels)} entries; A has {p} columns.")
    if terms is not None:
        matrix = _without_rounding(matrix, terms, dtype, derivative_error)
    decomposition = scaled_svd(matrix)
    tolerance = rank_tolerance((q, p), dtype, derivative_error)
    values = decomposition.values
    chosen, candidates = _decide(values, tolerance, rank)
    cuts = tuple(_cut(decomposition, meat, k, tolerance) for k in candidates)
    own = _cut(decomposition, meat, chosen, tolerance)
    report = RankReport(
        rank=chosen,
        status=_status(chosen, p, len(candidates)),
        singular_values=values,
        raw_singular_values=_raw_values(matrix),
        tolerance=tolerance,
        gap=own.gap,
        cuts=cuts,
        null_space=_orthonormal(
            decomposition.columns[:, None] * decomposition.right[:, chosen:]
        ),
        left_null_space=_orthonormal(
            decomposition.rows[:, None] * decomposition.left[:, chosen:]
        ),
        range_violation=own.range_violation,
        names=labels,
        decomposition=decomposition,
    )
    if (omega is None) != (n_units is None):
        raise ValueError(
            "`omega` and `n_units` describe the noise of A together; give both or "
            "neither."
        )
    if omega is None or n_units is None or chosen == 0:
        return report
    return report.with_weak(_weak_value(report, omega, n_units))


def kept_directions(report: RankReport) -> tuple[Matrix, Matrix]:
    """Return U (q, r) and V (P, r) with u_j'Av_j the scaled singular values kept."""
    scaled, rank = report.decomposition, report.rank
    return (
        scaled.rows[:, None] * scaled.left[:, :rank],
        scaled.columns[:, None] * scaled.right[:, :rank],
    )


def judge_weak(report: RankReport, se: Vector) -> WeakRank:
    """Return the verdict on the values kept, of given standard errors (r,).

    The least ratio counts, not the smallest value: balanced rows and columns make a
    weak instrument beside a strong one as large as it, with an error as much larger.
    """
    values = report.decomposition.values[: report.rank]
    ratios = np.where(se > 0, values / np.where(se > 0, se, 1.0), np.inf)
    j = len(ratios) - 1 - int(np.argmin(ratios[::-1]))  # of equals, the smallest value
    scaled = report.decomposition
    right = scaled.columns * scaled.right[:, j]
    return WeakRank(
        bool(ratios[j] < WEAK_RATIO),
        float(ratios[j]),
        float(values[j]),
        float(se[j]),
        describe_direction(right, scaled.columns, report.names),
    )


def _weak_value(report: RankReport, omega: Any, n_units: int) -> WeakRank:
    """Return the verdict with se_j^2 = (v_j x u_j)' Omega (v_j x u_j) / n."""
    variance = check_finite(as_float(omega, "omega", ndim=2), "omega")
    u, v = kept_directions(report)
    size = len(u) * len(v)
    if variance.shape != (size, size):
        raise ValueError(
            f"`omega` has shape {variance.shape}; the variance of the column-stacked A "
            f"is ({size}, {size})."
        )
    if not n_units >= 1:
        raise ValueError(f"`n_units` is {n_units}; give the number of units, >= 1.")
    sides = np.array([np.kron(v[:, j], u[:, j]) for j in range(report.rank)])
    spread = np.einsum("ja,ab,jb->j", sides, variance, sides, optimize=True)
    terms = np.einsum("ja,ab,jb->j", *map(np.abs, (sides, variance, sides)))
    if (spread < -1e-12 * terms).any():
        raise ValueError(
            f"`omega` gives the variance {spread.min():.3g} to a singular value; it "
            "must be positive semidefinite, as that of `jacobian_omega`."
        )
    return judge_weak(report, np.sqrt(np.maximum(spread, 0.0) / n_units))


def _without_rounding(
    matrix: Matrix, terms: Any, dtype: np.dtype[Any], derivative_error: float
) -> Matrix:
    """Return A with the entries set to zero that are rounding of their terms."""
    sizes = np.abs(check_finite(as_float(terms, "terms", ndim=2), "terms"))
    if sizes.shape != matrix.shape:
        raise ValueError(f"`terms` has shape {sizes.shape}; A has {matrix.shape}.")
    share = max(_SUMMED * _eps(dtype), 10.0 * derivative_error)
    kept: Matrix = np.where(np.abs(matrix) > share * sizes, matrix, 0.0)
    return kept


def _eps(dtype: np.dtype[Any]) -> float:
    return float(np.finfo(dtype if dtype.kind == "f" else float).eps)


def _raw_values(matrix: Matrix) -> Vector:
    return np.asarray(np.linalg.svd(matrix, compute_uv=False), dtype=np.float64)


def rank_tolerance(
    shape: tuple[int, int], dtype: np.dtype[Any], derivative_error: float
) -> float:
    """Return the relative size at which a scaled singular value counts as zero.

    >>> rank_tolerance((2, 2), np.dtype(float), 1e-8)
    1e-07
    """
    return 10.0 * max(max(shape, default=1) * _eps(dtype), derivative_error)


def _decide(
    values: Vector, tolerance: float, rank: int | None
) -> tuple[int, tuple[int, ...]]:
    """Return the rank and every rank that the singular values allow."""
    if rank is not None:
        if not 0 <= rank <= len(values):
            raise ValueError(f"`rank` is {rank}; choose one in 0..{len(values)}.")
        return rank, (rank,)
    chosen = int((values > tolerance).sum())
    retained = values[chosen - 1] if chosen else np.inf
    dropped = values[chosen] if chosen < len(values) else tolerance
    if retained >= CLEAR_GAP * dropped:
        return chosen, (chosen,)
    fewest = int((values > CLEAR_GAP * tolerance).sum())
    most = int((values > tolerance / CLEAR_GAP).sum())
    return chosen, tuple(range(fewest, most + 1))


def _status(rank: int, n_parameters: int, n_candidates: int) -> RankStatus:
    if n_candidates > 1:
        return "ambiguous_rank"
    return "full_rank" if rank == n_parameters else "rank_deficient"
