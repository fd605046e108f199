"""transformers' generation settings, as far as averaged predictions follow them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteriaList,
    StopStringCriteria,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from eestim.errors import CapabilityError

__all__ = ["criteria", "end_symbols", "processors", "settings_in_force", "token_budget"]

_FOLLOWED = frozenset(
    {
        "bad_words_ids",
        "bos_token_id",
        "do_sample",
        "eos_token_id",
        "max_length",
        "max_new_tokens",
        "min_new_tokens",
        "min_p",
        "no_repeat_ngram_size",
        "num_return_sequences",
        "pad_token_id",
        "repetition_penalty",
        "stop_strings",
        "temperature",
        "top_k",
        "top_p",
        "use_cache",
    }
)
_NEUTRAL = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "length_penalty": 1.0,
    "typical_p": 1.0,
    "encoder_repetition_penalty": 1.0,
}
_UNREAD = frozenset(  # of searches and models that are refused, or of no consequence
    {
        "assistant_confidence_threshold",
        "assistant_lookbehind",
        "disable_compile",
        "num_assistant_tokens",
        "num_assistant_tokens_schedule",
        "target_lookbehind",
        "transformers_version",
    }
)
_DEFAULT_NEW = 64


def settings_in_force(
    model: Any, given: GenerationConfig | None, single: dict[str, Any]
) -> GenerationConfig:
    """Return the settings in force, after refusing those that cannot be followed."""
    make: Any = GenerationConfig
    own = getattr(model.base, "generation_config", None) or make()
    config: Any = copy.deepcopy(own)
    asked = {} if given is None else given.to_diff_dict()
    asked |= {name: value for name, value in single.items() if value is not None}
    asked.pop("transformers_version", None)
    if single.get("max_new_tokens") is not None:
        config.max_length = None
        if "max_length" not in single:
            asked.pop("max_length", None)
    unknown = config.update(**asked)
    if unknown:
        raise TypeError(f"`generate` has no argument {sorted(unknown)[0]!r}.")
    for name, value in config.to_dict().items():
        is_meta = name.startswith("_") or name in _UNREAD or name in _FOLLOWED
        if not is_meta and value and value != _NEUTRAL.get(name):
            raise CapabilityError(
                f"`{name}` is {value!r}, which averaged predictions do not follow; "
                f"set it to its default. Followed are {', '.join(sorted(_FOLLOWED))}."
            )
    followed: GenerationConfig = config
    return followed


def token_budget(model: Any, config: GenerationConfig, length: int) -> int:
    """Return the number of new tokens at most."""
    new = config.max_new_tokens
    if new is None:
        new = _DEFAULT_NEW if config.max_length is None else config.max_length - length
    if new < 1:
        raise ValueError(
            f"`max_new_tokens` leaves {new} tokens to generate after a prompt of "
            f"{length}; raise it, or `max_length`."
        )
    model.check_context(length + new)
    return int(new)


def processors(
    config: GenerationConfig, prompt: Tensor, own: LogitsProcessorList | None
) -> Any:
    """Return transformers' processors and, if sampling, warpers that are set."""
    chosen = LogitsProcessorList()
    ends = end_symbols(config, prompt)
    if config.repetition_penalty not in (None, 1.0):
        chosen.append(RepetitionPenaltyLogitsProcessor(config.repetition_penalty))
    if config.no_repeat_ngram_size:
        chosen.append(NoRepeatNGramLogitsProcessor(config.no_repeat_ngram_size))
    if config.bad_words_ids is not None:
        chosen.append(NoBadWordsLogitsProcessor(config.bad_words_ids, ends))
    if config.min_new_tokens and len(ends):
        chosen.append(
            MinNewTokensLengthLogitsProcessor(
                prompt.shape[1],
                config.min_new_tokens,
                ends,
                device=str(prompt.device),
            )
        )
    chosen.extend(own or [])
    if config.do_sample:
        if config.temperature not in (None, 1.0):
            chosen.append(TemperatureLogitsWarper(float(config.temperature)))
        if config.top_k:
            chosen.append(TopKLogitsWarper(config.top_k))
        if config.top_p is not None and config.top_p < 1.0:
            chosen.append(TopPLogitsWarper(config.top_p))
        if config.min_p is not None:
            chosen.append(MinPLogitsWarper(config.min_p))
    return chosen


def end_symbols(config: GenerationConfig, like: Tensor) -> Tensor:
    """Return the end symbols, as one tensor."""
    ends = config.eos_token_id
    ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
    return torch.tensor(ends, dtype=torch.long, device=like.device)


def criteria(
    model: Any, config: GenerationConfig, own: StoppingCriteriaList | None
) -> Any:
    """Return what tells, from tokens and scores, which rows have ended."""
    rules = StoppingCriteriaList(own or [])
    if config.stop_strings is not None:
        if model.tokenizer is None:
            raise ValueError(
                "`stop_strings` needs the model's tokenizer; give LatentPrefixLM one, "
                "or stop by `eos_token_id`."
            )
        rules.append(StopStringCriteria(model.tokenizer, config.stop_strings))

    def stop(tokens: Tensor, scores: Tensor) -> Tensor:
        ended = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
        for one in rules:
            ended = ended | torch.as_tensor(one(tokens, scores), device=tokens.device)
        return ended

    return stop
