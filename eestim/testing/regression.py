"""Properties of least squares and generalized linear models: 17-24, 29, 33, 40-45."""

from collections.abc import Callable

import numpy as np

from eestim._arrays import IntVector, Matrix, Vector
from eestim.asymptotics import (
    GradientDescent,
    MinimumNorm,
    Ridge,
    df_adjusted_sandwich,
    proportional_logistic,
    proportional_robust,
    spectral_root,
)
from eestim.covariance.base import CovarianceRule
from eestim.covariance.clustered import Clustered
from eestim.covariance.hc import HC
from eestim.covariance.jackknife import Jackknife
from eestim.covariance.many_covariates import HCK, LeaveOut
from eestim.covariance.model_based import ModelBased
from eestim.estimation import estimate
from eestim.models.linear import GeneralizedLinear, ols
from eestim.roots import solve
from eestim.testing.registry import apart, holds, require
from eestim.testing.subjects import Subject

__all__: list[str] = []

_EXACT = "an identity of matrices, relative to standard errors"
_FEW = 14  # rows of the designs on which a quadratic form is summed over a basis


def _is_ols(subject: Subject) -> bool:
    equation = subject.equation
    return (
        isinstance(equation, GeneralizedLinear)
        and equation.family.name == "gaussian"
        and equation.is_canonical
        and equation.row_weights is None
        and equation.offset is None
    )


def _is_wide_ols(subject: Subject) -> bool:
    return _is_ols(subject) and subject.p >= 2


def _is_canonical(subject: Subject) -> bool:
    return isinstance(subject.equation, GeneralizedLinear) and (
        subject.equation.is_canonical
    )


def _is_logit(subject: Subject) -> bool:
    return _is_canonical(subject) and subject.equation.family.name == "binomial"


def _on_one_scale(X: Matrix) -> tuple[Matrix, Vector]:
    """Return a design with columns of size one, and their sizes.

    What NumPy cuts off as small depends on units; what is checked does not.
    """
    size = np.linalg.norm(X, axis=0)
    return X / size, size


def _residual(subject: Subject) -> Vector:
    """Residuals by an orthogonal projection, not from the equation's psi."""
    X, y = subject.equation.design, subject.equation.response
    basis = np.linalg.qr(X)[0]
    residual: Vector = y - basis @ (basis.T @ y)
    return residual


def _hat(subject: Subject) -> Vector:
    basis = np.linalg.qr(subject.equation.design)[0]
    leverage: Vector = np.einsum("ij,ij->i", basis, basis)
    return leverage


@holds(
    17,
    "least squares",
    "the sandwich of least squares is White's HC0",
    1e-8,
    _EXACT,
    needs=_is_ols,
)
def _white(subject: Subject, bound: float) -> None:
    scaled, size = _on_one_scale(subject.equation.design)
    P, e = np.linalg.pinv(scaled) / size[:, None], _residual(subject)
    gap = apart((P * e**2) @ P.T, subject.fit.spread.matrix, subject.errors)
    require(gap, bound, "the sandwich is not HC0")


def _leave_out_moves(subject: Subject) -> Matrix:
    """Estimates without one row less the estimate, each refitted, (n, p)."""
    (X, size), y = _on_one_scale(subject.equation.design), subject.equation.response
    keep = ~np.eye(len(y), dtype=bool)
    left = [np.linalg.lstsq(X[k], y[k])[0] / size - subject.theta for k in keep]
    return np.array(left)


@holds(
    18,
    "leaving a row out",
    "theta - theta_(i) = (X'X)^-1 x_i e_i / (1 - h_i)",
    1e-8,
    _EXACT,
    needs=_is_ols,
)
def _leave_one_out(subject: Subject, bound: float) -> None:
    influence = subject.fit.influence().to_numpy() / len(subject.psi)
    formula = influence / (1.0 - _hat(subject))[:, None]
    gap = float(np.max(np.abs(formula + _leave_out_moves(subject)) / subject.errors))
    require(gap, bound, "leave-one-out formula and refits differ")


@holds(
    19,
    "HC3",
    "HC3 is the sum of squared moves of leaving a row out",
    1e-8,
    _EXACT,
    needs=_is_ols,
)
def _hc3(subject: Subject, bound: float) -> None:
    moves = _leave_out_moves(subject)
    V = subject.fit.with_covariance(HC(3)).spread.matrix
    require(
        apart(moves.T @ moves, V, subject.errors), bound, "HC3 is not the jackknife"
    )


