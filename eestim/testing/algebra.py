"""Properties of the sandwich of any psi: 1-4, 12-16, 25, 26, 31, 32, 34, 47, 49."""

from collections.abc import Callable

import numpy as np
from scipy import stats

from eestim._arrays import Matrix, Vector
from eestim.equations import moments_at
from eestim.estimation import Estimate, estimate
from eestim.inference.anytime import Anytime
from eestim.inference.profile import ScoreInverted
from eestim.roots import noise_residual
from eestim.testing import changed
from eestim.testing.changed import Changed
from eestim.testing.records import Violation
from eestim.testing.registry import (
    ROUNDING,
    SOLVED,
    apart,
    holds,
    in_noise_units,
    matrix_near_identity,
    mixing_matrix,
    psi_size,
    require,
    require_same_fit,
)
from eestim.testing.subjects import Subject

__all__: list[str] = []

_TILTS = (1e-3, 1e-4, 1e-5)  # how far the weights that move a root are from one
_BENT = 1e-4  # of a standard error, between a tilt and half of it


def _is_small_and_smooth(subject: Subject) -> bool:
    return subject.p <= 2 and subject.is_smooth


def _is_smooth(subject: Subject) -> bool:
    return subject.is_smooth


def _noise(subject: Subject) -> Vector:
    """Return a covariate that has nothing to do with the equation, (n,)."""
    return subject.rng.normal(size=len(subject.psi))


# ------------------------------------------------------------- changes of psi, theta


@holds(
    1,
    "psi times a matrix",
    "theta and V are those of C psi, for any invertible C",
    1e-7,
    SOLVED,
    differences=1e-5,
)
def _multiplied(subject: Subject, bound: float) -> None:
    C = mixing_matrix(subject)
    other = changed.multiplied(subject.equation, C, subject.theta)
    fit = subject.fitted(other, subject.theta)
    require_same_fit(subject, fit.theta, fit.spread.matrix, bound, "psi -> C psi")


@holds(
    2,
    "psi times a matrix of theta",
    "V at an exact root is that of C(theta) psi",
    1e-7,
    SOLVED,
    differences=1e-5,
    needs=_is_smooth,
)
def _scaled_by_theta(subject: Subject, bound: float) -> None:
    size = psi_size(subject)
    B = 0.3 * subject.rng.normal(size=(subject.p, subject.p)) / subject.p
    B = size[:, None] * B / size
    other = changed.scaled_by_theta(
        subject.equation, B, subject.theta, subject.errors, subject.theta
    )
    fit = subject.fitted(other, subject.theta)
    require_same_fit(
        subject, fit.theta, fit.spread.matrix, bound, "psi -> C(theta) psi"
    )


@holds(
    3,
    "linear change of parameters",
    "theta = L eta has V_eta = L^-1 V L^-T",
    1e-7,
    SOLVED,
    differences=1e-5,
)
def _linear_parameters(subject: Subject, bound: float) -> None:
    size = subject.errors
    L = size[:, None] * matrix_near_identity(subject.rng, subject.p) / size
    root: Vector = np.linalg.solve(L, subject.theta)
    other = changed.in_other_parameters(
        subject.equation,
        lambda eta: L @ eta,
        lambda _: L,
        root,
    )
    fit = _fitted_nearby(subject, other, root, np.linalg.solve(L, subject.errors))
    back = L @ fit.spread.matrix @ L.T
    require_same_fit(subject, L @ fit.theta, back, bound, "theta = L eta")


def _fitted_nearby(
    subject: Subject, other: Changed, root: Vector, step: Vector
) -> Estimate:
    if not subject.is_smooth:
        return estimate(other, root=root)
    return estimate(other, start=root + 0.1 * step)


_Map = Callable[[Vector], Matrix]


def _sinh_of(subject: Subject) -> tuple[_Map, Vector, _Map]:
    """Return theta = r + 5 s sinh(eta / 5), its derivative, and the root."""
    scale, root = 5.0 * subject.errors, subject.theta

    def g(eta: Vector) -> Vector:
        theta: Vector = root + scale * (np.sinh(eta + 0.4) - np.sinh(0.4))
        return theta

    def slope(eta: Vector) -> Matrix:
        J: Matrix = np.diag(scale * np.cosh(eta + 0.4))
        return J

    return g, np.zeros(len(root)), slope


