"""What a report is made of: sections of text, tables and pictures, as plain values.

A section can be written as JSON and read back unchanged, so that a long computation
that was interrupted need not repeat the parts it had finished.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from eestim.errors import DataError

__all__ = [
    "Block",
    "Page",
    "Picture",
    "Section",
    "Table",
    "Text",
    "as_json",
    "from_json",
    "plain",
]


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph; words between backticks are set as code.

    Attributes
    ----------
    body : str
    is_warning : bool
        Set apart, for a finding that the reader should not miss.
    """

    body: str
    is_warning: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """A table, kept as numbers and shown as text.

    Attributes
    ----------
    name : str
        Stem of its CSV file.
    frame : DataFrame
        The numbers, one row an observation; written to CSV in full precision.
    caption : str
    formats : mapping from column to format specification
        How columns of the page are written, such as ``{"difference": "+.3f"}``; four
        significant digits otherwise.
    shown : DataFrame, optional
        Replaces ``frame`` on the page where another arrangement reads better.
    """

    name: str
    frame: pd.DataFrame
    caption: str
    formats: Mapping[str, str] = field(default_factory=dict)
    shown: pd.DataFrame | None = None


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture as PNG.

    Attributes
    ----------
    name : str
        Stem of its PNG file.
    png : bytes
    caption : str
    alt : str
        What it shows, for a reader who cannot see it.
    """

    name: str
    png: bytes
    caption: str
    alt: str


Block: TypeAlias = Text | Table | Picture


@dataclass(frozen=True, slots=True)
class Section:
    """A titled part of a page.

    Attributes
    ----------
    title : str
    blocks : tuple of Text, Table and Picture
    headline : str
        What came out, in a sentence; the page lists these at its top.
    """

    title: str
    blocks: tuple[Block, ...]
    headline: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """A whole report.

    Attributes
    ----------
    title, lead : str
        Heading and the paragraph below it.
    sections : tuple of Section
    facts : mapping
        How it was made: versions, seeds, durations. Shown last.
    """

    title: str
    lead: str
    sections: tuple[Section, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)


def plain(value: Any) -> Any:
    """Return a value as JSON has it: numbers that are not finite become None.

    >>> plain({"a": np.float64(0.5), "b": [np.inf, np.int64(2)]})
    {'a': 0.5, 'b': [None, 2]}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(entry) for entry in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value


def _frame_as_json(frame: pd.DataFrame | None) -> Any:
    if frame is None:
        return None
    columns = {str(name): frame[name].tolist() for name in frame}
    kinds = {str(name): frame[name].dtype.kind for name in frame}
    index = None if isinstance(frame.index, pd.RangeIndex) else list(frame.index)
    return {"columns": columns, "kinds": kinds, "index": index}


def _frame_from_json(record: Any) -> pd.DataFrame | None:
    if record is None:
        return None
    columns = {
        name: np.asarray(values, dtype=np.float64)
        if record["kinds"][name] == "f"
        else values
        for name, values in record["columns"].items()
    }
    return pd.DataFrame(columns, index=record["index"])


def _block_as_json(block: Block) -> dict[str, Any]:
    match block:
        case Text(body, is_warning):
            return {"kind": "text", "body": body, "is_warning": is_warning}
        case Picture(name, png, caption, alt):
            text = base64.b64encode(png).decode("ascii")
            named = {"name": name, "caption": caption, "alt": alt}
            return {"kind": "picture", "png": text, **named}
        case Table():
            return {
                "kind": "table",
                "name": block.name,
                "caption": block.caption,
                "formats": dict(block.formats),
                "frame": _frame_as_json(block.frame),
                "shown": _frame_as_json(block.shown),
            }


def _block_from_json(record: dict[str, Any]) -> Block:
    kind = record.pop("kind")
    if kind == "text":
        return Text(**record)
    if kind == "picture":
        return Picture(**(record | {"png": base64.b64decode(record["png"])}))
    frame = _frame_from_json(record["frame"])
    if kind != "table" or frame is None:
        raise DataError(f"a stored section has a block of kind {kind!r}; run it again.")
    return Table(
        record["name"],
        frame,
        record["caption"],
        record["formats"],
        _frame_from_json(record["shown"]),
    )


def as_json(section: Section) -> dict[str, Any]:
    """Return a section as values that `json.dumps` writes without loss.

    >>> section = Section("Means", (Text("Three of them."),), "Done.")
    >>> from_json(as_json(section)) == section
    True
    """
    return {
        "title": section.title,
        "headline": section.headline,
        "blocks": [_block_as_json(block) for block in section.blocks],
    }


def from_json(record: dict[str, Any]) -> Section:
    """Return the section that `as_json` wrote."""
    blocks = tuple(_block_from_json(dict(block)) for block in record["blocks"])
    return Section(record["title"], blocks, record["headline"])
