"""Settings and record of a fit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

__all__ = ["Fit", "Recipe"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """Settings of a fit; a checkpoint is resumed only under the same ones.

    Attributes
    ----------
    equation : str
        The equation, as it prints.
    draws, steps, batch_size : int
    optimizer : {"adamw", "sgd"}
    learning_rate, perturbation_rate : float
        Peak rates of the base's and of the perturbation's parameters.
    warmup : int
        Steps of linear warm-up.
    final : float
        Share of the peak rate left at the end of the cosine decay.
    clip : float
        Largest norm of the gradient of each group of parameters.
    weight_decay : float
    average_from : float or None
        Share of the steps after which parameters are averaged (Polyak).
    seed : int
    """

    equation: str
    draws: int
    steps: int
    batch_size: int
    optimizer: Literal["adamw", "sgd"]
    learning_rate: float
    perturbation_rate: float
    warmup: int
    final: float
    clip: float
    weight_decay: float
    average_from: float | None
    seed: int

    def __post_init__(self) -> None:
        for name in ("draws", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"`{name}` is {getattr(self, name)}; it must be at least 1."
                )
        if self.optimizer not in ("adamw", "sgd"):
            raise ValueError(
                f"`optimizer` is {self.optimizer!r}; expected 'adamw' or 'sgd'."
            )
        for name in ("learning_rate", "perturbation_rate", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(
                    f"`{name}` is {getattr(self, name)}; it must be positive."
                )
        if self.average_from is not None and not 0 <= self.average_from < 1:
            raise ValueError(
                f"`average_from` is {self.average_from}; it must lie in [0, 1)."
            )

    def rate(self, step: int) -> float:
        """Return the share of the peak learning rate at a step, 0 to steps - 1."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        span = max(1, self.steps - self.warmup)
        cosine = (1 + math.cos(math.pi * (step - self.warmup) / span)) / 2
        return self.final + (1 - self.final) * cosine


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """What a fit did.

    Attributes
    ----------
    recipe : Recipe
    losses : (steps,) float array
        Loss of each step; for `Split`, the base's.
    n_units : int
        Independent units (documents) in the training data.
    passes : float
        Times that each row was used.
    seconds : float
        Wall time of this call.
    rows_per_second : float
    resumed_from : int
        Step that a checkpoint continued from, 0 without one.
    checkpoint : Path or None
    digests : tuple of str
        Fingerprints of the training documents, empty where there are none.
    """

    recipe: Recipe
    losses: npt.NDArray[np.float64]
    n_units: int
    passes: float
    seconds: float
    rows_per_second: float
    resumed_from: int
    checkpoint: Path | None
    digests: tuple[str, ...]
