"""Regimes in words, and asymptotics applied to equations of the package."""

import numpy as np
import pytest
from scipy import special
from tolerances import REFERENCE

import eestim as ee
from eestim.asymptotics import (
    adjusted_fit,
    adjusted_logistic,
    design_findings,
    estimable,
    invariance_over_roots,
    regime,
)
from eestim.errors import (
    CapabilityError,
    ConvergenceError,
    IdentificationError,
    InterpolationError,
)


def product_psi(theta, data):
    a, b, c = theta
    x = data["x"]
    e = data["y"] - a * b * x - c * x**2
    return e[:, None] * np.column_stack([b * x, a * x, x**2])


@pytest.fixture(scope="module")
def product_data():
    rng = np.random.default_rng(0)
    x = rng.standard_normal(300)
    noise = rng.standard_normal(300) * (0.5 + np.abs(x))
    return {"x": x, "y": 1.5 * x + 0.5 * x**2 + noise}


def product_equation(data, start=(2.0, 1.0, 0.0)):
    return ee.equation(product_psi, data, start=np.array(start), names=["a", "b", "c"])


def product(theta):
    return theta[0] * theta[1]


def test_product_of_unidentified_factors_matches_least_squares(product_data):
    fit = estimable(product_equation(product_data), product, names=["ab"])
    x, y = product_data["x"], product_data["y"]
    ols = ee.estimate(ee.ols(y, np.column_stack([x, x**2])), covariance=ee.HC(0))
    assert fit.theta[0] == pytest.approx(ols.theta[0], rel=REFERENCE)
    assert fit.se["ab"] == pytest.approx(ols.se.iloc[0], rel=1e-6)
    assert "rank 2 of 3" in fit.rule
    assert any("not identified" in finding.meaning for finding in fit.findings)
    lower, upper = fit.interval().loc["ab", ["lower", "upper"]]
    assert lower < 1.5 < upper


def test_factors_themselves_are_refused_by_name(product_data):
    with pytest.raises(IdentificationError, match=r"not estimable.*\*a.*\*b"):
        estimable(product_equation(product_data), lambda theta: theta[0])


def test_given_root_and_jacobian_agree_with_the_solver(product_data):
    equation = product_equation(product_data)
    fit = estimable(equation, product)
    x, y = product_data["x"], product_data["y"]
    slopes = np.linalg.lstsq(np.column_stack([x, x**2]), y, rcond=None)[0]
    root = np.array([3.0, slopes[0] / 3.0, slopes[1]])
    again = estimable(
        equation, product, root=root, jacobian=lambda theta: [theta[1], theta[0], 0.0]
    )
    assert again.theta[0] == pytest.approx(fit.theta[0], rel=1e-9)
    assert float(again.se.iloc[0]) == pytest.approx(float(fit.se.iloc[0]), rel=1e-6)


def test_invariance_over_roots_of_the_package(product_data):
    equation = product_equation(product_data)
    starts = [(2.0, 1.0, 0.0), (-1.0, -3.0, 0.5), (0.4, 5.0, 1.0)]
    assert invariance_over_roots(equation, product, starts).status == "invariant"


def test_start_where_newton_is_blind_is_not_called_a_root(product_data):
    """At a = b = 1 the mean of psi lies in the kernel of A: no Newton step moves."""

    def psi(theta, data):
        a, b = theta
        e = data["y"] - a * b
        return np.column_stack([b * e, a * e])

    model = ee.equation(psi, {"y": np.array([1.0, 2.0, 6.0])}, start=[1.0, 1.0])
    with pytest.raises((ConvergenceError, InterpolationError)):
        estimable(model, lambda theta: theta[0] * theta[1])


def test_interpolating_equation_is_refused():
    rng = np.random.default_rng(1)
    X, y = rng.standard_normal((6, 9)), rng.standard_normal(6)

    def psi(theta, data):
        return X * (y - X @ theta)[:, None]

    equation = ee.equation(psi, {"y": y}, start=np.zeros(9))
    root = np.linalg.pinv(X) @ y
    with pytest.raises(InterpolationError, match="standard errors of zero"):
        estimable(equation, lambda theta: X[0] @ theta, root=root)
    assert regime(equation, root).name == "interpolating"


def test_interpolation_is_seen_also_where_the_start_is_the_root():
    rng = np.random.default_rng(3)
    X, y = rng.standard_normal((6, 9)), rng.standard_normal(6)
    root = np.linalg.pinv(X) @ y

    def psi(theta, data):
        return X * (y - X @ theta)[:, None]

    equation = ee.equation(psi, {"y": y}, start=root)
    with pytest.raises(InterpolationError, match="vanishes to rounding"):
        estimable(equation, lambda theta: X[0] @ theta, root=root)
    assert regime(equation, root).name == "interpolating"


