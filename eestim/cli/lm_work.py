"""What the commands ``eestim lm`` do; torch is loaded when one of them runs."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

import eestim as ee
from eestim.cli import comparison
from eestim.cli.backend import backend
from eestim.cli.files import check_folder, publish, work_folder
from eestim.cli.options import named, named_paths, paths
from eestim.cli.progress import steps
from eestim.errors import DataError
from eestim.estimation import Estimate
from eestim.report.html import write
from eestim.report.page import Page, Section, plain
from eestim.report.tables import formatted

if TYPE_CHECKING:
    from eestim.llm import Documents, Evaluation, LatentPrefixLM

__all__ = [
    "Comparison",
    "FitRequest",
    "as_json",
    "as_text",
    "evaluated",
    "fitted",
    "inferred",
    "reported",
]

_EQUATIONS = ("split", "brier", "centred-iwae", "score-weighted", "noise-averaged")
_PERTURBATIONS = ("low-rank", "gated", "context-mlp", "additive", "none")


@dataclass(frozen=True, slots=True)
class FitRequest:
    """What ``eestim lm fit`` was asked for; options as on the command line."""

    train: tuple[Path, ...]
    model: str | None
    perturbation: str
    rank: int
    size: float
    equation: str
    draws: int
    steps: int
    batch_size: int
    learning_rate: float
    perturbation_rate: float
    context: int
    seed: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """What ``eestim lm evaluate`` and ``report`` were asked for."""

    models: tuple[str, ...]
    corpora: tuple[str, ...]
    train: tuple[Path, ...]
    draws: int
    context: int
    level: float
    seed: int


def _equation(name: str) -> Any:
    """Return an equation by the name on the command line."""
    llm = backend()
    made: dict[str, Callable[[], Any]] = {
        "split": lambda: llm.Split(base=llm.NoiseAveraged(), perturbation=llm.Brier()),
        "brier": llm.Brier,
        "centred-iwae": llm.CentredIWAE,
        "score-weighted": llm.ScoreWeighted,
        "noise-averaged": llm.NoiseAveraged,
    }
    if name not in made:
        raise ValueError(
            f"`--equation` must be one of {', '.join(_EQUATIONS)}; got {name!r}."
        )
    return made[name]()


def _perturbation(request: FitRequest, width: int, length: float) -> Any:
    """Return a perturbation whose size is a share of the embeddings' length."""
    llm, size = backend(), request.size * length
    options: dict[str, Any] = {"rank": request.rank, "size": size, "seed": request.seed}
    made: dict[str, Callable[[], Any]] = {
        "low-rank": lambda: llm.LowRank(width, **options),
        "gated": lambda: llm.Gated(width, **options),
        "context-mlp": lambda: llm.ContextMLP(width, **options),
        "additive": lambda: llm.Additive(width, size=size),
        "none": lambda: None,
    }
    if request.perturbation not in made:
        raise ValueError(
            f"`--perturbation` must be one of {', '.join(_PERTURBATIONS)}; got "
            f"{request.perturbation!r}."
        )
    return made[request.perturbation]()


def _documents(files: Sequence[Path], tokenizer: Any, context: int) -> "Documents":
    llm = backend()
    from eestim.llm.corpora import read_texts

    texts = read_texts(files)
    found: Documents = llm.Documents.from_texts(
        texts.texts, tokenizer, context, texts.names
    )
    return found


def fitted(request: FitRequest, out: Path, console: Console) -> str:
    """Fit and save a model; return one line on how it went.

    The model appears in ``out`` when it is finished. Until then checkpoints lie
    beside it, from which the same command goes on.
    """
    equation, files = _equation(request.equation), paths("--train", request.train)
    check_folder(out)
    llm = backend()
    from eestim.llm.experiment import embedding_length

    if request.model is None:
        tokenizer = llm.byte_tokenizer()
        base = llm.byte_model(request.context, seed=request.seed)
    else:
        loaded = llm.LatentPrefixLM.from_pretrained(request.model)
        base, tokenizer = loaded.base, loaded.tokenizer
    documents = _documents(files, tokenizer, request.context)
    width = base.get_input_embeddings().weight.shape[1]
    perturbation = _perturbation(request, width, embedding_length(base, documents))
    model = llm.LatentPrefixLM(base, perturbation, tokenizer)
    settings = asdict(request) | {"train": [str(path.absolute()) for path in files]}
    with work_folder(out, settings) as work, steps(console, "fitting") as report:
        record = llm.fit(
            model,
            documents,
            equation,
            draws=request.draws,
            steps=request.steps,
            batch_size=request.batch_size,
            learning_rate=request.learning_rate,
            perturbation_rate=request.perturbation_rate,
            seed=request.seed,
            checkpoint=work / "fit",
            progress=lambda done, total, loss: report(done, total),  # noqa: ARG005
        )
        model.save_pretrained(work / "model")
        publish(work / "model", out)
    resumed = f", resumed at {record.resumed_from}" if record.resumed_from else ""
    return (
        f"{out}: {request.steps} steps{resumed} on {record.n_units} documents "
        f"({record.passes:.2f} passes), last loss {record.losses[-1]:.3f}"
    )


