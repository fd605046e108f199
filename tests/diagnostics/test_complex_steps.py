"""Complex steps: exact where psi is analytic, refused with a reason elsewhere."""

import numpy as np
import pytest
from cases import table
from scipy import special

import eestim as ee
from eestim.diagnostics import complex_step_sensitivity, derivative_check
from eestim.errors import CapabilityError

N = 60
AT = np.array([0.3, -0.7])
ROUNDING = 1e-14


def data():
    rng = np.random.default_rng(8)
    x = np.column_stack([np.ones(N), rng.normal(size=N)])
    return {"x": x, "y": (rng.random(N) < 0.4).astype(float)}


def logistic(theta, d):
    return d["x"] * (d["y"] - 1 / (1 + np.exp(-d["x"] @ theta)))[:, None]


def information(theta, d, weights):
    """The closed form of the sum of minus the derivatives of logistic scores."""
    mu = special.expit(d["x"] @ theta)
    return (d["x"].T * (weights * mu * (1 - mu))) @ d["x"]


def linear(change):
    """Residuals of which something is lost where theta is complex."""

    def psi(theta, d):
        return d["x"] * change(d["y"] - d["x"] @ theta)[:, None]

    return psi


def test_logistic_sensitivity_is_exact():
    d = data()
    equation = ee.equation(logistic, d, [0.0, 0.0])
    found = complex_step_sensitivity(equation, AT)
    exact = information(AT, d, np.ones(N)) / N
    np.testing.assert_allclose(found, exact, rtol=ROUNDING)
    by_differences = equation.sensitivity(AT)
    np.testing.assert_allclose(by_differences, found, rtol=1e-8)
    assert np.abs(by_differences / exact - 1).max() > ROUNDING  # what is gained


@pytest.mark.parametrize(
    ("function", "slope"),
    [
        (np.exp, np.exp),
        (lambda t: np.log(2 + t), lambda t: 1 / (2 + t)),
        (lambda t: np.tanh(t) ** 3, lambda t: 3 * np.tanh(t) ** 2 / np.cosh(t) ** 2),
        (lambda t: t / (1 + t**2), lambda t: (1 - t**2) / (1 + t**2) ** 2),
        (np.arctan, lambda t: 1 / (1 + t**2)),
        (
            lambda t: np.where(t > 0, t**2, np.sqrt(2 + t)),
            lambda t: np.where(t > 0, 2 * t, 0.5 / np.sqrt(np.abs(2 + t))),
        ),
    ],
)
def test_elementary_functions_against_calculus(function, slope):
    d = {"w": np.arange(1.0, 6.0)}
    equation = ee.equation(lambda t, d: d["w"][:, None] * function(t), d, [0.1, 0.2])
    found = -complex_step_sensitivity(equation, AT)
    np.testing.assert_allclose(
        found, np.diag(3.0 * slope(AT)), rtol=ROUNDING, atol=1e-300
    )


def test_names_units_and_weights_are_kept():
    d = data()
    groups = np.arange(N) // 3
    named = ee.equation(
        lambda t, d: np.column_stack(
            [
                d["x"] * (d["y"] - 1 / (1 + np.exp(-d["x"] @ t["beta"])))[:, None],
                d["y"] - t["mean"],
            ]
        ),
        d,
        {"beta": [0.0, 0.0], "mean": 0.5},
        units=groups,
        weights=ee.Sampling(1.0 + groups),
    )
    weights = (1.0 + groups) * N / np.sum(1.0 + groups)
    found = complex_step_sensitivity(named, np.append(AT, 0.5))
    exact = information(AT, d, weights) / (N / 3)
    np.testing.assert_allclose(found[:2, :2], exact, rtol=ROUNDING)
    np.testing.assert_allclose(found[2], [0, 0, 3.0], rtol=ROUNDING, atol=1e-300)
    counts = ee.equation(logistic, d, [0, 0], weights=ee.Frequency(1 + groups % 3))
    exact = information(AT, d, 1 + groups % 3) / np.sum(1 + groups % 3)
    np.testing.assert_allclose(
        complex_step_sensitivity(counts, AT), exact, rtol=ROUNDING
    )


def test_more_equations_than_parameters():
    equation = ee.equation(
        lambda t, d: np.column_stack([d["y"] - t[0], d["y"] ** 2 - np.exp(t[0])]),
        data(),
        [0.0],
    )
    found = complex_step_sensitivity(equation, [0.2])
    np.testing.assert_allclose(found, [[1.0], [np.exp(0.2)]], rtol=ROUNDING)


