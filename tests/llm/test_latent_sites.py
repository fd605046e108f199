"""Sites after a block, packed rows, adapters and half precision, in four families."""

import copy

import pytest
import torch
from latent_families import (
    CONTEXT,
    FAMILIES,
    LAYERS,
    WIDTH,
    byte,
    gpt2,
    ids,
    llama,
    seeded,
)
from torch import nn
from transformers import Gemma2Config, Gemma2ForCausalLM

from eestim.errors import CapabilityError, DataError
from eestim.llm.base import byte_tokenizer
from eestim.llm.baselines import with_lora, with_prefix_tuning, with_soft_prompt
from eestim.llm.batches import Packed, pack
from eestim.llm.documents import TokenBatch
from eestim.llm.equations import Brier
from eestim.llm.limits import check_device
from eestim.llm.perturbations import (
    Additive,
    ContextAttention,
    ContextMLP,
    Gated,
    LowRank,
    SurpriseGated,
)
from eestim.llm.prefix import LatentPrefixLM
from eestim.llm.scores import scores
from eestim.llm.sites import Site, decoder_layers
from eestim.llm.surrogates import IGNORED
from eestim.llm.training import fit

every_family = pytest.mark.parametrize("family", FAMILIES)


def awake(perturbation):
    """Let gates and scales depend on the states."""
    for name in ("gate", "second"):
        if hasattr(perturbation, name):
            with torch.no_grad():
                getattr(perturbation, name).normal_(generator=seeded(0))
    return perturbation


def contextual():
    return [
        awake(ContextMLP(WIDTH, rank=3, size=2.0, hidden=4)),
        awake(ContextAttention(WIDTH, rank=3, size=2.0, hidden=4)),
        awake(SurpriseGated(WIDTH, rank=3, size=2.0, hidden=4)),
    ]


@every_family
@pytest.mark.parametrize("site", [1, LAYERS])
def test_entering_at_a_site_equals_the_whole_pass(family, site):
    base = family()
    entry = Site(base, site)
    embeddings = base.get_input_embeddings()(ids())
    whole = base(input_ids=ids()).logits
    torch.testing.assert_close(entry.logits(entry.states(embeddings)), whole)
    # Not a pass that ignores the states:
    other = entry.logits(entry.states(embeddings).flip(-1))
    assert (other - whole).abs().max() > 1e-3


@every_family
def test_states_after_a_block_are_those_of_transformers(family):
    base = family()
    entry = Site(base, 2)
    found = entry.states(base.get_input_embeddings()(ids()))
    known = base(input_ids=ids(), output_hidden_states=True).hidden_states
    torch.testing.assert_close(found, known[2])


@every_family
def test_blocks_below_the_site_run_once_for_all_draws(family):
    """Rows are counted inside a block, since idle blocks are called too."""
    base = family()
    rows = {}
    for number, layer in enumerate(decoder_layers(base)):
        inner = next(m for name, m in layer.named_modules() if name == "mlp")
        inner.register_forward_hook(
            lambda _m, given, _o, n=number: rows.setdefault(n, []).append(len(given[0]))
        )
    model = LatentPrefixLM(base, LowRank(WIDTH, rank=3), site=2)
    for draw in (model.draw_logits, model.draw_hidden):
        rows.clear()
        draw(ids(3), 5, seeded(0))
        assert rows == {0: [3], 1: [3], 2: [15]}
    at_embeddings = LatentPrefixLM(base, LowRank(WIDTH, rank=3))
    rows.clear()
    at_embeddings.draw_logits(ids(3), 5, seeded(0))
    assert rows == {0: [15], 1: [15], 2: [15]}


@every_family
@pytest.mark.parametrize("site", [0, 1, LAYERS])
def test_draws_at_a_site_equal_one_draw_at_a_time(family, site):
    model = LatentPrefixLM(family(), LowRank(WIDTH, rank=3, size=3.0), site=site)
    states = model.embed(ids())
    z = model.latents(states, 3, seeded(0))
    together = model.draw_logits(ids(), 3, seeded(0))
    for k in range(3):
        alone = model.logits_of(model.perturb(states, z[k : k + 1]))[0]
        torch.testing.assert_close(together[k], alone)
    assert (together[0] - together[1]).abs().max() > 1e-3
    assert torch.equal(model.head(model.draw_hidden(ids(), 3, seeded(0))), together)