@holds(
    4,
    "smooth change of parameters",
    "theta = g(eta) has V_eta = J^-1 V J^-T, the delta method",
    1e-7,
    SOLVED,
    differences=1e-5,
)
def _smooth_parameters(subject: Subject, bound: float) -> None:
    g, root, slope = _sinh_of(subject)
    other = changed.in_other_parameters(subject.equation, g, slope, root)
    fit = _fitted_nearby(subject, other, root, np.full(subject.p, 0.02))
    J = slope(fit.theta)
    require_same_fit(
        subject, g(fit.theta), J @ fit.spread.matrix @ J.T, bound, "theta = g(eta)"
    )


@holds(
    47,
    "score-inverted intervals",
    "intervals by inverting the score are free of 1 to 4",
    1e-5,
    "bounds are found by root search to about 1e-7 standard errors on a profile",
    differences=1e-4,
    needs=_is_small_and_smooth,
    every=10,
)
def _score_inverted(subject: Subject, bound: float) -> None:
    def bounds_of(fit: Estimate) -> Matrix:
        made = fit.interval(_INNER, method=ScoreInverted())
        return np.asarray(made[["lower", "upper"]], dtype=np.float64)

    C = mixing_matrix(subject)
    g, zero, slope = _sinh_of(subject)
    other = changed.in_other_parameters(
        changed.multiplied(subject.equation, C, subject.theta), g, slope, zero
    )
    own, bounds = bounds_of(subject.fit), bounds_of(estimate(other, start=zero + 0.02))
    theirs = np.column_stack([g(bounds[:, 0]), g(bounds[:, 1])])
    gap = float(np.max(np.abs(theirs - own) / subject.errors[:, None]))
    require(gap, bound, "the score-inverted interval moves with the coordinates")


_INNER = 0.5  # a set that is one interval; at high levels others may lie far away


# -------------------------------------------------------------------- stacking


@holds(
    12,
    "stacking without shared parameters",
    "the blocks of a stack are the separate fits",
    1e-7,
    SOLVED,
    differences=1e-5,
)
def _stacked_blocks(subject: Subject, bound: float) -> None:
    fit, _ = _with_a_mean(subject)
    p = subject.p
    require_same_fit(
        subject,
        fit.theta[:p],
        fit.spread.matrix[:p, :p],
        bound,
        "stacking with another equation",
    )


def _with_a_mean(subject: Subject) -> tuple[Estimate, Vector]:
    """Fit the equation beside the mean of an unrelated covariate."""
    from eestim.models.basic import mean

    z = _noise(subject)
    root = np.append(subject.theta, z.mean())
    other = changed.joined([subject.equation, mean(z)], root)
    if not subject.is_smooth:
        return estimate(other, root=root), z
    return estimate(other, start=root + 0.1 * np.append(subject.errors, 0.1)), z


@holds(
    13,
    "cross block of a stack",
    "the cross block is the mean product of influence functions over n",
    1e-7,
    SOLVED,
    differences=1e-5,
)
def _cross_block(subject: Subject, bound: float) -> None:
    fit, z = _with_a_mean(subject)
    p = subject.p
    influence = np.linalg.solve(subject.slope, subject.psi.T).T
    cross = influence.T @ (z - z.mean()) / len(z) ** 2
    scale = subject.errors * z.std() / np.sqrt(len(z))
    gap = float(np.max(np.abs(fit.spread.matrix[:p, p] - cross) / scale))
    require(gap, bound, "the cross block is not that of the influence functions")


@holds(
    15,
    "two steps",
    "a second step that reads theta has the variance of its influence function",
    1e-8,
    ROUNDING,
    differences=1e-6,
)
def _two_steps(subject: Subject, bound: float) -> None:
    rng, scale = subject.rng, subject.psi.std(axis=0)
    a = rng.normal(size=subject.p) / np.where(scale > 0, scale, 1.0)
    b = rng.normal(size=subject.p) / subject.errors / np.sqrt(len(subject.psi))
    z = _noise(subject)
    second = subject.psi @ a + float(b @ subject.theta) + z
    root = np.append(subject.theta, second.mean())
    other = changed.with_second_step(subject.equation, a, b, z, root)
    V = estimate(other, root=root).spread.matrix
    correction = np.linalg.solve(subject.slope, subject.psi.T).T @ (
        b - subject.slope.T @ a
    )
    influence = second - second.mean() + correction
    expected = float(influence @ influence) / len(z) ** 2
    gap = abs(V[-1, -1] - expected) / expected
    require(gap, bound, "the variance of a second step is not that of its influence")


