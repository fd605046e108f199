r"""A perturbation whose scale depends on how surprising the prefix has been.

A frozen copy of the base, the reference, reads the clean prefix. The excess surprise
of a token is what its log loss adds to what the reference expected of it,

.. math:: d_t = -\log p_0(x_t \mid x_{<t}) - H_0(x_{<t}),

with the entropy :math:`H_0` of the reference's law. It has mean zero whatever the
prefix where the reference is right (a martingale difference), and drifts upward in
text that the reference does not know, so its running means tell, from the prefix
alone, how far the text is from what was trained on. They are known functions of x: an
equation that is unbiased for a perturbation of embeddings is so for this one too.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from eestim.llm.directions import Directional, rotations
from eestim.llm.sites import Site

__all__ = ["Reference", "SurpriseGated"]

# Memory of the running means: about 5, 10 and 30 tokens.
_DECAYS = (0.8, 0.9, 0.97)
# The means start as if this many tokens of no excess had gone before.
_PRIOR = 3.0
_FEATURES = len(_DECAYS) + 2


class Reference(nn.Module):
    """A frozen causal model that says how surprising each prefix was.

    Parameters
    ----------
    base : transformers causal language model
        Copied; neither training nor a perturbation changes the copy.
    """

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.base = copy.deepcopy(base).requires_grad_(False).eval()

    def features(self, ids: Tensor, start: Tensor | None = None) -> Tensor:
        """Return the surprise of the prefix up to each token.

        Parameters
        ----------
        ids : (B, T) int64 tensor
        start : (B, T) int64 tensor, optional
            First position of each token's document, where rows hold several.

        Returns
        -------
        (B, T, 5) tensor
            In nats: means of the excess surprise up to t with memories of 5, 10 and
            30 tokens, that of token t, and the entropy of the law after it.
        """
        return self.watch().extend(ids, start)

    def watch(self, *, cached: bool = False) -> Watch:
        """Return a reader of prefixes that grow, which reads each token once if cached.

        Without a cache it reads whole prefixes only.
        """
        return Watch(
            self.base, DynamicCache(config=self.base.config) if cached else None
        )


class Watch:
    """The surprise of rows that are read piece by piece, each piece once."""

    def __init__(self, base: Any, cache: Any = None) -> None:
        self.base, self.cache = base, cache
        self._last: Tensor | None = None  # log law after the last token read
        self._excess: Tensor | None = None

    @torch.no_grad()
    def extend(self, ids: Tensor, start: Tensor | None = None) -> Tensor:
        """Return the features (B, t, 5) of t further tokens, see `Reference`.

        `start` covers all tokens read so far, these included.
        """
        site = Site(self.base, 0)
        embeddings = self.base.get_input_embeddings()(ids)
        logits = site.logits(embeddings, start, self.cache).float()
        law = logits.log_softmax(-1)
        entropy = -(law.exp() * law).sum(-1)
        before, expected = law[:, :-1], entropy[:, :-1]
        known = ids[:, 1:]
        if self._last is not None:
            before = torch.cat([self._last.unsqueeze(1), before], 1)
            expected = _entropy(before)
            known = ids
        loss = -before.gather(-1, known.unsqueeze(-1)).squeeze(-1)
        excess = loss - expected
        if self._excess is None:  # a row's first token is not predicted
            excess = nn.functional.pad(excess, (1, 0))
        else:
            excess = torch.cat([self._excess, excess], 1)
        self._last, self._excess = law[:, -1], excess
        means = running_excess(excess, start)
        count = ids.shape[1]
        return torch.cat([means[:, -count:], entropy.unsqueeze(-1)], -1)


def _entropy(law: Tensor) -> Tensor:
    return -(law.exp() * law).sum(-1)


def running_excess(excess: Tensor, start: Tensor | None = None) -> Tensor:
    r"""Return discounted means of the excess surprise, and the excess itself.

    .. math:: \sum_j d^{t - j} x_j \big/ \big(3 + \sum_j d^{t - j}\big)

    over the tokens j of t's document, up to t and without its first, which nothing
    predicts.

    Parameters
    ----------
    excess : (B, T) tensor
    start : (B, T) tensor, optional

    Returns
    -------
    (B, T, 4) tensor
        For d = .8, .9 and .97; then the excess of t itself.

    Examples
    --------
    >>> found = running_excess(torch.tensor([[0.0, 3.9, 0.0]]))
    >>> [round(x, 4) for x in found[0, :, 1].tolist()]
    [0.0, 0.975, 0.7163]
    """
    place = torch.arange(excess.shape[1], device=excess.device)
    first = torch.zeros_like(place).expand(excess.shape) if start is None else start
    age = place.unsqueeze(-1) - place
    counts = (age >= 0) & (place > first.unsqueeze(-1))  # (B, T, T): t counts j
    own = excess.masked_fill(place == first, 0.0)
    means = []
    for decay in _DECAYS:
        weight = torch.where(counts, decay ** age.clamp(min=0).to(excess.dtype), 0.0)
        total = (weight @ own.unsqueeze(-1)).squeeze(-1)
        means.append(total / (_PRIOR + weight.sum(-1)))
    return torch.stack([*means, own], -1)


class SurpriseGated(Directional):
    r"""Low-rank noise whose scale depends on the surprise of the prefix.

    .. math::
        u_t = e_t + s_t \, C Z_t, \quad
        s_t = m \, \sigma\big(\ell + w^\top a_t + v^\top \mathrm{gelu}(W a_t + b)\big)

    with the features :math:`a_t` of `Reference.features`. The scale s starts at 1 for
    every prefix (w = v = 0, :math:`\ell = -\log(m - 1)`, fixed) and stays between 0
    and m. The model that it belongs to keeps a frozen copy of its base for the
    features, which costs one pass without draws.

    Parameters
    ----------
    width, rank, size, held, seed
        As for `LowRank`.
    hidden : int
        Width of the hidden layer.
    most : float
        m, the largest scale.
    slow : bool
        Let the three running means alone set the scale, linearly (W, v and the other
        two features are left out). Their mean is zero in the domain of the reference,
        so that `size` is about the scale there, and learning decides only how the
        scale changes with surprise. Where the base has adapted to text, its likelihood
        asks for no noise at all: a gate that can change its level there learns to
        switch off.

    Examples
    --------
    >>> SurpriseGated(8, rank=2, slow=True).n_parameters  # C 16, w 3
    19
    >>> gate = SurpriseGated(8, rank=2, hidden=4)
    >>> gate.n_parameters  # C 16, w 5, W and b 24, v 4
    49
    >>> states = torch.zeros(1, 3, 8 + 5)  # embeddings, then features
    >>> gate.scale(states).detach().squeeze().round(decimals=4)
    tensor([1., 1., 1.])
    """

    needs_reference = True

    def __init__(
        self,
        width: int,
        rank: int = 16,
        size: float = 1.0,
        *,
        hidden: int = 16,
        most: float = 4.0,
        slow: bool = False,
        held: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(width, rank, size, held, seed)
        if hidden < 1:
            raise ValueError(f"`hidden` is {hidden}; it must be at least 1.")
        if not most > 1:
            raise ValueError(
                f"`most` is {most}; it must exceed 1, the scale at the start."
            )
        self.hidden, self.most, self.slow = hidden, most, slow
        self.linear = nn.Parameter(torch.zeros(len(_DECAYS) if slow else _FEATURES))
        if slow:
            return
        generator = torch.Generator().manual_seed(seed + 1)
        first = torch.randn(hidden, _FEATURES, generator=generator)
        self.first = nn.Parameter(first / math.sqrt(_FEATURES))
        self.offset = nn.Parameter(torch.zeros(hidden))
        self.second = nn.Parameter(torch.zeros(hidden))

    def scale(self, states: Tensor) -> Tensor:
        """Return s (...) of states (..., width + 5): embeddings, then features.

        Embeddings without features stand for prefixes of no excess and no entropy.
        """
        known = states[..., self.width :]
        if known.shape[-1] == 0:
            known = states.new_zeros(*states.shape[:-1], _FEATURES)
        level = known[..., : len(self.linear)] @ self.linear - math.log(self.most - 1)
        if not self.slow:
            inner = nn.functional.gelu(known @ self.first.T + self.offset)
            level = level + inner @ self.second
        return self.most * torch.sigmoid(level)

    def forward(
        self,
        embeddings: Tensor,
        latent: Tensor,
        start: Tensor | None = None,  # noqa: ARG002 - the features know it
    ) -> Tensor:
        """Return e + s C Z, (K, ..., width), of embeddings with their features."""
        scale = self.scale(embeddings).unsqueeze(-1)
        return embeddings[..., : self.width] + scale * (latent @ self.matrix().T)

    def squared_size(self, embeddings: Tensor) -> Tensor:
        """Return tr(C C') times the mean squared scale."""
        return self.matrix().square().sum() * self.scale(embeddings).square().mean()

    def invariances(self) -> Tensor:
        """Return the rotations of C; the gate is identified."""
        tangents = rotations(self.directions.detach(), self.held)
        rest = self.n_parameters - len(tangents)
        return torch.cat([tangents, tangents.new_zeros(rest, tangents.shape[1])])

    def config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return super().config() | {
            "hidden": self.hidden,
            "most": self.most,
            "slow": self.slow,
        }
