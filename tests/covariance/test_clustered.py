"""Clustered covariances against other packages, closed forms and exact properties."""

import warnings
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import EXACT, REFERENCE

import eestim as ee
from eestim.covariance._clusters import clustered_regression, pieces
from eestim.covariance.clustered import Clustered, Satterthwaite, finite_factor
from eestim.equations import Working
from eestim.errors import (
    CapabilityError,
    DataError,
    IdentificationError,
    InferenceError,
)

BOTH = ("firm", "year")
CADJ = "G/(G-1)*(n-1)/n"  # linearmodels group_debias
PETERSEN = {
    "ols_petersen_firm_HC0_nocadj": Clustered("firm"),
    "ols_petersen_firm_HC1_nocadj": Clustered("firm", factor="(n-1)/(n-k)"),
    "ols_petersen_firm_HC1_cadj": Clustered("firm", kind="CR1S"),
    "ols_petersen_firm_HC2_cadj": Clustered("firm", kind="CR2"),
    "ols_petersen_firm_HC3_cadj": Clustered("firm", kind="CR3"),
    "ols_petersen_firm_HC3_nocadj": Clustered("firm", kind="CR3", factor="(G-1)/G"),
    "ols_petersen_firmyear_HC0_cadj": Clustered(*BOTH, kind="CR1"),
    "ols_petersen_firmyear_HC0_nocadj": Clustered(*BOTH),
    "ols_petersen_firmyear_HC1_cadj": Clustered(*BOTH, kind="CR1S"),
    "ols_petersen_firmyear_multi0": Clustered(*BOTH, kind="CR1S", multi0=True),
    "sm_ols_petersen_cluster_uc0": Clustered("firm"),
    "sm_ols_petersen_cluster_uc1": Clustered("firm", kind="CR1S"),
    "sm_ols_petersen_cluster-crv3": Clustered("firm", kind="CR3", factor="(G-1)/G"),
    "lm_petersen_cluster_both_deb0": Clustered(*BOTH),
    "lm_petersen_cluster_both_deb1": Clustered(*BOTH, factor="n/(n-k)"),
    "lm_petersen_cluster_both_gd_deb0": Clustered(*BOTH, factor=CADJ),
    "lm_petersen_cluster_both_gd_deb1": Clustered(*BOTH, kind="CR1S"),
    "lm_petersen_cluster_entity_gd_deb0": Clustered("firm", factor=CADJ),
    "lm_petersen_cluster_entity_gd_deb1": Clustered("firm", kind="CR1S"),
}


def deviation(matrix, case):
    expected = np.array(case["vcov"])
    scale = np.sqrt(np.diag(expected))
    return np.abs((matrix - expected) / np.outer(scale, scale)).max()


def covariance(equation, rule):
    return ee.estimate(equation, covariance=rule).spread


@dataclass(frozen=True, slots=True)
class WorkingWithVariance(Working):
    variance: np.ndarray | None = None


@dataclass(frozen=True)
class Binomial:
    """A logit that supplies the variance of its response, whatever else it has."""

    inner: object

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def working(self, theta):
        made = self.inner.working(theta)
        return WorkingWithVariance(
            made.design, made.weight, made.residual, made.dispersion, made.weight
        )


@pytest.mark.parametrize("name", PETERSEN)
def test_ols_petersen_equals_other_packages(refcases, name):
    case, table = refcases.case(name), refcases.frame("PetersenCL.csv")
    found = covariance(ee.ols("y ~ x", table), PETERSEN[name])
    assert deviation(found.matrix, case) <= REFERENCE


def test_statsmodels_jackknife_is_centred_elsewhere(refcases):
    """It centres replicates on their mean: 3e-8 away in units of the variance."""
    case = refcases.case("sm_ols_petersen_cluster-jk")
    rule = Clustered("firm", kind="CR3", factor="(G-1)/G")
    table = refcases.frame("PetersenCL.csv")
    found = deviation(covariance(ee.ols("y ~ x", table), rule).matrix, case)
    assert REFERENCE < found < 5e-8


@pytest.mark.parametrize(
    ("name", "kind"),
    [("logit_petersen_firm_HC0", "CR1"), ("logit_petersen_firm_HC3", "vcovCL-HC3")],
)
def test_logit_petersen_equals_sandwich(refcases, name, kind):
    table = refcases.frame("PetersenCL.csv").assign(up=lambda d: (d["y"] > 0) * 1.0)
    equation = ee.glm("up ~ x", table, family="binomial")
    found = covariance(equation, Clustered("firm", kind=kind))
    assert deviation(found.matrix, refcases.case(name)) <= REFERENCE


