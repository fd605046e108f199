r"""Held-out comparison of models: paired, clustered by document, temperature-free too.

A raw loss out of domain mostly measures how flat the predictions are, and one scalar,
the temperature, flattens any model. Each comparison is therefore given raw, after the
temperature fitted in domain, and after the best temperature of each domain for each
model, which leaves what calibration cannot explain; ranks (top-1, mean reciprocal
rank) do not depend on temperature at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor, nn

from eestim.inference.ratio import ratio
from eestim.llm.averaging import average_log_probabilities
from eestim.llm.documents import Documents, refuse_leakage
from eestim.llm.protocols import check_model
from eestim.llm.surrogates import IGNORED, leave_one_out
from eestim.llm.training import step_generator

__all__ = ["TEMPERATURES", "Evaluation", "Held", "evaluate", "score_documents"]

Array = npt.NDArray[np.float64]

_STEP, _ONE = 0.1, 4  # of the grid in log T, and the place of T = 1
TEMPERATURES: tuple[float, ...] = tuple(math.exp(_STEP * (j - _ONE)) for j in range(15))
"""Temperatures at which losses are computed; between them, parabolas in log T."""

_LN2 = math.log(2.0)


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """Sums over each document of one model on one corpus.

    Attributes
    ----------
    nll : (n_temperatures, G) array
        Negative log likelihood in nats, averaged prediction, by temperature.
    left_out : (K, G) array
        The same at temperature 1 without each draw in turn (K = 1: no latent).
    top1, reciprocal_rank : (G,) arrays
    """

    nll: Array
    left_out: Array
    top1: Array
    reciprocal_rank: Array

    @property
    def raw(self) -> Array:
        """Loss of each document at temperature 1."""
        values: Array = self.nll[_ONE]
        return values

    def best_temperature(self) -> float:
        """Return the temperature of least total loss, between the ends of the grid."""
        total = self.nll.sum(1)
        centre = min(max(int(total.argmin()), 1), len(total) - 2)
        low, mid, high = total[centre - 1 : centre + 2]
        bend = low - 2 * mid + high
        shift = (low - high) / (2 * bend) if bend > 0 else 0.0
        return math.exp(_STEP * (centre - _ONE + min(max(shift, -1.0), 1.0)))

    def at(self, temperature: float) -> Array:
        """Return the loss of each document at a temperature, by quadratics in log T.

        Three grid points 10% apart bound the error by about 1e-4 nats a token.
        """
        place = math.log(temperature) / _STEP + _ONE
        centre = min(max(round(place), 1), len(self.nll) - 2)
        h = place - centre
        low, mid, high = self.nll[centre - 1 : centre + 2]
        values: Array = mid + h * (high - low) / 2 + h * h * (low - 2 * mid + high) / 2
        return values

    def unbiased(self) -> Array:
        """Return losses without the first-order bias of -log of a mean of K draws.

        The jackknife over draws, K L_K - (K - 1) mean L_{K-1}.
        """
        draws = len(self.left_out)
        if draws == 1:
            return self.raw
        corrected: Array = draws * self.raw - (draws - 1) * self.left_out.mean(0)
        return corrected


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """Levels and paired differences of several models on several corpora.

    Attributes
    ----------
    levels : DataFrame
        One row for each corpus and model: bits per byte and nats per token (raw, and
        raw without the Monte Carlo bias), best temperature, top-1, mean reciprocal
        rank, documents, tokens, bytes.
    differences : DataFrame
        One row for each corpus, model and measure: difference from the baseline,
        standard error (CR2 by document), t interval, Satterthwaite degrees of
        freedom, documents, standard error without pairing, and the part of the
        standard error that comes from a finite number of latent draws.
    baseline : str
    in_domain : str
    draws : int
    level : float
    """

    levels: pd.DataFrame
    differences: pd.DataFrame
    baseline: str
    in_domain: str
    draws: int
    level: float


def evaluate(
    models: Mapping[str, nn.Module],
    corpora: Mapping[str, Documents],
    *,
    baseline: str | None = None,
    in_domain: str | None = None,
    calibration: Documents | None = None,
    training: Documents | None = None,
    draws: int = 16,
    batch_size: int = 8,
    level: float = 0.95,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Compare models on held-out documents, each against a baseline.

    Models with a latent meet the same draws: each batch's generator starts from the
    same seed for every model. A model without one is paired with their averaged
    predictions.

    Parameters
    ----------
    models : mapping of name to LatentModel
    corpora : mapping of name to Documents
    baseline, in_domain : str, optional
        By default the first model and the first corpus.
    calibration : Documents, optional
        In-domain documents on which the in-domain temperature is fitted; by default
        the in-domain corpus itself (one scalar, fitted on what it is tested on).
    training : Documents, optional
        What the models were trained on; a test document among them is refused.
    draws : int
        Latent draws of each prediction.
    batch_size : int
        Blocks of one pass.
    level : float
        Of the intervals.
    seed : int
    progress : callable, optional
        Called as ``progress(done, total)``.

    Returns
    -------
    Evaluation

    Raises
    ------
    DataError
        If a test document was trained on.
    ValueError
        If a name is unknown or an argument is out of range.
    """
    baseline = _known(models, baseline, "baseline", "models")
    in_domain = _known(corpora, in_domain, "in_domain", "corpora")
    if not 0 < level < 1:
        raise ValueError(f"`level` is {level}; it must lie between 0 and 1.")
    if draws < 2:
        raise ValueError(
            f"`draws` is {draws}; the Monte Carlo error of an averaged prediction "
            "needs at least 2."
        )
    for name, corpus in corpora.items():
        if training is not None:
            refuse_leakage(training, corpus, name)
    sets = dict(corpora)
    if calibration is not None:
        sets[_CALIBRATION] = calibration
    held = {}
    for number, (name, place) in enumerate((m, c) for m in models for c in sets):
        held[name, place] = score_documents(
            models[name], sets[place], draws, batch_size, seed
        )
        if progress is not None:
            progress(number + 1, len(models) * len(sets))
    source = in_domain if calibration is None else _CALIBRATION
    fitted = {model: held[model, source].best_temperature() for model in models}
    levels = [
        _levels(model, corpus, held[model, corpus], corpora[corpus], fitted[model])
        for corpus in corpora
        for model in models
    ]
    differences = [
        row
        for corpus in corpora
        for model in models
        if model != baseline
        for row in _differences(
            (corpus, model, baseline),
            (held[model, corpus], held[baseline, corpus]),
            (fitted[model], fitted[baseline]),
            corpora[corpus],
            level,
        )
    ]
    return Evaluation(
        pd.DataFrame(levels),
        pd.DataFrame(differences),
        baseline,
        in_domain,
        draws,
        level,
    )


