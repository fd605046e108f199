import numpy as np
import pandas as pd
import pytest
from tolerances import EXACT

import eestim as ee
from eestim.covariance._resampling import (
    block_counts,
    draw_matrix,
    draw_quantiles,
    multiplier_weights,
    spawned,
    stationary_counts,
    unit_weights,
)
from eestim.covariance._studentized import spread_draws, wald_statistics
from eestim.covariance.bootstrap import Bootstrap, own_replicates
from eestim.covariance.clustered import Clustered
from eestim.covariance.jackknife import Jackknife
from eestim.errors import CapabilityError, DataError, InferenceError
from eestim.roots import solve

LAWS = ["rademacher", "mammen", "webb", "normal"]


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
            "t": np.arange(n) // 3,
            "y": eta + rng.normal(size=n) * (1 + z) + rng.normal(size=12)[g],
            "b": (rng.random(n) < 1 / (1 + np.exp(-eta))).astype(float),
        }
    )


def in_errors(matrix, truth, draws, kurtosis=3.0):
    """Largest deviation of variances from theirs in Monte Carlo standard errors.

    A variance of R draws has relative standard error sqrt((kurtosis - 1) / R).
    """
    ours, wanted = np.diag(np.atleast_2d(matrix)), np.diag(np.atleast_2d(truth))
    return (np.abs(ours / wanted - 1) / np.sqrt((kurtosis - 1) / draws)).max()


# ------------------------------------------- closed forms by Monte Carlo, 4 mcse


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("kind", ["multiplier", "wild"])
def test_multiplier_variance_is_hc0(law, kind):
    equation = ee.glm("b ~ x + z", table(), family="binomial")
    rule = Bootstrap(kind, draws=4000, rng=7, weights=law)
    fit = ee.estimate(equation, rule)
    hc0 = ee.estimate(equation).spread.matrix
    assert in_errors(fit.spread.matrix, hc0, 4000) <= 4
    # the negative control: another sandwich, 8% and more away, is told apart
    assert in_errors(fit.spread.matrix, 1.12 * hc0, 4000) > 4


@pytest.mark.parametrize("kind", ["multiplier", "wild-cluster"])
def test_clustered_multipliers_have_the_variance_cr0(kind):
    equation = ee.ols("y ~ x", table())
    rule = Bootstrap(kind, draws=4000, rng=7, labels="g", weights="normal")
    fit = ee.estimate(equation, rule)
    cr0 = ee.estimate(equation, Clustered("g")).spread.matrix
    assert in_errors(fit.spread.matrix, cr0, 4000) <= 4
    assert in_errors(fit.spread.matrix, ee.estimate(equation).spread.matrix, 4000) > 4
    assert (fit.dof == 11).all()


def test_pairs_of_a_mean_have_the_variance_n_minus_1_over_n_of_the_usual():
    y = np.random.default_rng(3).normal(size=15)
    fit = ee.estimate(ee.mean(y), Bootstrap(draws=6000, rng=1))
    truth = 14 / 15 * y.var(ddof=1) / 15
    assert in_errors(fit.spread.matrix, truth, 6000) <= 4
    assert in_errors(fit.spread.matrix, y.var(ddof=1) / 15 * 1.1, 6000) > 4


def test_fractional_weights_of_a_mean_have_the_dirichlet_variance():
    y = np.random.default_rng(3).normal(size=15)
    fit = ee.estimate(ee.mean(y), Bootstrap("fractional", draws=6000, rng=1))
    truth = np.square(y - y.mean()).sum() / (15 * 16)
    assert in_errors(fit.spread.matrix, truth, 6000) <= 4


def test_equal_clusters_of_a_mean_have_the_variance_of_their_means():
    data = table()
    fit = ee.estimate(
        ee.mean("y", data), Bootstrap("cluster", draws=6000, rng=1, labels="g")
    )
    means = data.groupby("g")["y"].mean().to_numpy()
    truth = np.square(means - means.mean()).sum() / 12**2
    assert in_errors(fit.spread.matrix, truth, 6000) <= 4
    assert fit.spread.n_clusters == (12,)


