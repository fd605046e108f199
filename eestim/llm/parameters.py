"""Which parameters of a latent model psi and A belong to, and their names."""

from __future__ import annotations

from typing import Literal

import numpy as np
from torch import nn

from eestim.errors import DataError
from eestim.llm.protocols import REFERENCE, check_model

__all__ = [
    "Which",
    "chosen",
    "count_parameters",
    "name_at",
    "parameter_names",
    "refuse_frozen",
]

Which = Literal["perturbation", "all", "trained"]


def chosen(model: nn.Module, which: Which) -> dict[str, nn.Parameter]:
    """Return the parameters that psi belongs to, by name.

    A frozen reference, which reads clean prefixes, has none: it is part of the data.

    Parameters
    ----------
    model : LatentModel
    which : {"perturbation", "all", "trained"}
        "trained" are those with ``requires_grad``, which `fit` moves: of a base that
        peft has adapted the adapters, and of a perturbation whose directions are held
        the rest.

    Raises
    ------
    DataError
        If there is none.
    """
    check_model(model)
    if which not in ("perturbation", "all", "trained"):
        raise ValueError(
            f"`parameters` is {which!r}; expected 'perturbation', 'all' or 'trained'."
        )
    found = {
        name: p for name, p in model.named_parameters() if _is_chosen(name, p, which)
    }
    if not found and which == "trained":
        raise DataError(
            "`model` has no parameter that is trained; call requires_grad_(True) on "
            "those that were, or set parameters='all'."
        )
    if not found:
        raise DataError(
            "`model` has no perturbation whose parameters could be estimated; give "
            "it one, or set parameters='all'."
        )
    return found


def _is_chosen(name: str, parameter: nn.Parameter, which: Which) -> bool:
    if name.startswith(REFERENCE):
        return False
    if which == "trained":
        return parameter.requires_grad
    return which == "all" or name.startswith("perturbation.")


def refuse_frozen(model: nn.Module, which: Which) -> None:
    """Refuse parameters that training left where they were, beside some that it moved.

    psi of a frozen parameter is not zero in the mean, so there is no root, and an
    interval that counts it as estimated is of no estimator.

    Raises
    ------
    DataError
        If some of the chosen parameters are frozen and others are not.
    """
    found = chosen(model, which)
    frozen = [name for name, p in found.items() if not p.requires_grad]
    if frozen and len(frozen) < len(found):
        raise DataError(
            f"`parameters` is {which!r}, of which {len(frozen)} of {len(found)} "
            f"tensors are frozen ({frozen[0]} first): training solved no equation for "
            "them. Set parameters='trained', or call requires_grad_(True) on them if "
            "they were trained."
        )


def parameter_names(model: nn.Module, which: Which = "perturbation") -> tuple[str, ...]:
    """Return a name for each entry of psi, such as ``directions[2,0]``."""
    names = []
    for name, parameter in chosen(model, which).items():
        short = name.removeprefix("perturbation.")
        if parameter.ndim == 0:
            names.append(short)
        else:
            for index in np.ndindex(*parameter.shape):
                names.append(f"{short}[{','.join(map(str, index))}]")
    return tuple(names)


def name_at(model: nn.Module, which: Which, place: int) -> str:
    """Return the name of one entry of psi, without making all of them."""
    for name, parameter in chosen(model, which).items():
        if place < parameter.numel():
            short = name.removeprefix("perturbation.")
            index = np.unravel_index(place, tuple(parameter.shape))
            at = ",".join(str(int(j)) for j in index)
            return f"{short}[{at}]" if parameter.ndim else short
        place -= parameter.numel()
    raise IndexError(f"`place` lies {place} beyond the last parameter.")


def count_parameters(wanted: dict[str, nn.Parameter]) -> int:
    """Return P, the number of entries of psi."""
    return sum(p.numel() for p in wanted.values())
