r"""Stochastic descent on an estimating equation, resumable to the bit.

Every random choice of step s is a function of (seed, s) or (seed, epoch): the order of
the rows and the latents. A run that is killed and resumed therefore continues exactly
as it would have. Draws belong to one row and one step, so a step is the same however
its rows are split over accumulation steps and devices.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from eestim.errors import CapabilityError, ConvergenceError, DataError
from eestim.llm.batches import Packed
from eestim.llm.checkpoints import (
    CHECKPOINT,
    State,
    fingerprint,
    first_averaged,
    rows_mark,
    update_average,
)
from eestim.llm.documents import Documents
from eestim.llm.equations import Split
from eestim.llm.heads import has_hidden
from eestim.llm.limits import check_independence
from eestim.llm.protocols import (
    IntArray,
    Units,
    check_model,
    check_units,
    split_parameters,
)
from eestim.llm.randomness import refuse_shared_draws, rows_of_step, step_generator
from eestim.llm.recipe import Fit, Recipe, StepReport
from eestim.llm.sizes import SizePenalty
from eestim.llm.sources import texts_of
from eestim.llm.steps import Found, Team, step_gradients
from eestim.llm.surrogates import LatentEquation, check_draws
from eestim.llm.validation import check_held_out, held_out_loss

__all__ = ["as_units", "fit", "gradients", "rows_of_step", "step_generator"]

Progress = Callable[[int, int, float], None]
Monitor = Callable[[StepReport], None]


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
    monitor: Monitor | None = None,
    context: int | None = None,
    packed: bool = False,
    accumulate: int = 1,
    precision: Literal["full", "bf16"] = "full",
    penalty: SizePenalty | None = None,
    held_out: Any = None,
    validate_every: int = 50,
    patience: int = 3,
    head: Literal["auto", "fused", "plain"] = "auto",
    accelerator: Any = None,
    schedule: Literal["cosine", "power"] = "cosine",
    exponent: float = 0.6,
) -> Fit:
    """Solve an estimating equation by stochastic descent; the model is changed.

    Parameters
    ----------
    model : LatentModel
        Parameters with ``requires_grad`` are trained.
    documents : Units, list of str, path, or data set
        Training data: see `eestim.llm.sources.texts_of` for files and data sets.
        Texts are tokenized by the model's own tokenizer.
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
    monitor : callable, optional
        Called with a `StepReport` after each step: loss, size of the perturbation,
        norms of the gradients, tokens per second. ``print`` is one.
    context : int, optional
        Tokens in a row, where `documents` are texts.
    packed : bool
        Put several whole documents into a row, where `documents` are texts; a token
        never sees another document, and the row becomes the independent unit.
    accumulate : int
        Parts of a step's rows, whose gradients are added up one after another.
    precision : {"full", "bf16"}
        "bf16" runs the model under autocast. The perturbation's parameters must be
        float32 in either case; the base may be loaded in bfloat16.
    penalty : SizePenalty, optional
        Pulls the size of the perturbation to a target, which may move.
    held_out : as documents, optional
        In-domain text; its averaged log loss is looked at every `validate_every`
        steps, the fit stops after `patience` looks without a better one, and the
        model is left with the best parameters.
    head : {"auto", "fused", "plain"}
        "fused" makes gradients from hidden states by chunks of tokens and never holds
        all logits; "auto" does so wherever the model exposes them.
    accelerator : accelerate.Accelerator, optional
        Rows of a step are split over its processes, and gradients added up.
    schedule : {"cosine", "power"}
        How the rates fall after the warm-up. "power" is for one pass of plain descent
        whose average is reported, ``optimizer="sgd", average_from=0.1, clip=inf``:
        see `eestim.llm.sgd_inference.plug_in`.
    exponent : float
        a of steps that fall like t ** -a, for "power".

    Returns
    -------
    Fit

    Raises
    ------
    ConvergenceError
        If a loss or gradient is not finite; the last good checkpoint stays.
    DataError
        If nothing is trainable, the checkpoint belongs to another recipe, held-out
        documents are among the training documents, or units share their draws.
    """
    check_model(model)
    check_draws(equation, draws)
    check_independence(model, equation.smallest_draws)
    units = as_units(model, documents, context, packed=packed)
    look = None if held_out is None else as_units(model, held_out, context)
    if look is not None:
        check_held_out(units, look)
    team = Team(accelerator)
    if accelerator is not None:
        model.to(accelerator.device)
    _check_precision(model)
    refuse_shared_draws(model, units, draws)
    recipe = Recipe(
        equation=repr(equation),
        draws=draws,
        steps=steps,
        batch_size=batch_size,
        optimizer=optimizer,
        learning_rate=learning_rate,
        perturbation_rate=(
            learning_rate if perturbation_rate is None else perturbation_rate
        ),
        warmup=warmup,
        final=final,
        clip=clip,
        weight_decay=weight_decay,
        average_from=average_from,
        seed=seed,
        accumulate=accumulate,
        precision=precision,
        penalty=repr(penalty),
        validate_every=None if look is None else validate_every,
        patience=None if look is None else patience,
        schedule=schedule,
        exponent=exponent,
    )
    if every < 1:
        raise ValueError(f"`every` is {every}; it must be at least 1.")
    _check_helpers(penalty, progress=progress, monitor=monitor)
    state = State.start(model, equation, recipe, fingerprint(units))
    state.rows = rows_mark(units)
    store = None if checkpoint is None else _folder(Path(checkpoint))
    if store is not None and resume and (store / CHECKPOINT).is_file():
        state.load(store / CHECKPOINT)
    is_fused = _uses_fused(model, equation, head)
    job = _Job(units, look, team, penalty, is_fused, store, every, progress, monitor)
    return _descend(state, job)


def _check_helpers(penalty: Any, **calls: Any) -> None:
    """Refuse what cannot play its part before the first step."""
    if not isinstance(penalty, SizePenalty | None):
        raise TypeError(
            f"`penalty` is {penalty!r}; expected SizePenalty(target, weight), or None."
        )
    for name, call in calls.items():
        if call is not None and not callable(call):
            raise TypeError(f"`{name}` is {call!r}; expected a function, or None.")


def _folder(path: Path) -> Path:
    """Make the folder of the checkpoints now, rather than fail at the first one."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        if (path / CHECKPOINT).is_dir():
            raise IsADirectoryError(f"{CHECKPOINT} in it is a folder")
    except OSError as error:
        raise DataError(
            f"`checkpoint` is {path}, which cannot hold checkpoints ({error}); give a "
            "folder that can be written."
        ) from error
    return path