def test_residuals_of_least_squares_have_the_model_variance():
    equation = ee.ols("y ~ x + z", table())
    fit = ee.estimate(equation, Bootstrap("residual", draws=6000, rng=1))
    model = ee.estimate(equation, ee.ModelBased()).spread.matrix
    assert in_errors(fit.spread.matrix, model, 6000) <= 4
    assert in_errors(fit.spread.matrix, ee.estimate(equation).spread.matrix, 6000) > 4


def series(n=48, seed=8):
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=n)
    y = np.empty(n)
    y[0] = noise[0]
    for t in range(1, n):
        y[t] = 0.6 * y[t - 1] + noise[t]
    return y


def test_moving_blocks_of_a_mean_have_kuensch_variance():
    y, length = series(), 6
    fit = ee.estimate(ee.mean(y), Bootstrap("block", draws=6000, rng=1, length=length))
    means = np.convolve(y, np.ones(length) / length, mode="valid")
    truth = means.var() / (48 / length)
    assert in_errors(fit.spread.matrix, truth, 6000) <= 4
    assert in_errors(fit.spread.matrix, y.var() / 48, 6000) > 4  # as if independent


def test_stationary_blocks_of_a_mean_have_the_politis_romano_variance():
    """Politis and Romano (1994), lemma 1."""
    y, length, n = series(), 6, 48
    rule = Bootstrap("block", draws=6000, rng=1, length=length, blocks="stationary")
    fit = ee.estimate(ee.mean(y), rule)
    e = y - y.mean()
    c = np.array([e[: n - i] @ e[i:] / n for i in range(n)])
    i = np.arange(n)
    p = 1 / length
    b = (1 - i / n) * (1 - p) ** i + i / n * (1 - p) ** (n - i)
    truth = (c[0] + 2 * (b * c)[1:].sum()) / n
    assert in_errors(fit.spread.matrix, truth, 6000) <= 4


def test_the_wrong_centre_is_told_apart():
    """Replicates under a null lie around the restricted estimate, not the estimate."""
    equation = ee.ols("y ~ x", table())
    rule = Bootstrap("wild", draws=2000, rng=1, null={"x": 0.0})
    fit = ee.estimate(equation, rule)
    about_estimate = np.square(fit.spread.replicates - fit.theta).mean(axis=0)
    assert about_estimate[1] > 1.5 * fit.spread.matrix[1, 1]
    spread = np.square(fit.spread.replicates[:, 1]).mean()
    assert abs(spread / fit.spread.matrix[1, 1] - 1) < 4 * np.sqrt(2 / 2000)


# ------------------------------------------------------- explicit refits, exact


def test_wild_draws_equal_refits_to_perturbed_outcomes():
    data = table()
    X = np.column_stack([np.ones(60), data["x"], data["z"]])
    fit = ee.estimate(ee.ols("y ~ x + z", data), Bootstrap("wild", draws=5, rng=9))
    residual = data["y"].to_numpy() - X @ fit.theta
    v = draw_matrix(spawned(9, 5), 60, "rademacher")
    refits = [np.linalg.lstsq(X, X @ fit.theta + w * residual)[0] for w in v]
    np.testing.assert_allclose(fit.spread.replicates, refits, rtol=1e-9)


def test_imposed_null_equals_refits_to_restricted_residuals():
    data = table()
    X = np.column_stack([np.ones(60), data["x"], data["z"]])
    y = data["y"].to_numpy()
    rule = Bootstrap("wild-cluster", draws=5, rng=9, labels="g", null={"x": 0.5})
    fit = ee.estimate(ee.ols("y ~ x + z", data), rule)
    short = np.linalg.lstsq(X[:, [0, 2]], y - 0.5 * X[:, 1])[0]
    fitted = X @ np.array([short[0], 0.5, short[1]])
    v = draw_matrix(spawned(9, 5), 12, "rademacher")[:, data["g"]]
    refits = [np.linalg.lstsq(X, fitted + w * (y - fitted))[0] for w in v]
    np.testing.assert_allclose(fit.spread.replicates, refits, rtol=1e-9)
    assert "null imposed: x = 0.5" in fit.rule
    assert own_replicates(fit.spread) is None


