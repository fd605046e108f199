"""What a base, a device and its memory can take, checked before they fail obscurely."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eestim.llm.directions import Perturbation
from eestim.llm.discrete import TokenPerturbation
from eestim.llm.sites import Site, bypassed, linear_head, virtual_tokens

__all__ = [
    "check_base",
    "check_context",
    "check_device",
    "check_independence",
    "check_memory",
    "check_perturbation",
    "check_site",
    "check_tokenizer",
]


def check_perturbation(perturbation: Any) -> None:
    """Refuse what is neither a perturbation of embeddings nor one of tokens."""
    if isinstance(perturbation, Perturbation | TokenPerturbation | None):
        return
    kind, made = type(perturbation).__name__, "for example LowRank(width, rank=16)"
    if isinstance(perturbation, type):
        kind, made = f"the class {perturbation.__name__}", "make one of it"
    raise TypeError(
        f"`perturbation` is {kind}; expected a Perturbation, {made}, a "
        "TokenPerturbation, or None."
    )


def check_base(base: Any, width: int | None) -> bool:
    """Check that the base takes, and uses, embeddings of the right width.

    Return whether its logits are its head's linear map of the last hidden states.
    """
    if not isinstance(base, nn.Module) or not hasattr(base, "get_input_embeddings"):
        raise TypeError(
            f"`base` is a {type(base).__name__}; expected a Hugging Face causal "
            "language model, such as AutoModelForCausalLM gives."
        )
    if "inputs_embeds" not in inspect.signature(base.forward).parameters:
        raise TypeError(
            f"`base` ({type(base).__name__}) does not take `inputs_embeds`; a prefix "
            "can only be perturbed in a model that reads embeddings."
        )
    call: Any = base
    table = call.get_input_embeddings()
    own_width = table.weight.shape[1]
    if width is not None and width != own_width:
        raise ValueError(
            f"`perturbation` has width {width}, but the embeddings of `base` have "
            f"{own_width} coordinates; build it with width={own_width}."
        )
    base.eval()
    ids = torch.arange(2, device=table.weight.device).unsqueeze(0)
    with torch.no_grad():
        clean = table(ids)
        given = call(inputs_embeds=clean, use_cache=False).logits
        other = call(inputs_embeds=clean.flip(-1) + 1, use_cache=False).logits
        own = call(input_ids=ids, use_cache=False).logits
    if not bool(torch.isfinite(own).all()):
        raise ValueError(
            f"`base` ({type(base).__name__}) gives logits that are not finite"
            f"{_not_finite(base)}; load its weights again, or in a wider dtype."
        )
    if torch.equal(given, other) or not torch.allclose(given, own, 1e-2, 1e-3):
        raise ValueError(
            f"`base` ({type(base).__name__}) ignores or alters `inputs_embeds`: its "
            "logits do not follow them. Use a model that reads its input embeddings."
        )
    head = linear_head(call)
    if head is None:
        return False
    with torch.no_grad(), bypassed([head]):
        hidden = call(inputs_embeds=clean, use_cache=False).logits
    with torch.no_grad():
        return torch.equal(head(hidden), given)


def _not_finite(base: nn.Module) -> str:
    """Return where its weights are not finite, as the end of a phrase."""
    for name, value in base.named_parameters():
        if not bool(torch.isfinite(value).all()):
            return f", because of its weight {name}"
    return ", though its weights are"


@torch.no_grad()
def check_site(site: Site) -> None:
    """Check that entering a base at its site changes nothing.

    Raises
    ------
    ValueError
        If it does: the base keeps something between its blocks that a site loses.
    """
    if site.index == 0:
        return
    if virtual_tokens(site.base):
        raise ValueError(
            f"`site` is {site.index}, but `base` puts soft prompt tokens before each "
            "row; use site='embeddings'."
        )
    table = site.base.get_input_embeddings()
    ids = torch.tensor([[0, 1, 0]], device=table.weight.device)
    whole = site.base(input_ids=ids, use_cache=False).logits
    parts = site.logits(site.states(table(ids)))
    if not torch.allclose(whole, parts, 1e-2, 1e-3):
        raise ValueError(
            f"`base` ({type(site.base).__name__}) cannot be entered after block "
            f"{site.index}: its logits change. Use site='embeddings'."
        )


def check_tokenizer(tokenizer: Any, base: Any) -> None:
    """Refuse a tokenizer with more tokens than the base has embeddings."""
    rows = base.get_input_embeddings().weight.shape[0]
    try:
        size = len(tokenizer)
    except TypeError:
        return
    if size > rows:
        raise ValueError(
            f"`tokenizer` has {size} tokens, but `base` has {rows} embeddings; use the "
            f"base's own tokenizer, or call base.resize_token_embeddings({size})."
        )


def check_context(base: Any, length: int) -> None:
    """Refuse more positions than the base has."""
    limit = getattr(base.config, "max_position_embeddings", None)
    if limit is None:
        return
    own = virtual_tokens(base)
    if length + own > limit:
        room = limit - own
        prompt = f", of which soft prompts take {own}" if own else ""
        raise ValueError(
            f"`batch` has {length} positions, but the base's context is {limit} "
            f"tokens{prompt}; cut texts into blocks of {room} or less."
        )


def check_device(device: str | torch.device) -> torch.device:
    """Return a device after checking that this machine has it.

    Examples
    --------
    >>> check_device("cpu")
    device(type='cpu')
    """
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ValueError(
            f"`device` is {device!r}, which torch does not know; use 'cpu', 'cuda', or "
            "'cuda:1' for the second GPU."
        ) from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"`device` is {str(device)!r}, but torch sees no GPU here; use "
            "device='cpu', or install a CUDA build of torch on a machine with one."
        )
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"`device` is {str(device)!r}, but there are only "
            f"{torch.cuda.device_count()} GPUs, from cuda:0."
        )
    return found


def check_independence(model: nn.Module, needed: int) -> None:
    """Refuse dependent draws where an equation needs `needed` > 1 independent ones."""
    if needed > 1 and not getattr(model, "has_latent", True):
        raise ValueError(
            f"`equation` needs {needed} independent draws, but `model` has no latent "
            "and gives one; give it a perturbation, or use NoiseAveraged(), which is "
            "maximum likelihood here."
        )
    if needed > 1 and not getattr(model, "independent_draws", True):
        perturbation = getattr(model, "perturbation", model)
        raise ValueError(
            f"`equation` needs {needed} independent draws, but those of {perturbation} "
            "depend on one another and would bias it; train with NoiseAveraged()."
        )


def check_memory(draws: int, like: Tensor, vocabulary: int) -> None:
    """Refuse logits that would not fit, before the machine stops.

    Their float32 softmax lies beside them. Rows and positions are those of `like`,
    (B, T, ...); the free memory is that of its device.
    """
    rows, length = like.shape[:2]
    count = draws * rows * length * vocabulary
    need = count * (like.element_size() + 4)
    free = _free_memory(like.device)
    if free is not None and need > free:
        raise ValueError(
            f"logits of {draws} draws, {rows} rows, {length} positions and a "
            f"vocabulary of {vocabulary} take {need / 2**30:.1f} GiB, but "
            f"{free / 2**30:.1f} GiB are free; lower `draws` or `batch_size`, or "
            "shorten the blocks (`context`). `fit` with head='auto' and `evaluate` "
            "never hold them: they work on `draw_hidden` in chunks of tokens."
        )


def _free_memory(device: torch.device) -> int | None:
    """Return the bytes that can be had on a device, or None where unknown."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + held)
    table = Path("/proc/meminfo")
    if device.type != "cpu" or not table.is_file():
        return None
    for line in table.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None
