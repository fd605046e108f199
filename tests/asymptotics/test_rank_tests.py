"""Tests of rank: Kleibergen-Paap, Robin-Smith, the Gram trap (section 1.3)."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg
from tolerances import DERIVATIVE, EXACT, REFERENCE

from eestim.asymptotics import (
    jacobian_omega,
    kleibergen_paap,
    robin_smith,
    select_rank,
    weak_rank,
)
from eestim.errors import InferenceError


def random_case(seed: int, q: int = 3, p: int = 3):
    rng = np.random.default_rng(seed)
    half = rng.standard_normal((q * p, q * p))
    return rng.standard_normal((q, p)), half @ half.T + np.eye(q * p)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), p=st.integers(2, 4))
def test_property_39_both_statistics_agree_at_corank_one(seed, p):
    A, omega = random_case(seed, p, p)
    np.testing.assert_allclose(
        kleibergen_paap(A, omega, 50, p - 1).statistic,
        robin_smith(A, omega, 50).statistic,
        rtol=REFERENCE,
    )


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), rank=st.integers(0, 2))
def test_statistic_matches_the_printed_formula(seed, rank):
    """Kleibergen and Paap (2006): A_perp, B_perp with U22 and V22."""
    A, omega = random_case(seed, 4, 3)
    U, _, Vt = np.linalg.svd(A)
    V = Vt.T
    U22, V22 = U[rank:, rank:], V[rank:, rank:]
    A_perp = U[:, rank:] @ np.linalg.inv(U22) @ linalg.sqrtm(U22 @ U22.T).real
    B_perp = linalg.sqrtm(V22 @ V22.T).real @ np.linalg.inv(V22.T) @ V[:, rank:].T
    lam = (A_perp.T @ A @ B_perp.T).ravel(order="F")
    K = np.kron(B_perp, A_perp.T)
    expected = 50 * lam @ np.linalg.solve(K @ omega @ K.T, lam)
    found = kleibergen_paap(A, omega, 50, rank)
    assert found.df == (4 - rank) * (3 - rank)
    np.testing.assert_allclose(found.statistic, expected, rtol=1e-6)


def second_moments(rng, n, reps):
    """Return E zx' of true rank 2, heteroskedastic, reps times."""
    for _ in range(reps):
        z = rng.standard_normal((n, 3))
        noise = rng.standard_normal((n, 3)) * (0.5 + np.abs(z[:, :1]))
        x = z @ np.diag([1.0, 0.7, 0.0]) + noise
        yield np.einsum("ni,nj->nij", z, x)


def test_size_under_rank_two_and_power_against_rank_one_by_simulation():
    rng = np.random.default_rng(2)
    reps, n = 300, 400
    two, one = [], []
    for units in second_moments(rng, n, reps):
        omega = jacobian_omega(units)
        two.append(kleibergen_paap(units.mean(0), omega, n, 2).p_value)
        one.append(kleibergen_paap(units.mean(0), omega, n, 1).p_value)
    size = np.mean(np.array(two) < 0.05)
    assert abs(size - 0.05) <= 4 * np.sqrt(0.05 * 0.95 / reps)
    assert np.mean(np.array(one) < 0.05) > 0.99  # negative control: false rank


def test_gram_matrices_are_refused_and_the_numeric_rule_used():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 2))
    x = np.column_stack([x, x @ [1.0, -1.0]])
    units = np.einsum("ni,nj->nij", x, x)
    omega = jacobian_omega(units)
    with pytest.raises(InferenceError, match="Gram"):
        kleibergen_paap(units.mean(0), omega, 200, 2)
    with pytest.raises(InferenceError, match="rank_report"):
        robin_smith(units.mean(0), omega, 200)
    chosen = select_rank(units.mean(0), omega, 200)
    assert (chosen.rank, chosen.numerical_rank) == (2, 2)


def test_selection_finds_the_true_rank_and_does_not_depend_on_units():
    rng = np.random.default_rng(5)
    units = next(second_moments(rng, 2000, 1))
    chosen = select_rank(units.mean(0), jacobian_omega(units), 2000)
    assert chosen.rank == 2
    scaled = units * np.outer([1e-4, 1.0, 1e3], [1.0, 1e5, 1e-2])
    again = select_rank(scaled.mean(0), jacobian_omega(scaled), 2000)
    assert again.rank == 2
    np.testing.assert_allclose(
        [t.statistic for t in again.tests],
        [t.statistic for t in chosen.tests],
        rtol=1e-6,
    )
    assert chosen.level == pytest.approx(2000**-0.5)


def test_symmetric_hessian_has_the_degrees_of_freedom_of_its_distinct_entries():
    """Size of the rank-one test of a 3 x 3 symmetric mean: chi-square 3, not 4."""
    rng = np.random.default_rng(4)
    reps, n, p_values = 300, 300, []
    truth = np.outer([1.0, 2.0, -1.0], [1.0, 2.0, -1.0])
    for _ in range(reps):
        noise = rng.standard_normal((n, 3, 3))
        units = truth + noise + noise.transpose(0, 2, 1)
        test = kleibergen_paap(units.mean(0), jacobian_omega(units), n, 1)
        assert test.df == 3
        p_values.append(test.p_value)
    size = np.mean(np.array(p_values) < 0.05)
    assert abs(size - 0.05) <= 4 * np.sqrt(0.05 * 0.95 / reps)


def test_weak_rank_ratio_matches_a_scalar_by_closed_form():
    found = weak_rank([[0.5]], [[4.0]], 100)  # sigma .5, se .2: ratio 2.5
    assert found.ratio == pytest.approx(2.5, rel=EXACT)
    assert found.is_weak
    assert not weak_rank([[0.5]], [[4.0]], 10_000).is_weak


def test_omega_is_the_covariance_of_the_stacked_mean():
    rng = np.random.default_rng(1)
    units = rng.standard_normal((50, 2, 3))
    stacked = np.array([unit.ravel(order="F") for unit in units])
    np.testing.assert_allclose(
        jacobian_omega(units), np.cov(stacked.T, bias=True), rtol=0, atol=EXACT
    )


def test_omega_adds_the_influence_of_the_root_by_jackknife():
    """psi = y - exp(theta): A = exp(theta_hat) = mean y, whose variance is var y."""
    rng = np.random.default_rng(3)
    y = rng.gamma(2.0, 1.0, 500)
    level = y.mean()
    units = np.full((500, 1, 1), level)  # minus the derivative of psi
    psi = (y - level)[:, None]
    omega = jacobian_omega(units, psi, [[level]])
    assert omega[0, 0] == pytest.approx(np.var(y), rel=DERIVATIVE)
    with pytest.raises(ValueError, match="both or neither"):
        jacobian_omega(units, psi)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kleibergen_paap(np.eye(2), np.eye(3), 9, 1), "`omega` has shape"),
        (lambda: kleibergen_paap(np.eye(2), np.eye(4), 9, 2), "`rank` is 2"),
        (lambda: robin_smith(np.ones((2, 3)), np.eye(6), 9), "square"),
        (lambda: select_rank(np.eye(2), np.eye(4), 9, level=2.0), "`level`"),
        (lambda: weak_rank(np.eye(2), np.eye(4), 9, rank=0), "`rank` is 0"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
