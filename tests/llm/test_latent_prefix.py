"""LatentPrefixLM and its perturbations on tiny random models."""

import math

import pytest
import torch
from torch import nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from eestim.errors import CapabilityError, DataError
from eestim.llm.averaging import average_log_probabilities
from eestim.llm.base import byte_model, byte_tokenizer
from eestim.llm.documents import TokenBatch
from eestim.llm.equations import Brier
from eestim.llm.perturbations import (
    Additive,
    ContextMLP,
    Gated,
    LowRank,
    from_config,
)
from eestim.llm.prefix import LatentPrefixLM
from eestim.llm.surrogates import IGNORED

WIDTH, CONTEXT = 16, 24


def tiny(seed=0):
    return byte_model(CONTEXT, width=WIDTH, layers=2, heads=2, seed=seed)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def gpt2():
    config = GPT2Config(
        vocab_size=259, n_positions=CONTEXT, n_embd=WIDTH, n_layer=1, n_head=2,
        bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return GPT2LMHeadModel(config)


def qwen2():
    config = Qwen2Config(
        vocab_size=259, hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=CONTEXT,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Qwen2ForCausalLM(config)


def ids(rows=3, length=10):
    return torch.randint(2, 250, (rows, length), generator=seeded(5))


PERTURBATIONS = [
    Additive(WIDTH, size=1.5),
    LowRank(WIDTH, rank=3, size=1.5),
    LowRank(WIDTH, rank=3, size=1.5, held=True),
    Gated(WIDTH, rank=3, size=1.5),
    ContextMLP(WIDTH, rank=3, size=1.5, hidden=4),
]


@pytest.mark.parametrize("base", [tiny, gpt2, qwen2])
@pytest.mark.parametrize("perturbation", PERTURBATIONS)
def test_shapes_and_targets_for_each_family(base, perturbation):
    model = LatentPrefixLM(base(), perturbation)
    logits = model.draw_logits(ids(), 5, seeded(0))
    assert logits.shape == (5, 3, 10, 259)
    targets = model.targets(ids())
    assert targets.shape == (3, 10)
    assert (targets[:, -1] == IGNORED).all()
    assert torch.equal(targets[:, :-1], ids()[:, 1:])


def test_half_precision_base_keeps_phi_in_float32():
    model = LatentPrefixLM(tiny().to(torch.bfloat16), Gated(WIDTH, rank=3))
    logits = model.draw_logits(ids(), 4, seeded(0))
    assert logits.dtype == torch.bfloat16
    loss = Brier().loss(logits, model.targets(ids()))
    assert loss.dtype == torch.float32
    loss.backward()
    assert model.perturbation.directions.grad.dtype == torch.float32
    assert model.perturbation.directions.grad.abs().max() > 0
    assert model.generate(ids(), 3, draws=2).shape == (3, 13)


def test_without_latent_it_is_the_base_itself():
    base = tiny()
    model = LatentPrefixLM(base)
    logits = model.draw_logits(ids(), 7, seeded(0))
    assert logits.shape[0] == 1
    assert not model.has_latent
    torch.testing.assert_close(logits[0], base(input_ids=ids()).logits)


@pytest.mark.parametrize("perturbation", PERTURBATIONS)
def test_squared_size_equals_simulated_mean(perturbation):
    e = torch.randn(1, WIDTH, generator=seeded(1))
    z = torch.randn(40_000, 1, perturbation.latent, generator=seeded(2))
    change = (perturbation(e, z) - e).square().sum(-1).flatten()
    error = change.std() / math.sqrt(len(change))
    assert abs(change.mean() - perturbation.squared_size(e)) < 4 * error


def test_prediction_sees_only_latents_up_to_its_position():
    model = LatentPrefixLM(tiny(), LowRank(WIDTH, rank=3, size=2.0))
    e = model.embed(ids())
    z = model.latents(e, 2, seeded(0))
    later = z.clone()
    later[:, :, 6:] += 1.0
    first = model.logits_of(model.perturb(e, z))
    second = model.logits_of(model.perturb(e, later))
    torch.testing.assert_close(first[:, :, :6], second[:, :, :6])
    assert (first[:, :, 6:] - second[:, :, 6:]).abs().max() > 1e-4


def test_draws_differ_between_draws_rows_and_positions():
    model = LatentPrefixLM(tiny(), LowRank(WIDTH, rank=3))
    z = model.latents(model.embed(ids()), 4, seeded(0))
    flat = z.reshape(-1, 3)
    assert len(torch.unique(flat, dim=0)) == len(flat)


def test_average_is_of_probabilities():
    logits = torch.randn(4, 2, 5, generator=seeded(0))
    expected = logits.softmax(-1).mean(0).log()
    torch.testing.assert_close(average_log_probabilities(logits), expected)


@pytest.mark.parametrize(
    "perturbation",
    [
        LowRank(WIDTH, rank=3),
        Gated(WIDTH, rank=3),
        ContextMLP(WIDTH, rank=3),
        Additive(WIDTH),
    ],
)
def test_invariances_leave_the_law_unchanged(perturbation):
    """Along a tangent, C C' (and the gate) has zero derivative."""
    tangents = perturbation.invariances()
    assert tangents.shape == (perturbation.n_parameters, tangents.shape[1])
    if isinstance(perturbation, Additive):
        assert tangents.shape[1] == 0
        return
    assert torch.linalg.matrix_rank(tangents) == 3  # rotations of three coordinates
    c = perturbation.directions.detach()
    for tangent in tangents.T:
        move = tangent[: c.numel()].view_as(c)
        assert (move @ c.T + c @ move.T).abs().max() < 1e-6


def awake(perturbation):
    """Return a ContextMLP whose scales depend on the prefix."""
    with torch.no_grad():
        perturbation.second.normal_(generator=seeded(0))
    return perturbation


def test_context_scale_sees_the_prefix_and_not_the_future():
    perturbation = awake(ContextMLP(WIDTH, rank=3, hidden=4))
    e = torch.randn(1, 6, WIDTH, generator=seeded(1))
    changed = e.clone()
    changed[:, 2] += 1.0
    gap = (perturbation.scale(e) - perturbation.scale(changed)).abs().sum(-1)[0]
    assert (gap[:2] == 0).all()
    assert (gap[2:] > 0).all()


def test_context_scales_that_vary_break_the_rotations():
    perturbation = awake(ContextMLP(WIDTH, rank=3, hidden=4))
    assert perturbation.invariances().shape == (perturbation.n_parameters, 0)
    assert ContextMLP(WIDTH, rank=3, held=True).invariances().shape[1] == 4


def test_held_size_stays_and_has_one_more_invariance():
    perturbation = LowRank(WIDTH, rank=2, size=3.0, held=True)
    with torch.no_grad():
        perturbation.directions.mul_(7.0)
    assert perturbation.squared_size(torch.zeros(WIDTH)).item() == pytest.approx(9.0)
    assert perturbation.invariances().shape[1] == 2


def test_padding_is_left_out_of_targets():
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]])
    batch = {"input_ids": ids(3, 4), "attention_mask": mask}
    targets = LatentPrefixLM(tiny()).targets(batch)
    assert (targets != IGNORED).sum(1).tolist() == [2, 3, 0]
    with pytest.raises(ValueError, match="pads on the left"):
        LatentPrefixLM(tiny()).targets(
            {"input_ids": ids(1, 3), "attention_mask": torch.tensor([[0, 1, 1]])}
        )


