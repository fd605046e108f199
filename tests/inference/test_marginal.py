"""Average predictions and marginal effects: statsmodels, geex, stacking, simulation."""

import numpy as np
import pandas as pd
import pytest
from tolerances import EXACT, REFERENCE

import eestim as ee
from eestim.errors import CapabilityError, DataError, InferenceError
from eestim.inference.marginal import average_predictions, marginal_effects
from eestim.models.quantiles import quantile
from eestim.stacking import stack


def expit(eta):
    return 1.0 / (1.0 + np.exp(-eta))


@pytest.fixture
def data():
    return table_of(np.random.default_rng(9), 160)


def table_of(rng, n):
    x = rng.normal(size=n) + 1
    a = (rng.random(n) < expit(x - 1)).astype(float)
    eta = 0.2 + 0.5 * x - 0.7 * a
    return pd.DataFrame(
        {
            "x": x,
            "a": a,
            "s": rng.choice(["low", "mid", "top"], n),
            "e": rng.uniform(0.5, 2.0, n),
            "w": rng.integers(1, 4, n),
            "g": rng.integers(0, 40, n),
            "b": (rng.random(n) < expit(eta)).astype(float),
            "c": rng.poisson(np.exp(0.5 * eta)).astype(float),
            "y": eta + rng.normal(size=n) * (0.5 + a),
        }
    )


# ------------------------------------------------------------------- other packages


@pytest.mark.parametrize("model", ["Logit", "Probit", "Poisson"])
def test_fixed_covariate_slopes_equal_those_of_statsmodels(data, model):
    import statsmodels.api as sm

    X = sm.add_constant(data[["x", "a"]])
    outcome = "c" if model == "Poisson" else "b"
    theirs = getattr(sm, model)(data[outcome], X).fit(disp=0, tol=1e-12)
    slopes = theirs.get_margeff()
    options = {"family": "poisson" if model == "Poisson" else "binomial"}
    if model == "Probit":
        options["link"] = "probit"
    fit = ee.estimate(ee.glm(f"{outcome} ~ x + a", data, **options))
    # The model-based covariance of statsmodels, at its own (observed) information.
    information = np.linalg.inv(fit.equation.sensitivity(fit.theta)) / len(data)
    np.testing.assert_allclose(theirs.cov_params(), information, rtol=1e-6)
    ours = marginal_effects(fit, {"x": "slope", "a": "slope"}, covariates="fixed")
    np.testing.assert_allclose(ours.theta, slopes.margeff, rtol=REFERENCE)
    J = np.array(slopes.margeff_se)
    if model != "Probit":  # canonical: inverse information is ModelBased()
        based = fit.with_covariance(ee.ModelBased())
        again = marginal_effects(
            based, {"x": "slope", "a": "slope"}, covariates="fixed"
        )
        np.testing.assert_allclose(again.se, J, rtol=1e-7)


def test_differences_of_a_dummy_equal_those_of_statsmodels(data):
    import statsmodels.api as sm

    X = sm.add_constant(data[["x", "a"]])
    theirs = sm.Logit(data["b"], X).fit(disp=0, tol=1e-12).get_margeff(dummy=True)
    fit = ee.estimate(ee.glm("b ~ x + a", data, family="binomial"), ee.ModelBased())
    ours = marginal_effects(fit, ["x", "a"], covariates="fixed")
    assert ours.names == ("x", "a[1.0 - 0.0]")
    np.testing.assert_allclose(ours.theta, theirs.margeff, rtol=REFERENCE)
    np.testing.assert_allclose(ours.se, theirs.margeff_se, rtol=1e-7)