def test_root_on_the_scale_of_the_predictor_equals_stata_brl(refcases):
    """Six digits of `brl binary x, cluster(firm) logit`, quoted by R sandwich.

    That program takes the symmetric root in units of the linear predictor, where the
    working variance is 1 / weight; clubSandwich takes it in units of the response.
    """
    table = refcases.frame("PetersenCL.csv").assign(up=lambda d: (d["y"] > 0) * 1.0)
    fit = ee.estimate(ee.glm("up ~ x", table, family="binomial"))
    at = fit.equation.working(fit.theta)
    codes = table["firm"].to_numpy() - 1
    model = clustered_regression(
        at.design, at.weight, at.residual, codes, 0.5, 1.0 / at.weight
    )
    scores = np.concatenate([block.scores for block in pieces(model)])
    half = np.linalg.solve(model.triangle, scores.T)
    expected = [0.00359275, 0.00276326]
    np.testing.assert_allclose(np.diag(half @ half.T), expected, rtol=0, atol=6e-9)


def test_poisson_equals_sandwich(refcases):
    table = refcases.frame("InstInnovation.csv")
    equation = ee.glm(
        "cites ~ institutions + lcapemp + lsales", table, family="poisson"
    )
    found = covariance(equation, Clustered("company", kind="CR1"))
    case = refcases.case("poisson_instinnovation_company")
    assert deviation(found.matrix, case) <= REFERENCE


@pytest.mark.parametrize("kind", ["CR0", "CR1", "CR1p", "CR1S"])
def test_ols_chick_equals_clubsandwich(refcases, kind):
    case, table = refcases.case(f"ols_chick_{kind}"), refcases.frame("ChickWeight.csv")
    equation = ee.ols("weight ~ 0 + C(Diet) + C(Diet):Time", table)
    found = covariance(equation, Clustered("Chick", kind=kind, dof="satterthwaite"))
    assert deviation(found.matrix, case) <= REFERENCE
    expected = case["extra"]["df_Satterthwaite"]
    np.testing.assert_allclose(found.dof, expected, rtol=1e-10)


def test_ols_chick_cr2_equals_clubsandwich(refcases):
    table = refcases.frame("ChickWeight.csv")
    equation = ee.ols("weight ~ 0 + C(Diet) + C(Diet):Time", table)
    found = covariance(equation, Clustered("Chick", kind="CR2"))
    assert deviation(found.matrix, refcases.case("wald_chick_CR2")) <= REFERENCE
    assert (found.dof_kind, found.n_clusters) == ("satterthwaite", (50,))


@pytest.mark.parametrize("kind", ["CR1", "CR2", "CR3"])
def test_logit_chick_equals_clubsandwich(refcases, kind):
    """R's glm leaves the weights of its covariance one scoring step behind: 1.8e-8."""
    case, table = (
        refcases.case(f"logit_chick_{kind}"),
        refcases.frame("ChickWeight.csv"),
    )
    table = table.assign(heavy=(table["weight"] > 100) * 1.0)
    inner = ee.glm("heavy ~ Time + C(Diet)", table, family="binomial")
    found = covariance(
        Binomial(inner), Clustered("Chick", kind=kind, dof="satterthwaite")
    )
    assert deviation(found.matrix, case) <= 2e-8
    np.testing.assert_allclose(
        found.dof, case["extra"]["df_Satterthwaite"], rtol=REFERENCE
    )
    root = ee.estimate(inner).theta
    behind = _one_scoring_step_behind(inner, root)
    ahead = np.linalg.solve(behind, inner.sensitivity(root))
    stale = ahead @ found.matrix @ ahead.T
    assert deviation(stale, case) <= 1e-10


def _one_scoring_step_behind(equation, root):
    """Return A where R stops: the last step before its estimates, from its start."""
    y = equation.response
    mu = (y + 0.5) / 2.0
    eta = np.log(mu / (1.0 - mu))
    theta = np.full(len(root), np.inf)
    while True:
        weight = mu * (1.0 - mu)
        right = equation.design.T @ (weight * eta + y - mu)
        scaled = equation.design.T @ (weight[:, None] * equation.design)
        previous, theta = theta, np.linalg.solve(scaled, right)
        if np.abs(theta - root).max() < 1e-12 * np.abs(root).max():
            return equation.sensitivity(previous)
        eta = equation.design @ theta
        mu = 1.0 / (1.0 + np.exp(-eta))


