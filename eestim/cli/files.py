"""Output folders: nothing half-written, nothing of the user's overwritten."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from eestim.errors import DataError

__all__ = ["check_folder", "publish", "read_table", "work_folder", "write_json"]

_MANIFEST = ".eestim-report.json"
_SETTINGS = "settings.json"
_READERS: dict[str, Callable[[Path], Any]] = {
    ".csv": pd.read_csv,
    ".tsv": lambda path: pd.read_csv(path, sep="\t"),
    ".parquet": pd.read_parquet,
}


def read_table(path: Path) -> pd.DataFrame:
    """Return a table from a csv, tsv or parquet file (csv and tsv may be gzipped).

    Raises
    ------
    DataError
        If the file is absent, has another ending, or cannot be read.
    """
    ending = path.suffixes[-2] if path.suffix == ".gz" else path.suffix
    reader = _READERS.get(ending.lower())
    if reader is None:
        raise DataError(
            f"`data` {path} ends in {path.suffix or 'nothing'!r}; give a file that "
            f"ends in {', '.join(_READERS)} (csv and tsv also with .gz)."
        )
    if not path.is_file():
        raise DataError(f"`data` {path} is not a file; check the path.")
    try:
        table: pd.DataFrame = reader(path)
    except (ValueError, OSError) as error:
        raise DataError(f"`data` {path} cannot be read: {error}") from error
    if table.empty:
        raise DataError(f"`data` {path} has no rows.")
    return table


def _own_files(folder: Path) -> set[str] | None:
    """Return what an earlier report wrote into a folder; None if there was none."""
    try:
        record = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        return {*record["files"], _MANIFEST}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def check_folder(folder: Path) -> None:
    """Refuse a folder whose content is not an earlier report.

    Raises
    ------
    DataError
        Naming what stands in the way.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise DataError(f"`out` {folder} is a file; name a folder.")
    found = {str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir()}
    foreign = sorted(found - (_own_files(folder) or set()))
    if foreign:
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        raise DataError(
            f"`out` {folder} has other content ({', '.join(foreign[:3])}{more}); name "
            "a new or empty folder."
        )


@contextmanager
def work_folder(folder: Path, settings: dict[str, Any]) -> Iterator[Path]:
    """Give the folder beside ``folder`` where unfinished work is kept.

    Work of an interrupted run with the same settings is kept; other work is
    discarded, because its results would not belong to this run. The folder is removed
    at the end, and after a failure that left nothing to go on from.

    Raises
    ------
    DataError
        If the folder has content of another origin.
    """
    path = folder.absolute()
    work = path.with_name(path.name + ".part")
    wanted = json.loads(json.dumps(settings))
    if _settings_of(work) != wanted:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        write_json(work / _SETTINGS, wanted)
    try:
        yield work
    except BaseException:
        if {p.name for p in work.rglob("*") if p.is_file()} <= {_SETTINGS}:
            shutil.rmtree(work, ignore_errors=True)
        raise
    shutil.rmtree(work, ignore_errors=True)


def _settings_of(work: Path) -> Any:
    try:
        return json.loads((work / _SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        if work.exists() and (work.is_file() or any(work.iterdir())):
            raise DataError(
                f"`out`: unfinished work goes to {work}, which has other content; "
                "move it away or name another folder."
            ) from None
    return None


def write_json(path: Path, record: Any) -> None:
    """Write JSON so that a reader sees the whole file or none."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(record, allow_nan=True), encoding="utf-8")
    temporary.replace(path)


def publish(made: Path, folder: Path) -> None:
    """Move a finished report to its place, over an earlier one.

    Raises
    ------
    DataError
        If the folder got other content in the meantime.
    """
    files = [str(p.relative_to(made)) for p in made.rglob("*") if p.is_file()]
    write_json(made / _MANIFEST, {"files": sorted(files)})
    check_folder(folder)
    if folder.is_dir():
        shutil.rmtree(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    made.replace(folder)