@every_family
@pytest.mark.parametrize("site", [0, 2])
def test_a_future_token_changes_no_earlier_logit(family, site):
    later = ids()
    later[:, 6:] += 1
    for perturbation in (awake(Gated(WIDTH, rank=3)), *contextual()):
        model = LatentPrefixLM(family(), perturbation, site=site)
        first, second = (model.draw_logits(x, 2, seeded(0)) for x in (ids(), later))
        torch.testing.assert_close(first[:, :, :6], second[:, :, :6])
        assert (first[:, :, 6:] - second[:, :, 6:]).abs().max() > 1e-3


@every_family
@pytest.mark.parametrize("site", [0, 2])
def test_packed_documents_equal_one_document_a_row(family, site):
    """Every family, contextual perturbation, latents handed over."""
    a, b = ids(1, 6)[0].tolist(), ids(1, 9, seed=6)[0].tolist()
    batch = pack([a, b], context=18)
    assert batch.input_ids.tolist()[0][:15] == b + a
    for perturbation in contextual():
        model = LatentPrefixLM(family(), perturbation, site=site)
        states = model.embed(batch)
        z = model.latents(states, 2, seeded(0), batch)
        packed = model.logits_of(model.perturb(states, z, batch), batch)
        for row, begin in ((b, 0), (a, len(b))):
            alone = torch.tensor([row])
            own = z[:, :, begin : begin + len(row)]
            single = model.logits_of(model.perturb(model.embed(alone), own))
            part = packed[:, :, begin : begin + len(row)]
            torch.testing.assert_close(part, single, rtol=1e-4, atol=1e-5)
        blind = model.logits_of(model.perturb(states, z))  # sees the other document
        assert (blind - packed)[:, :, len(b) : 15].abs().max() > 1e-3
        torch.testing.assert_close(model.draw_logits(batch, 2, seeded(0)), packed)


def test_packed_targets_stop_at_each_document():
    positions = torch.tensor([[0, 1, 2, 0, 1, 0, 1, 2]])
    batch = {"input_ids": torch.arange(8)[None] + 2, "position_ids": positions}
    model = LatentPrefixLM(byte())
    assert model.targets(batch)[0].tolist() == [
        3, 4, IGNORED, 6, IGNORED, 8, 9, IGNORED,
    ]  # fmt: skip
    with pytest.raises(ValueError, match="must count 0, 1, 2"):
        model.targets({"input_ids": positions, "position_ids": positions + 1})
    with pytest.raises(ValueError, match="holds a document of 9 tokens"):
        pack([list(range(9))], context=8)


def test_fit_and_scores_take_packed_rows():
    """The row's psi is the sum of its documents', each alone in a row."""
    texts = ["abcdefg", "hijk", "lmnop", "qrs", "tuvwxyzabc"]
    packed = Packed.from_texts(texts, byte_tokenizer(), context=13)
    model = LatentPrefixLM(byte(), awake(Gated(WIDTH, rank=2)), site=1)
    record = fit(model, packed, Brier(), draws=2, steps=3, batch_size=2)
    assert record.n_units == packed.n_units == 3
    vector = torch.randn(2, 1, 1, 2, generator=seeded(1))
    model.latents = lambda e, *_: vector.expand(2, e.shape[0], e.shape[1], 2)
    together = scores(model, packed, Brier(), draws=2).sum(0)
    apart = [
        scores(model, Packed.from_texts([t], byte_tokenizer(), 13), Brier(), draws=2)
        for t in texts
    ]
    alone = torch.tensor(sum(psi.sum(0) for psi in apart))
    torch.testing.assert_close(torch.tensor(together), alone, rtol=1e-4, atol=1e-7)
    with pytest.raises(DataError, match="same document twice"):
        Packed.from_texts(["abc", "abc"], byte_tokenizer(), 13)


