import numpy as np
import pytest
from tolerances import REFERENCE

import eestim as ee
from eestim.covariance.base import Covariance
from eestim.errors import (
    CapabilityError,
    ConvergenceError,
    DataError,
    EestimError,
    IdentificationError,
    InferenceError,
    InterpolationError,
    SeparationError,
)
from eestim.roots import Status, solve
from eestim.testing.examples import Product


def simulated(n=4000, seed=5):
    rng = np.random.default_rng(seed)
    z, x = rng.normal(size=n), rng.normal(size=n)
    y = (rng.random(n) < 1 / (1 + np.exp(-(0.3 + x + 0.5 * z)))).astype(float)
    return y, x, z


def logistic(theta, data):
    mu = 1 / (1 + np.exp(-(data["X"] @ theta)))
    return (data["y"] - mu)[:, None] * data["X"]


@pytest.mark.parametrize(
    ("location", "spread", "tolerance"),
    [(5e7, 1e6, 1e-7), (0.0, 1e-9, 1e-7), (1.7e9, 1e3, 1e-7), (1e12, 1e3, 1e-6)],
)
def test_z_statistics_do_not_depend_on_location_and_scale(location, spread, tolerance):
    y, x, z = simulated()
    ones = np.ones(len(y))
    raw = np.column_stack([ones, x, location + spread * z])
    plain = np.column_stack([ones, x, z])
    fit = ee.estimate(ee.glm(y, raw, family="binomial"))
    standard = ee.estimate(ee.glm(y, plain, family="binomial"))
    ratio = (fit.theta / fit.se)[1:] / (standard.theta / standard.se)[1:]
    assert np.max(np.abs(ratio - 1)) < tolerance


def test_a_users_psi_is_invariant_to_location_and_scale_too():
    y, x, z = simulated()
    ones = np.ones(len(y))
    raw = {"y": y, "X": np.column_stack([ones, x, 5e7 + 1e6 * z])}
    plain = {"y": y, "X": np.column_stack([ones, x, z])}
    fit = ee.estimate(ee.equation(logistic, raw, [0, 0, 0]))
    standard = ee.estimate(ee.equation(logistic, plain, [0, 0, 0]))
    ratio = (fit.theta / fit.se)[1:] / (standard.theta / standard.se)[1:]
    assert np.max(np.abs(ratio - 1)) < 1e-7


def test_integer_float_list_and_array_starts_agree_to_the_bit():
    def psi(theta, data):
        c = data["y"] - theta["mean"]
        return np.column_stack([c, c**2 - theta["variance"]])

    data = {"y": np.array([1.0, 2.5, 3.6, 0.4, 9.0])}
    equation = ee.equation(psi, data, {"mean": 0, "variance": 2})
    starts = ([0, 2], [0.0, 2.0], (0, 2), np.array([0, 2]), np.array([0, 2], "f4"))
    results = {ee.estimate(equation, start=start).theta.tobytes() for start in starts}
    assert len(results) == 1
    np.testing.assert_allclose(ee.estimate(equation).params["mean"], 3.3, rtol=1e-14)


def test_a_start_far_away_is_damped():
    """exp(theta) = mean of y from theta = -15: the full Newton step overflows."""
    y = np.array([3.0, 4.0, 8.0])
    equation = ee.equation(
        lambda t, d: (d["y"] - np.exp(t[0]))[:, None], {"y": y}, [-15.0]
    )
    fit = ee.estimate(equation)
    np.testing.assert_allclose(fit.theta, np.log(5.0), rtol=REFERENCE)


def test_no_root_is_reported_not_returned():
    """theta**2 + 1 + noise has no real root."""
    y = np.array([-0.1, 0.0, 0.1])
    equation = ee.equation(
        lambda t, d: (t[0] ** 2 + 1 + d["y"])[:, None], {"y": y}, [0.7]
    )
    root = solve(equation)
    assert not root.is_converged
    assert root.status in (Status.STALLED, Status.TOO_MANY_STEPS)
    with pytest.raises(ConvergenceError, match="Try"):
        ee.estimate(equation)


def test_separation_names_the_covariates():
    _, x, z = simulated(200)
    design = np.column_stack([np.ones(200), x, z])
    equation = ee.glm((x > 0.2).astype(float), design, family="binomial")
    with pytest.raises(SeparationError, match="x1"):
        ee.estimate(equation)


def test_quasi_separation_is_found():
    x = np.repeat([0.0, 1.0], 20)
    y = np.concatenate([np.tile([0.0, 1.0], 10), np.ones(20)])
    equation = ee.glm(y, np.column_stack([np.ones(40), x]), family="binomial")
    with pytest.raises(SeparationError, match="infinity"):
        ee.estimate(equation)