# ------------------------------------------------- openly licensed data, in this suite


@pytest.fixture(scope="module")
def grunfeld():
    return sm.datasets.grunfeld.load_pandas().data


@pytest.mark.parametrize("correction", [False, True])
@pytest.mark.parametrize("labels", [("firm",), ("year",), ("firm", "year")])
def test_grunfeld_equals_statsmodels(grunfeld, labels, correction):
    X = sm.add_constant(grunfeld[["value", "capital"]])
    groups = np.column_stack([pd.factorize(grunfeld[name])[0] for name in labels])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = (
            sm.OLS(grunfeld["invest"], X)
            .fit(
                cov_type="cluster",
                cov_kwds={"groups": groups.squeeze(), "use_correction": correction},
            )
            .cov_params()
        )
    rule = Clustered(*labels, kind="CR1S" if correction else "CR0")
    found = covariance(ee.ols("invest ~ value + capital", grunfeld), rule).matrix
    scale = np.sqrt(np.diag(expected))
    np.testing.assert_allclose(
        found / np.outer(scale, scale),
        expected.to_numpy() / np.outer(scale, scale),
        rtol=0,
        atol=REFERENCE,
    )


def test_grunfeld_cr3_equals_leaving_clusters_out(grunfeld):
    """CR3 is the sum of squared changes of the estimate without each cluster."""
    equation = ee.ols("invest ~ value + capital", grunfeld)
    fit = ee.estimate(equation, covariance=Clustered("firm", kind="CR3"))
    changes = [
        ee.estimate(
            ee.ols("invest ~ value + capital", grunfeld[grunfeld["firm"] != firm])
        ).theta
        - fit.theta
        for firm in grunfeld["firm"].unique()
    ]
    expected = np.transpose(changes) @ np.array(changes)
    np.testing.assert_allclose(fit.spread.matrix, expected, rtol=1e-9)


# ---------------------------------------------------------------------- properties


def clustered_table(seed, n=60, groups=9):
    rng = np.random.default_rng(seed)
    codes = np.concatenate([np.arange(groups), rng.integers(0, groups, n - groups)])
    x = rng.normal(size=n) + 0.5 * rng.normal(size=groups)[codes]
    y = 1.0 + x + rng.normal(size=groups)[codes] + rng.normal(size=n) * (1 + abs(x))
    up = (rng.random(n) < 1 / (1 + np.exp(-0.5 * y))).astype(float)
    return pd.DataFrame({"x": x, "z": rng.normal(size=n), "y": y, "up": up, "g": codes})


seeds = st.integers(0, 10**6)
checked = settings(max_examples=15, deadline=None, derandomize=True)


@checked
@given(seed=seeds)
@pytest.mark.parametrize(("kind", "hc"), [("CR0", 0), ("CR2", 2), ("CR3", 3)])
@pytest.mark.parametrize("family", ["gaussian", "binomial"])
def test_clusters_of_one_equal_hc(family, kind, hc, seed):
    table = clustered_table(seed)
    outcome = "y" if family == "gaussian" else "up"
    equation = ee.glm(f"{outcome} ~ x + z", table, family=family)
    own = covariance(equation, Clustered(np.arange(60), kind=kind)).matrix
    rows = covariance(equation, ee.HC(hc)).matrix
    scale = np.sqrt(np.diag(rows))
    np.testing.assert_allclose(
        own / scale / scale[:, None], rows / scale / scale[:, None], rtol=0, atol=1e-10
    )


@checked
@given(seed=seeds)
@pytest.mark.parametrize("kind", ["CR0", "CR1S", "CR2", "CR3"])
def test_labels_and_order_of_rows_do_not_matter(kind, seed):
    table = clustered_table(seed)
    renamed = table.assign(g=table["g"].map(lambda g: f"c{(g * 7) % 9}"))
    shuffled = renamed.sample(frac=1.0, random_state=seed)
    one = covariance(ee.ols("y ~ x", table), Clustered("g", kind=kind))
    two = covariance(ee.ols("y ~ x", shuffled), Clustered("g", kind=kind))
    np.testing.assert_allclose(two.matrix, one.matrix, rtol=1e-10)
    np.testing.assert_allclose(two.dof, one.dof, rtol=1e-10)


