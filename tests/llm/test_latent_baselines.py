"""Baselines: scale and mean of the noise, causality, seeds, independence of units."""

import math

import pytest
import torch
from latent_families import CONTEXT, FAMILIES, WIDTH, byte, ids, llama, seeded

from eestim.errors import CapabilityError
from eestim.llm import baselines
from eestim.llm.averaging import RowGenerators
from eestim.llm.baselines import (
    Deletion,
    EmbeddingDropout,
    Insertion,
    NEFTune,
    Neighbours,
    Swap,
    SymNoise,
    fixed,
    with_lora,
    with_prefix_tuning,
    with_soft_prompt,
)
from eestim.llm.batches import pack
from eestim.llm.equations import Brier, NoiseAveraged
from eestim.llm.perturbations import LowRank
from eestim.llm.prefix import LatentPrefixLM
from eestim.llm.training import fit

every_family = pytest.mark.parametrize("family", FAMILIES)

NOISES = [
    NEFTune(WIDTH, alpha=20.0, length=CONTEXT),
    SymNoise(WIDTH, alpha=20.0, length=CONTEXT),
    EmbeddingDropout(WIDTH, rate=0.3),
    EmbeddingDropout(WIDTH, rate=0.3, whole=True),
]
every_noise = pytest.mark.parametrize("noise", NOISES, ids=repr)


def changes():
    return [
        Neighbours.of(byte(), rate=0.3, among=4),
        Insertion(259, rate=0.3, first=3),
        Deletion(0.3),
        Swap(0.3),
    ]


every_change = pytest.mark.parametrize("change", changes(), ids=repr)


@every_noise
def test_noise_is_unbiased_and_of_its_stated_size(noise):
    """100,000 draws; the size 10% larger is the negative control."""
    e = torch.randn(1, WIDTH, generator=seeded(1))
    z = torch.randn(100_000, 1, noise.latent, generator=seeded(2))
    change = (noise(e, z) - e)[:, 0]
    error = change.std(0) / math.sqrt(len(change))
    assert (change.mean(0).abs() <= 4 * error).all()
    length = change.square().sum(1)
    margin = 4 * length.std() / math.sqrt(len(length)) + 1e-4 * length.mean()
    size = noise.squared_size(e)
    assert abs(length.mean() - size) <= margin
    assert abs(length.mean() - 1.1 * size) > margin


def test_scale_is_alpha_over_root_of_length_and_width():
    """The stated formulas, by hand: T = 50, d = 8, alpha = 4."""
    z = torch.randn(2000, 3, 8, generator=seeded(0))
    e = torch.zeros(3, 8)
    bound = 4 / math.sqrt(50 * 8)
    uniform = NEFTune(8, alpha=4.0, length=50)(e, z)
    assert uniform.abs().max() <= bound
    assert uniform.abs().max() > 0.999 * bound
    quarter = (uniform < -bound / 2).float().mean()  # uniform, not normal
    assert abs(quarter - 0.25) < 4 * math.sqrt(0.25 * 0.75 / uniform.numel())
    signs = SymNoise(8, alpha=4.0, length=50)(e, z)
    torch.testing.assert_close(signs.abs(), torch.full_like(signs, bound))
    assert abs(signs.sum()) < 1e-4  # pairs cancel exactly
    torch.testing.assert_close(signs[:1000], -signs[1000:])


def test_dropout_keeps_or_drops():
    z = torch.randn(4000, 2, 8, generator=seeded(0))
    u = EmbeddingDropout(8, rate=0.3)(torch.ones(2, 8), z)
    assert u.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    share = (u == 0).float().mean()
    assert abs(share - 0.3) < 4 * math.sqrt(0.21 / u.numel())
    whole = EmbeddingDropout(8, rate=0.3, whole=True)(torch.ones(2, 8), z[..., :1])
    assert ((whole == 0).all(-1) | (whole > 0).all(-1)).all()


@every_family
@every_noise
def test_noises_have_the_interface_of_a_perturbation(family, noise):
    model = LatentPrefixLM(family(), noise)
    logits = model.draw_logits(ids(), 4, seeded(0))
    assert logits.shape[:3] == (4, 3, 10)
    assert torch.equal(logits, model.draw_logits(ids(), 4, seeded(0)))
    assert (logits - model.draw_logits(ids(), 4, seeded(1))).abs().max() > 1e-3
    assert not list(noise.parameters())