def test_pairs_equal_fits_to_the_drawn_rows():
    data = table()
    fit = ee.estimate(
        ee.glm("b ~ x", data, family="binomial"), Bootstrap(draws=6, rng=2)
    )
    for seed, replicate in zip(spawned(2, 6), fit.spread.replicates, strict=True):
        rows = np.random.default_rng(seed).integers(0, 60, 60)
        drawn = ee.glm("b ~ x", data.iloc[rows], family="binomial")
        np.testing.assert_allclose(ee.estimate(drawn).theta, replicate, rtol=1e-6)


@pytest.mark.parametrize("kind", ["pairs", "fractional", "cluster", "block"])
def test_closed_form_of_least_squares_equals_generic_refits(kind):
    data = table()

    def psi(theta, data):
        X = np.column_stack([np.ones(60), data["x"], data["z"]])
        return (np.asarray(data["y"]) - X @ np.asarray(theta))[:, None] * X

    rule = Bootstrap(kind, draws=20, labels="g" if kind == "cluster" else None)
    closed = ee.estimate(ee.ols("y ~ x + z", data), rule)
    generic = ee.estimate(ee.equation(psi, data, [0, 0, 0]), rule)
    np.testing.assert_allclose(
        generic.spread.replicates, closed.spread.replicates, rtol=1e-6, atol=1e-8
    )


def test_replicate_covariance_is_that_of_the_refitted_residuals():
    """For least squares the one-pass formula is exact."""
    data = table()
    X = np.column_stack([np.ones(60), data["x"]])
    theta = np.linalg.lstsq(X, data["y"].to_numpy())[0]
    e = data["y"].to_numpy() - X @ theta
    inverse = np.linalg.inv(X.T @ X)
    phi = (X * e[:, None]) @ inverse
    slopes = np.einsum("pq,nq,nr->npr", inverse, X, X)
    moved, spread = spread_draws(phi, slopes, phi, "mammen", spawned(4, 3))
    for v, move, V in zip(
        draw_matrix(spawned(4, 3), 60, "mammen"), moved, spread, strict=True
    ):
        y = X @ theta + v * e
        again = np.linalg.lstsq(X, y)[0]
        u = (X * (y - X @ again)[:, None]) @ inverse
        np.testing.assert_allclose(move, again - theta, rtol=1e-8, atol=1e-12)
        np.testing.assert_allclose(V, u.T @ u, rtol=1e-8)


def test_frequencies_are_resampled_as_the_units_they_stand_for():
    data = table(20).assign(w=np.arange(20) % 3 + 1)
    long = data.loc[data.index.repeat(data["w"])].reset_index(drop=True)
    counted = ee.estimate(
        ee.ols("y ~ x", data, weights=ee.Frequency("w")), Bootstrap(draws=20)
    )
    written = ee.estimate(ee.ols("y ~ x", long), Bootstrap(draws=20))
    np.testing.assert_allclose(
        counted.spread.replicates, written.spread.replicates, rtol=1e-8
    )


def test_replicates_of_an_ill_conditioned_design_follow_the_change_of_parameters():
    data = table()
    far = data.assign(x=data["x"] + 1e6)
    for kind in ("pairs", "multiplier"):
        rule = Bootstrap(kind, draws=20)
        plain = ee.estimate(ee.ols("y ~ x", data), rule).spread.replicates[:, 1]
        moved = ee.estimate(ee.ols("y ~ x", far), rule).spread.replicates[:, 1]
        np.testing.assert_allclose(moved, plain, rtol=1e-6)


# ------------------------------------------------------------- random weights


@pytest.mark.parametrize("law", LAWS)
def test_multipliers_have_mean_zero_and_variance_one(law):
    v = multiplier_weights(np.random.default_rng(1), 200_000, law)
    assert abs(v.mean()) <= 4 * 200_000**-0.5
    fourth = np.mean(v**4)
    assert abs(np.mean(v**2) - 1) <= 4 * np.sqrt((fourth - 1) / 200_000) + 1e-12


def test_mammen_has_third_moment_one_and_rademacher_none():
    g = (1 + 5**0.5) / 2
    values, shares = np.array([1 - g, g]), np.array([g / 5**0.5, 1 - g / 5**0.5])
    moments = [values**k @ shares for k in (1, 2, 3)]
    np.testing.assert_allclose(moments, [0, 1, 1], atol=1e-12)
    rng = np.random.default_rng(1)
    v = multiplier_weights(rng, 200_000, "mammen")
    np.testing.assert_allclose(np.unique(v), values, rtol=EXACT)
    assert abs((v == values[0]).mean() - shares[0]) <= 4 * 0.5 * 200_000**-0.5
    signs = multiplier_weights(rng, 1000, "rademacher")
    np.testing.assert_allclose(np.unique(signs), [-1, 1])


