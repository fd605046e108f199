r"""A and psi of a latent model as products, for parameters too many for any matrix.

Nothing of size (n, P) or (P, P) is formed: a product is one pass over the units, and
memory is that of one batch and a dozen vectors of length P. The draws of every pass
are the same (seeded by batch and set), so the products are those of one matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.sparse.linalg import LinearOperator
from torch import Tensor, nn

from eestim.asymptotics.operators import EquationOperators, solve_adjoint
from eestim.autodiff import surrogate_operators
from eestim.errors import CapabilityError, IdentificationError
from eestim.llm.biased import IWAE, NoiseAveraged, SharedDraw
from eestim.llm.equations import Brier
from eestim.llm.limits import check_independence
from eestim.llm.parameters import Which, chosen
from eestim.llm.protocols import Units, check_model
from eestim.llm.score_rules import logits_at
from eestim.llm.scores import equation_parts, independent_units, unit_batches
from eestim.llm.sensitivities import (
    check_expected,
    check_precision,
    plain_attention,
)
from eestim.llm.surrogates import LatentEquation, check_draws

__all__ = ["Influence", "influence", "latent_operators"]

Array = npt.NDArray[np.float64]
Values = dict[str, Tensor]
Solver = Literal["lsmr", "minres"]
_SHOWN = 3
_LOSSES = (NoiseAveraged, SharedDraw, IWAE)
_REFINED = 0.1  # residual of the second solve, relative to that of the first


@dataclass(frozen=True, slots=True)
class _Batches:
    """The batches of every set of draws, in one order, each with its generator."""

    units: Units
    batch_size: int
    seed: int
    sets: int

    def __call__(self) -> Iterator[Any]:
        """Yield (batch, generator, its state)."""
        for number in range(self.sets):
            for batch, _, generator in unit_batches(
                self.units, self.batch_size, self.seed, number
            ):
                yield batch, generator, generator.get_state()

    def codes(self) -> npt.NDArray[np.int64]:
        """Return set * n + unit of each row."""
        n = self.units.n_units
        return np.concatenate([self.units.unit + n * j for j in range(self.sets)])


def latent_operators(
    model: nn.Module,
    documents: Any,
    equation: LatentEquation | None = None,
    *,
    draws: int = 8,
    sets: int = 2,
    parameters: Which = "all",
    kind: Literal["observed", "expected"] = "observed",
    ridge: float = 0.0,
    batch_size: int = 8,
    seed: int = 0,
) -> EquationOperators:
    r"""Return A and psi of a latent model as linear maps.

    Parameters
    ----------
    model, documents, equation, draws, parameters, batch_size, seed
        As for `scores`.
    sets : int
        Independent sets of draws. A is the mean over them; psi has their rows one set
        after another, (sets * n_units, P).
    kind : {"observed", "expected"}
        As for `sensitivity`.
    ridge : float
        :math:`\lambda` of a penalised equation, mean psi minus
        :math:`\lambda(\theta - \theta_{ref})`: A gains :math:`\lambda I`.

    Returns
    -------
    EquationOperators
        Equal to what `sensitivity` and `scores` store, for the same seed and sets.
    """
    equation = Brier() if equation is None else equation
    check_draws(equation, draws)
    check_independence(check_model(model), equation.smallest_draws)
    check_precision(model)
    if sets < 1 or batch_size < 1:
        raise ValueError(
            f"`sets` is {sets} and `batch_size` {batch_size}; both must be at least 1."
        )
    if kind == "expected":
        check_expected(equation)
    if not (np.isfinite(ridge) and ridge >= 0):
        raise ValueError(f"`ridge` is {ridge}; it must be non-negative and finite.")
    wanted = chosen(model, parameters)
    batches = _Batches(independent_units(model, documents), batch_size, seed, sets)

    def made(*, as_trained: bool) -> EquationOperators:
        parts = equation_parts(equation, wanted, as_trained=as_trained)
        with plain_attention(model):
            return surrogate_operators(
                _surrogate(model, equation, parts, draws),
                {name: p.detach() for name, p in wanted.items()},
                batches,
                units=batches.codes(),
                kind=kind,
                seed=seed,
            )

    maps = made(as_trained=False)
    has_few = getattr(equation, "perturbation_draws", None) is not None
    psi = made(as_trained=True).psi if has_few else maps.psi
    return replace(
        maps,
        scale=_balanced(maps.scale, ridge),
        sensitivity=_within(model, maps.sensitivity, ridge),
        psi=_within(model, psi, 0.0),
    )


def _balanced(scale: Array | None, ridge: float) -> Array | None:
    r"""Return the scale of :math:`A + \lambda I` from that of A, measured by psi."""
    if scale is None or ridge == 0.0:
        return scale
    return np.asarray((scale**-2.0 + ridge) ** -0.5)


def _surrogate(
    model: nn.Module,
    equation: LatentEquation,
    parts: list[tuple[LatentEquation, dict[str, nn.Parameter]]],
    draws: int,
) -> Any:
    """Return S(u, t) of each row of a batch; for `Split` each group's own, added."""
    is_plain = isinstance(equation, _LOSSES)  # which never look at t

    def rows(moving: Values, still: Values, given: Any) -> Tensor:
        batch, generator, state = given

        def logits(values: Values) -> Tensor:
            generator.set_state(state)
            return logits_at(model, values, batch, draws, generator)

        targets = model.targets(batch)  # type: ignore[operator]
        fixed = None if is_plain else logits(still)
        total = None
        for part, names in parts:
            moved = logits(still | {name: moving[name] for name in names})
            value = part.surrogate(moved, moved if fixed is None else fixed, targets)
            value = value.reshape(len(value), -1).sum(1)
            total = value if total is None else total + value
        if total is None:
            raise CapabilityError(f"{equation} has no parameters among those chosen.")
        return total

    return rows


