r"""Inference along a path of stochastic gradient descent (Polyak-Ruppert averages)."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from eestim._arrays import Matrix, Vector, as_float
from eestim.covariance.base import sandwich
from eestim.diagnostics.random_scaling import (
    RandomScalingTest,
    random_scaling_critical,
    random_scaling_tail,
)
from eestim.errors import DataError, InferenceError
from eestim.findings import Finding
from eestim.inference.wald import independent_restrictions
from eestim.moments import Moments

__all__ = [
    "RANDOM_SCALING",
    "PathAverage",
    "batch_means",
    "plug_in",
    "sgd_convergence",
]

RANDOM_SCALING = {0.80: 3.875, 0.90: 5.323, 0.95: 6.747, 0.98: 8.613}
"""Two-sided critical values of the random-scaling statistic, by level.

Abadir and Paruolo (1997), Econometrica 65, Table 1, at the levels that they print.
"""


@dataclass(frozen=True, slots=True)
class PathAverage:
    r"""The running average of iterates with its random-scaling variance.

    .. math:: \hat V = n^{-2} \sum_{s=1}^n s^2
              (\bar\beta_s - \bar\beta_n)(\bar\beta_s - \bar\beta_n)^\top,

    kept as three sums, so that a path is never stored. For one pass over independent
    data with steps :math:`\gamma_0 t^{-a}`, a in (1/2, 1); not for Adam, constant
    steps, weight decay or several passes, which converge to the empirical root.

    References
    ----------
    Lee, Liao, Seo and Shin (2022), AAAI 36(7), eqs. 5-8.

    Examples
    --------
    >>> path = PathAverage.start(1)
    >>> for value in (1.0, 3.0):
    ...     path = path.updated(np.array([value]))
    >>> path.mean, path.covariance
    (array([2.]), array([[0.25]]))
    """

    n: int
    mean: Vector
    outer: Matrix
    linear: Vector
    squares: float

    @classmethod
    def start(cls, size: int) -> "PathAverage":
        """Return the average of no iterates of a given length."""
        return cls(0, np.zeros(size), np.zeros((size, size)), np.zeros(size), 0.0)

    def updated(self, iterate: Vector) -> "PathAverage":
        """Return the average with one more iterate."""
        n = self.n + 1
        mean = self.mean + (np.asarray(iterate) - self.mean) / n
        return PathAverage(
            n,
            mean,
            self.outer + n**2 * np.outer(mean, mean),
            self.linear + n**2 * mean,
            self.squares + float(n**2),
        )

    @property
    def covariance(self) -> Matrix:
        r"""The random-scaling matrix :math:`\hat V`, not yet divided by n."""
        cross = np.outer(self.linear, self.mean)
        total: Matrix = (
            self.outer - cross - cross.T + self.squares * np.outer(self.mean, self.mean)
        ) / self.n**2
        return total

    def interval(
        self,
        level: float = 0.95,
        simultaneous: Literal["bonferroni"] | None = None,
    ) -> tuple[Vector, Vector]:
        r"""Return bounds :math:`\bar\beta_j \pm c \sqrt{\hat V_{jj} / n}`.

        Parameters
        ----------
        level : float
            With the published value of c where `RANDOM_SCALING` has it, else that of
            the exact law (`random_scaling_critical`).
        simultaneous : "bonferroni", optional
            For all parameters at once, each at level :math:`1 - \alpha / p`.

        Raises
        ------
        ValueError
            If the level is not between 0 and 1, or the method has no such name.
        InferenceError
            If the path is shorter than 100 steps.
        """
        if not 0.0 < level < 1.0:
            raise ValueError(f"`level` must lie between 0 and 1; got {level!r}.")
        if simultaneous not in (None, "bonferroni"):
            raise ValueError(
                f"`simultaneous` must be None or 'bonferroni'; got {simultaneous!r}."
            )
        self._check_length()
        if simultaneous is not None:
            level = 1.0 - (1.0 - level) / len(self.mean)
        critical = RANDOM_SCALING.get(level)
        if critical is None:
            critical = random_scaling_critical(level, 1)[0] ** 0.5
        spread = np.sqrt(np.maximum(np.diag(self.covariance), 0.0) / self.n)
        return self.mean - critical * spread, self.mean + critical * spread

    def wald(self, R: Any, r: Any = None) -> RandomScalingTest:
        r"""Return the joint test of :math:`R\beta = r`.

        .. math:: n (R\bar\beta - r)^\top (R \hat V R^\top)^{-1} (R\bar\beta - r)

        against the law of `random_scaling_tail` on the number of independent
        restrictions, which does not depend on the equations or on their correlation.

        Parameters
        ----------
        R : (m, p) or (p,) array
        r : (m,) array, optional
            Zero by default.

        Raises
        ------
        DataError
            If R or r has another shape.
        InferenceError
            If the path is shorter than 100 steps, or restrictions without variance
            contradict it.

        References
        ----------
        Lee, Liao, Seo and Shin (2022), AAAI 36(7), theorem 2.

        Examples
        --------
        >>> path = PathAverage.start(2)
        >>> for value in np.random.default_rng(0).normal(size=(500, 2)):
        ...     path = path.updated(value)
        >>> print(path.wald(np.eye(2)))
        random scaling(2) = 45.06, p = 0.193 (0.0007)
        """
        self._check_length()
        restrictions = np.atleast_2d(as_float(R, "R"))
        values = np.zeros(len(restrictions)) if r is None else as_float(r, "r")
        values = np.atleast_1d(values)
        if restrictions.shape[1] != len(self.mean) or len(values) != len(restrictions):
            raise DataError(
                f"`R` has shape {restrictions.shape} and `r` {values.shape} for "
                f"{len(self.mean)} parameters; expected (m, {len(self.mean)}) and (m,)."
            )
        kept = independent_restrictions(
            self.mean, self.covariance / self.n, restrictions, values
        )
        p, error = random_scaling_tail(kept.quadratic, kept.rank)
        return RandomScalingTest(kept.quadratic, kept.rank, p, error)

    def _check_length(self) -> None:
        if self.n < 100:
            raise InferenceError(
                f"the path has {self.n} steps; at least 100 are needed for its own "
                "scale to mean anything."
            )


def batch_means(path: Matrix, batches: int | None = None) -> Matrix:
    r"""Return the covariance of the average of a path by batches of growing length.

    It under-covers at practical lengths (0.90 for 0.95 at n = 20,000 in the design
    of Lee et al.); prefer `PathAverage` or the plug-in sandwich.

    Parameters
    ----------
    path : (n, p) array
    batches : int, optional
        About the fourth root of n by default.

    Returns
    -------
    (p, p) array
        Covariance of the mean of the path.

    References
    ----------
    Chen, Lee, Tong and Zhang (2020), Ann. Statist. 48, 251-273.
    """
    n = len(path)
    count = batches or max(4, round(n**0.25))
    edges = (n * (np.arange(count + 1) / count) ** 2).astype(int)
    pieces = [path[a:b] for a, b in pairwise(edges) if b > a]
    kept = pieces[1:]  # the first is burn-in
    centre = np.concatenate(kept).mean(axis=0)
    size = sum(map(len, kept))
    deviations = [piece.mean(axis=0) - centre for piece in kept]
    long_run = sum(
        len(piece) * np.outer(d, d) for piece, d in zip(kept, deviations, strict=True)
    ) / len(kept)
    covariance: Matrix = np.asarray(long_run) / size
    return covariance


def plug_in(moments: Moments) -> Matrix:
    r"""Return the sandwich of A and M averaged along a path, (p, p).

    .. math:: \hat A^{-1} \hat M \hat A^{-\top} / n

    Add the `Moments` of each step, at the iterate of that step, leaving out the first
    tenth; n is the number of units seen.

    Examples
    --------
    >>> one = Moments(50.0, np.zeros(1), np.array([[4.0]]), np.array([[2.0]]))
    >>> plug_in(one + one)
    array([[0.01]])
    """
    return sandwich(moments.sensitivity, moments.meat, moments.n)


def sgd_convergence(
    residual: float, threshold: float = 0.1, passes: float = 1.0
) -> Finding:
    """Judge an iterate by the mean of psi in units of its noise (`root.residual`).

    Parameters
    ----------
    residual : float
    threshold : float
        Warned above; failed above 1.
    passes : float
        Passes over the data. After more than one, iterates approach the root of the
        sample: intervals along the path then hold that root, not the truth.
    """
    is_far, is_failed = residual > threshold, residual > 1.0
    again = passes > 1.0
    advice = []
    if is_far:
        advice.append(
            "Train longer, average the iterates, or polish with "
            "ee.estimate(eq, start=...)."
        )
    if again:
        advice.append(
            "Use the sandwich at the estimate; random scaling and batch means are for "
            "one pass."
        )
    return Finding(
        "sgd convergence",
        "fail" if is_failed else "warn" if is_far or again else "pass",
        residual,
        threshold,
        f"The mean of psi is {residual:.2g} times its noise at the final iterate, "
        f"after {passes:g} pass(es) over the data.",
        " ".join(advice),
        "Decreasing steps; not Adam, constant steps or weight decay.",
    )
