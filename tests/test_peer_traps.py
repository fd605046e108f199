"""Inputs on which other packages are silently wrong: here right, or refused.

Each test names the package and what it does with the same input (versions and figures
are those measured when the tests were written: Delicatessen 4.3, geex 1.1.1,
statsmodels 0.15, linearmodels 7.1).
"""

import tracemalloc

import numpy as np
import pandas as pd
import pytest
from scipy import optimize, special, stats
from tolerances import REFERENCE

import eestim as ee
from eestim.errors import (
    ConvergenceError,
    DataError,
    EestimError,
    IdentificationError,
    InferenceError,
    SeparationError,
)


def logistic(t, data):  # the argument need not be called theta (Delicatessen, geex)
    mu = 1 / (1 + np.exp(-(data["X"] @ t)))
    return (data["y"] - mu)[:, None] * data["X"]


def simulated(n=3000, seed=1):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, 2))
    y = (rng.random(n) < 1 / (1 + np.exp(-(0.2 + z @ [0.5, -0.4])))).astype(float)
    return y, z


def test_income_in_dollars_from_a_start_of_zero():
    """Delicatessen `lm`: 5000 evaluations and an error; `newton`: 1e-5 off the root."""
    y, z = simulated()
    X = np.column_stack([np.ones(len(y)), 45 + 12 * z[:, 0], 6e4 + 2e4 * z[:, 1]])
    fit = ee.estimate(ee.equation(logistic, {"y": y, "X": X}, [0, 0, 0]))
    oracle = ee.estimate(ee.glm(y, X, family="binomial"))
    np.testing.assert_allclose(fit.theta, oracle.theta, rtol=1e-7)
    np.testing.assert_allclose(fit.se, oracle.se, rtol=1e-7)


@pytest.mark.parametrize(
    ("mean", "sd"), [(0.0, 1.0), (50.0, 1.0), (0.0, 1e4), (2e3, 3)]
)
def test_numerical_derivative_at_any_scale(mean, sd):
    """Delicatessen: standard errors 6.7e-4 off at mean 50, 2.2e-3 at sd 1e4."""
    y, z = simulated()
    X = np.column_stack([np.ones(len(y)), mean + sd * z[:, 0]])
    fit = ee.estimate(ee.equation(logistic, {"y": y, "X": X}, [0, 0]))
    oracle = ee.estimate(ee.glm(y, X, family="binomial"))
    np.testing.assert_allclose(fit.se, oracle.se, rtol=REFERENCE)


def test_true_theta_of_badly_scaled_covariates_handed_over():
    """Delicatessen with allow_pinv: standard errors 98 to 100% too small."""
    y, z = simulated()
    X = np.column_stack([np.ones(len(y)), z[:, 0], 5e7 + 1e6 * z[:, 1]])
    oracle = ee.estimate(ee.glm(y, X, family="binomial"))
    given = ee.estimate(
        ee.equation(logistic, {"y": y, "X": X}, [0, 0, 0]), root=oracle.theta
    )
    np.testing.assert_allclose(given.se, oracle.se, rtol=1e-7)


def test_collinear_and_more_parameters_than_units():
    """Delicatessen: an arbitrary solution with se 0.0087; at p > n a se of 9e-17."""
    y, z = simulated(200)
    X = np.column_stack([np.ones(200), z[:, 0], 2 * z[:, 0]])
    with pytest.raises(IdentificationError):
        ee.estimate(ee.equation(logistic, {"y": y, "X": X}, [0, 0, 0]))
    rng = np.random.default_rng(0)
    wide = {"y": rng.normal(size=40), "X": rng.normal(size=(40, 60))}
    residual = ee.equation(
        lambda t, d: (d["y"] - d["X"] @ t)[:, None] * d["X"], wide, np.zeros(60)
    )
    with pytest.raises(EestimError):
        ee.estimate(residual)


