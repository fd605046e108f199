from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from tolerances import DERIVATIVE

import eestim as ee
from eestim.covariance._resampling import spawned, unit_weights
from eestim.covariance._studentized import studentized_draws
from eestim.covariance.bootstrap import Bootstrap
from eestim.covariance.clustered import Clustered
from eestim.covariance.hac import HAC
from eestim.errors import CapabilityError, InferenceError
from eestim.inference.bootstrap_intervals import (
    Basic,
    BCa,
    Percentile,
    Studentized,
    acceleration_of,
    bca_levels,
)

# Hours between failures of air-conditioning equipment: Proschan (1963), as in Davison
# and Hinkley (1997), example 1.1.
FAILURES = np.array([3.0, 5, 7, 18, 43, 85, 91, 98, 100, 130, 230, 487])


def table(n=60, seed=4):
    rng = np.random.default_rng(seed)
    x, z = rng.normal(size=n), rng.exponential(size=n)
    g = np.arange(n) % 12
    eta = 0.2 + 0.7 * x - 0.3 * z
    return pd.DataFrame(
        {
            "x": x,
            "z": z,
            "g": g,
            "y": eta + rng.normal(size=n) * (1 + z) + rng.normal(size=12)[g],
            "b": (rng.random(n) < 1 / (1 + np.exp(-eta))).astype(float),
        }
    )


def means_of_draws(values, seed, draws):
    """The replicates of a mean, by hand."""
    n = len(values)
    rows = [np.random.default_rng(s).integers(0, n, n) for s in spawned(seed, draws)]
    return values[np.array(rows)]


def bounds(frame):
    return frame[["lower", "upper"]].to_numpy()


# ---------------------------------------------------------------- by hand, exact


def test_percentile_and_basic_intervals_are_order_statistics_of_the_draws():
    fit = ee.estimate(ee.mean(FAILURES))
    draws = np.sort(means_of_draws(FAILURES, 7, 199).mean(axis=1))
    got = fit.interval(0.9, method=Percentile(199, 7))
    np.testing.assert_allclose(bounds(got)[0], [draws[9], draws[189]], rtol=1e-10)
    mirrored = fit.interval(0.9, method=Basic(199, 7))
    centre = FAILURES.mean()
    np.testing.assert_allclose(
        bounds(mirrored)[0], 2 * centre - draws[[189, 9]], rtol=1e-10
    )
    assert list(got.columns) == ["estimate", "lower", "upper"]
    assert got["estimate"].iloc[0] == pytest.approx(centre)


def test_studentized_interval_of_a_mean_is_the_bootstrap_t_by_hand():
    fit = ee.estimate(ee.mean(FAILURES), ee.HC(1))
    samples = means_of_draws(FAILURES, 7, 199)
    t = (samples.mean(axis=1) - FAILURES.mean()) / (samples.std(axis=1) / 12**0.5)
    t = np.sort(t)
    s = FAILURES.std() / 12**0.5
    got = bounds(fit.interval(0.9, method=Studentized(199, 7)))[0]
    wanted = FAILURES.mean() - np.array([t[189], t[9]]) * s
    np.testing.assert_allclose(got, wanted, rtol=1e-9)
    even = bounds(fit.interval(0.9, method=Studentized(199, 7, is_symmetric=True)))[0]
    half = np.sort(np.abs(t))[179] * s
    np.testing.assert_allclose(even, FAILURES.mean() + half * np.array([-1, 1]))


