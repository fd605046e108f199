import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import EXACT

from eestim._linalg import equilibrated_factor, equilibrating_scales, symmetric_power
from eestim.covariance import sandwich
from eestim.errors import IdentificationError


@given(st.integers(0, 10_000), st.integers(1, 6))
@settings(deadline=None, max_examples=60)
def test_solve_does_not_depend_on_units_of_measure(seed, p):
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(p, p)) + 3 * np.eye(p)
    rows, columns = 10.0 ** rng.integers(-12, 12, p), 10.0 ** rng.integers(-12, 12, p)
    b = rng.normal(size=p)
    plain = np.linalg.solve(A, b)
    scaled = equilibrated_factor(A * rows[:, None] * columns).solve(rows * b) * columns
    np.testing.assert_allclose(scaled, plain, rtol=1e-9)
    transposed = equilibrated_factor(A * rows[:, None] * columns)
    back = transposed.solve_transpose(columns * b) * rows
    np.testing.assert_allclose(back, np.linalg.solve(A.T, b), rtol=1e-9)


def test_equilibrated_rows_and_columns_have_size_near_one(rng):
    A = rng.normal(size=(5, 5)) * 10.0 ** rng.integers(-9, 9, (5, 1))
    rows, columns = equilibrating_scales(A)
    size = np.abs(A * rows[:, None] * columns)
    assert size.max(axis=0).min() > 0.25 and size.max(axis=0).max() < 4
    assert (np.log2(rows) == np.rint(np.log2(rows))).all()


@pytest.mark.parametrize("scale", [1.0, 1e-9, 1e9])
def test_rank_of_a_singular_matrix_at_any_scale(rng, scale):
    B = rng.normal(size=(4, 3))
    A = (B @ B.T) * np.outer([1, scale, 1, 1], [1, scale, 1, 1])
    factor = equilibrated_factor(A)
    assert factor.rank == 3
    with pytest.raises(IdentificationError, match=r"rank 3, but there are 4"):
        factor.require_full_rank()


def test_null_direction_names_the_parameters(rng):
    X = rng.normal(size=(30, 3))
    X = np.column_stack([X, X[:, 0] - 2 * X[:, 1]])
    factor = equilibrated_factor(X.T @ X / 30)
    names = ["a", "b", "c", "d"]
    assert factor.null_names(names) == ["a", "b", "d"]
    vector = factor.null_vector()
    assert np.max(np.abs(X @ vector)) < 1e-12 * np.abs(X).max()


def test_sandwich_for_an_asymmetric_sensitivity_against_inverse(rng):
    A = rng.normal(size=(3, 3)) + np.diag([3.0, 2.0, 4.0])
    M = np.cov(rng.normal(size=(3, 50)))
    inverse = np.linalg.inv(A)
    expected = inverse @ M @ inverse.T / 7
    np.testing.assert_allclose(sandwich(A, M, 7), expected, rtol=1e3 * EXACT)
    wrong = inverse @ M @ inverse / 7  # the formula for a symmetric A
    assert np.max(np.abs(wrong - expected)) > 0.01 * np.max(np.abs(expected))


def test_infinite_sensitivity_is_refused():
    with pytest.raises(IdentificationError, match="not finite"):
        equilibrated_factor(np.array([[np.nan]]))


def test_symmetric_power_against_eigenvalues(rng):
    B = rng.normal(size=(5, 2))
    S = B @ B.T
    half, rank = symmetric_power(S, -0.5)
    assert rank == 2
    np.testing.assert_allclose(half @ S @ half, half @ half @ S, atol=1e-10)
    np.testing.assert_allclose(S @ half @ half @ S, S, rtol=1e-9, atol=1e-12)
