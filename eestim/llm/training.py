r"""Stochastic descent on an estimating equation, resumable to the bit.

Every random choice of step s is a function of (seed, s) or (seed, epoch): the order of
the rows and the latents. A run that is killed and resumed therefore continues exactly
as it would have. Draws belong to one row and one step: sharing them across units would
inflate the variance by 1 + n rho / K, which does not vanish with n.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from eestim.errors import ConvergenceError
from eestim.llm.checkpoints import CHECKPOINT, State, fingerprint, update_average
from eestim.llm.documents import Documents
from eestim.llm.equations import Split
from eestim.llm.protocols import IntArray, Units, check_model
from eestim.llm.recipe import Fit, Recipe
from eestim.llm.surrogates import LatentEquation, check_draws

__all__ = ["as_units", "fit", "gradients", "rows_of_step", "step_generator"]

Progress = Callable[[int, int, float], None]


def fit(
    model: nn.Module,
    documents: Any,
    equation: LatentEquation,
    *,
    draws: int = 4,
    steps: int = 500,
    batch_size: int = 8,
    optimizer: Literal["adamw", "sgd"] = "adamw",
    learning_rate: float = 1e-3,
    perturbation_rate: float | None = None,
    warmup: int = 20,
    final: float = 0.1,
    clip: float = 1.0,
    weight_decay: float = 0.0,
    average_from: float | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    every: int = 100,
    resume: bool = True,
    progress: Progress | None = None,
) -> Fit:
    """Solve an estimating equation by stochastic descent; the model is changed.

    Parameters
    ----------
    model : LatentModel
        Parameters with ``requires_grad`` are trained.
    documents : Units, or list of str
        Training data; texts are tokenized by the model's own tokenizer.
    equation : LatentEquation
        For example ``Brier()`` or ``Split(NoiseAveraged(), Brier())``.
    draws : int
        Latent draws K for each row and step.
    steps, batch_size : int
        Number of steps, and rows (blocks) of each.
    optimizer : {"adamw", "sgd"}
    learning_rate, perturbation_rate : float
        Peak rates of the base and of the perturbation (by default the same).
    warmup, final, clip, weight_decay, average_from, seed
        See `Recipe`.
    checkpoint : path, optional
        Folder in which the state is written every `every` steps, atomically.
    resume : bool
        Continue from a checkpoint that is there.
    progress : callable, optional
        Called as ``progress(step, steps, loss)`` after each step.

    Returns
    -------
    Fit

    Raises
    ------
    ConvergenceError
        If a loss or gradient is not finite; the last good checkpoint stays.
    DataError
        If nothing is trainable, or the checkpoint belongs to another recipe.
    """
    check_model(model)
    check_draws(equation, draws)
    units = as_units(model, documents)
    recipe = Recipe(
        equation=repr(equation),
        draws=draws,
        steps=steps,
        batch_size=batch_size,
        optimizer=optimizer,
        learning_rate=learning_rate,
        perturbation_rate=perturbation_rate or learning_rate,
        warmup=warmup,
        final=final,
        clip=clip,
        weight_decay=weight_decay,
        average_from=average_from,
        seed=seed,
    )
    if every < 1:
        raise ValueError(f"`every` is {every}; it must be at least 1.")
    state = State.start(model, equation, recipe, fingerprint(units))
    store = None if checkpoint is None else Path(checkpoint)
    if store is not None and resume and (store / CHECKPOINT).is_file():
        state.load(store / CHECKPOINT)
    return _descend(state, units, equation, store, every, progress)


def gradients(
    equation: LatentEquation,
    logits: Tensor,
    targets: Tensor,
    base: Iterable[Tensor],
    perturbation: Iterable[Tensor],
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Return (loss, gradients of the base, gradients of the perturbation).

    For `Split` each group has the gradient of its own loss, by one forward pass and
    two backward ones; the loss returned is the base's.
    """
    base, perturbation = list(base), list(perturbation)
    if not isinstance(equation, Split):
        loss = equation.loss(logits, targets)
        both = _gradient(loss, base + perturbation)
        return loss, both[: len(base)], both[len(base) :]
    loss = equation.base.loss(logits, targets)
    of_base = _gradient(loss, base, keep=bool(perturbation))
    other = equation.perturbation.loss(logits, targets)
    return loss, of_base, _gradient(other, perturbation)


