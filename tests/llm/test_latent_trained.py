"""psi of what is trained: adapters, a frozen part; what a unit may be."""

import copy
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from latent_families import WIDTH, gpt2, llama
from tolerances import EXACT

import eestim.llm as lm
from eestim.errors import DataError, InferenceError
from eestim.llm.baselines import with_lora
from eestim.llm.invariances import orbit_of
from eestim.llm.parameters import chosen, parameter_names
from eestim.llm.protocols import split_parameters
from eestim.llm.randomness import step_generator
from eestim.llm.synthetic import BinaryModel, binary_data
from eestim.llm.variance_split import split_variance

TOKENIZER = lm.byte_tokenizer()
TEXTS = [f"text number {n}, of {n * n} words in two rows or three" for n in range(4)]
EQUATIONS = [
    lm.Brier(),
    lm.CentredIWAE(group=2),
    lm.Split(lm.NoiseAveraged(), lm.Brier()),
]


def documents(texts=TEXTS):
    return lm.Documents.from_texts(texts, TOKENIZER, 24)


def adapted(family=gpt2):
    """A base with adapters that do something: peft starts one of each pair at 0."""
    base = with_lora(family(layers=2), rank=2)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, p in base.named_parameters():
            if "lora_B" in name:
                p.copy_(0.1 * torch.randn(p.shape, generator=generator))
    return lm.LatentPrefixLM(base, lm.LowRank(WIDTH, 2), TOKENIZER).double()


@pytest.mark.parametrize("family", [gpt2, llama])
@pytest.mark.parametrize("equation", EQUATIONS)
def test_scores_of_adapters_equal_the_loop_and_the_gradient(family, equation):
    """Two oracles: one backward pass a row, and the sum over rows in one pass."""
    model, data = adapted(family), documents()
    base, phi = split_parameters(model)
    options = {"draws": 3, "parameters": "trained", "batch_size": 64}
    found = lm.scores(model, data, equation, **options)
    assert found.shape == (4, sum(p.numel() for p in (base | phi).values()))
    assert all("lora" in name for name in base)
    loop = lm.scores(model, data, equation, method="loop", **options)
    # Norms of a Llama compute in float32 whatever the model's dtype.
    tolerance = EXACT if family is gpt2 else 1e-5
    scale = np.abs(loop).max()
    np.testing.assert_allclose(found, loop, rtol=0, atol=tolerance * scale)
    assert np.abs(found[[1, 2, 3, 0]] - loop).max() > 0.1 * scale  # the control

    batch = data.batch(np.arange(len(data.unit)))
    logits = model.draw_logits(batch, 3, step_generator(0, 0, 2))
    parts = [equation] * 2
    if isinstance(equation, lm.Split):
        parts = [equation.base, equation.perturbation]
    slopes = {}
    for part, group in zip(parts, (base, phi), strict=True):
        loss = part.surrogate(logits, logits.detach(), model.targets(batch)).sum()
        leaves = list(group.values())
        made = torch.autograd.grad(loss, leaves, retain_graph=True)
        slopes |= dict(zip(group, made, strict=True))
    names = chosen(model, "trained")
    total = torch.cat([-slopes[name].flatten() for name in names]).numpy()
    np.testing.assert_allclose(found.sum(0), total, rtol=0, atol=tolerance * 4 * scale)


def test_all_parameters_of_an_adapted_base_hold_the_frozen_ones_too():
    model, data = adapted(), documents()
    whole = lm.scores(model, data, draws=2, parameters="all")
    loop = lm.scores(model, data, draws=2, parameters="all", method="loop")
    scale = np.abs(loop).max()
    np.testing.assert_allclose(whole, loop, rtol=0, atol=EXACT * scale)
    names = list(parameter_names(model, "all"))
    places = [names.index(name) for name in parameter_names(model, "trained")]
    trained = lm.scores(model, data, draws=2, parameters="trained")
    np.testing.assert_allclose(whole[:, places], trained, rtol=0, atol=EXACT * scale)
    assert whole.shape[1] > 2 * trained.shape[1]
    model.requires_grad_(False)
    with pytest.raises(DataError, match="no parameter that is trained; call requires"):
        lm.scores(model, data, parameters="trained")


def log_s(model):
    return model.perturbation.log_scale


def test_the_sandwich_of_what_is_trained_takes_the_rest_as_known():
    """Against blocks of psi and A of all parameters, a held."""
    model, data = BinaryModel(), binary_data(400, 3)
    model.a.requires_grad_(False)
    options = {"draws": 3, "seed": 1, "batch_size": 400}
    made = lm.infer(
        model, data, log_s, parameters="trained", passes=2, sets=3, **options
    )
    A = lm.sensitivity(model, data, parameters="all", passes=3, **options)[1:, 1:]
    sets = [
        lm.scores(model, data, parameters="all", seed=1, draws=3,
                  batch_size=400, passes=p)[:, 1:] * p
        for p in (1, 2, 3)
    ]  # fmt: skip
    c = np.linalg.solve(A.T, [0.0, 1.0])
    rows = np.stack([sets[0], sets[1] - sets[0], sets[2] - sets[1]]) @ c
    variance = split_variance(rows[:, :, None], 2).total.item()
    assert made.se.iloc[0] == pytest.approx(variance**0.5, rel=1e-10)
    with pytest.raises(DataError, match=r"'all', of which 1 of 3 tensors are frozen"):
        lm.infer(model, data, log_s, parameters="all", **options)
    model.requires_grad_(False)  # a model that was loaded: nothing is known
    lm.infer(model, data, log_s, parameters="all", **options)


