"""Generation: transformers' own results, and the same walk without a cache."""

import pytest
import torch
from latent_families import CONTEXT, FAMILIES, WIDTH, byte, ids, seeded
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    StoppingCriteriaList,
)

from eestim.errors import CapabilityError
from eestim.llm.averaging import average_log_probabilities
from eestim.llm.base import byte_tokenizer
from eestim.llm.baselines import (
    Deletion,
    Insertion,
    Neighbours,
    Swap,
    SymNoise,
    with_lora,
    with_prefix_tuning,
    with_soft_prompt,
)
from eestim.llm.perturbations import (
    ContextAttention,
    ContextMLP,
    LowRank,
    SurpriseGated,
)
from eestim.llm.prefix import LatentPrefixLM

every_family = pytest.mark.parametrize("family", FAMILIES)
PROMPT = 6


def silent():
    """Return a perturbation that moves nothing, though draws differ."""
    perturbation = LowRank(WIDTH, rank=3)
    torch.nn.init.zeros_(perturbation.directions)
    return perturbation


def awake(kind):
    perturbation = kind(WIDTH, rank=3, size=3.0, hidden=4)
    torch.nn.init.normal_(perturbation.second, generator=seeded(0))
    return perturbation


def greedy_of_transformers(base, prompt, new, mask=None, **options):
    return base.generate(
        prompt,
        max_new_tokens=new,
        do_sample=False,
        attention_mask=torch.ones_like(prompt) if mask is None else mask,
        **options,
    )


@every_family
@pytest.mark.parametrize("site", [0, 2])
def test_one_silent_draw_is_greedy_search_of_transformers(family, site):
    base = family()
    expected = greedy_of_transformers(base, ids(3, PROMPT), 12)
    model = LatentPrefixLM(base, silent(), site=site)
    for options in ({"draws": 1}, {"draws": 3}, {"draws": 1, "use_cache": False}):
        assert torch.equal(model.generate(ids(3, PROMPT), 12, **options), expected)
    moved = LatentPrefixLM(base, LowRank(WIDTH, rank=3, size=9.0), site=site)
    assert not torch.equal(moved.generate(ids(3, PROMPT), 12, draws=1), expected)


def walks(model, prompt, new):
    """Continue with and without a cache."""
    return [
        model.generate(
            prompt, new, draws=4, do_sample=True, generator=seeded(3), use_cache=cached
        )
        for cached in (True, False)
    ]


@every_family
@pytest.mark.parametrize("site", [0, 1, 3])
def test_with_cache_equals_without(family, site):
    model = LatentPrefixLM(family(), awake(ContextMLP), site=site)
    assert torch.equal(*walks(model, ids(2, PROMPT), 6))


@pytest.mark.parametrize("latent", ["position", "sequence"])
@pytest.mark.parametrize(
    "perturbation",
    [
        LowRank(WIDTH, rank=3, size=3.0),
        awake(ContextAttention),
        awake(SurpriseGated),
        SymNoise(WIDTH, alpha=20.0, length=CONTEXT),
    ],
)
def test_with_cache_equals_without_for_every_kind(perturbation, latent):
    model = LatentPrefixLM(byte(), perturbation, site=2, latent=latent)
    assert torch.equal(*walks(model, ids(2, PROMPT), 6))


@every_family
@pytest.mark.parametrize("site", [0, 2])
@pytest.mark.parametrize("kind", [ContextMLP, SurpriseGated])
def test_laws_along_the_walk_equal_one_teacher_forced_pass(family, site, kind):
    """Same latents: those of the prompt at once, then one position at a time."""
    model = LatentPrefixLM(family(), awake(kind), site=site)
    seen = []

    def keep(_tokens, scores):
        seen.append(scores)
        return scores

    tokens = model.generate(
        ids(2, PROMPT),
        5,
        draws=3,
        do_sample=False,
        generator=seeded(4),
        logits_processor=LogitsProcessorList([keep]),
        eos_token_id=[],
    )
    generator = seeded(4)
    states = model.embed(tokens[:, :-1])
    parts = [model.latents(states[:, :PROMPT], 3, generator)]
    parts += [model.latents(states[:, :1], 3, generator) for _ in range(4)]
    logits = model.logits_of(model.perturb(states, torch.cat(parts, 2)))
    law = average_log_probabilities(logits)[:, PROMPT - 1 :]
    torch.testing.assert_close(torch.stack(seen, 1), law, rtol=1e-4, atol=1e-4)


