"""Estimating equations: the protocol, its capabilities, and user functions of NumPy.

An estimating equation supplies contributions ``psi(theta)`` of n independent units,
one a row, and A, minus their mean derivative. Everything else is optional: a rule
that needs more asks for a capability and says so where it is missing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import pandas as pd

from eestim._arrays import (
    IntVector,
    Matrix,
    Vector,
    as_float,
    as_start,
    check_finite,
    check_psi,
    row_count,
    show_rows,
)
from eestim._differentiate import directional_difference, jacobian, response_steps
from eestim._linalg import equilibrated_factor
from eestim.blocks import Block, BlockedEquation, BlockSource, block_source, in_block
from eestim.errors import CapabilityError, DataError
from eestim.moments import Moments, moments_of
from eestim.weights import (
    Frequency,
    Importance,
    Weights,
    aligned_weights,
    block_weights,
    effective_size,
    weight_column,
)

__all__ = [
    "EstimatingEquation",
    "Evaluated",
    "Parameters",
    "UserEquation",
    "Working",
    "effective_n",
    "equation",
    "labels_of",
    "moments_at",
    "named_blocks",
    "require",
]

_DIFFERENCE_ERROR = 1e-10  # relative error of extrapolated central differences
_WELL_CONDITIONED = 1e-2  # of A; above, differences along the axes are as good
_JACOBIAN_AGREES = 1e-4  # of a supplied jacobian with one directional difference


@runtime_checkable
class EstimatingEquation(Protocol):
    """What a model must supply: four members.

    Optional members are capabilities: ``psi_rows`` (before summing within units),
    ``moments``, ``working``, ``unit_sensitivity``, ``reweighted``, ``predict``,
    ``column``, ``start``, ``reparameterised`` and ``explain_failure``.
    """

    @property
    def n_units(self) -> int:
        """Number of independent units, n."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the p parameters."""

    def psi(self, theta: Vector) -> Matrix:
        """Return the contributions of the units, (n, q)."""

    def sensitivity(self, theta: Vector) -> Matrix:
        """Return A, minus the mean derivative of psi, (q, p)."""


@dataclass(frozen=True, slots=True)
class Working:
    """The weighted linear form of a regression at one theta.

    Attributes
    ----------
    design : (n, p) array
        Rows x_i, derivative of the linear predictor.
    weight : (n,) array
        W_i in ``A = X' diag(W) X / n``.
    residual : (n,) array
        Score residual: ``psi_i = x_i residual_i``.
    dispersion : float
        Variance of the residual in units of the weight: ``Var(residual_i) =
        dispersion * W_i`` under the model, degrees of freedom n - k.
    variance : (n,) array or None
        Working variance of the response up to a factor, V(mu) over the prior weight;
        None where it is constant.
    """

    design: Matrix
    weight: Vector
    residual: Vector
    dispersion: float
    variance: Vector | None = None


def require(equation: Any, capability: str, wanted_by: str, instead: str) -> Any:
    """Return a capability of an equation, or say which rules would work.

    Raises
    ------
    CapabilityError
        If the equation does not have it.
    """
    member = getattr(equation, capability, None)
    if member is None:
        raise CapabilityError(
            f"{wanted_by} needs `{capability}`, which {type(equation).__name__} does "
            f"not supply. {instead}"
        )
    return member


def moments_at(equation: EstimatingEquation, theta: Vector) -> Moments:
    """Return the moments of psi at theta, streamed where the equation can."""
    fast = getattr(equation, "moments", None)
    if fast is not None:
        result: Moments = fast(theta)
        return result
    return moments_of(equation.psi(theta), equation.sensitivity(theta))


def effective_n(equation: EstimatingEquation) -> float:
    """Return the n of finite-sample factors: Kish's for importance weights."""
    return float(getattr(equation, "n_effective", equation.n_units))


# ---------------------------------------------------------------- named parameters


