"""Training of one method for several seeds at once, its laws and its interval."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eestim.errors import EestimError
from eestim.llm import (
    IWAE,
    Brier,
    CentredIWAE,
    NoiseAveraged,
    Power,
    ScoreWeighted,
    SharedDraw,
    Split,
    infer,
)
from extrapolation.models import WIDTH, Params, World, logits_of, points, readout, start

FLOAT = torch.float32


@dataclass(frozen=True)
class Method:
    """An equation, and a latent of learned scale, of a fixed one, or none.

    `fixed` is relative to the true scale of the noise; 0 is no latent. `tempered`
    learns a temperature with the rest.
    """

    name: str
    equation: Callable[[int], Any]
    fixed: float | None = None
    fewest: int = 2
    tempered: bool = False


LEARNED = (
    Method("noise-averaged", lambda _: NoiseAveraged()),
    Method("shared draw", lambda _: SharedDraw()),
    Method("IWAE", lambda _: IWAE()),
    Method("split", lambda _: Split(base=NoiseAveraged(), perturbation=Brier())),
    Method("Brier", lambda _: Brier()),
    Method("power 0.5", lambda _: Power(0.5)),
    Method("score-weighted", lambda _: ScoreWeighted(), fewest=3),
    Method("centred IWAE", lambda k: CentredIWAE(min(4, k - 1))),
)
FIXED = (
    Method("no latent", lambda _: NoiseAveraged(), fixed=0.0),
    Method("temperature", lambda _: NoiseAveraged(), fixed=0.0, tempered=True),
    *(
        Method(f"fixed {share:g}, {name}", lambda _, e=equation: e, fixed=share)
        for name, equation in (("averaged", NoiseAveraged()), ("Brier", Brier()))
        for share in (0.5, 1.0, 1.5)
    ),
)
METHODS = {m.name: m for m in (*FIXED, *LEARNED)}


@dataclass(frozen=True)
class Recipe:
    """Steps of Adam with a cosine from `rate`; the second half is averaged."""

    steps: int
    batch_size: int
    rate: float

    def at(self, step: int) -> float:
        """Return the rate of a step."""
        cosine = 0.5 + 0.5 * np.cos(np.pi * step / self.steps)
        return self.rate * min(1.0, (step + 1) / 10) * max(cosine, 0.05)

    def passes(self, n: int) -> float:
        """Return how often the averaged steps met each unit."""
        return max(1.0, self.steps * self.batch_size / (2 * n))


def moved(params: Params, x: Tensor, z: Tensor) -> Tensor:
    """Return u = x + s Z, (K, S, ...); the noise falls on the first coordinates."""
    if "log_scale" not in params:
        return x.expand(len(z), *x.shape)
    scale = params["log_scale"].exp()
    pad = torch.zeros(len(scale), x.shape[-1] - scale.shape[-1], dtype=x.dtype)
    s = torch.cat([scale, pad], -1)
    return x + s.view(1, len(s), *[1] * (x.ndim - 2), s.shape[-1]) * z


def initial(
    world: World, base: str, method: Method, seeds: list[int]
) -> tuple[Params, set[str]]:
    """Return the parameters before training and the names of those that stay."""
    params = start(base, seeds, getattr(world, "length", 1))
    noisy = world.width if base.endswith("transformer") else 1
    if method.fixed is None:
        level = torch.full((len(seeds), noisy), 0.5)
        return params | {"log_scale": level.log()}, set()
    if method.fixed > 0:  # the true direction; what is fixed is the size
        level = torch.full((len(seeds), 1), method.fixed * world.scale)
        return params | {"log_scale": level.log()}, {"log_scale"}
    if method.tempered:
        params["log_temperature"] = torch.zeros(len(seeds))
    return params, set()


def train(
    world: World,
    base: str,
    method: Method,
    draws: int,
    seeds: list[int],
    recipe: Recipe,
) -> Params:
    """Return averaged parameters, (S, ...).

    Every seed has its data and its generators of rows and noise, so that methods with
    the same draws meet the same noise, and no seed sees another.
    """
    draws = 1 if method.fixed == 0 else draws
    data = [world.data(seed) for seed in seeds]
    x = torch.stack([d[0] for d in data]).to(FLOAT)
    y = torch.stack([d[1] for d in data])
    centres = world.centres.to(FLOAT)
    params, held = initial(world, base, method, seeds)
    params = {n: p.to(FLOAT).requires_grad_(n not in held) for n, p in params.items()}
    free = {n: p for n, p in params.items() if n not in held}
    optimizer = torch.optim.Adam(list(free.values()), betas=(0.9, 0.99))
    streams = [torch.Generator().manual_seed(30_000 + seed) for seed in seeds]
    mean, count = {n: torch.zeros_like(p) for n, p in params.items()}, 0
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.at(step)
        at, z = batch(streams, x.shape[1], recipe.batch_size, draws, x.shape[2:])
        bx, by = x[at], y[at]
        h = points(base, params, moved(params, bx, z))
        set_slopes(method.equation(draws), free, h, by, centres)
        clip(free, 10.0)
        optimizer.step()
        if step >= recipe.steps // 2:
            count += 1
            with torch.no_grad():
                for name, value in params.items():
                    mean[name] += (value - mean[name]) / count
    return mean


def batch(
    streams: list[torch.Generator], n: int, size: int, draws: int, shape: Any
) -> tuple[Any, Tensor]:
    """Return the rows (S, B) of each seed, as an index, and noise (K, S, B, ...)."""
    rows = torch.stack([torch.randint(n, (size,), generator=g) for g in streams])
    z = torch.stack(
        [torch.randn((draws, size, *shape), generator=g) for g in streams], 1
    )
    return (torch.arange(len(streams)).unsqueeze(1), rows), z


def set_slopes(
    equation: Any, params: Params, h: Tensor, targets: Tensor, centres: Tensor
) -> None:
    """Set the gradients of minus psi, a mean over the units of each seed.

    The equations give slopes in the logits, which are linear in h: one product takes
    them there, and automatic differentiation meets no (K, S, B, V) array.
    """
    kept = targets != -100
    logits = logits_of(h.detach()[:, kept], centres)
    weight, _ = readout(h, centres)
    parts = [(equation, list(params))]
    if isinstance(equation, Split):
        phi = [n for n in params if n == "log_scale"]
        rest = [n for n in params if n != "log_scale"]
        parts = [(equation.base, rest), (equation.perturbation, phi)]
    for part, names in parts:
        _, slope = part.slope(logits, targets[kept])
        back = torch.zeros_like(h)
        back[:, kept] = slope @ weight / (WIDTH**2 * targets.shape[1])
        found = torch.autograd.grad(
            h, [params[n] for n in names], back, retain_graph=True
        )
        for name, value in zip(names, found, strict=True):
            params[name].grad = value


def clip(params: Params, most: float) -> None:
    """Scale the gradient of each seed to at most that length."""
    square = sum(p.grad.square().reshape(len(p), -1).sum(1) for p in params.values())
    factor = (most / (square.sqrt() + 1e-12)).clamp_max(1.0)
    for p in params.values():
        p.grad *= factor.view(-1, *[1] * (p.ndim - 1))


# ----------------------------------------------------------------- what was learned


@torch.no_grad()
def predicted(
    base: str, params: Params, x: Tensor, centres: Tensor, draws: int
) -> Tensor:
    """Return the averaged law after each row of x (m, T, d), (S, m, V).

    The noise is a scrambled Sobol sequence, the same for all methods.
    """
    params = {n: p.double() for n, p in params.items()}
    size = 1 if "log_scale" not in params else draws
    flat = x[0].numel()
    engine = torch.quasirandom.SobolEngine(flat, scramble=True, seed=1)
    uniform = engine.draw(size, dtype=torch.float64).clamp(1e-9, 1 - 1e-9)
    z = torch.special.ndtri(uniform).view(size, 1, 1, *x.shape[1:])
    laws = []
    for seed in range(len(next(iter(params.values())))):
        one = {n: p[seed : seed + 1] for n, p in params.items()}
        rows = []
        for part in x.split(16):
            u = moved(one, part.unsqueeze(0), z.expand(-1, 1, len(part), *x.shape[1:]))
            h = points(base, one, u)[..., -1, :]
            rows.append(logits_of(h, centres).softmax(-1).mean(0)[0])
        laws.append(torch.cat(rows))
    return torch.stack(laws)


class OneSeed(nn.Module):
    """One seed's model, as `eestim.llm.infer` takes it."""

    def __init__(self, base: str, params: Params, seed: int, centres: Tensor) -> None:
        super().__init__()
        self.base, self.centres = base, centres
        self.values = nn.ParameterDict(
            {n: nn.Parameter(p[seed : seed + 1].double()) for n, p in params.items()}
        )

    def draw_logits(self, batch: Any, draws: int, generator: Any) -> Tensor:
        """Return (K, B, T, V)."""
        x = batch[0]
        z = torch.randn((draws, *x.shape), generator=generator, dtype=x.dtype)
        values = dict(self.values)
        u = moved(values, x.unsqueeze(0), z.unsqueeze(1))
        return logits_of(points(self.base, values, u)[:, 0], self.centres)

    def targets(self, batch: Any) -> Tensor:
        """Return (B, T)."""
        return batch[1]


