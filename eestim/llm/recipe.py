"""Settings and record of a fit."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

__all__ = ["Fit", "Recipe", "StepReport"]


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
    accumulate : int
        Parts that a step's rows are processed in, one after another.
    precision : {"full", "bf16"}
        "bf16" runs the model under autocast; trained parameters keep their dtype.
    penalty : str
        The penalty on the size of the perturbation, as it prints.
    validate_every, patience : int or None
        Steps between looks at the held-out loss, and looks without a better one
        after which the fit stops.
    schedule : {"cosine", "power"}
        After the warm-up the rate falls along a cosine to `final`, or like
        :math:`(t / t_w)^{-a}` from its peak, t the steps so far and :math:`t_w` those
        of the warm-up. Only the second has the limit law of averaged descent, see
        `eestim.llm.sgd_inference`.
    exponent : float
        a of the power law, between 1/2 and 1.
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
    accumulate: int = 1
    precision: Literal["full", "bf16"] = "full"
    penalty: str = "None"
    validate_every: int | None = None
    patience: int | None = None
    schedule: Literal["cosine", "power"] = "cosine"
    exponent: float = 0.6

    def __post_init__(self) -> None:
        counts = ("draws", "steps", "batch_size", "accumulate")
        for name in (*counts, "validate_every", "patience"):
            value = getattr(self, name)
            if value is not None and not _is_count(value, 1):
                raise ValueError(
                    f"`{name}` is {value!r}; it must be a whole number, at least 1."
                )
        for name in ("warmup", "seed"):
            value = getattr(self, name)
            if not _is_count(value, 0):
                raise ValueError(
                    f"`{name}` is {value!r}; it must be a whole number, at least 0."
                )
        if self.accumulate > self.batch_size:
            raise ValueError(
                f"`accumulate` is {self.accumulate}, but a step has only "
                f"batch_size={self.batch_size} rows; set accumulate to that or less."
            )
        if self.precision not in ("full", "bf16"):
            raise ValueError(
                f"`precision` is {self.precision!r}; expected 'full' or 'bf16'."
            )
        if self.optimizer not in ("adamw", "sgd"):
            raise ValueError(
                f"`optimizer` is {self.optimizer!r}; expected 'adamw' or 'sgd'."
            )
        for name in ("learning_rate", "perturbation_rate", "clip"):
            value = getattr(self, name)
            if not value > 0 or (name != "clip" and math.isinf(value)):
                raise ValueError(
                    f"`{name}` is {value}; it must be positive. To keep parameters as "
                    "they are, call requires_grad_(False) on them."
                )
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(
                f"`weight_decay` is {self.weight_decay}; it must be non-negative and "
                "finite."
            )
        if not 0 <= self.final <= 1:
            raise ValueError(
                f"`final` is {self.final}; the share of the rate that is left must lie "
                "in [0, 1], or descent would climb."
            )
        if self.average_from is not None and not 0 <= self.average_from < 1:
            raise ValueError(
                f"`average_from` is {self.average_from}; it must lie in [0, 1)."
            )
        if self.schedule not in ("cosine", "power"):
            raise ValueError(
                f"`schedule` is {self.schedule!r}; expected 'cosine' or 'power'."
            )
        if not 0.5 < self.exponent < 1.0:
            raise ValueError(
                f"`exponent` is {self.exponent}; steps that fall like t ** -a average "
                "to a root with a normal law only for a between 1/2 and 1."
            )

    def rate(self, step: int) -> float:
        """Return the share of the peak learning rate at a step, 0 to steps - 1."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.schedule == "power":
            return float(((step + 1) / max(1, self.warmup)) ** -self.exponent)
        span = max(1, self.steps - self.warmup)
        cosine = (1 + math.cos(math.pi * (step - self.warmup) / span)) / 2
        return self.final + (1 - self.final) * cosine


def _is_count(value: object, least: int) -> bool:
    is_whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return is_whole and int(value) >= least  # type: ignore[call-overload]


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
    validation : (looks, 2) float array
        Step and held-out loss (nats per position) of each look.
    best_step : int or None
        Step whose parameters the model was left with, where there was a held-out set.
    tokens_per_second : float
        Observed positions; each is seen under all draws.
    averaged_passes : float
        Times that each row was used while the parameters were averaged; 0 where they
        were not. This is what `infer` calls `passes`.
    n_clipped : int
        Steps whose gradient was clipped.
    last_clipped : int or None
        The last of them: a clipped gradient is another equation.
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
    validation: npt.NDArray[np.float64] = field(
        default_factory=lambda: np.empty((0, 2))
    )
    best_step: int | None = None
    tokens_per_second: float = 0.0
    averaged_passes: float = 0.0
    n_clipped: int = 0
    last_clipped: int | None = None


@dataclass(frozen=True, slots=True)
class StepReport:
    """What a step of a fit did.

    Attributes
    ----------
    step, steps : int
        Steps done, and in all.
    loss : float
        Of the equation; for `Split`, the base's.
    perturbation_loss : float or None
        Of the perturbation's equation, for `Split`.
    gradient_norms : tuple of float
        Of the base's and of the perturbation's parameters before clipping, 0 where
        none are trained.
    perturbation_size : float or None
        Root mean square change of an embedding, before the step.
    learning_rate : float
        Share of the peak rates.
    tokens_per_second : float
        Observed positions of the step over its wall time.
    held_out_loss : float or None
        Where this step looked at it.
    """

    step: int
    steps: int
    loss: float
    perturbation_loss: float | None
    gradient_norms: tuple[float, float]
    perturbation_size: float | None
    learning_rate: float
    tokens_per_second: float
    held_out_loss: float | None = None

    def __str__(self) -> str:
        """Return one line for a progress bar."""
        size = self.perturbation_size
        shown = "" if size is None else f", size {size:.2f}"
        seen = self.held_out_loss
        held = "" if seen is None else f", held out {seen:.4f}"
        return (
            f"step {self.step}/{self.steps}, loss {self.loss:.4f}{shown}{held}, "
            f"{self.tokens_per_second:.0f} tokens/s"
        )
