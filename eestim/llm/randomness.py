r"""Every random choice of a fit as a function of (seed, step, row), and its own check.

Draws that units share would inflate the variance of an estimate by 1 + n rho / K, which
does not vanish with n; a model that shares them is refused before the first step.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from eestim.errors import DataError
from eestim.llm.averaging import RowGenerators
from eestim.llm.heads import has_hidden
from eestim.llm.prefix import LatentPrefixLM
from eestim.llm.protocols import IntArray, Units

__all__ = [
    "refuse_shared_draws",
    "rows_of_step",
    "step_generator",
    "unit_generators",
]

_OUTSIDE = 1  # key of the draws of an older copy of the model


def rows_of_step(n_rows: int, batch_size: int, step: int, seed: int) -> IntArray:
    """Return the rows of a step: epochs are random permutations of (seed, epoch)."""
    size = min(batch_size, n_rows)
    positions = np.arange(step * size, (step + 1) * size)
    epochs, places = np.divmod(positions, n_rows)
    rows = np.empty(size, dtype=np.int64)
    for epoch in np.unique(epochs):
        order = np.random.default_rng([seed, int(epoch)]).permutation(n_rows)
        chosen = epochs == epoch
        rows[chosen] = order[places[chosen]]
    return rows


def step_generator(
    seed: int, step: int, stream: int = 0, key: tuple[int, ...] = ()
) -> torch.Generator:
    """Return the generator of one step's latents.

    Training is stream 0, evaluation 1, and the sets of scores 2, 3, ...: draws of one
    use are independent of those of another. `key` splits a stream further.
    """
    if not isinstance(seed, int | np.integer) or seed < 0:
        raise ValueError(f"`seed` is {seed!r}; expected a whole number from 0.")
    entropy = np.random.SeedSequence([seed, step, stream], spawn_key=key)
    (state,) = entropy.generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state) >> 1)


def unit_generators(
    model: nn.Module,
    seed: int,
    step: int,
    rows: IntArray,
    stream: int = 0,
    *,
    outside: bool = False,
) -> Any:
    """Return the generator of some rows of a step.

    A `LatentPrefixLM` gets one for each row; another model, whose way of drawing is
    its own, one for the step (for all `rows`, known by the first of them).
    """
    tail = (_OUTSIDE,) if outside else ()
    if takes_rows(model):
        return RowGenerators(
            [step_generator(seed, step, stream, (int(row), *tail)) for row in rows]
        )
    return step_generator(seed, step, stream, (int(rows[0]), *tail))


def takes_rows(model: nn.Module) -> bool:
    """Whether all of a model's draws go through `standard_normal`."""
    return isinstance(model, LatentPrefixLM)


@torch.no_grad()
def refuse_shared_draws(model: nn.Module, units: Units, draws: int) -> None:
    """Refuse a model that gives two rows of a batch one latent.

    Two copies of a row are drawn together: where draws differ from one another but the
    copies never do, the latent is shared.

    Raises
    ------
    DataError
        If they share it.
    """
    if draws < 2:
        return
    batch = units.batch(np.zeros(2, dtype=np.int64))
    draw: Any = model.draw_hidden if has_hidden(model) else model.draw_logits
    drawn = draw(batch, 2, step_generator(0, 0))
    has_latent = len(drawn) > 1 and not torch.equal(drawn[0], drawn[1])
    if has_latent and drawn.ndim > 2 and torch.equal(drawn[:, 0], drawn[:, 1]):
        raise DataError(
            "`model` gives every row of a batch the same latent draws. Shared draws "
            "make units dependent: the variance is 1 + n rho / K times that of "
            "independent ones (n units, K draws, rho their correlation) and does not "
            "vanish with n. Let draw_logits draw a latent of its own for each row, "
            "shape (draws, rows, ...)."
        )
