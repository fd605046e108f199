"""Simultaneous inference against closed forms, multcomp, quadrature and simulation."""

import time
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests
from tolerances import EXACT

import eestim as ee
from eestim.covariance.clustered import Clustered
from eestim.errors import InferenceError
from eestim.inference._maximum import critical_value, exceedances, maximum_law
from eestim.inference.simultaneous import (
    adjusted_p,
    bonferroni,
    correlation,
    holm,
    max_t,
    max_t_p,
    multiplier_statistics,
    romano_wolf,
    simultaneous_bounds,
    simultaneous_quantiles,
)


def equicorrelated(k, rho):
    return np.full((k, k), rho) + (1.0 - rho) * np.eye(k)


def one_factor_exceedance(k, rho, c, dof=np.inf):
    """P(max |T_j| > c) of equicorrelated statistics, given factor and scale."""
    f, mass = np.polynomial.legendre.leggauss(400)
    f, mass = 9.0 * f, 9.0 * mass * stats.norm.pdf(9.0 * f)
    scale, weight = np.ones(1), np.ones(1)
    if np.isfinite(dof):
        scale, weight = np.polynomial.legendre.leggauss(80)
        scale = 1.2 + scale  # chi / sqrt(dof) lies in 0.2 to 2.2 but for 1e-8
        weight = weight * stats.chi(dof, scale=1.0 / np.sqrt(dof)).pdf(scale)
    bound, shift = c * scale[:, None], np.sqrt(rho) * f
    high = stats.norm.cdf((bound - shift) / np.sqrt(1.0 - rho))
    low = stats.norm.cdf((-bound - shift) / np.sqrt(1.0 - rho))
    return 1.0 - weight @ (high - low) ** k @ mass


# -------------------------------------------------------------------------- max-t


