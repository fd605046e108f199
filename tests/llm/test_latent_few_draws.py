"""`Split(perturbation_draws=m)`: the mean of psi, its cost, and its routes agree."""

import numpy as np
import pytest
import torch
from test_latent_matrix_free import documents, gap, small
from test_latent_steps import moved
from tolerances import EXACT, REFERENCE
from torch.utils.flop_counter import FlopCounterMode

from eestim.llm import training
from eestim.llm.checkpoints import State
from eestim.llm.contrasts import Contrast, TokenKernel
from eestim.llm.equations import (
    Brier,
    CentredIWAE,
    NoiseAveraged,
    Power,
    ScoreWeighted,
    Split,
)
from eestim.llm.matrix_free import latent_operators
from eestim.llm.recipe import Recipe
from eestim.llm.scores import scores
from eestim.llm.sensitivities import sensitivity
from eestim.llm.steps import Team, step_gradients
from eestim.llm.surrogates import through_first
from eestim.llm.synthetic import BinaryModel, binary_data

DRAWS = 4


def split(few=None, equation=None):
    return Split(NoiseAveraged(), equation or Brier(), perturbation_draws=few)


def mean_slope(equation, logits, targets, few):
    """Mean over rotations of the draws of the gradient through the first `few`."""
    total = torch.zeros_like(logits)
    for turn in range(DRAWS):
        turned = logits.roll(turn, 0).requires_grad_()
        value = equation.surrogate(
            through_first(turned, few), turned.detach(), targets
        ).sum()
        total += torch.autograd.grad(value, turned)[0].roll(-turn, 0)
    return total / DRAWS


@pytest.mark.parametrize("few", [1, 2, 3])
@pytest.mark.parametrize(
    "equation",
    [
        Brier(),
        Power(0.5),
        CentredIWAE(group=1),
        CentredIWAE(group=2, exact=True),
        Contrast(),
        TokenKernel(torch.eye(5, 2, dtype=torch.float64)),
    ],
)
def test_averages_over_which_draws_to_psi_of_all(equation, few):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(DRAWS, 6, 5, generator=generator, dtype=torch.float64)
    targets = torch.randint(5, (6,), generator=generator)
    of_few = mean_slope(equation, logits, targets, few)
    of_all = mean_slope(equation, logits, targets, None)
    torch.testing.assert_close(of_few, of_all, rtol=0, atol=EXACT)


def test_is_refused_where_draws_play_different_parts():
    logits = torch.randn(DRAWS, 6, 5, generator=torch.Generator().manual_seed(0))
    targets = torch.zeros(6, dtype=torch.long)
    equation = ScoreWeighted()
    of_few = mean_slope(equation, logits, targets, 1)
    assert not of_few.any()  # the first draw makes weights: psi would be lost
    assert mean_slope(equation, logits, targets, None).any()
    with pytest.raises(ValueError, match="uses its draws unevenly"):
        split(1, equation)
    assert split(1, ScoreWeighted(lag=10)).perturbation_draws == 1


def test_at_least_one_draw_and_its_print():
    with pytest.raises(ValueError, match="`perturbation_draws` is 0"):
        split(0)
    assert repr(split()) == "Split(base=NoiseAveraged(), perturbation=Brier())"
    assert repr(split(2)).endswith("perturbation=Brier(), perturbation_draws=2)")


def test_fused_and_plain_steps_agree_and_all_draws_change_nothing():
    fused, plain = (moved(split(1), head=head) for head in ("fused", "plain"))
    torch.testing.assert_close(fused, plain, rtol=0, atol=EXACT)
    every = moved(split())
    assert torch.equal(moved(split(DRAWS)), every)
    assert not torch.allclose(fused, every, rtol=0, atol=1e-6)  # the control
    assert torch.equal(moved(split(1), accumulate=2) - fused, fused - fused) or (
        torch.allclose(moved(split(1), accumulate=2), fused, rtol=0, atol=EXACT)
    )


def test_scores_are_those_of_training_by_every_route():
    model, data = small(), documents()
    options = {"draws": DRAWS, "batch_size": 15}
    staged = scores(model, data, split(1), **options)
    loop = scores(model, data, split(1), method="loop", **options)
    np.testing.assert_allclose(staged, loop, rtol=0, atol=EXACT * np.abs(loop).max())
    every = scores(model, data, split(), **options)
    assert gap(staged, every) > 0.01
    options["parameters"] = "all"
    mapped = scores(model, data, split(1), **options)
    maps = latent_operators(model, data, split(1), sets=1, **options)
    v = np.random.default_rng(0).standard_normal(mapped.shape[1])
    assert gap(maps.psi.matvec(v), mapped @ v) < REFERENCE
    A = sensitivity(model, data, split(), **options)
    np.testing.assert_array_equal(sensitivity(model, data, split(1), **options), A)
    assert gap(maps.sensitivity.matvec(v), A @ v) < REFERENCE


def test_mean_of_psi_is_that_of_all_draws():
    """In 4 standard errors over units, away from the root; the control is not."""
    model, data = BinaryModel(), binary_data(4000, seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3)
    options = {"draws": DRAWS, "parameters": "all", "batch_size": 2000}
    few = scores(model, data, split(1, CentredIWAE(group=3)), **options)
    every = scores(model, data, split(None, CentredIWAE(group=3)), **options)

    def apart(rows):
        return np.abs(rows.mean(0)) / (rows.std(0) / len(rows) ** 0.5 + 1e-300)

    assert (apart(few - every) < 4).all()
    assert (apart(few / DRAWS - every) > 4).any()  # without the factor K / m


def in_place_flops(_, a, b, **__):
    return 2 * a[0] * a[1] * b[1]


def flops(equation):
    """Multiplications of weights in one step's gradients, as torch counts them."""
    from test_latent_training import TEXT, language_model

    model = language_model()
    recipe = Recipe(
        repr(equation), DRAWS, 2, 4, "adamw", learning_rate=1e-3,
        perturbation_rate=1e-3, warmup=1, final=0.1, clip=1.0, weight_decay=0.0,
        average_from=None, seed=0,
    )  # fmt: skip
    state = State.start(model, equation, recipe, "")
    units = training.as_units(model, TEXT)
    # the counter leaves the head's gradient out
    in_place = {torch.ops.aten.addmm_: in_place_flops}
    counter = FlopCounterMode(display=False, custom_mapping=in_place)
    with counter:
        step_gradients(state, units, np.arange(2), team=Team(), is_fused=True)
    return counter.get_total_flops()


def test_second_backward_pass_skips_gradients_of_weights():
    """4/3 for all draws and 1 + m / (3 K) for m, up to products with phi itself.

    Fused attention on a CPU is not counted: its backward pass is repeated whole.
    """
    one = flops(NoiseAveraged())
    assert flops(split()) / one == pytest.approx(4 / 3, abs=0.01)
    assert flops(split(1)) / one == pytest.approx(1 + 1 / 12, abs=0.01)
