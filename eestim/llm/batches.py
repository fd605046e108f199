"""Rows of tokens from the forms in which users hold them, packed ones included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eestim.errors import DataError
from eestim.llm.documents import (
    TokenBatch,
    check_predicts,
    check_texts,
    tokenize,
)
from eestim.llm.protocols import IntArray
from eestim.llm.surrogates import IGNORED

__all__ = [
    "Packed",
    "as_token_batch",
    "check_targets_known",
    "check_tokens",
    "document_starts",
    "pack",
]


def as_token_batch(batch: Any) -> TokenBatch:
    """Return a TokenBatch of token ids or of a transformers batch.

    The target of a position is the next token of its document.

    Parameters
    ----------
    batch : (B, T) token tensor, mapping, or TokenBatch
        A mapping has `input_ids`; `attention_mask` where rows are padded on the
        right; `position_ids`, starting again from 0 at each document, where rows are
        packed (as transformers' flattening collator gives them).
    """
    if isinstance(batch, TokenBatch):
        return batch
    mask = positions = None
    if isinstance(batch, Mapping) or hasattr(batch, "keys"):
        if "input_ids" not in batch:
            raise ValueError(
                f"`batch` has {sorted(batch.keys())} but no `input_ids`; give what the "
                "tokenizer returns."
            )
        mask, ids = batch.get("attention_mask"), batch["input_ids"]
        positions = batch.get("position_ids")
    else:
        ids = batch
    if not isinstance(ids, Tensor) or ids.ndim != 2 or ids.is_floating_point():
        raise ValueError(
            "`batch` must be a (B, T) integer tensor, a mapping whose `input_ids` is "
            f"one, or a TokenBatch; got {_kind(ids)}. A tokenizer gives tensors with "
            "return_tensors='pt'."
        )
    targets = torch.full_like(ids, IGNORED)
    targets[:, :-1] = ids[:, 1:]
    if mask is not None:
        _check_mask(mask, ids)
        targets[:, :-1] = targets[:, :-1].masked_fill(mask[:, 1:] == 0, IGNORED)
    start = None if positions is None else document_starts(positions)
    if start is not None:
        targets[:, :-1] = targets[:, :-1].masked_fill(
            start[:, 1:] != start[:, :-1], IGNORED
        )
    return TokenBatch(ids, targets, start)


def document_starts(position_ids: Tensor) -> Tensor:
    """Return the first position of each token's document from restarting positions.

    Examples
    --------
    >>> document_starts(torch.tensor([[0, 1, 0, 1, 2]]))
    tensor([[0, 0, 2, 2, 2]])
    """
    place = torch.arange(position_ids.shape[1], device=position_ids.device)
    start = place - position_ids
    again = position_ids[:, 1:] == 0
    steps = position_ids[:, 1:] == position_ids[:, :-1] + 1
    if bool((position_ids[:, 0] != 0).any()) or not bool((again | steps).all()):
        raise ValueError(
            "`position_ids` must count 0, 1, 2, ... from each document's first token; "
            "leave them out where a row is one document."
        )
    return start


def pack(rows: Sequence[Sequence[int]], context: int) -> TokenBatch:
    """Put whole documents one after another into rows of `context` tokens.

    First fit, longest document first; a token never sees another document, and the
    last token of a document predicts nothing.

    Parameters
    ----------
    rows : sequence of token id sequences
        One for each document, its start symbol first.
    context : int

    Returns
    -------
    TokenBatch
        With `start`; each row holds whole documents, so rows are independent.

    Examples
    --------
    >>> batch = pack([[1, 5, 6], [1, 7], [1, 8, 9]], context=6)
    >>> batch.input_ids.tolist()
    [[1, 5, 6, 1, 8, 9], [1, 7, 0, 0, 0, 0]]
    >>> batch.targets[0].tolist()
    [5, 6, -100, 8, 9, -100]
    >>> batch.start[0].tolist()
    [0, 0, 0, 3, 3, 3]
    """
    longest = max((len(row) for row in rows), default=0)
    if longest > context:
        raise ValueError(
            f"`rows` holds a document of {longest} tokens, but `context` is {context}; "
            "cut it into pieces first."
        )
    if min((len(row) for row in rows), default=0) < 2:
        raise DataError(
            "`rows` is empty or holds a document of fewer than 2 tokens, which "
            "predicts nothing; remove it."
        )
    bins: list[list[Sequence[int]]] = []
    room: list[int] = []
    for row in sorted(rows, key=len, reverse=True):
        free = [i for i, left in enumerate(room) if left >= len(row)]
        if not free:
            bins.append([])
            room.append(context)
            free = [len(bins) - 1]
        bins[free[0]].append(row)
        room[free[0]] -= len(row)
    return _filled(bins, context)


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """Whole documents packed into rows; the independent unit is the row.

    A row is a cluster of whole documents, so rows are independent where documents are.
    Held-out comparison by document needs `Documents`.

    Attributes
    ----------
    rows : TokenBatch
        With `start`.
    digests : tuple of str
        Fingerprint of each text, to find a document in two corpora.
    """

    rows: TokenBatch
    digests: tuple[str, ...] = ()

    @classmethod
    def from_texts(cls, texts: Sequence[str], tokenizer: Any, context: int) -> Packed:
        """Tokenize texts, one document each, and pack them.

        Raises
        ------
        DataError
            If there is no text, or one is empty or appears twice.
        ValueError
            If one is longer than a row: its parts would lie in several rows.

        Examples
        --------
        >>> from eestim.llm import byte_tokenizer
        >>> packed = Packed.from_texts(["abc", "de", "f"], byte_tokenizer(), context=8)
        >>> packed.n_units, packed.rows.start[0].tolist()
        (2, [0, 0, 0, 0, 4, 4, 4, 7])
        """
        names = [f"document {i}" for i in range(len(texts))]
        digests = check_texts(texts, names, context)
        rows = tokenize(texts, tokenizer)
        for row, name in zip(rows, names, strict=True):
            check_predicts(row, name)
        return cls(pack(rows, context), digests)

    @property
    def n_units(self) -> int:
        """Number of rows."""
        return len(self.rows.input_ids)

    @property
    def unit(self) -> IntArray:
        """The unit of each row: itself."""
        return np.arange(self.n_units, dtype=np.int64)

    def batch(self, rows: IntArray) -> TokenBatch:
        """Return some rows."""
        index = torch.as_tensor(rows)
        start = self.rows.start
        return TokenBatch(
            self.rows.input_ids[index],
            self.rows.targets[index],
            None if start is None else start[index],
        )


def _filled(bins: Sequence[Sequence[Sequence[int]]], context: int) -> TokenBatch:
    """Return rows of documents; padding is a document of its own."""
    ids = torch.zeros(len(bins), context, dtype=torch.long)
    targets = torch.full_like(ids, IGNORED)
    start = torch.zeros_like(ids)
    for number, documents in enumerate(bins):
        begin = 0
        for row in documents:
            end = begin + len(row)
            ids[number, begin:end] = torch.tensor(row)
            targets[number, begin : end - 1] = ids[number, begin + 1 : end]
            start[number, begin:end] = begin
            begin = end
        start[number, begin:] = begin
    return TokenBatch(ids, targets, start)


def check_tokens(ids: Tensor, table: int) -> None:
    """Refuse empty rows, and token ids that the base has no embedding for."""
    if not ids.numel():
        raise ValueError(
            f"`batch` has shape {tuple(ids.shape)}, which holds no token; give at "
            "least one row of at least one token."
        )
    try:
        smallest, largest = (int(end) for end in ids.aminmax())
    except RuntimeError:  # inside vmap no value can be read
        return
    if smallest < 0:
        raise ValueError(
            f"`batch` holds token {smallest}; tokens count from 0. Padding takes any "
            "token, with 0 in `attention_mask`."
        )
    if largest >= table:
        raise ValueError(
            f"`batch` holds token {largest}, but the base has {table} "
            "embeddings; tokenize with the base's own tokenizer, or enlarge the base "
            "with resize_token_embeddings."
        )


def check_targets_known(targets: Tensor, table: int) -> None:
    """Refuse targets that are neither -100 nor a token of the base.

    A negative one would be read as token 0, one beyond the table stops a GPU.
    """
    try:
        smallest, largest = (int(end) for end in targets.aminmax())
        if smallest >= 0 and largest < table:
            return
        seen = targets[targets != IGNORED]
        wrong = seen[(seen < 0) | (seen >= table)]
    except RuntimeError:  # inside vmap no value can be read
        return
    if len(wrong):
        raise ValueError(
            f"`targets` holds {int(wrong[0])}; expected tokens from 0 to {table - 1}, "
            f"or {IGNORED} where a position predicts nothing. Tokenize with the base's "
            "own tokenizer."
        )


def _kind(value: Any) -> str:
    """Return what a value is, with shape and dtype where it is a tensor."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"a tensor of shape {tuple(value.shape)} and {value.dtype}"


def _check_mask(mask: Tensor, ids: Tensor) -> None:
    if not isinstance(mask, Tensor) or mask.shape != ids.shape:
        raise ValueError(
            f"`attention_mask` is {_kind(mask)}, `input_ids` has shape "
            f"{tuple(ids.shape)}; they must agree."
        )
    if bool((mask[:, 1:] > mask[:, :-1]).any()):
        raise ValueError(
            "`attention_mask` has a 0 before a 1: it pads on the left, or inside a "
            "row. Pad on the right (padding_side='right'), so that positions keep "
            "their place."
        )
