"""Self-contained HTML: one file with its style and its pictures inside."""

import base64
import html
import json
import re
from pathlib import Path
from typing import Any

import pandas as pd

from eestim.report.page import Block, Page, Picture, Section, Table, Text, plain
from eestim.report.tables import formatted

__all__ = ["render", "write"]

_TEMPLATE = "page.html.jinja"
_RESULTS_FORMAT = 1


def _jinja() -> Any:
    """Return jinja2.

    Raises
    ------
    ImportError
        Naming the extra that installs it.
    """
    try:
        import jinja2
    except ImportError as error:
        raise ImportError(
            "HTML reports need jinja2: pip install 'eestim[report]'"
        ) from error
    return jinja2


def _with_code(text: str) -> str:
    """Return escaped text whose backticked words are code.

    >>> _with_code("`a < b` & c")
    '<code>a &lt; b</code> &amp; c'
    """
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))


def _anchor(title: str) -> str:
    """Return a fragment identifier.

    >>> _anchor("Intervals: Grunfeld's firms")
    'intervals-grunfeld-s-firms'
    """
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def _table_view(table: Table) -> dict[str, Any]:
    frame = table.frame if table.shown is None else table.shown
    shown = formatted(frame, table.formats)
    is_number = [pd.api.types.is_numeric_dtype(frame[name]) for name in frame]
    has_stub = not isinstance(frame.index, pd.RangeIndex)
    rows = [
        {
            "stub": str(label) if has_stub else None,
            "cells": list(zip(row, is_number, strict=True)),
        }
        for label, row in zip(frame.index, shown.to_numpy().tolist(), strict=True)
    ]
    heads = [str(name).replace("_", " ") for name in frame.columns]
    head = list(zip(heads, is_number, strict=True))
    return {"kind": "table", "head": head, "rows": rows, "has_stub": has_stub}


def _view(block: Block) -> dict[str, Any]:
    match block:
        case Text():
            return {
                "kind": "text",
                "html": _with_code(block.body),
                "is_warning": block.is_warning,
            }
        case Picture():
            data = base64.b64encode(block.png).decode("ascii")
            return {
                "kind": "picture",
                "source": f"data:image/png;base64,{data}",
                "caption": _with_code(block.caption),
                "alt": block.alt,
            }
        case Table():
            caption = _with_code(block.caption)
            return _table_view(block) | {"caption": caption, "name": block.name}


def _section_view(section: Section) -> dict[str, Any]:
    return {
        "title": section.title,
        "anchor": _anchor(section.title),
        "headline": _with_code(section.headline),
        "blocks": [_view(block) for block in section.blocks],
    }


def render(page: Page) -> str:
    """Return the page as one HTML document that refers to nothing outside itself.

    Raises
    ------
    ImportError
        Without the extra ``report``.

    Examples
    --------
    >>> page = Page("Means", "Of `y`.", (Section("One", (Text("It is 3."),)),))
    >>> "<p>It is 3.</p>" in render(page)
    True
    """
    jinja2 = _jinja()
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("eestim", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text: str = environment.get_template(_TEMPLATE).render(
        title=page.title,
        lead=_with_code(page.lead),
        sections=[_section_view(section) for section in page.sections],
        facts=[(str(key), str(value)) for key, value in page.facts.items()],
    )
    return text


def _blocks(page: Page, kind: type) -> list[Any]:
    return [b for section in page.sections for b in section.blocks if type(b) is kind]


def write(page: Page, folder: Path) -> list[Path]:
    """Write a page as ``index.html``, with its tables and pictures beside it.

    Parameters
    ----------
    page : Page
    folder : Path
        An existing folder; files are added: ``index.html``, ``results.json``,
        ``tables/NAME.csv`` and ``figures/NAME.png``.

    Returns
    -------
    list of Path
        The files written.
    """
    tables, pictures = _blocks(page, Table), _blocks(page, Picture)
    files = []
    for table in tables:
        file = folder / "tables" / f"{table.name}.csv"
        file.parent.mkdir(exist_ok=True)
        keeps_index = not isinstance(table.frame.index, pd.RangeIndex)
        table.frame.to_csv(file, index=keeps_index)
        files.append(file)
    for picture in pictures:
        file = folder / "figures" / f"{picture.name}.png"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(picture.png)
        files.append(file)
    record = {
        "format": _RESULTS_FORMAT,
        "title": page.title,
        "facts": dict(page.facts),
        "headlines": {s.title: s.headline for s in page.sections},
        "tables": {t.name: t.frame.to_dict("records") for t in tables},
    }
    results = folder / "results.json"
    results.write_text(
        json.dumps(plain(record), indent=1, allow_nan=False) + "\n", encoding="utf-8"
    )
    index = folder / "index.html"
    index.write_text(render(page), encoding="utf-8")
    return [*files, results, index]
