"""What is checked: an equation, and how to write it for other rows or weights."""

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from eestim._arrays import IntVector, Matrix, Vector
from eestim._differentiate import jumping_columns
from eestim._linalg import equilibrated_factor, symmetric_power
from eestim.covariance.base import row_psi
from eestim.equations import UserEquation, equation
from eestim.errors import EestimError
from eestim.estimation import Estimate, estimate
from eestim.models._linear_predictor import LinearPredictor
from eestim.models.linear import GeneralizedLinear, glm
from eestim.testing.records import Example, UnusableError
from eestim.weights import Frequency, Sampling, Weights

__all__ = ["Source", "Subject", "source_of"]

_Take = Callable[[IntVector, Weights | None], Any]
_DATA_NAMES = ("data", "table", "frame", "df")


@dataclass(frozen=True, eq=False)
class Subject:
    """One equation at one example, with what properties ask about it.

    Attributes
    ----------
    equation : EstimatingEquation
    example : Example
    take : callable or None
        ``take(rows, weights)``: the same model of those rows of the data, in that
        order, with other weights (the weights it has where None).
    n_rows : int
        Number of rows of the data, those of `take`.
    data : object
        What must not be modified: the data a factory was given.
    is_whole : bool
        Whether every row of the data is used.
    """

    equation: Any
    example: Example
    take: _Take | None
    n_rows: int
    data: Any = None
    is_whole: bool = True

    @cached_property
    def rng(self) -> np.random.Generator:
        """Where matrices, permutations and weights come from."""
        return np.random.default_rng(self.example.seed)

    @cached_property
    def fit(self) -> Estimate:
        """The estimate with HC0."""
        return estimate(self.equation)

    @property
    def theta(self) -> Vector:
        """The root, (p,)."""
        return self.fit.theta

    @property
    def errors(self) -> Vector:
        """Standard errors, (p,)."""
        return np.asarray(self.fit.se, dtype=np.float64)

    @cached_property
    def near(self) -> Vector:
        """A point `shift` standard errors from the root, where nothing cancels."""
        directions = np.random.default_rng(self.example.seed).uniform(
            0.5, 1.0, len(self.theta)
        ) * np.where(np.arange(len(self.theta)) % 2, -1.0, 1.0)
        errors = self.errors  # along each alone, nearly collinear ones are far away
        spread = self.fit.spread.matrix / np.outer(errors, errors)
        moved = errors * (symmetric_power(spread, 0.5)[0] @ directions)
        point: Vector = self.theta + self.example.shift * moved
        return point

    @property
    def p(self) -> int:
        """Number of parameters."""
        return len(self.equation.names)

    @cached_property
    def psi(self) -> Matrix:
        """Contributions at the root, (n, p)."""
        psi: Matrix = np.array(self.equation.psi(self.theta))
        return psi

    @cached_property
    def slope(self) -> Matrix:
        """A at the root, (p, p)."""
        slope: Matrix = np.array(self.equation.sensitivity(self.theta))
        return slope

    @property
    def is_degenerate(self) -> bool:
        """Whether the equation has orbits of roots, so that A is singular."""
        return hasattr(self.equation, "tangents")

    @cached_property
    def is_smooth(self) -> bool:
        """Whether psi does not jump at the root."""
        return not bool(jumping_columns(self.equation.psi, self.theta).any())

    @cached_property
    def n_psi_rows(self) -> int:
        """Number of rows before they are summed within units."""
        return len(row_psi(self.equation, self.theta))

    @cached_property
    def takes_weights(self) -> bool:
        """Whether the model can be written with frequency weights."""
        try:
            self.rows(np.arange(self.n_rows), Frequency(np.ones(self.n_rows)))
        except (TypeError, EestimError):
            return False
        return True

    @cached_property
    def slack(self) -> float:
        """What ill conditioning may add to a tolerance, at least one."""
        rcond = equilibrated_factor(self.slope).rcond
        return float(max(1.0, 1e-3 / max(rcond, 1e-12)))

    @property
    def is_exact(self) -> bool:
        """Whether A is analytic."""
        return float(getattr(self.equation, "derivative_error", 0.0)) == 0.0

    def rows(self, which: IntVector, weights: Weights | None = None) -> Any:
        """Return the model of some rows; only where `take` is known."""
        if self.take is None:
            raise TypeError(f"{type(self.equation).__name__} cannot be rebuilt.")
        try:
            made = self.take(which, weights)
        except EestimError as error:
            raise UnusableError(f"{len(which)} rows: {error}") from error
        if tuple(made.names) != tuple(self.equation.names):
            raise UnusableError(f"{len(which)} rows have the parameters {made.names}.")
        return made

    def fitted(self, other: Any, root: Vector | None = None) -> Estimate:
        """Return the fit of a changed equation, near a root where one is expected.

        The search begins a tenth of a standard error away, so that it has something
        to do; psi that jumps has many roots within a unit's reach, and is not solved.
        """
        if root is None:
            return estimate(other)
        if not self.is_smooth:
            return estimate(other, root=root)
        size = np.maximum(np.abs(root), 1.0) * 1e-6
        scale = self.errors if len(root) == self.p else size
        return estimate(other, start=root + 0.1 * scale)