@every_family
@pytest.mark.parametrize("site", [0, 2])
def test_left_padding_changes_nothing(family, site):
    base = family()
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), ids(2, PROMPT)], 1)
    mask = (padded > 0).long()
    expected = greedy_of_transformers(base, padded, 8, mask)
    model = LatentPrefixLM(base, silent(), site=site)
    found = model.generate(padded, 8, draws=2, attention_mask=mask)
    assert torch.equal(found, expected)
    assert torch.equal(found[:, 3:], model.generate(ids(2, PROMPT), 8, draws=2))
    again = model.generate({"input_ids": padded, "attention_mask": mask}, 8, draws=2)
    assert torch.equal(found, again)
    blind = model.generate(padded, 8, draws=2)  # without the mask, pads are read
    assert not torch.equal(blind, found)


@pytest.mark.parametrize("kind", [ContextMLP, ContextAttention, SurpriseGated])
def test_contexts_do_not_read_padding(kind, monkeypatch):
    """Latents of one vector everywhere, so that they do not depend on the layout."""
    model = LatentPrefixLM(byte(), awake(kind), site=1)
    vector = torch.randn(4, 1, 1, 3, generator=seeded(1))
    monkeypatch.setattr(
        model, "latents", lambda e, *_: vector.expand(4, *e.shape[:-1], 3)
    )
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), ids(2, PROMPT)], 1)
    found = model.generate(padded, 8, attention_mask=(padded > 0).long())
    assert torch.equal(found[:, 3:], model.generate(ids(2, PROMPT), 8))


def test_right_padding_is_refused():
    mask = torch.tensor([[1, 1, 1, 1, 1, 0]])
    with pytest.raises(ValueError, match="padding_side='left'"):
        LatentPrefixLM(byte()).generate(ids(1, PROMPT), 2, attention_mask=mask)


def test_one_latent_for_each_sequence_is_kept(monkeypatch):
    model = LatentPrefixLM(byte(), LowRank(WIDTH, rank=3), latent="sequence")
    shown = []
    own = model.moved

    def watch(states, latents, start):
        shown.append(latents)
        return own(states, latents, start)

    monkeypatch.setattr(model, "moved", watch)
    model.generate(ids(2, PROMPT), 4, draws=3, eos_token_id=[])
    assert len(shown) == 4
    assert all((z == shown[0][:, :, :1]).all() for z in shown)


def test_next_token_is_sampled_from_the_averaged_law():
    """Frequencies of 4,000 tokens at temperature 1/4 against the law."""
    model = LatentPrefixLM(byte(), silent())
    prompt = ids(1, PROMPT)
    law = average_log_probabilities(model.draw_logits(prompt, 1, seeded(0)))[0, -1]
    law = law.detach()
    found = model.generate(
        prompt, 1, draws=1, do_sample=True, num_return_sequences=4000,
        generator=seeded(7), temperature=0.25,
    )[:, -1]  # fmt: skip
    top = law.topk(5).indices

    def cells(p):
        return torch.cat([p[top], (1 - p[top].sum())[None]])

    expected = cells((law / 0.25).softmax(-1))
    observed = cells(torch.bincount(found, minlength=259) / len(found))
    error = (expected * (1 - expected) / len(found)).sqrt()
    assert ((observed - expected).abs() < 4 * error).all()
    flat = cells((law / 0.5).softmax(-1))  # negative control: another temperature
    assert not ((observed - flat).abs() < 4 * error).all()


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.5},
        {"top_k": 3},
        {"top_p": 0.6},
        {"min_p": 0.3},
        {"top_k": 20, "top_p": 0.8, "temperature": 1.7},
        {"bad_words_ids": [[7], [9]]},
        {"no_repeat_ngram_size": 1},
    ],
)
def test_settings_give_the_law_of_transformers(options):
    """Scores after all processors, up to a constant, where one draw moves nothing."""
    base = byte()
    own = base.generate(
        ids(2, PROMPT), max_new_tokens=1, do_sample=True, output_scores=True,
        return_dict_in_generate=True, attention_mask=torch.ones(2, PROMPT),
        **{"top_k": 0, **options},
    ).scores[0]  # fmt: skip
    scores = []
    model = LatentPrefixLM(base, silent())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "eestim.llm.generation._choose",
            lambda s, *_: scores.append(s) or s.argmax(-1),
        )
        model.generate(ids(2, PROMPT), 1, draws=1, do_sample=True, **options)
    torch.testing.assert_close(scores[0].softmax(-1), own.softmax(-1))


def test_end_symbols_padding_and_lengths_follow_transformers():
    base = byte()
    free = greedy_of_transformers(base, ids(3, PROMPT), 10, eos_token_id=[])
    ends = [int(free[0, PROMPT + 3]), int(free[1, PROMPT + 1])]
    model = LatentPrefixLM(base, silent())
    for options in (
        {"eos_token_id": ends},
        {"eos_token_id": ends[0], "pad_token_id": 5},
        {"eos_token_id": ends, "min_new_tokens": 6},
    ):
        expected = greedy_of_transformers(base, ids(3, PROMPT), 10, **options)
        assert torch.equal(model.generate(ids(3, PROMPT), 10, **options), expected)
    config = GenerationConfig(max_length=PROMPT + 4, eos_token_id=ends, pad_token_id=3)
    expected = base.generate(
        ids(3, PROMPT), generation_config=config, attention_mask=torch.ones(3, PROMPT)
    )
    found = model.generate(ids(3, PROMPT), generation_config=config)
    assert torch.equal(found, expected)
    base.generation_config.eos_token_id = ends[0]  # the base's own comes first
    assert (model.generate(ids(1, PROMPT), 10)[0, -1]) == ends[0]


