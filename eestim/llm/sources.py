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
        _refuse_path(source, "document 0")
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
            f"expected a text, or a mapping with a text in {column!r}. Remove it, or "
            "name the column that holds the text."
        )
    _refuse_path(found, name)
    return found


def _refuse_path(text: str, name: str) -> None:
    """Refuse a text that is the name of a file: its words would be trained on."""
    is_short = len(text.encode(errors="replace")) < _LONGEST_NAME
    if not is_short or "\n" in text or not text.strip():
        return
    place = Path(text)
    is_named = place.suffix in _READERS and " " not in text
    if is_named or place.is_file():
        raise DataError(
            f"`documents` holds the text {text!r} ({name}), which is the name of a "
            "file; give Path(...) to read that file."
        )


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
        raise DataError(f"`documents` is {path}, which does not exist; check it.")
    if path.suffix in _TABLES:
        raise DataError(
            f"`documents` holds {path}, a table that would be read as one text; write "
            "its records as JSON lines (.jsonl) or Parquet, or iterate over them."
        )
    yield from _READERS.get(path.suffix, _plain)(path, column)


def _plain(path: Path, column: str) -> Iterator[tuple[str, str]]:  # noqa: ARG001 - one text
    try:
        yield str(path), path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error) from error


def _not_utf8(path: Path, error: UnicodeDecodeError) -> DataError:
    return DataError(
        f"`documents` holds {path}, which is not UTF-8 text ({error.reason} at "
        f"byte {error.start}); convert it first."
    )


def _json_lines(path: Path, column: str) -> Iterator[tuple[str, str]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            name = f"{path}:{number}"
            try:
                record = json.loads(line.decode("utf-8-sig"))
            except UnicodeDecodeError as error:
                raise _not_utf8(Path(name), error) from error
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
    try:
        file = parquet.ParquetFile(path)
    except (OSError, ValueError) as error:  # pyarrow's own are among them
        raise DataError(
            f"`documents` holds {path}, which is not a whole Parquet file ({error}); "
            "write it again."
        ) from error
    with file:
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


_LONGEST_NAME = 256  # bytes
_TABLES = (".csv", ".json", ".tsv")
_READERS = {
    ".txt": _plain,
    ".md": _plain,
    ".jsonl": _json_lines,
    ".parquet": _parquet,
}
