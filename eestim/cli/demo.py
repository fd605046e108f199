"""The command ``eestim demo``: parts, progress, and a report that appears whole."""

import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as distribution_version
from pathlib import Path
from typing import Any

from rich.console import Console

import eestim as ee
from eestim.cli.files import check_folder, publish, work_folder, write_json
from eestim.cli.options import named_paths, paths
from eestim.cli.progress import bars
from eestim.report.html import write
from eestim.report.page import Page, Section, as_json, from_json

__all__ = ["Part", "Settings", "parts", "run_demo"]

Tick = Callable[[float, str], None]
"""Told the share of a part that is done, from 0 to 1, and what it is doing."""

REPLICATIONS = 200


@dataclass(frozen=True, slots=True)
class Settings:
    """What the demo was asked for; an interrupted run goes on under the same ones."""

    quick: bool = False
    seed: int = 0
    jobs: int = 2
    model: str | None = None
    train: tuple[Path, ...] = ()
    ood: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """Return what decides the results, as JSON has it."""
        own = asdict(self) | {"train": [str(path.absolute()) for path in self.train]}
        del own["jobs"]  # results do not depend on it
        return own | {"eestim": ee.__version__}


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the demo.

    Attributes
    ----------
    name : str
        Stem of its files.
    title : str
        What the progress bar says.
    seconds : float
        Expected duration, which weighs the bar of the whole.
    run : callable
        ``run(settings, folder, tick) -> Section``; the folder is its own and survives
        an interruption.
    """

    name: str
    title: str
    seconds: float
    run: Callable[[Settings, Path, Tick], Section]


def _intervals(settings: Settings, folder: Path, tick: Tick) -> Section:  # noqa: ARG001
    from eestim.cli.demo_intervals import section

    return section()


def _coverage(settings: Settings, folder: Path, tick: Tick) -> Section:  # noqa: ARG001
    from eestim.cli.demo_coverage import section

    return section(
        REPLICATIONS,
        settings.seed,
        settings.jobs,
        lambda done, total: tick(done / total, ""),
    )


def _synthetic(settings: Settings, folder: Path, tick: Tick) -> Section:  # noqa: ARG001
    from eestim.cli.demo_synthetic import section

    return section(settings.quick, settings.seed, tick)


def _text(settings: Settings, folder: Path, tick: Tick) -> Section:
    from eestim.cli.demo_text import section

    return section(settings, folder, tick)


def parts(settings: Settings) -> tuple[Part, ...]:
    """Return the parts in the order of the report."""
    quick = settings.quick
    return (
        Part("intervals", "intervals on real data", 2.0, _intervals),
        Part("coverage", "coverage of the intervals", 8.0, _coverage),
        Part("synthetic", "known truth", 12.0 if quick else 60.0, _synthetic),
        Part("text", "real text", 60.0 if quick else 480.0, _text),
    )


def run_demo(
    out: Path,
    settings: Settings,
    console: Console,
    chosen: tuple[Part, ...] | None = None,
) -> Path:
    """Write the report and return its ``index.html``.

    Finished parts are kept beside ``out`` until the whole report is there; an
    interrupted run with the same settings goes on from them.

    Parameters
    ----------
    out : Path
        A new or empty folder, or that of an earlier demo, which is replaced.
    settings : Settings
    console : rich Console
        Where progress is shown.
    chosen : tuple of Part, optional
        Those of `parts` by default.

    Raises
    ------
    DataError
        If the folder has other content.
    """
    _check(settings)
    check_folder(out)
    wanted = parts(settings) if chosen is None else chosen
    with work_folder(out, settings.record()) as work:
        sections, seconds = _sections(wanted, settings, work, console)
        facts = _facts(settings, seconds)
        made = work / "report"
        made.mkdir(exist_ok=True)
        write(Page(_TITLE, _lead(settings), tuple(sections), facts), made)
        publish(made, out)
    return out / "index.html"


def _sections(
    wanted: tuple[Part, ...], settings: Settings, work: Path, console: Console
) -> tuple[list[Section], dict[str, str]]:
    sections, seconds = [], {}
    with _bar(console, wanted) as advance:
        for part in wanted:
            section, took = _done(part, settings, work, advance)
            sections.append(section)
            seconds[part.title] = took
            console.print(f"{part.title}: {took} s", highlight=False)
    return sections, seconds


def _check(settings: Settings) -> None:
    """Refuse what the last part could not use, before the first begins."""
    named_paths("--ood", settings.ood)
    paths("--train", settings.train)
    if settings.jobs < 1:
        raise ValueError(f"`--jobs` must be at least 1; got {settings.jobs}.")


_TITLE = "What eestim does, on real and on synthetic data"


def _lead(settings: Settings) -> str:
    size = "small sizes (`--quick`)" if settings.quick else "full sizes"
    return (
        "Estimates as roots of estimating equations, with intervals that say what they "
        "assume: a panel regression under four covariance rules, a language model with "
        "a learnable perturbation of its prefix, and simulations that check both. "
        f"Made by `eestim demo` with {size}; every sentence about a result is written "
        "from the numbers of this run."
    )


def _done(
    part: Part,
    settings: Settings,
    work: Path,
    advance: Callable[[Part, float, str], None],
) -> tuple[Section, str]:
    """Return a part's section and seconds, taken from an interrupted run if there."""
    file = work / f"{part.name}.json"
    if file.is_file():
        record = json.loads(file.read_text(encoding="utf-8"))
        advance(part, 1.0, "")
        return from_json(record["section"]), str(record["seconds"])
    folder = work / part.name
    resumed = folder.exists()
    folder.mkdir(exist_ok=True)
    began = time.perf_counter()
    section = part.run(
        settings, folder, lambda share, doing: advance(part, share, doing)
    )
    took = time.perf_counter() - began
    told = f"{took:.0f}" + (" after an interruption" if resumed else "")
    write_json(file, {"seconds": told, "section": as_json(section)})
    advance(part, 1.0, "")
    return section, told


@contextmanager
def _bar(
    console: Console, wanted: tuple[Part, ...]
) -> Iterator[Callable[[Part, float, str], None]]:
    """Show a bar for the whole and one for the part at work, with the time left."""
    total = sum(part.seconds for part in wanted)
    with bars(console) as progress:
        whole = progress.add_task("demo", total=total)
        tasks: dict[str, Any] = {}
        shares = dict.fromkeys([part.name for part in wanted], 0.0)

        def advance(part: Part, share: float, doing: str) -> None:
            shares[part.name] = share
            if part.name not in tasks:
                tasks[part.name] = progress.add_task(part.title, total=1.0)
            told = f"{part.title}: {doing}" if doing else part.title
            bar = tasks[part.name]
            progress.update(bar, completed=share, description=told, visible=share < 1.0)
            done = sum(each.seconds * shares[each.name] for each in wanted)
            progress.update(whole, completed=done)

        yield advance


def _facts(settings: Settings, seconds: dict[str, str]) -> dict[str, Any]:
    names = ("numpy", "scipy", "pandas", "statsmodels", "torch", "transformers")
    found = {name: _version(name) for name in names}
    return {
        "eestim": ee.__version__,
        "python": platform.python_version(),
        "packages": ", ".join(f"{name} {v}" for name, v in found.items() if v),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "seed": settings.seed,
        "quick": settings.quick,
        "seconds": ", ".join(f"{title} {took}" for title, took in seconds.items()),
    }


def _version(name: str) -> str:
    try:
        return distribution_version(name)
    except PackageNotFoundError:
        return ""
