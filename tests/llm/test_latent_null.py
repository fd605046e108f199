"""Tests of "no perturbation": size and power by simulation, the score by quadrature."""

import numpy as np
import pytest
import torch
from scipy import optimize

from eestim.errors import CapabilityError
from eestim.llm.base import byte_model, byte_tokenizer
from eestim.llm.documents import Documents
from eestim.llm.equations import Brier
from eestim.llm.inference import infer
from eestim.llm.null_test import no_perturbation, projected
from eestim.llm.perturbations import Additive, LowRank
from eestim.llm.prefix import LatentPrefixLM
from eestim.llm.synthetic import Pairs


class Choice(torch.nn.Module):
    """Logits x_j' (beta + s Z) of five alternatives: a random-coefficient logit."""

    def __init__(self, beta=0.0, dimension=1):
        super().__init__()
        value = torch.as_tensor(beta, dtype=torch.float64).expand(dimension).clone()
        self.beta = torch.nn.Parameter(value)
        self.perturbation = LowRank(dimension, dimension, size=1.0).double()
        with torch.no_grad():
            self.perturbation.directions.copy_(torch.eye(dimension))

    def embed(self, batch):
        return self.beta.expand(len(batch[0]), 1, -1)

    def latents(self, states, draws, generator, batch=None):
        shape = (draws, *states.shape)
        return torch.randn(shape, generator=generator, dtype=states.dtype)

    def perturb(self, states, latents, batch=None):
        return self.perturbation(states, latents)

    def logits_of(self, moved, batch=None):
        return torch.einsum("kbtd,bvd->kbtv", moved, batch[0])

    def draw_logits(self, batch, draws, generator):
        states = self.embed(batch)
        return self.logits_of(self.latents(states, draws, generator) + states, batch)

    def targets(self, batch):
        return batch[1]


def choices(n, seed, beta=0.5, scale=0.0, dimension=1):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 5, dimension))
    coefficient = beta + scale * rng.standard_normal((n, 1, dimension))
    utility = (x * coefficient).sum(-1) + rng.gumbel(size=(n, 5))
    y = torch.as_tensor(utility.argmax(1))[:, None]
    return Pairs(torch.as_tensor(x), y)


def fitted(data):
    """Return the maximum likelihood beta of the plain logit (one coefficient)."""
    x, y = data.x[..., 0].numpy(), data.y[:, 0].numpy()

    def score(beta):
        q = np.exp(beta * x)
        q /= q.sum(1, keepdims=True)
        return (x[np.arange(len(x)), y] - (q * x).sum(1)).sum()

    return optimize.brentq(score, -5, 5)


def one_test(seed, scale, base):
    n = 400
    data = choices(n, seed, scale=scale)
    beta = fitted(data) if base == "estimated" else 0.5
    return no_perturbation(Choice(beta), data, base=base, draws=1, batch_size=n)


@pytest.mark.parametrize("base", ["known", "estimated"])
def test_one_sided_score_has_its_size_and_power(base):
    """At 5%; with the base estimated only its projection keeps the size."""
    runs = 300 if base == "known" else 120
    null = [one_test(seed, 0.0, base) for seed in range(runs)]
    size = np.mean([t.p < 0.05 for t in null])
    assert abs(size - 0.05) <= 4 * (0.05 * 0.95 / runs) ** 0.5
    assert abs(np.mean([t.statistic == 0 for t in null]) - 0.5) <= 4 * 0.5 / runs**0.5
    power = np.mean([one_test(seed, 0.8, base).p < 0.05 for seed in range(40)])
    assert power > 0.5  # the control: a perturbation that is there is found


def test_score_is_the_derivative_of_the_marginal_likelihood_in_the_variance():
    """By Gauss-Hermite quadrature and a small variance."""
    data, tau = choices(50, 3), 1e-3
    z, weight = np.polynomial.hermite_e.hermegauss(20)
    x, y = data.x[..., 0].numpy(), data.y[:, 0].numpy()

    def likelihood(size):
        eta = x[:, None, :] * (0.5 + size * z)[:, None]
        q = np.exp(eta - eta.max(-1, keepdims=True))
        q /= q.sum(-1, keepdims=True)
        return np.log(q[np.arange(50), :, y] @ weight / weight.sum())

    slope = (likelihood(tau**0.5) - likelihood(0.0)) / tau
    found = no_perturbation(Choice(0.5), data, draws=1)
    expected = slope.mean() * 50**0.5 / slope.std()
    assert found.score == pytest.approx(expected, abs=5e-3)


