"""Inverse square roots of a diagonal matrix minus one of low rank."""

import numpy as np
import numpy.typing as npt
from scipy import special

from eestim._arrays import Matrix, Vector

__all__ = [
    "FULL_LEVERAGE",
    "inverse_root_nodes",
    "response_root",
    "small_response_roots",
]

# One minus a leverage eigenvalue below this is the rounding of an exact zero: the
# cluster alone determines a direction of theta and its residuals there vanish.
FULL_LEVERAGE = 1e-10
_SMALLEST = 1e-12  # of a variance relative to the largest: the row has no weight
_NODE_ENTRIES = 1 << 18  # of the (nodes, p, rows) products of a quadrature


def response_root(basis: Matrix, variance: Vector, gram: Matrix) -> Matrix:
    r"""Return ``Y = Phi {Phi (I - Z Z') Phi}^{-1/2} Z`` without an (n_g, n_g) array.

    .. math::
        B^{-1/2} = \frac{2}{\pi} \int_0^\infty (B + t^2 I)^{-1} dt, \quad
        B = \Phi^2 - \Phi Z Z^\top \Phi,

    each inverse by Woodbury's identity through a (p, p) matrix in which nothing is
    subtracted, the integral by a rule that converges geometrically.

    Parameters
    ----------
    basis : (n_g, p) array
        Z, the cluster's rows of an orthonormal basis.
    variance : (n_g,) array
        Positive diagonal of Phi.
    gram : (p, p) array
        ``Z' Z``.

    References
    ----------
    Hale, Higham and Trefethen (2008), SIAM J. Numer. Anal. 46, 2505-2523.
    """
    values, vectors = np.linalg.eigh(gram)
    free = 1.0 - values
    is_full = free < FULL_LEVERAGE
    remaining = (vectors * np.where(is_full, 0.0, free)) @ vectors.T
    right = basis
    if is_full.any():  # the null space of B is left out of the root
        null = np.linalg.qr((basis / variance[:, None]) @ vectors[:, is_full])[0]
        right = basis - null @ (null.T @ basis)
    smallest = float(free[~is_full].min(initial=1.0))
    variance = np.maximum(variance, _SMALLEST * variance.max())
    squares = np.square(variance)
    nodes, weights = inverse_root_nodes(
        smallest * float(squares.min()), float(squares.max())
    )
    inner = np.zeros((2, len(nodes), *gram.shape))
    size = max(1, _NODE_ENTRIES // (len(nodes) * len(gram)))
    chunks = [slice(a, a + size) for a in range(0, len(basis), size)]
    for rows in chunks:
        shrunk = 1.0 / (squares[rows] + nodes[:, None] ** 2)  # (nodes, rows)
        turned = basis[rows].T[None]
        inner[0] += (turned * (nodes[:, None] ** 2 * shrunk)[:, None]) @ basis[rows]
        inner[1] += (turned * (variance[rows] * shrunk)[:, None]) @ right[rows]
    solved = np.linalg.solve(remaining + inner[0], inner[1]) * weights[:, None, None]
    root = right.copy()
    for rows in chunks:
        shrunk = squares[rows] / (squares[rows] + nodes[:, None] ** 2)
        root[rows] += np.einsum("tr,trk->rk", shrunk, basis[rows] @ solved)
    return root


def small_response_roots(
    basis: npt.NDArray[np.float64], variance: Matrix
) -> npt.NDArray[np.float64]:
    """Return `response_root` of many clusters of one small size, (m, n_g, p).

    By eigenvalues of the (n_g, n_g) matrices, which must not be singular and lose
    the digits of the squared ratio of variances.
    """
    hat = basis @ np.swapaxes(basis, 1, 2)
    inner = np.eye(variance.shape[1]) - hat
    values, vectors = np.linalg.eigh(
        variance[:, :, None] * inner * variance[:, None, :]
    )
    turned = np.swapaxes(vectors, 1, 2) @ basis
    root: npt.NDArray[np.float64] = vectors @ (turned / np.sqrt(values)[..., None])
    return variance[..., None] * root


def inverse_root_nodes(low: float, high: float) -> tuple[Vector, Vector]:
    r"""Return t and w with :math:`\sum_j w_j / (b + t_j^2) = b^{-1/2}` on [low, high].

    The substitution :math:`t = \sqrt{low}\, \mathrm{sc}(u, k')` with
    :math:`k^2 = low / high` makes the integrand periodic and analytic, so the
    midpoint rule converges like :math:`\exp\{-2 \pi^2 N / \log(16 high / low)\}`;
    N is chosen for full precision.

    References
    ----------
    Hale, Higham and Trefethen (2008), SIAM J. Numer. Anal. 46, 2505-2523, sec. 4.

    Examples
    --------
    >>> t, w = inverse_root_nodes(1e-6, 1.0)
    >>> round(float((w / (0.01 + t**2)).sum()), 12)
    10.0
    """
    ratio = min(low / high, 0.25)
    low = ratio * high
    modulus = float(np.sqrt(ratio))
    quarter = float(special.ellipk(ratio))
    period = float(special.ellipkm1(ratio))  # K'
    count = int(np.ceil(37.0 * np.log(16.0 / ratio) / (2.0 * np.pi**2))) + 1
    count += count % 2
    u = (np.arange(count // 2) + 0.5) * period / count
    # sc(u, k') = -i sn(iu, k) by its Fourier series in the nome of k, which
    # converges fast for u <= K'/2; the other half follows by reflection.
    nome = np.exp(-np.pi * period / quarter)
    odd = 2.0 * np.arange(24)[:, None] + 1.0
    terms = nome ** (odd / 2) / (1.0 - nome**odd)
    series = terms * np.sinh(odd * np.pi * u / (2.0 * quarter))
    tangent = 2.0 * np.pi / (quarter * modulus) * series.sum(axis=0)
    tangent = np.concatenate([tangent, 1.0 / (modulus * tangent)])
    speed = np.sqrt((1.0 + ratio * tangent**2) * (1.0 + tangent**2))
    weights = 2.0 / np.pi * np.sqrt(low) * speed * period / count
    return np.sqrt(low) * tangent, weights
