"""Slopes of the centred equations where draws are far apart, against the surrogate."""

import pytest
import torch

from eestim.llm.equations import CentredIWAE, Power
from eestim.llm.slopes import centred_slope, distant_slope
from eestim.llm.surrogates import LatentEquation


def far_apart():
    """Logits of draws hundreds of nats apart, (K, C, V), and targets."""
    generator = torch.Generator().manual_seed(0)
    place = 14 * torch.rand((4, 6, 1), generator=generator, dtype=torch.float64)
    centres = torch.linspace(0, 14, 9, dtype=torch.float64)
    return -(place - centres).square() / 0.245, torch.arange(6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_distant_slope_equals_differentiated_surrogate(gamma):
    logits, targets = far_apart()
    equation = CentredIWAE(group=3) if gamma == 1.0 else Power(gamma)
    value, slope = distant_slope(logits, targets, gamma)
    wide_value, wide = LatentEquation.slope(equation, logits, targets)
    torch.testing.assert_close(value, wide_value, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(slope, wide, rtol=1e-10, atol=1e-13)
    other = distant_slope(logits, targets, 1.0 - 0.8 * gamma)[1]
    assert (other - wide).abs().max() > 1e-3  # the control: another power


def test_equations_take_it_where_sums_underflow():
    logits, targets = far_apart()
    assert centred_slope(logits, targets, 1.0) is None
    torch.testing.assert_close(
        CentredIWAE(group=3).slope(logits, targets)[1],
        distant_slope(logits, targets, 1.0)[1],
        rtol=0,
        atol=0,
    )
    single = CentredIWAE(group=3).slope(logits.float(), targets)[1].double()
    double = distant_slope(logits, targets, 1.0)[1]
    assert torch.isfinite(single).all()
    assert (single - double).abs().max() < 2e-3 * double.abs().max()
