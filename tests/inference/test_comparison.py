import numpy as np
import pandas as pd
import pytest
from scipy import stats
from tolerances import REFERENCE

import eestim as ee
from eestim.covariance.bootstrap import Bootstrap
from eestim.covariance.clustered import Clustered
from eestim.errors import DataError, InferenceError
from eestim.inference.comparison import compare


def table(n=60, seed=4):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    z = 0.6 * x + rng.exponential(size=n)
    g = np.arange(n) % 12
    eta = 0.2 + 0.7 * x - 0.3 * z
    return pd.DataFrame(
        {
            "x": x,
            "z": z,
            "g": g,
            "y": eta + rng.normal(size=n) * (1 + z) + rng.normal(size=12)[g],
            "y2": eta + rng.normal(size=n),
            "b": (rng.random(n) < 1 / (1 + np.exp(-eta))).astype(float),
        }
    )


def test_two_means_are_the_paired_t_test():
    data = table()
    a, b = (ee.estimate(ee.mean(data[c], names=["mean"])) for c in ("y", "y2"))
    made = compare(a, b, covariance=ee.HC(1))
    theirs = stats.ttest_rel(data["y"], data["y2"])
    row = made.table().loc["mean"]
    np.testing.assert_allclose(row["statistic"], theirs.statistic, rtol=1e-10)
    np.testing.assert_allclose(row["p"], theirs.pvalue, rtol=1e-9)
    low, high = theirs.confidence_interval()
    np.testing.assert_allclose([row["lower"], row["upper"]], [low, high], rtol=1e-9)


def test_nested_regressions_equal_one_stacked_equation():
    data = table()
    short = ee.estimate(ee.ols("y ~ x", data))
    long = ee.estimate(ee.ols("y ~ x + z", data))

    def both(theta, data):
        one = np.ones(len(data))
        X = np.column_stack([one, data["x"]])
        Z = np.column_stack([one, data["x"], data["z"]])
        y, t = np.asarray(data["y"]), np.asarray(theta)
        return np.column_stack(
            [X * (y - X @ t[:2])[:, None], Z * (y - Z @ t[2:])[:, None]]
        )

    stacked = ee.estimate(ee.equation(both, data, np.zeros(5)))
    made = compare(short, long)
    R = np.array([[1.0, 0, -1, 0, 0], [0, 1, 0, -1, 0]])
    np.testing.assert_allclose(
        made.spread.matrix, R @ stacked.spread.matrix @ R.T, rtol=1e-6
    )
    np.testing.assert_allclose(made.theta, R @ stacked.theta, rtol=1e-6)
    assert made.names == ("Intercept", "x")
    # the negative control: variances added in quadrature
    apart = (short.se["x"] ** 2 + long.se["x"] ** 2) ** 0.5
    assert made.se["x"] < 0.8 * apart
    found = made.findings[1]
    assert found.name == "pairing of x"
    assert found.value > 0.5


def test_a_functional_of_different_models_is_compared():
    data = table()
    logit = ee.estimate(ee.glm("b ~ x", data, family="binomial"))
    linear = ee.estimate(ee.ols("b ~ x", data))

    def slope(theta):
        eta = theta["Intercept"] + theta["x"] * data["x"]
        p = 1 / (1 + np.exp(-eta))
        return theta["x"] * np.mean(p * (1 - p))

    made = compare(logit, linear, (slope, lambda t: t["x"]), names=["slope"])
    a, b = logit.functional(slope), linear.functional(lambda t: t["x"])
    np.testing.assert_allclose(made.theta, a.theta - b.theta, rtol=1e-9)
    gap = a.influence().to_numpy() - b.influence().to_numpy()
    np.testing.assert_allclose(made.se, np.sqrt((gap**2).sum()) / 60, rtol=REFERENCE)
    assert made.names == ("slope",)


def test_comparison_is_antisymmetric():
    data = table()
    a, b = ee.estimate(ee.ols("y ~ x", data)), ee.estimate(ee.ols("y2 ~ x", data))
    one, two = compare(a, b), compare(b, a)
    np.testing.assert_allclose(one.theta, -two.theta)
    np.testing.assert_allclose(one.spread.matrix, two.spread.matrix)