def test_sampled_covariate_means_equal_the_g_formula_of_geex(refcases):
    case = refcases.case("geex_gformula_birthwt")
    wanted, V = np.array(case["estimate"]), np.array(case["vcov"])
    fit = ee.estimate(ee.ols("bwt ~ smoke * age", refcases.frame("birthwt.csv")))
    means = average_predictions(fit, {"smoke": [1, 0]})
    assert means.names == ("smoke=1", "smoke=0")
    np.testing.assert_allclose(means.theta, wanted[4:6], rtol=1e-10)
    np.testing.assert_allclose(means.spread.matrix, V[4:6, 4:6], rtol=REFERENCE)
    effect = marginal_effects(fit, "smoke")
    assert effect.theta[0] == pytest.approx(wanted[6], rel=1e-10)
    assert effect.se.iloc[0] == pytest.approx(np.sqrt(V[6, 6]), rel=REFERENCE)
    through = means.functional(lambda t: t["smoke=1"] - t["smoke=0"])
    assert through.se.iloc[0] == pytest.approx(effect.se.iloc[0], rel=1e-9)


# ----------------------------------------------------------------- another route


def stacked_means(data, equation, means):
    def psi(theta, table):
        return np.column_stack(
            [
                means(np.asarray(theta["fit"]), table, k) - theta["mean"][k]
                for k in (0, 1)
            ]
        )

    return ee.estimate(
        stack(fit=equation, mean=psi, data=data, start={"mean": [0.5, 0.5]})
    )


def test_sampled_averages_equal_stacking(data):
    def means(theta, table, level):
        return expit(theta[0] + theta[1] * table["x"] + theta[2] * level)

    equation = ee.glm("b ~ x + a", data, family="binomial")
    both = stacked_means(data, equation, means)
    ours = average_predictions(ee.estimate(equation), {"a": [0, 1]})
    np.testing.assert_allclose(ours.theta, both.theta[3:], rtol=1e-10)
    np.testing.assert_allclose(
        ours.spread.matrix, both.spread.matrix[3:, 3:], rtol=1e-8
    )
    joint = average_predictions(
        ee.estimate(equation), {"a": [0, 1]}, covariance=ee.HC(0)
    )
    np.testing.assert_allclose(joint.spread.matrix, ours.spread.matrix, rtol=1e-10)


def test_clustered_sampled_averages_equal_a_clustered_stack(data):
    def means(theta, table, level):
        return expit(theta[0] + theta[1] * table["x"] + theta[2] * level)

    equation = ee.glm("b ~ x + a", data, family="binomial")
    rule = ee.Clustered("g", kind="CR1")
    both = stacked_means(data, equation, means).with_covariance(rule)
    fit = ee.estimate(equation, rule)
    ours = average_predictions(fit, {"a": [0, 1]}, covariance=rule)
    np.testing.assert_allclose(
        ours.spread.matrix, both.spread.matrix[3:, 3:], rtol=1e-8
    )
    with pytest.raises(InferenceError, match="pass the rule as `covariance=`"):
        average_predictions(fit, {"a": [0, 1]})
    fixed = average_predictions(fit, {"a": [0, 1]}, covariates="fixed")
    assert (fixed.se < ours.se).all()


def test_fixed_averages_equal_the_delta_method(data):
    fit = ee.estimate(ee.glm("c ~ x + a", data, family="poisson"))
    ours = average_predictions(fit, covariates="fixed")
    X = np.column_stack([np.ones(len(data)), data["x"], data["a"]])
    delta = fit.functional(lambda t: np.exp(X @ np.asarray(t)).mean())
    assert ours.names == ("average",)
    assert ours.theta[0] == pytest.approx(data["c"].mean(), rel=1e-9)
    assert ours.se.iloc[0] == pytest.approx(delta.se.iloc[0], rel=1e-8)


def test_slopes_of_transformed_covariates_equal_hand_derivatives(data):
    table = data.assign(p=np.exp(data["x"]))
    fit = ee.estimate(ee.ols("y ~ np.log(p) + I(p**2) + a:p", table))
    _, log, square, crossed = fit.theta
    p, a = table["p"], table["a"]
    wanted = (log / p + 2 * square * p + crossed * a).mean()
    ours = marginal_effects(fit, "p", covariates="fixed")
    assert ours.theta[0] == pytest.approx(wanted, rel=1e-9)
    G = np.array([0.0, (1 / p).mean(), (2 * p).mean(), a.mean()])
    assert ours.se.iloc[0] == pytest.approx(
        np.sqrt(G @ fit.spread.matrix @ G), rel=1e-8
    )


