"""The command ``eestim simulate``: a study from a Python file, watched and reported."""

import importlib.util
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bars
from rich.table import Table

import eestim as ee
from eestim.cli.files import check_folder, publish, work_folder
from eestim.errors import DataError
from eestim.report.html import write
from eestim.report.page import plain
from eestim.simulate import Precision, Progress, Results, Study
from eestim.simulate.report import study_page

__all__ = ["Request", "as_json", "load_study", "run_study", "watching"]

_QUICK = 50  # replications of a design point with --quick
_LOG_SECONDS = 10.0  # between two lines where no bar can be drawn
_BROKEN = (TypeError, NameError, AttributeError, ImportError)  # of the user's code
Watch = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Request:
    """What ``eestim simulate`` was asked for; options as on the command line."""

    study: str
    replications: int = 1000
    seed: int = 0
    jobs: int = 1
    store: Path | None = None
    out: Path | None = None
    until: str | None = None
    quick: bool = False

    @property
    def file(self) -> Path:
        """The Python file."""
        return Path(self.study.rpartition(".py")[0] + ".py")

    @property
    def name(self) -> str:
        """The name after the colon, empty if there is none."""
        return self.study.rpartition(".py")[2].removeprefix(":")

    @property
    def count(self) -> int:
        """Replications of each design point."""
        return min(self.replications, _QUICK) if self.quick else self.replications

    def beside(self, ending: str) -> Path:
        """Return a folder named after the file, in the working directory."""
        return Path(f"{self.file.stem}-{ending}")


# ------------------------------------------------------------------------ the study


def load_study(file: Path, name: str = "") -> tuple[Study, ModuleType]:
    """Return the study that a Python file defines, and the file as a module.

    Parameters
    ----------
    file : Path
        Run as a module that is not ``__main__``.
    name : str
        Of the study in it; needed where there are several.

    Raises
    ------
    DataError
        If the file is absent, fails, or does not define the study.
    """
    if file.suffix != ".py" or not file.is_file():
        raise DataError(
            f"`study` {file} is not a Python file; give FILE.py or FILE.py:NAME."
        )
    module = _run_file(file)
    found = {key: value for key, value in vars(module).items() if _is_study(value)}
    if name:
        if name not in found:
            raise DataError(
                f"`study` {file} has no Study named {name!r}; it has {list(found)}."
            )
        return found[name], module
    if len({id(study) for study in found.values()}) != 1:
        raise DataError(
            f"`study` {file} has {len(found)} values of the class "
            f"eestim.simulate.Study ({', '.join(found) or 'none'}); one was expected, "
            "or name it: FILE.py:NAME."
        )
    return next(iter(found.values())), module


def _is_study(value: Any) -> bool:
    return isinstance(value, Study)


def _run_file(file: Path) -> ModuleType:
    """Return a file as a module whose functions travel to workers by value."""
    name = f"eestim_study_{file.stem}"
    specification = importlib.util.spec_from_file_location(name, file)
    if specification is None or specification.loader is None:
        raise DataError(f"`study` {file} cannot be read as Python.")
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    folder = str(file.absolute().parent)
    if folder not in sys.path:  # as for a script: it may import its neighbours
        sys.path.insert(0, folder)
    try:
        specification.loader.exec_module(module)
    except OSError:
        raise
    except Exception as error:
        raise DataError(
            f"`study` {file} fails with {type(error).__name__}: {error}; run it with "
            "python, or see --traceback."
        ) from error
    _cloudpickle().register_pickle_by_value(module)
    return module


def _cloudpickle() -> Any:
    """Return the cloudpickle that joblib sends functions with: its own before 1.6."""
    try:
        return importlib.import_module("joblib.externals.cloudpickle")
    except ModuleNotFoundError:
        return importlib.import_module("cloudpickle")


def _described(module: ModuleType, file: Path) -> tuple[str, str]:
    """Return title and lead: the first and the second paragraph of the docstring."""
    parts = (module.__doc__ or file.stem).strip().split("\n\n")
    title = " ".join(parts[0].split()).removesuffix(".")
    return title, " ".join(parts[1].split()) if len(parts) > 1 else ""


def _precision(text: str | None) -> Precision | None:
    """Return what ``MEASURE=ERROR`` means.

    >>> _precision("coverage=0.005").mcse
    0.005
    """
    if text is None:
        return None
    measure, _, error = text.partition("=")
    try:
        return Precision(measure, float(error))
    except ValueError as mistake:
        raise ValueError(
            f"`--until` {text!r} is not MEASURE=ERROR with a positive error, such as "
            "coverage=0.005."
        ) from mistake


# ------------------------------------------------------------------------- watching


