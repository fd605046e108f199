"""The surprise of a prefix, and the perturbation whose scale follows it."""

import copy
import math

import numpy as np
import pytest
import torch
from latent_families import WIDTH, byte, ids, llama, seeded

from eestim.llm.base import byte_model, byte_tokenizer
from eestim.llm.documents import Documents
from eestim.llm.equations import Brier, NoiseAveraged, Split
from eestim.llm.perturbations import LowRank, SurpriseGated
from eestim.llm.prefix import LatentPrefixLM
from eestim.llm.scores import chosen, scores
from eestim.llm.surprise import Reference, running_excess
from eestim.llm.training import fit

LENGTH = 12


def awake(size=2.0):
    perturbation = SurpriseGated(WIDTH, rank=3, size=size, hidden=4)
    with torch.no_grad():
        for value in (perturbation.second, perturbation.linear):
            value.normal_(generator=seeded(0))
    return perturbation


def documents(count):
    """Return rows of distinct text, a document each."""
    texts = ["".join(chr(97 + t % 26) for t in row[1:]) for row in ids(count, LENGTH)]
    return Documents.from_texts(texts, byte_tokenizer(), LENGTH)


def sharp():
    """Return a base whose next-token laws are far from uniform."""
    base = byte()
    with torch.no_grad():
        base.get_output_embeddings().weight.mul_(8.0)
    return base


def drawn(base, rows, length):
    """Draw rows of tokens from a base's own law."""
    tokens, generator = ids(rows, 1), seeded(7)
    for _ in range(length - 1):
        law = base(input_ids=tokens).logits[:, -1].softmax(-1)
        tokens = torch.cat([tokens, torch.multinomial(law, 1, generator=generator)], 1)
    return tokens


def test_features_are_those_of_their_formula():
    base, tokens = sharp(), ids(2, LENGTH)
    found = Reference(base).features(tokens)
    law = base(input_ids=tokens).logits.log_softmax(-1).detach()
    for row in range(2):
        excess = [0.0]
        for t in range(1, LENGTH):
            before = law[row, t - 1]
            entropy = -(before.exp() * before).sum()
            excess.append(float(-before[tokens[row, t]] - entropy))
        for t in range(LENGTH):
            for column, decay in enumerate((0.8, 0.9, 0.97)):
                weights = [decay ** (t - j) for j in range(1, t + 1)]
                total = sum(
                    w * x for w, x in zip(weights, excess[1 : t + 1], strict=True)
                )
                expected = total / (3 + sum(weights))
                assert math.isclose(found[row, t, column], expected, abs_tol=1e-4)
            assert math.isclose(found[row, t, 3], excess[t], abs_tol=1e-4)
            after = law[row, t]
            entropy = float(-(after.exp() * after).sum())
            assert math.isclose(found[row, t, 4], entropy, abs_tol=1e-4)


def test_excess_has_mean_zero_under_the_reference_only():
    base = sharp()
    reference = Reference(base)
    own = reference.features(drawn(base, 400, LENGTH))[:, 1:, 3].mean(1)
    other = reference.features(ids(400, LENGTH))[:, 1:, 3].mean(1)
    error = own.std() / math.sqrt(len(own))
    assert error < 0.1
    assert abs(own.mean()) < 4 * error
    assert other.mean() > 20 * error  # uniform tokens surprise it


def test_features_know_the_past_only():
    reference, tokens = Reference(sharp()), ids(1, LENGTH)
    changed = tokens.clone()
    changed[0, 8] = (changed[0, 8] + 1) % 250
    before, after = reference.features(tokens), reference.features(changed)
    torch.testing.assert_close(before[:, :8], after[:, :8])
    assert not torch.allclose(before[:, 8:], after[:, 8:])


@pytest.mark.parametrize("cuts", [(5, 1, 6), (1, 11)])
def test_reading_piece_by_piece_equals_reading_at_once(cuts):
    base, tokens = sharp(), ids(2, LENGTH)
    reference = Reference(base)
    watch = reference.watch(cached=True)
    parts = [watch.extend(piece) for piece in tokens.split(cuts, 1)]
    whole = reference.features(tokens)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-4)


def test_documents_of_a_packed_row_do_not_read_each_other():
    base = sharp()
    reference = Reference(base)
    first, second = ids(1, 5), ids(1, 7, seed=3)
    start = torch.tensor([[0] * 5 + [5] * 7])
    packed = reference.features(torch.cat([first, second], 1), start)
    alone = torch.cat([reference.features(first), reference.features(second)], 1)
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-4)


def test_a_gate_that_rises_with_surprise_moves_strange_text_more():
    gate = SurpriseGated(WIDTH, rank=3)
    with torch.no_grad():
        gate.linear[1] = 2.0
    base = sharp()
    model = LatentPrefixLM(base, gate)
    own, strange = model.embed(drawn(base, 20, LENGTH)), model.embed(ids(20, LENGTH))
    assert gate.squared_size(strange) > 1.5 * gate.squared_size(own)
    assert gate.scale(strange).max() < gate.most


def test_a_slow_gate_keeps_its_level_where_the_reference_is_right():
    """Its features have mean zero there; entropy, which has not, is no part of it."""
    base = sharp()
    slow = SurpriseGated(WIDTH, rank=3, slow=True)
    free = SurpriseGated(WIDTH, rank=3, hidden=4)
    with torch.no_grad():
        slow.linear.fill_(0.2)
        free.linear[4] = 4.0
    tokens = drawn(base, 200, LENGTH)
    model = LatentPrefixLM(base, slow)
    own, strange = model.embed(tokens), model.embed(ids(200, LENGTH))
    each = slow.scale(own).log().mean(1).squeeze()
    error = each.std() / len(each) ** 0.5
    assert abs(each.mean()) < 0.03 + 4 * error  # the sigmoid bends it a little
    assert slow.scale(strange).log().mean() > 0.05 + 4 * error
    assert free.scale(own).log().mean() > 0.1 + 4 * error  # by the entropy
    assert {name for name, _ in slow.named_parameters()} == {"directions", "linear"}
    known = model.embed(tokens[:1])[..., WIDTH : WIDTH + 3]
    exact = 4 * torch.sigmoid(0.2 * known.sum(-1) - math.log(3.0))
    torch.testing.assert_close(slow.scale(own[:1]).squeeze(-1), exact)


