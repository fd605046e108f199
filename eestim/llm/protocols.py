"""What fit, scores, infer and evaluate ask of a model and of its data."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from torch import Generator, Tensor, nn

from eestim.errors import DataError

__all__ = [
    "REFERENCE",
    "IntArray",
    "LatentModel",
    "Units",
    "check_model",
    "check_units",
    "split_parameters",
]

IntArray = npt.NDArray[np.int64]
REFERENCE = "reference."  # names of weights that read the data and are never estimated


@runtime_checkable
class LatentModel(Protocol):
    """A torch module that draws the law of its targets given a latent.

    The parameters of its submodule `perturbation`, where it has one, are phi; those of
    a submodule `reference` are frozen; the others are the base's.
    """

    def draw_logits(self, batch: Any, draws: int, generator: Generator) -> Tensor:
        """Return (K, B, ..., V) logits of K independent draws for each row."""

    def targets(self, batch: Any) -> Tensor:
        """Return (B, ...) observed outcomes; -100 leaves a position out."""


@runtime_checkable
class Units(Protocol):
    """Rows of data, each belonging to one independent unit (a document)."""

    @property
    def n_units(self) -> int:
        """Number of independent units."""

    @property
    def unit(self) -> IntArray:
        """The unit of each row, (n_rows,), from 0 to n_units - 1."""

    def batch(self, rows: IntArray) -> Any:
        """Return the data of some rows, in the form the model takes."""


def check_model(model: Any) -> nn.Module:
    """Return the model after checking that it is a torch latent model."""
    if not isinstance(model, nn.Module) or not isinstance(model, LatentModel):
        raise TypeError(
            f"`model` is a {type(model).__name__}; expected a torch module with "
            "`draw_logits(batch, draws, generator)` and `targets(batch)`. Wrap a "
            "Hugging Face causal model as LatentPrefixLM(model, perturbation)."
        )
    silence = getattr(model, "silence", None)
    if silence is not None:
        silence()
    return model


def check_units(units: Units) -> Units:
    """Return units after checking that their labels count independent units.

    A unit without a row would have psi zero and shrink every interval.
    """
    labels = np.asarray(units.unit)
    is_count = labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer)
    if not is_count or len(labels) == 0:
        raise DataError(
            f"`documents` has labels `unit` of shape {labels.shape} and type "
            f"{labels.dtype}; expected the unit of each row, whole numbers, of at "
            "least one row."
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= units.n_units:
        raise DataError(
            f"`documents` has labels `unit` from {low} to {high}, but `n_units` is "
            f"{units.n_units}; number the units from 0."
        )
    rows = np.bincount(labels, minlength=units.n_units)
    if not rows.all():
        raise DataError(
            f"`documents` has {units.n_units} units, but unit {int(rows.argmin())} has "
            "no row: it would count as an observation of psi zero. Number only units "
            "that have rows."
        )
    return units


def split_parameters(
    model: nn.Module,
) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """Return the trainable (base, perturbation) parameters by name.

    A frozen reference stays as it is even if all of the model is set to train.
    """
    base: dict[str, nn.Parameter] = {}
    phi: dict[str, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not name.startswith(REFERENCE):
            (phi if name.startswith("perturbation.") else base)[name] = parameter
    return base, phi
