"""Word-level perturbations of a prefix: neighbours, insertion, deletion, swap.

A draw changes the tokens of a row; targets stay those of the clean text. `read` tells
where in the changed row the prediction of each clean position is made: after that
position's own prefix has been changed, and before anything later is seen. So the
K draws of one pass serve every position, and a future token changes no earlier
prediction. The first token of a row, its start symbol, is never changed.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

from eestim.llm.averaging import standard_normal

__all__ = [
    "ChangedRows",
    "Deletion",
    "Insertion",
    "Neighbours",
    "Swap",
    "TokenPerturbation",
]


@dataclass(frozen=True, slots=True, eq=False)
class ChangedRows:
    """K changed copies of B rows.

    Attributes
    ----------
    tokens, positions : (K, B, L) tensors
        Token ids, and their position ids.
    read : (K, B, T) tensor
        Where each clean position's prediction is made, from 0 to L - 1.
    """

    tokens: Tensor
    positions: Tensor
    read: Tensor


class TokenPerturbation(nn.Module, ABC):
    """Base of the perturbations that change tokens; nothing in them is learned.

    Parameters
    ----------
    rate : float
        Probability that a token is changed, in (0, 1).

    References
    ----------
    Wei and Zou (2019), EDA, EMNLP, arXiv 1901.11196: replacement by synonyms, random
    insertion, swap and deletion. Here synonyms are neighbours in embedding space.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 < rate < 1:
            raise ValueError(f"`rate` is {rate}; it must lie between 0 and 1.")
        self.rate = rate

    def noise(self, draws: int, rows: int, length: int, generator: Generator) -> Tensor:
        """Return (K, B, T, 2) uniform numbers, on the generator's device."""
        if draws < 1:
            raise ValueError(f"`draws` is {draws}; it must be at least 1.")
        like = torch.empty(0, device=generator.device)
        normal = standard_normal((draws, rows, length, 2), generator, like)
        uniform: Tensor = torch.special.ndtr(normal)
        return uniform

    @abstractmethod
    def change(self, ids: Tensor, noise: Tensor) -> ChangedRows:
        """Return the changed rows of tokens (B, T) for noise (K, B, T, 2)."""

    def config(self) -> dict[str, Any]:
        """Return the arguments that rebuild it."""
        return {"rate": self.rate}

    def extra_repr(self) -> str:
        """Return the arguments, for `repr`."""
        return ", ".join(f"{k}={v!r}" for k, v in self.config().items())

    def hit(self, noise: Tensor) -> Tensor:
        """Return which tokens are changed, (K, B, T); never the first."""
        hit = noise[..., 0] < self.rate
        hit[..., 0] = False
        return hit


class Neighbours(TokenPerturbation):
    """Replace tokens by neighbours in embedding space, after synonyms.

    Parameters
    ----------
    vocabulary : int
        Number of tokens V.
    rate : float
    among : int
        Number of nearest neighbours, by cosine, of which one is drawn.

    Examples
    --------
    `Neighbours.of(base)` finds the neighbours in a base's own table.

    >>> from eestim.llm import byte_model
    >>> found = Neighbours.of(byte_model(8, width=8, layers=1, heads=2), among=3)
    >>> found.table.shape
    torch.Size([259, 3])
    """

    table: Tensor

    def __init__(self, vocabulary: int, rate: float = 0.1, among: int = 8) -> None:
        super().__init__(rate)
        if not 1 <= among < vocabulary:
            raise ValueError(
                f"`among` is {among}; expected 1 to {vocabulary - 1}, the other tokens."
            )
        self.vocabulary, self.among = vocabulary, among
        own = torch.arange(vocabulary, dtype=torch.int32).unsqueeze(1)
        self.register_buffer("table", own.repeat(1, among))

    @classmethod
    def of(cls, base: Any, rate: float = 0.1, among: int = 8) -> Neighbours:
        """Return the neighbours in a causal model's embedding table as it now is."""
        weight = base.get_input_embeddings().weight.detach().float()
        found = cls(len(weight), rate, among)
        unit = nn.functional.normalize(weight, dim=1)
        for begin in range(0, len(unit), 1024):
            cosine = unit[begin : begin + 1024] @ unit.T
            rows = torch.arange(len(cosine), device=cosine.device)
            cosine[rows, rows + begin] = -math.inf
            best = cosine.topk(among, dim=1).indices
            found.table[begin : begin + 1024] = best.to(found.table)
        return found

    def change(self, ids: Tensor, noise: Tensor) -> ChangedRows:
        """Return rows in which some tokens are a neighbour."""
        choice = (noise[..., 1] * self.among).long().clamp_max(self.among - 1)
        near = self.table.to(ids.device)[ids].expand(*noise.shape[:-1], self.among)
        other = near.gather(-1, choice.unsqueeze(-1)).squeeze(-1).to(ids.dtype)
        tokens = torch.where(self.hit(noise), other, ids)
        place = _places(tokens)
        return ChangedRows(tokens, place, place)

    def config(self) -> dict[str, Any]:
        """Return the arguments that rebuild it, before its table."""
        return {
            "vocabulary": self.vocabulary,
            "rate": self.rate,
            "among": self.among,
        }


