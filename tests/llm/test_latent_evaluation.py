"""evaluate: against direct sums, equal draws, leakage refused."""

import numpy as np
import pytest
import torch

from eestim.errors import DataError
from eestim.inference.ratio import ratio
from eestim.llm.base import byte_model, byte_tokenizer
from eestim.llm.documents import Documents
from eestim.llm.evaluation import MEASURES, evaluate
from eestim.llm.heldout import (
    BINS,
    TEMPERATURES,
    Held,
    position_scores,
    score_documents,
)
from eestim.llm.perturbations import LowRank
from eestim.llm.prefix import LatentPrefixLM

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta"]


def texts(count, seed):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(5, 12))) for _ in range(count)]


def held_out(count=5, seed=0):
    return Documents.from_texts(texts(count, seed), byte_tokenizer(), 16)


def model(size=None, seed=0):
    base = byte_model(16, width=16, layers=1, heads=2, seed=seed)
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.mul_(3.0)  # a random model that is not almost uniform
    return LatentPrefixLM(base, None if size is None else LowRank(16, 2, size))


def test_sums_equal_a_direct_computation_document_by_document():
    documents, plain = held_out(), model()
    held = score_documents(plain, documents, draws=2, batch_size=3)
    for number in range(documents.n_units):
        loss = hits = reciprocal = 0.0
        for row in np.flatnonzero(documents.unit == number):
            batch = documents.batch(np.array([row]))
            logits = plain.base(input_ids=batch.input_ids).logits[0].detach()
            for t, y in enumerate(batch.targets[0].tolist()):
                if y >= 0:
                    log_p = logits[t].log_softmax(-1)
                    loss -= log_p[y].item()
                    rank = 1 + (log_p > log_p[y]).sum().item()
                    hits += rank == 1
                    reciprocal += 1 / rank
        np.testing.assert_allclose(held.raw[number], loss, rtol=1e-5)
        np.testing.assert_allclose(held.top1[number], hits)
        np.testing.assert_allclose(held.reciprocal_rank[number], reciprocal, rtol=1e-5)


def test_temperature_scales_the_averaged_log_probabilities():
    logits = torch.randn(3, 6, 9, generator=torch.Generator().manual_seed(0)) * 2
    targets = torch.arange(6)
    rows = position_scores(logits, targets)
    p = logits.softmax(-1).mean(0)
    for number, t in enumerate(TEMPERATURES):
        tempered = (p.log() / t).log_softmax(-1)[torch.arange(6), targets]
        torch.testing.assert_close(rows[number], -tempered)


def test_best_temperature_and_interpolation_agree_with_a_fine_search():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(1, 4000, 9, generator=generator) * 2
    targets = torch.multinomial(
        (logits[0] / 1.37).softmax(-1), 1, generator=generator
    ).squeeze(1)
    rows = position_scores(logits, targets).double()
    sums = rows.sum(1, keepdim=True).numpy()
    held = Held.of(sums, 1)
    grid = np.linspace(1.2, 1.6, 401)
    log_p = logits[0].double().log_softmax(-1)
    losses = [
        -(log_p / t).log_softmax(-1)[torch.arange(4000), targets].sum() for t in grid
    ]
    best = held.best_temperature()
    assert abs(best - grid[int(np.argmin(losses))]) < 0.01
    fine = float(min(losses))
    assert abs(held.at(best)[0] - fine) / 4000 < 1e-4
    assert held.at(1.0)[0] == pytest.approx(held.raw[0])
    assert held.has_inner_temperature()
    flat = Held.of(
        position_scores(30 * logits, targets).double().sum(1)[:, None].numpy(), 1
    )
    assert not flat.has_inner_temperature()  # the best one is beyond the grid


def test_jackknife_removes_most_of_the_bias_of_a_mean_of_few_draws():
    """Oracle: the same loss with very many draws."""
    documents = held_out(8)
    noisy = model(size=3.0)
    few = [score_documents(noisy, documents, 4, 8, seed) for seed in range(30)]
    exact = score_documents(noisy, documents, 600, 8, 0).raw.sum()
    raw = np.array([h.raw.sum() for h in few])
    corrected = np.array([h.unbiased().sum() for h in few])
    error = raw.std(ddof=1) / 30**0.5
    assert raw.mean() - exact > 4 * error
    assert abs(corrected.mean() - exact) < 0.4 * (raw.mean() - exact)


def test_latent_standard_error_is_that_of_repeated_draws():
    documents = held_out(6)
    models = {"base": model(), "noisy": model(size=2.0)}
    reported, found = [], []
    for seed in range(40):
        table = evaluate(models, {"x": documents}, draws=8, seed=seed).differences
        row = table[table.measure == "bits per byte"].iloc[0]
        reported.append(row.latent_se)
        found.append(row.difference)
    spread = np.std(found, ddof=1)
    assert abs(np.mean(reported) / spread - 1) < 4 / (2 * 39) ** 0.5