@pytest.mark.parametrize("kind", ["pairs", "fractional", "moving", "stationary"])
def test_unit_weights_are_nonnegative_with_mean_one(kind):
    for seed in range(20):
        w = unit_weights(np.random.default_rng(seed), 30, kind, 4)
        assert (w >= 0).all()
        np.testing.assert_allclose(w.mean(), 1.0, rtol=EXACT)


def test_blocks_are_runs_of_neighbours():
    counts = block_counts(np.random.default_rng(3), 20, 20)
    assert (counts == 1).all()
    long = stationary_counts(np.random.default_rng(3), 20, 1e12)
    assert (long == 1).all()  # one run that wraps around
    short = np.array(
        [stationary_counts(np.random.default_rng(s), 20, 1.0) for s in range(300)]
    )
    assert abs(short.var() - 0.95) < 0.06  # multinomial: 1 - 1/n


# ------------------------------------------------------------- reproducibility


@pytest.mark.parametrize("kind", ["pairs", "fractional", "cluster", "block"])
def test_replicates_are_the_same_for_any_number_of_workers(kind):
    equation = ee.glm("b ~ x", table(), family="binomial")
    labels = "g" if kind == "cluster" else None
    one = ee.estimate(equation, Bootstrap(kind, draws=24, labels=labels))
    two = ee.estimate(equation, Bootstrap(kind, draws=24, labels=labels, jobs=2))
    assert np.array_equal(one.spread.replicates, two.spread.replicates)
    assert one.rule == two.rule


def test_user_functions_travel_to_workers():
    shift = 0.0
    data = table()

    def psi(theta, data):
        return (np.asarray(data["y"]) - theta[0] - shift)[:, None]

    equation = ee.equation(psi, data, [0.0])
    one = ee.estimate(equation, Bootstrap(draws=10))
    two = ee.estimate(equation, Bootstrap(draws=10, jobs=2))
    assert np.array_equal(one.spread.replicates, two.spread.replicates)


def test_more_draws_keep_the_first_ones_and_batches_do_not_matter(monkeypatch):
    equation = ee.ols("y ~ x", table())
    few = ee.estimate(equation, Bootstrap(draws=10)).spread.replicates
    many = ee.estimate(equation, Bootstrap(draws=25)).spread.replicates
    np.testing.assert_allclose(few, many[:10], rtol=1e-12)
    rule = Bootstrap("multiplier", draws=50)
    whole = ee.estimate(equation, rule).spread.replicates
    monkeypatch.setattr("eestim.covariance._resampling._BATCH_ENTRIES", 500)
    split = ee.estimate(equation, rule).spread.replicates
    np.testing.assert_allclose(split, whole, rtol=1e-13)


def test_the_seed_is_recorded_and_repeats_the_draws():
    equation = ee.ols("y ~ x", table())
    assert "seed 123" in ee.estimate(equation, Bootstrap(draws=5)).rule
    fit = ee.estimate(equation, Bootstrap(draws=5, rng=np.random.default_rng(0)))
    seed = int(fit.rule.split("seed ")[1].split(")")[0])
    again = ee.estimate(equation, Bootstrap(draws=5, rng=seed))
    assert np.array_equal(fit.spread.replicates, again.spread.replicates)
    other = ee.estimate(equation, Bootstrap(draws=5, rng=124))
    assert not np.array_equal(other.spread.replicates, again.spread.replicates)


# --------------------------------------------------------- failures are counted


def rare(n=40, seed=0):
    """A small group of four with both outcomes: it is often lost or separated."""
    rng = np.random.default_rng(seed)
    d = (np.arange(n) < 4) * 1.0
    b = (rng.random(n) < 0.5) * 1.0
    b[:4] = [0, 0, 1, 1]
    return pd.DataFrame({"d": d, "b": b})


