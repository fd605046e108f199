"""The operator form: agreement with the dense route, refusal, bounded memory."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import LinearOperator
from tolerances import DERIVATIVE, REFERENCE

from eestim.asymptotics import (
    functional_covariance,
    operator_functional,
    solve_adjoint,
)
from eestim.errors import ConvergenceError, IdentificationError, InterpolationError


def as_operator(A):
    return LinearOperator(
        A.shape, matvec=lambda t: A @ t, rmatvec=lambda c: A.T @ c, dtype=float
    )


def features_problem(seed, n=60, p=30, rank=12):
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((n, rank)) @ rng.standard_normal((rank, p))
    psi = features * rng.standard_normal(n)[:, None]
    return features, psi, features.T @ features / n


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_singular_system_agrees_with_the_dense_route(seed):
    features, psi, A = features_problem(seed)
    g = features[3] - 2 * features[7]
    dense = functional_covariance(A, psi.T @ psi / 60, g, 60)
    found = operator_functional(
        as_operator(A), lambda c: np.array_split(psi @ c, 4), g, theta_error=1.0
    )
    assert found.n_units == 60
    assert found.se == pytest.approx(dense.se[0], rel=DERIVATIVE)
    assert found.solve_error < 1e-4
    assert found.solution.relative_residual < 1e-6
    scale = np.abs(dense.coefficients[0]).max()
    np.testing.assert_allclose(
        found.solution.coefficients, dense.coefficients[0], rtol=0, atol=1e-5 * scale
    )


def test_asymmetric_system_uses_the_transpose():
    rng = np.random.default_rng(0)
    A, g = rng.standard_normal((8, 8)), rng.standard_normal(8)
    found = solve_adjoint(as_operator(A), g, max_iterations=500)
    np.testing.assert_allclose(found.coefficients, np.linalg.solve(A.T, g), rtol=1e-6)


def test_functional_outside_the_row_space_is_refused_by_name():
    _, psi, A = features_problem(1)
    g = np.zeros(30)
    g[4] = 1.0
    names = [f"weight {j}" for j in range(30)]
    with pytest.raises(IdentificationError, match="weight"):
        operator_functional(as_operator(A), lambda c: [psi @ c], g, names=names)
    outside = solve_adjoint(as_operator(A), g)
    projection = np.eye(30) - np.linalg.pinv(A, rcond=1e-10) @ A
    assert outside.relative_residual == pytest.approx(
        np.linalg.norm(projection @ g), rel=DERIVATIVE
    )
    assert outside.stationarity < 1e-8


def test_scaling_equilibrates_parameters_of_different_size():
    features, psi, A = features_problem(2, rank=30)
    d = 10.0 ** np.random.default_rng(0).integers(-4, 5, 30)
    scaled, g = A / np.outer(d, d), features[0] / d
    found = operator_functional(
        as_operator(scaled),
        lambda c: [(psi / d) @ c],
        g,
        column_scale=d,
        row_scale=d,
        max_iterations=4000,
    )
    dense = functional_covariance(A, psi.T @ psi / 60, features[0], 60)
    assert found.se == pytest.approx(dense.se[0], rel=1e-5)


def test_too_few_iterations_are_refused():
    A = np.diag(np.logspace(0, -6, 40))
    with pytest.raises(ConvergenceError, match="`column_scale`"):
        solve_adjoint(as_operator(A), np.ones(40), max_iterations=5)


def test_million_parameters_fit_in_bounded_memory():
    """A = Phi'Phi / n with n = 12, P = 10^6, and g = phi(x_1): Phi c = n e_1."""
    n, p = 12, 10**6
    rng = np.random.default_rng(0)
    features, residual = rng.standard_normal((n, p)), rng.standard_normal(n)

    def product(t):
        return features.T @ (features @ t) / n

    operator = LinearOperator((p, p), matvec=product, rmatvec=product, dtype=float)
    tracemalloc.start()
    found = operator_functional(
        operator, lambda c: [residual * (features @ c)], features[0], tolerance=1e-8
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # unit i has psi_i = phi_i residual_i, so c'psi_i = n residual_1 at i = 1, else 0
    assert found.se == pytest.approx(abs(residual[0]), rel=1e-6)
    assert peak < 40 * 8 * p  # a few vectors of length P, never P by P


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: solve_adjoint(np.eye(2), [0.0, 0.0]), "nonzero"),
        (lambda: solve_adjoint(np.eye(2), [1.0]), "`gradient`"),
        (
            lambda: solve_adjoint(np.eye(1), [1.0], column_scale=[-1.0]),
            "`column_scale`",
        ),
        (lambda: operator_functional(np.eye(1), lambda c: [], [1.0]), "no units"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_products_that_vanish_are_refused():
    with pytest.raises(InterpolationError, match="interpolates"):
        operator_functional(np.eye(1), lambda c: [np.zeros(3)], [1.0])


def test_dense_and_sparse_inputs_are_accepted():
    from scipy import sparse

    A, g = np.diag([1.0, 2.0]), [1.0, 1.0]
    for given_A in (A, sparse.csr_array(A)):
        np.testing.assert_allclose(
            solve_adjoint(given_A, g).coefficients, [1.0, 0.5], rtol=REFERENCE
        )


@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["definite", "indefinite"])
def test_minres_solves_symmetric_systems_to_the_tolerance_asked(sign):
    """Oracle: the spectral pseudo-inverse; half the space is singular."""
    rng = np.random.default_rng(5)
    basis = np.linalg.qr(rng.standard_normal((80, 80)))[0]
    values = np.geomspace(1e-3, 1.0, 80)
    values[::4] *= sign
    values[40:50] = 0.0
    A = basis * values @ basis.T
    g = A @ rng.standard_normal(80)
    found = solve_adjoint(A, g, tolerance=1e-9, solver="minres")
    assert found.relative_residual <= 1e-9
    np.testing.assert_allclose(
        found.coefficients, np.linalg.pinv(A) @ g, rtol=0, atol=1e-6 * np.abs(g).max()
    )
    scale = rng.uniform(0.5, 2.0, 80)
    balanced = solve_adjoint(
        A, g, tolerance=1e-9, solver="minres", column_scale=scale, row_scale=scale
    )
    np.testing.assert_allclose(A @ balanced.coefficients, g, rtol=0, atol=1e-8)


