"""Pooling over training seeds: against simulation with crossed effects."""

import numpy as np
import pandas as pd
import pytest

from eestim.errors import DataError, InferenceError
from eestim.inference.ratio import ratio
from eestim.llm.evaluation import Evaluation
from eestim.llm.seeds import average_over_seeds, over_seeds


def evaluation(gaps, size):
    """An evaluation of a model whose losses exceed the baseline's by `gaps`."""
    parts = []
    for corpus in ("home", "away"):
        for model, nll in (("base", 0.0 * size), ("new", gaps)):
            parts.append(
                pd.DataFrame(
                    {
                        "document": [f"d{j}" for j in range(len(size))],
                        "bytes": size,
                        "tokens": size,
                        "nll": nll,
                        "corpus": corpus,
                        "model": model,
                    }
                )
            )
    empty = pd.DataFrame()
    table = pd.concat(parts, ignore_index=True)
    return Evaluation(empty, empty, table, "base", "home", 2, 0.95)


def crossed(rng, n_seeds, size, by_seed, by_document):
    document = by_document * rng.normal(size=len(size))
    seeds = by_seed * rng.normal(size=n_seeds)
    return [evaluation((s + document) * size, size) for s in seeds]


def row(evaluations, **options):
    table = over_seeds(evaluations, "nats per token", **options)
    return table[table["corpus"] == "away"].iloc[0]


def test_without_seed_variation_it_is_the_interval_by_document():
    size = np.arange(5.0, 25.0)
    gaps = np.random.default_rng(0).normal(size=20) * size
    found = row([evaluation(gaps, size)] * 3)
    alone = ratio(gaps, size)
    assert found.difference == pytest.approx(alone.estimate, rel=1e-12)
    assert found.se == pytest.approx(alone.se, rel=1e-12)
    assert found.dof == pytest.approx(alone.dof, rel=1e-12)
    assert found.se_seeds <= 1e-12


@pytest.mark.parametrize(("by_seed", "by_document"), [(1.0, 0.1), (1.0, 1.0)])
def test_intervals_cover_when_seeds_and_documents_vary(by_seed, by_document):
    """Negative control: the interval by document alone misses the seeds."""
    rng = np.random.default_rng(1)
    size, n_runs = np.full(25, 10.0), 1000
    hits = alone = 0
    for _ in range(n_runs):
        document = by_document * rng.normal(size=25)
        seeds = by_seed * rng.normal(size=(5, 1))
        found = average_over_seeds((seeds + document) * size, size)
        hits += found["lower"] <= 0 <= found["upper"]
        alone += abs(found["difference"]) <= 2.06 * found["se_documents"]
    # Both parts hold their interaction, none here: coverage is nominal.
    assert abs(hits / n_runs - 0.95) <= 4 * (0.95 * 0.05 / n_runs) ** 0.5
    assert alone / n_runs < 0.9 - 4 * (0.9 * 0.1 / n_runs) ** 0.5


def test_only_out_of_domain_corpora_are_widened():
    size = np.full(8, 10.0)
    runs = crossed(np.random.default_rng(2), 3, size, 1.0, 1.0)
    wide = over_seeds(runs, "nats per token")
    plain = over_seeds(runs, "nats per token", simultaneous=False)
    tables = over_seeds([run.documents for run in runs], "nats per token")
    pd.testing.assert_frame_equal(wide, tables)
    pd.testing.assert_frame_equal(wide, plain)  # one other corpus: nothing to widen
    more = [
        Evaluation(
            e.levels,
            e.differences,
            pd.concat(
                [
                    e.documents,
                    e.documents[e.documents["corpus"] == "away"].assign(corpus="far"),
                ],
                ignore_index=True,
            ),
            "base",
            "home",
            2,
            0.95,
        )
        for e in runs
    ]
    both = over_seeds(more, "nats per token").set_index("corpus")
    assert both.loc["home", "upper"] == pytest.approx(plain["upper"][0])
    assert both.loc["far", "upper"] > plain["upper"][1]


def test_what_cannot_be_pooled_is_refused():
    size = np.full(4, 10.0)
    one = evaluation(size, size)
    with pytest.raises(InferenceError, match="has 1 seed"):
        over_seeds([one], "nats per token")
    with pytest.raises(DataError, match="other methods or documents"):
        over_seeds([one, evaluation(size[:3], size[:3])], "nats per token")
    with pytest.raises(ValueError, match="`baseline` is 'moon'"):
        over_seeds([one, one], "nats per token", baseline="moon")
    with pytest.raises(ValueError, match="`measure` is 'loss'"):
        over_seeds([one, one], "loss")