def evaluated(asked: Comparison, console: Console) -> "Evaluation":
    """Return the comparison of saved models on texts."""
    folders = named("--model", asked.models)
    corpora = named_paths("--corpus", asked.corpora)
    train = paths("--train", asked.train)
    if len(dict(folders)) < max(len(folders), 2):
        raise ValueError(
            "`--model` needs at least two models with different names; the first is "
            f"the baseline. Got {[name for name, _ in folders]}."
        )
    llm = backend()
    models = {
        name: llm.LatentPrefixLM.from_pretrained(folder) for name, folder in folders
    }
    tokenizer = _shared_tokenizer(models)
    held = {
        name: _documents(files, tokenizer, asked.context)
        for name, files in corpora.items()
    }
    training = _documents(train, tokenizer, asked.context) if train else None
    with steps(console, "evaluating") as report:
        found: Evaluation = llm.evaluate(
            models,
            held,
            training=training,
            draws=asked.draws,
            level=asked.level,
            seed=asked.seed,
            progress=report,
        )
    return found


_PROBE = "The quick brown fox, 12 € and naïve."


def _shared_tokenizer(models: "dict[str, LatentPrefixLM]") -> Any:
    """Return the tokenizer of all models, which must read a text alike."""
    read = {}
    for name, model in models.items():
        if model.tokenizer is None:
            raise DataError(
                f"`--model` {name} holds no tokenizer; save one in its folder."
            )
        read[name] = model.tokenizer(_PROBE, add_special_tokens=False)["input_ids"]
    first, *others = read
    for name in others:
        if read[name] != read[first]:
            raise DataError(
                f"`--model` {name} has another tokenizer than {first}: their losses "
                "are not paired by token. Compare models of one tokenizer."
            )
    return models[first].tokenizer


def as_text(evaluation: "Evaluation") -> str:
    """Return the differences on each corpus as plain tables."""
    corpora = dict.fromkeys(evaluation.differences["corpus"])
    parts = []
    for corpus in corpora:
        table = comparison.compared(evaluation, corpus)
        shown = table.shown if table.shown is not None else table.frame
        flat = shown.rename(columns=lambda name: name.replace("\n", " "))
        flat = flat.map(lambda v: v.replace("\n", " ") if isinstance(v, str) else v)
        text = formatted(flat, table.formats).to_string(index=False)
        parts.append(f"{table.caption}\n{text}")
    return "\n\n".join([*parts, comparison.headline(evaluation).replace("`", "")])


def as_json(evaluation: "Evaluation") -> str:
    """Return levels and differences as JSON."""
    record = {
        "eestim": ee.__version__,
        "baseline": evaluation.baseline,
        "in_domain": evaluation.in_domain,
        "draws": evaluation.draws,
        "level": evaluation.level,
        "levels": evaluation.levels.to_dict("records"),
        "differences": evaluation.differences.to_dict("records"),
    }
    return json.dumps(plain(record), indent=1, allow_nan=False)


def reported(asked: Comparison, out: Path, console: Console) -> Path:
    """Write the comparison as a page and return its ``index.html``."""
    check_folder(out)
    found = evaluated(asked, console)
    section = Section(
        "Differences from the baseline",
        tuple(comparison.blocks(found)),
        comparison.headline(found),
    )
    lead = (
        f"Each model against `{found.baseline}`, paired by document; the intervals "
        "count documents, not tokens, as independent (CR2, Satterthwaite degrees of "
        f"freedom). Predictions average over {found.draws} draws of the latent."
    )
    facts = {"eestim": ee.__version__, "models": ", ".join(asked.models)}
    facts |= {"corpora": ", ".join(asked.corpora), "seed": str(asked.seed)}
    page = Page("Language models compared", lead, (section,), facts)
    with work_folder(out, {"report": facts}) as work:
        made = work / "report"
        made.mkdir()
        write(page, made)
        publish(made, out)
    return out / "index.html"


def inferred(
    model: str,
    train: Sequence[Path],
    equation: str,
    draws: int,
    passes: int,
    context: int,
    seed: int,
) -> Estimate:
    """Return the mean squared size of a model's perturbation with its sandwich."""
    solved, files = _equation(equation), paths("--train", train)
    llm = backend()
    loaded = llm.LatentPrefixLM.from_pretrained(model)
    if loaded.perturbation is None:
        raise DataError(f"`model` {model} has no perturbation to say anything about.")
    found: Estimate = llm.infer(
        loaded,
        _documents(files, loaded.tokenizer, context),
        llm.squared_size,
        solved,
        draws=draws,
        passes=passes,
        names=("squared size",),
        seed=seed,
    )
    return found
