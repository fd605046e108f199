r"""The experiment on real text that the demo runs, as records without any plotting.

A language model is trained on one domain and met with others: every method against the
base, with temperature as the first rival and a fixed random perturbation as the second.
The synthetic case beside it is `eestim.llm.recovery`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Generator, Tensor, nn

from eestim.errors import DataError
from eestim.llm import corpora
from eestim.llm.base import byte_model, byte_tokenizer
from eestim.llm.corpora import Corpus, refuse_shared_texts
from eestim.llm.documents import Documents, tokenize
from eestim.llm.equations import Brier, NoiseAveraged, Split
from eestim.llm.evaluation import Evaluation, evaluate
from eestim.llm.heldout import score_documents
from eestim.llm.limits import check_device
from eestim.llm.perturbations import LowRank, Perturbation
from eestim.llm.prefix import LatentPrefixLM
from eestim.llm.recipe import Fit
from eestim.llm.recovery import (
    Report,
    SyntheticResult,
    step_report,
    synthetic_experiment,
)
from eestim.llm.surrogates import LatentEquation
from eestim.llm.training import fit

__all__ = [
    "FULL",
    "QUICK",
    "Plan",
    "SyntheticResult",
    "Tempered",
    "TextResult",
    "synthetic_experiment",
    "text_experiment",
]


@dataclass(frozen=True, slots=True)
class Plan:
    """Sizes of the experiment on real text.

    Attributes
    ----------
    context : int
        Tokens in a block.
    modules : int or None
        Standard modules read for documentation; None for all.
    pretrain_steps, pretrain_batch, pretrain_rate
        Training of the embedded base.
    steps, batch_size, draws, learning_rate
        Further training, the same for every method.
    predict_draws : int
    held_out, calibration : int
        Documents for the test, and for the in-domain temperature.
    characters : int
        First characters of each held-out document that are scored.
    other_documents : int
        Documents of each embedded out-of-domain corpus, at most.
    fixed_sizes : tuple of float
        Scales of the fixed random perturbation, in units of the root mean square
        length of the embeddings.
    learned_size : float
        Start of the learned ones.
    rank : int
    """

    context: int = 128
    modules: int | None = None
    pretrain_steps: int = 1000
    pretrain_batch: int = 16
    pretrain_rate: float = 4e-3
    steps: int = 150
    batch_size: int = 8
    draws: int = 4
    learning_rate: float = 3e-4
    perturbation_rate: float = 3e-3
    predict_draws: int = 8
    held_out: int = 40
    calibration: int = 20
    characters: int = 700
    other_documents: int = 30
    fixed_sizes: tuple[float, ...] = (0.1, 0.2, 0.4)
    learned_size: float = 0.3
    rank: int = 16


FULL = Plan()
QUICK = Plan(
    modules=60,
    pretrain_steps=120,
    steps=20,
    batch_size=4,
    predict_draws=4,
    characters=300,
    other_documents=12,
    fixed_sizes=(0.2,),
)


@dataclass(frozen=True, slots=True, eq=False)
class TextResult:
    """The experiment on real text.

    Attributes
    ----------
    evaluation : Evaluation
        Levels and paired differences from the base, see `evaluate`.
    training : DataFrame
        One row a method: equation, steps, trained parameters, size of the
        perturbation before and after (relative to the embeddings), loss, seconds.
    corpora : DataFrame
        Documents, bytes and use of each corpus.
    plan : Plan
    model : LatentPrefixLM
        The model of the last method, to save or to generate from.
    """

    evaluation: Evaluation
    training: pd.DataFrame
    corpora: pd.DataFrame
    plan: Plan
    model: LatentPrefixLM


class Tempered(nn.Module):
    """A latent model whose averaged predictions are raised to the power 1 / T.

    Parameters
    ----------
    model : LatentModel
        Without a latent, so that averaging and tempering commute.
    temperature : float
    """

    def __init__(self, model: LatentPrefixLM, temperature: float) -> None:
        super().__init__()
        if model.has_latent:
            raise ValueError("`model` has a latent; temper its averaged law instead.")
        self.model = model
        self.temperature = temperature

    def draw_logits(self, batch: Any, draws: int, generator: Generator) -> Tensor:
        """Return the model's logits divided by the temperature."""
        return self.model.draw_logits(batch, draws, generator) / self.temperature

    def targets(self, batch: Any) -> Tensor:
        """Return the model's targets."""
        return self.model.targets(batch)


