"""The loss on held-out text that decides when a fit stops."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from eestim.errors import DataError
from eestim.llm.averaging import average_log_probabilities
from eestim.llm.documents import refuse_leakage
from eestim.llm.heads import averaged_log_loss, head_of
from eestim.llm.protocols import Units
from eestim.llm.randomness import unit_generators
from eestim.llm.steps import autocast
from eestim.llm.surrogates import IGNORED, pick

__all__ = ["check_held_out", "held_out_loss"]


def check_held_out(training: Units, held_out: Units) -> None:
    """Refuse held-out documents that are trained on, or that hold no token."""
    refuse_leakage(training, held_out, "held_out")
    if len(held_out.unit) == 0:
        raise DataError("`held_out` has no row; give at least one document.")


@torch.no_grad()
def held_out_loss(
    model: nn.Module,
    units: Units,
    *,
    draws: int,
    batch_size: int,
    seed: int,
    precision: str = "full",
    is_fused: bool = False,
) -> float:
    """Return the mean of -log of the averaged probability, in nats per position.

    The draws are the same at every call, so that looks are compared on common draws.
    """
    total, count = torch.zeros((), dtype=torch.float64), 0
    for number, begin in enumerate(range(0, len(units.unit), batch_size)):
        rows = np.arange(begin, min(begin + batch_size, len(units.unit)))
        batch = units.batch(rows)
        targets: Tensor = model.targets(batch)  # type: ignore[operator]
        observed = int((targets != IGNORED).sum())
        if observed == 0:
            continue
        count += observed
        generator = unit_generators(model, seed, number, rows, stream=1)
        with autocast(model, precision):
            if is_fused:
                hidden = model.draw_hidden(batch, draws, generator)  # type: ignore[operator]
                total += averaged_log_loss(hidden, head_of(model), targets)
                continue
            logits = model.draw_logits(batch, draws, generator)  # type: ignore[operator]
        log_p = pick(average_log_probabilities(logits).unsqueeze(0), targets)[0]
        total -= log_p[targets != IGNORED].double().sum().cpu()
    if count == 0:
        raise DataError("`held_out` has no observed token; every target is -100.")
    return float(total / count)
