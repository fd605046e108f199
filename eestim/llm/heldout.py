r"""What each held-out document costs a model: the sums that comparisons are made of.

Losses at a grid of temperatures, the Brier score, calibration gaps by confidence, and
ranks, summed over the tokens of each document, of predictions averaged over the latent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from eestim.errors import DataError
from eestim.llm.averaging import average_log_probabilities
from eestim.llm.documents import Documents
from eestim.llm.heads import has_hidden
from eestim.llm.protocols import check_model
from eestim.llm.surrogates import IGNORED, leave_one_out
from eestim.llm.training import step_generator

__all__ = ["BINS", "TEMPERATURES", "Held", "position_scores", "score_documents"]

Array = npt.NDArray[np.float64]

_STEP, _ONE = 0.1, 4  # of the grid in log T, and the place of T = 1
TEMPERATURES: tuple[float, ...] = tuple(math.exp(_STEP * (j - _ONE)) for j in range(15))
"""Temperatures at which losses are computed; between them, parabolas in log T."""

BINS = 15
"""Bins of equal width of the largest probability (Guo et al., 2017)."""

_AT_ONCE = 2**26  # probabilities in memory at a time: 256 MB in float32


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """Sums over each document of one model on one corpus.

    Attributes
    ----------
    nll : (n_temperatures, G) array
        Negative log likelihood in nats, averaged prediction, by temperature.
    left_out : (K, G) array
        The same at temperature 1 without each draw in turn (K = 1: no latent).
    gap : (BINS, G) array
        Confidence minus correctness of the likeliest token, by bin of confidence.
    brier : (G,) array
        Brier score, the squared distance of the law from the outcome, from 0 to 2.
    top1, reciprocal_rank : (G,) arrays
    """

    nll: Array
    left_out: Array
    gap: Array
    brier: Array
    top1: Array
    reciprocal_rank: Array

    @classmethod
    def of(cls, table: Array, draws: int) -> Held:
        """Return the record of the rows that `position_scores` gives, summed."""
        ends = np.cumsum([len(TEMPERATURES), draws, BINS])
        nll, left_out, gap, rest = np.split(table, ends)
        return cls(nll, left_out, gap, *rest)

    def calibration_gap(self) -> Array:
        r"""Return the part of each document in the expected calibration error.

        .. math:: ECE = \frac{1}{N} \sum_b \Big| \sum_d g_{bd} \Big|
            = \frac{1}{N} \sum_d \sum_b \mathrm{sign}_b \, g_{bd}

        with the signs of the whole corpus, so that sums over documents linearise it.
        It is biased upwards where bins hold few tokens.
        """
        parts: Array = (np.sign(self.gap.sum(1, keepdims=True)) * self.gap).sum(0)
        return parts

    @property
    def raw(self) -> Array:
        """Loss of each document at temperature 1."""
        values: Array = self.nll[_ONE]
        return values

    def best_temperature(self) -> float:
        """Return the temperature of least total loss, between the ends of the grid."""
        total = self.nll.sum(1)
        centre = min(max(int(total.argmin()), 1), len(total) - 2)
        low, mid, high = total[centre - 1 : centre + 2]
        bend = low - 2 * mid + high
        shift = (low - high) / (2 * bend) if bend > 0 else 0.0
        return math.exp(_STEP * (centre - _ONE + min(max(shift, -1.0), 1.0)))

    def has_inner_temperature(self) -> bool:
        """Whether the least loss lies inside the grid, not at one of its ends."""
        return 0 < int(self.nll.sum(1).argmin()) < len(self.nll) - 1

    def at(self, temperature: float) -> Array:
        """Return the loss of each document at a temperature, by quadratics in log T.

        Three grid points 10% apart bound the error by about 1e-4 nats a token.
        """
        place = math.log(temperature) / _STEP + _ONE
        centre = min(max(round(place), 1), len(self.nll) - 2)
        h = place - centre
        low, mid, high = self.nll[centre - 1 : centre + 2]
        values: Array = mid + h * (high - low) / 2 + h * h * (low - 2 * mid + high) / 2
        return values

    def unbiased(self) -> Array:
        """Return losses without the first-order bias of -log of a mean of K draws.

        The jackknife over draws, K L_K - (K - 1) mean L_{K-1}.
        """
        draws = len(self.left_out)
        if draws == 1:
            return self.raw
        corrected: Array = draws * self.raw - (draws - 1) * self.left_out.mean(0)
        return corrected


@torch.no_grad()
def score_documents(
    model: nn.Module,
    documents: Documents,
    draws: int = 16,
    batch_size: int = 8,
    seed: int = 0,
) -> Held:
    """Return the sums over each document that every comparison is made of."""
    check_model(model)
    if batch_size < 1:
        raise ValueError(f"`batch_size` is {batch_size}; it must be at least 1.")
    n_units, sums, found = documents.n_units, None, 1
    for number, begin in enumerate(range(0, len(documents.unit), batch_size)):
        rows = np.arange(begin, min(begin + batch_size, len(documents.unit)))
        batch = documents.batch(rows)
        generator = step_generator(seed, number, 1)
        targets = model.targets(batch)  # type: ignore[operator]
        kept = targets != IGNORED
        unit = torch.as_tensor(documents.unit[rows], device=kept.device)
        owners = unit.unsqueeze(1).expand(kept.shape)[kept].cpu()
        for logits, part in _logits(model, batch, draws, generator, kept):
            found = len(logits)
            scores = position_scores(logits, targets[kept][part])
            if sums is None:
                sums = torch.zeros(len(scores), n_units, dtype=torch.float64)
            sums.index_add_(1, owners[part], scores.double().cpu())
    if sums is None:
        raise ValueError("`documents` has no row; give at least one document.")
    broken = torch.nonzero(~torch.isfinite(sums).all(0)).flatten().tolist()
    if broken:
        raise DataError(
            f"`models` holds one whose loss is not finite on {len(broken)} documents, "
            f"first on {documents.names[broken[0]]!r}: its weights are not finite, or "
            "its logits overflow. Load it again, or go back to a checkpoint."
        )
    return Held.of(sums.numpy(), found)


def _logits(
    model: Any, batch: Any, draws: int, generator: torch.Generator, kept: Tensor
) -> Iterator[tuple[Tensor, slice]]:
    """Yield (K, n, V) logits of runs of kept positions, with their places.

    A model that gives its hidden states never has all of its logits in memory.
    """
    count = int(kept.sum())
    if not has_hidden(model):
        yield model.draw_logits(batch, draws, generator)[:, kept], slice(0, count)
        return
    hidden = model.draw_hidden(batch, draws, generator)[:, kept]
    width = max(1, _AT_ONCE // (len(hidden) * len(model.head_weight)))
    for begin in range(0, count, width):
        part = slice(begin, min(begin + width, count))
        yield model.head(hidden[:, part]), part


def position_scores(logits: Tensor, targets: Tensor) -> Tensor:
    """Return rows of scores of each position, see `Held`.

    Parameters
    ----------
    logits : (K, N, V) tensor
    targets : (N,) integer tensor

    Returns
    -------
    (n_temperatures + K + BINS + 3, N) tensor
    """
    index = targets.unsqueeze(-1)
    log_p = average_log_probabilities(logits)
    own = log_p.gather(-1, index)
    rows = [
        (log_p / t).logsumexp(-1) - own.squeeze(-1) / t
        if t != 1.0
        else -own.squeeze(-1)
        for t in TEMPERATURES
    ]
    wide = logits.float() if logits.dtype != torch.float64 else logits
    each = wide.gather(-1, index.expand(len(logits), -1, -1)).squeeze(-1)
    each = each - wide.logsumexp(-1)
    rows += list((-leave_one_out(each) if len(each) > 1 else -each).unbind(0))
    rows += list(_calibration(log_p, targets))
    p = log_p.exp()
    rows.append(p.square().sum(-1) - 2 * own.squeeze(-1).exp() + 1)
    above = (log_p > own).sum(-1)
    rows += [(above == 0).to(log_p.dtype), 1.0 / (1.0 + above)]
    return torch.stack(rows)


def _calibration(log_p: Tensor, targets: Tensor) -> Tensor:
    """Return confidence minus correctness in the row of its bin, (BINS, N)."""
    top, choice = log_p.max(-1)
    confidence = top.exp().clamp(max=1.0)
    place = (confidence * BINS).long().clamp(0, BINS - 1)
    gap = confidence - (choice == targets).to(confidence)
    return torch.zeros(BINS, len(gap), dtype=gap.dtype, device=gap.device).scatter_(
        0, place.unsqueeze(0), gap.unsqueeze(0)
    )
