"""Sampled centres, token kernels and multilevel scores against explicit sums."""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats
from test_latent_equations import (
    MASSES,
    OUTCOMES,
    mean_psi_over_finite_latent,
    seeded,
    simulated_t,
    start,
    table,
)
from tolerances import EXACT

from eestim.errors import DataError
from eestim.llm.contrasts import (
    Contrast,
    TokenKernel,
    contrast,
    hashed_uniforms,
    sampled_tokens,
)
from eestim.llm.equations import IWAE, Brier, CentredIWAE
from eestim.llm.levels import MLMC
from eestim.llm.surrogates import leave_one_out
from eestim.llm.synthetic import BinaryModel, binary_data
from eestim.llm.training import fit

PLACES = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0], [3.0, 1.0]]).double()
KERNELS = [
    TokenKernel.energy(PLACES),
    TokenKernel.energy(PLACES, ridge=0.0),
    TokenKernel.gaussian(PLACES, bandwidth=1.5, n_features=6),
]


def still_of(z):
    return table(start(), z).unsqueeze(1)


def test_contrast_equals_the_loop_over_draws_for_given_samples():
    z = torch.randn(4, dtype=torch.float64, generator=seeded(0))
    sampled = torch.tensor([2, 0, 3, 1])
    jacobian = torch.autograd.functional.jacobian(
        lambda t: table(t, z).softmax(-1), start()
    )
    q = table(start(), z).softmax(-1)
    for y in range(OUTCOMES):
        expected = torch.zeros(4, dtype=torch.float64)
        for i in range(4):
            rest = [j for j in range(4) if j != i]
            score = jacobian[rest].sum(0) / q[rest].sum(0).unsqueeze(-1)
            expected += (score[y] - score[sampled[i]]) / 4
        theta = start().requires_grad_()
        instrument = leave_one_out(table(theta, z).log_softmax(-1)).unsqueeze(1)
        value = contrast(
            instrument, still_of(z), torch.tensor([y]), sampled.unsqueeze(1)
        )
        (slope,) = torch.autograd.grad(value.sum(), theta)
        torch.testing.assert_close(-slope, expected, rtol=EXACT, atol=1e-14)


def mean_over_samples(z, y, of_still=False):
    """Gradient of the contrast (or of its slope in `still`) averaged over Y'."""
    theta = start().requires_grad_()
    other = start().requires_grad_()
    direction = torch.tensor([0.3, -1.0, 0.5, 0.2], dtype=torch.float64)
    q = table(start(), z).softmax(-1)
    total = torch.zeros(4, dtype=torch.float64)
    for sampled in itertools.product(range(OUTCOMES), repeat=len(z)):
        chance = np.prod([float(q[i, v]) for i, v in enumerate(sampled)])
        instrument = leave_one_out(table(theta, z).log_softmax(-1)).unsqueeze(1)
        still = table(other, z).unsqueeze(1)
        place = torch.tensor(sampled).unsqueeze(1)
        value = contrast(instrument, still, torch.tensor([y]), place).sum()
        (slope,) = torch.autograd.grad(value, theta, create_graph=of_still)
        if of_still:
            (slope,) = torch.autograd.grad(slope @ direction, other)
        total += chance * slope
    return total


def of_centred(z, y, of_still=False):
    theta, other = start().requires_grad_(), start().requires_grad_()
    direction = torch.tensor([0.3, -1.0, 0.5, 0.2], dtype=torch.float64)
    value = CentredIWAE(group=1).surrogate(
        table(theta, z).unsqueeze(1), table(other, z).unsqueeze(1), torch.tensor([y])
    )
    (slope,) = torch.autograd.grad(value.sum(), theta, create_graph=of_still)
    if of_still:
        (slope,) = torch.autograd.grad(slope @ direction, other)
    return slope


@pytest.mark.parametrize("of_still", [False, True], ids=["psi", "derivative of psi"])
def test_contrast_averages_to_the_centred_equation_over_its_samples(of_still):
    z = torch.tensor([-0.4, 0.9], dtype=torch.float64)
    for y in range(OUTCOMES):
        torch.testing.assert_close(
            mean_over_samples(z, y, of_still),
            of_centred(z, y, of_still),
            rtol=1e-10,
            atol=1e-14,
        )


@pytest.mark.parametrize("instrument", ["log", "brier"])
def test_simulated_mean_of_contrast_is_zero_at_the_truth(instrument):
    assert simulated_t(Contrast(instrument), 4) < 4
    assert simulated_t(IWAE(), 4) > 4  # the control, same draws and sample size


def test_hashed_numbers_are_uniform_and_follow_the_latent():
    z = torch.randn(40_000, generator=seeded(2), dtype=torch.float64)
    for dtype in (torch.float32, torch.float64):
        logits = table(start(), z).to(dtype)
        uniform = hashed_uniforms(logits).numpy()
        assert stats.kstest(uniform, "uniform").pvalue > 1e-3
        near = hashed_uniforms(logits + 1e-5).numpy()
        for other in (near, hashed_uniforms(logits, seed=1).numpy(), z.numpy()):
            assert abs(np.corrcoef(uniform, other)[0, 1]) < 4 / 200
        assert torch.equal(hashed_uniforms(logits), torch.as_tensor(uniform))