def _left(seconds: float) -> str:
    """Return a duration to read.

    >>> _left(75), _left(7322)
    ('1:15', '2:02:02')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _pace(told: Progress) -> str:
    failed = f", {told.failures} failures" if told.failures else ""
    return f"{told.rate:.1f} replications/s, {_left(told.seconds_left)} left{failed}"


def _coverages(told: Progress) -> list[tuple[str, str]]:
    return [
        (method, f"{share:.4f} ({error:.4f})")
        for method, (share, error) in told.coverage.items()
    ]


@contextmanager
def watching(console: Console, total: int) -> Iterator[Watch]:
    """Show how far a study is; a line now and then where it is no terminal."""
    if not console.is_terminal:
        yield _logging(console)
        return
    bars = Bars(
        TextColumn("replications"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[pace]}"),
        console=console,
    )
    task = bars.add_task("", total=total, pace="starting")
    with Live(bars, console=console, transient=True, refresh_per_second=4) as live:

        def watch(told: Progress) -> None:
            bars.update(task, completed=told.done, total=told.total, pace=_pace(told))
            live.update(Group(bars, _coverage_table(told)))

        yield watch


def _coverage_table(told: Progress) -> Table:
    table = Table("method", "coverage so far (error)", box=None, pad_edge=False)
    for row in _coverages(told):
        table.add_row(*row)
    return table


def _logging(console: Console) -> Watch:
    last = time.monotonic()

    def watch(told: Progress) -> None:
        nonlocal last
        if time.monotonic() - last < _LOG_SECONDS:
            return
        last = time.monotonic()
        parts = [f"{method} covers {shown}" for method, shown in _coverages(told)]
        line = ", ".join([f"{told.done}/{told.total}", _pace(told), *parts])
        console.print(line, highlight=False, soft_wrap=True, markup=False)

    return watch


# -------------------------------------------------------------------------- running


def run_study(request: Request, console: Console) -> tuple[Results, Path]:
    """Run a study, or what is missing of it, and write its report.

    Parameters
    ----------
    request : Request
    console : rich Console
        Where progress is shown.

    Returns
    -------
    Results and the Path of ``index.html``

    Raises
    ------
    DataError
        If the file, the store or the folder of the report cannot be used, or if the
        study's own code is broken.
    """
    until = _precision(request.until)
    _check(request)
    out = request.out or request.beside("report")
    store = request.store or request.beside("store")
    check_folder(out)
    study, module = load_study(request.file, request.name)
    began = time.perf_counter()
    total = request.count * len(study.points)
    with watching(console, total) as watch:
        results = _results(study, request, store, until, watch)
    seconds = time.perf_counter() - began
    _warn_of_failures(results, console)
    title, lead = _described(module, request.file)
    page = study_page(results, title, lead, _facts(request, store, seconds))
    with work_folder(out, {"study": str(request.file)}) as work:
        made = work / "report"
        made.mkdir(exist_ok=True)
        write(page, made)
        publish(made, out)
    return results, out / "index.html"


def _warn_of_failures(results: Results, console: Console) -> None:
    lost = int((results.table["status"] != "ok").sum())
    if lost:
        console.print(
            f"warning: {lost} of {len(results.table)} results are failures; the "
            "report counts them by method and cause.",
            highlight=False,
            soft_wrap=True,
        )


def _check(request: Request) -> None:
    for option in ("replications", "jobs"):
        if getattr(request, option) < 1:
            given = getattr(request, option)
            raise ValueError(f"`--{option}` must be at least 1; got {given}.")
    if request.seed < 0:
        raise ValueError(f"`--seed` must not be negative; got {request.seed}.")


def _results(
    study: Study, request: Request, store: Path, until: Precision | None, watch: Watch
) -> Results:
    try:
        return study.run(
            request.count,
            request.seed,
            request.jobs,
            store,
            until=until,
            progress=watch,
        )
    except _BROKEN as error:
        raise DataError(
            f"`study` {request.file} stops with {type(error).__name__}: {error}; see "
            "--traceback."
        ) from error


def _facts(request: Request, store: Path, seconds: float) -> dict[str, Any]:
    return {
        "eestim": ee.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "file": request.file.name,
        "every replication": f"Parquet in {store.name}",
        "jobs": request.jobs,
        "seconds of the last run": f"{seconds:.0f}",
    }


def as_json(results: Results, index: Path) -> str:
    """Return what a study says as JSON: performance, failures, and how it was made.

    Rows of ``performance`` and ``failures`` are those of `Results.performance` and
    `Results.failures`.
    """
    record = {
        "eestim": ee.__version__,
        "seed": results.seed,
        "levels": list(results.levels),
        "factors": list(results.factors),
        "methods": list(results.methods),
        "points": results.points.reset_index().to_dict("records"),
        "performance": results.performance().to_dict("records"),
        "failures": results.failures().to_dict("records"),
        "report": str(index),
    }
    return json.dumps(plain(record), indent=1, allow_nan=False)
