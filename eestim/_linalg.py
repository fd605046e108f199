"""Equilibrated solves and rank: decisions that do not depend on units of measure."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import linalg

from eestim._arrays import IntVector, Matrix, Vector
from eestim.errors import IdentificationError

__all__ = [
    "NEAR_SINGULAR",
    "Factor",
    "equilibrated_factor",
    "equilibrating_scales",
    "numerical_tolerance",
    "symmetric_power",
]

_SHARE_SHOWN = 0.05  # of the largest entry of a null direction
# A solve loses the factor 1 / rcond of its 16 digits: below this, fewer than three
# are left, and a rounded collinear design lands at 1e-16 rather than at 0.
NEAR_SINGULAR = 1e-13


def numerical_tolerance(shape: tuple[int, ...]) -> float:
    """Return the relative size below which a singular value counts as zero.

    Ten times the larger dimension in units of float64 rounding, the structural
    tolerance of truncated least squares after equilibration.
    """
    return 10.0 * max(shape) * float(np.finfo(np.float64).eps)


def _power_of_two(values: Vector) -> Vector:
    """Return the nearest power of two, so that scaling rounds nothing."""
    return np.exp2(np.rint(np.log2(np.where(values > 0, values, 1.0))))


def equilibrating_scales(matrix: Matrix, passes: int = 4) -> tuple[Vector, Vector]:
    """Return row and column factors that bring every row and column to size one.

    Alternating scaling of the largest absolute entries (Ruiz, 2001), rounded to
    powers of two. Rows and columns of zeros keep the factor one.

    Returns
    -------
    rows, columns : (q,) and (p,) arrays
        ``matrix * rows[:, None] * columns`` is equilibrated.
    """
    rows, columns = np.ones(matrix.shape[0]), np.ones(matrix.shape[1])
    size = np.abs(matrix)
    for _ in range(passes):
        scaled = size * rows[:, None] * columns
        rows /= np.sqrt(_power_of_two(scaled.max(axis=1, initial=0.0)))
        columns /= np.sqrt(_power_of_two(scaled.max(axis=0, initial=0.0)))
    return _power_of_two(rows), _power_of_two(columns)


@dataclass(frozen=True, slots=True)
class Factor:
    """LU factors of an equilibrated square matrix, with its rank.

    ``rows[:, None] * matrix * columns`` is what is factored; `rcond` is its
    reciprocal condition number (1-norm estimate, LAPACK ``gecon``).
    """

    lu: Matrix
    pivots: IntVector
    rows: Vector
    columns: Vector
    rcond: float
    rank: int
    equilibrated: Matrix

    def solve(self, right: Matrix) -> Matrix:
        """Return the solution of ``matrix @ x = right``."""
        scaled = _scale(right, self.rows)
        solution = linalg.lu_solve((self.lu, self.pivots), scaled, check_finite=False)
        return _scale(solution, self.columns)

    def solve_transpose(self, right: Matrix) -> Matrix:
        """Return the solution of ``matrix.T @ x = right``."""
        scaled = _scale(right, self.columns)
        solution = linalg.lu_solve(
            (self.lu, self.pivots), scaled, trans=1, check_finite=False
        )
        return _scale(solution, self.rows)

    def null_vector(self) -> Vector:
        """Return the direction of theta that the matrix does not see, (p,)."""
        right = np.linalg.svd(self.equilibrated)[2]
        direction = right[-1] * self.columns
        size = np.abs(direction)
        first = int(np.flatnonzero(size >= 0.999 * size.max())[0])
        scaled: Vector = direction / direction[first]
        return scaled

    def null_direction(self, names: Sequence[str] | None = None) -> str:
        """Return that direction in words, parameters in their own units."""
        labels = names or [f"theta[{j}]" for j in range(len(self.lu))]
        vector, shown = self.null_vector(), self._null_places()
        return " ".join(f"{vector[j]:+.3g}*{labels[j]}" for j in shown)

    def null_names(self, names: Sequence[str]) -> list[str]:
        """Return the names of the parameters that take part in that direction."""
        return [names[j] for j in self._null_places()]

    def _null_places(self) -> list[int]:
        size = np.abs(np.linalg.svd(self.equilibrated)[2][-1])
        return [int(j) for j in np.flatnonzero(size >= _SHARE_SHOWN * size.max())]

    def require_full_rank(self, names: Sequence[str] | None = None) -> "Factor":
        """Return this factor, or raise naming what is not identified.

        Raises
        ------
        IdentificationError
            If the matrix is singular to working precision.
        """
        if self.rank < len(self.lu):
            raise IdentificationError(
                f"`sensitivity` has rank {self.rank}, but there are {len(self.lu)} "
                f"parameters (reciprocal condition {self.rcond:.1e} after scaling); "
                f"free direction: {self.null_direction(names)}. Fix or drop some of "
                "these parameters, or report an identified function of them."
            )
        return self


def _scale(values: Matrix, factors: Vector) -> Matrix:
    return values * (factors if values.ndim == 1 else factors[:, None])


def equilibrated_factor(matrix: Matrix, tolerance: float = NEAR_SINGULAR) -> Factor:
    """Return the factors of a square matrix after scaling its rows and columns.

    Rank is decided on the equilibrated matrix, so measuring a covariate in other
    units changes neither the rank nor the accuracy of a solve.

    Parameters
    ----------
    matrix : (p, p) array
        Finite; need not be symmetric.
    tolerance : float
        Relative size below which a singular value counts as zero; larger than the
        default where the entries themselves carry an error (numerical derivatives).

    Raises
    ------
    IdentificationError
        If an entry is not finite.

    Examples
    --------
    Units of measure do not make a matrix singular:

    >>> equilibrated_factor(np.diag([1.0, 1e-30])).rank
    2
    """
    if not np.isfinite(matrix).all():
        raise IdentificationError(
            "`sensitivity` has entries that are not finite; psi has no derivative at "
            "this theta. Check the root, or pass another `start`."
        )
    rows, columns = equilibrating_scales(matrix)
    scaled = matrix * rows[:, None] * columns
    lu, pivots, _ = linalg.lapack.dgetrf(scaled)
    norm = float(np.abs(scaled).sum(axis=0).max())
    rcond = float(linalg.lapack.dgecon(lu, norm)[0])
    rank = len(matrix)
    cut = max(tolerance, numerical_tolerance(matrix.shape))
    if not rcond > cut * rank:  # the estimate may be off by the dimension
        singular = np.linalg.svd(scaled, compute_uv=False)
        rank = int((singular > cut * max(singular[0], 1e-300)).sum())
    return Factor(lu, pivots, rows, columns, rcond, rank, scaled)


def symmetric_power(
    matrix: Matrix, power: float, rcond: float | None = None
) -> tuple[Matrix, int]:
    """Return a power of a symmetric positive semidefinite matrix, and its rank.

    Negative powers are those of the pseudo-inverse: eigenvalues below ``rcond``
    times the largest count as zero.

    Examples
    --------
    >>> symmetric_power(np.diag([4.0, 0.0]), -0.5)
    (array([[0.5, 0. ], [0. , 0. ]]), 1)
    """
    tolerance = numerical_tolerance(matrix.shape) if rcond is None else rcond
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    kept = values > tolerance * max(float(values[-1]), 0.0)
    powers = np.where(kept, np.where(kept, values, 1.0) ** power, 0.0)
    return (vectors * powers) @ vectors.T, int(kept.sum())