def test_separation_of_a_poisson_mean():
    x = np.repeat([0.0, 1.0], 20)
    y = np.concatenate([np.tile([0.0, 3.0], 10), np.zeros(20)])
    equation = ee.glm(y, np.column_stack([np.ones(40), x]), family="poisson")
    with pytest.raises(SeparationError, match="infinity"):
        ee.estimate(equation)


def test_strong_but_overlapping_effects_are_not_called_separated():
    rng = np.random.default_rng(2)
    x = rng.normal(size=3000) * 6
    y = (rng.random(3000) < 1 / (1 + np.exp(-2 * x))).astype(float)
    fit = ee.estimate(ee.glm(y, np.column_stack([np.ones(3000), x]), family="binomial"))
    assert abs(fit.theta[1] - 2) < 4 * fit.se.iloc[1]


def test_a_users_separated_psi_does_not_return_a_standard_error():
    _, x, _ = simulated(300)
    data = {"y": (x > 0.2).astype(float), "X": np.column_stack([np.ones(300), x])}
    with pytest.raises((ConvergenceError, IdentificationError, InterpolationError)):
        ee.estimate(ee.equation(logistic, data, [0, 0]))


def test_collinear_columns_are_named():
    y, x, z = simulated(100)
    design = np.column_stack([np.ones(100), x, z, 2 * x - 3])
    with pytest.raises(IdentificationError, match=r"x0 = .*x3.*x1|x3 = .*x1"):
        ee.estimate(ee.ols(y + x, design))


def test_a_redundant_parameter_of_a_user_psi_is_named():
    y = np.array([1.0, 2.0, 4.0, 4.5])

    def psi(theta, data):
        residual = data["y"] - theta["level"] - theta["shift"]
        return np.column_stack([residual, 2 * residual])

    equation = ee.equation(psi, {"y": y}, {"level": 0.0, "shift": 0.0})
    with pytest.raises(IdentificationError, match=r"\+1\*level -1\*shift"):
        ee.estimate(equation)


def test_interpolation_is_refused():
    x = np.arange(6.0)
    with pytest.raises(InterpolationError, match="exactly"):
        ee.estimate(ee.ols(1 + 2 * x, np.column_stack([np.ones(6), x])))
    saturated = ee.equation(
        lambda t, d: d["I"] * (d["y"] - t)[:, None],
        {"I": np.eye(4), "y": np.array([1.0, 2.0, 3.0, 5.0])},
        np.zeros(4),
    )
    with pytest.raises(InterpolationError, match="interpolate"):
        ee.estimate(saturated)


def test_a_root_found_elsewhere_reports_its_residual_in_noise():
    y = np.array([1.0, 2.0, 6.0, 3.0])
    exact = ee.estimate(ee.mean(y), root=[3.0])
    assert exact.root.status is Status.GIVEN and exact.root.residual < 1e-12
    off = ee.estimate(ee.mean(y), root=[3.0 + np.sqrt(np.mean((y - 3) ** 2) / 4)])
    # n^(1/2) |mean psi| / rms(psi) with psi = y - 3 - d, d = s / 2 and s the rms
    assert abs(off.root.residual - 1 / np.sqrt(1.25)) < 1e-12
    assert any(finding.name == "root residual" for finding in off.findings)


def test_bad_starts():
    equation = ee.mean([1.0, 2.0, 5.0])
    with pytest.raises(DataError, match="2 entries for 1"):
        ee.estimate(equation, start=[0, 1])
    with pytest.raises(DataError, match="not finite"):
        ee.estimate(equation, start=[np.nan])
    with pytest.raises(ValueError, match="not both"):
        ee.estimate(equation, start=[0], root=[0])


def test_over_identified_equations_are_refused():
    y = np.array([1.0, 2.0, 4.0])
    equation = ee.equation(
        lambda t, d: np.column_stack([d["y"] - t[0], d["y"] ** 2 - t[0] ** 2 - 1]),
        {"y": y},
        [1.0],
    )
    with pytest.raises((CapabilityError, IdentificationError), match="GMM"):
        ee.estimate(equation)


def test_linear_system_against_polyfit_of_an_ill_conditioned_design():
    """A cubic in the year: the condition of X'X is far beyond 1 / eps."""
    year = np.linspace(1950, 2020, 71)
    y = 3 + 0.1 * (year - 1985) + 0.002 * (year - 1985) ** 2 + np.sin(7 * year)
    raw = np.column_stack([year**k for k in range(4)])
    centred = np.column_stack([((year - 1985) / 35) ** k for k in range(4)])
    fit, oracle = ee.estimate(ee.ols(y, raw)), ee.estimate(ee.ols(y, centred))
    a = (fit.theta / fit.se.to_numpy())[3]
    b = (oracle.theta / oracle.se.to_numpy())[3]
    assert abs(a / b - 1) < 1e-5