class Parameters(np.ndarray[Any, np.dtype[np.float64]]):
    """A parameter vector whose blocks can be read by name.

    It is an ordinary (p,) array; ``theta["beta"]`` is the block ``beta`` with the
    shape of its start (a float for a scalar block).
    """

    blocks: Mapping[str, tuple[slice, tuple[int, ...]]]

    def __new__(  # noqa: D102 - numpy's way to make a view
        cls, theta: Vector, blocks: Mapping[str, tuple[slice, tuple[int, ...]]]
    ) -> "Parameters":
        view = np.asarray(theta, dtype=np.float64).view(cls)
        view.blocks = blocks
        return view

    def __array_finalize__(self, source: Any) -> None:
        self.blocks = getattr(source, "blocks", {})

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            if key not in self.blocks:
                raise KeyError(
                    f"no block {key!r} in theta; blocks are {sorted(self.blocks)}"
                )
            where, shape = self.blocks[key]
            values = np.asarray(self)[where]
            return values.reshape(shape) if shape else float(values[0])
        return np.asarray(self)[key]


Blocks = Mapping[str, tuple[slice, tuple[int, ...]]]


def named_blocks(
    start: Any, names: Sequence[str] | Mapping[str, Sequence[str]] | None
) -> tuple[Vector, Blocks, tuple[str, ...]]:
    """Return the start as a vector, the place of each block, and parameter names.

    Parameters
    ----------
    start : vector, number, or mapping of named blocks
    names : names of all parameters, or of the entries of each block

    Examples
    --------
    >>> theta, blocks, names = named_blocks({"beta": [0, 0], "mu": 1}, None)
    >>> names
    ('beta[0]', 'beta[1]', 'mu')
    """
    if not isinstance(start, Mapping):
        vector = as_start(start)
        labels = _labels(names, [f"theta[{j}]" for j in range(len(vector))])
        return vector, {}, labels
    blocks: dict[str, tuple[slice, tuple[int, ...]]] = {}
    parts: list[Vector] = []
    default: list[str] = []
    position = 0
    for name, value in start.items():
        block = as_float(value, f"start[{name!r}]")
        if not np.isfinite(block).all():
            raise DataError(f"`start[{name!r}]` has values that are not finite.")
        blocks[name] = (slice(position, position + block.size), block.shape)
        given = names.get(name) if isinstance(names, Mapping) else None
        default += _block_labels(name, block.shape, given)
        parts.append(block.ravel())
        position += block.size
    if position == 0:
        raise DataError("`start` has no parameters.")
    labels = _labels(None if isinstance(names, Mapping) else names, default)
    return np.concatenate(parts), blocks, labels


def _block_labels(
    name: str, shape: tuple[int, ...], given: Sequence[str] | None
) -> list[str]:
    size = int(np.prod(shape, dtype=int))
    if given is not None:
        if len(given) != size:
            raise DataError(
                f"`names[{name!r}]` has {len(given)} entries for {size} parameters."
            )
        return [f"{name}[{label}]" for label in given]
    if not shape:
        return [name]
    return [f"{name}[{','.join(map(str, index))}]" for index in np.ndindex(*shape)]


def _labels(names: Any, default: list[str]) -> tuple[str, ...]:
    if names is None:
        return tuple(default)
    labels = tuple(str(name) for name in names)
    if len(labels) != len(default) or len(set(labels)) != len(labels):
        raise DataError(
            f"`names` has {len(labels)} entries ({len(set(labels))} different) for "
            f"{len(default)} parameters."
        )
    return labels


# ------------------------------------------------------------------- user functions


