import numpy as np
import pytest
import torch
from tolerances import EXACT, REFERENCE

import eestim as ee
from eestim import autodiff
from eestim.errors import DataError


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(8)
    X = np.column_stack([np.ones(200), rng.normal(size=(200, 2))])
    y = (rng.random(200) < 1 / (1 + np.exp(-(X @ [0.2, 0.7, -0.4])))).astype(float)
    return {"X": X, "y": y, "g": rng.integers(0, 30, 200), "w": rng.integers(1, 4, 200)}


def logistic(theta, data):
    return (data["y"] - torch.sigmoid(data["X"] @ theta))[:, None] * data["X"]


def test_exact_sensitivity_and_estimate_against_the_glm(data):
    equation = autodiff.equation(logistic, data, np.zeros(3))
    model = ee.glm(data["y"], data["X"], family="binomial")
    theta = np.array([0.1, 0.5, -0.2])
    np.testing.assert_allclose(
        equation.sensitivity(theta), model.sensitivity(theta), rtol=10 * EXACT
    )
    one, two = ee.estimate(equation), ee.estimate(model)
    np.testing.assert_allclose(one.theta, two.theta, rtol=REFERENCE)
    np.testing.assert_allclose(one.spread.matrix, two.spread.matrix, rtol=REFERENCE)


def test_forward_and_reverse_mode_agree(data):
    made = {
        mode: autodiff.equation(logistic, data, np.zeros(3), mode=mode)
        for mode in ("forward", "reverse")
    }
    theta = np.array([0.3, -0.5, 0.2])
    forward, reverse = (made[mode].sensitivity(theta) for mode in made)
    np.testing.assert_allclose(forward, reverse, rtol=EXACT)


def test_units_weights_and_blocks_against_numpy(data):
    def numpy_psi(theta, d):
        mu = 1 / (1 + np.exp(-(d["X"] @ np.asarray(theta["beta"]))))
        return (d["y"] - mu)[:, None] * d["X"]

    def torch_psi(theta, d):
        return (d["y"] - torch.sigmoid(d["X"] @ theta["beta"]))[:, None] * d["X"]

    start = {"beta": np.zeros(3)}
    for options in (
        {"units": "g"},
        {"weights": ee.Sampling("w")},
        {"weights": ee.Frequency("w")},
    ):
        one = ee.estimate(autodiff.equation(torch_psi, data, start, **options))
        two = ee.estimate(ee.equation(numpy_psi, data, start, **options))
        assert one.names == two.names and one.n_units == two.n_units
        np.testing.assert_allclose(one.theta, two.theta, rtol=1e-7)
        np.testing.assert_allclose(one.spread.matrix, two.spread.matrix, rtol=1e-7)


def test_unit_sensitivity_averages_to_the_sensitivity(data):
    equation = autodiff.equation(logistic, data, np.zeros(3), units="g")
    theta = np.array([0.1, 0.2, 0.3])
    each = equation.unit_sensitivity(theta)
    assert each.shape == (equation.n_units, 3, 3)
    np.testing.assert_allclose(
        each.mean(axis=0), equation.sensitivity(theta), rtol=10 * EXACT
    )


def test_a_module_against_least_squares(data):
    module = torch.nn.Linear(2, 1).double()
    x = torch.as_tensor(data["X"][:, 1:])
    y = torch.as_tensor(data["y"])
    batches = [(x[:90], y[:90]), (x[90:], y[90:])]

    def loss(model, batch):
        return (batch[1] - model(batch[0])[:, 0]) ** 2 / 2

    fit = ee.estimate(autodiff.from_module(module, loss, batches))
    oracle = ee.estimate(ee.ols(data["y"], data["X"]))
    order = [2, 0, 1]  # the bias comes last in the module
    np.testing.assert_allclose(fit.theta[order], oracle.theta, rtol=REFERENCE)
    np.testing.assert_allclose(
        fit.spread.matrix[np.ix_(order, order)], oracle.spread.matrix, rtol=REFERENCE
    )


def test_float32_agrees_to_its_precision(data):
    single = autodiff.equation(logistic, data, np.zeros(3), dtype=torch.float32)
    double = autodiff.equation(logistic, data, np.zeros(3))
    theta = np.array([0.1, 0.5, -0.2])
    assert single.psi(theta).dtype == np.float64
    np.testing.assert_allclose(
        single.sensitivity(theta), double.sensitivity(theta), atol=2e-6
    )


def test_bad_psi_is_refused(data):
    with pytest.raises(DataError, match="torch tensor"):
        autodiff.equation(lambda t, d: np.ones((200, 3)), data, np.zeros(3))
    with pytest.raises(DataError, match="shape"):
        autodiff.equation(lambda t, d: d["y"], data, np.zeros(3))
    with pytest.raises(DataError, match="one number for each unit"):
        autodiff.from_module(
            torch.nn.Linear(1, 1), lambda m, b: m(b).sum(), [torch.ones(3, 1)]
        )
