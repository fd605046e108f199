import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import DERIVATIVE, EXACT, REFERENCE

import eestim as ee
from eestim.covariance._refits import Groups
from eestim.covariance.clustered import Clustered
from eestim.covariance.jackknife import (
    Jackknife,
    leave_out_newton,
    leave_out_regression,
)
from eestim.errors import CapabilityError, InferenceError

KINDS = ["exact", "one-step", "fij"]


def scaled_gap(got, wanted):
    """Largest difference in units of standard errors."""
    size = np.sqrt(np.diag(wanted))
    return np.abs((np.asarray(got) - wanted) / np.outer(size, size)).max()


def table(n=30, seed=4):
    rng = np.random.default_rng(seed)
    x, z = rng.normal(size=n), rng.exponential(size=n)
    eta = 0.2 + 0.7 * x - 0.3 * z
    return pd.DataFrame(
        {
            "x": x,
            "z": z,
            "g": rng.permutation(np.arange(n) % 7),
            "y": eta + rng.normal(size=n) * (1 + z),
            "b": (rng.random(n) < 1 / (1 + np.exp(-eta))).astype(float),
        }
    )


def design_of(data):
    return np.column_stack([np.ones(len(data)), data["x"], data["z"]])


def without(data, mask):
    """Least squares without some rows, by an independent route."""
    kept = ~np.asarray(mask)
    return np.linalg.lstsq(design_of(data)[kept], data["y"].to_numpy()[kept])[0]


# ------------------------------------------------------------- other packages


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("center", "name"),
    [
        ("estimate", "ols_publicschools_jackknife"),
        ("mean", "ols_publicschools_jackknife_mean"),
    ],
)
def test_public_schools_match_r_sandwich_vcovjk(refcases, kind, center, name):
    case, data = refcases.case(name), refcases.frame("PublicSchools.csv").dropna()
    equation = ee.ols("Expenditure ~ Income + I(Income**2)", data)
    fit = ee.estimate(equation, Jackknife(center=center, kind=kind))
    assert scaled_gap(fit.spread.matrix, np.array(case["vcov"])) <= REFERENCE


def test_public_schools_with_the_wrong_centre_do_not_match(refcases):
    case = refcases.case("ols_publicschools_jackknife_mean")
    data = refcases.frame("PublicSchools.csv").dropna()
    equation = ee.ols("Expenditure ~ Income + I(Income**2)", data)
    fit = ee.estimate(equation, Jackknife(center="estimate"))
    assert scaled_gap(fit.spread.matrix, np.array(case["vcov"])) > 1e-3


def test_petersen_matches_statsmodels_cluster_jackknife(refcases):
    case = refcases.case("sm_ols_petersen_cluster-jk")
    equation = ee.ols("y ~ x", refcases.frame("PetersenCL.csv"))
    fit = ee.estimate(equation, Jackknife(center="mean", groups="firm"))
    assert scaled_gap(fit.spread.matrix, np.array(case["vcov"])) <= REFERENCE
    assert fit.dof_kind == "G-1"
    assert (fit.dof == 499).all()


# ---------------------------------------------------------------- closed forms


@settings(max_examples=25, deadline=None)
@given(st.integers(12, 40), st.integers(0, 10**6))
def test_deletion_formula_equals_least_squares_without_the_row(n, seed):
    """Property 18."""
    data = table(n, seed)
    fit = ee.estimate(ee.ols("y ~ x + z", data), Jackknife())
    brute = np.array([without(data, np.arange(n) == i) for i in range(n)])
    np.testing.assert_allclose(fit.spread.replicates, brute, rtol=1e-9, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.integers(12, 40), st.integers(0, 10**6))
def test_least_squares_jackknife_is_hc3_times_n_minus_1_over_n(n, seed):
    """Property 19."""
    equation = ee.ols("y ~ x + z", table(n, seed))
    hc3 = ee.estimate(equation, ee.HC(3)).spread.matrix
    ours = ee.estimate(equation, Jackknife()).spread.matrix
    assert scaled_gap(ours, hc3 * (n - 1) / n) <= 100 * EXACT
    whole = ee.estimate(equation, Jackknife(factor="1")).spread.matrix
    assert scaled_gap(whole, hc3) <= 100 * EXACT


@settings(max_examples=25, deadline=None)
@given(st.integers(12, 40), st.integers(0, 10**6))
def test_jackknife_centred_at_the_mean_is_below_hc3(n, seed):
    """Property 20: HC3 minus it is positive semidefinite."""
    equation = ee.ols("y ~ x + z", table(n, seed))
    hc3 = ee.estimate(equation, ee.HC(3)).spread.matrix
    centred = ee.estimate(equation, Jackknife(center="mean")).spread.matrix
    size = np.sqrt(np.diag(hc3))
    assert np.linalg.eigvalsh((hc3 - centred) / np.outer(size, size))[0] >= -1e-12


