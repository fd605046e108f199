r"""One head for every equation: hidden states to gradients, by chunks of tokens.

With V tokens, logits of K draws of B T positions are K B T V numbers, and the tape of
a surrogate holds several such tensors. Here logits of one chunk of positions are made,
turned into their own gradient in place, folded into the gradients of the hidden states
and of the head's weight, and forgotten. Nothing larger than a chunk, the hidden states
and the weight is stored, and every matrix product is done once, as in the plain form.
For `Split` both equations are evaluated on the same logits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from eestim.errors import CapabilityError, DataError
from eestim.llm.equations import Split
from eestim.llm.surrogates import IGNORED, LatentEquation, check_draws, pick, raised

__all__ = [
    "Linear",
    "averaged_log_loss",
    "equation_pair",
    "fused_losses",
    "has_hidden",
    "head_of",
]

_CHUNK_BYTES = 24 << 20  # logits of one product: enough rows to be compute-bound
_DEVICE_CHUNK_BYTES = 192 << 20  # on an accelerator, which needs more of them
_CACHE_NUMBERS = 1 << 18  # logits worked on at once, small enough for a CPU's L2 cache


@dataclass(frozen=True, slots=True, eq=False)
class Linear:
    """A linear output head.

    Attributes
    ----------
    weight : (V, width) tensor
    bias : (V,) tensor or None
    """

    weight: Tensor
    bias: Tensor | None = None


def equation_pair(equation: LatentEquation) -> tuple[LatentEquation, ...]:
    """Return (base's, perturbation's) equations of a `Split`, else the equation."""
    if isinstance(equation, Split):
        return equation.base, equation.perturbation
    return (equation,)


def fused_losses(
    equation: LatentEquation,
    hidden: Tensor,
    head: Linear,
    targets: Tensor,
    *,
    outside: tuple[Tensor, Linear] | None = None,
    kept: int | None = None,
    wanted: tuple[bool, ...] | None = None,
    few: Tensor | None = None,
    chunk_bytes: int | None = None,
) -> Tensor:
    """Return the losses of an equation without ever holding all logits.

    Parameters
    ----------
    equation : LatentEquation
        A `Split` gives two losses: the base's, to which the head belongs, and the
        perturbation's, which has no gradient in the head.
    hidden : (K, ..., width) tensor
        Last hidden states of K draws.
    head : Linear
    targets : (...) integer tensor
        Observed tokens, -100 where there is none.
    outside : ((L, ..., width) tensor, Linear), optional
        Hidden states and head of an older copy of the model, for weights.
    kept : int, optional
        Divisor of the losses; by default the number of positions with a target.
    wanted : tuple of bool, optional
        Which of the losses will be differentiated; by default all.
    few : (m, ..., width) tensor, optional
        The first m draws of `hidden` on a graph of their own, which alone gets the
        gradient of the second loss of a `Split`, times K / m.
    chunk_bytes : int, optional
        Size of the logits of one chunk; by default 24 MiB on a CPU, 192 MiB elsewhere.

    Returns
    -------
    (1,) or (2,) tensor

    Raises
    ------
    ValueError
        If there are fewer draws than the equation needs, or shapes disagree.
    DataError
        If no position has a target.
    """
    check_draws(equation, len(hidden))
    if hidden.shape[1:-1] != targets.shape:
        raise ValueError(
            f"`hidden` has shape {tuple(hidden.shape)} and `targets` "
            f"{tuple(targets.shape)}; expected (K, ..., width) and (...)."
        )
    rows, observed = _observed(targets)
    if kept is None:
        kept = len(observed)
    states = hidden.flatten(1, -2)
    states = states if rows is None else states[:, rows]
    if few is not None:
        few = few.flatten(1, -2)
        few = few if rows is None else few[:, rows]
    older = None
    if outside is not None:
        flat = outside[0].detach().flatten(1, -2)
        older = flat if rows is None else flat[:, rows], outside[1]
    parts = equation_pair(equation)
    made = _Fused.apply(  # type: ignore[no-untyped-call]
        states,
        head.weight,
        head.bias,
        few,
        observed,
        parts,
        (True,) * len(parts) if wanted is None else wanted,
        older,
        kept,
        chunk_bytes or _chunk_bytes(hidden),
    )
    return cast(Tensor, made)


def _observed(targets: Tensor) -> tuple[Tensor | None, Tensor]:
    """Return the positions with a target (None for all) and their tokens."""
    flat = targets.flatten()
    rows = (flat != IGNORED).nonzero().squeeze(1)
    if len(rows) == 0:
        raise DataError(
            "`targets` holds no observed token (every position is -100); give at "
            "least one position a target."
        )
    return (None, flat) if len(rows) == len(flat) else (rows, flat[rows])


class _Fused(torch.autograd.Function):
    """Losses whose gradients are made in the forward pass and kept for the backward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        few: Tensor | None,
        targets: Tensor,
        parts: tuple[LatentEquation, ...],
        wanted: tuple[bool, ...],
        outside: tuple[Tensor, Linear] | None,
        kept: int,
        chunk_bytes: int,
    ) -> Tensor:
        """Return the losses, (number of parts,)."""
        leaves = ctx.needs_input_grad[:3]
        count = None if few is None else len(few)
        work = _Work(hidden, weight, bias, parts, wanted, leaves, 1.0 / kept, count)
        # On the device: a loss that is read for each chunk would stall it.
        losses = hidden.new_zeros(len(parts), dtype=torch.float64)
        n_positions = len(targets)
        size = positions_in(chunk_bytes, hidden, weight)
        for begin in range(0, n_positions, size):
            here = slice(begin, min(begin + size, n_positions))
            older = None
            if outside is not None:
                older = _product(outside[0][:, here], outside[1], work.dtype)
            losses += work.chunk(here, targets[here], older)
        ctx.work = work
        return (losses / kept).to(device=hidden.device, dtype=work.loss_dtype)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator, unused-ignore]
    def backward(ctx: Any, slope: Tensor) -> tuple[Any, ...]:
        """Return the kept gradients times those of the losses; each is kept once."""
        scales = slope.double().tolist()
        return *ctx.work.hand_over(scales), None, None, None, None, None, None