@dataclass(frozen=True, eq=False)
class Rows:
    """Units of embeddings and tokens."""

    x: Tensor
    y: Tensor

    @property
    def n_units(self) -> int:
        """Number of units."""
        return len(self.x)

    @property
    def unit(self) -> np.ndarray:
        """Each row is its own unit."""
        return np.arange(len(self.x))

    def batch(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return (x, y) of some rows."""
        index = torch.as_tensor(rows)
        return self.x[index], self.y[index]


def scale_interval(
    world: World, base: str, params: Params, seed: int, place: int, setting: Any
) -> dict[str, Any]:
    """Return the sandwich interval of s at a trained model, or why there is none."""
    equation, draws, passes = setting
    model = OneSeed(base, params, place, world.centres)
    try:
        made = infer(
            model,
            Rows(*world.data(seed)),
            lambda m: m.values["log_scale"][0, :1].exp(),
            equation,
            draws=draws,
            passes=passes,
            sets=2,
            parameters="all",
            names=("s",),
            batch_size=1000,
            seed=seed,
        )
    except EestimError as error:
        return {"refused": type(error).__name__}
    row = made.interval().iloc[0]
    return {
        "lower": float(row["lower"]),
        "upper": float(row["upper"]),
        "residual": made.root.residual,
    }
