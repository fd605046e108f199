"""The fused head against automatic differentiation of the whole logits."""

import itertools

import pytest
import torch
from tolerances import EXACT, float32_sum

from eestim.errors import DataError
from eestim.llm import heads
from eestim.llm.equations import (
    IWAE,
    Brier,
    CentredIWAE,
    NoiseAveraged,
    Power,
    ScoreWeighted,
    SharedDraw,
    Split,
)
from eestim.llm.heads import Linear, averaged_log_loss, equation_pair, fused_losses
from eestim.llm.slopes import centred_slope
from eestim.llm.surrogates import IGNORED, LatentEquation, exclusive_sums

EQUATIONS = [
    Brier(),
    Power(0.0),
    Power(0.4),
    Power(1.0),
    CentredIWAE(),
    CentredIWAE(2, exact=True),
    ScoreWeighted(),
    NoiseAveraged(),
    SharedDraw(),
    IWAE(),
    Split(NoiseAveraged(), Brier()),
    Split(IWAE(), CentredIWAE()),
]
DRAWS, VOCABULARY, WIDTH = 6, 11, 5


def problem(dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(DRAWS, 3, 7, WIDTH), (VOCABULARY, WIDTH), (VOCABULARY,)]
    hidden, weight, bias = (
        (1.5 * torch.randn(s, generator=generator, dtype=dtype)).requires_grad_()
        for s in shapes
    )
    targets = torch.randint(VOCABULARY, (3, 7), generator=generator)
    targets[0, 3] = targets[2, 6] = IGNORED
    return hidden, weight, bias, targets


def gradients_both_ways(equation, dtype, chunk_bytes=600):
    """Yield (fused, plain) losses and gradients of each part."""
    hidden, weight, bias, targets = problem(dtype)
    losses = fused_losses(
        equation, hidden, Linear(weight, bias), targets, chunk_bytes=chunk_bytes
    )
    logits = hidden @ weight.T + bias
    for number, part in enumerate(equation_pair(equation)):
        leaves = [hidden, weight, bias] if number == 0 else [hidden]
        plain = part.loss(logits, targets)
        yield losses[number], plain
        yield from zip(
            torch.autograd.grad(losses[number], leaves, retain_graph=True),
            torch.autograd.grad(plain, leaves, retain_graph=True),
            strict=True,
        )


@pytest.mark.parametrize("equation", EQUATIONS, ids=str)
def test_equals_the_plain_route_in_float64(equation):
    for fused, plain in gradients_both_ways(equation, torch.float64):
        bound = EXACT * float(plain.detach().abs().max())
        torch.testing.assert_close(fused, plain, rtol=0, atol=bound)


@pytest.mark.parametrize("equation", EQUATIONS, ids=str)
def test_equals_the_plain_route_in_float32_to_rounding(equation):
    for fused, plain in gradients_both_ways(equation, torch.float32):
        bound = float32_sum(4 * VOCABULARY) * float(plain.detach().abs().max())
        torch.testing.assert_close(fused, plain, rtol=0, atol=bound)


def test_chunks_and_cache_blocks_do_not_matter(monkeypatch):
    whole = [g for g, _ in gradients_both_ways(Brier(), torch.float64, 1 << 20)]
    for cache in (1, 200):
        monkeypatch.setattr(heads, "_CACHE_NUMBERS", cache)
        for size in (1, 1000):
            parts = [g for g, _ in gradients_both_ways(Brier(), torch.float64, size)]
            for one, other in zip(whole, parts, strict=True):
                torch.testing.assert_close(one, other, rtol=EXACT, atol=1e-14)


def test_the_perturbations_part_of_a_split_leaves_the_head_alone():
    hidden, weight, bias, targets = problem(torch.float64)
    equation = Split(NoiseAveraged(), Brier())
    losses = fused_losses(equation, hidden, Linear(weight, bias), targets)
    found = torch.autograd.grad(losses[1], [weight, bias], allow_unused=True)
    assert found == (None, None)


def test_a_loss_that_is_not_wanted_costs_no_product_and_changes_nothing():
    hidden, weight, _, targets = problem(torch.float64)
    equation = Split(NoiseAveraged(), Brier())
    both = fused_losses(equation, hidden, Linear(weight), targets)
    one = fused_losses(equation, hidden, Linear(weight), targets, wanted=(False, True))
    assert torch.equal(both, one)
    expected = torch.autograd.grad(both[1], hidden)[0]
    assert torch.equal(torch.autograd.grad(one[1], hidden)[0], expected)
    with pytest.raises(RuntimeError, match="gives its gradient once"):
        torch.autograd.grad(one[0], hidden)