@every_family
@every_change
def test_changed_prefixes_have_the_interface_of_a_perturbation(family, change):
    model = LatentPrefixLM(family(), change)
    logits = model.draw_logits(ids(), 4, seeded(0))
    assert logits.shape[:3] == (4, 3, 10)
    assert torch.equal(logits, model.draw_logits(ids(), 4, seeded(0)))
    assert (logits - model.draw_logits(ids(), 4, seeded(1))).abs().max() > 1e-3
    assert torch.equal(model.head(model.draw_hidden(ids(), 4, seeded(0))), logits)
    clean = LatentPrefixLM(model.base)
    assert torch.equal(model.targets(ids()), clean.targets(ids()))
    start = logits[:, :, 0] - clean.draw_logits(ids(), 1, seeded(0))[:, :, 0]
    assert start.abs().max() < 1e-4  # the start symbol is never changed


@every_change
def test_a_future_token_changes_no_earlier_prediction(change):
    """One token at a time, so that a swap cannot show its own target."""
    model = LatentPrefixLM(byte(), change)
    text = ids(4, 12)
    first = model.draw_logits(text, 6, seeded(0))
    for place in range(1, 12):
        later = text.clone()
        later[:, place] = (later[:, place] + 17) % 200 + 2
        second = model.draw_logits(later, 6, seeded(0))
        torch.testing.assert_close(first[:, :, :place], second[:, :, :place])
        assert (first[:, :, place:] - second[:, :, place:]).abs().max() > 1e-3


@every_change
def test_a_longer_row_has_the_same_earlier_predictions(change):
    model = LatentPrefixLM(byte(), change)
    text = ids(4, 12)
    noise = change.noise(6, 4, 12, seeded(0))
    whole = model.of_changed(text, noise)
    for length in (3, 7, 11):
        part = model.of_changed(text[:, :length], noise[:, :, :length])
        torch.testing.assert_close(part, whole[:, :, :length])


@every_change
def test_units_share_no_draws(change):
    """A row's changes are uncorrelated with another's, though the texts are equal."""
    noise = change.noise(500, 2, 12, seeded(0))
    hit = change.hit(noise).float()[..., 1:].reshape(500, 2, -1)
    a, b = hit[:, 0].flatten(), hit[:, 1].flatten()
    correlation = torch.corrcoef(torch.stack([a, b]))[0, 1]
    assert abs(correlation) < 4 / math.sqrt(len(a))
    assert abs(hit.mean() - 0.3) < 4 * math.sqrt(0.21 / hit.numel())
    same = torch.corrcoef(torch.stack([a, a]))[0, 1]  # negative control
    assert same > 0.99


@every_change
def test_a_row_with_its_own_generator_is_changed_alike_in_any_batch(change):
    model = LatentPrefixLM(byte(), change)
    both = model.draw_logits(ids(2), 4, RowGenerators([seeded(1), seeded(2)]))
    second = model.draw_logits(ids(2)[1:], 4, RowGenerators([seeded(2)]))
    torch.testing.assert_close(both[:, 1:], second)
    assert (both[:, :1] - second).abs().max() > 1e-3


@pytest.mark.parametrize("kind", [Deletion, Swap, Insertion, Neighbours])
def test_changes_by_hand(kind):
    """Hits at places 2, 3 and 5 of one row of seven tokens."""
    text = torch.arange(10, 17)[None]
    noise = torch.full((1, 1, 7, 2), 0.9)
    noise[0, 0, [2, 3, 5], 0] = 0.0
    noise[0, 0, :, 1] = torch.tensor([0.1, 0.1, 0.5, 0.1, 0.1, 0.99, 0.1])
    if kind is Insertion:
        rows = Insertion(20, rate=0.5, first=10).change(text, noise)
        expected = [10, 11, 15, 12, 11, 13, 14, 19, 15, 16]
        assert rows.tokens[0, 0].tolist() == expected
        assert rows.read[0, 0].tolist() == [0, 1, 3, 5, 6, 8, 9]
        assert rows.positions[0, 0].tolist() == [0, 1, 2, 2, 3, 3, 4, 5, 5, 6]
    elif kind is Deletion:
        rows = Deletion(0.5).change(text, noise)
        assert rows.tokens[0, 0, :4].tolist() == [10, 11, 14, 16]
        assert rows.read[0, 0].tolist() == [0, 1, 1, 1, 2, 2, 3]
    elif kind is Swap:
        rows = Swap(0.5).change(text, noise)
        # Of the run 2, 3 only the pair (2, 3) is exchanged; then (5, 6).
        assert rows.tokens[0, 0].tolist() == [10, 11, 13, 12, 14, 16, 15]
        assert rows.read[0, 0].tolist() == [0, 1, 1, 3, 4, 4, 6]
    else:
        change = Neighbours(20, rate=0.5, among=2)
        change.table = torch.stack([torch.arange(20), torch.arange(20) + 100], 1).int()
        rows = change.change(text, noise)
        assert rows.tokens[0, 0].tolist() == [10, 11, 112, 13, 14, 115, 16]