def test_directions_that_are_held_leave_no_rotation():
    model = lm.LatentPrefixLM(gpt2(), lm.Gated(WIDTH, 3), train_base=False)
    with torch.no_grad():
        model.perturbation.gate.normal_(generator=torch.Generator().manual_seed(0))
    whole = orbit_of(model, "perturbation")
    assert whole.dimension == 3
    model.perturbation.gate.requires_grad_(False)
    part = orbit_of(model, "trained")
    assert (part.dimension, part.count) == (3, 3 * WIDTH)
    np.testing.assert_allclose(
        np.abs(part.basis.T @ whole.basis[: 3 * WIDTH]).sum(), 3.0, rtol=1e-10
    )
    model.perturbation.gate.requires_grad_(True)
    model.perturbation.directions.requires_grad_(False)
    none = orbit_of(model, "trained")
    assert (none.dimension, none.count) == (0, WIDTH)


# ------------------------------------------------------------------ what a unit may be


def test_a_loss_on_documents_of_the_fit_is_refused():
    """It holds the optimism of the fit; `evaluate` refuses it too."""
    model = lm.LatentPrefixLM(gpt2(), lm.LowRank(WIDTH, 2), TOKENIZER)
    train = documents()
    for held in (TEXTS[2:], documents(TEXTS[:1]), ["a new text of its own", TEXTS[3]]):
        with pytest.raises(DataError, match=r"`functional` holds .*the same text as"):
            lm.infer(model, train, lm.log_loss(held, draws=2), draws=2)
    with pytest.raises(DataError, match="`functional` holds 'document 1'"):
        lm.infer(
            model, TEXTS, lm.log_loss(["new, quite new", *TEXTS[:1]], draws=2), draws=2
        )
    other, data = BinaryModel(), binary_data(50, 0)  # units without fingerprints
    with pytest.raises(DataError, match="a loss on `documents` itself"):
        lm.infer(other, data, lm.log_loss(data), parameters="all")
    lm.infer(other, data, lm.log_loss(binary_data(50, 1)), parameters="all")


@dataclass
class Cut:
    """Rows of documents, each its own unit, as a user's own class could have it."""

    rows: lm.Documents

    @property
    def unit(self):
        return np.arange(len(self.rows.unit))

    @property
    def n_units(self):
        return len(self.rows.unit)

    def batch(self, rows):
        return self.rows.batch(rows)


def test_rows_of_one_document_are_not_independent_units():
    model = lm.LatentPrefixLM(gpt2(), lm.LowRank(WIDTH, 2), TOKENIZER)
    whole = documents()
    count = len(whole.unit)
    assert count == 2 * whole.n_units  # two rows a document
    again = replace(whole, unit=np.arange(count), n_bytes=np.ones(count, dtype=int))
    with pytest.raises(DataError, match=f"{count} units, but only 4 documents: rows"):
        lm.scores(model, again, draws=2)
    message = r"4 rows that go on .*\(row 1 first\).*give the rows of one document one"
    for call in (lm.scores, lm.infer, lm.sensitivity):
        with pytest.raises(DataError, match=message):
            call(model, Cut(whole), draws=2)
    for fine in (
        whole,
        lm.Packed.from_texts(["a b", "c d", "e f", "g h"], TOKENIZER, 8),
    ):
        assert np.isfinite(lm.scores(model, fine, draws=2)).all()
    first = [int(np.flatnonzero(whole.unit == u)[0]) for u in range(4)]
    heads = replace(
        whole, tokens=whole.tokens[first], targets=whole.targets[first],
        unit=np.arange(4),
    )  # fmt: skip
    assert lm.scores(model, Cut(heads), draws=2).shape[0] == 4  # the control


def test_a_part_of_a_pass_used_a_share_of_the_units():
    """Half a pass: twice the variance of one; one and a half: units met unequally."""
    model, data = BinaryModel(), binary_data(400, 3)

    def variance(passes):
        made = lm.infer(
            model, data, log_s, parameters="all", draws=3, passes=passes, batch_size=400
        )
        return made.se.iloc[0] ** 2

    once, limit = variance(1), variance(np.inf)
    assert variance(0.5) == pytest.approx(2 * once, rel=1e-12)
    latent = once - limit
    expected = limit * (1 + 0.25 / 1.5**2) + latent / 1.5
    assert variance(1.5) == pytest.approx(expected, rel=1e-12)
    rng = np.random.default_rng(0)  # an independent oracle: means of resampled counts
    met = np.concatenate(
        [
            np.ones((4000, 60)),
            rng.permuted(np.tile(np.repeat([0.0, 1.0], 30), (4000, 1)), axis=1),
        ],
        axis=1,
    )
    counts = met[:, :60] + met[:, 60:]
    means = (counts * rng.standard_normal((4000, 60))).sum(1) / 90
    factor = 60 * means.var()
    assert abs(factor - (1 + 0.25 / 1.5**2)) <= 4 * factor * (2 / 4000) ** 0.5
    assert abs(factor - 1.0) > 4 * factor * (2 / 4000) ** 0.5  # the control
    twice = copy.copy(data)
    rows = Doubled(twice)
    with pytest.raises(InferenceError, match="a part of a pass met some rows of a"):
        lm.infer(model, rows, log_s, parameters="all", draws=3, passes=0.5)


@dataclass
class Doubled:
    """Two rows a unit."""

    data: object

    @property
    def unit(self):
        return np.arange(self.data.n_units) // 2

    @property
    def n_units(self):
        return self.data.n_units // 2

    def batch(self, rows):
        return self.data.batch(rows)
