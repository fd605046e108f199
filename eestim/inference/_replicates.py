"""Where the replicates of an interval or a test come from, and what they are of."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd

from eestim._arrays import Matrix, Vector, as_float
from eestim.covariance.base import Covariance, covariance_of
from eestim.covariance.bootstrap import DEFAULT_SEED, Bootstrap, own_replicates
from eestim.equations import Evaluated
from eestim.errors import InferenceError
from eestim.findings import Finding

if TYPE_CHECKING:
    from eestim.estimation import Estimate

__all__ = [
    "Drawn",
    "Functional",
    "Target",
    "allows_dependence",
    "drawn_for",
    "frame_of",
    "refuse_failures",
    "resampling_of",
    "tails_of",
    "target_of",
]

Functional: TypeAlias = Callable[[Any], Any]

DEFAULT_DRAWS = 1999
_MOST_FAILURES = 0.05
_DEPENDENT = ("HAC", "panel", "Driscoll", "Beck-Katz", "Newey", "kernel")
_NOT_UNITS = ("block", "residual")  # draws with no influence of a unit behind them


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
class Drawn:
    """Replicates of what an interval is for."""

    values: Matrix
    centre: Vector
    names: tuple[str, ...]
    rule: str
    findings: tuple[Finding, ...]
    is_clustered: bool


@dataclass(frozen=True, slots=True)
class Target:
    """The parameters, or a function of them."""

    estimate: "Estimate"
    h: Functional | None
    centre: Vector
    names: tuple[str, ...]

    def value(self, theta: Vector) -> Vector:
        """Return the function at one theta, (m,)."""
        if self.h is None:
            return theta
        made = as_float(self.h(self.estimate._named(theta)), "h")
        return np.atleast_1d(made).ravel()

    def values(self, replicates: Matrix) -> Matrix:
        """Return the function at each draw of theta, (R, m)."""
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


def target_of(
    estimate: "Estimate", h: Functional | None, names: Sequence[str] | None
) -> Target:
    if h is None:
        if names is not None:
            raise ValueError("`names` are those of the values of `h`; pass `h` too.")
        return Target(estimate, None, estimate.theta, estimate.names)
    made = estimate.functional(h, names=names)
    return Target(estimate, h, made.theta, made.names)


def drawn_for(estimate: "Estimate", method: Any, kind: str) -> Drawn:
    spread = _own_spread(estimate, method)
    if spread is None:
        rule = resampling_of(estimate, method.draws, method.rng, method.by)
        spread = covariance_of(estimate.equation, estimate.root, rule)
        made = spread.replicates
        assert made is not None  # a Bootstrap always keeps its replicates
        refuse_failures(rule.draws - len(made), rule.draws)
    if kind == "BCa" and spread.rule.startswith(_NOT_UNITS):
        raise ValueError(
            f"BCa needs draws of units or clusters; these are from a {spread.rule}."
        )
    replicates = spread.replicates
    assert replicates is not None
    target = target_of(estimate, method.h, method.names)
    return Drawn(
        target.values(replicates),
        target.centre,
        target.names,
        f"{kind}, {spread.rule}",
        spread.findings,
        bool(spread.n_clusters),
    )


def _own_spread(estimate: "Estimate", method: Any) -> Covariance | None:
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


def refuse_failures(failed: int, draws: int) -> None:
    if failed > _MOST_FAILURES * draws:
        raise InferenceError(
            f"{failed} of {draws} replicates have no root or no variance, so quantiles "
            "of the others are not those of the estimate. Use "
            '`by=Bootstrap(kind="fractional")`, whose weights are positive.'
        )


def tails_of(level: float) -> tuple[float, float]:
    if not 0.0 < level < 1.0:
        raise ValueError(f"`level` must lie between 0 and 1; got {level!r}.")
    return (1.0 - level) / 2.0, (1.0 + level) / 2.0


def frame_of(drawn: Drawn, lower: Vector, upper: Vector) -> pd.DataFrame:
    """Return the bounds; what was drawn and found is in ``attrs`` of the frame."""
    made = pd.DataFrame(
        {"estimate": drawn.centre, "lower": lower, "upper": upper},
        index=list(drawn.names),
    )
    made.attrs["rule"] = drawn.rule
    made.attrs["findings"] = drawn.findings
    return made
