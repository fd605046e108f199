"""Per-unit scores of a perturbation against a batch gradient on the same tokens.

Run ``python tests/benchmarks/bench_scores.py [--rounds 7]`` with one thread. Both are
timed in turn, in one process, in CPU seconds; the ratio is the median over rounds.
"""

import argparse
import statistics
import time

import numpy as np
import torch
from training_steps import Rows

from eestim.llm import Brier, Gated, LatentPrefixLM, byte_model, scores
from eestim.llm.training import step_generator


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--rows", type=int, default=8)
    options = parser.parse_args()
    base = byte_model(64, width=options.width, layers=4, heads=4)
    model = LatentPrefixLM(base, Gated(options.width, 16), train_base=False)
    generator = torch.Generator().manual_seed(0)
    data = Rows(torch.randint(3, 259, (options.rows, 64), generator=generator))
    phi = list(model.perturbation.parameters())

    def gradient() -> None:
        batch = data.batch(np.arange(options.rows))
        logits = model.draw_logits(batch, 4, step_generator(0, 0, 2))
        loss = Brier().surrogate(logits, logits.detach(), model.targets(batch))
        torch.autograd.grad(loss.sum(), phi)

    def units() -> None:
        scores(model, data, Brier(), draws=4, batch_size=options.rows)

    seconds: dict[str, list[float]] = {"gradient": [], "scores": []}
    for number in range(options.rounds + 1):
        for name, run in (("gradient", gradient), ("scores", units)):
            begun = time.process_time()
            run()
            if number:  # the first round warms up
                seconds[name].append(time.process_time() - begun)
    ratios = [
        s / g for s, g in zip(seconds["scores"], seconds["gradient"], strict=True)
    ]
    print(
        f"batch gradient {statistics.median(seconds['gradient']):.3f} s CPU, per-unit "
        f"scores {statistics.median(seconds['scores']):.3f} s; ratio "
        f"{statistics.median(ratios):.3f} (median of {options.rounds} rounds)"
    )


if __name__ == "__main__":
    main()
