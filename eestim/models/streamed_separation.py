"""Separation of data that are read in blocks, by a growing linear program."""

from typing import Any

import numpy as np

from eestim._arrays import Matrix, Vector
from eestim.errors import SeparationError
from eestim.models.separation import separating_direction, separation_rows
from eestim.roots import Root

__all__ = ["check_streamed_separation"]

_EXTREME = 12.0  # linear predictor: a fitted probability within 6e-6 of 0 or 1
_KEPT = 2000  # rows of a block that a round adds to the program
_ROUNDS = 20
_BROKEN = 1e-7  # of a constraint in units of its row


def check_streamed_separation(equation: Any, root: Root) -> None:
    """Raise where fitted values or a failed search point to separation.

    The program is solved on the rows that the root fits worst. No direction that
    separates these means none that separates all; a direction that does is tried on
    every block, and the rows that it breaks join the program.

    Raises
    ------
    SeparationError
        Naming the covariates of the separating combination.
    """
    if equation.family.name == "gaussian" or not _is_suspect(equation, root):
        return
    rows, squares = _hardest(equation, root.theta)
    for _ in range(_ROUNDS):
        if not len(rows):
            return
        direction = separating_direction(rows, squares)
        if direction is None:
            return
        broken, _ = _hardest(equation, direction, broken_only=True)
        if not len(broken):
            raise SeparationError(_message(equation, direction))
        rows = np.unique(np.vstack([rows, broken]), axis=0)


def _is_suspect(equation: Any, root: Root) -> bool:
    if not root.is_converged:
        return True
    lowest, highest = np.inf, -np.inf
    for part in equation.blocks():
        eta = part.design @ root.theta
        if part.offset is not None:
            eta = eta + part.offset
        lowest, highest = min(lowest, eta.min()), max(highest, eta.max())
    return bool(highest - lowest > _EXTREME)


def _hardest(
    equation: Any, direction: Vector, *, broken_only: bool = False
) -> tuple[Matrix, Matrix | None]:
    """Return the constraints that a direction meets worst, and those met exactly."""
    p = len(equation.names)
    kept, squares = np.empty((0, p)), np.zeros((p, p))
    for part in equation.blocks():
        used = slice(None) if part.row_weights is None else part.row_weights > 0
        rows, equal = separation_rows(
            part.design[used], part.response[used], equation.family.name
        )
        squares += equal
        if not len(rows):
            continue
        margin = rows @ direction / np.maximum(np.abs(rows) @ np.abs(direction), 1e-300)
        order = np.argsort(margin)[:_KEPT]
        if broken_only:
            order = order[margin[order] < -_BROKEN]
        kept = np.unique(np.vstack([kept, rows[order]]), axis=0)
    return kept, squares if squares.any() else None


def _message(equation: Any, direction: Vector) -> str:
    size = np.zeros(len(direction))
    for part in equation.blocks():
        size = np.maximum(size, np.abs(part.design).max(axis=0))
    moved = np.abs(direction) * size
    involved = [
        equation.names[int(j)] for j in np.flatnonzero(moved > 1e-6 * moved.max())
    ]
    return (
        f"the outcome is separated by a combination of {', '.join(involved)}: some "
        "fitted values tend to the edge of their range and the estimate lies at "
        "infinity. Drop or merge these covariates, add a penalty, or use exact or "
        "bias-reduced methods; Wald intervals do not exist."
    )
