r"""Held-out comparison of models: paired, clustered by document, temperature-free too.

A raw loss out of domain mostly measures how flat the predictions are, and one scalar,
the temperature, flattens any model. Each comparison is therefore given raw, after the
temperature fitted in domain, and after the best temperature of each domain for each
model, which leaves what calibration cannot explain; ranks (top-1, mean reciprocal
rank) do not depend on temperature at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy
from torch import nn

from eestim.errors import DataError
from eestim.inference.ratio import ratio
from eestim.llm.documents import Documents, refuse_leakage
from eestim.llm.heldout import Held, score_documents
from eestim.llm.recipe import Fit

__all__ = ["MEASURES", "Evaluation", "evaluate"]

Array = npt.NDArray[np.float64]

_LN2 = math.log(2.0)

MEASURES: dict[str, tuple[str, str]] = {
    "bits per byte": ("nll", "bits"),
    "bits per byte, draws debiased": ("nll_unbiased", "bits"),
    "bits per byte, in-domain T": ("nll_in_domain_t", "bits"),
    "bits per byte, oracle T": ("nll_oracle_t", "bits"),
    "nats per token": ("nll", "tokens"),
    "top-1": ("top1", "tokens"),
    "reciprocal rank": ("reciprocal_rank", "tokens"),
    "Brier score": ("brier", "tokens"),
    "calibration error": ("calibration_gap", "tokens"),
}
"""Measures as ratios of two sums over documents; bits are bytes times log 2."""


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """Levels and paired differences of several models on several corpora.

    Attributes
    ----------
    levels : DataFrame
        One row for each corpus and model: bits per byte and nats per token (raw, and
        raw without the Monte Carlo bias), best temperature and whether it lies
        inside the grid searched, top-1, mean reciprocal rank, Brier score, expected
        calibration error, documents, tokens, bytes.
    differences : DataFrame
        One row for each corpus, model and measure: difference from the baseline,
        standard error (CR2 by document), t interval, Satterthwaite degrees of
        freedom, documents, standard error without pairing, and the part of the
        standard error that comes from a finite number of latent draws. Higher is
        better for top-1 and the reciprocal rank, lower for all others.
    documents : DataFrame
        The sums over each document that both are made of: one row for each corpus,
        model and document.
    baseline : str
    in_domain : str
    draws : int
    level : float
    """

    levels: pd.DataFrame
    differences: pd.DataFrame
    documents: pd.DataFrame
    baseline: str
    in_domain: str
    draws: int
    level: float

    def simultaneous(
        self,
        measure: str = "bits per byte, oracle T",
        models: Sequence[str] | None = None,
        corpora: Sequence[str] | None = None,
    ) -> pd.DataFrame:
        r"""Return differences with intervals that cover all of them at once.

        Each of the k intervals has level :math:`(1 - \alpha)^{1/k}`: exact for one
        model over domains, whose documents are independent, and conservative for
        several models on the same documents.

        Parameters
        ----------
        measure : str
            A key of `MEASURES`.
        models, corpora : sequence of str, optional
            By default every model but the baseline, and every corpus but the
            in-domain one.

        References
        ----------
        Sidak (1967), J. Am. Stat. Assoc. 62, 626-633.
        """
        if measure not in MEASURES:
            raise ValueError(f"`measure` is {measure!r}; known are {list(MEASURES)}.")
        table = self.differences[self.differences["measure"] == measure]
        others = [name for name in table["corpus"].unique() if name != self.in_domain]
        for argument, column, given in (
            ("models", "model", models),
            ("corpora", "corpus", others if corpora is None else corpora),
        ):
            if given is None:
                continue
            unknown = sorted(set(given) - set(table[column]))
            if unknown or not given:
                raise ValueError(
                    f"`{argument}` is {list(given)}; known are "
                    f"{list(table[column].unique())}."
                )
            table = table[table[column].isin(given)]
        each = self.level ** (1 / len(table))
        half = scipy.stats.t.ppf((1 + each) / 2, table["dof"]) * table["se"]
        return table.assign(
            lower=table["difference"] - half, upper=table["difference"] + half
        ).reset_index(drop=True)


def evaluate(
    models: Mapping[str, nn.Module],
    corpora: Mapping[str, Documents],
    *,
    baseline: str | None = None,
    in_domain: str | None = None,
    calibration: Documents | None = None,
    training: Documents | Fit | Sequence[str] | None = None,
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
    training : Documents, Fit or list of str, optional
        What the models were trained on; a test or calibration document among them is
        refused.
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
    _check_corpora(corpora, calibration, training, paired=len(models) > 1)
    if not 0 < level < 1:
        raise ValueError(f"`level` is {level}; it must lie between 0 and 1.")
    if draws < 2:
        raise ValueError(
            f"`draws` is {draws}; the Monte Carlo error of an averaged prediction "
            "needs at least 2."
        )
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
    sums = {
        (model, corpus): _sums(held[model, corpus], corpora[corpus], fitted[model])
        for corpus in corpora
        for model in models
    }
    levels = [
        _levels(names, sums[names], held[names], fitted[names[0]]) for names in sums
    ]
    differences = [
        row
        for model, corpus in sums
        if model != baseline
        for row in _differences(
            (corpus, model, baseline),
            (sums[model, corpus], sums[baseline, corpus]),
            _latent_variance(held[model, corpus], held[baseline, corpus]),
            level,
        )
    ]
    documents = [
        table.assign(corpus=corpus, model=model)
        for (model, corpus), table in sums.items()
    ]
    return Evaluation(
        pd.DataFrame(levels),
        pd.DataFrame(differences),
        pd.concat(documents, ignore_index=True).drop(columns="bits"),
        baseline,
        in_domain,
        draws,
        level,
    )


_CALIBRATION = "\0calibration"


def _known(
    names: Mapping[str, Any], wanted: str | None, argument: str, where: str
) -> str:
    """Return the wanted name, the first by default."""
    if not isinstance(names, Mapping):
        raise TypeError(
            f"`{where}` is a {type(names).__name__}; expected a mapping of names, such "
            f"as {{'one': ...}}."
        )
    if not names:
        raise ValueError(f"`{where}` is empty; give at least one.")
    if wanted is None:
        return next(iter(names))
    if wanted not in names:
        raise ValueError(f"`{argument}` is {wanted!r}; known are {list(names)}.")
    return wanted


def _check_corpora(
    corpora: Mapping[str, Any], calibration: Any, training: Any, *, paired: bool
) -> None:
    """Refuse what is not Documents, was trained on, or is one unit alone."""
    named = dict(corpora) | (
        {} if calibration is None else {"calibration": calibration}
    )
    for name, corpus in named.items():
        if not all(hasattr(corpus, part) for part in ("names", "n_bytes", "n_tokens")):
            raise TypeError(
                f"`corpora` holds {name!r}, a {type(corpus).__name__}; expected "
                "Documents, such as Documents.from_texts(texts, tokenizer, context)."
            )
        if paired and corpus.n_units < 2 and corpus is not calibration:
            raise DataError(
                f"`corpora` holds {name!r} with one document; documents are the "
                "independent units, and a standard error needs at least 2."
            )
        if training is not None:
            refuse_leakage(training, corpus, name)


def _sums(held: Held, documents: Documents, fitted: float) -> pd.DataFrame:
    """Return the columns that `MEASURES` reads, one row a document."""
    return pd.DataFrame(
        {
            "document": list(documents.names),
            "bytes": documents.n_bytes.astype(np.int64),
            "tokens": documents.n_tokens.astype(np.int64),
            "bits": documents.n_bytes * _LN2,
            "nll": held.raw,
            "nll_unbiased": held.unbiased(),
            "nll_in_domain_t": held.at(fitted),
            "nll_oracle_t": held.at(held.best_temperature()),
            "top1": held.top1,
            "reciprocal_rank": held.reciprocal_rank,
            "brier": held.brier,
            "calibration_gap": held.calibration_gap(),
        }
    )


def _levels(
    names: tuple[str, str], sums: pd.DataFrame, held: Held, fitted: float
) -> dict[str, Any]:
    """Return one row of `Evaluation.levels`."""
    total = sums.drop(columns="document").sum()
    model, corpus = names
    return {
        "corpus": corpus,
        "model": model,
        "bits_per_byte": total.nll / total.bits,
        "bits_per_byte_unbiased": total.nll_unbiased / total.bits,
        "perplexity": math.exp(total.nll / total.tokens),
        "nll_per_token": total.nll / total.tokens,
        "bits_per_byte_in_domain_t": total.nll_in_domain_t / total.bits,
        "bits_per_byte_oracle_t": total.nll_oracle_t / total.bits,
        "in_domain_t": fitted,
        "oracle_t": held.best_temperature(),
        "oracle_t_is_inner": held.has_inner_temperature(),
        "top1": total.top1 / total.tokens,
        "mean_reciprocal_rank": total.reciprocal_rank / total.tokens,
        "brier": total.brier / total.tokens,
        "calibration_error": total.calibration_gap / total.tokens,
        "documents": len(sums),
        "tokens": int(total.tokens),
        "bytes": int(total.bytes),
    }


def _differences(
    names: tuple[str, str, str],
    sums: tuple[pd.DataFrame, pd.DataFrame],
    noise: Array,
    level: float,
) -> list[dict[str, Any]]:
    """Return the rows of `Evaluation.differences` of one model on one corpus."""
    corpus, model, baseline = names
    new, old = sums
    rows = []
    for measure, (column, size) in MEASURES.items():
        a, b = (np.asarray(part[column], dtype=np.float64) for part in (new, old))
        below = np.asarray(new[size], dtype=np.float64)
        rows.append(
            {
                "corpus": corpus,
                "model": model,
                "baseline": baseline,
                "measure": measure,
                **_paired(a, b, below, level),
                "latent_se": _share(noise if column == "nll" else None, below),
            }
        )
    return rows


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
