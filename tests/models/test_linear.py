import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from cases import table
from tolerances import EXACT, REFERENCE

import eestim as ee
from eestim.errors import (
    DataError,
    IdentificationError,
    InferenceError,
    InterpolationError,
    SeparationError,
)

FAMILIES = [
    ("b", "binomial", "logit", sm.families.Binomial()),
    ("b", "binomial", "probit", sm.families.Binomial(sm.families.links.Probit())),
    ("b", "binomial", "cloglog", sm.families.Binomial(sm.families.links.CLogLog())),
    ("b", "binomial", "cauchit", sm.families.Binomial(sm.families.links.Cauchy())),
    ("c", "poisson", "log", sm.families.Poisson()),
    ("c", "poisson", "sqrt", sm.families.Poisson(sm.families.links.Sqrt())),
    ("y", "gaussian", "identity", sm.families.Gaussian()),
    ("e", "gaussian", "log", sm.families.Gaussian(sm.families.links.Log())),
    (
        "e",
        "gaussian",
        "inverse",
        sm.families.Gaussian(sm.families.links.InversePower()),
    ),
]


@pytest.fixture(scope="module")
def data():
    return table(400, seed=11)


@pytest.mark.filterwarnings("ignore:The Sqrt link function")  # statsmodels' own
@pytest.mark.parametrize(("y", "family", "link", "oracle"), FAMILIES)
def test_estimates_and_model_covariance_against_statsmodels(
    data, y, family, link, oracle
):
    equation = ee.glm(f"{y} ~ x + z", data, family=family, link=link)
    fit = ee.estimate(equation, covariance=ee.ModelBased())
    design = sm.add_constant(data[["x", "z"]])
    other = sm.GLM(data[y], design, family=oracle).fit(tol=1e-14, maxiter=200)
    np.testing.assert_allclose(fit.theta, other.params, rtol=1e-7)
    np.testing.assert_allclose(
        fit.spread.matrix, other.cov_params(), rtol=1e-6, atol=1e-12
    )


@pytest.mark.parametrize(("y", "family", "link", "oracle"), FAMILIES)
def test_sandwich_against_the_sums_written_out(data, y, family, link, oracle):
    equation = ee.glm(f"{y} ~ x + z", data, family=family, link=link)
    fit = ee.estimate(equation)
    psi, A = equation.psi(fit.theta), equation.sensitivity(fit.theta)
    inverse = np.linalg.inv(A)
    by_hand = inverse @ (psi.T @ psi / len(psi)) @ inverse.T / len(psi)
    np.testing.assert_allclose(fit.spread.matrix, by_hand, rtol=1e-9)


def test_offset_and_exposure_against_statsmodels(data):
    by_offset = ee.estimate(
        ee.glm("c ~ x", data, family="poisson", offset=np.log(data["e"]))
    )
    by_exposure = ee.estimate(ee.glm("c ~ x", data, family="poisson", exposure="e"))
    np.testing.assert_array_equal(by_offset.theta, by_exposure.theta)
    oracle = sm.GLM(
        data["c"],
        sm.add_constant(data[["x"]]),
        family=sm.families.Poisson(),
        exposure=data["e"],
    ).fit(tol=1e-14)
    np.testing.assert_allclose(by_offset.theta, oracle.params, rtol=REFERENCE)


@pytest.mark.parametrize("covariance", [ee.HC(k) for k in (0, 1, 2, 3, 4, "4m", 5)])
@pytest.mark.parametrize("family", ["gaussian", "binomial"])
def test_frequencies_equal_the_rows_written_out(data, family, covariance):
    y = "b" if family == "binomial" else "y"
    long = data.loc[data.index.repeat(data["w"])].reset_index(drop=True)
    short_fit = ee.estimate(
        ee.glm(f"{y} ~ x", data, family=family, weights=ee.Frequency("w")), covariance
    )
    long_fit = ee.estimate(ee.glm(f"{y} ~ x", long, family=family), covariance)
    assert short_fit.n_units == long_fit.n_units == int(data["w"].sum())
    np.testing.assert_allclose(short_fit.theta, long_fit.theta, rtol=1e-9)
    np.testing.assert_allclose(
        short_fit.spread.matrix, long_fit.spread.matrix, rtol=1e-9
    )


