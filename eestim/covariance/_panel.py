"""Sums of contributions of panels: arrays in, the meat of a sandwich out."""

import numpy as np

from eestim._arrays import IntVector, Matrix, Vector
from eestim.covariance._kernels import long_run_sum
from eestim.equations import sum_by_code
from eestim.errors import DataError

__all__ = ["beck_katz_sum", "driscoll_kraay_sum", "panel_hac_sum"]

_BLOCK = 1 << 22  # entries of a block of the pairwise covariance of units


def driscoll_kraay_sum(psi: Matrix, time_codes: IntVector, weights: Vector) -> Matrix:
    r"""Return the long-run sum of psi added up within each time.

    .. math:: S = w_0 \Gamma_0 + \sum_{j \ge 1} w_j (\Gamma_j + \Gamma_j^\top),
        \quad \Gamma_j = \sum_t h_t h_{t-j}^\top, \quad h_t = \sum_i \psi_{it}.

    Parameters
    ----------
    psi : (N, q) array
        One row for each unit and time, in any order.
    time_codes : (N,) integers
        0 .. T - 1, each at least once.
    weights : (L + 1,) array
        Weights of lags 0 to L.

    References
    ----------
    Driscoll and Kraay (1998), Rev. Econ. Stat. 80, 549-560, eq. 7.

    Examples
    --------
    >>> driscoll_kraay_sum(np.ones((4, 1)), np.array([0, 1, 0, 1]), np.array([1.0]))
    array([[8.]])
    """
    totals = sum_by_code(psi, time_codes, int(time_codes.max()) + 1)
    return long_run_sum(totals, weights)


def panel_hac_sum(
    psi: Matrix, unit_codes: IntVector, time_codes: IntVector, weights: Vector
) -> Matrix:
    r"""Return the sum over units of the long-run sums of their series.

    .. math:: S = w_0 \Gamma_0 + \sum_{j \ge 1} w_j (\Gamma_j + \Gamma_j^\top),
        \quad \Gamma_j = \sum_i \sum_t \psi_{it} \psi_{i,t-j}^\top,

    over the pairs of times at which a unit was observed.

    Parameters
    ----------
    psi : (N, q) array
        One row for each unit and time, in any order.
    unit_codes, time_codes : (N,) integers
        No pair occurs twice.
    weights : (L + 1,) array
        Weights of lags 0 to L.

    References
    ----------
    Newey and West (1987), applied to each unit; Petersen (2009), Rev. Financ. Stud.
    22, section 3.
    """
    span = int(time_codes.max()) + len(weights)  # gaps between units exceed any lag
    place = unit_codes.astype(np.int64) * span + time_codes
    order = np.argsort(place)
    place, rows = place[order], psi[order]
    total: Matrix = weights[0] * (rows.T @ rows)
    for lag in range(1, len(weights)):
        at = np.searchsorted(place, place - lag)
        found = place[at] == place - lag
        gamma = rows[found].T @ rows[at[found]]
        total += weights[lag] * (gamma + gamma.T)
    return total


def beck_katz_sum(
    design: Matrix,
    residual: Vector,
    unit_codes: IntVector,
    time_codes: IntVector,
    pairwise: bool = False,
) -> Matrix:
    r"""Return the sum of contributions under correlation of units at each time.

    .. math:: S = \sum_t X_t^\top \hat\Sigma X_t, \qquad
        \hat\Sigma_{ij} = \frac{1}{T_{ij}} \sum_t e_{it} e_{jt},

    with X_t the rows of the units observed at time t. Balanced: all T times count.
    Otherwise over the times at which every unit is observed (casewise), or at which
    units i and j both are (pairwise).

    Parameters
    ----------
    design : (N, p) array
    residual : (N,) array
        psi = design * residual.
    unit_codes, time_codes : (N,) integers
        No pair occurs twice.
    pairwise : bool

    Raises
    ------
    DataError
        If no time has every unit and ``pairwise`` is false.

    References
    ----------
    Beck and Katz (1995), Am. Polit. Sci. Rev. 89, 634-647, eqs. 4-6; Bailey and Katz
    (2011), J. Stat. Softw. 42(CS1), section 2.2, for unbalanced panels.
    """
    n_units, n_times = int(unit_codes.max()) + 1, int(time_codes.max()) + 1
    table = np.zeros((n_times, n_units, design.shape[1]))
    table[time_codes, unit_codes] = design
    errors = np.zeros((n_times, n_units))
    errors[time_codes, unit_codes] = residual
    seen = np.zeros((n_times, n_units))
    seen[time_codes, unit_codes] = 1.0
    if pairwise and not seen.all():
        return _pairwise_sum(table, errors, seen)
    complete = seen.all(axis=1)
    if not complete.any():
        raise DataError(
            "BeckKatz found no time at which every unit is observed; use "
            "`pairwise=True`, or drop the units with few times."
        )
    # X_t' (E'E / T) X_t without the (units, units) matrix E'E
    projected = errors[complete] @ table
    flat = projected.reshape(-1, table.shape[2])
    total: Matrix = flat.T @ flat / float(complete.sum())
    return total


def _pairwise_sum(table: Matrix, errors: Matrix, seen: Matrix) -> Matrix:
    n_units, p = table.shape[1:]
    total = np.zeros((p, p))
    size = max(1, _BLOCK // n_units)
    for first in range(0, n_units, size):
        block = slice(first, first + size)
        shared = seen[:, block].T @ seen
        sigma = errors[:, block].T @ errors / np.maximum(shared, 1.0)
        right = sigma @ table
        total += np.einsum("tip,tiq->pq", table[:, block], right)
    return (total + total.T) / 2
