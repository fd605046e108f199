r"""Perturbations whose scales depend on the prefix: running mean, causal attention."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from eestim.llm.directions import Directional, rotations

__all__ = ["ContextAttention", "ContextMLP", "running_mean"]


class _Contextual(Directional, ABC):
    """Base of the perturbations u = e + C (s * Z), s a function of the prefix.

    The scales end in a matrix `second` (rank, hidden) that starts at 0, so they start
    at 1, where C is identified up to rotations only; away from there only permutations
    and signs of the directions are free.
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
        self.make_maps(torch.Generator().manual_seed(seed + 1))
        self.second = nn.Parameter(torch.zeros(rank, hidden))

    @abstractmethod
    def make_maps(self, generator: torch.Generator) -> None:
        """Make the parameters of `features`, drawn from a generator."""

    @abstractmethod
    def features(self, embeddings: Tensor, start: Tensor | None) -> Tensor:
        """Return (..., T, hidden) features of the prefix at each position."""

    def scale(self, embeddings: Tensor, start: Tensor | None = None) -> Tensor:
        """Return s, (..., T, rank), of embeddings (..., T, width)."""
        return 2.0 * torch.sigmoid(self.features(embeddings, start) @ self.second.T)

    def forward(
        self, embeddings: Tensor, latent: Tensor, start: Tensor | None = None
    ) -> Tensor:
        """Return e + C (s * Z)."""
        scale = self.scale(embeddings, start)
        return embeddings + (scale * latent) @ self.matrix().T

    def squared_size(self, embeddings: Tensor) -> Tensor:
        """Return the mean over positions of ``sum_j s_j^2 |C_j|^2``."""
        rows = embeddings.unsqueeze(-2) if embeddings.ndim == 2 else embeddings
        lengths = self.matrix().square().sum(0)
        return (self.scale(rows).square() @ lengths).mean()

    def invariances(self) -> Tensor:
        """Return rotations where the scales are constant, else none (C if held)."""
        free = bool((self.second == 0).all())
        tangents = rotations(self.directions.detach(), self.held, free)
        rest = self.n_parameters - len(tangents)
        return torch.cat([tangents, tangents.new_zeros(rest, tangents.shape[1])])

    def config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return super().config() | {"hidden": self.hidden}


class ContextMLP(_Contextual):
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

    def make_maps(self, generator: torch.Generator) -> None:
        """Make W_1 at random and its offset at zero."""
        first = torch.randn(self.hidden, 2 * self.width, generator=generator)
        self.first = nn.Parameter(first / math.sqrt(2 * self.width))
        self.offset = nn.Parameter(torch.zeros(self.hidden))

    def features(self, embeddings: Tensor, start: Tensor | None) -> Tensor:
        """Return the hidden layer at each position."""
        mean = running_mean(embeddings, start)
        inner = torch.cat([embeddings, mean], -1) @ self.first.T + self.offset
        return nn.functional.gelu(inner)


class ContextAttention(_Contextual):
    r"""Low-rank noise whose scales come from learned causal attention over the prefix.

    .. math::
        u_t = e_t + C \, (s_t \circ Z_t), \quad
        s_t = 2 \sigma\Big(W \sum_{j \le t} \alpha_{tj} V \tilde e_j\Big), \quad
        \alpha_{tj} \propto \exp(\tilde e_t^\top Q^\top K \tilde e_j / \sqrt h)

    with embeddings of unit root mean square, :math:`\tilde e`, so that the attention
    does not depend on the scale of the states at its site. The scales start at 1
    (W = 0). Arguments as for `LowRank`.

    Parameters
    ----------
    hidden : int
        Width h of queries, keys and values.

    Examples
    --------
    >>> ContextAttention(8, rank=2, hidden=4).n_parameters  # C 16, Q, K, V 32, W 8
    120
    """

    def make_maps(self, generator: torch.Generator) -> None:
        """Make Q, K and V at random."""
        maps = torch.randn(3, self.hidden, self.width, generator=generator)
        maps = maps / math.sqrt(self.width)
        self.queries, self.keys, self.values = (nn.Parameter(m.clone()) for m in maps)

    def features(self, embeddings: Tensor, start: Tensor | None) -> Tensor:
        """Return the attended values at each position."""
        tiny = torch.finfo(embeddings.dtype).tiny
        unit = embeddings * (embeddings.square().mean(-1, keepdim=True) + tiny).rsqrt()
        place = torch.arange(embeddings.shape[-2], device=embeddings.device)
        hidden = place > place.unsqueeze(-1)
        if start is not None:
            hidden = hidden | (place < start.unsqueeze(-1))
        match = (unit @ self.queries.T) @ (unit @ self.keys.T).transpose(-1, -2)
        match = (match / math.sqrt(self.hidden)).masked_fill(hidden, -math.inf)
        return match.softmax(-1) @ (unit @ self.values.T)


def running_mean(embeddings: Tensor, start: Tensor | None = None) -> Tensor:
    """Return the mean of a row's embeddings from `start` up to each position.

    Examples
    --------
    >>> row = torch.tensor([[[1.0], [3.0], [5.0]]])
    >>> running_mean(row).flatten()
    tensor([1., 2., 3.])
    >>> running_mean(row, torch.tensor([[0, 0, 2]])).flatten()
    tensor([1., 2., 5.])
    """
    total = embeddings.cumsum(-2)
    count = torch.arange(1, embeddings.shape[-2] + 1, device=embeddings.device)
    if start is None:
        return total / count.unsqueeze(-1).to(embeddings.dtype)
    before = nn.functional.pad(total, (0, 0, 1, 0))  # entry t: the sum below t
    index = start.unsqueeze(-1).expand(*start.shape, embeddings.shape[-1])
    own = total - before.gather(-2, index)
    return own / (count - start).unsqueeze(-1).to(embeddings.dtype)
