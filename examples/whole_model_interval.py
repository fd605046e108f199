"""Interval of an out-of-domain loss for every parameter of a language model.

A model is pulled from its pretrained point to the root of a penalised equation on a few
documents of one domain. How much its loss moved in other domains is a functional of all
its parameters: the interval takes products with A and one forward-mode pass, and no
matrix of size (n, P) or (P, P) is formed.

    python examples/whole_model_interval.py                  # tiny model: seconds
    python examples/whole_model_interval.py --model FOLDER --units 24 --tokens 32 \
        --ridge 1000 --ood stories=FOLDER                    # SmolLM2: half an hour
"""

import argparse
import copy
import resource
import time
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from eestim.llm import (
    Documents,
    LatentPrefixLM,
    NoiseAveraged,
    byte_model,
    byte_tokenizer,
    corpora,
    infer,
    log_loss,
    solve_penalised,
)
from eestim.llm.documents import tokenize


def cut(corpus: corpora.Corpus, tokenizer: Any, tokens: int, count: int) -> Documents:
    """Return the first tokens of some documents; each is one row and one unit."""
    texts = []
    for text in corpus.texts:
        ids = tokenizer(text)["input_ids"]
        if len(ids) >= tokens:
            texts.append(tokenizer.decode(ids[: tokens - 2], skip_special_tokens=True))
        if len(texts) == count:
            break
    longest = max(len(ids) for ids in tokenize(texts, tokenizer))
    return Documents.from_texts(texts, tokenizer, longest)


def load(folder: Path | None) -> tuple[Any, Any]:
    """Return model and tokenizer: those of the folder, or a tiny random model."""
    if folder is None:
        return byte_model(40, width=16, seed=0).double(), byte_tokenizer()
    gguf = next((path.name for path in folder.glob("*.gguf")), None)
    options: dict[str, Any] = {"gguf_file": gguf} if gguf else {}
    model = LatentPrefixLM.from_pretrained(folder, None, **options)
    return model.base, AutoTokenizer.from_pretrained(folder, **options)


def main() -> None:
    """Solve the penalised equation and print the intervals."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, help="folder of the pretrained model")
    parser.add_argument("--units", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=16, help="of each unit")
    parser.add_argument("--ridge", type=float, default=100.0)
    parser.add_argument("--tolerance", type=float, default=1e-4, help="of the solve")
    parser.add_argument("--ood", action="append", default=[], metavar="NAME=FOLDER")
    chosen = parser.parse_args()
    base, tokenizer = load(chosen.model)
    model = LatentPrefixLM(base, None, tokenizer)
    reference = copy.deepcopy(model)
    size = sum(p.numel() for p in base.parameters())
    print(f"{size:,} parameters, {chosen.units} units of {chosen.tokens} tokens")

    def documents(corpus: corpora.Corpus, count: int) -> Documents:
        return cut(corpus, tokenizer, chosen.tokens, count)

    modules = None if chosen.model else 8
    train = documents(corpora.documentation(modules), chosen.units)
    held = {"code": corpora.code(modules)} | {
        name: corpora.read_texts([folder])
        for name, folder in (entry.split("=", 1) for entry in chosen.ood)
    }
    equation = NoiseAveraged()
    shared = {
        "equation": equation,
        "draws": 1,
        "parameters": "all",
        "ridge": chosen.ridge,
        "reference": reference,
        "batch_size": 4,
    }
    begin = time.process_time()
    root = solve_penalised(
        model, train, sets=1, tolerance=1e-3, **shared,
        progress=lambda step, r: print(f"  evaluation {step}: {r:.1e}", flush=True),
    )  # fmt: skip
    print(
        f"root: residual {root.residual:.1e} after {root.steps} evaluations, "
        f"{time.process_time() - begin:.0f} CPU s, distance {root.moved:.3g}"
    )
    for name, corpus in held.items():
        begin = time.process_time()
        made = infer(
            model,
            train,
            log_loss(documents(corpus, 8), baseline=reference, draws=1, batch_size=4),
            method="matrix-free",
            solver="minres",
            tolerance=chosen.tolerance,
            **shared,
        )
        print(f"\n{name}: log loss less that of the pretrained model, nats per token")
        print(made.table().to_string())
        for finding in made.spread.findings:
            print(f"  {finding.name}: {finding.meaning}")
        print(f"  {time.process_time() - begin:.0f} CPU s")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    print(f"\npeak memory {peak:.1f} GB")


if __name__ == "__main__":
    main()