def test_failed_refits_are_counted_and_never_returned():
    equation = ee.glm("b ~ d", rare(), family="binomial")
    fit = ee.estimate(equation, Bootstrap(draws=200, rng=5))
    found = fit.findings[0]
    assert found.name == "failed refits"
    assert found.status == "fail"
    kept = len(fit.spread.replicates)
    np.testing.assert_allclose(found.value, (200 - kept) / 200)

    # by counting: a replicate exists if its draw of the group has both outcomes
    def exists(seed):
        w = unit_weights(np.random.default_rng(seed), 40, "pairs")
        return w[0] + w[1] > 0 and w[2] + w[3] > 0

    assert kept == sum(exists(seed) for seed in spawned(5, 200))
    assert np.abs(fit.spread.replicates).max() < 10


def logistic(theta, data):
    design = np.column_stack([np.ones(len(data)), data["d"]])
    mu = 1 / (1 + np.exp(-(design @ np.asarray(theta))))
    return (np.asarray(data["b"]) - mu)[:, None] * design


def logistic_slope(theta, data):
    design = np.column_stack([np.ones(len(data)), data["d"]])
    mu = 1 / (1 + np.exp(-(design @ np.asarray(theta))))
    return -(design.T * (mu * (1 - mu))) @ design / len(design)


@pytest.mark.parametrize("jacobian", [None, logistic_slope])
def test_secant_refits_of_any_psi_equal_the_solver_of_the_model(jacobian):
    """Also which replicates fail: the search hands separated samples to the solver."""
    data, rule = rare(), Bootstrap(draws=60, rng=5)
    model = ee.estimate(ee.glm("b ~ d", data, family="binomial"), rule)
    written = ee.estimate(ee.equation(logistic, data, [0, 0], jacobian=jacobian), rule)
    assert written.findings[0].value == model.findings[0].value > 0
    np.testing.assert_allclose(
        written.spread.replicates, model.spread.replicates, rtol=1e-6, atol=1e-7
    )


def test_fractional_weights_never_lose_the_group():
    equation = ee.glm("b ~ d", rare(), family="binomial")
    fit = ee.estimate(equation, Bootstrap("fractional", draws=200, rng=5))
    assert len(fit.spread.replicates) == 200
    assert not fit.findings


def test_a_lost_level_of_a_linear_model_is_a_failure():
    data = rare().assign(y=np.random.default_rng(1).normal(size=40))
    fit = ee.estimate(ee.ols("y ~ d", data), Bootstrap(draws=200, rng=5))
    weights = [
        unit_weights(np.random.default_rng(s), 40, "pairs") for s in spawned(5, 200)
    ]
    assert len(fit.spread.replicates) == sum(w[:4].sum() > 0 for w in weights) < 200


def test_mostly_failing_refits_are_an_error():
    data = rare()
    data["only"] = (np.arange(40) == 0) * 1.0
    data["second"] = (np.arange(40) == 1) * 1.0
    data["y"] = np.random.default_rng(1).normal(size=40)
    with pytest.raises(InferenceError, match="refits failed"):
        ee.estimate(ee.ols("y ~ only + second", data), Bootstrap(draws=100))


# ------------------------------------------------------- what it says and refuses


def tabulated():
    psi = np.array([[-2.0], [-1.0], [3.0]])
    return ee.equations.Evaluated(("mean",), psi, np.eye(1), np.array([3.0]))


@pytest.mark.parametrize("kind", ["pairs", "fractional", "block"])
def test_an_equation_that_cannot_be_refitted_is_told_of_the_multiplier(kind):
    with pytest.raises(CapabilityError, match='kind="multiplier"'):
        ee.estimate(tabulated(), Bootstrap(kind, draws=5), root=[3.0])
    fit = ee.estimate(tabulated(), Bootstrap("multiplier", draws=4000), root=[3.0])
    assert in_errors(fit.spread.matrix, 14 / 9, 4000) <= 4


def test_a_bootstrap_of_residuals_needs_a_regression():
    with pytest.raises(CapabilityError, match="working"):
        ee.estimate(tabulated(), Bootstrap("residual", draws=5), root=[3.0])
    weighted = ee.ols("y ~ x", table(), weights=ee.Sampling("z"))
    with pytest.raises(InferenceError, match="exchangeable"):
        ee.estimate(weighted, Bootstrap("residual", draws=5))