def test_sampled_tokens_follow_the_law_of_their_draw():
    z = torch.randn(40_000, generator=seeded(3), dtype=torch.float64)
    logits = table(start(), z)
    q = logits.softmax(-1)
    hit = torch.nn.functional.one_hot(sampled_tokens(logits), OUTCOMES)
    gap = hit - q
    t = gap.mean(0) / (gap.std(0) / len(z) ** 0.5)
    assert t.abs().max() < 4
    within = gap * torch.tanh(z).unsqueeze(-1)  # also given the latent
    assert (within.mean(0) / (within.std(0) / len(z) ** 0.5)).abs().max() < 4


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_kernel_equals_the_loop_over_pairs_of_draws_and_tokens(kernel):
    ridge = kernel.ridge * torch.eye(OUTCOMES, dtype=torch.float64)
    weight = kernel.factor @ kernel.factor.T + ridge
    z = torch.randn(3, dtype=torch.float64, generator=seeded(5))
    jacobian = torch.autograd.functional.jacobian(
        lambda t: table(t, z).softmax(-1), start()
    )
    q = table(start(), z).softmax(-1)
    for y in range(OUTCOMES):
        hit = torch.nn.functional.one_hot(torch.tensor(y), OUTCOMES).to(q)
        expected = sum(
            (hit - q[i]) @ weight.to(q) @ jacobian[j] / 6
            for i, j in itertools.permutations(range(3), 2)
        )
        theta = start().requires_grad_()
        loss = kernel.loss(table(theta, z).unsqueeze(1), torch.tensor([y]))
        (slope,) = torch.autograd.grad(loss, theta)
        torch.testing.assert_close(-slope, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_mean_of_the_kernel_equation_is_zero_at_the_truth(kernel):
    mean = mean_psi_over_finite_latent(kernel, 3)
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-14)
    assert simulated_t(kernel, 3) < 4


def test_energy_kernel_gives_the_energy_distance():
    """(p - r)' W (p - r) = E|U - V| - E|U - U'|/2 - E|V - V'|/2, U ~ p, V ~ r."""
    kernel = TokenKernel.energy(PLACES, ridge=0.0)
    p, r = (torch.rand(4, generator=seeded(s)).double() for s in (1, 2))
    p, r = p / p.sum(), r / r.sum()
    distance = torch.cdist(PLACES, PLACES)
    energy = p @ distance @ r - p @ distance @ p / 2 - r @ distance @ r / 2
    form = ((p - r) @ kernel.factor).square().sum()
    torch.testing.assert_close(form, energy, rtol=1e-10, atol=0)


def test_gaussian_features_approach_their_kernel():
    factor = TokenKernel.gaussian(PLACES, 1.5, n_features=20_000).factor
    exact = torch.exp(-torch.cdist(PLACES, PLACES).square() / (2 * 1.5**2))
    gap = (factor @ factor.T - exact).abs().max()
    assert gap < 4 / 20_000**0.5  # each product of features has variance at most 1


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_mean_over_levels_is_the_importance_weighted_score(levels):
    equation = MLMC(levels)
    mean = sum(
        chance * mean_psi_over_finite_latent(equation, 2 ** (level + 1))
        for level, chance in enumerate(equation.probabilities())
    )
    expected = mean_psi_over_finite_latent(IWAE(), 2**levels)
    torch.testing.assert_close(mean, expected, rtol=1e-10, atol=1e-15)
    coarse = mean_psi_over_finite_latent(IWAE(), 2 ** (levels + 1) // 4 or 1)
    assert (coarse - expected).abs().max() > 1e-4  # the control: fewer draws differ


def test_bias_of_levels_halves_with_each_level():
    bias = [
        mean_psi_over_finite_latent(IWAE(), 2**levels).abs().max() for levels in (2, 3)
    ]
    assert bias[1] / bias[0] == pytest.approx(0.5, abs=0.1)


def test_steps_draw_levels_by_their_probabilities():
    equation, rng = MLMC(3), np.random.default_rng(0)
    draws = [equation.draws_of_step(8, rng) for _ in range(4000)]
    for level, chance in enumerate(equation.probabilities()):
        share = np.mean(np.array(draws) == 2 ** (level + 1))
        assert abs(share - chance) < 4 * (chance * (1 - chance) / 4000) ** 0.5


def test_fit_takes_the_new_equations():
    data = binary_data(3000, 5)
    for equation, draws in (
        (Contrast(), 3),
        (MLMC(3), 8),
        (TokenKernel.energy(torch.tensor([[0.0], [1.0]])), 3),
    ):
        model = BinaryModel(a=0.0, b=1.0, scale=0.5)
        fit(
            model, data, equation, draws=draws, steps=150, batch_size=200,
            learning_rate=0.05, average_from=0.5,
        )  # fmt: skip
        assert abs(model.a.item() - 0.3) < 0.35, equation
        assert abs(model.b.item() - 2.0) < 0.7, equation


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="`instrument` is 'x'"):
        Contrast("x")
    with pytest.raises(ValueError, match="`levels` is 0"):
        MLMC(0)
    with pytest.raises(ValueError, match=r"`draws` is 4, but MLMC.*= 16"):
        MLMC().draws_of_step(4, np.random.default_rng(0))
    with pytest.raises(ValueError, match="`logits` has 3 draws"):
        MLMC().loss(torch.zeros(3, 1, 2), torch.zeros(1, dtype=torch.long))
    with pytest.raises(DataError, match="`factor` has shape"):
        TokenKernel(torch.zeros(3))
    with pytest.raises(ValueError, match="`bandwidth` is 0"):
        TokenKernel.gaussian(PLACES, 0.0)
    with pytest.raises(ValueError, match="has 3 tokens, but the kernel's factor 4"):
        KERNELS[0].loss(torch.zeros(2, 1, 3), torch.zeros(1, dtype=torch.long))
    with pytest.raises(DataError, match="holds 4096 at most"):
        TokenKernel.energy(torch.zeros(4097, 1))
    assert repr(KERNELS[0]) != repr(TokenKernel.energy(2 * PLACES))
    assert MASSES.sum() == 1
    assert Brier().draws_of_step(5, np.random.default_rng(0)) == 5
