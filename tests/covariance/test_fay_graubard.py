import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg
from tolerances import DERIVATIVE, EXACT, REFERENCE

import eestim as ee
from eestim.covariance.fay_graubard import FayGraubard, quadratic_form_dof
from eestim.errors import CapabilityError, InferenceError


def scaled_gap(got, wanted):
    size = np.sqrt(np.diag(wanted))
    return np.abs((np.asarray(got) - wanted) / np.outer(size, size)).max()


def table(n=40, seed=4):
    rng = np.random.default_rng(seed)
    x, z = rng.normal(size=n), rng.exponential(size=n)
    eta = 0.2 + 0.7 * x - 0.3 * z
    return pd.DataFrame(
        {
            "x": x,
            "z": z,
            "g": rng.permutation(np.arange(n) % 8),
            "y": eta + rng.normal(size=n) * (1 + z),
            "b": (rng.random(n) < 1 / (1 + np.exp(-eta))).astype(float),
        }
    )


def written_out(psi, slopes, bound, contrast, kind):
    """The definitions of the paper with (G p, G p) matrices: variance and dof."""
    count, p = psi.shape
    total = slopes.sum(axis=0)
    inverse = np.linalg.inv(total)
    H = [
        np.diag((1 - np.minimum(bound, np.diag(slope @ inverse))) ** -0.5)
        for slope in slopes
    ]
    meat = sum(h @ np.outer(u, u) @ h for h, u in zip(H, psi, strict=True))
    V = inverse @ meat @ inverse.T
    G = np.eye(count * p) - np.vstack(list(slopes)) @ inverse @ np.tile(
        np.eye(p), count
    )
    outer = np.outer(contrast, contrast)
    M = linalg.block_diag(*[h @ inverse.T @ outer @ inverse @ h for h in H])
    if kind == "hat":
        variances = list(slopes)
    else:
        w = np.array(
            [contrast @ (np.linalg.inv(total - s) - inverse) @ contrast for s in slopes]
        )
        variances = [share * meat for share in w / w.sum()]
    product = linalg.block_diag(*variances) @ G.T @ M @ G
    return V, np.trace(product) ** 2 / np.trace(product @ product)


@pytest.mark.parametrize("bound", [0.75, 0.1])
def test_logit_matches_r_geex(refcases, bound):
    case = refcases.case(f"geex_fay_logit_b{bound}")
    data = refcases.frame("geexex.csv").iloc[30:70]
    equation = ee.glm("Y5 ~ X1 + X2", data, family="binomial")
    plain = np.array(case["extra"]["uncorrected_vcov"])
    assert scaled_gap(ee.estimate(equation).spread.matrix, plain) <= REFERENCE
    for kind, key in (("hat", "df_hat_v1"), ("tilde", "df_tilde_v2")):
        fit = ee.estimate(equation, FayGraubard(bound, dof=kind))
        assert scaled_gap(fit.spread.matrix, np.array(case["vcov"])) <= REFERENCE
        np.testing.assert_allclose(fit.dof["X1"], case["extra"][key], rtol=REFERENCE)


def test_logit_with_another_bound_does_not_match(refcases):
    case = refcases.case("geex_fay_logit_b0.75")
    data = refcases.frame("geexex.csv").iloc[30:70]
    equation = ee.glm("Y5 ~ X1 + X2", data, family="binomial")
    fit = ee.estimate(equation, FayGraubard(0.1))
    assert scaled_gap(fit.spread.matrix, np.array(case["vcov"])) > 1e-3


@pytest.mark.parametrize("kind", ["tilde", "hat"])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_low_rank_formula_equals_the_definition_with_full_matrices(kind, seed):
    data = table(25, seed)
    equation = ee.glm("y ~ x + z", data, family="gaussian")
    fit = ee.estimate(equation, FayGraubard(0.3, dof=kind))
    slopes = equation.unit_sensitivity(fit.theta)
    contrast = np.array([0.3, 1.0, -2.0])
    V, dof = written_out(equation.psi(fit.theta), slopes, 0.3, contrast, kind)
    assert scaled_gap(fit.spread.matrix, V) <= 1e-9
    ours = fit.spread.contrast_dof(contrast)
    np.testing.assert_allclose(ours, [dof], rtol=1e-9)


def test_mean_is_hc1_with_n_minus_1_degrees_of_freedom():
    values = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 3.0])
    for kind in ("tilde", "hat"):
        fit = ee.estimate(ee.mean(values), FayGraubard(dof=kind))
        np.testing.assert_allclose(
            fit.spread.matrix[0, 0], values.var(ddof=1) / 6, rtol=EXACT
        )
        np.testing.assert_allclose(fit.dof, [5.0], rtol=1e-11)


def test_bound_zero_of_one_parameter_is_hc0_and_groups_are_cr0():
    """With several, shares below zero still shrink their entries."""
    from eestim.covariance.clustered import Clustered

    data = table()
    equation = ee.ols("y ~ 0 + z", data)
    fit = ee.estimate(equation, FayGraubard(0.0))
    assert scaled_gap(fit.spread.matrix, ee.estimate(equation).spread.matrix) <= 1e-12
    grouped = ee.estimate(equation, FayGraubard(0.0, groups="g")).spread
    cr0 = ee.estimate(equation, Clustered("g")).spread.matrix
    assert scaled_gap(grouped.matrix, cr0) <= 1e-12
    assert grouped.n_clusters == (8,)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.0, 0.9))
