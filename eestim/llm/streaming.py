"""Documents larger than memory: read once, kept as rows of tokens on disk.

One pass over the source writes its tokens and an index; afterwards any row is one read
of a memory map. Epochs, resuming and units are therefore exactly those of `Documents`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import torch

from eestim.errors import DataError
from eestim.llm.documents import (
    TokenBatch,
    check_predicts,
    check_text,
    digest_of,
    tokenize,
)
from eestim.llm.protocols import IntArray
from eestim.llm.sources import named_texts
from eestim.llm.surrogates import IGNORED

__all__ = ["StreamedDocuments"]

_ROWS, _INDEX = "rows.i32", "index.json"
_ARRAYS = "units.npz"
_AT_ONCE = 64  # documents in memory


@dataclass(frozen=True, slots=True, eq=False)
class StreamedDocuments:
    """Rows of tokens in a folder; the independent unit is the document.

    Make one with `write`, or `open` a folder that `write` has made.

    Attributes
    ----------
    folder : Path
    rows : (n_rows, context) int32 memory map
        Tokens, -1 after a row's end.
    unit : (n_rows,) int64 array
        The document of each row.
    n_bytes : (n_units,) int64 array
        Length of each document in UTF-8 bytes.
    """

    folder: Path
    rows: npt.NDArray[np.int32] = field(repr=False)
    unit: IntArray = field(repr=False)
    n_bytes: IntArray = field(repr=False)
    _digests: npt.NDArray[np.uint8] = field(repr=False)

    @classmethod
    def write(
        cls,
        source: Any,
        tokenizer: Any,
        folder: str | Path,
        context: int,
        *,
        column: str = "text",
    ) -> StreamedDocuments:
        """Read a source once and write its rows; 64 documents are in memory at a time.

        Parameters
        ----------
        source
            As for `eestim.llm.sources.texts_of`: files, or anything that iterates.
        tokenizer : transformers tokenizer
        folder : path
            Where to write; an index that is there is replaced at the end.
        context : int
            Tokens in a row.
        column : str
            Column that holds the text.

        Raises
        ------
        DataError
            If there is no text, or one is empty or appears twice.
        """
        if context < 2:
            raise ValueError(f"`context` is {context}; a row needs at least 2 tokens.")
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        (place / _INDEX).unlink(missing_ok=True)
        kept = _Kept()
        with (place / _ROWS).open("wb") as file:
            texts = kept.checked(named_texts(source, column))
            while some := list(islice(texts, _AT_ONCE)):
                for ids in tokenize(some, tokenizer):
                    check_predicts(ids, kept.names[len(kept.n_rows)])
                    rows = _rows_of(ids, context)
                    kept.n_rows.append(len(rows))
                    file.write(rows.tobytes())
        if not kept.n_rows:
            raise DataError("`source` holds no document; give at least one.")
        unit = np.repeat(np.arange(len(kept.n_rows)), kept.n_rows)
        digests = np.frombuffer(b"".join(kept.digests), dtype=np.uint8)
        np.savez(
            place / _ARRAYS,
            unit=unit,
            n_bytes=np.array(kept.n_bytes, dtype=np.int64),
            digests=digests.reshape(-1, 32),
        )
        index = {"format": 1, "context": context, "n_rows": len(unit)}
        (place / _INDEX).write_text(json.dumps(index))
        return cls.open(place)

    @classmethod
    def open(cls, folder: str | Path) -> StreamedDocuments:
        """Open a folder that `write` has finished.

        Raises
        ------
        DataError
            If it holds no index, because it is another folder or writing was cut off,
            or a file of it is damaged.
        """
        place = Path(folder)
        if not (place / _INDEX).is_file():
            raise DataError(
                f"`folder` is {place}, which holds no {_INDEX}; write it with "
                "StreamedDocuments.write (again, if that was cut off)."
            )
        try:
            index = json.loads((place / _INDEX).read_text())
            shape = (index["n_rows"], index["context"])
            rows = np.memmap(place / _ROWS, dtype=np.int32, mode="r", shape=shape)
            with (place / _ARRAYS).open("rb") as file, np.load(file) as arrays:
                return cls(
                    place, rows, arrays["unit"], arrays["n_bytes"], arrays["digests"]
                )
        except (OSError, ValueError, KeyError, TypeError, BadZipFile) as error:
            raise DataError(
                f"`folder` is {place}, whose files are damaged ({error}); write it "
                "again with StreamedDocuments.write."
            ) from error

    @property
    def n_units(self) -> int:
        """Number of documents."""
        return len(self.n_bytes)

    @property
    def context(self) -> int:
        """Tokens in a row."""
        return int(self.rows.shape[1])

    @property
    def digests(self) -> tuple[str, ...]:
        """Fingerprint of each text, as those of `Documents`."""
        return tuple(row.tobytes().hex() for row in self._digests)

    def batch(self, rows: IntArray) -> TokenBatch:
        """Return some rows."""
        ids = torch.from_numpy(self.rows[np.asarray(rows)].astype(np.int64))
        targets = torch.full_like(ids, IGNORED)
        targets[:, :-1] = ids[:, 1:].masked_fill(ids[:, 1:] < 0, IGNORED)
        return TokenBatch(ids.clamp_min(0), targets)


class _Kept:
    """What the index needs of the documents read so far."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.digests: list[bytes] = []
        self.n_bytes: list[int] = []
        self.n_rows: list[int] = []

    def checked(self, pairs: Iterable[tuple[str, str]]) -> Iterator[str]:
        """Yield texts after refusing empty ones and duplicates."""
        seen: dict[bytes, int] = {}
        for number, (name, text) in enumerate(pairs):
            check_text(text, name, "source")
            digest = bytes.fromhex(digest_of(text))
            if digest in seen:
                raise DataError(
                    f"`source` holds the same document twice, number {seen[digest]} "
                    f"and {name!r}; documents are the independent units, so remove one."
                )
            seen[digest] = number
            self.names.append(name)
            self.digests.append(digest)
            self.n_bytes.append(len(text.encode()))
            yield text


def _rows_of(ids: list[int], context: int) -> npt.NDArray[np.int32]:
    """Return a document's rows, which share one token with the next, ended by -1."""
    begins = range(0, len(ids) - 1, context - 1)
    rows = np.full((len(begins), context), -1, dtype=np.int32)
    for row, begin in zip(rows, begins, strict=True):
        piece = ids[begin : begin + context]
        row[: len(piece)] = piece
    return rows
