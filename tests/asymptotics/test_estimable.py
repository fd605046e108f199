"""Functionals at a root that is not unique: properties 28, 36-38 and section 1.1."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats
from tolerances import EXACT, REFERENCE

from eestim.asymptotics import (
    estimability,
    estimable_wald,
    functional_covariance,
    point_wald,
    rank_report,
    root_invariance,
)
from eestim.errors import IdentificationError, InterpolationError

seeds = st.integers(0, 10**6)


def singular_problem(seed: int, p: int = 5, rank: int = 3):
    """Return A and M of a symmetric problem, range(M) inside range(A), and g."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((p, p)))[0][:, :rank]
    root = rng.standard_normal((rank, rank))
    A = basis @ (root @ root.T + np.eye(rank)) @ basis.T
    half = rng.standard_normal((rank, rank))
    M = basis @ (half @ half.T + 0.1 * np.eye(rank)) @ basis.T
    return A, M, basis @ rng.standard_normal(rank), rng


def random_generalised_inverse(A, rng):
    """Return A^+ + (I - A^+A) U + W (I - AA^+): every {1}-inverse has this form."""
    pseudo, identity = np.linalg.pinv(A, rcond=1e-10), np.eye(len(A))
    U, W = rng.standard_normal(A.shape), rng.standard_normal(A.shape)
    return pseudo + (identity - pseudo @ A) @ U + W @ (identity - A @ pseudo)


@settings(max_examples=40, deadline=None)
@given(seed=seeds)
def test_property_36_any_generalised_inverse_gives_the_variance(seed):
    A, M, g, rng = singular_problem(seed)
    found = functional_covariance(A, M, g, n_units=1)
    for _ in range(3):
        G = random_generalised_inverse(A, rng)
        np.testing.assert_allclose(A @ G @ A, A, rtol=0, atol=1e-8)
        np.testing.assert_allclose(
            found.covariance[0, 0], g @ G @ M @ G.T @ g, rtol=REFERENCE
        )


def test_both_conditions_are_needed_negative_control():
    A, M, g, rng = singular_problem(4)
    inverses = [random_generalised_inverse(A, rng) for _ in range(2)]
    outside = np.eye(5)[0]  # not estimable
    not_estimable = [outside @ G @ M @ G.T @ outside for G in inverses]
    wide = M + np.eye(5)  # leaves the range of A
    leaving = [g @ G @ wide @ G.T @ g for G in inverses]
    assert abs(not_estimable[0] / not_estimable[1] - 1) > 0.01
    assert abs(leaving[0] / leaving[1] - 1) > 0.01
    with pytest.raises(IdentificationError, match="not estimable"):
        functional_covariance(A, M, outside, 1)
    with pytest.raises(IdentificationError, match="no regular root"):
        functional_covariance(A, wide, g, 1)


@settings(max_examples=30, deadline=None)
@given(seed=seeds)
def test_property_28_a_redundant_parameter_changes_nothing(seed):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((60, 3))
    e = rng.standard_normal(60) * (1 + X[:, 0] ** 2)
    A, psi = X.T @ X / 60, X * e[:, None]
    C = np.column_stack([np.eye(3), rng.standard_normal(3)])  # theta = C (theta, extra)
    plain = functional_covariance(A, psi.T @ psi / 60, np.eye(3), 60)
    wide = functional_covariance(C.T @ A @ C, C.T @ (psi.T @ psi / 60) @ C, C, 60)
    np.testing.assert_allclose(
        wide.covariance, plain.covariance, rtol=REFERENCE, atol=EXACT
    )
    with pytest.raises(IdentificationError, match="not estimable"):
        functional_covariance(C.T @ A @ C, C.T @ psi.T @ psi @ C / 60, np.eye(4)[3], 60)


def test_full_rank_agrees_with_the_sandwich_formula(rng):
    A, half = rng.standard_normal((4, 4)), rng.standard_normal((4, 4))
    M, inverse = half @ half.T, np.linalg.inv(A)
    found = functional_covariance(A, M, np.eye(4), 50)
    expected = inverse @ M @ inverse.T / 50
    np.testing.assert_allclose(found.covariance, expected, rtol=REFERENCE)
    np.testing.assert_allclose(found.se, np.sqrt(np.diag(expected)), rtol=REFERENCE)


