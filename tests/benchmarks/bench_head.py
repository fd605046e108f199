"""The fused head against the plain one: peak memory, time, and cost of a training step.

Run ``python tests/benchmarks/bench_head.py [--rounds 5] [--part all]`` with one thread
(``OMP_NUM_THREADS=1``). Contestants take turns in one process and the ratios of medians
count. Memory is the growth of the peak resident set of a process of its own, so that
gradients, buffers and the allocator's waste are all in it.

- head: hidden states (K, B, T, width) to the gradients of hidden states and weight;
- step: one training step of `fit` with K draws against one of plain cross-entropy on
  the same K B T tokens, same trunk, same optimiser, same clipping.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from training_steps import EQUATIONS, Rows
from transformers import LlamaConfig, LlamaForCausalLM

from eestim.llm.base import byte_model
from eestim.llm.checkpoints import State
from eestim.llm.equations import (
    Split,
)
from eestim.llm.heads import Linear, fused_losses
from eestim.llm.perturbations import LowRank
from eestim.llm.prefix import LatentPrefixLM
from eestim.llm.recipe import Recipe
from eestim.llm.steps import Team
from eestim.llm.training import _Job, _one_step

VOCABULARY, WIDTH, DRAWS, ROWS, LENGTH = 49_152, 576, 4, 4, 128


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(DRAWS, ROWS, LENGTH, WIDTH, generator=generator)
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator) / WIDTH**0.5
    targets = torch.randint(VOCABULARY, (ROWS, LENGTH), generator=generator)
    return hidden.requires_grad_(), weight.requires_grad_(), targets


def head(kind: str, equation: Any, hidden: Any, weight: Any, targets: Any) -> None:
    """Make the gradients of hidden states and weight."""
    first = equation.base if isinstance(equation, Split) else equation
    if kind == "cross-entropy":
        logits = (hidden @ weight.T).flatten(0, 2)
        loss = torch.nn.functional.cross_entropy(
            logits, targets.expand(DRAWS, -1, -1).flatten()
        )
        torch.autograd.grad(loss, [hidden, weight])
    elif kind == "plain":
        logits = hidden @ weight.T
        loss = first.loss(logits, targets)
        again = first is not equation
        torch.autograd.grad(loss, [hidden, weight], retain_graph=again)
        if again:
            torch.autograd.grad(equation.perturbation.loss(logits, targets), hidden)
    else:
        losses = fused_losses(equation, hidden, Linear(weight), targets)
        torch.autograd.grad(losses[0], [hidden, weight], retain_graph=True)
        if len(losses) > 1:
            torch.autograd.grad(losses[1], hidden)


def peak(kind: str, name: str) -> float:
    """Return the growth of the peak resident set in MiB, in a fresh process."""
    command = [sys.executable, __file__, "--child", kind, name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def child(kind: str, name: str) -> None:
    hidden, weight, targets = inputs()
    few = hidden.detach()[:, :1, :1].requires_grad_()  # loads libraries and buffers
    head(
        kind,
        EQUATIONS[name],
        few,
        weight.detach()[:64].requires_grad_(),
        targets[:1, :1] % 64,
    )
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = high_water()
    head(kind, EQUATIONS[name], hidden, weight, targets)
    print((high_water() - before) / 1024)


def high_water() -> int:
    """Return the peak resident set in KiB (ru_maxrss would count the parent's)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def turns(contestants: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Return the median CPU seconds of each, taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            begun = time.process_time()
            run()
            seconds[name].append(time.process_time() - begun)
    return {name: statistics.median(values) for name, values in seconds.items()}


def heads(options: argparse.Namespace) -> None:
    print(f"head: V = {VOCABULARY}, K = {DRAWS}, {ROWS} x {LENGTH}, width {WIDTH}")
    hidden, weight, targets = inputs()
    for name in options.equations:
        equation = EQUATIONS[name]
        taken = turns(
            {
                kind: lambda kind=kind, equation=equation: head(  # type: ignore[misc]
                    kind, equation, hidden, weight, targets
                )
                for kind in ("cross-entropy", "plain", "fused")
            },
            options.rounds,
        )
        plain, fused = peak("plain", name), peak("fused", name)
        print(
            f"{name:9s} CPU s: cross-entropy {taken['cross-entropy']:.2f}, plain "
            f"{taken['plain']:.2f}, fused {taken['fused']:.2f} "
            f"({taken['fused'] / taken['plain']:.2f} of plain); peak MiB: plain "
            f"{plain:.0f}, fused {fused:.0f} ({100 * fused / plain:.1f} %)"
        )


def language_model(kind: str) -> tuple[LatentPrefixLM, torch.Tensor]:
    """Return a model and rows of tokens (B, T)."""
    generator = torch.Generator().manual_seed(0)
    if kind == "bytes":
        base, width, rows, length = byte_model(128), 96, 8, 128
    else:
        config = LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=1536,
            num_hidden_layers=4, num_attention_heads=9, num_key_value_heads=3,
            max_position_embeddings=64, tie_word_embeddings=True,
        )  # fmt: skip
        base, width, rows, length = LlamaForCausalLM(config), WIDTH, 2, 64
    model = LatentPrefixLM(base, LowRank(width, rank=16, size=1.0))
    vocabulary = base.config.vocab_size
    return model, torch.randint(3, vocabulary, (rows, length), generator=generator)


def plain_step(kind: str) -> Callable[[], Any]:
    """Return a step of cross-entropy on K copies of the rows, without a latent."""
    model, ids = language_model(kind)
    base, many = model.base, ids.repeat(DRAWS, 1)
    optimizer = torch.optim.AdamW(base.parameters(), lr=1e-4, betas=(0.9, 0.99))

    def step() -> None:
        logits = base(input_ids=many, use_cache=False).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), many[:, 1:].flatten()
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(base.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def latent_step(kind: str, equation: Any) -> Callable[[], Any]:
    """Return a step of `fit` itself."""
    model, ids = language_model(kind)
    recipe = Recipe(
        repr(equation), DRAWS, 10**6, len(ids), "adamw", learning_rate=1e-4,
        perturbation_rate=1e-4, warmup=1, final=0.1, clip=1.0, weight_decay=0.0,
        average_from=None, seed=0,
    )  # fmt: skip
    state = State.start(model, equation, recipe, "")
    job = _Job(Rows(ids), None, Team(), None, True, None, 10**6, None, None)

    def step() -> None:
        _one_step(state, job, np.arange(len(ids)))
        state.step += 1

    return step


def steps(options: argparse.Namespace) -> None:
    for kind in ("bytes", "Llama, V = 49152"):
        contestants = {"cross-entropy": plain_step(kind)}
        for name in options.equations:
            contestants[name] = latent_step(kind, EQUATIONS[name])
        for run in contestants.values():
            run()
        rounds = options.rounds * (4 if kind == "bytes" else 1)
        taken = turns(contestants, rounds)
        plain = taken["cross-entropy"]
        print(f"step, {kind}: CPU s of cross-entropy {plain:.3f}; over it:")
        print("  ".join(f"{n} {t / plain:.2f}" for n, t in taken.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--part", choices=("head", "step", "all"), default="all")
    parser.add_argument("--equations", nargs="+", default=list(EQUATIONS))
    parser.add_argument("--child", nargs=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.child:
        child(*options.child)
        return
    if options.part != "step":
        heads(options)
    if options.part != "head":
        steps(options)


if __name__ == "__main__":
    main()