@checked
@given(seed=seeds)
def test_clustering_equals_summing_scores_into_units(seed):
    table = clustered_table(seed)

    def psi(theta, data):
        x = np.column_stack([np.ones(len(data)), data["x"]])
        return x * (data["y"] - x @ theta).to_numpy()[:, None]

    rows = ee.equation(psi, table, [0.0, 0.0])
    units = ee.equation(psi, table, [0.0, 0.0], units="g")
    clustered = covariance(rows, Clustered("g")).matrix
    np.testing.assert_allclose(covariance(units, ee.HC(0)).matrix, clustered, rtol=1e-8)
    np.testing.assert_allclose(
        covariance(units, Clustered("g")).matrix, clustered, rtol=1e-8
    )


@checked
@given(seed=seeds)
@pytest.mark.parametrize("kind", ["CR0", "CR1", "CR1p"])
def test_triplicate_data_clustered_on_the_original_row(kind, seed):
    table = clustered_table(seed).assign(id=np.arange(60))
    once = covariance(ee.ols("y ~ x + z", table), Clustered("id", kind=kind))
    thrice = covariance(
        ee.ols("y ~ x + z", pd.concat([table] * 3)), Clustered("id", kind=kind)
    )
    np.testing.assert_allclose(thrice.matrix, once.matrix, rtol=1e-10)


@checked
@given(seed=seeds)
@pytest.mark.parametrize("kind", ["CR2", "CR0"])
def test_cr2_is_exactly_unbiased_under_the_working_model(kind, seed):
    """V is quadratic in y, so E V is the sum of V over unit vectors y."""
    table = clustered_table(seed, n=24, groups=5)
    X = np.column_stack([np.ones(24), table["x"]])
    mean = np.zeros((2, 2))
    for i in range(24):
        equation = ee.ols(np.eye(24)[i], X)
        root = replace(ee.estimate(equation, covariance=ee.ModelBased()).root)
        mean += Clustered(table["g"], kind=kind)(equation, root).matrix
    expected = np.linalg.inv(X.T @ X)
    off = np.abs(mean / expected - 1.0).max()
    assert off < 1e-10 if kind == "CR2" else off > 1e-2  # CR0: negative control


@checked
@given(seed=seeds)
@pytest.mark.parametrize("kind", ["CR0", "CR2", "CR3"])
def test_change_of_parameters_is_equivariant(kind, seed):
    rng = np.random.default_rng(seed)
    table = clustered_table(seed)
    X = np.column_stack([np.ones(60), table["x"], table["z"]])
    L = np.linalg.qr(rng.normal(size=(3, 3)))[0] @ np.diag([1.0, 10.0, 0.1])
    rule = Clustered(table["g"], kind=kind)
    own = covariance(ee.ols(table["y"].to_numpy(), X), rule)
    other = covariance(ee.ols(table["y"].to_numpy(), X @ L), rule)
    back = L @ other.matrix @ L.T
    scale = np.sqrt(np.diag(own.matrix))
    np.testing.assert_allclose(
        back / scale / scale[:, None],
        own.matrix / scale / scale[:, None],
        rtol=0,
        atol=1e-9,
    )
    if other.contrast_dof is not None:
        np.testing.assert_allclose(other.contrast_dof(L), own.dof, rtol=1e-9)


def test_bell_mccaffrey_dof_of_a_mean_of_equal_clusters():
    """Closed form: an intercept with G equal clusters has G - 1 degrees of freedom."""
    y = np.random.default_rng(0).normal(size=40)
    found = covariance(
        ee.ols(y, np.ones((40, 1))), Clustered(np.repeat(np.arange(8), 5), kind="CR2")
    )
    np.testing.assert_allclose(found.dof, [7.0], rtol=EXACT)


def test_cr2_of_a_mean_equals_its_closed_form():
    """u_g / sqrt(1 - T_g / N) for an intercept (theory: held-out perplexity)."""
    rng = np.random.default_rng(1)
    sizes = np.array([3, 8, 1, 12, 6])
    codes = np.repeat(np.arange(5), sizes)
    y = rng.normal(size=30)
    found = covariance(ee.ols(y, np.ones((30, 1))), Clustered(codes, kind="CR2"))
    sums = np.bincount(codes, y - y.mean())
    expected = (sums**2 / (1 - sizes / 30)).sum() / 30**2
    np.testing.assert_allclose(found.matrix, [[expected]], rtol=EXACT)


