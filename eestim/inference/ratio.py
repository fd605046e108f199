r"""Ratios of sums over clusters: held-out loss per token, paired and clustered.

A difference of held-out losses is a ratio of two sums over documents. Tokens of one
document share its subject and its author, so documents are the independent units.
"""

from dataclasses import dataclass

import numpy as np
import scipy

from eestim._arrays import Vector
from eestim.errors import DataError, InferenceError

__all__ = ["Ratio", "ratio", "satterthwaite_dof"]


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio of sums over clusters with its standard error.

    Attributes
    ----------
    estimate, se : float
    dof : float
        Satterthwaite degrees of freedom of the t interval.
    n_clusters : int
    size : float
        Sum of the denominators (tokens or bytes).
    """

    estimate: float
    se: float
    dof: float
    n_clusters: int
    size: float

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return (lower, upper) by Student's t.

        Examples
        --------
        >>> low, high = ratio([1.0, 2.0, 3.0], [1.0, 1.0, 1.0]).interval()
        >>> round(low, 3), round(high, 3)  # the textbook t interval of a mean
        (-0.484, 4.484)
        """
        if not 0 < level < 1:
            raise ValueError(f"`level` is {level}; it must lie between 0 and 1.")
        half = float(scipy.stats.t.ppf((1 + level) / 2, self.dof)) * self.se
        return self.estimate - half, self.estimate + half


def ratio(numerator: Vector, denominator: Vector) -> Ratio:
    r"""Return a ratio of cluster sums with its CR2 standard error.

    .. math::
        \Delta = \frac{\sum_d D_d}{\sum_d T_d}, \quad u_d = D_d - \Delta T_d, \quad
        se^2 = \frac{1}{N^2} \sum_d \frac{u_d^2}{1 - T_d / N}, \quad N = \sum_d T_d

    This is the CR2 variance of the intercept when each of the T_d rows of cluster d
    has its own value; the t interval has Satterthwaite degrees of freedom.

    Parameters
    ----------
    numerator : (G,) array
        Sum over each cluster, D, such as a difference of losses.
    denominator : (G,) array
        Positive size of each cluster, T, such as its tokens or bytes.

    Raises
    ------
    DataError
        If values are missing, infinite or of different length, or a size is not
        positive.
    InferenceError
        If there are fewer than two clusters.

    References
    ----------
    Bell and McCaffrey (2002), Survey Methodology 28(2); Pustejovsky and Tipton
    (2018), J. Bus. Econ. Stat. 36(4), section 3.

    Examples
    --------
    Clusters of equal size give the mean and its usual standard error.

    >>> result = ratio([1.0, 2.0, 3.0], [1.0, 1.0, 1.0])
    >>> result.estimate, round(result.se, 6), round(result.dof, 6)
    (2.0, 0.57735, 2.0)
    """
    top, size = _checked(numerator, denominator)
    total = float(size.sum())
    estimate = float(top.sum() / total)
    share = size / total
    residual = top - estimate * size
    variance = float((residual**2 / (1 - share)).sum()) / total**2
    return Ratio(estimate, variance**0.5, satterthwaite_dof(size), len(size), total)


def satterthwaite_dof(size: Vector) -> float:
    r"""Return the degrees of freedom of the CR2 variance of a ratio.

    .. math::
        \nu = \frac{(\sum_g G_{gg})^2}{\sum_{g,k} G_{gk}^2}, \quad
        G_{gg} = T_g, \quad
        G_{gk} = \frac{- T_g T_k / N}{\sqrt{(1 - T_g/N)(1 - T_k/N)}}

    under a working model of independent rows; G - 1 where clusters are equal.

    Parameters
    ----------
    size : (G,) array
        Sizes of the clusters.

    Examples
    --------
    >>> round(satterthwaite_dof(np.ones(10)), 6)
    9.0
    """
    size = np.asarray(size, dtype=np.float64)
    total = size.sum()
    scaled = size**2 / total / (1 - size / total)
    off_diagonal = scaled.sum() ** 2 - (scaled**2).sum()
    return float(total**2 / ((size**2).sum() + off_diagonal))


def _checked(numerator: Vector, denominator: Vector) -> tuple[Vector, Vector]:
    """Return both as float64 vectors that a ratio can be made of."""
    top = np.asarray(numerator, dtype=np.float64)
    size = np.asarray(denominator, dtype=np.float64)
    if top.ndim != 1 or top.shape != size.shape:
        raise DataError(
            f"`numerator` has shape {top.shape} and `denominator` {size.shape}; give "
            "one value per cluster in each."
        )
    bad = np.flatnonzero(~(np.isfinite(top) & np.isfinite(size) & (size > 0)))
    if bad.size:
        raise DataError(
            f"cluster {bad[0]} has numerator {top[bad[0]]} and size {size[bad[0]]}; "
            "values must be finite and sizes positive. Drop or repair that cluster."
        )
    if len(top) < 2:
        raise InferenceError(
            f"`numerator` has {len(top)} cluster; a standard error needs at least 2. "
            "Give more documents."
        )
    return top, size
