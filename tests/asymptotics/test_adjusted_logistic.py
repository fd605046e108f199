"""SLOE, the observable scale and adjusted intervals of logistic fits."""

import numpy as np
import pytest
from scipy import optimize, special
from tolerances import EXACT, REFERENCE

from eestim.asymptotics import (
    adjusted_logistic,
    observable_scale,
    precision_multipliers,
    proportional_logistic,
    rescaled_lrt,
    sloe,
)
from eestim.asymptotics.adjusted import _fit_terms, _left_out_predictors
from eestim.errors import ConvergenceError, DataError, SeparationError


def maximise(X, y):
    beta = np.zeros(X.shape[1])
    for _ in range(60):
        mu = special.expit(X @ beta)
        H = X.T @ ((mu * (1 - mu))[:, None] * X)
        step = np.linalg.solve(H, X.T @ (y - mu))
        beta = beta + step
        if np.abs(step).max() < 1e-12:
            break
    return beta


def draw(seed, n, p, gamma2=5.0, intercept=0.0, scales=None):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, p))
    beta = np.zeros(p)
    beta[: p // 2] = np.sqrt(gamma2 / (p // 2))
    y = (rng.random(n) < special.expit(intercept + X @ beta)).astype(float)
    return X, y, beta


@pytest.fixture(scope="module")
def fitted():
    X, y, truth = draw(0, 2000, 400)
    return X, y, truth, maximise(X, y)


def test_sloe_matches_exact_leave_one_out_refits():
    X, y, _ = draw(3, 150, 15, gamma2=2.0)
    beta = maximise(X, y)
    left_out = [
        X[i] @ maximise(np.delete(X, i, 0), np.delete(y, i)) for i in range(150)
    ]
    assert sloe(X, y, beta) == pytest.approx(np.std(left_out), rel=0.01)
    approximated = _left_out_predictors(_fit_terms(X, y, beta))
    np.testing.assert_allclose(approximated, left_out, rtol=0, atol=0.1)
    assert np.abs(X @ beta - left_out).max() > 0.5  # without leaving out


def test_sloe_and_observable_scale_match_theory_on_one_large_fit(fitted):
    """kappa = .2, gamma^2 = 5: eta^2 15.74, sigma 4.7436, lambda 3.0269."""
    X, y, _, beta = fitted
    theory = proportional_logistic(0.2, 5**0.5)
    assert sloe(X, y, beta) ** 2 == pytest.approx(theory.eta**2, rel=0.12)
    scale = observable_scale(X, y, beta, intercept=False)
    # a single fit of sd .019 sqrt(160) = .24
    assert scale.sigma == pytest.approx(theory.sigma, abs=4 * 0.24)
    assert scale.lambda_ == pytest.approx(theory.lambda_, rel=0.15)
    assert scale.lrt_factor == pytest.approx(theory.lrt_factor, rel=0.15)


def test_adjusted_intervals_cover_where_classical_ones_do_not(fitted):
    X, y, truth, beta = fitted
    fit = adjusted_logistic(X, y, beta)
    assert fit.limit.alpha == pytest.approx(1.4994, rel=0.05)
    lower, upper = fit.interval().T
    coverage = np.mean((lower < truth) & (truth < upper))
    assert abs(coverage - 0.95) <= 4 * np.sqrt(0.95 * 0.05 / 400)
    mu = special.expit(X @ beta)
    se = np.sqrt(np.diag(np.linalg.inv(X.T @ ((mu * (1 - mu))[:, None] * X))))
    classical = np.mean(np.abs(beta - truth) < 1.96 * se)
    assert classical < 0.95 - 4 * np.sqrt(0.95 * 0.05 / 400)  # negative control
    null = truth == 0
    size = np.mean(fit.p_value[null] < 0.05)
    assert abs(size - 0.05) <= 4 * np.sqrt(0.05 * 0.95 / null.sum())


def test_intercept_is_handled_and_has_no_interval():
    X, y, truth = draw(5, 2000, 200, gamma2=2.0, intercept=1.0)
    design = np.column_stack([np.ones(2000), X + 3.0])  # not centred
    beta = maximise(design, y)
    fit = adjusted_logistic(design, y, beta, intercept=0)
    assert list(fit.columns[:2]) == [1, 2]
    assert len(fit.estimate) == 200
    theory = proportional_logistic(0.1, 2**0.5, 1.0)
    assert fit.limit.alpha == pytest.approx(theory.alpha, rel=0.03)
    assert fit.limit.sigma == pytest.approx(theory.sigma, rel=0.06)
    assert fit.limit.intercept == pytest.approx(1.0, abs=0.3)
    lower, upper = fit.interval().T
    coverage = np.mean((lower < truth) & (truth < upper))
    assert abs(coverage - 0.95) <= 4 * np.sqrt(0.95 * 0.05 / 200)


def test_results_do_not_depend_on_units_of_covariates():
    X, y, _ = draw(6, 400, 40)
    scale = 10.0 ** np.random.default_rng(1).integers(-3, 4, 40)
    beta = maximise(X, y)
    plain = adjusted_logistic(X, y, beta)
    scaled = adjusted_logistic(X * scale, y, beta / scale)
    np.testing.assert_allclose(scaled.estimate * scale, plain.estimate, rtol=1e-7)
    np.testing.assert_allclose(scaled.statistic, plain.statistic, rtol=1e-7)
    np.testing.assert_allclose(scaled.se * scale, plain.se, rtol=1e-7)


def test_classical_limit_of_the_adjustment_when_p_is_small():
    X, y, _ = draw(8, 20_000, 4, gamma2=1.0)
    beta = maximise(X, y)
    fit = adjusted_logistic(X, y, beta)
    mu = special.expit(X @ beta)
    se = np.sqrt(np.diag(np.linalg.inv(X.T @ ((mu * (1 - mu))[:, None] * X))))
    assert fit.limit.alpha == pytest.approx(1.0, abs=1e-3)
    np.testing.assert_allclose(fit.se[2:], se[2:], rtol=0.03)  # null coefficients


def test_no_signal_falls_back_to_the_null_limit():
    for seed in range(20):
        X, y, _ = draw(seed, 300, 30, gamma2=0.0)
        fit = adjusted_logistic(X, y, maximise(X, y))
        if not fit.signal_found:
            break
    assert not fit.signal_found
    assert fit.limit.gamma == 0.0
    assert fit.limit.sigma == pytest.approx(
        proportional_logistic(0.1, 0.0).sigma, rel=EXACT
    )


def test_no_signal_with_intercept_reproduces_the_fitted_intercept():
    rng = np.random.default_rng(2)
    for _ in range(20):
        X = np.column_stack([np.ones(300), rng.standard_normal((300, 30))])
        y = (rng.random(300) < 0.25).astype(float)
        fit = adjusted_logistic(X, y, maximise(X, y), intercept=0)
        if not fit.signal_found:
            break
    assert not fit.signal_found
    assert fit.limit.gamma == 0.0
    assert fit.limit.iota < fit.limit.intercept < 0


def test_precision_multipliers_match_the_inverse_gram():
    X = np.random.default_rng(0).standard_normal((50, 6)) * np.arange(1, 7)
    expected = np.sqrt(44 * np.diag(np.linalg.inv(X.T @ X)))
    np.testing.assert_allclose(precision_multipliers(X), expected, rtol=REFERENCE)
    np.testing.assert_allclose(
        precision_multipliers(X, [4]), expected[[4]], rtol=REFERENCE
    )


def test_multipliers_are_unbiased_for_the_precision_by_simulation():
    rng = np.random.default_rng(1)
    draws = [
        precision_multipliers(rng.standard_normal((100, 40)))[0] ** 2
        for _ in range(400)
    ]
    # E (X'X)^-1 = I / (n - p - 1): ratio 60 / 59
    error = np.std(draws) / np.sqrt(400)
    assert abs(np.mean(draws) - 60 / 59) <= 4 * error


def test_likelihood_ratio_is_divided_by_the_factor():
    value, p = rescaled_lrt(2 * 3.841458820694124, 2.0)
    assert value == pytest.approx(3.841458820694124, rel=EXACT)
    assert p == pytest.approx(0.05, rel=REFERENCE)
    with pytest.raises(ValueError, match="`factor`"):
        rescaled_lrt(1.0, 0.0)


def test_fit_that_is_not_the_estimate_is_refused(fitted):
    X, y, _, beta = fitted
    with pytest.raises(ConvergenceError, match="Newton step"):
        adjusted_logistic(X, y, beta * 1.01)


def test_separated_fit_is_refused():
    X = np.column_stack([np.ones(6), np.arange(6.0) - 2.5])
    y = (X[:, 1] > 0).astype(float)
    with pytest.raises((SeparationError, ConvergenceError), match="separat"):
        adjusted_logistic(X, y, np.array([0.0, 60.0]), intercept=0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: sloe(np.ones((3, 1)), [0, 1], [0.0]), DataError, "n outcomes"),
        (lambda: sloe(np.ones((2, 1)), [0, 2], [0.0]), DataError, "zeros and ones"),
        (lambda: precision_multipliers(np.ones((2, 2))), ValueError, "p < n"),
    ],
)
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_level_is_checked():
    X = np.random.default_rng(0).standard_normal((100, 4))
    y = (np.random.default_rng(1).random(100) < 0.5).astype(float)
    beta = optimize.root(
        lambda b: X.T @ (y - special.expit(X @ b)), np.zeros(4), tol=1e-12
    ).x
    with pytest.raises(ValueError, match="`level`"):
        adjusted_logistic(X, y, beta).interval(1.5)