def test_scale_starts_at_one_and_gives_low_rank_noise():
    base, tokens = byte(), ids(2, LENGTH)
    gated = LatentPrefixLM(base, SurpriseGated(WIDTH, rank=3, size=2.0, seed=4))
    plain = LatentPrefixLM(base, LowRank(WIDTH, rank=3, size=2.0, seed=4))
    found, expected = (m.draw_logits(tokens, 2, seeded(1)) for m in (gated, plain))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert plain.reference is None


def test_reference_stays_as_it_was_while_the_base_trains():
    base = byte()
    model = LatentPrefixLM(base, awake(), latent="position").requires_grad_(True)
    kept = copy.deepcopy(model.reference.state_dict())
    start = copy.deepcopy(base.state_dict())
    equation = Split(base=NoiseAveraged(), perturbation=Brier())
    fit(
        model,
        documents(8),
        equation,
        draws=3,
        steps=3,
        batch_size=4,
        learning_rate=1e-2,
        weight_decay=0.1,
    )
    for name, value in model.reference.state_dict().items():
        assert torch.equal(value, kept[name])
    assert any(not torch.equal(v, start[k]) for k, v in base.state_dict().items())


def test_save_and_load_keep_the_reference(tmp_path):
    base = llama()
    model = LatentPrefixLM(base, awake())
    with torch.no_grad():  # the base moves on, the reference does not
        base.get_input_embeddings().weight.add_(0.1)
    model.save_pretrained(tmp_path)
    loaded = LatentPrefixLM.from_pretrained(tmp_path)
    tokens = ids(2, 6)
    found, expected = (m.draw_logits(tokens, 3, seeded(2)) for m in (loaded, model))
    torch.testing.assert_close(found, expected)
    features = [m.reference.features(tokens) for m in (loaded, model)]
    torch.testing.assert_close(*features)
    moved = Reference(base).features(tokens)
    assert not torch.allclose(features[0], moved)


def test_scores_by_every_route():
    model = LatentPrefixLM(byte(), awake(), train_base=False)
    routes = [
        scores(model, documents(3), Brier(), draws=3, method=name)
        for name in ("loop", "two-stage", "mapped")
    ]
    for found in routes[1:]:
        np.testing.assert_allclose(found, routes[0], rtol=1e-4, atol=1e-6)
    assert np.abs(routes[0]).max() > 1e-4


def test_reference_is_no_parameter_of_the_model():
    base = byte()
    gated, plain = (LatentPrefixLM(base, p) for p in (awake(), LowRank(WIDTH, rank=3)))
    extra = set(chosen(gated, "all")) - set(chosen(plain, "all"))
    assert extra == {
        f"perturbation.{n}" for n in ("linear", "first", "offset", "second")
    }
    assert "reference     frozen, " in gated.summary()
    assert "reference" not in plain.summary()


def test_a_reference_of_another_size_generates_as_without_a_cache():
    model = LatentPrefixLM(byte(), awake(size=9.0), reference=byte(layers=1))
    walks = [
        model.generate(
            ids(2, 5), 6, draws=3, do_sample=True, generator=seeded(3), use_cache=cached
        )
        for cached in (True, False)
    ]
    assert torch.equal(*walks)


def test_references_that_cannot_read_the_rows_are_refused():
    with pytest.raises(ValueError, match="`reference` has 300 embeddings"):
        LatentPrefixLM(byte(), awake(), reference=llama())
    short = byte_model(8, width=WIDTH, layers=1, heads=2)
    model = LatentPrefixLM(byte(), awake(), reference=short)
    with pytest.raises(ValueError, match="context is 8"):
        model.embed(ids(2, LENGTH))


def test_rotations_leave_the_law_alone():
    gate = awake()
    tangents = gate.invariances()
    assert tangents.shape == (gate.n_parameters, 3)
    base = byte()
    model = LatentPrefixLM(base, gate)
    states = model.embed(ids(1, 4))
    covariance = gate.matrix() @ gate.matrix().T
    with torch.no_grad():
        turn = tangents[: gate.directions.numel(), 0].view_as(gate.directions)
        gate.directions.add_(1e-4 * turn)
    drift = (gate.matrix() @ gate.matrix().T - covariance).abs().max()
    assert drift < 1e-5 * covariance.abs().max()
    assert states.shape[-1] == WIDTH + 5


def test_running_excess_starts_anew_with_each_document():
    excess = torch.tensor([[5.0, 1.0, 9.0, 2.0]])
    found = running_excess(excess, torch.tensor([[0, 0, 2, 2]]))
    torch.testing.assert_close(found[0, :, 3], torch.tensor([0.0, 1.0, 0.0, 2.0]))
    torch.testing.assert_close(found[0, :, 0], torch.tensor([0.0, 0.25, 0.0, 0.5]))


@pytest.mark.parametrize(
    ("options", "match"), [({"hidden": 0}, "`hidden`"), ({"most": 1.0}, "`most`")]
)
def test_arguments_are_checked(options, match):
    with pytest.raises(ValueError, match=match):
        SurpriseGated(WIDTH, rank=3, **options)