def test_separation_by_any_route():
    """Delicatessen `newton`: slope 34786, standard error 0."""
    _, z = simulated(300)
    X = np.column_stack([np.ones(300), z[:, 0]])
    split = (z[:, 0] > 0.1).astype(float)
    with pytest.raises(SeparationError):
        ee.estimate(ee.glm(split, X, family="binomial"))
    with pytest.raises(EestimError):
        ee.estimate(ee.equation(logistic, {"y": split, "X": X}, [0, 0]))


def test_whole_numbers_as_a_start_are_not_truncated():
    """Delicatessen: `init=[0, 2]` of integers gives [2, 2], the mean being 2.37."""
    y = np.array([1.0, 2.0, 4.1])

    def psi(t, data):
        centred = data["y"] - t[0]
        return np.column_stack([centred, centred**2 - t[1]])

    fits = [
        ee.estimate(ee.equation(psi, {"y": y}, start))
        for start in ([0, 2], np.array([0, 2]), (0.0, 2.0), [np.int8(0), 2])
    ]
    for fit in fits:
        assert fit.theta.tolist() == fits[2].theta.tolist()
        assert fit.se.tolist() == fits[2].se.tolist()
    np.testing.assert_allclose(fits[0].theta, [y.mean(), y.var()], rtol=1e-9)


