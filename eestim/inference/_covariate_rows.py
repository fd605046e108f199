"""Rows to average a regression over: fitted means, slopes, and changed covariates."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from eestim._arrays import Matrix, Vector
from eestim.equations import require
from eestim.errors import DataError, EestimError
from eestim.weights import Frequency

__all__ = ["Rows", "Source", "effects_of", "settings_of", "source_of"]

_STEP = 1e-3  # of a covariate, relative to its value; extrapolated to the fourth order
_MOST_LEVELS = 50


class Rows(NamedTuple):
    """A quantity for each row: its value and its derivative in theta."""

    value: Vector  # (n,)
    slope: Matrix  # (n, p)


class FittedMean(NamedTuple):
    """The mean and its first two derivatives in the linear predictor, with its rows."""

    eta: Vector
    jacobian: Matrix
    link: Any
    offset: Vector | float

    def value(self) -> Rows:
        """Return the mean of each row."""
        at = self.eta + self.offset
        slope = np.asarray(self.link.slope(at))
        return Rows(np.asarray(self.link.inverse(at)), slope[:, None] * self.jacobian)


@dataclass(frozen=True, slots=True)
class Source:
    """The rows to average over, and how to predict for them."""

    table: pd.DataFrame
    predict: Callable[[Vector, Any], Any]
    theta: Vector
    is_formula: bool
    offset: Vector | float
    weights: Vector
    is_frequency: bool

    def mean(self, table: pd.DataFrame) -> FittedMean:
        """Return the fitted mean of changed rows."""
        rows = table if self.is_formula else table.to_numpy(dtype=np.float64)
        made = self.predict(self.theta, rows)
        return FittedMean(made.linear, made.jacobian, made.link, self.offset)

    def slope(self, name: str) -> Rows:
        """Return the derivative of the mean in one covariate."""
        here = self.mean(self.table)
        values = self.table[name].to_numpy(dtype=np.float64)
        spread = float(np.std(values)) or 1.0
        step = _STEP * np.where(values != 0, np.abs(values), spread)
        eta, jacobian = self._extrapolated(name, values, step)
        at = here.eta + here.offset
        first = np.asarray(here.link.slope(at))
        second = np.asarray(here.link.curvature(at))
        slope = (second * eta)[:, None] * here.jacobian + first[:, None] * jacobian
        return Rows(first * eta, slope)

    def _extrapolated(
        self, name: str, values: Vector, step: Vector
    ) -> tuple[Vector, Matrix]:
        """Return the derivatives in a covariate of the predictor and its Jacobian."""
        try:
            ends = [
                self.mean(self.table.assign(**{name: values + share * step}))
                for share in (-1.0, -0.5, 0.5, 1.0)
            ]
        except EestimError as error:
            raise DataError(
                f"the slope in {name!r} cannot be taken near some rows ({error}). Give "
                f"two values instead, as in variables={{{name!r}: (low, high)}}."
            ) from error
        left, inner_left, inner_right, right = ends
        coarse = right.eta - left.eta
        fine = inner_right.eta - inner_left.eta
        eta = (8.0 * fine - coarse) / (6.0 * step)
        wide = right.jacobian - left.jacobian
        narrow = inner_right.jacobian - inner_left.jacobian
        return eta, (8.0 * narrow - wide) / (6.0 * step)[:, None]


def source_of(estimate: Any, data: Any, *, is_sampled: bool) -> Source:
    """Return the rows of the fit, or those given, to average over.

    Raises
    ------
    CapabilityError
        If the equation has no `predict`.
    ValueError
        If rows are given and said to be sampled.
    """
    equation = estimate.equation
    predict = require(
        equation,
        "predict",
        "average predictions",
        "Write the average as a block of `ee.stack`, or use `functional`.",
    )
    is_formula = getattr(equation, "specification", None) is not None
    if data is not None:
        if is_sampled:
            raise ValueError(
                '`data` are rows other than those of the fit; pass covariates="fixed" '
                "to average over them as they are."
            )
        given = pd.DataFrame(data).reset_index(drop=True)
        return Source(
            given, predict, estimate.theta, is_formula, 0.0, np.ones(len(given)), False
        )
    table = _own_rows(equation, is_formula)
    weights = getattr(equation, "row_weights", None)
    offset = getattr(equation, "offset", None)
    return Source(
        table,
        predict,
        estimate.theta,
        is_formula,
        0.0 if offset is None else offset,
        np.ones(len(table)) if weights is None else weights,
        getattr(equation, "weight_kind", None) is Frequency,
    )


def _own_rows(equation: Any, is_formula: bool) -> pd.DataFrame:
    if not is_formula:
        design = require(equation, "design", "this average", "Pass `data`.")
        return pd.DataFrame(design, columns=list(equation.names))
    table = pd.DataFrame(equation.data).reset_index(drop=True)
    kept = getattr(equation, "kept", None)
    return table if kept is None else table.iloc[kept].reset_index(drop=True)


def settings_of(at: Mapping[str, Any], table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return every combination of the values that covariates are set to.

    Raises
    ------
    DataError
        If a name is not a column.
    """
    unknown = [name for name in at if name not in table.columns]
    if unknown:
        raise DataError(
            f"`at` names {unknown}, which are not columns of the data; they are "
            f"{list(table.columns)}."
        )
    lists = [
        list(values) if isinstance(values, list | tuple | np.ndarray) else [values]
        for values in at.values()
    ]
    return [dict(zip(at, chosen, strict=True)) for chosen in itertools.product(*lists)]


