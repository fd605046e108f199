"""What a maker of equations is given, checked: the same for NumPy and for torch."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from eestim._arrays import IntVector, Vector
from eestim.equations.columns import checked_data, column_of, labels_of
from eestim.equations.parameters import Blocks, named_blocks
from eestim.weights import Weights, aligned_weights, check_units_present

__all__ = ["Inputs", "checked_inputs"]


class Inputs(NamedTuple):
    """Data in memory, where the search starts, and what belongs to each row."""

    data: Any
    n_rows: int
    start: Vector
    places: Blocks
    names: tuple[str, ...]
    unit_codes: IntVector | None
    row_weights: Vector | None  # as given: not scaled


def checked_inputs(
    data: Any,
    start: Any,
    names: Sequence[str] | Mapping[str, Sequence[str]] | None,
    units: Any,
    weights: Weights | None,
) -> Inputs:
    """Return the arguments of `equation` in one form.

    Raises
    ------
    DataError
        If data, start, labels of units or weights cannot be used.
    """
    if isinstance(data, Mapping):
        data = {
            name: np.asarray(value) if isinstance(value, list | tuple) else value
            for name, value in data.items()
        }
    n_rows = checked_data(data)
    vector, places, labels = named_blocks(start, names)
    codes = None
    if units is not None:
        given = column_of(data, units) if isinstance(units, str) else units
        codes, _ = labels_of(given, "units", n_rows)
    values = aligned_weights(weights, data, n_rows)
    check_units_present(weights, values, codes)
    return Inputs(data, n_rows, vector, places, labels, codes, values)
