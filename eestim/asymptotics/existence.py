"""When a logistic estimate exists: the frontier in theory, separation in data."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import linalg, optimize, sparse, special

from eestim._arrays import Matrix, Vector, as_float, check_finite
from eestim.asymptotics._gaussian import normal_nodes
from eestim.errors import ConvergenceError, DataError, SeparationError

__all__ = [
    "Separation",
    "check_separation",
    "existence_frontier",
    "frontier_aspect",
    "separation",
]

_LARGEST_GAMMA = 1e3
_LP_TOLERANCE = 1e-9
_POSITIVE_MARGIN = 1e-6
_CERTIFYING_STEPS = 60
_EXTREME = 40.0  # of a linear predictor
_DECREMENT = 1e-20  # squared; far above exp(-40), so a maximum was reached
_DEPENDENT = 1e-13  # smallest relative pivot of independent columns


def _positive_part_square(threshold: Vector) -> Vector:
    """Return E (t - Z)_+^2 for Z standard normal."""
    value: Vector = (1.0 + threshold**2) * special.ndtr(threshold) + threshold * np.exp(
        -0.5 * threshold**2
    ) / np.sqrt(2 * np.pi)
    return value


def _positive_part_mean(threshold: Vector) -> Vector:
    """Return E (t - Z)_+, half the derivative of the squared positive part."""
    value: Vector = threshold * special.ndtr(threshold) + np.exp(
        -0.5 * threshold**2
    ) / np.sqrt(2 * np.pi)
    return value


def frontier_aspect(gamma: float, intercept: float = 0.0) -> float:
    r"""Return the aspect ratio p/n at which the logistic estimate ceases to exist.

    .. math:: \kappa^*(\theta, \gamma) = \min_{t_0, t_1}
       E (t_0 Y + t_1 Y X - Z)_+^2, \quad P(Y = 1 | X) = \rho'(\theta + \gamma X)

    Parameters
    ----------
    gamma : float
        Standard deviation of the signal x'beta.
    intercept : float
        Theta; a fitted intercept is understood only when it is not zero.

    Raises
    ------
    ValueError
        If gamma is negative or not finite.

    References
    ----------
    Candes and Sur (2020), Annals of Statistics 48, 27-42, theorem 2.1.

    Examples
    --------
    Without signal, separation by chance starts at n = 2p (Cover, 1965):

    >>> round(frontier_aspect(0.0), 12)
    0.5
    """
    if not (np.isfinite(gamma) and gamma >= 0 and np.isfinite(intercept)):
        raise ValueError(
            f"`gamma` is {gamma} and `intercept` {intercept}; give a standard "
            "deviation >= 0 and a finite intercept."
        )
    nodes, weights = normal_nodes(max(gamma, 1.0) * 2.0)
    positive = weights * special.expit(intercept + gamma * nodes)
    negative = weights * special.expit(-intercept - gamma * nodes)

    def value_and_slope(t: Vector) -> tuple[float, Vector]:
        line = t[0] + t[1] * nodes
        value = positive @ _positive_part_square(line)
        value += negative @ _positive_part_square(-line)
        slope = 2 * (
            positive * _positive_part_mean(line) - negative * _positive_part_mean(-line)
        )
        return float(value), np.array([slope.sum(), slope @ nodes])

    found = optimize.minimize(
        value_and_slope,
        np.zeros(2),
        jac=True,
        method="BFGS",
        options={"gtol": 1e-13, "maxiter": 500},
    )
    return float(found.fun)


def existence_frontier(kappa: float, intercept: float = 0.0) -> float:
    r"""Return the signal strength gamma beyond which the estimate does not exist.

    Parameters
    ----------
    kappa : float
        Aspect ratio p/n.
    intercept : float
        True intercept of the logistic model.

    Raises
    ------
    ValueError
        If kappa is outside (0, 1).
    SeparationError
        If the estimate does not exist even without signal (kappa >= 1/2 when the
        intercept is zero).

    References
    ----------
    Candes and Sur (2020), Annals of Statistics 48, 27-42, theorem 2.1.

    Examples
    --------
    >>> round(existence_frontier(0.2), 3)
    4.55
    """
    check_aspect(kappa)
    if frontier_aspect(0.0, intercept) <= kappa:
        raise SeparationError(
            f"`kappa` is {kappa}: with intercept {intercept} the data are separable at "
            f"every signal strength once p/n reaches "
            f"{frontier_aspect(0.0, intercept):.4f}. Use fewer covariates, more data, "
            "or a penalty."
        )
    upper = 1.0
    while frontier_aspect(upper, intercept) > kappa:
        upper *= 2.0
        if upper > _LARGEST_GAMMA:
            raise ConvergenceError(
                f"`kappa` is {kappa}: the frontier lies beyond gamma = {upper:.0e}; "
                "the estimate exists for every practical signal strength."
            )
    root: float = optimize.brentq(
        lambda gamma: frontier_aspect(gamma, intercept) - kappa,
        0.0,
        upper,
        xtol=1e-12,
        rtol=1e-13,
    )
    return root


def check_aspect(kappa: float) -> None:
    """Raise unless kappa is inside (0, 1)."""
    if not 0 < kappa < 1:
        raise ValueError(
            f"`kappa` is {kappa}; the aspect ratio p/n of an unpenalised estimate lies "
            "inside (0, 1). With p >= n use a penalty (`df_debiased`)."
        )


@dataclass(frozen=True, slots=True)
class Separation:
    """Whether a hyperplane separates the two classes.

    Attributes
    ----------
    status : {"overlap", "quasi-complete", "complete"}
        The estimate exists only with overlap.
    direction : (p,) array
        Coefficients along which the likelihood does not decrease; zeros if overlap.
    n_separated : int
        Rows strictly on their side of that hyperplane.
    """

    status: Literal["overlap", "quasi-complete", "complete"]
    direction: Vector
    n_separated: int


def separation(X: Any, y: Any) -> Separation:
    r"""Return whether logistic data are separated.

    .. math:: \max_b \sum_i s_i x_i'b \quad\text{subject to}\quad
       0 \le s_i x_i'b,\; -1 \le b \le 1, \quad s_i = 2 y_i - 1

    is zero exactly when the classes overlap (columns are first scaled to maximum
    one). A second program decides between complete and quasi-complete. A few Newton
    steps on the likelihood come first, and often certify the answer at less cost: an
    interior maximum proves overlap, an iterate with positive margins separation.

    Parameters
    ----------
    X : (n, p) array
        Design, with its column of ones if the model has an intercept.
    y : (n,) array
        Zeros and ones.

    Raises
    ------
    DataError
        If y is not binary, or shapes differ.
    ConvergenceError
        If the linear program fails.

    References
    ----------
    Konis (2007), Linear Programming Algorithms for Detecting Separated Data in
    Binary Logistic Regression Models, DPhil thesis, Oxford;
    Albert and Anderson (1984), Biometrika 71, 1-10.

    Examples
    --------
    >>> X = np.column_stack([np.ones(4), [1.0, 2.0, 3.0, 4.0]])
    >>> separation(X, [0, 0, 1, 1]).status, separation(X, [0, 1, 0, 1]).status
    ('complete', 'overlap')
    """
    signed, scale = _signed_rows(X, y)
    certified = _certificate(signed)
    if certified is not None:
        status, direction = certified
        strict = len(signed) if status == "complete" else 0
        return Separation(status, direction / scale, strict)
    return _by_programs(signed, scale)


def _certificate(
    signed: Matrix,
) -> tuple[Literal["overlap", "complete"], Vector] | None:
    """Return the verdict if Newton steps prove it, else None.

    With separated data the likelihood has no maximum: predictors t grow by about one
    a step, and the squared decrement is about exp(-t). It cannot be below exp(-46)
    while all predictors are below 40.
    """
    beta = np.zeros(signed.shape[1])
    for _ in range(_CERTIFYING_STEPS):
        margin = signed @ beta
        if margin.min() > _POSITIVE_MARGIN * max(1.0, float(np.abs(beta).max())):
            return "complete", beta / np.abs(beta).max()
        if np.abs(margin).max() > _EXTREME:
            return None
        wrong = special.expit(-margin)  # fitted probability of the other class
        root = np.sqrt(wrong * (1.0 - wrong))
        q, r = np.linalg.qr(root[:, None] * signed)
        size = np.abs(np.diag(r))
        if len(size) < len(beta) or size.min() <= _DEPENDENT * size.max():
            return None
        along = q.T @ (wrong / root)
        if along @ along < _DECREMENT:
            return "overlap", np.zeros(len(beta))
        beta = beta + linalg.solve_triangular(r, along)
    return None


def _by_programs(signed: Matrix, scale: Vector) -> Separation:
    """Return the verdict of the linear programs."""
    best = _solve_program(
        -signed.sum(axis=0), -signed, np.zeros(len(signed)), signed.shape[1]
    )
    margins = signed @ best
    if margins.sum() <= _POSITIVE_MARGIN * max(1.0, np.sqrt(len(signed))):
        return Separation("overlap", np.zeros(signed.shape[1]), 0)
    strict = int((margins > _POSITIVE_MARGIN).sum())
    if strict < len(signed):
        largest = _largest_margin(signed)
        best, strict = (largest[0], len(signed)) if largest[1] else (best, strict)
    status: Literal["complete", "quasi-complete"] = (
        "complete" if strict == len(signed) else "quasi-complete"
    )
    return Separation(status, best / scale, strict)


def _signed_rows(X: Any, y: Any) -> tuple[Vector, Vector]:
    design = check_finite(as_float(X, "X", ndim=2), "X")
    outcome = as_float(y, "y", ndim=1)
    if len(outcome) != len(design) or len(design) == 0:
        raise DataError(
            f"`y` has {len(outcome)} rows and `X` {len(design)}; give one a row."
        )
    if not np.isin(outcome, (0.0, 1.0)).all():
        raise DataError("`y` must hold zeros and ones; recode the two classes.")
    scale = np.abs(design).max(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    return (2.0 * outcome - 1.0)[:, None] * design / scale, scale


def _solve_program(
    cost: Vector, rows: Any, limits: Vector, n_columns: int, free_last: bool = False
) -> Vector:
    bounds = [(-1.0, 1.0)] * n_columns
    if free_last:
        bounds[-1] = (0.0, 1.0)
    constraints: Any = sparse.csr_array(rows) if _is_sparse(rows) else rows
    found = optimize.linprog(
        cost,
        A_ub=constraints,
        b_ub=limits,
        bounds=bounds,
        method="highs",
        options={
            "primal_feasibility_tolerance": _LP_TOLERANCE,
            "dual_feasibility_tolerance": _LP_TOLERANCE,
        },
    )
    if found.status != 0:
        raise ConvergenceError(
            f"the separation program stopped: {found.message}. Check `X` for columns "
            "of very different size."
        )
    return np.asarray(found.x, dtype=np.float64)


def _is_sparse(rows: Vector) -> bool:
    return bool(np.count_nonzero(rows) < 0.2 * rows.size)


def _largest_margin(signed: Vector) -> tuple[Vector, bool]:
    """Return coefficients maximising the smallest margin, and whether it is > 0."""
    n, p = signed.shape
    rows = np.column_stack([-signed, np.ones(n)])
    cost = np.zeros(p + 1)
    cost[-1] = -1.0
    best = _solve_program(cost, rows, np.zeros(n), p + 1, free_last=True)
    return best[:-1], bool(best[-1] > _POSITIVE_MARGIN)


def check_separation(X: Any, y: Any) -> None:
    """Raise if a logistic estimate does not exist for these data.

    Raises
    ------
    SeparationError
        If the data are completely or quasi-completely separated.

    Examples
    --------
    >>> check_separation([[1.0], [1.0]], [0, 1])
    """
    found = separation(X, y)
    if found.status != "overlap":
        raise SeparationError(
            f"`y` is separated by `X` ({found.status}: {found.n_separated} of "
            f"{len(np.asarray(y))} rows strictly on their side), so the logistic "
            "estimate lies at infinity. Drop the separating covariates, penalise, or "
            "use an exact or bias-reduced method."
        )
