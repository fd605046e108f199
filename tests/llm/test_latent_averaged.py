"""Averaged descent in one pass: falling steps, the plug-in, and what it refuses."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn

from eestim.errors import InferenceError
from eestim.llm.averaging import standard_normal
from eestim.llm.equations import Brier, CentredIWAE
from eestim.llm.inference import infer
from eestim.llm.sgd_inference import check_fit, path_interval, plug_in
from eestim.llm.synthetic import BinaryModel, Pairs, binary_data
from eestim.llm.training import fit

RUNS, UNITS, ROWS = 200, 20_000, 10
ONE_PASS = {
    "draws": 2, "steps": UNITS // ROWS, "batch_size": ROWS, "optimizer": "sgd",
    "clip": math.inf, "schedule": "power", "exponent": 0.6, "warmup": 20,
}  # fmt: skip


class Many(nn.Module):
    """Independent copies of `BinaryModel` side by side, each with its own data."""

    def __init__(self):
        super().__init__()
        ones = torch.ones(RUNS, dtype=torch.float64)
        self.a, self.b = nn.Parameter(0.3 * ones), nn.Parameter(2.0 * ones)

    def draw_logits(self, batch, draws, generator):
        x, _ = batch
        z = standard_normal((draws, *x.shape), generator, x)
        logit = self.a + self.b * torch.tanh(4 * (x + 0.5 * z))
        return torch.stack([torch.zeros_like(logit), logit], -1)

    def targets(self, batch):
        return batch[1]


@dataclass
class Columns:
    """Units that each hold one pair of every copy."""

    x: torch.Tensor
    y: torch.Tensor

    @property
    def n_units(self):
        return len(self.x)

    @property
    def unit(self):
        return np.arange(len(self.x))

    def batch(self, rows):
        index = torch.as_tensor(rows)
        return self.x[index], self.y[index]


def descended(average_from):
    """Return the data, the record and (RUNS, 2) averages of one pass of each copy."""
    pairs = binary_data(UNITS * RUNS, 7)
    data = Columns(*(v.view(RUNS, UNITS).T.contiguous() for v in (pairs.x, pairs.y)))
    model = Many()
    record = fit(
        model, data, Brier(), learning_rate=8.0 * RUNS, average_from=average_from,
        seed=1, **ONE_PASS,
    )  # fmt: skip
    return data, record, torch.stack([model.a, model.b], 1).detach().numpy()


def single(values):
    """One copy, its scale known."""
    model = BinaryModel(*values)
    model.perturbation.log_scale.requires_grad_(False)
    return model


def both(model):
    return torch.stack([model.a, model.b])


def planned(found, **options):
    """Return the plug-in at the averages of some copies."""
    data, record, averages = found
    return [
        plug_in(
            single(averages[run].tolist()), Pairs(data.x[:, run], data.y[:, run]),
            both, Brier(), fit=record, parameters="trained", batch_size=UNITS, sets=2,
            names=("a", "b"), **options,
        )
        for run in range(0, RUNS, 5)
    ]  # fmt: skip


def test_the_plug_in_is_the_spread_of_averages_of_one_pass_and_covers():
    """Bounds of 4 Monte Carlo errors; the control takes half a pass for a whole.

    Of `a` only: the average of `b` is off by about one standard error, of the order of
    the steps, at this length.
    """
    found = descended(0.1)
    spread = found[2].std(0, ddof=1)
    made = planned(found)
    errors = np.mean([m.se.to_numpy() for m in made], 0)
    assert found[1].averaged_passes == 0.9
    bound = 4 / (2 * RUNS) ** 0.5
    assert (np.abs(spread / errors - 1) <= bound).all()
    bounds = [m.interval().loc["a"] for m in made]
    covered = np.mean([b["lower"] <= 0.3 <= b["upper"] for b in bounds])
    assert abs(covered - 0.95) <= 4 * (0.95 * 0.05 / len(made)) ** 0.5

    late = descended(0.5)
    spread = late[2].std(0, ddof=1)
    own = np.mean([m.se.to_numpy() for m in planned(late)], 0)
    assert (np.abs(spread / own - 1) <= bound).all()
    whole = np.mean([m.se.to_numpy() for m in made], 0) * 0.9**0.5  # as if E = 1
    assert (spread / whole - 1 > bound).all()


def record_of(**options):
    data = binary_data(2000, 0)
    given = ONE_PASS | {"steps": 200, "batch_size": 10, "learning_rate": 1.0}
    model = BinaryModel()
    made = fit(model, data, Brier(), **(given | {"average_from": 0.1} | options))
    return model, data, made


OPTIONS = {"parameters": "all", "batch_size": 2000, "sets": 2}


def a(model):
    return model.a


def test_falling_steps_of_fit_have_the_limit_law():
    model, data, made = record_of()
    rates = [made.recipe.rate(s) for s in range(200)]
    np.testing.assert_allclose(rates[:20], np.arange(1, 21) / 20)
    np.testing.assert_allclose(rates[20:], (np.arange(21, 201) / 20) ** -0.6)
    check_fit(made)
    path = np.random.default_rng(0).standard_normal(200)
    assert path_interval(path, fit=made).shape == (1, 3)
    cosine = replace(made, recipe=replace(made.recipe, schedule="cosine"))
    with pytest.raises(InferenceError, match="steps do not fall"):
        check_fit(cosine)
    same = plug_in(model, data, a, Brier(), fit=made, **OPTIONS)
    given = infer(model, data, a, Brier(), draws=2, passes=0.9, **OPTIONS)
    assert same.se.iloc[0] == given.se.iloc[0]
    for exponent in (0.5, 1.0, math.nan):
        with pytest.raises(ValueError, match=f"`exponent` is {exponent}"):
            record_of(exponent=exponent)
    with pytest.raises(ValueError, match="`schedule` is 'linear'"):
        record_of(schedule="linear")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"average_from": None}, r"not averaged \(average_from=0\.1\)"),
        ({"weight_decay": 0.1}, r"weights decay by 0\.1"),
        ({"clip": 0.01}, r"clipped at 194 steps, last at step 199.*another root"),
        ({"schedule": "cosine"}, "0.9 averaged passes are of the optimizer 'sgd' with"),
        ({"optimizer": "adamw", "learning_rate": 0.01}, "the optimizer 'adamw' with"),
        ({"average_from": 0.6}, "fewer than 100 steps were averaged"),
    ],
)
def test_averages_without_the_law_are_refused(options, message):
    model, data, made = record_of(**options)
    with pytest.raises(InferenceError, match=message):
        plug_in(model, data, a, Brier(), fit=made, **OPTIONS)


def test_clipping_early_in_the_path_is_forgotten_and_later_is_not():
    model, data, made = record_of()
    assert (made.n_clipped, made.last_clipped) == (0, None)
    early = replace(made, n_clipped=5, last_clipped=19)
    check_fit(early)
    plug_in(model, data, a, Brier(), fit=early, **OPTIONS)
    late = replace(made, n_clipped=5, last_clipped=20)
    with pytest.raises(InferenceError, match="clipped at 5 steps, last at step 20"):
        check_fit(late)
    with pytest.raises(InferenceError, match="clipped at 5 steps, last at step 20"):
        plug_in(model, data, a, Brier(), fit=late, **OPTIONS)


def test_a_record_of_something_else_is_refused():
    model, data, made = record_of()
    with pytest.raises(ValueError, match="`fit` solved Brier"):
        plug_in(model, data, a, CentredIWAE(group=1), fit=made, **OPTIONS)
    with pytest.raises(ValueError, match="has 50 units, but `fit` met 2000"):
        plug_in(model, binary_data(50, 0), a, Brier(), fit=made, **OPTIONS)
    with pytest.raises(ValueError, match="`passes` is what the record"):
        plug_in(model, data, a, Brier(), fit=made, passes=1, **OPTIONS)
    looked = replace(made, best_step=100)
    with pytest.raises(InferenceError, match="those of the look at step 100"):
        plug_in(model, data, a, Brier(), fit=looked, **OPTIONS)


def test_a_resumed_fit_remembers_what_was_clipped(tmp_path):
    class Stop(Exception):  # noqa: N818 - not an error
        pass

    def stop(step, steps, loss):
        if step == 100:
            raise Stop

    with pytest.raises(Stop):
        record_of(clip=0.01, checkpoint=tmp_path, every=50, progress=stop)
    again = record_of(clip=0.01, checkpoint=tmp_path, every=50)[2]
    whole = record_of(clip=0.01)[2]
    assert again.resumed_from in (50, 100)
    assert (again.n_clipped, again.last_clipped) == (whole.n_clipped, 199)
    assert whole.n_clipped > 150


def test_passes_count_rows_and_not_the_size_asked_for():
    """A step has at most all rows, however many are asked for."""
    _, _, made = record_of(batch_size=5000, steps=3)
    assert (made.passes, made.averaged_passes) == (3.0, 3.0)