def test_stop_strings_and_criteria():
    tokenizer = byte_tokenizer()
    model = LatentPrefixLM(byte(), silent(), tokenizer)
    free = model.generate(ids(1, PROMPT), 10, eos_token_id=[])[0]
    third = int(free[PROMPT + 2])
    criteria = StoppingCriteriaList([lambda t, _s, **_: t[:, -1] == third])
    stopped = model.generate(
        ids(1, PROMPT), 10, eos_token_id=[], stopping_criteria=criteria
    )
    first = int((free[PROMPT:] == third).nonzero()[0])
    assert torch.equal(stopped[0], free[: PROMPT + first + 1])
    with pytest.raises(ValueError, match="needs the model's tokenizer"):
        LatentPrefixLM(byte()).generate(ids(1, PROMPT), 2, stop_strings=["x"])


def test_seeds_and_independent_return_sequences():
    model = LatentPrefixLM(byte(), LowRank(WIDTH, rank=3, size=3.0))
    options = {"do_sample": True, "num_return_sequences": 3, "draws": 2}
    first, again, other = (
        model.generate(ids(2, PROMPT), 8, generator=seeded(s), **options)
        for s in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == (6, PROMPT + 8)
    assert len(torch.unique(first, dim=0)) == 6
    assert torch.equal(first[:3, :PROMPT], ids(2, PROMPT)[:1].expand(3, -1))


@pytest.mark.parametrize("add", [with_lora, with_soft_prompt, with_prefix_tuning])
@every_family
def test_adapted_bases_continue_as_their_own_argmax(family, add):
    base = add(family())
    for p in base.parameters():
        if p.requires_grad:
            p.data.normal_(generator=seeded(2))
    model = LatentPrefixLM(base, silent())
    tokens = ids(2, PROMPT)
    for _ in range(4):
        tokens = torch.cat(
            [tokens, base(input_ids=tokens).logits[:, -1:].argmax(-1)], 1
        )
    found = model.generate(ids(2, PROMPT), 4, draws=1, eos_token_id=[])
    assert torch.equal(found, tokens)


@pytest.mark.parametrize(
    "change", [Neighbours.of(byte()), Insertion(259), Deletion(0.2), Swap(0.2)]
)
def test_changed_prefixes_are_continued_with_one_change_for_each_token(change):
    model = LatentPrefixLM(byte(), change)
    tokens = model.generate(
        ids(2, PROMPT), 5, draws=4, generator=seeded(1), eos_token_id=[]
    )
    noise = change.noise(4, 2, PROMPT + 5, seeded(1))
    logits = model.of_changed(tokens, noise)
    best = average_log_probabilities(logits).argmax(-1)
    assert torch.equal(best[:, PROMPT - 1 : -1], tokens[:, PROMPT:])


def test_what_cannot_be_followed_is_refused():
    model = LatentPrefixLM(byte(), LowRank(WIDTH, rank=3))
    prompt = ids(1, PROMPT)
    with pytest.raises(CapabilityError, match="`num_beams` is 4"):
        model.generate(prompt, 2, num_beams=4)
    with pytest.raises(CapabilityError, match="`return_dict_in_generate` is True"):
        model.generate(prompt, 2, return_dict_in_generate=True)
    base = byte()
    base.generation_config.suppress_tokens = [5]  # its own setting, not the caller's
    with pytest.raises(CapabilityError, match="`suppress_tokens` is"):
        LatentPrefixLM(base).generate(prompt, 2)
    with pytest.raises(TypeError, match="no argument 'temprature'"):
        model.generate(prompt, 2, temprature=2.0)
    with pytest.raises(ValueError, match="do not support `num_return_sequences`"):
        model.generate(prompt, 2, num_return_sequences=2)
    with pytest.raises(ValueError, match=f"context is {CONTEXT}"):
        model.generate(prompt, CONTEXT)
    with pytest.raises(ValueError, match="leaves -2 tokens"):
        model.generate(prompt, max_length=PROMPT - 2)
    with pytest.raises(ValueError, match="`draws` is 0"):
        model.generate(prompt, 2, draws=0)
    padded = {"attention_mask": torch.tensor([[0, 1, 1, 1, 1, 1]])}
    with pytest.raises(CapabilityError, match="does not take padded rows"):
        LatentPrefixLM(byte(), Deletion(0.1)).generate(prompt, 2, **padded)