def test_sampling_weights_are_free_of_scale_and_against_the_sums(data):
    fits = [
        ee.estimate(
            ee.glm("b ~ x", data, family="binomial", weights=ee.Sampling(c * data["e"]))
        )
        for c in (1.0, 1000.0)
    ]
    np.testing.assert_allclose(
        fits[0].spread.matrix, fits[1].spread.matrix, rtol=100 * EXACT
    )
    w, X = data["e"].to_numpy(), np.column_stack([np.ones(len(data)), data["x"]])
    mu = 1 / (1 + np.exp(-(X @ fits[0].theta)))
    assert np.max(np.abs(X.T @ (w * (data["b"] - mu)))) < 1e-9
    H = np.linalg.inv((X.T * (w * mu * (1 - mu))) @ X)
    B = (X.T * (w * (data["b"].to_numpy() - mu)) ** 2) @ X
    np.testing.assert_allclose(fits[0].spread.matrix, H @ B @ H, rtol=REFERENCE)


def test_zero_weight_is_deletion(data):
    weights = np.ones(len(data))
    weights[:30] = 0.0
    for kind in (ee.Frequency, ee.Sampling):
        one = ee.estimate(ee.ols("y ~ x", data, weights=kind(weights)))
        two = ee.estimate(ee.ols("y ~ x", data.iloc[30:]))
        np.testing.assert_allclose(one.theta, two.theta, rtol=1e-10)
        np.testing.assert_allclose(one.spread.matrix, two.spread.matrix, rtol=1e-9)


def test_importance_weights_use_the_effective_size(data):
    w = data["e"].to_numpy()
    fit = ee.estimate(ee.mean("y", data, weights=ee.Importance(w)), ee.HC(1))
    kish = w.sum() ** 2 / (w**2).sum()
    assert fit.dof.iloc[0] == pytest.approx(kish - 1)
    with pytest.raises(InferenceError, match="not part of the model"):
        fit.with_covariance(ee.ModelBased())


def test_weights_must_say_what_they_mean(data):
    with pytest.raises(TypeError, match=r"ee\.Frequency"):
        ee.ols("y ~ x", data, weights=data["w"])
    with pytest.raises(DataError, match="whole numbers"):
        ee.ols("y ~ x", data, weights=ee.Frequency("e"))
    with pytest.raises(DataError, match="negative"):
        ee.ols("y ~ x", data, weights=ee.Sampling(-data["e"]))


@pytest.mark.parametrize("kind", [1, 2, 3])
def test_hc_kinds_of_a_glm_are_the_real_ones(data, kind):
    """statsmodels returns HC0 for HC1, HC2 and HC3 of a GLM; the formula says not."""
    equation = ee.glm("b ~ x + z", data, family="binomial")
    fit = ee.estimate(equation, ee.HC(kind))
    X = np.column_stack([np.ones(len(data)), data["x"], data["z"]])
    mu = 1 / (1 + np.exp(-(X @ fit.theta)))
    w = mu * (1 - mu)
    H = np.linalg.inv((X.T * w) @ X)
    h = np.einsum("ij,jk,ik->i", X, H, X) * w
    e = data["b"].to_numpy() - mu
    n, p = X.shape
    factor = {1: np.full(n, n / (n - p)), 2: 1 / (1 - h), 3: 1 / (1 - h) ** 2}[kind]
    by_hand = H @ ((X.T * (factor * e**2)) @ X) @ H
    np.testing.assert_allclose(fit.spread.matrix, by_hand, rtol=REFERENCE)
    assert np.all(fit.se > ee.estimate(equation).se)


def test_predictions_against_statsmodels(data):
    fit = ee.estimate(ee.glm("b ~ x + z", data, family="binomial"), ee.ModelBased())
    new = pd.DataFrame({"x": [0.0, 1.0, -2.0], "z": [1.0, 0.0, 3.0]}, index=list("abc"))
    design = sm.add_constant(data[["x", "z"]])
    oracle = sm.GLM(data["b"], design, family=sm.families.Binomial()).fit(tol=1e-14)
    frame = oracle.get_prediction(sm.add_constant(new, has_constant="add"))
    expected = frame.summary_frame()
    got = fit.predict(new)
    assert list(got.index) == ["a", "b", "c"]
    np.testing.assert_allclose(got["estimate"], expected["mean"], rtol=REFERENCE)
    np.testing.assert_allclose(got["se"], expected["mean_se"], rtol=1e-7)
    np.testing.assert_allclose(got["lower"], expected["mean_ci_lower"], rtol=1e-7)
    np.testing.assert_allclose(got["upper"], expected["mean_ci_upper"], rtol=1e-7)


