"""The linear predictor at new rows, with what its interval needs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eestim._arrays import Matrix, Vector, as_float, check_finite
from eestim.errors import DataError
from eestim.models.families import Link
from eestim.models.formula import new_design

__all__ = ["Prediction", "predicted"]


@dataclass(frozen=True, slots=True)
class Prediction:
    """A fitted mean with what its interval needs.

    Attributes
    ----------
    linear : (m,) array
        The linear predictor.
    jacobian : (m, p) array
        Its derivative in theta.
    link : Link
        Maps it to the mean.
    """

    linear: Vector
    jacobian: Matrix
    link: Link


def predicted(
    specification: Any,
    names: Sequence[str],
    link: Link,
    theta: Vector,
    new_data: Any,
) -> Prediction:
    """Return the linear predictor and its derivative at new rows.

    Raises
    ------
    DataError
        If columns are missing, or rows do not have one entry a parameter.
    """
    if specification is not None:
        design = new_design(specification, new_data)
    else:
        design = check_finite(as_float(new_data, "new_data", 2), "new_data")
    if design.shape[1] != len(names):
        raise DataError(
            f"`new_data` has {design.shape[1]} columns; the design has "
            f"{len(names)} ({', '.join(names[:6])})."
        )
    return Prediction(design @ theta, design, link)
