r"""Contributions psi of each unit, for the parameters of a latent model.

psi is minus the gradient of the surrogate in its differentiated copy. The unit is the
document (or any independent row), never the token.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from eestim.errors import CapabilityError, DataError
from eestim.llm.documents import refuse_cut_documents
from eestim.llm.equations import Brier, Split
from eestim.llm.levels import MLMC
from eestim.llm.limits import check_independence
from eestim.llm.parameters import (
    Which,
    chosen,
    count_parameters,
    name_at,
    parameter_names,
)
from eestim.llm.prefix import LatentPrefixLM, as_token_batch
from eestim.llm.protocols import Units, check_model
from eestim.llm.score_rules import logits_at, rule_of
from eestim.llm.surrogates import LatentEquation, check_draws, through_first
from eestim.llm.training import as_units, step_generator

__all__ = [
    "Which",
    "chosen",
    "count_parameters",
    "equation_parts",
    "independent_units",
    "logits_at",
    "name_at",
    "parameter_names",
    "refuse_non_finite",
    "score_sets",
    "scores",
    "unit_batches",
]

Array = npt.NDArray[np.float64]
_LARGEST_TABLE = 4e9  # bytes of psi
_LOOKED_AT = 64  # rows, for documents that were cut into several units


def scores(
    model: nn.Module,
    documents: Any,
    equation: LatentEquation | None = None,
    *,
    draws: int = 8,
    passes: int = 1,
    parameters: Which = "perturbation",
    method: Literal["auto", "two-stage", "mapped", "forward", "loop"] = "auto",
    batch_size: int = 8,
    seed: int = 0,
) -> Array:
    r"""Return psi of each unit (document), summed over its positions.

    .. math:: \psi_i = \sum_{t \in i} \psi_{it}

    Parameters
    ----------
    model : LatentModel
    documents : Units, or list of str
    equation : LatentEquation, optional
        `Brier` by default.
    draws : int
        K latent draws for each row; no two units share one.
    passes : int
        Independent sets of draws to average psi over. After `passes` epochs with
        fresh draws the estimate carries the latent noise of their average.
    parameters : {"perturbation", "all", "trained"}
        "trained" takes those with ``requires_grad``, which `fit` moves: of a base
        adapted by peft its adapters and the perturbation, without the frozen base
        that "all" has too. Freeze a part for the scores of another.
    method : {"auto", "two-stage", "mapped", "forward", "loop"}
        "two-stage" goes backward through the language model once for the batch, to
        the perturbed embeddings, and then maps each unit's part through the
        perturbation alone; "mapped" maps the gradient of one row over the batch, for
        parameters of a language model wherever they are, in chunks of rows whose
        gradients fit in 150 MB; "forward" needs one forward-mode pass for each
        parameter; "loop" goes backward once for each row, an oracle for tests. Tied
        weights are one parameter, whose psi holds both of its uses.
    batch_size, seed : int

    Returns
    -------
    (n_units, P) float64 array

    Raises
    ------
    DataError
        If the table would need more than 4 GB; `infer` never forms it.

    Examples
    --------
    Columns follow `parameter_names`.

    >>> from eestim.llm.synthetic import BinaryModel, binary_data
    >>> model, data = BinaryModel(), binary_data(50, seed=0)
    >>> scores(model, data, parameters="all").shape
    (50, 3)
    """
    sets = score_sets(
        model, documents, equation, draws, passes, parameters, method, batch_size, seed
    )
    average: Array = np.mean(list(sets), axis=0)
    return average


def score_sets(
    model: nn.Module,
    documents: Any,
    equation: LatentEquation | None = None,
    draws: int = 8,
    passes: int = 1,
    parameters: Which = "perturbation",
    method: str = "auto",
    batch_size: int = 8,
    seed: int = 0,
) -> Iterator[Array]:
    """Yield psi (n_units, P) of independent sets of draws, one for each pass."""
    equation = Brier() if equation is None else equation
    check_draws(equation, draws)
    check_independence(check_model(model), equation.smallest_draws)
    if passes < 1 or batch_size < 1:
        raise ValueError(
            f"`passes` is {passes} and `batch_size` {batch_size}; both must be at "
            "least 1."
        )
    units = independent_units(model, documents)
    wanted = chosen(model, parameters)
    _check_size(units.n_units, count_parameters(wanted))
    rule = rule_of(model, wanted, method)
    for number in range(passes):
        psi = torch.zeros(units.n_units, count_parameters(wanted), dtype=torch.float64)
        for batch, owner, generator in unit_batches(units, batch_size, seed, number):
            state = generator.get_state()
            columns = []
            for part, names in equation_parts(equation, wanted, as_trained=True):
                generator.set_state(state)  # every group meets the same draws
                columns.append(rule(model, part, names, batch, draws, generator))
            rows = _in_order(columns, wanted).detach()
            psi.index_add_(0, owner, rows.double().cpu())
        refuse_non_finite(psi, units)
        yield psi.numpy()


def independent_units(model: nn.Module, documents: Any) -> Units:
    """Return the data as units, after looking whether documents were cut into several.

    Raises
    ------
    DataError
        If rows that continue one document count as independent units.
    """
    units = as_units(model, documents)
    if not isinstance(model, LatentPrefixLM):
        return units
    rows = np.arange(min(len(units.unit), _LOOKED_AT))
    first = as_token_batch(units.batch(rows))
    refuse_cut_documents(units, first.input_ids, first.targets)
    return units


def refuse_non_finite(rows: Tensor, units: Units) -> None:
    """Refuse a number of a unit that is not finite, naming the unit."""
    broken = torch.nonzero(~torch.isfinite(rows).all(1)).flatten().tolist()
    if broken:
        names = getattr(units, "names", None)
        first = broken[0]
        named = f" ({names[first]!r})" if names else ""
        raise DataError(
            f"`model` gives psi that is not finite at {len(broken)} of {len(rows)} "
            f"units, first at unit {first}{named}: its weights are not finite, or its "
            "logits overflow. Load the weights again, go back to a checkpoint, or use "
            "float32."
        )


def unit_batches(
    units: Units, batch_size: int, seed: int, set_number: int
) -> Iterator[tuple[Any, Tensor, torch.Generator]]:
    """Yield (batch, unit of each row, generator) over all rows."""
    if batch_size < 1:
        raise ValueError(f"`batch_size` is {batch_size}; it must be at least 1.")
    for number, begin in enumerate(range(0, len(units.unit), batch_size)):
        rows = np.arange(begin, min(begin + batch_size, len(units.unit)))
        generator = step_generator(seed, number, 2 + set_number)
        yield units.batch(rows), torch.as_tensor(units.unit[rows]), generator


@dataclass(frozen=True, slots=True)
class _Few(LatentEquation):
    """psi of another equation through its first draws alone, as `Split` trains it."""

    whole: LatentEquation
    draws: int

    def surrogate(self, moving: Tensor, still: Tensor, targets: Tensor) -> Tensor:
        """Return S(u, t); its derivative in t at a moving u is not that of psi."""
        return self.whole.surrogate(through_first(moving, self.draws), still, targets)


def equation_parts(
    equation: LatentEquation,
    wanted: dict[str, nn.Parameter],
    *,
    as_trained: bool = False,
) -> list[tuple[LatentEquation, dict[str, nn.Parameter]]]:
    """Return which equation the parameters solve; two groups for `Split`.

    `as_trained` is for psi, which a `Split` may make of few draws: its variance is
    that of training. The sensitivity is the same in the mean with all draws, and needs
    them, since psi of few draws depends on the parameters through the others too.

    Raises
    ------
    CapabilityError
        If psi of a unit is not a function of its rows and K draws.
    """
    _check_rows(equation)
    if not isinstance(equation, Split):
        return [(equation, wanted)]
    phi = {n: p for n, p in wanted.items() if n.startswith("perturbation.")}
    base = {n: p for n, p in wanted.items() if n not in phi}
    of_phi = equation.perturbation
    if as_trained and equation.perturbation_draws is not None:
        of_phi = _Few(of_phi, equation.perturbation_draws)
    pairs = [(equation.base, base), (of_phi, phi)]
    return [(part, names) for part, names in pairs if names]


def _check_rows(equation: LatentEquation) -> None:
    """Refuse an equation whose psi needs more than observed rows and K draws."""
    if equation.needs_replicates:
        raise CapabilityError(
            f"psi of {equation} compares each row with one that the model made, whose "
            "law moves with the parameters: neither psi nor A can be had from the "
            "observed rows alone. Fit by it, and use `infer` with an equation of the "
            "same root, such as SequenceCentred() on short rows."
        )
    if isinstance(equation, MLMC):
        raise CapabilityError(
            f"{equation} draws a level at random in each step, and psi with K draws is "
            "that of one level, whose mean is not zero. Its mean over levels is the "
            f"score of IWAE() with draws={2**equation.levels}; use that."
        )


def _check_size(n_units: int, count: int) -> None:
    """Refuse a table of psi that is too large for memory."""
    if 8.0 * n_units * count > _LARGEST_TABLE:
        raise DataError(
            f"psi of {n_units} units and {count} parameters takes "
            f"{8e-9 * n_units * count:.1f} GB; use `infer(..., method='matrix-free')`, "
            "which never forms it, or parameters='perturbation'."
        )


def _in_order(
    columns: list[dict[str, Tensor]], wanted: dict[str, nn.Parameter]
) -> Tensor:
    """Return (B, P) from blocks by name, in the order of the parameters."""
    found = {name: block for part in columns for name, block in part.items()}
    return torch.cat([found[n].reshape(len(found[n]), -1) for n in wanted], dim=1)
