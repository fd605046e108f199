"""The models of known truth, and the two experiments end to end."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate

from eestim.errors import DataError
from eestim.llm.experiment import Plan, Tempered, text_experiment
from eestim.llm.perturbations import LowRank
from eestim.llm.prefix import LatentPrefixLM
from eestim.llm.recovery import synthetic_experiment
from eestim.llm.synthetic import (
    BinaryModel,
    IndexModel,
    binary_data,
    index_data,
    kullback_leibler,
    law,
    true_index_model,
)


def test_law_equals_adaptive_quadrature():
    x = torch.tensor([-1.0, 0.4, 1.7], dtype=torch.float64)
    for model in (BinaryModel(), true_index_model()):
        found = law(model, x)
        for i, token in ((0, 1), (1, 0), (2, 1)):

            def integrand(z, i=i, token=token, model=model):
                with torch.no_grad():
                    q = model.logits_of(x[i] + model.scale * z).softmax(-1)
                return q[token].item() * np.exp(-z * z / 2) / np.sqrt(2 * np.pi)

            expected = integrate.quad(integrand, -8, 8, epsabs=1e-11, limit=400)[0]
            assert abs(found[i, token].item() - expected) < 1e-8


def test_simulated_outcomes_follow_the_law():
    data = index_data(30_000, seed=3)
    near = (data.x - 1.0).abs() < 0.02
    found = torch.bincount(data.y[near], minlength=21) / near.sum()
    expected = law(true_index_model(), torch.ones(1, dtype=torch.float64))[0]
    error = (expected * (1 - expected) / near.sum()).sqrt()
    assert ((found - expected).abs() < 4 * error + 0.01).all()


def test_discrete_and_continuous_covariates():
    assert len(torch.unique(binary_data(2000, 0).x)) == 25
    assert len(torch.unique(binary_data(2000, 0, discrete=False).x)) == 2000


def test_divergence_is_zero_only_at_the_truth():
    x = torch.linspace(0, 4, 9, dtype=torch.float64)
    truth = law(true_index_model(), x)
    assert kullback_leibler(truth, truth).abs().max() < 1e-12
    assert (kullback_leibler(truth, law(IndexModel(), x)) > 0.01).all()


def test_without_latent_all_draws_are_one():
    model = IndexModel(scale=None)
    x, y = index_data(5, 0).batch(np.arange(5))
    assert model.draw_logits((x, y), 9, torch.Generator()).shape == (1, 5, 21)
    assert model.scale == 0.0


def test_only_unbiased_equations_extrapolate():
    calls = []
    result = synthetic_experiment(
        quick=True, report=lambda label, done, total: calls.append(done / total)
    )
    table = result.table.set_index("method")
    for method in ("Brier", "centred IWAE"):
        row = table.loc[method]
        width = row.upper - row.lower
        assert abs(row.scale - 0.6) < width  # four standard errors
        assert row.kl_outside < 0.2
        assert row.kl_inside < 0.05
    for method in ("no latent", "noise-averaged"):
        assert table.loc[method].kl_outside > 10
        assert math.isnan(table.loc[method].lower)
    assert set(result.laws.method) == {"truth", *table.index}
    sums = result.laws.groupby(["method", "x"]).probability.sum()
    np.testing.assert_allclose(sums, 1.0, rtol=1e-9)
    assert calls[-1] == 1.0


TINY = Plan(
    context=32, modules=8, pretrain_steps=3, pretrain_batch=4, steps=2, batch_size=2,
    draws=2, predict_draws=2, held_out=4, calibration=3, characters=80,
    other_documents=3, fixed_sizes=(0.3,), rank=2,
)  # fmt: skip


def test_text_experiment_compares_every_method_on_every_corpus(tmp_path):
    stages = set()
    result = text_experiment(
        TINY,
        checkpoint=tmp_path,
        report=lambda label, done, total: stages.add(label.split(",")[0]),
    )
    methods = {
        "base, temperature",
        "continued training",
        "noise-averaged, fixed 0.3",
        "noise-averaged, learned",
        "split: noise-averaged, Brier",
    }
    table = result.evaluation.differences
    assert set(table.model) == methods
    assert set(table.corpus) == {"in domain", "code", "licences"}
    raw = table[(table.measure == "bits per byte") & (table.corpus == "in domain")]
    assert (raw.documents == 4).all()
    assert (raw.lower < raw.upper).all()
    training = result.training.set_index("method")
    assert training.loc["noise-averaged, fixed 0.3"].size_after == pytest.approx(0.3)
    assert training.loc["split: noise-averaged, Brier"].size_after != 0.3
    assert len(list(tmp_path.rglob("checkpoint.pt"))) == 5
    assert {"evaluating", "training the base"} <= stages


def files(folder, count, seed):
    rng = np.random.default_rng(seed)
    folder.mkdir()
    for number in range(count):
        words = rng.choice(["red", "green", "blue", "grey", "pink"], 30)
        (folder / f"{number}.txt").write_text(" ".join(words))
    return [folder]


def test_text_experiment_takes_a_model_and_files(tmp_path):
    from eestim.llm.base import byte_model, byte_tokenizer

    place = tmp_path / "model"
    base = byte_model(24, width=16, layers=1, heads=2)
    LatentPrefixLM(base, None, byte_tokenizer()).save_pretrained(place)
    train = files(tmp_path / "train", 10, 0)
    ood = {"other": files(tmp_path / "ood", 3, 1)}
    result = text_experiment(TINY, model=place, train=train, ood=ood)
    assert set(result.evaluation.levels.corpus) == {"in domain", "other"}
    assert "training the base" not in set(result.training.method)
    with pytest.raises(DataError, match=r"`other` holds .*the same text as"):
        text_experiment(TINY, model=place, train=train, ood={"other": train})
    with pytest.raises(DataError, match="`train` holds 3 documents; at least 8"):
        text_experiment(TINY, model=place, train=ood["other"], ood=ood)


def test_tempered_divides_logits_and_refuses_a_latent():
    from eestim.llm.base import byte_model

    base = byte_model(16, width=16, layers=1, heads=2)
    plain = LatentPrefixLM(base)
    ids = torch.arange(2, 12).unsqueeze(0)
    cool = Tempered(plain, 2.0).draw_logits(ids, 3, torch.Generator())
    torch.testing.assert_close(2 * cool, plain.draw_logits(ids, 3, torch.Generator()))
    with pytest.raises(ValueError, match="`model` has a latent"):
        Tempered(LatentPrefixLM(base, LowRank(16, 2)), 2.0)
