"""Properties where A is singular: 28, 36-39; and of draws and paths: 46, 48."""

import numpy as np

from eestim._arrays import Matrix, Vector
from eestim.asymptotics import (
    functional_covariance,
    jacobian_omega,
    kleibergen_paap,
    robin_smith,
)
from eestim.diagnostics import PathAverage
from eestim.errors import IdentificationError, InferenceError
from eestim.roots import solve
from eestim.testing.records import Violation
from eestim.testing.registry import (
    holds,
    in_noise_units,
    matrix_near_identity,
    require,
)
from eestim.testing.subjects import Subject

__all__: list[str] = []

_REDUNDANT = "solves with a singular A, truncated at rounding"
_SHARED = "draws are shared between units"


def _with_redundant(subject: Subject) -> tuple[Matrix, Matrix, Matrix]:
    """Return A, M of eta with theta = L eta one longer, and L (p, p + 1)."""
    A, M = in_noise_units(subject)
    p = subject.p
    L = np.hstack([np.eye(p), subject.rng.normal(size=(p, 1))])
    return L.T @ A @ L, L.T @ M @ L, L


@holds(
    28,
    "redundant parameter",
    "a redundant parameter leaves the variance of an estimable function at any root, "
    "and what is not estimable is refused",
    1e-7,
    _REDUNDANT,
    differences=1e-6,
)
def _redundant(subject: Subject, bound: float) -> None:
    A, M, L = _with_redundant(subject)
    g, n = subject.rng.normal(size=subject.p), len(subject.psi)
    V = subject.fit.spread.matrix / np.outer(subject.errors, subject.errors)
    told = functional_covariance(A, M, L.T @ g, n).covariance
    # in_noise_units measures theta by its standard error, so n V has diagonal n
    gap = abs(float(np.squeeze(told)) * n / float(g @ V @ g) - 1.0)
    require(gap, bound, "a redundant parameter changes the variance")
    null = np.append(-L[:, -1], 1.0)
    try:
        functional_covariance(A, M, null, n)
    except IdentificationError:
        return
    raise Violation("a function of the redundant direction got a variance")


@holds(
    36,
    "generalised inverses",
    "g' A^- M A^-T g is the same for every {1}-inverse, for g in the range of A'",
    1e-7,
    "cancellation of the arbitrary part of a {1}-inverse, of size ten",
    differences=1e-6,
)
def _inverses(subject: Subject, bound: float) -> None:
    A, M, L = _with_redundant(subject)
    rng, g = subject.rng, L.T @ subject.rng.normal(size=subject.p)
    plus = np.linalg.pinv(A, rcond=1e-11)
    U, W = rng.normal(size=(2, *A.shape))
    eye = np.eye(len(A))
    other = plus + (eye - plus @ A) @ U + W @ (eye - A @ plus)
    values = [float(g @ B @ M @ B.T @ g) for B in (plus, other)]
    require(abs(values[1] / values[0] - 1), bound, "the inverse chosen matters")


def _product_slope(eta: Vector) -> Matrix:
    """Return the derivative of theta_0 = a b, theta_j = eta_(j+1)."""
    p = len(eta) - 1
    J = np.zeros((p, p + 1))
    J[0, :2] = eta[1], eta[0]
    J[1:, 2:] = np.eye(p - 1)
    return J


@holds(
    37,
    "roots of an orbit",
    "an estimable function has one variance at every root of an orbit: "
    "theta_0 = (c a)(b / c) for every c",
    1e-7,
    _REDUNDANT,
    differences=1e-6,
)
def _orbit(subject: Subject, bound: float) -> None:
    A, M = in_noise_units(subject)
    g, n = subject.rng.normal(size=subject.p), len(subject.psi)
    values = []
    for c in (1.0, 1.7, -0.6):
        eta = np.concatenate([[0.9 * c, 1.3 / c], np.ones(subject.p - 1)])
        J = _product_slope(eta)
        told = functional_covariance(J.T @ A @ J, J.T @ M @ J, J.T @ g, n).covariance
        values.append(float(np.squeeze(told)))
    gap = max(abs(value / values[0] - 1) for value in values)
    require(gap, bound, "the variance depends on the root")


def _has_tangents(subject: Subject) -> bool:
    return hasattr(subject.equation, "tangents")