_CALIBRATION = "\0calibration"


@torch.no_grad()
def score_documents(
    model: nn.Module,
    documents: Documents,
    draws: int = 16,
    batch_size: int = 8,
    seed: int = 0,
) -> Held:
    """Return the sums over each document that every comparison is made of."""
    check_model(model)
    n_units, sums = documents.n_units, None
    for number, begin in enumerate(range(0, len(documents.unit), batch_size)):
        rows = np.arange(begin, min(begin + batch_size, len(documents.unit)))
        batch = documents.batch(rows)
        generator = step_generator(seed, number, 1)
        logits = model.draw_logits(batch, draws, generator)  # type: ignore[operator]
        targets = model.targets(batch)  # type: ignore[operator]
        kept = targets != IGNORED
        scores = position_scores(logits[:, kept], targets[kept])
        unit = torch.as_tensor(documents.unit[rows], device=kept.device)
        owner = unit.unsqueeze(1).expand(kept.shape)[kept].cpu()
        if sums is None:
            sums = torch.zeros(len(scores), n_units, dtype=torch.float64)
        sums.index_add_(1, owner, scores.double().cpu())
    if sums is None:
        raise ValueError("`documents` has no row; give at least one document.")
    table = sums.numpy()
    count = len(TEMPERATURES)
    return Held(table[:count], table[count:-2], table[-2], table[-1])


def position_scores(logits: Tensor, targets: Tensor) -> Tensor:
    """Return rows of scores of each position, see `Held`.

    Parameters
    ----------
    logits : (K, N, V) tensor
    targets : (N,) integer tensor

    Returns
    -------
    (n_temperatures + K + 2, N) tensor
    """
    index = targets.unsqueeze(-1)
    log_p = average_log_probabilities(logits)
    own = log_p.gather(-1, index)
    rows = [
        (log_p / t).logsumexp(-1) - own.squeeze(-1) / t
        if t != 1.0
        else -own.squeeze(-1)
        for t in TEMPERATURES
    ]
    wide = logits.float() if logits.dtype != torch.float64 else logits
    each = wide.gather(-1, index.expand(len(logits), -1, -1)).squeeze(-1)
    each = each - wide.logsumexp(-1)
    rows += list((-leave_one_out(each) if len(each) > 1 else -each).unbind(0))
    above = (log_p > own).sum(-1)
    rows += [(above == 0).to(log_p.dtype), 1.0 / (1.0 + above)]
    return torch.stack(rows)


