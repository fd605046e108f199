"""Who extrapolates, where the true law is known: two worlds, every equation.

Tokens depend on a covariate, or on a prefix of tokens, through noise that is added to
embeddings. Models see part of the covariates only and are compared with the truth there
and beyond: divergence in and out of the support, the scale of the noise, the coverage
of its interval. Worlds whose noise no perturbation of the embeddings can represent
("post"), or with another law ("heavy"), show where perturbing cannot help.

    python examples/extrapolation_study.py                            # tiny: seconds
    python examples/extrapolation_study.py --full --seeds 20 --out DIR    # an hour

Seeds are trained five at a time; each five of a method are one file of DIR, so a run
that is stopped goes on where it was, with the same figures to the last digit.
"""

import argparse
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from extrapolation.models import IndexWorld, SequenceWorld
from extrapolation.tables import pictures, table
from extrapolation.training import (
    FIXED,
    LEARNED,
    METHODS,
    Recipe,
    predicted,
    scale_interval,
    train,
)

from eestim.llm.synthetic import kullback_leibler
from eestim.report import pipe_table

TOGETHER = 5
WORLDS = {
    "index": IndexWorld(),
    "index, post": IndexWorld(place="post"),
    "index, heavy": IndexWorld(law="t"),
    "sequence": SequenceWorld(),
    "sequence, post": SequenceWorld(place="post"),
}
ALL = tuple(m.name for m in (*FIXED, *LEARNED))
THREE = ("no latent", "temperature", "noise-averaged", "Brier")
FULL = (  # world, base, K, methods
    ("index", "index curve", 5, ALL),
    ("sequence", "sequence curve", 4, ALL),
    ("index", "index spline", 5, (*THREE, "fixed 1, averaged", "centred IWAE")),
    (
        "sequence",
        "sequence transformer",
        4,
        (*THREE, "fixed 1, averaged", "split", "centred IWAE"),
    ),
    ("index, post", "index curve", 5, THREE),
    ("sequence, post", "sequence curve", 4, THREE),
    ("index, heavy", "index curve", 5, THREE),
    ("index", "index curve", 2, ("IWAE", "Brier", "centred IWAE")),
    ("index", "index curve", 10, ("IWAE", "Brier")),
    ("index", "index spline", 2, ("Brier",)),
    ("index", "index spline", 10, ("Brier",)),
)
TINY = (
    (
        "index",
        "index curve",
        5,
        ("no latent", "temperature", "noise-averaged", "Brier"),
    ),
    ("sequence", "sequence curve", 4, ("no latent", "temperature", "Brier")),
)
RECIPES = {
    "index curve": Recipe(800, 256, 0.03),
    "index spline": Recipe(800, 256, 0.03),
    "sequence curve": Recipe(600, 32, 0.03),
    "sequence transformer": Recipe(800, 32, 0.02),
}
TINY_RECIPES = {
    "index curve": Recipe(150, 128, 0.06),
    "sequence curve": Recipe(100, 32, 0.06),
}


@dataclass(frozen=True)
class Cell:
    """One method in one world, for seeds that train together."""

    world: str
    base: str
    draws: int
    method: str
    seeds: tuple[int, ...]

    @property
    def file(self) -> str:
        """Name of its file."""
        parts = (self.world, self.base, self.method, f"K{self.draws}")
        name = "-".join(parts).replace(", ", "-").replace(" ", "-")
        return f"{name}-seeds-{self.seeds[0]}-{self.seeds[-1]}.csv"


def cells(plan: tuple[tuple[str, str, int, tuple[str, ...]], ...], seeds: int) -> list:
    """Return the cells of a plan, in its order."""
    groups = [
        tuple(range(begin, min(begin + TOGETHER, seeds)))
        for begin in range(0, seeds, TOGETHER)
    ]
    return [
        Cell(world, base, draws, method, group)
        for world, base, draws, methods in plan
        for method in methods
        for group in groups
        if METHODS[method].fewest <= draws
    ]


