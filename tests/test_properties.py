"""Algebraic properties of estimates and sandwiches, over random designs.

Numbers in the names are those of the property list in the theory notes.
"""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import EXACT, REFERENCE

import eestim as ee
from eestim.errors import InterpolationError, SeparationError

MODELS = ("gaussian", "binomial", "poisson")
SETTINGS = settings(deadline=None, max_examples=12)


@st.composite
def designs(draw):
    """A table with p covariates and outcomes of every family, well conditioned."""
    p = draw(st.integers(1, 3))
    n = draw(st.integers(15 * (p + 1), 120))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    X = np.column_stack([np.ones(n), rng.normal(size=(n, p))])
    eta = X @ rng.normal(size=p + 1) * 0.4
    outcomes = {
        "gaussian": eta + rng.normal(size=n) * (0.5 + rng.random(n)),
        "binomial": (rng.random(n) < 1 / (1 + np.exp(-eta))).astype(float),
        "poisson": rng.poisson(np.exp(eta)).astype(float),
    }
    outcomes["binomial"][:2] = [0.0, 1.0]
    outcomes["poisson"][:2] = [1.0, 2.0]
    return X, outcomes, rng


def user(y, X, family, transform=None, map_=lambda theta: theta):
    """The GLM as a user's psi, optionally multiplied by C and reparameterised."""
    inverse = {"gaussian": lambda e: e, "poisson": np.exp}.get(
        family, lambda e: 1 / (1 + np.exp(-e))
    )

    def psi(theta, data):
        residual = data["y"] - inverse(data["X"] @ map_(np.asarray(theta)))
        rows = residual[:, None] * data["X"]
        return rows if transform is None else rows @ transform(theta).T

    return psi, {"y": y, "X": X}


def close(a, b, fit, tolerance=REFERENCE):
    errors = fit.se.to_numpy()
    return np.max(np.abs(a - b) / np.outer(errors, errors)) < tolerance


def fitted(design, family, **options):
    X, outcomes, _ = design
    equation = ee.glm(outcomes[family], X, family=family, **options)
    try:
        return equation, ee.estimate(equation)
    except SeparationError:
        return equation, None


@pytest.mark.parametrize("family", MODELS)
@given(design=designs())
@SETTINGS
def test_1_multiplying_psi_by_an_invertible_matrix(family, design):
    _, fit = fitted(design, family)
    if fit is None:
        return
    X, outcomes, rng = design
    C = rng.normal(size=(X.shape[1],) * 2) + 2 * np.eye(X.shape[1])
    psi, data = user(outcomes[family], X, family, lambda theta: C)
    other = ee.estimate(ee.equation(psi, data, fit.theta + 0.01))
    assert np.max(np.abs(other.theta - fit.theta) / fit.se) < REFERENCE
    assert close(other.spread.matrix, fit.spread.matrix, fit)


@given(design=designs())
@SETTINGS
def test_2_multiplying_psi_by_a_matrix_that_depends_on_theta(design):
    _, fit = fitted(design, "gaussian")
    X, outcomes, rng = design
    B = rng.normal(size=(X.shape[1],) * 2)

    def C(theta):
        return 3 * np.eye(len(B)) + 0.1 * B * np.tanh(float(np.sum(np.asarray(theta))))

    psi, data = user(outcomes["gaussian"], X, "gaussian", C)
    other = ee.estimate(ee.equation(psi, data, fit.theta + 0.01))
    assert close(other.spread.matrix, fit.spread.matrix, fit, 1e-7)


@pytest.mark.parametrize("family", MODELS)
@given(design=designs())
@SETTINGS
def test_3_linear_change_of_parameters(family, design):
    _, fit = fitted(design, family)
    if fit is None:
        return
    X, outcomes, rng = design
    L = rng.normal(size=(X.shape[1],) * 2) + 2 * np.eye(X.shape[1])
    other = ee.estimate(ee.glm(outcomes[family], X @ L, family=family))
    assert close(L @ other.spread.matrix @ L.T, fit.spread.matrix, fit, 1e-7)