@settings(max_examples=30, deadline=None)
@given(seed=seeds)
def test_coefficients_match_numpy_least_squares(seed):
    A, M, g, _ = singular_problem(seed)
    expected = np.linalg.lstsq(A.T, g, rcond=1e-10)[0]
    found = functional_covariance(A, M, g, 7).coefficients[0]
    np.testing.assert_allclose(
        found, expected, rtol=0, atol=1e-9 * np.abs(expected).max()
    )


def redundant_softmax(seed: int = 0):
    """Return psi, A and a contrast of softmax regression with every class coded."""
    rng = np.random.default_rng(seed)
    n, k, d = 400, 4, 3
    X = np.column_stack([np.ones(n), rng.standard_normal((n, d - 1))])
    logits = X @ rng.standard_normal((d, k))
    P = np.exp(logits - logits.max(1, keepdims=True))
    P /= P.sum(1, keepdims=True)
    y = np.array([rng.choice(k, p=row) for row in P])
    W = np.zeros((d, k))
    for _ in range(50):  # Newton by pseudo-inverse
        P = np.exp(X @ W)
        P /= P.sum(1, keepdims=True)
        residual = np.eye(k)[y] - P
        A = np.zeros((d * k, d * k))
        for i in range(n):
            V = np.diag(P[i]) - np.outer(P[i], P[i])
            A += np.kron(np.outer(X[i], X[i]), V) / n
        W = (
            W
            + (
                np.linalg.pinv(A, rcond=1e-9)
                @ np.einsum("id,ik->dk", X, residual).ravel()
            ).reshape(d, k)
            / n
        )
    psi = np.einsum("id,ik->idk", X, residual).reshape(n, d * k)
    return psi, A, W


def test_redundant_softmax_agrees_with_the_reference_category_coding():
    psi, A, _ = redundant_softmax()
    n, M = len(psi), psi.T @ psi / len(psi)
    report = rank_report(A, M)
    assert (report.rank, report.status) == (9, "rank_deficient")
    assert report.range_violation < 1e-12
    contrast = np.zeros(12)
    contrast[5], contrast[4] = 1.0, -1.0  # covariate 1: class 1 against class 0
    found = functional_covariance(A, M, contrast, n)
    keep = [j for j in range(12) if j % 4 != 0]  # class 0 as the reference
    inverse = np.linalg.inv(A[np.ix_(keep, keep)])
    V = inverse @ M[np.ix_(keep, keep)] @ inverse.T / n
    np.testing.assert_allclose(
        found.covariance[0, 0], V[keep.index(5), keep.index(5)], rtol=REFERENCE
    )
    with pytest.raises(IdentificationError, match="not estimable"):
        functional_covariance(A, M, np.eye(12)[5], n)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_property_38_contributions_vanish_along_orbit_tangents(seed):
    """At any point of a symmetric M-estimation, not only at the root."""
    psi, A, _ = redundant_softmax()
    null = rank_report(A).null_space
    assert null.shape == (12, 3)
    assert np.abs(psi @ null).max() < 1e-12
    product, sensitivity, slopes = product_problem(seed)
    a = np.random.default_rng(seed).uniform(0.3, 3.0)
    theta = np.array([a, slopes[0] / a, slopes[1]])
    tangent = np.array([theta[0], -theta[1], 0.0])  # of (ta, b / t, c)
    rows = product(theta)
    assert np.abs(rows @ tangent).max() < 1e-11 * np.abs(rows).max()
    assert np.abs(sensitivity(theta) @ tangent).max() < 1e-9
    wrong = rows @ np.array([theta[0], theta[1], 0.0])  # negative control
    assert np.abs(wrong).max() > 1e-3


