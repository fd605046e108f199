"""Tables of estimates in plain text, Markdown, LaTeX and HTML."""

import html
import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

__all__ = [
    "formatted",
    "html_table",
    "latex_table",
    "markdown_table",
    "pipe_table",
    "plain_summary",
]


def _number(value: float) -> str:
    """Return four significant digits without exponents where that reads well.

    >>> _number(1234.5), _number(0.00012345), _number(-0.5)
    ('1234', '0.0001234', '-0.5000')
    """
    if math.isnan(value):
        return ""
    size = abs(value)
    if size != 0 and (size < 1e-4 or size >= 1e6):
        return f"{value:.3e}"
    digits = 4 if size < 1 else max(0, 4 - len(str(int(size))))
    if 0 < size < 0.1:
        digits = 3 - int(f"{size:e}".split("e")[1])
    return f"{value:.{digits}f}"


def _p_value(value: float) -> str:
    return "<0.0001" if value < 1e-4 else f"{value:.4f}"


def formatted(
    table: pd.DataFrame, formats: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """Return a table as text.

    Parameters
    ----------
    table : DataFrame
    formats : mapping from column to format specification, optional
        Other columns of floats get four significant digits, p values their own
        style; counts and text stay as they are.

    Examples
    --------
    >>> table = pd.DataFrame({"shift": [0.5, -2.0], "n": [10, 12], "p": [0.03, 1e-9]})
    >>> print(formatted(table, {"shift": "+.1f"}).to_string())
      shift   n       p
    0  +0.5  10  0.0300
    1  -2.0  12 <0.0001
    """
    given = formats or {}
    columns = {name: _as_text(table[name], given.get(str(name))) for name in table}
    return pd.DataFrame(columns, index=table.index)


def _as_text(column: "pd.Series[Any]", specification: str | None) -> "pd.Series[str]":
    if specification is not None:
        return column.map(lambda value: _specified(value, specification))
    if column.dtype.kind != "f":
        return column.astype(str)
    return column.map(_p_value if column.name == "p" else _number)


def _specified(value: Any, specification: str) -> str:
    return "" if pd.isna(value) else format(value, specification)


def pipe_table(frame: pd.DataFrame, left: int = 1) -> str:
    r"""Return a Markdown table, its index left out.

    Parameters
    ----------
    frame : DataFrame
        Shown as it is: give text where digits matter (see `formatted`).
    left : int
        Leading columns that are words, not figures: aligned on the left.

    Examples
    --------
    >>> print(pipe_table(pd.DataFrame({"method": ["a|b"], "n": [3]})))
    | method | n |
    |:---|---:|
    | a\|b | 3 |
    """
    rows = [frame.columns, *frame.astype(object).to_numpy()]
    lines = [
        "| " + " | ".join(str(cell).replace("|", r"\|") for cell in row) + " |"
        for row in rows
    ]
    rule = "|" + ":---|" * left + "---:|" * (frame.shape[1] - left)
    return "\n".join([lines[0], rule, *lines[1:]])


def _law(estimate: Any) -> str:
    dof = estimate.dof
    if estimate.dof_kind == "normal":
        return "normal"
    low, high = dof.min(), dof.max()
    text = _number(low) if low == high else f"{_number(low)} to {_number(high)}"
    return f"t, {text} degrees of freedom ({estimate.dof_kind})"


def _notes(estimate: Any, level: float, method: Any) -> list[str]:
    law = "normal" if method == "wald" else _law(estimate)
    lines = [
        f"covariance: {estimate.rule}",
        f"intervals: {level:.0%}, {law}",
        f"root: {estimate.root.status.name.lower()}, residual "
        f"{estimate.root.residual:.1e} in units of noise",
    ]
    return lines + [str(finding) for finding in estimate.findings]


def plain_summary(estimate: Any, level: float, method: Any) -> str:
    """Return the report that `print(fit)` shows."""
    table = formatted(estimate.table(level, method)).to_string()
    head = f"{estimate.n_units} units, {len(estimate.names)} parameters"
    return "\n".join([head, table, *_notes(estimate, level, method)])


def markdown_table(estimate: Any, level: float, method: Any) -> str:
    """Return a Markdown pipe table with notes."""
    table = formatted(estimate.table(level, method)).reset_index(names="")
    notes = [f"{line}  " for line in _notes(estimate, level, method)]
    return "\n".join([pipe_table(table), "", *notes])


def latex_table(estimate: Any, level: float, method: Any) -> str:
    """Return a LaTeX tabular (booktabs) with notes as comments below it."""
    table = formatted(estimate.table(level, method))
    columns = " & ".join(_escaped(str(name)) for name in table.columns)
    rows = [
        " & ".join([_escaped(str(name)), *(f"${cell}$" for cell in row)]) + r" \\"
        for name, *row in table.itertuples()
    ]
    notes = [f"% {line}" for line in _notes(estimate, level, method)]
    return "\n".join(
        [
            r"\begin{tabular}{l" + "r" * len(table.columns) + "}",
            r"\toprule",
            rf" & {columns} \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            *notes,
        ]
    )


def _escaped(text: str) -> str:
    for character in "&%$#_{}":
        text = text.replace(character, "\\" + character)
    return text.replace("^", r"\^{}").replace("~", r"\~{}")


def html_table(estimate: Any, level: float, method: Any) -> str:
    """Return an HTML fragment: the table and its notes."""
    table = formatted(estimate.table(level, method))
    notes = "<br>".join(html.escape(line) for line in _notes(estimate, level, method))
    body = table.to_html(border=0, classes="eestim", escape=True)
    return f"{body}<p class='eestim-notes'>{notes}</p>"