def test_swapped_across_the_end_is_the_prefix_without_its_last_token():
    """Oracle: plain rows of the tokens that each prediction may see."""
    text = torch.arange(10, 17)[None]
    noise = torch.full((1, 1, 7, 2), 0.9)
    noise[0, 0, [2, 5], 0] = 0.0
    base = byte()
    found = LatentPrefixLM(base, Swap(0.5)).of_changed(text, noise)[0, 0]
    seen = {1: [10, 11], 2: [10, 11], 3: [10, 11, 13, 12], 4: [10, 11, 13, 12, 14]}
    seen |= {5: seen[4], 6: [*seen[4], 16, 15]}
    for place, row in seen.items():
        alone = base(input_ids=torch.tensor([row])).logits[0, -1]
        torch.testing.assert_close(found[place], alone)


@pytest.mark.parametrize("family", [byte, llama])
def test_inserted_and_deleted_rows_equal_plain_rows(family):
    """Oracle: one plain row for each draw and position, with its position ids."""
    base = family()
    for change in (Insertion(259, rate=0.4, first=3), Deletion(0.4)):
        noise = change.noise(2, 1, 8, seeded(3))
        text = ids(1, 8)
        found = LatentPrefixLM(base, change).of_changed(text, noise)
        rows = change.change(text, noise)
        for k in range(2):
            for t in range(8):
                end = int(rows.read[k, 0, t]) + 1
                alone = base(
                    input_ids=rows.tokens[k, :, :end],
                    position_ids=rows.positions[k, :, :end],
                    attention_mask=torch.ones(1, end),
                ).logits[0, -1]
                torch.testing.assert_close(found[k, 0, t], alone, rtol=1e-4, atol=1e-4)


def test_rows_as_long_as_the_context_can_be_changed():
    text = ids(2, CONTEXT)
    for change in changes():
        model = LatentPrefixLM(byte(), change)
        assert model.draw_logits(text, 2, seeded(0)).shape[2] == CONTEXT


def test_neighbours_are_nearest_by_cosine():
    """Oracle: a loop over the table."""
    base = byte()
    table = base.get_input_embeddings().weight.detach()
    found = Neighbours.of(base, among=3).table
    for token in (0, 65, 258):
        cosine = torch.cosine_similarity(table[token], table, dim=1)
        cosine[token] = -2
        assert set(found[token].tolist()) == set(cosine.topk(3).indices.tolist())


def test_rates_are_met_and_inserted_tokens_are_ordinary():
    change = Insertion(259, rate=0.3, first=3)
    text = torch.full((4, 30), 2)
    rows = change.change(text, change.noise(50, 4, 30, seeded(0)))
    new = rows.tokens[(rows.tokens != 2) & (rows.tokens != 0)]
    assert new.min() >= 3
    expected, count = 0.3 * 29, 200
    mean = (rows.read[..., -1] - 29).float().mean()
    assert abs(mean - expected) < 4 * math.sqrt(29 * 0.21 / count)


def test_training_with_noise_and_predicting_without():
    base = byte()
    model = LatentPrefixLM(base, NEFTune(WIDTH, length=CONTEXT))
    plain = model.without_latent()
    assert not plain.has_latent
    assert plain.base is model.base
    torch.testing.assert_close(
        plain.draw_logits(ids(), 3, seeded(0))[0], base(input_ids=ids()).logits
    )
    assert model.has_latent


class Rows:
    """Rows of tokens as independent units."""

    def __init__(self, tokens):
        self.tokens = tokens
        self.n_units = len(tokens)
        self.unit = torch.arange(len(tokens)).numpy()

    def batch(self, rows):
        return self.tokens[torch.as_tensor(rows)]


def loss_of(model):
    """Return the noise-averaged loss of all rows, always with the same draws."""
    with torch.no_grad():
        logits = model.draw_logits(ids(6, 12), 4, seeded(0))
        return float(NoiseAveraged().loss(logits, model.targets(ids(6, 12))))


