"""Degrees of freedom of clustered variances, matched under the working model."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import linalg

from eestim._arrays import Matrix, Vector
from eestim.covariance._clusters import ClusteredRegression, pieces

__all__ = ["Satterthwaite", "quadratic_moments", "satterthwaite_dof"]

_MOMENT_ENTRIES = 1 << 22  # of one (p, p) matrix for each contrast
_NO_VARIANCE = 1e-10  # expected variance of a contrast, 1 for independent rows


@dataclass(frozen=True, slots=True)
class Satterthwaite:
    """Degrees of freedom of clustered variances, matched under the working model.

    Calling it with contrasts (m, p) returns (m,) degrees of freedom; `moments`
    returns what the approximate Hotelling tests need.

    Attributes
    ----------
    model : ClusteredRegression
    transform : (r, p) array or None
        Parameters of the estimate as linear functions of those of the model.
    """

    model: ClusteredRegression
    transform: Matrix | None = None

    def _own(self, contrasts: Matrix) -> Matrix:
        rows = np.atleast_2d(np.asarray(contrasts, dtype=np.float64))
        return rows if self.transform is None else rows @ self.transform

    def __call__(self, contrasts: Matrix) -> Vector:
        """Return the degrees of freedom of each row, (m,)."""
        return satterthwaite_dof(self.model, self._own(contrasts))

    def moments(self, contrasts: Matrix) -> tuple[Matrix, npt.NDArray[np.float64]]:
        """Return mean (q, q) and covariance (q, q, q, q) of ``C V C'``.

        Rows of contrasts are scaled; see `quadratic_moments`.
        """
        return quadratic_moments(self.model, self._own(contrasts))

    def transformed(self, transform: Matrix) -> "Satterthwaite":
        """Return the same for parameters ``transform @ theta``."""
        return Satterthwaite(self.model, self._own(transform))


def satterthwaite_dof(model: ClusteredRegression, contrasts: Matrix) -> Vector:
    r"""Return the degrees of freedom of the variance of each contrast, (m,).

    .. math::
        \nu = \frac{(\sum_g P_{gg})^2}{\sum_{g,h} P_{gh}^2}, \quad
        P_{gh} = 1\{g = h\}\, u^\top S_g u - u^\top F_g^\top F_h u, \quad
        u = R^{-\top} c,

    P being the covariance of the clusters' contributions under the working model.

    Parameters
    ----------
    model : ClusteredRegression
    contrasts : (m, p) array
        Rows c; the variance is that of ``c' theta``. Where the residuals carry no
        information on it (its variance is zero whatever the errors) the result is 0.

    References
    ----------
    Bell and McCaffrey (2002), Survey Methodology 28, 169-181, eq. 8; Pustejovsky
    and Tipton (2018), J. Bus. Econ. Stat. 36, 672-683, eq. 9.
    """
    most = max(1, _MOMENT_ENTRIES // contrasts.shape[1] ** 2)
    if len(contrasts) > most:
        parts = np.split(contrasts, range(most, len(contrasts), most))
        return np.concatenate([satterthwaite_dof(model, part) for part in parts])
    turned = _turned(model, contrasts)
    m, p = turned.shape
    total, squares = np.zeros(m), np.zeros(m)
    outer = np.zeros((m, p, p))
    for block in pieces(model):
        own = np.einsum("mi,gij,mj->gm", turned, block.spread, turned, optimize=True)
        shared = np.einsum("gij,mj->mgi", block.cross, turned)
        length = np.square(shared).sum(axis=2).T
        total += (own - length).sum(axis=0)
        squares += (own**2 - 2.0 * own * length).sum(axis=0)
        outer += np.swapaxes(shared, 1, 2) @ shared
    squares += np.square(outer).sum(axis=(1, 2))
    is_seen = total > _NO_VARIANCE
    return np.where(is_seen, total**2 / np.where(is_seen, squares, 1.0), 0.0)


def _turned(model: ClusteredRegression, contrasts: Matrix) -> Matrix:
    """Return ``R^{-T} c`` for the rows c, scaled to length one, (m, p)."""
    turned = linalg.solve_triangular(model.triangle, contrasts.T, trans="T").T
    scaled: Matrix = turned / np.linalg.norm(turned, axis=1, keepdims=True)
    return scaled


def quadratic_moments(
    model: ClusteredRegression, contrasts: Matrix
) -> tuple[Matrix, npt.NDArray[np.float64]]:
    r"""Return mean and covariance of the cluster covariance of several contrasts.

    Under the working model and normal errors, ``C V C'`` is
    :math:`\sum_g y_g y_g^\top` with
    :math:`E\, y_{gs} y_{ht} = P^{st}_{gh}`, hence

    .. math::
        E_{st} = \sum_g P^{st}_{gg}, \quad
        \mathrm{Cov}_{st,uv} =
        \sum_{g,h} P^{su}_{gh} P^{tv}_{gh} + P^{sv}_{gh} P^{tu}_{gh} .

    Parameters
    ----------
    model : ClusteredRegression
    contrasts : (q, p) array

    Returns
    -------
    mean : (q, q) array
    covariance : (q, q, q, q) array
        In units in which a row of contrasts has variance one under the model with
        independent rows.

    References
    ----------
    Pustejovsky and Tipton (2018), J. Bus. Econ. Stat. 36, 672-683, appendix.
    """
    turned = _turned(model, contrasts)
    q, p = turned.shape
    mean, product = np.zeros((q, q)), np.zeros((q * q, q * q))
    outer = np.zeros((q, q, p, p))  # sum over g of f_g^s f_g^t'
    for block in pieces(model):
        own = np.einsum("si,gij,tj->gst", turned, block.spread, turned, optimize=True)
        shared = np.einsum("gij,sj->gsi", block.cross, turned)
        both = shared @ np.swapaxes(shared, 1, 2)
        mean += (own - both).sum(axis=0)
        flat, pair = own.reshape(-1, q * q), both.reshape(-1, q * q)
        product += flat.T @ flat - flat.T @ pair - pair.T @ flat
        outer += np.einsum("gsi,gtj->stij", shared, shared, optimize=True)
    # sum over g, h of P^{su}_{gh} P^{tv}_{gh}, indexed (s, u, t, v)
    halves = outer.reshape(q * q, p * p)
    linked = (halves @ halves.T).reshape(q, q, q, q)  # (s, t, u, v)
    paired = product.reshape(q, q, q, q) + np.swapaxes(linked, 1, 2)
    first = np.swapaxes(paired, 1, 2)  # (s, t, u, v): P^{su} P^{tv}
    covariance = first + np.swapaxes(first, 2, 3)
    return mean, covariance
