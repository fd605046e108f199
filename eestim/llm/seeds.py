r"""One comparison from several training runs: documents and seeds both vary.

An interval from one trained model is about that model. What a method does is about the
next run too: the difference is averaged over runs with different seeds, and both the
documents and the seeds are samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy

from eestim.errors import DataError, InferenceError
from eestim.inference.ratio import ratio
from eestim.llm.evaluation import MEASURES, Evaluation

__all__ = ["average_over_seeds", "over_seeds"]

Array = npt.NDArray[np.float64]


def over_seeds(
    evaluations: Sequence[Evaluation | pd.DataFrame],
    measure: str = "bits per byte, oracle T",
    *,
    baseline: str | None = None,
    in_domain: str | None = None,
    level: float = 0.95,
    simultaneous: bool = True,
) -> pd.DataFrame:
    r"""Return differences from the baseline, averaged over runs of different seeds.

    .. math::
        \Delta = \frac1S \sum_s \Delta_s, \qquad
        se^2 = se_d^2 + \frac{1}{S (S - 1)} \sum_s (\Delta_s - \Delta)^2

    with :math:`se_d` the CR2 standard error by document of the differences averaged
    over seeds. Both parts hold the interaction of documents with seeds, so the sum
    errs on the safe side; degrees of freedom follow Satterthwaite.

    Parameters
    ----------
    evaluations : sequence of Evaluation, or of their `documents`
        One for each seed, of the same methods on the same documents.
    measure : str
        A key of `MEASURES`.
    baseline, in_domain : str, optional
        By default the first model and the first corpus.
    level : float
    simultaneous : bool
        Widen the intervals of each method so that they cover all out-of-domain
        corpora at once (Sidak, 1967; conservative, as the seeds are shared).

    Returns
    -------
    DataFrame
        One row for each corpus and model: difference, se, its parts by documents and
        by seeds, dof, lower, upper, seeds, documents.

    Raises
    ------
    InferenceError
        If there are fewer than two seeds.
    DataError
        If the evaluations differ in methods, documents or baseline.
    """
    if measure not in MEASURES:
        raise ValueError(f"`measure` is {measure!r}; known are {list(MEASURES)}.")
    if not 0 < level < 1:
        raise ValueError(f"`level` is {level}; it must lie between 0 and 1.")
    if len(evaluations) < 2:
        raise InferenceError(
            f"`evaluations` has {len(evaluations)} seed; variation between seeds needs "
            "at least 2. Train again with another seed."
        )
    tables = [
        one if isinstance(one, pd.DataFrame) else one.documents for one in evaluations
    ]
    _check_alike(tables)
    corpora, models = (list(tables[0][key].unique()) for key in ("corpus", "model"))
    baseline = _known("baseline", baseline, models)
    in_domain = _known("in_domain", in_domain, corpora)
    n_others = len(corpora) - 1
    rows = []
    for corpus in corpora:
        many = n_others if simultaneous and corpus != in_domain else 1
        for model in models:
            if model == baseline:
                continue
            gaps, size = _gaps(tables, corpus, (model, baseline), MEASURES[measure])
            rows.append(
                {
                    "corpus": corpus,
                    "model": model,
                    "baseline": baseline,
                    "measure": measure,
                    **average_over_seeds(gaps, size, level ** (1 / many)),
                }
            )
    return pd.DataFrame(rows)


def _known(argument: str, wanted: str | None, names: Sequence[str]) -> str:
    if wanted is None:
        return names[0]
    if wanted not in names:
        raise ValueError(f"`{argument}` is {wanted!r}; known are {list(names)}.")
    return wanted


def _check_alike(tables: Sequence[pd.DataFrame]) -> None:
    """Refuse evaluations that are not of the same methods on the same documents."""
    keys = ["corpus", "model", "document", "bytes", "tokens"]
    for number, other in enumerate(tables[1:], start=1):
        if not other[keys].equals(tables[0][keys]):
            raise DataError(
                f"`evaluations` {number} is of other methods or documents than the "
                "first; evaluate every seed on the same held-out documents."
            )


def _gaps(
    tables: Sequence[pd.DataFrame],
    corpus: str,
    models: tuple[str, str],
    kind: tuple[str, str],
) -> tuple[Array, Array]:
    """Return differences by seed and document, (S, G), and document sizes (G,)."""
    column, size = kind
    rows = []
    for one in tables:
        table = one[one["corpus"] == corpus]
        new, old = (
            table.loc[table["model"] == name, column].to_numpy(np.float64)
            for name in models
        )
        rows.append(new - old)
    own = table[table["model"] == models[0]]
    below = own["bytes"] * math.log(2.0) if size == "bits" else own[size]
    return np.stack(rows), below.to_numpy(np.float64)


def average_over_seeds(
    gaps: Array, size: Array, level: float = 0.95
) -> dict[str, float]:
    """Return the mean over seeds with its interval, see `over_seeds`.

    Parameters
    ----------
    gaps : (S, G) array
        Sums over each document, for each seed.
    size : (G,) array
        Positive size of each document.
    level : float
    """
    n_seeds = len(gaps)
    by_document = ratio(gaps.mean(0), size)
    each = gaps.sum(1) / size.sum()
    parts = np.array([by_document.se**2, each.var(ddof=1) / n_seeds])
    dofs = np.array([by_document.dof, n_seeds - 1.0])
    total = float(parts.sum())
    dof = total**2 / float((parts**2 / dofs).sum()) if total > 0 else float(dofs[0])
    half = float(scipy.stats.t.ppf((1 + level) / 2, dof)) * total**0.5
    return {
        "difference": by_document.estimate,
        "se": total**0.5,
        "se_documents": by_document.se,
        "se_seeds": float(parts[1]) ** 0.5,
        "dof": dof,
        "lower": by_document.estimate - half,
        "upper": by_document.estimate + half,
        "seeds": n_seeds,
        "documents": gaps.shape[1],
    }
