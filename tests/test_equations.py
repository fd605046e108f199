import numpy as np
import pandas as pd
import pytest
from cases import logistic, logistic_jacobian, table
from tolerances import EXACT, REFERENCE

import eestim as ee
from eestim.errors import DataError


def residual(theta, data):
    return (np.asarray(data["y"]) - theta[0])[:, None]


@pytest.fixture(scope="module")
def data():
    return table(100, seed=31)


def test_named_blocks_have_names_and_shapes(data):
    def psi(theta, d):
        assert theta["beta"].shape == (2,)
        assert isinstance(theta["mu"], float)
        X = np.column_stack([np.ones(len(d)), d["x"]])
        e = np.asarray(d["y"]) - X @ theta["beta"]
        return np.column_stack([X * e[:, None], np.asarray(d["z"]) - theta["mu"]])

    start = {"beta": [0, 0], "mu": 0}
    assert ee.equation(psi, data, start).names == ("beta[0]", "beta[1]", "mu")
    named = ee.equation(psi, data, start, names={"beta": ["one", "x"]})
    assert named.names == ("beta[one]", "beta[x]", "mu")
    fit, oracle = ee.estimate(named), ee.estimate(ee.ols("y ~ x", data))
    np.testing.assert_allclose(fit.theta[:2], oracle.theta, rtol=REFERENCE)
    np.testing.assert_allclose(
        fit.spread.matrix[:2, :2], oracle.spread.matrix, rtol=REFERENCE
    )


def test_units_sum_psi_and_equal_cr0(data):
    by_units = ee.estimate(ee.equation(logistic, data, [0, 0], units="g"))
    by_rule = ee.estimate(
        ee.equation(logistic, data, [0, 0]), ee.Clustered("g", kind="CR0")
    )
    assert by_units.n_units == data["g"].nunique()
    np.testing.assert_allclose(
        by_units.spread.matrix, by_rule.spread.matrix, rtol=REFERENCE
    )


def test_frequencies_equal_the_rows_written_out(data):
    long = data.loc[data.index.repeat(data["w"])].reset_index(drop=True)
    one = ee.estimate(ee.equation(logistic, data, [0, 0], weights=ee.Frequency("w")))
    two = ee.estimate(ee.equation(logistic, long, [0, 0]))
    assert one.n_units == two.n_units
    np.testing.assert_allclose(one.spread.matrix, two.spread.matrix, rtol=REFERENCE)


def test_frequencies_within_units_equal_the_rows_written_out(data):
    counts, units = np.resize([1, 0, 1], len(data)), np.arange(len(data)) // 3
    long = data.loc[data.index.repeat(counts)].reset_index(drop=True)
    one = ee.equation(logistic, data, [0, 0], units=units, weights=ee.Frequency(counts))
    two = ee.equation(logistic, long, [0, 0], units=units.repeat(counts))
    theta = np.array([0.2, -0.4])
    weights = np.random.default_rng(5).uniform(size=one.n_units)
    assert one.n_units == two.n_units
    np.testing.assert_allclose(one.psi(theta), two.psi(theta), atol=EXACT)
    np.testing.assert_allclose(
        one.reweighted(weights).psi(theta),
        two.reweighted(weights).psi(theta),
        atol=EXACT,
    )


def test_units_that_frequencies_leave_without_a_row_are_refused(data):
    counts, units = np.ones(len(data)), np.arange(len(data)) // 3
    counts[3:6] = 0
    with pytest.raises(DataError, match=r"1 unit.* rows? 3"):
        ee.equation(logistic, data, [0, 0], units=units, weights=ee.Frequency(counts))
    counts[4] = 1
    ee.equation(logistic, data, [0, 0], units=units, weights=ee.Frequency(counts))


def test_a_right_jacobian_gives_the_same_estimate(data):
    one = ee.estimate(ee.equation(logistic, data, [0, 0], jacobian=logistic_jacobian))
    two = ee.estimate(ee.equation(logistic, data, [0, 0]))
    np.testing.assert_allclose(one.theta, two.theta, rtol=REFERENCE)
    np.testing.assert_allclose(one.spread.matrix, two.spread.matrix, rtol=REFERENCE)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda t, d: -logistic_jacobian(t, d), "opposite sign"),
        (lambda t, d: 100 * logistic_jacobian(t, d), "mean over rows"),
        (lambda t, d: logistic_jacobian(t, d) * [[1, 1.01], [1.01, 1]], "disagrees"),
        (lambda t, d: logistic_jacobian(t, d)[0], "shape|dimension"),
    ],
)
def test_a_wrong_jacobian_is_caught(data, wrong, message):
    with pytest.raises(DataError, match=message):
        ee.equation(logistic, data, [0, 0], jacobian=wrong)


@pytest.mark.parametrize(
    ("psi", "message"),
    [
        (lambda t, d: np.asarray(d["y"]) - t[0], r"values\[:, None\]"),
        (lambda t, d: (np.asarray(d["y"]) - t[0])[None, :], "transpose"),
        (lambda t, d: np.float64(3.0), "shape"),
        (lambda t, d: residual(t, d) * 1j, "complex"),
        (lambda t, d: residual(t, d) / (np.asarray(d.index) != 4)[:, None], "row 4"),
        (lambda t, d: np.array([["a"]] * len(d)), "numeric"),
        (lambda t, d: np.empty((len(d), 0)), "0 columns for 1"),
    ],
)
def test_a_psi_of_the_wrong_form_is_refused(data, psi, message):
    with pytest.raises(DataError, match=message):
        ee.equation(psi, data, [0.0])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"y": [1.0, np.nan, 2.0]}, "missing values in row 1"),
        ({"y": [1.0, 2.0, -np.inf]}, "infinite values in row 2"),
        ({"y": [1.0, 2.0], "x": [1.0]}, "different length"),
        ({"y": []}, "no rows"),
        (pd.DataFrame({"y": [1.0, None], "g": ["a", "b"]}), "missing"),
        (pd.DataFrame({"y": [1.0, 2.0], "g": ["a", None]}), "missing"),
    ],
)
def test_data_that_cannot_be_used(bad, message):
    with pytest.raises(DataError, match=message):
        ee.equation(residual, bad, [0.0])


def test_bad_starts_names_and_units(data):
    with pytest.raises(DataError, match="not numeric"):
        ee.equation(residual, data, ["a"])
    with pytest.raises(DataError, match="2 entries"):
        ee.equation(residual, data, [0.0], names=["a", "b"])
    with pytest.raises(DataError, match="no column 'firm'"):
        ee.equation(residual, data, [0.0], units="firm")
    labels = data["g"].astype(float).mask(data.index == 0)
    with pytest.raises(DataError, match="missing labels in row 0"):
        ee.equation(residual, data, [0.0], units=labels)
    with pytest.raises(TypeError, match="mapping of arrays"):
        ee.equation(residual, np.ones(4), [0.0])
    with pytest.raises(KeyError, match="no block 'beta'"):
        ee.equation(lambda t, d: residual([t["beta"]], d), data, {"mu": 0.0})


def test_reweighting_equals_replication(data):
    equation = ee.equation(logistic, data, [0, 0])
    counts = np.arange(len(data)) % 3
    one = ee.estimate(equation.reweighted(counts.astype(float)))
    long = data.loc[data.index.repeat(counts)].reset_index(drop=True)
    two = ee.estimate(ee.equation(logistic, long, [0, 0]))
    np.testing.assert_allclose(one.theta, two.theta, rtol=REFERENCE)
