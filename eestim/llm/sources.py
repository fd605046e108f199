"""Texts from files and data sets; each text is one document.

Text files, JSON lines, Parquet, and anything that iterates over texts or over records
with a text column, such as a Hugging Face data set.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from eestim.errors import DataError

__all__ = ["named_texts", "texts_of"]


def texts_of(source: Any, column: str = "text") -> tuple[list[str], list[str]]:
    """Return (names, texts) of a source, one a document.

    Parameters
    ----------
    source : str, Path, iterable, or data set
        A str is one text. A Path is a text file (one document), a ``.jsonl`` or
        ``.parquet`` file (one document a record), or a folder of such files. Otherwise
        something that iterates over texts, paths, or mappings with `column`.
    column : str
        Column that holds the text.

    Raises
    ------
    DataError
        If a file cannot be read as what its name says, or has no such column.
    TypeError
        If the source yields something else.
    """
    pairs = list(named_texts(source, column))
    return [name for name, _ in pairs], [text for _, text in pairs]


def named_texts(source: Any, column: str = "text") -> Iterator[tuple[str, str]]:
    """Yield (name, text) of a source, one document at a time; see `texts_of`."""
    if isinstance(source, str):
        yield "document 0", source
    elif isinstance(source, Path):
        yield from _of_path(source, column)
    elif isinstance(source, Iterable) and not isinstance(source, bytes | Mapping):
        for number, item in enumerate(source):
            if isinstance(item, Path):
                yield from _of_path(item, column)
            else:
                name = f"document {number}"
                yield name, _text_of(item, column, name)
    else:
        raise TypeError(
            f"`documents` is a {type(source).__name__}; expected a path, a list of "
            "texts, or records with a text column."
        )


def _text_of(item: Any, column: str, name: str) -> str:
    """Return the text of one item."""
    found = item
    if isinstance(item, Mapping):
        if column not in item:
            raise DataError(
                f"`documents` has no column {column!r} in {name}; it has "
                f"{sorted(item)}. Name the column that holds the text."
            )
        found = item[column]
    if not isinstance(found, str):
        raise TypeError(
            f"`documents` is a sequence whose {name} is a {type(found).__name__}; "
            f"expected a text, or a mapping with a text in {column!r}."
        )
    return found


def _of_path(path: Path, column: str) -> Iterator[tuple[str, str]]:
    """Yield the documents of a file or folder, in the order of names."""
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix in _READERS)
        if not files:
            raise DataError(
                f"`documents` is {path}, a folder without a file of {sorted(_READERS)}."
            )
        for file in files:
            yield from _of_path(file, column)
        return
    if not path.is_file():
        raise DataError(f"`documents` is {path}, which does not exist.")
    yield from _READERS.get(path.suffix, _plain)(path, column)


def _plain(path: Path, column: str) -> Iterator[tuple[str, str]]:  # noqa: ARG001 - one text
    try:
        yield str(path), path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"`documents` holds {path}, which is not UTF-8 text ({error.reason} at "
            f"byte {error.start}); convert it first."
        ) from error


def _json_lines(path: Path, column: str) -> Iterator[tuple[str, str]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            name = f"{path}:{number}"
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(
                    f"`documents` holds {name}, which is not a JSON record: {error}."
                ) from error
            yield name, _text_of(record, column, name)


def _parquet(path: Path, column: str) -> Iterator[tuple[str, str]]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ImportError(
            "reading Parquet needs pyarrow; install eestim[stream]."
        ) from error
    with parquet.ParquetFile(path) as file:
        if column not in file.schema_arrow.names:
            raise DataError(
                f"`documents` holds {path}, which has no column {column!r}; it has "
                f"{file.schema_arrow.names}. Name the column that holds the text."
            )
        number = 0
        for batch in file.iter_batches(batch_size=256, columns=[column]):
            for text in batch.column(0).to_pylist():
                name = f"{path}:{number}"
                yield name, _text_of(text, column, name)
                number += 1


_READERS = {
    ".txt": _plain,
    ".md": _plain,
    ".jsonl": _json_lines,
    ".parquet": _parquet,
}
