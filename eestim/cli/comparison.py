"""What a comparison of language models says: tables, pictures and sentences."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from eestim.report.page import Block, Picture, Table, Text
from eestim.report.plots import png
from eestim.report.studies import differences, frontier

if TYPE_CHECKING:
    from eestim.llm.evaluation import Evaluation

__all__ = ["blocks", "compared", "headline"]

RAW = "bits per byte"
FITTED = "bits per byte, in-domain T"
ORACLE = "bits per byte, oracle T"
TOP = "top-1"
_INTERPOLATION = 0.0005  # bits per byte, between tabulated temperatures
_HEADS = {
    RAW: "bits per byte",
    FITTED: "in-domain temperature",
    ORACLE: "best temperature",
    TOP: "top-1 accuracy",
}


def blocks(evaluation: "Evaluation") -> list[Block]:
    """Return tables, pictures and a reading of an evaluation."""
    inside, others = _domains(evaluation)
    found: list[Block] = [compared(evaluation, name) for name in (inside, *others)]
    found += _pictures(evaluation, others)
    levels = evaluation.levels
    found.append(Table("levels", levels, "Levels", {"top-1": ".3f"}, _levels(levels)))
    found.append(Text(_reading(evaluation, others)))
    return found


def _domains(evaluation: "Evaluation") -> tuple[str, list[str]]:
    inside = evaluation.in_domain
    names = dict.fromkeys(evaluation.differences["corpus"])
    return inside, [name for name in names if name != inside]


def _told(row: Any) -> str:
    return f"{row['difference']:+.3f}\n[{row['lower']:+.3f}, {row['upper']:+.3f}]"


def _line(row: Any) -> str:
    return _told(row).replace("\n", " ")


def compared(evaluation: "Evaluation", corpus: str) -> Table:
    """Return the differences on one corpus: a row a method, a column a measure."""
    own = evaluation.differences[evaluation.differences["corpus"] == corpus]
    cells: Any = own.set_index(["model", "measure"])
    rows = []
    for model in dict.fromkeys(own["model"]):
        row: dict[str, Any] = {"method": model}
        for measure, head in _HEADS.items():
            row[head.replace(" ", "\n", 1)] = _told(cells.loc[(model, measure)])
        row["documents"] = int(cells.loc[(model, RAW)]["documents"])
        row["dof"] = float(cells.loc[(model, RAW)]["dof"])
        rows.append(row)
    return Table(
        f"differences-{corpus.replace(' ', '-')}",
        own.reset_index(drop=True),
        f"{corpus}: difference from the {evaluation.baseline} with "
        f"{evaluation.level:.0%} interval (bits per byte: lower is better; top-1: "
        "higher is better)",
        {"dof": ".1f"},
        pd.DataFrame(rows),
    )


def _pictures(evaluation: "Evaluation", others: Sequence[str]) -> list[Picture]:
    table = evaluation.differences.replace({"measure": _HEADS})
    shown = [_HEADS[RAW], _HEADS[ORACLE]]
    base = evaluation.baseline
    forest = differences(table, shown, f"bits per byte, minus the {base}")
    found = [
        Picture(
            "differences",
            png(forest),
            f"Differences from the {base} with {evaluation.level:.0%} intervals; left "
            "of the dashed line is better. Squares: after the temperature that is best "
            "in that domain, on both sides, which removes calibration and leaves "
            "extrapolation.",
            "Forest plots of the differences of each method, one panel a corpus.",
        )
    ]
    if others:
        plane = frontier(table, evaluation.in_domain, shown, f"minus the {base}")
        found.append(
            Picture(
                "frontier",
                png(plane),
                f"What a method gains outside (down) for its price on "
                f"{evaluation.in_domain} (right), in bits per byte; the {base} is "
                "where the dashed lines cross.",
                "Scatter plots of out-of-domain against in-domain differences.",
            )
        )
    return found


def _levels(levels: pd.DataFrame) -> pd.DataFrame:
    """Return the columns of levels that the page shows."""
    return pd.DataFrame(
        {
            "corpus": levels["corpus"].mask(levels["corpus"].duplicated(), ""),
            "method": levels["model"],
            "bits per byte": levels["bits_per_byte"],
            "best temperature": levels["oracle_t"],
            "at best temperature": levels["bits_per_byte_oracle_t"],
            "top-1": levels["top1"],
        }
    )


def _sign(row: Any) -> str:
    """Say which side of zero an interval lies on, as far as the digits shown go.

    Losses between tabulated temperatures are interpolated: two models that differ by
    a temperature alone differ by that error.

    >>> _sign({"difference": -0.15, "lower": -0.2, "upper": -0.1})
    'better than'
    >>> _sign({"difference": -0.0004, "lower": -0.0005, "upper": -0.0003})
    'not distinguishable from'
    """
    if abs(row["difference"]) < _INTERPOLATION:
        return "not distinguishable from"
    if row["upper"] < 0:
        return "better than"
    return "worse than" if row["lower"] > 0 else "not distinguishable from"


def _best(table: pd.DataFrame, corpus: str, measure: str) -> Any:
    """Return the row of the lowest difference.

    After the best temperature a method that is the base with a temperature is the base
    itself, and is left out where there are others.
    """
    own = table[(table["corpus"] == corpus) & (table["measure"] == measure)]
    rows: list[Any] = own.to_dict("records")
    if measure == ORACLE:
        rows = [row for row in rows if not _is_zero(row)] or rows
    return min(rows, key=lambda row: row["difference"])


def _is_zero(row: Any) -> bool:
    """Whether a difference is nothing but the error of interpolation."""
    ends = (row["difference"], row["lower"], row["upper"])
    return all(abs(end) < _INTERPOLATION for end in ends)


def _reading(evaluation: "Evaluation", others: Sequence[str]) -> str:
    table, base = evaluation.differences, evaluation.baseline
    sentences = []
    for corpus in (evaluation.in_domain, *others):
        own = table[(table["corpus"] == corpus) & (table["measure"] == ORACLE)]
        said: dict[str, list[str]] = {}
        rows: list[Any] = own.to_dict("records")
        for row in rows:
            said.setdefault(_sign(row), []).append(f"`{row['model']}`")
        parts = [f"{', '.join(n)} {verdict} the {base}" for verdict, n in said.items()]
        sentences.append(f"{corpus}: {'; '.join(parts)}")
    return (
        "After the best temperature of each domain, by the intervals above. "
        f"{'. '.join(sentences)}."
    )


def headline(evaluation: "Evaluation") -> str:
    """Say which method has the lowest loss, raw and after the best temperature."""
    table, (inside, others) = evaluation.differences, _domains(evaluation)
    cells: Any = table.set_index(["corpus", "model", "measure"])
    parts = []
    for corpus in others or [inside]:
        raw, fair = _best(table, corpus, RAW), _best(table, corpus, ORACLE)
        price = cells.loc[(inside, fair["model"], ORACLE)]["difference"]
        own = f"that of the {fair['baseline']}, the nearest to it"
        of = "it is that of" if fair["difference"] < 0 else f"it is {own} that of"
        parts.append(
            f"on {corpus} the lowest loss is that of `{raw['model']}` ({_line(raw)} "
            f"bits per byte, {_sign(raw)} the {raw['baseline']}); after the best "
            f"temperature {of} `{fair['model']}` ({_line(fair)}, "
            f"{_sign(fair)} the {fair['baseline']}; {inside} {price:+.3f})"
        )
    return "; ".join(parts) + "."
