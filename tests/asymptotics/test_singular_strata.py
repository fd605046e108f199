"""Singular strata (section 1.5): score test, mixtures, simulated null, rate."""

import numpy as np
import pytest
from scipy import optimize, special, stats
from tolerances import EXACT, REFERENCE

from eestim.asymptotics import (
    boundary_critical_value,
    boundary_p_value,
    efficient_score,
    one_sided_score_test,
    rate_slope,
    simulated_null,
)
from eestim.asymptotics.perturbation import half_vector
from eestim.errors import IdentificationError, InferenceError


def isotropic(m):
    """Information under which the score matrix is rotation invariant."""
    pairs = np.triu_indices(m)
    return np.diag(np.where(pairs[0] == pairs[1], 1.0, 2.0))


def within(share, probability, draws):
    return abs(share - probability) <= 4 * np.sqrt(
        probability * (1 - probability) / draws
    )


def test_one_direction_is_the_half_half_mixture_by_distribution():
    null = simulated_null([[7.0]], 1, np.random.default_rng(0), draws=20_000)
    assert within(null.probability_zero, 0.5, 20_000)
    positive = null.draws[null.draws > 0]
    assert stats.kstest(positive, stats.chi2(1).cdf).pvalue > 1e-3
    assert null.critical_value() == pytest.approx(boundary_critical_value(), rel=0.05)


def test_probability_of_zero_in_two_isotropic_directions_is_known():
    """P(score matrix negative semidefinite) = (2 - sqrt 2) / 4 = .146."""
    null = simulated_null(isotropic(2), 2, np.random.default_rng(1), draws=20_000)
    assert within(null.probability_zero, (2 - 2**0.5) / 4, 20_000)
    assert not within(null.probability_zero, 0.25, 20_000)  # negative control


@pytest.mark.parametrize("m", [2, 3])
@pytest.mark.parametrize("rank", [1, 3])
def test_isotropic_ratio_is_the_sum_of_squared_positive_eigenvalues(m, rank):
    seed, draws = 5, 400
    null = simulated_null(
        isotropic(m), m, np.random.default_rng(seed), rank=rank, draws=draws
    )
    rng = np.random.default_rng(seed)
    weight = np.diag(isotropic(m))
    score = (
        rng.standard_normal((draws, len(weight))) @ np.linalg.cholesky(isotropic(m)).T
    )
    rows, columns = np.triu_indices(m)
    matrices = np.zeros((draws, m, m))
    matrices[:, rows, columns] = score / weight
    matrices[:, columns, rows] = score / weight
    values = np.clip(np.linalg.eigvalsh(matrices), 0, None)[:, -min(rank, m) :]
    np.testing.assert_allclose(null.draws, np.sum(values**2, 1), rtol=1e-6, atol=1e-9)


def test_anisotropic_ratio_matches_a_scan_of_directions():
    """Rank one, two directions: LR = max over the circle of (U'v)_+^2 / v'Iv."""
    information = np.array([[3.0, 0.4, 0.2], [0.4, 1.5, -0.3], [0.2, -0.3, 0.7]])
    null = simulated_null(information, 2, np.random.default_rng(2), draws=200)
    score = (
        np.random.default_rng(2).standard_normal((200, 3))
        @ np.linalg.cholesky(information).T
    )
    angles = np.linspace(0, np.pi, 20_001)
    w = np.stack([np.cos(angles), np.sin(angles)], -1)
    v = half_vector(w[:, :, None] * w[:, None, :])
    scan = np.clip(score @ v.T, 0, None) ** 2 / np.einsum(
        "ij,jk,ik->i", v, information, v
    )
    np.testing.assert_allclose(null.draws, scan.max(1), rtol=1e-5, atol=1e-9)


def test_full_rank_ratio_matches_a_convex_solver():
    information = np.array([[3.0, 0.4, 0.2], [0.4, 1.5, -0.3], [0.2, -0.3, 0.7]])
    null = simulated_null(information, 2, np.random.default_rng(3), rank=2, draws=25)
    score = (
        np.random.default_rng(3).standard_normal((25, 3))
        @ np.linalg.cholesky(information).T
    )

    def solve(u):
        def loss(c):
            C = np.array([[c[0], 0.0], [c[1], c[2]]])
            d = half_vector(C @ C.T)
            return d @ information @ d - 2 * u @ d

        starts = np.random.default_rng(0).standard_normal((6, 3))
        return -min(optimize.minimize(loss, s, tol=1e-12).fun for s in starts)

    np.testing.assert_allclose(
        null.draws, [solve(u) for u in score], rtol=1e-5, atol=1e-8
    )


def test_units_of_the_perturbation_do_not_change_the_law():
    information = np.array([[3.0, 0.4, 0.2], [0.4, 1.5, -0.3], [0.2, -0.3, 0.7]])
    t = np.array([1e-3, 50.0])
    v = half_vector(np.outer(t, t))
    draws = [
        simulated_null(matrix, 2, np.random.default_rng(9), draws=100).draws
        for matrix in (information, v[:, None] * information * v)
    ]
    np.testing.assert_allclose(draws[1], draws[0], rtol=1e-6, atol=1e-9)


