"""The gradients of one step: parts of its rows, one after another or on many devices.

A step's gradient is that of the whole batch, however its rows are split: each part is
divided by the number of observed positions of the step, and draws belong to rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eestim.errors import DataError
from eestim.llm.checkpoints import State
from eestim.llm.equations import Split
from eestim.llm.heads import Linear, equation_pair, fused_losses, head_of
from eestim.llm.prefix import LatentPrefixLM, as_token_batch
from eestim.llm.protocols import IntArray, Units
from eestim.llm.randomness import unit_generators
from eestim.llm.replicates import replicated
from eestim.llm.sizes import SizePenalty, squared_size_of
from eestim.llm.surrogates import IGNORED, LatentEquation, through_first

__all__ = ["Found", "Team", "autocast", "losses_of", "step_gradients"]


@dataclass(frozen=True, slots=True, eq=False)
class Team:
    """The processes of a fit; one without `accelerate`.

    Attributes
    ----------
    accelerator : accelerate.Accelerator or None
    """

    accelerator: Any = None

    @property
    def size(self) -> int:
        """Number of processes."""
        return 1 if self.accelerator is None else int(self.accelerator.num_processes)

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""
        return 0 if self.accelerator is None else int(self.accelerator.process_index)

    def add(self, tensors: list[Tensor]) -> list[Tensor]:
        """Return sums over the processes."""
        if self.size == 1:
            return tensors
        return [self.accelerator.reduce(t, reduction="sum") for t in tensors]

    def wait(self) -> None:
        """Wait for the other processes."""
        if self.size > 1:
            self.accelerator.wait_for_everyone()


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """Losses and gradients of a step.

    Attributes
    ----------
    losses : list of float
        One, or for `Split` the base's and the perturbation's.
    base, perturbation : list of Tensor
        Gradients.
    positions : int
        Observed positions.
    squared_size : float or None
        Mean squared size of the perturbation, where asked for.
    norms : tuple of float
        Norms of the two groups of gradients, 0 where there are none.
    norm_tensors : list of Tensor
        The same where the gradients are.
    """

    losses: list[float]
    base: list[Tensor]
    perturbation: list[Tensor]
    positions: int
    squared_size: float | None
    norms: tuple[float, float]
    norm_tensors: list[Tensor]


def step_gradients(
    state: State,
    units: Units,
    rows: IntArray,
    *,
    team: Team,
    penalty: SizePenalty | None = None,
    is_fused: bool = False,
    measures_size: bool = False,
) -> Found:
    """Return the losses and gradients of a step on some rows."""
    pieces = np.array_split(rows, min(len(rows), state.recipe.accumulate * team.size))
    batches = [units.batch(piece) for piece in pieces]
    counts = [_observed(state.model, batch) for batch in batches]
    kept = sum(counts)
    if kept == 0:
        raise DataError(
            f"`documents` has no observed token in rows {rows[:8].tolist()} of step "
            f"{state.step} (every target is -100); remove those rows."
        )
    sums = _Sums(state)
    for number in range(team.rank, len(pieces), team.size):
        if counts[number] == 0:
            continue
        losses = losses_of(
            state, batches[number], pieces[number], kept, is_fused=is_fused
        )
        size = None
        if penalty is not None or measures_size:
            with torch.set_grad_enabled(penalty is not None):
                size = squared_size_of(state.model, batches[number])
        sums.add(losses, size, counts[number] / kept, penalty)
    return sums.over(team, kept, measures_size)


def _observed(model: nn.Module, batch: Any) -> int:
    """Return the number of targets, counted where the data are, not on the device."""
    if isinstance(model, LatentPrefixLM):
        return int((as_token_batch(batch).targets != IGNORED).sum())
    return int((model.targets(batch) != IGNORED).sum())  # type: ignore[operator]


class _Sums:
    """Running sums of losses and gradients over the parts of a step."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.base: list[Tensor] = list(state.base.values())
        self.phi: list[Tensor] = list(state.perturbation.values())
        self.gradients: list[Tensor | None] = [None] * (len(self.base) + len(self.phi))
        n_losses = len(equation_pair(state.equation))
        device = (self.base or self.phi)[0].device
        self.numbers = torch.zeros(n_losses + 1, dtype=torch.float64, device=device)

    def add(
        self,
        losses: Tensor,
        size: Tensor | None,
        share: float,
        penalty: SizePenalty | None,
    ) -> None:
        """Differentiate the losses of one part."""
        self.numbers[:-1] += losses.detach().double()
        if size is not None:
            self.numbers[-1] += share * size.detach().double()
        last = losses[-1]
        if penalty is not None and size is not None:
            recipe, step = self.state.recipe, self.state.step
            last = last + share * penalty.value(size, step, recipe.steps).to(last)
        if len(losses) == 1:
            self._collect(last, self.base + self.phi, 0)
            return
        # The smaller pass first: the second frees the graph as it goes.
        self._collect(last, self.phi, len(self.base), keep=bool(self.base))
        self._collect(losses[0], self.base, 0)

    def _collect(
        self, loss: Tensor, leaves: list[Tensor], first: int, keep: bool = False
    ) -> None:
        if not leaves:
            return
        found: tuple[Tensor | None, ...] = torch.autograd.grad(
            loss, leaves, retain_graph=keep, allow_unused=True
        )
        for place, gradient in enumerate(found, first):
            if gradient is None:
                continue
            known = self.gradients[place]
            self.gradients[place] = gradient if known is None else known.add_(gradient)

    def over(self, team: Team, kept: int, measures_size: bool) -> Found:
        """Return the sums over all parts and processes."""
        every = [
            torch.zeros_like(leaf) if gradient is None else gradient
            for gradient, leaf in zip(self.gradients, self.base + self.phi, strict=True)
        ]
        numbers, *every = team.add([self.numbers, *every])
        split = len(self.base)
        groups = every[:split], every[split:]
        norms = [
            torch.nn.utils.get_total_norm(group) if group else numbers.new_zeros(())
            for group in groups
        ]
        # One read a step: the host has queued all of it before it waits.
        together = torch.cat([numbers, torch.stack([n.to(numbers) for n in norms])])
        *losses, size, first, second = together.tolist()
        known = size if measures_size else None
        return Found(losses, *groups, kept, known, (first, second), norms)


