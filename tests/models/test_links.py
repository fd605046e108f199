"""Scores of links whose mean rounds to 1, against closed forms in the tails."""

import numpy as np
import pytest
from scipy import special
from tolerances import DERIVATIVE, EXACT

import eestim as ee

ETA = np.array([-30.0, -8.0, -1.0, 0.3, 2.0, 5.0, 9.0, 30.0])


def scores(link, y):
    """psi and A of each unit at its own linear predictor."""
    data = np.where(np.arange(len(ETA)) % 2, 1.0, 0.0)
    equation = ee.glm(data, np.eye(len(ETA)), family="binomial", link=link)
    object.__setattr__(equation, "response", np.full(len(ETA), float(y)))
    terms = equation.terms_at(ETA)
    return terms.residual, equation.observed_weight(terms), equation


def hazard(eta):
    return np.sqrt(2.0 / np.pi) / special.erfcx(eta / np.sqrt(2.0))


EXPECTED = {
    ("cloglog", 0): lambda eta: -np.exp(eta),
    ("probit", 0): lambda eta: -hazard(eta),
}


@pytest.mark.parametrize(("link", "y"), EXPECTED)
def test_scores_of_a_zero_in_the_tails_by_closed_form(link, y):
    residual, _, _ = scores(link, y)
    np.testing.assert_allclose(residual, EXPECTED[link, y](ETA), rtol=EXACT, atol=0)


@pytest.mark.parametrize("link", ["cloglog", "probit"])
def test_scores_of_a_one_by_closed_form_and_zero_where_its_mean_is_one(link):
    residual, _, _ = scores(link, 1)
    rate = np.exp(ETA)
    closed = (
        rate / np.expm1(np.minimum(rate, 700.0)) if link == "cloglog" else hazard(-ETA)
    )
    few = ETA < 3  # beyond, 1 - mu has lost its digits
    np.testing.assert_allclose(residual[few], closed[few], rtol=1e-11, atol=0)
    assert (np.abs(residual[~few]) < 1e-3).all()


@pytest.mark.parametrize("link", ["cloglog", "probit"])
@pytest.mark.parametrize("y", [0, 1])
def test_their_derivatives_by_differences(link, y):
    _, weight, equation = scores(link, y)
    step = 1e-5
    ends = [equation.terms_at(ETA + s * step).residual for s in (-1.0, 1.0)]
    slopes = (ends[0] - ends[1]) / (2 * step)
    few = np.abs(ETA) < 6
    np.testing.assert_allclose(weight[few], slopes[few], rtol=1e-5, atol=DERIVATIVE)
    assert np.isfinite(weight).all()
    assert np.isfinite(scores(link, y)[0]).all()
