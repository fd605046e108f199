"""The proportional logistic limit: published anchors and an independent quadrature."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, special
from tolerances import EXACT, REFERENCE

from eestim.asymptotics import (
    existence_frontier,
    frontier_aspect,
    logistic_residuals,
    proportional_logistic,
    proportional_logistic_from_eta,
)
from eestim.asymptotics._gaussian import logistic_prox, normal_nodes
from eestim.errors import ConvergenceError, SeparationError

TABLE = [  # kappa, gamma^2, alpha, lambda, sigma, lrt factor, eta^2
    (0.2, 5.0, 1.4994, 3.0269, 4.7436, 1.4867, 15.74051),
    (0.1, 5.0, 1.1678, 0.9605, 3.3466, 1.1660, 7.93852),
    (0.2, 5.25, 1.5126, 3.1226, 4.8382, 1.4993, 16.6939),
    (0.2, 9.0, 1.7506, 4.8296, 6.4488, 1.7222, 35.9000),
]


@pytest.mark.parametrize("row", TABLE)
def test_system_matches_the_tabulated_solution(row):
    kappa, gamma2, alpha, lambda_, sigma, factor, eta2 = row
    found = proportional_logistic(kappa, gamma2**0.5)
    assert found.alpha == pytest.approx(alpha, abs=6e-5)
    assert found.lambda_ == pytest.approx(lambda_, abs=6e-5)
    assert found.sigma == pytest.approx(sigma, abs=6e-5)
    assert found.lrt_factor == pytest.approx(factor, abs=6e-5)
    assert found.eta**2 == pytest.approx(eta2, abs=6e-5)
    assert found.residual < 1e-12


def test_published_sloe_targets_to_the_printed_precision():
    """SLOE's own test: (1.499, 3.027, 2.1214) and (1.174, 1.007, 1.086)."""
    first = proportional_logistic(0.2, 5**0.5)
    printed = (first.alpha, first.lambda_, 0.2**0.5 * first.sigma)
    assert tuple(np.round(printed[:2], 3)) == (1.499, 3.027)
    assert round(printed[2], 4) == 2.1214
    second = proportional_logistic_from_eta(0.1, 8.881028475794636**0.5)
    printed = (second.alpha, second.lambda_, 0.1**0.5 * second.sigma)
    assert tuple(np.round(printed, 3)) == (1.174, 1.007, 1.086)
    assert second.gamma == pytest.approx(2.3640, abs=6e-5)


@pytest.mark.parametrize(
    ("gamma2", "printed"), [(5.25, (1.51, 3.12, 4.84)), (9.0, (1.75, 4.83, 6.45))]
)
def test_published_table_of_zhao_sur_candes(gamma2, printed):
    found = proportional_logistic(0.2, gamma2**0.5)
    assert tuple(np.round((found.alpha, found.lambda_, found.sigma), 2)) == printed


INTERCEPTS = [  # theta, alpha, lambda, sigma, iota; Zhao et al. table 13, as brglm2
    (0.0, 1.5, 3.03, 4.75, 0.0),
    (0.5, 1.51, 3.13, 4.84, 0.76),
    (1.0, 1.56, 3.45, 5.16, 1.559),
    (2.0, 1.83, 5.47, 7.01, 3.68),
    (2.5, 2.31, 8.96, 10.00, 5.80),
]


def equations_with_intercept(unknowns, theta, kappa=0.2, gamma=5**0.5):
    """Return the four equations of Zhao et al. by Gauss-Legendre on the plane.

    Over Y and both Gaussians as printed, the proximal map by bisection: nothing is
    shared with the package.
    """
    alpha, lambda_, sigma, iota = unknowns
    x, w = np.polynomial.legendre.leggauss(200)
    z, w = 9 * x, 9 * w * np.exp(-((9 * x) ** 2) / 2) / np.sqrt(2 * np.pi)
    weight = np.outer(w, w)
    z1, z2 = np.meshgrid(z, z, indexing="ij")
    fitted = iota + alpha * gamma * z1 + kappa**0.5 * sigma * z2
    one = special.expit(theta + gamma * z1)
    total = np.zeros(4)
    for y, chance in ((1, one), (0, 1 - one)):
        low, high = fitted + lambda_ * (y - 1), fitted + lambda_ * y
        for _ in range(60):
            middle = (low + high) / 2
            above = middle + lambda_ * (special.expit(middle) - y) > fitted
            low, high = np.where(above, low, middle), np.where(above, middle, high)
        mean = special.expit(middle)
        chance = weight * chance
        total += (
            np.sum(chance * (lambda_ * (y - mean)) ** 2),
            np.sum(chance * z1 * (y - mean)),
            np.sum(chance / (1 + lambda_ * mean * (1 - mean))),
            np.sum(chance * (y - mean)),
        )
    return total - [kappa**2 * sigma**2, 0, 1 - kappa, 0]


