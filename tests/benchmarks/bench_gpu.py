"""A training step on a GPU against plain fine-tuning on the same card, and its scores.

Run ``python tests/benchmarks/bench_gpu.py`` on a machine with a CUDA device; without
one it says so and ends. ``--tiny`` runs the same code with a tiny model on a CPU: a
check of the script, whose figures mean nothing.

- rate: the card's own bf16 matrix products, the best of several sizes;
- step: `fit`'s step in bf16 with K draws against cross-entropy on the same K B T
  tokens, same trunk and optimiser: tokens (K B T) per second, peak memory, and the
  share of the rate that the products of plain training make up;
- scores: psi on the card and on the CPU, float32, largest gap over the largest entry.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from training_steps import EQUATIONS, Rows
from transformers import LlamaConfig, LlamaForCausalLM

from eestim.llm import (
    Brier,
    LatentPrefixLM,
    LowRank,
    scores,
)
from eestim.llm.checkpoints import State
from eestim.llm.recipe import Recipe
from eestim.llm.steps import Team
from eestim.llm.training import _Job, _one_step

SMOLLM2 = {
    "vocab_size": 49_152, "hidden_size": 576, "intermediate_size": 1536,
    "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
    "max_position_embeddings": 2048, "tie_word_embeddings": True,
}  # fmt: skip
TINY = SMOLLM2 | {
    "vocab_size": 300, "hidden_size": 36, "intermediate_size": 64,
    "num_hidden_layers": 2, "max_position_embeddings": 64,
}  # fmt: skip


@dataclass(frozen=True)
class Card:
    """Where the benchmark runs."""

    device: torch.device
    rounds: int

    def seconds(self, run: Callable[[], Any]) -> float:
        """Return the median wall time of a call, after two to warm up."""
        taken = []
        for number in range(self.rounds + 2):
            self.wait()
            begun = time.perf_counter()
            run()
            self.wait()
            if number > 1:
                taken.append(time.perf_counter() - begun)
        return statistics.median(taken)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def peak(self, run: Callable[[], Any]) -> float:
        """Return the peak of allocated memory of a call in MiB, NaN on a CPU."""
        if self.device.type != "cuda":
            return float("nan")
        torch.cuda.reset_peak_memory_stats(self.device)
        run()
        return torch.cuda.max_memory_allocated(self.device) / 2**20


def matrix_rate(card: Card, sizes: list[int]) -> float:
    """Return the best rate of square bf16 products, in operations a second."""
    found = []
    for size in sizes:
        a = torch.randn(size, size, device=card.device, dtype=torch.bfloat16)
        b = torch.randn(size, size, device=card.device, dtype=torch.bfloat16)
        found.append(2 * size**3 / card.seconds(lambda a=a, b=b: a @ b))
    return max(found)


def operations(config: Any, tokens: int, length: int) -> float:
    """Return the operations of a step of plain training: forward and twice backward."""
    width, layers = config.hidden_size, config.num_hidden_layers
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    projections = width * width * (2 + 2 * groups / heads)
    gates = 3 * width * config.intermediate_size
    weights = layers * (projections + gates) + config.vocab_size * width
    attention = layers * 2 * length * width / 2  # causal: half of the pairs
    return 6.0 * tokens * (weights + attention)


def built(config: dict[str, Any], device: torch.device) -> LatentPrefixLM:
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**config))
    return LatentPrefixLM(base, LowRank(config["hidden_size"], 16)).to(device)


def plain_step(model: LatentPrefixLM, ids: torch.Tensor) -> Callable[[], Any]:
    """Return a step of cross-entropy in bf16 on the rows."""
    base = model.base
    optimizer = torch.optim.AdamW(base.parameters(), lr=1e-4, betas=(0.9, 0.99))

    def step() -> None:
        with torch.autocast(ids.device.type, torch.bfloat16):
            logits = base(input_ids=ids, use_cache=False).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), ids[:, 1:].flatten()
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(base.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def latent_step(
    model: LatentPrefixLM, ids: torch.Tensor, equation: Any, draws: int
) -> Callable[[], Any]:
    """Return a step of `fit` itself in bf16."""
    recipe = Recipe(
        repr(equation), draws, 10**6, len(ids), "adamw", learning_rate=1e-4,
        perturbation_rate=1e-4, warmup=1, final=0.1, clip=1.0, weight_decay=0.0,
        average_from=None, seed=0, precision="bf16",
    )  # fmt: skip
    state = State.start(model, equation, recipe, "")
    job = _Job(Rows(ids), None, Team(), None, True, None, 10**6, None, None)

    def step() -> None:
        _one_step(state, job, np.arange(len(ids)))
        state.step += 1

    return step


def steps(card: Card, config: dict[str, Any], shape: tuple[int, int, int]) -> None:
    draws, rows, length = shape
    rate = matrix_rate(card, [1024, 4096, 8192] if card.device.type == "cuda" else [64])
    print(f"bf16 matrix products: {rate / 1e12:.2f} T operations a second")
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, config["vocab_size"], (rows, length), generator=generator)
    many = ids.repeat(draws, 1).to(card.device)
    plain = None
    for name in ("cross-entropy", *EQUATIONS):
        model = built(config, card.device)
        if name == "cross-entropy":
            step = plain_step(model, many)
        else:
            step = latent_step(model, ids, EQUATIONS[name], draws)
        taken, peak = card.seconds(step), card.peak(step)
        plain = plain or taken
        share = operations(model.base.config, many.numel(), length) / taken / rate
        print(
            f"{name:13s} {many.numel() / taken:10,.0f} tokens/s, {taken / plain:.2f} "
            f"of cross-entropy, {peak:8,.0f} MiB, {100 * share:.1f} % of the rate",
            flush=True,
        )
        del model, step


def agreement(card: Card, config: dict[str, Any]) -> float:
    """Print and return the gap of scores between the card and the CPU."""
    torch.backends.cuda.matmul.allow_tf32 = False
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, config["vocab_size"], (4, 32), generator=generator)
    found = [
        scores(built(config, torch.device(place)), Rows(ids), Brier(), draws=4)
        for place in ("cpu", card.device)
    ]
    gap = float(np.abs(found[0] - found[1]).max() / np.abs(found[0]).max())
    print(f"scores, float32, card against CPU: {gap:.1e} of the largest entry")
    return gap


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    if options.tiny:
        card = Card(torch.device("cpu"), 1)
        steps(card, TINY, (4, 2, 16))
        agreement(card, TINY)
        return
    if not torch.cuda.is_available():
        print("skipped: torch sees no CUDA device on this machine")
        return
    card = Card(torch.device("cuda"), options.rounds)
    print(torch.cuda.get_device_name(), torch.__version__)
    steps(card, SMOLLM2, (options.draws, options.rows, options.length))
    agreement(card, SMOLLM2)


if __name__ == "__main__":
    main()