def _check_precision(model: nn.Module) -> None:
    """Refuse half-precision parameters of the perturbation."""
    for name, parameter in split_parameters(model)[1].items():
        if parameter.dtype in (torch.float16, torch.bfloat16):
            raise ValueError(
                f"`model` holds {name} in {parameter.dtype}, where an update below "
                "1/256 of a parameter is lost; call model.perturbation.float() (the "
                "base may stay in half precision)."
            )


def _uses_fused(model: nn.Module, equation: LatentEquation, head: str) -> bool:
    """Return whether losses are made from hidden states."""
    if head not in ("auto", "fused", "plain"):
        raise ValueError(f"`head` is {head!r}; expected 'auto', 'fused' or 'plain'.")
    is_possible = equation.is_local and has_hidden(model)
    if head == "fused" and not is_possible:
        raise CapabilityError(
            "`head` is 'fused', but the model does not expose hidden states with a "
            f"linear head, or {equation} reads whole sequences; use 'plain'."
        )
    return is_possible and head != "plain"


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """What a fit works on and reports to."""

    units: Units
    look: Units | None
    team: Team
    penalty: SizePenalty | None
    is_fused: bool
    store: Path | None
    every: int
    progress: Progress | None
    monitor: Monitor | None


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


def as_units(
    model: nn.Module,
    documents: Any,
    context: int | None = None,
    *,
    packed: bool = False,
) -> Units:
    """Return the data as Units; texts go through the model's tokenizer.

    Parameters
    ----------
    model : LatentModel
    documents : Units, str, or what `eestim.llm.sources.texts_of` reads
    context : int, optional
        Tokens in a row; by default the base's context, 1024 at most.
    packed : bool
        Several whole documents in a row.
    """
    check_model(model)
    if isinstance(documents, Units):
        return check_units(documents)
    tokenizer = getattr(model, "tokenizer", None)
    names, texts = texts_of(documents) if tokenizer is not None else ([], [])
    if tokenizer is None:
        raise TypeError(
            f"`documents` is a {type(documents).__name__}; expected Documents (or "
            "another object with `n_units`, `unit` and `batch`), or a list of texts "
            "and a model that has a tokenizer."
        )
    if context is None:
        config = getattr(getattr(model, "base", None), "config", None)
        longest = getattr(config, "max_position_embeddings", None) or 256
        context = min(int(longest), 1024)
    if packed:
        return Packed.from_texts(texts, tokenizer, context)
    return Documents.from_texts(texts, tokenizer, context, names)