def test_single_precision_steps_are_refined_to_the_tolerance_asked(monkeypatch):
    """Where p is large MINRES steps in float32; residuals in float64 mend the rest."""
    monkeypatch.setattr("eestim.asymptotics.operators._MANY", 10)
    rng = np.random.default_rng(3)
    A = rng.standard_normal((30, 30))
    A = A @ A.T / 30 + np.eye(30)
    g = rng.standard_normal(30)
    scale = 1 / np.sqrt(np.diag(A))
    found = solve_adjoint(
        as_operator(A),
        g,
        tolerance=1e-11,
        solver="minres",
        column_scale=scale,
        row_scale=scale,
    )
    np.testing.assert_allclose(found.coefficients, np.linalg.solve(A, g), rtol=1e-9)
    single = np.linalg.solve(A.astype(np.float32), g.astype(np.float32))
    assert np.abs(single - found.coefficients).max() > 1e-9  # without, it would not do
    assert found.n_iterations > 8


def test_minres_takes_fewer_products_than_lsmr():
    rng = np.random.default_rng(6)
    basis = np.linalg.qr(rng.standard_normal((200, 200)))[0]
    A = basis * np.geomspace(1e-2, 1.0, 200) @ basis.T
    g = rng.standard_normal(200)
    both = [solve_adjoint(A, g, tolerance=1e-6, solver=s) for s in ("lsmr", "minres")]
    assert 2 * both[0].n_iterations > 4 * both[1].n_iterations  # products
    assert both[1].relative_residual <= 1e-6


def test_minres_refuses_what_it_cannot_solve():
    rng = np.random.default_rng(7)
    A = rng.standard_normal((30, 30))
    with pytest.raises(ValueError, match="not symmetric"):
        solve_adjoint(A, A[0], solver="minres")
    with pytest.raises(ValueError, match="square symmetric"):
        solve_adjoint(A[:20], A[0], solver="minres")
    with pytest.raises(ValueError, match="rows scaled as columns"):
        solve_adjoint(A @ A.T, A[0], solver="minres", row_scale=np.full(30, 2.0))
    with pytest.raises(ConvergenceError, match="needs more than 3 iterations"):
        solve_adjoint(A @ A.T, A[0], solver="minres", max_iterations=3)
    with pytest.raises(ValueError, match="expected 'lsmr' or 'minres'"):
        solve_adjoint(A, A[0], solver="cg")
    _, _, gram = features_problem(1)
    with pytest.raises(IdentificationError, match="not estimable"):
        operator_functional(gram, lambda c: [c], np.eye(30)[0], solver="minres")
