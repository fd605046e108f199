r"""What every estimating equation of a latent model is made of.

A surrogate S(u, t) takes two copies of the parameters, with psi(t) = - dS(u, t) / du at
u = t. `eestim.llm.equations` holds the equations themselves.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from eestim.errors import DataError

__all__ = [
    "IGNORED",
    "LatentEquation",
    "centred",
    "check_draws",
    "check_targets",
    "exclusive_sums",
    "leave_one_out",
    "log_probabilities",
    "only_kept",
    "pick",
    "raised",
    "through_first",
]

IGNORED = -100
"""Target of a position that belongs to no unit (padding), as in transformers."""


def leave_one_out(log_values: Tensor) -> Tensor:
    r"""Return the log mean over the other draws, for each draw.

    .. math:: \ell_i = \log \frac{1}{K - 1} \sum_{j \ne i} e^{l_j}

    Computed from both ends, in O(K), without the subtraction
    :math:`K \bar q - q_i`, which cancels to zero in float32.

    Parameters
    ----------
    log_values : (K, ...) tensor
        Log probabilities of K >= 2 draws.

    Examples
    --------
    >>> leave_one_out(torch.tensor([0.0, -60.0, -60.0]))[0]
    tensor(-60.)
    """
    draws = list(log_values.unbind(0))
    before, after = [draws[0]], [draws[-1]]
    for value in draws[1:-1]:
        before.append(_log_add(before[-1], value))
    for value in draws[-2:0:-1]:
        after.append(_log_add(after[-1], value))
    middle = [_log_add(b, a) for b, a in zip(before[:-1], after[-2::-1], strict=True)]
    count = torch.tensor(
        len(draws) - 1, dtype=log_values.dtype, device=log_values.device
    )
    return torch.stack([after[-1], *middle, before[-1]]) - count.log()


def _log_add(a: Tensor, b: Tensor) -> Tensor:
    """Return log(exp a + exp b); torch.logaddexp has NaN second derivatives."""
    return torch.stack([a, b]).logsumexp(0)


def exclusive_sums(values: Tensor) -> Tensor:
    """Return the sum over the other draws, for each draw, without subtraction.

    Parameters
    ----------
    values : (K, ...) tensor
        At least two draws.

    Examples
    --------
    >>> exclusive_sums(torch.tensor([1.0, 2.0, 4.0]))
    tensor([6., 5., 3.])
    """
    sums = torch.empty_like(values)
    before, after = values[0], values[-1]
    for k in range(1, len(values)):
        sums[k] = before
        before = before + values[k]
    sums[0] = 0.0
    for k in range(len(values) - 2, -1, -1):
        sums[k] += after
        after = after + values[k]
    return sums


def raised(logits: Tensor) -> Tensor:
    """Return the logits, half precision raised to float32."""
    return logits.float() if logits.dtype in _HALF else logits


def log_probabilities(logits: Tensor) -> Tensor:
    """Return log softmax; half precision is raised to float32 first."""
    return torch.log_softmax(raised(logits), dim=-1)


_HALF = (torch.float16, torch.bfloat16)


def pick(values: Tensor, targets: Tensor) -> Tensor:
    """Return values[..., target]; `values` (K, ..., V), `targets` (...)."""
    index = targets.clamp_min(0).expand(values.shape[:-1]).unsqueeze(-1)
    return values.gather(-1, index).squeeze(-1)


def through_first(logits: Tensor, draws: int | None) -> Tensor:
    """Return the logits, whose gradients flow through the first draws alone.

    They are scaled by K over `draws`, which leaves their mean as it was where the draws
    are exchangeable.

    Examples
    --------
    >>> logits = torch.ones(4, 2, requires_grad=True)
    >>> through_first(logits, 1).sum().backward()
    >>> logits.grad[:, 0]
    tensor([4., 0., 0., 0.])
    """
    if draws is None or draws >= len(logits):
        return logits
    first, rest = logits[:draws], logits[draws:].detach()
    fixed = first.detach()
    scaled = fixed + (first - fixed) * (len(logits) / draws)
    return torch.cat([scaled, rest])


@dataclass(frozen=True, slots=True)
class LatentEquation(ABC):
    """Base of the equations: a surrogate, and the loss that training descends."""

    def __repr__(self) -> str:
        """Return the constructor's call; keyword options only where they are set."""
        shown = [
            f"{f.name}={getattr(self, f.name)!r}"
            for f in fields(self)
            if not f.kw_only or getattr(self, f.name) != f.default
        ]
        return f"{type(self).__name__}({', '.join(shown)})"

    @property
    def smallest_draws(self) -> int:
        """Fewest draws K that the equation is defined for."""
        return 1

    @property
    def is_unbiased(self) -> bool:
        """Whether psi has mean zero at the truth for every finite K."""
        return True

    def draws_of_step(
        self,
        draws: int,
        rng: np.random.Generator,  # noqa: ARG002 - most equations use all
    ) -> int:
        """Return how many of at most `draws` draws a step uses."""
        return draws

    @property
    def lagged(self) -> tuple[int, int] | None:
        """(lag, draws) of an older copy of the model for weights; None without."""
        return None

    @property
    def needs_replicates(self) -> bool:
        """Whether each row comes with a sequence that the model made itself."""
        return False

    @property
    def is_local(self) -> bool:
        """Whether each position's loss reads the logits of that position alone."""
        return True

    @abstractmethod
    def surrogate(self, moving: Tensor, still: Tensor, targets: Tensor) -> Tensor:
        """Return S(u, t) at each position.

        Parameters
        ----------
        moving, still : (K, ..., V) tensors
            Logits at u, which psi differentiates, and at t, which it does not.
        targets : (...) integer tensor
            Observed tokens; positions of target ``IGNORED`` give 0.

        Returns
        -------
        (...) tensor
        """

    def slope(
        self, logits: Tensor, targets: Tensor, outside: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the loss of each position and its gradient in the logits.

        What a head that works in chunks of positions needs; equations with a closed
        form give it.

        Parameters
        ----------
        logits : (K, C, V) tensor
        targets : (C,) integer tensor
            Observed tokens, none ignored.
        outside : (L, C, V) tensor, optional
            Logits of draws from another model, for weights.

        Returns
        -------
        (C,) tensor, (K, C, V) tensor
        """
        moving = logits.detach().requires_grad_()
        still = logits.detach()
        if outside is not None:
            still = torch.cat([still, outside.detach()])
        with torch.enable_grad():
            value = self.surrogate(moving, still, targets)
            (found,) = torch.autograd.grad(value.sum(), moving)
        return value.detach(), found

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return a scalar whose gradient is minus the mean psi over positions.

        Parameters
        ----------
        logits : (K, ..., V) tensor
            K independent draws for each position.
        targets : (...) integer tensor
            Observed tokens; ``IGNORED`` (-100) leaves a position out.

        Raises
        ------
        ValueError
            If there are fewer draws than the equation needs, or shapes disagree.
        DataError
            If no position has a target.
        """
        check_draws(self, logits.shape[0])
        kept = check_targets(logits, targets)
        value = self.surrogate(logits, logits.detach(), targets)
        return value.sum() / kept


def check_draws(equation: LatentEquation, draws: int) -> None:
    """Refuse fewer draws than the equation has independent copies of the latent."""
    if not isinstance(equation, LatentEquation):
        raise TypeError(
            f"`equation` is {equation!r}; expected a value such as Brier(), with its "
            "brackets."
        )
    if isinstance(draws, bool) or not isinstance(draws, int | np.integer):
        raise TypeError(f"`draws` is {draws!r}; expected a whole number.")
    needed = equation.smallest_draws
    if draws < needed:
        raise ValueError(
            f"`draws` is {draws}, but {equation} needs at least {needed} independent "
            "draws of the latent for each position, because the residual and the "
            f"differentiated copy must not share noise; set draws={needed} or more."
        )


def check_targets(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the number of positions with a target, after checking shapes."""
    if logits.shape[1:-1] != targets.shape:
        raise ValueError(
            f"`logits` has shape {tuple(logits.shape)} and `targets` "
            f"{tuple(targets.shape)}; expected (K, ..., V) and (...)."
        )
    kept = (targets != IGNORED).sum()
    if int(kept) == 0:
        raise DataError(
            "`targets` holds no observed token (every position is -100); give at "
            "least one position a target."
        )
    return kept


def only_kept(value: Tensor, targets: Tensor) -> Tensor:
    """Return the values, zero where a position has no target."""
    return value.masked_fill(targets == IGNORED, 0.0)


def centred(instrument: Tensor, still: Tensor, targets: Tensor) -> Tensor:
    r"""Return minus the mean over i of h_i(Y) - sum_v q_v(Z_i) h_i(v).

    `instrument` (K, ..., V) is h_i(v), made of draws other than i.
    """
    q = log_probabilities(still).exp()
    gain = pick(instrument, targets) - (q * instrument).sum(-1)
    return only_kept(-gain.mean(0), targets)