def test_regimes_are_told_apart(product_data):
    rng = np.random.default_rng(2)
    X, y = rng.standard_normal((200, 30)), rng.standard_normal(200)
    many = regime(ee.estimate(ee.ols(y, X)))
    assert (many.name, many.aspect) == ("many-covariate", 0.15)
    assert "HCK" in many.instead
    assert regime(ee.estimate(ee.ols(y, X[:, :3]))).name == "classical"
    b = (y > 0).astype(float)
    logistic = regime(ee.estimate(ee.glm(b, X, family="binomial")))
    assert logistic.name == "proportional"
    assert "adjusted_fit" in str(logistic)
    equation = product_equation(product_data)
    deficient = regime(equation, _root(equation))
    assert (deficient.name, deficient.rank) == ("rank-deficient", 2)
    assert "*a" in deficient.reason
    poisson = regime(
        ee.estimate(ee.glm(rng.poisson(1.0, 200).astype(float), X, family="poisson"))
    )
    assert poisson.name == "proportional"
    sought = regime(equation)  # from the equation's start, on another root
    assert (sought.name, sought.rank) == ("rank-deficient", 2)


def _root(equation):
    data = equation.data
    x, y = data["x"], data["y"]
    slopes = np.linalg.lstsq(np.column_stack([x, x**2]), y, rcond=None)[0]
    return np.array([2.0, slopes[0] / 2.0, slopes[1]])


def test_adjusted_fit_is_the_array_function_with_names():
    rng = np.random.default_rng(4)
    X = rng.standard_normal((600, 60))
    y = (rng.random(600) < special.expit(0.5 + 2 * X[:, 0])).astype(float)
    design = np.column_stack([np.ones(600), X])
    names = ["one", *(f"x{j}" for j in range(60))]
    fit = ee.estimate(
        ee.glm(y, design, family="binomial", names=names), covariance=ee.ModelBased()
    )
    adjusted = adjusted_fit(fit)
    direct = adjusted_logistic(design, y, fit.theta, intercept=0)
    table = adjusted.table()
    assert list(table.index) == names[1:]
    np.testing.assert_array_equal(table["estimate"], direct.estimate)
    np.testing.assert_array_equal(table["se"], direct.se)
    np.testing.assert_array_equal(
        adjusted.interval(0.9)["lower"], direct.interval(0.9)[:, 0]
    )
    assert abs(table["estimate"].iloc[0]) < abs(fit.theta[1])
    assert [finding.status for finding in adjusted.findings] == ["pass", "pass"]


def test_adjusted_fit_refuses_what_it_does_not_cover():
    rng = np.random.default_rng(5)
    X, y = rng.standard_normal((80, 4)), rng.standard_normal(80)
    with pytest.raises(CapabilityError, match=r"ee\.HCK"):
        adjusted_fit(ee.estimate(ee.ols(y, X)))
    weighted = ee.glm(
        (y > 0).astype(float), X, family="binomial", offset=0.1 * np.ones(80)
    )
    with pytest.raises(CapabilityError, match="offset or weights"):
        adjusted_fit(ee.estimate(weighted))


def test_design_checks_pass_gaussian_and_flag_heavy_designs():
    rng = np.random.default_rng(6)
    X = rng.standard_normal((500, 80))
    assert {f.status for f in design_findings(X)} == {"pass"}
    mixed = design_findings(X @ np.linalg.cholesky(np.eye(80) + 0.5) + 7.0)
    assert {f.status for f in mixed} == {"pass"}  # any covariance, any mean
    lengths = rng.exponential(size=(500, 1))
    kurtosis, leverage = design_findings(X * lengths)  # elliptical: unequal lengths
    assert leverage.status == "warn"
    assert kurtosis.status == "warn"
    rare = X.copy()
    rare[:, 0] = rng.random(500) < 0.01
    assert design_findings(rare)[0].status == "warn"
    with pytest.raises(ValueError, match="varying columns"):
        design_findings(np.ones((5, 2)))


def test_gaussian_leverage_spread_matches_its_formula_by_simulation():
    rng = np.random.default_rng(7)
    ratios = [
        design_findings(rng.standard_normal((400, p)))[1].value for p in (40, 120, 200)
    ]
    np.testing.assert_allclose(ratios, 1.0, rtol=0.15)


def test_estimable_functionals_tell_the_regime_of_their_equation(product_data):
    """The 1 by 1 table of a functional has full rank; what it came from has not."""
    fit = estimable(product_equation(product_data), product, names=["ab"])
    found = fit.regime()
    assert (found.name, found.rank, found.n_parameters) == ("rank-deficient", 2, 3)
    assert "*a" in found.reason and "constant along" in found.reported
    x, y = product_data["x"], product_data["y"]
    plain = ee.estimate(ee.ols(y, np.column_stack([x, x**2])))
    derived = plain.functional(lambda theta: theta[0] / theta[1]).regime()
    assert derived.name == "classical"  # negative control
    assert "behind them nothing is known" in derived.reason


def test_penalised_root_beyond_n_is_told_its_bias():
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((20, 50)), rng.standard_normal(20)

    def ridge(theta, data):
        residual = data["y"] - data["X"] @ theta
        return residual[:, None] * data["X"] - 0.25 * theta

    fit = ee.estimate(ee.equation(ridge, {"X": X, "y": y}, np.zeros(50)))
    found = fit.regime()
    assert found.name == "proportional" and found.aspect == 2.5
    assert "bias" in found.reported and "`df_debiased`" in found.instead
    assert "df_adjusted_sandwich" not in str(found)  # it needs p < n
