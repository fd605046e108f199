r"""Is there any perturbation at all? Tests at the singular point C = 0.

At C = 0 the law of the data does not change to first order in C, so the information
about it vanishes like :math:`|C|^2`: Wald and likelihood-ratio statistics for "no
perturbation" do not have their usual laws. In the squared scale :math:`\tau` of
:math:`u = g(e, \sqrt\tau Z)` the law does change to first order,

.. math::
    \psi_{\tau, i} = \frac{\partial}{\partial\tau} \log p_i \Big|_{\tau = 0}
    = \frac12 \sum_t E_\zeta \frac{\partial_\alpha^2 q_t(\alpha\zeta)}{q_t}
    = \frac12 \sum_t E_\zeta \Big[ (\log q_t)'' + \big((\log q_t)'\big)^2 \Big],

for every :math:`\zeta` of mean zero and variance I. Each direction gives a score of
mean zero under the null, so drawing few of them costs power, never validity.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, jvp

from eestim.covariance.base import sensitivity_factor
from eestim.errors import CapabilityError, InferenceError
from eestim.llm.averaging import standard_normal
from eestim.llm.parameters import count_parameters
from eestim.llm.prefix import as_token_batch
from eestim.llm.protocols import check_model, split_parameters
from eestim.llm.scores import refuse_non_finite, unit_batches
from eestim.llm.sensitivities import plain_attention
from eestim.llm.surrogates import log_probabilities, only_kept, pick
from eestim.llm.training import as_units

__all__ = ["NullTest", "no_perturbation", "projected"]

Array = npt.NDArray[np.float64]
Values = dict[str, Tensor]
_MOST_NUISANCE = 500
_MOST_DIRECTIONS = 6
_STEPS = 400


@dataclass(frozen=True, slots=True)
class NullTest:
    """A test of "no perturbation".

    Attributes
    ----------
    statistic : float
        0 where the score points to less than no perturbation.
    p : float
        p value.
    null : str
        Law of the statistic under the null.
    at_zero : float
        Probability of a statistic of 0 under the null.
    score : float
        Studentised score of the variance (for "span" the largest over directions).
    n_units : int
    """

    statistic: float
    p: float
    null: str
    at_zero: float
    score: float
    n_units: int


def no_perturbation(
    model: nn.Module,
    documents: Any,
    *,
    of: Literal["scale", "span"] = "scale",
    base: Literal["known", "estimated"] = "known",
    draws: int = 4,
    simulations: int = 2000,
    batch_size: int = 8,
    seed: int = 0,
) -> NullTest:
    r"""Test that a perturbation has size zero, by the score of its variance.

    Parameters
    ----------
    model : LatentModel with a perturbation
        Its base as under the null: trained without a perturbation. The perturbation
        gives directions only; they must not have been learned on `documents`.
    documents : Units, or list of str
    of : {"scale", "span"}
        "scale": one variance :math:`\tau`, along the perturbation as it stands. The
        statistic has the half-half mixture of 0 and chi-square with one degree.
        "span": any covariance of the latent coordinates; no mixture of chi-squares
        with fixed weights is right, and the null is simulated.
    base : {"known", "estimated"}
        Whether the base's trainable parameters were fitted to `documents`; their
        effect is then projected out of the score (at most 500 of them).
    draws : int
        Random directions :math:`\zeta`.
    simulations : int
        For "span".
    batch_size, seed : int

    Returns
    -------
    NullTest

    Raises
    ------
    CapabilityError
        If the model cannot be perturbed by given latents, or has too many directions
        or nuisance parameters.

    References
    ----------
    Self and Liang (1987), J. Am. Statist. Assoc. 82, 605-610.
    """
    if of not in ("scale", "span"):
        raise ValueError(f"`of` is {of!r}; expected 'scale' or 'span'.")
    if base not in ("known", "estimated"):
        raise ValueError(f"`base` is {base!r}; expected 'known' or 'estimated'.")
    if draws < 1 or simulations < 100:
        raise ValueError(
            f"`draws` is {draws} and `simulations` {simulations}; at least 1 and 100 "
            "are needed."
        )
    check_model(model)
    rank = _rank(model)
    if of == "span" and rank > _MOST_DIRECTIONS:
        raise CapabilityError(
            f"`of` is 'span' with {rank} latent coordinates, which need "
            f"{rank * (rank + 1) // 2} scores; use at most {_MOST_DIRECTIONS}, or "
            "of='scale'."
        )
    directions = [None] if of == "scale" else _pairs(rank)
    rows = _rows(model, documents, directions, base, draws, batch_size, seed)
    if of == "scale":
        return _one_sided(rows[:, 0])
    return _simulated(rows, rank, simulations, seed)


def _rank(model: nn.Module) -> int:
    perturbation: Any = getattr(model, "perturbation", None)
    latent = getattr(perturbation, "latent", None)
    if latent is None or not hasattr(model, "logits_of"):
        raise CapabilityError(
            "`model` needs a perturbation of a continuous latent, and `perturb` and "
            "`logits_of` methods, so that its latent can be shrunk to zero."
        )
    return int(latent)


def _pairs(rank: int) -> list[Any]:
    """Return e_j and e_j + e_k, whose variances give every entry of the score."""
    unit = torch.eye(rank)
    return [unit[j] if j == k else unit[j] + unit[k] for j, k in _places(rank)]


def _places(rank: int) -> list[tuple[int, int]]:
    return [(j, k) for j in range(rank) for k in range(j + 1)]


# ------------------------------------------------------------------ scores of units


class _Shrunk(nn.Module):
    """Log probabilities of the targets at a shrunk latent, (K, B, ...)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Any, latents: Tensor, size: Tensor) -> Tensor:
        """Return log q_Y(size * latents)."""
        model: Any = self.model
        if hasattr(model, "embed"):
            if hasattr(model, "check_memory"):  # a user's model may have none
                model.check_memory(as_token_batch(batch), len(latents))
            states = model.embed(batch)
            moved = model.perturb(states, size * latents, batch)
            logits = model.logits_of(moved, batch)
        else:
            logits = model.logits_of(model.perturb(batch[0], size * latents))
        targets = model.targets(batch)
        picked: Tensor = pick(log_probabilities(logits), targets)
        return only_kept(picked, targets)


