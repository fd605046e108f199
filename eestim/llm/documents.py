"""Texts as token blocks whose independent unit is the document."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eestim.errors import DataError
from eestim.llm.protocols import IntArray
from eestim.llm.surrogates import IGNORED

__all__ = [
    "Documents",
    "TokenBatch",
    "check_predicts",
    "check_text",
    "check_texts",
    "digest_of",
    "refuse_cut_documents",
    "refuse_leakage",
    "tokenize",
]


@dataclass(frozen=True, slots=True, eq=False)
class TokenBatch:
    """Rows of tokens with the next token of each position.

    Attributes
    ----------
    input_ids, targets : (B, T) int64 tensors
        `targets` is -100 where a position predicts nothing.
    start : (B, T) int64 tensor, optional
        First position of each token's own document, where rows hold several.
    """

    input_ids: Tensor
    targets: Tensor
    start: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Documents:
    """Documents cut into blocks of one context length; every token scored once.

    Attributes
    ----------
    tokens, targets : (n_rows, T) int64 tensors
        Blocks, padded on the right; a padded position has target -100.
    unit : (n_rows,) int64 array
        The document of each block.
    n_bytes : (n_units,) int64 array
        Length of each document in UTF-8 bytes.
    names : tuple of str
        One for each document.
    digests : tuple of str
        Fingerprint of each text, to find a document in two corpora.
    """

    tokens: Tensor
    targets: Tensor
    unit: IntArray
    n_bytes: IntArray
    names: tuple[str, ...]
    digests: tuple[str, ...]

    @classmethod
    def from_texts(
        cls,
        texts: Sequence[str],
        tokenizer: Any,
        context: int,
        names: Sequence[str] | None = None,
    ) -> Documents:
        """Tokenize texts, one document each, and cut them into blocks.

        Consecutive blocks of a document share one token, so that each token after
        the start symbol is predicted exactly once.

        Parameters
        ----------
        texts : sequence of str
        tokenizer : transformers tokenizer
        context : int
            Tokens in a block.
        names : sequence of str, optional
            Names of the documents.

        Raises
        ------
        DataError
            If there is no text, a text is empty or appears twice, its tokenizer makes
            nothing of it, or no document fills one block.
        """
        names = list(names or (f"document {i}" for i in range(len(texts))))
        digests = check_texts(texts, names, context)
        rows: list[list[int]] = []
        unit: list[int] = []
        for number, ids in enumerate(tokenize(texts, tokenizer)):
            check_predicts(ids, names[number])
            for begin in range(0, len(ids) - 1, context - 1):
                rows.append(ids[begin : begin + context])
                unit.append(number)
        longest = max(map(len, rows))
        if longest < context:
            raise DataError(
                f"`context` is {context} tokens, but the longest of the "
                f"{len(texts)} documents has {longest}; give longer text or set "
                f"context={longest} or less."
            )
        tokens, targets = _pad(rows, context)
        n_bytes = np.array([len(text.encode()) for text in texts], dtype=np.int64)
        labels = np.array(unit, dtype=np.int64)
        return cls(tokens, targets, labels, n_bytes, tuple(names), digests)

    @property
    def n_units(self) -> int:
        """Number of documents."""
        return len(self.n_bytes)

    @property
    def context(self) -> int:
        """Tokens in a block."""
        return int(self.tokens.shape[1])

    @property
    def n_tokens(self) -> IntArray:
        """Number of predicted tokens of each document, (n_units,)."""
        kept = (self.targets != IGNORED).sum(1).numpy()
        counts = np.bincount(self.unit, weights=kept, minlength=self.n_units)
        return counts.astype(np.int64)

    def batch(self, rows: IntArray) -> TokenBatch:
        """Return some blocks."""
        index = torch.as_tensor(rows)
        return TokenBatch(self.tokens[index], self.targets[index])


def tokenize(texts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    """Return token ids of each text, after one start symbol.

    Special tokens spelled out inside a text stay ordinary text.

    Raises
    ------
    ValueError
        If the tokenizer has neither a beginning nor an end symbol.
    """
    start = tokenizer.bos_token_id
    start = tokenizer.eos_token_id if start is None else start
    if start is None:
        raise ValueError(
            "`tokenizer` has neither a beginning nor an end-of-text token to start a "
            "document with; set tokenizer.bos_token."
        )
    encoded = tokenizer(
        list(texts), add_special_tokens=False, split_special_tokens=True
    )
    return [[start, *ids] for ids in encoded["input_ids"]]


def check_predicts(ids: Sequence[int], name: str) -> None:
    """Refuse a document without a token after its start symbol.

    It would count as an independent unit whose psi is zero, and shrink every interval.
    """
    if len(ids) < 2:
        raise DataError(
            f"`texts` holds {name!r}, of which the tokenizer makes no token: it "
            "predicts nothing and would count as a unit of psi zero. Remove it."
        )


def refuse_leakage(training: Any, test: Any, name: str) -> None:
    """Refuse test documents that were trained on.

    Parameters
    ----------
    training, test : Documents, other units with `digests`, or list of str
        Units without fingerprints cannot be compared and pass.
    name : str
        How messages call the test corpus.
    """
    known = dict(_named_digests(training))
    for digest, title in _named_digests(test):
        if digest in known:
            raise DataError(
                f"`{name}` holds {title!r}, the same text as the training document "
                f"{known[digest]!r}; remove it from one of them, or the held-out "
                "loss is not held out."
            )


_FEWEST_CUTS = 3  # coincidences of a few are possible, of all of them are not


def refuse_cut_documents(units: Any, tokens: Tensor, targets: Tensor) -> None:
    """Refuse rows of one document that count as independent units.

    Their psi are dependent, and an interval that takes them as independent is too
    short. Two marks: more units than documents, and a row of another unit that goes on
    with the last token that the row before it predicts.

    Parameters
    ----------
    units : Units
    tokens, targets : (n, T) tensors
        Of the first n rows.

    Raises
    ------
    DataError
        If either mark is there.
    """
    known = len(getattr(units, "digests", ()))
    cure = (
        "A unit is a document, whose psi sums over its rows: give the rows of one "
        "document one label `unit`, as Documents.from_texts does."
    )
    if 0 < known < units.n_units:
        raise DataError(
            f"`documents` has {units.n_units} units, but only {known} documents: rows "
            f"of one document would count as independent. {cure}"
        )
    labels = np.asarray(units.unit)[: len(tokens)]
    last = torch.where(targets == IGNORED, -1, torch.arange(targets.shape[1]))
    ends = targets.gather(1, last.max(1, keepdim=True).values.clamp_min(0)).squeeze(1)
    is_new = torch.as_tensor(labels[1:] != labels[:-1])
    within = is_new & (tokens[1:, 0] != tokens[0, 0])  # not at a start symbol
    goes_on = within & (tokens[1:, 0] == ends[:-1])
    if int(goes_on.sum()) >= _FEWEST_CUTS and torch.equal(goes_on, within):
        raise DataError(
            f"`documents` has {int(goes_on.sum())} rows that go on with the token that "
            f"the row before ends with (row {int(goes_on.nonzero()[0]) + 1} first), "
            f"each under another label: one document was cut into units. {cure}"
        )


def _named_digests(units: Any) -> list[tuple[str, str]]:
    """Return (fingerprint, name) of each document; by number where there is no name."""
    digests = getattr(units, "digests", ())
    if isinstance(units, list | tuple) and all(isinstance(t, str) for t in units):
        digests = [digest_of(text) for text in units]
    names = getattr(units, "names", None)
    if names is None:
        names = [f"document {number}" for number in range(len(digests))]
    return list(zip(digests, names, strict=True))


def digest_of(text: str) -> str:
    """Return the fingerprint of a text, which spaces and line ends do not change."""
    return hashlib.sha256(" ".join(text.split()).encode()).hexdigest()


def check_text(text: Any, name: str, argument: str) -> None:
    """Refuse what is no text, an empty text, and one that has no UTF-8 form."""
    if not isinstance(text, str):
        raise TypeError(
            f"`{argument}` holds a {type(text).__name__}, {name!r}; expected a str."
        )
    if not text.strip():
        raise DataError(f"`{argument}` holds an empty document, {name!r}; remove it.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"`{argument}` holds {name!r}, whose character {error.start} is half of a "
            "surrogate pair and has no UTF-8 form; clean it, for example with "
            "text.encode('utf-8', 'replace').decode()."
        ) from error


def check_texts(
    texts: Sequence[str], names: Sequence[str], context: int
) -> tuple[str, ...]:
    """Return the fingerprints of texts, after refusing empty and duplicate ones."""
    if isinstance(texts, str):
        raise TypeError("`texts` is one string; give a list, one string per document.")
    if context < 2:
        raise ValueError(f"`context` is {context}; a block needs at least 2 tokens.")
    if len(texts) == 0:
        raise DataError("`texts` is empty; give at least one document.")
    if len(names) != len(texts):
        raise ValueError(f"`names` has {len(names)} entries for {len(texts)} texts.")
    seen: dict[str, str] = {}
    for text, name in zip(texts, names, strict=True):
        check_text(text, name, "texts")
        digest = digest_of(text)
        if digest in seen:
            raise DataError(
                f"`texts` holds the same document twice, {seen[digest]!r} and "
                f"{name!r}; documents are the independent units, so remove one."
            )
        seen[digest] = name
    return tuple(seen)


def _pad(rows: Sequence[list[int]], context: int) -> tuple[Tensor, Tensor]:
    """Return (tokens, targets), padded on the right with token 0."""
    tokens = torch.zeros(len(rows), context, dtype=torch.long)
    targets = torch.full((len(rows), context), IGNORED)
    for number, row in enumerate(rows):
        ids = torch.tensor(row)
        tokens[number, : len(row)] = ids
        targets[number, : len(row) - 1] = ids[1:]
    return tokens, targets
