"""psi and A against loops and differences; infer against known standard deviations."""

import importlib

import numpy as np
import pytest
import torch
from tolerances import DERIVATIVE, EXACT
from transformers import GPT2Config, GPT2LMHeadModel

from eestim.errors import CapabilityError, DataError, IdentificationError
from eestim.llm.base import byte_model, byte_tokenizer
from eestim.llm.documents import Documents
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
from eestim.llm.inference import infer, squared_size
from eestim.llm.perturbations import Additive, ContextMLP, Gated, LowRank
from eestim.llm.prefix import LatentPrefixLM
from eestim.llm.scores import parameter_names, scores
from eestim.llm.sensitivities import sensitivity
from eestim.llm.synthetic import BinaryModel, binary_data

SCORES = importlib.import_module("eestim.llm.scores")  # `scores` shadows its module
RULES = importlib.import_module("eestim.llm.score_rules")
ALL = {"parameters": "all", "batch_size": 50}
EQUATIONS = [
    Brier(),
    Power(0.5),
    CentredIWAE(group=3),
    ScoreWeighted(floor=0.2),
    NoiseAveraged(),
    SharedDraw(),
    IWAE(),
    Split(NoiseAveraged(), Brier()),
]
TEXTS = ["seven wild foxes ran past the barn", "ten quiet owls sat there", "a big dog"]


def documents():
    return Documents.from_texts(TEXTS, byte_tokenizer(), 16)


def llama(perturbation):
    return LatentPrefixLM(byte_model(16, width=16, layers=1, heads=2), perturbation)