@settings(max_examples=25, deadline=None)
@given(st.integers(12, 40), st.integers(0, 10**6))
def test_infinitesimal_jackknife_is_hc0_and_with_groups_cr0(n, seed):
    """Property 34."""
    equation = ee.ols("y ~ x + z", table(n, seed))
    rule = Jackknife(kind="infinitesimal")
    hc0 = ee.estimate(equation).spread.matrix
    assert scaled_gap(ee.estimate(equation, rule).spread.matrix, hc0) <= 100 * EXACT
    cr0 = ee.estimate(equation, Clustered("g")).spread.matrix
    grouped = ee.estimate(equation, Jackknife(kind="infinitesimal", groups="g"))
    assert scaled_gap(grouped.spread.matrix, cr0) <= 100 * EXACT


def test_mean_has_the_textbook_variance():
    values = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
    for kind in KINDS:
        fit = ee.estimate(ee.mean(values), Jackknife(kind=kind))
        np.testing.assert_allclose(
            fit.spread.matrix[0, 0], values.var(ddof=1) / 5, rtol=1e-10
        )


def test_group_deletion_equals_least_squares_without_the_group():
    data = table(40)
    fit = ee.estimate(ee.ols("y ~ x + z", data), Jackknife(groups="g"))
    labels = pd.unique(data["g"])
    brute = np.array([without(data, data["g"] == label) for label in labels])
    np.testing.assert_allclose(fit.spread.replicates, brute, rtol=1e-10)
    away = brute - fit.theta
    np.testing.assert_allclose(fit.spread.matrix, 6 / 7 * away.T @ away, rtol=1e-9)


def test_grouped_jackknife_is_cr3_times_g_minus_1_over_g():
    equation = ee.ols("y ~ x + z", table(60))
    cr3 = ee.estimate(equation, Clustered("g", kind="CR3")).spread.matrix
    ours = ee.estimate(equation, Jackknife(groups="g")).spread.matrix
    assert scaled_gap(ours, cr3 * 6 / 7) <= 100 * EXACT


def test_single_rows_as_groups_are_the_plain_jackknife():
    data = table(25)
    equation = ee.ols("y ~ x + z", data)
    plain = ee.estimate(equation, Jackknife()).spread.matrix
    grouped = ee.estimate(equation, Jackknife(groups=np.arange(25))).spread.matrix
    np.testing.assert_allclose(grouped, plain, rtol=1e-11)


@pytest.mark.parametrize("kind", ["exact", "fij"])
def test_logistic_refits_equal_fits_to_the_other_rows(kind):
    data = table(40)
    equation = ee.glm("b ~ x", data, family="binomial")
    ours = ee.estimate(equation, Jackknife(kind=kind)).spread.replicates
    brute = [
        ee.estimate(ee.glm("b ~ x", data.drop(index=i), family="binomial")).theta
        for i in range(40)
    ]
    np.testing.assert_allclose(ours, brute, rtol=1e-7, atol=1e-9)


def test_logistic_one_step_is_hc3_and_differs_from_exact():
    equation = ee.glm("b ~ x + z", table(60), family="binomial")
    hc3 = ee.estimate(equation, ee.HC(3)).spread.matrix
    one = ee.estimate(equation, Jackknife(kind="one-step", factor="1")).spread.matrix
    assert scaled_gap(one, hc3) <= 100 * EXACT
    exact = ee.estimate(equation, Jackknife(factor="1")).spread.matrix
    assert scaled_gap(exact, hc3) > 1e-3


def logistic(theta, data):
    design = np.column_stack([np.ones(len(data)), data["x"]])
    mu = 1 / (1 + np.exp(-(design @ np.asarray(theta))))
    return (np.asarray(data["b"]) - mu)[:, None] * design


@pytest.mark.parametrize("kind", [*KINDS, "infinitesimal"])
def test_any_psi_agrees_with_the_model(kind):
    """The route through unit derivatives and generic refits against closed forms."""
    data = table(40)
    written = ee.equation(logistic, data, [0, 0])
    model = ee.glm("b ~ x", data, family="binomial")
    rule = Jackknife(kind=kind)
    theirs = ee.estimate(model, rule).spread.matrix
    assert scaled_gap(ee.estimate(written, rule).spread.matrix, theirs) <= DERIVATIVE


def test_one_step_formula_equals_a_newton_step_on_the_remaining_units():
    rng = np.random.default_rng(0)
    slopes = np.eye(3) + 0.3 * rng.normal(size=(12, 3, 3))
    scores = rng.normal(size=(12, 3))
    scores -= scores.mean(axis=0)
    ours = leave_out_newton(slopes, scores)
    for g in range(12):
        rest = np.arange(12) != g
        step = np.linalg.solve(slopes[rest].sum(axis=0), scores[rest].sum(axis=0))
        np.testing.assert_allclose(ours[g], -step, rtol=1e-9)


def test_units_that_sum_rows_are_deleted_whole():
    data = table(40)

    def psi(theta, data):
        design = np.column_stack([np.ones(len(data)), data["x"]])
        return (np.asarray(data["y"]) - design @ np.asarray(theta))[:, None] * design

    summed = ee.equation(psi, data, [0, 0], units="g")
    grouped = ee.ols("y ~ x", data)
    ours = ee.estimate(summed, Jackknife(kind="fij")).spread.matrix
    theirs = ee.estimate(grouped, Jackknife(groups="g")).spread.matrix
    assert scaled_gap(ours, theirs) <= DERIVATIVE
    with pytest.raises(ee.errors.DataError, match="whole units"):
        ee.estimate(summed, Jackknife(kind="one-step", groups=np.arange(40)))


