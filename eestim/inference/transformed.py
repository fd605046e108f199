"""Wald intervals on a transformed scale."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import scipy
from scipy import special

from eestim._arrays import Vector
from eestim._differentiate import jacobian, response_steps
from eestim.errors import InferenceError
from eestim.inference._crossing import checked_level, interval_frame

__all__ = ["TRANSFORMS", "Transform", "Transformed"]

_Function: TypeAlias = Callable[[Any], Any]
_ROUND_TRIP = 1e-8


@dataclass(frozen=True, slots=True)
class Transform:
    """A strictly monotone function with its inverse and its slope.

    Attributes
    ----------
    name : str
    forward, inverse : callable
    slope : callable or None
        Derivative of ``forward``; by differences where it is None.
    domain : str
        In words, for error messages.
    """

    name: str
    forward: _Function
    inverse: _Function
    slope: _Function | None = None
    domain: str = "where the transform is finite"


def _normal_slope(p: Any) -> Any:
    return 1.0 / scipy.stats.norm.pdf(special.ndtri(p))


TRANSFORMS: dict[str, Transform] = {
    transform.name: transform
    for transform in (
        Transform("identity", lambda t: t, lambda z: z, np.ones_like, "any number"),
        Transform("log", np.log, np.exp, lambda t: 1.0 / t, "above 0"),
        Transform(
            "logit",
            special.logit,
            special.expit,
            lambda p: 1.0 / (p * (1.0 - p)),
            "between 0 and 1",
        ),
        Transform(
            "probit", special.ndtri, special.ndtr, _normal_slope, "between 0 and 1"
        ),
        Transform(
            "cloglog",
            lambda p: np.log(-np.log1p(-p)),
            lambda z: -np.expm1(-np.exp(z)),
            lambda p: -1.0 / ((1.0 - p) * np.log1p(-p)),
            "between 0 and 1",
        ),
        Transform(
            "atanh",
            np.arctanh,
            np.tanh,
            lambda r: 1.0 / (1.0 - r**2),
            "between -1 and 1",
        ),
        Transform(
            "sqrt",
            np.sqrt,
            lambda z: np.maximum(z, 0.0) ** 2,
            lambda t: 0.5 / np.sqrt(t),
            "above 0",
        ),
    )
}


def _resolved(link: Any) -> Transform:
    """Return a transform given by name, as a value, or as (forward, inverse)."""
    if isinstance(link, Transform):
        return link
    if isinstance(link, str):
        if link not in TRANSFORMS:
            raise ValueError(
                f"`link` must be one of {sorted(TRANSFORMS)} or a pair of functions "
                f"(forward, inverse); got {link!r}."
            )
        return TRANSFORMS[link]
    if isinstance(link, tuple) and len(link) == 2 and all(map(callable, link)):
        return Transform("given functions", link[0], link[1])
    raise TypeError(
        f"`link` must be one of {sorted(TRANSFORMS)} or a pair of functions (forward, "
        f"inverse); got {type(link).__name__}."
    )


@dataclass(frozen=True, slots=True)
class Transformed:
    r"""Wald intervals formed where the estimate is nearer to normal.

    .. math:: g^{-1}\{g(\hat\theta) \pm q\, \widehat{se}\, |g'(\hat\theta)|\}

    The interval keeps within the range of the parameter. q is the quantile of Student's
    t with the degrees of freedom of the covariance rule, or of the normal law.

    Attributes
    ----------
    link : str, (forward, inverse), or mapping
        "log", "logit", "probit", "cloglog", "atanh" (Fisher's z), "sqrt", or a pair of
        monotone functions; the same for every parameter. A mapping gives it by
        parameter, and leaves the others as they are.

    References
    ----------
    Agresti (2013), Categorical Data Analysis, section 3.1; Fisher (1921), for atanh.

    Examples
    --------
    >>> import eestim as ee
    >>> fit = ee.estimate(ee.mean([1.0, 2.0, 4.0, 5.0, 8.0, 10.0]))
    >>> fit.interval(method=Transformed("log")).round(3).values.tolist()
    [[5.0, 3.014, 8.294]]
    """

    link: Any

    def __post_init__(self) -> None:
        links = self.link.values() if isinstance(self.link, Mapping) else [self.link]
        for link in links:
            _resolved(link)

    def interval(self, estimate: Any, level: float = 0.95) -> pd.DataFrame:
        """Return estimate, lower and upper, one row a parameter.

        Raises
        ------
        InferenceError
            If an estimate lies outside the domain of its transform.
        """
        tail = 0.5 + checked_level(level) / 2.0
        dof = np.broadcast_to(estimate.spread.dof, len(estimate.names))
        half = scipy.stats.t.ppf(tail, dof) * np.sqrt(np.diag(estimate.spread.matrix))
        bounds = [
            _bounds(transform, float(value), float(length), name)
            for transform, value, length, name in zip(
                self._by_parameter(estimate.names),
                estimate.theta,
                half,
                estimate.names,
                strict=True,
            )
        ]
        return interval_frame(estimate.names, estimate.theta, bounds)

    def _by_parameter(self, names: tuple[str, ...]) -> list[Transform]:
        if not isinstance(self.link, Mapping):
            return [_resolved(self.link)] * len(names)
        unknown = [name for name in self.link if name not in names]
        if unknown:
            raise ValueError(
                f"`link` names {unknown}, which are not parameters; they are "
                f"{list(names)}."
            )
        return [_resolved(self.link.get(name, "identity")) for name in names]


def _bounds(
    transform: Transform, value: float, half: float, name: str
) -> tuple[float, float]:
    """Return the interval of one parameter, ``half`` wide on its own scale."""
    with np.errstate(all="ignore"):
        there = float(transform.forward(value))
        back = float(transform.inverse(there)) if np.isfinite(there) else np.nan
        slope = _slope(transform, value) if np.isfinite(there) else np.nan
    if not np.isfinite([there, slope]).all() or slope == 0:
        raise InferenceError(
            f"{transform.name} is not defined at the estimate of {name!r} "
            f"({value:.6g}); it needs a value {transform.domain}. Transform the others "
            f"alone, as in Transformed({{'other': {transform.name!r}}}), or use "
            "ScoreInverted()."
        )
    if abs(back - value) > _ROUND_TRIP * (abs(value) + half):
        raise ValueError(
            f"the inverse in `link` maps {there:.6g} to {back:.6g}, not to the "
            f"estimate {value:.6g} of {name!r}; give (forward, inverse) of the same "
            "function."
        )
    ends = np.array([there - half * abs(slope), there + half * abs(slope)])
    with np.errstate(over="ignore"):
        lower, upper = np.sort([float(transform.inverse(end)) for end in ends])
    return float(lower), float(upper)


def _slope(transform: Transform, value: float) -> float:
    if transform.slope is not None:
        return float(transform.slope(value))

    def forward(at: Vector) -> Vector:
        return np.atleast_1d(np.asarray(transform.forward(at[0]), dtype=np.float64))

    theta = np.array([value])
    return float(jacobian(forward, theta, response_steps(forward, theta))[0, 0])
