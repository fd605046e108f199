r"""Losses of a chunk of positions and their gradients in the logits, in closed form.

Automatic differentiation of a surrogate touches every (draw, token) some thirty times.
These formulas touch it about eight times, in place, which is what keeps the head of a
model with a large vocabulary as fast as plain cross-entropy. Each is tested against
the surrogate it replaces.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from eestim.llm.surrogates import exclusive_sums, leave_one_out, pick, raised

__all__ = [
    "brier_slope",
    "centred_slope",
    "distant_slope",
    "likelihood_slope",
    "mixture_slope",
    "steady_slope",
]

_SMALLEST = 1e-30  # share of the largest draw under which float32 sums lose digits


def likelihood_slope(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return the mean over draws of -log q_Y, and (q - 1_Y) / K.

    Parameters
    ----------
    logits : (K, C, V) tensor
    targets : (C,) integer tensor

    Returns
    -------
    (C,) tensor, (K, C, V) tensor
    """
    log_q = torch.log_softmax(raised(logits), -1)
    value = -pick(log_q, targets).mean(0)
    return value, _minus_target(log_q.exp_(), targets).div_(len(logits))


def mixture_slope(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return -log of the mean over draws of q_Y, and its gradient.

    .. math:: \pi_k (q_k - 1_Y), \quad \pi_k = q_{k,Y} / \textstyle\sum_j q_{j,Y}
    """
    log_q = torch.log_softmax(raised(logits), -1)
    of_target = pick(log_q, targets)
    value = math.log(len(logits)) - of_target.logsumexp(0)
    share = of_target.softmax(0).unsqueeze(-1)
    return value, _minus_target(log_q.exp_(), targets).mul_(share)


def brier_slope(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return the two-copy Brier loss and its gradient.

    .. math::
        \tfrac1K q_j \big(b_j - \langle q_j, b_j \rangle\big),
        \quad b_j = \bar q_{-j} - 1_Y

    The loss is :math:`\frac{1}{2K} \sum_j (\langle q_j, b_j \rangle - q_{j,Y})`.
    """
    q = torch.softmax(raised(logits), -1)
    draws = len(q)
    gap = (q.sum(0) - q).div_(draws - 1)
    _minus_target(gap, targets)
    inner = torch.linalg.vecdot(q, gap)
    value = (inner - pick(q, targets)).mean(0) / 2
    return value, gap.sub_(inner.unsqueeze(-1)).mul_(q).div_(draws)


def centred_slope(
    logits: Tensor, targets: Tensor, gamma: float
) -> tuple[Tensor, Tensor] | None:
    r"""Return the centred leave-one-out surrogate and its gradient.

    With :math:`r_i = 1_Y - q_i` and the instrument
    :math:`h_i = \bar q_{-i}^{1 - \gamma} / (1 - \gamma)` (its log at gamma = 1),

    .. math::
        \frac{\partial S}{\partial \log q_j} = - \frac{q_j}{K (K - 1)}
            \sum_{i \ne j} r_i \, \bar q_{-i}^{-\gamma}.

    Sums over the other draws are made without subtraction and relative to the largest
    draw of each token. Returns None where even so a sum underflows; the caller then
    works in logarithms, see `distant_slope`. That decision reads a value, for which a
    device would stall at each chunk: there it is `steady_slope`.
    """
    if logits.device.type != "cpu":
        return steady_slope(logits, targets, gamma)
    log_q = torch.log_softmax(raised(logits), -1)
    draws, top = len(log_q), log_q.amax(0)
    share = (log_q - top).exp_()  # q_j over the largest, at most 1
    others = exclusive_sums(share)
    if bool((others < _SMALLEST).any()):
        return None
    log_mean = others.log().add_(top).sub_(math.log(draws - 1))
    residual = _minus_target(log_q.exp_(), targets)  # minus r_i
    if gamma == 1.0:
        instrument = log_mean
        weighted = residual / others
    else:
        rest = 1.0 - gamma
        power = log_mean.mul_(rest).exp_()
        weighted = (residual / others).mul_(power)
        instrument = power.div_(rest)
    value = torch.linalg.vecdot(residual, instrument).mean(0)
    slope = exclusive_sums(weighted).mul_(share).div_(draws)
    total = slope.sum(-1, keepdim=True)
    q = _minus_target(residual, targets, sign=-1.0)
    return value, slope.sub_(q.mul_(total))


def steady_slope(
    logits: Tensor, targets: Tensor, gamma: float
) -> tuple[Tensor, Tensor]:
    r"""Return what `centred_slope` does, for any draws and without a decision.

    The sum over the draws other than i is made relative to the largest **of those**,
    which is the largest draw m of all unless i = m, and the second largest then: no
    sum is below 1. So the slope is

    .. math::
        \frac{q_j}{\hat q} \sum_{i \ne j, m} w_i
        + \frac{q_j}{\hat q_2} w_m \, 1\{j \ne m\}

    with :math:`\hat q, \hat q_2` the two largest draws of each token.
    """
    log_q = torch.log_softmax(raised(logits), -1)
    draws = len(log_q)
    first, second = log_q.topk(2, dim=0).values.unbind(0)
    place = torch.arange(draws, device=logits.device).view(-1, 1, 1)
    is_top = place == log_q.argmax(0)
    share = (log_q - first).exp()
    beside = (log_q - second).masked_fill(is_top, -math.inf).exp()
    others = torch.where(is_top, beside.sum(0), exclusive_sums(share))
    log_mean = others.log() + torch.where(is_top, second, first)
    log_mean -= math.log(draws - 1)
    residual = _minus_target(log_q.exp_(), targets)  # minus r_i
    weighted, instrument = residual / others, log_mean
    if gamma < 1.0:
        power = ((1.0 - gamma) * log_mean).exp_()
        weighted, instrument = weighted * power, power / (1.0 - gamma)
    value = torch.linalg.vecdot(residual, instrument).mean(0)
    of_top = (weighted * is_top).sum(0)
    slope = exclusive_sums(weighted.masked_fill(is_top, 0.0)).mul_(share)
    slope.addcmul_(beside, of_top.expand_as(beside)).div_(draws)
    q = _minus_target(residual, targets, sign=-1.0)
    return value, slope.sub_(q * slope.sum(-1, keepdim=True))


def distant_slope(
    logits: Tensor, targets: Tensor, gamma: float
) -> tuple[Tensor, Tensor]:
    r"""Return what `centred_slope` does, for draws that are far apart.

    Each of the K (K - 1) ratios :math:`q_j / \bar q_{-i}^{\gamma}` is formed in
    logarithms, where nothing underflows: more work than sums over the other draws, less
    than differentiating the surrogate.
    """
    log_q = torch.log_softmax(raised(logits), -1)
    log_mean = leave_one_out(log_q)
    q, draws = log_q.exp(), len(log_q)
    residual = _minus_target(q.clone(), targets)  # minus r_i
    instrument = log_mean
    if gamma < 1.0:
        instrument = ((1.0 - gamma) * log_mean).exp_() / (1.0 - gamma)
    value = torch.linalg.vecdot(residual, instrument).mean(0)
    slope = torch.zeros_like(q)
    for i in range(draws):
        for j in range(draws):
            if i != j:
                ratio = torch.sub(log_q[j], log_mean[i], alpha=gamma).exp_()
                slope[j].addcmul_(residual[i], ratio)
    slope.div_(draws * (draws - 1))
    return value, slope.sub_(q.mul_(slope.sum(-1, keepdim=True)))


def _minus_target(values: Tensor, targets: Tensor, sign: float = 1.0) -> Tensor:
    """Subtract `sign` at the observed tokens, in place; `values` (K, C, V)."""
    index = targets.expand(values.shape[:-1]).unsqueeze(-1)
    return values.scatter_add_(
        -1, index, values.new_full((1, 1, 1), -sign).expand_as(index)
    )