@holds(
    16,
    "appended functional",
    "appending h(theta) - eta is the delta method",
    1e-7,
    ROUNDING,
    differences=1e-5,
)
def _appended_functional(subject: Subject, bound: float) -> None:
    g = subject.rng.normal(size=subject.p) / subject.errors
    root = np.append(subject.theta, 0.0)

    def h(theta: Vector) -> float:
        return float(np.sinh(0.1 * g @ (theta - subject.theta)))

    def gradient(theta: Vector) -> Vector:
        return 0.1 * g * float(np.cosh(0.1 * g @ (theta - subject.theta)))

    other = changed.with_functional(subject.equation, h, gradient, root)
    V = estimate(other, root=root).spread.matrix
    J = gradient(subject.theta)
    expected = float(J @ subject.fit.spread.matrix @ J)
    require(abs(V[-1, -1] - expected) / expected, bound, "appending is not the delta")
    told = subject.fit.functional(lambda theta: h(np.asarray(theta)))
    gap = abs(told.spread.matrix[0, 0] - expected) / expected
    require(gap, max(bound, 1e-6), "`functional` is not the delta method")


# -------------------------------------------------------------------------- GMM


@holds(
    25,
    "just-identified GMM",
    "with as many equations as parameters GMM is free of W, and J = 0",
    1e-7,
    ROUNDING,
    differences=1e-5,
)
def _just_identified(subject: Subject, bound: float) -> None:
    A, M = in_noise_units(subject)
    B = matrix_near_identity(subject.rng, subject.p)
    V = _gmm(A, M, B @ B.T)
    own = subject.fit.spread.matrix / np.outer(subject.errors, subject.errors)
    gap = float(np.abs(V - own).max())
    require(gap, bound, "the GMM covariance depends on W")
    if subject.is_smooth:
        told = noise_residual(
            moments_at(subject.equation, subject.theta), subject.theta
        )
        require(subject.p * told**2, 1e-8, "the J statistic is not zero", _UNSOLVED)


_UNSOLVED = "the root is not a root: psi changed between calls, or its sign did"


def _gmm(G: Matrix, M: Matrix, W: Matrix) -> Matrix:
    """Return (G'WG)^-1 G'W M W G (G'WG)^-1, Hansen's covariance."""
    root = np.linalg.cholesky(W).T  # a normal equation would square the condition
    orthogonal, triangle = np.linalg.qr(root @ G)
    half = np.linalg.solve(triangle, orthogonal.T @ root)
    covariance: Matrix = half @ M @ half.T
    return covariance


def _has_noise_everywhere(subject: Subject) -> bool:
    return subject.p >= 2 and bool(np.linalg.cond(in_noise_units(subject)[1]) < 1e8)


@holds(
    26,
    "efficient GMM",
    "the efficient weight gives the smallest covariance, (G' M^-1 G)^-1",
    1e-9,
    "eigenvalues of a difference of covariances, relative to the larger one",
    differences=1e-7,
    needs=_has_noise_everywhere,
)
def _efficient(subject: Subject, bound: float) -> None:
    A, M = in_noise_units(subject)
    G = A[:, :-1]  # one parameter known: over-identified by one
    B = matrix_near_identity(subject.rng, subject.p)
    inverse = np.linalg.inv(np.linalg.qr(np.linalg.solve(np.linalg.cholesky(M), G))[1])
    best = inverse @ inverse.T
    other = _gmm(G, M, B @ B.T)
    scale = np.sqrt(np.diag(other))
    lowest = np.linalg.eigvalsh((other - best) / np.outer(scale, scale))[0]
    require(-float(lowest), bound, "a weight beats the efficient one")


# ---------------------------------------------------------------- root, V, influence


@holds(
    31,
    "root",
    "the mean of psi at the root is zero",
    1e-8,
    "relative to the size of psi and its terms; a jump leaves p + 1 contributions",
    differences=1e-7,
)
def _root(subject: Subject, bound: float) -> None:
    psi = np.asarray(subject.equation.psi(subject.theta))
    terms = np.abs(subject.slope) @ np.abs(subject.theta)
    size = np.maximum(np.abs(psi).sum(axis=0), 1e-3 * len(psi) * terms)
    total = np.abs(psi.sum(axis=0))
    if not subject.is_smooth:
        bound = 1.0
        size = np.maximum((subject.p + 1) * np.abs(psi).max(axis=0), 1e-300)
    value = float(np.max(np.where(size > 0, total / np.maximum(size, 1e-300), 0.0)))
    require(value, bound, "psi does not sum to zero at the root", _UNSOLVED)


