"""The commands ``eestim lm``: fit, evaluate, infer and report of a language model."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from eestim.cli.options import resumable

__all__ = ["lm"]

lm = typer.Typer(help="Latent-prefix language models.", no_args_is_help=True)

_Models = Annotated[
    list[str],
    typer.Option("--model", help="NAME=FOLDER; the first is the baseline."),
]
_Corpora = Annotated[
    list[str],
    typer.Option("--corpus", help="NAME=FILES; the first is the training domain."),
]
_Train = Annotated[
    list[Path], typer.Option(help="Text files or folders, one document a file.")
]
_Context = Annotated[int, typer.Option(help="Tokens in a block.")]
_Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
_EQUATIONS = "split, brier, centred-iwae, score-weighted or noise-averaged."


@lm.command()
def fit(
    out: Annotated[Path, typer.Argument(help="Folder of the model; new or empty.")],
    train: _Train,
    model: Annotated[
        str | None, typer.Option(help="Folder or id; the byte model by default.")
    ] = None,
    perturbation: Annotated[
        str, typer.Option(help="low-rank, gated, context-mlp, additive or none.")
    ] = "low-rank",
    rank: Annotated[int, typer.Option(help="Dimension of the latent.")] = 16,
    size: Annotated[
        float, typer.Option(help="Start, in units of the embeddings' length.")
    ] = 0.3,
    equation: Annotated[str, typer.Option(help=_EQUATIONS)] = "split",
    draws: Annotated[int, typer.Option(help="Latent draws of each step.")] = 4,
    steps: int = 200,
    batch_size: int = 8,
    learning_rate: float = 3e-4,
    perturbation_rate: float = 3e-3,
    context: _Context = 128,
    seed: _Seed = 0,
) -> None:
    """Fit a latent-prefix model by stochastic descent; a killed run goes on."""
    from eestim.cli import lm_work as work

    request = work.FitRequest(
        train=tuple(train),
        model=model,
        perturbation=perturbation,
        rank=rank,
        size=size,
        equation=equation,
        draws=draws,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        perturbation_rate=perturbation_rate,
        context=context,
        seed=seed,
    )
    with resumable():
        typer.echo(work.fitted(request, out, Console(stderr=True)))


@lm.command()
def evaluate(
    model: _Models,
    corpus: _Corpora,
    train: Annotated[
        list[Path] | None,
        typer.Option(help="Training texts; a test document among them is refused."),
    ] = None,
    draws: Annotated[int, typer.Option(help="Latent draws of a prediction.")] = 16,
    context: _Context = 128,
    level: float = 0.95,
    seed: _Seed = 0,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare models on held-out texts: paired, clustered by document."""
    from eestim.cli import lm_work as work

    asked = work.Comparison(
        tuple(model), tuple(corpus), tuple(train or ()), draws, context, level, seed
    )
    found = work.evaluated(asked, Console(stderr=True))
    typer.echo(work.as_json(found) if json else work.as_text(found))


@lm.command()
def report(
    out: Annotated[Path, typer.Argument(help="Folder of the report; new or empty.")],
    model: _Models,
    corpus: _Corpora,
    train: Annotated[
        list[Path] | None,
        typer.Option(help="Training texts; a test document among them is refused."),
    ] = None,
    draws: Annotated[int, typer.Option(help="Latent draws of a prediction.")] = 16,
    context: _Context = 128,
    level: float = 0.95,
    seed: _Seed = 0,
) -> None:
    """Write the comparison as a self-contained page with tables and pictures."""
    from eestim.cli import lm_work as work

    asked = work.Comparison(
        tuple(model), tuple(corpus), tuple(train or ()), draws, context, level, seed
    )
    typer.echo(f"report: {work.reported(asked, out, Console(stderr=True))}")


@lm.command()
def infer(
    model: Annotated[str, typer.Argument(help="Folder of a fitted model.")],
    train: _Train,
    equation: Annotated[str, typer.Option(help=_EQUATIONS)] = "brier",
    draws: Annotated[int, typer.Option(help="Latent draws, as in training.")] = 4,
    passes: Annotated[int, typer.Option(help="Sets of draws averaged over.")] = 2,
    context: _Context = 128,
    level: float = 0.95,
    seed: _Seed = 0,
) -> None:
    """Print the mean squared size of the perturbation with its sandwich interval."""
    from eestim.cli import lm_work as work

    estimate = work.inferred(
        model, tuple(train), equation, draws, passes, context, seed
    )
    typer.echo(estimate.summary(level))