def _latents(
    model: Any, batch: Any, draws: int, direction: Any, generator: torch.Generator
) -> Tensor:
    """Return random signs for each latent coordinate, or signs along a direction."""
    if hasattr(model, "embed"):
        with torch.no_grad():
            like = model.latents(model.embed(batch), draws, generator, batch)
    else:
        like = standard_normal((draws, *batch[0].shape), generator, batch[0])
    signs = torch.where(like >= 0, 1.0, -1.0).to(like)
    if direction is None or not hasattr(model, "embed"):
        return signs
    along: Tensor = signs[..., :1] * direction.to(like)
    return along


def _rows(
    model: nn.Module,
    documents: Any,
    directions: list[Any],
    base: str,
    draws: int,
    batch_size: int,
    seed: int,
) -> Array:
    """Return scores of the units, (n, directions), free of the base's parameters."""
    units = as_units(model, documents)
    nuisance = split_parameters(model)[0] if base == "estimated" else {}
    count = count_parameters(nuisance)
    if count > _MOST_NUISANCE:
        raise CapabilityError(
            f"`base` is 'estimated' with {count} trainable parameters; at most "
            f"{_MOST_NUISANCE} can be projected out. Freeze the base "
            "(train_base=False) and test on documents that did not fit it."
        )
    score = torch.zeros(units.n_units, len(directions), dtype=torch.float64)
    own = torch.zeros(units.n_units, count, dtype=torch.float64)
    cross = torch.zeros(len(directions), count, dtype=torch.float64)
    slope = torch.zeros(count, count, dtype=torch.float64)
    values = {f"model.{n}": p.detach() for n, p in nuisance.items()}
    caller = _Shrunk(model)
    with plain_attention(model):
        for batch, owner, generator in unit_batches(units, batch_size, seed, 0):
            state = generator.get_state()
            for j, direction in enumerate(directions):
                generator.set_state(state)
                z = _latents(model, batch, draws, direction, generator)
                of_tau = _variance_score(caller, batch, z)
                score[:, j].index_add_(0, owner, of_tau(values).detach().double())
                if nuisance:
                    cross[j] += _slope(of_tau, values)
            if nuisance:
                likelihood = _likelihood(caller, batch, z)
                own.index_add_(0, owner, _blocks(jacrev(likelihood)(values)))
                slope += _hessian(likelihood, values)
    refuse_non_finite(score, units)
    rows: Array = score.numpy()
    if nuisance:
        # psi_tau - (d psi_tau / d beta)(d psi_beta / d beta)^-1 psi_beta
        factor = sensitivity_factor(-slope.numpy() / units.n_units)
        weights = factor.solve_transpose(cross.numpy().T / units.n_units)
        rows = rows + own.numpy() @ weights
    return rows


def _variance_score(
    caller: nn.Module, batch: Any, z: Tensor
) -> Callable[[Values], Tensor]:
    """Return the function from the base's parameters to psi_tau of each row."""
    zero, one = z.new_zeros(()), z.new_ones(())

    def rows(values: Values) -> Tensor:
        def log_q(size: Tensor) -> Tensor:
            found: Tensor = functional_call(caller, values, (batch, z, size))
            return found

        def first(size: Tensor) -> Tensor:
            slope: Tensor = jvp(log_q, (size,), (one,))[1]
            return slope

        pair = jvp(first, (zero,), (one,))
        found: Tensor = ((pair[1] + pair[0].square()) / 2).mean(0)
        return found.reshape(len(found), -1).sum(1)

    return rows