def product_problem(seed: int):
    """Return data, psi and A of y = a b x + c x^2: a and b are not identified."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(300)
    y = 1.5 * x + 0.5 * x**2 + rng.standard_normal(300) * (0.5 + x**2)

    def psi(theta):
        a, b, c = theta
        e = y - a * b * x - c * x**2
        return e[:, None] * np.column_stack([b * x, a * x, x**2])

    def sensitivity(theta):
        a, b, c = theta
        e = y - a * b * x - c * x**2
        J = np.column_stack([b * x, a * x, x**2])
        A = J.T @ J / len(x)
        A[0, 1] -= np.mean(e * x)
        A[1, 0] -= np.mean(e * x)
        return A

    slopes = np.linalg.lstsq(np.column_stack([x, x**2]), y, rcond=None)[0]
    return psi, sensitivity, slopes


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(0.2, 5.0))
def test_property_37_product_has_one_error_at_every_root(seed, scale):
    psi, sensitivity, slopes = product_problem(seed)
    h, c = slopes
    results = []
    for a in (1.0, scale, -3.0):
        theta = np.array([a, h / a, c])
        rows, A = psi(theta), sensitivity(theta)
        report = rank_report(A, rows.T @ rows / 300)
        assert report.rank == 2
        assert report.range_violation < 1e-10
        g = np.array([theta[1], theta[0], 0.0])
        results.append(functional_covariance(A, rows.T @ rows / 300, g, 300).se[0])
    np.testing.assert_allclose(results, results[0], rtol=1e-10)
    assert root_invariance([h] * 3, results).status == "invariant"


def test_product_error_matches_ordinary_regression_sandwich():
    psi, sensitivity, slopes = product_problem(11)
    theta = np.array([2.0, slopes[0] / 2.0, slopes[1]])
    rows, A = psi(theta), sensitivity(theta)
    found = functional_covariance(A, rows.T @ rows / 300, [theta[1], theta[0], 0], 300)
    x_rows = rows[:, [1, 2]] / np.array([theta[0], 1.0])  # e x, e x^2
    X = np.array(
        [[A[1, 1] / theta[0] ** 2, A[1, 2] / theta[0]], [A[1, 2] / theta[0], A[2, 2]]]
    )
    inverse = np.linalg.inv(X)
    V = inverse @ (x_rows.T @ x_rows / 300) @ inverse / 300
    np.testing.assert_allclose(found.se[0], np.sqrt(V[0, 0]), rtol=REFERENCE)


@pytest.mark.parametrize(
    ("kappa", "expected"), [(0.0, 1.0), (0.5, 1.1180), (2.0, 2.2361)]
)
def test_estimable_but_root_dependent_error_matches_closed_form(kappa, expected):
    """psi = (y - mu)(1 + kappa x): sd of mu is sigma sqrt(1 + kappa^2)."""
    A = np.array([[1.0, 0.0]])  # one equation, kappa free
    M = np.array([[1.0 + kappa**2]])
    found = functional_covariance(A, M, [1.0, 0.0], 1)
    assert found.se[0] == pytest.approx(expected, abs=5e-5)


def test_root_invariance_has_the_three_verdicts():
    assert root_invariance([1, 1, 1], [2, 2, 2]).status == "invariant"
    assert root_invariance([1, 1.1, 1], [2, 2, 2]).status == "h varies (not estimable)"
    varying = [np.sqrt(1 + k**2) for k in (0, 0.5, 2)]
    assert root_invariance([1, 1, 1], varying).status == "se varies (root-dependent)"
    with pytest.raises(ValueError, match="three roots"):
        root_invariance([1, 1], [1, 1])


def test_quadratic_example_without_regular_root_is_refused():
    """psi = (y1 - t1, y2 - t2^2) at t2 = 0: section 1.1, last item."""
    A, M = np.diag([1.0, 0.0]), np.eye(2)
    with pytest.raises(IdentificationError, match="no regular root"):
        functional_covariance(A, M, [1.0, 0.0], 10)
    accepted = functional_covariance(A, M, [1.0, 0.0], 10, minimum_norm=True)
    assert accepted.covariance[0, 0] == pytest.approx(0.1, rel=EXACT)


def test_rotation_orbit_flags_a_coordinate_as_theory_states():
    """C and CO are one model: C_11 is not estimable, tr CC' is."""
    c = np.array([0.8, -0.3])
    tangent = np.array([-c[1], c[0]])
    A = np.eye(2) - np.outer(tangent, tangent) / (tangent @ tangent)
    result = estimability(A, [[1.0, 0.0], 2 * c])
    expected = abs(tangent[0]) / np.linalg.norm(tangent)
    assert result.raw_residual[0] == pytest.approx(expected, rel=REFERENCE)
    np.testing.assert_array_equal(result.is_estimable, [False, True])


def test_estimability_decision_does_not_depend_on_units():
    """The raw residual of a parameter in tiny units is tiny; the decision is not."""
    D = np.diag([1.0, 1e9])
    A = D @ np.ones((2, 2)) @ D
    result = estimability(A, [0.0, 1.0])
    assert result.raw_residual[0] < 1e-6
    assert not result.is_estimable[0]
    with pytest.raises(IdentificationError, match=r"dose.*age|age.*dose"):
        functional_covariance(A, A, [0.0, 1.0], 5, names=["dose", "age"])