def test_three_ways_equal_inclusion_and_exclusion_by_hand(rng):
    table = clustered_table(5, n=400, groups=20)
    table = table.assign(h=rng.integers(0, 15, 400), k=rng.integers(0, 12, 400))
    equation = ee.ols("y ~ x", table)
    found = covariance(equation, Clustered("g", "h", "k", kind="CR1")).matrix
    expected = np.zeros((2, 2))
    for names in ["g", "h", "k", "gh", "gk", "hk", "ghk"]:
        label = table[list(names)].astype(str).agg("-".join, axis=1)
        term = covariance(equation, Clustered(label, kind="CR1")).matrix
        expected += (-1) ** (len(names) + 1) * term
    np.testing.assert_allclose(found, expected, rtol=1e-10)


# ------------------------------------------------------------------------ refusals


def test_a_single_cluster_is_refused():
    table = clustered_table(0).assign(one=1)
    with pytest.raises(InferenceError, match="one cluster"):
        covariance(ee.ols("y ~ x", table), Clustered("one"))
    with pytest.raises(InferenceError, match="one cluster"):
        covariance(ee.ols("y ~ x", table), Clustered("g", "one", kind="CR2"))


def test_few_clusters_and_few_degrees_of_freedom_are_findings():
    table = clustered_table(0, groups=4)
    found = covariance(ee.ols("y ~ x", table), Clustered("g", kind="CR2"))
    assert [f.name for f in found.findings] == [
        "number of clusters",
        "Satterthwaite degrees of freedom",
    ]
    assert found.findings[0].value == 4.0
    many = covariance(ee.ols("y ~ x", table), Clustered(np.arange(60), kind="CR2"))
    assert many.findings == ()


def test_missing_labels_are_refused_with_their_rows():
    table = clustered_table(0)
    label = table["g"].astype(float)
    label[3] = np.nan
    with pytest.raises(DataError, match="`labels` has missing labels in row 3"):
        covariance(ee.ols("y ~ x", table), Clustered(label))
    with pytest.raises(DataError, match="one label for each of 60"):
        covariance(ee.ols("y ~ x", table), Clustered(np.arange(59)))


def test_cr2_of_a_generic_psi_names_what_would_work():
    equation = ee.equation(
        lambda theta, data: (data["y"] - theta[0]).to_numpy()[:, None],
        clustered_table(0),
        [0.0],
    )
    with pytest.raises(CapabilityError, match=r"`working`.*Jackknife\(groups="):
        covariance(equation, Clustered("g", kind="CR2"))
    assert covariance(equation, Clustered("g", kind="CR1")).dof == 8.0


def test_collinear_designs_are_refused_before_whitening():
    table = clustered_table(0).assign(twice=lambda d: 2.0 * d["x"])
    equation = ee.ols("y ~ x + twice", table)
    root = ee.estimate(ee.ols("y ~ x + z", table)).root
    with pytest.raises(IdentificationError, match="rank 2"):
        Clustered("g", kind="CR2")(equation, root)


def test_a_cluster_with_its_own_dummy_is_reported_and_left_out():
    """The dummy's direction is left out; slopes equal those without the cluster."""
    table = clustered_table(3)
    table = table.assign(d=(table["g"] == 0) * 1.0, dx=(table["g"] == 0) * table["x"])
    full = covariance(ee.ols("y ~ x + d + dx", table), Clustered("g", kind="CR2"))
    rest = covariance(
        ee.ols("y ~ x", table[table["g"] != 0]), Clustered("g", kind="CR2")
    )
    assert full.findings[1].name == "clusters of full leverage"
    np.testing.assert_allclose(full.matrix[:2, :2], rest.matrix, rtol=1e-9)
    np.testing.assert_allclose(full.dof[:2], rest.dof, rtol=1e-9)


def test_psi_that_vanishes_in_every_cluster_is_refused():
    table = clustered_table(0)
    equation = ee.ols("y ~ 0 + C(g)", table)
    for kind in ("CR0", "CR2"):
        with pytest.raises(InferenceError, match="zero within every cluster"):
            covariance(equation, Clustered("g", kind=kind))