@given(design=designs())
@SETTINGS
def test_4_smooth_reparameterisation_is_the_delta_method(design):
    _, fit = fitted(design, "poisson")
    X, outcomes, _ = design
    psi, data = user(outcomes["poisson"], X, "poisson", map_=np.sinh)
    other = ee.estimate(ee.equation(psi, data, np.arcsinh(fit.theta) + 0.005))
    J = np.diag(np.cosh(other.theta))
    assert close(J @ other.spread.matrix @ J, fit.spread.matrix, fit, 1e-7)


@given(design=designs())
@SETTINGS
def test_17_least_squares_sandwich_is_hc0(design):
    _, fit = fitted(design, "gaussian")
    X, outcomes, _ = design
    e = outcomes["gaussian"] - X @ np.linalg.lstsq(X, outcomes["gaussian"])[0]
    P = np.linalg.pinv(X)
    np.testing.assert_allclose(fit.spread.matrix, (P * e**2) @ P.T, rtol=1e-7)


@given(design=designs())
@SETTINGS
def test_24_frisch_waugh_lovell_for_point_and_hc0(design):
    _, fit = fitted(design, "gaussian")
    X, outcomes, _ = design
    W, x = X[:, :-1], X[:, -1]
    project = W @ np.linalg.pinv(W)
    partial = ee.estimate(
        ee.ols(
            outcomes["gaussian"] - project @ outcomes["gaussian"],
            (x - project @ x)[:, None],
        )
    )
    assert abs(partial.theta[0] - fit.theta[-1]) < 1e-9 * fit.se.iloc[-1]
    np.testing.assert_allclose(
        partial.spread.matrix[0, 0], fit.spread.matrix[-1, -1], rtol=1e-8
    )


@given(
    design=designs(),
    a=st.floats(-100, 100),
    b=st.floats(-50, 50).filter(lambda v: abs(v) > 0.01),
)
@SETTINGS
def test_29_location_and_scale_of_the_outcome(design, a, b):
    _, fit = fitted(design, "gaussian")
    X, outcomes, _ = design
    moved = ee.estimate(ee.ols(a + b * outcomes["gaussian"], X))
    assert close(moved.spread.matrix / b**2, fit.spread.matrix, fit, 1e-7)


@pytest.mark.parametrize("family", MODELS)
@given(design=designs())
@SETTINGS
def test_31_32_34_root_symmetry_and_influence(family, design):
    equation, fit = fitted(design, family)
    if fit is None:
        return
    psi, V = equation.psi(fit.theta), fit.spread.matrix
    assert np.max(np.abs(psi.sum(axis=0))) < 1e-9 * np.abs(psi).sum()
    assert np.array_equal(V, V.T)
    assert np.linalg.eigvalsh(V / np.outer(fit.se, fit.se))[0] > 0
    influence = fit.influence().to_numpy()
    assert np.max(np.abs(influence.mean(axis=0)) / fit.se) < 1e-8
    assert close(influence.T @ influence / fit.n_units**2, V, fit)


@pytest.mark.parametrize("family", MODELS)
@given(design=designs())
@SETTINGS
def test_33_canonical_links_have_equal_observed_and_expected_information(
    family, design
):
    equation, fit = fitted(design, family)
    if fit is None:
        return
    working = equation.working(fit.theta)
    expected = (working.design.T * working.weight) @ working.design / fit.n_units
    observed = equation.sensitivity(fit.theta)
    np.testing.assert_allclose(
        observed, expected, rtol=0, atol=EXACT * np.abs(expected).max()
    )


@given(seed=st.integers(0, 10**6), p=st.integers(2, 6))
@SETTINGS
def test_35_a_saturated_fit_is_refused(seed, p):
    rng = np.random.default_rng(seed)
    with pytest.raises(InterpolationError, match="exactly"):
        ee.estimate(ee.ols(rng.normal(size=p), rng.normal(size=(p, p)) + 3 * np.eye(p)))


def test_33_fails_for_a_link_that_is_not_canonical():
    """Negative control of property 33."""
    rng = np.random.default_rng(0)
    data = pd.DataFrame({"x": rng.normal(size=80)})
    data["b"] = (rng.random(80) < 0.5).astype(float)
    equation = ee.glm("b ~ x", data, family="binomial", link="probit")
    fit = ee.estimate(equation)
    working = equation.working(fit.theta)
    expected = (working.design.T * working.weight) @ working.design / fit.n_units
    observed = equation.sensitivity(fit.theta)
    assert np.max(np.abs(observed - expected)) > 1e-4 * np.abs(expected).max()