def _likelihood(caller: nn.Module, batch: Any, z: Tensor) -> Callable[[Values], Tensor]:
    """Return the function from the base's parameters to log p of each row."""

    def rows(values: Values) -> Tensor:
        still = (batch, z[:1], z.new_zeros(()))
        found: Tensor = functional_call(caller, values, still)[0]
        return found.reshape(len(found), -1).sum(1)

    return rows


def _slope(function: Callable[[Values], Tensor], values: Values) -> Tensor:
    """Return the gradient of the sum of a function, (P,)."""

    def total(v: Values) -> Tensor:
        return function(v).sum()

    found = grad(total)(values)
    return torch.cat([v.detach().flatten().double() for v in found.values()])


def _blocks(found: Values) -> Tensor:
    parts = [v.detach().reshape(len(v), -1).double() for v in found.values()]
    return torch.cat(parts, dim=1)


def _hessian(function: Callable[[Values], Tensor], values: Values) -> Tensor:
    """Return the second derivative of the sum of a function, (P, P)."""

    def total(v: Values) -> Tensor:
        return function(v).sum()

    slopes = jacrev(grad(total))(values)
    rows = [
        torch.cat(
            [
                block.reshape(values[a].numel(), -1).double()
                for block in slopes[a].values()
            ],
            dim=1,
        )
        for a in slopes
    ]
    return torch.cat(rows).detach()


# ------------------------------------------------------------------------- the nulls


def _one_sided(rows: Array) -> NullTest:
    """Return the test of one variance along a known direction."""
    n = len(rows)
    spread = float(rows.std())
    if n < 2 or spread == 0.0:
        raise InferenceError(
            f"`documents` has {n} units whose scores do not vary; give more units."
        )
    z = float(rows.mean()) * n**0.5 / spread
    return NullTest(
        max(z, 0.0) ** 2,
        float(stats.norm.sf(z)),
        "half-half mixture of 0 and chi-square with one degree",
        0.5,
        z,
        n,
    )


def _simulated(rows: Array, rank: int, simulations: int, seed: int) -> NullTest:
    """Return the test of any covariance of the latent, with a simulated null."""
    n, places = len(rows), _places(rank)
    by_pair = {place: rows[:, j] for j, place in enumerate(places)}
    table = np.empty((n, rank, rank))
    for j, k in places:
        value = by_pair[j, k]
        if j != k:
            value = (value - by_pair[j, j] - by_pair[k, k]) / 2
        table[:, j, k] = table[:, k, j] = value
    size = table[:, range(rank), range(rank)].std(axis=0)
    if n <= len(places) or not (size > 0).all():
        raise InferenceError(
            f"`documents` has {n} units for {len(places)} scores; give more units."
        )
    table = table / np.sqrt(np.outer(size, size))  # a congruence keeps the cone
    centred = (table - table.mean(axis=0)).reshape(n, -1)
    spread = centred.T @ centred / n
    seen = table.mean(axis=0)[None] * n**0.5
    rng = np.random.default_rng(seed)
    drawn = rng.standard_normal((simulations, n)) @ centred / n**0.5
    null = projected(drawn.reshape(-1, rank, rank), spread)
    statistic = float(projected(seen, spread)[0])
    tail = (1 + int((null >= statistic).sum())) / (1 + simulations)
    top = float(np.linalg.eigvalsh(seen[0])[-1])
    zero = float((null <= _TINY).mean())
    return NullTest(statistic, tail, "simulated", zero, top, n)


_TINY = 1e-6


def projected(scores: Array, spread: Array) -> Array:
    r"""Return the likelihood-ratio statistic of a covariance B near zero.

    .. math::
        \max_{B \succeq 0} 2 \langle S, B\rangle - \langle B, \Sigma B\rangle,

    0 exactly where the score matrix has no positive eigenvalue.

    Parameters
    ----------
    scores : (simulations, m, m) array
        Symmetric S.
    spread : (m * m, m * m) array
        Variance of vec S.

    Examples
    --------
    >>> projected(np.array([[[2.0]], [[-2.0]]]), np.eye(1))
    array([4., 0.])
    """
    m = scores.shape[1]
    rate = 1.0 / float(np.linalg.eigvalsh(spread)[-1])
    B, ahead, pace = np.zeros_like(scores), np.zeros_like(scores), 1.0
    for _ in range(_STEPS):
        climb = scores - (ahead.reshape(-1, m * m) @ spread).reshape(scores.shape)
        value, vectors = np.linalg.eigh(ahead + rate * climb)
        kept = np.maximum(value, 0.0)
        new = (vectors * kept[:, None, :]) @ vectors.swapaxes(1, 2)
        faster = (1 + (1 + 4 * pace**2) ** 0.5) / 2
        ahead, pace = new + (pace - 1) / faster * (new - B), faster
        B = new
    flat = B.reshape(-1, m * m)
    gain: Array = 2 * (scores.reshape(-1, m * m) * flat).sum(1)
    gain = gain - np.einsum("si,ij,sj->s", flat, spread, flat)
    return np.where(np.linalg.eigvalsh(scores)[:, -1] <= 0, 0.0, np.maximum(gain, 0.0))
