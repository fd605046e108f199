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
    evaluations: Sequence[Evaluation],
    measure: str = "bits per byte, oracle T",
    *,
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
    evaluations : sequence of Evaluation
        One for each seed, of the same methods on the same documents.
    measure : str
        A key of `MEASURES`.
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
    _check_alike(evaluations)
    first = evaluations[0]
    corpora = list(first.documents["corpus"].unique())
    models = [m for m in first.documents["model"].unique() if m != first.baseline]
    n_others = sum(corpus != first.in_domain for corpus in corpora)
    rows = []
    for corpus in corpora:
        many = n_others if simultaneous and corpus != first.in_domain else 1
        for model in models:
            gaps, size = _gaps(evaluations, corpus, model, MEASURES[measure])
            rows.append(
                {
                    "corpus": corpus,
                    "model": model,
                    "baseline": first.baseline,
                    "measure": measure,
                    **average_over_seeds(gaps, size, level ** (1 / many)),
                }
            )
    return pd.DataFrame(rows)


def _check_alike(evaluations: Sequence[Evaluation]) -> None:
    """Refuse evaluations that are not of the same methods on the same documents."""
    keys = ["corpus", "model", "document", "bytes", "tokens"]
    first = evaluations[0]
    for number, other in enumerate(evaluations[1:], start=1):
        if other.baseline != first.baseline or other.in_domain != first.in_domain:
            raise DataError(
                f"`evaluations` {number} has baseline {other.baseline!r} and in-domain "
                f"corpus {other.in_domain!r}, the first {first.baseline!r} and "
                f"{first.in_domain!r}."
            )
        if not other.documents[keys].equals(first.documents[keys]):
            raise DataError(
                f"`evaluations` {number} is of other methods or documents than the "
                "first; evaluate every seed on the same held-out documents."
            )


def _gaps(
    evaluations: Sequence[Evaluation], corpus: str, model: str, kind: tuple[str, str]
) -> tuple[Array, Array]:
    """Return differences by seed and document, (S, G), and document sizes (G,)."""
    column, size = kind
    rows = []
    for one in evaluations:
        table = one.documents[one.documents["corpus"] == corpus]
        new, old = (
            table.loc[table["model"] == name, column].to_numpy(np.float64)
            for name in (model, one.baseline)
        )
        rows.append(new - old)
    own = table[table["model"] == model]
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