class _Work:
    """Buffers of one pass over the chunks."""

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        parts: tuple[LatentEquation, ...],
        wanted: tuple[bool, ...],
        leaves: tuple[bool, bool, bool],
        scale: float,
        few: int | None,
    ) -> None:
        self.scale, self.few = scale, few
        self.dtype = _product_dtype(weight)
        self.loss_dtype = raised(weight.new_empty(0)).dtype
        self.hidden, self.parts = hidden.detach(), parts
        self.head = Linear(
            weight.detach().to(self.dtype), None if bias is None else bias.detach()
        )
        self.of_hidden: list[Tensor | None] = (
            [
                torch.empty_like(hidden[: few if number else None]) if w else None
                for number, w in enumerate(wanted)
            ]
            if leaves[0]
            else []
        )
        self.of_weight = (
            torch.zeros_like(weight, dtype=self.loss_dtype)
            if leaves[1] and wanted[0]
            else None
        )
        self.of_bias = (
            torch.zeros_like(bias, dtype=self.loss_dtype)
            if bias is not None and leaves[2] and wanted[0]
            else None
        )

    def chunk(self, here: slice, targets: Tensor, older: Tensor | None) -> Tensor:
        """Add the chunk's gradients; return its losses, (number of parts,)."""
        states = self.hidden[:, here]
        logits = _product(states, self.head, self.dtype)
        values = states.new_zeros(len(self.parts), dtype=torch.float64)
        slopes = [logits, *(torch.empty_like(logits) for _ in self.parts[1:])]
        step = len(targets)
        if logits.device.type == "cpu":
            step = max(1, _CACHE_NUMBERS // (logits.shape[0] * logits.shape[2]))
        for begin in range(0, len(targets), step):
            some = slice(begin, begin + step)
            piece = logits[:, some].contiguous()
            outside = None if older is None else older[:, some]
            for number in reversed(range(len(self.parts))):  # 0 overwrites the logits
                part = self.parts[number]
                weights = None if part.lagged is None else outside
                value, slope = part.slope(piece, targets[some], weights)
                values[number] += value.double().sum()
                torch.mul(slope, self.scale, out=slopes[number][:, some])
        for number, slope in enumerate(slopes):
            self._fold(number, slope, here, states)
        return values

    def _fold(self, number: int, slope: Tensor, here: slice, states: Tensor) -> None:
        """Carry a gradient in the logits over to the hidden states and the head."""
        if number > 0 and self.few is not None:
            slope, states = slope[: self.few], states[: self.few]
        flat = slope.flatten(0, 1)
        if self.of_hidden:
            kept = self.of_hidden[number]
            if kept is not None:
                kept[:, here] = (flat @ self.head.weight).view(states.shape)
        if number > 0:  # the head belongs to the base
            return
        if self.of_weight is not None:
            rows = states.reshape(-1, states.shape[-1]).to(self.dtype)
            if self.of_weight.dtype == self.dtype:
                self.of_weight.addmm_(flat.T, rows)
            else:
                self.of_weight += flat.T @ rows
        if self.of_bias is not None:
            self.of_bias += flat.sum(0, dtype=self.loss_dtype)

    def hand_over(self, scales: list[float]) -> tuple[Tensor | None, ...]:
        """Return gradients (hidden, weight, bias, few) times scales; forget them.

        They are large, and whoever receives them may change them in place.
        """
        of_hidden = of_few = None
        for number, scale in enumerate(scales):
            if not scale or not self.of_hidden:
                continue
            if number > 0 and self.few is not None:
                share = self.hidden.shape[0] / self.few
                of_few = _times(self.of_hidden[number], scale * share)
            else:
                one = _times(self.of_hidden[number], scale)
                of_hidden = one if of_hidden is None else of_hidden + one
            self.of_hidden[number] = None
        if not scales[0]:
            return of_hidden, None, None, of_few
        of_weight, of_bias = (
            None if g is None else _times(g, scales[0])
            for g in (self.of_weight, self.of_bias)
        )
        self.of_weight = self.of_bias = None
        return of_hidden, of_weight, of_bias, of_few


def _times(gradient: Tensor | None, scale: float) -> Tensor:
    """Return a kept gradient times a scale, without a copy where that is 1."""
    if gradient is None:
        raise RuntimeError(
            "a fused loss gives its gradient once, and only where it is `wanted`; "
            "compute `fused_losses` again to differentiate it."
        )
    return gradient if scale == 1.0 else gradient * scale


def _product_dtype(weight: Tensor) -> torch.dtype:
    """Return the dtype of the head's matrix products: autocast's where it is on."""
    kind = weight.device.type
    if torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return weight.dtype


def _product(hidden: Tensor, head: Linear, dtype: torch.dtype) -> Tensor:
    """Return logits (K, C, V) of a chunk of hidden states (K, C, width)."""
    weight = head.weight.detach().to(dtype)
    rows = hidden.detach().reshape(-1, hidden.shape[-1]).to(dtype)
    bias = None if head.bias is None else head.bias.detach().to(dtype)
    logits = torch.nn.functional.linear(rows, weight, bias)
    return logits.view(*hidden.shape[:-1], len(weight))


def _chunk_bytes(hidden: Tensor) -> int:
    return _CHUNK_BYTES if hidden.device.type == "cpu" else _DEVICE_CHUNK_BYTES


def positions_in(chunk_bytes: int, hidden: Tensor, weight: Tensor) -> int:
    """Return how many positions' logits of all draws fit into a chunk."""
    each = len(hidden) * len(weight) * _product_dtype(weight).itemsize
    return max(1, chunk_bytes // each)


@torch.no_grad()
def averaged_log_loss(
    hidden: Tensor, head: Linear, targets: Tensor, chunk_bytes: int | None = None
) -> Tensor:
    """Return the sum of -log of the mean probability over draws, in float64.

    Parameters
    ----------
    hidden : (K, ..., width) tensor
    head : Linear
    targets : (...) integer tensor
    chunk_bytes : int, optional
        As for `fused_losses`.
    """
    rows, observed = _observed(targets)
    states = hidden.flatten(1, -2)
    states = states if rows is None else states[:, rows]
    total = hidden.new_zeros((), dtype=torch.float64)
    size = positions_in(chunk_bytes or _chunk_bytes(hidden), hidden, head.weight)
    dtype = _product_dtype(head.weight)
    for begin in range(0, len(observed), size):
        here = slice(begin, begin + size)
        logits = raised(_product(states[:, here], head, dtype))
        log_q = pick(logits, observed[here]) - logits.logsumexp(-1)
        log_mean = log_q.logsumexp(0) - math.log(len(log_q))
        total -= log_mean.double().sum()
    return total.cpu()


def head_of(model: Any) -> Linear:
    """Return the linear output head of a model."""
    return Linear(model.head_weight, model.head_bias)


def has_hidden(model: nn.Module) -> bool:
    """Whether a model's logits are a linear map of hidden states that it draws."""
    if not hasattr(model, "draw_hidden"):
        return False
    try:
        return isinstance(model.head_weight, Tensor)
    except CapabilityError:
        return False