@dataclass(frozen=True, slots=True)
class UserEquation:
    """An estimating equation written by a user as a NumPy function.

    Made by `equation`, which documents the arguments.
    """

    function: Callable[[Any, Any], Any]
    data: Any
    initial: Vector
    names: tuple[str, ...]
    block_places: Blocks
    n_rows: int
    derivative: Callable[[Any, Any], Any] | None = None
    unit_codes: IntVector | None = None
    row_weights: Vector | None = None
    weight_kind: type | None = None
    _steps: dict[str, Matrix] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def n_units(self) -> int:
        """Number of independent units, n."""
        if self.unit_codes is not None:
            return int(self.unit_codes.max()) + 1
        if self.weight_kind is Frequency and self.row_weights is not None:
            return int(self.row_weights.sum())
        return self.n_rows

    @property
    def n_effective(self) -> float:
        """Kish's effective n under importance weights, else n."""
        if self.weight_kind is Importance and self.row_weights is not None:
            return effective_size(self.row_weights)
        return float(self.n_units)

    @property
    def start(self) -> Vector:
        """Where the solver begins, (p,)."""
        return self.initial.copy()

    @property
    def derivative_error(self) -> float:
        """Relative error of the sensitivity; 0 where it is analytic."""
        return 0.0 if self.derivative is not None else _DIFFERENCE_ERROR

    def _parameters(self, theta: Vector) -> Vector:
        if not self.block_places:
            return np.asarray(theta, dtype=np.float64)
        return Parameters(theta, self.block_places)

    def _raw_rows(self, theta: Vector) -> Matrix:
        values = self.function(self._parameters(theta), self.data)
        return check_psi(values, self.n_rows)

    def _weighted_rows(self, theta: Vector) -> Matrix:
        rows = self._raw_rows(theta)
        return rows if self.row_weights is None else rows * self.row_weights[:, None]

    def psi_rows(self, theta: Vector) -> Matrix:
        """Return contributions before rows are summed within units."""
        rows = self._raw_rows(theta)
        if self.row_weights is None:
            return rows
        if self.weight_kind is Frequency:
            return np.repeat(rows, self.row_weights.astype(int), axis=0)
        return rows * self.row_weights[:, None]

    def psi(self, theta: Vector) -> Matrix:
        """Return the contributions of the units, (n, q)."""
        if self.unit_codes is None:
            return self.psi_rows(theta)
        return sum_by_code(self._weighted_rows(theta), self.unit_codes, self.n_units)

    def mean_psi(self, theta: Vector) -> Vector:
        """Return the mean of psi over units, (q,)."""
        mean: Vector = self._weighted_rows(theta).sum(axis=0) / self.n_units
        return mean

    def sensitivity(self, theta: Vector) -> Matrix:
        """Return A, minus the mean derivative of psi, (q, p)."""
        if self.derivative is not None and self.row_weights is None:
            given = as_float(
                self.derivative(self._parameters(theta), self.data), "jacobian", 2
            )
            return -given * (self.n_rows / self.n_units)
        if "h" not in self._steps:
            self._steps["h"] = response_steps(self._safe_rows, theta)
        slope = jacobian(self._safe_mean, theta, self._steps["h"])
        if self._steps["h"].ndim == 1:
            if self._is_unsuited(theta, slope * self._steps["h"]):
                self._steps["h"] = response_steps(self._safe_rows, theta)
                slope = jacobian(self._safe_mean, theta, self._steps["h"])
            directions = self._noise_directions(theta, slope)
            if directions is not None:
                self._steps["h"] = directions
                slope = jacobian(self._safe_mean, theta, directions)
        return -slope

    def _is_unsuited(self, theta: Vector, changes: Matrix) -> bool:
        """Whether steps chosen at an earlier theta move psi too much or not at all."""
        size = float(np.sqrt(np.mean(np.square(self._weighted_rows(theta)))))
        moved = np.abs(changes).max(axis=0)
        return bool(moved.max() > 0.05 * size or moved.min() < 1e-6 * size)

    def _noise_directions(self, theta: Vector, slope: Matrix) -> Matrix | None:
        """Return steps of a thousandth of the noise, or None where they do not help.

        Along the columns of ``A^-1 M^(1/2)`` the response is well conditioned, so
        that differences keep their accuracy where covariates have a large mean.
        """
        if slope.shape[0] != slope.shape[1] or not np.isfinite(slope).all():
            return None
        if (self._steps["h"] < 0).any():
            return None  # psi jumps: its windows must stay as wide as they are
        factor = equilibrated_factor(slope, 1e-10)
        if factor.rank < len(slope) or factor.rcond > _WELL_CONDITIONED:
            return None
        rows = self._weighted_rows(theta)
        values, vectors = np.linalg.eigh(rows.T @ rows / len(rows))
        if values[0] <= 1e-14 * values[-1]:
            return None
        return 1e-3 * factor.solve(vectors * np.sqrt(values))

    def _safe_rows(self, theta: Vector) -> Matrix:
        """Return weighted rows, NaN outside the domain of psi."""
        try:
            return self._weighted_rows(theta)
        except DataError:
            return np.full((1, 1), np.nan)

    def _safe_mean(self, theta: Vector) -> Vector:
        mean: Vector = self._safe_rows(theta).sum(axis=0) / self.n_units
        return mean

    def unit_sensitivity(self, theta: Vector) -> Matrix:
        """Return minus the derivative of each unit's psi, (n, q, p)."""
        steps = response_steps(self._safe_rows, theta)
        shape = self.psi(theta).shape
        flat = jacobian(lambda t: self.psi(t).ravel(), theta, steps)
        slopes: Matrix = -flat.reshape(*shape, len(theta))
        return slopes

    def column(self, name: str) -> Any:
        """Return a column of the data by name, one entry per row of `psi_rows`."""
        values = column_of(self.data, name)
        if self.weight_kind is Frequency and self.row_weights is not None:
            return np.repeat(np.asarray(values), self.row_weights.astype(int))
        return values

    def reweighted(self, weights: Vector) -> "UserEquation":
        """Return the equation with its units weighted, for refitting bootstraps.

        Parameters
        ----------
        weights : (n,) array
            One nonnegative weight for each unit.
        """
        per_row = weights if self.unit_codes is None else weights[self.unit_codes]
        if self.weight_kind is Frequency and self.row_weights is not None:
            counts = self.row_weights.astype(int)
            edges = np.concatenate([[0], np.cumsum(counts)])
            totals = np.concatenate([[0.0], np.cumsum(per_row)])
            combined = totals[edges[1:]] - totals[edges[:-1]]
        elif self.row_weights is not None:
            combined = per_row * self.row_weights
        else:
            combined = per_row
        made = replace(self, row_weights=combined, weight_kind=None, derivative=None)
        made._steps.update(self._steps)  # steps that suit psi suit it reweighted
        return made


