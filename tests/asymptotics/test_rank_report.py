"""Rank decisions: free of units, honest about gaps."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import EXACT, REFERENCE

import eestim as ee
from eestim.asymptotics import (
    estimability,
    estimable,
    rank_report,
    scaled_svd,
    term_sizes,
)
from eestim.errors import DataError, IdentificationError


def deficient(seed: int, p: int, rank: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((p, rank)) @ rng.standard_normal((rank, p))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    p=st.integers(2, 7),
    rank=st.integers(1, 7),
    powers=st.lists(st.integers(-6, 6), min_size=14, max_size=14),
)
def test_rank_and_values_do_not_depend_on_units_by_rescaling(seed, p, rank, powers):
    A = deficient(seed, p, min(rank, p))
    rows, columns = 10.0 ** np.array(powers[:p]), 10.0 ** np.array(powers[7 : 7 + p])
    plain, scaled = rank_report(A), rank_report(rows[:, None] * A * columns)
    assert plain.rank == scaled.rank == min(rank, p)
    np.testing.assert_allclose(
        scaled.singular_values[: plain.rank],
        plain.singular_values[: plain.rank],
        rtol=1e-6,
    )


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    shape=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    density=st.floats(0.1, 0.9),
)
def test_rank_of_sparse_integer_matrices_is_exact(seed, shape, density):
    """Patterns of zeros that force a singular matrix do not mislead the scaling."""
    rng = np.random.default_rng(seed)
    A = rng.integers(-2, 3, shape) * (rng.random(shape) < density)
    scaled = A * 10.0 ** rng.integers(-6, 7, shape[0])[:, None]
    scaled = scaled * 10.0 ** rng.integers(-6, 7, shape[1])
    expected = np.linalg.matrix_rank(A)
    assert rank_report(A).rank == rank_report(scaled).rank == expected


def test_structurally_singular_pattern_is_scaled_without_overflow():
    A = np.array([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0], [2.0, 0.0, 0.0]])
    report = rank_report(A)
    assert (report.rank, report.status) == (2, "rank_deficient")
    assert report.decomposition.columns.max() < 1e4


def test_balanced_rows_and_columns_have_one_norm_by_closed_form(rng):
    A = 10.0 ** rng.integers(-5, 6, (6, 6)) * rng.standard_normal((6, 6))
    svd = scaled_svd(A)
    balanced = svd.rows[:, None] * A * svd.columns
    norms = np.linalg.norm(balanced, axis=0)
    np.testing.assert_allclose(norms, norms[0], rtol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(balanced, axis=1), norms[0], rtol=1e-4)
    rebuilt = (svd.left[:, :6] * svd.values) @ svd.right[:, :6].T
    np.testing.assert_allclose(rebuilt, balanced, rtol=0, atol=EXACT)


def test_null_spaces_are_annihilated_and_orthonormal(rng):
    A = deficient(3, 6, 4) * 10.0 ** rng.integers(-4, 5, 6)
    report = rank_report(A)
    for basis, product in (
        (report.null_space, A @ report.null_space),
        (report.left_null_space, A.T @ report.left_null_space),
    ):
        assert basis.shape == (6, 2)
        np.testing.assert_allclose(basis.T @ basis, np.eye(2), rtol=0, atol=EXACT)
        assert np.abs(product).max() < 1e-12 * np.abs(A).max()


def test_raw_singular_values_are_those_of_numpy(rng):
    A = rng.standard_normal((4, 3)) * np.array([1e5, 1.0, 1e-5])
    np.testing.assert_allclose(
        rank_report(A).raw_singular_values,
        np.linalg.svd(A, compute_uv=False),
        rtol=EXACT,
    )


@pytest.mark.parametrize(
    ("smallest", "status", "candidates"),
    [
        (1e-2, "full_rank", (3,)),
        (1e-14, "ambiguous_rank", (2, 3)),
        (0.0, "rank_deficient", (2,)),
    ],
)
def test_status_follows_the_gap_by_construction(smallest, status, candidates):
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0]
    A = rotation @ np.diag([1.0, 0.5, smallest]) @ rotation.T
    report = rank_report(A)
    assert report.status == status
    assert tuple(cut.rank for cut in report.cuts) == candidates
    assert report.is_ambiguous == (len(candidates) > 1)
    assert ("candidate rank" in str(report)) == report.is_ambiguous


def test_numerical_derivative_error_lowers_the_rank_by_construction():
    noise = 1e-9 * np.random.default_rng(1).standard_normal((3, 3))
    A = deficient(5, 3, 2) + noise
    assert rank_report(A).rank == 3
    report = rank_report(A, derivative_error=1e-8)
    assert report.rank == 2
    assert report.tolerance == pytest.approx(1e-7)


def test_float32_matrices_use_their_own_rounding():
    A = deficient(7, 5, 3)
    assert rank_report(A.astype(np.float32)).rank == 3
    assert rank_report(A.astype(np.float32).astype(float)).rank == 5  # rounding is rank


def test_forced_rank_and_zero_matrix():
    assert rank_report(np.diag([1.0, 1e-3]), rank=1).rank == 1
    zero = rank_report(np.zeros((2, 3)))
    assert (zero.rank, zero.null_space.shape, zero.status) == (
        0,
        (3, 3),
        "rank_deficient",
    )


def test_range_violation_matches_the_projection_formula():
    A, M = np.diag([1.0, 0.0]), np.array([[2.0, 0.5], [0.5, 1.0]])
    outside = np.eye(2) - A @ np.linalg.pinv(A)
    expected = np.linalg.norm(outside @ M @ outside, 2) / np.linalg.norm(M, 2)
    assert rank_report(A, M).range_violation == pytest.approx(expected, rel=REFERENCE)
    assert rank_report(A, A).range_violation < EXACT
    assert np.isnan(rank_report(A).range_violation)


def orthogonal_sample(n=80, seed=6):
    """x of mean 0 and variance 1, orthogonal to the residuals of y up to rounding."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(n)
    x = (x - x.mean()) / x.std()
    y = 2.0 + rng.standard_normal(n)
    y -= (x @ y / n) * x
    return {"y": y, "x": x}