def test_p_values_of_the_simulated_null_are_never_zero():
    null = simulated_null([[1.0]], 1, np.random.default_rng(0), draws=99)
    assert null.p_value(1e9) == pytest.approx(0.01, rel=EXACT)
    assert null.p_value(0.0) == 1.0


def test_mixture_values_match_chi_square():
    assert boundary_critical_value(0.05) == pytest.approx(
        stats.chi2.isf(0.1, 1), rel=EXACT
    )
    assert boundary_p_value(boundary_critical_value(0.01)) == pytest.approx(
        0.01, rel=REFERENCE
    )
    assert boundary_p_value(0.0) == 1.0


def test_mixture_is_refused_beyond_one_direction():
    for call in (boundary_critical_value, boundary_p_value):
        with pytest.raises(InferenceError, match="simulated_null"):
            call(0.05, n_directions=2)


def random_intercept_scores(rng, n, s, nuisance=True):
    """Return scores of tau = s^2 and of the mean of 5 binary outcomes sharing Z."""
    eta = 0.3 + s * rng.standard_normal(n)
    y = (rng.random((n, 5)) < special.expit(eta)[:, None]).sum(1)
    p = y.mean() / 5 if nuisance else special.expit(0.3)
    first, variance = y - 5 * p, 5 * p * (1 - p)
    psi_tau = 0.5 * (first**2 - variance)
    third = variance * (1 - 2 * p)  # covariance of first^2 with first, per unit
    return psi_tau, first[:, None], third / 2, variance


def test_one_sided_score_test_has_its_size_and_finds_a_variance():
    rng = np.random.default_rng(0)
    reps, rejected, powered = 500, 0, 0
    for _ in range(reps):
        for s in (0.0, 0.8):
            tau, eta, cross, inner = random_intercept_scores(rng, 400, s)
            score = efficient_score(tau, eta, [cross], [[inner]])
            p = one_sided_score_test(score).p_value
            rejected += (s == 0) * (p < 0.05)
            powered += (s > 0) * (p < 0.05)
    assert within(rejected / reps, 0.05, reps)
    assert powered / reps > 0.95  # negative control


def test_efficient_score_is_orthogonal_to_the_nuisance_by_construction():
    rng = np.random.default_rng(1)
    eta = rng.standard_normal((200, 2))
    tau = eta @ [1.0, 2.0] + rng.standard_normal(200)
    # for a likelihood A is the covariance of scores
    score = efficient_score(tau, eta, tau @ eta / 200, eta.T @ eta / 200)
    assert np.abs(score @ eta).max() < 1e-10
    with pytest.raises(IdentificationError, match="rank 1 of 2"):
        efficient_score(tau, eta, [1.0, 1.0], np.ones((2, 2)))


def test_quarter_root_rate_is_detected_on_the_singular_stratum():
    """y = ab x with a = b: at ab = 0 the root |a| = |h|^(1/2) has rate n^(-1/4)."""
    rng = np.random.default_rng(7)
    sizes = np.array([100, 400, 1600, 6400])
    regular, singular = [], []
    for n in sizes:
        h = rng.standard_normal(4000) / np.sqrt(n)
        regular.append(stats.iqr(h))
        singular.append(stats.iqr(np.sign(h) * np.sqrt(np.abs(h))))
    slow, usual = rate_slope(sizes, singular), rate_slope(sizes, regular)
    assert slow.slope == pytest.approx(-0.25, abs=0.03)
    assert slow.status == "slower than root n"
    assert usual.slope == pytest.approx(-0.5, abs=0.03)
    assert usual.status == "regular"


def test_subsample_correction_is_the_finite_population_factor():
    sizes = np.array([50.0, 100.0, 200.0])
    spreads = sizes**-0.5 * np.sqrt(1 - sizes / 400)
    assert rate_slope(sizes, spreads, n_units=400).slope == pytest.approx(
        -0.5, rel=1e-10
    )


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: one_sided_score_test([1.0, 1.0]), InferenceError, "does not vary"),
        (lambda: boundary_p_value(-1.0), ValueError, "`statistic`"),
        (lambda: boundary_critical_value(0.6), ValueError, "`level`"),
        (lambda: rate_slope([1.0, 2.0], [1.0, 2.0]), ValueError, "three sample sizes"),
        (lambda: rate_slope([1, 2, 3], [1, 2, 0]), ValueError, "positive"),
        (
            lambda: simulated_null(np.eye(2), 2, np.random.default_rng(0)),
            ValueError,
            r"need \(3, 3\)",
        ),
        (
            lambda: simulated_null(np.ones((3, 3)), 2, np.random.default_rng(0)),
            IdentificationError,
            "rank 1 of 3",
        ),
    ],
)
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