@dataclass(frozen=True, eq=False)
class Source:
    """What was given to `check_equation`, ready to make subjects.

    Attributes
    ----------
    given : equation or factory
    kind : {"equation", "data", "rng"}
        What a factory takes.
    data : object
        The table of a factory of data.
    n_rows : int or None
        Rows that an example may choose from; None where it cannot.
    p : int
        Number of parameters.
    take : callable or None
        As in `Subject`.
    """

    given: Any
    kind: str
    data: Any
    n_rows: int | None
    p: int
    take: _Take | None = None

    @property
    def fewest(self) -> int:
        """The fewest rows of an example: enough for a regular fit."""
        return min(self.n_rows or 0, max(12 * self.p, 30))

    def subject(self, example: Example) -> Subject:
        """Return the subject of an example."""
        if self.kind == "rng":
            made = self.given(np.random.default_rng(example.data_seed))
            return Subject(
                made, example, _usable(_take_of(made), made), _row_count(made)
            )
        made = self.given(self.data) if self.kind == "data" else self.given
        take, whole = self.take, self.n_rows or _row_count(made)
        chosen = chosen_rows(example, whole)
        if take is None or chosen is None:
            return Subject(made, example, take, whole, self.data)

        def retake(which: IntVector, weights: Weights | None) -> Any:
            return take(chosen[which], weights)

        try:
            built = take(chosen, None)
        except EestimError as error:
            raise UnusableError(str(error)) from error
        return Subject(built, example, retake, len(chosen), self.data, False)


def source_of(given: Any, data: Any = None) -> Source:
    """Return the source of an equation or a factory.

    Raises
    ------
    TypeError
        If it is neither.
    """
    if hasattr(given, "psi") and not isinstance(given, type):
        take = _usable(_take_of(given), given)
        rows = _row_count(given) if take is not None else None
        return Source(given, "equation", None, rows, len(given.names), take)
    if not callable(given):
        raise TypeError(
            "`equation` must have `psi` and `sensitivity`, or be a function that makes "
            f"one from data or a Generator; got {type(given).__name__}."
        )
    if data is None and _first_argument(given) not in _DATA_NAMES:
        made = given(np.random.default_rng(0))
        _check_made(made)
        return Source(given, "rng", None, None, len(made.names))
    if data is None:
        from eestim.testing.strategies import example_table

        data = example_table(np.random.default_rng(0))
    made = given(data)
    _check_made(made)
    if isinstance(made, GeneralizedLinear | LinearPredictor):
        take = _take_of(made)  # as it is: a formula may code fewer rows otherwise
        rows = _row_count(made)
    else:
        rows = _whole(data)
        take = _usable(_retaking(given, data), made, rows)
    return Source(
        given, "data", data, None if take is None else rows, len(made.names), take
    )


def _check_made(made: Any) -> None:
    missing = [
        name
        for name in ("psi", "sensitivity", "names", "n_units")
        if not hasattr(made, name)
    ]
    if missing:
        raise TypeError(
            f"the factory made a {type(made).__name__} without {', '.join(missing)}; "
            "return an estimating equation, such as ee.equation(psi, data, start)."
        )


def _first_argument(factory: Any) -> str:
    try:
        return next(iter(inspect.signature(factory).parameters), "")
    except (TypeError, ValueError):
        return ""


def chosen_rows(example: Example, whole: int) -> IntVector | None:
    """Return the rows of an example in their order, or None for all of them."""
    if example.n_rows is None or example.n_rows >= whole:
        return None
    rng = np.random.default_rng(example.data_seed)
    return np.sort(rng.permutation(whole)[: example.n_rows])