def test_acceleration_of_the_failures_matches_davison_and_hinkley():
    """Their example 5.8: a = 0.0938 for the nonparametric BCa of this mean."""
    fit = ee.estimate(ee.mean(FAILURES))
    a = acceleration_of(fit.influence().to_numpy())
    np.testing.assert_allclose(a, [0.0938], atol=5e-5)


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_bca_levels_match_scipy(level):
    """The same replicates, handed to scipy.stats.bootstrap."""
    fit = ee.estimate(ee.mean(FAILURES))
    draws = means_of_draws(FAILURES, 7, 999).mean(axis=1)
    given = SimpleNamespace(bootstrap_distribution=draws)
    scipy_made = stats.bootstrap(
        (FAILURES,),
        np.mean,
        n_resamples=0,
        bootstrap_result=given,
        confidence_level=level,
        method="BCa",
    )
    moves = (FAILURES - FAILURES.mean())[:, None]
    levels = bca_levels(
        draws[:, None],
        np.array([FAILURES.mean()]),
        acceleration_of(moves),
        [(1 - level) / 2, (1 + level) / 2],
    )
    np.testing.assert_allclose(
        np.percentile(draws, 100 * levels[0]),
        scipy_made.confidence_interval,
        rtol=1e-10,
    )
    ours = bounds(fit.interval(level, method=BCa(999, 7)))[0]
    np.testing.assert_allclose(
        ours, np.quantile(draws, levels[0], method="weibull"), rtol=1e-9
    )
    plain = bounds(fit.interval(level, method=Percentile(999, 7)))[0]
    assert (ours > plain).all()  # skewed to the right


def test_bca_by_the_jackknife_and_by_influence_agree_for_a_mean():
    fit = ee.estimate(ee.mean(FAILURES))
    by_influence = fit.interval(method=BCa(999, 7))
    by_deletion = fit.interval(method=BCa(999, 7, acceleration="jackknife"))
    np.testing.assert_allclose(bounds(by_deletion), bounds(by_influence), rtol=1e-9)


def test_bca_accelerations_agree_to_order_one_over_n_for_a_logit():
    fit = ee.estimate(ee.glm("b ~ x", table(), family="binomial"))
    by_influence = bounds(fit.interval(0.9, method=BCa(199, 7)))
    by_deletion = bounds(
        fit.interval(0.9, method=BCa(199, 7, acceleration="jackknife"))
    )
    width = np.diff(by_influence, axis=1)
    assert (np.abs(by_deletion - by_influence) < 0.1 * width).all()


# -------------------------------------------------------------------- invariance


@pytest.mark.parametrize("method", [Percentile, BCa])
def test_intervals_follow_monotone_transformations(method):
    fit = ee.estimate(ee.mean(FAILURES))
    plain = bounds(fit.interval(0.9, method=method(199, 7)))
    logs = fit.interval(
        0.9, method=method(199, 7, h=lambda t: np.log(t[0]), names=["log mean"])
    )
    # between order statistics a quantile is interpolated on the scale of h
    np.testing.assert_allclose(np.exp(bounds(logs)), plain, rtol=1e-2)
    assert logs.index.tolist() == ["log mean"]


def test_the_basic_interval_does_not_follow_them():
    fit = ee.estimate(ee.mean(FAILURES))
    plain = bounds(fit.interval(0.9, method=Basic(199, 7)))
    logs = fit.interval(0.9, method=Basic(199, 7, h=lambda t: np.log(t[0])))
    assert np.abs(np.exp(bounds(logs)) / plain - 1).max() > 0.1


def test_linear_functionals_are_linear_in_the_bounds():
    fit = ee.estimate(ee.ols("y ~ x", table()))
    for method in (Percentile, Basic, BCa, Studentized):
        plain = bounds(fit.interval(0.9, method=method(199, 7)))[1]
        twice = fit.interval(0.9, method=method(199, 7, h=lambda t: 3 * t["x"] - 1))
        np.testing.assert_allclose(bounds(twice)[0], 3 * plain - 1, rtol=DERIVATIVE)


def test_table_takes_the_bounds():
    fit = ee.estimate(ee.ols("y ~ x", table()))
    made = fit.table(method=Percentile(199, 7))
    np.testing.assert_array_equal(
        made["lower"], fit.interval(method=Percentile(199, 7))["lower"]
    )


# ------------------------------------------------------------- where draws come from


def test_a_bootstrap_covariance_lends_its_replicates():
    rule = Bootstrap(draws=199, rng=7)
    fit = ee.estimate(ee.ols("y ~ x", table()), rule)
    own = fit.interval(method=Percentile())
    same = ee.estimate(ee.ols("y ~ x", table())).interval(method=Percentile(199, 7))
    pd.testing.assert_frame_equal(own, same)
    assert "seed 7" in own.attrs["rule"]
    by = fit.interval(method=Percentile(by=rule))
    pd.testing.assert_frame_equal(own, by)


