"""Value and gradient of a functional of a latent model, and what it may not be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from eestim.errors import DataError, IdentificationError, InferenceError
from eestim.llm.documents import refuse_leakage
from eestim.llm.parameters import Which, chosen
from eestim.llm.protocols import Units
from eestim.llm.training import as_units

__all__ = ["labels_of", "refuse_seen", "refuse_zero", "value_and_gradient"]

Array = npt.NDArray[np.float64]


def _value_of(functional: Any, model: nn.Module) -> Tensor:
    """Return the value of a functional, flat, after checking what it is."""
    if not callable(functional):
        raise TypeError(
            f"`functional` is {functional!r}; expected a function from the model to a "
            "tensor, such as squared_size."
        )
    found = functional(model)
    if not isinstance(found, Tensor) or found.numel() == 0 or not found.requires_grad:
        shown = type(found).__name__
        if isinstance(found, Tensor):
            shown = "empty" if found.numel() == 0 else "cut off from the parameters"
        raise TypeError(
            f"`functional` gives a value that is {shown}; expected a tensor that is "
            "differentiable in the model's parameters, made without detach, item or "
            "numpy."
        )
    flat: Tensor = found.reshape(-1)
    return flat


def value_and_gradient(
    model: nn.Module, functional: Callable[[nn.Module], Tensor], which: Which
) -> tuple[Array, Array]:
    """Return the value (k,) and the gradient (k, P) of the functional."""
    wanted = chosen(model, which)
    flags = {name: p.requires_grad for name, p in wanted.items()}
    for p in wanted.values():
        p.requires_grad_(True)
    try:
        with torch.enable_grad():
            value = _value_of(functional, model)
            rows = []
            for entry in value:
                found = torch.autograd.grad(
                    entry,
                    list(wanted.values()),
                    retain_graph=True,
                    materialize_grads=True,
                )
                rows.append(torch.cat([f.flatten() for f in found]))
    finally:
        for name, p in wanted.items():
            p.requires_grad_(flags[name])
    gradient = torch.stack(rows).double().cpu().numpy()
    if not (bool(torch.isfinite(value).all()) and np.isfinite(gradient).all()):
        raise InferenceError(
            f"`functional` has the value {value.tolist()[:3]} and a gradient of which "
            f"{int((~np.isfinite(gradient)).sum())} entries are not finite; use one "
            "that is smooth here, and see whether all weights are finite."
        )
    return value.detach().double().cpu().numpy(), gradient


def labels_of(functional: Any, count: int) -> tuple[str, ...]:
    """Return the names of the values of a functional."""
    name = getattr(functional, "__name__", "functional").strip("<>")
    return (name,) if count == 1 else tuple(f"{name}[{j}]" for j in range(count))


def refuse_zero(model: nn.Module, gradient: Array, labels: tuple[str, ...]) -> None:
    """Refuse Wald inference at a perturbation of size zero."""
    perturbation: Any = getattr(model, "perturbation", None)
    directions = getattr(perturbation, "directions", None)
    if directions is not None and not bool(directions.detach().any()):
        raise IdentificationError(
            "`model` has a perturbation of size zero, where the law of the data does "
            "not change to first order and A is singular: neither a standard error nor "
            "a Wald statistic of C has its usual law there. Test it by the one-sided "
            "score, `no_perturbation(model, documents)`."
        )
    for label, row in zip(labels, gradient, strict=True):
        if not row.any():
            raise IdentificationError(
                f"`functional` {label!r} does not depend on the parameters; choose "
                "one that varies with them."
            )


def refuse_seen(model: nn.Module, functional: Any, documents: Units) -> None:
    """Refuse a loss on documents that the parameters were fitted to.

    psi of a document and its loss then depend on one another: the loss is too small by
    the optimism of the fit, which no interval of the sandwich holds.

    Raises
    ------
    DataError
        If a document is in both.
    """
    held_out = getattr(functional, "documents", None)
    if held_out is None:
        return
    held_out = as_units(model, held_out)
    if held_out is documents:
        raise DataError(
            "`functional` is a loss on `documents` itself, which the parameters were "
            "fitted to: its optimism is in no interval. Give `log_loss` documents that "
            "were held out."
        )
    refuse_leakage(documents, held_out, "functional")
