r"""Learnable maps u = g_phi(e, Z) of an embedding and a Gaussian latent.

Each perturbation is a torch module with ``forward(embeddings, latent)``, where the
latent is standard normal, so gradients reach phi with the draw held fixed. Only
functions of phi that every law-preserving change leaves alone can be estimated:
``invariances`` gives the directions in which phi can move without any change of the
law of u (rotations of the latent), and `eestim.llm.infer` refuses functionals that
vary along them.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from eestim.llm.contextual import ContextAttention, ContextMLP
from eestim.llm.directions import Directional, Perturbation, check_positive, rotations
from eestim.llm.surprise import SurpriseGated

__all__ = [
    "Additive",
    "ContextAttention",
    "ContextMLP",
    "Gated",
    "LowRank",
    "Perturbation",
    "SurpriseGated",
    "from_config",
]


class Additive(Perturbation):
    r"""Independent noise on each coordinate, u = e + exp(tau) * Z.

    Parameters
    ----------
    width : int
        Length of an embedding.
    size : float
        Root mean square length of the perturbation at the start.

    Examples
    --------
    >>> Additive(4, size=2.0).squared_size(torch.zeros(4)).item()
    4.0
    """

    sees_prefix = False

    def __init__(self, width: int, size: float = 1.0) -> None:
        super().__init__(width, latent=width)
        check_positive("size", size)
        self.start_size = size
        level = math.log(size / math.sqrt(width))
        self.log_scale = nn.Parameter(torch.full((width,), level))

    def forward(
        self,
        embeddings: Tensor,
        latent: Tensor,
        start: Tensor | None = None,  # noqa: ARG002 - one law for every prefix
    ) -> Tensor:
        """Return e + exp(tau) * Z."""
        return embeddings + self.log_scale.exp() * latent

    def squared_size(self, embeddings: Tensor) -> Tensor:  # noqa: ARG002 - one law
        """Return the sum of the variances; it does not depend on the embeddings."""
        return (2 * self.log_scale).exp().sum()

    def config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {"width": self.width, "size": self.start_size}


class LowRank(Directional):
    r"""Noise in a few directions, u = e + C Z with C (width, rank).

    C is identified up to rotations of the latent: functions of :math:`C C^\top` are
    estimable, single entries are not.

    Parameters
    ----------
    width : int
        Length of an embedding.
    rank : int
        Dimension of the latent.
    size : float
        Root mean square length of C Z at the start, the Frobenius norm of C.
    held : bool
        Keep that norm during training and learn the directions only.
    seed : int
        Seed of the random directions at the start.

    Examples
    --------
    >>> perturbation = LowRank(8, rank=2, size=3.0)
    >>> round(perturbation.squared_size(torch.zeros(8)).item(), 4)
    9.0
    >>> perturbation.invariances().shape  # one rotation of two latent coordinates
    torch.Size([16, 1])
    """

    sees_prefix = False

    def __init__(
        self,
        width: int,
        rank: int = 16,
        size: float = 1.0,
        *,
        held: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(width, rank, size, held, seed)

    def forward(
        self,
        embeddings: Tensor,
        latent: Tensor,
        start: Tensor | None = None,  # noqa: ARG002 - one law for every prefix
    ) -> Tensor:
        """Return e + C Z."""
        return embeddings + latent @ self.matrix().T

    def squared_size(self, embeddings: Tensor) -> Tensor:  # noqa: ARG002 - one law
        """Return tr(C C'); it does not depend on the embeddings."""
        return self.matrix().square().sum()

    def invariances(self) -> Tensor:
        """Return the tangents C K of rotations, K skew (and C where held)."""
        return rotations(self.directions.detach(), self.held)


class Gated(Directional):
    r"""Low-rank noise whose scale depends on the embedding.

    .. math:: u = e + 2 \sigma(w^\top e) \, C Z, \quad \sigma \text{ logistic}

    The gate starts at 1 for every token (w = 0) and stays between 0 and 2, without an
    offset, which C's own scale would duplicate. Arguments as for `LowRank`; `held`
    keeps the norm of C.

    Examples
    --------
    >>> Gated(8, rank=2).n_parameters
    24
    """

    sees_prefix = False

    def __init__(
        self,
        width: int,
        rank: int = 16,
        size: float = 1.0,
        *,
        held: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(width, rank, size, held, seed)
        self.gate = nn.Parameter(torch.zeros(width))

    def scale(self, embeddings: Tensor) -> Tensor:
        """Return the gate for each token, (...,), between 0 and 2."""
        return 2.0 * torch.sigmoid(embeddings @ self.gate)

    def forward(
        self,
        embeddings: Tensor,
        latent: Tensor,
        start: Tensor | None = None,  # noqa: ARG002 - one law for every prefix
    ) -> Tensor:
        """Return e + gate(e) C Z."""
        gate = self.scale(embeddings).unsqueeze(-1)
        return embeddings + gate * (latent @ self.matrix().T)

    def squared_size(self, embeddings: Tensor) -> Tensor:
        """Return tr(C C') times the mean squared gate over the embeddings."""
        return self.matrix().square().sum() * self.scale(embeddings).square().mean()

    def invariances(self) -> Tensor:
        """Return the rotations of C; the gate is identified."""
        tangents = rotations(self.directions.detach(), self.held)
        gate = tangents.new_zeros(self.width, tangents.shape[1])
        return torch.cat([tangents, gate])


_KINDS: dict[str, type[Perturbation]] = {
    "Additive": Additive,
    "LowRank": LowRank,
    "Gated": Gated,
    "ContextMLP": ContextMLP,
    "ContextAttention": ContextAttention,
    "SurpriseGated": SurpriseGated,
}


def from_config(kind: str, arguments: dict[str, Any]) -> Perturbation:
    """Rebuild a perturbation from its saved kind and arguments.

    Examples
    --------
    >>> type(from_config("LowRank", {"width": 4, "rank": 2})).__name__
    'LowRank'
    """
    if kind not in _KINDS:
        raise ValueError(
            f"`kind` is {kind!r}; known perturbations are {sorted(_KINDS)}."
        )
    return _KINDS[kind](**arguments)
