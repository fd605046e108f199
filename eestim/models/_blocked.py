"""One pass over a regression in row blocks: nothing of size n by p is ever made."""

from collections.abc import Iterator

import numpy as np

from eestim._arrays import Matrix, Vector

__all__ = ["BLOCK_ROWS", "blocks", "gradient", "gram", "linear_predictor"]

# A block of 50 columns is 1.6 MB: it stays in cache between the products.
BLOCK_ROWS = 4096


def blocks(n: int) -> Iterator[slice]:
    """Return slices that cover ``range(n)``.

    >>> [s.stop for s in blocks(5000)]
    [4096, 5000]
    """
    for first in range(0, n, BLOCK_ROWS):
        yield slice(first, min(first + BLOCK_ROWS, n))


def linear_predictor(design: Matrix, theta: Vector, offset: Vector | None) -> Vector:
    """Return ``design @ theta + offset``, (n,)."""
    eta: Vector = design @ theta
    if offset is not None:
        eta += offset
    return eta


def gram(design: Matrix, weight: Vector) -> Matrix:
    r"""Return :math:`X^\top \mathrm{diag}(w) X` for weights of any sign, (p, p).

    Blocks are scaled by the square root of the weight, so that BLAS forms a symmetric
    product at half the cost; negative weights are subtracted.
    """
    total = np.zeros((design.shape[1], design.shape[1]))
    signed = bool((weight < 0).any())
    root = np.sqrt(np.abs(weight))
    for rows in blocks(len(design)):
        scaled = design[rows] * root[rows, None]
        total += scaled.T @ scaled
        if signed:
            negative = scaled[weight[rows] < 0]
            total -= 2.0 * (negative.T @ negative)
    return total


def gradient(design: Matrix, residual: Vector) -> Vector:
    """Return ``design.T @ residual``, (p,)."""
    result: Vector = residual @ design
    return result
