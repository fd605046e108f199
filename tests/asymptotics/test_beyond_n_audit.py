"""Roots, risks and debiased fits beyond n: bad input never gives a finite number."""

import numpy as np
import pytest

from eestim.asymptotics import (
    GradientDescent,
    GradientFlow,
    MinimumNorm,
    Ridge,
    debiased_ridge,
    df_adjusted_sandwich,
    df_debiased,
    filter_weights,
    optimal_ridge_penalty,
    ridge_risk,
    ridgeless_risk,
    spectral_root,
)
from eestim.errors import DataError, IdentificationError, InterpolationError

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((20, 30)), RNG.standard_normal(20)
NARROW = X[:, :4]


@pytest.mark.parametrize(
    ("rule", "error", "message"),
    [
        (Ridge(np.inf), ValueError, "`penalty` is inf"),
        (Ridge(np.nan), ValueError, "`penalty` is nan"),
        (Ridge(0.0), ValueError, "`penalty` is 0"),
        (MinimumNorm(np.nan), ValueError, "`rcond` is nan"),
        (MinimumNorm(1.0), ValueError, "`rcond` is 1"),
        (MinimumNorm(-1e-9), ValueError, "`rcond` is -1e-09"),
        (GradientFlow(np.inf), ValueError, "`time` is inf"),
        (GradientFlow(-1.0), ValueError, "`time` is -1"),
        (GradientDescent(0.001, 2.5), ValueError, "an integer"),
        (GradientDescent(np.nan, 2), ValueError, "`step` is nan"),
        (GradientDescent(10.0, 2), ValueError, "diverges"),
        ("ridge", TypeError, "`rule` is 'ridge'"),
    ],
)
def test_rules_that_pick_no_root_are_refused(rule, error, message):
    with pytest.raises(error, match=message):
        spectral_root(X, Y, rule)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((X * np.nan, Y, Ridge(0.1)), DataError, "`X`"),
        ((X, Y * np.inf, Ridge(0.1)), DataError, "`y`"),
        ((X, Y, Ridge(0.1), np.full(30, np.nan)), DataError, "`start`"),
        ((X, Y[:3], Ridge(0.1)), ValueError, "do not fit"),
        ((X[:0], Y[:0], Ridge(0.1)), ValueError, "do not fit"),
    ],
)
def test_arrays_without_a_root_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        spectral_root(*arguments)
    with pytest.raises(ValueError, match="`n_units`"):
        filter_weights(Ridge(0.1), [-1.0], 5)
    with pytest.raises(DataError, match="`singular_values`"):
        filter_weights(Ridge(0.1), [np.nan], 5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
@pytest.mark.parametrize("place", range(3))
def test_risks_refuse_what_is_no_number(bad, place):
    given = [2.0, 5.0, 1.0]
    given[place] = bad
    for call in (
        lambda: ridgeless_risk(*given),
        lambda: ridge_risk(*given, 0.2),
        lambda: optimal_ridge_penalty(*given),
    ):
        with pytest.raises(ValueError, match="all finite"):
            call()
    with pytest.raises(ValueError, match="`penalty`"):
        ridge_risk(2.0, 5.0, 1.0, bad)


def test_a_debiased_estimate_is_its_formula_by_dense_algebra():
    """Ridge in parameter space, a full covariance: the two lines of the paper."""
    L = np.eye(30) + 0.2 * np.tri(30, k=-1)
    sigma, n, penalty = L @ L.T, 20, 0.3
    design = X @ L.T - (X @ L.T).mean(axis=0)
    inner = np.linalg.inv(design.T @ design + n * penalty * np.eye(30))
    beta = inner @ design.T @ Y
    df, e = np.trace(design @ inner @ design.T), Y - design @ beta
    found = debiased_ridge(design, Y, penalty, sigma)
    inverse = np.linalg.inv(sigma)
    np.testing.assert_allclose(
        found.estimate, beta + inverse @ design.T @ e / (n - df), rtol=1e-8
    )
    se = np.sqrt(np.diag(inverse)) * np.linalg.norm(e) / (n - df)
    np.testing.assert_allclose(found.se, se, rtol=1e-9)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"coefficients": np.full(4, np.nan)}, DataError, "`coefficients`"),
        ({"residual": np.full(20, np.nan)}, DataError, "`residual`"),
        ({"residual": np.zeros(20)}, InterpolationError, "vanishes"),
        ({"df": np.nan}, InterpolationError, "`df` is nan"),
        ({"df": 19.0}, InterpolationError, "`df` is 19"),
        ({"df": -1.0}, InterpolationError, "`df` is -1"),
        ({"covariance": np.tri(4)}, ValueError, "not symmetric"),
        ({"covariance": np.ones((4, 4))}, IdentificationError, "positive definite"),
        ({"covariance": -np.eye(4)}, IdentificationError, "positive definite"),
        ({"covariance": np.eye(3)}, ValueError, "has shape"),
        (
            {"X": np.c_[NARROW[:, :3], np.ones(20) * 9]},
            ValueError,
            "column 3 has a mean",
        ),
    ],
)
def test_what_cannot_be_debiased_is_named(change, error, message):
    given = {
        "X": NARROW,
        "residual": Y,
        "coefficients": np.ones(4),
        "df": 2.0,
        "covariance": np.eye(4),
    }
    with pytest.raises(error, match=message):
        df_debiased(**(given | change))


@pytest.mark.parametrize(
    ("precision", "error"),
    [
        (np.ones(1), ValueError),
        (np.ones(3), ValueError),
        (np.zeros(4), ValueError),
        (np.array([1.0, 1, 1, -1]), ValueError),
        (np.array([1.0, 1, 1, np.nan]), DataError),
    ],
)
def test_precisions_that_are_none_are_refused(precision, error):
    known = df_adjusted_sandwich(NARROW, Y, np.ones(20), precision_diagonal=np.ones(4))
    np.testing.assert_allclose(known, np.linalg.norm(Y) / 16, rtol=1e-12)
    with pytest.raises(error, match="`precision_diagonal`"):
        df_adjusted_sandwich(NARROW, Y, np.ones(20), precision_diagonal=precision)