def sum_by_code(rows: Matrix, codes: IntVector, n_groups: int) -> Matrix:
    """Return the sums of rows within groups coded 0 .. n_groups - 1.

    >>> sum_by_code(np.array([[1.0], [2.0], [4.0]]), np.array([1, 0, 1]), 2)
    array([[2.], [5.]])
    """
    sums = np.empty((n_groups, rows.shape[1]))
    for j in range(rows.shape[1]):
        sums[:, j] = np.bincount(codes, weights=rows[:, j], minlength=n_groups)
    return sums


def column_of(data: Any, name: str) -> Any:
    """Return a named column of a DataFrame or mapping.

    Raises
    ------
    DataError
        If there is no such column.
    """
    try:
        return data[name]
    except (KeyError, TypeError, IndexError):
        known = list(data.keys()) if hasattr(data, "keys") else []
        raise DataError(f"no column {name!r} in `data`; columns are {known}.") from None


def labels_of(values: Any, argument: str, n_rows: int) -> tuple[IntVector, int]:
    """Return codes 0 .. G - 1 of group labels, in order of first appearance.

    Raises
    ------
    DataError
        If a label is missing or there is not one label a row.
    """
    array = np.asarray(values)
    if array.ndim != 1 or len(array) != n_rows:
        raise DataError(
            f"`{argument}` has shape {array.shape}; one label for each of {n_rows} "
            "rows was expected."
        )
    missing = np.flatnonzero(np.asarray(pd.isna(array)))
    if len(missing):
        raise DataError(
            f"`{argument}` has missing labels in {show_rows(missing)}; drop those "
            "rows or give them a group of their own."
        )
    codes, groups = pd.factorize(array)
    return codes.astype(np.intp), len(groups)


def checked_data(data: Any) -> int:
    """Return the number of rows of a mapping or DataFrame, all values finite."""
    if not isinstance(data, Mapping | pd.DataFrame):
        raise TypeError(
            "`data` must be a mapping of arrays or a DataFrame; got "
            f"{type(data).__name__}. Wrap an array as {{'x': array}}."
        )
    n_rows = row_count(data)
    for name in data:
        values = np.asarray(data[name])
        if values.dtype.kind == "f":
            check_finite(np.asarray(values, dtype=np.float64), f"data[{name!r}]")
        elif values.dtype.kind == "O" and pd.isna(values).any():
            raise DataError(f"`data[{name!r}]` has missing values.")
    return n_rows


