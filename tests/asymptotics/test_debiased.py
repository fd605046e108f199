"""Degrees-of-freedom adjusted inference (H5, H6): property 40."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from tolerances import EXACT, REFERENCE

from eestim.asymptotics import (
    debiased_ridge,
    df_adjusted_sandwich,
    df_debiased,
    proportional_robust,
)
from eestim.errors import IdentificationError, InterpolationError


def huber_fit(X, y, k=1.345):
    """Return coefficients, psi and psi' of Huber regression by reweighting."""
    beta = np.linalg.lstsq(X, y, rcond=None)[0]
    for _ in range(500):
        e = y - X @ beta
        w = np.minimum(1.0, k / np.maximum(np.abs(e), 1e-12))
        new = np.linalg.solve(X.T @ (w[:, None] * X), X.T @ (w * y))
        if np.abs(new - beta).max() < 1e-11:
            break
        beta = new
    e = y - X @ new
    return new, np.clip(e, -k, k), (np.abs(e) <= k).astype(float)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(8, 40), p=st.integers(1, 6))
def test_property_40_least_squares_gives_the_classical_error(seed, n, p):
    rng = np.random.default_rng(seed)
    X, y = rng.standard_normal((n, p)), rng.standard_normal(n)
    e = y - X @ np.linalg.lstsq(X, y, rcond=None)[0]
    classical = np.sqrt(np.diag(np.linalg.inv(X.T @ X)) * (e @ e) / (n - p))
    np.testing.assert_allclose(
        df_adjusted_sandwich(X, e, np.ones(n)), classical, rtol=1e-9
    )


def test_trace_matches_the_derivative_of_psi_by_refitting():
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((40, 8)), rng.standard_normal(40)
    _, psi, slope = huber_fit(X, y)
    trace = 0.0
    for i in range(40):
        shift = np.zeros(40)
        shift[i] = 1e-5
        up, down = huber_fit(X, y + shift)[1], huber_fit(X, y - shift)[1]
        trace += (up[i] - down[i]) / 2e-5
    known = df_adjusted_sandwich(X, psi, slope, precision_diagonal=np.ones(8))
    np.testing.assert_allclose(known, np.linalg.norm(psi) / trace, rtol=1e-4)


@pytest.mark.parametrize("errors", ["normal", "laplace"])
def test_huber_errors_match_the_limit_and_cover(errors):
    """kappa = .4: E ||beta - beta0||^2 = r^2 and se^2 = r^2 / p (table 2.3)."""
    rng = np.random.default_rng(1)
    n, p, reps = 300, 120, 25
    theory = proportional_robust(0.4, "huber", errors).r2
    covered, variances, losses = [], [], []
    for _ in range(reps):
        X = rng.standard_normal((n, p))
        noise = rng.laplace(size=n) if errors == "laplace" else rng.standard_normal(n)
        beta, psi, slope = huber_fit(X, noise)
        se = df_adjusted_sandwich(X, psi, slope)
        covered.append(np.mean(np.abs(beta) < 1.96 * se))
        variances.append(p * np.mean(se**2))
        losses.append(beta @ beta)
    for values in (variances, losses):
        assert (
            abs(np.mean(values) - theory)
            <= 4 * np.std(values) / reps**0.5 + 0.02 * theory
        )
    assert abs(np.mean(covered) - 0.95) <= 4 * np.std(covered) / reps**0.5 + 0.005


def test_debiased_estimate_of_least_squares_is_least_squares():
    rng = np.random.default_rng(2)
    X, y = rng.standard_normal((50, 5)), rng.standard_normal(50)
    beta = np.linalg.lstsq(X, y, rcond=None)[0]
    sigma = np.diag(np.arange(1.0, 6.0))
    found = df_debiased(X, y - X @ beta, beta, 5.0, sigma)
    np.testing.assert_allclose(found.estimate, beta, rtol=0, atol=EXACT)
    size = np.linalg.norm(y - X @ beta) / 45
    np.testing.assert_allclose(
        found.se, size / np.sqrt(np.arange(1.0, 6.0)), rtol=EXACT
    )


def test_debiased_ridge_matches_the_formula_with_an_explicit_smoother():
    rng = np.random.default_rng(3)
    n, p, penalty = 40, 60, 0.3
    X, y = rng.standard_normal((n, p)), rng.standard_normal(n)
    inner = np.linalg.inv(X.T @ X + n * penalty * np.eye(p))
    beta, df = inner @ X.T @ y, np.trace(X @ inner @ X.T)
    e = y - X @ beta
    found = debiased_ridge(X, y, penalty, np.eye(p))
    np.testing.assert_allclose(
        found.estimate, beta + X.T @ e / (n - df), rtol=0, atol=1e-10
    )
    np.testing.assert_allclose(found.se, np.linalg.norm(e) / (n - df), rtol=REFERENCE)
    assert found.df == pytest.approx(df, rel=REFERENCE)