@pytest.mark.parametrize("row", INTERCEPTS)
def test_published_intercept_table_and_which_digits_are_right(row):
    """The table is solved to about 1e-3, ours to 1e-12, by independent quadrature.

    The printed rows leave residuals up to 2e-3 in their own equations, so that their
    last digits are off by up to 0.015 (sigma 10.00 at theta = 2.5 for 9.9855).
    """
    theta, *printed = row
    found = proportional_logistic(0.2, 5**0.5, intercept=theta)
    solved = (found.alpha, found.lambda_, found.sigma, found.iota)
    np.testing.assert_allclose(solved, printed, rtol=0, atol=0.016)
    assert np.abs(equations_with_intercept(solved, theta)).max() < 1e-11
    assert np.abs(equations_with_intercept(printed, theta)).max() > 1e-4


def test_independent_solve_from_the_printed_row_lands_on_ours():
    theta, *printed = INTERCEPTS[-1]
    independent = optimize.root(
        equations_with_intercept, printed, args=(theta,), options={"xtol": 1e-9}
    )
    found = proportional_logistic(0.2, 5**0.5, intercept=theta)
    solved = (found.alpha, found.lambda_, found.sigma, found.iota)
    np.testing.assert_allclose(independent.x, solved, rtol=1e-8)


def test_near_the_frontier_the_solution_is_followed():
    """Unknowns diverge there; the direct start fails, continuation does not."""
    for share, theta in ((0.99, 0.0), (0.985, 1.0)):
        gamma = share * existence_frontier(0.2, theta)
        found = proportional_logistic(0.2, gamma, theta)
        assert found.residual < 1e-12 and found.alpha > 5


@pytest.mark.parametrize(
    ("kappa", "sigma", "factor"),
    [
        (0.05, 2.1605, 1.0529),
        (0.1, 2.3474, 1.1131),
        (0.2, 2.8454, 1.2684),
        (0.3, 3.6716, 1.5155),
        (0.4, 5.5307, 2.0455),
    ],
)
def test_no_signal_matches_the_table_of_likelihood_ratio_factors(kappa, sigma, factor):
    found = proportional_logistic(kappa, 0.0)
    assert found.sigma == pytest.approx(sigma, abs=6e-5)
    assert found.lrt_factor == pytest.approx(factor, abs=6e-5)


def original_equations(found, order=120):
    """Return the three equations as printed, by two-dimensional Gauss-Hermite."""
    x, w = np.polynomial.hermite_e.hermegauss(order)
    z1, z2 = np.meshgrid(x, x, indexing="ij")
    weight = np.outer(w, w) / w.sum() ** 2
    q1 = found.gamma * z1
    q2 = -found.alpha * found.gamma * z1 + found.kappa**0.5 * found.sigma * z2
    prox = np.array(
        [
            optimize.brentq(
                lambda t, v=v: t + found.lambda_ * special.expit(t) - v,
                v - found.lambda_ - 1,
                v + 1,
                xtol=1e-13,
            )
            for v in q2.ravel()
        ]
    ).reshape(q2.shape)
    first, g = special.expit(q1), special.expit(prox)
    curvature = g * (1 - g)

    def mean(values):
        return float(np.sum(weight * values))

    return (
        mean(2 * first * (found.lambda_ * g) ** 2) / found.kappa**2 / found.sigma**2
        - 1,
        mean(first * q1 * found.lambda_ * g),
        mean(2 * first / (1 + found.lambda_ * curvature)) - (1 - found.kappa),
    )


