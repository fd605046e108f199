"""Every method and its rivals on real text, over several training seeds.

A byte-level model learns one domain and meets others. Each seed trains its own base;
from it every method trains on the same blocks for the same number of steps, and all are
scored on the same held-out documents: raw, after the temperature fitted in domain, and
after the best temperature of each domain. Fits are checkpointed and the sums of each
seed are kept, so a run that is interrupted goes on where it stopped.

    python examples/text_study.py                       # tiny: seconds
    python examples/text_study.py --full --seeds 5 --out study \
        --ood stories=FOLDER --ood german=FOLDER        # hours
"""

import argparse
import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from eestim.llm import (
    IWAE,
    Brier,
    ContextMLP,
    Documents,
    Gated,
    LatentPrefixLM,
    LowRank,
    NoiseAveraged,
    SharedDraw,
    Split,
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

TOKENIZER = byte_tokenizer()


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    context: int = 48
    width: int = 32
    modules: int | None = 8
    documents: int = 12
    characters: int = 150
    pretrain_steps: int = 12
    steps: int = 6
    batch_size: int = 4
    predict_draws: int = 2
    rank: int = 4


FULL = Sizes(128, 96, None, 40, 600, 2000, 400, 8, 16, 16)


def texts(sizes: Sizes, others: dict[str, str]) -> dict[str, Documents]:
    """Return training and held-out documents; the split does not depend on the seed."""
    prose = corpora.documentation(sizes.modules)
    rest, held = corpora.split(prose, sizes.documents + sizes.documents // 2)
    test = range(sizes.documents)
    sets = {
        "train": rest,
        "calibration": held.take(range(sizes.documents, len(held))),
        "in domain": held.take(test),
        "code": corpora.code(sizes.modules),
        "licences": corpora.distinct(corpora.licences().truncated(sizes.characters)),
        **{name: corpora.read_texts([folder]) for name, folder in others.items()},
    }
    found = {}
    for name, corpus in sets.items():
        if name != "train":
            corpus = corpus.truncated(sizes.characters)
            if len(corpus) > sizes.documents:
                corpus = corpora.split(corpus, sizes.documents)[1]
        found[name] = Documents.from_texts(
            corpus.texts, TOKENIZER, sizes.context, corpus.names
        )
    return found


def methods(
    base: Any, length: float, sizes: Sizes, seed: int
) -> dict[str, Callable[[], tuple[Any, Any, int]]]:
    """Return (model, equation, draws) of each method, made from a copy of the base."""
    width, rank = sizes.width, min(sizes.rank, sizes.width)
    # The size of their noise is a tenth of an embedding; they predict without it.
    alpha = 0.1 * length * math.sqrt(sizes.context)
    plain, split = NoiseAveraged(), Split(base=NoiseAveraged(), perturbation=Brier())

    def latent(perturbation: Any, equation: Any = plain, draws: int = 4) -> Any:
        model = LatentPrefixLM(copy.deepcopy(base), perturbation, TOKENIZER)
        return model, equation, draws

    def noise(size: float, kind: Any = LowRank, **options: Any) -> Any:
        return kind(width, rank, size * length, seed=seed, **options)

    def adapted(add: Any) -> Any:
        model = LatentPrefixLM(add(copy.deepcopy(base), seed=seed), None, TOKENIZER)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora" in name or "prompt" in name)
        return model, plain, 1

    return {
        "continued training": lambda: latent(None, draws=1),
        "NEFTune": lambda: latent(NEFTune(width, alpha * 3**0.5, length=sizes.context)),
        "SymNoise": lambda: latent(SymNoise(width, alpha, length=sizes.context)),
        "embedding dropout": lambda: latent(EmbeddingDropout(width, 0.1)),
        "word dropout": lambda: latent(EmbeddingDropout(width, 0.05, whole=True)),
        "neighbours": lambda: latent(Neighbours.of(base, 0.05)),
        "deletion": lambda: latent(Deletion(0.05)),
        "soft prompt": lambda: adapted(with_soft_prompt),
        "LoRA": lambda: adapted(with_lora),
        "fixed 0.1": lambda: latent(fixed(noise(0.1))),
        "fixed 0.2": lambda: latent(fixed(noise(0.2))),
        "fixed 0.4": lambda: latent(fixed(noise(0.4))),
        "noise-averaged, learned": lambda: latent(noise(0.3)),
        "shared draw, learned": lambda: latent(noise(0.3), Split(plain, SharedDraw())),
        "IWAE, learned": lambda: latent(noise(0.3), Split(plain, IWAE())),
        "split": lambda: latent(noise(0.3), split),
        "split, held": lambda: latent(noise(0.3, Gated, held=True), split),
        "split, context": lambda: latent(noise(0.3, ContextMLP, held=True), split),
    }


def one_seed(
    sets: dict[str, Documents], sizes: Sizes, seed: int, out: Path | None
) -> pd.DataFrame:
    """Train every method from one base; return the sums of each held-out document."""
    store = None if out is None else out / f"seed-{seed}"
    done = None if store is None else store / "documents.csv"
    if done is not None and done.is_file():
        return pd.read_csv(done)

    def kept(name: str) -> Path | None:
        return None if store is None else store / name.replace(" ", "-")

    # Soft prompts take eight positions of the context.
    base = byte_model(sizes.context + 8, width=sizes.width, seed=seed)
    model = LatentPrefixLM(base, None, TOKENIZER)
    options = {"batch_size": sizes.batch_size, "every": 50}
    fit(
        model,
        sets["train"],
        NoiseAveraged(),
        draws=1,
        steps=sizes.pretrain_steps,
        learning_rate=4e-3,
        weight_decay=0.01,
        seed=seed,
        checkpoint=kept("base"),
        **options,
    )
    models: dict[str, Any] = {"base": model}
    length = embedding_length(base, sets["train"])
    for name, make in methods(base, length, sizes, seed).items():
        models[name], equation, draws = make()
        fit(
            models[name],
            sets["train"],
            equation,
            draws=draws,
            steps=sizes.steps,
            learning_rate=3e-4,
            perturbation_rate=3e-3,
            average_from=0.5,
            seed=seed + 1,
            checkpoint=kept(name),
            **options,
        )
        if name in ("NEFTune", "SymNoise"):
            models[name] = models[name].without_latent()
        print(f"seed {seed}: {name}", flush=True)
    models["base, temperature"] = Tempered(model, 1.15)
    held = {n: part for n, part in sets.items() if n not in ("train", "calibration")}
    result = evaluate(
        models,
        held,
        calibration=sets["calibration"],
        training=sets["train"],
        draws=sizes.predict_draws,
    )
    if done is not None:
        result.documents.to_csv(done, index=False)
    return result.documents


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
    parser.add_argument("--out", type=Path, help="folder of checkpoints and sums")
    parser.add_argument("--ood", action="append", default=[], metavar="NAME=FOLDER")
    chosen = parser.parse_args()
    sizes = FULL if chosen.full else Sizes()
    others = dict(entry.split("=", 1) for entry in chosen.ood)
    torch.manual_seed(0)  # nothing draws from it; peft's start is seeded apart
    sets = texts(sizes, others)
    seeds = [one_seed(sets, sizes, seed, chosen.out) for seed in range(chosen.seeds)]
    for measure in ("bits per byte", "bits per byte, oracle T", "top-1"):
        print(f"\n{measure}, difference from the base, intervals over all domains")
        print(table(seeds, measure).to_string())


if __name__ == "__main__":
    main()
