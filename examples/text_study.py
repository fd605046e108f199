"""Every method and its rivals on real text, over several training seeds.

A byte-level model learns one domain and meets others. Each seed trains its own base;
from it every method trains on the same blocks for the same number of steps, and all are
scored on the same held-out documents: raw, after the temperature fitted in domain, and
after the best temperature of each domain. Fits are checkpointed and the sums of each
seed are kept, so a run that is interrupted goes on where it stopped.

    python examples/text_study.py                       # tiny: seconds
    python examples/text_study.py --full --seeds 5 --out study \
        --ood stories=FOLDER --ood german=FOLDER        # hours

docs/text_sources.py makes such folders from public packages.
"""

import argparse
import copy
import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from eestim.llm import (
    IWAE,
    Brier,
    CentredIWAE,
    ContextMLP,
    Documents,
    Gated,
    LatentPrefixLM,
    LowRank,
    NoiseAveraged,
    SharedDraw,
    Split,
    SurpriseGated,
    byte_model,
    byte_tokenizer,
    corpora,
    evaluate,
    fit,
    over_seeds,
)
from eestim.llm.baselines import (
    Deletion,
    EmbeddingDropout,
    NEFTune,
    Neighbours,
    SymNoise,
    fixed,
    with_lora,
    with_soft_prompt,
)
from eestim.llm.experiment import Tempered, embedding_length
from eestim.llm.surprise import Reference

TOKENIZER = byte_tokenizer()


@dataclass(frozen=True)
class Sizes:
    """How much of everything. A step is `passes` rows through the model, for all."""

    context: int = 48
    width: int = 16
    modules: int | None = 4
    documents: int = 6
    left_out: int = 4
    characters: int = 100
    pretrain_steps: int = 5
    steps: int = 5
    passes: int = 8
    predict_draws: int = 2
    rank: int = 4
    rate: float = 5e-4
    perturbation_rate: float = 3e-3
    start: float = 0.25  # scale of the surprise gate, in lengths of an embedding


FULL = Sizes(128, 96, None, 32, 60, 512, 1000, 300, 16, 8, 16)
SCALES = (0.2, 0.35, 0.5)  # of the fixed perturbations, in lengths of an embedding
GATE_RATE = 0.1
# Shares of the steps in which base and surprise gate take turns, and the base's texts.
TURNS = (("base", 0.2, "train"), ("gate", 0.15, None), ("base", 0.65, "both"))