@pytest.mark.parametrize("k", [1, 2, 7, 50])
def test_independent_normals_equal_closed_form(k):
    expected = stats.norm.ppf((1.0 + 0.95 ** (1.0 / k)) / 2.0)
    found = max_t(np.eye(k))
    np.testing.assert_allclose(found.critical, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("dof", [np.inf, 12.0])
@pytest.mark.parametrize("rho", [0.3, 0.9])
@pytest.mark.parametrize("k", [2, 3, 4, 20])
def test_equicorrelated_statistics_equal_adaptive_quadrature(k, rho, dof):
    found = max_t(equicorrelated(k, rho), dof=dof)
    density = (
        one_factor_exceedance(k, rho, found.critical - 0.05, dof)
        - one_factor_exceedance(k, rho, found.critical + 0.05, dof)
    ) / 0.1
    off = one_factor_exceedance(k, rho, found.critical, dof) - 0.05
    assert abs(off / density) <= max(4.0 * found.error, 2e-5)
    assert found.error <= 1e-3


def test_perfectly_correlated_statistics_are_one():
    signs = np.array([1.0, -1.0, 1.0])
    found = max_t(np.outer(signs, signs), dof=9.0)
    assert found.rank == 1
    np.testing.assert_allclose(found.critical, stats.t.ppf(0.975, 9), rtol=EXACT)
    p = max_t_p(np.array([2.0, 1.0, 0.5]), np.outer(signs, signs), 9.0)
    np.testing.assert_allclose(p, 2 * stats.t.sf([2.0, 1.0, 0.5], 9), rtol=1e-10)


def test_tukey_contrasts_equal_the_studentised_range():
    """All pairwise differences of 5 means: a singular law with a closed form."""
    k, dof = 5, 20.0
    pairs = [(a, b) for a in range(k) for b in range(a)]
    contrasts = np.zeros((len(pairs), k))
    for row, (a, b) in enumerate(pairs):
        contrasts[row, [a, b]] = np.sqrt(0.5), -np.sqrt(0.5)
    found = max_t(contrasts @ contrasts.T, dof=dof)
    expected = stats.studentized_range.ppf(0.95, k, dof) / np.sqrt(2.0)
    assert found.rank == 4
    np.testing.assert_allclose(found.critical, expected, rtol=0, atol=1e-3)
    assert abs(found.critical - expected) <= 4.0 * found.error
    p = max_t_p(np.full(len(pairs), expected), contrasts @ contrasts.T, dof)
    np.testing.assert_allclose(p, 0.05, rtol=0, atol=2e-4)


def test_public_schools_equal_multcomp(refcases):
    """Its p values agree; its critical value is 4e-4 off its own p value scale.

    At multcomp's c the exceedance is 0.04995 by three quadratures (here a third), so
    the reference's randomised root search is what differs.
    """
    case = refcases.case("maxt_publicschools_HC3")
    matrix = np.array(case["vcov"])
    standard = correlation(matrix)
    statistics = np.array(case["estimate"]) / np.sqrt(np.diag(matrix))
    p = max_t_p(statistics, standard, 47.0)
    np.testing.assert_allclose(p, case["extra"]["p_adj"], rtol=0, atol=1e-6)
    found = max_t(standard, dof=47.0, tolerance=1e-5)
    np.testing.assert_allclose(found.critical, case["extra"]["crit"], rtol=0, atol=5e-4)
    law = maximum_law(standard, 47.0)
    at = exceedances(law, np.array([found.critical, case["extra"]["crit"]]))
    assert abs(at[0] - 0.05) < 1e-6 < 4e-5 < abs(at[1] - 0.05)


def test_public_schools_critical_value_equals_simulation(refcases):
    matrix = np.array(refcases.case("maxt_publicschools_HC3")["vcov"])
    standard = correlation(matrix)
    critical = max_t(standard, dof=47.0, tolerance=1e-5).critical
    values, vectors = np.linalg.eigh(standard)
    rng, n = np.random.default_rng(47), 1_000_000
    draws = rng.standard_normal((n, 3)) @ (vectors * np.sqrt(values)).T
    largest = np.abs(draws).max(axis=1) / np.sqrt(rng.chisquare(47, n) / 47)
    error = np.sqrt(0.05 * 0.95 / n)
    assert abs((largest > critical).mean() - 0.05) <= 4 * error
    assert abs((largest > critical + 0.02).mean() - 0.05) > 4 * error  # control


def test_petersen_logit_equals_multcomp(refcases):
    case = refcases.case("maxz_logit_petersen")
    found = max_t(correlation(np.array(case["vcov"])))
    np.testing.assert_allclose(found.critical, case["extra"]["crit"], rtol=0, atol=1e-4)
    rho = abs(correlation(np.array(case["vcov"]))[0, 1])
    exceeded = one_factor_exceedance(2, rho, found.critical)
    np.testing.assert_allclose(exceeded, 0.05, rtol=0, atol=1e-8)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6), k=st.integers(2, 12), dof=st.sampled_from([5, np.inf])
)
def test_critical_value_lies_between_pointwise_and_bonferroni(seed, k, dof):
    factor = np.random.default_rng(seed).normal(size=(k, 1 + seed % k))
    standard = correlation(factor @ factor.T + 1e-9 * np.eye(k))
    found = max_t(standard, dof=float(dof), tolerance=5e-3)
    assert stats.t.ppf(0.975, dof) - 1e-9 <= found.critical
    assert found.critical <= stats.t.ppf(1.0 - 0.025 / k, dof) + 1e-9


@settings(max_examples=5, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_signs_and_order_of_statistics_do_not_matter(seed):
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(6, 6))
    standard = correlation(factor @ factor.T)
    signs, order = rng.choice([-1.0, 1.0], 6), rng.permutation(6)
    turned = (standard * np.outer(signs, signs))[np.ix_(order, order)]
    one, two = max_t(standard, tolerance=2e-3), max_t(turned, tolerance=2e-3)
    bound = 4.0 * np.hypot(one.error, two.error) + 1e-4
    assert abs(one.critical - two.critical) <= bound