@every_family
def test_right_padding_changes_no_logit_of_a_token(family):
    model = LatentPrefixLM(family(), awake(Gated(WIDTH, rank=3)))
    short, padded = ids(2, 7), torch.zeros(2, 10, dtype=torch.long)
    padded[:, :7] = short
    mask = (padded > 0).long()
    batch = {"input_ids": padded, "attention_mask": mask}
    z = model.latents(model.embed(padded), 2, seeded(0))
    own = model.logits_of(model.perturb(model.embed(short), z[:, :, :7]))
    torch.testing.assert_close(model.draw_logits(batch, 2, seeded(0))[:, :, :7], own)
    assert (model.targets(batch)[:, 6:] == IGNORED).all()


@every_family
def test_one_latent_for_each_sequence(family):
    model = LatentPrefixLM(family(), LowRank(WIDTH, rank=3), latent="sequence")
    z = model.latents(model.embed(ids()), 4, seeded(0))
    assert z.shape == (4, 3, 10, 3)
    assert (z == z[:, :, :1]).all()
    assert len(torch.unique(z[:, :, 0].reshape(-1, 3), dim=0)) == 12
    assert model.draw_logits(ids(), 4, seeded(0)).shape[:3] == (4, 3, 10)


def test_one_latent_for_each_document_of_a_packed_row():
    model = LatentPrefixLM(byte(), LowRank(WIDTH, rank=3), latent="sequence")
    batch = pack([[1, 5, 6], [1, 7]], context=5)
    z = model.latents(model.embed(batch), 2, seeded(0), batch)
    assert (z[:, :, :3] == z[:, :, :1]).all()
    assert (z[:, :, 3:] == z[:, :, 3:4]).all()
    assert (z[:, :, 0] != z[:, :, 3]).all()


@every_family
@pytest.mark.parametrize("site", [0, 2])
def test_half_precision_base_with_phi_in_float32(family, site):
    model = LatentPrefixLM(
        family().to(torch.bfloat16), Gated(WIDTH, rank=3, size=2.0), site=site
    )
    full = LatentPrefixLM(family(), Gated(WIDTH, rank=3, size=2.0), site=site)
    logits = model.draw_logits(ids(), 4, seeded(0))
    assert logits.dtype == torch.bfloat16
    exact = full.draw_logits(ids(), 4, seeded(0))
    # bfloat16 has 8 bits: some 30 roundings of relative size 2^-8.
    assert (logits - exact).abs().max() < 30 * 2**-8 * exact.abs().max()
    Brier().loss(logits, model.targets(ids())).backward()
    slope = model.perturbation.directions.grad
    assert slope.dtype == torch.float32
    assert slope.abs().max() > 0
    assert model.base.get_input_embeddings().weight.dtype == torch.bfloat16
    assert model.generate(ids(2, 5), 3, draws=2).shape == (2, 8)


@every_family
@pytest.mark.parametrize("site", [0, 2])
def test_trainable_parameters_when_frozen_adapted_or_full(family, site):
    def trained(base, **options):
        model = LatentPrefixLM(base, LowRank(WIDTH, rank=3), site=site, **options)
        Brier().loss(model.draw_logits(ids(), 4, seeded(0)), ids()).backward()
        return {
            name
            for name, p in model.named_parameters()
            if p.grad is not None and p.grad.abs().max() > 0
        }

    own = {"perturbation.directions"}
    assert trained(family(), train_base=False) == own
    adapted = trained(with_lora(family(), rank=2))
    assert own < adapted
    assert all("lora_" in name for name in adapted - own)
    full = trained(family())
    assert any("lora_" not in name for name in full - own)
    assert len(full) > len(adapted)


