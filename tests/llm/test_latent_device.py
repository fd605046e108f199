"""Devices: one that is not there is named; on one that is, nothing waits needlessly."""

import pytest
import torch

from eestim.llm import IWAE, Brier, CentredIWAE, NoiseAveraged, Power
from eestim.llm.averaging import RowGenerators, standard_normal
from eestim.llm.experiment import text_experiment
from eestim.llm.slopes import distant_slope, steady_slope
from eestim.llm.surrogates import LatentEquation


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_device_is_refused_before_texts_are_read():
    with pytest.raises(ValueError, match="`device` is 'cuda', but torch sees no GPU"):
        text_experiment(train=["no such file"], device="cuda")


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("draws", [2, 3, 5])
@pytest.mark.parametrize("spread", [1.0, 30.0, 400.0])
def test_the_slope_without_a_decision_equals_the_others(gamma, draws, spread):
    """Two oracles: logarithms of every pair, and automatic differentiation."""
    generator = torch.Generator().manual_seed(draws)
    shape = (draws, 6, 9)
    logits = spread * torch.randn(shape, generator=generator, dtype=torch.float64)
    logits[:, 0] = logits[0, 0]  # draws that tie
    targets = torch.randint(9, (6,), generator=generator)
    value, slope = steady_slope(logits, targets, gamma)
    expected, pairs = distant_slope(logits, targets, gamma)
    # What cancels is of size 1 where draws are sure of themselves (gamma < 1).
    bound = 1e-10 * pairs.abs().max() + 8 * torch.finfo(torch.float64).eps
    assert torch.allclose(value, expected, 1e-10, 1e-12)
    assert (slope - pairs).abs().max() <= bound
    known, by_autograd = LatentEquation.slope(Power(gamma), logits, targets)
    assert torch.allclose(value, known, 1e-10, 1e-12)
    assert (slope - by_autograd).abs().max() <= bound
    single = steady_slope(logits.float(), targets, gamma)[1]
    assert torch.isfinite(single).all()


def test_no_slope_reads_a_value_on_a_device():
    """A meta tensor has no values: reading one, which would stall a GPU, fails."""
    logits = torch.empty(3, 4, 9, device="meta")
    targets = torch.zeros(4, dtype=torch.long, device="meta")
    for equation in (
        Brier(),
        Power(0.5),
        CentredIWAE(group=2),
        NoiseAveraged(),
        IWAE(),
    ):
        value, slope = equation.slope(logits, targets)
        assert value.shape == (4,)
        assert slope.shape == logits.shape
    with pytest.raises((NotImplementedError, RuntimeError)):  # the control
        bool((logits < 0).any())


def test_latents_of_rows_are_stacked_before_they_move():
    """Same numbers as row by row; made in float32 wherever they go."""
    generators = [torch.Generator().manual_seed(n) for n in range(3)]
    like = torch.zeros(1, dtype=torch.float64)
    found = standard_normal((2, 3, 5), RowGenerators(generators), like)
    rows = [
        torch.randn((2, 5), generator=torch.Generator().manual_seed(n)).double()
        for n in range(3)
    ]
    assert torch.equal(found, torch.stack(rows, 1))
