"""A latent model at fixed draws as an equation of the core, and its score intervals."""

import numpy as np
import pytest
import torch
from scipy import optimize, stats

import eestim as ee
from eestim.errors import DataError, IdentificationError, InferenceError
from eestim.llm.equations import Brier, CentredIWAE
from eestim.llm.fixed_draws import FixedDraws
from eestim.llm.scores import scores
from eestim.llm.synthetic import BinaryModel, binary_data

LOG_S = ("log_scale[0]",)


def drawn(n=300, draws=4, passes=1, seed=3, **options):
    return FixedDraws(
        BinaryModel(),
        binary_data(n, seed),
        draws=draws,
        passes=passes,
        parameters="all",
        **options,
    )


def test_psi_is_the_scores_mean_over_sets_and_its_derivative_is_a():
    equation = drawn(50, passes=2)
    both = scores(
        BinaryModel(), binary_data(50, 3), Brier(), draws=4, parameters="all",
        batch_size=1024,
    )  # fmt: skip
    assert not np.allclose(equation.psi(equation.start), both)  # one set: the control
    single = drawn(50)
    np.testing.assert_allclose(single.psi(single.start), both, rtol=1e-12, atol=1e-14)
    theta, step = equation.start + 0.1, 1e-5
    for j, e in enumerate(np.eye(3)):
        up, down = (equation.psi(theta + s * step * e).mean(0) for s in (1, -1))
        slope = (down - up) / (2 * step)
        np.testing.assert_allclose(
            equation.sensitivity(theta)[:, j], slope, rtol=1e-6, atol=1e-8
        )


def test_the_model_given_is_left_alone_and_the_core_solves():
    model = BinaryModel()
    equation = FixedDraws(model, binary_data(300, 3), draws=4, parameters="all")
    fit = ee.estimate(equation)
    assert np.abs(equation.psi(fit.theta).mean(0)).max() < 1e-8
    assert model.a.item() == pytest.approx(0.3)
    assert tuple(fit.names) == ("a", "b", *LOG_S)


def test_bounds_are_where_a_general_search_finds_the_critical_value():
    equation = drawn(1500, draws=8, batch_size=1500)
    fit = ee.estimate(equation)
    bounds = equation.score_interval(fit.theta, LOG_S).loc[LOG_S[0]]
    assert bounds["lower"] < bounds["estimate"] < bounds["upper"]

    def statistic(inner, value):
        psi = equation.psi([*inner, value])
        mean = psi.mean(0)
        return len(psi) * mean @ np.linalg.solve(np.cov(psi.T, bias=True), mean)

    for bound in (bounds["lower"], bounds["upper"]):
        found = optimize.minimize(
            statistic, fit.theta[:2], (bound,), "Nelder-Mead", options={"fatol": 1e-2}
        )
        # Steps by A leave out the change of M, which a full minimum has
        assert abs(found.fun - stats.chi2.ppf(0.95, 1)) < 0.15
    inner = found.x  # the control: beyond the bound it is rejected
    assert statistic(inner, bounds["upper"] + 0.3) > 4.5


def test_a_side_that_no_value_is_rejected_on_is_not_given_a_bound():
    equation = drawn(150)
    with pytest.raises(InferenceError, match="open is not known"):
        equation.score_interval(ee.estimate(equation).theta, LOG_S)


def test_a_value_that_is_itself_rejected_is_refused():
    equation = drawn(passes=2)
    far = equation.start + np.array([0.0, 0.0, 2.0])
    with pytest.raises(InferenceError, match="the score test itself rejects"):
        equation.score_interval(far, LOG_S)


def test_what_cannot_be_computed_is_refused():
    with pytest.raises(DataError, match="float64"):
        FixedDraws(BinaryModel().float(), binary_data(20, 0), parameters="all")
    with pytest.raises(ValueError, match="`draws` is 2"):
        drawn(20, draws=2, equation=CentredIWAE())
    with pytest.raises(ValueError, match="`passes` is 0"):
        drawn(20, passes=0)


def test_a_singular_sensitivity_is_named():
    model = BinaryModel()
    model.spare = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))  # never used
    drawn = FixedDraws(model, binary_data(200, seed=3), parameters="all")
    with pytest.raises(IdentificationError, match=r"free direction: \+1\*spare"):
        drawn.score_interval(drawn.start)