def test_replicates_under_a_null_are_never_lent():
    rule = Bootstrap("wild", draws=199, rng=7, null={"x": 0.0})
    fit = ee.estimate(ee.ols("y ~ x", table()), rule)
    plain = ee.estimate(ee.ols("y ~ x", table()))
    pd.testing.assert_frame_equal(
        fit.interval(method=Percentile()), plain.interval(method=Percentile())
    )
    with pytest.raises(ValueError, match="null hypothesis"):
        plain.interval(method=Percentile(by=rule))


@pytest.mark.parametrize("method", [Percentile, Basic, BCa, Studentized])
@pytest.mark.parametrize("rule", [Clustered("g"), HAC("bartlett", lags=2)])
def test_dependence_is_not_ignored(method, rule):
    fit = ee.estimate(ee.ols("y ~ x", table()), rule)
    with pytest.raises(InferenceError, match="allows for dependence"):
        fit.interval(method=method(99))
    by = Bootstrap("cluster", draws=199, labels="g")
    assert fit.interval(method=method(by=by)).notna().all(axis=None)


def test_clustered_bca_uses_the_influence_of_clusters():
    equation = ee.mean("y", table())
    rule = Bootstrap("cluster", draws=199, rng=3, labels="g")
    fit = ee.estimate(equation, rule)
    with pytest.raises(InferenceError, match="needs the clusters"):
        fit.interval(0.9, method=BCa())
    sums = table().assign(e=lambda d: d["y"] - d["y"].mean()).groupby("g")["e"].sum()
    levels = bca_levels(
        fit.spread.replicates,
        fit.theta,
        acceleration_of(sums.to_numpy()[:, None]),
        [0.05, 0.95],
    )
    got = bounds(fit.interval(0.9, method=BCa(by=rule)))[0]
    wanted = np.quantile(fit.spread.replicates[:, 0], levels[0], method="weibull")
    np.testing.assert_allclose(got, wanted, rtol=1e-9)


def test_tabulated_estimates_do_not_lend_linearised_replicates():
    fit = ee.estimate(ee.mean(FAILURES), Bootstrap(draws=199))
    with pytest.raises(InferenceError, match="pass `h=`"):
        fit.functional(lambda t: t[0] ** 2).interval(method=Percentile())
    with pytest.raises(CapabilityError, match="multiplier"):
        fit.functional(lambda t: t[0] ** 2).interval(method=Percentile(99))


def test_too_few_draws_and_bad_levels_are_refused():
    fit = ee.estimate(ee.mean(FAILURES))
    with pytest.raises(InferenceError, match="at least 39"):
        fit.interval(method=Percentile(30))
    with pytest.raises(ValueError, match="level"):
        fit.interval(95, method=Percentile(99))
    with pytest.raises(ValueError, match="one or the other"):
        fit.interval(method=Percentile(99, by=Bootstrap()))
    with pytest.raises(ValueError, match="acceleration"):
        BCa(acceleration="none")
    with pytest.raises(ValueError, match="`names`"):
        fit.interval(method=Percentile(99, names=["a"]))
    with pytest.raises(ValueError, match="draws of units"):
        fit.interval(0.9, method=BCa(by=Bootstrap("block", draws=99)))
    with pytest.raises(ValueError, match="studentized draws"):
        fit.interval(0.9, method=Studentized(by=Bootstrap("block", draws=99)))


def test_failing_refits_are_refused_where_nobody_would_see_the_finding():
    d = (np.arange(40) < 4) * 1.0
    b = (np.arange(40) % 2) * 1.0
    fit = ee.estimate(ee.glm("b ~ d", {"d": d, "b": b}, family="binomial"))
    with pytest.raises(InferenceError, match="no root"):
        fit.interval(0.9, method=Percentile(99))
    with pytest.raises(InferenceError, match="no root"):
        fit.interval(0.9, method=Studentized(99))
    by = Bootstrap("fractional", draws=99)
    assert fit.interval(0.9, method=Percentile(by=by)).notna().all(axis=None)


