"""Inverses and products of R small matrices, each array with a leading axis of R."""

import numpy as np
import numpy.typing as npt

from eestim._arrays import Matrix
from eestim._linalg import NEAR_SINGULAR

__all__ = [
    "Array",
    "Mask",
    "batched_inverse",
    "diagonal",
    "equilibrating_scale",
    "inverse_of",
    "is_finite",
    "plain_inverse",
    "solved",
    "times",
]

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
_MAX_INFLATION = 1e6  # of a variance by the other parameters


def equilibrating_scale(matrices: Array) -> Array:
    """Return factors that bring rows and columns near size one, (R, p, p).

    Powers of two, so that scaling rounds nothing.
    """
    size = np.abs(matrices)
    rows = _reciprocal(size.max(axis=2))[:, :, None]
    scale: Array = rows * _reciprocal((size * rows).max(axis=1))[:, None, :]
    return scale


def batched_inverse(matrices: Array, scale: Array | None = None) -> tuple[Array, Mask]:
    """Return the inverses of R small matrices, and which of them are singular.

    Rank is decided after equilibrating rows and columns, so it does not depend on
    units of measure; the inverse of a singular matrix is NaN.

    Parameters
    ----------
    matrices : (R, p, p) array
    scale : (R, p, p) array, optional
        Their `equilibrating_scale`.

    Examples
    --------
    >>> inverse, singular = batched_inverse(np.array([[[2.0]], [[0.0]]]))
    >>> inverse.ravel(), singular
    (array([0.5, nan]), array([False,  True]))
    """
    if scale is None:
        scale = equilibrating_scale(matrices)
    scaled = matrices * scale
    inverse, singular = inverse_of(scaled)
    norm = np.abs(scaled).sum(axis=1).max(axis=1)
    condition = norm * np.abs(inverse).sum(axis=1).max(axis=1)
    singular |= ~(condition < 1.0 / (NEAR_SINGULAR * matrices.shape[-1]))
    inverse *= scale.transpose(0, 2, 1)
    inverse[singular] = np.nan
    return inverse, singular


def _reciprocal(values: Matrix) -> Matrix:
    """Return a power of two near 1 / values, so that scaling rounds nothing."""
    return np.ldexp(1.0, -np.frexp(values)[1])


def inverse_of(matrices: Array) -> tuple[Array, Mask]:
    """Return inverses and a mask of those that do not exist."""
    try:
        inverse: Array = np.asarray(np.linalg.inv(matrices), dtype=np.float64)
        return inverse, ~is_finite(inverse)
    except np.linalg.LinAlgError:  # one without an inverse stops the whole batch
        usable = np.where(is_finite(matrices)[:, None, None], matrices, 0.0)
        broken: Mask = np.asarray(np.linalg.slogdet(usable)[0] == 0.0)
        usable[broken] = np.eye(matrices.shape[-1])
        return np.asarray(np.linalg.inv(usable), dtype=np.float64), broken


def is_finite(matrices: Array) -> Mask:
    """Return which matrices have finite entries only, (R,)."""
    return np.asarray(np.isfinite(matrices).all(axis=(1, 2)))


def times(matrices: Array, vectors: Matrix) -> Matrix:
    """Return products of R matrices with R vectors, (R, p)."""
    product: Matrix = np.matmul(matrices, vectors[:, :, None])[:, :, 0]
    return product


def plain_inverse(matrices: Array) -> tuple[Array, Mask]:
    """Return inverses of positive definite matrices that are far from singular.

    The others, by their variance inflation, are NaN: their rank takes a closer look.
    """
    inverse, singular = inverse_of(matrices)
    inflation = (diagonal(matrices) * diagonal(inverse)).max(axis=1)
    singular |= ~(inflation < _MAX_INFLATION)
    inverse[singular] = np.nan
    return inverse, singular


def solved(matrices: Array, vectors: Matrix) -> Matrix:
    """Return solutions, NaN for all where one matrix is exactly singular."""
    try:
        return np.asarray(np.linalg.solve(matrices, vectors[:, :, None])[:, :, 0])
    except np.linalg.LinAlgError:
        return np.full_like(vectors, np.nan)


def diagonal(matrices: Array) -> Matrix:
    """Return the diagonals, (R, p)."""
    return np.diagonal(matrices, axis1=1, axis2=2)