def test_predictions_recode_categories_and_splines(data):
    fit = ee.estimate(ee.ols("y ~ C(g) + bs(x, df=4)", data))
    again = fit.predict(data.iloc[5:9])["estimate"].to_numpy()
    X = fit.equation.design
    np.testing.assert_allclose(again, (X @ fit.theta)[5:9], rtol=1e-10)
    with pytest.raises(DataError, match="lacks the columns"):
        fit.predict(data[["g"]])


def test_labels_offsets_and_weights_follow_the_rows_kept(data):
    holes = data.copy()
    holes.loc[[3, 17, 60], "x"] = np.nan
    whole = holes.dropna().reset_index(drop=True)
    options = {"family": "poisson", "na": "drop"}
    one = ee.estimate(
        ee.glm("c ~ x", holes, offset="e", weights=ee.Sampling("w"), **options),
        ee.Clustered("g"),
    )
    two = ee.estimate(
        ee.glm("c ~ x", whole, offset="e", weights=ee.Sampling("w"), **options),
        ee.Clustered("g"),
    )
    three = ee.estimate(
        ee.glm(
            "c ~ x",
            holes,
            offset=holes["e"],
            weights=ee.Sampling(holes["w"].to_numpy()),
            **options,
        ),
        ee.Clustered(holes["g"]),
    )
    for other in (two, three):
        np.testing.assert_allclose(one.theta, other.theta, rtol=1e-12)
        np.testing.assert_allclose(one.spread.matrix, other.spread.matrix, rtol=1e-12)


def test_a_subsample_start_reaches_the_same_root():
    rng = np.random.default_rng(4)
    X = np.column_stack([np.ones(60_000), rng.normal(size=(60_000, 3))])
    y = (rng.random(60_000) < 1 / (1 + np.exp(-(X @ [0.1, 1, -1, 0.5])))).astype(float)
    equation = ee.glm(y, X, family="binomial")
    fit, cold = ee.estimate(equation), ee.estimate(equation, start=np.zeros(4))
    np.testing.assert_allclose(fit.theta, cold.theta, rtol=1e-10)
    assert fit.root.steps < cold.root.steps


class TestBadInput:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                lambda d: d.assign(x=d["x"].where(d.index != 7)),
                "missing values in row 7",
            ),
            (
                lambda d: d.assign(x=d["x"].mask(d.index == 9, np.inf)),
                "infinite.*row 9",
            ),
            (lambda d: d.iloc[:0], "no rows"),
            (lambda d: d.assign(b=1.0), "constant"),
            (lambda d: d.assign(b=2 * d["b"]), "between 0 and 1"),
            (lambda d: d.assign(x=d["x"].astype(str)), "numbers among its text"),
            (
                lambda d: d.drop(columns="x").assign(X=d["x"]),
                "did you mean 'X'|names 'x'",
            ),
        ],
    )
    def test_data_that_cannot_be_used(self, data, change, message):
        with pytest.raises(DataError, match=message):
            ee.glm("b ~ x", change(data), family="binomial")

    @pytest.mark.parametrize(
        "formula",
        [
            "b ~ eval('1')",
            "b ~ __import__('os')",
            "b ~ x.mean()",
            "b ~ np.load('f')",
            "b ~ I(open('f'))",
            "b ~ np.linalg.norm(x)",
            "b ~ {x.__class__}",
            "x +",
            "x + z",
        ],
    )
    def test_formulas_that_are_not_allowed(self, data, formula):
        with pytest.raises(ValueError, match="formula"):
            ee.glm(formula, data, family="binomial")

    @pytest.mark.parametrize(
        ("formula", "message"),
        [
            ("y ~ x | z", "several parts .* on the right"),
            ("y | e ~ x", "several parts .* on the left"),
            ("y + e ~ x", "has 2 outcomes"),  # the second was once taken silently
        ],
    )
    def test_formulas_of_other_models(self, data, formula, message):
        with pytest.raises(ValueError, match=message):
            ee.ols(formula, data)

    def test_allowed_calls(self, data):
        made = ee.ols("y ~ np.log(e) + I(x**2) + poly(z, 2) + C(g) + center(x)", data)
        assert "np.log(e)" in made.names

    def test_unsafe_formulas_need_consent(self, data):
        made = ee.ols("y ~ x.rank()", data, unsafe=True)
        assert made.names == ("Intercept", "x.rank()")

    def test_more_columns_than_rows(self):
        X = np.random.default_rng(0).normal(size=(3, 5))
        with pytest.raises(IdentificationError, match="5 columns for 3 rows"):
            ee.estimate(ee.ols(np.array([1.0, 2, 4]), X))

    def test_arrays_of_different_length(self):
        with pytest.raises(DataError, match="3 rows and `X` has 2"):
            ee.ols([1.0, 2, 4], np.ones((2, 1)))

    def test_unknown_options(self, data):
        with pytest.raises(ValueError, match="family"):
            ee.glm("y ~ x", data, family="gamma?")
        with pytest.raises(ValueError, match="link"):
            ee.glm("y ~ x", data, family="binomial", link="sqrt")
        with pytest.raises(ValueError, match="kind"):
            ee.HC(7)
        with pytest.raises(TypeError, match=r"call it"):
            ee.estimate(ee.mean("y", data), ee.HC)
        with pytest.raises(TypeError, match="rule such as"):
            ee.estimate(ee.mean("y", data), "HC0")

    def test_full_leverage_is_refused_by_hc3(self, data):
        lone = data.assign(d=(data.index == 4).astype(float))
        with pytest.raises(InferenceError, match="leverage 1"):
            ee.estimate(ee.ols("y ~ x + d", lone), ee.HC(3))