def double_gpt2(perturbation):
    """A model without float32 norms, so that differences of psi are accurate."""
    config = GPT2Config(
        vocab_size=259, n_positions=16, n_embd=8, n_layer=1, n_head=2,
        bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(1)
        base = GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.mul_(5.0)
    return LatentPrefixLM(base.double(), perturbation.double())


@pytest.mark.parametrize("equation", EQUATIONS)
def test_forward_scores_equal_the_loop(equation):
    model, data = BinaryModel(), binary_data(30, 0)
    forward = scores(model, data, equation, draws=4, method="forward", **ALL)
    loop = scores(model, data, equation, draws=4, method="loop", **ALL)
    assert forward.shape == (30, 3)
    np.testing.assert_allclose(forward, loop, rtol=EXACT, atol=1e-15)


@pytest.mark.parametrize(
    "perturbation",
    [
        Additive(16),
        LowRank(16, 2),
        LowRank(16, 2, held=True),
        Gated(16, 2),
        ContextMLP(16, 2, hidden=3),
    ],
)
def test_two_stage_scores_equal_the_loop(perturbation):
    model = llama(perturbation)
    for equation in (Brier(), CentredIWAE(group=3), Split(NoiseAveraged(), Brier())):
        staged = scores(model, documents(), equation, draws=4)
        loop = scores(model, documents(), equation, draws=4, method="loop")
        assert staged.shape == (3, perturbation.n_parameters)
        scale = np.abs(loop).max()
        np.testing.assert_allclose(staged, loop, rtol=0, atol=1e-5 * scale)
        other = scores(model, documents(), equation, draws=4, seed=1)
        assert np.abs(other - loop).max() > 1e-2 * scale  # the control


@pytest.mark.parametrize("base", ["Llama, tied", "Llama, untied", "GPT-2, tied"])
def test_mapped_scores_of_all_parameters_equal_the_loop(base, monkeypatch):
    """Tied weights are one parameter, whose psi adds both of its uses."""
    if base == "GPT-2, tied":
        model = double_gpt2(Gated(8, 2, size=0.7))
        tolerance = EXACT
    else:
        model, tolerance = llama(LowRank(16, 2)), 1e-5
        if base == "Llama, untied":
            inner = model.base
            inner.lm_head.weight = torch.nn.Parameter(inner.lm_head.weight.clone())
    count = sum(p.numel() for p in model.parameters())
    for equation in (Brier(), Split(NoiseAveraged(), CentredIWAE(group=2))):
        options = {"draws": 3, "parameters": "all"}
        loop = scores(model, documents(), equation, method="loop", **options)
        mapped = scores(model, documents(), equation, **options)
        with monkeypatch.context() as patch:
            patch.setattr(RULES, "_LARGEST_CHUNK", 1.0)  # one row at a time
            chunked = scores(model, documents(), equation, **options)
        assert mapped.shape == (3, count)
        size = np.abs(loop).max()
        np.testing.assert_allclose(mapped, loop, rtol=0, atol=tolerance * size)
        np.testing.assert_allclose(chunked, loop, rtol=0, atol=tolerance * size)
        assert np.abs(mapped[[1, 2, 0]] - loop).max() > 0.1 * size  # the control


def test_psi_that_does_not_fit_is_refused(monkeypatch):
    monkeypatch.setattr(SCORES, "_LARGEST_TABLE", 1e5)
    with pytest.raises(DataError, match=r"0\.0 GB; use `infer\(.*matrix-free"):
        scores(llama(LowRank(16, 2)), documents(), draws=3, parameters="all")


def test_scores_add_up_to_the_gradient_of_the_loss():
    model, data = BinaryModel(), binary_data(20, 0)
    model.zero_grad()
    from eestim.llm.training import step_generator

    batch = data.batch(np.arange(20))
    logits = model.draw_logits(batch, 4, step_generator(0, 0, 2))
    Brier().loss(logits, model.targets(batch)).backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
    psi = scores(model, data, Brier(), draws=4, **ALL)
    np.testing.assert_allclose(-psi.mean(0), gradient.numpy(), rtol=1e-12)


def differences(model, data, equation, step=1e-5, **options):
    """A by central differences of psi itself, the draws held fixed."""
    entries = []
    targets = [
        p
        for n, p in model.named_parameters()
        if options.get("parameters") == "all" or n.startswith("perturbation.")
    ]
    for parameter in targets:
        flat = parameter.data.view(-1)
        for index in range(len(flat)):
            sides = []
            for sign in (1, -1):
                flat[index] += sign * step
                sides.append(scores(model, data, equation, **options).mean(0))
                flat[index] -= sign * step
            entries.append(-(sides[0] - sides[1]) / (2 * step))
    return np.stack(entries, axis=1)


@pytest.mark.parametrize("equation", EQUATIONS)
def test_sensitivity_is_the_derivative_of_psi(equation):
    model, data = BinaryModel(), binary_data(40, 0)
    exact = sensitivity(model, data, equation, draws=4, **ALL)
    numeric = differences(model, data, equation, draws=4, **ALL)
    np.testing.assert_allclose(
        exact, numeric, rtol=DERIVATIVE, atol=1e-8 * np.abs(exact).max()
    )


def test_sensitivity_of_a_language_model_is_the_derivative_of_psi():
    model = double_gpt2(Gated(8, 2, size=0.7))
    data = documents()
    for equation in (Brier(), CentredIWAE(group=2)):
        exact = sensitivity(model, data, equation, draws=3)
        numeric = differences(model, data, equation, draws=3)
        np.testing.assert_allclose(
            exact, numeric, rtol=1e-5, atol=1e-6 * np.abs(exact).max()
        )


def test_second_derivative_of_the_stopped_surrogate_is_not_the_sensitivity():
    """The negative control: leaving the still copy out gives another matrix."""
    model, data = BinaryModel(), binary_data(4000, 0)
    whole = {"parameters": "all", "batch_size": 4000, "draws": 5}
    exact = sensitivity(model, data, CentredIWAE(), **whole)
    expected = sensitivity(model, data, CentredIWAE(), kind="expected", **whole)
    stopped = exact - expected  # what the stopped surrogate's second derivative gives
    assert np.abs(stopped).max() < 0.25 * np.abs(exact).max()
    assert np.abs(expected - exact).max() < 0.25 * np.abs(exact).max()


def test_expected_form_agrees_in_the_mean_at_a_correct_model():
    """The gap shrinks like the root of n; at a wrong model it stays."""
    whole = {"parameters": "all", "batch_size": 20_000, "draws": 32}

    def gap(model):
        data = binary_data(60_000, 2)
        observed = sensitivity(model, data, Brier(), **whole)
        expected = sensitivity(model, data, Brier(), kind="expected", **whole)
        return np.abs(observed - expected).max() / np.abs(expected).max()

    assert gap(BinaryModel()) < 0.06
    assert gap(BinaryModel(a=1.5)) > 0.2


def s(model):
    return model.perturbation.log_scale.exp()


def log_s(model):
    return model.perturbation.log_scale


@pytest.mark.parametrize(
    ("equation", "draws", "passes", "reference"),
    [
        (Brier(), 2, 1, 17.81),  # K = 2 draws used once
        (Brier(), 8, 1, 9.61),
        (Brier(), 8, 4, (6.01**2 + (9.61**2 - 6.01**2) / 4) ** 0.5),
        (CentredIWAE(group=1), 2, 1, 16.71),
    ],
)
def test_standard_error_equals_the_asymptotic_reference(
    equation, draws, passes, reference
):
    n = 60_000
    fit = infer(
        BinaryModel(), binary_data(n, 4), log_s, equation, draws=draws, passes=passes,
        kind="expected", parameters="all", batch_size=20_000, names=("log s",),
    )  # fmt: skip
    assert fit.se.iloc[0] * n**0.5 == pytest.approx(reference, rel=0.06)
    assert fit.n_units == n


def test_latent_share_of_the_variance_is_reported():
    fit = infer(
        BinaryModel(), binary_data(20_000, 4), s, Brier(), draws=8, passes=2,
        kind="expected", parameters="all", batch_size=20_000,
    )  # fmt: skip
    found = {f.name: f.value for f in fit.findings}
    between = (9.61**2 - 6.01**2) / 2
    share = between / (between + 6.01**2)
    assert found["latent share"] == pytest.approx(share, abs=0.06)
    # s = 0.5, so the variance of s is that of log s over 4
    assert found["V_data"] * 4 * 20_000 == pytest.approx(6.01**2, rel=0.12)
    assert found["V_latent"] * 4 * 20_000 == pytest.approx(between, rel=0.12)
    total = found["V_data"] + found["V_latent"]
    assert fit.se.iloc[0] ** 2 == pytest.approx(total, rel=EXACT)
    assert fit.names == ("s",)


def test_size_of_a_low_rank_perturbation_is_estimable_and_entries_are_not():
    model = llama(LowRank(16, 2, size=1.0))
    data = Documents.from_texts(
        [
            f"{t} and {u}"
            for t in TEXTS
            for u in ("one", "two", "three", "four", "five")
        ],
        byte_tokenizer(),
        16,
    )
    fit = infer(model, data, squared_size, draws=4)
    assert fit.theta[0] == pytest.approx(1.0)
    assert fit.se.iloc[0] > 0
    with pytest.raises(IdentificationError, match=r"not estimable: .*rotations"):
        infer(model, data, lambda m: m.perturbation.directions[0, 0], draws=4)
    with pytest.raises(IdentificationError, match="does not depend"):
        infer(model, data, lambda m: 0.0 * m.perturbation.directions.sum(), draws=4)


def test_names_follow_the_columns():
    assert parameter_names(BinaryModel(), "all") == ("a", "b", "log_scale[0]")
    names = parameter_names(llama(Gated(16, 2)))
    assert len(names) == 48
    assert names[1] == "directions[0,1]"
    assert names[-1] == "gate[15]"


def test_bad_arguments_are_refused():
    model, data = BinaryModel(), binary_data(10, 0)
    with pytest.raises(ValueError, match="`draws` is 1"):
        scores(model, data, draws=1)
    with pytest.raises(ValueError, match="`passes` is 0"):
        scores(model, data, passes=0)
    with pytest.raises(ValueError, match="`parameters` is 'some'"):
        scores(model, data, parameters="some")
    with pytest.raises(ValueError, match="`method` is 'fast'"):
        scores(model, data, method="fast")
    with pytest.raises(ValueError, match="`kind` is 'exact'"):
        sensitivity(model, data, kind="exact")
    with pytest.raises(CapabilityError, match="slope of a loss"):
        sensitivity(model, data, IWAE(), kind="expected")
    for method in ("two-stage", "mapped"):
        with pytest.raises(CapabilityError, match="needs a LatentPrefixLM"):
            scores(model, data, method=method)
    with pytest.raises(DataError, match="has no perturbation"):
        scores(BinaryModel(scale=None), data)
    with pytest.raises(DataError, match="the dense form holds at most"):
        sensitivity(llama(LowRank(16, 2)), documents(), parameters="all")
    with pytest.raises(ValueError, match="`sets` is 1"):
        infer(model, data, s, sets=1, **ALL)
    with pytest.raises(ValueError, match="`passes` 0"):
        infer(model, data, s, passes=0, **ALL)
    with pytest.raises(ValueError, match="`method` is 'fast'"):
        infer(model, data, s, method="fast", **ALL)