def test_a_saddle_of_the_equations_is_not_called_a_root():
    """At (1, 1) A is singular and does not see psi: the Newton step is zero there."""
    y = np.array([1.0, 2.0, 6.0])

    def psi(theta, data):
        residual = data["y"] - theta[0] * theta[1]
        return np.column_stack([theta[1] * residual, theta[0] * residual])

    root = solve(ee.equation(psi, {"y": y}, [1.0, 1.0]))
    assert not root.is_converged or root.residual < 1e-6
    with pytest.raises(EestimError):
        ee.estimate(ee.equation(psi, {"y": y}, [1.0, 1.0]))
    regular = solve(ee.equation(psi, {"y": y}, [2.0, 1.0]))
    assert regular.is_converged
    np.testing.assert_allclose(regular.theta.prod(), 3.0, rtol=1e-6)


def test_a_wide_poisson_model_is_not_called_divergent():
    """Means from e^-18 to e^18: psi falls by many orders on the way to the root."""
    rng = np.random.default_rng(8)
    x = 3.0 * rng.normal(size=400)
    y = rng.poisson(np.exp(0.5 + 2.0 * x)).astype(float)
    X = np.column_stack([np.ones(400), x])
    fit = ee.estimate(ee.glm(y, X, family="poisson"))
    assert np.max(np.abs(fit.theta - [0.5, 2.0]) / fit.se) < 4
    mu = np.exp(X @ fit.theta)
    assert np.max(np.abs(X.T @ (y - mu)) / (np.abs(X).T @ y)) < 1e-10

    def psi(theta, data):
        return (data["y"] - np.exp(data["X"] @ theta))[:, None] * data["X"]

    own = ee.estimate(ee.equation(psi, {"y": y, "X": X}, [0.0, 0.0]))
    np.testing.assert_allclose(own.theta, fit.theta, rtol=1e-7)


@pytest.mark.parametrize("seed", range(6))
def test_a_product_is_not_identified_however_its_root_was_reached(seed):
    """The last step once left a residual that made A look regular, with finite ses."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=40)
    equation = Product(x, 1.5 * x + rng.normal(size=40))
    with pytest.raises(IdentificationError, match=r"free direction: \+1\*a -\S+\*b"):
        ee.estimate(equation)
    with pytest.raises(IdentificationError, match=r"free direction: .*a .*b"):
        ee.estimate(equation, start=[0.3, 2.0])


@pytest.mark.parametrize("off", [1e-12, 1e-9, 1e-6, 1e-3])
@pytest.mark.parametrize("is_analytic", [True, False])
def test_a_product_is_not_identified_at_a_root_found_elsewhere(off, is_analytic):
    """What the given root leaves of psi made A regular, with ses of every size."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=40)
    y = 1.5 * x + rng.normal(size=40)
    equation = Product(x, y)
    if not is_analytic:
        alike = lambda theta, data: Product(data["x"], data["y"]).psi(theta)  # noqa: E731
        equation = ee.equation(alike, {"x": x, "y": y}, [1.0, 1.0], names=["a", "b"])
    slope = (x @ y) / (x @ x)
    root = np.array([0.5, 2.0 * slope]) * (1.0 + off)
    with pytest.raises(IdentificationError, match=r"free direction: .*a .*b"):
        ee.estimate(equation, root=root)


def test_an_identified_root_found_elsewhere_keeps_its_error_however_scaled():
    """The control: nearly collinear covariates are hard to tell apart, but can be."""
    rng = np.random.default_rng(4)
    x = rng.normal(size=60)
    data = {
        "y": x + rng.normal(size=60),
        "X": np.column_stack([x, x + 1e-3 * rng.normal(size=60)]),
    }

    def psi(theta, data):
        return (data["y"] - data["X"] @ theta)[:, None] * data["X"]

    fit = ee.estimate(ee.ols(data["y"], data["X"]))
    own = ee.equation(psi, data, [0.0, 0.0])
    given = ee.estimate(own, root=fit.theta * (1 + 1e-9))
    np.testing.assert_allclose(given.se, fit.se, rtol=1e-4)


@pytest.mark.parametrize(
    ("gap", "error", "told"),
    [
        (1e-6, IdentificationError, r"nearly free direction: .*x0 .*x1"),
        (1.0, InferenceError, "negative variance"),
    ],
)
def test_a_negative_variance_is_laid_to_a_only_where_a_has_no_digits(gap, error, told):
    x, z, noise = np.random.default_rng(5).normal(size=(3, 60))
    X = np.column_stack([x, x + gap * z])

    def negative(equation, root):
        return Covariance(-np.eye(2), "negative", "none")

    def psi(theta, data):
        return (data["y"] - data["X"] @ theta)[:, None] * data["X"]

    def slope(theta, data):
        return -data["X"].T @ data["X"] / 60

    equation = ee.equation(
        psi, {"y": x + noise, "X": X}, [0.0, 0.0], names=["x0", "x1"], jacobian=slope
    )
    with pytest.raises(error, match=told):
        ee.estimate(equation, covariance=negative)
