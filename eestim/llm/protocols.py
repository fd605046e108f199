"""What fit, scores, infer and evaluate ask of a model and of its data."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from torch import Generator, Tensor, nn

__all__ = [
    "REFERENCE",
    "IntArray",
    "LatentModel",
    "Units",
    "check_model",
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
    return model


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
