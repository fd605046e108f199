from itertools import product

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import EXACT

import eestim as ee
from eestim.covariance import _many
from eestim.covariance._many import (
    hck_variances,
    leave_out_variances,
    orthonormal_basis,
)
from eestim.covariance.many_covariates import HCK, LeaveOut
from eestim.errors import (
    CapabilityError,
    DataError,
    IdentificationError,
    InferenceError,
)

RULES = (HCK, LeaveOut)


def design(n, k, seed=0):
    rng = np.random.default_rng(seed)
    return np.column_stack([np.ones(n), rng.normal(size=(n, k - 1))])


def annihilator(X):
    return np.eye(len(X)) - X @ np.linalg.solve(X.T @ X, X.T)


def regression(n=120, k=30, seed=1):
    X = design(n, k, seed)
    rng = np.random.default_rng(seed + 1)
    y = X[:, 1] + rng.normal(size=n) * np.sqrt(0.2 + X[:, 1] ** 2)
    return y, X


# ----------------------------------------------------------------------- unbiasedness


@given(st.integers(0, 10_000), st.integers(8, 40), st.floats(0.05, 0.45))
@settings(deadline=None, max_examples=60)
def test_hck_is_exactly_unbiased_for_any_variances(seed, n, share):
    X = design(n, max(1, int(share * n)), seed)
    M = annihilator(X)
    if np.diag(M).min() <= 0.5:
        return
    variances = np.random.default_rng(seed).uniform(0.01, 10, n)
    expected_squares = M**2 @ variances  # of residuals, for independent errors
    got, null = hck_variances(orthonormal_basis(X), np.sqrt(expected_squares))
    assert null.shape == (n, 0)
    np.testing.assert_allclose(got, variances, rtol=1e-9)