@every_family
@pytest.mark.parametrize("site", [0, 2])
def test_adapted_base_gives_the_logits_of_the_merged_one(family, site):
    adapted = with_lora(family(), rank=2)
    for name, p in adapted.named_parameters():
        if "lora_B" in name:
            p.data.normal_(generator=seeded(0))
    perturbation = LowRank(WIDTH, rank=3, size=2.0)
    model = LatentPrefixLM(adapted, perturbation, site=site)
    found = model.draw_logits(ids(), 2, seeded(0))
    merged = copy.deepcopy(adapted).merge_and_unload()
    other = LatentPrefixLM(merged, perturbation, site=site)
    torch.testing.assert_close(
        found, other.draw_logits(ids(), 2, seeded(0)), rtol=1e-4, atol=1e-4
    )
    plain = LatentPrefixLM(family(), perturbation, site=site)
    assert (found - plain.draw_logits(ids(), 2, seeded(0))).abs().max() > 1e-3


@every_family
@pytest.mark.parametrize("add", [with_soft_prompt, with_prefix_tuning])
def test_soft_prompts_give_a_logit_for_each_token(family, add):
    base = add(family(), tokens=4)
    model = LatentPrefixLM(base, LowRank(WIDTH, rank=3, size=2.0))
    logits = model.draw_logits(ids(), 3, seeded(0))
    assert logits.shape[:3] == (3, 3, 10)
    assert torch.equal(model.head(model.draw_hidden(ids(), 3, seeded(0))), logits)
    plain = LatentPrefixLM(family(), LowRank(WIDTH, rank=3, size=2.0))
    assert (logits - plain.draw_logits(ids(), 3, seeded(0))).abs().max() > 1e-3
    Brier().loss(logits, model.targets(ids())).backward()
    moved = {n for n, p in model.base.named_parameters() if p.grad is not None}
    assert moved
    assert all("prompt" in name for name in moved)
    with pytest.raises(ValueError, match="soft prompts take 4"):
        model.draw_logits(ids(1, CONTEXT - 3), 1, seeded(0))
    with pytest.raises(ValueError, match="use site='embeddings'"):
        LatentPrefixLM(base, LowRank(WIDTH, rank=3), site=1)


@every_family
def test_tied_weights_gather_both_gradients(family):
    """The table's gradient is the sum of its two uses where it is tied."""
    model = LatentPrefixLM(family(), LowRank(WIDTH, rank=3))
    table = model.base.get_input_embeddings().weight
    tied = model.head_weight is table
    assert tied == (family is not llama)
    hidden = model.draw_hidden(ids(), 4, seeded(0))
    chunked = nn.functional.linear(hidden, model.head_weight, model.head_bias)
    Brier().loss(chunked, model.targets(ids())).backward()
    by_chunks = table.grad.clone()
    model.zero_grad()
    Brier().loss(
        model.draw_logits(ids(), 4, seeded(0)), model.targets(ids())
    ).backward()
    torch.testing.assert_close(by_chunks, table.grad)
    unused = [t for t in range(250) if t not in ids()]
    assert (table.grad[unused].abs().max() > 0) == tied  # the head reaches all tokens


@every_family
@pytest.mark.parametrize("site", [0, 2])
def test_save_and_load_site_latent_and_adapter(family, site, tmp_path):
    for number, perturbation in enumerate((Additive(WIDTH), *contextual())):
        base = with_lora(family(), rank=2) if number else family()
        for name, p in base.named_parameters():
            if "lora_B" in name:
                p.data.normal_(generator=seeded(0))
        model = LatentPrefixLM(base, perturbation, site=site, latent="sequence")
        folder = tmp_path / str(number)
        model.save_pretrained(folder)
        again = LatentPrefixLM.from_pretrained(folder)
        assert (again.site, again.latent) == (site, "sequence")
        torch.testing.assert_close(
            again.draw_logits(ids(), 2, seeded(0)),
            model.draw_logits(ids(), 2, seeded(0)),
        )
        names = {n for n, p in again.named_parameters() if p.requires_grad}
        assert names == {n for n, p in model.named_parameters() if p.requires_grad}


def test_a_newer_format_is_refused(tmp_path):
    LatentPrefixLM(byte(), LowRank(WIDTH, rank=3)).save_pretrained(tmp_path)
    path = tmp_path / "latent_prefix.json"
    path.write_text(path.read_text().replace('"format": 2', '"format": 9'))
    with pytest.raises(ValueError, match="written in format 9"):
        LatentPrefixLM.from_pretrained(tmp_path)


