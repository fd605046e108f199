"""Where a causal model is entered and left: its head and its blocks.

Every pass goes through the base's own forward, so position ids, rotary embeddings and
masks stay its own business; single modules are switched off or hooked meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

__all__ = ["bypassed", "linear_head"]


def _first(hidden: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden


@contextmanager
def bypassed(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Make modules return their first argument while the context lasts.

    Examples
    --------
    >>> import torch
    >>> layer = nn.Linear(2, 3)
    >>> with bypassed([layer]):
    ...     layer(torch.ones(2))
    tensor([1., 1.])
    """
    changed = [(module, module.__dict__.get("forward")) for module in modules]
    for module, _ in changed:
        module.forward = _first
    try:
        yield
    finally:
        for module, own in changed:
            if own is None:
                del module.forward
            else:
                module.forward = own


def linear_head(base: Any) -> nn.Linear | None:
    """Return the output head if it is one plain linear map, else None.

    A head with an adapter of its own is not: its weight alone does not give logits.
    """
    find = getattr(base, "get_output_embeddings", None)
    head = None if find is None else find()
    return head if type(head) is nn.Linear else None