@pytest.mark.parametrize(("aspect", "penalty"), [(0.5, 0.1), (2.0, 0.4), (2.0, 0.05)])
def test_debiased_ridge_covers_at_every_aspect_ratio(aspect, penalty):
    rng = np.random.default_rng(4)
    n, reps = 200, 20
    p = int(aspect * n)
    beta = np.zeros(p)
    beta[: p // 10] = np.sqrt(5 / (p // 10))
    covered, naive = [], []
    for _ in range(reps):
        X = rng.standard_normal((n, p))
        y = X @ beta + rng.standard_normal(n)
        lower, upper = debiased_ridge(X, y, penalty, np.eye(p)).interval().T
        covered.append(np.mean((lower < beta) & (beta < upper)))
        inner = np.linalg.inv(X.T @ X + n * penalty * np.eye(p))
        fit = inner @ X.T @ y
        rows = (X * (y - X @ fit)[:, None]) @ inner
        naive.append(np.mean(np.abs(fit - beta) < 1.96 * np.sqrt(np.sum(rows**2, 0))))
    assert abs(np.mean(covered) - 0.95) <= 4 * np.std(covered) / reps**0.5 + 0.003
    assert np.mean(naive) < 0.9  # negative control: sandwich of the penalised equation


def test_debiased_ridge_is_equivariant_under_changes_of_units():
    rng = np.random.default_rng(5)
    X, y = rng.standard_normal((60, 3)), rng.standard_normal(60)
    beta = np.linalg.lstsq(X, y, rcond=None)[0] * 0.5
    sigma, D = np.cov(X.T), np.diag([1e-3, 1.0, 1e4])
    plain = df_debiased(X, y - X @ beta, beta, 2.0, sigma)
    scaled = df_debiased(X @ D, y - X @ beta, beta / np.diag(D), 2.0, D @ sigma @ D)
    np.testing.assert_allclose(
        scaled.estimate * np.diag(D), plain.estimate, rtol=REFERENCE
    )
    np.testing.assert_allclose(scaled.se * np.diag(D), plain.se, rtol=REFERENCE)


def test_lasso_is_debiased_with_its_support_as_degrees_of_freedom():
    """Soft thresholding of an orthogonal design: the shrinkage is removed exactly."""
    n, p = 64, 4
    X = np.sign(np.linalg.qr(np.random.default_rng(0).standard_normal((n, p)))[0])
    X = np.linalg.qr(X)[0] * np.sqrt(n)
    y = X @ np.array([2.0, -1.0, 0.0, 0.0])
    ols = X.T @ y / n
    beta = np.sign(ols) * np.maximum(np.abs(ols) - 0.3, 0)
    df = float(np.sum(beta != 0))
    found = df_debiased(X, y - X @ beta, beta, df, np.eye(p))
    np.testing.assert_allclose(
        found.estimate, ols, rtol=0, atol=0.3 * df / (n - df) + EXACT
    )


def test_interpolating_and_singular_inputs_are_refused():
    X = np.random.default_rng(0).standard_normal((10, 4))
    with pytest.raises(InterpolationError, match="`df` is 9"):
        df_debiased(X, np.ones(10), np.ones(4), 9.0, np.eye(4))
    with pytest.raises(IdentificationError, match="positive definite"):
        df_debiased(X, np.ones(10), np.ones(4), 2.0, np.ones((4, 4)))
    with pytest.raises(IdentificationError, match="3 rows"):
        df_adjusted_sandwich(X, np.ones(10), np.r_[np.ones(3), np.zeros(7)])
    with pytest.raises(InterpolationError, match="degrees of freedom"):
        df_adjusted_sandwich(X, np.zeros(10), np.ones(10))
    with pytest.raises(ValueError, match="p < n"):
        df_adjusted_sandwich(X[:4], np.ones(4), np.ones(4))
    with pytest.raises(ValueError, match="do not fit"):
        df_debiased(X, np.ones(9), np.ones(4), 2.0, np.eye(4))
    with pytest.raises(ValueError, match="convex"):
        df_adjusted_sandwich(X, np.ones(10), -np.ones(10))
    with pytest.raises(ValueError, match="`level`"):
        df_debiased(X, np.ones(10), np.ones(4), 2.0, np.eye(4)).interval(0.0)


def test_huber_fit_of_this_file_solves_its_equation():
    rng = np.random.default_rng(6)
    X, y = rng.standard_normal((30, 3)), rng.standard_normal(30)
    beta, psi, _ = huber_fit(X, y)
    assert np.abs(X.T @ psi).max() < 1e-8
    root = optimize.root(lambda b: X.T @ np.clip(y - X @ b, -1.345, 1.345), beta).x
    np.testing.assert_allclose(beta, root, rtol=1e-7)


def test_df_adjusted_errors_scale_with_units():
    """Columns of 1e8 and 1e-8 were once called not identified."""
    rng = np.random.default_rng(9)
    X, psi = rng.standard_normal((40, 3)), rng.standard_normal(40)
    units, slope = np.array([1.0, 1e8, 1e-8]), rng.uniform(0.2, 1.0, 40)
    plain = df_adjusted_sandwich(X, psi, slope)
    scaled = df_adjusted_sandwich(X * units, psi, slope)
    np.testing.assert_allclose(scaled * units, plain, rtol=1e-10)
