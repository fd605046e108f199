"""Generalised score and distance tests against references, formulas and simulation."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats
from tolerances import EXACT, REFERENCE

import eestim as ee
from eestim.errors import (
    CapabilityError,
    ConvergenceError,
    DataError,
    InferenceError,
)
from eestim.inference._restricted import restriction_of
from eestim.inference.score_tests import distance_test, score_test

SETTINGS = settings(deadline=None, max_examples=10)


def expit(eta):
    return 1.0 / (1.0 + np.exp(-eta))


@pytest.fixture
def birthwt(refcases):
    return refcases.frame("birthwt.csv")


def logit(data, formula="smoke ~ lwt + age + ht", rule=None):
    return ee.estimate(ee.glm(formula, data, family="binomial"), rule)


@pytest.fixture
def data():
    rng = np.random.default_rng(2)
    n = 150
    x, z = rng.normal(size=(2, n))
    eta = 0.3 * x
    return pd.DataFrame(
        {
            "x": x,
            "z": z,
            "y": eta + rng.normal(size=n) * (0.5 + np.abs(z)),
            "b": (rng.random(n) < expit(eta)).astype(float),
            "c": rng.poisson(np.exp(eta)).astype(float),
            "g": rng.integers(0, 25, n),
        }
    )


# --------------------------------------------------------------- another package's


def test_likelihood_ratio_equals_that_of_lmtest(birthwt, refcases):
    extra = refcases.case("score_lr_birthwt")["extra"]
    test = logit(birthwt, rule=ee.ModelBased()).distance(["age", "ht"])
    assert test.kind == "likelihood ratio"
    assert test.dof == 2
    assert test.statistic == pytest.approx(extra["lr"], rel=REFERENCE)
    assert test.p == pytest.approx(extra["lr_p"], rel=REFERENCE)


def test_rao_score_equals_that_of_anova_and_exactly_the_formula(birthwt, refcases):
    """R stops its weights one iteration early, which shows in the seventh digit."""
    extra = refcases.case("score_lr_birthwt")["extra"]
    test = logit(birthwt, rule=ee.ModelBased()).score({"age": 0.0, "ht": 0.0})
    assert test.statistic == pytest.approx(extra["rao"], rel=1e-6)
    assert test.p == pytest.approx(extra["rao_p"], rel=1e-6)
    X = np.column_stack([np.ones(len(birthwt)), birthwt[["lwt", "age", "ht"]]])
    small = ee.estimate(ee.glm("smoke ~ lwt", birthwt, family="binomial")).theta
    p = expit(X[:, :2] @ small)
    U = X.T @ (birthwt["smoke"] - p)
    rao = U @ np.linalg.solve((X.T * p * (1 - p)) @ X, U)
    assert test.statistic == pytest.approx(rao, rel=1e-9)
    assert np.max(np.abs(test.theta.to_numpy()[:2] - small)) < 1e-8
    assert test.theta["age"] == test.theta["ht"] == 0.0


def test_wald_tests_of_the_same_restriction(birthwt, refcases):
    extra = refcases.case("score_lr_birthwt")["extra"]
    fit = logit(birthwt, rule=ee.ModelBased())
    assert fit.wald(["age", "ht"]).statistic == pytest.approx(
        extra["wald_model"], rel=1e-6
    )
    robust = fit.with_covariance(ee.HC(0)).wald(["age", "ht"])
    assert robust.statistic == pytest.approx(extra["wald_HC0"], rel=1e-6)


def test_likelihood_ratio_equals_that_of_statsmodels(data):
    import statsmodels.api as sm

    X = sm.add_constant(data[["x", "z"]].to_numpy())
    for outcome, family, model in (
        ("c", "poisson", sm.Poisson),
        ("b", "binomial", sm.Logit),
    ):
        wide = model(data[outcome], X).fit(disp=0, tol=1e-12)
        narrow = model(data[outcome], X[:, :1]).fit(disp=0, tol=1e-12)
        fit = ee.estimate(
            ee.glm(f"{outcome} ~ x + z", data, family=family), ee.ModelBased()
        )
        test = fit.distance(["x", "z"])
        assert test.statistic == pytest.approx(2 * (wide.llf - narrow.llf), rel=1e-8)


# ------------------------------------------------------------------------ formulas


def boos(X, y, kept):
    """The partitioned formula of Boos (1992), section 3, for a logistic model."""
    small = optimize.root(
        lambda t: X[:, kept].T @ (y - expit(X[:, kept] @ t)), np.zeros(len(kept))
    ).x
    p = expit(X[:, kept] @ small)
    tested = [j for j in range(X.shape[1]) if j not in kept]
    psi = X * (y - p)[:, None]
    info = (X.T * p * (1 - p)) @ X
    projected = info[np.ix_(tested, kept)] @ np.linalg.inv(info[np.ix_(kept, kept)])
    own = psi[:, tested] - psi[:, kept] @ projected.T
    S = psi[:, tested].sum(axis=0)
    return S @ np.linalg.solve(own.T @ own, S)


def test_generalised_score_equals_the_partitioned_formula(data):
    fit = logit(data, "b ~ x + z")
    X = np.column_stack([np.ones(len(data)), data[["x", "z"]]])
    y = data["b"].to_numpy()
    for names, kept in ((["z"], [0, 1]), (["x", "z"], [0])):
        test = fit.score(names)
        assert test.kind == "score"
        assert test.rule == "HC0"
        assert test.statistic == pytest.approx(boos(X, y, kept), rel=1e-9)
        law = stats.chi2.sf(test.statistic, len(names))
        assert test.p == pytest.approx(law, rel=EXACT)


def test_score_with_a_model_is_n_r_squared_in_least_squares(data):
    fit = ee.estimate(ee.ols("y ~ x + z", data), ee.ModelBased())
    small = ee.estimate(ee.ols("y ~ x", data))
    e = data["y"] - small.predict(data)["estimate"]
    X = np.column_stack([np.ones(len(data)), data[["x", "z"]]])
    fitted = X @ np.linalg.lstsq(X, e)[0]
    lagrange = len(data) * (fitted @ fitted) / (e @ e)
    assert fit.score("z").statistic == pytest.approx(lagrange, rel=1e-9)


def test_score_with_clusters_sums_psi_within_them(data):
    fit = logit(data, "b ~ x + z")
    test = fit.score("z", covariance=ee.Clustered("g"))
    X = np.column_stack([np.ones(len(data)), data[["x", "z"]]])
    small = ee.estimate(ee.glm("b ~ x", data, family="binomial")).theta
    p = expit(X[:, :2] @ small)
    psi = X * (data["b"] - p).to_numpy()[:, None]
    info = (X.T * p * (1 - p)) @ X
    own = psi[:, 2] - psi[:, :2] @ np.linalg.solve(info[:2, :2], info[:2, 2])
    sums = np.bincount(data["g"], weights=own)
    by_hand = psi[:, 2].sum() ** 2 / (sums @ sums)
    assert test.statistic == pytest.approx(by_hand, rel=1e-9)


def test_distance_of_a_linear_psi_is_the_wald_statistic(data):
    fit = ee.estimate(ee.ols("y ~ x + z", data))
    for restriction in (["z"], ["x", "z"], {"x": 0.2}):
        test = fit.distance(restriction)
        asked = restriction_of(restriction, fit.names)
        wald = fit.wald(asked.matrix, asked.values)
        assert test.statistic == pytest.approx(wald.statistic, rel=1e-9)


def test_distance_equals_a_brute_force_minimum(data):
    fit = logit(data, "b ~ x + z")
    equation = fit.equation
    W = np.linalg.inv(equation.moments(fit.theta).meat / len(data))

    def criterion(free):
        mean = equation.psi(np.array([*free, 0.0])).mean(axis=0)
        return mean @ W @ mean

    found = optimize.minimize(criterion, fit.theta[:2], tol=1e-12)
    assert fit.distance("z").statistic == pytest.approx(found.fun, rel=1e-7)


def test_distance_of_a_clustered_fit_uses_its_covariance(data):
    fit = ee.estimate(ee.ols("y ~ x + z", data), ee.Clustered("g"))
    wald = fit.wald(["z"], law="chi2")
    assert fit.distance("z").statistic == pytest.approx(wald.statistic, rel=1e-9)


def test_distance_of_a_robust_fit_of_a_model_may_still_be_the_likelihood_ratio(data):
    robust, model = logit(data, "b ~ x + z"), logit(data, "b ~ x + z", ee.ModelBased())
    assert robust.distance("z").kind == "distance"
    asked = robust.distance("z", criterion="likelihood")
    assert asked.statistic == pytest.approx(model.distance("z").statistic, rel=EXACT)


def test_likelihood_ratio_of_least_squares_profiles_the_dispersion_out(data):
    fit = ee.estimate(ee.ols("y ~ x + z", data), ee.ModelBased())
    rss = [
        np.sum((data["y"] - ee.estimate(m).predict(data)["estimate"]) ** 2)
        for m in (ee.ols("y ~ x", data), ee.ols("y ~ x + z", data))
    ]
    wanted = len(data) * np.log(rss[0] / rss[1])
    assert fit.distance("z").statistic == pytest.approx(wanted, rel=1e-9)


# ---------------------------------------------------------------------- invariance


@given(seed=st.integers(0, 10**6), scale=st.floats(0.01, 100.0))
@SETTINGS
def test_tests_do_not_depend_on_how_the_restriction_and_the_model_are_written(
    seed, scale
):
    rng = np.random.default_rng(seed)
    n = 90
    X = np.column_stack([np.ones(n), rng.normal(size=(n, 2))])
    y = (rng.random(n) < expit(0.5 * X[:, 1])).astype(float)
    y[:2] = [0.0, 1.0]
    fit = ee.estimate(ee.glm(y, X, family="binomial"))
    R = np.array([[0.0, 1.0, 2.0]])
    twice = np.concatenate([R, -3 * R])
    score, distance = fit.score((R, [0.1])), fit.distance((R, [0.1]))
    for same in ((scale * R, [0.1 * scale]), (twice, [0.1, -0.3])):
        assert fit.score(same).statistic == pytest.approx(score.statistic, rel=1e-7)
        assert fit.score(same).dof == 1
        other = fit.distance(same).statistic
        assert other == pytest.approx(distance.statistic, rel=1e-6, abs=1e-9)
    L = rng.normal(size=(3, 3)) + 3 * np.eye(3)
    again = ee.estimate(ee.glm(y, X @ L, family="binomial"))
    moved = again.score((R @ L, [0.1])).statistic
    assert moved == pytest.approx(score.statistic, rel=1e-6, abs=1e-9)


def test_a_user_psi_gives_the_tests_of_the_model(data):
    X = np.column_stack([np.ones(len(data)), data[["x", "z"]]])

    def psi(theta, table):
        return X * (table["b"].to_numpy() - expit(X @ theta))[:, None]

    user = ee.estimate(ee.equation(psi, data, np.zeros(3)))
    model = logit(data, "b ~ x + z")
    for test in ("score", "distance"):
        ours = getattr(user, test)("theta[2]").statistic
        assert ours == pytest.approx(getattr(model, test)("z").statistic, rel=1e-8)


def test_fixing_every_parameter_needs_no_root(data):
    fit = ee.estimate(ee.mean("x", data))
    test = fit.score({"x": 0.2})
    x = data["x"].to_numpy()
    by_hand = len(x) * np.mean(x - 0.2) ** 2 / np.mean((x - 0.2) ** 2)
    assert test.statistic == pytest.approx(by_hand, rel=1e-10)


# ---------------------------------------------------------------------- simulation


def test_size_is_nominal_under_heteroskedasticity_where_raos_test_is_not():
    rng = np.random.default_rng(11)
    n, reps, robust, naive = 150, 400, 0, 0
    for _ in range(reps):
        x = rng.normal(size=n)
        y = rng.normal(size=n) * (0.3 + x**2)
        X = np.column_stack([np.ones(n), x])
        fit = ee.estimate(ee.ols(y, X))
        robust += fit.score("x1").p < 0.05
        naive += fit.score("x1", covariance=ee.ModelBased(df_adjust=False)).p < 0.05
    noise = np.sqrt(0.05 * 0.95 / reps)
    assert abs(robust / reps - 0.05) < 4 * noise
    assert naive / reps > 0.05 + 8 * noise  # negative control


# ------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("restriction", "match"),
    [
        ("nothing", r"names \['nothing'\], which are not parameters"),
        ({"x": np.nan}, "not finite"),
        (["x", "x"], "names a parameter twice"),
        (np.zeros((1, 3)), "row 0 of `R` is zero"),
        (np.ones((1, 2)), "finite rows of 3 coefficients"),
        ((np.ones((2, 3)), [1.0, 2.0]), "has no solution"),
        ((np.ones((2, 3)), [1.0, 2.0, 3.0]), "3 entries for 2 rows"),
    ],
)
def test_restrictions_that_say_nothing_are_refused(data, restriction, match):
    fit = logit(data, "b ~ x + z")
    with pytest.raises(DataError, match=match):
        fit.score(restriction)


def test_a_rule_that_is_not_kept_with_the_fit_is_asked_for(data):
    fit = ee.estimate(ee.ols("y ~ x", data), ee.Clustered("g"))
    with pytest.raises(InferenceError, match="pass it again"):
        score_test(fit, "x")


def test_likelihood_ratio_needs_a_likelihood(data):
    user = ee.estimate(
        ee.equation(lambda t, d: d["x"].to_numpy()[:, None] - t, data, [0.0])
    )
    with pytest.raises(CapabilityError, match="needs `log_likelihood`"):
        distance_test(user, "theta[0]", criterion="likelihood")
    weighted = ee.estimate(
        ee.glm("b ~ x", data, family="binomial", weights=ee.Sampling(data["g"] + 1))
    )
    with pytest.raises(InferenceError, match="no likelihood under sampling"):
        weighted.distance("x", criterion="likelihood")
    with pytest.raises(ValueError, match="`criterion` must be"):
        distance_test(user, "theta[0]", criterion="lr")


def test_a_singular_variance_has_no_distance(data):
    few = np.arange(len(data)) % 3
    fit = ee.estimate(ee.ols("y ~ x + z", data), ee.Clustered(few))
    with pytest.raises(InferenceError, match="rank is 2 of 3"):
        fit.distance("z")


def test_a_relation_without_noise_has_no_distance(data):
    def psi(theta, table):
        y = table["y"].to_numpy()
        return np.column_stack([y - theta[0], np.full(len(y), theta[0] - 2 * theta[1])])

    fit = ee.estimate(ee.equation(psi, data, [0.0, 0.0]))
    with pytest.raises(InferenceError, match="equation 1 has none"):
        fit.distance("theta[0]")


def test_a_restriction_without_a_root_is_refused(data):
    def psi(theta, table):
        y = table["y"].to_numpy()
        bounded = np.tanh(theta[1]) + 0.5 * theta[0] ** 2
        return np.column_stack([y - theta[0] + 0 * theta[1], y - y.mean() + bounded])

    fit = ee.estimate(ee.equation(psi, data, [0.0, 0.0]))
    with pytest.raises(ConvergenceError, match="no root satisfies the restriction"):
        fit.score({"theta[0]": 5.0})


def test_a_test_prints_its_law(data):
    text = str(logit(data, "b ~ x + z").score(["x", "z"]))
    assert text.startswith("score: chi2(2) = ")
    assert text.endswith("[HC0]")
