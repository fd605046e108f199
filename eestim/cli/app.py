"""The commands, their options, and how failures are told."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from eestim.cli.lm import lm
from eestim.cli.options import Interrupted, resumable
from eestim.errors import EestimError

__all__ = ["app", "run"]

app = typer.Typer(
    name="eestim",
    help="Estimating equations: estimates, honest intervals, and a demo.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(lm, name="lm")

# What a user can mend. Anything else is a defect and keeps its traceback.
_BAD_INPUT = (EestimError, ValueError, OSError, ImportError)
_STOPPED = 130  # 128 + SIGINT, as shells have it


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        app(given, prog_name="eestim")
    except SystemExit as done:  # how the parser ends, well or badly
        return done.code if isinstance(done.code, int) else 0
    except Interrupted:
        _tell("interrupted; run the same command again to go on where it stopped.")
        return _STOPPED
    except _BAD_INPUT as error:
        if "--traceback" in given:
            raise
        _tell(_one_line(error))
        return 1
    return 0


def _tell(message: str) -> None:
    Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(
        f"error: {message}"
    )


def _one_line(error: BaseException) -> str:
    r"""Return a message without line breaks.

    >>> _one_line(ValueError("first\n  second"))
    'first second'
    """
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}; check the path."
    return " ".join(str(error).split()) or type(error).__name__


@app.callback()
def _options(
    traceback: Annotated[  # read by `run`, before anything is parsed
        bool, typer.Option("--traceback", help="Show where an error came from.")
    ] = False,
) -> None:
    """Estimating equations: estimates, honest intervals, and a demo."""


@app.command()
def version() -> None:
    """Print the version."""
    import eestim

    typer.echo(eestim.__version__)


@app.command()
def fit(
    formula: Annotated[str, typer.Argument(help="For instance 'y ~ x + C(group)'.")],
    data: Annotated[Path, typer.Argument(help="A csv, tsv or parquet file.")],
    family: Annotated[
        str, typer.Option(help="gaussian, binomial or poisson.")
    ] = "gaussian",
    link: Annotated[
        str | None, typer.Option(help="The canonical link by default.")
    ] = None,
    covariance: Annotated[
        str | None,
        typer.Option(
            help="model, opg, hc0 to hc5, hc4m, cr0, cr1, cr1p, cr1s, cr2, cr3. "
            "By default hc1, or cr1s with --cluster."
        ),
    ] = None,
    cluster: Annotated[
        list[str] | None,
        typer.Option(help="A column of clusters; repeat for several ways."),
    ] = None,
    offset: Annotated[str | None, typer.Option(help="A column.")] = None,
    exposure: Annotated[str | None, typer.Option(help="A column.")] = None,
    na: Annotated[
        str, typer.Option(help="Rows with missing values: raise or drop.")
    ] = "raise",
    level: Annotated[float, typer.Option(help="Coverage of the intervals.")] = 0.95,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    save: Annotated[
        Path | None, typer.Option(help="Write the estimate to this file.")
    ] = None,
) -> None:
    """Fit a linear or generalized linear model and print its table."""
    from eestim.cli import fit as fitting

    request = fitting.Request(
        formula=formula,
        data=data,
        family=family,
        link=link,
        covariance=covariance,
        clusters=tuple(cluster or ()),
        offset=offset,
        exposure=exposure,
        na=na,
    )
    estimate = fitting.estimate_from(request)
    fitting.check_level(level)
    if save is not None:
        fitting.save_new(estimate, save)
    shown = fitting.as_json(estimate, formula, level) if json else None
    typer.echo(estimate.summary(level) if shown is None else shown)


@app.command()
def check(
    equation: Annotated[
        str, typer.Argument(help="MODULE:EQUATION or FILE.py:EQUATION, or a factory.")
    ],
    data: Annotated[
        Path | None, typer.Option(help="A csv, tsv or parquet file for a factory.")
    ] = None,
    examples: Annotated[int, typer.Option(help="How many examples are drawn.")] = 20,
    seed: Annotated[int, typer.Option(help="Seed of the examples.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check the properties of an estimating equation; status 1 where one fails."""
    from eestim.cli import check as checking

    request = checking.Request(equation, data, examples, seed, json)
    cause, report = checking.checked(request, Console(stderr=True))
    typer.echo(report)
    if cause:
        _tell(cause)
        raise typer.Exit(1)


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option(help="Folder of the report; new, empty, or an older demo.")
    ] = Path("eestim-demo"),
    quick: Annotated[
        bool, typer.Option("--quick", help="Small sizes: at most two minutes.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(help="Hugging Face folder or id instead of the byte model."),
    ] = None,
    train: Annotated[
        list[Path] | None,
        typer.Option(help="Text files or folders to train on; repeat for several."),
    ] = None,
    ood: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FILES: a domain to test on; repeat for several."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    jobs: Annotated[int, typer.Option(help="Processes of the coverage study.")] = 2,
) -> None:
    """Write a report: intervals on real data, extrapolation, coverage."""
    from eestim.cli.demo import Settings, run_demo

    settings = Settings(
        quick=quick,
        seed=seed,
        jobs=jobs,
        model=model,
        train=tuple(train or ()),
        ood=tuple(ood or ()),
    )
    with resumable():
        index = run_demo(out, settings, Console(stderr=True))
    typer.echo(f"report: {index}")


@app.command()
def simulate(
    study: Annotated[
        str, typer.Argument(help="FILE.py, or FILE.py:NAME where it has several.")
    ],
    replications: Annotated[
        int, typer.Option(help="At each design point; the most there can be.")
    ] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    jobs: Annotated[int, typer.Option(help="Worker processes.")] = 1,
    store: Annotated[
        Path | None,
        typer.Option(help="Folder of every replication; FILE-store by default."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the report; FILE-report by default."),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(help="MEASURE=ERROR: stop a design point at this error."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="At most 50 replications.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Run a simulation study, or go on with it, and write its report."""
    from eestim.cli.simulate import Request, as_json, run_study

    request = Request(study, replications, seed, jobs, store, out, until, quick)
    with resumable():
        results, index = run_study(request, Console(stderr=True))
    typer.echo(as_json(results, index) if json else f"{results}\nreport: {index}")