def equation(
    psi: Callable[[Any, Any], Any],
    data: Mapping[str, Any] | pd.DataFrame,
    start: Any,
    *,
    names: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    jacobian: Callable[[Any, Any], Any] | None = None,
    units: Any = None,
    weights: Weights | None = None,
) -> UserEquation | BlockedEquation:
    r"""Return the estimating equation :math:`\sum_i \psi_i(\theta) = 0`.

    Parameters
    ----------
    psi : callable
        ``psi(theta, data) -> (n, q)``, one row for each row of the data.
    data : mapping of arrays, DataFrame, or block source
        Passed to psi as it is, after checks for missing and infinite values. A block
        source (a Parquet file or folder, a Dask DataFrame, or a function that returns
        an iterator of DataFrames) is passed block by block: psi of a row must not
        depend on other rows, and `units` and weights are names of columns.
    start : vector, number, or mapping of named blocks
        Where the solver begins. With named blocks, psi reads ``theta["beta"]``.
    names : optional
        Parameter names; for named blocks, a mapping to the names of their entries.
    jacobian : callable, optional
        ``jacobian(theta, data) -> (q, p)``, the mean over rows of the derivative of
        psi, without a change of sign. Checked once against a random directional
        difference. Without it, differences are used.
    units : str or (n,) array, optional
        Rows with the same label belong to one independent unit: psi is summed
        within.
    weights : Frequency, Sampling or Importance, optional

    Raises
    ------
    DataError
        If the data, the start or the shape of psi cannot be used.

    Examples
    --------
    The mean and the variance of five values:

    >>> def psi(theta, data):
    ...     centred = data["y"] - theta["mean"]
    ...     return np.column_stack([centred, centred**2 - theta["variance"]])
    >>> eq = equation(psi, {"y": [1.0, 2, 3, 4, 5]}, {"mean": 0, "variance": 1})
    >>> eq.names, eq.n_units
    (('mean', 'variance'), 5)
    """
    source = block_source(data)
    if source is not None:
        return _blocked(source, psi, start, names, jacobian, units, weights)
    if isinstance(data, Mapping):
        data = {
            name: np.asarray(value) if isinstance(value, list | tuple) else value
            for name, value in data.items()
        }
    n_rows = checked_data(data)
    vector, blocks, labels = named_blocks(start, names)
    codes = None
    if units is not None:
        given = column_of(data, units) if isinstance(units, str) else units
        codes, _ = labels_of(given, "units", n_rows)
    values = aligned_weights(weights, data, n_rows)
    if values is not None and not isinstance(weights, Frequency):
        values = values * (n_rows / values.sum())  # results are free of the scale
    made = UserEquation(
        psi,
        data,
        vector,
        labels,
        blocks,
        n_rows,
        jacobian,
        codes,
        values,
        type(weights) if weights is not None else None,
    )
    _check_first_call(made)
    return made


def _blocked(
    source: BlockSource,
    psi: Callable[[Any, Any], Any],
    start: Any,
    names: Any,
    jacobian: Any,
    units: Any,
    weights: Weights | None,
) -> BlockedEquation:
    """Return the equation of a block source, after one pass that checks every row."""
    vector, places, labels = named_blocks(start, names)
    column = weight_column(weights)
    kind = None if weights is None else type(weights)
    if units is not None and not isinstance(units, str):
        raise TypeError(
            "`units` must be the name of a column where data are read in blocks."
        )

    def rows_of(block: Block, scale: float) -> UserEquation:
        frame, values = block.frame, None
        count = checked_data(frame)
        if column is not None:
            values = scale * block_weights(weights, column_of(frame, column))
        return UserEquation(
            psi, frame, vector, labels, places, count, jacobian, None, values, kind
        )

    def build(block: Block, scale: float) -> UserEquation:
        try:
            return rows_of(block, scale)
        except DataError as error:
            raise in_block(block, error) from None

    counted = _counted(source, build, units)
    if column is not None and not counted.weight_sum > 0:
        raise DataError("`weights` are all zero.")
    effective = float(counted.n_units)
    if isinstance(weights, Importance):
        effective = counted.weight_sum**2 / counted.weight_squares
    is_scaled = column is not None and not isinstance(weights, Frequency)
    return BlockedEquation(
        source,
        build,
        labels,
        vector,
        places,
        counted.n_rows,
        counted.n_units,
        effective,
        counted.n_rows / counted.weight_sum if is_scaled else 1.0,
        0.0 if jacobian is not None and column is None else _DIFFERENCE_ERROR,
        units,
    )


