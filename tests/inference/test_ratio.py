"""The ratio of cluster sums against the regression that it is a shortcut for."""

import numpy as np
import pytest
from scipy import linalg
from tolerances import EXACT

from eestim.errors import DataError, InferenceError
from eestim.inference.ratio import ratio, satterthwaite_dof


def clusters(rng, count=7):
    sizes = rng.integers(1, 9, size=count)
    rows = [rng.normal(rng.normal(), 1.0, size=size) for size in sizes]
    return sizes.astype(float), rows


def explicit_cr2(rows):
    """CR2 of an intercept by matrices: (I - H_gg)^(-1/2), Gram of the a_g."""
    n = sum(map(len, rows))
    y = np.concatenate(rows)
    residual = np.split(y - y.mean(), np.cumsum([len(r) for r in rows])[:-1])
    projector = np.eye(n) - np.full((n, n), 1 / n)
    variance, vectors, begin = 0.0, [], 0
    for e in residual:
        size = len(e)
        block = np.eye(size) - np.full((size, size), 1 / n)
        adjust = linalg.inv(linalg.sqrtm(block).real)
        ones = np.ones(size)
        variance += (ones @ adjust @ e) ** 2 / n**2
        vectors.append(projector[:, begin : begin + size] @ adjust @ ones / n)
        begin += size
    gram = np.array(vectors) @ np.array(vectors).T
    values = linalg.eigvalsh(gram)
    return y.mean(), variance**0.5, values.sum() ** 2 / (values**2).sum()


def test_equals_explicit_cr2_of_an_intercept(rng):
    sizes, rows = clusters(rng)
    result = ratio(np.array([r.sum() for r in rows]), sizes)
    mean, se, dof = explicit_cr2(rows)
    np.testing.assert_allclose(
        [result.estimate, result.se, result.dof], [mean, se, dof], rtol=1e-10, atol=0
    )
    assert result.n_clusters == 7
    assert result.size == sizes.sum()


def test_equal_clusters_give_the_textbook_interval(rng):
    values = rng.normal(size=12)
    result = ratio(3 * values, np.full(12, 3.0))
    np.testing.assert_allclose(result.estimate, values.mean(), rtol=EXACT)
    np.testing.assert_allclose(result.se, values.std(ddof=1) / 12**0.5, rtol=EXACT)
    np.testing.assert_allclose(result.dof, 11.0, rtol=EXACT)


def test_scale_and_unit_of_size_do_not_matter(rng):
    sizes, rows = clusters(rng)
    sums = np.array([r.sum() for r in rows])
    one, two = ratio(sums, sizes), ratio(sums, 8.0 * sizes)
    np.testing.assert_allclose(two.estimate, one.estimate / 8, rtol=EXACT)
    np.testing.assert_allclose(two.se, one.se / 8, rtol=EXACT)
    np.testing.assert_allclose(two.dof, one.dof, rtol=EXACT)


def test_unequal_clusters_lose_degrees_of_freedom():
    assert satterthwaite_dof(np.array([1.0] * 9 + [50.0])) < 3
    assert satterthwaite_dof(np.ones(10)) == pytest.approx(9.0)


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0])
def test_bad_levels_are_refused(level):
    with pytest.raises(ValueError, match="`level` is"):
        ratio(np.arange(3.0), np.ones(3)).interval(level)


def test_bad_clusters_are_refused():
    with pytest.raises(InferenceError, match="has 1 cluster"):
        ratio(np.ones(1), np.ones(1))
    with pytest.raises(DataError, match="cluster 1 has numerator nan"):
        ratio(np.array([0.0, np.nan]), np.ones(2))
    with pytest.raises(DataError, match=r"size 0\.0; values must be finite"):
        ratio(np.ones(2), np.array([1.0, 0.0]))
    with pytest.raises(DataError, match="one value per cluster"):
        ratio(np.ones(2), np.ones(3))
