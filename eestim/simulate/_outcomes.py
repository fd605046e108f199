"""What an estimator returned, as numbers: estimates, standard errors, intervals."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from scipy import special

from eestim._arrays import Matrix, Vector
from eestim.errors import DataError

__all__ = [
    "Attempt",
    "Batched",
    "Failure",
    "Outcome",
    "Reported",
    "SpecificationError",
    "Under",
    "Variants",
    "outcome_of",
    "quantile",
]

Levels: TypeAlias = tuple[float, ...]


class SpecificationError(ValueError):
    """An estimator returned what cannot be read: the study, not the data, is wrong."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Numbers of one method on one data set, k estimands and L levels.

    Attributes
    ----------
    estimate, se, dof : (k,) arrays
        NaN where the method gives none.
    lower, upper : (L, k) arrays
    """

    estimate: Vector
    se: Vector
    dof: Vector
    lower: Matrix
    upper: Matrix


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a replication has no numbers.

    Attributes
    ----------
    status : {"not converged", "error", "not finite"}
    message : str
    """

    status: str
    message: str


@dataclass(frozen=True, slots=True)
class Attempt:
    """One method on one data set: numbers or a failure, and the warnings on the way."""

    result: Outcome | Failure
    warnings: tuple[str, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class Under:
    """A variant of a fit: another covariance rule, another interval method.

    Attributes
    ----------
    rule : covariance rule, optional
        As in ``fit.with_covariance(rule)``; the fit's own by default.
    interval : str or method value, optional
        As in ``fit.interval(method=...)``; one with ``names=`` must name every
        estimand, and need not name the other parameters.
    """

    rule: Any = None
    interval: Any = None

    def __call__(self, fit: Any) -> "Reported":
        """Return the fit under the rule, with its interval method."""
        made = fit if self.rule is None else fit.with_covariance(self.rule)
        return Reported(made, self.interval)


@dataclass(frozen=True, slots=True)
class Reported:
    """An Estimate with the interval method that the study uses."""

    fit: Any
    interval: Any = None


@dataclass(frozen=True, slots=True)
class Variants:
    """Several methods that share one fit, so that it is computed once.

    Attributes
    ----------
    fit : callable
        From data (and ``rng``) to anything; where it fails, every variant does.
    variants : mapping from label to callable
        From the fit to what an estimator may return; `Under` values make the usual
        ones, ``{"HC3": Under(ee.HC(3)), "profile": Under(interval=ee.Profile())}``.
    """

    fit: Callable[..., Any]
    variants: Mapping[str, Callable[[Any], Any]]


@dataclass(frozen=True, slots=True)
class Batched:
    """An estimator that takes many data sets at once.

    Attributes
    ----------
    fit : callable
        From a list of data sets to a `BatchedFit`, or to one result a data set (an
        exception among them is that replication's failure).
    """

    fit: Callable[[Sequence[Any]], Any]


def quantile(level: float, dof: Vector) -> Vector:
    """Return the two-sided critical value of the t law, normal where dof is infinite.

    >>> quantile(0.95, np.array([np.inf, 10.0])).round(3)
    array([1.96 , 2.228])
    """
    tail = 0.5 + level / 2.0
    finite = np.where(np.isfinite(dof), dof, 1.0)
    value: Vector = np.where(
        np.isfinite(dof), special.stdtrit(finite, tail), special.ndtri(tail)
    )
    return value


def outcome_of(
    returned: Any, estimands: Sequence[str], levels: Levels, method: str
) -> Outcome | Failure:
    """Return the numbers of what an estimator returned, or why it has none.

    Parameters
    ----------
    returned : Estimate, Reported, number, tuple or mapping
        ``estimate``; ``(estimate, se)`` with the normal law; ``(estimate, se, dof)``;
        ``(estimate, se, (lower, upper))`` at the first level; or a mapping with these
        keys. Each may be a number, a vector in the order of the estimands, or a
        mapping or Series by their names.
    estimands : sequence of k str
    levels : tuple of L float
    method : str
        Label, for the message.

    Raises
    ------
    SpecificationError
        If it has another form.
    DataError
        If it lacks an estimand.
    """
    if isinstance(returned, Failure):
        return returned
    if hasattr(returned, "interval") and hasattr(returned, "theta"):
        returned = Reported(returned)
    if isinstance(returned, Reported):
        made = _of_estimate(returned.fit, estimands, levels, returned.interval, method)
        return _checked(made, estimands, has_se=True, bounds=len(levels))
    fields = _fields(returned, method)
    read = {
        name: _vector(value, estimands, f"{method}: {name}")
        for name, value in fields.items()
    }
    made = _of_fields(read, len(estimands), levels)
    return _checked(made, estimands, "se" in read, int("lower" in read))


def _of_fields(read: Mapping[str, Vector], k: int, levels: Levels) -> Outcome:
    blank = np.full(k, np.nan)
    se = read.get("se", blank)
    if "lower" not in read:
        normal = np.full(k, np.inf) if "se" in read else blank
        return _wald(read["estimate"], se, read.get("dof", normal), levels)
    lower, upper = (np.full((len(levels), k), np.nan) for _ in range(2))
    lower[0], upper[0] = read["lower"], read["upper"]
    return Outcome(read["estimate"], se, read.get("dof", blank), lower, upper)


def _checked(
    made: Outcome, estimands: Sequence[str], has_se: bool, bounds: int
) -> Outcome | Failure:
    """Return the outcome, or a failure where a number that was given is none."""
    bad = {"estimate": ~np.isfinite(made.estimate)}
    if has_se:
        bad["se"] = ~(np.isfinite(made.se) & (made.se >= 0.0))
    for name, values in (("lower", made.lower), ("upper", made.upper)):
        bad[name] = np.asarray(np.isnan(values[:bounds]).any(axis=0))
    for name, where in bad.items():
        if where.any():
            named = ", ".join(np.array(estimands)[where])
            return Failure("not finite", f"{name} of {named} is not a usable number")
    return made


def _wald(estimate: Vector, se: Vector, dof: Vector, levels: Levels) -> Outcome:
    half = np.array([quantile(level, dof) * se for level in levels])
    return Outcome(estimate, se, dof, estimate - half, estimate + half)


def _fields(returned: Any, method: str) -> dict[str, Any]:
    """Return the parts of a plain result by name."""
    if isinstance(returned, Mapping) and "estimate" in returned:
        known = {"estimate", "se", "dof", "lower", "upper"}
        extra = [name for name in returned if name not in known]
        if extra or ("lower" in returned) != ("upper" in returned):
            raise SpecificationError(
                f"{method} returned the keys {list(returned)}; expected estimate, se, "
                "dof, lower and upper (both or neither)."
            )
        return {name: returned[name] for name in returned if returned[name] is not None}
    if not isinstance(returned, tuple):
        return {"estimate": returned}
    match returned:
        case (estimate,):
            return {"estimate": estimate}
        case (estimate, se):
            return {"estimate": estimate, "se": se}
        case (estimate, se, (lower, upper)) if isinstance(returned[2], tuple | list):
            return {"estimate": estimate, "se": se, "lower": lower, "upper": upper}
        case (estimate, se, dof):
            return {"estimate": estimate, "se": se, "dof": dof}
    raise SpecificationError(
        f"{method} returned a tuple of {len(returned)}; expected (estimate, se), "
        "(estimate, se, dof) or (estimate, se, (lower, upper))."
    )


def _vector(value: Any, estimands: Sequence[str], what: str) -> Vector:
    """Return a number, vector or mapping in the order of the estimands."""
    if isinstance(value, Mapping | pd.Series):
        _refuse_missing(list(value.keys()), estimands, what)
        value = [value[name] for name in estimands]
    try:
        array = np.atleast_1d(np.asarray(value, dtype=np.float64))
    except (TypeError, ValueError):
        raise SpecificationError(
            f"{what} is {type(value).__name__} {value!r}; a number, a vector or a "
            "mapping of estimands was expected."
        ) from None
    if array.shape != (len(estimands),):
        raise SpecificationError(
            f"{what} has shape {array.shape} for {len(estimands)} estimands "
            f"({', '.join(estimands)})."
        )
    return array


def _of_estimate(
    fit: Any, estimands: Sequence[str], levels: Levels, interval: Any, method: str
) -> Outcome:
    places = _places(tuple(fit.names), estimands, method)
    theta, spread = fit.theta[places], fit.spread
    se = np.sqrt(np.diag(spread.matrix)[places])
    dof = np.broadcast_to(spread.dof, len(fit.names)).astype(float)[places]
    if interval is None or isinstance(interval, str):
        if interval not in (None, "wald", "t"):
            raise SpecificationError(
                f'{method}: interval {interval!r} is not "wald" or "t".'
            )
        law = np.full_like(dof, np.inf) if interval == "wald" else dof
        return _wald(theta, se, law, levels)
    labels = [fit.names[k] for k in places]
    bounds = [_rows(fit.interval(level, interval), labels, method) for level in levels]
    table = np.array([bound.to_numpy(dtype=np.float64) for bound in bounds])
    return Outcome(theta, se, np.full_like(dof, np.nan), table[..., 0], table[..., 1])


def _rows(interval: pd.DataFrame, labels: list[str], method: str) -> pd.DataFrame:
    """Return the bounds of some parameters by name: a method may leave others out."""
    _refuse_missing(list(interval.index), labels, f"{method}: its interval")
    return interval.loc[labels, ["lower", "upper"]]


def _places(names: tuple[str, ...], estimands: Sequence[str], method: str) -> list[int]:
    if len(names) == 1 and len(estimands) == 1:
        return [0]
    _refuse_missing(names, estimands, method)
    return [names.index(name) for name in estimands]


def _refuse_missing(names: Sequence[str], estimands: Sequence[str], what: str) -> None:
    """Raise where an estimand is missing, which may be so in some replications only.

    Raises
    ------
    DataError
        So that it counts as a failure of this replication.
    """
    missing = [name for name in estimands if name not in names]
    if missing:
        raise DataError(
            f"{what} has no value for {missing}, only for {list(names)}; estimands are "
            "named in `truth` as parameters are in the estimate."
        )
