import numpy as np
import pandas as pd
import pytest

import eestim as ee
from eestim.covariance._resampling import draw_matrix, spawned
from eestim.covariance.bootstrap import Bootstrap
from eestim.covariance.clustered import Clustered
from eestim.errors import (
    CapabilityError,
    DataError,
    IdentificationError,
    InferenceError,
)
from eestim.inference.bootstrap_tests import bootstrap_p_value, bootstrap_test


def table(n=60, groups=10, seed=4):
    rng = np.random.default_rng(seed)
    g = np.arange(n) % groups
    x = rng.normal(size=n) + rng.normal(size=groups)[g]
    z = rng.exponential(size=n)
    return pd.DataFrame(
        {
            "x": x,
            "z": z,
            "g": g,
            "y": 0.3 * x + rng.normal(size=n) * (1 + z) + rng.normal(size=groups)[g],
            "b": (rng.random(n) < 0.5) * 1.0,
        }
    )


def cluster_t(X, y, g, contrast, value):
    """The t statistic with CR0, by textbook matrices."""
    inverse = np.linalg.inv(X.T @ X)
    beta = inverse @ X.T @ y
    e = y - X @ beta
    sums = np.array([X[g == k].T @ e[g == k] for k in np.unique(g)])
    V = inverse @ (sums.T @ sums) @ inverse
    return (contrast @ beta - value) / np.sqrt(contrast @ V @ contrast)


def test_wild_cluster_t_with_the_null_imposed_equals_explicit_refits():
    data = table()
    X = np.column_stack([np.ones(60), data["x"], data["z"]])
    y, g = data["y"].to_numpy(), data["g"].to_numpy()
    contrast = np.array([0.0, 1.0, 0.0])
    short = np.linalg.lstsq(X[:, [0, 2]], y - 0.4 * X[:, 1])[0]
    fitted = X @ np.array([short[0], 0.4, short[1]])
    v = draw_matrix(spawned(11, 49), 10, "rademacher")[:, g]
    t = [cluster_t(X, fitted + w * (y - fitted), g, contrast, 0.4) for w in v]
    observed = cluster_t(X, y, g, contrast, 0.4)

    fit = ee.estimate(ee.ols("y ~ x + z", data), Clustered("g"))
    by = Bootstrap("wild-cluster", draws=49, rng=11, labels="g")
    made = bootstrap_test(fit, [contrast], [0.4], by=by)
    assert made.is_null_imposed
    np.testing.assert_allclose(made.statistic, observed**2, rtol=1e-9)
    np.testing.assert_allclose(made.replicates, np.square(t), rtol=1e-7)
    assert made.p == (1 + (np.abs(t) >= abs(observed)).sum()) / 50


def test_draws_around_the_estimate_equal_explicit_refits():
    data = table()
    X = np.column_stack([np.ones(60), data["x"]])
    y, g = data["y"].to_numpy(), data["g"].to_numpy()
    contrast = np.array([0.0, 1.0])
    beta = np.linalg.lstsq(X, y)[0]
    v = draw_matrix(spawned(11, 19), 10, "webb")[:, g]
    t = [cluster_t(X, X @ beta + w * (y - X @ beta), g, contrast, beta[1]) for w in v]
    fit = ee.estimate(ee.ols("y ~ x", data))
    by = Bootstrap("wild-cluster", draws=19, rng=11, labels="g", weights="webb")
    made = bootstrap_test(fit, ["x"], by=by, impose_null=False)
    np.testing.assert_allclose(made.replicates, np.square(t), rtol=1e-7)
    assert not made.is_null_imposed


def test_all_patterns_of_few_clusters_give_the_enumerated_p_value():
    """With 2^G patterns the observed one comes back, as a tie and not as larger."""
    data = table(groups=4)
    fit = ee.estimate(ee.ols("y ~ x", data))
    by = Bootstrap("wild-cluster", draws=199, labels="g")
    made = bootstrap_test(fit, ["x"], by=by)
    distinct = np.unique(np.round(made.replicates / made.statistic, 8))
    assert len(distinct) <= 2**3
    assert 1.0 in distinct


def test_joint_hypotheses_do_not_depend_on_how_they_are_written():
    fit = ee.estimate(ee.ols("y ~ x + z", table()))
    by = Bootstrap("wild", draws=99)
    plain = bootstrap_test(fit, ["x", "z"], by=by)
    mixed = bootstrap_test(fit, [[0, 2.0, 1.0], [0, 1e6, -1e6]], by=by)
    np.testing.assert_allclose(mixed.replicates, plain.replicates, rtol=1e-7)
    assert plain.dof == 2
    assert mixed.p == plain.p


def test_one_restriction_is_the_square_of_t_for_pairs_too():
    fit = ee.estimate(ee.glm("b ~ x", table(), family="binomial"))
    made = bootstrap_test(fit, ["x"], by=Bootstrap(draws=49))
    np.testing.assert_allclose(
        made.statistic, (fit.params["x"] / fit.se["x"]) ** 2, rtol=1e-9
    )
    assert 0.02 <= made.p <= 1.0
    assert not made.is_null_imposed
    assert "pairs bootstrap" in str(made)


def test_a_true_hypothesis_has_uniform_p_values_and_a_false_one_small_ones():
    """Monte Carlo: 10% tests of a true null within 4 standard errors."""
    rng = np.random.default_rng(5)
    true, false = [], []
    for k in range(150):
        x = rng.exponential(size=25)
        y = x + rng.normal(size=25) * x
        fit = ee.estimate(ee.ols(y, np.column_stack([np.ones(25), x])))
        by = Bootstrap("wild", draws=99, rng=k)
        true.append(bootstrap_test(fit, [[0, 1.0]], [1.0], by=by).p)
        false.append(bootstrap_test(fit, [[0, 1.0]], [4.0], by=by).p)
    assert abs(np.mean(np.array(true) <= 0.1) - 0.1) <= 4 * np.sqrt(0.09 / 150)
    assert np.mean(np.array(false) <= 0.1) > 0.6


def test_failed_refits_count_as_larger():
    assert bootstrap_p_value(2.0, np.array([1.0, 1.5]), failed=2) == 3 / 5
    assert bootstrap_p_value(2.0, np.array([2.0 * (1 - 1e-14), 1.0])) == 2 / 3
    assert bootstrap_p_value(2.0, np.array([1.99, 1.0])) == 1 / 3


def test_what_is_refused():
    data = table()
    fit = ee.estimate(ee.ols("y ~ x + z", data))
    clustered = fit.with_covariance(Clustered("g"))
    with pytest.raises(InferenceError, match="allows for dependence"):
        bootstrap_test(clustered, ["x"])
    with pytest.raises(IdentificationError, match="not independent"):
        bootstrap_test(fit, [[0, 1, 0], [0, 2, 0]])
    with pytest.raises(DataError, match="2 restrictions"):
        bootstrap_test(fit, ["x", "z"], [0.0])
    logit = ee.estimate(ee.glm("b ~ x", data, family="binomial"))
    with pytest.raises(CapabilityError, match="linear model"):
        bootstrap_test(logit, ["x"], impose_null=True)
    few = table(groups=2)
    by = Bootstrap("wild-cluster", labels="g", draws=19)
    with pytest.raises(InferenceError, match="lost rank"):
        bootstrap_test(
            ee.estimate(ee.ols("y ~ x + z", few)), ["x", "z", "Intercept"], by=by
        )
