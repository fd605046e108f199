"""One latent per sequence: exact expectations over every sequence and draw."""

import itertools

import pytest
import torch
from test_latent_equations import MASSES, POINTS, seeded, start
from tolerances import EXACT

from eestim.errors import CapabilityError
from eestim.llm.base import byte_model, byte_tokenizer
from eestim.llm.equations import Brier, CentredIWAE, Split
from eestim.llm.perturbations import LowRank
from eestim.llm.prefix import LatentPrefixLM
from eestim.llm.randomness import unit_generators
from eestim.llm.replicates import replicated
from eestim.llm.sequences import SequenceCentred, SequenceContrast, SequenceIWAE
from eestim.llm.surrogates import IGNORED
from eestim.llm.synthetic import BinaryModel, binary_data
from eestim.llm.training import fit

LENGTH, TOKENS = 3, 3
EVERY = torch.tensor(list(itertools.product(range(TOKENS), repeat=LENGTH)))


def chain(theta, z, y):
    """Logits (K, B, T, V) of tokens that read the previous one and one latent each.

    z (K, B), y (B, T).
    """
    levels = torch.linspace(-1.0, 1.0, TOKENS, dtype=theta.dtype)
    last = torch.cat([torch.zeros(len(y), 1, dtype=torch.long), y[:, :-1]], 1)
    u = theta[0] + theta[1].exp() * z.unsqueeze(-1) + 0.4 * (last - 1)
    curve = torch.tanh(2.0 * u).unsqueeze(-1) * levels * theta[2]
    return curve + theta[3] * levels.square()


def joint(theta, z, y):
    """Probabilities (K, B) of whole sequences given their latents."""
    q = chain(theta, z, y).log_softmax(-1)
    place = y.expand(q.shape[:-1]).unsqueeze(-1)
    return q.gather(-1, place).squeeze(-1).sum(-1).exp()


def law(theta=None):
    """Exact probabilities of every sequence."""
    theta = start() if theta is None else theta
    z = POINTS.unsqueeze(1).expand(-1, len(EVERY))
    return MASSES @ joint(theta, z, EVERY)


def test_the_law_is_one():
    torch.testing.assert_close(law().sum().item(), 1.0, rtol=EXACT, atol=0)


def psi_by_loops(theta, z, y):
    """SequenceCentred written out, position by position."""
    jacobian = torch.autograd.functional.jacobian
    q = chain(theta, z.unsqueeze(1), y.unsqueeze(0))[:, 0].softmax(-1)
    psi, draws = torch.zeros_like(theta), len(z)
    for t in range(LENGTH):

        def with_past(parameters, t=t):
            """prod_{s<t} q_s(y_s) q_t(v), (K, V)."""
            law = chain(parameters, z.unsqueeze(1), y.unsqueeze(0))[:, 0].softmax(-1)
            past = torch.ones(draws, dtype=law.dtype)
            for s in range(t):
                past = past * law[:, s, y[s]]
            return past.unsqueeze(-1) * law[:, t]

        value, slope = with_past(theta), jacobian(with_past, theta)
        past = value.sum(-1)
        for i in range(draws):
            rest = [j for j in range(draws) if j != i]
            score = slope[rest].sum(0) / value[rest].sum(0).unsqueeze(-1)
            residual = -q[i, t].clone()
            residual[y[t]] += 1
            psi += past[i] / past[rest].mean() * (residual @ score) / draws
    return psi


@pytest.mark.parametrize("draws", [2, 3, 4])
def test_exact_product_form_equals_the_explicit_loops(draws):
    z = torch.randn(draws, dtype=torch.float64, generator=seeded(draws))
    for y in EVERY[::5]:
        theta = start().requires_grad_()
        logits = chain(theta, z.unsqueeze(1), y.unsqueeze(0))
        value = SequenceCentred().surrogate(logits, logits.detach(), y.unsqueeze(0))
        (slope,) = torch.autograd.grad(value.sum(), theta)
        torch.testing.assert_close(
            -slope, psi_by_loops(start(), z, y), rtol=1e-10, atol=1e-13
        )


def mean_psi(equation, draws):
    """Exact mean of psi over every sequence and every tuple of latent points."""
    tuples = torch.tensor(list(itertools.product(range(3), repeat=draws)))
    theta, total, p = start().requires_grad_(), 0.0, law()
    for points in tuples:
        z = POINTS[points].unsqueeze(1).expand(-1, len(EVERY))
        logits = chain(theta, z, EVERY)
        value = equation.surrogate(logits, logits.detach(), EVERY).sum(-1)
        total = total + MASSES[points].prod() * (p @ value)
    return -torch.autograd.grad(total, theta)[0]


@pytest.mark.parametrize("draws", [2, 3])
def test_exact_mean_of_the_product_form_is_zero_at_the_truth(draws):
    mean = mean_psi(SequenceCentred(), draws)
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-14)


@pytest.mark.parametrize("equation", [SequenceIWAE(), CentredIWAE(1), Brier()])
def test_controls_sequence_iwae_and_equations_by_position_are_biased(equation):
    assert mean_psi(equation, 2).abs().max() > 1e-3


