"""Separation: when a maximum likelihood estimate lies at infinity."""

from collections.abc import Sequence

import numpy as np
from scipy import optimize

from eestim._arrays import Matrix, Vector
from eestim.errors import SeparationError
from eestim.roots import Root

__all__ = ["check_separation", "separating_direction", "separation_rows"]

_EXTREME = 12.0  # linear predictor: a fitted probability within 6e-6 of 0 or 1
_PROGRAM_ROWS = 20_000


def separating_direction(
    constraints: Matrix, equalities: Matrix | None
) -> Vector | None:
    r"""Return b with :math:`c_i^\top b \ge 0` for all i, some strictly, or None.

    A linear program: maximise :math:`\sum_i c_i^\top b` in the box
    :math:`|b_j| \le 1` of equilibrated columns.

    Parameters
    ----------
    constraints : (m, p) array
        For a binomial outcome the rows :math:`(2 y_i - 1) x_i`.
    equalities : (k, p) array or None
        Rows with :math:`c^\top b = 0`.

    References
    ----------
    Albert and Anderson (1984), Biometrika 71, 1-10; Konis (2007), D.Phil. thesis.

    Examples
    --------
    >>> separating_direction(np.array([[1.0, -1.0], [-1.0, 1.0]]), None) is None
    True
    >>> separating_direction(np.array([[1.0, 0.0], [0.0, 1.0]]), None)
    array([1., 1.])
    """
    size = np.abs(constraints).max(axis=0, initial=0.0)
    if equalities is not None:
        size = np.maximum(size, np.abs(equalities).max(axis=0, initial=0.0))
    size = np.where(size > 0, size, 1.0)
    scaled = constraints / size
    result = optimize.linprog(
        -scaled.mean(axis=0),
        A_ub=-scaled,
        b_ub=np.zeros(len(scaled)),
        A_eq=None if equalities is None or not len(equalities) else equalities / size,
        b_eq=None
        if equalities is None or not len(equalities)
        else np.zeros(len(equalities)),
        bounds=(-1.0, 1.0),
        method="highs",
    )
    if result.x is None or float((scaled @ result.x).max()) < 1e-7:
        return None
    direction: Vector = result.x / size
    return direction


def check_separation(
    design: Matrix,
    response: Vector,
    offset: Vector | None,
    family: str,
    names: Sequence[str],
    root: Root,
) -> None:
    """Raise where the fitted values or a failed search point to separation.

    The linear program is solved only when a fitted linear predictor is extreme or
    the search failed, so that ordinary fits pay nothing.

    Raises
    ------
    SeparationError
        Naming the covariates of the separating combination.
    """
    if family == "gaussian":
        return
    eta = design @ root.theta
    if offset is not None:
        eta = eta + offset
    extreme = np.abs(eta - np.median(eta)) > _EXTREME
    if root.is_converged and not extreme.any():
        return
    constraints, equalities = _program(design, response, family)
    if constraints is None:
        return
    direction = separating_direction(constraints, equalities)
    if direction is None:
        return
    moved = np.abs(direction) * np.abs(design).max(axis=0)
    places = np.flatnonzero(moved > 1e-6 * moved.max())
    involved = [names[int(j)] for j in places]
    raise SeparationError(
        f"the outcome is separated by a combination of {', '.join(involved)}: some "
        "fitted values tend to the edge of their range and the estimate lies at "
        "infinity. Drop or merge these covariates, add a penalty, or use exact or "
        "bias-reduced methods; Wald intervals do not exist."
    )


def _program(
    design: Matrix, response: Vector, family: str
) -> tuple[Matrix | None, Matrix | None]:
    if family == "binomial":
        inner = (response > 0) & (response < 1)
        signed = np.where(response > 0.5, 1.0, -1.0)[:, None] * design
        return _unique(signed[~inner]), design[inner] if inner.any() else None
    zero = response == 0
    if not zero.any():
        return None, None
    # Poisson: X b = 0 where y > 0 means b is orthogonal to their row space.
    gram = design[~zero].T @ design[~zero]
    return _unique(-design[zero]), gram


def separation_rows(
    design: Matrix, response: Vector, family: str
) -> tuple[Matrix, Matrix]:
    """Return rows c with ``c'b >= 0`` and the Gram matrix of those with ``c'b = 0``.

    Their separating directions b are those of the data; both add up over blocks.

    Parameters
    ----------
    design : (n, p) array
    response : (n,) array
    family : {"binomial", "poisson"}
    """
    if family == "binomial":
        inner = (response > 0) & (response < 1)
        signs = np.where(response > 0.5, 1.0, -1.0)
        rows = (signs[:, None] * design)[~inner]
    else:
        inner = response != 0
        rows = -design[~inner]
    return rows, design[inner].T @ design[inner]


def _unique(rows: Matrix) -> Matrix:
    return np.unique(rows, axis=0) if len(rows) > _PROGRAM_ROWS else rows
