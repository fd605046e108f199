r"""The estimating equation of a stack of blocks, and its block-triangular A.

With blocks :math:`\psi_1(\theta_1), \psi_2(\theta_1, \theta_2), \ldots` the sensitivity
is block-triangular,

.. math::
    A = \begin{pmatrix} A_{11} & 0 \\ A_{21} & A_{22} \end{pmatrix},

and the sandwich of the stack carries the sampling error of the first step into the
second. The diagonal block of a model is its own analytic sensitivity; only functions
are differenced.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np

from eestim._arrays import IntVector, Matrix, Vector, as_float, check_psi
from eestim._differentiate import DIFFERENCE_ERROR, response_steps
from eestim._differentiate import jacobian as difference_jacobian
from eestim.equations import Parameters, column_of, require, sum_by_code
from eestim.errors import ConvergenceError, DataError, InterpolationError
from eestim.moments import Moments, moments_of
from eestim.roots import Root, solve
from eestim.weights import (
    Frequency,
    combined_weights,
    count_units,
    effective_count,
    weighted_rows,
)

__all__ = ["Block", "EquationBlock", "FunctionBlock", "Places", "StackedEquation"]

_INTERPOLATED = 1e-10  # change of theta that would move psi by all of its size

Places: TypeAlias = Mapping[str, tuple[slice, tuple[int, ...]]]


@dataclass(frozen=True, slots=True, eq=False)
class EquationBlock:
    """An estimating equation with parameters of its own.

    Attributes
    ----------
    name : str
    where : slice
        Its parameters in theta; its equations are the same columns of psi.
    equation : EstimatingEquation
    initial : (size,) array or None
        Where its search begins; None for the equation's own start.
    """

    name: str
    where: slice
    equation: Any
    initial: Vector | None = None

    def rows(self, theta: Vector, data: Any, n_rows: int) -> Matrix:  # noqa: ARG002
        """Return its contributions, (n_rows, size)."""
        own: Matrix = self.equation.psi(theta[self.where])
        return own


@dataclass(frozen=True, slots=True, eq=False)
class FunctionBlock:
    """A function of its own parameters and of those of earlier blocks.

    Attributes
    ----------
    name : str
    where : slice
    function : callable
        ``function(theta, data) -> (n, size)``.
    initial : (size,) array
        Where its search begins.
    derivative : callable or None
        ``derivative(theta, data) -> (size, stop)``, the mean derivative of the function
        in all parameters up to its own.
    places : mapping
        What the function reads by name: earlier blocks and its own.
    """

    name: str
    where: slice
    function: Callable[[Any, Any], Any]
    initial: Vector
    derivative: Callable[[Any, Any], Any] | None = None
    places: Places = field(default_factory=dict)

    def rows(self, theta: Vector, data: Any, n_rows: int) -> Matrix:
        """Return its contributions at the parameters so far, (n_rows, size)."""
        read = Parameters(theta[: self.where.stop], self.places)
        try:
            values = check_psi(self.function(read, data), n_rows)
        except DataError as error:
            raise DataError(f"block {self.name!r}: {error}") from error
        size = len(self.initial)
        if values.shape[1] != size:
            raise DataError(
                f"block {self.name!r} returns {values.shape[1]} columns for {size} "
                "parameters; one equation for each entry of its start is needed."
            )
        return values


Block: TypeAlias = EquationBlock | FunctionBlock


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class StackedEquation:
    """Blocks of estimating equations on the same units. Made by `stack`."""

    blocks: tuple[Block, ...]
    names: tuple[str, ...]
    block_places: Places
    data: Any
    n_rows: int
    unit_codes: IntVector | None = None
    row_weights: Vector | None = None
    weight_kind: type | None = None
    _found: dict[str, Vector] = field(default_factory=dict, init=False)

    def __repr__(self) -> str:
        parts = ", ".join(block.name for block in self.blocks)
        return f"StackedEquation({parts}; {self.n_units} units)"

    # ------------------------------------------------------------------ counts

    @property
    def n_units(self) -> int:
        """Number of independent units, n."""
        return count_units(
            self.n_rows, self.row_weights, self.weight_kind, self.unit_codes
        )

    @property
    def n_effective(self) -> float:
        """Kish's effective n under importance weights, else n."""
        return effective_count(self.n_units, self.row_weights, self.weight_kind)

    @property
    def derivative_error(self) -> float:
        """Relative error of the sensitivity; 0 where every part is analytic."""
        return max(self._error_of(block) for block in self.blocks)

    def _error_of(self, block: Block) -> float:
        if isinstance(block, EquationBlock):
            return float(getattr(block.equation, "derivative_error", 0.0))
        return 0.0 if self._analytic(block) is not None else DIFFERENCE_ERROR

    def _analytic(self, block: FunctionBlock) -> Callable[[Any, Any], Any] | None:
        """Return the derivative of a function, a plain mean: of no use with weights."""
        return block.derivative if self.row_weights is None else None

    # ------------------------------------------------------------------- psi, A

    def _raw_rows(self, theta: Vector) -> Matrix:
        parts = [block.rows(theta, self.data, self.n_rows) for block in self.blocks]
        return np.concatenate(parts, axis=1)

    def _weighted(self, rows: Matrix) -> Matrix:
        return weighted_rows(rows, self.row_weights, None)

    def psi_rows(self, theta: Vector) -> Matrix:
        """Return contributions before rows are summed within units."""
        return weighted_rows(self._raw_rows(theta), self.row_weights, self.weight_kind)

    def psi(self, theta: Vector) -> Matrix:
        """Return the contributions of the units, (n, p)."""
        if self.unit_codes is None:
            return self.psi_rows(theta)
        rows = self._weighted(self._raw_rows(theta))
        return sum_by_code(rows, self.unit_codes, self.n_units)

    def sensitivity(self, theta: Vector) -> Matrix:
        """Return A, minus the mean derivative of psi: block-triangular, (p, p)."""
        theta = np.asarray(theta, dtype=np.float64)
        slope = np.zeros((len(theta), len(theta)))
        for block in self.blocks:
            if isinstance(block, EquationBlock):
                own = self._weighted_equation(block).sensitivity(theta[block.where])
                slope[block.where, block.where] = own
            else:
                sofar = theta[: block.where.stop]
                slope[block.where, : len(sofar)] = -self._mean_slope(block, sofar)
        return slope * (self.n_rows / self.n_units)

    def _weighted_equation(self, block: EquationBlock) -> Any:
        if self.row_weights is None:
            return block.equation
        reweighted = require(
            block.equation,
            "reweighted",
            f"`weights` of a stack with the block {block.name!r}",
            "Give the weights to the blocks instead.",
        )
        return reweighted(self.row_weights)

    def _mean_slope(self, block: FunctionBlock, sofar: Vector) -> Matrix:
        """Return the mean over rows of the derivative in all parameters so far."""
        derivative = self._analytic(block)
        if derivative is not None:
            given = derivative(Parameters(sofar, block.places), self.data)
            return as_float(given, f"jacobian[{block.name!r}]", 2)

        def rows(at: Vector) -> Matrix:
            return self._weighted(block.rows(at, self.data, self.n_rows))

        steps = response_steps(rows, sofar)
        return difference_jacobian(lambda at: rows(at).mean(axis=0), sofar, steps)

    def moments(self, theta: Vector) -> Moments:
        """Return the moments of psi.

        A relation without noise, such as ``mu1 - mu0 - ate``, is left at its rounding
        by any solver: its mean counts as zero below the rounding of its terms.
        """
        made = moments_of(self.psi(theta), self.sensitivity(theta))
        rounding = (
            8.0 * np.finfo(np.float64).eps * (np.abs(made.sensitivity) @ np.abs(theta))
        )
        mean = np.where(np.abs(made.mean) > rounding, made.mean, 0.0)
        return replace(made, mean=mean)

    # -------------------------------------------------------------- capabilities

    def unit_sensitivity(self, theta: Vector) -> Matrix:
        """Return minus the derivative of each unit's psi, (n, p, p)."""
        p = len(self.names)
        slopes = np.zeros((self.n_rows, p, p))
        for block in self.blocks:
            stop = block.where.stop
            if isinstance(block, FunctionBlock):
                slopes[:, block.where, :stop] = self._row_slopes(block, theta[:stop])
            else:
                capability = require(
                    block.equation,
                    "unit_sensitivity",
                    "this rule",
                    "Use HC(0), HC(1), Clustered or a bootstrap.",
                )
                slopes[:, block.where, block.where] = capability(theta[block.where])
        if self.unit_codes is None:
            return weighted_rows(slopes, self.row_weights, self.weight_kind)
        slopes = self._weighted(slopes)
        flat = slopes.reshape(self.n_rows, p * p)
        return sum_by_code(flat, self.unit_codes, self.n_units).reshape(-1, p, p)

    def _row_slopes(self, block: FunctionBlock, sofar: Vector) -> Matrix:
        def rows(at: Vector) -> Matrix:
            return block.rows(at, self.data, self.n_rows)

        steps = response_steps(rows, sofar)
        flat = difference_jacobian(lambda at: rows(at).ravel(), sofar, steps)
        return -flat.reshape(self.n_rows, len(block.initial), len(sofar))

    def column(self, name: str) -> Any:
        """Return a column of the data by name, one entry per row of `psi_rows`."""
        values = column_of(self.data if self.data is not None else {}, name)
        if self.weight_kind is Frequency and self.row_weights is not None:
            return np.repeat(np.asarray(values), self.row_weights.astype(int))
        return values

    def reweighted(self, weights: Vector) -> "StackedEquation":
        """Return the stack with its units weighted, for refitting bootstraps.

        Parameters
        ----------
        weights : (n,) array
            One nonnegative weight for each unit.
        """
        if self.unit_codes is None:
            combined = combined_weights(weights, self.row_weights, self.weight_kind)
        else:  # one weight a row of the table, whatever its frequency
            per_row = weights[self.unit_codes]
            combined = combined_weights(per_row, self.row_weights, None)
        return replace(self, row_weights=combined, weight_kind=None)

    # ----------------------------------------------------------------- solving

    @property
    def start(self) -> Vector:
        """Where the joint search begins: the blocks' own roots, in order."""
        if "start" not in self._found:
            theta = np.zeros(len(self.names))
            for block in self.blocks:
                theta[block.where] = self._block_root(block, theta)
            self._found["start"] = theta
        return self._found["start"].copy()

    def _block_root(self, block: Block, theta: Vector) -> Vector:
        equation = (
            self._weighted_equation(block)
            if isinstance(block, EquationBlock)
            else _Given(self, block, theta[: block.where.start])
        )
        found = solve(equation, block.initial)
        inspect = getattr(equation, "check_root", None)
        if inspect is not None and np.isfinite(found.theta).all():
            inspect(found)
        try:
            return found.require_converged().theta
        except ConvergenceError as error:
            raise ConvergenceError(f"block {block.name!r}: {error}") from error

    def check_root(self, root: Root) -> None:
        """Raise where a block is separated, or all contributions vanish.

        Raises
        ------
        SeparationError
            If the root of a model lies at infinity.
        InterpolationError
            If a model, or the whole stack, reproduces the data exactly.
        """
        for block in self.blocks:
            inspect = getattr(getattr(block, "equation", None), "check_root", None)
            if inspect is not None:
                own = root.theta[block.where]
                inspect(Root(own, root.status, root.residual, root.steps))
        psi = self.psi(root.theta)
        change = np.abs(self.psi(root.theta * (1.0 + _INTERPOLATED)) - psi)
        used = psi != 0  # units at a jump change by all of it, but they are few
        if not used.any() or np.mean((np.abs(psi) <= change)[used]) > 0.5:
            raise InterpolationError(
                "psi of every block vanishes at every unit, so the sandwich would be "
                "zero whatever the noise; use fewer parameters or more units."
            )


@dataclass(frozen=True, slots=True, eq=False)
class _Given:
    """A function block as an equation in its own parameters, the others given."""

    stack: StackedEquation
    block: FunctionBlock
    earlier: Vector
    derivative_error: float = DIFFERENCE_ERROR

    @property
    def n_units(self) -> int:
        return self.stack.n_rows

    @property
    def names(self) -> tuple[str, ...]:
        return self.stack.names[self.block.where]

    def psi(self, own: Vector) -> Matrix:
        theta = np.concatenate([self.earlier, own])
        rows = self.block.rows(theta, self.stack.data, self.stack.n_rows)
        return self.stack._weighted(rows)

    def sensitivity(self, own: Vector) -> Matrix:
        steps = response_steps(self.psi, own)
        return -difference_jacobian(lambda at: self.psi(at).mean(axis=0), own, steps)