@holds(
    20,
    "centred jackknife",
    "the jackknife about its mean is below HC3",
    1e-9,
    "the smallest eigenvalue of the difference, relative to standard errors",
    needs=_is_ols,
)
def _centred_jackknife(subject: Subject, bound: float) -> None:
    errors = subject.errors
    high = subject.fit.with_covariance(HC(3)).spread.matrix
    low = subject.fit.with_covariance(
        Jackknife(center="mean", factor="1")
    ).spread.matrix
    lowest = np.linalg.eigvalsh((high - low) / np.outer(errors, errors))[0]
    require(-float(lowest), bound, "the centred jackknife exceeds HC3")


# ------------------------------------------------------- exact unbiasedness


def _few_rows(subject: Subject) -> Matrix:
    """Return a design of few rows, well conditioned and without a leverage of one."""
    X = subject.equation.design
    count = max(_FEW, 3 * subject.p)
    X = X[subject.rng.permutation(len(X))[:count]]
    scaled: Matrix = X / np.abs(X).max(axis=0)
    return scaled


def _expected(X: Matrix, variance: Vector, rule: CovarianceRule) -> Matrix:
    """Return E of a covariance quadratic in y: its sum over a basis of y."""
    total = np.zeros((X.shape[1],) * 2)
    for k, unit in enumerate(np.eye(len(X))):
        equation = ols(unit, X)
        total += variance[k] * rule(equation, solve(equation)).matrix
    return total


def _true_covariance(X: Matrix, variance: Vector) -> Matrix:
    P = np.linalg.pinv(X)
    covariance: Matrix = (P * variance) @ P.T
    return covariance


def _is_usable(X: Matrix, codes: IntVector | None = None) -> bool:
    """Whether the design keeps its rank without any row, or any cluster."""
    if np.linalg.matrix_rank(X, 1e-6) < X.shape[1]:
        return False
    groups = np.arange(len(X)) if codes is None else codes
    return all(np.linalg.cond(X[groups != group]) < 1e4 for group in np.unique(groups))


def _require_unbiased(
    X: Matrix, variance: Vector, rule: CovarianceRule, bound: float, name: str
) -> None:
    truth = _true_covariance(X, variance)
    gap = apart(_expected(X, variance, rule), truth, np.sqrt(np.diag(truth)))
    require(gap, bound, f"{name} is biased")