def test_save_and_load_give_the_same_logits(tmp_path):
    model = LatentPrefixLM(
        tiny(), Gated(WIDTH, rank=3, size=2.0, seed=4), byte_tokenizer()
    )
    with torch.no_grad():
        model.perturbation.gate.normal_(generator=seeded(0))
    model.save_pretrained(tmp_path)
    assert {"latent_prefix.json", "perturbation.safetensors"} <= {
        path.name for path in tmp_path.iterdir()
    }
    again = LatentPrefixLM.from_pretrained(tmp_path)
    assert again.tokenizer("ab", add_special_tokens=False)["input_ids"] == [100, 101]
    torch.testing.assert_close(
        again.draw_logits(ids(), 2, seeded(0)), model.draw_logits(ids(), 2, seeded(0))
    )


def test_config_rebuilds_each_perturbation():
    for perturbation in PERTURBATIONS:
        again = from_config(type(perturbation).__name__, perturbation.config())
        assert again.config() == perturbation.config()
        for a, b in zip(again.parameters(), perturbation.parameters(), strict=True):
            torch.testing.assert_close(a, b)
    with pytest.raises(ValueError, match="`kind` is 'Other'"):
        from_config("Other", {})


def test_generate_greedy_without_latent_equals_transformers():
    base = tiny()
    expected = base.generate(
        ids(2, 5), max_new_tokens=6, do_sample=False, eos_token_id=None,
        pad_token_id=0, attention_mask=torch.ones(2, 5),
    )  # fmt: skip
    found = LatentPrefixLM(base).generate(ids(2, 5), 6, do_sample=False)
    assert torch.equal(found, expected)