def test_a_null_is_imposed_on_linear_models_only():
    equation = ee.glm("b ~ x", table(), family="binomial")
    with pytest.raises(CapabilityError, match="linear models"):
        ee.estimate(equation, Bootstrap("wild", null={"x": 0.0}))
    with pytest.raises(DataError, match="'q'"):
        ee.estimate(ee.ols("y ~ x", table()), Bootstrap("wild", null={"q": 0.0}))


def test_many_parameters_and_few_clusters_are_reported():
    rng = np.random.default_rng(1)
    wide = ee.ols(rng.normal(size=40), rng.normal(size=(40, 8)))
    found = ee.estimate(wide, Bootstrap(draws=20)).findings[0]
    assert found.name == "parameters per resampled unit"
    assert "too large" in found.meaning
    for kind in ("residual", "fractional", "multiplier"):
        small = ee.estimate(wide, Bootstrap(kind, draws=20)).findings[0]
        assert "too small" in small.meaning
    data = table().assign(g=lambda d: d["g"] % 5)
    rule = Bootstrap("wild-cluster", labels="g", draws=99)
    names = [one.name for one in ee.estimate(ee.ols("y ~ x", data), rule).findings]
    assert names == [
        "parameters per resampled unit",
        "number of clusters",
        "distinct replicates",
    ]
    webb = Bootstrap("wild-cluster", labels="g", draws=99, weights="webb")
    names = [one.name for one in ee.estimate(ee.ols("y ~ x", data), webb).findings]
    assert "distinct replicates" not in names
    assert not ee.estimate(ee.ols("y ~ x", table()), Bootstrap(draws=9)).findings


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "xy"}, "kind"),
        ({"kind": "cluster"}, "needs `labels`"),
        ({"kind": "pairs", "labels": "g"}, 'use kind "cluster"'),
        ({"kind": "wild", "labels": "g"}, 'use kind "wild-cluster"'),
        ({"weights": "gamma"}, "weights"),
        ({"draws": 1}, "draws"),
        ({"jobs": 0}, "jobs"),
        ({"null": {"x": 0.0}}, "null"),
        ({"length": 3}, "length"),
        ({"rng": -1}, "negative"),
    ],
)
def test_bad_choices_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Bootstrap(**arguments)


def test_bad_types_are_refused():
    with pytest.raises(TypeError, match="rng"):
        Bootstrap(rng="123")
    with pytest.raises(TypeError, match="draws"):
        Bootstrap(draws=10.5)
    with pytest.raises(ValueError, match="between 1 and the 60"):
        ee.estimate(ee.ols("y ~ x", table()), Bootstrap("block", length=61))