@given(st.integers(0, 10_000), st.integers(1, 3))
@settings(deadline=None, max_examples=15)
def test_both_are_unbiased_over_all_signs_of_the_errors_and_hc0_is_not(seed, k):
    # errors +-s_i with independent signs: the mean over 2^9 outcomes is exact
    n = 9
    X = design(n, k, seed)
    rng = np.random.default_rng(seed)
    s, beta = rng.uniform(0.2, 3, n), rng.normal(size=k)
    M, basis = annihilator(X), orthonormal_basis(X)
    if np.diag(M).min() < 0.05 or np.linalg.cond(M**2) > 1e6:
        return
    kss, hck, plain = np.zeros(n), np.zeros(n), np.zeros(n)
    for signs in product([-1.0, 1.0], repeat=n):
        y = X @ beta + s * signs
        e = M @ y
        kss += leave_out_variances(basis, y, e)
        hck += hck_variances(basis, e)[0]
        plain += e**2
    np.testing.assert_allclose(kss / 2**n, s**2, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(hck / 2**n, s**2, rtol=1e-7, atol=1e-7)
    assert (plain / 2**n < 0.999 * s**2).any()  # negative control


def test_leave_out_equals_refitting_without_each_row():
    y, X = regression(40, 8)
    basis = orthonormal_basis(X)
    got = leave_out_variances(basis, y, annihilator(X) @ y)
    expected = []
    for i in range(40):
        rest = np.arange(40) != i
        beta = np.linalg.lstsq(X[rest], y[rest], rcond=None)[0]
        expected.append(y[i] * (y[i] - X[i] @ beta))
    np.testing.assert_allclose(got, expected, rtol=1e-9)


# -------------------------------------------------------------------------- the rules


def test_hck_of_a_mean_is_the_textbook_variance(rng):
    y = rng.normal(size=25)
    fit = ee.estimate(ee.mean(y), HCK())
    np.testing.assert_allclose(fit.se**2, y.var(ddof=1) / 25, rtol=1e-11)


@pytest.mark.parametrize("rule", RULES)
def test_rules_equal_their_formula_written_out(rule):
    y, X = regression()
    fit = ee.estimate(ee.ols(y, X), rule())
    B, M = np.linalg.inv(X.T @ X), annihilator(X)
    e = M @ y
    variances = np.linalg.solve(M**2, e**2) if rule is HCK else y * e / np.diag(M)
    expected = B @ (X.T * variances) @ X @ B
    size = np.sqrt(np.diag(expected))
    gap = fit.covariance.to_numpy() - expected
    assert np.abs(gap / np.outer(size, size)).max() < 1e-9


@pytest.mark.parametrize("rule", RULES)
def test_partialling_out_leaves_the_variance_of_the_rest(rule):
    # Frisch, Waugh and Lovell: v = M_W x, V = sum v_i^2 s_i^2 / (v'v)^2
    y, X = regression()
    W = np.delete(X, 1, axis=1)
    v = annihilator(W) @ X[:, 1]
    M = annihilator(X)
    e = M @ y
    variances = np.linalg.solve(M**2, e**2) if rule is HCK else y * e / np.diag(M)
    expected = (v**2 * variances).sum() / (v @ v) ** 2
    fit = ee.estimate(ee.ols(y, X), rule(of="x1"))
    np.testing.assert_allclose(fit.se.iloc[1] ** 2, expected, rtol=1e-9)


@pytest.mark.parametrize("rule", RULES)
def test_weighted_least_squares_is_least_squares_of_scaled_rows(rule):
    y, X = regression(60, 6)
    w = np.random.default_rng(3).uniform(0.5, 2, 60)
    names = [f"x{j}" for j in range(6)]
    weighted = ee.ols(y, X, names=names, weights=ee.Sampling(w))
    scaled = ee.ols(y * np.sqrt(w), X * np.sqrt(w)[:, None], names=names)
    np.testing.assert_allclose(
        ee.estimate(weighted, rule()).covariance,
        ee.estimate(scaled, rule()).covariance,
        rtol=1e-8,
        atol=1e-12,
    )


@pytest.mark.parametrize("rule", RULES)
def test_rows_of_weight_zero_do_not_count(rule):
    y, X = regression(60, 6)
    w = np.ones(60)
    w[:10] = 0.0
    names = [f"x{j}" for j in range(6)]
    with_zeros = ee.estimate(ee.ols(y, X, names=names, weights=ee.Sampling(w)), rule())
    dropped = ee.estimate(ee.ols(y[10:], X[10:], names=names), rule())
    np.testing.assert_allclose(
        with_zeros.covariance, dropped.covariance, rtol=1e-8, atol=1e-12
    )


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_units_of_measure_do_not_matter(rule, scale):
    y, X = regression(60, 6)
    factors = np.array([1.0, scale, 1.0, 1 / scale, 1.0, 1.0])
    plain = ee.estimate(ee.ols(y, X), rule()).se.to_numpy()
    scaled = ee.estimate(ee.ols(y, X * factors), rule()).se.to_numpy()
    np.testing.assert_allclose(scaled * factors, plain, rtol=1e-8)


def test_iterative_and_direct_solutions_agree(monkeypatch, rng):
    X = design(400, 40)
    basis, e = orthonormal_basis(X), annihilator(X) @ rng.normal(size=400)
    direct, _ = hck_variances(basis, e)
    monkeypatch.setattr(_many, "_DIRECT", 10)
    np.testing.assert_allclose(hck_variances(basis, e)[0], direct, atol=1e-10)
    X = design(40, 30)
    with pytest.raises(InferenceError, match=r"every leverage below 1/2.*LeaveOut"):
        hck_variances(orthonormal_basis(X), annihilator(X) @ rng.normal(size=40))


# ----------------------------------------------------------------- negative variances


def negative_case():
    for seed in range(60):
        y, X = regression(40, 18, seed)
        equation = ee.ols(y + 20, X)
        fit = ee.estimate(equation)
        try:
            fit.with_covariance(LeaveOut())
        except InferenceError:
            return fit
    raise AssertionError("no negative variance in 60 draws")


def test_negative_variances_are_refused_truncated_or_left_to_nuisances():
    fit = negative_case()
    with pytest.raises(InferenceError, match=r"leave-out gives a negative.*`of=`"):
        fit.with_covariance(LeaveOut())
    truncated = fit.with_covariance(LeaveOut(negative="truncate"))
    assert np.linalg.eigvalsh(truncated.covariance)[0] > 0
    finding = next(f for f in truncated.findings if f.name.startswith("negative"))
    assert finding.status == "warn"
    assert 0 < finding.value < 1
    working = fit.equation.working(fit.theta)
    variances = leave_out_variances(
        orthonormal_basis(working.design),
        working.design @ fit.theta + working.residual,
        working.residual,
    )
    B = np.linalg.inv(working.design.T @ working.design)
    kept = np.diag(B @ (working.design.T * variances) @ working.design @ B)
    good = [fit.names[j] for j in np.flatnonzero(kept > 0)]
    shielded = fit.with_covariance(LeaveOut(of=good))
    np.testing.assert_allclose(shielded.se[good] ** 2, kept[kept > 0], rtol=1e-8)
    bad = [name for name in fit.names if name not in good]
    pd.testing.assert_series_equal(shielded.se[bad], truncated.se[bad])
    assert "truncated leave-out for the others" in shielded.rule


@given(st.integers(0, 10_000))
@settings(deadline=None, max_examples=20)
def test_truncation_never_lowers_a_variance(seed):
    y, X = regression(50, 15, seed)
    fit = ee.estimate(ee.ols(y, X))
    for rule in RULES:
        try:
            kept = fit.with_covariance(rule()).se
        except InferenceError:
            continue
        truncated = fit.with_covariance(rule(negative="truncate")).se
        assert (truncated >= kept * (1 - EXACT)).all()


# --------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("rule", RULES)
def test_models_that_are_not_linear_are_refused(rule):
    y, X = regression(80, 4)
    binary = ee.glm((y > 0).astype(float), X, family="binomial")
    with pytest.raises(CapabilityError, match="exact for linear models only"):
        ee.estimate(binary, rule())
    counts = ee.glm(np.round(np.exp(0.3 * X[:, 1])), X, family="poisson")
    with pytest.raises(CapabilityError, match="exact for linear models only"):
        ee.estimate(counts, rule())
    equation = ee.equation(lambda t, d: (d["y"] - t[0])[:, None], {"y": y}, [0.0])
    with pytest.raises(CapabilityError, match="needs `working`"):
        ee.estimate(equation, rule())


@pytest.mark.parametrize("rule", RULES)
def test_rows_with_a_parameter_of_their_own_are_refused(rule):
    y, X = regression(30, 3)
    X = np.column_stack([X, np.arange(30) == 7])
    with pytest.raises(InferenceError, match="row 7 have leverage 1"):
        ee.estimate(ee.ols(y, X), rule())


def with_a_pair(n=30):
    """Two rows share a dummy: their residuals are e and -e."""
    y, X = regression(n, 3)
    return y, np.column_stack([X, np.arange(n) < 2])


def test_hck_refuses_confounded_variances_that_leave_out_takes():
    fit = ee.estimate(ee.ols(*with_a_pair()))
    with pytest.raises(InferenceError, match=r"M∘M.*'x3'.*confounded.*LeaveOut"):
        fit.with_covariance(HCK())
    with pytest.raises(InferenceError, match=r"'x3'"):
        fit.with_covariance(HCK(of=["x1", "x3"]))
    assert (fit.with_covariance(LeaveOut(negative="truncate")).se > 0).all()


def test_hck_of_what_is_not_confounded_is_exactly_unbiased():
    y, X = with_a_pair()
    M, B = annihilator(X), np.linalg.inv(X.T @ X)
    assert np.linalg.matrix_rank(M**2, tol=1e-10) == 29
    variances = np.random.default_rng(0).uniform(0.1, 5, 30)
    got, null = hck_variances(orthonormal_basis(X), np.sqrt(M**2 @ variances))
    assert null.shape == (30, 1)
    assert np.abs(got - variances).max() > 0.1  # the pair is not told apart,
    truth = B @ (X.T * variances) @ X @ B
    mean = B @ (X.T * got) @ X @ B
    np.testing.assert_allclose(mean[:3, :3], truth[:3, :3], rtol=1e-9)  # slopes are
    assert abs(mean[3, 3] / truth[3, 3] - 1) > 1e-3  # negative control
    expected = B @ (X.T * hck_variances(orthonormal_basis(X), M @ y)[0]) @ X @ B
    fit = ee.estimate(ee.ols(y, X), HCK(of=["x0", "x1", "x2"]))
    np.testing.assert_allclose(fit.covariance.iloc[:3, :3], expected[:3, :3], rtol=1e-9)


@pytest.mark.parametrize("rule", RULES)
def test_unknown_options_are_refused(rule):
    with pytest.raises(ValueError, match="`negative` is 'clip'"):
        rule(negative="clip")
    with pytest.raises(ValueError, match="choose one"):
        rule(of="x", negative="truncate")
    y, X = regression(30, 3)
    with pytest.raises(DataError, match=r"`of` is 'z'.*x0, x1, x2"):
        ee.estimate(ee.ols(y, X), rule(of="z"))
    assert rule().is_equivariant
    assert not rule(of="x").is_equivariant


def test_collinear_columns_are_refused():
    X = design(20, 3)
    with pytest.raises(IdentificationError, match="rank 3"):
        orthonormal_basis(np.column_stack([X, X[:, 1] + X[:, 2]]))
