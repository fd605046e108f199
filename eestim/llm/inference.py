r"""Sandwich intervals for estimable functionals of a latent model's parameters.

phi is identified only up to the changes that keep the law of the perturbed embedding
(rotations of the latent), so A is singular along them in the population and noise in a
sample. The sandwich is formed on their orthogonal complement, where a functional that
does not vary along them has the same variance for every generalised inverse.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from eestim.equations import Evaluated
from eestim.errors import InferenceError, InterpolationError
from eestim.estimation import Estimate, estimate
from eestim.findings import Finding
from eestim.llm.delta_method import (
    labels_of,
    refuse_seen,
    refuse_zero,
    value_and_gradient,
)
from eestim.llm.influences import (
    Problem,
    dense_influences,
    free_influences,
    pull_of,
)
from eestim.llm.invariances import gradient_across, orbit_of
from eestim.llm.matrix_free import Solver
from eestim.llm.parameters import Which, refuse_frozen
from eestim.llm.protocols import Units
from eestim.llm.scores import independent_units
from eestim.llm.sensitivities import MOST_DENSE, check_dense
from eestim.llm.surrogates import LatentEquation
from eestim.llm.variance_split import data_share, split_variance
from eestim.roots import Root, Status

__all__ = ["infer", "squared_size"]

Array = npt.NDArray[np.float64]
_SIZE_WARNED = 3.0  # standard errors of tr(CC') from the boundary
_DOF = "G-1"
_NO_SPREAD = 1e-12  # spread of influences relative to their size


def squared_size(model: nn.Module) -> Tensor:
    """Return the mean squared size of the perturbation, tr(CC') for `LowRank`.

    For `Gated` the mean is over the embeddings of the whole vocabulary.
    """
    perturbation: Any = model.perturbation
    base: Any = getattr(model, "base", None)
    if base is None:
        table = torch.zeros(1, perturbation.width)
    else:
        table = base.get_input_embeddings().weight
    size: Tensor = perturbation.squared_size(table)
    return size


def infer(
    model: nn.Module,
    documents: Any,
    functional: Callable[[nn.Module], Tensor] = squared_size,
    equation: LatentEquation | None = None,
    *,
    draws: int = 8,
    passes: float = 1,
    sets: int = 4,
    parameters: Which = "perturbation",
    kind: Literal["observed", "expected"] = "observed",
    method: Literal["auto", "dense", "matrix-free"] = "auto",
    ridge: float = 0.0,
    reference: nn.Module | None = None,
    solver: Solver = "lsmr",
    tolerance: float | None = None,
    max_iterations: int | None = None,
    names: tuple[str, ...] | None = None,
    batch_size: int = 8,
    seed: int = 0,
) -> Estimate:
    r"""Return an estimate of a functional of the parameters with its sandwich.

    .. math::
        A^\top c = \nabla h, \qquad
        se^2 = \frac1n c^\top \Big(M_\infty + \frac{M_1 - M_\infty}{E}\Big) c

    with psi centred, because stochastic descent ends near a root, not at it; the
    distance from the root is reported in units of noise. M divides by n - 1, and
    intervals are those of t with n - 1 degrees of freedom: with a dozen documents a
    normal interval is too short.

    Parameters
    ----------
    model : LatentModel
        At the root that `fit` found.
    documents : Units, or list of str
        The training data; their units are the independent ones.
    functional : callable
        From the model to a scalar or 1-D tensor, differentiable in its parameters.
        See `eestim.llm.functionals` for losses and predictions. One with a true
        attribute ``depends_on_law`` states that its exact value depends on the law of
        the perturbed embedding alone, as theirs do: what its draws leave along
        rotations of the latent is then removed as noise, and its share reported.
    equation : LatentEquation, optional
        The one that was solved; `Brier` by default.
    draws : int
        K, as in training.
    passes : float
        E, how often training met each unit with fresh draws while its iterates were
        averaged (`Fit.averaged_passes`; with `Fit` at hand use
        `eestim.llm.sgd_inference.plug_in`). 1 for draws used once or fixed; below 1
        where the average holds a share of the units only; infinity leaves the noise
        of the data alone.
    sets : int
        Independent sets of draws, at least two, that A is averaged over and that tell
        the noise of the draws from that of the data. Of a model without a latent one
        set is all there is.
    parameters : {"perturbation", "all", "trained"}
        What was estimated. "perturbation" takes the base as known; "trained" takes
        what has ``requires_grad``: LoRA adapters, say, without the base below them.
        Frozen parameters beside trained ones are refused unless `ridge` pulls them.
    kind : {"observed", "expected"}
        Form of A, see `sensitivity`. "observed" holds under misspecification, but
        needs many units where psi is sharply curved.
    method : {"auto", "dense", "matrix-free"}
        "dense" stores A and psi; "matrix-free" solves by LSMR with products of A and
        its transpose, and gets :math:`c^\top \psi_i` by one forward-mode pass:
        memory is that of one batch and a dozen vectors. "auto" stores up to 5,000
        parameters.
    ridge : float
        :math:`\lambda` of a penalised equation, mean psi minus
        :math:`\lambda (\theta - \theta_{ref})`, whose A is :math:`A + \lambda I`. The
        interval is for the root of that equation; its distance from the truth (the
        bias of the penalty) is not in it.
    reference : LatentModel, optional
        The model whose parameters are :math:`\theta_{ref}`, so that the distance from
        the penalised root can be told. Without it the penalty counts as residual.
    solver : {"lsmr", "minres"}
        Of the matrix-free route. "minres" takes half the products and fewer steps
        where A is symmetric: `Brier`, and losses such as `NoiseAveraged`.
    tolerance : float, optional
        Relative residual of the solve, by default 1e-9 for float64 parameters and
        1e-5 below.
    max_iterations : int, optional
        Of the solver.
    names : tuple of str, optional
        Names of the values.
    batch_size, seed : int

    Returns
    -------
    Estimate
        Its findings give `V_data`, `V_latent`, the share of the latter and, without
        matrices, the accuracy of the solve.

    Raises
    ------
    IdentificationError
        If the functional varies along a direction that no data identify, A is
        singular elsewhere (too few units), or the perturbation is zero, where no Wald
        statistic has its usual law (use `no_perturbation`).
    ConvergenceError
        If the matrix-free solve does not reach its tolerance.
    DataError
        If the functional is a loss on documents that the parameters were fitted to,
        or rows of one document count as independent units.
    """
    _check_numbers(ridge, tolerance, max_iterations)
    value, gradient = value_and_gradient(model, functional, parameters)
    labels = _checked_labels(names, functional, len(value))
    sets = _checked_sets(model, sets, passes)
    refuse_zero(model, gradient, labels)
    if ridge == 0.0:
        refuse_frozen(model, parameters)
    units = independent_units(model, documents)
    refuse_seen(model, functional, units)
    _check_part_of_a_pass(units, passes)
    orbit = orbit_of(model, parameters)
    gradient, findings = gradient_across(
        orbit, gradient, labels, model, parameters,
        is_of_law=bool(getattr(functional, "depends_on_law", False)),
    )  # fmt: skip
    problem = Problem(
        model, units, equation, draws, sets, parameters, kind, ridge,
        pull_of(model, reference, parameters, ridge), orbit, batch_size, seed,
    )  # fmt: skip
    if _route(method, gradient.shape[1]) == "dense":
        table = dense_influences(problem, gradient)
    else:
        table, accuracy = free_influences(
            problem, gradient, labels, solver, tolerance, max_iterations
        )
        findings = (*findings, accuracy)
    made = _assembled(table, value, labels, passes, findings)
    return _with_size_finding(made) if functional is squared_size else made


def _checked_labels(
    names: tuple[str, ...] | None, functional: Any, count: int
) -> tuple[str, ...]:
    """Return the names of the values."""
    labels = names or labels_of(functional, count)
    if len(labels) != count:
        raise ValueError(
            f"`names` has {len(labels)} entries for {count} values of the functional."
        )
    return labels


def _checked_sets(model: nn.Module, sets: int, passes: float) -> int:
    """Return the sets of draws, one where there is no latent."""
    has_latent = bool(getattr(model, "has_latent", True))
    sets = sets if has_latent else 1
    if sets < 1 + has_latent or not passes > 0:
        raise ValueError(
            f"`sets` is {sets} and `passes` {passes}; two sets of draws or more tell "
            "their noise from that of the data, and training met the data, or a share "
            "of them."
        )
    return sets


def _check_part_of_a_pass(units: Units, passes: float) -> None:
    """Refuse a part of a pass over units whose rows came at random times."""
    if passes < 1 and len(units.unit) > units.n_units:
        raise InferenceError(
            f"`passes` is {passes:g}, but {units.n_units} units have "
            f"{len(units.unit)} rows: a part of a pass met some rows of a unit and not "
            "others, and its variance is not one of units. Average over a whole pass, "
            "or cut each unit to one row."
        )


def _route(method: str, count: int) -> str:
    """Return "dense" or "matrix-free"."""
    if method == "auto":
        return "dense" if count <= MOST_DENSE else "matrix-free"
    if method not in ("dense", "matrix-free"):
        raise ValueError(
            f"`method` is {method!r}; expected 'auto', 'dense' or 'matrix-free'."
        )
    if method == "dense":
        check_dense(count)
    return method


def _with_size_finding(made: Estimate) -> Estimate:
    """Return the estimate of a squared size with how far it is from zero."""
    ratio = float(np.asarray(made.theta)[0] / np.asarray(made.se)[0])
    is_clear = ratio >= _SIZE_WARNED
    found = Finding(
        "size of the perturbation",
        "pass" if is_clear else "warn",
        ratio,
        _SIZE_WARNED,
        f"The squared size is {ratio:.2g} standard errors from zero, where A is "
        "singular and the interval is no longer normal.",
        ""
        if is_clear
        else "Test it by the one-sided score, `no_perturbation(model, documents)`; do "
        "not read this interval or a Wald test as one of no perturbation.",
    )
    spread = replace(made.spread, findings=(*made.spread.findings, found))
    return replace(made, spread=spread)


def _assembled(
    table: Array,
    value: Array,
    labels: tuple[str, ...],
    passes: float,
    findings: tuple[Finding, ...],
) -> Estimate:
    """Return the estimate of influences (sets, n, k) with its variance in parts."""
    rows = table.mean(axis=0)
    n_units = len(rows)
    if n_units < 2:
        raise InferenceError(
            f"`documents` has {n_units} unit; a standard error needs at least 2."
        )
    size, spread = np.abs(table).max(axis=(0, 1)), rows.std(axis=0)
    if not (spread > _NO_SPREAD * size).all():
        raise InterpolationError(
            "psi is the same for every unit in the direction of the functional, so its "
            "standard error would be zero: the fit interpolates. Use `documents` that "
            "were held out, or a penalised fit."
        )
    residual = float(np.max(np.abs(rows.mean(0)) * n_units**0.5 / spread))
    tabulated = Evaluated(labels, rows - rows.mean(0), np.eye(len(value)), value)
    made = estimate(tabulated, root=Root(value, Status.GIVEN, residual, 0))
    free = n_units - 1  # psi is centred
    if len(table) == 1:  # no latent: nothing to split
        spread_of = replace(
            made.spread,
            matrix=made.spread.matrix * (n_units / free * data_share(passes)),
            rule="sandwich, centred",
            findings=(*made.spread.findings, *findings),
            coordinates=None,
            dof=float(free),
            dof_kind=_DOF,
        )
        return replace(made, spread=spread_of)
    split = split_variance(table, passes)
    every = (*made.spread.findings, *split.findings(labels), *findings)
    rule = f"sandwich, latent noise of {passes:g} passes"
    return replace(
        made,
        spread=replace(
            made.spread,
            matrix=split.total,
            rule=rule,
            citation="McFadden (1989); Huber (1967)",
            findings=every,
            coordinates=None,
            dof=float(free),
            dof_kind=_DOF,
        ),
    )


def _check_numbers(
    ridge: float, tolerance: float | None, max_iterations: int | None
) -> None:
    """Refuse settings of a penalty or solver that mean nothing."""
    if not (np.isfinite(ridge) and ridge >= 0):
        raise ValueError(f"`ridge` is {ridge}; it must be non-negative and finite.")
    if tolerance is not None and not 0 < tolerance < 1:
        raise ValueError(f"`tolerance` is {tolerance}; it must lie between 0 and 1.")
    if max_iterations is not None and max_iterations < 1:
        raise ValueError(
            f"`max_iterations` is {max_iterations}; it must be at least 1."
        )