def _descend(state: State, job: _Job) -> Fit:
    """Run the steps that are left and return the record."""
    recipe, first = state.recipe, state.step
    begun, positions = time.perf_counter(), 0
    while state.step < recipe.steps and not state.has_stopped:
        started = time.perf_counter()
        rows = rows_of_step(
            len(job.units.unit), recipe.batch_size, state.step, recipe.seed
        )
        found, norms = _one_step(state, job, rows)
        positions += found.positions
        state.losses.append(found.losses[0])
        state.step += 1
        update_average(state)
        held_out = _look(state, job)
        due = state.step % job.every == 0 or state.step == recipe.steps
        if job.store is not None and (due or state.has_stopped):
            if job.team.rank == 0:
                state.save(job.store)
            job.team.wait()
        if job.progress is not None:
            job.progress(state.step, recipe.steps, found.losses[0])
        if job.monitor is not None:
            seconds = time.perf_counter() - started
            job.monitor(_report(state, found, norms, seconds, held_out))
    best = state.best_look
    left = state.average if best is None else state.best
    _put(state, left)
    seconds = time.perf_counter() - begun
    n_rows = len(job.units.unit)
    size = min(recipe.batch_size, n_rows)
    done = (state.step - first) * size
    return Fit(
        recipe=recipe,
        losses=np.array(state.losses),
        n_units=job.units.n_units,
        passes=state.step * size / n_rows,
        seconds=seconds,
        rows_per_second=done / seconds if done else 0.0,
        resumed_from=first,
        checkpoint=None if job.store is None else job.store / CHECKPOINT,
        digests=tuple(getattr(job.units, "digests", ())),
        validation=np.array(state.validation, dtype=float).reshape(-1, 2),
        best_step=None if best is None else state.validation[best][0],
        tokens_per_second=positions / seconds,
        averaged_passes=max(0, state.step - first_averaged(recipe)) * size / n_rows,
        n_clipped=state.n_clipped,
        last_clipped=state.last_clipped,
    )


@torch.no_grad()
def _put(state: State, values: dict[str, Tensor]) -> None:
    """Give the model some parameters."""
    for name, value in values.items():
        state.parameters[name].copy_(value)


def _look(state: State, job: _Job) -> float | None:
    """Look at the held-out loss where it is due, and keep the best parameters."""
    recipe = state.recipe
    if job.look is None or recipe.validate_every is None:
        return None
    if state.step % recipe.validate_every and state.step != recipe.steps:
        return None
    own = {name: p.detach().clone() for name, p in state.parameters.items()}
    _put(state, state.average)
    loss = held_out_loss(
        state.model,
        job.look,
        draws=recipe.draws,
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        precision=recipe.precision,
        is_fused=has_hidden(state.model),
    )
    state.validation.append((state.step, loss))
    if state.best_look == len(state.validation) - 1:
        state.best = {n: p.detach().clone() for n, p in state.parameters.items()}
    _put(state, own)
    return loss


def _report(
    state: State,
    found: Found,
    norms: tuple[float, float],
    seconds: float,
    held_out: float | None,
) -> StepReport:
    squared = found.squared_size
    return StepReport(
        step=state.step,
        steps=state.recipe.steps,
        loss=found.losses[0],
        perturbation_loss=found.losses[1] if len(found.losses) > 1 else None,
        gradient_norms=norms,
        perturbation_size=None if squared is None else math.sqrt(squared),
        learning_rate=state.recipe.rate(state.step - 1),
        tokens_per_second=found.positions / seconds,
        held_out_loss=held_out,
    )


def _one_step(
    state: State, job: _Job, rows: IntArray
) -> tuple[Found, tuple[float, float]]:
    """Move the parameters once; return losses and the norms of the gradients."""
    recipe = state.recipe
    knows_size = hasattr(getattr(state.model, "perturbation", None), "squared_size")
    found = step_gradients(
        state,
        job.units,
        rows,
        team=job.team,
        penalty=job.penalty,
        is_fused=job.is_fused,
        measures_size=job.monitor is not None and knows_size,
    )
    groups = ((state.base, found.base), (state.perturbation, found.perturbation))
    if not all(math.isfinite(x) for x in (*found.losses, *found.norms)):
        raise ConvergenceError(_not_finite(state, found, rows, job.store))
    for (group, gradients), norm in zip(groups, found.norm_tensors, strict=True):
        for parameter, gradient in zip(group.values(), gradients, strict=True):
            parameter.grad = gradient
        if group:
            torch.nn.utils.clip_grads_with_norm_(group.values(), recipe.clip, norm)
    if any(norm > recipe.clip for norm in found.norms):
        state.n_clipped += 1
        state.last_clipped = state.step
    for settings in state.optimizer.param_groups:
        settings["lr"] = settings["peak"] * recipe.rate(state.step)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    return found, found.norms


def _not_finite(state: State, found: Found, rows: IntArray, store: Path | None) -> str:
    """Return what broke, where, what is left of the fit, and what to do."""
    if store is None:
        kept = "no checkpoint was asked for"
    elif (store / CHECKPOINT).is_file():
        kept = f"the last good checkpoint is {store / CHECKPOINT}"
    else:
        kept = f"no checkpoint has been written to {store} yet"
    what = f"the loss or its gradient is not finite ({found.losses[0]})"
    if math.isfinite(found.losses[0]):
        pairs = zip(state.parameters, [*found.base, *found.perturbation], strict=True)
        broken = [n for n, g in pairs if not bool(torch.isfinite(g).all())]
        what = (
            f"the gradient of {', '.join(broken[:3]) or 'all parameters'} is not finite"
        )
    return (
        f"{what} at step {state.step}, batch rows {rows[:8].tolist()}; the fit stopped "
        f"before that step and {kept}. Lower `learning_rate` or `perturbation_rate`, "
        "inspect those rows, or see whether the base has weights that are not finite."
    )