def losses_of(
    state: State, batch: Any, rows: IntArray, kept: int, *, is_fused: bool
) -> Tensor:
    """Return the losses of a part of a step, divided by `kept`, (1,) or (2,)."""
    recipe, model, equation = state.recipe, state.model, state.equation
    rng = np.random.default_rng([recipe.seed, state.step, 3])
    draws = equation.draws_of_step(recipe.draws, rng)
    if equation.needs_replicates:
        return _contrast_loss(state, batch, rows, kept, draws)
    older = _older(state, batch, rows, is_fused)
    generator = unit_generators(model, recipe.seed, state.step, rows)
    targets = model.targets(batch)  # type: ignore[operator]
    with autocast(model, recipe.precision):
        if not is_fused:
            logits = model.draw_logits(batch, draws, generator)  # type: ignore[operator]
            return _plain_losses(equation, logits, targets, kept, older)
        wanted = few = None
        if isinstance(equation, Split):
            wanted = bool(state.base), bool(state.perturbation)
            few = equation.perturbation_draws
        hidden, apart = _hidden(model, batch, draws, few, generator)
        return fused_losses(
            equation,
            hidden,
            head_of(model),
            targets,
            outside=older,
            kept=kept,
            wanted=wanted,
            few=apart,
        )


def _hidden(
    model: Any, batch: Any, draws: int, few: int | None, generator: Any
) -> tuple[Tensor, Tensor | None]:
    """Return the hidden states of all draws, and of the first `few` once more."""
    if few is None or few >= draws:
        return model.draw_hidden(batch, draws, generator), None
    if not hasattr(model, "draw_hidden_apart"):
        hidden = model.draw_hidden(batch, draws, generator)
        return hidden, hidden[:few]
    apart, rest = model.draw_hidden_apart(batch, (few, draws - few), generator)
    return torch.cat([apart, rest]), apart


def _contrast_loss(
    state: State, batch: Any, rows: IntArray, kept: int, draws: int
) -> Tensor:
    """Return the loss of observed rows against rows that the model makes, (1,)."""
    model, seed, step = state.model, state.recipe.seed, state.step
    makers = unit_generators(model, seed, step, rows, outside=True)
    pairs = replicated(model, batch, makers)
    # An observed row r draws as row 2 r, its replicate as row 2 r + 1.
    twice = np.stack([2 * rows, 2 * rows + 1], 1).reshape(-1)
    generator = unit_generators(model, seed, step, twice)
    with autocast(model, state.recipe.precision):
        logits = model.draw_logits(pairs, draws, generator)  # type: ignore[operator]
    logits = logits.unflatten(1, (-1, 2))
    targets = model.targets(pairs).unflatten(0, (-1, 2))  # type: ignore[operator]
    value = state.equation.surrogate(logits, logits.detach(), targets)
    return value.sum().unsqueeze(0) / kept


def _plain_losses(
    equation: LatentEquation,
    logits: Tensor,
    targets: Tensor,
    kept: int,
    older: Any,
) -> Tensor:
    """Return the losses from the logits of all positions."""
    here = (targets != IGNORED).sum()
    losses = []
    few = getattr(equation, "perturbation_draws", None)
    for number, part in enumerate(equation_pair(equation)):
        moving = through_first(logits, few) if number else logits
        if older is None or part.lagged is None:
            losses.append(part.loss(moving, targets) * (here / kept))
        else:
            still = torch.cat([logits.detach(), older])
            losses.append(part.surrogate(moving, still, targets).sum() / kept)
    return torch.stack(losses)


@torch.no_grad()
def _older(state: State, batch: Any, rows: IntArray, is_fused: bool) -> Any:
    """Return what the older copy of the model draws, renewing it when due."""
    wanted, recipe, model = state.equation.lagged, state.recipe, state.model
    if wanted is None:
        return None
    lag, draws = wanted
    if state.step % lag == 0 or not state.older:
        state.older = {n: p.detach().clone() for n, p in state.parameters.items()}
    generator = unit_generators(model, recipe.seed, state.step, rows, outside=True)
    with _borrowed(state), autocast(model, recipe.precision):
        if is_fused:
            hidden = model.draw_hidden(batch, draws, generator)  # type: ignore[operator]
            head = head_of(model)
            bias = None if head.bias is None else head.bias.detach()
            return hidden, Linear(head.weight.detach(), bias)
        return model.draw_logits(batch, draws, generator)  # type: ignore[operator]


@contextmanager
def _borrowed(state: State) -> Iterator[None]:
    """Put the older parameters into the model for a while."""
    own = {name: p.data for name, p in state.parameters.items()}
    try:
        for name, p in state.parameters.items():
            p.data = state.older[name]
        yield
    finally:
        for name, p in state.parameters.items():
            p.data = own[name]


def autocast(model: nn.Module, precision: str) -> AbstractContextManager[Any]:
    """Return the context in which the model runs at a precision."""
    device = next(model.parameters()).device.type
    return torch.autocast(device, torch.bfloat16, enabled=precision == "bf16")
