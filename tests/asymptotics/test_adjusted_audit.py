"""SLOE, scale, adjusted fits and ratios beside brute force; what is refused by name."""

import numpy as np
import pytest
from scipy import optimize, special
from tolerances import EXACT, REFERENCE

import eestim as ee
from eestim.asymptotics import (
    adjusted_fit,
    adjusted_logistic,
    existence_frontier,
    observable_scale,
    precision_multipliers,
    proportional_logistic,
    rescaled_lrt,
    sloe,
)
from eestim.asymptotics.adjusted import _fit_terms, _left_out_predictors
from eestim.errors import (
    CapabilityError,
    ConvergenceError,
    DataError,
    IdentificationError,
    SeparationError,
)


def maximum(X, y):
    """Return the estimate by the general root finder, for responses of any value."""
    start = np.zeros(X.shape[1])
    found = optimize.root(
        lambda b: X.T @ (y - special.expit(X @ b)),
        start,
        jac=lambda b: -(X.T * special.expit(X @ b) * special.expit(-X @ b)) @ X,
        options={"xtol": 1e-14},
    )
    assert np.abs(found.fun).max() < 1e-10
    return found.x


def data(seed, n, p, constant, strength=1.0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, p))
    y = (rng.random(n) < special.expit(0.3 * constant + strength * X[:, 0])) * 1.0
    if constant:
        X = np.column_stack([X[:, :1], np.ones(n), X[:, 1:] + 2.0])
    return X, y, maximum(X, y)


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize(("n", "p"), [(12, 2), (80, 10), (150, 30)])
def test_sloe_is_one_newton_step_of_every_fit_without_a_unit(n, p, constant):
    """By brute force: score and information of the other units at the estimate."""
    X, y, beta = data(n + 1, n, p, constant)
    left_out = []
    for i in range(n):
        others, mean = np.delete(X, i, 0), special.expit(np.delete(X, i, 0) @ beta)
        score = others.T @ (np.delete(y, i) - mean)
        information = (others.T * (mean * (1 - mean))) @ others
        left_out.append(X[i] @ (beta + np.linalg.solve(information, score)))
    mine = _left_out_predictors(_fit_terms(X, y, beta))
    np.testing.assert_allclose(mine, left_out, rtol=1e-9, atol=1e-9)
    centred = np.array(left_out) - np.mean(left_out)
    assert sloe(X, y, beta) == pytest.approx(
        np.sqrt(np.mean(centred**2)), rel=REFERENCE
    )