def test_sequence_iwae_is_the_log_mean_of_the_joint():
    z = torch.randn(4, len(EVERY), dtype=torch.float64, generator=seeded(1))
    logits = chain(start(), z, EVERY)
    value = SequenceIWAE().surrogate(logits, logits, EVERY).sum(-1)
    expected = -joint(start(), z, EVERY).mean(0).log()
    torch.testing.assert_close(value, expected, rtol=EXACT, atol=0)


def mean_of_contrast(made_at):
    """Exact mean over pairs (Y, Y') and two draws for each; Y' from `made_at`."""
    pairs = torch.tensor(list(itertools.product(range(27), repeat=2)))
    p, made = law(), law(made_at)
    chance = p[pairs[:, 0]] * made[pairs[:, 1]]
    theta, total = start().requires_grad_(), 0.0
    for four in itertools.product(range(3), repeat=4):
        points = torch.tensor(four).view(2, 2)  # (K, observed or made)
        z = POINTS[points]
        logits = torch.stack(
            [
                chain(theta, z[:, [side]].expand(-1, len(pairs)), EVERY[pairs[:, side]])
                for side in (0, 1)
            ],
            2,
        )
        targets = EVERY[pairs]
        value = SequenceContrast().surrogate(logits, logits.detach(), targets)
        total = total + MASSES[points].prod() * (chance @ value.sum((-1, -2)))
    return -torch.autograd.grad(total, theta)[0]


def test_exact_mean_of_the_contrast_is_zero_when_the_model_makes_the_replicates():
    mean = mean_of_contrast(start())
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-14)
    assert mean_of_contrast(start() + 0.2).abs().max() > 1e-3  # another law


def test_padding_is_left_out():
    z = torch.randn(3, 2, dtype=torch.float64, generator=seeded(8))
    y = torch.tensor([[0, 2, 1], [1, 1, 0]])
    logits = chain(start(), z, y)
    short = y.clone()
    short[:, 2] = IGNORED
    for equation in (SequenceCentred(), SequenceIWAE()):
        cut = equation.surrogate(logits[:, :, :2], logits[:, :, :2], y[:, :2])
        padded = equation.surrogate(logits, logits, short)
        torch.testing.assert_close(padded[:, :2], cut)
        assert (padded[:, 2] == 0).all()


def prefix_model():
    base = byte_model(12, width=16, layers=1, heads=2)
    return LatentPrefixLM(
        base, LowRank(16, rank=2, size=2.0), byte_tokenizer(), latent="sequence"
    )


def test_replicates_keep_first_token_and_length_and_follow_the_model():
    model = prefix_model()
    with torch.no_grad():  # a law far from uniform
        for p in model.base.parameters():
            p.mul_(3.0)
    ids = torch.randint(3, 259, (1, 4), generator=seeded(0)).expand(6000, 4)
    pair = replicated(model, ids, seeded(1))
    made = pair.input_ids[1::2]
    assert torch.equal(pair.input_ids[::2], ids)
    assert torch.equal(made[:, 0], ids[:, 0])
    assert torch.equal(pair.targets[1::2, :-1], made[:, 1:])
    assert (pair.targets[1::2, -1] == IGNORED).all()
    p = model.draw_logits(ids[:1], 6000, seeded(2))[:, 0, 0].softmax(-1).mean(0)
    top = int(p.argmax())
    share = (made[:, 1] == top).double().mean()
    bound = 4 * (2 * p[top] * (1 - p[top]) / 6000) ** 0.5
    assert abs(share - p[top]) < bound
    other = replicated(
        model, ids[:3], unit_generators(model, 0, 0, torch.arange(3).numpy())
    )
    again = replicated(
        model, ids[:3], unit_generators(model, 0, 0, torch.arange(3).numpy())
    )
    assert torch.equal(other.input_ids, again.input_ids)


@pytest.mark.parametrize("equation", [SequenceCentred(), SequenceContrast()])
def test_fit_takes_sequence_equations_the_same_however_rows_are_split(equation):
    texts = ["one two three four five six", "seven eight nine ten eleven"]
    found = []
    for parts in (1, 2):
        model = prefix_model().double()
        fit(
            model, texts, equation, draws=3, steps=4, batch_size=4, warmup=1,
            optimizer="sgd", learning_rate=0.1, accumulate=parts,
        )  # fmt: skip
        found.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    start = torch.cat([p.flatten() for p in prefix_model().double().parameters()])
    assert not torch.equal(found[0], start)
    torch.testing.assert_close(*found, rtol=0, atol=1e-10)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"has 3 positions.*use SequenceContrast"):
        SequenceCentred(longest=2).loss(torch.zeros(2, 1, 3, 3), EVERY[:1])
    with pytest.raises(ValueError, match=r"expected \(\.\.\., 2, T\)"):
        SequenceContrast().loss(torch.zeros(2, 1, 3, 3), EVERY[:1])
    with pytest.raises(ValueError, match="whose rows come in pairs"):
        Split(base=SequenceContrast(), perturbation=Brier())
    with pytest.raises(CapabilityError, match="`equation` needs sequences made"):
        fit(BinaryModel(), binary_data(9, 0), SequenceContrast(), draws=2, steps=1)
