"""Ways to psi of the rows of a batch: two-stage, mapped, forward and the loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from eestim.errors import CapabilityError
from eestim.llm.documents import TokenBatch
from eestim.llm.parameters import count_parameters
from eestim.llm.perturbations import Perturbation
from eestim.llm.prefix import LatentPrefixLM, as_token_batch
from eestim.llm.sites import Site
from eestim.llm.surrogates import LatentEquation

__all__ = ["Rule", "logits_at", "rule_of"]

_FORWARD_BELOW = 32  # parameters: forward mode costs one pass for each
_LARGEST_CHUNK = 1.5e8  # bytes of the gradients that one mapped pass holds

Rule = Callable[
    [nn.Module, LatentEquation, dict[str, nn.Parameter], Any, int, torch.Generator],
    dict[str, Tensor],
]


def rule_of(model: nn.Module, wanted: dict[str, nn.Parameter], method: str) -> Rule:
    """Return the function that makes psi of the rows of one batch."""
    is_lm = isinstance(model, LatentPrefixLM) and isinstance(
        model.perturbation, Perturbation | None
    )
    is_staged = is_lm and all(name.startswith("perturbation.") for name in wanted)
    if method == "auto":
        few = count_parameters(wanted) < _FORWARD_BELOW
        other = "forward" if few else "loop"
        method = "two-stage" if is_staged else "mapped" if is_lm else other
    if (method == "two-stage" and not is_staged) or (method == "mapped" and not is_lm):
        needed = " and its perturbation alone" if method == "two-stage" else ""
        raise CapabilityError(
            f"`method` is {method!r}, which needs a LatentPrefixLM{needed}; use 'loop' "
            "or 'forward'."
        )
    rules: dict[str, Rule] = {
        "two-stage": _two_stage,
        "mapped": _mapped,
        "forward": _forward,
        "loop": _loop,
    }
    if method not in rules:
        raise ValueError(f"`method` is {method!r}; expected one of {['auto', *rules]}.")
    return rules[method]


def _two_stage(
    model: nn.Module,
    equation: LatentEquation,
    wanted: dict[str, nn.Parameter],
    batch: Any,
    draws: int,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Go backward to the perturbed embeddings, then through g for each row."""
    if not isinstance(model, LatentPrefixLM) or not isinstance(
        model.perturbation, Perturbation
    ):
        raise CapabilityError("`model` has no perturbation to differentiate.")
    perturbation = model.perturbation
    model.check_memory(as_token_batch(batch), draws)
    states = model.embed(batch).detach()
    latents = model.latents(states, draws, generator, batch)
    moved = model.perturb(states, latents, batch).detach().requires_grad_()
    logits = model.logits_of(moved, batch)
    value = equation.surrogate(logits, logits.detach(), model.targets(batch))
    (slope,) = torch.autograd.grad(value.sum(), moved)
    prefix = "perturbation."
    phi = {name.removeprefix(prefix): p.detach() for name, p in wanted.items()}
    start = as_token_batch(batch).start
    where = () if start is None else (start.to(states.device),)

    def of_row(e: Tensor, z: Tensor, g: Tensor, *begin: Tensor) -> dict[str, Tensor]:
        one = (e.unsqueeze(0), z.unsqueeze(1), *(b.unsqueeze(0) for b in begin))
        pull: Any = vjp(lambda p: functional_call(perturbation, p, one), phi)[1]
        found: dict[str, Tensor] = pull(-g.unsqueeze(1))[0]
        return found

    places = (0, 1, 1, *(0 for _ in where))
    rows = vmap(of_row, in_dims=places)(states, latents, slope, *where)
    return {prefix + name: block for name, block in rows.items()}


class _Rows(nn.Module):
    """Make the logits of given latents the forward of a language model."""

    def __init__(self, model: LatentPrefixLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: TokenBatch, latents: Tensor) -> Tensor:
        """Return the (K, B, T, V) logits of tokens that were checked before."""
        model, site = self.model, Site(self.model.base, self.model.site)
        states = model.states_of(batch.input_ids, batch.start)
        moved = model.moved(states, latents, batch.start)
        logits = site.logits(model.narrowed(moved.flatten(0, 1)), batch.start)
        return logits.view(*moved.shape[:2], *logits.shape[1:])


