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
from eestim.errors import IdentificationError, InferenceError
from eestim.estimation import Estimate, estimate
from eestim.findings import Finding
from eestim.llm.perturbations import Perturbation
from eestim.llm.scores import Which, chosen, parameter_names, score_sets
from eestim.llm.sensitivities import sensitivity
from eestim.llm.surrogates import LatentEquation
from eestim.roots import Root, Status

__all__ = ["infer", "squared_size"]

Array = npt.NDArray[np.float64]
_PASSES_OF_A = 4  # A has one limit for any number of draws; few make it noisy
_VARIES = 1e-4  # share of a gradient along free directions that rounding explains


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
    passes: int = 2,
    parameters: Which = "perturbation",
    kind: Literal["observed", "expected"] = "observed",
    names: tuple[str, ...] | None = None,
    batch_size: int = 8,
    seed: int = 0,
) -> Estimate:
    r"""Return an estimate of a functional of the parameters with its sandwich.

    .. math::
        A^\top c = \nabla h, \qquad se^2 = \frac{1}{n^2} \sum_i (c^\top \psi_i)^2

    with psi centred, because stochastic descent ends near a root, not at it; the
    distance from the root is reported in units of noise.

    Parameters
    ----------
    model : LatentModel
        At the root that `fit` found.
    documents : Units, or list of str
        The training data; their units are the independent ones.
    functional : callable
        From the model to a scalar or 1-D tensor, differentiable in its parameters.
    equation : LatentEquation, optional
        The one that was solved; `Brier` by default.
    draws : int
        K, as in training.
    passes : int
        Independent sets of draws that psi is averaged over. The variance then holds
        the latent noise of an estimate that met its data `passes` times with fresh
        draws; a larger number leaves the noise of the data alone.
    parameters : {"perturbation", "all"}
        What was estimated. "perturbation" takes the base as known.
    kind : {"observed", "expected"}
        Form of A, see `sensitivity`. "observed" holds under misspecification, but
        needs many units where psi is sharply curved.
    names : tuple of str, optional
        Names of the values.
    batch_size, seed : int

    Returns
    -------
    Estimate
        Its findings give the share of the variance that is latent noise.

    Raises
    ------
    IdentificationError
        If the functional varies along a direction that no data identify, or A is
        singular elsewhere (a perturbation of size zero, too few units).
    """
    value, gradient = _functional(model, functional, parameters)
    labels = names or _labels(functional, len(value))
    frame = _complement(model, parameters, gradient, labels)
    options: dict[str, Any] = {
        "draws": draws,
        "passes": passes,
        "parameters": parameters,
        "batch_size": batch_size,
        "seed": seed,
    }
    steady = options | {"passes": max(passes, _PASSES_OF_A)}
    A = frame.T @ sensitivity(model, documents, equation, kind=kind, **steady) @ frame
    free = tuple(f"direction {j}" for j in range(A.shape[1]))
    whole = frame.shape[0] == frame.shape[1]
    factor = sensitivity_factor(
        A, parameter_names(model, parameters) if whole else free
    )
    weights = factor.solve_transpose(frame.T @ gradient.T)
    sets = score_sets(model, documents, equation, **options)
    table = np.stack([psi @ frame @ weights for psi in sets])
    rows = table.mean(axis=0)
    n_units = len(rows)
    if n_units < 2:
        raise InferenceError(
            f"`documents` has {n_units} unit; a standard error needs at least 2."
        )
    spread = rows.std(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        residual = float(np.max(np.abs(rows.mean(0)) * n_units**0.5 / spread))
    tabulated = Evaluated(labels, rows - rows.mean(0), np.eye(len(value)), value)
    made = estimate(tabulated, root=Root(value, Status.GIVEN, residual, 0))
    return _with_latent_share(made, table)


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
            value = functional(model).reshape(-1)
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
    return value.detach().double().cpu().numpy(), gradient


def _labels(functional: Any, count: int) -> tuple[str, ...]:
    name = getattr(functional, "__name__", "functional").strip("<>")
    return (name,) if count == 1 else tuple(f"{name}[{j}]" for j in range(count))


def _complement(
    model: nn.Module, which: Which, gradient: Array, labels: tuple[str, ...]
) -> Array:
    """Return an orthonormal basis (P, P - m) of the directions that are identified.

    Refuses functionals that are constant or vary along the others.
    """
    free = _free_directions(model, which)
    count = gradient.shape[1]
    basis, size, _ = np.linalg.svd(free, full_matrices=True)
    rank = int((size > 1e-6 * size.max(initial=0.0)).sum()) if size.size else 0
    orbit, rest = basis[:, :rank], basis[:, rank:]
    for label, row in zip(labels, gradient, strict=True):
        length = float(np.linalg.norm(row))
        if length == 0.0:
            raise IdentificationError(
                f"`functional` {label!r} does not depend on the parameters; choose "
                "one that varies with them."
            )
        share = float(np.linalg.norm(orbit.T @ row)) / length if rank else 0.0
        if share > _VARIES:
            names = parameter_names(model, which)
            worst = names[int(np.abs(orbit @ (orbit.T @ row)).argmax())]
            raise IdentificationError(
                f"`functional` {label!r} is not estimable: {share:.2g} of its gradient "
                f"lies along rotations of the latent (most at {worst}), which leave "
                "the model's law unchanged. Use a function of C C', such as its "
                "trace (`squared_size`) or eigenvalues."
            )
    return np.eye(count) if rank == 0 else rest


def _free_directions(model: nn.Module, which: Which) -> Array:
    """Return the perturbation's invariances among the chosen parameters, (P, m)."""
    wanted = chosen(model, which)
    perturbation = getattr(model, "perturbation", None)
    count = sum(p.numel() for p in wanted.values())
    if not isinstance(perturbation, Perturbation):
        return np.zeros((count, 0))
    tangents = perturbation.invariances().double().cpu().numpy()
    full = np.zeros((count, tangents.shape[1]))
    begin = used = 0
    for name, p in wanted.items():
        if name.startswith("perturbation."):
            full[begin : begin + p.numel()] = tangents[used : used + p.numel()]
            used += p.numel()
        begin += p.numel()
    return full


def _with_latent_share(made: Estimate, table: Array) -> Estimate:
    """Return the estimate with a finding on the latent part of its variance."""
    if len(table) < 2:
        return made
    between = table.var(axis=0, ddof=1).mean(axis=0) / len(table)
    share = float(np.max(between / table.mean(axis=0).var(axis=0)))
    finding = Finding(
        "latent share",
        "pass" if share < 0.5 else "warn",
        share,
        0.5,
        f"At most {share:.0%} of the variance is noise of the latent draws, at "
        f"{len(table)} passes.",
        "" if share < 0.5 else "Train for more passes or with more draws.",
    )
    spread = replace(made.spread, findings=(*made.spread.findings, finding))
    return replace(made, spread=spread)
