"""Equations that a user writes as a NumPy function, with data in memory."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from eestim._arrays import IntVector, Matrix, Vector, as_float, check_psi
from eestim._differentiate import (
    DIFFERENCE_ERROR,
    directional_difference,
    jacobian,
    response_steps,
)
from eestim._linalg import equilibrated_factor
from eestim.equations.columns import column_of, sum_by_code
from eestim.equations.parameters import Blocks, Parameters
from eestim.errors import DataError
from eestim.weights import (
    Frequency,
    combined_weights,
    count_units,
    effective_count,
    weighted_rows,
)

__all__ = ["UserEquation", "check_first_call"]

_WELL_CONDITIONED = 1e-2  # of A; above, differences along the axes are as good
_JACOBIAN_AGREES = 1e-4  # of a supplied jacobian with one directional difference


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
        return count_units(
            self.n_rows, self.row_weights, self.weight_kind, self.unit_codes
        )

    @property
    def n_effective(self) -> float:
        """Kish's effective n under importance weights, else n."""
        return effective_count(self.n_units, self.row_weights, self.weight_kind)

    @property
    def start(self) -> Vector:
        """Where the solver begins, (p,)."""
        return self.initial.copy()

    @property
    def derivative_error(self) -> float:
        """Relative error of the sensitivity; 0 where it is analytic."""
        return 0.0 if self.derivative is not None else DIFFERENCE_ERROR

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
        return weighted_rows(self._raw_rows(theta), self.row_weights, self.weight_kind)

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
        if self.unit_codes is None:
            combined = combined_weights(weights, self.row_weights, self.weight_kind)
        else:  # one weight a row of the table, whatever its frequency
            per_row = weights[self.unit_codes]
            combined = combined_weights(per_row, self.row_weights, None)
        made = replace(self, row_weights=combined, weight_kind=None, derivative=None)
        made._steps.update(self._steps)  # steps that suit psi suit it reweighted
        return made


def check_first_call(made: UserEquation) -> None:
    """Evaluate psi, and a supplied derivative, once where the solver begins.

    Raises
    ------
    DataError
        If psi or its derivative has the wrong shape or values that are not finite, or
        the derivative disagrees with a difference of psi along one direction.
    """
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