def test_designs_given_as_arrays_have_effects_by_column(data):
    X = np.column_stack([np.ones(len(data)), data["x"], data["a"]])
    named = ee.estimate(ee.glm("b ~ x + a", data, family="binomial"))
    plain = ee.estimate(ee.glm(data["b"].to_numpy(), X, family="binomial"))
    one, two = marginal_effects(named, ["x", "a"]), marginal_effects(plain)
    assert two.names == ("x1", "x2[1.0 - 0.0]")
    np.testing.assert_allclose(two.theta, one.theta, rtol=1e-10)
    np.testing.assert_allclose(two.se, one.se, rtol=1e-8)


def test_categories_compare_levels_with_the_first(data):
    fit = ee.estimate(ee.ols("y ~ C(s) + x", data))
    ours = marginal_effects(fit)
    assert ours.names == ("x", "s[mid - low]", "s[top - low]")
    np.testing.assert_allclose(
        ours.theta[1:], fit.params[["C(s)[T.mid]", "C(s)[T.top]"]], rtol=1e-9
    )


def test_two_values_may_be_compared(data):
    fit = ee.estimate(ee.glm("b ~ x + a", data, family="binomial"))
    ours = marginal_effects(fit, {"x": (0.0, 2.0)})
    assert ours.names == ("x[2.0 - 0.0]",)
    levels = average_predictions(fit, {"x": [0.0, 2.0]})
    assert ours.theta[0] == pytest.approx(levels.theta[1] - levels.theta[0], rel=1e-10)


def test_combinations_of_values(data):
    fit = ee.estimate(ee.glm("b ~ x + a", data, family="binomial"))
    grid = average_predictions(fit, {"a": [0, 1], "x": [0.5, 1.5]})
    assert grid.names == ("a=0, x=0.5", "a=0, x=1.5", "a=1, x=0.5", "a=1, x=1.5")
    t = fit.theta
    assert grid.theta[3] == pytest.approx(expit(t[0] + 1.5 * t[1] + t[2]), rel=1e-10)


def test_offsets_are_part_of_the_fitted_means(data):
    fit = ee.estimate(ee.glm("c ~ x", data, family="poisson", exposure="e"))
    ours = average_predictions(fit)
    assert ours.theta[0] == pytest.approx(data["c"].mean(), rel=1e-9)


def test_frequencies_equal_the_data_written_out(data):
    counted = ee.estimate(
        ee.glm("b ~ x + a", data, family="binomial", weights=ee.Frequency("w"))
    )
    written = data.loc[data.index.repeat(data["w"])].reset_index(drop=True)
    whole = ee.estimate(ee.glm("b ~ x + a", written, family="binomial"))
    one, two = marginal_effects(counted), marginal_effects(whole)
    np.testing.assert_allclose(one.theta, two.theta, rtol=1e-9)
    np.testing.assert_allclose(one.spread.matrix, two.spread.matrix, rtol=1e-8)


def test_sampling_weights_weight_the_rows_averaged_over(data):
    fit = ee.estimate(
        ee.glm("b ~ x", data, family="binomial", weights=ee.Sampling("w"))
    )
    ours = average_predictions(fit)
    mean = np.average(data["b"], weights=data["w"])
    assert ours.theta[0] == pytest.approx(mean, rel=1e-9)
    direct = ee.estimate(ee.mean("b", data, weights=ee.Sampling("w")))
    assert ours.se.iloc[0] == pytest.approx(direct.se.iloc[0], rel=1e-8)


def test_the_average_fitted_mean_of_a_canonical_model_is_the_sample_mean(data):
    """Its sampled variance is that of the mean: both parts are needed for it."""
    fit = ee.estimate(ee.glm("b ~ x + a", data, family="binomial"))
    mean = ee.estimate(ee.mean("b", data))
    sampled, fixed = (
        average_predictions(fit, covariates=how) for how in ("sampled", "fixed")
    )
    assert sampled.theta[0] == pytest.approx(mean.theta[0], rel=1e-10)
    assert sampled.se.iloc[0] == pytest.approx(mean.se.iloc[0], rel=1e-9)
    assert fixed.se.iloc[0] < 0.97 * mean.se.iloc[0]  # negative control


