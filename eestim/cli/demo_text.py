"""Part (b) of the demo, second half: latent-prefix models on real text."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from eestim.cli import comparison
from eestim.cli.backend import backend
from eestim.cli.options import named_paths
from eestim.report.page import Block, Section, Table, Text

if TYPE_CHECKING:
    from eestim.cli.demo import Settings
    from eestim.llm.experiment import Plan, TextResult

__all__ = ["section", "section_from"]


def section(
    settings: "Settings", folder: Path, tick: Callable[[float, str], None]
) -> Section:
    """Run the experiment on text and return its section.

    Fits are checkpointed in ``folder``, from which an interrupted run goes on.
    """
    backend()
    from eestim.llm.experiment import FULL, QUICK, text_experiment

    plan = QUICK if settings.quick else FULL
    found = text_experiment(
        plan,
        model=settings.model,
        train=list(settings.train) or None,
        ood=named_paths("--ood", settings.ood) or None,
        checkpoint=folder,
        seed=settings.seed,
        report=_shares(plan, settings.model is None, tick),
    )
    return section_from(found, is_embedded=settings.model is None)


def _shares(
    plan: "Plan", is_embedded: bool, tick: Callable[[float, str], None]
) -> Callable[[str, int, int], None]:
    """Return a report of stages as a share of the whole, weighted by rows passed."""
    fits = len(plan.fixed_sizes) + 3
    weights = {
        "training the base": plan.pretrain_steps * plan.pretrain_batch * is_embedded,
        "evaluating": fits * (plan.held_out + plan.calibration) * plan.predict_draws,
    }
    each = plan.steps * plan.batch_size * plan.draws
    total = sum(weights.values()) + fits * each
    finished: dict[str, int] = {}

    def report(label: str, done: int, of: int) -> None:
        stage = label.split(", loss")[0]
        finished[stage] = weights.get(stage, each) * done // max(of, 1)
        tick(min(1.0, sum(finished.values()) / total), label)

    return report


def section_from(found: "TextResult", is_embedded: bool) -> Section:
    """Return the section of results that are there already."""
    blocks: list[Block] = [
        Text(_design(found, is_embedded)),
        Table("corpora", found.corpora, "Documents", {"bytes": ",d", "tokens": ",d"}),
        Table(
            "training",
            found.training,
            "What each method was given; sizes in units of the embeddings' length, "
            "seconds of this run",
            _FORMATS,
            found.training.drop(columns=["equation", "draws"]),
        ),
        *comparison.blocks(found.evaluation),
    ]
    said = comparison.headline(found.evaluation)
    return Section("A language model in and out of domain", tuple(blocks), said)


_FORMATS = {
    "passes": ".2f",
    "size_before": ".2f",
    "size_after": ".2f",
    "seconds": ".0f",
}


def _design(found: "TextResult", is_embedded: bool) -> str:
    plan = found.plan
    size = sum(p.numel() for p in found.model.base.parameters())
    base = (
        f"The base is a byte-level causal transformer of {size:,} parameters, trained "
        f"here for {plan.pretrain_steps} steps on documentation prose"
        if is_embedded
        else "The base is the model given"
    )
    return (
        f"{base}. Every method then goes on from it for {plan.steps} steps of "
        f"{plan.batch_size} blocks on the same prose. A perturbation moves each prefix "
        "embedding by `C z` with a Gaussian `z` of its own, and predictions average "
        f"over {plan.predict_draws} draws. Fixed perturbations keep random directions "
        "at the size named (in units of the embeddings' length); learned ones are "
        "trained with the base, by noise-averaging or, in the split method, by the "
        "unbiased Brier equation. The temperature rival is the base with one scalar, "
        "chosen to cost 0.01 bits a byte in domain. Differences are paired by document "
        "and the intervals count documents, not tokens, as independent (CR2, "
        "Satterthwaite degrees of freedom). They hold for these trained models: the "
        "variation between training seeds is not in them, and each is for one "
        "comparison, not for all at once."
    )