def test_no_tensor_of_all_logits_is_made():
    """Every tensor that torch allocates inside the head is seen by a dispatch mode."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            made = function(*args, **(kwargs or {}))
            for one in made if isinstance(made, tuple | list) else [made]:
                if isinstance(one, torch.Tensor):
                    self.seen = max(self.seen, one.untyped_storage().nbytes())
            return made

    hidden = torch.randn(4, 8, 32, 4, requires_grad=True)
    weight = torch.randn(500, 4, requires_grad=True)
    targets = torch.randint(500, (8, 32))
    full = 4 * 8 * 32 * 500 * 4
    with Largest() as fused:
        losses = fused_losses(
            Brier(), hidden, Linear(weight), targets, chunk_bytes=full // 16
        )
        torch.autograd.grad(losses.sum(), [hidden, weight])
    with Largest() as plain:
        loss = Brier().loss(hidden @ weight.T, targets)
        torch.autograd.grad(loss, [hidden, weight])
    assert fused.seen <= full // 16
    assert plain.seen >= full  # the control: the plain route holds them all


def test_weights_of_an_older_copy_equal_the_plain_route():
    hidden, weight, bias, targets = problem(torch.float64)
    old_hidden, old_weight, old_bias, _ = problem(torch.float64, seed=1)
    older = old_hidden[:2], Linear(old_weight, old_bias)
    equation = ScoreWeighted(lag=5)
    (loss,) = fused_losses(
        equation, hidden, Linear(weight, bias), targets, outside=older, chunk_bytes=600
    )
    logits = hidden @ weight.T + bias
    still = torch.cat([logits, old_hidden[:2] @ old_weight.T + old_bias]).detach()
    plain = equation.surrogate(logits, still, targets).sum()
    plain = plain / (targets != IGNORED).sum()
    torch.testing.assert_close(loss, plain, rtol=EXACT, atol=0)
    for one, other in zip(
        torch.autograd.grad(loss, [hidden, weight]),
        torch.autograd.grad(plain, [hidden, weight]),
        strict=True,
    ):
        # Entries are sums whose terms are of the size of the largest.
        small = EXACT * other.abs().max().item()
        torch.testing.assert_close(one, other, rtol=EXACT, atol=small)


def test_closed_form_gives_up_where_sums_underflow_and_the_surrogate_takes_over():
    logits = torch.zeros(3, 2, 4)
    logits[1:, :, 1] = -200.0  # the other draws are e^-200 of this one
    targets = torch.tensor([0, 1])
    assert centred_slope(logits, targets, 1.0) is None
    value, slope = CentredIWAE(group=2).slope(logits, targets)
    wide_value, wide = LatentEquation.slope(
        CentredIWAE(group=2), logits.double(), targets
    )
    torch.testing.assert_close(value.double(), wide_value, rtol=1e-5, atol=0)
    torch.testing.assert_close(slope.double(), wide, rtol=1e-5, atol=1e-6)


def test_exclusive_sums_equal_explicit_sums():
    values = torch.randn(5, 3, dtype=torch.float64)
    for k, rest in enumerate(itertools.combinations(range(5), 4)):
        expected = values[list(rest)].sum(0)
        found = exclusive_sums(values)[4 - k]
        torch.testing.assert_close(found, expected, rtol=EXACT, atol=1e-15)


def test_averaged_log_loss_equals_the_loss_of_the_averaged_law():
    hidden, weight, bias, targets = problem(torch.float64)
    p = (hidden @ weight.T + bias).softmax(-1).mean(0)
    kept = targets != IGNORED
    expected = -p[kept].gather(1, targets[kept].unsqueeze(1)).log().sum()
    found = averaged_log_loss(hidden, Linear(weight, bias), targets, chunk_bytes=900)
    torch.testing.assert_close(found, expected.detach(), rtol=EXACT, atol=0)


def test_products_follow_autocast_and_gradients_stay_in_their_dtype():
    hidden, weight, bias, targets = problem(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        (loss,) = fused_losses(Brier(), hidden, Linear(weight, bias), targets)
    found = torch.autograd.grad(loss, [hidden, weight, bias])
    (exact,) = fused_losses(Brier(), hidden, Linear(weight, bias), targets)
    expected = torch.autograd.grad(exact, [hidden, weight, bias])
    assert loss.dtype == torch.float32
    assert all(g.dtype == torch.float32 for g in found)
    for one, other in zip(found, expected, strict=True):
        gap = float((one - other).norm() / other.norm())
        assert 1e-5 < gap < 0.03  # a few roundings of 2^-9, and not float32 products


def test_bad_arguments_are_refused():
    hidden, weight, bias, targets = problem(torch.float32)
    head = Linear(weight, bias)
    with pytest.raises(ValueError, match="`draws` is 1"):
        fused_losses(Brier(), hidden[:1], head, targets)
    with pytest.raises(ValueError, match=r"`hidden` has shape .* and `targets`"):
        fused_losses(Brier(), hidden, head, targets[:2])
    with pytest.raises(DataError, match="no observed token"):
        fused_losses(Brier(), hidden, head, torch.full((3, 7), IGNORED))
    (loss,) = fused_losses(Brier(), hidden, head, targets)
    torch.autograd.grad(loss, hidden, retain_graph=True)
    with pytest.raises(RuntimeError, match="gives its gradient once"):
        torch.autograd.grad(loss, hidden)
