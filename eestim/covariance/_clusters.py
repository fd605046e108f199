r"""Arithmetic of clusters on arrays: sums, adjusted scores, degrees of freedom.

CR2 and CR3 replace the residuals of cluster g by ``K_g e_g``, where ``K_g`` undoes
the shrinkage of fitted residuals by the hat matrix. Written in the orthonormal basis
``Z = W^{1/2} X R^{-1}`` of the weighted design, everything that a covariance or its
degrees of freedom need of a cluster is (p, p), however many rows it has:

.. math::
    J_g = Z_g^\top Z_g, \quad Y_g = K_g^\top Z_g, \quad
    S_g = Y_g^\top Y_g, \quad F_g = Z_g^\top Y_g .

The hat matrix of the cluster has the eigenvalues of ``J_g`` and zeros, so a power of
``I - H_gg`` is the identity plus a matrix on the columns of ``Z_g``; no (n_g, n_g)
array of a large cluster is ever formed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import linalg

from eestim._arrays import IntVector, Matrix, Vector
from eestim.covariance._inverse_root import (
    FULL_LEVERAGE,
    response_root,
    small_response_roots,
)

__all__ = [
    "ClusteredRegression",
    "Pieces",
    "clip_negative",
    "clustered_regression",
    "merge_sums",
    "pieces",
    "signed_intersections",
    "untransposed_scores",
]

_ROWS = 1 << 14  # rows whitened at a time; a larger cluster is a block of its own
_ENTRIES = 1 << 19  # of (p, p) matrices held at a time
# Clusters whose (n_g, n_g) root is taken directly: of few rows, with a spread of the
# variance that costs at most seven digits of a row which weighs little, and not
# determining a direction alone.
_SMALL = 32
_MILD = 3000.0
_LOW_LEVERAGE = 1.0 - 1e-4


# ------------------------------------------------------------------ sums by label


def merge_sums(
    labels: Sequence[Any] | npt.NDArray[Any],
    sums: Matrix,
    other_labels: Sequence[Any] | npt.NDArray[Any],
    other_sums: Matrix,
) -> tuple[npt.NDArray[Any], Matrix]:
    """Return the sums by label of the union of two blocks of rows.

    A cluster may span blocks, workers or batches: its partial sums add up. The
    operation is associative, and commutative up to the order of labels.

    Parameters
    ----------
    labels : (G,) labels, each once
    sums : (G, q) array
        Sums of the rows of each label.
    other_labels, other_sums : the same for the other block

    Examples
    --------
    >>> labels, sums = merge_sums(["a", "b"], np.eye(2), ["b"], np.ones((1, 2)))
    >>> labels.tolist(), sums.tolist()
    (['a', 'b'], [[1.0, 0.0], [1.0, 2.0]])
    """
    every = np.concatenate([np.asarray(labels), np.asarray(other_labels)])
    codes, groups = pd.factorize(every)
    merged = np.zeros((len(groups), sums.shape[1]))
    np.add.at(merged, codes, np.concatenate([sums, other_sums]))
    return np.asarray(groups), merged


def signed_intersections(
    ways: Sequence[IntVector],
) -> list[tuple[int, tuple[int, ...], IntVector, int]]:
    r"""Return the terms of multi-way clustering by inclusion and exclusion.

    .. math:: M = \sum_{r} (-1)^{|r| + 1} M_r

    over the non-empty subsets r of the ways, where ``M_r`` clusters on the
    intersections of the groups of r.

    Returns
    -------
    list of (sign, ways, codes, n_groups)
        In order of the number of ways; the last is the intersection of all.

    References
    ----------
    Cameron, Gelbach and Miller (2011), J. Bus. Econ. Stat. 29, 238-249, eq. 2.13.

    Examples
    --------
    >>> ways = [np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])]
    >>> [(sign, way, groups) for sign, way, _, groups in signed_intersections(ways)]
    [(1, (0,), 2), (1, (1,), 2), (-1, (0, 1), 4)]
    """
    found: dict[tuple[int, ...], tuple[IntVector, int]] = {}
    terms = []
    for size in range(1, len(ways) + 1):
        for subset in combinations(range(len(ways)), size):
            codes, groups = _compress(ways[subset[-1]])
            if size > 1:
                rest, _ = found[subset[:-1]]
                codes, groups = _compress(rest * groups + codes)
            found[subset] = codes, groups
            terms.append(((-1) ** (size + 1), subset, codes, groups))
    return terms


def _compress(codes: IntVector) -> tuple[IntVector, int]:
    compact, groups = pd.factorize(codes)
    return compact.astype(np.intp), len(groups)


def clip_negative(covariance: Matrix, scale: Vector) -> Matrix:
    r"""Return the covariance with its negative eigenvalues set to zero.

    .. math:: V_+ = U \max(\Lambda, 0) U^\top, \quad V = U \Lambda U^\top,

    written as V plus its negative part, so that entries much smaller than the
    largest keep their digits. Where the units of measure are so different that the
    negative part is lost in rounding, it is removed in units of ``scale``.

    Parameters
    ----------
    covariance : (p, p) array
    scale : (p,) array
        Positive standard errors of the same parameters, of the order of the
        right ones.

    References
    ----------
    Cameron, Gelbach and Miller (2011), J. Bus. Econ. Stat. 29, 238-249, p. 241.

    Examples
    --------
    >>> clip_negative(np.diag([1.0, -0.5]), np.ones(2))
    array([[1., 0.], [0., 0.]])
    """
    repaired = covariance + _negative_part(covariance)
    units = np.outer(scale, scale)
    clipped: Matrix = repaired + _negative_part(repaired / units) * units
    return clipped


def _negative_part(matrix: Matrix) -> Matrix:
    values, vectors = np.linalg.eigh(matrix)
    rounding = 1e-14 * len(values) * np.abs(values).max()
    size = np.where(values < -rounding, -values, 0.0)
    part: Matrix = (vectors * size) @ vectors.T
    return part


# ----------------------------------------------------------- the grouped regression


@dataclass(frozen=True, slots=True)
class ClusteredRegression:
    """A weighted regression whose rows are grouped, at one theta.

    Attributes
    ----------
    design : (n, p) array
    weight, residual : (n,) arrays
        ``psi_i = design_i residual_i`` and ``A = X' diag(weight) X / n``.
    variance : (n,) array or None
        Working variance of the response, up to a factor; None where the root of
        ``I - H_gg`` is taken in units of the working standard deviation.
    power : float
        0 leaves residuals alone, 0.5 is CR2, 1 is CR3.
    triangle : (p, p) array
        R of the QR factors of ``sqrt(weight) * design``.
    order : (n,) array
        Rows sorted by cluster.
    bounds : (G + 1,) array
        Cluster g is ``order[bounds[g]:bounds[g + 1]]``.
    """

    design: Matrix
    weight: Vector
    residual: Vector
    variance: Vector | None
    power: float
    triangle: Matrix
    order: IntVector
    bounds: IntVector

    @property
    def n_groups(self) -> int:
        """Number of clusters, G."""
        return len(self.bounds) - 1


def clustered_regression(
    design: Matrix,
    weight: Vector,
    residual: Vector,
    codes: IntVector,
    power: float,
    variance: Vector | None = None,
) -> ClusteredRegression:
    """Return the regression with its rows grouped by ``codes``.

    Parameters
    ----------
    design : (n, p) array
        Of full column rank once weighted.
    weight, residual : (n,) arrays
    codes : (n,) array of int
        Cluster of each row.
    power : float
        0, 0.5 (CR2) or 1 (CR3).
    variance : (n,) array, optional
    """
    order = np.argsort(codes, kind="stable")
    sizes = np.bincount(codes)
    bounds = np.concatenate([[0], np.cumsum(sizes[sizes > 0])])
    return ClusteredRegression(
        design,
        weight,
        residual,
        variance,
        power,
        _triangle(design, weight),
        order,
        bounds.astype(np.intp),
    )


def _triangle(design: Matrix, weight: Vector) -> Matrix:
    """Return R of the QR factors of the weighted design, in blocks of rows."""
    p = design.shape[1]
    triangle: Matrix = np.zeros((0, p))
    for start in range(0, len(design), max(_ROWS, p)):
        rows = slice(start, start + max(_ROWS, p))
        block = np.sqrt(weight[rows])[:, None] * design[rows]
        (triangle,) = linalg.qr(
            np.concatenate([triangle, block]), mode="r", check_finite=False
        )
        triangle = triangle[:p]
    return triangle


def _blocks(bounds: IntVector, most_groups: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of whole clusters with a bounded number of rows and clusters."""
    first, groups = 0, len(bounds) - 1
    while first < groups:
        last = int(np.searchsorted(bounds, bounds[first] + _ROWS, side="right")) - 1
        last = min(max(last, first + 1), first + most_groups, groups)
        yield first, last
        first = last