def trained(model, rate):
    fit(
        model, Rows(ids(6, 12)), NoiseAveraged(), draws=2, steps=12, batch_size=6,
        warmup=1, learning_rate=rate,
    )  # fmt: skip


@pytest.mark.parametrize(
    "perturbation",
    [
        NOISES[0],
        NOISES[1],
        NOISES[2],
        Deletion(0.2),
        fixed(LowRank(WIDTH, rank=3)),
        None,
    ],
)
def test_every_baseline_is_trained_by_fit(perturbation):
    model = LatentPrefixLM(byte(), perturbation)
    before = loss_of(model)
    phi = [] if perturbation is None else list(perturbation.parameters())
    start = [p.detach().clone() for p in phi]
    trained(model, 3e-3)
    assert loss_of(model) < before - 0.05
    assert all(torch.equal(p, q) for p, q in zip(phi, start, strict=True))


@pytest.mark.parametrize("add", [with_lora, with_soft_prompt])
def test_adapters_are_trained_and_the_base_is_not(add):
    base = byte()
    start = base.get_input_embeddings().weight.detach().clone()
    model = LatentPrefixLM(add(base), fixed(LowRank(WIDTH, rank=3)))
    before = loss_of(model)
    trained(model, 0.1)
    assert loss_of(model) < before - 0.02
    assert torch.equal(base.get_input_embeddings().weight, start)


@pytest.mark.parametrize("number", range(len(NOISES) + 4))
def test_save_and_load_each_kind(number, tmp_path):
    perturbation = [*NOISES, *changes()][number]
    model = LatentPrefixLM(byte(), perturbation)
    model.save_pretrained(tmp_path)
    again = LatentPrefixLM.from_pretrained(tmp_path)
    assert repr(again.perturbation) == repr(perturbation)
    assert torch.equal(
        again.draw_logits(ids(), 2, seeded(0)), model.draw_logits(ids(), 2, seeded(0))
    )


@pytest.mark.parametrize("add", [with_soft_prompt, with_prefix_tuning])
def test_soft_prompts_are_saved_and_loaded(add, tmp_path):
    model = LatentPrefixLM(add(byte(), 3), LowRank(WIDTH, rank=2))
    model.save_pretrained(tmp_path)
    again = LatentPrefixLM.from_pretrained(tmp_path)
    names = {n for n, p in again.named_parameters() if p.requires_grad}
    assert names == {n for n, p in model.named_parameters() if p.requires_grad}
    assert torch.equal(
        again.draw_logits(ids(), 2, seeded(0)), model.draw_logits(ids(), 2, seeded(0))
    )


def test_adapters_start_by_their_seed():
    first, again, other = (with_lora(byte(), seed=s).state_dict() for s in (0, 0, 1))
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert not all(torch.equal(first[n], other[n]) for n in first)


def test_pairs_of_opposite_signs_are_no_independent_draws():
    model = LatentPrefixLM(byte(), SymNoise(WIDTH, length=CONTEXT))
    assert not model.independent_draws
    assert LatentPrefixLM(byte(), NOISES[0]).independent_draws
    with pytest.raises(ValueError, match="depend on one another and would bias it"):
        fit(model, Rows(ids(4, 8)), Brier(), draws=2, steps=1)
    with pytest.raises(ValueError, match="set an even number, or 1"):
        model.draw_logits(ids(), 3, seeded(0))


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"`rate` is 1\.0"):
        Deletion(1.0)
    with pytest.raises(ValueError, match="`rate` is 0"):
        EmbeddingDropout(8, rate=0)
    with pytest.raises(ValueError, match="`among` is 9; expected 1 to 8"):
        Neighbours(9, among=9)
    with pytest.raises(ValueError, match="`alpha` is -1"):
        NEFTune(8, alpha=-1.0, length=4)
    with pytest.raises(ValueError, match="`length` is 0"):
        SymNoise(8, length=0)
    with pytest.raises(ValueError, match="`first` is 300"):
        Insertion(259, first=300)
    with pytest.raises(ValueError, match="known baselines are"):
        baselines.from_config("Other", {})
    with pytest.raises(ValueError, match="changes tokens; leave `site`"):
        LatentPrefixLM(byte(), Deletion(0.1), site=1)
    model = LatentPrefixLM(byte(), Deletion(0.1))
    with pytest.raises(CapabilityError, match="packed rows do not take"):
        model.draw_logits(pack([[1, 5, 6]], 4), 2, seeded(0))
    with pytest.raises(ValueError, match="`draws` is 0"):
        model.draw_logits(ids(), 0, seeded(0))