def test_a_second_call_gives_the_same_digits():
    factor = np.random.default_rng(3).normal(size=(20, 20))
    standard = correlation(factor @ factor.T)
    assert max_t(standard).critical == max_t(standard).critical


@pytest.mark.parametrize("dof", [np.inf, 30.0])
def test_fifty_correlated_statistics_are_fast_and_small(dof):
    rng = np.random.default_rng(50)
    X = rng.normal(size=(120, 50)) + rng.normal(size=(120, 1))
    standard = correlation(np.linalg.inv(X.T @ X))
    start = time.process_time()
    found = max_t(standard, dof=dof)
    assert time.process_time() - start < 1.5  # about 0.25 s on an idle core
    tracemalloc.start()
    max_t(standard, dof=dof)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6
    values, vectors = np.linalg.eigh(standard)
    n = 200_000
    scale = 1.0 if np.isinf(dof) else np.sqrt(rng.chisquare(dof, n) / dof)
    draws = rng.standard_normal((n, 50)) @ (vectors * np.sqrt(values)).T
    exceeded = (np.abs(draws).max(axis=1) / scale > found.critical).mean()
    assert abs(exceeded - 0.05) <= 4 * np.sqrt(0.05 * 0.95 / n)


def test_small_p_values_keep_their_digits():
    p = max_t_p(np.array([10.0, 20.0]), np.eye(2))
    np.testing.assert_allclose(p, 4.0 * stats.norm.sf([10.0, 20.0]), rtol=1e-9)


def test_many_p_values_equal_few():
    factor = np.random.default_rng(4).normal(size=(20, 30))
    standard = correlation(factor @ factor.T)
    statistics = np.linspace(0.5, 5.0, 20)
    many = max_t_p(statistics, standard)
    few = np.concatenate(
        [max_t_p(statistics[i : i + 5], standard) for i in range(0, 20, 5)]
    )
    np.testing.assert_allclose(many, few, rtol=0, atol=2e-3)


def test_impossible_correlations_are_refused():
    with pytest.raises(InferenceError, match="eigenvalue -1"):
        max_t(np.array([[1.0, 2.0], [2.0, 1.0]]))
    with pytest.raises(InferenceError, match="parameter 1 has the variance 0"):
        correlation(np.diag([1.0, 0.0]))
    with pytest.raises(ValueError, match="`level` must lie between"):
        max_t(np.eye(2), level=95)
    with pytest.raises(ValueError, match="`dof` must be positive"):
        max_t(np.eye(2), dof=0)


def test_error_shrinks_with_the_tolerance():
    factor = np.random.default_rng(6).normal(size=(8, 8))
    law = maximum_law(correlation(factor @ factor.T))
    rough, fine = (critical_value(law, 0.95, tolerance) for tolerance in (1e-2, 1e-5))
    assert fine[1] <= rough[1]
    assert abs(rough[0] - fine[0]) <= 4.0 * rough[1] + 4.0 * fine[1]


# ---------------------------------------------------------- Bonferroni and Holm


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=12))
def test_adjusted_p_equal_statsmodels(p):
    for adjust, name in ((holm, "holm"), (bonferroni, "bonferroni")):
        expected = multipletests(p, method=name)[1]
        np.testing.assert_allclose(
            adjust(np.array(p)), expected, rtol=1e-12, atol=1e-12
        )


def test_bonferroni_quantiles_use_each_dof():
    found = simultaneous_quantiles(
        np.zeros(3), np.eye(3), np.array([4.0, 30.0, np.inf]), 0.95, "bonferroni"
    )
    expected = stats.t.ppf(1.0 - 0.025 / 3, [4.0, 30.0, np.inf])
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    with pytest.raises(ValueError, match="`simultaneous` must be"):
        simultaneous_quantiles(np.zeros(3), np.eye(3), np.inf, 0.95, "holm")


