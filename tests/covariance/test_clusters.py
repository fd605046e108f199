"""The arithmetic of clusters against dense (n, n) algebra."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg
from tolerances import EXACT

from eestim.covariance._clusters import (
    clip_negative,
    clustered_regression,
    merge_sums,
    pieces,
    signed_intersections,
    untransposed_scores,
)
from eestim.covariance._inverse_root import inverse_root_nodes, response_root
from eestim.covariance._satterthwaite import quadratic_moments, satterthwaite_dof
from eestim.equations import sum_by_code


def regression(rng, n=40, p=3, groups=8, weighted=True, varied=True):
    """Return a weighted regression with clusters of unequal size, at its root."""
    design = np.column_stack([np.ones(n), rng.standard_normal((n, p - 1))])
    codes = np.concatenate([np.arange(groups), rng.integers(0, groups, n - groups)])
    weight = rng.uniform(0.05, 2.0, n) if weighted else np.ones(n)
    variance = rng.uniform(0.01, 1.0, n) if varied else None
    y = rng.standard_normal(n)
    theta = np.linalg.solve(
        design.T @ (weight[:, None] * design), design.T @ (weight * y)
    )
    residual = weight * (y - design @ theta)
    return design, weight, residual, codes, variance


def dense(design, weight, residual, codes, power, variance):
    """Return adjusted scores and cluster rows T_g from (n_g, n_g) matrices.

    Written in units of the response as Pustejovsky and Tipton (2018) do: for a
    regression with derivative d of the mean, Phi = variance and W = 1 / Phi.
    """
    phi = np.ones(len(weight)) if variance is None else variance
    if variance is None:
        phi = 1.0 / weight  # response in units of the linear predictor
    slope = np.sqrt(weight * phi)
    X = slope[:, None] * design
    error = residual * phi / slope
    M = np.linalg.inv(X.T @ (X / phi[:, None]))
    scores, rows = [], []
    for g in np.unique(codes):
        i = codes == g
        inner = np.eye(i.sum()) - X[i] @ M @ (X[i] / phi[i, None]).T
        if power == 0.0:
            A = np.eye(i.sum())
        elif power == 1.0:
            A = np.linalg.inv(inner)
        else:
            root = np.sqrt(phi[i]) if variance is not None else np.ones(i.sum())
            if variance is None:  # the root in units of the working deviation
                half = np.sqrt(phi[i])
                middle = (inner * half) / half[:, None]
                values, vectors = np.linalg.eigh((middle + middle.T) / 2)
                A = half[:, None] * (vectors * values**-0.5) @ vectors.T / half
            else:
                B = root[:, None] * (inner * phi[i]) * root
                values, vectors = np.linalg.eigh((B + B.T) / 2)
                A = root[:, None] * ((vectors * values**-0.5) @ vectors.T) * root
        scores.append(X[i].T @ (A @ error[i] / phi[i]))
        row = np.zeros((len(codes), design.shape[1]))
        row[i] = A.T @ (X[i] / phi[i, None]) @ M
        rows.append(row)
    residual_covariance = np.diag(phi) - X @ M @ X.T  # (I - H) Phi (I - H)'
    return np.array(scores), np.array(rows), residual_covariance


def adjusted_scores(model):
    return np.concatenate([block.scores for block in pieces(model)]) @ model.triangle


@pytest.mark.parametrize("varied", [False, True])
@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_scores_equal_dense_algebra(rng, power, varied):
    data = regression(rng, varied=varied)
    model = clustered_regression(*data[:4], power, data[4])
    expected = dense(*data[:4], power, data[4])[0]
    np.testing.assert_allclose(adjusted_scores(model), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("varied", [False, True])
@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_dof_equal_dense_algebra(rng, power, varied):
    data = regression(rng, varied=varied)
    model = clustered_regression(*data[:4], power, data[4])
    _, rows, spread = dense(*data[:4], power, data[4])
    contrasts = rng.standard_normal((4, 3))
    T = np.einsum("gip,cp->cgi", rows, contrasts)
    P = np.einsum("cgi,ij,chj->cgh", T, spread, T)
    expected = np.trace(P, axis1=1, axis2=2) ** 2 / np.square(P).sum(axis=(1, 2))
    np.testing.assert_allclose(
        satterthwaite_dof(model, contrasts), expected, rtol=1e-11
    )


@pytest.mark.parametrize("varied", [False, True])
def test_moments_equal_dense_algebra(rng, varied):
    data = regression(rng, varied=varied)
    model = clustered_regression(*data[:4], 0.5, data[4])
    _, rows, spread = dense(*data[:4], 0.5, data[4])
    contrasts = rng.standard_normal((2, 3))
    scale = linalg.solve_triangular(model.triangle, contrasts.T, trans="T")
    contrasts = contrasts / np.linalg.norm(scale, axis=0)[:, None]
    T = np.einsum("gip,cp->cgi", rows, contrasts)
    P = np.einsum("sgi,ij,thj->stgh", T, spread, T)
    mean, covariance = quadratic_moments(model, contrasts)
    np.testing.assert_allclose(mean, np.einsum("stgg->st", P), rtol=1e-11)
    expected = np.einsum("sugh,tvgh->stuv", P, P) + np.einsum("svgh,tugh->stuv", P, P)
    np.testing.assert_allclose(covariance, expected, rtol=1e-9, atol=1e-12)


def test_moments_equal_simulation(rng):
    """Variance of d_st over draws of the errors, within 4 Monte Carlo errors."""
    data = regression(rng, n=24, groups=5, weighted=False, varied=False)
    design, codes = data[0], data[3]
    model = clustered_regression(*data[:4], 0.5)
    contrasts = np.eye(3)[1:]
    turned = np.linalg.solve(model.triangle.T, contrasts.T)
    contrasts = contrasts / np.linalg.norm(turned, axis=0)[:, None]
    _, rows, _ = dense(*data[:4], 0.5, None)
    T = np.einsum("gip,cp->cgi", rows, contrasts)
    annihilator = np.eye(24) - design @ np.linalg.pinv(design)
    errors = annihilator @ rng.standard_normal((24, 40_000))
    y = np.einsum("cgi,ib->cgb", T, errors)
    draws = np.einsum("sgb,tgb->bst", y, y)
    mean, covariance = quadratic_moments(model, contrasts)
    P = np.einsum("sgi,ij,thj->stgh", T, annihilator, T)
    independent = 2.0 * np.square(np.einsum("ssgg->sg", P)).sum(
        axis=1
    )  # wrong: clusters
    assert len(np.unique(codes)) == 5
    for s, t in [(0, 0), (0, 1), (1, 1)]:
        sample = draws[:, s, t]
        error = sample.std() / np.sqrt(len(sample))
        assert abs(sample.mean() - mean[s, t]) <= 4 * error
        square = (sample - sample.mean()) ** 2
        error = square.std() / np.sqrt(len(square))
        assert abs(square.mean() - covariance[s, t, s, t]) <= 4 * error
        if s == t:  # negative control: clusters whose residuals were independent
            assert abs(square.mean() - independent[s]) > 4 * error


def test_untransposed_scores_equal_dense_algebra(rng):
    design, weight, residual, codes, _ = regression(rng)
    M = np.linalg.inv(design.T @ (weight[:, None] * design))
    for power in (0.5, 1.0):
        model = clustered_regression(design, weight, residual, codes, power)
        got = np.concatenate(list(untransposed_scores(model)))
        for g in range(8):
            i = codes == g
            K = np.eye(i.sum()) - design[i] @ M @ (design[i] * weight[i, None]).T
            values, vectors = np.linalg.eig(K)
            inside = (vectors * values**-power) @ np.linalg.solve(vectors, residual[i])
            np.testing.assert_allclose(got[g], design[i].T @ inside.real, atol=1e-11)


@pytest.mark.parametrize("ratio", [0.9, 1e-3, 1e-8, 1e-16, 1e-24])
def test_inverse_root_rule_is_exact_to_rounding(ratio):
    nodes, weights = inverse_root_nodes(ratio, 1.0)
    b = np.geomspace(ratio, 1.0, 301)
    found = (weights / (b[:, None] + nodes**2)).sum(axis=1)
    np.testing.assert_allclose(found * np.sqrt(b), 1.0, rtol=4e-15)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), spread=st.floats(0.0, 4.0), full=st.booleans())
def test_response_root_equals_eigendecomposition(seed, spread, full):
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((30, 3)))[0][:12]
    if full:  # one direction belongs to this cluster alone
        basis[:, 0] = rng.standard_normal(12)
        basis[:, 0] /= np.linalg.norm(basis[:, 0])
        basis[:, 1:] *= 0.3
        basis[:, 1:] -= np.outer(basis[:, 0], basis[:, 0] @ basis[:, 1:])
    variance = 10.0 ** -rng.uniform(0.0, spread, 12)
    B = np.outer(variance, variance) * (np.eye(12) - basis @ basis.T)
    values, vectors = linalg.eigh(B)
    cut = 1e-12 * variance.min() ** 2
    powers = np.where(values > cut, np.maximum(values, cut) ** -0.5, 0.0)
    if full:
        powers[0] = 0.0
    expected = variance[:, None] * (vectors * powers) @ vectors.T @ basis
    got = response_root(basis, variance, basis.T @ basis)
    size = np.abs(expected).max()
    # eigenvalues of B lose what the spread of Phi squared costs; the rule does not
    loss = 1e-13 * 10.0 ** (2.0 * spread)
    np.testing.assert_allclose(got, expected, rtol=0, atol=max(1e-11, loss) * size)


def test_small_clusters_decomposed_together_equal_the_quadrature(rng, monkeypatch):
    data = regression(rng, n=300, groups=60)
    model = clustered_regression(*data[:4], 0.5, data[4])
    together, dof = adjusted_scores(model), satterthwaite_dof(model, np.eye(3))
    monkeypatch.setattr("eestim.covariance._clusters._SMALL", 0)
    np.testing.assert_allclose(adjusted_scores(model), together, rtol=0, atol=1e-12)
    np.testing.assert_allclose(satterthwaite_dof(model, np.eye(3)), dof, rtol=1e-11)


def test_rows_without_variance_have_no_weight(rng):
    """A fitted probability of 0 or 1 to rounding: limit of a small variance."""
    design, weight, residual, codes, variance = regression(rng)
    scores = []
    for tiny in (0.0, 1e-14):
        weights, spread = weight.copy(), variance.copy()
        weights[:3], spread[:3] = tiny * weight[:3], tiny
        model = clustered_regression(
            design, weights, np.where(weights > 0, residual, 0.0), codes, 0.5, spread
        )
        scores.append(adjusted_scores(model)[codes[3:].max()])
        assert np.isfinite(adjusted_scores(model)).all()
    np.testing.assert_allclose(scores[0], scores[1], rtol=0, atol=1e-6)


def test_constant_variance_equals_none(rng):
    design, weight, residual, codes, _ = regression(rng)
    plain = clustered_regression(design, weight, residual, codes, 0.5)
    constant = clustered_regression(
        design, weight, residual, codes, 0.5, np.full(len(weight), 0.3)
    )
    np.testing.assert_array_equal(adjusted_scores(plain), adjusted_scores(constant))


def test_blocks_do_not_change_the_scores(rng, monkeypatch):
    data = regression(rng, n=200, groups=30)
    model = clustered_regression(*data[:4], 0.5, data[4])
    whole, dof = adjusted_scores(model), satterthwaite_dof(model, np.eye(3))
    monkeypatch.setattr("eestim.covariance._clusters._ROWS", 7)
    monkeypatch.setattr("eestim.covariance._clusters._ENTRIES", 20)
    monkeypatch.setattr("eestim.covariance._satterthwaite._MOMENT_ENTRIES", 9)
    np.testing.assert_allclose(adjusted_scores(model), whole, rtol=EXACT)
    np.testing.assert_allclose(satterthwaite_dof(model, np.eye(3)), dof, rtol=EXACT)


def test_merged_partial_sums_equal_whole_sums(rng):
    rows, labels = rng.standard_normal((60, 2)), rng.integers(0, 9, 60)
    merged = (np.array([], dtype=int), np.zeros((0, 2)))
    for part in np.array_split(rng.permutation(60), 4):
        names, codes = np.unique(labels[part], return_inverse=True)
        merged = merge_sums(*merged, names, sum_by_code(rows[part], codes, len(names)))
    order = np.argsort(merged[0])
    expected = sum_by_code(rows, labels, 9)
    np.testing.assert_array_equal(merged[0][order], np.arange(9))
    np.testing.assert_allclose(merged[1][order], expected, rtol=0, atol=1e-14)


def test_intersections_of_three_ways_are_counted(rng):
    ways = [rng.integers(0, k, 500) for k in (3, 4, 5)]
    terms = signed_intersections(ways)
    assert [sign for sign, *_ in terms] == [1, 1, 1, -1, -1, -1, 1]
    for _, subset, codes, groups in terms:
        cells = {tuple(ways[w][i] for w in subset) for i in range(500)}
        assert groups == len(cells) == len(set(codes.tolist()))


def test_clipping_equals_eigenvalues_set_to_zero(rng):
    matrix = rng.standard_normal((4, 4))
    matrix = matrix + matrix.T
    values, vectors = np.linalg.eigh(matrix)
    expected = (vectors * np.maximum(values, 0.0)) @ vectors.T
    np.testing.assert_allclose(clip_negative(matrix, np.ones(4)), expected, atol=1e-13)


def test_clipping_keeps_digits_of_small_parameters():
    units = np.array([1e6, 1e-6])
    matrix = np.array([[1.0, 1.5], [1.5, 1.0]]) * np.outer(units, units)
    clipped = clip_negative(matrix, units) / np.outer(units, units)
    assert np.linalg.eigvalsh(clipped)[0] > -1e-9
    assert clipped[1, 1] < 10.0


@pytest.mark.parametrize("varied", [False, True])
def test_memory_is_bounded_for_one_large_cluster(rng, varied):
    n, p = 100_000, 4
    design = np.column_stack([np.ones(n), rng.standard_normal((n, p - 1))])
    codes = np.concatenate([np.zeros(n - 50, dtype=int), np.arange(50) % 5 + 1])
    weight = rng.uniform(0.05, 0.25, n)
    variance = weight if varied else None
    model = clustered_regression(
        design, weight, rng.standard_normal(n) * weight, codes, 0.5, variance
    )
    tracemalloc.start()
    adjusted_scores(model)
    satterthwaite_dof(model, np.eye(p))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 * design.nbytes  # an (n_g, n_g) matrix would need 80 GB