def test_clusters_of_summed_rows_must_hold_whole_units():
    data = table()

    def psi(theta, data):
        return (np.asarray(data["y"]) - theta[0])[:, None]

    equation = ee.equation(psi, data, [0.0], units="t")
    coarse = data.assign(c=data["t"] // 2)["c"].to_numpy()
    rule = Bootstrap("wild-cluster", draws=9, labels=coarse)
    fit = ee.estimate(equation, rule)
    assert fit.spread.n_clusters == (10,)
    with pytest.raises(DataError, match="whole units"):
        ee.estimate(equation, Bootstrap("cluster", labels="g", draws=9))


def test_times_move_together_in_blocks():
    """Rows of one time share a weight, in whatever order the rows come."""
    data = table()
    rule = Bootstrap("block", draws=12, labels="t", length=3)
    sorted_fit = ee.estimate(ee.mean("y", data), rule)
    mixed = data.sample(frac=1.0, random_state=1).reset_index(drop=True)
    mixed_fit = ee.estimate(ee.mean("y", mixed), rule)
    np.testing.assert_allclose(
        mixed_fit.spread.replicates, sorted_fit.spread.replicates, rtol=1e-10
    )
    expected = []
    for seed in spawned(123, 12):
        w = block_counts(np.random.default_rng(seed), 20, 3)
        expected.append(np.average(data["y"], weights=w[data["t"]]))
    np.testing.assert_allclose(sorted_fit.spread.replicates[:, 0], expected, rtol=1e-10)


def test_only_bootstraps_lend_their_replicates():
    equation = ee.ols("y ~ x", table())
    boot = ee.estimate(equation, Bootstrap(draws=9)).spread
    assert own_replicates(boot) is boot.replicates
    assert own_replicates(ee.estimate(equation, Jackknife()).spread) is None
    assert own_replicates(ee.estimate(equation).spread) is None


# ---------------------------------------------------------------- array functions


def test_quantiles_are_order_statistics_and_never_extrapolate():
    draws = np.random.default_rng(0).permutation(np.arange(1.0, 40.0))
    assert draw_quantiles(draws, [0.025, 0.975]).tolist() == [1.0, 39.0]
    with pytest.raises(InferenceError, match="at least 39"):
        draw_quantiles(draws[:38], [0.025, 0.975])


def test_wald_statistics_of_a_singular_covariance_are_infinite():
    moved = np.array([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    spread = np.array([np.eye(2), np.ones((2, 2)), np.zeros((2, 2))])
    assert wald_statistics(moved, spread).tolist() == [2.0, np.inf, 0.0]


def test_a_null_is_imposed_in_the_users_parameters_on_an_ill_conditioned_design():
    data = table()
    far = data.assign(x=data["x"] + 1e6)
    rule = Bootstrap("wild", draws=20, null={"x": 0.5})
    plain = ee.estimate(ee.ols("y ~ x", data), rule).spread.replicates[:, 1]
    moved = ee.estimate(ee.ols("y ~ x", far), rule).spread.replicates[:, 1]
    np.testing.assert_allclose(moved, plain, rtol=1e-6)


# ------------------------------------------------- many sets of weights at once


def glm_data(n=60, seed=7):
    rng = np.random.default_rng(seed)
    X = np.column_stack([np.ones(n), rng.normal(size=n)])
    chance = 1 / (1 + np.exp(-(X @ [-0.3, 0.8])))
    counts = rng.poisson(np.exp(X @ [0.7, 0.4])).astype(float)
    return X, (rng.random(n) < chance).astype(float), counts, rng.integers(1, 4, n)


def at_once_cases():
    X, b, counts, w = glm_data()
    e = np.random.default_rng(1).exponential(size=41)
    return {
        "logit": ee.glm(b, X, family="binomial"),
        "probit": ee.glm(b, X, family="binomial", link="probit"),
        "poisson with frequencies": ee.glm(
            counts, X, family="poisson", weights=ee.Frequency(w)
        ),
        "poisson with sampling weights and an offset": ee.glm(
            counts, X, family="poisson", weights=ee.Sampling(w), offset=0.1 * X[:, 1]
        ),
        "median": ee.models.quantile(e),
        "median of ties": ee.models.quantile(np.round(e, 1), tau=0.3),
        "negative constant": ee.models.quantile(e, -2 * np.ones((41, 1)), tau=0.3),
    }


@pytest.mark.parametrize("name", sorted(at_once_cases()))
def test_roots_found_at_once_are_those_of_single_refits(name):
    """The same replicates by the solver, one set of weights at a time."""
    equation = at_once_cases()[name]
    fit = ee.estimate(equation)
    rule = Bootstrap("pairs", draws=40, rng=3)
    weights = [
        np.bincount(
            np.random.default_rng(seed).integers(0, equation.n_units, equation.n_units),
            minlength=equation.n_units,
        ).astype(float)
        for seed in range(40)
    ]
    weights = np.array(weights)
    roots, _ = equation.reweighted_roots(weights, fit.theta, fit.se.to_numpy())
    found = np.isfinite(roots).all(axis=1)
    assert found.mean() > 0.9
    for row, root in zip(weights[found], roots[found], strict=True):
        single = solve(equation.reweighted(row), fit.theta).require_converged()
        np.testing.assert_allclose(root, single.theta, atol=1e-7 * fit.se.max())
    assert len(fit.with_covariance(rule).spread.replicates) == 40


def test_separated_replicates_are_not_roots_found_at_once():
    """Ten units: some replicates are separated, and are counted as failures."""
    X, b, *_ = glm_data(10, seed=0)
    equation = ee.glm(b, X, family="binomial")
    fit = ee.estimate(equation, Bootstrap("pairs", draws=200, rng=1))
    kept = fit.spread.replicates
    finding = next(f for f in fit.findings if f.name == "failed refits")
    assert finding.value == pytest.approx(1 - len(kept) / 200)
    assert finding.value > 0.02
    assert np.abs((kept - fit.theta) / fit.se.to_numpy()).max() < 100