def test_clustered_fits_ask_for_the_clusters_and_use_them():
    data = table()
    a = ee.estimate(ee.ols("y ~ x", data), Clustered("g"))
    b = ee.estimate(ee.ols("y2 ~ x", data))
    with pytest.raises(InferenceError, match="Pass `covariance=`"):
        compare(a, b)
    made = compare(a, b, covariance=Clustered("g"))
    gap = (a.influence() - b.influence()).groupby(data["g"]).sum().to_numpy() / 60
    np.testing.assert_allclose(made.spread.matrix, gap.T @ gap, rtol=1e-9)
    assert made.spread.n_clusters == (12,)


def test_summed_rows_keep_their_clusters():
    data = table().assign(u=np.repeat(np.arange(30), 2), c=np.repeat(np.arange(10), 6))

    def psi(column):
        return lambda theta, d: (np.asarray(d[column]) - theta[0])[:, None]

    a, b = (
        ee.estimate(ee.equation(psi(c), data, [0.0], names=["mean"], units="u"))
        for c in ("y", "y2")
    )
    made = compare(a, b, covariance=Clustered("c"))
    gap = (data["y"] - data["y2"]).groupby(data["c"]).sum().to_numpy() - 6 * made.theta
    np.testing.assert_allclose(made.se**2, (gap**2).sum() / 60**2, rtol=1e-7)
    with pytest.raises(DataError, match="whole units"):
        compare(a, b, covariance=Clustered("g"))


def test_rules_that_need_psi_alone_apply():
    data = table()
    a, b = ee.estimate(ee.ols("y ~ x", data)), ee.estimate(ee.ols("y2 ~ x", data))
    rule = Bootstrap("multiplier", draws=4000, weights="normal")
    drawn = compare(a, b, covariance=rule).spread.matrix
    plain = compare(a, b).spread.matrix
    assert np.abs(np.diag(drawn) / np.diag(plain) - 1).max() < 4 * np.sqrt(2 / 4000)
    with pytest.raises(ee.errors.CapabilityError, match="HC"):
        compare(a, b, covariance=ee.HC(3))


def test_different_units_are_refused():
    data = table()
    fit = ee.estimate(ee.ols("y ~ x", data))
    with pytest.raises(DataError, match="60 and 50 units"):
        compare(fit, ee.estimate(ee.ols("y ~ x", data.iloc[:50])))
    with pytest.raises(DataError, match="different units: unit 0"):
        compare(fit, ee.estimate(ee.ols("y ~ x", data.iloc[::-1])))
    holes = data.copy()
    holes.loc[3, "x"] = np.nan
    other = data.copy()
    other.loc[7, "x"] = np.nan
    one = ee.estimate(ee.ols("y ~ x", holes, na="drop"))
    two = ee.estimate(ee.ols("y ~ x", other, na="drop"))
    with pytest.raises(DataError, match="unit 3 is 4 in one and 3 in the other"):
        compare(one, two)
    with pytest.raises(DataError, match="59 and 60"):
        compare(one, fit)


def test_what_is_not_shared_is_refused():
    data = table()
    a, b = ee.estimate(ee.ols("y ~ x", data)), ee.estimate(ee.ols("y ~ z - 1", data))
    with pytest.raises(DataError, match="share no parameter"):
        compare(a, b)
    with pytest.raises(DataError, match="do not both have"):
        compare(a, a, parameters=["z"])
    with pytest.raises(InferenceError, match="same influences"):
        compare(a, a)
    with pytest.raises(ValueError, match="not both"):
        compare(a, b, lambda t: t[0], parameters=["x"])
    with pytest.raises(ValueError, match="`names`"):
        compare(a, a, names=["d"])


def test_a_comparison_is_an_estimate(tmp_path):
    data = table()
    a, b = ee.estimate(ee.ols("y ~ x", data)), ee.estimate(ee.ols("y2 ~ x", data))
    made = compare(a, b)
    assert "paired difference" in str(made)
    doubled = made.functional(lambda t: 2 * t["x"])
    np.testing.assert_allclose(doubled.se.iloc[0], 2 * made.se["x"], rtol=1e-6)
    again = ee.load(made.save(tmp_path / "fit.npz"))
    np.testing.assert_array_equal(again.spread.matrix, made.spread.matrix)
