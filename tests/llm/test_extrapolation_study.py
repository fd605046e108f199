"""The synthetic study: who extrapolates, in a small case that is always the same."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import integrate

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

import extrapolation_study as study
from extrapolation.models import (
    IndexWorld,
    SequenceWorld,
    logits_of,
    points,
    softmax_law,
    start,
)
from extrapolation.tables import outside, table
from extrapolation.training import METHODS, OneSeed, Rows, moved, set_slopes

from eestim.llm import Brier, NoiseAveraged, scores
from eestim.llm.scores import unit_batches


def fitted(world, method, seeds=(0, 1), base="index curve"):
    cell = study.Cell(world, base, 5, method, seeds)
    return study.run(cell, study.TINY_RECIPES[base], 128)


def away(rows):
    return rows[outside(rows)].mean(axis=1).to_numpy()


def test_only_what_learns_the_scale_extrapolates_and_only_where_noise_is_in_front():
    brier, plain = fitted("index", "Brier"), fitted("index", "no latent")
    tempered = fitted("index", "temperature")
    assert (brier["KL inside"] < 0.1).all()
    assert (away(brier) < 0.5).all()
    assert (away(tempered) > 2 * away(brier)).all()
    assert (away(plain) > 20 * away(brier)).all()
    assert ((brier["lower"] < 0.6) & (brier["upper"] > 0.6)).all()
    # the control: noise behind the index is a matter of temperature, not of the prefix
    brier, tempered = (fitted("index, post", m) for m in ("Brier", "temperature"))
    assert (away(tempered) < 4 * away(brier)).all()


def test_laws_of_both_worlds_equal_adaptive_quadrature():
    for world in (IndexWorld(), IndexWorld(law="t"), IndexWorld(place="post")):
        x, law = world.places("2 to 3")
        at = x[10].reshape(())

        def integrand(z, world=world, at=at):
            z = torch.tensor(z, dtype=torch.float64)
            q = softmax_law(world._points(at, z), world.centres)[7].item()
            normal = np.exp(-z * z / 2) / np.sqrt(2 * np.pi)
            return q * float(
                normal if world.law == "normal" else 2 / np.pi * (1 + z**2) ** -2
            )

        limits = (-8, 8) if world.law == "normal" else (-60, 60)
        knots = [-3, -1.5, -0.5, 0, 0.5, 1.5, 3]
        expected = integrate.quad(integrand, *limits, points=knots, limit=400)[0]
        assert abs(law[10, 7].item() - expected) < 1e-5


def test_training_sequences_stay_in_their_corner():
    x, y = SequenceWorld(n=400).data(0)
    used = x[y != -100]
    assert (used[:, 0] <= 2).all()
    assert (used[:, 1] < 1).all()
    before = x[:, :-1][y[:, 1:] != -100]
    assert (before[:, 0] <= 2).all()
    assert x[..., 0].max() > 2  # the control: sequences do leave it
    assert (y[:, 0] == -100).all()


def test_slopes_are_those_of_the_library_with_automatic_differentiation():
    world, base = SequenceWorld(n=6), "sequence curve"
    x, y = world.data(1)
    params = start(base, [0], world.length) | {"log_scale": torch.zeros(1, 1)}
    model = OneSeed(base, params, 0, world.centres)
    psi = scores(
        model, Rows(x, y), Brier(), draws=3, parameters="all", batch_size=6, seed=2
    )
    leaves = dict(model.values)
    _, _, generator = next(unit_batches(Rows(x, y), 6, 2, 0))
    z = torch.randn((3, *x.shape), generator=generator, dtype=x.dtype)
    h = points(base, leaves, moved(leaves, x.unsqueeze(0), z.unsqueeze(1)))
    for leaf in leaves.values():
        leaf.grad = None
    set_slopes(Brier(), leaves, h, y.unsqueeze(0), world.centres)
    found = torch.cat([p.grad.flatten() for p in leaves.values()]).numpy()
    np.testing.assert_allclose(found, -psi.mean(0), rtol=1e-9, atol=1e-12)
    set_slopes(NoiseAveraged(), leaves, h, y.unsqueeze(0), world.centres)
    other = torch.cat([p.grad.flatten() for p in leaves.values()]).numpy()
    assert np.abs(other - found).max() > 1e-3  # the control


def test_a_tempered_base_divides_its_logits():
    world = IndexWorld()
    params = start("index curve", [0])
    u = torch.rand(1, 1, 5, 1, 1)
    plain = logits_of(points("index curve", params, u), world.centres.float())
    hot = params | {"log_temperature": torch.tensor([2.0]).log()}
    found = logits_of(points("index curve", hot, u), world.centres.float())
    torch.testing.assert_close(2 * found, plain, rtol=1e-5, atol=1e-3)


def test_a_stopped_run_goes_on_to_the_same_figures(tmp_path, monkeypatch):
    plan = (("index", "index curve", 5, ("no latent", "noise-averaged")),)
    monkeypatch.setattr(study, "TINY", plan)
    recipe = study.Recipe(8, 16, 0.05)
    monkeypatch.setattr(study, "TINY_RECIPES", {"index curve": recipe})
    (tmp_path / "one").mkdir()
    whole = study.study(False, 2, tmp_path / "one")
    (tmp_path / "two").mkdir()
    with pytest.raises(SystemExit, match="0 of 2 cells are done"):
        study.study(False, 2, tmp_path / "two", minutes=-1.0)
    monkeypatch.setattr(study, "TINY", ((*plan[0][:3], ("no latent",)),))
    study.study(False, 2, tmp_path / "two")
    monkeypatch.setattr(study, "TINY", plan)
    pd.testing.assert_frame_equal(
        study.study(False, 2, tmp_path / "two"), whole, check_exact=True
    )
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()
    assert len(list((tmp_path / "one").iterdir())) == 2


def test_the_table_pairs_seeds_and_counts_coverage():
    rows = pd.DataFrame(
        {
            "seed": [0, 1, 2] * 2,
            "method": ["Brier"] * 3 + ["other"] * 3,
            "K": 5,
            "scale": 0.6,
            "truth": 0.6,
            "lower": [0.5, 0.5, 0.7, *[np.nan] * 3],
            "upper": [0.7, 0.7, 0.8, *[np.nan] * 3],
            "refused": None,
            "KL inside": 0.1,
            "KL away": [1.0, 2.0, 3.0, 1.5, 2.5, 3.5],
        }
    )
    made = table(rows).set_index("method")
    assert made.loc["Brier", "s covered"] == "2 of 3"
    assert made.loc["other", "outside, against Brier"].startswith("+0.5")
    assert made.loc["Brier", "seeds"] == 3


def test_every_method_of_the_plan_exists():
    for world, base, draws, methods in (*study.FULL, *study.TINY):
        assert world in study.WORLDS
        assert base in study.RECIPES
        assert all(METHODS[m].equation(draws) is not None for m in methods)