@pytest.mark.parametrize("kappa", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("is_analytic", [True, False])
def test_a_column_of_rounding_is_free_as_in_the_counter_example(kappa, is_analytic):
    """psi = (y - mu)(1 + kappa x) with x orthogonal to y: mu is estimable, kappa free.

    The error of mu is sigma sqrt(1 + kappa^2), which depends on the root.
    """
    data = orthogonal_sample()
    equation = counter_example(data, is_analytic)
    mu = data["y"].mean()
    theta = np.array([mu, kappa])
    A = equation.sensitivity(theta)
    assert 0 < abs(A[0, 1]) < 1e-9  # rounding, not zero: scaling alone would keep it
    fit = estimable(equation, lambda t: t[0], root=theta, names=["mu"])
    sigma = np.sqrt(np.mean((data["y"] - mu) ** 2 * (1 + kappa * data["x"]) ** 2))
    np.testing.assert_allclose(fit.se["mu"], sigma / np.sqrt(80), rtol=1e-6)
    with pytest.raises(IdentificationError, match="kappa"):
        estimable(equation, lambda t: t[1], root=theta)
    alone = estimability(A, [1.0, 0.0])  # the control: A without the terms
    assert not alone.is_estimable[0]


def counter_example(data, is_analytic):
    """One equation for two parameters, written twice."""

    def psi(theta, data):
        one = (data["y"] - theta[0]) * (1 + theta[1] * data["x"])
        return np.column_stack([one, one])

    def slope(theta, data):
        rows = np.column_stack(
            [-1 - theta[1] * data["x"], (data["y"] - theta[0]) * data["x"]]
        )
        return np.tile(rows.mean(axis=0), (2, 1))

    given = {"jacobian": slope} if is_analytic else {}
    return ee.equation(psi, data, [0.0, 0.0], names=["mu", "kappa"], **given)


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1.0, 1e12])
@pytest.mark.parametrize("is_analytic", [True, False])
def test_a_small_but_genuine_column_counts_by_its_terms(scale, is_analytic):
    """The control: a covariate in other units is small in A and in its terms alike."""
    rng = np.random.default_rng(7)
    X = rng.standard_normal((50, 2)) * np.array([1.0, scale])
    equation = ee.equation(
        lambda t, d: (d["y"] - d["X"] @ t)[:, None] * d["X"],
        {"y": X[:, 0] + rng.standard_normal(50), "X": X},
        [0.0, 0.0],
        **({"jacobian": lambda t, d: -d["X"].T @ d["X"] / 50} if is_analytic else {}),
    )
    theta = np.linalg.lstsq(X / np.array([1, scale]), equation.data["y"])[0]
    theta = theta / np.array([1.0, scale])
    A, terms = equation.sensitivity(theta), term_sizes(equation, theta)
    np.testing.assert_allclose(terms, np.abs(X).T @ np.abs(X) / 50, rtol=1e-5)
    assert rank_report(A, terms=terms).rank == 2
    # a share of the terms far above rounding is no cancellation
    for entry, expected in ((1e-9, 1e-9), (1e-15, 0.0)):
        free = rank_report([[1.0, entry]], terms=[[1.0, 1.0]]).null_space[:, 0]
        assert abs(free[0]) == pytest.approx(expected, rel=1e-6, abs=1e-30)


def test_terms_must_fit_a():
    with pytest.raises(ValueError, match="terms"):
        rank_report(np.eye(2), terms=np.ones((1, 2)))


def test_free_direction_is_named_in_original_units():
    X = np.random.default_rng(2).standard_normal((50, 2))
    X = np.column_stack([X, 1000 * (X[:, 0] + X[:, 1])])
    report = rank_report(X.T @ X, names=["dose", "age", "both"])
    (text,) = report.free_directions()
    assert all(name in text for name in ("dose", "age", "both"))
    # the direction is proportional to (1000, 1000, -1)
    direction = report.null_space[:, 0] / report.null_space[2, 0]
    np.testing.assert_allclose(direction, [-1000, -1000, 1], rtol=REFERENCE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"A": np.eye(2), "M": np.eye(3)}, "`M` has shape"),
        ({"A": np.eye(2), "derivative_error": -1.0}, "`derivative_error`"),
        ({"A": np.eye(2), "rank": 3}, "`rank` is 3"),
        ({"A": np.eye(2), "names": ["a"]}, "`names` has 1"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        rank_report(**arguments)


def test_missing_values_are_refused():
    with pytest.raises(DataError, match="missing"):
        rank_report([[np.nan, 1.0], [0.0, 1.0]])