def text_experiment(
    plan: Plan = FULL,
    *,
    model: str | Path | None = None,
    train: Sequence[str | Path] | None = None,
    ood: Mapping[str, Sequence[str | Path]] | None = None,
    checkpoint: str | Path | None = None,
    device: str = "cpu",
    seed: int = 0,
    report: Report | None = None,
) -> TextResult:
    """Train every method from one base on one domain; compare in it and outside.

    Parameters
    ----------
    plan : Plan
    model : folder or Hugging Face id, optional
        A causal model to start from; by default the embedded byte model, trained
        here.
    train : files or folders, optional
        In-domain texts, one document a file; by default documentation prose.
    ood : mapping of name to files, optional
        Out-of-domain texts; by default code and licences.
    checkpoint : folder, optional
        Where fits are checkpointed, so that a killed run resumes.
    device : str
    seed : int
    report : callable, optional
        Called as ``report(label, done, total)`` within each stage.

    Raises
    ------
    DataError
        If a model folder has no weights, a text is too short, a document is in two
        places, or too few documents are left to hold out.
    """
    place = check_device(device)  # before any work
    base, tokenizer, is_embedded = _base(model, plan, seed)
    sets = _corpora(plan, train, ood, seed)
    blocks = _blocks(sets, tokenizer, _context(base, plan))
    training, calibration = blocks.pop("train"), blocks.pop("calibration")
    base.to(place)
    store = None if checkpoint is None else Path(checkpoint)
    records: list[dict[str, Any]] = []
    if is_embedded:
        plain = LatentPrefixLM(base, None, tokenizer)
        records.append(_pretrained(plain, training, plan, seed, store, report))
    length = embedding_length(base, training)
    models = _rivals(base, tokenizer, calibration)
    rate = plan.learning_rate if is_embedded else plan.learning_rate / 10
    for name, (perturbation, equation) in _methods(plan, base, length, seed).items():
        made = LatentPrefixLM(copy.deepcopy(base), perturbation, tokenizer).to(place)
        if perturbation is not None:
            perturbation.requires_grad_("fixed" not in name)
        before = _size(made)
        record = fit(
            made,
            training,
            equation,
            draws=1 if perturbation is None else plan.draws,
            steps=plan.steps,
            batch_size=plan.batch_size,
            learning_rate=rate,
            perturbation_rate=plan.perturbation_rate,
            warmup=min(10, plan.steps // 4),
            average_from=0.5,
            seed=seed + 1,
            checkpoint=None if store is None else store / _folder(name),
            every=25,
            progress=step_report(report, name, 0, plan.steps),
        )
        records.append(_record(name, record, made, before, length))
        models[name] = made
    evaluation = evaluate(
        models,
        blocks,
        calibration=calibration,
        training=training,
        draws=plan.predict_draws,
        seed=seed,
        progress=_evaluating(report),
    )
    described = {"train": training, "calibration": calibration, **blocks}
    return TextResult(
        evaluation, pd.DataFrame(records), _described(described), plan, made
    )


def _context(base: Any, plan: Plan) -> int:
    """Return the tokens of a block: the plan's, or fewer where the base takes fewer."""
    own = getattr(base.config, "max_position_embeddings", None)
    return plan.context if own is None else min(plan.context, int(own))


def _blocks(
    sets: Mapping[str, Corpus], tokenizer: Any, context: int
) -> dict[str, Documents]:
    """Return each corpus in blocks; held-out texts may be shorter than a block."""
    found = {}
    for name, part in sets.items():
        length = context
        if name != "train":
            length = min(context, max(map(len, tokenize(part.texts, tokenizer))))
        found[name] = Documents.from_texts(part.texts, tokenizer, length, part.names)
    return found


def _pretrained(
    plain: LatentPrefixLM,
    training: Documents,
    plan: Plan,
    seed: int,
    store: Path | None,
    report: Report | None,
) -> dict[str, Any]:
    """Train the embedded base and return its row of `TextResult.training`."""
    label = "training the base"
    record = fit(
        plain,
        training,
        NoiseAveraged(),
        draws=1,
        steps=plan.pretrain_steps,
        batch_size=plan.pretrain_batch,
        learning_rate=plan.pretrain_rate,
        warmup=min(50, plan.pretrain_steps // 4),
        weight_decay=0.01,
        seed=seed,
        checkpoint=None if store is None else store / "pretraining",
        progress=step_report(report, label, 0, plan.pretrain_steps),
    )
    return _record(label, record, None, 0.0, 1.0)


def embedding_length(base: Any, documents: Documents) -> float:
    """Return the root mean square length of the embeddings of a text's tokens."""
    table = base.get_input_embeddings().weight.detach()
    count = torch.bincount(documents.tokens.flatten(), minlength=len(table))
    share = count.to(table) / count.sum()
    return float((table.square().sum(1) * share).sum().sqrt())


def _base(model: str | Path | None, plan: Plan, seed: int) -> tuple[Any, Any, bool]:
    """Return (base, tokenizer, whether it is the embedded one)."""
    if model is None:
        return byte_model(plan.context, seed=seed), byte_tokenizer(), True
    loaded = LatentPrefixLM.from_pretrained(model)
    if loaded.tokenizer is None:
        raise DataError(
            f"`model` is {model}, which holds no tokenizer; save one beside it with "
            "tokenizer.save_pretrained."
        )
    return loaded.base, loaded.tokenizer, False


def _corpora(
    plan: Plan,
    train: Sequence[str | Path] | None,
    ood: Mapping[str, Sequence[str | Path]] | None,
    seed: int,
) -> dict[str, Corpus]:
    """Return train, calibration, the in-domain test and the other domains."""
    prose = (
        corpora.documentation(plan.modules, seed)
        if train is None
        else corpora.read_texts(train)
    )
    wanted = plan.held_out + plan.calibration
    if train is not None:
        wanted = min(wanted, len(prose) // 2)
    if wanted < 4:
        raise DataError(
            f"`train` holds {len(prose)} documents; at least 8 are needed, so that "
            "half of them can be held out. Split long files into documents."
        )
    rest, held = corpora.split(prose, wanted, seed)
    n_test = max(2, round(wanted * plan.held_out / (plan.held_out + plan.calibration)))
    found = {
        "train": rest,
        "calibration": held.take(range(n_test, wanted)).truncated(plan.characters),
        "in domain": held.take(range(n_test)).truncated(plan.characters),
    }
    if ood is None:
        code = corpora.code(plan.other_documents, seed)
        legal = corpora.distinct(corpora.licences().truncated(plan.characters))
        others = {"code": code, "licences": legal}
    else:
        others = {name: corpora.read_texts(paths) for name, paths in ood.items()}
    for name, corpus in others.items():
        refuse_shared_texts(prose, corpus, name)
    return found | {n: c.truncated(plan.characters) for n, c in others.items()}


def _rivals(base: Any, tokenizer: Any, calibration: Documents) -> dict[str, nn.Module]:
    """Return the base, and the base at the temperature that costs 0.01 bits a byte."""
    plain = LatentPrefixLM(base, None, tokenizer)
    held = score_documents(plain, calibration)
    budget = held.raw.sum() + 0.01 * math.log(2.0) * calibration.n_bytes.sum()
    grid = np.linspace(1.0, 1.6, 121)
    allowed = [t for t in grid if held.at(float(t)).sum() <= budget]
    return {
        "base": plain,
        "base, temperature": Tempered(plain, float(max(allowed, default=1.0))),
    }


def _methods(
    plan: Plan, base: Any, length: float, seed: int
) -> dict[str, tuple[Perturbation | None, LatentEquation]]:
    """Return the perturbation and the equation of each method."""
    width = base.get_input_embeddings().weight.shape[1]
    rank = min(plan.rank, width)

    def perturbation(size: float) -> LowRank:
        return LowRank(width, rank, size * length, seed=seed)

    found: dict[str, tuple[Perturbation | None, LatentEquation]] = {
        "continued training": (None, NoiseAveraged())
    }
    for size in plan.fixed_sizes:
        found[f"noise-averaged, fixed {size:g}"] = (perturbation(size), NoiseAveraged())
    found["noise-averaged, learned"] = (
        perturbation(plan.learned_size),
        NoiseAveraged(),
    )
    found["split: noise-averaged, Brier"] = (
        perturbation(plan.learned_size),
        Split(base=NoiseAveraged(), perturbation=Brier()),
    )
    return found


def _size(model: LatentPrefixLM) -> float:
    """Return the root mean square size of a model's perturbation."""
    if model.perturbation is None:
        return 0.0
    table = model.base.get_input_embeddings().weight
    with torch.no_grad():
        return float(model.perturbation.squared_size(table).sqrt())


def _record(
    name: str, record: Fit, model: LatentPrefixLM | None, before: float, length: float
) -> dict[str, Any]:
    """Return one row of `TextResult.training`."""
    tail = max(1, len(record.losses) // 10)
    return {
        "method": name,
        "equation": record.recipe.equation,
        "draws": record.recipe.draws,
        "steps": record.recipe.steps,
        "passes": record.passes,
        "size_before": before / length,
        "size_after": 0.0 if model is None else _size(model) / length,
        "first_loss": float(record.losses[:tail].mean()),
        "last_loss": float(record.losses[-tail:].mean()),
        "seconds": record.seconds,
    }


def _folder(name: str) -> str:
    return "".join(c if c.isalnum() or c == "." else "-" for c in name)


def _evaluating(report: Report | None) -> Callable[[int, int], None] | None:
    if report is None:
        return None
    return lambda done, total: report("evaluating", done, total)


def _described(sets: Mapping[str, Documents]) -> pd.DataFrame:
    """Return the size of each corpus."""
    return pd.DataFrame(
        [
            {
                "corpus": name,
                "documents": part.n_units,
                "bytes": int(part.n_bytes.sum()),
                "tokens": int(part.n_tokens.sum()),
            }
            for name, part in sets.items()
        ]
    )
