"""How each reference case is computed here: one row a case.

A row maps the identifier of a case to a function of the reference cases that returns
an Estimate (whose parameters and covariance are compared) or, for cases that report
other numbers, a mapping from the name of a number to (ours, theirs).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from models.test_nonsmooth import GEEX
from test_stacking import stacked_case

import eestim as ee
from eestim.diagnostics import influence_measures

Row = Callable[[Any], Any]
ROWS: dict[str, Row] = {}


def row(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function under the names of the cases it computes."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        for name in names:
            ROWS[name] = function
        return function

    return register


# ------------------------------------------------------------------- data and models


def publicschools(cases: Any) -> Any:
    data = cases.frame("PublicSchools.csv")
    return ee.ols("Expenditure ~ Income + I(Income**2)", data)


def petersen(cases: Any) -> pd.DataFrame:
    return cases.frame("PetersenCL.csv").assign(b=lambda d: (d["y"] > 0) * 1.0)


def investment(cases: Any) -> pd.DataFrame:
    return cases.frame("Investment.csv").dropna().reset_index(drop=True)


def chick(cases: Any) -> pd.DataFrame:
    data = cases.frame("ChickWeight.csv")
    return data.assign(Diet=data["Diet"].astype(str), b=(data["weight"] > 100) * 1.0)


def chick_ols(cases: Any) -> Any:
    data = chick(cases)
    diets = [str(k) for k in range(1, 5)]
    columns = {f"D{k}": (data["Diet"] == k) * 1.0 for k in diets}
    columns |= {f"D{k}:Time": (data["Diet"] == k) * data["Time"] for k in diets}
    design = pd.DataFrame(columns)
    return ee.ols(data["weight"].to_numpy(), design), data["Chick"].to_numpy()


def table(name: str, build: Callable[[Any], Any], rule: Any) -> None:
    """Register one case: a model and a rule."""
    ROWS[name] = lambda cases: ee.estimate(build(cases), covariance=rule)


# ------------------------------------------------------------------------------ OLS

for kind in (0, 1, 2, 3, 4, "4m", 5):
    table(f"ols_publicschools_HC{kind}", publicschools, ee.HC(kind))
table("ols_publicschools_const", publicschools, ee.ModelBased())
table("ols_publicschools_jackknife", publicschools, ee.Jackknife())
table("ols_publicschools_jackknife_mean", publicschools, ee.Jackknife(center="mean"))


@row("wald_publicschools")
def wald_publicschools(cases: Any) -> Any:
    extra = cases.case("wald_publicschools")["extra"]
    hc3 = ee.estimate(publicschools(cases), ee.HC(3))
    hc0 = ee.estimate(publicschools(cases), ee.HC(0))
    wanted = ["Income", "I(Income ** 2)"]
    f, chi2 = hc3.wald(wanted, law="F"), hc0.wald(wanted, law="chi2")
    return {
        "estimate": (hc3, None),
        "F": (f.statistic, extra["F_HC3"]),
        "p of F": (f.p, extra["p_HC3"]),
        "df2": (f.dof_denominator, extra["df2"]),
        "chi2": (chi2.statistic, extra["chisq_HC0"]),
        "p of chi2": (chi2.p, extra["p_HC0"]),
    }


@row("influence_publicschools")
def influence(cases: Any) -> Any:
    extra = cases.case("influence_publicschools")["extra"]
    fit = ee.estimate(publicschools(cases), ee.ModelBased())
    found = influence_measures(fit)
    return {
        "leverage": (found["leverage"], extra["hat"]),
        "Cook": (found["cooks_distance"], extra["cooks"]),
        "studentised": (found["studentised"], extra["rstudent"]),
        "dfbeta": (found.filter(like="dfbeta[").to_numpy(), extra["dfbeta"]),
    }


@row("maxt_publicschools_HC3")
def maxt(cases: Any) -> Any:
    """The reference's critical value is exceeded with probability .04995, not .05.

    By quadrature on a grid, and by simulation (tests/inference/test_simultaneous.py),
    the value is 2.0362; R stops its search at 2.0367, from randomised quadrature.
    """
    extra = cases.case("maxt_publicschools_HC3")["extra"]
    fit = ee.estimate(publicschools(cases), ee.HC(3))
    bands = fit.interval(simultaneous="sup-t")
    half = (bands["upper"] - bands["estimate"]) / fit.se
    return {
        "estimate": (fit, None),
        "critical value, 5e-4": (half.iloc[0], extra["crit"]),
        "lower, 5e-4": (bands["lower"], extra["lower"]),
        "upper, 5e-4": (bands["upper"], extra["upper"]),
    }


@row("maxz_logit_petersen")
def maxz(cases: Any) -> Any:
    """The reference comes from randomised quadrature."""
    extra = cases.case("maxz_logit_petersen")["extra"]
    fit = ee.estimate(logit_petersen(cases), ee.ModelBased())
    bands = fit.interval(simultaneous="sup-t")
    half = (bands["upper"] - bands["estimate"]) / fit.se
    return {"critical value, 1e-4": (half.iloc[0], extra["crit"])}


# ---------------------------------------------------------------------- time series


def investment_ols(cases: Any) -> Any:
    return ee.ols("RealInv ~ RealGNP + RealInt", investment(cases))


for name, rule in {
    "ols_investment_NW_lag4_adj": ee.HAC("bartlett", lags=4, adjust=True),
    "ols_investment_NW_lag4": ee.HAC("bartlett", lags=4),
    "ols_investment_NW1994": ee.HAC("bartlett", "newey-west", prewhiten=1),
    "ols_investment_NW1994_noprewhite": ee.HAC("bartlett", "newey-west"),
    "ols_investment_QS_Andrews": ee.HAC(
        "quadratic-spectral", "andrews", prewhiten=1, adjust=True
    ),
    "ols_investment_QS_Andrews_noprewhite": ee.HAC("quadratic-spectral", "andrews"),
    "ols_investment_Trunc_bw2": ee.HAC("truncated", 2.0),
    "ols_investment_Tukey_bw5": ee.HAC("tukey-hanning", 5.0),
    "ols_investment_Lumley_truncate": ee.HAC("weave"),
    "lm_hac_investment_bartlett_4": ee.HAC("bartlett", lags=4),
    "lm_hac_investment_parzen_4": ee.HAC("parzen", lags=4),
    "lm_hac_investment_qs_4": ee.HAC("quadratic-spectral", 4.0),
    "sm_hac4_investment_uc0": ee.HAC("bartlett", lags=4),
    "sm_hac4_investment_uc1": ee.HAC("bartlett", lags=4, adjust=True),
}.items():
    table(name, investment_ols, rule)


# ------------------------------------------------------------------ clusters, panels


def petersen_ols(cases: Any) -> Any:
    return ee.ols("y ~ x", petersen(cases))


def logit_petersen(cases: Any) -> Any:
    return ee.glm("b ~ x", petersen(cases), family="binomial")


def poisson_innovation(cases: Any) -> Any:
    formula = "cites ~ institutions + lcapemp + lsales"
    return ee.glm(formula, cases.frame("InstInnovation.csv"), family="poisson")


NO_CADJUST = "(n-1)/(n-k)"
for name, rule in {
    "ols_petersen_firm_HC0_nocadj": ee.Clustered("firm"),
    "ols_petersen_firm_HC0_cadj": ee.Clustered("firm", kind="CR1"),
    "ols_petersen_firm_HC1_cadj": ee.Clustered("firm", kind="CR1S"),
    "ols_petersen_firm_HC1_nocadj": ee.Clustered("firm", factor=NO_CADJUST),
    "ols_petersen_firm_HC2_cadj": ee.Clustered("firm", kind="CR2"),
    "ols_petersen_firm_HC3_cadj": ee.Clustered("firm", kind="CR3"),
    "ols_petersen_firm_HC3_nocadj": ee.Clustered("firm", kind="CR3", factor="(G-1)/G"),
    "ols_petersen_firmyear_HC0_nocadj": ee.Clustered("firm", "year"),
    "ols_petersen_firmyear_HC0_cadj": ee.Clustered("firm", "year", kind="CR1"),
    "ols_petersen_firmyear_HC1_cadj": ee.Clustered("firm", "year", kind="CR1S"),
    "ols_petersen_firmyear_multi0": ee.Clustered(
        "firm", "year", kind="CR1S", multi0=True
    ),
    "ols_petersen_driscoll_kraay": ee.DriscollKraay(
        time="year", lags="newey-west-1987", adjust=True
    ),
    "ols_petersen_panel_NW": ee.PanelHAC(
        unit="firm", time="year", lags="newey-west-1987", adjust=True
    ),
    "lm_petersen_cluster_entity_gd_deb0": ee.Clustered(
        "firm", factor="G/(G-1)*(n-1)/n"
    ),
    "lm_petersen_cluster_entity_gd_deb1": ee.Clustered("firm", kind="CR1S"),
    "lm_petersen_cluster_both_deb0": ee.Clustered("firm", "year"),
    "lm_petersen_cluster_both_deb1": ee.Clustered("firm", "year", factor="n/(n-k)"),
    "lm_petersen_cluster_both_gd_deb0": ee.Clustered(
        "firm", "year", factor="G/(G-1)*(n-1)/n"
    ),
    "lm_petersen_cluster_both_gd_deb1": ee.Clustered("firm", "year", kind="CR1S"),
    "lm_petersen_dk_bartlett_deb0": ee.DriscollKraay(time="year", lags=3),
    "sm_ols_petersen_cluster_uc0": ee.Clustered("firm"),
    "sm_ols_petersen_cluster_uc1": ee.Clustered("firm", kind="CR1S"),
    "sm_ols_petersen_cluster-crv3": ee.Clustered("firm", kind="CR3", factor="(G-1)/G"),
    "sm_ols_petersen_cluster-jk": ee.Jackknife(center="mean", groups="firm"),
}.items():
    table(name, petersen_ols, rule)


for name, rule in {
    "logit_petersen_model": ee.ModelBased(),
    "logit_petersen_HC0": ee.HC(0),
    "logit_petersen_OPG": ee.OPG(),
    "logit_petersen_firm_HC0": ee.Clustered("firm", kind="CR1"),
    "logit_petersen_firm_HC1": ee.Clustered("firm", kind="CR1S"),
    "logit_petersen_firm_HC2": ee.Clustered("firm", kind="vcovCL-HC2"),
    "logit_petersen_firm_HC3": ee.Clustered("firm", kind="vcovCL-HC3"),
}.items():
    table(name, logit_petersen, rule)

table("poisson_instinnovation_HC0", poisson_innovation, ee.HC(0))
table(
    "poisson_instinnovation_company",
    poisson_innovation,
    ee.Clustered("company", kind="CR1"),
)


@row("lm_petersen_fe_cluster")
def within(cases: Any) -> Any:
    """The within estimator: firm means out, overall means in, as linearmodels does."""
    data = petersen(cases)
    for column in ("y", "x"):
        group = data.groupby("firm")[column].transform("mean")
        data[column] = data[column] - group + data[column].mean()
    return ee.estimate(ee.ols("y ~ x", data), ee.Clustered("firm", factor="n/(n-k)"))


def _chick_case(kind: str) -> Row:
    def compute(cases: Any) -> Any:
        equation, labels = chick_ols(cases)
        fit = ee.estimate(
            equation, ee.Clustered(labels, kind=kind, dof="satterthwaite")
        )
        extra = cases.case(f"ols_chick_{kind}")["extra"]
        return {
            "estimate": (fit, None),
            "dof": (fit.dof, extra["df_Satterthwaite"]),
        }

    return compute


def _chick_logit(kind: str) -> Row:
    def compute(cases: Any) -> Any:
        """The derivative of R's glm is one scoring step behind its estimates.

        `glm` keeps the weights of its last step, which were computed before that step.
        Repeating the steps and taking A where R does (in
        tests/covariance/test_clustered.py) agrees to 1e-10; at the root itself the
        covariance is 1.8e-8 away.
        """
        equation = ee.glm("b ~ Time + C(Diet)", chick(cases), family="binomial")
        fit = ee.estimate(
            equation, ee.Clustered("Chick", kind=kind, dof="satterthwaite")
        )
        extra = cases.case(f"logit_chick_{kind}")["extra"]
        return {
            "estimate, 3e-8": (fit, None),
            "dof": (fit.dof, extra["df_Satterthwaite"]),
        }

    return compute


for kind in ("CR0", "CR1", "CR1p", "CR1S", "CR2", "CR3"):
    ROWS[f"ols_chick_{kind}"] = _chick_case(kind)
    ROWS[f"logit_chick_{kind}"] = _chick_logit(kind)


# ---------------------------------------------------------------------------- survey


@row("svyglm_apistrat")
def svyglm_apistrat(cases: Any) -> Any:
    equation = ee.ols(
        "api00 ~ ell + meals + mobility",
        cases.frame("apistrat.csv"),
        weights=ee.Sampling("pw"),
    )
    return ee.estimate(equation, ee.Survey(strata="stype"))


@row("svyglm_apiclus1")
def svyglm_apiclus1(cases: Any) -> Any:
    equation = ee.ols(
        "api00 ~ ell + meals + mobility",
        cases.frame("apiclus1.csv"),
        weights=ee.Sampling("pw"),
    )
    return ee.estimate(equation, ee.Survey(psu="dnum"))


@row("svyglm_logit_apiclus1")
def svyglm_logit(cases: Any) -> Any:
    data = cases.frame("apiclus1.csv").assign(b=lambda d: (d["api00"] > 650) * 1.0)
    equation = ee.glm(
        "b ~ ell + meals", data, family="binomial", weights=ee.Sampling("pw")
    )
    return ee.estimate(equation, ee.Survey(psu="dnum"))


@row("survey_ratio_apistrat")
def survey_ratio(cases: Any) -> Any:
    def psi(theta: Any, data: Any) -> Any:
        return (data["api00"] - theta[0] * data["api99"]).to_numpy()[:, None]

    equation = ee.equation(
        psi, cases.frame("apistrat.csv"), [1.0], weights=ee.Sampling("pw")
    )
    return ee.estimate(equation, ee.Survey(strata="stype"))


# ------------------------------------------------------------- tests and intervals


def birthwt_logit(cases: Any) -> Any:
    return ee.glm(
        "smoke ~ lwt + age + ht", cases.frame("birthwt.csv"), family="binomial"
    )


def fay(bound: float) -> Row:
    def compute(cases: Any) -> Any:
        case = cases.case(f"geex_fay_logit_b{bound}")
        data = cases.frame("geexex.csv").iloc[30:70].reset_index(drop=True)
        equation = ee.glm("Y5 ~ X1 + X2", data, family="binomial")
        fit = ee.estimate(equation, ee.FayGraubard(bound=bound))
        plain = fit.with_covariance(ee.HC(0))
        reference = np.asarray(case["extra"]["uncorrected_vcov"])
        return {
            "estimate": (fit, None),
            "uncorrected": (plain.spread.matrix, reference),
        }

    return compute


for bound in (0.75, 0.1):
    ROWS[f"geex_fay_logit_b{bound}"] = fay(bound)


def geex(name: str) -> Row:
    def compute(cases: Any) -> Any:
        psi, file, start = GEEX[name]
        return ee.estimate(ee.equation(psi, cases.frame(file), start))

    return compute


for name in GEEX:
    ROWS[name] = geex(name)


@row("geex_SB6_huber")
def huber_location(cases: Any) -> Any:
    return ee.estimate(ee.models.huber("Y1", cases.frame("geexex.csv"), k=1.5))


@row("geex_SB8_huberreg")
def huber_regression(cases: Any) -> Any:
    return ee.estimate(ee.models.huber("Y4 ~ X1 + X2", cases.frame("geexex.csv")))


def stacked(name: str) -> Row:
    """Delicatessen puts the effect first: ate, mu1, mu0, then the nuisance models."""

    def compute(cases: Any) -> Any:
        fit = ee.estimate(stacked_case(name, cases.frame("birthwt.csv")))
        p, case = len(fit.names), cases.case(name)
        order = list(range(p))
        if name.startswith("deli"):
            order = [p - 1, p - 3, p - 2, *range(p - 3)]
        errors = np.sqrt(np.diag(np.asarray(case["vcov"])))
        scale = np.outer(errors, errors)
        return {
            "covariance": (
                fit.spread.matrix[np.ix_(order, order)] / scale,
                np.asarray(case["vcov"]) / scale,
            ),
            "estimate of all": (fit.theta[order] / errors, case["estimate"] / errors),
        }

    return compute


for name in (
    *("geex_ipw_birthwt_HT", "geex_ipw_birthwt_Hajek", "geex_aipw_birthwt"),
    *("geex_gformula_birthwt", "deli_ipw_birthwt", "deli_ipw_hajek_birthwt"),
    *("deli_aipw_birthwt", "deli_gformula_birthwt"),
):
    ROWS[name] = stacked(name)


@row("profile_ci_birthwt")
def profile(cases: Any) -> Any:
    """R interpolates the profile by a spline between a dozen values."""
    extra = cases.case("profile_ci_birthwt")["extra"]
    bounds = ee.estimate(birthwt_logit(cases)).interval(method=ee.Profile())
    return {
        "lower, 1e-4": (bounds["lower"], extra["lower"]),
        "upper, 1e-4": (bounds["upper"], extra["upper"]),
    }


@row("score_lr_birthwt")
def score_and_ratio(cases: Any) -> Any:
    """The weights in R's covariance and score are those of the last step but one.

    The estimates and the likelihood ratio, which do not depend on them, agree to
    rounding; tests/inference/test_score_tests.py computes Rao's score from its formula
    and agrees to 1e-9.
    """
    extra = cases.case("score_lr_birthwt")["extra"]
    fit = ee.estimate(birthwt_logit(cases), ee.ModelBased())
    tested = ["age", "ht"]
    return {
        "estimate, 1e-6": (fit, None),
        "likelihood ratio": (fit.distance(tested).statistic, extra["lr"]),
        "Rao score, 1e-6": (fit.score(tested).statistic, extra["rao"]),
        "Wald, 1e-6": (fit.wald(tested).statistic, extra["wald_model"]),
        "Wald HC0, 1e-6": (
            fit.with_covariance(ee.HC(0)).wald(tested).statistic,
            extra["wald_HC0"],
        ),
    }


@row("wald_chick_CR2")
def hotelling(cases: Any) -> Any:
    tests = cases.case("wald_chick_CR2")["extra"]["tests"]
    equation, labels = chick_ols(cases)
    fit = ee.estimate(equation, ee.Clustered(labels, kind="CR2"))
    contrasts = np.zeros((3, 8))
    contrasts[:, 4], contrasts[range(3), range(5, 8)] = -1.0, 1.0
    rows: dict[str, Any] = {"estimate": (fit, None)}
    for law, k in {"HTA": 2, "HTZ": 3}.items():
        found = fit.wald(contrasts, law=law)
        rows[f"F of {law}"] = (found.statistic, tests["Fstat"][k])
        rows[f"dof of {law}"] = (found.dof_denominator, tests["df_denom"][k])
        rows[f"p of {law}"] = (found.p, tests["p_val"][k])
    return rows


@row("lm_hac_investment_qs_auto")
def quadratic_spectral(cases: Any) -> Any:
    automatic = ee.covariance.NeweyWest1994("ceil", "ceil")
    rule = ee.HAC("quadratic-spectral", automatic)
    return ee.estimate(investment_ols(cases), rule)


@row("sm_quantreg_stackloss")
def median(cases: Any) -> Any:
    """statsmodels iterates weights and stops within 1e-6 of the solution.

    Here it is the vertex of the linear program, exact to rounding.
    """
    data = cases.frame("stackloss.csv")
    X = np.column_stack([np.ones(len(data)), data.iloc[:, :3]])
    y = data.iloc[:, 3].to_numpy()
    return {
        "estimate, 2e-6": (
            ee.estimate(ee.models.quantile(y, X, density="common")),
            None,
        )
    }
