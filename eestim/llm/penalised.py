r"""Root of an estimating equation that is pulled towards a reference model.

With more parameters than the units can tell apart, a latent model's equation has no
isolated root, and a functional of the whole model is not estimable. The penalised
equation has one near its reference, and `infer(..., ridge=, reference=)` gives the
intervals that belong to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eestim.errors import ConvergenceError
from eestim.llm.equations import Brier
from eestim.llm.parameters import Which, chosen
from eestim.llm.scores import equation_parts, independent_units, unit_batches
from eestim.llm.surrogates import LatentEquation, check_draws

__all__ = ["PenalisedRoot", "solve_penalised"]

Block = tuple[Tensor, ...]
_MEMORY = 5  # pairs of vectors of length P that the search keeps


@dataclass(frozen=True, slots=True)
class PenalisedRoot:
    r"""How the search for a penalised root ended.

    Attributes
    ----------
    steps : int
        Evaluations of the mean of psi.
    residual : float
        Norm of the penalised mean of psi relative to that at the reference.
    moved : float
        :math:`\|\hat\theta - \theta_{ref}\|`.
    """

    steps: int
    residual: float
    moved: float


def solve_penalised(
    model: nn.Module,
    documents: Any,
    equation: LatentEquation | None = None,
    *,
    ridge: float,
    reference: nn.Module,
    draws: int = 8,
    sets: int = 4,
    parameters: Which = "perturbation",
    tolerance: float = 1e-3,
    max_steps: int = 200,
    batch_size: int = 8,
    seed: int = 0,
    progress: Callable[[int, float], None] | None = None,
) -> PenalisedRoot:
    r"""Move a model to the root of its penalised equation at fixed draws.

    .. math::
        \frac1n \sum_i \psi_i(\theta) - \lambda (\theta - \theta_{ref}) = 0

    by limited-memory BFGS on the field itself, whose steps are shortened where its
    norm would grow. Every evaluation is one pass over the units and memory is that of
    one batch and 16 vectors of length P. The distance from the reference is kept apart
    from the parameters: under a strong penalty it is below their rounding error. The
    field of a loss, and of `Brier`, is a gradient, so its curvature is symmetric;
    elsewhere the search may fail, and says so.

    Parameters
    ----------
    model : LatentModel
        Changed in place, as by `fit`.
    documents, equation, draws, sets, parameters, batch_size, seed
        As for `infer`, which with the same values meets the same draws.
    ridge : float
        :math:`\lambda > 0`, on the scale of psi, which sums over a unit's tokens.
    reference : LatentModel
        Holds :math:`\theta_{ref}`.
    tolerance : float
        The search ends when the norm of the penalised mean has fallen to this share
        of its norm at the reference.
    max_steps : int
        Evaluations allowed.
    progress : callable, optional
        Called as ``progress(step, residual)``.

    Raises
    ------
    ConvergenceError
        If the steps run out or the field is not finite.

    References
    ----------
    Liu and Nocedal (1989), Math. Program. 45, 503-528.

    Examples
    --------
    >>> import copy
    >>> from eestim.llm.synthetic import BinaryModel, binary_data
    >>> start = BinaryModel()
    >>> model = copy.deepcopy(start)
    >>> found = solve_penalised(
    ...     model, binary_data(50, seed=0), ridge=1.0, reference=start,
    ...     parameters="all",
    ... )
    >>> found.residual < 1e-3
    True
    """
    equation = Brier() if equation is None else equation
    check_draws(equation, draws)
    if not (np.isfinite(ridge) and ridge > 0):
        raise ValueError(f"`ridge` is {ridge}; it must be positive and finite.")
    if not 0 < tolerance < 1 or max_steps < 1 or sets < 1:
        raise ValueError(
            f"`tolerance` is {tolerance}, `max_steps` {max_steps} and `sets` {sets}; "
            "the first lies between 0 and 1, the others are at least 1."
        )
    wanted = chosen(model, parameters)
    centre = {name: p.detach() for name, p in chosen(reference, parameters).items()}
    if {n: p.shape for n, p in wanted.items()} != {
        n: p.shape for n, p in centre.items()
    }:
        raise ValueError(
            "`reference` has other parameters than `model`; give a copy of the model "
            "that the penalty pulls to."
        )
    if any(p.data_ptr() == centre[name].data_ptr() for name, p in wanted.items()):
        raise ValueError(
            "`reference` shares its parameters with `model`, so the point that the "
            "penalty pulls to would move along; give a copy (copy.deepcopy(model))."
        )
    units = independent_units(model, documents)

    def put(away: Block) -> None:
        with torch.no_grad():
            for (name, p), moved in zip(wanted.items(), away, strict=True):
                p.copy_(centre[name] + moved)

    def field(away: Block) -> Block:
        """Return minus the penalised mean of psi, at the reference plus `away`."""
        put(away)
        total = {name: torch.zeros_like(p) for name, p in wanted.items()}
        for number in range(sets):
            for batch, _, generator in unit_batches(units, batch_size, seed, number):
                state = generator.get_state()
                for part, names in equation_parts(equation, wanted, as_trained=True):
                    generator.set_state(state)
                    logits = model.draw_logits(batch, draws, generator)  # type: ignore[operator]
                    targets = model.targets(batch)  # type: ignore[operator]
                    value = part.surrogate(logits, logits.detach(), targets).sum()
                    slopes = torch.autograd.grad(
                        value, list(names.values()), materialize_grads=True
                    )
                    for name, slope in zip(names, slopes, strict=True):
                        total[name] += slope
        share = 1.0 / (sets * units.n_units)
        return tuple(
            share * total[name] + ridge * moved
            for name, moved in zip(wanted, away, strict=True)
        )

    flags = {name: p.requires_grad for name, p in wanted.items()}
    for p in wanted.values():
        p.requires_grad_(True)
    away = tuple(torch.zeros_like(part) for part in centre.values())
    try:
        steps, residual = _search(
            away, field, 1.0 / ridge, tolerance, max_steps, progress
        )
    finally:
        put(away)  # not a step that was tried and taken back
        for name, p in wanted.items():
            p.requires_grad_(flags[name])
    return PenalisedRoot(steps, residual, _norm(away))


def _search(
    where: Block,
    field: Callable[[Block], Block],
    first: float,
    tolerance: float,
    max_steps: int,
    progress: Callable[[int, float], None] | None,
) -> tuple[int, float]:
    """Return evaluations and residual; `first` is the inverse of the curvature known.

    `where` is moved to the root; the residual is relative to that at its start.
    """
    here, steps = field(where), 1
    start = norm = _norm(here)
    pairs: list[tuple[Block, Block]] = []
    length = 1.0
    while True:
        residual = 0.0 if start == 0 else norm / start  # NaN stays NaN
        if progress is not None:
            progress(steps, residual)
        if residual <= tolerance:
            return steps, residual
        if not np.isfinite(residual) or steps >= max_steps:
            raise ConvergenceError(
                f"The penalised equation was not solved in {steps} evaluations "
                f"(`max_steps` is {max_steps}): its norm is {residual:.1e} of that at "
                f"the reference (`tolerance` is {tolerance:.0e}). Raise `ridge` (it is "
                f"{1 / first:.3g}), or allow more steps."
            )
        step = _direction(here, pairs, first)
        step = tuple(length * part for part in step) if length < 1 else step
        for place, part in zip(where, step, strict=True):
            place.add_(part)
        there = field(where)
        steps += 1
        grown = _norm(there)
        bend = tuple(b - a for a, b in zip(here, there, strict=True))
        if _dot(step, bend) > 0:  # the curvature along the step is positive
            pairs = [*pairs[1 - _MEMORY :], (step, bend)]
        if np.isfinite(grown) and grown <= 2.0 * norm:
            here, norm, length = there, grown, min(1.0, 2.0 * length)
        else:
            for place, part in zip(where, step, strict=True):
                place.sub_(part)
            length *= 0.25


def _direction(slope: Block, pairs: list[tuple[Block, Block]], first: float) -> Block:
    """Return minus the inverse curvature of the pairs times the slope."""
    moving = [part.clone() for part in slope]
    shares = []
    for step, bend in reversed(pairs):
        share = _dot(step, moving) / _dot(step, bend)
        shares.append(share)
        for part, other in zip(moving, bend, strict=True):
            part.sub_(other, alpha=share)
    if pairs:
        step, bend = pairs[-1]
        first = _dot(step, bend) / _dot(bend, bend)
    for part in moving:
        part.mul_(first)
    for (step, bend), share in zip(pairs, reversed(shares), strict=True):
        other_share = _dot(bend, moving) / _dot(step, bend)
        for part, other in zip(moving, step, strict=True):
            part.add_(other, alpha=share - other_share)
    return tuple(part.neg_() for part in moving)


def _dot(a: Any, b: Any) -> float:
    """Return the inner product of two blocks, added up in double precision."""
    parts = ((x * y).sum(dtype=torch.float64) for x, y in zip(a, b, strict=True))
    return sum(float(part) for part in parts)


def _norm(a: Block) -> float:
    return math.sqrt(_dot(a, a))
