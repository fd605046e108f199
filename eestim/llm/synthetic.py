r"""Latent models whose truth is known: pre-additive noise before a curved index.

Both are ordinary latent models, so that every equation, fit, score and interval meets
them exactly as it meets a language model. The covariate is an embedding of width one,
perturbed by `Additive`: u = x + s Z.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor, nn

from eestim.llm.averaging import standard_normal
from eestim.llm.perturbations import Additive
from eestim.llm.protocols import IntArray

__all__ = [
    "BinaryModel",
    "IndexModel",
    "Pairs",
    "binary_data",
    "index_data",
    "kullback_leibler",
    "law",
    "true_index_model",
]


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Independent pairs of a covariate and an outcome; each is one unit.

    Attributes
    ----------
    x : (n,) float tensor
    y : (n,) int64 tensor
    """

    x: Tensor
    y: Tensor

    @property
    def n_units(self) -> int:
        """Number of pairs."""
        return len(self.x)

    @property
    def unit(self) -> IntArray:
        """Each row is its own unit."""
        return np.arange(len(self.x))

    def batch(self, rows: IntArray) -> tuple[Tensor, Tensor]:
        """Return (x, y) of some rows."""
        index = torch.as_tensor(rows)
        return self.x[index], self.y[index]


class _Index(nn.Module, ABC):
    """Base of the synthetic models: logits of u = x + s Z."""

    def __init__(self, scale: float | None) -> None:
        super().__init__()
        self.perturbation = None if scale is None else Additive(1, size=scale)

    @property
    def scale(self) -> float:
        """The standard deviation s of the latent noise; 0 without a latent."""
        if self.perturbation is None:
            return 0.0
        return float(self.perturbation.log_scale.detach().exp())

    @abstractmethod
    def logits_of(self, u: Tensor) -> Tensor:
        """Return the logits (..., V) of perturbed covariates (...)."""

    def perturb(self, x: Tensor, z: Tensor) -> Tensor:
        """Return x + s Z, (K, ...)."""
        if self.perturbation is None:
            return x.unsqueeze(0)
        moved: Tensor = self.perturbation(x.unsqueeze(-1), z.unsqueeze(-1))
        return moved.squeeze(-1)

    def draw_logits(
        self, batch: tuple[Tensor, Tensor], draws: int, generator: Generator
    ) -> Tensor:
        """Return (K, B, V) logits; K = 1 without a latent."""
        x, _ = batch
        z = standard_normal((draws, *x.shape), generator, x)
        return self.logits_of(self.perturb(x, z))

    def targets(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the outcomes."""
        return batch[1]


class BinaryModel(_Index):
    r"""Two outcomes, logit = a + b tanh(4 u), u = x + s Z.

    Parameters
    ----------
    a, b : float
    scale : float or None
        s; None for no latent.
    dtype : torch dtype
    """

    def __init__(
        self,
        a: float = 0.3,
        b: float = 2.0,
        scale: float | None = 0.5,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__(scale)
        self.a = nn.Parameter(torch.tensor(a))
        self.b = nn.Parameter(torch.tensor(b))
        self.to(dtype)

    def logits_of(self, u: Tensor) -> Tensor:
        """Return the logits of (0, 1)."""
        logit = self.a + self.b * torch.tanh(4 * u)
        return torch.stack([torch.zeros_like(logit), logit], -1)


class IndexModel(_Index):
    r"""V ordered tokens around a monotone index of u = x + s Z.

    .. math::
        g(u) = \alpha + e^{\beta} u + e^{\gamma} \max(u, 0)^2, \qquad
        l_v = - (g(u) - c_v)^2 / (2 h^2), \quad c_v \in [0, 14],\ h = 0.35

    Parameters
    ----------
    intercept, slope, curvature : float
        alpha, and the positive slope and curvature.
    scale : float or None
        s; None for no latent.
    vocabulary : int
        Number of tokens V.
    """

    centres: Tensor

    def __init__(
        self,
        intercept: float = 0.0,
        slope: float = 1.0,
        curvature: float = 0.3,
        scale: float | None = 0.5,
        vocabulary: int = 21,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__(scale)
        self.intercept = nn.Parameter(torch.tensor(float(intercept)))
        self.log_slope = nn.Parameter(torch.tensor(math.log(slope)))
        self.log_curvature = nn.Parameter(torch.tensor(math.log(curvature)))
        self.register_buffer("centres", torch.linspace(0.0, 14.0, vocabulary))
        self.to(dtype)

    def index(self, u: Tensor) -> Tensor:
        """Return g(u)."""
        bend = self.log_curvature.exp() * u.clamp_min(0).square()
        return self.intercept + self.log_slope.exp() * u + bend

    def logits_of(self, u: Tensor) -> Tensor:
        """Return the logits of the tokens."""
        gap = self.index(u).unsqueeze(-1) - self.centres
        logits: Tensor = -gap.square() / (2 * 0.35**2)
        return logits


def true_index_model() -> IndexModel:
    """Return the truth of the extrapolation study, s = 0.6.

    Examples
    --------
    >>> round(true_index_model().scale, 6)
    0.6
    """
    return IndexModel(0.2, 0.6, 0.55, 0.6)


def _draw(model: _Index, x: Tensor, generator: Generator) -> Pairs:
    """Return outcomes of the model at x, each with its own latent."""
    with torch.no_grad():
        empty = torch.zeros(len(x), dtype=torch.long)
        probabilities = model.draw_logits((x, empty), 1, generator)[0].softmax(-1)
    y = torch.multinomial(probabilities, 1, generator=generator).squeeze(1)
    return Pairs(x, y)


def binary_data(n: int, seed: int, *, discrete: bool = True) -> Pairs:
    """Return n pairs of the true `BinaryModel`.

    The covariate is uniform on 25 points of [-2, 2], or on the interval itself.
    """
    generator = torch.Generator().manual_seed(seed)
    if discrete:
        points = torch.linspace(-2.0, 2.0, 25, dtype=torch.float64)
        x = points[torch.randint(25, (n,), generator=generator)]
    else:
        x = 4 * torch.rand(n, generator=generator, dtype=torch.float64) - 2
    return _draw(BinaryModel(), x, generator)


def index_data(n: int, seed: int) -> Pairs:
    """Return n pairs of `true_index_model`, x uniform on the support [0, 2]."""
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.rand(n, generator=generator, dtype=torch.float64)
    return _draw(true_index_model(), x, generator)


@torch.no_grad()
def law(model: _Index, x: Tensor, nodes: int = 1201) -> Tensor:
    """Return p(v | x) by the trapezoid rule on latents from -6 to 6, (n, V).

    Examples
    --------
    >>> law(true_index_model(), torch.zeros(1, dtype=torch.float64)).sum().item()
    1.0
    """
    z = torch.linspace(-6.0, 6.0, nodes, dtype=x.dtype)
    weight = torch.exp(-z.square() / 2)
    weight = weight / weight.sum()
    u = model.perturb(x, z.unsqueeze(1).expand(-1, len(x)))
    q = model.logits_of(u).softmax(-1)
    if len(q) == 1:
        return q[0]
    p = torch.einsum("k,kiv->iv", weight, q)
    return p / p.sum(-1, keepdim=True)


def kullback_leibler(truth: Tensor, fitted: Tensor) -> Tensor:
    r"""Return the divergence of each row, :math:`\sum_v p_v \log(p_v / q_v)`, in nats.

    Parameters
    ----------
    truth, fitted : (n, V) tensors of probabilities
    """
    log_fitted = fitted.clamp_min(1e-300).log()
    entropy: Tensor = torch.special.xlogy(truth, truth)
    return (entropy - truth * log_fitted).sum(-1)
