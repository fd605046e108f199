"""Surrogates against explicit pairs, exact expectations and simulation."""

import itertools

import pytest
import torch
from tolerances import EXACT

from eestim.errors import CapabilityError, DataError
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
from eestim.llm.surrogates import IGNORED, leave_one_out

UNBIASED = [
    (Brier(), 2),
    (Brier(), 4),
    (Power(0.0), 3),
    (Power(0.4), 3),
    (Power(1.0), 4),
    (CentredIWAE(group=1), 2),
    (CentredIWAE(), 5),
    (CentredIWAE(group=2, exact=True), 4),
    (ScoreWeighted(), 3),
    (ScoreWeighted(floor=0.3), 4),
]
BIASED = [(SharedDraw(), 2), (IWAE(), 2), (NoiseAveraged(), 2)]
OUTCOMES = 4
POINTS = torch.tensor([-1.2, 0.1, 1.5], dtype=torch.float64)
MASSES = torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64)


def table(theta: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Logits (..., V) of a small model: nonlinear in the latent, 4 parameters."""
    levels = torch.linspace(-1.0, 1.0, OUTCOMES, dtype=theta.dtype)
    u = theta[0] + theta[1].exp() * z
    curve = torch.tanh(2.0 * u).unsqueeze(-1) * levels * theta[2]
    return curve + theta[3] * levels.square()


def start() -> torch.Tensor:
    return torch.tensor([0.2, -0.3, 1.4, 0.5], dtype=torch.float64)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def weights_and_groups(equation, q, i):
    """Return (weights (V,), indices of the differentiated draws) for residual i."""
    others = [j for j in range(len(q)) if j != i]
    if isinstance(equation, CentredIWAE) and equation.exact:
        others = [(i + step) % len(q) for step in range(1, equation.group + 1)]
    if isinstance(equation, Brier):
        return torch.ones(OUTCOMES, dtype=q.dtype), others
    mean = q[others].mean(0)
    if isinstance(equation, Power):
        return mean**-equation.gamma, others
    return 1.0 / mean, others


def psi_by_pairs(equation, theta, z, y):
    """The double loop over pairs of draws: sum_v w_v (1_Y - q_v(Z_i)) dq_v(Z_j)."""
    jacobian = torch.autograd.functional.jacobian(
        lambda t: table(t, z).softmax(-1), theta
    )
    q = table(theta, z).softmax(-1)
    hit = torch.nn.functional.one_hot(torch.tensor(y), OUTCOMES).to(q)
    psi = torch.zeros_like(theta)
    if isinstance(equation, ScoreWeighted):
        m = len(q) // 2
        weight = 1.0 / q[:m].mean(0).clamp_min(equation.floor)
        pairs = list(itertools.permutations(range(m, len(q)), 2))
        for i, j in pairs:
            psi += (weight * (hit - q[i])) @ jacobian[j] / len(pairs)
        return psi
    for i in range(len(q)):
        weight, others = weights_and_groups(equation, q, i)
        for j in others:
            psi += (weight * (hit - q[i])) @ jacobian[j] / (len(q) * len(others))
    return psi


@pytest.mark.parametrize(("equation", "draws"), UNBIASED)
def test_gradient_equals_double_loop_over_pairs(equation, draws):
    z = torch.randn(draws, dtype=torch.float64, generator=seeded(draws))
    for y in range(OUTCOMES):
        theta = start().requires_grad_()
        loss = equation.loss(table(theta, z).unsqueeze(1), torch.tensor([y]))
        (gradient,) = torch.autograd.grad(loss, theta)
        expected = psi_by_pairs(equation, start(), z, y)
        torch.testing.assert_close(-gradient, expected, rtol=EXACT, atol=1e-14)


@pytest.mark.parametrize(("equation", "draws"), UNBIASED + BIASED)
def test_surrogate_and_loss_have_the_same_gradient(equation, draws):
    z = torch.randn(draws, 7, dtype=torch.float64, generator=seeded(1))
    y = torch.arange(7) % OUTCOMES
    theta = start().requires_grad_()
    (direct,) = torch.autograd.grad(equation.loss(table(theta, z), y), theta)
    logits = table(theta, z)
    surrogate = equation.surrogate(logits, logits.detach(), y).mean()
    (copied,) = torch.autograd.grad(surrogate, theta)
    torch.testing.assert_close(direct, copied, rtol=EXACT, atol=1e-14)


def mean_psi_over_finite_latent(equation, draws, law=None):
    """Exact mean of psi over every tuple of latent points and every outcome.

    The true law of Y is the mixture at the evaluation point, unless given.
    """
    tuples = torch.tensor(list(itertools.product(range(3), repeat=draws)))
    mass = MASSES[tuples].prod(-1)
    truth = MASSES @ table(start(), POINTS).softmax(-1) if law is None else law
    theta = start().requires_grad_()
    logits = table(theta, POINTS[tuples].T)
    total = torch.zeros((), dtype=torch.float64)
    for y in range(OUTCOMES):
        targets = torch.full((len(tuples),), y)
        value = equation.surrogate(logits, logits.detach(), targets)
        total = total + truth[y] * (mass * value).sum()
    return -torch.autograd.grad(total, theta)[0]


@pytest.mark.parametrize(("equation", "draws"), UNBIASED)
def test_exact_mean_is_zero_at_the_truth(equation, draws):
    mean = mean_psi_over_finite_latent(equation, draws)
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-15)


@pytest.mark.parametrize(("equation", "draws"), BIASED)
def test_exact_mean_of_biased_equation_is_not_zero(equation, draws):
    assert mean_psi_over_finite_latent(equation, draws).abs().max() > 1e-3


def test_exact_mean_of_brier_is_the_population_gradient_away_from_the_truth():
    law = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    theta = start().requires_grad_()
    p = MASSES @ table(theta, POINTS).softmax(-1)
    (gradient,) = torch.autograd.grad((p.square().sum() / 2 - law @ p), theta)
    for draws in (2, 4):
        mean = mean_psi_over_finite_latent(Brier(), draws, law)
        torch.testing.assert_close(mean, -gradient, rtol=EXACT, atol=1e-15)


def test_weights_of_an_older_copy_equal_the_double_loop_and_have_mean_zero():
    """The copy is at another parameter; its draws are the last two of five."""
    equation, old = ScoreWeighted(lag=3), start() + 0.3
    z = torch.randn(5, dtype=torch.float64, generator=seeded(4))
    older = table(old, z[3:]).softmax(-1).mean(0)
    jacobian = torch.autograd.functional.jacobian(
        lambda t: table(t, z[:3]).softmax(-1), start()
    )
    q = table(start(), z[:3]).softmax(-1)
    law = MASSES @ table(start(), POINTS).softmax(-1)
    for y in range(OUTCOMES):
        hit = torch.nn.functional.one_hot(torch.tensor(y), OUTCOMES).to(q)
        expected = sum(
            ((hit - q[i]) / older) @ jacobian[j] / 6
            for i, j in itertools.permutations(range(3), 2)
        )
        theta = start().requires_grad_()
        moving = table(theta, z[:3]).unsqueeze(1)
        outside = table(old, z[3:]).unsqueeze(1)
        still = torch.cat([moving.detach(), outside])
        value = equation.surrogate(moving, still, torch.tensor([y]))
        (gradient,) = torch.autograd.grad(value.sum(), theta)
        torch.testing.assert_close(-gradient, expected, rtol=EXACT, atol=1e-14)
    total, theta = torch.zeros(()), start().requires_grad_()
    for pair in itertools.product(range(3), repeat=2):
        moving = table(theta, POINTS[list(pair)]).unsqueeze(1).expand(-1, OUTCOMES, -1)
        outside = table(old, z[3:]).unsqueeze(1).expand(-1, OUTCOMES, -1)
        still = torch.cat([moving.detach(), outside])
        value = equation.surrogate(moving, still, torch.arange(OUTCOMES))
        total = total + MASSES[list(pair)].prod() * (law @ value)
    (mean,) = torch.autograd.grad(total, theta)
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-15)


def simulated_t(equation, draws, n=40_000):
    """Largest |t| of the mean of psi at the truth, Gaussian latent."""
    generator = torch.Generator().manual_seed(20)
    x = torch.rand(n, generator=generator, dtype=torch.float64) * 2 - 1

    def logits(theta, z):
        return table(theta, x / theta[1].exp().detach() + z)

    truth = logits(start(), torch.randn(n, dtype=torch.float64, generator=generator))
    law = truth.softmax(-1)
    y = torch.multinomial(law, 1, generator=generator).squeeze(-1)
    z = torch.randn(draws, n, dtype=torch.float64, generator=generator)
    theta = start()
    still = logits(theta, z)
    columns = [
        torch.func.jvp(
            lambda t: equation.surrogate(logits(t, z), still, y), (theta,), (v,)
        )[1]
        for v in torch.eye(len(theta), dtype=torch.float64)
    ]
    psi = -torch.stack(columns, -1)
    return (psi.mean(0) / (psi.std(0) / n**0.5)).abs().max()


@pytest.mark.parametrize(("equation", "draws"), UNBIASED)
def test_simulated_mean_is_zero_at_the_truth(equation, draws):
    assert simulated_t(equation, draws) < 4


@pytest.mark.parametrize(("equation", "draws"), BIASED)
def test_simulated_mean_convicts_the_negative_controls(equation, draws):
    assert simulated_t(equation, draws) > 4


def test_leave_one_out_equals_explicit_means():
    log_q = torch.randn(6, 5, dtype=torch.float64, generator=seeded(3))
    for i in range(6):
        rest = [j for j in range(6) if j != i]
        expected = log_q[rest].exp().mean(0).log()
        torch.testing.assert_close(
            leave_one_out(log_q)[i], expected, rtol=EXACT, atol=1e-14
        )


def test_leave_one_out_survives_float32_where_subtraction_cancels():
    log_q = torch.tensor([[-1e-3], [-40.0], [-41.0]])
    q = log_q.exp()
    assert (q.sum(0) - q[0]).item() == 0.0  # the naive form loses the rest entirely
    expected = torch.logaddexp(log_q[1], log_q[2]) - torch.log(torch.tensor(2.0))
    torch.testing.assert_close(leave_one_out(log_q)[0], expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("equation", [e for e, _ in UNBIASED + BIASED])
def test_half_precision_is_raised_and_padding_is_left_out(equation):
    logits = torch.randn(6, 3, OUTCOMES, generator=seeded(0))
    y = torch.tensor([1, IGNORED, 3])
    kept = equation.loss(logits[:, [0, 2]], y[[0, 2]])
    torch.testing.assert_close(equation.loss(logits, y), kept)
    assert equation.loss(logits.bfloat16(), y).dtype == torch.float32


@pytest.mark.parametrize(
    ("equation", "draws"), [(Brier(), 1), (CentredIWAE(), 4), (ScoreWeighted(), 2)]
)
def test_too_few_draws_are_refused(equation, draws):
    with pytest.raises(ValueError, match=rf"`draws` is {draws}.*needs at least"):
        equation.loss(torch.zeros(draws, 2, 3), torch.zeros(2, dtype=torch.long))


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="`gamma` is 2"):
        Power(2.0)
    with pytest.raises(ValueError, match="`group` is 0"):
        CentredIWAE(group=0)
    with pytest.raises(ValueError, match="`floor` is 0"):
        ScoreWeighted(floor=0.0)
    with pytest.raises(ValueError, match="`base` is itself a Split"):
        Split(base=Split(Brier(), Brier()), perturbation=Brier())
    with pytest.raises(ValueError, match=r"expected \(K, ..., V\)"):
        Brier().loss(torch.zeros(2, 5, 3), torch.zeros(4, dtype=torch.long))
    with pytest.raises(DataError, match="no observed token"):
        Brier().loss(torch.zeros(2, 1, 3), torch.tensor([IGNORED]))
    with pytest.raises(CapabilityError, match="no single loss"):
        Split(NoiseAveraged(), Brier()).loss(torch.zeros(2, 1, 3), torch.tensor([0]))


def test_equations_are_values():
    assert Split(NoiseAveraged(), Brier()) == Split(NoiseAveraged(), Brier())
    assert hash(Power(0.5)) == hash(Power(0.5))
    assert repr(CentredIWAE()) == "CentredIWAE(group=4)"
    assert repr(CentredIWAE(2, exact=True)) == "CentredIWAE(group=2, exact=True)"
    assert repr(ScoreWeighted(lag=9)) == "ScoreWeighted(floor=1e-06, lag=9)"
    assert Split(NoiseAveraged(), CentredIWAE()).smallest_draws == 5
    assert not Split(NoiseAveraged(), Brier()).is_unbiased


def test_second_derivatives_stay_finite_for_tiny_probabilities():
    logits = torch.tensor([[0.0, -900.0], [0.0, -2000.0], [0.0, -50.0]])
    logits = logits.double().unsqueeze(1).requires_grad_()
    value = CentredIWAE(group=1).surrogate(logits, logits, torch.tensor([1]))
    (slope,) = torch.autograd.grad(value.sum(), logits, create_graph=True)
    (bend,) = torch.autograd.grad(slope.square().sum(), logits)
    assert torch.isfinite(slope).all()
    assert torch.isfinite(bend).all()
