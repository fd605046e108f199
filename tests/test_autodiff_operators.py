"""Torch equations as linear maps: products, solves, units, memory."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import DERIVATIVE, EXACT

import eestim as ee
from eestim import autodiff
from eestim.asymptotics import (
    dense_operators,
    design_operators,
    functional_covariance,
    operator_functional,
)
from eestim.autodiff import functional_gradient, surrogate_operators
from eestim.errors import DataError, IdentificationError

DOUBLE = torch.float64


def network(p, x):
    return torch.tanh(x @ p["W"].T) @ p["a"]


def stopped(u, t, batch):
    """A surrogate whose weight and residual are held still: A is not symmetric."""
    x, y = batch
    weight = torch.exp(-(x @ t["W"].T).square().sum(1) / 20)
    return (network(t, x) - y) * weight * network(u, x)


def problem(seed, n=30):
    g = torch.Generator().manual_seed(seed)
    x, y = torch.randn(n, 3, generator=g), torch.randn(n, generator=g)
    point = {
        "W": torch.randn(2, 3, generator=g).to(DOUBLE),
        "a": torch.randn(2, generator=g).to(DOUBLE),
    }
    x, y = x.to(DOUBLE), y.to(DOUBLE)
    return point, [(x[:11], y[:11]), (x[11:], y[11:])]


def flatten(p):
    return torch.cat([p["W"].ravel(), p["a"]])


def restore(v):
    return {"W": v[:6].view(2, 3), "a": v[6:]}


def dense(surrogate, point, batches):
    """Return psi and A by Jacobians of the whole psi, both copies moving."""

    def psi(v):
        still = restore(v)
        rows = [
            -torch.func.jacrev(lambda w, b=b: surrogate(restore(w), still, b))(v)
            for b in batches
        ]
        return torch.cat(rows)

    at = flatten(point)
    slope = torch.func.jacfwd(lambda v: psi(v).mean(0))(at)
    return psi(at).numpy(), -slope.numpy()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_products_agree_with_the_dense_jacobians(seed):
    point, batches = problem(seed)
    psi, A = dense(stopped, point, batches)
    maps = surrogate_operators(stopped, point, batches, balance=False)
    rng = np.random.default_rng(seed)
    v, w = rng.standard_normal(8), rng.standard_normal(30)
    size = np.abs(A).max()
    assert np.abs(A - A.T).max() > 1e-6 * size  # a transposed product would show
    for found, oracle in (
        (maps.sensitivity.matvec(v), A @ v),
        (maps.sensitivity.rmatvec(v), A.T @ v),
        (maps.psi.matvec(v), psi @ v),
        (maps.psi.rmatvec(w), w @ psi),
        (maps.mean_psi(), psi.mean(0)),
    ):
        np.testing.assert_allclose(
            found, oracle, rtol=0, atol=100 * EXACT * max(1.0, np.abs(oracle).max())
        )


def test_standard_error_agrees_with_the_dense_route():
    point, batches = problem(3)
    psi, A = dense(stopped, point, batches)
    value, g = functional_gradient(lambda u: network(u, batches[0][0][:1])[0], point)
    assert value == pytest.approx(float(network(point, batches[0][0][:1])[0]))
    oracle = functional_covariance(A, psi.T @ psi / 30, g, 30)
    for balance in (True, False):
        maps = surrogate_operators(stopped, point, batches, balance=balance)
        found = maps.functional(g, theta_error=1.0, max_iterations=2000)
        assert found.se == pytest.approx(oracle.se[0], rel=DERIVATIVE)
        assert found.solve_error < DERIVATIVE
    detached = functional_covariance(  # negative control: t held still
        dense(lambda u, t, b: stopped(u, point, b), point, batches)[1],
        psi.T @ psi / 30,
        g,
        30,
        minimum_norm=True,
    )
    assert abs(detached.se[0] / oracle.se[0] - 1) > 1e-2


def test_expected_form_moves_the_still_copy_only():
    point, batches = problem(5)

    def psi(v):
        still, at = restore(v), flatten(point)
        rows = [
            -torch.func.jacrev(lambda w, b=b: stopped(restore(w), still, b))(at)
            for b in batches
        ]
        return torch.cat(rows).mean(0)

    A = -torch.func.jacfwd(psi)(flatten(point)).numpy()
    maps = surrogate_operators(stopped, point, batches, kind="expected", balance=False)
    v = np.arange(8.0)
    np.testing.assert_allclose(maps.sensitivity.matvec(v), A @ v, atol=100 * EXACT)
    np.testing.assert_allclose(maps.sensitivity.rmatvec(v), A.T @ v, atol=100 * EXACT)
    observed = surrogate_operators(stopped, point, batches, balance=False)
    assert np.abs(observed.sensitivity.matvec(v) - A @ v).max() > 1e-3


def test_rows_of_one_unit_are_summed_across_batches():
    point, batches = problem(7)
    codes = np.arange(30) % 6  # every unit has rows in both batches
    psi, _ = dense(stopped, point, batches)
    maps = surrogate_operators(stopped, point, batches, units=codes)
    summed = np.stack([psi[codes == k].sum(0) for k in range(6)])
    v, w = np.arange(8.0), np.arange(6.0)
    assert maps.n_units == 6
    np.testing.assert_allclose(maps.psi.matvec(v), summed @ v, rtol=1e-10)
    np.testing.assert_allclose(maps.psi.rmatvec(w), w @ summed, rtol=1e-10, atol=1e-12)


def test_direction_that_the_data_do_not_see_is_refused_by_name():
    """Two identical hidden units: only the sum of their output weights is seen."""
    point, batches = problem(9)
    point["W"][1] = point["W"][0]
    only = {"a": point["a"]}

    def loss(u, t, batch):
        return (network(point | u, batch[0]) - batch[1]).square() / 2

    maps = surrogate_operators(loss, only, batches)
    assert maps.functional([1.0, 1.0]).se > 0
    with pytest.raises(IdentificationError, match=r"a\[1\]"):
        maps.functional([1.0, 0.0])


def test_single_precision_agrees_to_its_precision():
    point, batches = problem(11)
    psi, A = dense(stopped, point, batches)
    g = A.T @ np.ones(8)  # of a solution that is known
    single = {n: v.float() for n, v in point.items()}
    halves = [tuple(t.float() for t in b) for b in batches]
    found = surrogate_operators(stopped, single, halves).functional(g, tolerance=1e-5)
    oracle = np.linalg.norm(psi @ np.ones(8)) / 30
    assert found.se == pytest.approx(oracle, rel=1e-3)


def test_equation_and_module_maps_agree_with_numpy():
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((50, 3)), rng.poisson(1.0, 50).astype(float)
    theta, g = np.array([0.1, -0.2, 0.3]), np.array([1.0, 2.0, 0.0])

    def psi(theta, data):
        return (data["y"] - torch.exp(data["X"] @ theta))[:, None] * data["X"]

    def loss(module, batch):
        eta = module(batch[0])[:, 0]
        return torch.exp(eta) - batch[1] * eta

    module = torch.nn.Linear(3, 1, bias=False).double()
    tensors = (torch.as_tensor(X), torch.as_tensor(y))
    halves = [tuple(t[:20] for t in tensors), tuple(t[20:] for t in tensors)]
    mean = np.exp(X @ theta)
    oracle = dense_operators(ee.glm(y, X, family="poisson"), theta).functional(g).se
    for maps in (
        autodiff.equation(psi, {"X": X, "y": y}, theta).operators(theta),
        autodiff.from_module(module, loss, halves).operators(theta),
        design_operators(X, mean, y - mean),
    ):
        assert maps.functional(g).se == pytest.approx(oracle, rel=DERIVATIVE)


MILLION = """
import resource
import numpy as np, torch
from eestim.autodiff import functional_gradient, surrogate_operators
torch.set_num_threads(1)
g = torch.Generator().manual_seed(0)
x, y = torch.randn(8, 1000, generator=g), torch.randn(8, generator=g)
point = {"W": torch.randn(1000, 1000, generator=g) / 32}
scale = torch.randn(1000, generator=g) / 32
def f(p, x):
    return torch.tanh(x @ p["W"].T) @ scale