def test_holm_bounds_shorten_when_hypotheses_fall():
    theta = np.array([6.0, -7.0, 0.5, 0.1])
    lower, upper = simultaneous_bounds(theta, np.eye(4), np.inf, 0.95, "holm")
    half = stats.norm.ppf(1.0 - 0.05 / 6)  # 8 one-sided hypotheses, 2 rejected
    np.testing.assert_allclose(lower, [0.0, -7.0 - half, 0.5 - half, 0.1 - half])
    np.testing.assert_allclose(upper, [6.0 + half, 0.0, 0.5 + half, 0.1 + half])
    widest = simultaneous_bounds(theta, np.eye(4), np.inf, 0.95, "bonferroni")
    assert (upper[2:] - lower[2:] < widest[1][2:] - widest[0][2:]).all()


def test_holm_bounds_cover_together_and_shortened_steps_do_not():
    """Far from zero, halving alpha less at each step would cover 0.84."""
    rng, n, k = np.random.default_rng(5), 4000, 6
    covered = {"far": 0, "mixed": 0, "stepwise": 0}
    steps = stats.norm.ppf(1.0 - 0.025 / (k - np.arange(k)))
    for _ in range(n):
        noise = rng.normal(size=k)
        for name, truth in (("far", np.arange(k) + 9.0), ("mixed", np.arange(k) * 0.8)):
            lower, upper = simultaneous_bounds(
                truth + noise, np.eye(k), np.inf, 0.95, "holm"
            )
            covered[name] += bool(((lower <= truth) & (truth <= upper)).all())
        order = np.argsort(-(np.arange(k) + 9.0 + noise))
        half = np.empty(k)
        half[order] = steps
        covered["stepwise"] += bool((np.abs(noise) <= half).all())
    error = np.sqrt(0.05 * 0.95 / n)
    assert covered["far"] / n >= 0.95 - 4 * error
    assert covered["mixed"] / n >= 0.95 - 4 * error
    assert covered["stepwise"] / n < 0.95 - 4 * error  # negative control


# ------------------------------------------------------------------- Romano-Wolf


def test_romano_wolf_equals_its_definition(rng):
    statistics, draws = rng.normal(size=5) * 2, rng.standard_normal((199, 5))
    found = romano_wolf(statistics, draws)
    order = np.argsort(-np.abs(statistics))
    previous = 0.0
    for step, j in enumerate(order):
        largest = np.abs(draws[:, order[step:]]).max(axis=1)
        p = (1 + (largest >= abs(statistics[j])).sum()) / 200
        previous = max(previous, p)
        assert found[j] == pytest.approx(previous, rel=EXACT)
    with pytest.raises(ValueError, match=r"\(B, 5\) was expected"):
        romano_wolf(statistics, draws[:, :4])


@pytest.mark.parametrize("multiplier", ["rademacher", "normal", "mammen"])
def test_multiplier_draws_have_the_correlation_of_the_influence(multiplier):
    rng = np.random.default_rng(9)
    influence = rng.normal(size=(400, 3)) @ np.array(
        [[1, 0, 0], [0.6, 1, 0], [0, 0, 5.0]]
    )
    influence -= influence.mean(axis=0)
    draws = multiplier_statistics(influence, 20_000, rng, multiplier)
    error = 4.0 / np.sqrt(20_000)
    expected = np.corrcoef(influence.T)
    np.testing.assert_allclose(np.corrcoef(draws.T), expected, rtol=0, atol=error)
    assert (np.abs(draws.mean(axis=0)) <= error).all()
    np.testing.assert_allclose(draws.var(axis=0), 1.0, rtol=0, atol=3 * error)