def _within(model: nn.Module, maps: LinearOperator, ridge: float) -> LinearOperator:
    """Return products made under plain attention, with a multiple of I added."""

    def forward(v: Array) -> Array:
        with plain_attention(model):
            found: Array = maps.matvec(v)
        return found if ridge == 0.0 else found + ridge * v

    def backward(c: Array) -> Array:
        with plain_attention(model):
            found: Array = maps.rmatvec(c)
        return found if ridge == 0.0 else found + ridge * c

    return LinearOperator(
        maps.shape, matvec=forward, rmatvec=backward, dtype=np.float64
    )


@dataclass(frozen=True, slots=True)
class Influence:
    r"""c'psi_i of a functional, with the accuracy of the solve :math:`A'c = g`.

    Attributes
    ----------
    coefficients : (P,) array
        c.
    rows : (sets, n) array
    residual : float
        :math:`\|g - A'c\| / \|g\|` after the solve.
    solve_error : float
        Change of the standard error, relative to it, when the solve went on to a tenth
        of that residual; the figures given are those after that step.
    condition : float
        Estimated condition number of A on the directions that were met.
    iterations : int
        Steps of the solver, see `solve_adjoint`.
    """

    coefficients: Array
    rows: Array
    residual: float
    solve_error: float
    condition: float
    iterations: int


def influence(
    maps: EquationOperators,
    gradient: Array,
    label: str,
    n_units: int,
    tolerance: float,
    max_iterations: int | None = None,
    solver: Solver = "lsmr",
) -> Influence:
    """Return c'psi_i of one functional by an iterative solve and a forward-mode pass.

    Raises
    ------
    IdentificationError
        If a part of the gradient larger than ten tolerances lies along directions
        that A does not see.
    ConvergenceError
        If the solve needs more iterations.
    """
    options: dict[str, Any] = {
        "column_scale": maps.scale,
        "row_scale": maps.scale,
        "solver": solver,
    }
    first = solve_adjoint(
        maps.sensitivity,
        gradient,
        tolerance=tolerance,
        max_iterations=max_iterations,
        **options,
    )
    if first.relative_residual > max(1e-6, 10 * tolerance):
        size = np.abs(first.residual)
        names = maps.names or [f"theta[{j}]" for j in range(len(size))]
        largest = ", ".join(names[int(j)] for j in np.argsort(-size)[:_SHOWN])
        raise IdentificationError(
            f"`functional` {label!r} is not estimable: {first.relative_residual:.1e} "
            f"of its gradient (limit {max(1e-6, 10 * tolerance):.0e}) lies along "
            f"directions that the data do not identify, most at {largest}. With more "
            "parameters than the units can tell apart, estimate a penalised equation "
            "(`ridge`, as weight decay does), or report a functional of the "
            "perturbation alone."
        )
    c, rows = first.coefficients, [maps.psi.matvec(first.coefficients)]
    iterations, change = first.n_iterations, 0.0
    if first.relative_residual > 1e-13:
        more = solve_adjoint(
            maps.sensitivity, first.residual, tolerance=_REFINED, **options
        )
        rows.append(maps.psi.matvec(more.coefficients))
        iterations += more.n_iterations
        before = np.linalg.norm(rows[0])
        change = abs(float(np.linalg.norm(rows[0] + rows[1]) / before) - 1.0)
        c = c + more.coefficients
    found: Array = np.sum(rows, axis=0).reshape(-1, n_units)
    return Influence(
        c, found, first.relative_residual, change, first.condition, iterations
    )
