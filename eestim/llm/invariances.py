r"""Directions of the parameters that leave the law of a latent model unchanged.

Rotations of the latent carry a model along an orbit of one law, so A vanishes along the
orbit in the population. A sampled A does not: draws that stay fixed do not rotate, and
what it holds there is noise. Both routes of `infer` therefore work on the orthogonal
complement, where a functional of the law has one variance for every generalised
inverse.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse.linalg import LinearOperator
from torch import nn

from eestim.asymptotics.operators import EquationOperators
from eestim.errors import IdentificationError
from eestim.findings import Finding
from eestim.llm.parameters import Which, chosen, name_at
from eestim.llm.perturbations import Perturbation

__all__ = ["Orbit", "gradient_across", "operators_across", "orbit_of"]

Array = npt.NDArray[np.float64]
_VARIES = 1e-4  # share of a gradient along the orbit that rounding explains
_RANK = 1e-6  # tangents smaller than this share of the largest are dependent
_NOISY, _MOST_NOISE = 0.1, 0.5  # shares that draws of a functional may leave there


@dataclass(frozen=True, slots=True, eq=False)
class Orbit:
    """Tangents of the orbit, which move the perturbation's entries only.

    Attributes
    ----------
    count : int
        P.
    places : (k,) array of int
        Entries of theta that belong to the perturbation.
    basis : (k, m) array
        Orthonormal columns; none where nothing is free.
    """

    count: int
    places: npt.NDArray[np.int64]
    basis: Array

    @property
    def dimension(self) -> int:
        """Number of free directions, m."""
        return int(self.basis.shape[1])

    def along(self, rows: Array) -> Array:
        """Return the part of vectors (..., P) along the orbit."""
        found = np.zeros_like(rows)
        found[..., self.places] = (rows[..., self.places] @ self.basis) @ self.basis.T
        return found

    def across(self, rows: Array) -> Array:
        """Return the part of vectors (..., P) across the orbit."""
        return rows - self.along(rows) if self.dimension else rows

    def frame(self) -> Array:
        """Return an orthonormal basis (P, P - m) of the complement."""
        full = np.zeros((self.count, self.dimension))
        full[self.places] = self.basis
        found: Array = np.linalg.svd(full, full_matrices=True)[0][:, self.dimension :]
        return found


def orbit_of(model: nn.Module, which: Which) -> Orbit:
    """Return the orbit of a model's perturbation among the chosen parameters."""
    sizes = {name: p.numel() for name, p in chosen(model, which).items()}
    count = sum(sizes.values())
    perturbation = getattr(model, "perturbation", None)
    own = [name for name in sizes if name.startswith("perturbation.")]
    if not isinstance(perturbation, Perturbation) or not own:
        return Orbit(count, np.arange(0), np.zeros((0, 0)))
    tangents = _leaving(perturbation, own)
    begins = np.cumsum([0, *sizes.values()])[:-1]
    places = np.concatenate(
        [
            begin + np.arange(size)
            for begin, (name, size) in zip(begins, sizes.items(), strict=True)
            if name in own
        ]
    )
    if tangents.shape[1] == 0:
        return Orbit(count, places, tangents)
    left, size, _ = np.linalg.svd(tangents, full_matrices=False)
    rank = int((size > _RANK * size.max(initial=0.0)).sum())
    return Orbit(count, places, left[:, :rank])


def _leaving(perturbation: Perturbation, own: list[str]) -> Array:
    """Return the tangents that move none of the entries that are not estimated."""
    tangents: Array = perturbation.invariances().double().cpu().numpy()
    kept = np.concatenate(
        [
            np.full(p.numel(), f"perturbation.{name}" in own)
            for name, p in perturbation.named_parameters()
        ]
    )
    if kept.all() or tangents.shape[1] == 0:
        free: Array = tangents[kept]
        return free
    _, size, right = np.linalg.svd(tangents[~kept])
    rank = int((size > _RANK * size.max(initial=0.0)).sum())
    found: Array = tangents[kept] @ right[rank:].T
    return found


def gradient_across(
    orbit: Orbit,
    gradient: Array,
    labels: tuple[str, ...],
    model: nn.Module,
    which: Which,
    *,
    is_of_law: bool,
) -> tuple[Array, tuple[Finding, ...]]:
    """Return gradients (k, P) without their part along the orbit, and findings.

    The exact gradient of a functional of the law has no such part. Where the
    functional is a mean over its own draws, what lies there is their noise: it is
    removed, and its share stated, because as much is left in other directions.

    Raises
    ------
    IdentificationError
        If a functional varies along the orbit, or its draws leave half of its
        gradient there.
    """
    findings: list[Finding] = []
    for label, row in zip(labels, gradient, strict=True):
        part = orbit.along(row)
        share = float(np.linalg.norm(part)) / float(np.linalg.norm(row))
        if share <= _VARIES:
            continue
        if not is_of_law:
            worst = name_at(model, which, int(np.abs(part).argmax()))
            raise IdentificationError(
                f"`functional` {label!r} is not estimable: {share:.2g} of its gradient "
                f"lies along rotations of the latent (most at {worst}), which leave "
                "the model's law unchanged. Use a function of C C', such as its "
                "trace (`squared_size`) or eigenvalues."
            )
        if share > _MOST_NOISE:
            raise IdentificationError(
                f"`functional` {label!r} is drowned by the noise of its own draws: "
                f"{share:.2g} of its gradient lies along rotations of the latent, "
                "where the exact one is zero. Raise its `draws`."
            )
        findings.append(_noise(label, share))
    return orbit.across(gradient), tuple(findings)


def _noise(label: str, share: float) -> Finding:
    """Return how much of a gradient was noise of the functional's draws."""
    is_small = share < _NOISY
    return Finding(
        f"gradient noise {label}",
        "pass" if is_small else "warn",
        share,
        _NOISY,
        f"{share:.2g} of the gradient lay along rotations of the latent, where the "
        "exact one is zero: noise of the functional's draws. That part was removed; "
        "noise of the same kind in other directions was not.",
        "" if is_small else "Raise the `draws` of the functional.",
    )


def operators_across(maps: EquationOperators, orbit: Orbit) -> EquationOperators:
    """Return A and psi restricted to the complement of the orbit, still (P, P)."""
    if orbit.dimension == 0:
        return maps
    A, psi = maps.sensitivity, maps.psi

    def made(shape: tuple[int, int], forward: Any, backward: Any) -> LinearOperator:
        return LinearOperator(shape, matvec=forward, rmatvec=backward, dtype=np.float64)

    return replace(
        maps,
        sensitivity=made(
            A.shape,
            lambda v: orbit.across(A.matvec(orbit.across(v))),
            lambda c: orbit.across(A.rmatvec(orbit.across(c))),
        ),
        psi=made(
            psi.shape,
            lambda c: psi.matvec(orbit.across(c)),
            lambda w: orbit.across(psi.rmatvec(w)),
        ),
    )