def test_differences_are_paired_ratios_by_document():
    documents = held_out(6)
    models = {"base": model(), "other": model(seed=1)}
    result = evaluate(models, {"x": documents}, draws=2)
    new, old = (score_documents(models[n], documents, 2) for n in ("other", "base"))
    expected = ratio(new.raw - old.raw, documents.n_bytes * np.log(2))
    row = result.differences.query("measure == 'bits per byte'").iloc[0]
    np.testing.assert_allclose(row.difference, expected.estimate, rtol=1e-12)
    np.testing.assert_allclose(row.se, expected.se, rtol=1e-12)
    assert row.documents == 6
    assert row.dof == expected.dof
    assert row.lower < row.difference < row.upper


def test_calibration_and_brier_against_scikit_style_sums():
    """Oracle: a loop over bins, and the squared distance to one-hot outcomes."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 500, 5, generator=generator) * 3
    targets = torch.randint(5, (500,), generator=generator)
    held = Held.of(position_scores(logits, targets).double().sum(1)[:, None].numpy(), 2)
    p = logits.softmax(-1).mean(0)
    one_hot = torch.nn.functional.one_hot(targets, 5)
    assert held.brier[0] == pytest.approx((p - one_hot).square().sum().item(), rel=1e-5)
    top, choice = p.max(-1)
    error = 0.0
    for b in range(BINS):
        inside = (top >= b / BINS) & (top < (b + 1) / BINS)
        if inside.any():
            right = (choice == targets)[inside].float()
            error += inside.sum() * abs(top[inside].mean() - right.mean())
    assert held.calibration_gap()[0] == pytest.approx(float(error), rel=1e-4)


def test_simultaneous_intervals_cover_independent_domains_at_once():
    """Negative control: separate intervals do not."""
    documents = {f"domain {j}": held_out(12, seed=j) for j in range(5)}
    result = evaluate({"base": model(), "other": model(seed=1)}, documents, draws=2)
    joint = result.simultaneous("bits per byte")
    assert list(joint["corpus"]) == [f"domain {j}" for j in range(1, 5)]
    alone = result.differences.query(
        "measure == 'bits per byte' and corpus != 'domain 0'"
    )
    rng = np.random.default_rng(5)
    draws = rng.standard_t(joint["dof"].to_numpy(), size=(20_000, 4))
    for table, low, high in ((joint, 0.945, 0.955), (alone, 0.0, 0.9)):
        reach = ((table["upper"] - table["difference"]) / table["se"]).to_numpy()
        covered = (np.abs(draws) <= reach).all(axis=1).mean()
        assert low < covered < high
    with pytest.raises(ValueError, match="`measure` is 'loss'"):
        result.simultaneous("loss")
    with pytest.raises(ValueError, match=r"`corpora` is \['moon'\]"):
        result.simultaneous(corpora=["moon"])


def test_the_table_of_documents_gives_every_difference_again():
    result = evaluate(
        {"base": model(), "other": model(seed=1)}, {"x": held_out(7)}, draws=2
    )
    new, old = (
        result.documents[result.documents["model"] == n] for n in ("other", "base")
    )
    assert len(result.documents) == 14
    assert set(result.differences["measure"]) == set(MEASURES)
    for row in result.differences.itertuples():
        column, size = MEASURES[row.measure]
        below = new["bytes"] * np.log(2) if size == "bits" else new[size]
        again = ratio(new[column].to_numpy() - old[column].to_numpy(), below.to_numpy())
        assert row.difference == pytest.approx(again.estimate, rel=1e-12)
        assert row.se == pytest.approx(again.se, rel=1e-12)


def test_the_same_model_twice_differs_by_nothing():
    noisy = model(size=2.0)
    result = evaluate(
        {"a": noisy, "b": noisy}, {"x": held_out()}, calibration=held_out(3, 7), draws=3
    )
    assert (result.differences.difference == 0).all()  # the draws are the same
    assert (result.differences.se == 0).all()


def test_leakage_and_bad_arguments_are_refused():
    documents, plain = held_out(), {"base": model()}
    with pytest.raises(DataError, match="`x` holds 'document 0', the same text"):
        evaluate(plain, {"x": documents}, training=documents)
    with pytest.raises(ValueError, match="`baseline` is 'none'"):
        evaluate(plain, {"x": documents}, baseline="none")
    with pytest.raises(ValueError, match="`models` is empty"):
        evaluate({}, {"x": documents})
    with pytest.raises(ValueError, match="`draws` is 1"):
        evaluate(plain, {"x": documents}, draws=1)
    with pytest.raises(ValueError, match="`level` is 95"):
        evaluate(plain, {"x": documents}, level=95)
    with pytest.raises(TypeError, match="`model` is a LlamaForCausalLM"):
        evaluate({"base": model().base}, {"x": documents})