def test_frequencies_equal_the_data_written_out():
    data = table(20).assign(w=np.arange(20) % 3 + 1)
    long = data.loc[data.index.repeat(data["w"])].reset_index(drop=True)
    counted = ee.estimate(ee.ols("y ~ x", data, weights=ee.Frequency("w")), Jackknife())
    written = ee.estimate(ee.ols("y ~ x", long), Jackknife())
    np.testing.assert_allclose(counted.spread.matrix, written.spread.matrix, rtol=1e-10)


def test_units_of_measurement_scale_the_covariance():
    data = table(40)
    plain = ee.estimate(ee.ols("y ~ x + z", data), Jackknife()).spread.matrix
    far = data.assign(x=data["x"] * 1e6, z=data["z"] * 1e-6)
    moved = ee.estimate(ee.ols("y ~ x + z", far), Jackknife()).spread.matrix
    scale = np.array([1.0, 1e-6, 1e6])
    np.testing.assert_allclose(moved, plain * np.outer(scale, scale), rtol=1e-8)


def test_ill_conditioned_design_matches_the_centred_one():
    data = table(40)
    shifted = data.assign(x=data["x"] + 1e6)
    plain = ee.estimate(ee.ols("y ~ x", data), Jackknife()).se["x"]
    moved = ee.estimate(ee.ols("y ~ x", shifted), Jackknife()).se["x"]
    np.testing.assert_allclose(moved, plain, rtol=1e-7)


def test_refits_do_not_depend_on_the_number_of_workers():
    equation = ee.glm("b ~ x + z", table(40), family="binomial")
    one = ee.estimate(equation, Jackknife()).spread.replicates
    two = ee.estimate(equation, Jackknife(jobs=2)).spread.replicates
    assert np.array_equal(one, two)


# ----------------------------------------------------------------- what it refuses


@pytest.mark.parametrize("kind", KINDS)
def test_a_unit_that_determines_a_parameter_is_refused(kind):
    data = table(20).assign(only=np.arange(20) == 0)
    equation = ee.ols("y ~ x + only", data.assign(only=data["only"] * 1.0))
    with pytest.raises(InferenceError, match="without group 0"):
        ee.estimate(equation, Jackknife(kind=kind))


def test_a_deletion_that_separates_the_outcome_is_refused():
    x = np.array([0.0, 1, 2, 3, 2.5, 4, 5, 6])
    y = np.array([0.0, 0, 0, 0, 1, 1, 1, 1])
    equation = ee.glm("y ~ x", pd.DataFrame({"x": x, "y": y}), family="binomial")
    with pytest.raises(InferenceError, match="does not exist without group"):
        ee.estimate(equation, Jackknife())


def test_tabulated_scores_have_the_infinitesimal_jackknife_alone():
    psi = np.array([[-2.0], [-1.0], [3.0]])
    table_only = ee.equations.Evaluated(("mean",), psi, np.eye(1), np.array([3.0]))
    with pytest.raises(CapabilityError, match="one-step"):
        ee.estimate(table_only, Jackknife(), root=[3.0])
    with pytest.raises(CapabilityError, match="infinitesimal"):
        ee.estimate(table_only, Jackknife(kind="one-step"), root=[3.0])
    fit = ee.estimate(table_only, Jackknife(kind="infinitesimal"), root=[3.0])
    np.testing.assert_allclose(fit.spread.matrix, [[14 / 9]], rtol=EXACT)


def test_many_parameters_are_reported():
    rng = np.random.default_rng(1)
    X = rng.normal(size=(40, 8))
    fit = ee.estimate(ee.ols(rng.normal(size=40), X), Jackknife())
    assert fit.findings[0].name == "parameters per resampled unit"
    assert fit.findings[0].status == "warn"
    assert not ee.estimate(ee.ols("y ~ x", table(60)), Jackknife()).findings


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="center"):
        Jackknife(center="median")
    with pytest.raises(ValueError, match="kind"):
        Jackknife(kind="two-step")
    with pytest.raises(ValueError, match="factor"):
        Jackknife(factor="__import__('os')")
    with pytest.raises(InferenceError, match="one group"):
        ee.estimate(ee.mean(np.arange(5.0)), Jackknife(groups=np.zeros(5)))


def test_weight_zero_rows_take_no_part():
    rng = np.random.default_rng(2)
    X, r = rng.normal(size=(9, 2)), rng.normal(size=9)
    weight = np.ones(9)
    weight[3], r[3] = 0.0, 0.0
    every = leave_out_regression(X, weight, r, Groups(np.arange(9), 9, ""))
    kept = np.arange(9) != 3
    rest = leave_out_regression(
        X[kept], weight[kept], r[kept], Groups(np.arange(8), 8, "")
    )
    np.testing.assert_allclose(every[kept], rest, rtol=1e-12)
    assert (every[3] == 0).all()