def test_covariance_is_semidefinite_and_grows_with_the_bound(seed, bound):
    equation = ee.ols("y ~ x + z", table(20, seed))
    small = ee.estimate(equation, FayGraubard(bound, dof="normal")).spread.matrix
    large = ee.estimate(equation, FayGraubard(0.95, dof="normal")).spread.matrix
    assert np.linalg.eigvalsh(small / np.abs(small).max())[0] >= -1e-12
    plain = np.diag(ee.estimate(equation).spread.matrix)
    assert (np.diag(small) > 0).all()
    # entries of psi grow, though a variance may not: compare the meat
    A = equation.sensitivity(ee.estimate(equation).theta)
    meat = [np.diag(A @ V @ A.T) for V in (small, large)]
    assert (meat[0] <= meat[1] * (1 + 1e-12)).all()
    assert np.isfinite(plain).all()


def logistic(theta, data):
    design = np.column_stack([np.ones(len(data)), data["x"]])
    mu = 1 / (1 + np.exp(-(design @ np.asarray(theta))))
    return (np.asarray(data["b"]) - mu)[:, None] * design


@pytest.mark.parametrize("kind", ["tilde", "hat", "normal"])
def test_any_psi_agrees_with_the_model(kind):
    data, rule = table(), FayGraubard(dof=kind)
    written = ee.estimate(ee.equation(logistic, data, [0, 0]), rule)
    model = ee.estimate(ee.glm("b ~ x", data, family="binomial"), rule)
    assert scaled_gap(written.spread.matrix, model.spread.matrix) <= DERIVATIVE
    np.testing.assert_allclose(written.dof, model.dof, rtol=DERIVATIVE)


def test_units_equal_groups():
    data = table(64)
    units = ee.estimate(ee.equation(logistic, data, [0, 0], units="g"), FayGraubard())
    model = ee.glm("b ~ x", data, family="binomial")
    groups = ee.estimate(model, FayGraubard(groups="g"))
    assert scaled_gap(units.spread.matrix, groups.spread.matrix) <= DERIVATIVE
    np.testing.assert_allclose(units.dof, groups.dof, rtol=DERIVATIVE)


def test_asymmetric_derivatives_use_the_right_transposes():
    """A stacked ratio: its A is not symmetric."""
    data = table(30).assign(e=lambda d: 1 + d["z"])

    def ratio(theta, data):
        y, e = np.asarray(data["y"]), np.asarray(data["e"])
        return np.column_stack(
            [
                y - theta[0],
                e - theta[1],
                np.full(len(y), theta[0] - theta[2] * theta[1]),
            ]
        )

    equation = ee.equation(ratio, data, [0.0, 1.0, 0.0])
    fit = ee.estimate(equation, FayGraubard(0.5))
    slopes = equation.unit_sensitivity(fit.theta)
    psi = equation.psi(fit.theta)
    contrast = np.array([0.0, 0.0, 1.0])
    V, dof = written_out(psi, slopes, 0.5, contrast, "tilde")
    assert scaled_gap(fit.spread.matrix, V) <= DERIVATIVE
    np.testing.assert_allclose(fit.spread.contrast_dof(contrast), [dof], rtol=1e-6)


def test_dof_of_functionals_are_those_of_the_contrast():
    fit = ee.estimate(ee.ols("y ~ x + z", table()), FayGraubard())
    both = fit.functional(lambda theta: theta["x"] - theta["z"])
    direct = fit.spread.contrast_dof(np.array([0.0, 1.0, -1.0]))
    np.testing.assert_allclose(both.dof, direct, rtol=1e-6)


def test_units_of_measurement_do_not_matter():
    data = table()
    plain = ee.estimate(ee.ols("y ~ x + z", data), FayGraubard())
    far = ee.ols("y ~ x + z", data.assign(x=data["x"] * 1e6))
    moved = ee.estimate(far, FayGraubard())
    np.testing.assert_allclose(moved.se["x"] * 1e6, plain.se["x"], rtol=1e-8)
    np.testing.assert_allclose(moved.dof, plain.dof, rtol=1e-7)


def test_ill_conditioned_designs_are_corrected_in_the_users_parameters():
    """The solver's own parameters would give another, equally wrong, correction."""
    data = table()
    shifted = data.assign(x=data["x"] + 1e5)
    equation = ee.ols("y ~ x + z", shifted)
    fit = ee.estimate(equation, FayGraubard(0.5))
    assert fit.root.working is not None
    slopes = equation.unit_sensitivity(fit.theta)
    contrast = np.array([0.0, 0.0, 1.0])
    V, dof = written_out(equation.psi(fit.theta), slopes, 0.5, contrast, "tilde")
    np.testing.assert_allclose(fit.se["z"] ** 2, V[2, 2], rtol=1e-5)
    np.testing.assert_allclose(fit.dof["z"], dof, rtol=1e-4)


def test_equal_independent_units_have_n_minus_1_dof():
    ones = np.ones((9, 1))
    dof = quadratic_form_dof(np.ones((9, 1, 1)), ones, ones / 9)
    np.testing.assert_allclose(dof, 8.0, rtol=EXACT)


def test_what_is_refused():
    psi = np.array([[-2.0], [-1.0], [3.0]])
    only = ee.equations.Evaluated(("mean",), psi, np.eye(1), np.array([3.0]))
    with pytest.raises(CapabilityError, match="unit_sensitivity"):
        ee.estimate(only, FayGraubard(), root=[3.0])
    with pytest.raises(ValueError, match="bound"):
        FayGraubard(1.0)
    with pytest.raises(ValueError, match="dof"):
        FayGraubard(dof="bar")
    data = table(20)
    data["only"] = (np.arange(20) == 0) * 1.0
    equation = ee.ols("y ~ x + only", data)
    with pytest.raises(InferenceError, match="group 0"):
        ee.estimate(equation, FayGraubard())
    fit = ee.estimate(equation, FayGraubard(dof="normal"))
    assert fit.findings[0].name == "bound of the bias correction"