class _Counts(NamedTuple):
    """What one pass over a block source counts."""

    n_rows: int
    n_units: int
    weight_sum: float
    weight_squares: float


def _counted(
    source: BlockSource,
    build: Callable[[Block, float], UserEquation],
    units: str | None,
) -> _Counts:
    """Evaluate psi once at the start in every block, and count."""
    rows, n_units, total, squares, groups = 0, 0, 0.0, 0.0, set[Any]()
    for block in source.blocks():
        made = build(block, 1.0)
        try:
            if rows == 0:
                _check_first_call(made)
            else:
                made._raw_rows(made.initial)
            if units is not None:
                given = column_of(block.frame, units)
                labels_of(given, "units", made.n_rows)
                groups.update(pd.unique(given))
        except DataError as error:
            raise in_block(block, error) from None
        rows, n_units = rows + made.n_rows, n_units + made.n_units
        if made.row_weights is not None:
            total += float(made.row_weights.sum())
            squares += float(np.square(made.row_weights).sum())
    return _Counts(rows, len(groups) if units else n_units, total, squares)


def _check_first_call(made: UserEquation) -> None:
    with np.errstate(all="ignore"):  # what is not finite is raised with its row
        rows = made._raw_rows(made.initial)
    if rows.shape[1] < len(made.initial):
        raise DataError(
            f"`psi` returns {rows.shape[1]} columns for {len(made.initial)} "
            "parameters; "
            "at least one equation per parameter is needed."
        )
    if made.derivative is None:
        return
    given = as_float(
        made.derivative(made._parameters(made.initial), made.data), "jacobian", 2
    )
    if given.shape != (rows.shape[1], len(made.initial)):
        raise DataError(
            f"`jacobian` returned shape {given.shape}; expected "
            f"({rows.shape[1]}, {len(made.initial)}), equations by parameters."
        )
    _compare_jacobian(made, given)


def _compare_jacobian(made: UserEquation, given: Matrix) -> None:
    steps = response_steps(made._raw_rows, made.initial)
    if (steps < 0).any():
        return  # psi jumps: a short difference says nothing about a density
    signs = np.random.default_rng(0).choice([-1.0, 1.0], len(steps))
    direction = 0.01 * steps * signs
    seen = directional_difference(
        lambda t: made._raw_rows(t).mean(axis=0), made.initial, direction
    )
    told = given @ direction
    scale = np.abs(given) @ np.abs(direction)
    noise = 1e-13 * np.abs(made._raw_rows(made.initial)).mean(axis=0)
    wrong = np.abs(told - seen) > _JACOBIAN_AGREES * scale + noise
    if wrong.any():
        k = int(np.flatnonzero(wrong)[0])
        hint = (
            " It has the opposite sign: `jacobian` is the plain mean derivative of psi."
            if np.allclose(told, -seen, rtol=1e-3, atol=float(noise.max()))
            else " It must be a mean over rows, not a sum."
        )
        raise DataError(
            f"`jacobian` disagrees with differences of psi in equation {k}: "
            f"{told[k]:.6g} against {seen[k]:.6g} along one direction.{hint}"
        )


# ---------------------------------------------------------------- tabulated results


@dataclass(frozen=True, slots=True)
class Evaluated:
    """An equation tabulated at one theta: scores computed elsewhere, or a loaded fit.

    Covariance rules that are functions of psi and A work as usual; nothing can be
    solved or refitted.

    Attributes
    ----------
    names : tuple of p str
    table : (n, q) array
        Contributions at `theta`.
    slope : (q, p) array
        A at `theta`.
    theta : (p,) array
    """

    names: tuple[str, ...]
    table: Matrix
    slope: Matrix
    theta: Vector

    @property
    def n_units(self) -> int:
        """Number of independent units, n."""
        return len(self.table)

    def _check(self, theta: Vector) -> None:
        if not np.array_equal(np.asarray(theta), self.theta):
            raise CapabilityError(
                "this equation is tabulated at one theta and cannot be evaluated at "
                "another; build the original equation to solve or refit."
            )

    def psi(self, theta: Vector) -> Matrix:
        """Return the tabulated contributions, (n, q)."""
        self._check(theta)
        return self.table

    def sensitivity(self, theta: Vector) -> Matrix:
        """Return the tabulated A, (q, p)."""
        self._check(theta)
        return self.slope
