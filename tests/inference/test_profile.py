"""Profile-likelihood and score-inverted intervals.

Numbers in the names are those of the property list in the theory notes.
"""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats
from tolerances import REFERENCE

import eestim as ee
from eestim.errors import CapabilityError, DataError, InferenceError
from eestim.inference._crossing import crossing
from eestim.inference.profile import Profile, ScoreInverted
from eestim.models.quantiles import quantile

SETTINGS = settings(deadline=None, max_examples=6)
Q95 = stats.chi2.ppf(0.95, 1)


def expit(eta):
    return 1.0 / (1.0 + np.exp(-eta))


def ends(frame, name=None):
    row = frame.iloc[0] if name is None else frame.loc[name]
    return np.array([row["lower"], row["upper"]])


@pytest.fixture
def data():
    rng = np.random.default_rng(5)
    n = 90
    x, z = rng.normal(size=(2, n))
    eta = 0.4 + 0.5 * x
    return pd.DataFrame(
        {
            "x": x,
            "z": z,
            "y": eta + rng.normal(size=n) * (0.5 + np.abs(x)),
            "b": (rng.random(n) < expit(eta)).astype(float),
            "c": rng.poisson(np.exp(eta)).astype(float),
            "g": rng.integers(0, 15, n),
        }
    )


# --------------------------------------------------------------------- likelihood