def test_indefinite_two_way_covariance_is_reported_repaired_or_refused():
    table = clustered_table(11, n=40, groups=3).assign(h=np.arange(40) % 4)
    equation = ee.ols("y ~ x + z", table)
    two_way = None
    for seed in range(40):
        table = clustered_table(seed, n=40, groups=3).assign(h=np.arange(40) % 4)
        equation = ee.ols("y ~ x + z", table)
        root = ee.estimate(equation).root
        try:
            two_way = Clustered("g", "h")(equation, root)
        except InferenceError:
            continue
        if np.linalg.eigvalsh(two_way.matrix)[0] < -1e-6:
            break
    assert two_way is not None
    named = {f.name: f for f in two_way.findings}
    assert (
        "not positive semidefinite" in named["positive semidefinite covariance"].meaning
    )
    repaired = Clustered("g", "h", repair_psd=True)(equation, root)
    values, vectors = np.linalg.eigh(two_way.matrix)
    expected = (vectors * np.maximum(values, 0.0)) @ vectors.T
    np.testing.assert_allclose(repaired.matrix, expected, rtol=1e-9, atol=1e-14)
    assert "set to zero" in repaired.findings[-1].meaning


def test_negative_variance_is_refused_and_named():
    """Errors that cancel within both ways leave less than nothing."""
    cells = pd.DataFrame([(g, h) for g in range(6) for h in range(6)] * 2)
    cells.columns = ["g", "h"]
    table = cells.assign(y=np.where((cells["g"] + cells["h"]) % 2 == 0, 1.0, -1.0))
    equation = ee.ols("y ~ 1", table)
    with pytest.raises(InferenceError, match=r"'Intercept' the variance -.*repair_psd"):
        covariance(equation, Clustered("g", "h"))


@pytest.mark.parametrize(
    ("expression", "expected"),
    [("G/(G-1)", 10 / 9), ("-(1-n)/n", 0.99), ("2**3*k", 16.0), ("1.5", 1.5)],
)
def test_factor_expressions_are_arithmetic(expression, expected):
    assert finite_factor(expression, G=10, n=100, k=2) == pytest.approx(expected)


@pytest.mark.parametrize(
    "expression",
    ["__import__('os')", "G.real", "[G]", "p", "G if n else k", "G(", "'a'", "True"],
)
def test_factor_expressions_execute_nothing(expression):
    with pytest.raises(ValueError, match="write arithmetic"):
        Clustered("g", factor=expression)


def test_factor_that_is_not_positive_is_refused():
    table = clustered_table(0, groups=3)
    with pytest.raises(InferenceError, match=r"G/\(G-k\) is nan for G = 3"):
        covariance(ee.ols("y ~ x + z", table), Clustered("g", kind="CR1p"))
    with pytest.raises(InferenceError, match="not a positive number"):
        finite_factor("9**9**9**9", G=2, n=2, k=1)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="`labels` is empty"):
        Clustered()
    with pytest.raises(ValueError, match="`kind` must be one of"):
        Clustered("g", kind="HC1")
    with pytest.raises(ValueError, match="`dof` must be"):
        Clustered("g", dof="n-k")
    with pytest.raises(InferenceError, match="several ways"):
        covariance(
            ee.ols("y ~ x", clustered_table(0).assign(h=np.arange(60) % 5)),
            Clustered("g", "h", kind="CR2", dof="satterthwaite"),
        )


def test_the_rule_is_a_value_and_says_what_it_did():
    assert Clustered("g", kind="CR2") == Clustered("g", kind="CR2")
    table = clustered_table(0).assign(h=np.arange(60) % 5)
    found = covariance(ee.ols("y ~ x", table), Clustered("g", "h", kind="CR1S"))
    assert found.rule == "CR1S clustered by g and h"
    assert found.factor == "G/(G-1)*(n-1)/(n-k)"
    assert (found.dof, found.dof_kind, found.n_clusters) == (4.0, "G-1", (9, 5))
    assert "Cameron, Gelbach and Miller" in found.citation


def test_dof_of_a_contrast_is_its_own():
    found = covariance(ee.ols("y ~ x", clustered_table(0)), Clustered("g", kind="CR2"))
    assert isinstance(found.contrast_dof, Satterthwaite)
    contrast = np.array([[1.0, 2.0]])
    turned = found.contrast_dof.transformed(np.array([[1.0, 2.0], [0.0, 1.0]]))
    np.testing.assert_allclose(
        turned(np.array([[1.0, 0.0]])), found.contrast_dof(contrast), rtol=EXACT
    )