def test_ambiguous_rank_is_refused_where_it_matters_and_only_there():
    rotation = np.linalg.qr(np.random.default_rng(3).standard_normal((3, 3)))[0]
    A = rotation @ np.diag([1.0, 0.5, 1e-14]) @ rotation.T
    with pytest.raises(IdentificationError, match="ambiguous rank"):
        functional_covariance(A, A, rotation[:, 2] + rotation[:, 0], 10)
    inside = functional_covariance(A, A, rotation[:, 0], 10)
    assert inside.covariance[0, 0] == pytest.approx(0.1, rel=1e-5)
    chosen = functional_covariance(A, A, rotation[:, 0], 10, rank=2)
    assert chosen.covariance[0, 0] == pytest.approx(0.1, rel=1e-5)


@settings(max_examples=30, deadline=None)
@given(seed=seeds)
def test_wald_counts_the_rank_not_the_rows(seed):
    A, M, _, rng = singular_problem(seed, p=5, rank=3)
    basis = np.linalg.svd(A)[0][:, :3]
    R = rng.standard_normal((2, 3)) @ basis.T
    R = np.vstack([R, R[0] + 2 * R[1]])  # a dependent row
    theta = rng.standard_normal(5)
    test = estimable_wald(A, M, R, R @ theta, 20)
    assert test.df == 2
    pseudo = np.linalg.pinv(A, rcond=1e-10)
    V = R[:2] @ pseudo @ M @ pseudo.T @ R[:2].T / 20
    expected = (R[:2] @ theta) @ np.linalg.solve(V, R[:2] @ theta)
    np.testing.assert_allclose(test.statistic, expected, rtol=1e-6)
    assert test.p_value == pytest.approx(stats.chi2.sf(test.statistic, 2), rel=1e-6)
    with pytest.raises(ValueError, match="contradict"):
        estimable_wald(A, M, R, R @ theta + np.array([0, 0, 1.0]), 20)


def test_point_wald_ignores_the_orbit():
    V = np.diag([0.04, 0.01, 0.0])
    test = point_wald([0.2, 0.1, 5.0], [0.0, 0.0, 0.0], V, flat=True)
    assert (test.df, test.statistic) == (2, pytest.approx(2.0, rel=EXACT))


def test_nearest_root_wald_has_rank_size_and_wrong_df_does_not():
    """theta = (a, b) with y = ab x: chi-square 1, not 2; 4 Monte Carlo errors."""
    rng = np.random.default_rng(8)
    n, reps, theta0 = 200, 600, np.array([1.0, 1.0])
    statistics = []
    for _ in range(reps):
        x, e = rng.standard_normal((2, n))
        h = x @ (x + e) / (x @ x)
        # the root (a, h/a) nearest to theta0
        a = optimize.minimize_scalar(
            lambda a, h=h: (a - 1) ** 2 + (h / a - 1) ** 2,
            bounds=(0.3, 3),
            method="bounded",
        ).x
        g = np.array([h / a, a])
        sigma2 = np.mean((x + e - h * x) ** 2)
        A = np.outer(g, g) * np.mean(x**2)
        pseudo = np.linalg.pinv(A, rcond=1e-9)
        statistics.append(point_wald([a, h / a], theta0, pseudo * sigma2 / n))
    assert {test.df for test in statistics} == {1}
    values = np.array([test.statistic for test in statistics])
    size = np.mean(values > stats.chi2.isf(0.05, 1))
    assert abs(size - 0.05) <= 4 * np.sqrt(0.05 * 0.95 / reps)
    assert np.mean(values > stats.chi2.isf(0.05, 2)) < 0.03  # the wrong df


def test_zero_variance_is_refused():
    with pytest.raises(InterpolationError, match="zero"):
        functional_covariance(np.eye(2), np.zeros((2, 2)), [1.0, 0.0], 5)
    with pytest.raises(InterpolationError, match="constant"):
        functional_covariance(np.eye(2), np.eye(2), [0.0, 0.0], 5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: functional_covariance(np.eye(2), np.eye(2), [1.0], 5), "`gradient`"),
        (lambda: functional_covariance(np.eye(2), np.eye(2), [1.0, 0], 0), "`n_units`"),
        (
            lambda: estimable_wald(np.eye(1), np.eye(1), [[1.0]], [1.0, 2.0], 5),
            "`difference`",
        ),
        (lambda: root_invariance([1, 1, 1], [1, 1, 0]), "positive"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
