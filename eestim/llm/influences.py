r"""Influences :math:`c^\top \psi_i` of functionals, with stored matrices or without."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from eestim.covariance.base import sensitivity_factor
from eestim.findings import Finding
from eestim.llm.invariances import Orbit, operators_across
from eestim.llm.matrix_free import Influence, Solver, influence, latent_operators
from eestim.llm.parameters import Which, chosen, parameter_names
from eestim.llm.protocols import Units
from eestim.llm.scores import score_sets
from eestim.llm.sensitivities import sensitivity
from eestim.llm.surrogates import LatentEquation

__all__ = ["Problem", "dense_influences", "free_influences", "pull_of"]

Array = npt.NDArray[np.float64]
_SOLVE_WARNED = 0.01  # of the standard error


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """The equation at its root, as both routes meet it.

    Attributes
    ----------
    model : LatentModel
    units : Units
    equation : LatentEquation or None
    draws, sets : int
    parameters : {"perturbation", "all", "trained"}
    kind : {"observed", "expected"}
    ridge : float
    pull : (P,) array
        The penalty's part of psi.
    orbit : Orbit
        Directions that leave the law unchanged.
    batch_size, seed : int
    """

    model: nn.Module
    units: Units
    equation: LatentEquation | None
    draws: int
    sets: int
    parameters: Which
    kind: Literal["observed", "expected"]
    ridge: float
    pull: Array
    orbit: Orbit
    batch_size: int
    seed: int

    @property
    def options(self) -> dict[str, Any]:
        """What psi and A have in common."""
        names = ("draws", "parameters", "batch_size", "seed")
        return {name: getattr(self, name) for name in names}


def dense_influences(problem: Problem, gradient: Array) -> Array:
    """Return c'psi (sets, n, k) by a stored A on the identified directions."""
    given = problem.model, problem.units, problem.equation
    options, orbit, sets = problem.options, problem.orbit, problem.sets
    A = sensitivity(*given, passes=sets, kind=problem.kind, **options)
    A = A + problem.ridge * np.eye(len(A))
    labels: tuple[str, ...] = parameter_names(problem.model, problem.parameters)
    inner, slope = gradient.T, A
    frame = orbit.frame() if orbit.dimension else None
    if frame is not None:
        slope, inner = frame.T @ A @ frame, frame.T @ gradient.T
        labels = tuple(f"direction {j}" for j in range(len(slope)))
    weights = sensitivity_factor(slope, labels).solve_transpose(inner)
    c = weights if frame is None else frame @ weights
    found = score_sets(*given, passes=sets, **options)
    return np.stack([psi @ c for psi in found]) - problem.pull @ c


def free_influences(
    problem: Problem,
    gradient: Array,
    labels: tuple[str, ...],
    solver: Solver,
    tolerance: float | None,
    max_iterations: int | None,
) -> tuple[Array, Finding]:
    """Return c'psi (sets, n, k) without matrices, and the accuracy of the solves."""
    maps = latent_operators(
        problem.model, problem.units, problem.equation, sets=problem.sets,
        kind=problem.kind, ridge=problem.ridge, **problem.options,
    )  # fmt: skip
    if tolerance is None:
        first = next(iter(chosen(problem.model, problem.parameters).values()))
        tolerance = 1e-9 if first.dtype == torch.float64 else 1e-5
    maps = operators_across(maps, problem.orbit)
    n_units = maps.n_units // problem.sets
    found = [
        influence(maps, row, label, n_units, tolerance, max_iterations, solver)
        for row, label in zip(gradient, labels, strict=True)
    ]
    across = problem.orbit.across
    table = np.stack(
        [s.rows - problem.pull @ across(s.coefficients) for s in found], axis=-1
    )
    return table, _solve_finding(found, tolerance)


def pull_of(
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