def _mapped(
    model: nn.Module,
    equation: LatentEquation,
    wanted: dict[str, nn.Parameter],
    batch: Any,
    draws: int,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Map the gradient of one row's surrogate over the rows, in chunks."""
    if not isinstance(model, LatentPrefixLM):
        raise CapabilityError("`model` is not a LatentPrefixLM.")
    tokens = as_token_batch(batch)
    with torch.no_grad():
        latents = model.latents(model.embed(tokens), draws, generator, tokens)
    caller = _Rows(model)
    values = {f"model.{name}": p.detach() for name, p in wanted.items()}

    def of_row(moving: dict[str, Tensor], row: dict[str, Tensor], z: Tensor) -> Tensor:
        one = TokenBatch(**{name: value.unsqueeze(0) for name, value in row.items()})
        logits = functional_call(caller, moving, (one, z.unsqueeze(1)))
        return -equation.surrogate(logits, logits.detach(), one.targets).sum()

    size = max(1, int(_LARGEST_CHUNK / (4 * count_parameters(wanted))))
    model.check_memory(
        TokenBatch(tokens.input_ids[:size], tokens.targets[:size]), draws
    )
    found = {f.name: getattr(tokens, f.name) for f in fields(tokens)}
    table = {n: v.to(model.device) for n, v in found.items() if v is not None}
    with sdpa_kernel(SDPBackend.MATH):  # fused attention has no batching rule
        rows = vmap(grad(of_row), in_dims=(None, 0, 1), chunk_size=size)(
            values, table, latents
        )
    return {name.removeprefix("model."): block for name, block in rows.items()}


class _Caller(nn.Module):
    """Make `draw_logits` the forward of a module, for functional_call."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *arguments: Any) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.model.draw_logits(*arguments)  # type: ignore[operator]
        return logits


def logits_at(model: nn.Module, values: dict[str, Tensor], *arguments: Any) -> Tensor:
    """Return ``draw_logits(*arguments)`` with some parameters replaced."""
    renamed = {f"model.{name}": value for name, value in values.items()}
    logits: Tensor = functional_call(_Caller(model), renamed, arguments)
    return logits


def _forward(
    model: nn.Module,
    equation: LatentEquation,
    wanted: dict[str, nn.Parameter],
    batch: Any,
    draws: int,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Differentiate every row's surrogate along each parameter, forward."""
    values = {name: p.detach() for name, p in wanted.items()}
    state = generator.get_state()
    with torch.no_grad():
        still = model.draw_logits(batch, draws, generator)  # type: ignore[operator]
    targets = model.targets(batch)  # type: ignore[operator]

    def of_rows(moving: dict[str, Tensor]) -> Tensor:
        generator.set_state(state)
        logits = logits_at(model, moving, batch, draws, generator)
        value = equation.surrogate(logits, still, targets)
        return value.reshape(len(value), -1).sum(1)

    blocks = {}
    for name, value in values.items():
        columns = []
        for index in range(value.numel()):
            tangent = {n: torch.zeros_like(v) for n, v in values.items()}
            tangent[name].view(-1)[index] = 1.0
            columns.append(-jvp(of_rows, (values,), (tangent,))[1])
        blocks[name] = torch.stack(columns, 1)
    return blocks


def _loop(
    model: nn.Module,
    equation: LatentEquation,
    wanted: dict[str, nn.Parameter],
    batch: Any,
    draws: int,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Go backward once for each row."""
    values = {n: p.detach().requires_grad_() for n, p in wanted.items()}
    logits = logits_at(model, values, batch, draws, generator)
    value = equation.surrogate(
        logits,
        logits.detach(),
        model.targets(batch),  # type: ignore[operator]
    )
    rows = value.reshape(len(value), -1).sum(1)
    found = [
        torch.autograd.grad(
            row, list(values.values()), retain_graph=True, materialize_grads=True
        )
        for row in rows
    ]
    return {
        name: -torch.stack([slopes[place] for slopes in found])
        for place, name in enumerate(values)
    }
