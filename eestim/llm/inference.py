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

from eestim.covariance.base import sensitivity_factor
from eestim.equations import Evaluated
from eestim.errors import (
    IdentificationError,
    InferenceError,
    InterpolationError,
)
from eestim.estimation import Estimate, estimate
from eestim.findings import Finding
from eestim.llm.invariances import (
    Orbit,
    gradient_across,
    operators_across,
    orbit_of,
)
from eestim.llm.matrix_free import Influence, Solver, influence, latent_operators
from eestim.llm.scores import Which, chosen, parameter_names, score_sets
from eestim.llm.sensitivities import MOST_DENSE, check_dense, sensitivity
from eestim.llm.surrogates import LatentEquation
from eestim.llm.variance_split import split_variance
from eestim.roots import Root, Status

__all__ = ["infer", "squared_size"]

Array = npt.NDArray[np.float64]
_SIZE_WARNED = 3.0  # standard errors of tr(CC') from the boundary
_SOLVE_WARNED = 0.01  # of the standard error
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
        E, how often training met each unit with fresh draws (`Fit.passes`), its
        iterates averaged. 1 for draws used once or fixed; infinity leaves the noise of
        the data alone.
    sets : int
        Independent sets of draws, at least two, that A is averaged over and that tell
        the noise of the draws from that of the data. Of a model without a latent one
        set is all there is.
    parameters : {"perturbation", "all"}
        What was estimated. "perturbation" takes the base as known.
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
    """
    _check_numbers(ridge, tolerance, max_iterations)
    value, gradient = _functional(model, functional, parameters)
    labels = names or _labels(functional, len(value))
    if len(labels) != len(value):
        raise ValueError(
            f"`names` has {len(labels)} entries for {len(value)} values of the "
            "functional."
        )
    has_latent = bool(getattr(model, "has_latent", True))
    sets = sets if has_latent else 1
    if sets < 1 + has_latent or not passes >= 1:
        raise ValueError(
            f"`sets` is {sets} and `passes` {passes}; two sets of draws or more tell "
            "their noise from that of the data, and training met the data once or "
            "more."
        )
    _refuse_zero(model, gradient, labels)
    count = gradient.shape[1]
    if method == "auto":
        method = "dense" if count <= MOST_DENSE else "matrix-free"
    if method not in ("dense", "matrix-free"):
        raise ValueError(
            f"`method` is {method!r}; expected 'auto', 'dense' or 'matrix-free'."
        )
    options: dict[str, Any] = {
        "draws": draws,
        "parameters": parameters,
        "batch_size": batch_size,
        "seed": seed,
    }
    orbit = orbit_of(model, parameters)
    gradient, findings = gradient_across(
        orbit, gradient, labels, model, parameters,
        is_of_law=bool(getattr(functional, "depends_on_law", False)),
    )  # fmt: skip
    pull = _pull(model, reference, parameters, ridge)
    if method == "dense":
        check_dense(count)
        table = _dense(
            model, documents, equation, gradient, orbit, sets, kind, ridge, options,
            pull,
        )  # fmt: skip
    else:
        table, accuracy = _free(
            model, documents, equation, gradient, labels, orbit, sets, kind, ridge,
            tolerance, max_iterations, options, solver, pull,
        )  # fmt: skip
        findings = (*findings, accuracy)
    made = _assembled(table, value, labels, passes, findings)
    return _with_size_finding(made) if functional is squared_size else made


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


def _dense(
    model: nn.Module,
    documents: Any,
    equation: LatentEquation | None,
    gradient: Array,
    orbit: Orbit,
    sets: int,
    kind: Literal["observed", "expected"],
    ridge: float,
    options: dict[str, Any],
    pull: Array,
) -> Array:
    """Return c'psi (sets, n, k) by a stored A on the identified directions."""
    A = sensitivity(model, documents, equation, passes=sets, kind=kind, **options)
    A = A + ridge * np.eye(len(A))
    labels: tuple[str, ...] = parameter_names(model, options["parameters"])
    inner, slope = gradient.T, A
    frame = orbit.frame() if orbit.dimension else None
    if frame is not None:
        slope, inner = frame.T @ A @ frame, frame.T @ gradient.T
        labels = tuple(f"direction {j}" for j in range(len(slope)))
    weights = sensitivity_factor(slope, labels).solve_transpose(inner)
    c = weights if frame is None else frame @ weights
    found = score_sets(model, documents, equation, passes=sets, **options)
    return np.stack([psi @ c for psi in found]) - pull @ c


def _free(
    model: nn.Module,
    documents: Any,
    equation: LatentEquation | None,
    gradient: Array,
    labels: tuple[str, ...],
    orbit: Orbit,
    sets: int,
    kind: Literal["observed", "expected"],
    ridge: float,
    tolerance: float | None,
    max_iterations: int | None,
    options: dict[str, Any],
    solver: Solver,
    pull: Array,
) -> tuple[Array, Finding]:
    """Return c'psi (sets, n, k) without matrices, and the accuracy of the solves."""
    maps = latent_operators(
        model, documents, equation, sets=sets, kind=kind, ridge=ridge, **options
    )
    if tolerance is None:
        first = next(iter(chosen(model, options["parameters"]).values()))
        tolerance = 1e-9 if first.dtype == torch.float64 else 1e-5
    maps = operators_across(maps, orbit)
    n_units = maps.n_units // sets
    found = [
        influence(maps, row, label, n_units, tolerance, max_iterations, solver)
        for row, label in zip(gradient, labels, strict=True)
    ]
    table = np.stack(
        [s.rows - pull @ orbit.across(s.coefficients) for s in found], axis=-1
    )
    return table, _solve_finding(found, tolerance)