@pytest.mark.parametrize(("kappa", "gamma"), [(0.2, 5**0.5), (0.1, 1.0), (0.3, 0.5)])
def test_solution_satisfies_the_printed_equations_by_gauss_hermite(kappa, gamma):
    residuals = original_equations(proportional_logistic(kappa, gamma))
    assert np.abs(residuals).max() < 1e-7  # the accuracy of the Hermite rule


def test_intercept_equations_match_plain_simulation():
    """Two million draws of (Y, S): the four moment conditions, 4 standard errors."""
    found = proportional_logistic(0.2, 5**0.5, intercept=1.0)
    rng = np.random.default_rng(5)
    z1, z2, u = (
        rng.standard_normal(10**6),
        rng.standard_normal(10**6),
        rng.random(10**6),
    )
    y = (u < special.expit(1.0 + found.gamma * z1)).astype(float)
    s = (
        found.iota
        + found.alpha * found.gamma * z1
        + found.kappa**0.5 * found.sigma * z2
    )
    fit = logistic_prox(s + found.lambda_ * y, found.lambda_)
    mu = special.expit(fit)
    draws = [
        (found.lambda_ * (y - mu)) ** 2 / (found.kappa * found.sigma) ** 2 - 1,
        z1 * (y - mu),
        1 / (1 + found.lambda_ * mu * (1 - mu)) - (1 - found.kappa),
        y - mu,
    ]
    for values in draws:
        assert abs(values.mean()) <= 4 * values.std() / 1e3


@pytest.mark.parametrize(
    ("kappa", "sigma", "alpha"),
    [(0.01, 2.7143, 1.0133), (0.003, 2.6766, 1.0039), (0.001, 2.6661, 1.0013)],
)
def test_property_44_classical_limit(kappa, sigma, alpha):
    """As kappa -> 0: alpha -> 1, sigma^2 -> 1 / E rho''(gamma Z), 2.66082^2 here."""
    found = proportional_logistic(kappa, 5**0.5)
    assert found.sigma == pytest.approx(sigma, abs=6e-5)
    assert found.alpha == pytest.approx(alpha, abs=6e-5)
    nodes, weights = normal_nodes(5**0.5)
    mean = special.expit(5**0.5 * nodes)
    limit = (weights @ (mean * (1 - mean))) ** -0.5
    assert limit == pytest.approx(2.66082, abs=6e-6)
    assert abs(found.sigma - limit) < 6 * kappa


@settings(max_examples=20, deadline=None)
@given(gamma=st.floats(0.0, 3.0), intercept=st.floats(-1.5, 1.5))
def test_property_44_small_kappa_tends_to_the_information(gamma, intercept):
    nodes, weights = normal_nodes(max(gamma, 0.1))
    mean = special.expit(intercept + gamma * nodes)
    limit = (weights @ (mean * (1 - mean))) ** -0.5
    found = proportional_logistic(1e-4, gamma, intercept)
    assert found.sigma == pytest.approx(limit, rel=2e-3)
    assert found.alpha == pytest.approx(1.0, abs=2e-3)
    assert found.iota == pytest.approx(intercept, abs=4e-3)
    assert found.lrt_factor == pytest.approx(1.0, abs=2e-3)


def test_property_44_null_sigma_tends_to_two():
    errors = [abs(proportional_logistic(k, 0.0).sigma - 2) / k for k in (1e-2, 1e-3)]
    np.testing.assert_allclose(errors, errors[0], rtol=0.05)  # linear in kappa


@settings(max_examples=15, deadline=None)
@given(gamma=st.floats(0.0, 3.0), share=st.floats(0.05, 0.9))
def test_solution_exists_up_to_the_frontier_and_exaggerates(gamma, share):
    kappa = share * frontier_aspect(gamma)
    found = proportional_logistic(kappa, gamma)
    assert found.residual < 1e-12
    assert found.alpha > 1
    assert found.lrt_factor > 1
    check = logistic_residuals(
        found.alpha, found.lambda_, found.sigma, 0.0, kappa=kappa, gamma=gamma
    )
    assert np.abs(check).max() < 1e-12