def _gradient(
    loss: Tensor, parameters: list[Tensor], keep: bool = False
) -> list[Tensor]:
    """Return d loss / d parameters, zero where the loss does not reach one."""
    if not parameters:
        return []
    found = torch.autograd.grad(loss, parameters, retain_graph=keep, allow_unused=True)
    return [
        torch.zeros_like(p) if g is None else g
        for p, g in zip(parameters, found, strict=True)
    ]


def as_units(model: nn.Module, documents: Any) -> Units:
    """Return the data as Units; texts go through the model's tokenizer."""
    if isinstance(documents, Units):
        return documents
    texts = [documents] if isinstance(documents, str) else list(documents)
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None or not all(isinstance(text, str) for text in texts):
        raise TypeError(
            f"`documents` is a {type(documents).__name__}; expected Documents (or "
            "another object with `n_units`, `unit` and `batch`), or a list of texts "
            "and a model that has a tokenizer."
        )
    config = getattr(getattr(model, "base", None), "config", None)
    context = getattr(config, "max_position_embeddings", None) or 256
    return Documents.from_texts(texts, tokenizer, min(int(context), 1024))


def _descend(
    state: State,
    units: Units,
    equation: LatentEquation,
    store: Path | None,
    every: int,
    progress: Progress | None,
) -> Fit:
    """Run the steps that are left and return the record."""
    recipe, first = state.recipe, state.step
    begun = time.perf_counter()
    while state.step < recipe.steps:
        rows = rows_of_step(len(units.unit), recipe.batch_size, state.step, recipe.seed)
        loss = _one_step(state, units, equation, rows, store)
        state.losses.append(loss)
        state.step += 1
        update_average(state)
        due = state.step % every == 0 or state.step == recipe.steps
        if store is not None and due:
            state.save(store)
        if progress is not None:
            progress(state.step, recipe.steps, loss)
    with torch.no_grad():
        for name, value in state.average.items():
            state.parameters[name].copy_(value)
    seconds = time.perf_counter() - begun
    done = (state.step - first) * recipe.batch_size
    return Fit(
        recipe=recipe,
        losses=np.array(state.losses),
        n_units=units.n_units,
        passes=recipe.steps * recipe.batch_size / len(units.unit),
        seconds=seconds,
        rows_per_second=done / seconds if done else 0.0,
        resumed_from=first,
        checkpoint=None if store is None else store / CHECKPOINT,
        digests=tuple(getattr(units, "digests", ())),
    )


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


def step_generator(seed: int, step: int, stream: int = 0) -> torch.Generator:
    """Return the generator of one step's latents.

    Training is stream 0, evaluation 1, and the sets of scores 2, 3, ...: draws of one
    use are independent of those of another.
    """
    entropy = np.random.SeedSequence([seed, step, stream])
    (state,) = entropy.generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state) >> 1)


def _one_step(
    state: State,
    units: Units,
    equation: LatentEquation,
    rows: IntArray,
    store: Path | None,
) -> float:
    """Move the parameters once and return the loss."""
    recipe, model = state.recipe, state.model
    batch = units.batch(rows)
    generator = step_generator(recipe.seed, state.step)
    logits = model.draw_logits(batch, recipe.draws, generator)  # type: ignore[operator]
    targets = model.targets(batch)  # type: ignore[operator]
    loss, of_base, of_phi = gradients(
        equation, logits, targets, state.base.values(), state.perturbation.values()
    )
    norms = [
        torch.nn.utils.get_total_norm(group) for group in (of_base, of_phi) if group
    ]
    value = float(loss.detach())
    if not all(math.isfinite(x) for x in (value, *map(float, norms))):
        raise ConvergenceError(_not_finite(state.step, rows, value, store))
    for group, found in ((state.base, of_base), (state.perturbation, of_phi)):
        for parameter, gradient in zip(group.values(), found, strict=True):
            parameter.grad = gradient
        if group:
            torch.nn.utils.clip_grad_norm_(group.values(), recipe.clip)
    for settings in state.optimizer.param_groups:
        settings["lr"] = settings["peak"] * recipe.rate(state.step)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    return value


def _not_finite(step: int, rows: IntArray, value: float, store: Path | None) -> str:
    kept = (
        "no checkpoint was asked for"
        if store is None
        else f"the last good checkpoint is {store / CHECKPOINT}"
    )
    return (
        f"the loss or its gradient is not finite ({value}) at step {step}, batch rows "
        f"{rows[:8].tolist()}; the fit stopped before that step and {kept}. Lower "
        "`learning_rate` or `perturbation_rate`, or inspect those rows."
    )
