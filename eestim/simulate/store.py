"""Where results go: memory, or a folder of Parquet parts that survives a kill.

A part is written under another name, forced to disk and renamed, so that a folder
holds whole parts only, whatever stopped the run. `pandas.read_parquet(folder)` reads
it as one table.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from eestim.errors import DataError
from eestim.simulate._design import Point
from eestim.simulate._replications import Block, Plan

__all__ = ["Memory", "Parquet", "Sink", "arranged", "stored_plan"]

_FORMAT = 1
_MANIFEST = "_study.json"  # readers of Parquet folders pass over a leading underscore
_UNFINISHED = ".unfinished"
_NAME = re.compile(r"part-(?P<key>[0-9a-f]{32})-(?P<first>\d+)-(?P<last>\d+)\.parquet")
_FIXED = ("seed", "factors", "methods", "estimands", "levels", "batch")


class Sink(Protocol):
    """Where blocks go and what is there already."""

    def done(self, point: Point) -> set[int]:
        """Return the numbers of the replications held for a point."""

    def add(self, point: Point, block: Block) -> None:
        """Keep a block."""

    def tables(self, point: Point) -> Iterable[pd.DataFrame]:
        """Return what is held for a point."""


@dataclass(slots=True)
class Memory:
    """Blocks kept in memory."""

    blocks: dict[int, list[pd.DataFrame]] = field(default_factory=dict)
    numbers: dict[int, set[int]] = field(default_factory=dict)

    def done(self, point: Point) -> set[int]:
        """Return the numbers of the replications held for a point."""
        return self.numbers.get(point.number, set())

    def add(self, point: Point, block: Block) -> None:
        """Keep a block."""
        self.blocks.setdefault(point.number, []).append(block.table)
        self.numbers.setdefault(point.number, set()).update(block.numbers)

    def tables(self, point: Point) -> list[pd.DataFrame]:
        """Return what is held for a point."""
        return self.blocks.get(point.number, [])


# ------------------------------------------------------------------------- Parquet


def _pyarrow() -> Any:
    """Return pyarrow with its Parquet module.

    Raises
    ------
    ImportError
        Naming the extra that installs it.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            "`store` streams results to Parquet, which needs pyarrow: "
            "pip install 'eestim[stream]'"
        ) from error
    return pyarrow


def _replace(folder: Path, name: str, write: Any) -> None:
    """Write a file under another name, force it to disk, and rename it."""
    unfinished = folder / f"{_UNFINISHED}-{os.getpid()}-{name}"
    with unfinished.open("wb") as stream:
        write(stream)
        stream.flush()
        os.fsync(stream.fileno())
    unfinished.replace(folder / name)


@dataclass(frozen=True, slots=True)
class Parquet:
    """A folder of parts, one a block, and a file that says what the study was.

    Attributes
    ----------
    folder : Path
    """

    folder: Path

    @classmethod
    def opened(cls, folder: str | Path, plan: Plan, seed: int) -> "Parquet":
        """Return the store of a study in a new or an existing folder.

        Raises
        ------
        DataError
            If the folder holds another study, or files that are none of a store.
        ImportError
            Without the extra ``stream``.
        """
        _pyarrow()
        made = cls(Path(folder))
        made.folder.mkdir(parents=True, exist_ok=True)
        for leftover in made.folder.glob(f"{_UNFINISHED}-*"):
            leftover.unlink(missing_ok=True)
        record = _manifest(plan, seed)
        held = made.manifest()
        if held is None:
            _refuse_strangers(made.folder)
        else:
            _refuse_another(held, record, made.folder)
            names = {point["key"] for point in record["points"]}
            kept = [point for point in held["points"] if point["key"] not in names]
            record["points"] += kept
        text = json.dumps(record, indent=1) + "\n"
        _replace(made.folder, _MANIFEST, lambda stream: stream.write(text.encode()))
        return made

    def manifest(self) -> dict[str, Any] | None:
        """Return what the store says of its study, None for an empty folder."""
        file = self.folder / _MANIFEST
        if not file.is_file():
            return None
        record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if record.get("format") != _FORMAT:
            raise DataError(
                f"`store` {self.folder} has format {record.get('format')!r}; this "
                f"version reads {_FORMAT}. Update eestim, or use a new folder."
            )
        return record

    def _parts(self, point: Point) -> list[tuple[Path, int, int]]:
        parts = []
        for file in sorted(self.folder.glob(f"part-{point.name}-*.parquet")):
            match = _NAME.fullmatch(file.name)
            if match:
                parts.append((file, int(match["first"]), int(match["last"])))
        return parts

    def done(self, point: Point) -> set[int]:
        """Return the numbers of the replications held for a point."""
        numbers: set[int] = set()
        for _, first, last in self._parts(point):
            numbers.update(range(first, last + 1))
        return numbers

    def add(self, point: Point, block: Block) -> None:
        """Write a block as one part."""
        arrow = _pyarrow()
        first, last = block.numbers[0], block.numbers[-1]
        table = arrow.Table.from_pandas(block.table, preserve_index=False)
        table = table.replace_schema_metadata(
            (table.schema.metadata or {}) | {b"seconds": str(block.seconds).encode()}
        )
        name = f"part-{point.name}-{first:08d}-{last:08d}.parquet"
        _replace(
            self.folder,
            name,
            lambda stream: arrow.parquet.write_table(table, stream),
        )

    def tables(self, point: Point) -> Iterator[pd.DataFrame]:
        """Return what is held for a point, one part at a time.

        Raises
        ------
        DataError
            If a part cannot be read.
        """
        arrow = _pyarrow()
        for file, _, _ in self._parts(point):
            try:
                yield arrow.parquet.read_table(file).to_pandas()
            except (OSError, arrow.ArrowInvalid) as error:
                raise DataError(
                    f"`store` has a part that cannot be read, {file.name} ({error}); "
                    "delete it and run again."
                ) from error