def test_null_of_two_directions_is_simulated_not_a_mixture():
    """P(statistic = 0) is that of a score matrix without positive eigenvalues.

    For an isotropic score it is 0.146, not the quarter of a half-half mixture.
    """
    rng = np.random.default_rng(0)
    spread = np.zeros((4, 4))
    spread[0, 0] = spread[3, 3] = 0.5
    spread[1:3, 1:3] = 0.25
    root = np.linalg.cholesky(spread + 1e-12 * np.eye(4))
    scores = (rng.standard_normal((4000, 4)) @ root.T).reshape(-1, 2, 2)
    scores = (scores + scores.transpose(0, 2, 1)) / 2
    at_zero = np.mean(projected(scores, spread) == 0)
    assert abs(at_zero - 0.146) <= 4 * (0.146 * 0.854 / 4000) ** 0.5
    assert abs(at_zero - 0.25) > 4 * (0.25 * 0.75 / 4000) ** 0.5  # the control


def test_projection_on_the_cone_equals_a_general_optimiser():
    rng = np.random.default_rng(1)
    half = rng.standard_normal((9, 3, 3))
    half = (half + half.transpose(0, 2, 1)).reshape(9, 9)
    spread = half.T @ half / 9 + 0.1 * np.eye(9)
    spread = spread.reshape(3, 3, 3, 3)
    spread = (spread + spread.transpose(1, 0, 2, 3)) / 2
    spread = ((spread + spread.transpose(0, 1, 3, 2)) / 2).reshape(9, 9)
    S = rng.standard_normal((5, 3, 3))
    S = (S + S.transpose(0, 2, 1)) / 2
    found = projected(S, spread)
    for score, value in zip(S, found, strict=True):

        def minus(entries, score=score):
            L = np.zeros((3, 3))
            L[np.tril_indices(3)] = entries
            B = (L @ L.T).ravel()
            return B @ spread @ B - 2 * score.ravel() @ B

        best = min(
            optimize.minimize(minus, rng.standard_normal(6), tol=1e-12).fun
            for _ in range(4)
        )
        assert value == pytest.approx(max(-best, 0.0), rel=1e-4, abs=1e-6)


def test_span_of_two_coefficients_finds_a_perturbation():
    absent = choices(300, 5, dimension=2)
    found = no_perturbation(Choice(0.5, 2), absent, of="span", draws=1, batch_size=300)
    assert found.null == "simulated"
    assert found.p > 0.05
    assert 0.03 < found.at_zero < 0.45
    present = choices(300, 5, scale=1.5, dimension=2)
    hit = no_perturbation(Choice(0.5, 2), present, of="span", draws=1, batch_size=300)
    assert hit.p < 0.01


def test_language_models_are_tested_by_document():
    model = LatentPrefixLM(
        byte_model(16, width=8, layers=1, heads=2), LowRank(8, 2, size=1.0)
    )
    texts = [
        f"{a} {b}" for a in ("red", "green", "blue") for b in ("fox", "owl", "dog")
    ]
    data = Documents.from_texts(texts, byte_tokenizer(), 8)
    found = no_perturbation(model, data, draws=2)
    assert found.n_units == 9
    assert 0 < found.p < 1
    with pytest.raises(CapabilityError, match="at most 500 can be projected out"):
        no_perturbation(model, data, base="estimated")
    model.perturbation = Additive(8)
    with pytest.raises(CapabilityError, match="8 latent coordinates"):
        no_perturbation(model, data, of="span")
    with pytest.raises(ValueError, match="`of` is 'all'"):
        no_perturbation(model, data, of="all")


class Random(Choice):
    """The same with the scale of its perturbation."""

    def draw_logits(self, batch, draws, generator):
        states = self.embed(batch)
        latents = self.latents(states, draws, generator)
        return self.logits_of(self.perturb(states, latents), batch)


@pytest.mark.parametrize(
    ("n", "scale", "status"), [(300, 0.3, "warn"), (3000, 1.2, "pass")]
)
def test_infer_says_where_a_size_is_too_near_zero_for_its_interval(n, scale, status):
    model = Random(beta=0.5)
    with torch.no_grad():
        model.perturbation.directions.fill_(scale)
    fit = infer(model, choices(n, 4, scale=scale), equation=Brier(), draws=8)
    (found,) = [f for f in fit.spread.findings if f.name == "size of the perturbation"]
    assert found.status == status
    expected = np.asarray(fit.theta)[0] / np.asarray(fit.se)[0]
    assert found.value == pytest.approx(expected)
    assert ("no_perturbation" in found.advice) is (status == "warn")
