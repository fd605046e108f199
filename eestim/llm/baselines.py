r"""What learned perturbations are measured against, in the same interface.

Each noise is a `Perturbation` without parameters: ``LatentPrefixLM(base, noise)``
draws, trains, predicts and saves as a learned one does. NEFTune and its kin train with
noise and predict without: evaluate ``model.without_latent()``; evaluating the model
itself averages over the noise instead. `fixed` freezes phi at its random start.
Adapters come from peft and become part of the base.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from eestim.llm.directions import Perturbation, check_positive
from eestim.llm.discrete import (
    Deletion,
    Insertion,
    Neighbours,
    Swap,
    TokenPerturbation,
)

__all__ = [
    "KINDS",
    "Deletion",
    "EmbeddingDropout",
    "Insertion",
    "NEFTune",
    "Neighbours",
    "Swap",
    "SymNoise",
    "fixed",
    "from_config",
    "with_lora",
    "with_prefix_tuning",
    "with_soft_prompt",
]


class _Scaled(Perturbation):
    r"""Base of the noises of scale :math:`\alpha / \sqrt{T d}`."""

    sees_prefix = False

    def __init__(self, width: int, alpha: float = 5.0, *, length: int) -> None:
        super().__init__(width, latent=width)
        check_positive("alpha", alpha)
        if length < 1:
            raise ValueError(f"`length` is {length}; it must be at least 1.")
        self.alpha, self.length = alpha, length

    @property
    def scale(self) -> float:
        r"""The scale :math:`\alpha / \sqrt{T d}` of each coordinate."""
        return self.alpha / math.sqrt(self.length * self.width)

    def config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {"width": self.width, "alpha": self.alpha, "length": self.length}


class NEFTune(_Scaled):
    r"""Uniform noise on each coordinate, :math:`u = e + \frac{\alpha}{\sqrt{Td}} U`.

    U is uniform on [-1, 1]. T is a number of the model here, not the length of each
    batch, so that a token's law does not depend on what follows it.

    Parameters
    ----------
    width : int
        Length d of an embedding.
    alpha : float
        5, 10 and 15 are customary.
    length : int
        Tokens T of a training block.

    References
    ----------
    Jain et al. (2023), NEFTune, arXiv 2310.05914.

    Examples
    --------
    >>> round(NEFTune(96, alpha=5.0, length=128).scale, 4)
    0.0451
    """

    def forward(
        self,
        embeddings: Tensor,
        latent: Tensor,
        start: Tensor | None = None,  # noqa: ARG002 - one law for every prefix
    ) -> Tensor:
        """Return e plus uniform noise, 2 Phi(Z) - 1 in units of the scale."""
        return embeddings + self.scale * torch.erf(latent / math.sqrt(2.0))

    def squared_size(self, embeddings: Tensor) -> Tensor:
        """Return the sum of the variances, alpha^2 / (3 T)."""
        return embeddings.new_tensor(self.scale**2 * self.width / 3)


class SymNoise(_Scaled):
    r"""Random signs and their opposites, :math:`u = e \pm \frac{\alpha}{\sqrt{Td}} S`.

    The second half of K draws has the opposite signs of the first, as the method
    trains on both; so draws come in dependent pairs, and only `NoiseAveraged` may
    train on them: an equation that needs independent draws would be biased. Arguments
    as for `NEFTune`.

    References
    ----------
    Yadav and Singh (2023), SymNoise, arXiv 2312.01523.
    """

    independent_draws = False

    def forward(
        self,
        embeddings: Tensor,
        latent: Tensor,
        start: Tensor | None = None,  # noqa: ARG002 - one law for every prefix
    ) -> Tensor:
        """Return e plus and minus the signs; K is 1 or even."""
        draws = len(latent)
        if draws > 1 and draws % 2:
            raise ValueError(
                f"`draws` is {draws}, but SymNoise draws pairs of opposite signs; "
                "set an even number, or 1."
            )
        signs = torch.where(latent >= 0, 1.0, -1.0).to(latent.dtype)
        if draws > 1:
            signs = torch.cat([signs[: draws // 2], -signs[: draws // 2]])
        return embeddings + self.scale * signs

    def squared_size(self, embeddings: Tensor) -> Tensor:
        """Return the sum of the variances, alpha^2 / T."""
        return embeddings.new_tensor(self.scale**2 * self.width)


class EmbeddingDropout(Perturbation):
    r"""Drop coordinates, or whole tokens, and enlarge the rest to keep the mean.

    .. math:: u = e \circ B / (1 - r), \quad P(B = 0) = r

    Parameters
    ----------
    width : int
    rate : float
        Probability r of a drop.
    whole : bool
        Drop a token's embedding altogether (word dropout).

    References
    ----------
    Gal and Ghahramani (2016), arXiv 1512.05287, section 4 on words.

    Examples
    --------
    >>> EmbeddingDropout(4, rate=0.2).squared_size(torch.ones(1, 4)).item()
    1.0
    """

    sees_prefix = False

    def __init__(self, width: int, rate: float = 0.1, *, whole: bool = False) -> None:
        super().__init__(width, latent=1 if whole else width)
        if not 0 < rate < 1:
            raise ValueError(f"`rate` is {rate}; it must lie between 0 and 1.")
        self.rate, self.whole = rate, whole

    def forward(
        self,
        embeddings: Tensor,
        latent: Tensor,
        start: Tensor | None = None,  # noqa: ARG002 - one law for every prefix
    ) -> Tensor:
        """Return e B / (1 - r), B = 1 where Phi(Z) >= r."""
        kept: Tensor = torch.special.ndtr(latent) >= self.rate
        return embeddings * kept.to(embeddings.dtype) / (1 - self.rate)

    def squared_size(self, embeddings: Tensor) -> Tensor:
        """Return the mean squared length of e times r / (1 - r)."""
        length: Tensor = embeddings.square().sum(-1).mean()
        return length * (self.rate / (1 - self.rate))

    def config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {"width": self.width, "rate": self.rate, "whole": self.whole}


def fixed(perturbation: Perturbation) -> Perturbation:
    """Freeze a perturbation at its start: the fixed random one of its scale.

    Examples
    --------
    >>> from eestim.llm import LowRank
    >>> any(p.requires_grad for p in fixed(LowRank(8, rank=2)).parameters())
    False
    """
    return perturbation.requires_grad_(False)


KINDS: dict[str, type[Perturbation] | type[TokenPerturbation]] = {
    "NEFTune": NEFTune,
    "SymNoise": SymNoise,
    "EmbeddingDropout": EmbeddingDropout,
    "Neighbours": Neighbours,
    "Insertion": Insertion,
    "Deletion": Deletion,
    "Swap": Swap,
}


def from_config(kind: str, arguments: dict[str, Any]) -> nn.Module:
    """Rebuild a baseline from its saved kind and arguments.

    Examples
    --------
    >>> from_config("Deletion", {"rate": 0.1})
    Deletion(rate=0.1)
    """
    if kind not in KINDS:
        raise ValueError(f"`kind` is {kind!r}; known baselines are {sorted(KINDS)}.")
    return KINDS[kind](**arguments)


def with_lora(
    base: Any,
    rank: int = 8,
    *,
    alpha: float | None = None,
    targets: list[str] | None = None,
    seed: int = 0,
) -> Any:
    """Return a causal model with low-rank adapters by peft; only they train.

    Parameters
    ----------
    base : transformers causal language model
        Its layers are wrapped in place.
    rank : int
    alpha : float, optional
        Scale of the update, times 1 / rank; 2 rank when left out.
    targets : list of str, optional
        Names of the layers; by default peft's choice for the architecture.
    seed : int

    References
    ----------
    Hu et al. (2021), LoRA, arXiv 2106.09685.
    """
    from peft import LoraConfig
    from transformers.pytorch_utils import Conv1D

    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,  # type: ignore[arg-type]
        target_modules=targets,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in base.modules()),
    )
    return _adapted(base, config, seed)


def with_soft_prompt(base: Any, tokens: int = 8, *, seed: int = 0) -> Any:
    """Return a causal model with a learned prompt of embeddings, by peft.

    References
    ----------
    Lester et al. (2021), prompt tuning, arXiv 2104.08691.
    """
    from peft import PromptTuningConfig

    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=tokens)
    return _adapted(base, config, seed)


def with_prefix_tuning(base: Any, tokens: int = 8, *, seed: int = 0) -> Any:
    """Return a causal model with learned keys and values before each row, by peft.

    References
    ----------
    Li and Liang (2021), prefix tuning, arXiv 2101.00190.
    """
    from peft import PrefixTuningConfig

    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=tokens)
    return _adapted(base, config, seed)


def _adapted(base: Any, config: Any, seed: int) -> Any:
    """Return peft's model, its start a function of the seed."""
    from peft import get_peft_model

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(base, config).eval()