def test_generate_next_token_follows_the_averaged_law():
    model = LatentPrefixLM(tiny(), LowRank(WIDTH, rank=3, size=3.0))
    prompt = ids(1, 5)
    token = model.generate(prompt, 1, draws=64, do_sample=False, generator=seeded(9))
    logits = model.draw_logits(prompt, 64, seeded(9))
    assert token[0, -1] == average_log_probabilities(logits)[0, -1].argmax()


def test_dropout_stays_off():
    model = LatentPrefixLM(gpt2(), LowRank(WIDTH, rank=3))
    model.train()
    first = model.draw_logits(ids(), 2, seeded(0))
    torch.testing.assert_close(first, model.draw_logits(ids(), 2, seeded(0)))


@pytest.mark.parametrize("base", [tiny, gpt2, qwen2])
def test_head_of_hidden_states_gives_the_logits(base):
    model = LatentPrefixLM(base(), Gated(WIDTH, rank=3, size=2.0))
    logits = model.draw_logits(ids(), 4, seeded(0))
    hidden = model.draw_hidden(ids(), 4, seeded(0))
    assert hidden.shape == (4, 3, 10, WIDTH)
    assert torch.equal(model.head(hidden), logits)
    by_hand = hidden @ model.head_weight.T
    assert model.head_bias is None
    torch.testing.assert_close(by_hand, logits)
    assert torch.equal(model.draw_logits(ids(), 4, seeded(0)), logits)  # head is back


def test_hidden_states_are_refused_where_logits_are_post_processed():
    config = Gemma2Config(
        vocab_size=259, hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, pad_token_id=0,
        max_position_embeddings=CONTEXT, final_logit_softcapping=0.01,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = LatentPrefixLM(Gemma2ForCausalLM(config), LowRank(WIDTH, rank=3))
    assert model.draw_logits(ids(), 2, seeded(0)).shape == (2, 3, 10, 259)
    with pytest.raises(CapabilityError, match="more than one linear map"):
        model.draw_hidden(ids(), 2, seeded(0))


class Deaf(nn.Module):
    """Accepts inputs_embeds and ignores them."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(9, WIDTH)

    def get_input_embeddings(self):
        return self.table

    def forward(self, input_ids=None, inputs_embeds=None, use_cache=False):
        class Output:
            logits = torch.zeros(1, 2, 9)

        return Output()


class NoEmbeds(Deaf):
    def forward(self, input_ids=None):
        return None


def test_bad_bases_are_refused(tmp_path):
    with pytest.raises(ValueError, match="ignores or alters `inputs_embeds`"):
        LatentPrefixLM(Deaf())
    with pytest.raises(TypeError, match="does not take `inputs_embeds`"):
        LatentPrefixLM(NoEmbeds())
    with pytest.raises(TypeError, match="`base` is a int"):
        LatentPrefixLM(3)
    with pytest.raises(ValueError, match="build it with width=16"):
        LatentPrefixLM(tiny(), LowRank(8, rank=2))


def test_bad_folders_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"holds no config\.json"):
        LatentPrefixLM.from_pretrained(tmp_path)
    tiny().config.save_pretrained(tmp_path)
    with pytest.raises(DataError, match="holds no weights"):
        LatentPrefixLM.from_pretrained(tmp_path)
    file = tmp_path / "a.txt"
    file.write_text("x")
    with pytest.raises(DataError, match="a file; give the model's folder"):
        LatentPrefixLM.from_pretrained(file)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="`rank` is 20, but embeddings have 16"):
        LowRank(WIDTH, rank=20)
    with pytest.raises(ValueError, match=r"`size` is -1.0; it must be positive"):
        Gated(WIDTH, rank=2, size=-1.0)
    model = LatentPrefixLM(tiny(), LowRank(WIDTH, rank=2))
    with pytest.raises(ValueError, match="`draws` is 0"):
        model.draw_logits(ids(), 0, seeded(0))
    with pytest.raises(ValueError, match="context is 24"):
        model.draw_logits(ids(1, 25), 1, seeded(0))
    with pytest.raises(ValueError, match="`batch` must be"):
        model.draw_logits(torch.zeros(2, 3), 1, seeded(0))
    with pytest.raises(ValueError, match=r"expected \(B, T\)"):
        model.generate(torch.zeros(3, dtype=torch.long))
    assert isinstance(TokenBatch(ids(), ids()), TokenBatch)
