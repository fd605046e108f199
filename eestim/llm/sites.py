"""Where a causal model is entered and left: its head, its blocks, and one site.

Every pass goes through the base's own forward, so rotary embeddings and caches stay
its own business; single modules are switched off meanwhile. A row may hold several
documents, or begin with padding: `start` (B, T) is the first position of each token's
own document, and from it follow the position, t - start, and the mask.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eestim.errors import CapabilityError

__all__ = [
    "Site",
    "block_mask",
    "bypassed",
    "decoder_layers",
    "linear_head",
    "site_index",
    "virtual_tokens",
]


def _first(hidden: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden


@contextmanager
def bypassed(
    modules: Iterable[nn.Module], instead: Callable[..., Any] = _first
) -> Iterator[None]:
    """Make modules return their first argument while the context lasts.

    Parameters
    ----------
    modules : iterable of Module
    instead : callable, optional
        Used as their forward in place of that.

    Examples
    --------
    >>> layer = nn.Linear(2, 3)
    >>> with bypassed([layer]):
    ...     layer(torch.ones(2))
    tensor([1., 1.])
    """
    changed = [(module, module.__dict__.get("forward")) for module in modules]
    for module, _ in changed:
        module.forward = instead
    try:
        yield
    finally:
        for module, own in changed:
            if own is None:
                del module.forward
            else:
                module.forward = own


def output_head(base: Any) -> nn.Module | None:
    """Return the module that gives logits, or None where the base names none."""
    find = getattr(base, "get_output_embeddings", None)
    return None if find is None else find()


def linear_head(base: Any) -> nn.Linear | None:
    """Return the output head if it is one plain linear map, else None.

    A head with an adapter of its own is not: its weight alone does not give logits.
    """
    head = output_head(base)
    return head if type(head) is nn.Linear else None


def decoder_layers(base: Any) -> nn.ModuleList:
    """Return the list of transformer blocks of any Hugging Face causal model.

    Raises
    ------
    CapabilityError
        If no list of modules has the configured number of layers.
    """
    config = base.config
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    count = getattr(config, "num_hidden_layers", None)
    for module in base.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise CapabilityError(
        f"`base` ({type(base).__name__}) has no list of {count} blocks, so no site "
        "after a block; use site='embeddings'."
    )


def site_index(site: str | int, base: Any) -> int:
    """Return 0 for "embeddings", or l for the states after block l.

    Examples
    --------
    >>> from eestim.llm import byte_model
    >>> base = byte_model(8, width=8, layers=2, heads=2)
    >>> site_index("embeddings", base), site_index(2, base)
    (0, 2)
    """
    if site in ("embeddings", 0) and not isinstance(site, bool):
        return 0
    known = isinstance(site, int) and not isinstance(site, bool)
    blocks = len(decoder_layers(base))
    if not known or not 1 <= int(site) <= blocks:
        raise ValueError(
            f"`site` is {site!r}; expected 'embeddings', or a block from 1 to "
            f"{blocks}, after which the states are perturbed."
        )
    return int(site)


def virtual_tokens(base: Any) -> int:
    """Return the number of soft prompt tokens that peft puts before every row."""
    config = getattr(base, "active_peft_config", None)
    if config is None or not config.is_prompt_learning:
        return 0
    return int(config.num_virtual_tokens)


def block_mask(start: Tensor, queries: int, dtype: torch.dtype) -> Tensor:
    """Return the additive mask by which a token sees its own document's past.

    Parameters
    ----------
    start : (B, T) tensor
        First position of each token's document.
    queries : int
        The last positions of the row that look back.

    Returns
    -------
    (B, 1, queries, T) tensor
        0 where seen, the least number elsewhere.

    Examples
    --------
    >>> (block_mask(torch.tensor([[0, 0, 2]]), 3, torch.float32) == 0).int()[0, 0]
    tensor([[1, 0, 0],
            [1, 1, 0],
            [0, 0, 1]], dtype=torch.int32)
    """
    place = torch.arange(start.shape[1], device=start.device)
    first = start[:, -queries:, None]
    seen = (place <= place[-queries:, None]) & (place >= first)
    mask = torch.zeros(seen.shape, dtype=dtype, device=start.device)
    return mask.masked_fill(~seen, torch.finfo(dtype).min).unsqueeze(1)


@dataclass(frozen=True, slots=True)
class Site:
    """The states of a base at its input embeddings (0) or after block `index`.

    The blocks below run once for each row, whatever the number of draws: `states`
    gives the clean states there, and `logits` goes on from any number of perturbed
    copies of them.
    """

    base: Any
    index: int

    def states(
        self, embeddings: Tensor, start: Tensor | None = None, cache: Any = None
    ) -> Tensor:
        """Return the (B, T, width) states of embeddings, running the lower blocks."""
        if self.index == 0:
            return embeddings
        layers = decoder_layers(self.base)
        head = output_head(self.base)
        found: list[Any] = []
        hook = layers[self.index - 1].register_forward_hook(
            lambda _module, _given, output: found.append(output)
        )
        idle = [*layers[self.index :], *([] if head is None else [head])]
        try:
            with bypassed(idle):
                self._call(embeddings, start, cache)
        finally:
            hook.remove()
        if not found:
            raise CapabilityError(
                f"`base` ({type(self.base).__name__}) does not run block {self.index} "
                "of the list of blocks found in it; use site='embeddings'."
            )
        states: Tensor = found[0][0] if isinstance(found[0], tuple) else found[0]
        return states

    def logits(
        self,
        states: Tensor,
        start: Tensor | None = None,
        cache: Any = None,
        only_last: bool = False,
    ) -> Tensor:
        """Return the (N, T, V) logits of N rows of states, running the upper blocks.

        `start` has B rows where N = K B, or N. With `only_last` a base that can give
        the last position alone does so.
        """
        if self.index == 0:
            return self._call(states, start, cache, only_last)
        layers = decoder_layers(self.base)
        with (
            bypassed(layers[: self.index - 1]),
            bypassed([layers[self.index - 1]], lambda *_, **__: states),
        ):
            return self._call(states, start, cache, only_last)

    def _call(
        self,
        embeddings: Tensor,
        start: Tensor | None,
        cache: Any,
        only_last: bool = False,
    ) -> Tensor:
        """Return the base's logits at the positions of the embeddings given."""
        rows, length = embeddings.shape[:2]
        options: dict[str, Any] = {"use_cache": cache is not None}
        known = _arguments(self.base)
        if only_last and "logits_to_keep" in known:
            options["logits_to_keep"] = 1
        if cache is not None:  # it was renamed
            options["cache" if "cache" in known else "past_key_values"] = cache
        if start is not None:
            check_masks(self.base)
            place = torch.arange(start.shape[1], device=start.device)
            repeats = rows // start.shape[0]
            mask = block_mask(start, length, embeddings.dtype)
            options["attention_mask"] = mask.repeat(repeats, 1, 1, 1)
            position = (place - start)[:, -length:]
            options["position_ids"] = position.repeat(repeats, 1)
        logits: Tensor = self.base(inputs_embeds=embeddings, **options).logits
        return logits[:, -length:]  # without soft prompt tokens, where there are any


def check_masks(base: Any) -> None:
    """Refuse a base that cannot follow a mask of its own for each row."""
    kind = str(getattr(base.config, "_attn_implementation", ""))
    kinds = getattr(base.config, "layer_types", None) or ()
    if kind not in ("eager", "sdpa", ""):
        raise CapabilityError(
            f"`base` uses {kind} attention, which takes no mask for each row; load it "
            "with attn_implementation='sdpa' for packed or padded rows and for sites "
            "after a block."
        )
    if any(name != "full_attention" for name in kinds):
        raise CapabilityError(
            f"`base` ({type(base).__name__}) mixes kinds of attention "
            f"({', '.join(sorted(set(kinds)))}), which one mask for each row would "
            "override; use one document a row, without padding on the left."
        )
    if virtual_tokens(base):
        raise CapabilityError(
            "`base` puts soft prompt tokens before each row, which packed rows, "
            "padding on the left and sites after a block cannot share; use one "
            "document a row and site='embeddings'."
        )


def _arguments(base: Any) -> Mapping[str, Any]:
    """Return the arguments of the base's own forward, under an adapter or not."""
    inner = base.get_base_model() if hasattr(base, "get_base_model") else base
    return inspect.signature(inner.forward).parameters
