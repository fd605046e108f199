r"""The size of a perturbation while it is fitted, and a penalty that steers it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eestim.errors import CapabilityError

__all__ = ["SizePenalty", "squared_size_of"]


@dataclass(frozen=True, slots=True)
class SizePenalty:
    r"""Pull the root mean square size of the perturbation towards a target.

    .. math:: \frac{w}{2} \Big( \log \frac{E \|u - e\|^2}{m_s^2} \Big)^2

    is added to the loss of the perturbation's parameters, where the target m_s moves
    from `start` to `target`, on a log scale, over the first `ramp` of the steps. A
    penalised root solves another equation: an interval for it is one for the penalised
    parameter. To hold the size exactly use a perturbation with ``held=True``.

    Parameters
    ----------
    target : float
        Root mean square length of u - e to pull to.
    weight : float
        w, in nats per squared log ratio of squared sizes.
    start : float, optional
        Target at the first step; by default `target` throughout.
    ramp : float
        Share of the steps over which the target moves.

    Examples
    --------
    >>> penalty = SizePenalty(4.0, start=1.0, ramp=0.5)
    >>> [round(penalty.target_at(step, 100), 2) for step in (0, 25, 50, 99)]
    [1.0, 2.0, 4.0, 4.0]
    """

    target: float
    weight: float = 0.1
    start: float | None = None
    ramp: float = 0.5

    def __post_init__(self) -> None:
        for name in ("target", "weight", "start"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"`{name}` is {value}; it must be positive.")
        if not 0.0 < self.ramp <= 1.0:
            raise ValueError(f"`ramp` is {self.ramp}; it must lie in (0, 1].")

    def target_at(self, step: int, steps: int) -> float:
        """Return the target size of a step."""
        if self.start is None:
            return self.target
        share = min(1.0, step / (self.ramp * steps))
        return math.exp(
            (1 - share) * math.log(self.start) + share * math.log(self.target)
        )

    def value(self, squared_size: Tensor, step: int, steps: int) -> Tensor:
        """Return the penalty of a mean squared size."""
        ratio = squared_size.log() - 2 * math.log(self.target_at(step, steps))
        return self.weight / 2 * ratio.square()


def squared_size_of(model: nn.Module, batch: Any) -> Tensor:
    """Return the mean squared change of embedding over a batch's tokens.

    Raises
    ------
    CapabilityError
        If the model's perturbation does not tell.
    """
    perturbation: Any = getattr(model, "perturbation", None)
    if perturbation is None or not hasattr(perturbation, "squared_size"):
        raise CapabilityError(
            "`penalty` needs a perturbation with `squared_size(embeddings)`; "
            f"{type(perturbation).__name__} has none. Leave the penalty out."
        )
    embed: Any = getattr(model, "embed", None)
    if embed is None:
        clean = next(perturbation.parameters()).new_zeros(1, perturbation.width)
    else:
        with torch.no_grad():
            clean = embed(batch)
    found: Tensor = perturbation.squared_size(clean)
    return found