def test_one_sided_replicates_have_no_bca():
    draws = np.array([[1.0], [2.0], [3.0]])
    with pytest.raises(InferenceError, match="one side"):
        bca_levels(draws, np.zeros(1), np.zeros(1), [0.05, 0.95])
    with pytest.raises(InferenceError, match="too large"):
        bca_levels(draws, np.full(1, 2.5), np.full(1, 2.0), [0.05, 0.95])


# ------------------------------------------------------------- studentized draws


def test_studentized_draws_of_pairs_are_sandwiches_of_the_drawn_rows():
    data = table()
    equation = ee.glm("b ~ x", data, family="binomial")
    fit = ee.estimate(equation)
    drawn = studentized_draws(equation, fit.root, Bootstrap(draws=4, rng=1))
    for r, seed in enumerate(spawned(1, 4)):
        rows = np.random.default_rng(seed).integers(0, 60, 60)
        again = ee.estimate(ee.glm("b ~ x", data.iloc[rows], family="binomial"))
        np.testing.assert_allclose(drawn.moved[r] + fit.theta, again.theta, rtol=1e-6)
        np.testing.assert_allclose(drawn.spread[r], again.spread.matrix, rtol=1e-6)
    np.testing.assert_allclose(drawn.own, fit.spread.matrix, rtol=1e-9)


def test_studentized_draws_of_least_squares_agree_by_both_routes():
    data = table()

    def psi(theta, data):
        X = np.column_stack([np.ones(60), data["x"]])
        return (np.asarray(data["y"]) - X @ np.asarray(theta))[:, None] * X

    rules = [
        Bootstrap(draws=5),
        Bootstrap("cluster", draws=5, labels="g"),
        Bootstrap("wild", draws=5),
        Bootstrap("wild-cluster", draws=5, labels="g", weights="webb"),
    ]
    for rule in rules:
        closed = ee.ols("y ~ x", data)
        generic = ee.equation(psi, data, [0, 0])
        one = studentized_draws(closed, ee.estimate(closed).root, rule)
        two = studentized_draws(generic, ee.estimate(generic).root, rule)
        np.testing.assert_allclose(two.moved, one.moved, rtol=1e-5, atol=1e-8)
        np.testing.assert_allclose(two.spread, one.spread, rtol=1e-5)


def test_studentized_intervals_survive_an_ill_conditioned_design():
    data = table()
    plain = ee.estimate(ee.ols("y ~ x", data))
    far = ee.estimate(ee.ols("y ~ x", data.assign(x=data["x"] + 1e6)))
    for by in (Bootstrap(draws=99), Bootstrap("wild", draws=99)):
        one = plain.interval(0.9, method=Studentized(by=by)).loc["x"]
        two = far.interval(0.9, method=Studentized(by=by)).loc["x"]
        np.testing.assert_allclose(two, one, rtol=1e-5)


def test_scores_without_unit_derivatives_are_recentred():
    psi = FAILURES[:, None] - FAILURES.mean()
    only = ee.equations.Evaluated(("mean",), psi, np.eye(1), FAILURES[:1])
    fit = ee.estimate(only, root=FAILURES[:1])
    by = Bootstrap("multiplier", draws=199, weights="mammen")
    tabulated = fit.interval(0.9, method=Studentized(by=by))
    model = ee.estimate(ee.mean(FAILURES)).interval(0.9, method=Studentized(by=by))
    # u = v phi - d / m is exact for a mean
    moved = FAILURES[0] - FAILURES.mean()
    np.testing.assert_allclose(bounds(tabulated) - moved, bounds(model), rtol=1e-9)


def test_weights_of_the_seeds_are_those_documented():
    w = unit_weights(np.random.default_rng(spawned(7, 1)[0]), 12, "pairs")
    rows = np.random.default_rng(spawned(7, 1)[0]).integers(0, 12, 12)
    np.testing.assert_array_equal(w, np.bincount(rows, minlength=12))
