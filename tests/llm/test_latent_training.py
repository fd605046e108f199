"""fit: descent, gradients by group, resume to the bit, and refusals."""

from pathlib import Path

import numpy as np
import pytest
import torch

from eestim.errors import ConvergenceError, DataError
from eestim.llm.base import byte_model, byte_tokenizer
from eestim.llm.checkpoints import CHECKPOINT
from eestim.llm.equations import (
    IWAE,
    Brier,
    CentredIWAE,
    NoiseAveraged,
    Split,
)
from eestim.llm.perturbations import LowRank
from eestim.llm.prefix import LatentPrefixLM
from eestim.llm.recipe import Recipe
from eestim.llm.synthetic import BinaryModel, binary_data
from eestim.llm.training import fit, gradients, rows_of_step

ROOT = Path(__file__).resolve().parents[2]
TEXT = ["the quick brown fox jumps over the lazy dog. " * 3, "pack my box " * 12]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def language_model(train_base=True):
    base = byte_model(16, width=16, layers=1, heads=2)
    return LatentPrefixLM(
        base, LowRank(16, rank=2), byte_tokenizer(), train_base=train_base
    )


def parameters(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def quick(model, equation=None, **options):
    settings = {"draws": 3, "steps": 6, "batch_size": 4, "warmup": 2, "seed": 5}
    return fit(model, TEXT, equation or Brier(), **(settings | options))


def test_each_epoch_meets_every_row_once():
    rows = np.concatenate([rows_of_step(10, 4, step, seed=1) for step in range(5)])
    assert sorted(rows[:10]) == list(range(10))
    assert sorted(rows[10:20]) == list(range(10))
    assert not np.array_equal(rows[:10], rows[10:20])


def test_split_gives_each_group_its_own_gradient():
    model = BinaryModel()
    x, y = binary_data(40, seed=1).batch(np.arange(40))
    logits = model.draw_logits((x, y), 4, seeded(0))
    base, phi = [model.a, model.b], list(model.perturbation.parameters())
    _, of_base, of_phi = gradients(
        Split(NoiseAveraged(), Brier()), logits, y, base, phi
    )
    logits = model.draw_logits((x, y), 4, seeded(0))
    first = torch.autograd.grad(NoiseAveraged().loss(logits, y), base)
    logits = model.draw_logits((x, y), 4, seeded(0))
    second = torch.autograd.grad(Brier().loss(logits, y), phi)
    torch.testing.assert_close(of_base, list(first))
    torch.testing.assert_close(of_phi, list(second))


def recovered(equation, draws, n=20_000):
    model = BinaryModel(a=0.0, b=1.0, scale=0.9)
    fit(
        model, binary_data(n, seed=3), equation, draws=draws, steps=400,
        batch_size=500, learning_rate=0.05, average_from=0.5, clip=10.0,
    )  # fmt: skip
    return torch.tensor([model.a.item(), model.b.item(), np.log(model.scale)])


@pytest.mark.parametrize(("equation", "draws"), [(Brier(), 4), (CentredIWAE(), 5)])
def test_fit_finds_the_true_root_within_its_standard_error(equation, draws):
    sd = torch.tensor([3.5, 5.2, 6.1]) / 20_000**0.5  # latent-averaged, population
    truth = torch.tensor([0.3, 2.0, np.log(0.5)])
    assert ((recovered(equation, draws) - truth).abs() < 4.5 * sd).all()


def test_negative_control_iwae_misses_the_scale():
    assert recovered(IWAE(), 4)[2] < np.log(0.4)


def test_frozen_base_stays_and_the_perturbation_moves():
    model = language_model(train_base=False)
    before = parameters(model.base)
    start = model.perturbation.directions.detach().clone()
    quick(model)
    assert torch.equal(parameters(model.base), before)
    assert not torch.equal(model.perturbation.directions, start)


def test_language_model_learns_the_text():
    model = language_model()
    record = quick(
        model, NoiseAveraged(), draws=2, steps=60, learning_rate=0.02, warmup=5
    )
    assert record.losses[-5:].mean() < record.losses[:5].mean() - 1.0
    assert record.n_units == 2
    assert record.rows_per_second > 0


def test_same_seed_same_parameters_other_seed_other_parameters():
    models = [language_model() for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        quick(model, seed=seed)
    first, second, third = map(parameters, models)
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("average_from", [None, 0.3])
def test_resume_is_bit_identical(tmp_path, optimizer, average_from):
    options = {"optimizer": optimizer, "average_from": average_from}
    whole, part, resumed = (language_model() for _ in range(3))
    quick(whole, **options)

    class Stop(Exception):  # noqa: N818 - not an error
        pass

    def stop(step, steps, loss):
        if step == 5:
            raise Stop

    with pytest.raises(Stop):
        quick(part, checkpoint=tmp_path, every=2, progress=stop, **options)
    record = quick(resumed, checkpoint=tmp_path, every=2, **options)
    assert record.resumed_from == 4
    assert len(record.losses) == 6
    assert torch.equal(parameters(whole), parameters(resumed))


def test_non_finite_loss_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    model = language_model()

    def poison(step, steps, loss):
        if step == 3:
            with torch.no_grad():
                model.perturbation.directions.fill_(float("nan"))

    with pytest.raises(ConvergenceError, match=r"not finite \(nan\) at step 3, batch"):
        quick(model, checkpoint=tmp_path, every=1, progress=poison)
    saved = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert saved["step"] == 3
    assert all(torch.isfinite(v).all() for v in saved["parameters"].values())


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    quick(language_model(), checkpoint=tmp_path)
    with pytest.raises(DataError, match=r"written with learning_rate=0\.001"):
        quick(language_model(), checkpoint=tmp_path, learning_rate=0.5)
    with pytest.raises(DataError, match="whose trained parameters are not"):
        quick(language_model(train_base=False), checkpoint=tmp_path)
    with pytest.raises(DataError, match="trained on other documents"):
        fit(
            language_model(), [*TEXT, "a third document " * 3], Brier(), draws=3,
            steps=6, batch_size=4, warmup=2, seed=5, checkpoint=tmp_path,
        )  # fmt: skip
    quick(language_model(), checkpoint=tmp_path, learning_rate=0.5, resume=False)


def test_averaging_returns_the_mean_of_the_later_parameters():
    model, path = BinaryModel(), []

    def remember(step, steps, loss):
        path.append(parameters(model))

    fit(
        model, binary_data(50, 0), Brier(), draws=2, steps=8, batch_size=10,
        average_from=0.5, progress=remember,
    )  # fmt: skip
    torch.testing.assert_close(parameters(model), torch.stack(path[4:]).mean(0))


def test_schedule_warms_up_and_decays():
    recipe = Recipe("x", 2, 100, 1, "adamw", 1.0, 1.0, 10, 0.1, 1.0, 0.0, None, 0)
    rates = [recipe.rate(step) for step in range(100)]
    assert rates[0] == 0.1
    assert rates[10] == max(rates) == 1.0
    assert rates[-1] < 0.11


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="`draws` is 1"):
        quick(language_model(), draws=1)
    with pytest.raises(ValueError, match="`steps` is 0"):
        quick(language_model(), steps=0)
    with pytest.raises(ValueError, match="`optimizer` is 'lbfgs'"):
        quick(language_model(), optimizer="lbfgs")
    with pytest.raises(ValueError, match="`learning_rate` is -1"):
        quick(language_model(), learning_rate=-1.0)
    with pytest.raises(ValueError, match="`average_from` is 1"):
        quick(language_model(), average_from=1.0)
    with pytest.raises(ValueError, match="`every` is 0"):
        quick(language_model(), every=0)
    with pytest.raises(TypeError, match="`model` is a Linear"):
        quick(torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match="`documents` is a list"):
        fit(BinaryModel(), ["text"], Brier())
    with pytest.raises(DataError, match="`context` is 16 tokens, but the longest"):
        fit(language_model(), ["short"], Brier())
    frozen = language_model()
    frozen.requires_grad_(False)
    with pytest.raises(DataError, match="no trainable parameter; call"):
        quick(frozen)
    plain = LatentPrefixLM(byte_model(16, width=16, layers=1, heads=2))
    plain.tokenizer = byte_tokenizer()
    with pytest.raises(ValueError, match="no latent and gives one"):
        quick(plain, Split(NoiseAveraged(), Brier()))
    fixed = language_model()
    fixed.perturbation.requires_grad_(False)
    with pytest.raises(DataError, match="`equation` is a Split"):
        quick(fixed, Split(NoiseAveraged(), Brier()))