def texts(
    sizes: Sizes, others: dict[str, str], tokenizer: Any = TOKENIZER
) -> dict[str, Documents]:
    """Return training and held-out documents; the split does not depend on the seed.

    The base is trained on "train". Every method goes on with "train" and "left out";
    where it says so, the perturbation learns from "left out" alone.
    """
    prose = corpora.documentation(sizes.modules)
    rest, held = corpora.split(prose, sizes.documents + sizes.documents // 2)
    rest, left_out = corpora.split(rest, sizes.left_out)
    test = range(sizes.documents)
    sets = {
        "train": rest,
        "left out": left_out,
        "both": corpora.Corpus(
            names=rest.names + left_out.names, texts=rest.texts + left_out.texts
        ),
        "calibration": held.take(range(sizes.documents, len(held))),
        "in domain": held.take(test),
        "code": corpora.code(sizes.modules),
        "licences": corpora.distinct(corpora.licences().truncated(sizes.characters)),
        **{name: corpora.read_texts([folder]) for name, folder in others.items()},
    }
    found = {}
    for name, corpus in sets.items():
        if name not in TRAINED:
            corpus = corpus.truncated(sizes.characters)
            if len(corpus) > sizes.documents:
                corpus = corpora.split(corpus, sizes.documents)[1]
        found[name] = Documents.from_texts(
            corpus.texts, tokenizer, sizes.context, corpus.names
        )
    return found


TRAINED = ("train", "left out", "both")


@dataclass
class Run:
    """One seed: its base, its data, and where fits are checkpointed."""

    base: Any
    sets: dict[str, Documents]
    sizes: Sizes
    seed: int
    store: Path | None
    tokenizer: Any = TOKENIZER

    @property
    def length(self) -> float:
        """Root mean square length of the embeddings of the training text."""
        return embedding_length(self.base, self.sets["train"])

    def model(self, perturbation: Any = None, base: Any = None) -> LatentPrefixLM:
        """Return a model on a copy of the base, or on another base."""
        chosen = copy.deepcopy(self.base) if base is None else base
        return LatentPrefixLM(chosen, perturbation, self.tokenizer, reference=self.base)

    def noise(self, size: float, kind: Any = LowRank, **options: Any) -> Any:
        """Return a perturbation of a size in lengths of an embedding."""
        options = {"rank": min(self.sizes.rank, self.sizes.width)} | options
        return kind(
            self.sizes.width, size=size * self.length, seed=self.seed, **options
        )

    def fit(
        self,
        model: Any,
        equation: Any,
        draws: int,
        name: str,
        *,
        data: str = "both",
        share: float = 1.0,
        **options: Any,
    ) -> Any:
        """Train for a share of the steps; each is as many passes for every method."""
        fit(
            model,
            self.sets[data],
            equation,
            draws=draws,
            steps=max(1, round(share * self.sizes.steps)),
            batch_size=max(1, self.sizes.passes // draws),
            average_from=0.5,
            seed=self.seed + 1,
            every=50,
            warmup=5,
            checkpoint=None if self.store is None else self.store / slug(name),
            **{
                "learning_rate": self.sizes.rate,
                "perturbation_rate": self.sizes.perturbation_rate,
            }
            | options,
        )
        return model


def slug(name: str) -> str:
    """Return a name that suits a folder."""
    return "".join(c if c.isalnum() or c == "." else "-" for c in name)


def simple(run: Run) -> dict[str, Callable[[], tuple[Any, Any, int]]]:
    """Return (model, equation, draws) of the methods that are one fit."""
    width, context = run.sizes.width, run.sizes.context
    # The size of their noise is a tenth of an embedding; they predict without it.
    alpha = 0.1 * run.length * math.sqrt(context)
    plain, split = NoiseAveraged(), Split(base=NoiseAveraged(), perturbation=Brier())

    def latent(perturbation: Any, equation: Any = plain, draws: int = 1) -> Any:
        return run.model(perturbation), equation, draws

    def adapted(add: Any) -> Any:
        model = run.model(base=add(copy.deepcopy(run.base), seed=run.seed))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora" in name or "prompt" in name)
        return model, plain, 1

    def scaled(size: float) -> Callable[[], Any]:
        return lambda: latent(fixed(run.noise(size, rank=width)))

    noise = run.noise
    return {
        "continued training": lambda: latent(None),
        "NEFTune": lambda: latent(NEFTune(width, alpha * 3**0.5, length=context)),
        "SymNoise": lambda: latent(SymNoise(width, alpha, length=context), draws=2),
        "embedding dropout": lambda: latent(EmbeddingDropout(width, 0.1)),
        "word dropout": lambda: latent(EmbeddingDropout(width, 0.05, whole=True)),
        "neighbours": lambda: latent(Neighbours.of(run.base, 0.05)),
        "deletion": lambda: latent(Deletion(0.05)),
        "soft prompt": lambda: adapted(with_soft_prompt),
        "LoRA": lambda: adapted(with_lora),
        **{f"fixed {size:g}": scaled(size) for size in SCALES},
        "noise-averaged, learned": lambda: latent(noise(0.3)),
        "shared draw, learned": lambda: latent(
            noise(0.3), Split(plain, SharedDraw()), 4
        ),
        "IWAE, learned": lambda: latent(noise(0.3), Split(plain, IWAE()), 4),
        "split": lambda: latent(noise(0.3), split, 4),
        "split, held": lambda: latent(noise(0.3, Gated, held=True), split, 4),
        "split, context": lambda: latent(noise(0.3, ContextMLP, held=True), split, 4),
    }


def surprise(run: Run, data: str = "left out", *, slow: bool = True) -> Any:
    """Return the model whose noise follows the surprise of the prefix.

    The base learns under the noise that the gate gives, then the gate from documents
    that no base parameter has seen: on those that the base was trained on, surprise
    says nothing of how noise helps. When the gate has learned, the base goes on with
    the left-out documents too, as in every method.
    """
    gate = run.noise(
        run.sizes.start, SurpriseGated, rank=run.sizes.width, most=3.0, slow=slow
    )
    gate.directions.requires_grad_(False)
    model = run.model(gate)
    learned = [value for value in gate.parameters() if value.requires_grad]
    kind = "slow" if slow else "free"
    for turn, (part, share, texts) in enumerate(TURNS):
        is_gate = part == "gate"
        model.base.requires_grad_(not is_gate)
        for value in learned:
            value.requires_grad_(is_gate)
        run.fit(
            model,
            CentredIWAE(group=4) if is_gate else NoiseAveraged(),
            8 if is_gate else 1,
            f"surprise {kind} {data} {turn}",
            data=texts or data,
            share=share,
            perturbation_rate=GATE_RATE,
        )
    return model


class SurpriseTempered(torch.nn.Module):
    """A plain model whose temperature follows the surprise of the prefix.

    The rival that knows what the gate knows and has no latent: log T is linear in the
    features of the reference.
    """

    def __init__(self, model: LatentPrefixLM, reference: Reference) -> None:
        super().__init__()
        self.model, self.reference = model, reference
        self.slope = torch.nn.Parameter(torch.zeros(5))
        self.level = torch.nn.Parameter(torch.zeros(()))

    def draw_logits(self, batch: Any, draws: int, generator: Any) -> torch.Tensor:
        """Return logits over the temperature."""
        with torch.no_grad():
            logits = self.model.draw_logits(batch, draws, generator)
        known = self.reference.features(batch.input_ids)
        return logits * (-self.level - known @ self.slope).exp().unsqueeze(-1)

    def targets(self, batch: Any) -> torch.Tensor:
        """Return the model's targets."""
        return self.model.targets(batch)


def tempered(run: Run, model: LatentPrefixLM, name: str) -> Any:
    """Return the model with a temperature learned from left-out documents."""
    latent = model.perturbation is not None
    return run.fit(
        SurpriseTempered(model, Reference(run.base)),
        CentredIWAE(group=4) if latent else NoiseAveraged(),
        8 if latent else 1,
        f"{name} tempered",
        data="left out",
        share=0.25,
        learning_rate=2e-2,
    )


def methods(
    run: Run, plain: LatentPrefixLM, wanted: Collection[str] | None
) -> Iterator[tuple[str, Any]]:
    """Train one wanted method after another; yield its name and what predicts."""

    def is_wanted(name: str) -> bool:
        return wanted is None or name in wanted

    yield "base", plain
    yield "base, temperature", Tempered(plain, 1.15)
    yield "base, surprise temperature", tempered(run, plain, "base")
    for name, make in simple(run).items():
        if not is_wanted(name):
            continue
        model, equation, draws = make()
        fitted = run.fit(model, equation, draws, name)
        yield name, fitted.without_latent() if name in QUIET else fitted
        if name in ("continued training", "fixed 0.35"):
            yield f"{name}, surprise temperature", tempered(run, fitted, name)
    gated = surprise(run)
    yield "surprise", gated
    yield "surprise, surprise temperature", tempered(run, gated, "surprise")
    if is_wanted("surprise, free level"):
        yield "surprise, free level", surprise(run, slow=False)
    if is_wanted("surprise, from training text"):
        yield "surprise, from training text", surprise(run, "train")


# Methods near the frontier, for more seeds than all of them can have.
CONTENDERS = (
    "continued training",
    "NEFTune",
    *(f"fixed {size:g}" for size in SCALES),
    "noise-averaged, learned",
    "split",
    "split, held",
)
QUIET = ("NEFTune", "SymNoise")  # trained with noise, predict without


def one_seed(
    sets: dict[str, Documents],
    sizes: Sizes,
    seed: int,
    out: Path | None,
    wanted: Collection[str] | None = None,
) -> pd.DataFrame:
    """Train every method from one base; return the sums of each held-out document.

    A method's sums are stored when it is done, and read where they are.
    """
    store = None if out is None else out / f"seed-{seed}"
    done = None if out is None else out / f"documents-{seed}.parquet"
    if done is not None and done.is_file():
        return pd.read_parquet(done)
    # Soft prompts take eight positions of the context.
    base = byte_model(sizes.context + 8, width=sizes.width, seed=seed)
    run = Run(base, sets, sizes, seed, store)
    plain = LatentPrefixLM(base, None, TOKENIZER)
    fit(
        plain,
        sets["train"],
        NoiseAveraged(),
        draws=1,
        steps=sizes.pretrain_steps,
        batch_size=sizes.passes,
        learning_rate=4e-3,
        weight_decay=0.01,
        seed=seed,
        every=50,
        checkpoint=None if store is None else store / "base",
    )
    held = {
        name: part
        for name, part in sets.items()
        if name not in (*TRAINED, "calibration")
    }
    parts = []
    for name, model in methods(run, plain, wanted):
        kept = None if store is None else store / f"{slug(name)}.parquet"
        if kept is None or not kept.is_file():
            part = evaluate(
                {name: model},
                held,
                calibration=sets["calibration"],
                training=sets["both"],
                draws=sizes.predict_draws,
            ).documents
            if kept is not None:
                part.to_parquet(kept, index=False)
        else:
            part = pd.read_parquet(kept)
        parts.append(part)
        print(f"seed {seed}: {name}", flush=True)
    # Corpus by corpus, as one evaluation of all methods would have them.
    found = pd.concat(parts, ignore_index=True)
    order = found["corpus"].map({name: i for i, name in enumerate(held)})
    found = found.iloc[order.argsort(kind="stable")].reset_index(drop=True)
    if done is not None:
        found.to_parquet(done, index=False)
    return found


def table(seeds: list[pd.DataFrame], measure: str) -> pd.DataFrame:
    """Return difference and interval of each method (rows) in each domain (columns)."""
    found = over_seeds(seeds, measure)
    text = [
        f"{row.difference:+.3f} [{row.lower:+.3f}, {row.upper:+.3f}]"
        for row in found.itertuples()
    ]
    wide = found.assign(text=text).pivot(index="model", columns="corpus", values="text")
    return wide.loc[found["model"].unique(), found["corpus"].unique()]


def main() -> None:
    """Run the study and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--full", action="store_true", help="the sizes of the docs")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", type=int, help="train this seed and stop")
    parser.add_argument(
        "--contenders", action="store_true", help="only methods near the frontier"
    )
    parser.add_argument("--out", type=Path, help="folder of checkpoints and sums")
    parser.add_argument("--ood", action="append", default=[], metavar="NAME=FOLDER")
    chosen = parser.parse_args()
    sizes = FULL if chosen.full else Sizes()
    others = dict(entry.split("=", 1) for entry in chosen.ood)
    torch.manual_seed(0)  # nothing draws from it; peft's start is seeded apart
    sets = texts(sizes, others)
    wanted = CONTENDERS if chosen.contenders else None
    if chosen.only is not None:
        one_seed(sets, sizes, chosen.only, chosen.out, wanted)
        return
    seeds = [
        one_seed(sets, sizes, seed, chosen.out, wanted) for seed in range(chosen.seeds)
    ]
    shared = set.intersection(*(set(found["model"]) for found in seeds))
    seeds = [
        found[found["model"].isin(shared)].reset_index(drop=True) for found in seeds
    ]
    for measure in ("bits per byte", "bits per byte, oracle T", "top-1"):
        print(f"\n{measure}, difference from the base, intervals over all domains")
        print(table(seeds, measure).to_string())


if __name__ == "__main__":
    main()