def test_other_rows_are_averaged_over_as_fixed(data):
    fit = ee.estimate(ee.glm("b ~ x + a", data, family="binomial"))
    rows = pd.DataFrame({"x": [0.0, 1.0], "a": [1, 1]})
    ours = average_predictions(fit, data=rows, covariates="fixed")
    each = fit.predict(rows)["estimate"]
    assert ours.theta[0] == pytest.approx(each.mean(), rel=EXACT)


def test_any_regression_that_predicts_has_effects(data):
    fit = ee.estimate(quantile("y ~ x + a", data))
    ours = marginal_effects(fit, ["x"])
    assert ours.theta[0] == pytest.approx(fit.params["x"], rel=1e-9)
    assert ours.se.iloc[0] == pytest.approx(fit.se["x"], rel=1e-6)


# ---------------------------------------------------------------------- simulation


def test_sampled_intervals_cover_the_population_effect_and_fixed_ones_do_not():
    """A linear model with an interaction: the effect is b1 + b3 E x."""
    rng = np.random.default_rng(10)
    reps, n, hits = 150, 80, np.zeros(2)
    for _ in range(reps):
        x = rng.normal(size=n)
        a = rng.integers(0, 2, n).astype(float)
        y = a + 3.0 * a * x + 0.5 * rng.normal(size=n)
        table = pd.DataFrame({"x": x, "a": a, "y": y})
        fit = ee.estimate(ee.ols("y ~ a * x", table), ee.HC(3))
        for k, how in enumerate(("sampled", "fixed")):
            bounds = marginal_effects(fit, "a", covariates=how).interval().iloc[0]
            hits[k] += bounds["lower"] <= 1.0 <= bounds["upper"]
    coverage, noise = hits / reps, np.sqrt(0.95 * 0.05 / reps)
    assert abs(coverage[0] - 0.95) < 4 * noise
    assert coverage[1] < 0.7  # negative control


# ------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda f: marginal_effects(f, "zz"), DataError, r"names \['zz'\]"),
        (lambda f: average_predictions(f, {"zz": 1}), DataError, r"names \['zz'\]"),
        (lambda f: marginal_effects(f, {"s": "slope"}), DataError, "has no slope"),
        (lambda f: marginal_effects(f, {"x": 3}), ValueError, "two values"),
        (
            lambda f: marginal_effects(f, covariates="random"),
            ValueError,
            '"sampled" or "fixed"',
        ),
        (
            lambda f: average_predictions(f, data={"x": [1.0], "s": ["low"]}),
            ValueError,
            'covariates="fixed"',
        ),
    ],
)
def test_what_cannot_be_averaged_is_refused_with_the_cure(data, call, error, match):
    fit = ee.estimate(ee.ols("y ~ x + C(s)", data))
    with pytest.raises(error, match=match):
        call(fit)


def test_a_slope_beyond_the_range_of_a_transform_is_refused(data):
    table = data.assign(p=np.append(np.full(len(data) - 1, 2.0), 5.0))
    table["p"] += np.linspace(0, 1, len(data))
    fit = ee.estimate(ee.ols("y ~ bs(p, df=4)", table))
    with pytest.raises((DataError, ValueError), match=r"low, high|bound"):
        marginal_effects(fit, "p")


def test_equations_that_do_not_predict_are_refused(data):
    fit = ee.estimate(
        ee.equation(lambda t, d: d["y"].to_numpy()[:, None] - t, data, [0.0])
    )
    with pytest.raises(CapabilityError, match="needs `predict`"):
        average_predictions(fit)


def test_a_regression_on_a_constant_has_no_effects(data):
    fit = ee.estimate(ee.ols(data["y"].to_numpy(), np.ones((len(data), 1))))
    with pytest.raises(DataError, match="no covariates that vary"):
        marginal_effects(fit)