def _whitened(model: ClusteredRegression, rows: IntVector) -> tuple[Matrix, Vector]:
    """Return the rows of Z and the residuals in working standard deviations."""
    spread = np.sqrt(model.weight[rows])
    weighted = spread[:, None] * model.design[rows]
    basis = linalg.solve_triangular(
        model.triangle, weighted.T, trans="T", check_finite=False
    ).T
    error = np.divide(
        model.residual[rows], spread, out=np.zeros_like(spread), where=spread > 0
    )
    return np.ascontiguousarray(basis), error


# --------------------------------------------------------------- CR0, CR2 and CR3


@dataclass(frozen=True, slots=True)
class Pieces:
    """What the covariance and its degrees of freedom need of a block of clusters.

    Attributes
    ----------
    scores : (B, p) array
        Adjusted sums ``Y_g' e_g``, in the basis Z.
    spread : (B, p, p) array
        ``S_g``, variance of the scores if the residuals were the errors.
    cross : (B, p, p) array
        ``F_g``, through which the scores of two clusters are correlated.
    n_singular : int
        Clusters that determine a direction of theta alone.
    """

    scores: Matrix
    spread: npt.NDArray[np.float64]
    cross: npt.NDArray[np.float64]
    n_singular: int


def pieces(model: ClusteredRegression) -> Iterator[Pieces]:
    r"""Yield the pieces of consecutive blocks of clusters.

    .. math::
        K_g = I, \quad (I - H_{gg})^{-1/2}, \quad (I - H_{gg})^{-1}

    for the powers 0, 1/2 and 1, with eigenvalues of ``I - H_gg`` that vanish left
    out (Moore-Penrose). With a working variance ``Phi`` that varies within the
    cluster, CR2 is :math:`K_g = \{\Phi_g (I - H_{gg}) \Phi_g\}^{-1/2} \Phi_g`, the
    symmetric root in units of the response.

    References
    ----------
    Bell and McCaffrey (2002), Survey Methodology 28, 169-181; Pustejovsky and
    Tipton (2018), J. Bus. Econ. Stat. 36, 672-683, eqs. 7-8 (with D = Phi^{1/2}).
    """
    p = model.design.shape[1]
    for first, last in _blocks(model.bounds, max(1, _ENTRIES // p**2)):
        rows = model.order[model.bounds[first] : model.bounds[last]]
        starts = model.bounds[first : last + 1] - model.bounds[first]
        basis, error = _whitened(model, rows)
        gram = np.stack([basis[a:b].T @ basis[a:b] for a, b in pairwise(starts)])
        sums = np.add.reduceat(basis * error[:, None], starts[:-1], axis=0)
        made = _adjusted(gram, sums, model.power)
        if model.variance is not None and model.power == 0.5:
            _adjust_in_response(made, gram, basis, error, model.variance[rows], starts)
        yield made


def _adjusted(gram: npt.NDArray[np.float64], sums: Matrix, power: float) -> Pieces:
    """Return the pieces where powers of ``I - H_gg`` act through ``J_g`` alone."""
    if power == 0.0:
        return Pieces(sums, gram, gram, 0)
    values, vectors = np.linalg.eigh(gram)
    free = 1.0 - values
    is_full = free < FULL_LEVERAGE
    factor = np.where(is_full, 0.0, np.where(is_full, 1.0, free) ** -power)
    turned = np.einsum("gij,gi->gj", vectors, sums)
    scores = np.einsum("gij,gj->gi", vectors, factor * turned)
    backward = np.swapaxes(vectors, 1, 2)
    spread = (vectors * (factor**2 * values)[:, None, :]) @ backward
    cross = (vectors * (factor * values)[:, None, :]) @ backward
    return Pieces(scores, spread, cross, int(is_full.any(axis=1).sum()))


def _adjust_in_response(
    made: Pieces,
    gram: npt.NDArray[np.float64],
    basis: Matrix,
    error: Vector,
    variance: Vector,
    starts: IntVector,
) -> None:
    """Overwrite the pieces of clusters whose working variance varies.

    Small ones are decomposed together, size by size, where that loses no digits.
    """
    lowest = np.minimum.reduceat(variance, starts[:-1])
    highest = np.maximum.reduceat(variance, starts[:-1])
    sizes = np.diff(starts)
    varies = highest > lowest * (1.0 + 1e-12)
    is_small = varies & (sizes <= _SMALL) & (highest <= _MILD * lowest)
    is_small[is_small] = np.linalg.eigvalsh(gram[is_small])[:, -1] < _LOW_LEVERAGE
    batches = [
        np.flatnonzero(is_small & (sizes == size)) for size in set(sizes.tolist())
    ]
    batches += [np.array([g]) for g in np.flatnonzero(varies & ~is_small)]
    for members in batches:
        if len(members) == 0:
            continue
        rows = starts[members][:, None] + np.arange(sizes[members[0]])
        inside, spread = basis[rows], variance[rows] / highest[members][:, None]
        if is_small[members[0]]:
            adjusted = small_response_roots(inside, spread)
        else:
            adjusted = response_root(inside[0], spread[0], gram[members[0]])[None]
        backward = np.swapaxes(adjusted, 1, 2)
        made.scores[members] = (backward @ error[rows][..., None])[..., 0]
        made.spread[members] = backward @ adjusted
        made.cross[members] = np.swapaxes(inside, 1, 2) @ adjusted


def untransposed_scores(model: ClusteredRegression) -> Iterator[Matrix]:
    r"""Yield the scores of ``vcovCL(type = "HC2" | "HC3")`` of R `sandwich`, (B, p).

    .. math:: X_g^\top (I - X_g (X^\top W X)^{-1} X_g^\top W_g)^{-a} u_g,

    with the score residuals u and a = 1/2 or 1 (``power``). For unit weights this
    is CR2 or CR3. With others the hat matrix acts on residuals that are already
    weighted, so the result is not the leave-one-cluster-out one; it is kept to
    reproduce that package.

    References
    ----------
    Zeileis, Koell and Graham (2020), J. Stat. Softw. 95(1), section 3.2.
    """
    p = model.design.shape[1]
    for first, last in _blocks(model.bounds, max(1, _ENTRIES // p**2)):
        rows = model.order[model.bounds[first] : model.bounds[last]]
        starts = model.bounds[first : last + 1] - model.bounds[first]
        design, residual = model.design[rows], model.residual[rows]
        basis, _ = _whitened(model, rows)
        spans = list(pairwise(starts))
        gram = np.stack([basis[a:b].T @ basis[a:b] for a, b in spans])
        plain = np.stack([design[a:b].T @ design[a:b] for a, b in spans])
        sums = np.add.reduceat(design * residual[:, None], starts[:-1], axis=0)
        weighted = np.add.reduceat(
            design * (model.weight[rows] * residual)[:, None], starts[:-1], axis=0
        )
        values, vectors = np.linalg.eigh(gram)
        values = np.clip(values, 1e-300, 1.0 - FULL_LEVERAGE)
        excess = np.expm1(-model.power * np.log1p(-values)) / values
        inner = linalg.solve_triangular(model.triangle, weighted.T, trans="T").T
        inner = np.einsum("gij,gi->gj", vectors, inner)
        inner = np.einsum("gij,gj->gi", vectors, excess * inner)
        inner = linalg.solve_triangular(model.triangle, inner.T).T
        yield sums + np.einsum("gij,gj->gi", plain, inner)