def test_draws_do_not_depend_on_the_block(monkeypatch):
    influence = np.random.default_rng(2).normal(size=(50, 2))
    whole = multiplier_statistics(influence, 40, np.random.default_rng(1))
    monkeypatch.setattr("eestim.inference.simultaneous._BLOCK_ENTRIES", 350)
    parts = multiplier_statistics(influence, 40, np.random.default_rng(1))
    np.testing.assert_allclose(parts, whole, rtol=1e-12)


def table(n=200):
    rng = np.random.default_rng(12)
    X = rng.normal(size=(n, 4)) + rng.normal(size=(n, 1))
    y = X @ [0.5, 0.0, 0.25, 0.0] + rng.normal(size=n)
    return pd.DataFrame(X, columns=list("abcd")).assign(y=y, g=np.arange(n) % 25)


def test_adjusted_p_of_an_estimate_are_ordered_as_theory_says():
    fit = ee.estimate(ee.ols("y ~ a + b + c + d", table()), covariance=ee.HC(0))
    p = {name: adjusted_p(fit, name) for name in ("sup-t", "bonferroni", "holm")}
    stepped = adjusted_p(fit, "romano-wolf", draws=4999)
    assert list(stepped.index) == list(fit.names)
    assert (p["sup-t"] <= p["bonferroni"] + 1e-9).all()
    assert (p["holm"] <= p["bonferroni"] + 1e-12).all()
    assert (stepped <= p["sup-t"] + 0.03).all()
    slopes = adjusted_p(fit, "bonferroni", subset=["a", "c"])
    both = 2.0 * fit.table()["p"][["a", "c"]]
    np.testing.assert_allclose(slopes, np.minimum(both, 1.0), rtol=1e-9)


def test_romano_wolf_of_a_clustered_estimate_needs_its_clusters():
    fit = ee.estimate(ee.ols("y ~ a + b", table()), covariance=Clustered("g"))
    with pytest.raises(InferenceError, match="pass `labels=`"):
        adjusted_p(fit, "romano-wolf")
    p = adjusted_p(fit, "romano-wolf", labels="g", draws=999, rng=3)
    again = adjusted_p(fit, "romano-wolf", labels="g", draws=999, rng=3)
    pd.testing.assert_series_equal(p, again)
    with pytest.raises(ValueError, match="`method` must be one of"):
        adjusted_p(fit, "tukey")
    with pytest.raises(ValueError, match="`subset` names"):
        adjusted_p(fit, "holm", subset=["z"])


def test_romano_wolf_controls_the_familywise_error():
    """Ten true nulls of correlated means: size 0.05 within 4 Monte Carlo errors."""
    rng, n_sets = np.random.default_rng(31), 400
    mixed = np.linalg.cholesky(equicorrelated(10, 0.5))
    rejected = {"romano-wolf": 0, "unadjusted": 0}
    for _ in range(n_sets):
        sample = rng.normal(size=(60, 10)) @ mixed.T
        centred = sample - sample.mean(axis=0)
        statistics = sample.sum(axis=0) / np.sqrt(np.square(centred).sum(axis=0))
        draws = multiplier_statistics(centred, 399, rng)
        rejected["romano-wolf"] += romano_wolf(statistics, draws).min() <= 0.05
        rejected["unadjusted"] += np.abs(statistics).max() > 1.96
    error = np.sqrt(0.05 * 0.95 / n_sets)
    assert abs(rejected["romano-wolf"] / n_sets - 0.05) <= 4 * error
    assert rejected["unadjusted"] / n_sets > 0.05 + 4 * error  # negative control


def test_interval_of_an_estimate_uses_the_critical_value():
    fit = ee.estimate(ee.ols("y ~ a + b + c + d", table()), covariance=ee.HC(1))
    bounds = fit.interval(simultaneous="sup-t")
    half = (bounds["upper"] - bounds["lower"]) / 2.0 / fit.se
    expected = max_t(correlation(fit.spread.matrix), dof=195.0).critical
    np.testing.assert_allclose(half, expected, rtol=1e-12)
