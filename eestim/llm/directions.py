"""What every perturbation of embeddings is made of, and its law-preserving changes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Directional", "Perturbation", "check_positive", "rotations"]


def check_positive(name: str, value: float) -> None:
    """Refuse a size or rate that is not positive and finite."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"`{name}` is {value}; it must be positive and finite.")


def check_rank(rank: int, width: int) -> None:
    if not 1 <= rank <= width:
        raise ValueError(
            f"`rank` is {rank}, but embeddings have {width} coordinates; choose a "
            f"rank from 1 to {width}."
        )


class Perturbation(nn.Module, ABC):
    """Base of the perturbations of embeddings of a given width.

    Attributes
    ----------
    width, latent : int
        Length of an embedding, and of the latent.
    independent_draws : bool
        Whether K latents that are independent give independent perturbations.
    sees_prefix : bool
        Whether a position's change depends on the positions before it.
    """

    independent_draws: bool = True
    sees_prefix: bool = True

    def __init__(self, width: int, latent: int) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"`width` is {width}; it must be at least 1.")
        self.width = width
        self.latent = latent

    @abstractmethod
    def forward(
        self, embeddings: Tensor, latent: Tensor, start: Tensor | None = None
    ) -> Tensor:
        """Return the perturbed embeddings.

        Parameters
        ----------
        embeddings : (..., width) tensor
        latent : (K, ..., latent) tensor of standard normal draws
        start : (B, T) integer tensor, optional
            First position of each token's own document in its row, where embeddings
            are (B, T, width); 0 when left out.

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
            Two-dimensional, it is a table of tokens, each a prefix of its own.
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

    def extra_repr(self) -> str:
        """Return the arguments and the number of parameters, for `repr`.

        Examples
        --------
        >>> from eestim.llm import LowRank
        >>> LowRank(8, rank=2)
        LowRank(width=8, rank=2, size=1.0, held=False, seed=0; 16 parameters)
        """
        arguments = ", ".join(f"{k}={v!r}" for k, v in self.config().items())
        return f"{arguments}; {self.n_parameters:,} parameters"


class Directional(Perturbation, ABC):
    """Base of the perturbations that act through a matrix C (width, rank)."""

    def __init__(
        self, width: int, rank: int, size: float, held: bool, seed: int
    ) -> None:
        super().__init__(width, latent=rank)
        check_rank(rank, width)
        check_positive("size", size)
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


def rotations(directions: Tensor, held: bool, free: bool = True) -> Tensor:
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
