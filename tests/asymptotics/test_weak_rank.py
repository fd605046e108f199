"""A rank close to noise is warned of by `regime`; Gram matrices are left to numbers."""

import numpy as np
import pytest

import eestim as ee
from eestim.asymptotics import jacobian_omega, rank_report, regime, weak_rank
from eestim.asymptotics.weak import weak_rank_finding


def instrumented(strength, n=2000, seed=0):
    """Return y = x + u with u in x too, instrument z, as an equation without mean."""
    rng = np.random.default_rng(seed)
    z, u, v = rng.standard_normal((3, n))
    x = strength * z + 0.6 * u + 0.8 * v
    data = {"y": x + u, "x": x, "z": z}

    def psi(theta, data):
        return (data["z"] * (data["y"] - theta[0] * data["x"]))[:, None]

    return ee.equation(psi, data, start=[0.0], names=["effect"]), data


def test_a_weak_instrument_is_told_in_standard_errors_of_its_covariance():
    equation, data = instrumented(0.1)
    told = regime(ee.estimate(equation))
    (finding,) = told.findings
    product = data["z"] * data["x"]
    ratio = abs(product.mean()) / product.std() * len(product) ** 0.5
    assert finding.value == pytest.approx(ratio, rel=1e-6)
    assert ratio < 10
    assert (told.name, finding.name, finding.status) == (
        "classical", "weak rank", "warn",
    )  # fmt: skip
    text = str(told)
    assert "+1*effect is weakly identified" in text
    assert "refused: coverage of Wald intervals in the weak direction" in text
    assert "ScoreInverted" in text


def test_a_strong_instrument_is_not_called_weak():
    told = regime(ee.estimate(instrumented(1.0)[0]))
    assert (told.findings, told.refused) == ((), "nothing.")


def exponential(theta, data):
    e = data["y"] - np.exp(theta[0] + theta[1] * data["x"])
    return e[:, None] * np.column_stack([np.ones(len(e)), data["z"]])


def test_the_error_of_the_plugged_in_root_is_that_of_weak_rank_on_arrays():
    """Oracle: all of Omega from derivatives in closed form."""
    rng = np.random.default_rng(1)
    n = 1500
    z, v = rng.standard_normal((2, n))
    x = 0.15 * z + v
    data = {"x": x, "z": z, "y": np.exp(0.3 + 0.4 * x) + rng.standard_normal(n)}
    fit = ee.estimate(ee.equation(exponential, data, start=[0.0, 0.0]))
    mean = np.exp(fit.theta[0] + fit.theta[1] * x)
    Z, X = np.column_stack([np.ones(n), z]), np.column_stack([np.ones(n), x])
    units = mean[:, None, None] * Z[:, :, None] * X[:, None, :]
    bend = np.einsum("i,iq,ip,ik->pqk", mean, Z, X, X) / n  # columns of A stacked
    psi = exponential(fit.theta, data)
    omega = jacobian_omega(units, psi, bend.reshape(4, 2))
    A = units.mean(axis=0)
    exact = weak_rank(A, omega, n)
    found = weak_rank_finding(fit.equation, fit.theta, rank_report(A))
    assert exact.is_weak
    assert found.value == pytest.approx(exact.ratio, rel=1e-5)
    known = weak_rank(A, jacobian_omega(units), n)  # the control: the root as known
    assert abs(found.value / known.ratio - 1.0) > 0.01


def test_a_gram_matrix_of_few_units_is_not_called_weak():
    """The control: on arrays alone its smallest value looks weak, for any design."""
    X, y = np.random.default_rng(2).standard_normal((2, 60, 2))
    fit = ee.estimate(ee.ols(y[:, 0], X))
    units = X[:, :, None] * X[:, None, :]
    assert weak_rank(units.mean(axis=0), jacobian_omega(units), 60).is_weak
    assert regime(fit).findings == ()


def test_a_singular_equation_whose_kept_part_is_weak_says_both():
    equation, data = instrumented(0.1)

    def doubled(theta, data):
        one = data["z"] * (data["y"] - (theta[0] + theta[1]) * data["x"])
        return np.column_stack([one, one])

    told = regime(ee.equation(doubled, data, start=[0.0, 0.0], names=["a", "b"]))
    assert told.name == "rank-deficient"
    assert "Also: coverage of Wald intervals" in told.refused
    one = regime(ee.estimate(equation)).findings[0].value
    assert told.findings[-1].value == pytest.approx(one, rel=1e-6)