# ---------------------------------------------------------------- other rows


def _whole(data: Any) -> int:
    if isinstance(data, Mapping):
        lengths = [len(value) for value in data.values() if np.ndim(value) > 0]
        return int(lengths[0]) if lengths else 0
    return len(data)


def rows_of(data: Any, which: IntVector) -> Any:
    """Return rows of a table, a mapping of arrays or an array."""
    if isinstance(data, pd.DataFrame):
        return data.iloc[which].reset_index(drop=True)
    if isinstance(data, Mapping):
        return {
            name: value if np.ndim(value) == 0 else np.asarray(value)[which]
            for name, value in data.items()
        }
    return np.asarray(data)[which]


def _retaking(factory: Any, data: Any) -> _Take:
    def take(which: IntVector, weights: Weights | None) -> Any:
        made = factory(rows_of(data, which))
        if weights is None:
            return made
        again = _take_of(made)
        if again is None:
            raise TypeError(f"{type(made).__name__} takes no weights.")
        return again(np.arange(len(which)), weights)

    return take


def _usable(take: _Take | None, made: Any, rows: int | None = None) -> _Take | None:
    """Return how rows are taken, or None where psi reads rows kept elsewhere."""
    if take is None:
        return None
    half = np.arange(((rows or _row_count(made)) + 1) // 2)
    start = getattr(made, "start", None)
    try:
        part = take(half, None)
        if start is not None:
            part.psi(np.asarray(start, dtype=np.float64))
    except Exception:  # whatever it is that a user's function does then
        return None
    return take


def _row_count(made: Any) -> int:
    if isinstance(made, LinearPredictor):
        made = made.linear
    response = getattr(made, "response", None)
    if response is not None:
        return len(response)
    return int(getattr(made, "n_rows", made.n_units))


def _take_of(made: Any) -> _Take | None:
    """Return how an equation of the package is written for other rows, or None."""
    if isinstance(made, UserEquation):
        is_known = made.row_weights is None or made.weight_kind is not None
        return _user_take(made, equation) if is_known else None
    if isinstance(made, GeneralizedLinear):
        is_known = made.row_weights is None or made.weight_kind is not None
        return (lambda which, w: _linear_rows(made, which, w)) if is_known else None
    if isinstance(made, LinearPredictor):
        kind = made.linear.weight_kind
        if made.linear.row_weights is not None and kind is None:
            return None
        return lambda which, w: replace(
            made, linear=_linear_rows(made.linear, which, w)
        )
    if hasattr(made, "tensors") and hasattr(made, "function"):
        return _user_take(made, sys.modules[type(made).__module__].equation)
    own = getattr(made, "take", None)
    if own is None:
        return None
    return lambda which, w: own(which) if w is None else own(which, w)


def _user_take(made: Any, maker: Any) -> _Take:
    """Rebuild an equation of a function of data, NumPy or torch."""
    options = (
        {"mode": made.mode, "dtype": made.dtype, "device": made.device}
        if (hasattr(made, "tensors"))
        else {"jacobian": made.derivative}
    )
    kind = getattr(made, "weight_kind", Sampling) or Sampling
    initial = made.start  # a copy

    def take(which: IntVector, weights: Weights | None) -> Any:
        if weights is None and made.row_weights is not None:
            weights = kind(made.row_weights[which])
        return maker(
            made.function,
            rows_of(made.data, which),
            _as_given(initial, made.block_places),
            names=made.names,
            units=None if made.unit_codes is None else made.unit_codes[which],
            weights=weights,
            **options,
        )

    return take


def _as_given(start: Vector, places: Any) -> Any:
    if not places:
        return start
    return {
        name: start[where].reshape(shape) if shape else float(start[where][0])
        for name, (where, shape) in places.items()
    }


def _linear_rows(
    made: GeneralizedLinear, which: IntVector, weights: Weights | None
) -> GeneralizedLinear:
    if weights is None and made.row_weights is not None and made.weight_kind:
        weights = made.weight_kind(made.row_weights[which])
    return glm(
        made.response[which],
        made.design[which],
        family=made.family.name,
        link=made.link.name,
        offset=None if made.offset is None else made.offset[which],
        weights=weights,
        names=made.names,
    )