@holds(
    32,
    "covariance",
    "V is symmetric and positive semidefinite",
    1e-10,
    "the smallest eigenvalue of a Gram matrix scaled to unit diagonal",
)
def _semidefinite(subject: Subject, bound: float) -> None:
    V, errors = subject.fit.spread.matrix, subject.errors
    require(apart(V, V.T, errors), bound, "V is not symmetric")
    lowest = float(np.linalg.eigvalsh(V / np.outer(errors, errors))[0])
    require(-lowest, bound, "V is not positive semidefinite")
    influence = np.linalg.solve(subject.slope, subject.psi.T).T
    own = influence.T @ influence / len(influence) ** 2
    require(
        apart(own, V, errors),
        1e-6 * subject.slack,
        "V is not A^-1 M A^-T / n of psi and the sensitivity as they are now",
        "a cached result is stale, or psi and `moments` disagree",
    )


@holds(
    34,
    "influence functions",
    "influence functions have mean 0, give HC0, and are the derivative of the root "
    "in the weights of the units (infinitesimal jackknife)",
    1e-4,
    "a difference quotient over weights 1 + 1e-3 u, extrapolated, whose error is "
    "about 1e-6 of the standard error times the size of the influence",
    needs=_is_smooth,
)
def _influence(subject: Subject, bound: float) -> None:
    n, errors = len(subject.psi), subject.errors
    influence = np.linalg.solve(subject.slope, subject.psi.T).T
    mean = float(np.max(np.abs(influence.mean(axis=0)) / errors))
    require(mean, 1e-6, "influence functions do not have mean 0", _UNSOLVED)
    u = subject.rng.choice([-1.0, 1.0], n)
    seen = _root_derivative(subject, u)
    expected = influence.T @ u / n
    gap = float(np.max(np.abs(seen - expected) / errors))
    require(
        gap,
        bound,
        "the root does not move with the weights as A^-1 psi says",
        "the sensitivity is not minus the mean derivative of psi",
    )


def _root_derivative(subject: Subject, u: Vector) -> Vector:
    """Return d theta / d eps where unit i has weight 1 + eps u_i, by chord steps."""

    def root(eps: float) -> Vector:
        theta, w = subject.theta.copy(), 1.0 + eps * u
        for _ in range(60):
            mean = w @ subject.equation.psi(theta) / len(w)
            step = np.linalg.solve(subject.slope, mean)
            theta = theta + step
            size = float(np.max(np.abs(step) / subject.errors))
            if size < 1e-10:
                return theta
            if not size < 1e3:
                break
        raise Violation(
            "chord steps with A do not find the root of slightly reweighted units",
            "sensitivity has the wrong sign or size",
        )

    for full in _TILTS:  # a kink of psi within reach of the larger ones
        coarse = (root(full) - root(-full)) / (2 * full)
        fine = (root(full / 2) - root(-full / 2)) / full
        if np.max(np.abs(fine - coarse) / subject.errors) < _BENT:
            break
    extrapolated: Vector = (4.0 * fine - coarse) / 3.0
    return extrapolated


@holds(
    49,
    "anytime intervals",
    "an asymptotic confidence sequence contains Wald's interval at every n, at least "
    "1.5485 times as wide",
    1e-9,
    "a closed form; the least width ratio at t* = 500, alpha = 0.05 is 1.5485",
)
def _anytime(subject: Subject, bound: float) -> None:
    wald = subject.fit.interval(method="wald")
    always = subject.fit.interval(method=Anytime(n_star=500))
    ratio = (always["upper"] - always["lower"]) / (wald["upper"] - wald["lower"])
    outside = np.maximum(
        always["lower"] - wald["lower"], wald["upper"] - always["upper"]
    )
    require(float(np.max(outside / subject.errors)), bound, "Wald sticks out")
    require(1.5485 - float(ratio.min()), 1e-4, "the sequence is too narrow")
    z = float(stats.norm.ppf(0.975))
    width = float(
        np.max(np.abs((wald["upper"] - wald["lower"]) / subject.errors / 2 / z - 1))
    )
    require(width, 1e-9, "Wald's interval is not 1.96 standard errors")