def test_summary_tells_rank_size_and_counts():
    text = LatentPrefixLM(byte(), LowRank(WIDTH, rank=3, size=1.5), site=2).summary()
    assert "rank=3, size=1.5" in text
    assert "48 parameters" in text
    assert f"after block 2 of {LAYERS}" in text
    assert "6 parameters" in repr(Additive(6))


def sliding():
    config = Gemma2Config(
        vocab_size=259, hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, pad_token_id=0,
        max_position_embeddings=CONTEXT, sliding_window=4,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Gemma2ForCausalLM(config).eval()


def test_blocks_that_are_found_but_not_run_are_refused():
    """A model with an idle list of as many modules before its own blocks."""
    base = byte()
    base.model.embed_tokens.idle = nn.ModuleList(nn.Identity() for _ in range(LAYERS))
    with pytest.raises(CapabilityError, match="does not run block 1"):
        LatentPrefixLM(base, LowRank(WIDTH, rank=3), site=1)


def test_bad_sites_and_rows_are_refused():
    base = byte()
    perturbation = LowRank(WIDTH, rank=3)
    for site in (-1, LAYERS + 1, "head", True, 1.0):
        with pytest.raises(ValueError, match="`site` is"):
            LatentPrefixLM(base, perturbation, site=site)
    with pytest.raises(ValueError, match="`latent` is 'token'"):
        LatentPrefixLM(base, perturbation, latent="token")
    packed = pack([[1, 5, 6], [1, 7]], context=5)
    with pytest.raises(CapabilityError, match="mixes kinds of attention"):
        LatentPrefixLM(sliding(), perturbation).draw_logits(packed, 2, seeded(0))
    with pytest.raises(CapabilityError, match="soft prompt tokens before each row"):
        LatentPrefixLM(with_soft_prompt(byte()), perturbation).draw_logits(
            packed, 2, seeded(0)
        )


class Tokens:
    """A tokenizer of a given size."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size


def test_mismatches_of_tokenizer_tokens_and_device_are_refused():
    with pytest.raises(ValueError, match="`tokenizer` has 300 tokens, but `base` has"):
        LatentPrefixLM(byte(), None, Tokens(300))
    LatentPrefixLM(llama(), None, Tokens(259))  # a table may be padded
    model = LatentPrefixLM(byte(), LowRank(WIDTH, rank=3))
    with pytest.raises(ValueError, match="holds token 300, but the base has 259"):
        model.draw_logits(torch.tensor([[1, 300]]), 2, seeded(0))
    with pytest.raises(ValueError, match="holds token 300"):
        model.generate(torch.tensor([[1, 300]]), 2)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="torch sees no GPU"):
            model.to("cuda")
        with pytest.raises(ValueError, match="torch sees no GPU"):
            check_device("cuda:0")
        with pytest.raises(ValueError, match="torch sees no GPU"):
            LatentPrefixLM.from_pretrained("nowhere", device="cuda")


def test_logits_beyond_memory_are_refused_with_what_to_set(monkeypatch):
    model = LatentPrefixLM(byte(), LowRank(WIDTH, rank=3))
    monkeypatch.setattr(
        "eestim.llm.limits._free_memory", lambda _: 4 * 3 * 10 * 259 * 8
    )
    assert model.draw_logits(ids(), 4, seeded(0)).shape[0] == 4  # just fits
    with pytest.raises(ValueError, match="lower `draws` or `batch_size`"):
        model.draw_logits(ids(), 5, seeded(0))


def test_one_draw_where_two_are_needed_is_refused():
    model = LatentPrefixLM(byte(), LowRank(WIDTH, rank=3))
    logits = model.draw_logits(ids(), 1, seeded(0))
    with pytest.raises(ValueError, match="needs at least 2 independent draws"):
        Brier().loss(logits, model.targets(ids()))
    assert isinstance(pack([[1, 2]], 4), TokenBatch)
    assert gpt2().config.n_layer == LAYERS
