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
    n=st.integers(200, 1500),  # below, the spread that sets the window is noise itself
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
def test_a_percentile_from_a_start_crosses_zero_with_an_honest_variance(n, tau):
    """Delicatessen: variance 0 for a percentile."""
    y = np.random.default_rng(n).normal(size=n)
    fit = ee.estimate(ee.equation(step_psi(tau), {"y": y}, [0.1]))
    assert fit.root.is_converged
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
            ee.equation(
                huber_psi(1.345), {"y": data["Y4"].to_numpy(), "X": full}, [0] * 3
            ),
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
    "name",
    [
        "geex_SB1_meanvar",
        "geex_SB2_ratio",
        "geex_SB3_delta",
        "geex_SB4_iv",
        "geex_SB5_HodgesLehmann",
        "geex_SB9_logit",
        "geex_SB10_shaq",
    ],
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
    return np.column_stack([d["Y1"] - t[0], d["Y2"] - t[1], (t[0] - t[1] * t[2]) * one])


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
    y, w, z = d["Y3"], d["W1"], d["Z1"]
    return np.column_stack(
        [
            z - t[0],
            w - t[1],
            (y - t[2] * w) * (t[1] - w),
            (y - t[3] * w) * (t[0] - z),
        ]
    )


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


# -------------------------------------------------------------------- Huber's model


@pytest.fixture
def sample():
    rng = np.random.default_rng(4)
    X = np.column_stack([np.ones(200), rng.normal(size=(200, 2))])
    return X @ [1.0, -1.0, 0.5] + rng.standard_t(2, 200), X


def test_huber_regression_equals_its_loss_minimised(sample):
    y, X = sample

    def loss(theta):
        e = np.abs(y - X @ theta)
        return np.where(e < 1.345, e**2 / 2, 1.345 * e - 1.345**2 / 2).sum()

    found = optimize.minimize(loss, np.zeros(3), tol=1e-12).x
    np.testing.assert_allclose(ee.estimate(huber(y, X)).theta, found, atol=1e-5)


def test_huber_covariance_equals_the_formula_by_hand(sample):
    y, X = sample
    fit = ee.estimate(huber(y, X, k=1.0, scale=2.0))
    e = y - X @ fit.theta
    psi = X * np.clip(e / 2.0, -1.0, 1.0)[:, None]
    A = (X.T * (np.abs(e) < 2.0)) @ X / 2.0
    V = np.linalg.solve(A, np.linalg.solve(A, psi.T @ psi).T).T
    np.testing.assert_allclose(fit.spread.matrix, V, rtol=1e-9)
    assert np.max(np.abs(psi.sum(axis=0))) < 1e-9


def test_a_user_psi_has_the_covariance_of_the_huber_model(sample):
    y, X = sample
    user = ee.estimate(ee.equation(huber_psi(1.345), {"y": y, "X": X}, np.zeros(3)))
    model = ee.estimate(huber(y, X))
    np.testing.assert_allclose(user.spread.matrix, model.spread.matrix, rtol=1e-8)


def test_huber_is_equivariant_when_its_scale_is(sample):
    y, X = sample
    one = ee.estimate(huber(y, X))
    two = ee.estimate(huber(5.0 - 1e4 * y, X, scale=1e4))
    np.testing.assert_allclose(two.theta[1:], -1e4 * one.theta[1:], rtol=1e-9)
    np.testing.assert_allclose(two.se, 1e4 * one.se, rtol=1e-9)


def test_a_large_k_is_least_squares_and_a_small_scale_still_solves(sample):
    y, X = sample
    wide, ols = ee.estimate(huber(y, X, k=1e6)), ee.estimate(ee.ols(y, X))
    np.testing.assert_allclose(wide.theta, ols.theta, rtol=1e-9)
    np.testing.assert_allclose(wide.se, ols.se, rtol=1e-9)
    narrow = ee.estimate(huber(y, X, scale=0.05))
    assert np.max(np.abs(narrow.theta - quantile(y, X).start) / narrow.se) < 1.0


def test_leverage_and_model_based_rules_take_the_huber_model(sample):
    y, X = sample
    fit = ee.estimate(huber(y, X), ee.HC(3))
    assert (fit.se > ee.estimate(huber(y, X)).se).all()
    based = fit.with_covariance(ee.ModelBased(df_adjust=False))
    e = y - X @ fit.theta
    psi, inside = np.clip(e, -1.345, 1.345), np.abs(e) < 1.345
    A = (X.T * inside) @ X
    V = np.mean(psi**2) / np.mean(inside) * np.linalg.inv(A)
    np.testing.assert_allclose(based.spread.matrix, V, rtol=1e-9)


def test_huber_frequencies_equal_the_data_written_out(sample):
    y, X = sample
    w = np.random.default_rng(5).integers(1, 4, len(y))
    for rule in (ee.HC(0), ee.HC(3), ee.ModelBased()):
        counted = ee.estimate(huber(y, X, weights=ee.Frequency(w)), rule)
        whole = ee.estimate(huber(np.repeat(y, w), np.repeat(X, w, axis=0)), rule)
        np.testing.assert_allclose(counted.theta, whole.theta, rtol=1e-9)
        np.testing.assert_allclose(counted.se, whole.se, rtol=1e-9)


def test_huber_options_and_saturated_fits_are_refused(rng):
    for options, match in (({"k": 0.0}, "`k` must be"), ({"scale": -1}, "`scale`")):
        with pytest.raises(ValueError, match=match):
            huber([1.0, 2.0, 4.0], **options)
    X = rng.normal(size=(3, 3))
    with pytest.raises(InterpolationError, match="passes through all"):
        ee.estimate(huber(rng.normal(size=3), X))
    with pytest.raises(IdentificationError, match="rank 1"):
        ee.estimate(huber(rng.normal(size=9), np.ones((9, 2))))


