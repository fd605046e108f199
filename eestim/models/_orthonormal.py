"""From a pivoted triangular factor of a design to coordinates that are orthonormal."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import linalg

from eestim._arrays import IntVector, Matrix, Vector
from eestim.errors import IdentificationError

__all__ = ["collinear_error", "orthonormal_transform"]

_COLLINEAR = 1e-11  # what is left of a column of length 1 after the others


def orthonormal_transform(
    triangular: Matrix,
    order: IntVector,
    size: Vector,
    n_rows: int,
    names: Sequence[str],
) -> Matrix:
    r"""Return L with ``theta = L eta``, eta the parameters of :math:`\sqrt n Q`.

    Parameters
    ----------
    triangular : (p, p) array
        R of a pivoted factor ``Q R`` of the design, its columns scaled to length 1.
    order : (p,) integer array
        The column of the design in each place of R.
    size : (p,) array
        Lengths of the columns.
    n_rows : int
    names : sequence of p str

    Raises
    ------
    IdentificationError
        If columns are collinear, naming them.
    """
    left = np.abs(np.diag(triangular))
    if len(left) < len(names) or (left <= _COLLINEAR).any():
        raise collinear_error(triangular, order, left, size, names)
    inverse = linalg.solve_triangular(triangular, np.eye(len(left))) * np.sqrt(n_rows)
    transform: Matrix = np.empty_like(inverse)
    transform[order] = inverse
    return transform / size[:, None]


def collinear_error(
    triangular: Any, order: Any, left: Any, size: Any, names: Sequence[str]
) -> IdentificationError:
    """Return what to raise for a pivoted triangular factor that is singular."""
    rank = int((left > _COLLINEAR).sum())
    sentences = []
    for j in range(rank, len(names)):
        solved = linalg.solve_triangular(triangular[:rank, :rank], triangular[:rank, j])
        share = solved * size[order[j]] / size[order[:rank]]
        terms = [
            f"{share[k]:+.4g}*{names[order[k]]}"
            for k in range(rank)
            if abs(solved[k]) > 1e-8
        ]
        sentences.append(f"{names[order[j]]} = {' '.join(terms) or '0'}")
    return IdentificationError(
        f"`design` has {len(names)} columns but rank {rank}: {'; '.join(sentences)}. "
        "Drop one column of each relation, or report an identified function."
    )
