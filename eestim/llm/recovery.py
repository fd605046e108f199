r"""The synthetic case whose truth is known: which equations recover the latent.

A monotone index with pre-additive noise is seen on part of its range only. Methods that
find the scale of the noise also find the law outside; the others cannot.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from eestim.llm.equations import (
    IWAE,
    Brier,
    CentredIWAE,
    NoiseAveraged,
)
from eestim.llm.inference import infer
from eestim.llm.surrogates import LatentEquation
from eestim.llm.synthetic import (
    IndexModel,
    index_data,
    kullback_leibler,
    law,
    true_index_model,
)
from eestim.llm.training import fit

__all__ = ["Report", "SyntheticResult", "step_report", "synthetic_experiment"]

Report = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, eq=False)
class SyntheticResult:
    """The synthetic case: what each method recovered.

    Attributes
    ----------
    table : DataFrame
        One row a method: scale s with its sandwich interval (unbiased equations
        only), divergence from the true law inside and outside the support of the
        training data (nats), seconds.
    laws : DataFrame
        Columns method ("truth" among them), x, region, token, probability.
    true_scale : float
    n_units : int
    """

    table: pd.DataFrame
    laws: pd.DataFrame
    true_scale: float
    n_units: int


_METHODS: tuple[tuple[str, LatentEquation, float | None], ...] = (
    ("no latent", NoiseAveraged(), None),
    ("noise-averaged", NoiseAveraged(), 0.5),
    ("IWAE", IWAE(), 0.5),
    ("Brier", Brier(), 0.5),
    ("centred IWAE", CentredIWAE(), 0.5),
)
_DRAWN_AT = (0.5, 1.5, 2.5, 3.5)


def synthetic_experiment(
    quick: bool = False, seed: int = 0, report: Report | None = None
) -> SyntheticResult:
    """Fit the monotone index model on [0, 2] by five equations, look at [2, 4].

    Parameters
    ----------
    quick : bool
        400 steps instead of 2,000 and a coarser interval.
    seed : int
    report : callable, optional
        Called as ``report(label, done, total)``.
    """
    steps = 400 if quick else 2000
    truth, data = true_index_model(), index_data(3000, seed)
    inside = torch.linspace(0, 2, 101, dtype=torch.float64)
    rows, shown = [], [_law_rows("truth", truth)]
    for number, (name, equation, scale) in enumerate(_METHODS):
        begun = time.perf_counter()
        model = IndexModel(scale=scale)
        fit(
            model,
            data,
            equation,
            draws=1 if scale is None else 5,
            steps=steps,
            batch_size=256,
            learning_rate=0.03 if quick else 0.02,
            warmup=10,
            clip=10.0,
            average_from=0.5,
            seed=seed,
            progress=step_report(report, name, number * steps, len(_METHODS) * steps),
        )
        rows.append(
            {
                "method": name,
                "scale": model.scale,
                **_scale_interval(model, data, equation, 8 if quick else 24),
                "kl_inside": _divergence(truth, model, inside),
                "kl_outside": _divergence(truth, model, inside + 2),
                "seconds": time.perf_counter() - begun,
            }
        )
        shown.append(_law_rows(name, model))
    return SyntheticResult(
        pd.DataFrame(rows), pd.concat(shown, ignore_index=True), truth.scale, 3000
    )


def _scale(model: nn.Module) -> Tensor:
    perturbation: Any = model.perturbation
    scale: Tensor = perturbation.log_scale.exp()
    return scale


def _scale_interval(
    model: IndexModel, data: Any, equation: LatentEquation, passes: int
) -> dict[str, float]:
    """Return the sandwich interval of s where the equation is unbiased."""
    if model.perturbation is None or not equation.is_unbiased:
        return {"lower": math.nan, "upper": math.nan, "residual": math.nan}
    made = infer(
        model,
        data,
        _scale,
        equation,
        draws=5,
        passes=passes,
        parameters="all",
        names=("s",),
        batch_size=3000,
    )
    bounds = made.interval().iloc[0]
    return {
        "lower": float(bounds["lower"]),
        "upper": float(bounds["upper"]),
        "residual": made.root.residual,
    }


def _divergence(truth: IndexModel, model: IndexModel, x: Tensor) -> float:
    return float(kullback_leibler(law(truth, x), law(model, x)).mean())


def _law_rows(name: str, model: IndexModel) -> pd.DataFrame:
    """Return the law at a few covariates, long."""
    x = torch.tensor(_DRAWN_AT, dtype=torch.float64)
    table = law(model, x).numpy()
    places = [(i, v) for i in range(len(x)) for v in range(table.shape[1])]
    return pd.DataFrame(
        {
            "method": name,
            "x": [_DRAWN_AT[i] for i, _ in places],
            "region": ["inside" if _DRAWN_AT[i] <= 2 else "outside" for i, _ in places],
            "token": [v for _, v in places],
            "probability": [float(table[i, v]) for i, v in places],
        }
    )


def step_report(
    report: Report | None, label: str, before: int, total: int
) -> Callable[[int, int, float], None] | None:
    """Return a fit's progress callback that reports into a longer count."""
    if report is None:
        return None

    def progress(step: int, _: int, loss: float) -> None:
        report(f"{label}, loss {loss:.3f}", before + step, total)

    return progress