def test_profile_intervals_equal_those_of_mass(refcases):
    """R interpolates the profile by splines, hence 1e-4."""
    extra = refcases.case("profile_ci_birthwt")["extra"]
    data = refcases.frame("birthwt.csv")
    fit = ee.estimate(ee.glm("smoke ~ lwt + age + ht", data, family="binomial"))
    bounds = fit.interval(method=Profile())
    np.testing.assert_allclose(bounds["lower"], extra["lower"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(bounds["upper"], extra["upper"], rtol=0, atol=1e-4)
    assert np.array_equal(bounds["estimate"], fit.theta)


def test_profile_of_a_poisson_mean_solves_its_equation():
    y = np.array([0.0, 2.0, 1.0, 0.0, 3.0])
    fit = ee.estimate(ee.glm(y, np.ones((5, 1)), family="poisson"))

    def excess(eta):
        return 2 * (y.sum() * (np.log(y.mean()) - eta) - 5 * (y.mean() - np.exp(eta)))

    for level in (0.8, 0.95):
        wanted = stats.chi2.ppf(level, 1)
        by_hand = [
            optimize.brentq(lambda eta, q=wanted: excess(eta) - q, *bracket)
            for bracket in ((-4.0, np.log(1.2)), (np.log(1.2), 3.0))
        ]
        found = ends(fit.interval(level, Profile()))
        np.testing.assert_allclose(found, by_hand, rtol=0, atol=1e-8)


def test_profile_of_least_squares_has_a_closed_form(data):
    """The concentrated likelihood: half width se_ML sqrt{n (exp(q/n) - 1)}."""
    fit = ee.estimate(ee.ols("y ~ x + z", data))
    n = len(data)
    errors = fit.with_covariance(ee.ModelBased(df_adjust=False)).se
    half = errors * np.sqrt(n * np.expm1(Q95 / n))
    bounds = fit.interval(method=Profile())
    np.testing.assert_allclose(bounds["upper"] - fit.params, half, rtol=1e-6)
    np.testing.assert_allclose(fit.params - bounds["lower"], half, rtol=1e-6)


def test_the_bound_of_a_profile_has_the_critical_likelihood(data):
    """By a general minimiser, away from the solver of the package."""
    fit = ee.estimate(ee.glm("b ~ x + z", data, family="binomial"))
    X = np.column_stack([np.ones(len(data)), data[["x", "z"]]])
    y = data["b"].to_numpy()

    def loss(theta):
        eta = X @ theta
        return np.logaddexp(0.0, eta).sum() - y @ eta

    for bound in ends(fit.interval(method=Profile()), "x"):
        held = optimize.minimize(
            lambda t, c=bound: loss(np.array([t[0], c, t[1]])), np.zeros(2), tol=1e-10
        )
        assert 2 * (held.fun - loss(fit.theta)) == pytest.approx(Q95, rel=1e-6)


@given(seed=st.integers(0, 10**6))
@SETTINGS
def test_profile_does_not_depend_on_the_parameterisation(seed):
    rng = np.random.default_rng(seed)
    n = 60
    X = np.column_stack([np.ones(n), rng.normal(size=(n, 2))])
    y = rng.poisson(np.exp(X @ [0.3, 0.3, 0.0])).astype(float)
    fit = ee.estimate(ee.glm(y, X, family="poisson"))
    # x1 keeps its coefficient when the others are mixed and it is rescaled.
    L = np.array([[1.0, 0.4, 0.3], [0.0, 5.0, 0.0], [0.2, -0.7, 2.0]])
    again = ee.estimate(ee.glm(y, X @ L, family="poisson"))
    one = ends(fit.interval(method=Profile()), "x1")
    two = ends(again.interval(method=Profile()), "x1")
    np.testing.assert_allclose(5.0 * two, one, rtol=0, atol=1e-6 * fit.se["x1"])


def test_a_profile_that_never_falls_gives_an_infinite_bound():
    """One group has no events: its rate has no lower bound on the log scale."""
    table = pd.DataFrame(
        {"y": [0.0] * 3 + [2.0, 1.0, 4.0, 1.0], "a": [1] * 3 + [0] * 4}
    )
    eq = ee.glm("y ~ a", table, family="poisson")
    root = np.array([np.log(2.0), -30.0])
    search = [crossing(lambda c: 2 * 6 * np.exp(c), -30.0, s, Q95) for s in (-1.0, 1.0)]
    assert search[0] == -np.inf
    assert search[1] == pytest.approx(np.log(Q95 / 12), rel=1e-9)
    assert eq.log_likelihood(root) == pytest.approx(8 * np.log(2.0) - 8, abs=1e-9)


def test_likelihoods_equal_those_of_statsmodels_up_to_a_constant(data):
    import statsmodels.api as sm

    X = sm.add_constant(data[["x"]].to_numpy())
    one, two = np.array([0.2, 0.1]), np.array([-0.3, 0.4])
    for outcome, family, model in (
        ("b", "binomial", sm.Logit),
        ("c", "poisson", sm.Poisson),
    ):
        ours = ee.glm(f"{outcome} ~ x", data, family=family).log_likelihood
        theirs = model(data[outcome], X).loglike
        wanted = theirs(one) - theirs(two)
        assert ours(one) - ours(two) == pytest.approx(wanted, rel=1e-10)


# ------------------------------------------------------------------ score-inverted


@given(seed=st.integers(0, 10**6), n=st.integers(8, 60), level=st.floats(0.5, 0.99))
@SETTINGS
def test_score_inverted_mean_has_a_closed_form(seed, n, level):
    y = np.random.default_rng(seed).normal(size=n)
    fit = ee.estimate(ee.mean(y))
    q = stats.chi2.ppf(level, 1)
    half = np.sqrt(q * y.var() / (n - q)) if n > q else np.inf
    bounds = ends(fit.interval(level, ScoreInverted()))
    wanted = np.array([y.mean() - half, y.mean() + half])
    np.testing.assert_allclose(bounds, wanted, rtol=0, atol=1e-6 * fit.se.iloc[0])


def sign_interval(y, tau):
    """Values that the sign test with the variance about zero does not reject."""
    grid = np.sort(np.concatenate([y, (np.sort(y)[1:] + np.sort(y)[:-1]) / 2]))
    kept = []
    for c in grid:
        psi = tau - (y <= c)
        if len(y) * psi.mean() ** 2 / np.mean(psi**2) <= Q95:
            kept.append(c)
    return min(kept), max(kept)


@pytest.mark.parametrize("tau", [0.5, 0.2])
def test_score_inverted_quantile_is_the_sign_test(tau):
    y = np.random.default_rng(3).exponential(size=80)
    fit = ee.estimate(quantile(y, tau=tau))
    lower, upper = ends(fit.interval(method=ScoreInverted()))
    low, high = sign_interval(y, tau)
    ordered = np.sort(y)
    # The set is closed below and open above, between order statistics.
    assert lower == pytest.approx(low, rel=1e-7)
    following = ordered[np.searchsorted(ordered, high, side="right")]
    assert upper == pytest.approx(following, rel=1e-7)


def test_score_inverted_bounds_equal_a_brute_force_profile(data):
    fit = ee.estimate(ee.glm("b ~ x + z", data, family="binomial"))
    psi = fit.equation.psi

    def statistic(theta):
        rows = psi(theta)
        mean = rows.mean(axis=0)
        return len(rows) * mean @ np.linalg.solve(rows.T @ rows / len(rows), mean)

    for bound in ends(fit.interval(method=ScoreInverted()), "x"):
        held = optimize.minimize(
            lambda t, c=bound: statistic(np.array([t[0], c, t[1]])),
            fit.theta[[0, 2]],
            method="Nelder-Mead",
            options={"xatol": 1e-9, "fatol": 1e-12, "maxiter": 4000},
        )
        assert held.fun == pytest.approx(Q95, rel=1e-6)


def user(y, X, transform=lambda theta: np.eye(2), map_=lambda eta: eta):
    def psi(eta, data):
        theta = map_(np.asarray(eta))
        rows = (data["y"] - np.exp(data["X"] @ theta))[:, None] * data["X"]
        return rows @ transform(np.asarray(eta)).T

    return psi, {"y": y, "X": X}


@given(seed=st.integers(0, 10**6))
@SETTINGS
def test_47_score_inverted_intervals_are_invariant(seed):
    """To psi -> C psi, psi -> C(theta) psi, and linear and smooth parameters."""
    rng = np.random.default_rng(seed)
    n = 60
    X = np.column_stack([np.ones(n), rng.normal(size=n)])
    y = rng.poisson(np.exp(0.4 + 0.3 * X[:, 1])).astype(float)
    fit = ee.estimate(ee.glm(y, X, family="poisson"))
    one = ends(fit.interval(method=ScoreInverted()), "x1")
    slack = 1e-5 * fit.se["x1"]

    C = rng.normal(size=(2, 2)) + 3 * np.eye(2)
    variants = {
        "C": user(y, X, lambda eta: C),
        "C(theta)": user(y, X, lambda eta: C + np.diag(np.tanh(eta))),
    }
    for psi, table in variants.values():
        other = ee.estimate(ee.equation(psi, table, fit.theta))
        found = ends(other.interval(method=ScoreInverted()).iloc[[1]])
        np.testing.assert_allclose(found, one, rtol=0, atol=slack)

    linear = np.array([[1.0, 0.5], [0.0, 2.0]])  # the slope is twice the second
    psi, table = user(y, X, map_=lambda eta: linear @ eta)
    other = ee.estimate(ee.equation(psi, table, np.linalg.solve(linear, fit.theta)))
    found = 2 * ends(other.interval(method=ScoreInverted()).iloc[[1]])
    np.testing.assert_allclose(found, one, rtol=0, atol=slack)

    psi, table = user(y, X, map_=np.sinh)
    other = ee.estimate(ee.equation(psi, table, np.arcsinh(fit.theta)))
    found = np.sinh(ends(other.interval(method=ScoreInverted()).iloc[[1]]))
    np.testing.assert_allclose(found, one, rtol=0, atol=slack)


def test_47_fails_for_wald_intervals():
    """Negative control: Wald changes with the scale of the parameter."""
    rng = np.random.default_rng(0)
    X = np.column_stack([np.ones(40), rng.normal(size=40)])
    y = rng.poisson(np.exp(0.4 + 0.3 * X[:, 1])).astype(float)
    fit = ee.estimate(ee.glm(y, X, family="poisson"))
    psi, table = user(y, X, map_=np.sinh)
    other = ee.estimate(ee.equation(psi, table, np.arcsinh(fit.theta)))
    moved = np.sinh(ends(other.interval().iloc[[1]]))
    assert np.max(np.abs(moved - ends(fit.interval(), "x1"))) > 1e-3 * fit.se["x1"]


def test_the_statistic_is_at_most_n_so_three_units_leave_it_unbounded():
    fit = ee.estimate(ee.mean([1.0, 2.0, 4.0]))
    assert ends(fit.interval(method=ScoreInverted())).tolist() == [-np.inf, np.inf]


def test_units_are_summed_before_the_scores_are_weighed(data):
    def psi(theta, table):
        return (table["y"] - theta[0]).to_numpy()[:, None]

    fit = ee.estimate(ee.equation(psi, data, [0.0], units="g"))
    counts = data.groupby("g")["y"].agg(["sum", "size"]).to_numpy()

    def excess(c):
        rows = counts[:, 0] - c * counts[:, 1]
        return len(rows) * rows.mean() ** 2 / np.mean(rows**2) - Q95

    bounds = ends(fit.interval(method=ScoreInverted()))
    mean = fit.theta[0]
    by_hand = [optimize.brentq(excess, mean, mean + s * 8) for s in (-0.1, 0.1)]
    np.testing.assert_allclose(bounds, by_hand, rtol=REFERENCE)


# ------------------------------------------------- where the statistic stays small


def overdispersed(seed, n=30):
    """Counts with variance mu + mu^2 / 2: their scores are noisy where large."""
    rng = np.random.default_rng(seed)
    X = np.column_stack([np.ones(n), rng.normal(size=n)])
    y = rng.poisson(np.exp(X @ [0.7, 0.4]) * rng.gamma(2.0, 0.5, n)).astype(float)
    return y, X


def score_profile(y, X, slope, centre):
    """The statistic minimised over the intercept on a grid, then by sections."""

    def statistic(intercept):
        psi = (y - np.exp(intercept + slope * X[:, 1]))[:, None] * X
        mean = psi.mean(axis=0)
        return len(y) * mean @ np.linalg.solve(psi.T @ psi / len(y), mean)

    grid = centre + np.linspace(-3.0, 2.0, 61)
    best = int(np.argmin([statistic(one) for one in grid]))
    bounds = (grid[max(best - 1, 0)], grid[min(best + 1, 60)])
    return optimize.minimize_scalar(
        statistic, bounds=bounds, method="bounded", options={"xatol": 1e-9}
    ).fun


@pytest.mark.parametrize("seed", range(3, 9))
def test_score_inverted_counts_against_a_grid(seed):
    """The bound is the first crossing, or infinite where the profile never crosses."""
    y, X = overdispersed(seed)
    fit = ee.estimate(ee.glm(y, X, family="poisson", names=["one", "x"]))
    bounds = ends(fit.interval(method=ScoreInverted(names=["x"])), "x")
    centre, slope = fit.theta
    steps = np.linspace(0.25, 12.0, 48)
    for sign, bound in zip((-1.0, 1.0), bounds, strict=True):
        tried = slope + sign * steps * fit.se["x"]
        profile = np.array([score_profile(y, X, one, centre) for one in tried])
        away = abs(bound - slope) / fit.se["x"]
        if away > steps[-1]:
            assert profile.max() <= Q95
        else:
            assert score_profile(y, X, bound, centre) == pytest.approx(Q95, abs=1e-5)
            first = steps[np.argmax(profile > Q95)] if profile.max() > Q95 else np.inf
            assert first - 0.25 <= away <= first


def test_score_inverted_counts_always_have_an_answer():
    """Each side has a bound or is open; some are open, and the fits do not fail."""
    sides = []
    for seed in range(12):
        y, X = overdispersed(seed)
        fit = ee.estimate(ee.glm(y, X, family="poisson", names=["one", "x"]))
        sides.append(ends(fit.interval(method=ScoreInverted(names=["x"])), "x"))
    bounds = np.array(sides)
    assert not np.isnan(bounds).any()
    assert 0 < np.isinf(bounds).sum() < bounds.size


def test_numerical_and_exact_slopes_give_the_same_bounds():
    y, X = overdispersed(4, 60)
    fit = ee.estimate(ee.glm(y, X, family="poisson"))
    psi, table = user(y, X)
    other = ee.estimate(ee.equation(psi, table, fit.theta))
    one = ends(fit.interval(method=ScoreInverted()))
    two = ends(other.interval(method=ScoreInverted()))
    np.testing.assert_allclose(two, one, rtol=0, atol=1e-5 * fit.se.max())


def test_a_statistic_that_rises_and_falls_between_two_values_is_not_missed():
    """The peak above the critical value lies between values that are looked at."""

    def hump(value):
        return 3.9 * np.exp(-((value - 1.45) ** 2) / 0.02) + 0.1 * min(value, 1.0)

    found = crossing(hump, 0.0, 1.0, 3.841)
    assert hump(found) == pytest.approx(3.841, abs=1e-6)
    assert found < 1.45
    lower = crossing(lambda value: 0.9 * hump(value), 0.0, 1.0, 3.841)
    assert lower == np.inf  # negative control: its peak stays below


def test_psi_too_large_for_a_number_leaves_the_set_open():
    """A statistic that cannot be evaluated is not one above its critical value."""
    assert crossing(lambda v: 1.0 if v < 5 else np.nan, 0.0, 1.0, 3.8) == np.inf
    assert crossing(lambda v: 1.0 if v < 5 else np.inf, 0.0, 1.0, 3.8) == (
        pytest.approx(5.0)
    )


def test_a_statistic_that_still_grows_where_it_ends_is_an_error_not_an_open_side():
    with pytest.raises(InferenceError, match=r"statistic is 2\.5 at 5, below"):
        crossing(lambda v: v**2 / 10 if v < 5 else np.nan, 0.0, 1.0, 3.8)
    # a bound between the last value looked at and the end is found
    found = crossing(lambda v: v**2 if v < 2 else np.nan, 0.0, 1.0, 3.8)
    assert found == pytest.approx(3.8**0.5)


def cloglog(seed, n=30):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    y = rng.random(n) < 1 - np.exp(-np.exp(-0.5 + 0.8 * x))
    X = np.column_stack([np.ones(n), x])
    return ee.estimate(ee.glm(y * 1.0, X, family="binomial", link="cloglog"))


@pytest.mark.parametrize("seed", [1000, 1003, 1026])
def test_cloglog_sides_have_an_answer_where_the_mean_rounds_to_one(seed):
    """Each failed while psi was 0 / 0 there; an open side stays low however far."""
    fit = cloglog(seed)
    name = fit.names[1]
    lower, upper = ends(fit.interval(method=ScoreInverted(names=[name])), name)
    psi = fit.equation.psi

    def profile(value):
        def statistic(intercept):
            rows = psi(np.array([intercept, value]))
            rows = rows / np.abs(rows).max(axis=0)
            fitted = rows @ np.linalg.lstsq(rows, np.ones(len(rows)))[0]
            return float(fitted.sum())

        return min(statistic(one) for one in np.linspace(-12.0, 12.0, 601))

    errors = float(fit.se.iloc[1])
    for sign, bound in ((-1.0, lower), (1.0, upper)):
        steps = fit.theta[1] + sign * errors * np.array([0.5, 1.0, 2.0, 4.0, 8.0, 16.0])
        inside = steps[np.abs(steps - fit.theta[1]) < abs(bound - fit.theta[1])]
        assert all(profile(value) <= Q95 + 0.01 for value in inside)


@pytest.mark.parametrize("method", [Profile, ScoreInverted, ee.EmpiricalLikelihood])
def test_intervals_of_some_parameters_are_those_of_all(data, method):
    fit = ee.estimate(ee.glm("b ~ x + z", data, family="binomial"))
    some = fit.interval(method=method(names=["z", "x"]))
    whole = fit.interval(method=method()).loc[["z", "x"]]
    pd.testing.assert_frame_equal(some, whole)
    for wrong in (["w"], "x", []):
        with pytest.raises(DataError, match="`names` of"):
            fit.interval(method=method(names=wrong))


# ------------------------------------------------------------------------ refusals


def test_dependent_units_are_refused(data):
    fit = ee.estimate(ee.glm("b ~ x", data, family="binomial"), ee.Clustered("g"))
    for method in (Profile(), ScoreInverted()):
        with pytest.raises(InferenceError, match="`units=`"):
            fit.interval(method=method)
    series = ee.estimate(ee.mean("y", data), ee.HAC("bartlett", lags=2))
    with pytest.raises(InferenceError, match="takes the units to be independent"):
        series.interval(method=ScoreInverted())


def test_profile_needs_a_likelihood(data):
    fit = ee.estimate(
        ee.equation(lambda t, d: d["y"].to_numpy()[:, None] - t, data, [0.0])
    )
    with pytest.raises(CapabilityError, match="ScoreInverted"):
        fit.interval(method=Profile())


def test_a_psi_that_jumps_has_no_profile_over_nuisance_parameters(data):
    fit = ee.estimate(quantile("y ~ x", data))
    with pytest.raises(InferenceError, match="jumps"):
        fit.interval(method=ScoreInverted())


def test_a_relation_without_noise_is_refused(data):
    def psi(theta, table):
        y = table["y"].to_numpy()
        return np.column_stack([y - theta[0], np.full(len(y), theta[0] - 2 * theta[1])])

    fit = ee.estimate(ee.equation(psi, data, [0.0, 0.0]))
    with pytest.raises(InferenceError, match="use `functional`"):
        fit.interval(method=ScoreInverted())


@pytest.mark.parametrize("method", [Profile(), ScoreInverted()])
def test_levels_outside_0_and_1_are_refused(data, method):
    fit = ee.estimate(ee.glm("b ~ x", data, family="binomial"))
    with pytest.raises(ValueError, match="`level` must lie between 0 and 1"):
        fit.interval(1.5, method)


def test_tables_take_the_method(data):
    fit = ee.estimate(ee.glm("b ~ x", data, family="binomial"))
    table = fit.table(method=Profile())
    bounds = fit.interval(method=Profile())
    assert table["lower"].equals(bounds["lower"])
    assert table["upper"].equals(bounds["upper"])


def test_a_statistic_that_fails_on_the_way_to_its_bound_is_an_error():
    """SciPy's own ValueError once escaped from the search."""
    from eestim.errors import InferenceError
    from eestim.inference._crossing import crossing

    def holed(value):
        return np.nan if 1.3 < value < 1.5 else value**2

    with pytest.raises(InferenceError, match="cannot be evaluated at 1"):
        crossing(holed, 0.0, 1.0, 2.0)
    assert crossing(lambda value: value**2, 0.0, 1.0, 2.0) == pytest.approx(2**0.5)
