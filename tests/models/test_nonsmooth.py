"""Psi with kinks and jumps: differences at the right scale, never a zero A."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats
from tolerances import EXACT, REFERENCE

import eestim as ee
from eestim._differentiate import (
    hall_sheather,
    jacobian,
    jump_step,
    jumping_columns,
    response_steps,
)
from eestim.errors import (
    ConvergenceError,
    EestimError,
    IdentificationError,
    InterpolationError,
)
from eestim.models.quantiles import quantile
from eestim.models.robust import huber

SETTINGS = settings(deadline=None, max_examples=12)


def step_psi(tau):
    def psi(theta, data):
        return ((data["y"] <= theta[0]) - tau)[:, None]

    return psi


def plane_psi(tau):
    def psi(theta, data):
        below = data["y"] <= data["X"] @ np.asarray(theta)
        return data["X"] * (tau - below)[:, None]

    return psi


def huber_psi(k):
    def psi(theta, data):
        residual = data["y"] - data["X"] @ np.asarray(theta)
        return data["X"] * np.clip(residual, -k, k)[:, None]

    return psi


def between(y, tau):
    """A root of the step equation that is no data point."""
    ordered = np.sort(y)
    k = min(max(int(np.ceil(tau * len(y))), 1), len(y) - 1)
    return (ordered[k - 1] + ordered[k]) / 2


# ------------------------------------------------------------------- a user's steps


def test_a_percentile_has_a_positive_variance_where_delicatessen_has_zero():
    """Peers, trap 7: variance 0.0 for a true one of about pi / 2n."""
    y = np.random.default_rng(0).normal(size=1000)
    fit = ee.estimate(
        ee.equation(step_psi(0.5), {"y": y}, [0.0]), root=[between(y, 0.5)]
    )
    assert fit.se.iloc[0] == pytest.approx(np.sqrt(np.pi / 2000), rel=0.15)


@given(
    seed=st.integers(0, 10**6),
    n=st.integers(30, 1500),
    tau=st.floats(0.1, 0.9),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
)
@SETTINGS
def test_the_variance_of_a_percentile_is_never_zero_nor_far_off(seed, n, tau, scale):
    y = scale * np.random.default_rng(seed).normal(size=n)
    fit = ee.estimate(
        ee.equation(step_psi(tau), {"y": y}, [0.0]), root=[between(y, tau)]
    )
    z = stats.norm.ppf(tau)
    true = scale * np.sqrt(tau * (1 - tau) / n) / stats.norm.pdf(z)
    noise = 1 + 4 / np.sqrt(2 * n * hall_sheather(n, tau))
    assert true / noise < fit.se.iloc[0] < true * noise


def test_plain_differences_of_a_step_psi_are_zero_or_infinite():
    """Negative control: what a short step sees."""
    y = np.random.default_rng(0).normal(size=1000)
    psi, theta = step_psi(0.5), between(y, 0.5)
    up, down = (psi([theta + s * 1e-7], {"y": y}).mean() for s in (1, -1))
    assert up - down == 0.0


@pytest.mark.parametrize("n", [50, 101, 400])
@pytest.mark.parametrize("tau", [0.25, 0.5])
def test_a_percentile_from_a_start_is_solved_or_refused_never_wrong(n, tau):
    y = np.random.default_rng(n).normal(size=n)
    equation = ee.equation(step_psi(tau), {"y": y}, [0.1])
    try:
        fit = ee.estimate(equation)
    except ConvergenceError as refusal:
        assert "discontinuous" in str(refusal)
        return
    assert abs(np.mean(y <= fit.theta[0]) - tau) <= 2 / n
    true = np.sqrt(tau * (1 - tau) / n) / stats.norm.pdf(stats.norm.ppf(tau))
    assert true / 2 < fit.se.iloc[0] < 2 * true


def test_a_users_quantile_regression_is_near_powells():
    rng = np.random.default_rng(1)
    X = np.column_stack([np.ones(3000), rng.normal(size=(3000, 2))])
    y = X @ [1.0, 2.0, 0.0] + (1 + np.abs(X[:, 1])) * rng.standard_t(4, 3000)
    model = ee.estimate(quantile(y, X, 0.5))
    user = ee.estimate(
        ee.equation(plane_psi(0.5), {"y": y, "X": X}, np.zeros(3)),
        root=model.theta + 1e-9,
    )
    np.testing.assert_allclose(user.se, model.se, rtol=0.1)


def test_a_mean_beside_a_median_keeps_its_exact_variance():
    """Jumps in one column and a smooth other: each at its own scale."""
    y = np.random.default_rng(2).exponential(size=500)

    def psi(theta, data):
        y = data["y"]
        return np.column_stack([y - theta["mean"], (y <= theta["median"]) - 0.5])

    made = ee.equation(psi, {"y": y}, {"mean": 0.0, "median": 0.5})
    fit = ee.estimate(made, root=[y.mean(), between(y, 0.5)])
    assert fit.se["mean"] == pytest.approx(y.std() / np.sqrt(500), rel=1e-10)
    true = 1 / np.sqrt(500)  # sqrt(1/4) over the density, which is 1/2 at log 2
    assert fit.se["median"] == pytest.approx(true, rel=0.25)
    joint = np.mean((y - y.mean()) * ((y <= fit.theta[1]) - 0.5))
    slope = made.sensitivity(fit.theta)[1, 1]
    wanted = joint / slope / 500
    assert fit.spread.matrix[0, 1] == pytest.approx(wanted, rel=1e-9)


def test_a_two_step_expected_shortfall_in_a_stack():
    """A quantile by its model, then a function that is continuous but kinked in it."""
    from eestim.stacking import stack

    y = np.random.default_rng(3).normal(size=4000)
    tau = 0.1

    def shortfall(theta, data):
        below = np.minimum(data["y"] - theta["q[quantile]"], 0.0) / tau
        return (theta["q[quantile]"] + below - theta["es"])[:, None]

    fit = ee.estimate(
        stack(q=quantile(y, tau=tau), es=shortfall, data={"y": y}, start={"es": 0.0})
    )
    z = stats.norm.ppf(tau)
    assert fit.theta[1] == pytest.approx(-stats.norm.pdf(z) / tau, abs=4 * fit.se["es"])
    own = z + np.minimum(y - z, 0) / tau  # A21 is zero at the quantile
    assert fit.se["es"] == pytest.approx(own.std() / np.sqrt(4000), rel=0.03)


# ---------------------------------------------------------------------------- kinks


def test_huber_location_and_regression_equal_geex(refcases):
    data = refcases.frame("geexex.csv")
    location, regression = (
        refcases.case(name) for name in ("geex_SB6_huber", "geex_SB8_huberreg")
    )
    y1, X = data["Y1"].to_numpy(), np.ones((100, 1))
    full = np.column_stack([np.ones(100), data[["X1", "X2"]]])
    fits = {
        "location": (huber("Y1", data, k=1.5), location),
        "location by a user": (
            ee.equation(huber_psi(1.5), {"y": y1, "X": X}, [1.0]),
            location,
        ),
        "regression": (huber("Y4 ~ X1 + X2", data), regression),
        "regression by a user": (
            ee.equation(huber_psi(1.345), {"y": data["Y4"].to_numpy(), "X": full}, [0] * 3),
            regression,
        ),
    }
    for name, (equation, case) in fits.items():
        fit = ee.estimate(equation)
        V = np.array(case["vcov"])
        errors = np.sqrt(np.diag(V))
        gap = np.max(np.abs(fit.spread.matrix - V) / np.outer(errors, errors))
        assert gap < REFERENCE, name
        assert np.max(np.abs(fit.theta - case["estimate"]) / errors) < REFERENCE, name


@pytest.mark.parametrize(
    "name", ["geex_SB1_meanvar", "geex_SB2_ratio", "geex_SB3_delta", "geex_SB4_iv",
             "geex_SB5_HodgesLehmann", "geex_SB9_logit", "geex_SB10_shaq"]
)
def test_smooth_user_equations_equal_geex(name, refcases):
    build, file, start = GEEX[name]
    fit = ee.estimate(ee.equation(build, refcases.frame(file), start))
    case = refcases.case(name)
    V = np.array(case["vcov"])
    errors = np.sqrt(np.diag(V))
    gap = np.max(np.abs(fit.spread.matrix - V) / np.outer(errors, errors))
    assert gap < REFERENCE
    assert np.max(np.abs(fit.theta - case["estimate"]) / errors) < REFERENCE


def mean_and_variance(t, d):
    return np.column_stack([d["Y1"] - t[0], (d["Y1"] - t[0]) ** 2 - t[1]])


def ratio(t, d):
    one = np.ones(len(d))
    return np.column_stack(
        [d["Y1"] - t[0], d["Y2"] - t[1], (t[0] - t[1] * t[2]) * one]
    )


def delta(t, d):
    one = np.ones(len(d))
    return np.column_stack(
        [
            mean_and_variance(t, d),
            (np.sqrt(t[1]) - t[2]) * one,
            (np.log(t[1]) - t[3]) * one,
        ]
    )


def instrument(t, d):
    T, W, Y, Z = d["Z1"], d["W1"], d["Y3"], d["Z1"]
    del T, Z
    return W, Y, t


def hodges_lehmann(t, d):
    values = (stats.norm.cdf(d["Y2"] - t[0]) - 0.5) * 2 * np.sqrt(np.pi)
    return np.asarray(values)[:, None]


def logistic(t, d):
    X = np.column_stack([np.ones(len(d)), d["X1"], d["X2"]])
    return X * (d["Y5"].to_numpy() - 1 / (1 + np.exp(-X @ np.asarray(t))))[:, None]


def free_throws(t, d):
    made, tried = d["ft_made"], d["ft_attp"]
    binomial = (made - tried * t[1]) ** 2 / (tried * t[1] * (1 - t[1]))
    return np.column_stack([binomial - t[0], made - tried * t[1]])


GEEX = {
    "geex_SB1_meanvar": (mean_and_variance, "geexex.csv", [1, 1]),
    "geex_SB2_ratio": (ratio, "geexex.csv", [1, 1, 1]),
    "geex_SB3_delta": (delta, "geexex.csv", [1, 1, 1, 1]),
    "geex_SB4_iv": (instrument, "geexex.csv", [1, 1, 1, 1]),
    "geex_SB5_HodgesLehmann": (hodges_lehmann, "geexex.csv", [1]),
    "geex_SB9_logit": (logistic, "geexex.csv", [0, 0, 0]),
    "geex_SB10_shaq": (free_throws, "shaq.csv", [1.0, 0.5]),
}