def test_the_error_of_the_one_step_falls_with_n_against_full_refits():
    errors = []
    for n in (60, 240):
        X, y, beta = data(2, n, n // 12, False)
        exact = [X[i] @ maximum(np.delete(X, i, 0), np.delete(y, i)) for i in range(n)]
        errors.append(abs(sloe(X, y, beta) / np.std(exact) - 1.0))
    assert errors[1] < 0.005 and errors[1] < errors[0] / 2


@pytest.mark.parametrize("constant", [False, True])
def test_observable_scale_is_the_dense_trace_and_the_slope_of_refits(constant):
    X, y, beta = data(7, 60, 8, constant)
    mean = special.expit(X @ beta)
    w, n, kappa = mean * (1 - mean), 60, 8 / 60
    D = np.diag(w)
    V = D - D @ X @ np.linalg.inv(X.T @ D @ X) @ X.T @ D
    found = observable_scale(X, y, beta, intercept=constant)
    trace = np.trace(V) / n
    assert found.lambda_ == pytest.approx(kappa / trace, rel=1e-10)
    sigma = np.sqrt(np.mean((y - mean) ** 2)) / trace
    assert found.sigma == pytest.approx(sigma, rel=1e-10)
    assert found.lrt_factor == pytest.approx(
        kappa * found.sigma**2 / found.lambda_, rel=EXACT
    )
    # Bellec's V is w times the derivative of residual i in response i: refit both ways
    slopes, h = [], 1e-5
    for i in range(n):
        moved = [y + s * h * (np.arange(n) == i) for s in (1, -1)]
        ends = [m[i] - special.expit(X[i] @ maximum(X, m)) for m in moved]
        slopes.append((ends[0] - ends[1]) / (2 * h))
    assert np.mean(w * slopes) == pytest.approx(trace, rel=1e-6)


def printed_equations(limit, order=120):
    """Return the four equations of Zhao, Sur and Candes on the plane, by Legendre.

    The proximal map by bisection: nothing is shared with the package.
    """
    x, v = np.polynomial.legendre.leggauss(order)
    z, v = 8.5 * x, 8.5 * v * np.exp(-((8.5 * x) ** 2) / 2) / np.sqrt(2 * np.pi)
    z1, z2 = np.meshgrid(z, z, indexing="ij")
    noise = limit.kappa**0.5 * limit.sigma
    fitted = limit.iota + limit.alpha * limit.gamma * z1 + noise * z2
    one = special.expit(limit.intercept + limit.gamma * z1)
    total = np.array([-((limit.kappa * limit.sigma) ** 2), 0.0, limit.kappa - 1, 0.0])
    for y, chance in ((1, one), (0, 1 - one)):
        low, high = fitted + limit.lambda_ * (y - 1), fitted + limit.lambda_ * y
        for _ in range(55):
            middle = (low + high) / 2
            above = middle + limit.lambda_ * (special.expit(middle) - y) > fitted
            low, high = np.where(above, low, middle), np.where(above, middle, high)
        mean = special.expit(middle)
        total += [
            np.sum(np.outer(v, v) * chance * values)
            for values in (
                (limit.lambda_ * (y - mean)) ** 2,
                z1 * (y - mean),
                1 / (1 + limit.lambda_ * mean * (1 - mean)),
                y - mean,
            )
        ]
    return total


@pytest.mark.parametrize("constant", [False, True])
def test_adjusted_fit_is_a_root_of_the_printed_system_and_every_figure_follows(
    constant,
):
    X, y, beta = data(11, 300, 45, constant, strength=1.5)
    place = 1 if constant else None
    fit = adjusted_logistic(X, y, beta, intercept=place)
    limit, left = fit.limit, _left_out_predictors(_fit_terms(X, y, beta))
    assert np.abs(printed_equations(limit)).max() < 1e-9
    eta2 = (limit.alpha * limit.gamma) ** 2 + limit.kappa * limit.sigma**2
    assert eta2 == pytest.approx(np.var(left), rel=1e-9)
    assert limit.iota == pytest.approx(np.mean(left) if constant else 0.0, rel=1e-9)
    slopes = np.delete(np.arange(X.shape[1]), 1) if constant else np.arange(45)
    assert (limit.kappa, list(fit.columns)) == (0.15, list(slopes))
    precision = np.diag(np.linalg.inv(X.T @ X))[slopes] * (300 - X.shape[1])
    np.testing.assert_allclose(fit.estimate, beta[slopes] / limit.alpha, rtol=1e-12)
    se = limit.sigma * np.sqrt(precision / 300) / limit.alpha
    np.testing.assert_allclose(fit.se, se, rtol=1e-9)
    scale = observable_scale(X, y, beta, intercept=constant).sigma
    z = beta[slopes] / (scale * np.sqrt(precision / 300))
    np.testing.assert_allclose(fit.statistic, z, rtol=1e-9)
    two_sided = special.erfc(np.abs(z) / np.sqrt(2))
    np.testing.assert_allclose(fit.p_value, two_sided, rtol=1e-8)


def test_correlated_covariates_keep_coverage_and_size():
    """The multiplier estimates the conditional spread: AR(1) columns, rho = .6."""
    rng = np.random.default_rng(21)
    n, p = 1000, 150
    shocks = rng.standard_normal((n, p))
    X = shocks.copy()
    for j in range(1, p):
        X[:, j] = 0.6 * X[:, j - 1] + 0.8 * shocks[:, j]
    truth = np.where(np.arange(p) % 2, 0.0, 0.25 * (-1.0) ** (np.arange(p) // 2))
    y = (rng.random(n) < special.expit(X @ truth)) * 1.0
    beta = ee.estimate(ee.glm(y, X, family="binomial")).theta
    fit = adjusted_logistic(X, y, beta)
    lower, upper = fit.interval().T
    error = np.sqrt(0.95 * 0.05 / p)
    assert abs(np.mean((lower < truth) & (truth < upper)) - 0.95) <= 4 * error
    null = truth == 0
    size = np.mean(fit.p_value[null] < 0.05)
    assert abs(size - 0.05) <= 4 * np.sqrt(0.95 * 0.05 / null.sum())
    # the control: multipliers of independent columns are a quarter too small
    inner = precision_multipliers(X)[1:-1].mean()
    assert inner == pytest.approx(np.sqrt(1 + 0.36) / 0.8, rel=0.03)


@pytest.mark.parametrize("shift", [10.0, 20.0, 30.0, 45.0, 800.0])
def test_separation_hidden_in_another_basis_gives_no_number(shift):
    """One group has y = 1 only; its column is a combination of the others."""
    rng = np.random.default_rng(0)
    group, x = np.arange(60) < 20, rng.standard_normal(60)
    y = np.where(group, 1.0, rng.random(60) < 0.5)
    rest = maximum(np.column_stack([np.ones(40), x[20:]]), y[20:])
    X = np.column_stack([np.ones(60), ~group, x])
    beta = np.array([rest[0] + shift, -shift, rest[1]])  # a solver's last iterate
    for call in (
        lambda: sloe(X, y, beta),
        lambda: observable_scale(X, y, beta, intercept=True),
        lambda: adjusted_logistic(X, y, beta, intercept=0),
    ):
        with pytest.raises(SeparationError, match=r"separated"):
            call()


@pytest.mark.parametrize("size", [1.0, 30.0, 500.0])
def test_complete_separation_gives_no_number(size):
    X = np.random.default_rng(1).standard_normal((30, 3))
    y = (X[:, 0] > 0) * 1.0
    with pytest.raises(SeparationError, match="separated"):
        sloe(X, y, size * np.array([3.0, 0.1, 0.0]))


def test_an_extreme_row_that_is_fitted_surely_is_no_nan():
    """Its weight underflows; its left-out predictor is its predictor."""
    X, y, beta = data(0, 60, 3, False)
    far = 2000.0 * beta / (beta @ beta)
    wide, more = np.vstack([X, far]), np.append(y, 1.0)
    assert _fit_terms(wide, more, beta).weight[-1] == 0.0
    left = _left_out_predictors(_fit_terms(wide, more, beta))
    np.testing.assert_allclose(left[-1], 2000.0, rtol=1e-9)
    assert sloe(wide, more, beta) == pytest.approx(np.std(left), rel=EXACT)


def test_figures_do_not_depend_on_units_of_eighteen_decades():
    X, y, beta = data(3, 100, 10, False)
    units = 10.0 ** np.linspace(-9, 9, 10)
    assert sloe(X * units, y, beta / units) == pytest.approx(
        sloe(X, y, beta), rel=REFERENCE
    )
    np.testing.assert_allclose(
        precision_multipliers(X * units) * units, precision_multipliers(X), rtol=1e-9
    )


def test_near_and_beyond_the_frontier_it_is_named():
    """Overlap by luck at p/n > 1/2 has an estimate, and no limit to adjust it by."""
    for seed in range(200):
        rng = np.random.default_rng(seed)
        X, y = rng.standard_normal((12, 7)), (rng.random(12) < 0.5) * 1.0
        if ee.asymptotics.separation(X, y).status == "overlap":
            break
    beta = ee.estimate(ee.glm(y, X, family="binomial")).theta
    with pytest.raises(SeparationError, match="ceases to exist"):
        adjusted_logistic(X, y, beta)
    gamma = existence_frontier(0.2)
    with pytest.raises(SeparationError, match="ceases to exist"):
        proportional_logistic(0.2, gamma * (1 + 1e-9))


@pytest.mark.parametrize("intercept", [-1, 0, 99, True, None, "x1", 1.0])
def test_an_intercept_that_is_not_the_constant_column_is_refused(intercept):
    X, y, beta = data(5, 100, 6, True)
    assert len(adjusted_logistic(X, y, beta, intercept=1).columns) == 6
    with pytest.raises(ValueError, match=r"Pass intercept=1"):
        adjusted_logistic(X, y, beta, intercept=intercept)


def test_an_intercept_of_a_design_without_one_is_refused():
    X, y, beta = data(5, 100, 6, False)
    with pytest.raises(ValueError, match="no constant column"):
        adjusted_logistic(X, y, beta, intercept=0)
    with pytest.raises(ValueError, match="constant columns of X are: none"):
        observable_scale(X, y, beta, intercept=True)
    with pytest.raises(TypeError, match="not which one"):
        observable_scale(X, y, beta, intercept=0)
    X, y, beta = data(5, 100, 6, True)
    with pytest.raises(ValueError, match="column 1"):
        observable_scale(X, y, beta, intercept=False)
    ones = np.ones((4, 1))
    with pytest.raises(ValueError, match="`kappa` is 0"):
        observable_scale(ones, [0, 1, 1, 0], [0.0], intercept=True)


X0, Y0 = np.array([[1.0], [-1.0], [2.0], [0.5], [-0.3]]), np.array([1.0, 1, 0, 0, 1])
B0 = np.atleast_1d(
    optimize.brentq(lambda b: X0[:, 0] @ (Y0 - special.expit(b * X0[:, 0])), -9, 9)
)


@pytest.mark.parametrize(
    ("X", "y", "beta", "error", "message"),
    [
        (X0 * np.nan, Y0, B0, DataError, "`X` has missing"),
        (X0, Y0 * np.nan, B0, DataError, "zeros and ones"),
        (X0, Y0 + 1, B0, DataError, "zeros and ones"),
        (X0, Y0, B0 * np.nan, DataError, "`beta` has missing"),
        (X0, Y0, B0 * np.inf, DataError, "`beta` has infinite"),
        (X0, Y0, B0 + 1e-3, ConvergenceError, "Newton step"),
        (X0[:, [0, 0]], Y0, np.repeat(B0, 2) / 2, SeparationError, "dependent"),
        (np.c_[X0, 0 * X0], Y0, np.append(B0, 1), SeparationError, "dependent"),
        (X0[:0], Y0[:0], B0, DataError, "n outcomes"),
        (X0[:1], Y0[:1], B0 * 0, SeparationError, "separated"),
        (X0[:, :0], Y0, B0[:0], DataError, "n outcomes"),
    ],
)
def test_bad_input_is_named(X, y, beta, error, message):
    for call in (
        lambda: sloe(X, y, beta),
        lambda: observable_scale(X, y, beta, intercept=False),
        lambda: adjusted_logistic(X, y, beta),
    ):
        with pytest.raises(error, match=message):
            call()


def test_multipliers_refuse_what_has_no_precision():
    X = np.random.default_rng(0).standard_normal((20, 3))
    with pytest.raises(IdentificationError, match="dependent columns"):
        precision_multipliers(X[:, [0, 1, 0]])
    with pytest.raises(DataError, match="`X` has missing"):
        precision_multipliers(X * np.nan)
    for columns in ([-1], [3], [0.5], [True, False, True]):
        with pytest.raises(ValueError, match=r"integers in 0\.\.2"):
            precision_multipliers(X, columns)


def test_weights_and_offsets_have_no_adjusted_fit():
    X, y, _ = data(5, 100, 6, False)
    for options in (
        {"weights": ee.Frequency(np.ones(100, dtype=int) * 2)},
        {"offset": np.full(100, 0.1)},
    ):
        fit = ee.estimate(ee.glm(y, X, family="binomial", **options))
        with pytest.raises(CapabilityError, match="offset or weights"):
            adjusted_fit(fit)


@pytest.mark.parametrize("factor", [1.0, 1.4867, 2.0455])
def test_rescaled_ratio_has_the_tail_of_its_closed_forms(factor):
    for statistic in (0.0, 0.3, 5.0, 40.0):
        value, p = rescaled_lrt(statistic, factor)
        assert value == pytest.approx(statistic / factor, rel=EXACT)
        assert p == pytest.approx(special.erfc(np.sqrt(value / 2)), rel=1e-10)
        two = rescaled_lrt(statistic, factor, 2)[1]
        assert two == pytest.approx(np.exp(-value / 2), rel=1e-10)


@pytest.mark.parametrize(
    "arguments",
    [
        (np.inf, 1.5),
        (np.nan, 1.5),
        (-1.0, 1.5),
        (1.0, np.inf),
        (1.0, np.nan),
        (1.0, 0.0),
        (1.0, 1.5, 0),
        (1.0, 1.5, 1.5),
        (1.0, 1.5, np.inf),
        (1.0, 1.5, True),
    ],
)
def test_a_ratio_that_is_none_is_refused(arguments):
    with pytest.raises(ValueError, match="`statistic` is"):
        rescaled_lrt(*arguments)
