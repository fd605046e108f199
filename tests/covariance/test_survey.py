from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import EXACT, REFERENCE

import eestim as ee
from eestim.covariance.survey import Survey, survey_sum
from eestim.errors import DataError, InferenceError


def deviation(ours, reference):
    theirs = np.array(reference)
    size = np.sqrt(np.diag(theirs))
    return np.abs((np.asarray(ours) - theirs) / np.outer(size, size)).max()


def sample(seed=0, n=60):
    rng = np.random.default_rng(seed)
    psu = np.repeat(np.arange(n // 3), 3)
    x = rng.normal(size=n)
    return pd.DataFrame(
        {
            "psu": psu,
            "stratum": np.array(["a", "b", "c", "d"])[psu % 4],
            "w": rng.uniform(1, 9, n),
            "x": x,
            "y": 1 + x + rng.normal(size=n // 3)[psu] + rng.normal(size=n),
            "size": 50.0 + 10 * (psu % 4),
        }
    ).sample(frac=1, random_state=seed)


def weighted(data, formula="y ~ x"):
    return ee.estimate(ee.ols(formula, data, weights=ee.Sampling("w")))


# ------------------------------------------------------------------ other packages


@pytest.mark.parametrize(
    ("case", "formula", "rule"),
    [
        ("svyglm_apistrat", "api00 ~ ell + meals + mobility", Survey(strata="stype")),
        ("svyglm_apiclus1", "api00 ~ ell + meals + mobility", Survey(psu="dnum")),
    ],
)
def test_reference_case_of_survey_regression(refcases, case, formula, rule):
    entry = refcases.case(case)
    data = refcases.frame(entry["data"])
    fit = ee.estimate(ee.ols(formula, data, weights=ee.Sampling("pw")), rule)
    np.testing.assert_allclose(fit.theta, entry["estimate"], rtol=REFERENCE)
    assert deviation(fit.covariance, entry["vcov"]) < REFERENCE


def test_reference_case_of_survey_logit(refcases):
    entry = refcases.case("svyglm_logit_apiclus1")
    data = refcases.frame("apiclus1.csv").assign(
        high=lambda d: (d["api00"] > 650).astype(float)
    )
    equation = ee.glm(
        "high ~ ell + meals", data, family="binomial", weights=ee.Sampling("pw")
    )
    fit = ee.estimate(equation, Survey(psu="dnum"))
    np.testing.assert_allclose(fit.theta, entry["estimate"], rtol=REFERENCE)
    assert deviation(fit.covariance, entry["vcov"]) < REFERENCE
    assert (fit.dof == 14).all()
    assert fit.dof_kind == "design"


def test_reference_case_of_survey_ratio(refcases):
    entry = refcases.case("survey_ratio_apistrat")
    data = refcases.frame("apistrat.csv")
    equation = ee.equation(
        lambda theta, d: (d["api00"] - theta[0] * d["api99"]).to_numpy()[:, None],
        data,
        [1.0],
        jacobian=lambda theta, d: np.array([[-d["api99"].mean()]]),
        weights=ee.Sampling("pw"),
    )
    fit = ee.estimate(equation, Survey(strata="stype"))
    np.testing.assert_allclose(fit.theta, entry["estimate"], rtol=REFERENCE)
    assert deviation(fit.covariance, entry["vcov"]) < REFERENCE


# --------------------------------------------------------------------- closed forms


def test_mean_of_a_simple_random_sample_has_its_textbook_variance(rng):
    y = rng.normal(size=30)
    fit = ee.estimate(ee.mean(y), Survey())
    np.testing.assert_allclose(fit.se**2, y.var(ddof=1) / 30, rtol=EXACT)
    corrected = fit.with_covariance(Survey(fpc=120))
    np.testing.assert_allclose(corrected.se**2, 0.75 * y.var(ddof=1) / 30, rtol=EXACT)
    assert (fit.dof == 29).all()


def test_total_over_all_samples_of_a_stratified_population_is_unbiased():
    # every sample of 2 of 4 units in one stratum and 2 of 3 in the other
    first, second = np.array([1.0, 4.0, 2.0, 9.0]), np.array([3.0, 7.0, 8.0])
    strata, shares = np.array([0, 0, 1, 1]), np.array([2 / 4, 2 / 3])
    totals, variances = [], []
    for a in combinations(range(4), 2):
        for b in combinations(range(3), 2):
            z = np.concatenate([first[list(a)] * 2, second[list(b)] * 1.5])
            totals.append(z.sum())
            variances.append(survey_sum(z[:, None], strata, shares)[0, 0])
    np.testing.assert_allclose(np.mean(variances), np.var(totals), rtol=EXACT)
    plain = [
        survey_sum(z, strata, np.zeros(2))[0, 0]
        for z in [np.array([[2.0], [8.0], [4.5], [10.5]])]
    ]
    assert plain[0] > variances[0]  # negative control: without the correction


def test_design_variance_equals_stratum_by_stratum_sums():
    data = sample()
    fit = weighted(data)
    rule = Survey(strata="stratum", psu="psu", fpc="size")
    X = np.column_stack([np.ones(len(data)), data["x"]])
    w = data["w"].to_numpy()
    e = data["y"].to_numpy() - X @ fit.theta
    z = pd.DataFrame(X * (w * e)[:, None]).groupby(data["psu"].to_numpy()).sum()
    of = data.groupby("psu")[["stratum", "size"]].first()
    S = np.zeros((2, 2))
    for _, group in of.groupby("stratum"):
        part, n, N = z.loc[group.index], len(group), group["size"].iloc[0]
        S += (1 - n / N) * n / (n - 1) * (n - 1) * np.cov(part.T)
    B = np.linalg.inv(X.T @ (X * w[:, None]))
    got = fit.with_covariance(rule)
    assert deviation(got.covariance, B @ S @ B) < 1e-10
    assert (got.dof == 20 - 4).all()
    assert got.spread.n_clusters == (20,)


def test_population_sizes_and_sampled_shares_agree():
    data = sample()
    counts = data.groupby("stratum")["psu"].nunique()
    data["share"] = data["stratum"].map(counts) / data["size"]
    fit = weighted(data)
    sizes = fit.with_covariance(Survey("stratum", "psu", "size"))
    shares = fit.with_covariance(Survey("stratum", "psu", "share"))
    assert deviation(shares.covariance, sizes.covariance) < EXACT


# ------------------------------------------------------------------------ properties


@given(st.integers(0, 10_000))
@settings(deadline=None, max_examples=25)
def test_one_stratum_without_correction_is_clustering_with_its_factor(seed):
    fit = weighted(sample(seed))
    clustered = fit.with_covariance(ee.Clustered("psu", kind="CR1"))
    assert (
        deviation(
            fit.with_covariance(Survey(psu="psu")).covariance, clustered.covariance
        )
        < 1e-10
    )


@given(st.integers(0, 10_000), st.floats(1e-6, 1e6))
@settings(deadline=None, max_examples=25)
def test_scale_of_weights_does_not_matter(seed, scale):
    data = sample(seed)
    rule = Survey("stratum", "psu", "size")
    plain = weighted(data).with_covariance(rule)
    scaled = weighted(data.assign(w=scale * data["w"])).with_covariance(rule)
    assert deviation(scaled.covariance, plain.covariance) < 1e-9


@given(st.integers(0, 10_000))
@settings(deadline=None, max_examples=25)
def test_names_of_strata_and_units_do_not_matter(seed):
    data = sample(seed)
    plain = weighted(data).with_covariance(Survey("stratum", "psu"))
    renamed = data.assign(
        stratum=data["stratum"].map({"a": 9, "b": 2, "c": 5, "d": 1}),
        psu=[f"village {1000 - code}" for code in data["psu"]],
    )
    other = weighted(renamed).with_covariance(Survey("stratum", "psu"))
    assert deviation(other.covariance, plain.covariance) < 1e-10


def test_stratification_between_different_strata_reduces_the_variance():
    data = sample().assign(y=lambda d: d["y"] + 50 * (d["stratum"] == "a"))
    fit = weighted(data, "y ~ 1")
    ignored = fit.with_covariance(Survey(psu="psu")).se.iloc[0]
    used = fit.with_covariance(Survey("stratum", "psu")).se.iloc[0]
    assert used < 0.5 * ignored


def test_reused_labels_are_nested_only_on_request():
    data = sample()
    inside = data["psu"].to_numpy() // 4  # the same labels in every stratum
    plain = weighted(data).with_covariance(Survey("stratum", "psu"))
    fit = weighted(data)
    nested = fit.with_covariance(Survey("stratum", inside, nest=True))
    assert deviation(nested.covariance, plain.covariance) < EXACT
    with pytest.raises(DataError, match=r"lies in several strata.*`nest=True`"):
        fit.with_covariance(Survey("stratum", inside))


# -------------------------------------------------------------------- lonely units


def lonely():
    data = sample()
    first = data["psu"] == 0
    return data.assign(stratum=data["stratum"].where(~first, "alone"))


def test_a_stratum_with_one_unit_is_refused_with_cures():
    with pytest.raises(
        InferenceError, match=r"strata alone have one.*`lonely='center'`"
    ):
        weighted(lonely()).with_covariance(Survey("stratum", "psu"))


def test_lonely_units_contribute_nothing_or_their_distance_from_the_mean(rng):
    z, strata = rng.normal(size=(5, 2)), np.array([0, 0, 0, 0, 1])
    certain = survey_sum(z, strata, np.zeros(2))
    gap = z[4] - z.mean(axis=0)
    np.testing.assert_allclose(certain, 4 * np.cov(z[:4].T), rtol=1e-10)
    centred = survey_sum(z, strata, np.zeros(2), is_centred=True)
    np.testing.assert_allclose(centred, certain + np.outer(gap, gap), rtol=1e-10)
    fit = weighted(lonely())
    for option, word in (("center", "conservative"), ("certainty", "nothing")):
        got = fit.with_covariance(Survey("stratum", "psu", lonely=option))
        (finding,) = got.findings
        assert finding.status == "warn"
        assert word in finding.meaning


def test_a_stratum_sampled_whole_needs_no_variance():
    data = lonely()
    data["size"] = np.where(data["stratum"] == "alone", 1.0, data["size"])
    fit = weighted(data).with_covariance(Survey("stratum", "psu", "size"))
    assert not fit.findings
    assert fit.covariance.notna().all().all()


# ------------------------------------------------------------------------- bad input


def test_impossible_corrections_are_refused():
    data = sample()
    fit = weighted(data)
    n = len(data)
    for values, message in (
        (np.full(n, 3.0), "has 3 units in the population, but 5 were sampled"),
        (np.full(n, -1.0), r"`fpc` is -1.0 in stratum"),
        (np.full(n, 0.0), r"`fpc` is 0.0 in stratum"),
        (np.arange(n) + 100.0, "`fpc` varies within stratum"),
        (np.where(data["stratum"] == "a", 0.5, 80.0), "mixes shares"),
        (np.full(n, 1.0), "every stratum was sampled whole"),
    ):
        with pytest.raises((DataError, InferenceError), match=message):
            fit.with_covariance(Survey("stratum", "psu", values))
    with pytest.raises(DataError, match="`fpc` has missing labels"):
        fit.with_covariance(Survey("stratum", "psu", np.full(n, np.nan)))
    with pytest.raises(DataError, match="`fpc` has dtype"):
        fit.with_covariance(Survey("stratum", "psu", np.full(n, "many")))
    with pytest.raises(DataError, match=r"`fpc` is nan"):
        fit.with_covariance(Survey("stratum", "psu", np.nan))


def test_missing_labels_and_unknown_options_are_refused():
    data = sample()
    fit = weighted(data)
    labels = data["psu"].to_numpy().astype(float)
    labels[4] = np.nan
    with pytest.raises(DataError, match="`psu` has missing labels in row 4"):
        fit.with_covariance(Survey(psu=labels))
    with pytest.raises(DataError, match="`strata` has shape"):
        fit.with_covariance(Survey(strata=labels[:5]))
    with pytest.raises(ValueError, match="`lonely` is 'average'"):
        Survey(lonely="average")


def test_one_unit_and_as_many_strata_as_units_are_refused():
    fit = weighted(sample())
    with pytest.raises(InferenceError, match="one sampling unit"):
        fit.with_covariance(Survey(psu=np.zeros(60)))
    with pytest.raises(InferenceError, match="20 sampling units in 20 strata"):
        fit.with_covariance(Survey("psu", "psu", lonely="certainty"))