def run(cell: Cell, recipe: Recipe, points: int) -> pd.DataFrame:
    """Train one cell and compare it with the truth; one row a seed.

    Intervals of the sequence world take long and are left to the full study's Brier.
    """
    world, method = WORLDS[cell.world], METHODS[cell.method]
    params = train(world, cell.base, method, cell.draws, list(cell.seeds), recipe)
    rows = pd.DataFrame({"seed": cell.seeds}).assign(
        world=cell.world,
        base=cell.base,
        method=cell.method,
        K=1 if method.fixed == 0 else cell.draws,
        truth=world.scale if world == type(world)() else float("nan"),
        scale=params["log_scale"][:, 0].exp().numpy() if method.fixed != 0 else 0.0,
        scale_2=float("nan"),
        lower=float("nan"),
        upper=float("nan"),
        residual=float("nan"),
        refused=None,
    )
    if method.fixed is None and params["log_scale"].shape[1] > 1:
        rows["scale_2"] = params["log_scale"][:, 1].exp().numpy()
    for region in world.regions:
        x, law = world.places(region)
        found = predicted(cell.base, params, x, world.centres, points)
        rows[f"KL {region}"] = [kullback_leibler(law, p).mean().item() for p in found]
    setting = (method.equation(cell.draws), cell.draws, recipe.passes(world.n))
    has_interval = setting[0].is_unbiased and world == type(world)()
    if method.fixed is None and has_interval and "transformer" not in cell.base:
        for place, seed in enumerate(cell.seeds):
            made = {}
            is_long = recipe is RECIPES[cell.base] and cell.method == "Brier"
            if cell.base.startswith("index") or is_long:
                made = scale_interval(world, cell.base, params, seed, place, setting)
            for name, value in made.items():
                rows.loc[place, name] = value
    return rows


def kept(cell: Cell, recipe: Recipe, points: int, out: Path | None) -> pd.DataFrame:
    """Return a cell's rows, from its file where there is one."""
    place = None if out is None else out / cell.file
    if place is not None and place.is_file():
        return pd.read_csv(place)
    rows = run(cell, recipe, points)
    if place is None:
        return rows
    part = place.with_suffix(f".{os.getpid()}.part")
    rows.to_csv(part, index=False)
    part.replace(place)
    return pd.read_csv(place)


def study(
    full: bool,
    seeds: int,
    out: Path | None = None,
    only: str = "",
    minutes: float = math.inf,
) -> pd.DataFrame:
    """Run the cells with `only` in their base, or read them; return their rows."""
    wanted = [
        cell for cell in cells(FULL if full else TINY, seeds) if only in cell.base
    ]
    recipes, points = (RECIPES, 4096) if full else (TINY_RECIPES, 256)
    found, begun = [], time.monotonic()
    for number, cell in enumerate(wanted):
        if time.monotonic() - begun > 60 * minutes:
            raise SystemExit(f"{number} of {len(wanted)} cells are done; run it again")
        found.append(kept(cell, recipes[cell.base], points, out))
        if out is not None:
            print(f"{number + 1} of {len(wanted)}: {cell.file}", flush=True)
    columns = list(dict.fromkeys(c for f in found for c in f))
    filled = [f.dropna(axis=1, how="all") for f in found]
    return pd.concat(filled, ignore_index=True).reindex(columns=columns)


def main() -> None:
    """Run the study and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--full", action="store_true", help="the sizes of the docs")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--out", type=Path, help="folder of rows, table and pictures")
    parser.add_argument("--only", default="", help="bases with this in their name")
    parser.add_argument("--minutes", type=float, default=math.inf, help="then stop")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    if chosen.out is not None:
        chosen.out.mkdir(parents=True, exist_ok=True)
    seeds = chosen.seeds or (20 if chosen.full else 2)
    rows = study(chosen.full, seeds, chosen.out, chosen.only, chosen.minutes)
    text = []
    for (world, base), part in rows.groupby(["world", "base"], sort=False):
        text += [f"## {world}: {base}", "", pipe_table(table(part)), ""]
    print("\n".join(text))
    if chosen.out is not None:
        (chosen.out / "tables.md").write_text("\n".join(text), encoding="utf-8")
        pictures(rows, chosen.out)


if __name__ == "__main__":
    main()