def _known(
    names: Mapping[str, Any], wanted: str | None, argument: str, where: str
) -> str:
    """Return the wanted name, the first by default."""
    if not names:
        raise ValueError(f"`{where}` is empty; give at least one.")
    if wanted is None:
        return next(iter(names))
    if wanted not in names:
        raise ValueError(f"`{argument}` is {wanted!r}; known are {list(names)}.")
    return wanted


def _levels(
    model: str, corpus: str, held: Held, documents: Documents, fitted: float
) -> dict[str, Any]:
    """Return one row of `Evaluation.levels`."""
    tokens, n_bytes = documents.n_tokens.sum(), documents.n_bytes.sum()
    best = held.best_temperature()
    return {
        "corpus": corpus,
        "model": model,
        "bits_per_byte": held.raw.sum() / n_bytes / _LN2,
        "bits_per_byte_unbiased": held.unbiased().sum() / n_bytes / _LN2,
        "nll_per_token": held.raw.sum() / tokens,
        "bits_per_byte_in_domain_t": held.at(fitted).sum() / n_bytes / _LN2,
        "bits_per_byte_oracle_t": held.at(best).sum() / n_bytes / _LN2,
        "in_domain_t": fitted,
        "oracle_t": best,
        "top1": held.top1.sum() / tokens,
        "mean_reciprocal_rank": held.reciprocal_rank.sum() / tokens,
        "documents": documents.n_units,
        "tokens": int(tokens),
        "bytes": int(n_bytes),
    }


def _differences(
    names: tuple[str, str, str],
    held: tuple[Held, Held],
    fitted: tuple[float, float],
    documents: Documents,
    level: float,
) -> list[dict[str, Any]]:
    """Return the rows of `Evaluation.differences` of one model on one corpus."""
    new, old = held
    own = [h.at(t) for h, t in zip(held, fitted, strict=True)]
    best = [h.at(h.best_temperature()) for h in held]
    in_bits = documents.n_bytes.astype(np.float64) * np.float64(_LN2)
    tokens = documents.n_tokens.astype(np.float64)
    noise = _latent_variance(new, old)
    measures: list[tuple[str, Array, Array, Array, Array | None]] = [
        ("bits per byte", new.raw, old.raw, in_bits, noise),
        (
            "bits per byte, draws debiased",
            new.unbiased(),
            old.unbiased(),
            in_bits,
            None,
        ),
        ("bits per byte, in-domain T", own[0], own[1], in_bits, None),
        ("bits per byte, oracle T", best[0], best[1], in_bits, None),
        ("nats per token", new.raw, old.raw, tokens, noise),
        ("top-1", new.top1, old.top1, tokens, None),
        ("reciprocal rank", new.reciprocal_rank, old.reciprocal_rank, tokens, None),
    ]
    corpus, model, baseline = names
    return [
        {
            "corpus": corpus,
            "model": model,
            "baseline": baseline,
            "measure": measure,
            **_paired(a, b, size, level),
            "latent_se": _share(variance, size),
        }
        for measure, a, b, size, variance in measures
    ]


def _paired(new: Array, old: Array, size: Array, level: float) -> dict[str, float]:
    """Return the paired ratio with its interval, and how much pairing gained."""
    result = ratio(new - old, size)
    lower, upper = result.interval(level)
    alone = ratio(new, size).se ** 2 + ratio(old, size).se ** 2
    return {
        "difference": result.estimate,
        "se": result.se,
        "lower": lower,
        "upper": upper,
        "dof": result.dof,
        "documents": result.n_clusters,
        "se_unpaired": alone**0.5,
    }


def _latent_variance(new: Held, old: Held) -> Array:
    """Return the jackknife variance over draws of each document's difference."""
    gap = new.left_out - old.left_out  # a model without a latent is constant
    draws = len(gap)
    variance: Array = (draws - 1) / draws * ((gap - gap.mean(0)) ** 2).sum(0)
    return variance


def _share(variance: Array | None, size: Array) -> float:
    """Return the standard error that a variance for each document amounts to."""
    if variance is None:
        return float("nan")
    return float(variance.sum() ** 0.5 / size.sum())