def _manifest(plan: Plan, seed: int) -> dict[str, Any]:
    points = [
        {"key": point.name, "factors": point.factors, "truth": point.truth}
        for point in plan.points
    ]
    return {
        "format": _FORMAT,
        "seed": seed,
        "factors": list(plan.points[0].factors),
        "methods": list(plan.methods),
        "estimands": list(plan.estimands),
        "levels": list(plan.levels),
        "batch": plan.batch if plan.is_batched else 1,
        "points": points,
    }


def _refuse_strangers(folder: Path) -> None:
    strangers = [file.name for file in folder.iterdir()]
    if strangers:
        raise DataError(
            f"`store` {folder} holds {strangers[:3]} but no study; use an empty or a "
            "new folder."
        )


def _refuse_another(held: dict[str, Any], wanted: dict[str, Any], folder: Path) -> None:
    for name in _FIXED:
        if held[name] != wanted[name]:
            raise DataError(
                f"`store` {folder} was begun with {name} {held[name]!r}; this run has "
                f"{wanted[name]!r}. Use the same, or a new folder."
            )


def stored_plan(folder: str | Path) -> tuple[dict[str, Any], tuple[Point, ...]]:
    """Return the manifest of a store and its design points.

    Raises
    ------
    DataError
        If the folder holds no study.
    """
    record = Parquet(Path(folder)).manifest()
    if record is None:
        raise DataError(f"`store` {folder} holds no study.")
    points = tuple(
        Point(
            number,
            entry["factors"],
            tuple(int(entry["key"][k : k + 8], 16) for k in range(0, 32, 8)),
            entry["truth"],
        )
        for number, entry in enumerate(record["points"])
    )
    return record, points


# -------------------------------------------------------------------------- tables


def arranged(
    sink: Sink,
    points: Sequence[Point],
    methods: Sequence[str],
    estimands: Sequence[str],
    counts: dict[int, int],
) -> pd.DataFrame:
    """Return the table of a study: complete, in order, the same from any sink.

    Parameters
    ----------
    counts : dict from point number to int
        Replications wanted of each point; what is held beyond is left out.
    """
    tables = []
    for point in points:
        held = [table for table in sink.tables(point) if len(table)]
        if not held:
            continue
        table = pd.concat(held, ignore_index=True)
        table = table[table["replication"] < counts[point.number]]
        table = table.assign(
            point=point.number, truth=table["estimand"].map(point.truth).astype(float)
        )
        tables.append(table.assign(**point.factors))
    if not tables:
        raise DataError("no replication has been run; ask for at least one.")
    whole = pd.concat(tables, ignore_index=True)
    whole["method"] = pd.Categorical(whole["method"], list(methods))
    whole["estimand"] = pd.Categorical(whole["estimand"], list(estimands))
    for name in ("status", "message", "stream"):
        whole[name] = whole[name].astype(object)
    for name, value in points[0].factors.items():
        if isinstance(value, str):
            levels = list(dict.fromkeys(str(point.factors[name]) for point in points))
            whole[name] = pd.Categorical(whole[name], levels)
    for name in ("point", "replication", "warnings"):
        whole[name] = whole[name].astype(np.int64)
    order = ["point", "replication", "method", "estimand"]
    # Two processes that shared a store may both have run a replication.
    whole = whole.sort_values(order, kind="stable").drop_duplicates(order)
    return whole.reset_index(drop=True)
