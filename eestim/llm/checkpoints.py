"""The state of a fit: what a step changes, and what a checkpoint holds."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eestim.errors import ConvergenceError, DataError
from eestim.llm.equations import Split
from eestim.llm.protocols import Units, split_parameters
from eestim.llm.recipe import Recipe
from eestim.llm.surrogates import LatentEquation

__all__ = [
    "CHECKPOINT",
    "State",
    "fingerprint",
    "first_averaged",
    "rows_mark",
    "update_average",
]

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
    rows: str = ""
    mark: str = ""
    n_clipped: int = 0
    last_clipped: int | None = None

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
        saved = _read(path)
        expected = asdict(self.recipe)
        # A field that is newer than the checkpoint had its default then.
        found = _defaults() | json.loads(saved["recipe"])
        changed = [name for name in expected if found.get(name) != expected[name]]
        if changed:
            name = changed[0]
            raise DataError(
                f"`checkpoint` holds {path}, written with {name}={found.get(name)!r}, "
                f"but this fit has {name}={expected[name]!r}; use the same settings, "
                "another folder, or resume=False."
            )
        if (saved["data"], saved.get("rows", self.rows)) != (self.data, self.rows):
            raise DataError(
                f"`checkpoint` holds {path}, which was trained on other documents; "
                "use the same documents, another folder, or resume=False."
            )
        if set(saved["parameters"]) != set(self.parameters):
            raise DataError(
                f"`checkpoint` holds {path}, whose trained parameters are not the "
                "model's; train the same parameters or use another folder."
            )
        for name, parameter in self.parameters.items():
            kept = saved["parameters"][name]
            if kept.shape != parameter.shape or kept.dtype != parameter.dtype:
                raise DataError(
                    f"`checkpoint` holds {path}, whose {name} is {tuple(kept.shape)}, "
                    f"{kept.dtype}, but the model's is {tuple(parameter.shape)}, "
                    f"{parameter.dtype}; build the model of that fit, or use another "
                    "folder."
                )
        if saved.get("model", self.model_mark()) != self.model_mark():
            raise DataError(
                f"`checkpoint` holds {path}, written for another model: its "
                "perturbation, site, latent or frozen weights differ. Build the model "
                "of that fit, use another folder, or resume=False."
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
        self.n_clipped = saved.get("n_clipped", 0)
        self.last_clipped = saved.get("last_clipped")

    def model_mark(self) -> str:
        """Return a hash of what moves psi but is not trained.

        That is the perturbation's settings, the site, and 256 or so evenly spaced
        entries of each frozen weight.
        """
        if self.mark:
            return self.mark
        model: Any = self.model
        perturbation = getattr(model, "perturbation", None)
        config: dict[str, Any] = getattr(perturbation, "config", dict)()
        config.pop("seed", None)  # of the start, which a checkpoint replaces
        where = [getattr(model, name, None) for name in ("site", "latent")]
        digest = hashlib.sha256(
            repr((type(perturbation).__name__, config, where)).encode()
        )
        for name, value in model.state_dict(keep_vars=True).items():
            if value is None or any(value is p for p in self.parameters.values()):
                continue
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(_sample(value))
        self.mark = digest.hexdigest()
        return self.mark

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
        if not self.parameters:
            return
        flags = [torch.isfinite(p).all() for p in self.parameters.values()]
        known = torch.stack(flags).tolist()  # one wait for the device
        for name, is_finite in zip(self.parameters, known, strict=True):
            if not is_finite:
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
            "rows": self.rows,
            "model": self.model_mark(),
            "step": self.step,
            "n_clipped": self.n_clipped,
            "last_clipped": self.last_clipped,
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


_KEYS = frozenset(
    [
        "recipe",
        "data",
        "step",
        "losses",
        "parameters",
        "average",
        "older",
        "best",
        "validation",
        "optimizer",
    ]
)
_SAMPLE = 256


def _read(path: Path) -> dict[str, Any]:
    """Return what a checkpoint holds, after refusing a damaged file."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        missing = sorted(_KEYS - set(saved))
        cause = f"it lacks {missing[0]}" if missing else ""
    except (
        AttributeError, EOFError, LookupError, OSError, RuntimeError, TypeError,
        UnpicklingError, ValueError,
    ) as error:  # fmt: skip
        cause = str(error).split("\n", 1)[0] or type(error).__name__
        saved = None
    if cause or not isinstance(saved, dict):
        raise DataError(
            f"`checkpoint` holds {path}, which is no whole checkpoint of eestim "
            f"({cause[:120]}); delete that file, use another folder, or resume=False "
            "to write over it."
        )
    return saved


def _defaults() -> dict[str, Any]:
    """Return the fields of a recipe that have a default, with it."""
    return {f.name: f.default for f in fields(Recipe) if f.default is not MISSING}


def _sample(value: Tensor) -> bytes:
    """Return evenly spaced entries of a tensor as bytes."""
    flat = value.detach().flatten()
    some = flat[:: max(1, flat.numel() // _SAMPLE)]
    return some.double().cpu().numpy().tobytes()


def rows_mark(units: Units) -> str:
    """Return a hash of the tensors in up to eight evenly spaced rows of the data."""
    count = len(units.unit)
    batch = units.batch(np.unique(np.linspace(0, count - 1, min(8, count)).astype(int)))
    digest = hashlib.sha256()
    if is_dataclass(batch):
        parts = [getattr(batch, f.name) for f in fields(batch)]
    else:
        parts = list(batch.values()) if isinstance(batch, Mapping) else [batch]
        parts = list(batch) if isinstance(batch, tuple | list) else parts
    for part in parts:
        if isinstance(part, Tensor):
            digest.update(f"{tuple(part.shape)}".encode())
            digest.update(part.detach().double().cpu().numpy().tobytes())
    return digest.hexdigest()


def fingerprint(units: Units) -> str:
    """Return a hash of the rows' units and, for documents, of their texts."""
    digest = hashlib.sha256(np.ascontiguousarray(units.unit).tobytes())
    for text in getattr(units, "digests", ()):
        digest.update(text.encode())
    return digest.hexdigest()


def first_averaged(recipe: Recipe) -> int:
    """Return the step after which parameters are averaged; `steps` where never."""
    share = recipe.average_from
    return recipe.steps if share is None else int(share * recipe.steps)


def update_average(state: State) -> None:
    """Fold the parameters into their running mean, once averaging has begun."""
    if state.recipe.average_from is None:
        return
    count = state.step - first_averaged(state.recipe)
    if count < 1:
        return
    with torch.no_grad():
        for name, parameter in state.parameters.items():
            if count == 1:
                state.average[name] = parameter.detach().clone()
            else:
                state.average[name] += (parameter - state.average[name]) / count
