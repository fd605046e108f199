r"""Intervals from the path of stochastic descent itself.

For one pass over independent units with steps :math:`\gamma_0 t^{-a}`, a in (1/2, 1),
the average of the path of a functional h is asymptotically normal (Polyak and
Ruppert). Three ways to its scale:

- *plug-in*: `infer` at the averaged parameters, shortest where A can be had;
- *random scaling*: the path's own fluctuations, no A needed, wider intervals;
- *batch means*: under-covers at practical lengths.

A fourth, A and M averaged along the path instead of taken at its average, is
`eestim.diagnostics.sgd.plug_in`: add the `Moments` of each step and leave out the first
tenth. It has the limit of the plug-in, and needs an A for each step that is added.

Limits. `fit` warms up and then follows a cosine, so `check_fit` refuses its record:
paths come from a loop with the steps above. A clipped gradient is another equation,
whose root is not that of psi unless clipping stops early in the path. The rows of one
step must be whole units: where a document has several rows, they come at random times,
and the path's own scale takes them as independent and is too short. `infer` sums them.

Record h, never the parameters, of a model with more parameters than the data identify:
along the others the path is a random walk. None of this holds for Adam, constant steps,
weight decay or several epochs (the path then converges to the root of the sample, and
scaling describes the noise of descent, not that of the data): use `infer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from eestim.diagnostics.sgd import PathAverage, batch_means
from eestim.errors import InferenceError
from eestim.llm.recipe import Fit

__all__ = ["check_fit", "joint_critical_value", "joint_test", "path_interval"]

Array = npt.NDArray[np.float64]
_TERMS = 300  # of the Karhunen-Loeve series
_SHORTEST = 100


def check_fit(fit: Fit) -> None:
    """Refuse a fit whose path has no Polyak-Ruppert limit law.

    Raises
    ------
    InferenceError
        Naming what in the recipe is at odds, and `infer` as the way out.
    """
    recipe: Any = fit.recipe
    faults = []
    if recipe.optimizer != "sgd":
        faults.append(f"the optimizer is {recipe.optimizer!r}, not plain descent")
    if recipe.weight_decay > 0:
        faults.append(f"weights decay by {recipe.weight_decay}")
    if fit.passes > 1:
        faults.append(f"the data were met {fit.passes:.3g} times")
    shares = np.array([recipe.rate(s) for s in range(recipe.steps)])
    later = slice(recipe.steps // 10, None)
    log_step = np.log(np.arange(1, recipe.steps + 1)[later])
    if len(shares) < _SHORTEST:
        faults.append(f"the path has {len(shares)} steps, fewer than {_SHORTEST}")
    elif not _is_power(log_step, np.log(shares[later])):
        faults.append("steps do not fall like t ** -a with a in (1/2, 1)")
    if faults:
        raise InferenceError(
            f"`fit` has no path whose own scale gives intervals: {'; '.join(faults)}. "
            "Use `infer` at the fitted parameters."
        )


def _is_power(log_step: Array, log_rate: Array) -> bool:
    slope, offset = np.polyfit(log_step, log_rate, 1)
    gap = np.abs(log_rate - offset - slope * log_step).max()
    return bool(0.5 < -slope < 1.0 and gap < 0.05)


def path_interval(
    path: Any,
    *,
    names: Sequence[str] | None = None,
    level: float = 0.95,
    method: Literal["random-scaling", "batch-means"] = "random-scaling",
    burn: float = 0.0,
    fit: Fit | None = None,
) -> pd.DataFrame:
    r"""Return intervals for the limits of functionals recorded along a path.

    Parameters
    ----------
    path : (n,) or (n, k) array
        Functionals at each step of one pass.
    names : sequence of str, optional
    level : float
        For random scaling one of 0.80, 0.90, 0.95, 0.98.
    method : {"random-scaling", "batch-means"}
    burn : float
        Share of the path that is dropped first.
    fit : Fit, optional
        Its record, to refuse a recipe for which the intervals are wrong.

    Returns
    -------
    DataFrame
        Columns estimate, lower, upper.

    Raises
    ------
    InferenceError
        If the path is too short, constant, or of an unsuitable recipe.

    References
    ----------
    Lee, Liao, Seo and Shin (2022), AAAI 36(7), for random scaling; Chen, Lee, Tong and
    Zhang (2020), Ann. Statist. 48, 251-273, for batch means.

    Examples
    --------
    >>> steps = np.random.default_rng(0).normal(3.0, 1.0, 400)
    >>> path_interval(steps, names=["h"]).round(2)
       estimate  lower  upper
    h      2.96   2.82   3.11
    """
    if fit is not None:
        check_fit(fit)
    kept = _kept(path, burn)
    if method == "random-scaling":
        average = _average(kept)
        lower, upper = average.interval(level)
        centre = average.mean
    elif method == "batch-means":
        if not 0.0 < level < 1.0:
            raise ValueError(f"`level` must lie between 0 and 1; got {level!r}.")
        centre = kept.mean(axis=0)
        half = stats.norm.ppf(0.5 + level / 2) * np.sqrt(np.diag(batch_means(kept)))
        lower, upper = centre - half, centre + half
    else:
        raise ValueError(
            f"`method` is {method!r}; expected 'random-scaling' or 'batch-means' (the "
            "plug-in is `infer` at the averaged parameters)."
        )
    labels = list(names or (f"h[{j}]" for j in range(kept.shape[1])))
    return pd.DataFrame(
        {"estimate": centre, "lower": lower, "upper": upper}, index=labels
    )


def joint_test(
    path: Any, value: Any, *, burn: float = 0.0, draws: int = 20_000, seed: int = 0
) -> tuple[float, float]:
    r"""Return the joint random-scaling statistic of h = value and its p value.

    .. math:: n (\bar h - h_0)^\top \hat V^{-1} (\bar h - h_0)

    Its law is that of :math:`W(1)^\top (\int D D^\top)^{-1} W(1)`, D a Brownian bridge,
    which is simulated.

    Parameters
    ----------
    path : (n, k) array
    value : (k,) array
    burn : float
    draws, seed : int
        Of the simulated law.
    """
    kept = _kept(path, burn)
    average = _average(kept)
    target = np.asarray(value, dtype=np.float64).reshape(-1)
    if target.shape != average.mean.shape:
        raise ValueError(
            f"`value` has {target.size} entries for {average.mean.size} functionals."
        )
    gap = average.mean - target
    statistic = float(average.n * gap @ np.linalg.solve(average.covariance, gap))
    null = _null(kept.shape[1], draws, seed)
    return statistic, float((1 + (null >= statistic).sum()) / (1 + draws))


def joint_critical_value(
    dimension: int, level: float = 0.95, draws: int = 40_000, seed: int = 0
) -> tuple[float, float]:
    """Return the critical value for k functionals at once and its Monte Carlo error.

    For one functional it is the square of the tabulated two-sided value.

    Examples
    --------
    >>> value, error = joint_critical_value(1, draws=20_000)
    >>> abs(value - 6.747**2) < 4 * error
    True
    """
    if not 0.0 < level < 1.0 or dimension < 1:
        raise ValueError(
            f"`level` is {level} and `dimension` {dimension}; expected a level between "
            "0 and 1 and at least one functional."
        )
    null = np.sort(_null(dimension, draws, seed))
    value = float(np.quantile(null, level))
    # order statistics two binomial standard errors apart
    wide = 2 * (level * (1 - level) / draws) ** 0.5
    low, high = np.quantile(null, [max(level - wide, 0.0), min(level + wide, 1.0)])
    return value, float(high - low) / 4


def _null(dimension: int, draws: int, seed: int) -> Array:
    """Draw W(1)'(int DD')^-1 W(1) by the Karhunen-Loeve series of the bridge."""
    rng = np.random.default_rng(seed)
    frequency = (np.arange(1, _TERMS + 1) * np.pi) ** -2.0
    rest = 1 / 6 - frequency.sum()  # mean of what the series leaves out
    found = []
    for begin in range(0, draws, 2000):
        size = min(2000, draws - begin)
        xi = rng.standard_normal((size, _TERMS, dimension))
        Q = np.einsum("skd,k,ske->sde", xi, frequency, xi, optimize=True)
        Q += rest * np.eye(dimension)
        w = rng.standard_normal((size, dimension))
        found.append(np.einsum("sd,sd->s", w, np.linalg.solve(Q, w[..., None])[..., 0]))
    return np.concatenate(found)


def _kept(path: Any, burn: float) -> Array:
    """Return the path as (n, k) floats after its burn-in."""
    table: Array = np.asarray(path, dtype=np.float64)
    table = table.reshape(len(table), -1)
    if not 0.0 <= burn < 1.0:
        raise ValueError(f"`burn` is {burn}; it must lie in [0, 1).")
    if not np.isfinite(table).all():
        raise InferenceError("`path` holds values that are not finite.")
    kept = table[int(burn * len(table)) :]
    if len(kept) < _SHORTEST or not (kept.std(axis=0) > 0).all():
        raise InferenceError(
            f"`path` has {len(kept)} steps after its burn-in, or a functional that "
            f"does not move; at least {_SHORTEST} steps are needed."
        )
    return kept


def _average(kept: Array) -> PathAverage:
    average = PathAverage.start(kept.shape[1])
    for row in kept:
        average = average.updated(row)
    return average