# --------------------------------------------------------------- which variables


def effects_of(variables: Any, source: Source) -> dict[str, Any]:
    """Return what to do with each variable: "slope", or pairs of values.

    Raises
    ------
    DataError
        If a variable is unknown, has no slope, or too many levels.
    """
    table = source.table
    if variables is None:
        variables = _all_variables(source)
    if isinstance(variables, str):
        variables = [variables]
    unknown = [name for name in variables if name not in table.columns]
    if unknown:
        raise DataError(
            f"`variables` names {unknown}, which are not columns of the data; they are "
            f"{list(table.columns)}."
        )
    if not isinstance(variables, Mapping):
        return {str(name): _usual(table[str(name)]) for name in variables}
    made = {}
    for name, how in variables.items():
        if how == "slope":
            if not _is_number(table[str(name)]):
                raise DataError(f"{name!r} is not numeric and has no slope.")
            made[name] = how
        elif isinstance(how, tuple | list) and len(how) == 2:
            made[name] = [tuple(how)]
        else:
            raise ValueError(
                f'`variables[{name!r}]` must be "slope" or two values (low, high); got '
                f"{how!r}."
            )
    return made


def _all_variables(source: Source) -> list[str]:
    moved = []
    reference = source.mean(source.table).jacobian
    for name in source.table.columns:
        column = source.table[name]
        if not source.is_formula and column.nunique() == 1:
            continue  # the intercept
        shuffled = column.iloc[::-1].to_numpy()
        jacobian = source.mean(source.table.assign(**{name: shuffled})).jacobian
        if not np.array_equal(jacobian, reference):
            moved.append(str(name))
    if not moved:
        raise DataError("the regression has no covariates that vary.")
    return moved


def _is_number(column: "pd.Series[Any]") -> bool:
    return bool(
        pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
    )


def _usual(column: "pd.Series[Any]") -> Any:
    """Return "slope", or the differences of the other levels from the first."""
    levels = sorted(column.unique().tolist())
    if _is_number(column) and levels != [0, 1]:
        return "slope"
    if len(levels) > _MOST_LEVELS:
        raise DataError(
            f"{column.name!r} has {len(levels)} levels; say which two to compare, as "
            f"in variables={{{column.name!r}: (low, high)}}."
        )
    return [(levels[0], level) for level in levels[1:]]
