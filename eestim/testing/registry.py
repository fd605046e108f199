"""The registry that the modules of checks fill, and what they share."""

from collections.abc import Callable
from typing import Any

import numpy as np

from eestim._arrays import Matrix, Vector
from eestim.testing.records import Property, Violation
from eestim.testing.subjects import Subject

__all__ = [
    "REGISTRY",
    "apart",
    "can_take_rows",
    "holds",
    "in_noise_units",
    "matrix_near_identity",
    "mixing_matrix",
    "psi_size",
    "require",
    "require_same_fit",
]

REGISTRY: list[Property] = []

_Check = Callable[[Subject, float], None]

SOLVED = (
    "two searches for one root: Newton stops at a step of 1e-4 standard errors and "
    "squares it; 1e-5 where A is by differences, whose error coordinates reshape"
)
ROUNDING = "one formula by two routes: rounding of sums of n terms"


def always(subject: Subject) -> bool:  # noqa: ARG001 - a predicate like the others
    """Return True: the property makes sense for every equation."""
    return True


def can_take_rows(subject: Subject) -> bool:
    """Whether the model can be written for other rows."""
    return subject.take is not None


def holds(
    number: int,
    name: str,
    statement: str,
    tolerance: float,
    reason: str,
    *,
    differences: float | None = None,
    needs: Callable[[Subject], bool] = always,
    every: int = 1,
) -> Callable[[_Check], _Check]:
    """Register a check as the property of that number."""

    def register(check: _Check) -> _Check:
        loose = tolerance if differences is None else differences
        REGISTRY.append(
            Property(
                number, name, statement, tolerance, loose, reason, needs, check, every
            )
        )
        return check

    return register


def require(value: float, bound: float, message: str, cause: str = "") -> None:
    """Raise a violation where a deviation exceeds its bound, or is not a number."""
    if not value <= bound:
        raise Violation(
            f"{message} (deviation {value:.3g}, allowed {bound:.3g})", cause
        )


def apart(one: Matrix, other: Matrix, errors: Vector) -> float:
    """Return the largest difference of covariances in units of standard errors."""
    return float(np.max(np.abs(one - other) / np.outer(errors, errors)))


def require_same_fit(
    subject: Subject,
    theta: Vector,
    V: Matrix,
    bound: float,
    what: str,
    cause: str = "",
) -> None:
    """Raise where an estimate or its covariance differs from the subject's own."""
    errors = subject.errors
    moved = float(np.max(np.abs(theta - subject.theta) / errors))
    require(moved, bound, f"{what} moves the estimate, in standard errors", cause)
    gap = apart(V, subject.fit.spread.matrix, errors)
    require(gap, bound, f"{what} changes the covariance", cause)


def in_noise_units(subject: Subject) -> tuple[Matrix, Matrix]:
    """Return A and M at the root with psi and theta in units of their noise.

    Equations without noise (a function of theta alone) are in units of their terms.
    """
    psi = subject.psi
    scale = psi_size(subject)
    A = subject.slope * subject.errors * np.sqrt(len(psi)) / scale[:, None]
    M = (psi / scale).T @ (psi / scale) / len(psi)
    return A, M


def mixing_matrix(subject: Subject) -> Matrix:
    """Return a random C for psi whose columns may be in units of any size."""
    size = psi_size(subject)
    C: Matrix = size[:, None] * matrix_near_identity(subject.rng, subject.p) / size
    return C


def psi_size(subject: Subject) -> Vector:
    """Return the size of each column of psi, of its terms where it has no noise."""
    size = np.sqrt(np.mean(subject.psi**2, axis=0))
    terms = np.abs(subject.slope) @ subject.errors * np.sqrt(len(subject.psi))
    scale: Vector = np.where(size > 1e-9 * terms, size, terms)
    return scale


def matrix_near_identity(rng: np.random.Generator, p: int, diagonal: Any = 2.0) -> Any:
    """Return a random well-conditioned square matrix."""
    while True:
        made = rng.normal(size=(p, p)) / np.sqrt(p) + diagonal * np.eye(p)
        if np.linalg.cond(made) < 20:
            return made
