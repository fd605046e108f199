"""What the benchmarks of training steps and scores share: equations and token rows."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from eestim.llm.batches import as_token_batch
from eestim.llm.equations import (
    IWAE,
    Brier,
    CentredIWAE,
    NoiseAveraged,
    Power,
    Split,
)

EQUATIONS: dict[str, Any] = {
    "Brier": Brier(),
    "centred": CentredIWAE(group=3),
    "power": Power(0.5),
    "averaged": NoiseAveraged(),
    "IWAE": IWAE(),
    "split": Split(NoiseAveraged(), Brier()),
    "split-1": Split(NoiseAveraged(), Brier(), perturbation_draws=1),
}


@dataclass(frozen=True)
class Rows:
    """Token rows, each its own unit."""

    ids: torch.Tensor

    @property
    def n_units(self) -> int:
        return len(self.ids)

    @property
    def unit(self) -> np.ndarray:
        return np.arange(len(self.ids))

    def batch(self, rows: np.ndarray) -> Any:
        return as_token_batch(self.ids[torch.as_tensor(rows)])