@pytest.mark.parametrize(
    ("psi", "why"),
    [
        (linear(np.abs), "absolute values"),
        (linear(np.real), "absolute values or real parts"),
        (linear(lambda e: e.real.astype(e.dtype)), "not analytic"),
        (linear(np.conj), "not analytic"),
        (linear(lambda e: e * np.abs(e)), "not analytic"),
        (linear(lambda e: e * np.conj(e)), "not analytic"),
        # a millionth of psi loses its imaginary part
        (linear(lambda e: e + 1e-6 * np.abs(e)), "not analytic"),
        # one unit in sixty does
        (linear(lambda e: np.where(np.arange(N) == 7, e.real, e)), "not analytic"),
        (linear(lambda e: e.astype(float)), "ComplexWarning"),
        (linear(lambda e: np.array([float(v) for v in e])), "ComplexWarning"),
        (linear(special.expit), "TypeError"),
        (linear(lambda e: e if e.dtype == float else 2 * e), "other values"),
        (linear(lambda e: (e > 0) - 0.5), "jumps"),
    ],
)
def test_what_is_not_analytic_is_refused_with_its_reason(psi, why):
    equation = ee.equation(psi, data(), [0.0, 0.0])
    with pytest.raises(CapabilityError, match=why):
        complex_step_sensitivity(equation, AT)


def test_a_plain_complex_step_would_be_wrong_where_these_are_refused():
    d = data()
    psi = linear(lambda e: e * np.abs(e))  # derivative of mean: -2 |e| x, not -|e| x
    step = 1e-20
    plain = psi(AT + 1j * step * np.array([1.0, 0.0]), d).mean(axis=0).imag / step
    right = -ee.equation(psi, d, [0.0, 0.0]).sensitivity(AT)[:, 0]
    assert np.abs(plain / right - 1).max() > 0.1


def test_kinks_near_theta_shrink_the_circle_and_kinks_at_theta_refuse():
    def huber(t, d):
        e = d["y"] - t[0]
        return np.where(e > 1, 1.0 + 0 * e, np.where(e < -1, -1.0 + 0 * e, e))[:, None]

    y = np.array([-3.0, -0.5, 0.1, 0.4, 1.0 + 1e-6, 2.0])
    equation = ee.equation(huber, {"y": y}, [0.0])
    found = complex_step_sensitivity(equation, [0.0])
    np.testing.assert_allclose(found, [[3 / 6]], rtol=ROUNDING)
    on_it = ee.equation(huber, {"y": np.append(y, 1.0)}, [0.0])
    with pytest.raises(CapabilityError, match="kink"):
        complex_step_sensitivity(on_it, [0.0])


def test_the_check_takes_complex_steps_and_says_when_it_does_not(rng):
    d = data()
    good = ee.estimate(ee.equation(logistic, d, [0.0, 0.0]))
    found = derivative_check(good, rng)
    assert found.status == "pass"
    assert "complex steps" in found.meaning
    assert found.value < 1e-8
    plain = derivative_check(good, rng, "differences")
    assert plain.status == "pass"
    assert "differences of psi" in plain.meaning
    assert "complex" not in plain.assumptions

    real = ee.equation(
        lambda t, d: d["x"] * (d["y"] - special.expit(d["x"] @ t))[:, None], d, [0, 0]
    )
    fit = ee.estimate(real)
    fallen = derivative_check(fit, rng)
    assert fallen.status == "pass"
    assert "differences of psi" in fallen.meaning
    assert "no complex steps: psi does not take complex theta" in fallen.assumptions
    forced = derivative_check(fit, rng, "complex step")
    assert forced.status == "not applicable"
    with pytest.raises(ValueError, match="method"):
        derivative_check(fit, rng, "forward")


def test_complex_steps_see_an_analytic_jacobian_that_is_off_by_little(rng):
    d = data()

    def jacobian(theta, d):
        return -(1 + 3e-6) * information(theta, d, np.ones(N)) / N

    fit = ee.estimate(ee.equation(logistic, d, [0.0, 0.0], jacobian=jacobian))
    found = derivative_check(fit, rng)
    assert found.status == "warn"
    np.testing.assert_allclose(found.value, 3e-6, rtol=0.05)


def test_models_of_the_package_fall_back(rng):
    fit = ee.estimate(ee.glm("b ~ x", table(), family="binomial"))
    found = derivative_check(fit, rng)
    assert found.status == "pass"
    assert "no complex steps" in found.assumptions
