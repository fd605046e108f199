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
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "Additive",
    "ContextMLP",
    "Gated",
    "LowRank",
    "Perturbation",
    "from_config",
]


def _check_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"`{name}` is {value}; it must be positive and finite.")


def _check_rank(rank: int, width: int) -> None:
    if not 1 <= rank <= width:
        raise ValueError(
            f"`rank` is {rank}, but embeddings have {width} coordinates; choose a "
            f"rank from 1 to {width}."
        )


class Perturbation(nn.Module, ABC):
    """Base of the perturbations of embeddings of a given width."""

    def __init__(self, width: int, latent: int) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"`width` is {width}; it must be at least 1.")
        self.width = width
        self.latent = latent

    @abstractmethod
    def forward(self, embeddings: Tensor, latent: Tensor) -> Tensor:
        """Return the perturbed embeddings.

        Parameters
        ----------
        embeddings : (..., width) tensor
        latent : (K, ..., latent) tensor of standard normal draws

        Returns
        -------
        (K, ..., width) tensor
        """

    @abstractmethod
    def squared_size(self, embeddings: Tensor) -> Tensor:
        """Return the mean over tokens and draws of the squared change of embedding.

        Parameters
        ----------
        embeddings : (..., width) tensor
        """

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Return the arguments that rebuild this perturbation before its weights."""

    def invariances(self) -> Tensor:
        """Return directions of phi that leave the law of u unchanged, (P, m).

        Rows follow `named_parameters`, flattened; m = 0 where there is none.
        """
        count = sum(p.numel() for p in self.parameters())
        return torch.zeros(count, 0)

    @property
    def n_parameters(self) -> int:
        """Number of parameters in phi."""
        return sum(p.numel() for p in self.parameters())


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

    def __init__(self, width: int, size: float = 1.0) -> None:
        super().__init__(width, latent=width)
        _check_positive("size", size)
        self.start_size = size
        level = math.log(size / math.sqrt(width))
        self.log_scale = nn.Parameter(torch.full((width,), level))

    def forward(self, embeddings: Tensor, latent: Tensor) -> Tensor:
        """Return e + exp(tau) * Z."""
        return embeddings + self.log_scale.exp() * latent

    def squared_size(self, embeddings: Tensor) -> Tensor:  # noqa: ARG002 - one law
        """Return the sum of the variances; it does not depend on the embeddings."""
        return (2 * self.log_scale).exp().sum()

    def config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {"width": self.width, "size": self.start_size}


class _Directional(Perturbation, ABC):
    """Base of the perturbations that act through a matrix C (width, rank)."""

    def __init__(
        self, width: int, rank: int, size: float, held: bool, seed: int
    ) -> None:
        super().__init__(width, latent=rank)
        _check_rank(rank, width)
        _check_positive("size", size)
        self.start_size, self.held, self.seed = size, held, seed
        generator = torch.Generator().manual_seed(seed)
        directions = torch.randn(width, rank, generator=generator)
        self.directions = nn.Parameter(directions * (size / directions.norm()))

    def matrix(self) -> Tensor:
        """Return C, (width, rank), at its held norm where `held`."""
        if not self.held:
            return self.directions
        length = self.directions.square().sum().sqrt()
        return self.directions * (self.start_size / length)

    def config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {
            "width": self.width,
            "rank": self.latent,
            "size": self.start_size,
            "held": self.held,
            "seed": self.seed,
        }


class LowRank(_Directional):
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

    def forward(self, embeddings: Tensor, latent: Tensor) -> Tensor:
        """Return e + C Z."""
        return embeddings + latent @ self.matrix().T

    def squared_size(self, embeddings: Tensor) -> Tensor:  # noqa: ARG002 - one law
        """Return tr(C C'); it does not depend on the embeddings."""
        return self.matrix().square().sum()

    def invariances(self) -> Tensor:
        """Return the tangents C K of rotations, K skew (and C where held)."""
        return _rotations(self.directions.detach(), self.held)


class Gated(_Directional):
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

    def forward(self, embeddings: Tensor, latent: Tensor) -> Tensor:
        """Return e + gate(e) C Z."""
        gate = self.scale(embeddings).unsqueeze(-1)
        return embeddings + gate * (latent @ self.matrix().T)

    def squared_size(self, embeddings: Tensor) -> Tensor:
        """Return tr(C C') times the mean squared gate over the embeddings."""
        return self.matrix().square().sum() * self.scale(embeddings).square().mean()

    def invariances(self) -> Tensor:
        """Return the rotations of C; the gate is identified."""
        tangents = _rotations(self.directions.detach(), self.held)
        gate = tangents.new_zeros(self.width, tangents.shape[1])
        return torch.cat([tangents, gate])


class ContextMLP(_Directional):
    r"""Low-rank noise whose scale in each direction depends on the prefix.

    .. math::
        u_t = e_t + C \, (s_t \circ Z_t), \quad
        s_t = 2 \sigma\big(W_2 \, \mathrm{gelu}(W_1 [e_t, \bar e_{\le t}])\big)

    with the running mean of the embeddings up to t, so the model stays causal. The
    scales start at 1 (W_2 = 0), where C is identified up to rotations only; away from
    there only permutations and signs of the directions are free. Arguments as for
    `LowRank`.

    Parameters
    ----------
    hidden : int
        Width of the hidden layer.

    Examples
    --------
    >>> ContextMLP(8, rank=2, hidden=4).n_parameters  # C 16, W_1 64 + 4, W_2 8
    92
    """

    def __init__(
        self,
        width: int,
        rank: int = 16,
        size: float = 1.0,
        *,
        hidden: int = 32,
        held: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(width, rank, size, held, seed)
        if hidden < 1:
            raise ValueError(f"`hidden` is {hidden}; it must be at least 1.")
        self.hidden = hidden
        generator = torch.Generator().manual_seed(seed + 1)
        first = torch.randn(hidden, 2 * width, generator=generator)
        self.first = nn.Parameter(first / math.sqrt(2 * width))
        self.offset = nn.Parameter(torch.zeros(hidden))
        self.second = nn.Parameter(torch.zeros(rank, hidden))

    def scale(self, embeddings: Tensor) -> Tensor:
        """Return s, (..., T, rank), of embeddings (..., T, width)."""
        length = embeddings.shape[-2]
        count = torch.arange(1, length + 1, device=embeddings.device).unsqueeze(-1)
        mean = embeddings.cumsum(-2) / count.to(embeddings.dtype)
        inner = torch.cat([embeddings, mean], -1) @ self.first.T + self.offset
        return 2.0 * torch.sigmoid(nn.functional.gelu(inner) @ self.second.T)

    def forward(self, embeddings: Tensor, latent: Tensor) -> Tensor:
        """Return e + C (s * Z)."""
        return embeddings + (self.scale(embeddings) * latent) @ self.matrix().T

    def squared_size(self, embeddings: Tensor) -> Tensor:
        """Return the mean over positions of ``sum_j s_j^2 |C_j|^2``."""
        lengths = self.matrix().square().sum(0)
        return (self.scale(embeddings).square() @ lengths).mean()

    def config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return super().config() | {"hidden": self.hidden}

    def invariances(self) -> Tensor:
        """Return rotations where the scales are constant, else none (C if held)."""
        free = bool((self.second == 0).all())
        tangents = _rotations(self.directions.detach(), self.held, free)
        rest = self.n_parameters - len(tangents)
        return torch.cat([tangents, tangents.new_zeros(rest, tangents.shape[1])])


def _rotations(directions: Tensor, held: bool, free: bool = True) -> Tensor:
    """Return the flattened tangents C (e_i e_j' - e_j e_i'), i < j; also C if held.

    `free` tells whether rotations leave the law unchanged.
    """
    rank = directions.shape[1]
    tangents = []
    for i in range(rank if free else 0):
        for j in range(i):
            skew = directions.new_zeros(rank, rank)
            skew[i, j], skew[j, i] = 1.0, -1.0
            tangents.append((directions @ skew).flatten())
    if held:
        tangents.append(directions.flatten())
    if not tangents:
        return directions.new_zeros(directions.numel(), 0)
    return torch.stack(tangents, dim=1)


_KINDS: dict[str, type[Perturbation]] = {
    "Additive": Additive,
    "LowRank": LowRank,
    "Gated": Gated,
    "ContextMLP": ContextMLP,
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
