"""How large the terms are that an entry of A is a mean of."""

from typing import Any

import numpy as np

from eestim._arrays import Matrix, Vector
from eestim._differentiate import response_steps
from eestim.equations import EstimatingEquation, Evaluated
from eestim.errors import EestimError

__all__ = ["term_sizes"]

_MOST_PARAMETERS = 200  # two to some thirty evaluations of psi for each


def term_sizes(equation: EstimatingEquation, theta: Any) -> Matrix | None:
    r"""Return the mean size of the terms of each entry of the sensitivity.

    .. math:: S_{jk} = n^{-1} \sum_i |\partial \psi_{ij} / \partial \theta_k|

    An entry of A is the same mean without the bars, so it is known to rounding of
    S, not of itself: where terms cancel, what is left is no derivative. A covariate
    in other units scales A and S alike.

    Parameters
    ----------
    equation : EstimatingEquation
    theta : (p,) array

    Returns
    -------
    (q, p) array, or None
        For `rank_report`. None where contributions are not at hand: block sources,
        tabulated contributions, more than 200 parameters.

    Examples
    --------
    The effect of a covariate orthogonal to the residuals cancels:

    >>> import eestim as ee
    >>> def psi(theta, data):
    ...     error = data["y"] - theta[0]
    ...     return np.column_stack([error, error * (1 + theta[1] * data["x"])])
    >>> data = {"y": np.array([0.0, 2.0, 2.0, 0.0]), "x": np.array([-1.0, -1, 1, 1])}
    >>> model = ee.equation(psi, data, [1.0, 0.5])
    >>> np.abs(model.sensitivity(np.array([1.0, 0.5]))).round(6)
    array([[1., 0.],
           [1., 0.]])
    >>> term_sizes(model, [1.0, 0.5]).round(6)
    array([[1., 0.],
           [1., 1.]])
    """
    at = np.asarray(theta, dtype=np.float64)
    has_blocks = getattr(equation, "blocks", None) is not None
    if has_blocks or isinstance(equation, Evaluated) or len(at) > _MOST_PARAMETERS:
        return None
    try:
        steps = np.abs(response_steps(equation.psi, at))
        columns = [_column(equation, at, k, float(steps[k])) for k in range(len(at))]
    except EestimError:  # not defined around theta: nothing is known of the terms
        return None
    return np.column_stack(columns)


def _column(equation: EstimatingEquation, theta: Vector, k: int, step: float) -> Vector:
    move = step * (np.arange(len(theta)) == k)
    with np.errstate(all="ignore"):
        change = equation.psi(theta + move) - equation.psi(theta - move)
    size: Vector = np.abs(change).mean(axis=0) / (2.0 * step)
    return np.where(np.isfinite(size), size, 0.0)
