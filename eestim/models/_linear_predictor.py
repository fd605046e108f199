"""What equations with a linear predictor share: data, weights, labels, prediction."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from eestim._arrays import Matrix, Vector, as_float, check_finite
from eestim.equations import column_of
from eestim.models.basic import mean
from eestim.models.linear import GeneralizedLinear, Prediction, ols
from eestim.weights import Weights, weighted_rows

__all__ = ["LinearPredictor", "linear_predictor_of"]


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class LinearPredictor:
    """The parts of an equation in y - X theta that do not depend on its psi.

    Attributes
    ----------
    linear : GeneralizedLinear
        The linear model with the same outcome, design, weights and data.
    """

    linear: GeneralizedLinear

    @property
    def n_units(self) -> int:
        """Number of independent units: rows, or the sum of frequencies."""
        return self.linear.n_units

    @property
    def n_effective(self) -> float:
        """Kish's effective n under importance weights, else n."""
        return self.linear.n_effective

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters."""
        return self.linear.names

    @property
    def kept(self) -> Any:
        """Positions of the rows used, or None."""
        return self.linear.kept

    @property
    def n_given(self) -> int:
        """Number of rows given, before any were dropped."""
        return self.linear.n_given

    @property
    def data(self) -> Any:
        """The table that a formula was read with, or None."""
        return self.linear.data

    @property
    def specification(self) -> Any:
        """What rebuilds the design for new data, or None."""
        return self.linear.specification

    @property
    def design(self) -> Matrix:
        """Rows x_i, (n, p)."""
        return self.linear.design

    @property
    def row_weights(self) -> Vector | None:
        """Weights of the rows, or None."""
        return self.linear.row_weights

    @property
    def weight_kind(self) -> type | None:
        """What the weights mean."""
        return self.linear.weight_kind

    def column(self, name: str) -> Any:
        """Return a column of the data by name, one entry a unit."""
        return self.linear.column(name)

    def aligned(self, values: Any) -> Any:
        """Return labels for the rows used, aligned by index where they have one."""
        return self.linear.aligned(values)

    def predict(self, theta: Vector, new_data: Any) -> Prediction:
        """Return the linear predictor and its derivative at new rows."""
        return self.linear.predict(theta, new_data)

    # ------------------------------------------------------------------ for psi

    def residual(self, theta: Vector) -> Vector:
        """Return y - X theta, one entry a row."""
        value: Vector = self.linear.response - self.linear.design @ theta
        return value

    def weights(self) -> Vector:
        """Return the weight of each row, one by default."""
        given = self.linear.row_weights
        return np.ones(len(self.linear.response)) if given is None else given

    def expanded(self, rows: Matrix) -> Matrix:
        """Apply the weights: frequencies repeat a row, others multiply it."""
        return weighted_rows(rows, self.linear.row_weights, self.linear.weight_kind)


def linear_predictor_of(
    formula: Any,
    data: Any,
    *,
    weights: Weights | None,
    names: Sequence[str] | None,
    na: Literal["raise", "drop"],
    unsafe: bool,
    location: str,
) -> GeneralizedLinear:
    """Return the linear model of a formula, of arrays, or of a constant alone.

    Parameters
    ----------
    formula : str, or (n,) array
        A formula; the name of a column or values, for a constant alone; or an outcome.
    data : DataFrame or mapping, (n, p) array, or None
    location : str
        What to call the parameter of a constant alone.
    """
    is_text = isinstance(formula, str)
    if is_text and "~" not in formula:
        values = check_finite(as_float(column_of(data, formula), formula, 1), formula)
        return mean(values, data, weights=weights, names=names or [location])
    if not is_text and data is None:
        values = check_finite(as_float(formula, "values", 1), "values")
        return mean(values, weights=weights, names=names or [location])
    return ols(formula, data, weights=weights, names=names, na=na, unsafe=unsafe)
