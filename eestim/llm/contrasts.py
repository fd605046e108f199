r"""Equations whose centre is sampled or whose tokens are compared by a kernel.

`Contrast` needs no sum over the vocabulary but that of the softmax; `TokenKernel`
counts a wrong token by how far its embedding lies from the observed one.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from eestim.errors import DataError
from eestim.llm.surrogates import (
    LatentEquation,
    centred,
    leave_one_out,
    log_probabilities,
    only_kept,
    pick,
    raised,
)

__all__ = ["Contrast", "TokenKernel", "contrast", "hashed_uniforms", "sampled_tokens"]


@dataclass(frozen=True, slots=True)
class Contrast(LatentEquation):
    r"""The centred equation with a sampled outcome in place of a sum over tokens.

    .. math::
        \psi = \frac1K \sum_i \big[ \nabla h_i(Y) - \nabla h_i(Y_i') \big],
        \quad Y_i' \sim q(\cdot \mid Z_i)

    with h_i made of the other draws: their log mean probability ("log", as
    `CentredIWAE`) or their mean probability ("brier", as `Brier`). Unbiased for every
    K >= 2; sampling adds variance, by about a factor of two near the truth.

    Y' is a function of the logits themselves: a hash of their last bits gives the
    uniform number, so that every evaluation at the same parameters and draws sees the
    same Y', and another step or row another one. It therefore needs a latent. The
    factor :math:`q_{Y'} / q_{Y'}` with one side stopped carries the derivative of the
    law of Y' into the sensitivity, which is unbiased but noisier than that of the
    equation with the sum.

    Parameters
    ----------
    instrument : {"log", "brier"}
    seed : int
        Enters the hash.
    """

    instrument: Literal["log", "brier"] = "log"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.instrument not in ("log", "brier"):
            raise ValueError(
                f"`instrument` is {self.instrument!r}; expected 'log' or 'brier'."
            )

    @property
    def smallest_draws(self) -> int:
        """One draw for Y', one to differentiate."""
        return 2

    def surrogate(self, moving: Tensor, still: Tensor, targets: Tensor) -> Tensor:
        """Return S(u, t) at each position, see `LatentEquation.surrogate`."""
        sampled = sampled_tokens(still, self.seed)
        instrument = leave_one_out(log_probabilities(moving))
        if self.instrument == "brier":
            instrument = instrument.exp()
        return contrast(instrument, still, targets, sampled)


def contrast(
    instrument: Tensor, still: Tensor, targets: Tensor, sampled: Tensor
) -> Tensor:
    """Return minus the mean over i of h_i(Y) - h_i(Y'_i).

    Parameters
    ----------
    instrument, still : (K, ..., V) tensors
    targets : (...) integer tensor
    sampled : (K, ...) integer tensor
        Y', one for each draw.
    """
    log_q = log_probabilities(still)
    place = sampled.unsqueeze(-1)
    chosen = log_q.gather(-1, place).squeeze(-1)
    of_law = (chosen - chosen.detach()).exp()  # 1, with the law's score as derivative
    gain = pick(instrument, targets)
    gain = gain - instrument.gather(-1, place).squeeze(-1) * of_law
    return only_kept(-gain.mean(0), targets)


@torch.no_grad()
def sampled_tokens(logits: Tensor, seed: int = 0) -> Tensor:
    """Return a token of each law by inverse transform of a hashed uniform, (K, ...)."""
    q = torch.softmax(raised(logits), -1).double()
    total = q.cumsum(-1)
    level = hashed_uniforms(logits, seed).unsqueeze(-1) * total[..., -1:]
    return torch.searchsorted(total, level, right=True).squeeze(-1)


@torch.no_grad()
def hashed_uniforms(logits: Tensor, seed: int = 0, n_tokens: int = 16) -> Tensor:
    """Return numbers in [0, 1) that are a function of the bits of some logits.

    The multiplications and shifts are those of splitmix64 (Steele, Lea and Flood 2014).

    Parameters
    ----------
    logits : (..., V) tensor
    seed : int
    n_tokens : int
        How many of the V logits are read, evenly spaced.
    """
    size = logits.shape[-1]
    places = torch.linspace(0, size - 1, min(n_tokens, size), device=logits.device)
    some = raised(logits)[..., places.long()].contiguous()
    kind = torch.int64 if some.dtype == torch.float64 else torch.int32
    bits = some.view(kind).long()
    state = torch.full(bits.shape[:-1], seed, dtype=torch.long, device=bits.device)
    for number in range(bits.shape[-1]):
        state = _mix(state + bits[..., number] + _GAMMA)
    return ((state >> 11) & ((1 << 53) - 1)).double() * 2.0**-53


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


_GAMMA = _signed(0x9E3779B97F4A7C15)
_FIRST, _SECOND = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def _mix(state: Tensor) -> Tensor:
    """Return the finaliser of splitmix64; int64 wraps around."""
    state = (state ^ _shifted(state, 30)) * _FIRST
    state = (state ^ _shifted(state, 27)) * _SECOND
    return state ^ _shifted(state, 31)


def _shifted(state: Tensor, by: int) -> Tensor:
    """Return an unsigned right shift of int64."""
    return (state >> by) & ((1 << (64 - by)) - 1)


@dataclass(frozen=True, slots=True, eq=False)
class TokenKernel(LatentEquation):
    r"""Brier pairs weighted by a kernel on tokens: an energy score of embeddings.

    .. math::
        \psi = \frac{1}{K(K-1)} \sum_{i \ne j} \sum_{v, w}
            (1\{Y = v\} - q_v(Z_i)) \, W_{vw} \, \nabla q_w(Z_j),
        \quad W = F F^\top + \rho I

    Unbiased for every fixed positive semidefinite W. What it identifies is
    :math:`W^{1/2} p`: with :math:`\rho = 0` and fewer features than tokens several laws
    share a root, hence the small part of `Brier` by default. Make one with `energy`
    or `gaussian`, or from your own factor.

    Parameters
    ----------
    factor : (V, m) tensor
        F.
    ridge : float
        rho.
    label : str
        How it prints.
    """

    factor: Tensor = field(repr=False)
    ridge: float = 0.1
    label: str = "factor"

    def __post_init__(self) -> None:
        if self.factor.ndim != 2 or not bool(torch.isfinite(self.factor).all()):
            raise DataError(
                f"`factor` has shape {tuple(self.factor.shape)}; expected a finite "
                "(V, m) matrix."
            )
        if not self.ridge >= 0:
            raise ValueError(f"`ridge` is {self.ridge}; it must not be negative.")

    def __repr__(self) -> str:
        """Return a name that tells kernels apart: a checkpoint compares it."""
        content = self.factor.detach().double().cpu().contiguous().numpy().tobytes()
        digest = hashlib.sha256(content).hexdigest()[:8]
        return f"TokenKernel({self.label}, ridge={self.ridge}, factor={digest})"

    @classmethod
    def energy(cls, embeddings: Tensor, ridge: float = 0.1) -> TokenKernel:
        r"""Return the energy score, distance :math:`|e_v - e_w|` between tokens.

        Its kernel is minus half the doubly centred distance matrix (Székely and Rizzo
        2013), factored exactly: V up to 4,096.

        Parameters
        ----------
        embeddings : (V, width) tensor
        ridge : float
        """
        if len(embeddings) > _MOST_TOKENS:
            raise DataError(
                f"`embeddings` has {len(embeddings)} tokens; the exact kernel holds "
                f"{_MOST_TOKENS} at most. Use TokenKernel.gaussian, which needs no "
                "(V, V) matrix."
            )
        points = embeddings.detach().double()
        distance = torch.cdist(points, points)
        middle = distance - distance.mean(0) - distance.mean(1, keepdim=True)
        kernel = -(middle + distance.mean()) / 2
        values, vectors = torch.linalg.eigh(kernel)
        kept = values > 1e-12 * values[-1]
        factor = vectors[:, kept] * values[kept].sqrt()
        return cls(factor.to(raised(embeddings).dtype), ridge, "energy")

    @classmethod
    def gaussian(
        cls,
        embeddings: Tensor,
        bandwidth: float,
        n_features: int = 256,
        ridge: float = 0.1,
        seed: int = 0,
    ) -> TokenKernel:
        r"""Return random features of :math:`e^{-|e_v - e_w|^2 / (2 h^2)}`.

        Rahimi and Recht (2007): :math:`F_v = \sqrt{2/m} \cos(\Omega e_v / h + b)`.

        Parameters
        ----------
        embeddings : (V, width) tensor
        bandwidth : float
            h.
        n_features : int
            m.
        ridge : float
        seed : int
        """
        if not bandwidth > 0:
            raise ValueError(f"`bandwidth` is {bandwidth}; it must be positive.")
        generator = torch.Generator().manual_seed(seed)
        width = embeddings.shape[1]
        omega = torch.randn(width, n_features, generator=generator)
        phase = 2 * math.pi * torch.rand(n_features, generator=generator)
        points = raised(embeddings.detach())
        angle = points @ omega.to(points) / bandwidth + phase.to(points)
        label = f"gaussian(bandwidth={bandwidth}, n_features={n_features})"
        return cls(angle.cos() * math.sqrt(2 / n_features), ridge, label)

    @property
    def smallest_draws(self) -> int:
        """Two copies: one for the residual, one to differentiate."""
        return 2

    def surrogate(self, moving: Tensor, still: Tensor, targets: Tensor) -> Tensor:
        """Return S(u, t) at each position, see `LatentEquation.surrogate`."""
        q, t = log_probabilities(moving).exp(), log_probabilities(still).exp()
        if q.shape[-1] != len(self.factor):
            raise ValueError(
                f"`logits` has {q.shape[-1]} tokens, but the kernel's factor "
                f"{len(self.factor)}; make the kernel from this model's embeddings."
            )
        factor = self.factor.to(q)
        others = (q.sum(0) - q) / (len(q) - 1)
        features = others @ factor
        observed = factor[targets.clamp_min(0)]
        gain = ((observed - t @ factor) * features).sum(-1)
        of_kernel = only_kept(-gain.mean(0), targets)
        return of_kernel + self.ridge * centred(others, still, targets)


_MOST_TOKENS = 4096
