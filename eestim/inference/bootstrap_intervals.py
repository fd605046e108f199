"""Bootstrap confidence intervals as values: percentile, basic, studentized, BCa."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import scipy

from eestim._arrays import Matrix, Vector
from eestim.covariance._refits import group_scores, groups_of
from eestim.covariance._resampling import draw_quantiles
from eestim.covariance._studentized import studentized_draws
from eestim.covariance.base import covariance_of
from eestim.covariance.bootstrap import Bootstrap
from eestim.covariance.jackknife import Jackknife
from eestim.errors import InferenceError
from eestim.inference._replicates import (
    Drawn,
    Functional,
    drawn_for,
    frame_of,
    refuse_failures,
    resampling_of,
    tails_of,
    target_of,
)

if TYPE_CHECKING:
    from eestim.estimation import Estimate

__all__ = ["BCa", "Basic", "Percentile", "Studentized"]


@dataclass(frozen=True, slots=True)
class Percentile:
    r"""The interval between quantiles of the replicates.

    .. math:: [\theta^*_{(\alpha/2)}, \theta^*_{(1 - \alpha/2)}]

    It follows monotone transformations of the parameter, and does not correct bias.

    Attributes
    ----------
    draws : int, optional
        Replicates, 1999 by default.
    rng : int or numpy Generator, optional
        A seed, 123 by default.
    by : Bootstrap, optional
        How to resample, in place of the two above; refits to pairs by default. With
        none of the three, an estimate whose covariance is a bootstrap lends its own
        replicates.
    h : callable, optional
        The interval is for :math:`h(\theta)`, evaluated at every replicate.
    names : sequence of str, optional
        Names of the values of h.

    Raises
    ------
    InferenceError
        If the covariance of the estimate allows for dependence and `by` does not say
        how to resample; if there are too few draws for the level; if more than 5% of
        the refits fail.

    References
    ----------
    Efron (1979), Ann. Statist. 7, 1-26; Davison and Hinkley (1997), section 5.3.
    """

    draws: int | None = None
    rng: int | np.random.Generator | None = None
    by: Bootstrap | None = None
    h: Functional | None = None
    names: Sequence[str] | None = None

    def interval(self, estimate: "Estimate", level: float = 0.95) -> pd.DataFrame:
        """Return estimate, lower and upper, one row a parameter."""
        tails = tails_of(level)
        drawn = drawn_for(estimate, self, "percentile")
        lower, upper = draw_quantiles(drawn.values, tails)
        return frame_of(drawn, lower, upper)


@dataclass(frozen=True, slots=True)
class Basic:
    r"""The interval that reflects quantiles of the replicates in the estimate.

    .. math:: [2\hat\theta - \theta^*_{(1 - \alpha/2)},
        2\hat\theta - \theta^*_{(\alpha/2)}]

    Attributes
    ----------
    draws, rng, by, h, names
        Those of `Percentile`.

    References
    ----------
    Davison and Hinkley (1997), Bootstrap Methods and their Application, eq. 5.6.
    """

    draws: int | None = None
    rng: int | np.random.Generator | None = None
    by: Bootstrap | None = None
    h: Functional | None = None
    names: Sequence[str] | None = None

    def interval(self, estimate: "Estimate", level: float = 0.95) -> pd.DataFrame:
        """Return estimate, lower and upper, one row a parameter."""
        tails = tails_of(level)
        drawn = drawn_for(estimate, self, "basic")
        low, high = draw_quantiles(drawn.values, tails)
        return frame_of(drawn, 2.0 * drawn.centre - high, 2.0 * drawn.centre - low)


@dataclass(frozen=True, slots=True)
class BCa:
    r"""The bias-corrected and accelerated interval.

    Quantiles of the replicates at

    .. math:: \Phi\Big(z_0 + \frac{z_0 + z_\alpha}{1 - a (z_0 + z_\alpha)}\Big),

    with :math:`\Phi(z_0)` the share of replicates below the estimate and
    :math:`a = \sum_i l_i^3 / \{6 (\sum_i l_i^2)^{3/2}\}`. It follows monotone
    transformations and is second-order accurate for smooth estimates.

    Attributes
    ----------
    draws, rng, by, h, names
        Those of `Percentile`; of the kinds of `by`, those that draw units or clusters.
    acceleration : {"influence", "jackknife"}
        The :math:`l_i` are influences of the units (clusters), or how far the estimate
        moves when each is deleted, which refits n times.

    Raises
    ------
    InferenceError
        Also where every replicate lies on one side of the estimate.

    References
    ----------
    Efron (1987), J. Am. Stat. Assoc. 82, 171-185; Davison and Hinkley (1997),
    eqs. 5.21-5.23 and 5.36.
    """

    draws: int | None = None
    rng: int | np.random.Generator | None = None
    by: Bootstrap | None = None
    h: Functional | None = None
    names: Sequence[str] | None = None
    acceleration: Literal["influence", "jackknife"] = "influence"

    def __post_init__(self) -> None:
        if self.acceleration not in ("influence", "jackknife"):
            raise ValueError(
                '`acceleration` must be "influence" or "jackknife"; got '
                f"{self.acceleration!r}."
            )

    def interval(self, estimate: "Estimate", level: float = 0.95) -> pd.DataFrame:
        """Return estimate, lower and upper, one row a parameter."""
        tails = tails_of(level)
        drawn = drawn_for(estimate, self, "BCa")
        labels = None if self.by is None else self.by.labels
        if labels is None and drawn.is_clustered:
            raise InferenceError(
                "BCa needs the clusters of the replicates; pass "
                '`by=Bootstrap(kind="cluster", labels=...)`.'
            )
        influence = _jackknife_values(estimate, self, labels)
        adjusted = bca_levels(
            drawn.values, drawn.centre, acceleration_of(influence), tails
        )
        bounds = np.array(
            [
                draw_quantiles(column, levels)
                for column, levels in zip(drawn.values.T, adjusted, strict=True)
            ]
        )
        return frame_of(drawn, bounds[:, 0], bounds[:, 1])


@dataclass(frozen=True, slots=True)
class Studentized:
    r"""The bootstrap t interval.

    .. math:: [\hat\theta - t^*_{(1-\alpha/2)} s, \hat\theta - t^*_{(\alpha/2)} s],
        \qquad t^* = (\theta^* - \hat\theta) / s^*

    with s and :math:`s^*` the plain sandwich (HC0, CR0 of clusters) of the data and of
    each replicate, whatever the covariance rule of the estimate. Second-order
    accurate, but not invariant to transformations.

    Attributes
    ----------
    draws, rng, by, h, names
        Those of `Percentile`; replicates are always drawn anew. Kinds "multiplier",
        "wild" and "wild-cluster" need no refits.
    is_symmetric : bool
        Use quantiles of :math:`|t^*|` on both sides.

    References
    ----------
    Hall (1992), The Bootstrap and Edgeworth Expansion; Davison and Hinkley (1997),
    eq. 5.7.
    """

    draws: int | None = None
    rng: int | np.random.Generator | None = None
    by: Bootstrap | None = None
    h: Functional | None = None
    names: Sequence[str] | None = None
    is_symmetric: bool = False

    def interval(self, estimate: "Estimate", level: float = 0.95) -> pd.DataFrame:
        """Return estimate, lower and upper, one row a parameter."""
        tails = tails_of(level)
        rule = resampling_of(estimate, self.draws, self.rng, self.by)
        drawn = studentized_draws(estimate.equation, estimate.root, rule)
        refuse_failures(len(drawn.failures), rule.draws)
        target = target_of(estimate, self.h, self.names)
        moved, errors, own = target.studentized(drawn.moved, drawn.spread, drawn.own)
        with np.errstate(divide="ignore", invalid="ignore"):
            t = moved / errors
        lost = ~np.isfinite(t).all(axis=1)
        refuse_failures(len(drawn.failures) + int(lost.sum()), rule.draws)
        t = t[~lost]
        if self.is_symmetric:
            half = draw_quantiles(np.abs(t), [level])[0] * own
            lower, upper = target.centre - half, target.centre + half
        else:
            low, high = draw_quantiles(t, tails)
            lower, upper = target.centre - high * own, target.centre - low * own
        made = Drawn(t, target.centre, target.names, drawn.text, drawn.findings, False)
        return frame_of(made, lower, upper)


# ------------------------------------------------------------------------- formulas


def acceleration_of(influence: Matrix) -> Vector:
    r"""Return :math:`a = \sum_i l_i^3 / \{6 (\sum_i l_i^2)^{3/2}\}`, (p,).

    Examples
    --------
    >>> acceleration_of(np.array([[-1.0], [-1.0], [2.0]])).round(6)
    array([0.068041])
    """
    size = np.sqrt(np.square(influence).sum(axis=0))
    result: Vector = ((influence / size) ** 3).sum(axis=0) / 6.0
    return result


def bca_levels(
    replicates: Matrix, centre: Vector, acceleration: Vector, tails: Sequence[float]
) -> Matrix:
    r"""Return the levels at which quantiles of the replicates are taken, (p, k).

    Raises
    ------
    InferenceError
        If all replicates of a parameter lie on one side of the estimate, or the
        acceleration is too large for the level.

    Examples
    --------
    Without bias and acceleration they are the nominal ones:

    >>> draws = np.array([[-1.0], [1.0]])
    >>> bca_levels(draws, np.zeros(1), np.zeros(1), [0.025, 0.975]).round(6)
    array([[0.025, 0.975]])
    """
    ties = (replicates == centre).mean(axis=0) / 2.0
    share = (replicates < centre).mean(axis=0) + ties
    if ((share <= 0.0) | (share >= 1.0)).any():
        j = int(np.flatnonzero((share <= 0.0) | (share >= 1.0))[0])
        raise InferenceError(
            f"every replicate of parameter {j} lies on one side of the estimate, so "
            "the bias correction of BCa is infinite. Use more draws, or Studentized."
        )
    offset = scipy.stats.norm.ppf(share)[:, None]
    sum_ = offset + scipy.stats.norm.ppf(np.asarray(tails))
    denominator = 1.0 - acceleration[:, None] * sum_
    if (denominator <= 0.0).any():
        raise InferenceError(
            "the acceleration is too large for this level; BCa is not defined. Use "
            "Studentized, or a smaller level."
        )
    levels: Matrix = scipy.stats.norm.cdf(offset + sum_ / denominator)
    return levels


def _jackknife_values(estimate: "Estimate", method: BCa, labels: Any) -> Matrix:
    """Return the influences, or the moves under deletion, of units or clusters."""
    if method.acceleration == "influence":
        source = estimate
        if method.h is not None:
            source = estimate.functional(method.h, names=method.names)
        groups = groups_of(estimate.equation, estimate.theta, labels, "labels")
        return group_scores(source._influence(), groups)
    rule = Jackknife(groups=labels)
    left_out = covariance_of(estimate.equation, estimate.root, rule).replicates
    assert left_out is not None
    values = target_of(estimate, method.h, method.names).values(left_out)
    centred: Matrix = values.mean(axis=0) - values
    return centred