@settings(max_examples=8, deadline=None)
@given(theta=st.floats(0.1, 2.0), gamma=st.floats(0.5, 2.2))
def test_intercept_sign_is_a_symmetry(theta, gamma):
    plus = proportional_logistic(0.15, gamma, theta)
    minus = proportional_logistic(0.15, gamma, -theta)
    assert minus.iota == pytest.approx(-plus.iota, rel=REFERENCE)
    assert minus.sigma == pytest.approx(plus.sigma, rel=REFERENCE)


def test_small_intercept_joins_the_equations_without_one():
    with_one = proportional_logistic(0.2, 2.0, 1e-9)
    without = proportional_logistic(0.2, 2.0)
    assert with_one.sigma == pytest.approx(without.sigma, rel=REFERENCE)
    assert with_one.alpha == pytest.approx(without.alpha, rel=REFERENCE)


@settings(max_examples=6, deadline=None)
@given(gamma=st.floats(0.3, 2.5), theta=st.sampled_from([0.0, 0.7, -1.5]))
def test_eta_parametrisation_inverts_the_system(gamma, theta):
    found = proportional_logistic(0.15, gamma, theta)
    back = proportional_logistic_from_eta(0.15, found.eta, found.iota)
    assert back.gamma == pytest.approx(gamma, rel=1e-7)
    assert back.intercept == pytest.approx(theta, abs=1e-7)
    assert back.sigma == pytest.approx(found.sigma, rel=REFERENCE)


def test_eta_below_the_noise_is_refused():
    least = proportional_logistic(0.2, 0.0).eta
    with pytest.raises(ValueError, match="no sign of signal"):
        proportional_logistic_from_eta(0.2, 0.99 * least)
    assert proportional_logistic_from_eta(0.2, least * (1 + 1e-9)).gamma < 1e-3


def test_near_the_frontier_and_beyond_it():
    edge = existence_frontier(0.2)
    close = proportional_logistic(0.2, edge * 0.98)
    assert close.residual < 1e-12
    assert close.alpha > 5
    with pytest.raises(SeparationError, match="ceases to exist"):
        proportional_logistic(0.2, edge * 1.001)
    with pytest.raises(SeparationError, match=r"0\.5000"):
        proportional_logistic(0.5, 0.0)


@pytest.mark.parametrize("kappa", [0.0, 1.0, -0.1, 2.0, float("nan")])
def test_aspect_outside_its_domain_is_refused(kappa):
    with pytest.raises(ValueError, match="`kappa`"):
        proportional_logistic(kappa, 1.0)


@pytest.mark.parametrize("gamma", [-1.0, float("nan"), float("inf")])
def test_signal_outside_its_domain_is_refused(gamma):
    with pytest.raises(ValueError, match="`gamma`"):
        proportional_logistic(0.1, gamma)


def test_eta_outside_its_domain_is_refused():
    with pytest.raises(ValueError, match="`eta`"):
        proportional_logistic_from_eta(0.1, -1.0)
    with pytest.raises(ConvergenceError, match="`iota`"):
        proportional_logistic_from_eta(0.1, 0.9, 6.0)


@settings(max_examples=40, deadline=None)
@given(lambda_=st.floats(1e-4, 1e4), targets=st.lists(st.floats(-1e3, 1e3), min_size=1))
def test_prox_solves_its_equation(lambda_, targets):
    t = np.array(targets)
    x = logistic_prox(t, lambda_)
    residual = x + lambda_ * special.expit(x) - t
    assert np.abs(residual).max() <= 1e-14 * (lambda_ + np.abs(t).max() + 1)


def test_quadrature_is_exact_for_logistic_functions_by_richardson():
    for scale in (0.5, 4.0, 30.0):
        nodes, weights = normal_nodes(scale)
        fine = np.linspace(-12, 12, 400_001)
        density = np.exp(-0.5 * fine**2)
        reference = density @ special.expit(1 + scale * fine) / density.sum()
        value = weights @ special.expit(1 + scale * nodes)
        assert value == pytest.approx(reference, rel=EXACT)


def test_a_solution_takes_milliseconds():
    proportional_logistic(0.2, 2.0)
    start = time.perf_counter()
    for _ in range(5):
        proportional_logistic(0.2, 5**0.5)
    assert (time.perf_counter() - start) / 5 < 0.5