def test_separation_is_judged_on_the_rows_with_weight():
    """Zero weights leave rows 0 to 7, which x separates."""
    x = np.array([0.0, 1, 2, 3, 4, 5, 6, 7, 1, 6])
    y = np.array([0.0, 0, 0, 0, 1, 1, 1, 1, 1, 0])
    weights = np.where(np.arange(10) < 8, 1.0, 0.0)
    design = np.column_stack([np.ones(10), x])
    assert ee.estimate(ee.glm(y, design, family="binomial")).root.is_converged
    with pytest.raises(SeparationError):
        ee.estimate(ee.glm(y, design, family="binomial", weights=ee.Sampling(weights)))


@pytest.mark.parametrize("location", [5e7, 1e9])
def test_predictions_and_functionals_far_from_zero(location):
    """Spread 1 around 1e9: from V itself the variance of a mean would cancel."""
    rng = np.random.default_rng(9)
    z = np.round(rng.normal(size=400), 3)
    y = (rng.random(400) < 1 / (1 + np.exp(-0.3 - 0.8 * z))).astype(float)
    far = ee.estimate(ee.glm("y ~ x", {"y": y, "x": location + z}, family="binomial"))
    near = ee.estimate(ee.glm("y ~ x", {"y": y, "x": z}, family="binomial"))
    assert far.root.working is not None
    points = np.array([-1.0, 0.0, 2.0])
    one, two = far.predict({"x": location + points}), near.predict({"x": points})
    np.testing.assert_allclose(one["se"], two["se"], rtol=1e-5)
    np.testing.assert_allclose(one["lower"], two["lower"], rtol=1e-5)
    np.testing.assert_allclose(
        far.influence()["x"], near.influence()["x"], rtol=1e-5, atol=1e-5
    )
    doubled = far.functional(lambda t: 2 * t["x"])
    np.testing.assert_allclose(doubled.se.iloc[0], 2 * near.se["x"], rtol=1e-5)
    # Negative control: the variance formed from V in the units of the data.
    row = np.array([1.0, location])
    assert (
        abs(
            row
            @ far.spread.matrix
            @ row
            / near.predict({"x": [0.0]}, scale="link")["se"].iloc[0] ** 2
            - 1
        )
        > 1e-3
    )


@pytest.mark.parametrize("gap", [1.0, 1e-4, 1e-8])
def test_interpolation_is_seen_through_nearly_collinear_terms(gap):
    """Terms of 1e8 leave residuals of 1e-8 by rounding, which are no noise."""
    rng = np.random.default_rng(18)
    x, z = rng.normal(size=(2, 3))
    X = np.column_stack([np.ones(3), x, x + gap * z])
    y = rng.normal(size=3)
    with pytest.raises(InterpolationError, match="exactly"):
        ee.estimate(ee.ols(y, X))
    x, z, noise = rng.normal(size=(3, 9))  # the control: more rows leave noise
    X = np.column_stack([np.ones(9), x, x + gap * z])
    assert (ee.estimate(ee.ols(x + 1e-6 * noise, X)).se > 0).all()