class Insertion(TokenPerturbation):
    """Insert random tokens, each before a token of the prefix.

    An inserted token takes the position id of the token it precedes, so that rows as
    long as the base's context stay within it.

    Parameters
    ----------
    vocabulary : int
    rate : float
    first : int
        Least token id inserted: below it lie special tokens.
    """

    def __init__(self, vocabulary: int, rate: float = 0.1, first: int = 0) -> None:
        super().__init__(rate)
        if not 0 <= first < vocabulary:
            raise ValueError(f"`first` is {first}; expected 0 to {vocabulary - 1}.")
        self.vocabulary, self.first = vocabulary, first

    def change(self, ids: Tensor, noise: Tensor) -> ChangedRows:
        """Return longer rows; a prediction is made at its own last token."""
        hit = self.hit(noise)
        span = self.vocabulary - self.first
        new = (noise[..., 1] * span).long().clamp_max(span - 1) + self.first
        clean = ids.expand(hit.shape)
        place = _places(clean)
        read = place + hit.cumsum(-1)
        length = int(read.max()) + 1
        shape = (*hit.shape[:2], length)
        tokens = ids.new_zeros(shape)
        positions = torch.full(shape, ids.shape[1] - 1, device=ids.device)
        before = torch.where(hit, read - 1, read)  # rewritten where nothing is new
        for target, value in ((before, new.to(ids.dtype)), (read, clean)):
            tokens.scatter_(-1, target, value)
            positions.scatter_(-1, target, place)
        return ChangedRows(tokens, positions, read)

    def config(self) -> dict[str, Any]:
        """Return the arguments that rebuild it."""
        return {
            "vocabulary": self.vocabulary,
            "rate": self.rate,
            "first": self.first,
        }


class Deletion(TokenPerturbation):
    """Delete tokens; where the last of a prefix is gone, the one before it predicts."""

    def change(self, ids: Tensor, noise: Tensor) -> ChangedRows:
        """Return rows closed up over what was deleted."""
        kept = ~self.hit(noise)
        clean = ids.expand(kept.shape)
        read = kept.cumsum(-1) - 1
        # Deleted tokens go to a spare column, which is cut off.
        target = torch.where(kept, read, ids.shape[1])
        tokens = ids.new_zeros(*kept.shape[:2], ids.shape[1] + 1)
        tokens = tokens.scatter_(-1, target, clean)[..., :-1]
        return ChangedRows(tokens, _places(tokens), read)


class Swap(TokenPerturbation):
    """Swap a token with the next one.

    Where a pair lies across the end of a prefix, the swap has moved the prefix's last
    token behind it: the prediction is made without that token. Reading on would show
    the very token to predict.
    """

    def change(self, ids: Tensor, noise: Tensor) -> ChangedRows:
        """Return rows with disjoint pairs exchanged."""
        hit = self.hit(noise)
        place = _places(ids.expand(hit.shape))
        # Of a run of hits every other one counts, from its first.
        last_miss = torch.where(hit, -1, place).cummax(-1).values
        pair = hit & ((place - last_miss) % 2 == 1)
        after = nn.functional.pad(pair[..., :-1], (1, 0))
        ends = ids.shape[1] - 1
        source = place + (pair & (place < ends)).long() - after.long()
        tokens = ids.expand(hit.shape).gather(-1, source)
        return ChangedRows(tokens, place, place - pair.long())


def _places(tokens: Tensor) -> Tensor:
    """Return the positions 0, 1, ... of the last axis, in the shape of tokens."""
    return torch.arange(tokens.shape[-1], device=tokens.device).expand(tokens.shape)