@holds(
    21,
    "HC2 and CR2",
    "HC2 and CR2 are exactly unbiased under independent errors of one variance",
    1e-8,
    _EXACT,
    needs=_is_ols,
    every=4,
)
def _unbiased_iid(subject: Subject, bound: float) -> None:
    X = _few_rows(subject)
    ones = np.ones(len(X))
    codes = np.arange(len(X)) % max(5, len(X) // 3)
    if _is_usable(X):
        _require_unbiased(X, ones, HC(2), bound, "HC2")
    if _is_usable(X, codes):
        _require_unbiased(X, ones, Clustered(codes, kind="CR2"), bound, "CR2")


def _unbiased_any(rule: CovarianceRule, name: str) -> Callable[[Subject, float], None]:
    def check(subject: Subject, bound: float) -> None:
        X = _few_rows(subject)
        if _is_usable(X) and np.max(np.sum(np.linalg.qr(X)[0] ** 2, axis=1)) < 0.49:
            variance = subject.rng.uniform(0.2, 5.0, len(X))
            _require_unbiased(X, variance, rule, bound, name)

    return check


for _number, _rule, _name in (
    (22, HCK(), "HCK"),
    (23, LeaveOut(), "the leave-out covariance"),
):
    holds(
        _number,
        _name,
        f"{_name} is exactly unbiased for any diagonal variance of the errors",
        1e-8,
        _EXACT,
        needs=_is_ols,
        every=4,
    )(_unbiased_any(_rule, _name))


@holds(
    24,
    "partialling out",
    "Frisch, Waugh and Lovell: a coefficient and its HC0 are those of residuals",
    1e-8,
    _EXACT,
    needs=_is_wide_ols,
)
def _partialled(subject: Subject, bound: float) -> None:
    X, y = subject.equation.design, subject.equation.response
    basis = np.linalg.qr(X[:, :-1])[0]

    def left(v: Vector) -> Vector:
        once = v - basis @ (basis.T @ v)
        return once - basis @ (basis.T @ once)

    fit = estimate(ols(left(y), left(X[:, -1])[:, None]))
    moved = abs(fit.theta[0] - subject.theta[-1]) / subject.errors[-1]
    require(float(moved), bound, "the partialled coefficient differs")
    ratio = fit.spread.matrix[0, 0] / subject.errors[-1] ** 2
    require(abs(float(ratio) - 1.0), bound, "its variance differs")


# ------------------------------------------------------------- scale and information


def _has_scale(subject: Subject) -> bool:
    linear = getattr(subject.equation, "linear", subject.equation)
    return _is_ols(subject) or (
        type(subject.equation).__name__ == "QuantileRegression"
        and linear.offset is None
    )


@holds(
    29,
    "location and scale of the outcome",
    "y -> a + b y multiplies V by b^2",
    1e-7,
    "a, b within a hundred standard deviations of y",
    needs=_has_scale,
)
def _location_scale(subject: Subject, bound: float) -> None:
    from dataclasses import replace

    linear = getattr(subject.equation, "linear", subject.equation)
    spread = float(np.std(linear.response)) or 1.0
    a = float(subject.rng.uniform(-3, 3)) * spread
    b = float(np.exp(subject.rng.uniform(-3, 3)))
    moved = replace(linear, response=a + b * linear.response)
    ones = np.linalg.lstsq(linear.design, np.ones(len(linear.response)))[0]
    if np.max(np.abs(linear.design @ ones - 1.0)) > 1e-9:
        ones, a = np.zeros(subject.p), 0.0
        moved = replace(linear, response=b * linear.response)
    if linear is not subject.equation:
        moved = replace(subject.equation, linear=moved)
    fit = estimate(moved)
    back = (fit.theta - a * ones) / b
    gap = float(np.max(np.abs(back - subject.theta) / subject.errors))
    require(gap, bound, "estimates do not follow the outcome")
    V = fit.spread.matrix / b**2
    require(apart(V, subject.fit.spread.matrix, subject.errors), bound, "V does not")


@holds(
    33,
    "canonical link",
    "observed and expected information agree",
    1e-10,
    "one formula by two routes, relative to the largest entry",
    needs=_is_canonical,
)
def _information(subject: Subject, bound: float) -> None:
    working = subject.equation.working(subject.theta)
    n = subject.equation.n_units
    expected = (working.design.T * working.weight) @ working.design / n
    scale = np.sqrt(np.diag(expected))
    gap = np.abs(subject.slope - expected) / np.outer(scale, scale)
    require(float(gap.max()), bound, "observed and expected information differ")


# ------------------------------------------------------------------ beyond p << n


@holds(
    40,
    "df-adjusted sandwich",
    "for least squares it is the classical s^2 (X'X)^-1",
    1e-8,
    _EXACT,
    needs=_is_ols,
)
def _df_adjusted(subject: Subject, bound: float) -> None:
    X, e = subject.equation.design, _residual(subject)
    told = df_adjusted_sandwich(X, e, np.ones(len(e)))
    s2 = e @ e / (len(e) - subject.p)
    scaled, size = _on_one_scale(X)
    classical = np.sqrt(np.diag(np.linalg.inv(scaled.T @ scaled)) * s2) / size
    known = np.sqrt(np.diag(subject.fit.with_covariance(ModelBased()).spread.matrix))
    require(float(np.max(np.abs(told / known - 1))), bound, "not the classical errors")
    require(
        float(np.max(np.abs(told / classical - 1))),
        max(bound, 1e-6),
        "not s^2 (X'X)^-1",
    )


def _underdetermined(subject: Subject) -> tuple[Matrix, Vector, Vector]:
    """Return fewer rows than parameters, on one scale, and a start."""
    X = subject.equation.design / np.abs(subject.equation.design).max(axis=0)
    rows = subject.rng.permutation(len(X))[: subject.p - 1]
    X = X[rows] + 0.1 * subject.rng.normal(size=(len(rows), subject.p))
    y = subject.equation.response[rows] / np.std(subject.equation.response)
    return X, y, subject.rng.normal(size=subject.p)


def _descended(X: Matrix, y: Vector, start: Vector, rate: float, steps: int) -> Vector:
    theta = start.copy()
    for _ in range(steps):
        theta = theta + rate * X.T @ (y - X @ theta)
    return theta


@holds(
    41,
    "limit of gradient descent",
    "gradient descent from theta_0 ends at theta_0 + X^+ (y - X theta_0)",
    1e-8,
    "2000 steps on a design with condition below 10, relative to the start",
    needs=_is_wide_ols,
)
def _descent_limit(subject: Subject, bound: float) -> None:
    X, y, start = _underdetermined(subject)
    if np.linalg.cond(X) > 10:
        return
    told = spectral_root(X, y, MinimumNorm(), start).theta
    size = np.linalg.norm(start) + np.linalg.norm(told)
    formula = start + np.linalg.pinv(X) @ (y - X @ start)
    require(float(np.linalg.norm(told - formula) / size), bound, "not the formula")
    rate = float(1.0 / np.linalg.norm(X, 2) ** 2)
    walked = _descended(X, y, start, rate, 2000)
    require(float(np.linalg.norm(told - walked) / size), bound, "not the descent")


@holds(
    42,
    "early stopping",
    "gradient descent stopped after T steps is a filter of singular values",
    1e-9,
    "rounding of T steps, relative to the start",
    needs=_is_wide_ols,
)
def _early_stop(subject: Subject, bound: float) -> None:
    X, y, start = _underdetermined(subject)
    rate = float(0.9 / np.linalg.norm(X, 2) ** 2)
    steps = int(subject.rng.integers(1, 60))
    told = spectral_root(X, y, GradientDescent(rate, steps), start).theta
    walked = _descended(X, y, start, rate, steps)
    size = np.linalg.norm(start) + np.linalg.norm(told)
    require(float(np.linalg.norm(told - walked) / size), bound, "not the filter")


@holds(
    43,
    "ridge to minimum norm",
    "the ridge root is O(lambda) from the minimum-norm root",
    1e-2,
    "the error at lambda over ten times that at lambda / 10, at lambda below 1e-4 "
    "of the smallest eigenvalue",
    needs=_is_wide_ols,
)
def _ridge_limit(subject: Subject, bound: float) -> None:
    X, y, start = _underdetermined(subject)
    limit = spectral_root(X, y, MinimumNorm(), start).theta
    small = 1e-4 * np.linalg.svd(X, compute_uv=False)[-1] ** 2 / len(X)
    gaps = [
        np.linalg.norm(spectral_root(X, y, Ridge(penalty), start).theta - limit)
        for penalty in (small, small / 10)
    ]
    if gaps[0] > 1e-9 * np.linalg.norm(limit):
        require(abs(float(gaps[0] / gaps[1]) / 10 - 1), bound, "not O(lambda)")


@holds(
    44,
    "few covariates a unit, logistic",
    "as p/n tends to 0 the logistic bias factor tends to 1 and sigma^2 to "
    "1/E[rho''(gamma Z)], the classical variance",
    0.08,
    "both are first order in p/n: at p/n = 0.002 the relative distance is below 8% "
    "for gamma up to 2.5, and halves with p/n to within a fifth",
    needs=_is_logit,
    every=10,
)
def _classical_limit(subject: Subject, bound: float) -> None:
    gamma = float(np.clip(np.std(subject.equation.design @ subject.theta), 0.1, 2.5))
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    mu = 1 / (1 + np.exp(-gamma * nodes))
    classical = np.sqrt(2 * np.pi) / float(weights @ (mu * (1 - mu)))
    far, near = (proportional_logistic(kappa, gamma) for kappa in (0.004, 0.002))
    for value, half, limit in (
        (far.alpha, near.alpha, 1.0),
        (far.sigma**2, near.sigma**2, classical),
    ):
        require(abs(half / limit - 1), bound, "not the classical limit")
        ratio = (half - limit) / (value - limit)
        require(abs(ratio / 0.5 - 1), 0.2, "the distance is not first order in p/n")


@holds(
    45,
    "least squares at p/n = kappa",
    "the solution of the M-estimation system is r^2 = kappa s^2 / (1 - kappa)",
    1e-8,
    "the system is solved to a relative residual of 1e-12",
    needs=_is_ols,
    every=4,
)
def _proportional_ols(subject: Subject, bound: float) -> None:
    kappa = float(np.clip(subject.p / len(subject.psi), 0.01, 0.95))
    told = proportional_robust(kappa, "ols", "normal").r2
    require(abs(told * (1 - kappa) / kappa - 1), bound, "not kappa / (1 - kappa)")
