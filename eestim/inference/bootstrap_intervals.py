"""Bootstrap confidence intervals as values: percentile, basic, studentized, BCa."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from scipy import stats

from eestim._arrays import Matrix, Vector, as_float
from eestim.covariance._refits import group_scores, groups_of
from eestim.covariance._resampling import draw_quantiles
from eestim.covariance._studentized import studentized_draws
from eestim.covariance.base import Covariance, covariance_of
from eestim.covariance.bootstrap import DEFAULT_SEED, Bootstrap, own_replicates
from eestim.covariance.jackknife import Jackknife
from eestim.equations import Evaluated
from eestim.errors import InferenceError
from eestim.findings import Finding

if TYPE_CHECKING:
    from eestim.estimation import Estimate

__all__ = [
    "BCa",
    "Basic",
    "Percentile",
    "Studentized",
    "allows_dependence",
    "resampling_of",
]

DEFAULT_DRAWS = 1999
_MOST_FAILURES = 0.05
_DEPENDENT = ("HAC", "panel", "Driscoll", "Beck-Katz", "Newey", "kernel")
_NOT_UNITS = ("block", "residual")  # draws with no influence of a unit behind them
_Functional = Callable[[Any], Any]


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
    h: _Functional | None = None
    names: Sequence[str] | None = None

    def interval(self, estimate: "Estimate", level: float = 0.95) -> pd.DataFrame:
        """Return estimate, lower and upper, one row a parameter."""
        tails = _tails(level)
        drawn = _drawn(estimate, self, "percentile")
        lower, upper = draw_quantiles(drawn.values, tails)
        return _frame(drawn, lower, upper)


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
    h: _Functional | None = None
    names: Sequence[str] | None = None

    def interval(self, estimate: "Estimate", level: float = 0.95) -> pd.DataFrame:
        """Return estimate, lower and upper, one row a parameter."""
        tails = _tails(level)
        drawn = _drawn(estimate, self, "basic")
        low, high = draw_quantiles(drawn.values, tails)
        return _frame(drawn, 2.0 * drawn.centre - high, 2.0 * drawn.centre - low)


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
    h: _Functional | None = None
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
        tails = _tails(level)
        drawn = _drawn(estimate, self, "BCa")
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
        return _frame(drawn, bounds[:, 0], bounds[:, 1])


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
    h: _Functional | None = None
    names: Sequence[str] | None = None
    is_symmetric: bool = False

    def interval(self, estimate: "Estimate", level: float = 0.95) -> pd.DataFrame:
        """Return estimate, lower and upper, one row a parameter."""
        tails = _tails(level)
        rule = resampling_of(estimate, self.draws, self.rng, self.by)
        drawn = studentized_draws(estimate.equation, estimate.root, rule)
        _refuse_failures(len(drawn.failures), rule.draws)
        target = _target(estimate, self.h, self.names)
        moved, errors, own = target.studentized(drawn.moved, drawn.spread, drawn.own)
        with np.errstate(divide="ignore", invalid="ignore"):
            t = moved / errors
        lost = ~np.isfinite(t).all(axis=1)
        _refuse_failures(len(drawn.failures) + int(lost.sum()), rule.draws)
        t = t[~lost]
        if self.is_symmetric:
            half = draw_quantiles(np.abs(t), [level])[0] * own
            lower, upper = target.centre - half, target.centre + half
        else:
            low, high = draw_quantiles(t, tails)
            lower, upper = target.centre - high * own, target.centre - low * own
        made = _Drawn(t, target.centre, target.names, drawn.text, drawn.findings, False)
        return _frame(made, lower, upper)


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
    offset = stats.norm.ppf(share)[:, None]
    sum_ = offset + stats.norm.ppf(np.asarray(tails))
    denominator = 1.0 - acceleration[:, None] * sum_
    if (denominator <= 0.0).any():
        raise InferenceError(
            "the acceleration is too large for this level; BCa is not defined. Use "
            "Studentized, or a smaller level."
        )
    levels: Matrix = stats.norm.cdf(offset + sum_ / denominator)
    return levels


# --------------------------------------------------------------- replicates, targets


def allows_dependence(covariance: Covariance) -> bool:
    """Whether a covariance allows for clusters or for dependence in time or space."""
    rule = covariance.rule
    return bool(covariance.n_clusters) or any(word in rule for word in _DEPENDENT)


def resampling_of(
    estimate: "Estimate",
    draws: int | None,
    rng: int | np.random.Generator | None,
    by: Bootstrap | None,
) -> Bootstrap:
    """Return the resampling rule of an interval or a test.

    Raises
    ------
    ValueError
        If it is given twice, or imposes a null hypothesis.
    InferenceError
        If the estimate allows for dependence and no rule is given.
    """
    if by is not None:
        if draws is not None or rng is not None:
            raise ValueError("`by` has its own draws and rng; pass one or the other.")
        if by.null is not None:
            raise ValueError(
                "`by` imposes a null hypothesis; intervals need draws around the "
                "estimate."
            )
        return by
    if allows_dependence(estimate.spread):
        raise InferenceError(
            f"the covariance of this estimate ({estimate.spread.rule}) allows for "
            "dependence, which draws of single units would ignore. Say how to "
            'resample, for instance `by=Bootstrap(kind="cluster", labels=...)`, '
            '"wild-cluster" or "block".'
        )
    return Bootstrap(
        "pairs",
        DEFAULT_DRAWS if draws is None else draws,
        DEFAULT_SEED if rng is None else rng,
    )


@dataclass(frozen=True, slots=True)
class _Drawn:
    """Replicates of what an interval is for."""

    values: Matrix
    centre: Vector
    names: tuple[str, ...]
    rule: str
    findings: tuple[Finding, ...]
    is_clustered: bool


@dataclass(frozen=True, slots=True)
class _Target:
    """The parameters, or a function of them."""

    estimate: "Estimate"
    h: _Functional | None
    centre: Vector
    names: tuple[str, ...]

    def value(self, theta: Vector) -> Vector:
        if self.h is None:
            return theta
        made = as_float(self.h(self.estimate._named(theta)), "h")
        return np.atleast_1d(made).ravel()

    def values(self, replicates: Matrix) -> Matrix:
        if self.h is None:
            return replicates
        made = np.array([self.value(row) for row in replicates])
        if not np.isfinite(made).all():
            bad = int((~np.isfinite(made).all(axis=1)).sum())
            raise InferenceError(
                f"`h` is not finite at {bad} of {len(made)} replicates; transform it, "
                "or use the delta method (`functional`)."
            )
        return made

    def studentized(
        self, moved: Matrix, spread: Matrix, own: Matrix
    ) -> tuple[Matrix, Matrix, Vector]:
        """Return moves, their standard errors and the standard error of the data."""
        theta = self.estimate.theta
        if self.h is None:
            errors = np.sqrt(np.diagonal(spread, axis1=1, axis2=2))
            return moved, errors, np.sqrt(np.diag(own))
        slopes = np.array([self._slope(row) for row in theta + moved])
        variance = np.einsum("rhp,rpq,rhq->rh", slopes, spread, slopes)
        here = self._slope(theta)
        mine = np.einsum("hp,pq,hq->h", here, own, here)
        away = self.values(theta + moved) - self.centre
        return away, np.sqrt(np.maximum(variance, 0.0)), np.sqrt(mine)

    def _slope(self, theta: Vector) -> Matrix:
        steps = 1e-3 * self.estimate.se.to_numpy()
        columns = []
        for j, step in enumerate(steps):
            direction = np.zeros(len(theta))
            direction[j] = step
            change = self.value(theta + direction) - self.value(theta - direction)
            columns.append(change / (2.0 * step))
        return np.stack(columns, axis=1)


def _target(
    estimate: "Estimate", h: _Functional | None, names: Sequence[str] | None
) -> _Target:
    if h is None:
        if names is not None:
            raise ValueError("`names` are those of the values of `h`; pass `h` too.")
        return _Target(estimate, None, estimate.theta, estimate.names)
    made = estimate.functional(h, names=names)
    return _Target(estimate, h, made.theta, made.names)


def _drawn(estimate: "Estimate", method: Percentile | Basic | BCa, kind: str) -> _Drawn:
    spread = _own_spread(estimate, method)
    if spread is None:
        rule = resampling_of(estimate, method.draws, method.rng, method.by)
        spread = covariance_of(estimate.equation, estimate.root, rule)
        made = spread.replicates
        assert made is not None  # a Bootstrap always keeps its replicates
        _refuse_failures(rule.draws - len(made), rule.draws)
    if kind == "BCa" and spread.rule.startswith(_NOT_UNITS):
        raise ValueError(
            f"BCa needs draws of units or clusters; these are from a {spread.rule}."
        )
    replicates = spread.replicates
    assert replicates is not None
    target = _target(estimate, method.h, method.names)
    return _Drawn(
        target.values(replicates),
        target.centre,
        target.names,
        f"{kind}, {spread.rule}",
        spread.findings,
        bool(spread.n_clusters),
    )


def _own_spread(
    estimate: "Estimate", method: Percentile | Basic | BCa
) -> Covariance | None:
    """Return the bootstrap covariance of the estimate where it is to be used."""
    if not (method.draws is None and method.rng is None and method.by is None):
        return None
    if own_replicates(estimate.spread) is None:
        return None
    if isinstance(estimate.equation, Evaluated):
        raise InferenceError(
            "the replicates of a tabulated estimate may be those of a linearised "
            "functional; compute the interval from the original fit (pass `h=` for a "
            "functional), or pass `by`."
        )
    return estimate.spread


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
    values = _target(estimate, method.h, method.names).values(left_out)
    centred: Matrix = values.mean(axis=0) - values
    return centred


def _refuse_failures(failed: int, draws: int) -> None:
    if failed > _MOST_FAILURES * draws:
        raise InferenceError(
            f"{failed} of {draws} replicates have no root or no variance, so quantiles "
            "of the others are not those of the estimate. Use "
            '`by=Bootstrap(kind="fractional")`, whose weights are positive.'
        )


def _tails(level: float) -> tuple[float, float]:
    if not 0.0 < level < 1.0:
        raise ValueError(f"`level` must lie between 0 and 1; got {level!r}.")
    return (1.0 - level) / 2.0, (1.0 + level) / 2.0


def _frame(drawn: _Drawn, lower: Vector, upper: Vector) -> pd.DataFrame:
    """Return the bounds; what was drawn and found is in ``attrs`` of the frame."""
    made = pd.DataFrame(
        {"estimate": drawn.centre, "lower": lower, "upper": upper},
        index=list(drawn.names),
    )
    made.attrs["rule"] = drawn.rule
    made.attrs["findings"] = drawn.findings
    return made