def loss(u, t, batch):  # still residual, so that A is Gauss-Newton, of rank 8
    return (f(t, batch[0]) - batch[1]) * f(u, batch[0])
maps = surrogate_operators(loss, point, [(x[:4], y[:4]), (x[4:], y[4:])],
                           kind="expected")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
_, slope = functional_gradient(lambda u: f(u, x[:1])[0], point)
found = maps.functional(slope, tolerance=1e-5)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
residual = float(abs(y[0] - f(point, x[:1])[0]))
print(found.se / residual - 1, (after - before) / 1024, found.solution.n_iterations)
"""


def test_million_parameters_on_a_processor_in_bounded_memory():
    """c'psi_i is n r_1 at unit 1 and 0 elsewhere, so the error of f(x_1) is r_1."""
    done = subprocess.run(
        [sys.executable, "-c", MILLION], capture_output=True, text=True, check=True
    )
    gap, mebibytes, steps = map(float, done.stdout.split())
    assert abs(gap) < 1e-3  # float32
    assert mebibytes < 256  # 8 MB a vector; P by P would be 8 TB, n by P is 64 MB
    assert steps <= 40


def test_bad_arguments_are_named():
    point, batches = problem(0)
    with pytest.raises(DataError, match="`surrogate` returned shape"):
        surrogate_operators(lambda u, t, b: u["W"], point, batches)
    with pytest.raises(DataError, match="`parameters` is empty"):
        surrogate_operators(stopped, {}, batches)
    with pytest.raises(DataError, match="`batches` holds no rows"):
        surrogate_operators(stopped, point, [])
    with pytest.raises(DataError, match="`units`"):
        surrogate_operators(stopped, point, batches, units=np.zeros(3, int))
    with pytest.raises(DataError, match="without a gap"):
        surrogate_operators(stopped, point, batches, units=np.full(30, 2))
    with pytest.raises(ValueError, match="`kind`"):
        surrogate_operators(stopped, point, batches, kind="fisher")
    with pytest.raises(DataError, match="`functional` returned shape"):
        functional_gradient(lambda u: u["a"], point)


def test_maps_need_no_torch():
    maps = design_operators(np.eye(3), np.ones(3), [1.0, -2.0, 1.0])
    found = operator_functional(
        maps.sensitivity, lambda c: [maps.psi.matvec(c)], [1.0, 0.0, 0.0]
    )
    assert found.se == maps.functional([1.0, 0.0, 0.0]).se == pytest.approx(1.0)
    with pytest.raises(ValueError, match="`weight`"):
        design_operators(np.eye(3), np.ones(2), np.ones(3))
