"""Tensors on one side, float64 arrays and the linear maps of SciPy on the other."""

from collections.abc import Callable

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator

from eestim._arrays import Matrix, Vector

__all__ = ["Tensors", "linear_map", "to_float64"]

Tensors = dict[str, torch.Tensor]


def to_float64(tensor: torch.Tensor) -> Matrix:
    """Return a tensor of any device and precision as a float64 array."""
    array: Matrix = tensor.detach().to(device="cpu", dtype=torch.float64).numpy()
    return array


def linear_map(
    shape: tuple[int, int],
    forward: Callable[[Vector], Vector],
    backward: Callable[[Vector], Vector],
) -> LinearOperator:
    """Return the linear operator of a product and of its transpose."""
    return LinearOperator(shape, matvec=forward, rmatvec=backward, dtype=np.float64)