# ---------------------------------------------------------------------- differences


def rows_of(kind):
    y = np.random.default_rng(6).normal(size=200)
    return {
        "step": lambda t: ((y <= t[0]) - 0.5)[:, None] * 1.0,
        "kink": lambda t: np.clip(y - t[0], -1, 1)[:, None],
        "smooth": lambda t: np.tanh(y - t[0])[:, None],
        "steep": lambda t: np.tanh((y - t[0]) / 1e-4)[:, None],
    }[kind]


@pytest.mark.parametrize(
    ("kind", "jumps"),
    [
        ("step", True),
        ("kink", False),
        ("smooth", False),
        ("steep", False),
    ],
)
@pytest.mark.parametrize("theta", [0.0123, -0.7, 3.5])
def test_jumps_are_told_from_kinks_and_steep_slopes(kind, jumps, theta):
    found = jumping_columns(rows_of(kind), np.array([theta]))
    assert found.tolist() == [jumps]
    steps = response_steps(rows_of(kind), np.array([theta]))
    assert (steps < 0).tolist() == ([True] if jumps else [False])


def test_a_window_holds_hall_and_sheathers_share_of_the_units():
    y = np.random.default_rng(6).normal(size=200)
    rows, theta = rows_of("step"), np.array([0.0123])
    target = 2 * 200 * hall_sheather(200, 0.5)
    width = jump_step(rows, theta, 0, np.array([True]), 0.1, target)
    inside = np.sum(np.abs(y - 0.0123) <= width * (1 + 1e-5))
    assert inside == np.ceil(target)
    smooth = rows_of("smooth")
    assert jump_step(smooth, theta, 0, np.array([True]), 0.1, 150.0) is None


def test_ties_at_the_value_itself_do_not_close_the_window():
    y = np.repeat(np.arange(10.0), 20)

    def rows(theta):
        return ((y <= theta[0]) - 0.5)[:, None] * 1.0

    width = -response_steps(rows, np.array([4.0]))[0]
    assert width >= 1.0
    slope = jacobian(lambda t: rows(t).mean(axis=0), np.array([4.0]), [-width])
    assert 0.05 < slope[0, 0] < 0.2  # the density of the integers is 0.1


@given(seed=st.integers(0, 10**6), p=st.integers(1, 4))
@SETTINGS
def test_differences_equal_analytic_derivatives(seed, p):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(50, p)) * 10.0 ** rng.integers(-4, 5, p)
    theta = rng.normal(size=p) / np.abs(X).max(axis=0)

    def rows(t):
        return X * np.exp(-X @ t)[:, None]

    steps = response_steps(rows, theta)
    seen = jacobian(lambda t: rows(t).mean(axis=0), theta, steps)
    wanted = -(X.T * np.exp(-X @ theta)) @ X / 50
    scale = np.sqrt(np.outer(np.diag(wanted), np.diag(wanted)))
    assert np.max(np.abs(seen - wanted) / scale) < 1e-9
    directions = np.diag(np.abs(steps)) @ (rng.normal(size=(p, p)) + 3 * np.eye(p))
    along = jacobian(lambda t: rows(t).mean(axis=0), theta, directions)
    assert np.max(np.abs(along - wanted) / scale) < 1e-8


def test_kinks_within_a_step_are_stepped_over():
    y = np.sort(np.random.default_rng(7).normal(size=500))
    theta = np.array([y[250] + 1.0 + 1e-5])  # a unit on its kink, nearly

    def rows(t):
        return np.clip(y - t[0], -1.0, 1.0)[:, None]

    steps = response_steps(rows, theta)
    slope = jacobian(lambda t: rows(t).mean(axis=0), theta, steps)
    assert slope[0, 0] == pytest.approx(-np.mean(np.abs(y - theta) < 1), rel=1e-9)
    h = float(np.abs(steps[0]))
    plain = (rows(theta + h).mean() - rows(theta - h).mean()) / (2 * h)
    assert abs(plain / slope[0, 0] - 1) > 1e-5  # negative control


def test_differences_shrink_at_the_edge_of_the_domain():
    def f(t):
        return np.array([np.log(t[0]), np.sqrt(t[0])])

    at = np.array([1e-4])
    slope = jacobian(f, at, np.array([1.0]))
    np.testing.assert_allclose(slope.ravel(), [1e4, 50.0], rtol=1e-6)
    with np.errstate(all="ignore"):
        assert not np.isfinite(jacobian(f, np.array([-1.0]), np.array([1.0]))).all()


def test_a_relation_that_vanishes_is_differenced_by_the_size_of_its_terms():
    theta = np.array([2775.0, 3043.0, 2775.0 - 3043.0])

    def rows(t):
        return np.full((30, 1), t[0] - t[1] - t[2])

    slope = jacobian(lambda t: rows(t).mean(axis=0), theta, response_steps(rows, theta))
    np.testing.assert_allclose(slope, [[1.0, -1.0, -1.0]], rtol=1e-9)


def test_hall_sheather_equals_statsmodels():
    from statsmodels.regression.quantile_regression import hall_sheather as theirs

    for n, tau in ((50, 0.5), (1000, 0.1), (77, 0.8)):
        assert hall_sheather(n, tau) == pytest.approx(theirs(n, tau), rel=EXACT)