@holds(
    38,
    "tangents of an orbit",
    "psi_i' t = 0 and A t = 0 for every unit and every tangent t of the orbit, "
    "M-estimation with a symmetry",
    1e-9,
    "relative to the size of psi and t",
    needs=_has_tangents,
)
def _tangents(subject: Subject, bound: float) -> None:
    equation = subject.equation
    root = solve(equation).require_converged().theta
    directions = subject.rng.normal(size=len(root))
    for theta in (root + 0.3 * subject.example.shift * directions, root):
        psi = np.asarray(equation.psi(theta))
        t = np.asarray(equation.tangents(theta)).reshape(len(root), -1)
        size = np.abs(psi).max() * np.abs(t).max()
        gap = float(np.abs(psi @ t).max() / size)
        require(gap, bound, "psi is not orthogonal to the orbit of its symmetry")
    A = np.asarray(equation.sensitivity(root))
    seen = float(np.abs(A @ t).max() / (np.abs(A).max() * np.abs(t).max()))
    require(seen, 1e-6, "A at a root sees the orbit")


def _has_unit_slopes(subject: Subject) -> bool:
    return (
        subject.p >= 2
        and subject.is_smooth
        and (hasattr(subject.equation, "unit_sensitivity"))
    )


@holds(
    39,
    "rank tests",
    "at corank 1 the Kleibergen-Paap and Robin-Smith statistics agree",
    1e-8,
    "two expressions of one quadratic form of rank one",
    needs=_has_unit_slopes,
)
def _rank_tests(subject: Subject, bound: float) -> None:
    units = np.asarray(subject.equation.unit_sensitivity(subject.theta))
    R = matrix_near_identity(subject.rng, subject.p)  # an A that is not symmetric
    units = np.einsum("kl,nlj->nkj", R, units)
    A, omega = units.mean(axis=0), jacobian_omega(units)
    try:
        one = kleibergen_paap(A, omega, len(units), subject.p - 1).statistic
        two = robin_smith(A, omega, len(units)).statistic
    except InferenceError:
        return  # the derivative of psi has no variance along that direction
    require(abs(one / two - 1.0), bound, "two rank tests differ at corank 1")


# ------------------------------------------------------------- draws and paths


def _has_draws(subject: Subject) -> bool:
    return hasattr(subject.equation, "redrawn")


_REDRAWS = 12


@holds(
    46,
    "latent draws",
    "with K draws of its own for every unit, psi has variance M + C / K; draws "
    "shared by all units make errors that do not average out",
    60.0,
    "the sum over units of a difference of two draws, squared, is chi-squared(1) times "
    "its sum of squares: a mean of 12 exceeds 7 with probability below 1e-10",
    needs=_has_draws,
    every=4,
)
def _latent_draws(subject: Subject, bound: float) -> None:  # noqa: ARG001
    rng, theta = subject.rng, subject.near
    ratios, noise = [], {4: 0.0, 64: 0.0}
    for _ in range(_REDRAWS):
        for K in noise:
            pair = [
                np.asarray(subject.equation.redrawn(rng, K).psi(theta))
                for _ in range(2)
            ]
            gap = (pair[0] - pair[1])[:, 0]
            noise[K] += float(np.mean(gap**2))
            if K == 4:
                ratios.append(gap.sum() ** 2 / max(float(gap @ gap), 1e-300))
    require(float(np.mean(ratios)), 7.0, "the noise of draws adds up", _SHARED)
    shrunk = noise[4] / max(noise[64], 1e-300)
    wrong = abs(np.log(shrunk / 16.0))
    require(
        float(wrong), np.log(2.0), "the noise does not fall as 1/K", "draws not used"
    )


@holds(
    48,
    "random scaling",
    "the random-scaling statistic of a path is the same for c beta + b",
    1e-8,
    "sums of squares of a path that starts at the root",
)
def _random_scaling(subject: Subject, bound: float) -> None:
    influence = np.linalg.solve(subject.slope, subject.psi.T).T / subject.errors
    path = influence[subject.rng.permutation(len(influence))]
    c, b = float(np.exp(subject.rng.uniform(-2, 2))), float(subject.rng.normal())
    statistics = []
    for scale, shift in ((1.0, 0.0), (-c, b)):
        average = PathAverage.start(subject.p)
        for iterate in path:
            average = average.updated(scale * (iterate + 0.1) + shift)
        spread = np.sqrt(np.diag(average.covariance))
        gap = (average.mean - shift) / scale
        statistics.append(gap / (spread / abs(scale)))
    one, two = statistics
    size = np.abs(one).max() + 1.0
    require(float(np.max(np.abs(one - two)) / size), bound, "the statistic moves")
