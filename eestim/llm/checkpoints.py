"""The state of a fit: what a step changes, and what a checkpoint holds."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from eestim.errors import ConvergenceError, DataError
from eestim.llm.equations import Split
from eestim.llm.protocols import Units, split_parameters
from eestim.llm.recipe import Recipe
from eestim.llm.surrogates import LatentEquation

__all__ = ["CHECKPOINT", "State", "fingerprint", "update_average"]

CHECKPOINT = "checkpoint.pt"


@dataclass(slots=True, eq=False)
class State:
    """Everything that a step changes, and that a checkpoint holds."""

    model: nn.Module
    equation: LatentEquation
    recipe: Recipe
    base: dict[str, nn.Parameter]
    perturbation: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    average: dict[str, Tensor]
    data: str
    step: int
    losses: list[float]
    older: dict[str, Tensor] = field(default_factory=dict)
    validation: list[tuple[int, float]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def start(
        cls, model: nn.Module, equation: LatentEquation, recipe: Recipe, data: str
    ) -> State:
        """Return the state before the first step."""
        base, phi = split_parameters(model)
        if not base and not phi:
            raise DataError(
                "`model` has no trainable parameter; call requires_grad_(True) on the "
                "base or the perturbation."
            )
        if isinstance(equation, Split) and not phi:
            raise DataError(
                "`equation` is a Split, but the model has no trainable parameter "
                "under `perturbation`; use its `base` equation alone."
            )
        rates = (recipe.learning_rate, recipe.perturbation_rate)
        groups = [
            {"params": list(group.values()), "lr": rate, "peak": rate}
            for group, rate in zip((base, phi), rates, strict=True)
            if group
        ]
        optimizer: torch.optim.Optimizer
        if recipe.optimizer == "sgd":
            optimizer = torch.optim.SGD(
                groups, momentum=0.0, weight_decay=recipe.weight_decay
            )
        else:
            optimizer = torch.optim.AdamW(
                groups, betas=(0.9, 0.99), weight_decay=recipe.weight_decay
            )
        return cls(model, equation, recipe, base, phi, optimizer, {}, data, 0, [])

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """All trained parameters by name."""
        return self.base | self.perturbation

    def load(self, path: Path) -> None:
        """Take over a checkpoint, after checking that it is of the same recipe."""
        saved = torch.load(path, map_location="cpu", weights_only=True)
        found, expected = json.loads(saved["recipe"]), asdict(self.recipe)
        changed = [name for name in expected if found.get(name) != expected[name]]
        if changed:
            name = changed[0]
            raise DataError(
                f"`checkpoint` holds {path}, written with {name}={found.get(name)!r}, "
                f"but this fit has {name}={expected[name]!r}; use the same settings, "
                "another folder, or resume=False."
            )
        if saved["data"] != self.data:
            raise DataError(
                f"`checkpoint` holds {path}, which was trained on other documents; "
                "use the same documents, another folder, or resume=False."
            )
        if set(saved["parameters"]) != set(self.parameters):
            raise DataError(
                f"`checkpoint` holds {path}, whose trained parameters are not the "
                "model's; train the same parameters or use another folder."
            )
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(saved["parameters"][name])
        self.optimizer.load_state_dict(saved["optimizer"])
        device = next(iter(self.parameters.values())).device
        self.average = {n: v.to(device) for n, v in saved["average"].items()}
        self.older = {n: v.to(device) for n, v in saved["older"].items()}
        self.best = {n: v.to(device) for n, v in saved["best"].items()}
        self.validation = [(int(at), loss) for at, loss in saved["validation"]]
        self.step, self.losses = saved["step"], saved["losses"]

    @property
    def best_look(self) -> int | None:
        """Place of the smallest held-out loss among the looks, or None."""
        if not self.validation:
            return None
        return int(np.argmin([loss for _, loss in self.validation]))

    @property
    def has_stopped(self) -> bool:
        """Whether the held-out loss has not improved for `patience` looks."""
        best, patience = self.best_look, self.recipe.patience
        if best is None or patience is None:
            return False
        return len(self.validation) - 1 - best >= patience

    def refuse_non_finite(self) -> None:
        """Refuse to write parameters that are not finite."""
        for name, parameter in self.parameters.items():
            if not bool(torch.isfinite(parameter).all()):
                raise ConvergenceError(
                    f"`{name}` is not finite after step {self.step - 1}; no checkpoint "
                    "was written over the last good one. Lower `learning_rate` or "
                    "`perturbation_rate`."
                )

    def save(self, folder: Path) -> None:
        """Write a checkpoint; a reader sees the old one or the new one, whole."""
        self.refuse_non_finite()
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f"{CHECKPOINT}.partial"
        content = {
            "recipe": json.dumps(asdict(self.recipe)),
            "data": self.data,
            "step": self.step,
            "losses": self.losses,
            "parameters": {n: p.detach() for n, p in self.parameters.items()},
            "average": self.average,
            "older": self.older,
            "best": self.best,
            "validation": [list(look) for look in self.validation],
            "optimizer": self.optimizer.state_dict(),
        }
        with partial.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(folder / CHECKPOINT)


def fingerprint(units: Units) -> str:
    """Return a hash of the rows' units and, for documents, of their texts."""
    digest = hashlib.sha256(np.ascontiguousarray(units.unit).tobytes())
    for text in getattr(units, "digests", ()):
        digest.update(text.encode())
    return digest.hexdigest()


def update_average(state: State) -> None:
    """Fold the parameters into their running mean, once averaging has begun."""
    share = state.recipe.average_from
    if share is None:
        return
    count = state.step - int(share * state.recipe.steps)
    if count < 1:
        return
    with torch.no_grad():
        for name, parameter in state.parameters.items():
            if count == 1:
                state.average[name] = parameter.detach().clone()
            else:
                state.average[name] += (parameter - state.average[name]) / count
