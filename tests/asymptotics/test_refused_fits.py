"""What an equation that `estimate` refuses says of itself, and still reports."""

import pickle

import numpy as np
import pytest
from scipy import special
from tolerances import REFERENCE

import eestim as ee
from eestim.asymptotics import estimable, free_root, regime
from eestim.errors import (
    CapabilityError,
    ConvergenceError,
    IdentificationError,
    InterpolationError,
)

RNG = np.random.default_rng(0)
X = RNG.standard_normal((60, 3))
COLLINEAR = np.column_stack([X, X[:, 0] + X[:, 1]])
WIDE = RNG.standard_normal((20, 30))
Y = X @ [1.0, -0.5, 0.3] + RNG.standard_normal(60)
BINARY = (RNG.random(60) < special.expit(X[:, 0])).astype(float)
COUNTS = RNG.poisson(np.exp(0.5 * X[:, 0])).astype(float)


def linear(theta, data):
    return data["X"] * (data["y"] - data["X"] @ theta)[:, None]


def user_equation(design, outcome, **options):
    data = {"X": design, "y": outcome}
    return ee.equation(linear, data, start=np.zeros(design.shape[1]), **options)


REFUSED = {
    "more columns than rows": (lambda: ee.ols(Y[:20], WIDE), "interpolating"),
    "as many as rows": (lambda: ee.ols(Y[:20], WIDE[:, :20]), "interpolating"),
    "wide, by the user": (lambda: user_equation(WIDE, Y[:20]), "interpolating"),
    "saturated counts": (
        lambda: ee.glm(COUNTS[:20] + 1, WIDE[:, :20], family="poisson"),
        "interpolating",
    ),
    "separated": (
        lambda: ee.glm(BINARY[:20], WIDE, family="binomial"),
        "interpolating",
    ),
    "collinear": (lambda: ee.ols(Y, COLLINEAR), "rank-deficient"),
    "collinear logit": (
        lambda: ee.glm(BINARY, COLLINEAR, family="binomial"),
        "rank-deficient",
    ),
    "collinear, by the user": (lambda: user_equation(COLLINEAR, Y), "rank-deficient"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_carry_the_regime(case):
    make, name = REFUSED[case]
    with pytest.raises((IdentificationError, InterpolationError)) as refused:
        ee.estimate(make())
    found = refused.value.regime()
    assert found.name == name
    assert found == regime(make())
    assert any("regime" in note for note in refused.value.__notes__)
    text = str(found)
    assert all(word in text for word in ("reported:", "refused:", "instead:"))
    expected = "debiased" if name == "interpolating" else "estimable(equation, h)"
    assert expected in found.instead


def test_a_refusal_of_a_given_root_is_about_that_root():
    equation = user_equation(WIDE, Y[:20])
    root = np.linalg.pinv(WIDE) @ Y[:20] + np.linalg.svd(WIDE)[2][-1]
    with pytest.raises((IdentificationError, InterpolationError)) as refused:
        ee.estimate(equation, root=root)
    assert refused.value.regime().name == "interpolating"


def test_a_fit_that_is_not_refused_answers_itself():
    assert ee.estimate(ee.ols(Y, X)).regime().name == "classical"
    assert regime(ee.ols(Y, X)).name == "classical"


def test_refusals_can_be_pickled_without_their_equation():
    with pytest.raises(IdentificationError) as refused:
        ee.estimate(user_equation(COLLINEAR, Y))
    again = pickle.loads(pickle.dumps(refused.value))
    assert str(again) == str(refused.value)
    with pytest.raises(CapabilityError, match=r"regime\(equation, theta\)"):
        again.regime()


def test_regime_without_start_or_root_names_what_is_missing():
    class NoStart:
        names, n_units = ("a",), 3

        def psi(self, theta):
            return np.ones((3, 1)) - theta

        def sensitivity(self, theta):
            return np.eye(1) + 0 * theta

    with pytest.raises(CapabilityError, match="`theta` is needed"):
        regime(NoStart())
    assert regime(NoStart(), [1.0]).name == "interpolating"


def test_regime_does_not_invent_a_root():
    """e^theta has no root; a point reached on the way to minus infinity is none."""

    def psi(theta, data):
        return np.exp(theta)[None, :] + data["x"][:, None] ** 2

    equation = ee.equation(psi, {"x": np.array([1.0, 2.0, 3.0])}, start=[0.0])
    with pytest.raises(ConvergenceError):
        regime(equation)


def test_free_root_of_a_wide_least_squares_problem_is_the_shortest():
    """With columns of one size: steps are shortest after equilibration."""
    wide = WIDE / np.linalg.norm(WIDE, axis=0)
    found = free_root(ee.ols(Y[:20], wide))
    assert np.allclose(wide @ found.theta, Y[:20], rtol=0, atol=1e-12)
    assert np.allclose(found.theta, np.linalg.pinv(wide) @ Y[:20], rtol=1e-8)


@pytest.mark.parametrize(
    ("model", "outcome"),
    [
        (lambda y, Z: ee.ols(y, Z), Y),
        (lambda y, Z: ee.glm(y, Z, family="binomial"), BINARY),
        (lambda y, Z: ee.glm(y, Z, family="poisson"), COUNTS),
    ],
    ids=["ols", "logit", "poisson"],
)
def test_estimable_functions_of_collinear_models_match_the_reduced_model(
    model, outcome
):
    """Oracle: the fit without the redundant column, whose effects are sums."""
    full = model(outcome, COLLINEAR)

    def identified(theta):
        return np.array([theta[0] + theta[3], theta[1] + theta[3], theta[2]])

    fit = estimable(full, identified)
    oracle = ee.estimate(model(outcome, X))
    assert np.allclose(fit.theta, oracle.theta, rtol=REFERENCE)
    assert np.allclose(fit.covariance, oracle.covariance, rtol=1e-7)
    assert fit.regime().name == "rank-deficient"
    shifted = free_root(full).theta + 3.0 * np.array([1.0, 1.0, 0.0, -1.0])
    other = estimable(full, identified, root=shifted)
    assert np.allclose(other.covariance, fit.covariance, rtol=1e-8)
    with pytest.raises(IdentificationError, match="not estimable"):
        estimable(full, lambda theta: theta[0])


def test_estimable_refuses_an_interpolating_model():
    with pytest.raises(InterpolationError, match="standard errors of zero"):
        estimable(ee.ols(Y[:20], WIDE), lambda theta: WIDE[0] @ theta)