def _pull(
    model: nn.Module, reference: nn.Module | None, which: Which, ridge: float
) -> Array:
    """Return the penalty's part of psi, ridge times theta less the reference, (P,)."""
    here = chosen(model, which)
    there = here if reference is None or ridge == 0.0 else chosen(reference, which)
    if [p.shape for p in here.values()] != [p.shape for p in there.values()]:
        raise ValueError(
            "`reference` has parameters of other shapes than `model`; give the model "
            "that the penalty pulls to."
        )
    parts = [
        ridge * (here[name].detach().double() - there[name].detach().double()).flatten()
        for name in here
    ]
    return torch.cat(parts).cpu().numpy()


def _solve_finding(found: list[Influence], tolerance: float) -> Finding:
    """Return how far the solves are from exact, on the scale of the interval."""
    worst = max(found, key=lambda solved: solved.solve_error)
    is_small = worst.solve_error < _SOLVE_WARNED
    known = np.isfinite(worst.condition)  # MINRES does not estimate it
    condition = f", condition {worst.condition:.1e}" if known else ""
    return Finding(
        "solve accuracy",
        "pass" if is_small else "warn",
        worst.solve_error,
        _SOLVE_WARNED,
        f"Going on to a tenth of the residual changed the standard error by "
        f"{worst.solve_error:.1e} of itself (relative residual {worst.residual:.1e}, "
        f"{worst.iterations} iterations{condition}).",
        "" if is_small else f"Lower `tolerance` (it is {tolerance:.0e}).",
    )


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
            matrix=made.spread.matrix * (n_units / free),
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


def _refuse_zero(model: nn.Module, gradient: Array, labels: tuple[str, ...]) -> None:
    """Refuse Wald inference at a perturbation of size zero."""
    perturbation: Any = getattr(model, "perturbation", None)
    directions = getattr(perturbation, "directions", None)
    if directions is not None and not bool(directions.detach().any()):
        raise IdentificationError(
            "`model` has a perturbation of size zero, where the law of the data does "
            "not change to first order and A is singular: neither a standard error nor "
            "a Wald statistic of C has its usual law there. Test it by the one-sided "
            "score, `no_perturbation(model, documents)`."
        )
    for label, row in zip(labels, gradient, strict=True):
        if not row.any():
            raise IdentificationError(
                f"`functional` {label!r} does not depend on the parameters; choose "
                "one that varies with them."
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


def _value_of(functional: Any, model: nn.Module) -> Tensor:
    """Return the value of a functional, flat, after checking what it is."""
    if not callable(functional):
        raise TypeError(
            f"`functional` is {functional!r}; expected a function from the model to a "
            "tensor, such as squared_size."
        )
    found = functional(model)
    if not isinstance(found, Tensor) or found.numel() == 0 or not found.requires_grad:
        shown = type(found).__name__
        if isinstance(found, Tensor):
            shown = "empty" if found.numel() == 0 else "cut off from the parameters"
        raise TypeError(
            f"`functional` gives a value that is {shown}; expected a tensor that is "
            "differentiable in the model's parameters, made without detach, item or "
            "numpy."
        )
    flat: Tensor = found.reshape(-1)
    return flat


def _functional(
    model: nn.Module, functional: Callable[[nn.Module], Tensor], which: Which
) -> tuple[Array, Array]:
    """Return the value (k,) and the gradient (k, P) of the functional."""
    wanted = chosen(model, which)
    flags = {name: p.requires_grad for name, p in wanted.items()}
    for p in wanted.values():
        p.requires_grad_(True)
    try:
        with torch.enable_grad():
            value = _value_of(functional, model)
            rows = []
            for entry in value:
                found = torch.autograd.grad(
                    entry,
                    list(wanted.values()),
                    retain_graph=True,
                    materialize_grads=True,
                )
                rows.append(torch.cat([f.flatten() for f in found]))
    finally:
        for name, p in wanted.items():
            p.requires_grad_(flags[name])
    gradient = torch.stack(rows).double().cpu().numpy()
    if not (bool(torch.isfinite(value).all()) and np.isfinite(gradient).all()):
        raise InferenceError(
            f"`functional` has the value {value.tolist()[:3]} and a gradient of which "
            f"{int((~np.isfinite(gradient)).sum())} entries are not finite; use one "
            "that is smooth here, and see whether all weights are finite."
        )
    return value.detach().double().cpu().numpy(), gradient


def _labels(functional: Any, count: int) -> tuple[str, ...]:
    name = getattr(functional, "__name__", "functional").strip("<>")
    return (name,) if count == 1 else tuple(f"{name}[{j}]" for j in range(count))