def test_badly_scaled_covariates_from_a_start_of_zero():
    """Delicatessen `lm`: returns theta near (1e-9, 1e-7, 1e-17) with se 1e-17."""
    _, z = simulated()
    X = np.column_stack([np.ones(len(z)), z[:, 0], 5e7 + 1e6 * z[:, 1]])
    chance = special.expit(-25.9 + 1.06 * X[:, 1] + 5.2e-7 * X[:, 2])
    y = (np.random.default_rng(2).random(len(z)) < chance).astype(float)
    fit = ee.estimate(ee.equation(logistic, {"y": y, "X": X}, [0, 0, 0]))
    oracle = ee.estimate(ee.glm(y, X, family="binomial"))
    np.testing.assert_allclose(fit.se, oracle.se, rtol=1e-7)
    np.testing.assert_allclose(
        fit.theta / fit.se, oracle.theta / oracle.se, rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("tau", [0.5, 0.25])
def test_the_variance_of_a_quantile_is_not_zero(tau):
    """Delicatessen: variance 0.0 with a warning, where 0.00157 is the truth."""
    y = np.random.default_rng(4).normal(size=4000)
    truth = tau * (1 - tau) / stats.norm.pdf(stats.norm.ppf(tau)) ** 2 / len(y)

    def psi(t, data):
        return (tau - (data["y"] <= t[0]))[:, None].astype(float)

    for equation in (
        ee.models.quantile(y, tau=tau),
        ee.equation(psi, {"y": y}, [0.0]),
    ):
        fit = ee.estimate(equation)
        assert fit.spread.matrix[0, 0] == pytest.approx(truth, rel=0.15)


def test_functions_of_scipy_are_differentiated():
    """Delicatessen `exact`: TypeError for expit, logaddexp and solve."""
    y, z = simulated(300)
    X = np.column_stack([np.ones(300), z])
    turn = np.array([[2.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.3, 1.0]])

    def psi(t, data):
        eta = data["X"] @ np.linalg.solve(turn, t)
        mu = np.exp(-np.logaddexp(0.0, -eta))
        assert np.allclose(mu, special.expit(eta))
        return (data["y"] - mu)[:, None] * data["X"]

    fit = ee.estimate(ee.equation(psi, {"y": y, "X": X}, np.zeros(3)))
    model = ee.estimate(ee.glm(y, X, family="binomial"))
    expected = turn @ model.spread.matrix @ turn.T
    np.testing.assert_allclose(fit.spread.matrix, expected, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize(
    "shape", [lambda v: v, lambda v: v[None, :], lambda v: [v], lambda v: v.sum()]
)
def test_psi_of_another_shape_is_refused_with_its_cure(shape):
    """Delicatessen: a (1, n) psi makes the sandwich a factor n too small."""
    with pytest.raises(DataError, match=r"expected \(9, q\)"):
        ee.equation(
            lambda t, data: shape(data["y"] - t[0]), {"y": np.arange(9.0)}, [0.0]
        )


def test_any_name_of_the_argument_will_do():
    """Delicatessen and geex: TypeError unless it is called `theta`."""
    y = np.array([1.0, 2.0, 6.0])
    for psi in (
        lambda theta, data: (data["y"] - theta[0])[:, None],
        lambda t, d: (d["y"] - t[0])[:, None],
    ):
        assert ee.estimate(ee.equation(psi, {"y": y}, [0])).theta[0] == (
            pytest.approx(3.0)
        )


def test_simultaneous_bands_of_fifty_parameters_need_no_million_draws():
    """Delicatessen: 7.5 s and 1.15 GB for k = 50."""
    rng = np.random.default_rng(3)
    X = rng.normal(size=(400, 50)) @ (np.eye(50) + 0.1)
    fit = ee.estimate(ee.ols(X.sum(axis=1) + rng.normal(size=400), X), ee.HC(3))
    tracemalloc.start()
    bands = fit.interval(simultaneous="sup-t")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6
    wide, narrow = fit.interval(simultaneous="bonferroni"), fit.interval()
    assert (bands["upper"] < wide["upper"]).all()
    assert (bands["upper"] > narrow["upper"]).all()


def test_corrections_for_few_units_are_more_than_one():
    """Delicatessen: n / (n - p) alone, with G - p under aggregation."""
    y, z = simulated(120)
    table = pd.DataFrame({"y": y + z[:, 0], "x": z[:, 1], "g": np.arange(120) % 12})
    summed = ee.estimate(
        ee.equation(
            lambda t, d: np.column_stack(
                [e := d["y"] - t[0] - t[1] * d["x"], e * d["x"]]
            ),
            table,
            [0.0, 0.0],
            units="g",
        )
    )
    assert summed.n_units == 12
    rows = ee.estimate(ee.ols("y ~ x", table), ee.Clustered("g"))
    np.testing.assert_allclose(summed.se, rows.se, rtol=1e-7)
    ratio = summed.with_covariance(ee.HC(1)).se / summed.se
    np.testing.assert_allclose(ratio, np.sqrt(12 / (12 - 2)), rtol=1e-10)
    for rule in (ee.FayGraubard(), ee.Jackknife(kind="one-step")):
        assert (summed.with_covariance(rule).se > summed.se).all()


def test_hubers_location_clips_residuals():
    """A notebook of Delicatessen clips the outcome, so its "Huber mean" is wrong."""
    y = np.concatenate([np.random.default_rng(5).normal(10, 1, 40), [60.0]])
    fit = ee.estimate(ee.models.huber(y, k=1.5, scale=1.0))
    root = optimize.brentq(lambda t: np.clip(y - t, -1.5, 1.5).sum(), 0, 60)
    assert fit.theta[0] == pytest.approx(root, rel=1e-9)
    assert abs(np.clip(y, -1.5, 1.5).mean() - root) > 5  # what it computes


def test_no_convergence_is_not_passed_on():
    """geex: multiroot stops short without a word, then solve() fails."""
    y = np.random.default_rng(3).normal(5, 2, 100)

    def psi(theta, data):
        mean, variance, sd, log = theta
        centred = data["y"] - mean
        one = np.ones(len(centred))
        columns = [centred, centred**2 - variance, (np.sqrt(variance) - sd) * one]
        return np.column_stack([*columns, (np.log(variance) - log) * one])

    fit = ee.estimate(ee.equation(psi, {"y": y}, [1.0, 2.0, 1.0, 1.0]))
    np.testing.assert_allclose(
        fit.theta, [y.mean(), y.var(), y.std(), np.log(y.var())], rtol=1e-9
    )


@pytest.mark.parametrize("kind", [1, 2, 3])
def test_hc_kinds_of_a_glm_differ_from_hc0(kind):
    """statsmodels GLM: HC1, HC2 and HC3 return HC0 to all digits."""
    y, z = simulated(80)
    fit = ee.estimate(ee.glm(y, np.column_stack([np.ones(80), z]), family="binomial"))
    assert np.all(fit.with_covariance(ee.HC(kind)).se / fit.se > 1.005)


def test_every_kernel_has_a_name():
    """statsmodels: kernel 'parzen' is a KeyError."""
    y, z = simulated(100)
    equation = ee.ols(y + z[:, 0], np.column_stack([np.ones(100), z]))
    for kernel in ("bartlett", "parzen", "quadratic-spectral"):
        fit = ee.estimate(equation, ee.HAC(kernel, 3.0))
        assert np.isfinite(fit.se).all()


def test_an_indefinite_two_way_covariance_is_not_passed_on():
    """statsmodels: eigenvalue -0.0012 and a square root of it, silently."""
    rng = np.random.default_rng(12)
    refused = 0
    for _ in range(60):
        x, y = rng.normal(size=(2, 24))
        a, b = rng.integers(0, 3, 24), rng.integers(0, 4, 24)
        if len(set(a)) < 2 or len(set(b)) < 2:
            continue
        equation = ee.ols(y, np.column_stack([np.ones(24), x]))
        try:
            fit = ee.estimate(equation, ee.Clustered(a, b))
        except InferenceError:
            refused += 1
            repaired = ee.estimate(equation, ee.Clustered(a, b, repair_psd=True))
            assert np.linalg.eigvalsh(repaired.spread.matrix)[0] >= -1e-15
            continue
        assert (np.diag(fit.spread.matrix) > 0).all()
    assert refused > 0  # else this test checks nothing


def test_an_eigenvalue_is_repaired_where_no_variance_is_negative():
    """fixest repairs a covariance only where its diagonal is negative."""
    rng = np.random.default_rng(2)
    seen = 0
    for _ in range(40):
        x, y = rng.normal(size=(2, 24))
        a, b = np.arange(24) % 3, rng.integers(0, 4, 24)
        equation = ee.ols(y, np.column_stack([np.ones(24), x]))
        try:
            plain = ee.estimate(equation, ee.Clustered(a, b))
        except InferenceError:
            continue
        if np.linalg.eigvalsh(plain.spread.matrix)[0] >= 0:
            continue
        seen += 1
        assert any(one.status in ("warn", "fail") for one in plain.findings)
        repaired = plain.with_covariance(ee.Clustered(a, b, repair_psd=True))
        assert np.linalg.eigvalsh(repaired.spread.matrix)[0] >= -1e-16
        assert any("repair" in str(one).lower() for one in repaired.findings)
    assert seen > 0  # else this test checks nothing


@pytest.mark.parametrize("family", ["binomial", "poisson"])
def test_leaving_clusters_out_works_for_glms(family):
    """statsmodels: `cluster-crv3` and `cluster-jk` are TypeErrors for a GLM."""
    y, z = simulated(240)
    g = np.arange(240) % 20
    fit = ee.estimate(ee.glm(y, np.column_stack([np.ones(240), z]), family=family))
    exact = fit.with_covariance(ee.Jackknife(groups=g, factor="1")).se
    cr3 = fit.with_covariance(ee.Clustered(g, kind="CR3")).se
    np.testing.assert_allclose(cr3, exact, rtol=0.05)  # CR3 is its linearisation
    assert (cr3 > fit.with_covariance(ee.Clustered(g)).se * 1.02).all()


def test_robust_regression_is_robust_to_unequal_variances_too():
    """statsmodels RLM: its covariances take the errors to be identical."""
    rng = np.random.default_rng(6)
    x = rng.normal(size=4000)
    y = x + rng.normal(size=4000) * np.abs(x)
    fit = ee.estimate(ee.models.huber(y, np.column_stack([np.ones(4000), x])))
    draws = ee.Bootstrap("multiplier", draws=400, rng=1)
    assert fit.se.iloc[1] == pytest.approx(
        fit.with_covariance(draws).se.iloc[1], rel=4 / np.sqrt(800)
    )
    same = rng.permutation(y - x)  # the same errors, unrelated to x
    plain = ee.estimate(ee.models.huber(x + same, np.column_stack([np.ones(4000), x])))
    assert fit.se.iloc[1] > 1.4 * plain.se.iloc[1]


def test_lags_of_driscoll_and_kraay_are_stated():
    """linearmodels and sandwich differ by 31% by the lag rule alone."""
    rng = np.random.default_rng(7)
    table = pd.DataFrame({"t": np.repeat(np.arange(30), 20)})
    table["x"] = rng.normal(size=30)[table["t"]] + rng.normal(size=600)
    table["y"] = table["x"] + rng.normal(size=30)[table["t"]] + rng.normal(size=600)
    equation = ee.ols("y ~ x", table)
    fits = {
        lags: ee.estimate(equation, ee.DriscollKraay(time="t", lags=lags))
        for lags in (None, 2, "newey-west-1994", 3)
    }
    assert "bandwidth 3, lags by newey-west-1987" in fits[None].rule
    assert "bandwidth 4, lags by newey-west-1994" in fits["newey-west-1994"].rule
    assert fits[None].se.tolist() == fits[2].se.tolist()
    assert fits["newey-west-1994"].se.tolist() == fits[3].se.tolist()
    assert fits[2].se.iloc[1] != fits[3].se.iloc[1]


def test_two_ways_of_clustering_with_adjusted_residuals():
    """clubSandwich: no several ways; here each term has its own adjustment."""
    y, z = simulated(240)
    a, b = np.arange(240) % 15, np.arange(240) // 20
    fit = ee.estimate(ee.ols(y, np.column_stack([np.ones(240), z])))
    parts = {
        name: fit.with_covariance(ee.Clustered(label, kind="CR2")).spread.matrix
        for name, label in {"a": a, "b": b, "ab": 100 * a + b}.items()
    }
    both = fit.with_covariance(ee.Clustered(a, b, kind="CR2")).spread.matrix
    np.testing.assert_allclose(both, parts["a"] + parts["b"] - parts["ab"], rtol=1e-9)


@pytest.mark.parametrize("kind", ["CR2", "CR3"])
def test_a_cluster_of_100000_rows_fits_in_memory(kind):
    """clubSandwich and estimatr: cannot allocate the (100000, 100000) hat matrix."""
    rng = np.random.default_rng(8)
    n = 120_000
    g = np.concatenate([np.zeros(100_000), 1 + np.arange(20_000) // 1000])
    X = np.column_stack([np.ones(n), rng.normal(size=n)])
    fit = ee.estimate(ee.ols(X.sum(axis=1) + rng.normal(size=n), X))
    tracemalloc.start()
    spread = fit.with_covariance(ee.Clustered(g, kind=kind))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * X.nbytes  # 31 MB; the matrix alone would be 80 GB
    assert (spread.se > 0).all()


def test_an_average_over_sampled_covariates_has_their_noise():
    """EconML's `ate_inference` takes the covariates as fixed."""
    rng = np.random.default_rng(9)
    n = 400
    x = rng.exponential(size=n)
    d = (rng.random(n) < 0.5).astype(float)
    table = pd.DataFrame({"x": x, "d": d})
    table["y"] = d * (1 + 2 * x) + rng.normal(size=n) * 0.3
    fit = ee.estimate(ee.ols("y ~ d * x", table))
    mean = table["x"].mean()
    fixed = fit.functional(lambda t: t[1] + t[3] * mean).se.iloc[0]
    sampled = ee.marginal_effects(fit, ["d"]).se.iloc[0]
    spread = 2 * x.std() / np.sqrt(n)  # of the mean of 2 x
    assert sampled == pytest.approx(np.hypot(fixed, spread), rel=0.05)
    assert fixed < 0.5 * sampled


def test_weights_that_were_estimated_change_the_standard_error():
    """Weighting packages that take estimated weights as known."""
    rng = np.random.default_rng(10)
    n = 3000
    x = rng.normal(size=n)
    table = pd.DataFrame({"x": x, "a": (rng.random(n) < special.expit(x)) * 1.0})
    table["y"] = 2 * x + rng.normal(size=n)

    def treated(theta, data):
        chance = special.expit(theta["ps"][0] + theta["ps"][1] * data["x"])
        rows = data["a"] / chance * (data["y"] - theta["mu"][0])
        return rows.to_numpy()[:, None]

    stacked = ee.estimate(
        ee.stack(
            ps=ee.glm("a ~ x", table, family="binomial"),
            mu=treated,
            data=table,
            start=[0.0],
        )
    )
    ps = stacked.theta[:2]
    chance = special.expit(ps[0] + ps[1] * x)
    known = ee.equation(
        lambda t, d: (d["a"] / chance * (d["y"] - t[0])).to_numpy()[:, None],
        table,
        [0.0],
    )
    naive = ee.estimate(known).se.iloc[0]
    propagated = stacked.se.iloc[-1]
    design = np.column_stack([np.ones(n), x])  # influence, written out
    rows = table["a"].to_numpy() / chance * (table["y"].to_numpy() - stacked.theta[-1])
    slope = -(rows * (1 - chance)) @ design / n
    bread = (chance * (1 - chance) * design.T) @ design / n
    score = (table["a"].to_numpy() - chance)[:, None] * design
    scale = np.mean(table["a"].to_numpy() / chance)
    influence = (rows + score @ np.linalg.solve(bread, slope)) / scale
    by_hand = np.sqrt(np.mean(influence**2) / n)
    assert propagated == pytest.approx(by_hand, rel=1e-7)
    assert propagated < 0.9 * naive


def test_difference_of_means_covers():
    """CausalML's trees divide by n again: coverage 0 of 20."""
    hits = 0
    for rep in range(60):
        rng = np.random.default_rng([11, rep])
        a = (np.arange(200) % 2).astype(float)
        y = 1.5 * a + rng.exponential(size=200)
        fit = ee.estimate(ee.ols(y, np.column_stack([np.ones(200), a])), ee.HC(3))
        lower, upper = fit.interval().iloc[1, 1:]
        hits += lower <= 1.5 <= upper
    assert abs(hits / 60 - 0.95) <= 4 * np.sqrt(0.95 * 0.05 / 60)


def test_replicates_are_averaged_over_draws_not_over_parameters():
    """CausalML: a bootstrap mean without an axis; DoubleML: none for clusters."""
    y, z = simulated(200)
    g = np.arange(200) % 25
    fit = ee.estimate(
        ee.glm(y, np.column_stack([np.ones(200), 100 + z[:, 0]]), family="binomial"),
        ee.Bootstrap("cluster", draws=300, rng=1, labels=g),
    )
    replicates = fit.spread.replicates
    assert replicates.shape == (300, 2)
    np.testing.assert_allclose(fit.se, replicates.std(axis=0, ddof=1), rtol=1e-10)
    robust = fit.with_covariance(ee.Clustered(g)).se
    np.testing.assert_allclose(fit.se, robust, rtol=0.3)


def test_clusters_state_their_factor():
    """linearmodels: clustered errors have no G/(G-1) by default, and do not say so."""
    y, z = simulated(200)
    g = np.arange(200) % 10
    fit = ee.estimate(
        ee.ols(y, np.column_stack([np.ones(200), z])), ee.Clustered(g, kind="CR1S")
    )
    assert "G/(G-1)*(n-1)/(n-k)" in fit.rule
    assert "10 clusters" in fit.rule


def test_one_cluster_is_refused():
    """Summing psi over one cluster gives zero, hence a standard error of zero."""
    y, z = simulated(100)
    with pytest.raises(InferenceError, match="one cluster"):
        ee.estimate(
            ee.ols(y, np.column_stack([np.ones(100), z])), ee.Clustered(np.zeros(100))
        )


def test_a_start_outside_the_domain_is_an_error_not_a_number():
    y = np.array([1.0, 2.0, 3.0])
    equation = ee.equation(
        lambda t, d: (np.sqrt(t[0]) - d["y"])[:, None], {"y": y}, [1.0]
    )
    np.testing.assert_allclose(ee.estimate(equation).theta, 4.0, rtol=1e-9)
    with pytest.raises((EestimError, ConvergenceError)):
        ee.estimate(equation, start=[-1.0])
