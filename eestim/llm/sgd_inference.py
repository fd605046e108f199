r"""Intervals from the path of stochastic descent itself.

For one pass over independent units with steps :math:`\gamma_0 t^{-a}`, a in (1/2, 1),
the average of the path of a functional h is asymptotically normal (Polyak and
Ruppert). Three ways to its scale:

- *plug-in*: `plug_in`, A and M at the averaged parameters, shortest where A can be
  had;
- *random scaling*: the path's own fluctuations, no A needed, wider intervals;
- *batch means*: under-covers at practical lengths.

A fourth, A and M averaged along the path instead of taken at its average, is
`eestim.diagnostics.sgd.plug_in`: add the `Moments` of each step and leave out the first
tenth. It has the limit of the plug-in, and needs an A for each step that is added.

Limits. `fit(..., schedule="power", optimizer="sgd", clip=math.inf)` takes the steps
above once it has warmed up; `check_fit` refuses the record of other recipes. A clipped
gradient is another equation, whose root is not that of psi unless clipping stops early
in the path; the record counts clipped steps, and both ways refuse them. The rows of one
step must be whole units: where a document has several rows, they come at random times,
and the path's own scale takes them as independent and is too short. `infer` sums them.

Record h, never the parameters, of a model with more parameters than the data identify:
along the others the path is a random walk. None of this holds for Adam, constant steps,
weight decay or several epochs (the path then converges to the root of the sample, and
scaling describes the noise of descent, not that of the data): use `infer`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats
from torch import Tensor, nn

from eestim.diagnostics.sgd import PathAverage, batch_means
from eestim.errors import InferenceError
from eestim.estimation import Estimate
from eestim.llm.checkpoints import first_averaged
from eestim.llm.equations import Brier
from eestim.llm.inference import infer, squared_size
from eestim.llm.recipe import Fit
from eestim.llm.scores import independent_units
from eestim.llm.surrogates import LatentEquation

__all__ = [
    "check_fit",
    "joint_critical_value",
    "joint_test",
    "path_interval",
    "plug_in",
]

Array = npt.NDArray[np.float64]
_TERMS = 300  # of the Karhunen-Loeve series
_SHORTEST = 100
_FEW_PASSES = 2  # below, the residual says nothing of the root


def check_fit(fit: Fit) -> None:
    """Refuse a fit whose path has no Polyak-Ruppert limit law.

    Raises
    ------
    InferenceError
        Naming what in the recipe is at odds, and `infer` as the way out.
    """
    faults = _path_faults(fit)
    if faults:
        raise InferenceError(
            f"`fit` has no path whose own scale gives intervals: {'; '.join(faults)}. "
            "Use `infer` at the fitted parameters."
        )


def _path_faults(fit: Fit) -> list[str]:
    """Return what in a recipe is at odds with the limit law of one pass."""
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
    return faults + _clipping(fit, recipe.steps // 10)


def _clipping(fit: Fit, first: int) -> list[str]:
    """Return that gradients were clipped from step `first` on, if they were."""
    if fit.last_clipped is None or fit.last_clipped < first:
        return []
    return [
        f"gradients were clipped at {fit.n_clipped} steps, last at step "
        f"{fit.last_clipped}, which is the equation of another root (clip=math.inf)"
    ]


def _is_power(log_step: Array, log_rate: Array) -> bool:
    slope, offset = np.polyfit(log_step, log_rate, 1)
    gap = np.abs(log_rate - offset - slope * log_step).max()
    return bool(0.5 < -slope < 1.0 and gap < 0.05)


def plug_in(
    model: nn.Module,
    documents: Any,
    functional: Callable[[nn.Module], Tensor] = squared_size,
    equation: LatentEquation | None = None,
    *,
    fit: Fit,
    **options: Any,
) -> Estimate:
    r"""Return the estimate of a functional at averaged parameters, A and M there too.

    .. math:: \sqrt n (\bar\theta - \theta_0) \to N(0, A^{-1} M_E A^{-\top}), \quad
        M_E = \Big(1 + \frac{f (1 - f)}{E^2}\Big) M_\infty + \frac{M_1 - M_\infty}{E}

    with E the passes **that the average holds** (`Fit.averaged_passes`), f its
    fraction; one pass averaged from its tenth step in a hundred on has E = 0.9 and
    the variance :math:`A^{-1} M_1 A^{-\top} / (0.9 n)`. This is `infer` with what the
    record says of K, E and the recipe, after a look at what would make it wrong.

    Limits. The law is that of steps :math:`t^{-a}` whose sum is long against the
    slowest direction, :math:`\lambda_{min}(A) \sum \gamma_t \gg 1`; the path must have
    reached the root before averaging began. Below two passes this cannot be seen
    afterwards, because the noise of the draws hides the residual, so plain descent with
    these steps is asked for; from two on any optimizer may have led there, and
    the residual of the estimate shows how near.

    Parameters
    ----------
    model : LatentModel
        As `fit` left it.
    documents, functional, equation
        As for `infer`; the equation that was solved.
    fit : Fit
        The record of the fit.
    **options
        Of `infer`, but `draws`, `passes`, `ridge` and `reference`.

    Raises
    ------
    InferenceError
        If parameters were not averaged, the best of several looks was kept, weights
        decayed, a penalty pulled, gradients were clipped while parameters were
        averaged, or a short average was not one of plain descent with falling steps.
    ValueError
        If the equation or the data are not those of the record.

    References
    ----------
    Polyak and Juditsky (1992), SIAM J. Control Optim. 30, 838-855.

    Examples
    --------
    >>> import math
    >>> from eestim.llm import Brier, fit
    >>> from eestim.llm.synthetic import BinaryModel, binary_data
    >>> model, data = BinaryModel(), binary_data(4000, seed=0)
    >>> record = fit(
    ...     model, data, Brier(), draws=2, steps=200, batch_size=20, optimizer="sgd",
    ...     learning_rate=1.0, clip=math.inf, schedule="power", average_from=0.1,
    ... )
    >>> made = plug_in(
    ...     model, data, lambda m: m.a, Brier(), fit=record, parameters="all",
    ...     batch_size=4000, names=("a",),
    ... )
    >>> made.names, round(record.averaged_passes, 6)
    (('a',), 0.9)
    """
    own = {"draws", "passes", "ridge", "reference"} & set(options)
    if own:
        raise ValueError(
            f"`{min(own)}` is what the record of the fit says; leave it out, or use "
            "`infer`."
        )
    equation = Brier() if equation is None else equation
    if repr(equation) != fit.recipe.equation:
        raise ValueError(
            f"`equation` is {equation!r}, but `fit` solved {fit.recipe.equation}."
        )
    units = independent_units(model, documents)
    if units.n_units != fit.n_units:
        raise ValueError(
            f"`documents` has {units.n_units} units, but `fit` met {fit.n_units}; give "
            "its training data."
        )
    faults = _average_faults(fit)
    if faults:
        raise InferenceError(
            f"`fit` left no average whose law is that of a root: {'; '.join(faults)}."
        )
    return infer(
        model, units, functional, equation, draws=fit.recipe.draws,
        passes=fit.averaged_passes, **options,
    )  # fmt: skip


def _average_faults(fit: Fit) -> list[str]:
    """Return what parts the parameters that a fit left from an average at a root."""
    recipe, faults = fit.recipe, []
    if fit.averaged_passes <= 0:
        faults.append("parameters were not averaged (average_from=0.1)")
    if fit.best_step is not None:
        faults.append(f"the parameters are those of the look at step {fit.best_step}")
    if recipe.weight_decay > 0:
        faults.append(f"weights decay by {recipe.weight_decay}")
    if recipe.penalty != "None":
        faults.append(f"{recipe.penalty} pulled at the size of the perturbation")
    if 0 < fit.averaged_passes < _FEW_PASSES:
        if recipe.optimizer != "sgd" or recipe.schedule != "power":
            faults.append(
                f"{fit.averaged_passes:.3g} averaged passes are of the optimizer "
                f"{recipe.optimizer!r} with {recipe.schedule!r} steps, where "
                f"{_FEW_PASSES} passes, or 'sgd' with schedule='power', are needed"
            )
        elif recipe.steps - first_averaged(recipe) < _SHORTEST:
            faults.append(f"fewer than {_SHORTEST} steps were averaged")
    return faults + _clipping(fit, first_averaged(recipe))


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
            f"`method` is {method!r}; expected 'random-scaling' or 'batch-means' (for "
            "the plug-in call `plug_in`)."
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
