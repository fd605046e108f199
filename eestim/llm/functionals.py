r"""What `infer` reports of a whole model: predictions and held-out losses.

Every functional is a function of the model that is constant under changes of the
parameters that leave the law unchanged, hence estimable where the data identify the
law. Draws are fixed by a seed, so that a functional is a smooth function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from eestim.errors import DataError
from eestim.llm.averaging import average_log_probabilities
from eestim.llm.scores import unit_batches
from eestim.llm.surrogates import (
    IGNORED,
    leave_one_out,
    log_probabilities,
    only_kept,
    pick,
)
from eestim.llm.training import as_units, step_generator

__all__ = ["log_loss", "probability"]

Functional = Callable[[nn.Module], Tensor]
_STREAM = 1  # evaluation's own draws, apart from those of training and scores


def probability(
    batch: Any, token: int, *, draws: int = 16, seed: int = 0
) -> Functional:
    r"""Return the functional :math:`p(y \mid x^*)`, averaged over the latent.

    Parameters
    ----------
    batch : (1, T) token tensor, or what `draw_logits` takes
        The prefix; the prediction after its last position is meant.
    token : int
        y.
    draws, seed : int
        Draws of the latent, fixed.

    Examples
    --------
    >>> from eestim.llm.synthetic import BinaryModel
    >>> at = (torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.long))
    >>> round(probability(at, 1, draws=4000)(BinaryModel(b=0.0)).item(), 4)
    0.5744
    """

    def value(model: nn.Module) -> Tensor:
        generator = step_generator(seed, 0, _STREAM)
        logits = model.draw_logits(batch, draws, generator)  # type: ignore[operator]
        if logits.shape[1] != 1:
            raise ValueError(
                f"`batch` has {logits.shape[1]} rows; expected one, the prefix."
            )
        last = average_log_probabilities(logits).flatten(0, -2)[-1]
        if not 0 <= token < len(last):
            raise ValueError(
                f"`token` is {token}; expected one of the {len(last)} tokens, from 0."
            )
        return last[token].exp()

    value.__name__ = f"p({token})"
    return _of_law(value)


def log_loss(
    documents: Any,
    baseline: nn.Module | None = None,
    *,
    draws: int = 16,
    corrected: bool = True,
    batch_size: int = 8,
    seed: int = 0,
) -> Functional:
    r"""Return the mean negative log probability of held-out tokens, in nats.

    The bias of order 1 / K of minus the log of a mean over K draws is removed by the
    jackknife over draws, :math:`K L_K - (K - 1) \bar L_{K-1}`. Memory is that of one
    batch: each is computed again on the way back.

    Parameters
    ----------
    documents : Units, or list of str
        Held-out documents, taken as given: `infer` then reports the uncertainty of the
        parameters, and `evaluate` that of the choice of documents. `infer` refuses
        documents of the fit.
    baseline : LatentModel, optional
        A fixed model whose loss on the same tokens is subtracted.
    draws : int
        K, for prediction.
    corrected : bool
        Whether to remove the bias.
    batch_size, seed : int

    Raises
    ------
    DataError
        If no token has a target.
    """

    def mean(model: nn.Module) -> Tensor:
        units = as_units(model, documents)
        total, count = None, 0
        for batch, _, generator in unit_batches(units, batch_size, seed, _FAR):
            state = generator.get_state()

            def loss(batch: Any, generator: Any = generator, state: Any = state) -> Any:
                generator.set_state(state)  # the same draws on the way back
                logits = model.draw_logits(batch, draws, generator)  # type: ignore[operator]
                targets = model.targets(batch)  # type: ignore[operator]
                return _token_losses(logits, targets, corrected).sum()

            made: Tensor = checkpoint(loss, batch, use_reentrant=False)
            total = made if total is None else total + made
            targets: Tensor = model.targets(batch)  # type: ignore[operator]
            count += int((targets != IGNORED).sum())
        if total is None or count == 0:
            raise DataError("`documents` holds no token with a target.")
        return total / count

    def value(model: nn.Module) -> Tensor:
        found = mean(model)
        if baseline is None:
            return found
        with torch.no_grad():
            other = mean(baseline).to(found)
        return found - other

    marked: Any = value
    marked.documents = documents  # `infer` refuses those that it was fitted to
    value.__name__ = "log loss" if baseline is None else "log loss difference"
    return _of_law(value)


def _of_law(value: Any) -> Functional:
    """Mark a mean over draws whose exact value depends on the law of u alone."""
    value.depends_on_law = True
    marked: Functional = value
    return marked


_FAR = 10**6  # a set of draws that neither scores nor A use


def _token_losses(logits: Tensor, targets: Tensor, corrected: bool) -> Tensor:
    """Return minus the log of the mean over draws, of each position."""
    log_q = pick(log_probabilities(logits), targets)
    draws = len(log_q)
    whole = torch.tensor(float(draws)).log() - log_q.logsumexp(0)
    if corrected and draws > 1:
        whole = draws * whole + (draws - 1) * leave_one_out(log_q).mean(0)
    return only_kept(whole, targets)
