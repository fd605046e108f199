r"""The sensitivity A of a latent model's equations.

A is minus the derivative of **psi**, so it passes through both copies of the parameters
in the surrogate. The second derivative of a surrogate with a detached copy is another
matrix (for weighted equations its mean at the truth is zero).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from eestim.errors import CapabilityError, DataError
from eestim.llm.equations import Brier
from eestim.llm.limits import check_independence
from eestim.llm.parameters import Which, chosen, count_parameters
from eestim.llm.protocols import check_model
from eestim.llm.score_rules import logits_at
from eestim.llm.scores import equation_parts, independent_units, unit_batches
from eestim.llm.surrogates import LatentEquation, check_draws

__all__ = [
    "MOST_DENSE",
    "check_dense",
    "check_expected",
    "check_precision",
    "plain_attention",
    "sensitivity",
]

Array = npt.NDArray[np.float64]

MOST_DENSE = 5000  # parameters: A takes 0.2 GB
_MOST_AT_ONCE = 32  # rows of A by one batched backward pass
_BYTES_AT_ONCE = 4 << 20  # of their logits: larger batches leave the caches


def sensitivity(
    model: nn.Module,
    documents: Any,
    equation: LatentEquation | None = None,
    *,
    draws: int = 8,
    passes: int = 1,
    parameters: Which = "perturbation",
    kind: Literal["observed", "expected"] = "observed",
    batch_size: int = 8,
    seed: int = 0,
) -> Array:
    r"""Return A, minus the mean over units of the derivative of psi.

    .. math:: A = - \frac1n \sum_i \frac{\partial \psi_i}{\partial \theta^\top}

    Reverse mode twice, with plain attention (fused attention has no second
    derivative).

    Parameters
    ----------
    kind : {"observed", "expected"}
        "observed" is the derivative itself. "expected" keeps the part through the
        residual, :math:`\sum_v w_v \nabla q_v(Z_2) \nabla q_v(Z_1)^\top`: equal in
        the mean at a correct model, less noisy, wrong under misspecification.
    model, documents, equation, draws, passes, parameters, batch_size, seed
        As for `scores`.

    Returns
    -------
    (P, P) float64 array
        Not symmetric in general.
    """
    equation = Brier() if equation is None else equation
    check_draws(equation, draws)
    check_independence(check_model(model), equation.smallest_draws)
    if passes < 1:
        raise ValueError(f"`passes` is {passes}; it must be at least 1.")
    if kind not in ("observed", "expected"):
        raise ValueError(f"`kind` is {kind!r}; expected 'observed' or 'expected'.")
    if kind == "expected":
        check_expected(equation)
    units = independent_units(model, documents)
    wanted = chosen(model, parameters)
    check_dense(count_parameters(wanted))
    check_precision(model)
    total = torch.zeros(
        count_parameters(wanted), count_parameters(wanted), dtype=torch.float64
    )
    with plain_attention(model):
        for number in range(passes):
            for batch, _, generator in unit_batches(units, batch_size, seed, number):
                state = generator.get_state()
                for part, names in equation_parts(equation, wanted):
                    rows = _slope(
                        model, part, wanted, names, (batch, draws, generator), kind
                    )
                    places = _places(wanted, names)
                    total[places] += rows
                    generator.set_state(state)
    if not bool(torch.isfinite(total).all()):
        raise DataError(
            "`model` gives a sensitivity that is not finite: its weights are not "
            "finite, or its logits overflow. Load the weights again, or go back to a "
            "checkpoint."
        )
    mean: Array = (total / (passes * units.n_units)).numpy()
    return mean


def check_precision(model: nn.Module) -> None:
    """Refuse half precision: an error of 1% in A is not one of 1% in its inverse."""
    for name, value in model.named_parameters():
        if value.dtype in (torch.float16, torch.bfloat16):
            raise DataError(
                f"`model` holds {name} in {value.dtype}, whose rounding A's inverse "
                "magnifies without bound; call model.float() for inference. `scores` "
                "and `fit` take half precision."
            )


def check_expected(equation: LatentEquation) -> None:
    r"""Refuse an equation whose A has no form through first derivatives alone.

    Where psi is a residual of mean zero given everything else in it, times an
    instrument, the derivative of the instrument (and of the weights) has mean zero at
    the truth, and A is what comes through the residual: the `still` copy.
    """
    if not equation.is_unbiased:
        raise CapabilityError(
            f"`kind` is 'expected', but psi of {equation} is the slope of a loss, not "
            "a residual of mean zero times an instrument, so second derivatives do not "
            "drop out of A; use kind='observed'."
        )


@contextmanager
def plain_attention(model: nn.Module) -> Iterator[None]:
    """Use attention that has derivatives of every kind while the context lasts.

    Fused attention has neither forward mode nor second derivatives.
    """
    base: Any = getattr(model, "base", None)
    kind = getattr(getattr(base, "config", None), "_attn_implementation", "eager")
    is_plain = kind in (None, "eager", "sdpa")
    if not is_plain:
        base.set_attn_implementation("eager")
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        if not is_plain:
            base.set_attn_implementation(kind)


def check_dense(count: int) -> None:
    """Refuse more parameters than a stored A is meant for."""
    if count > MOST_DENSE:
        raise DataError(
            f"`parameters` selects {count} parameters; the dense form holds at most "
            f"{MOST_DENSE}. Use `infer(..., method='matrix-free')`, a smaller rank, or "
            "parameters='perturbation'."
        )


def _places(wanted: dict[str, nn.Parameter], names: dict[str, nn.Parameter]) -> Tensor:
    """Return the rows of A that belong to some of the parameters."""
    mask = [torch.full((p.numel(),), name in names) for name, p in wanted.items()]
    return torch.cat(mask).nonzero().squeeze(1)


def _slope(
    model: nn.Module,
    equation: LatentEquation,
    wanted: dict[str, nn.Parameter],
    names: dict[str, nn.Parameter],
    arguments: tuple[Any, int, torch.Generator],
    kind: str,
) -> Tensor:
    """Return minus the derivative of one batch's summed psi, (rows, P).

    Both copies of the parameters share one pass of the model: psi is
    J(theta)' s(l, l) with l the logits, J their Jacobian and s(u, t) the derivative of
    the surrogate in its moving logits.
    """
    theta = {n: p.detach().clone().requires_grad_() for n, p in wanted.items()}
    logits, leaves = logits_at(model, theta, *arguments), list(theta.values())
    targets = model.targets(arguments[0])  # type: ignore[operator]
    if not logits.requires_grad:  # no parameter reaches the logits
        count = sum(p.numel() for p in names.values())
        return torch.zeros(count, count_parameters(wanted), dtype=torch.float64)
    still, is_expected = logits.clone(), kind == "expected"
    moving = logits.detach().requires_grad_() if is_expected else logits.clone()
    value = equation.surrogate(moving, still, targets).sum()
    (slope,) = torch.autograd.grad(value, moving, create_graph=True)
    weight = torch.zeros_like(logits).requires_grad_() if is_expected else slope
    found = torch.autograd.grad(
        logits,
        [theta[n] for n in names],
        weight,
        create_graph=True,
        materialize_grads=True,
    )
    flat = torch.cat([f.flatten() for f in found])
    basis = torch.eye(len(flat), dtype=flat.dtype, device=flat.device)
    each = logits.numel() * logits.element_size()
    size = min(_MOST_AT_ONCE, max(1, _BYTES_AT_ONCE // each))
    rows = []
    for some in torch.split(basis, size):
        if is_expected:  # J' (ds / dt) J: the products J c, then back through t
            forward = _pulled(flat, [weight], some)[0].view(-1, *logits.shape)
            rows.append(torch.cat(_pulled(slope, leaves, forward), dim=1))
        else:
            rows.append(torch.cat(_pulled(flat, leaves, some), dim=1))
    return torch.cat(rows).double().cpu()


def _pulled(output: Tensor, leaves: list[Tensor], many: Tensor) -> list[Tensor]:
    """Return vector-Jacobian products of many vectors at once, (m, size) each."""
    if not output.requires_grad:  # linear in every parameter
        return [leaf.new_zeros(len(many), leaf.numel()) for leaf in leaves]
    found = torch.autograd.grad(
        output,
        leaves,
        many,
        retain_graph=True,
        is_grads_batched=True,
        allow_unused=True,
    )
    return [
        leaf.new_zeros(len(many), leaf.numel())
        if f is None
        else f.reshape(len(many), -1)
        for f, leaf in zip(found, leaves, strict=True)
    ]
