"""Linear and generalized linear models of formulas and of arrays."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import numpy as np
import pandas as pd

from eestim._arrays import IntVector, Matrix, Vector, as_float, check_finite
from eestim.blocks import block_source
from eestim.errors import DataError
from eestim.models._orthonormal import collinear_error
from eestim.models._prediction import Prediction, predicted
from eestim.models.families import family_and_link
from eestim.models.formula import design_from_formula
from eestim.models.generalized_linear import GeneralizedLinear
from eestim.weights import Frequency, Weights, aligned_weights

__all__ = [
    "GeneralizedLinear",
    "Prediction",
    "collinear_error",
    "glm",
    "ols",
    "predicted",
    "with_offset_and_weights",
]


def glm(
    formula: Any,
    data: Any,
    *,
    family: str,
    link: str | None = None,
    offset: Any = None,
    exposure: Any = None,
    weights: Weights | None = None,
    names: Sequence[str] | None = None,
    na: Literal["raise", "drop"] = "raise",
    unsafe: bool = False,
) -> GeneralizedLinear:
    """Return the estimating equation of a generalized linear model.

    Parameters
    ----------
    formula : str, or (n,) array
        A formula such as ``"y ~ x + C(g)"``, or the outcome itself.
    data : DataFrame or mapping, (n, p) array, or block source
        The table of the formula, or the design (no intercept is added). A path of a
        Parquet file or folder, a Dask DataFrame, or a function that returns an iterator
        of DataFrames is read in blocks, in bounded memory (`eestim.models.streamed`).
    family : {"gaussian", "binomial", "poisson"}
    link : str, optional
        The canonical link by default.
    offset : str or (n,) array, optional
        Added to the linear predictor.
    exposure : str or (n,) array, optional
        Positive; its logarithm is added to the linear predictor (log link only).
    weights : Frequency, Sampling or Importance, optional
    names : sequence of str, optional
        Names of the columns of an array design.
    na : {"raise", "drop"}
        What to do about rows with missing values (formulas only).
    unsafe : bool
        Allow any call in the formula.

    Raises
    ------
    DataError
        If the data cannot be used.

    Examples
    --------
    >>> import pandas as pd
    >>> table = pd.DataFrame({"y": [0, 1, 0, 1, 1], "x": [0.0, 1, 2, 3, 4]})
    >>> glm("y ~ x", table, family="binomial").names
    ('Intercept', 'x')
    """
    source = None if not isinstance(formula, str) else block_source(data)
    if source is not None:
        from eestim.models.streamed import streamed_glm  # which builds these blocks

        streamed = streamed_glm(
            formula,
            source,
            family=family,
            link=link,
            offset=offset,
            exposure=exposure,
            weights=weights,
            na=na,
            unsafe=unsafe,
        )
        return cast(GeneralizedLinear, streamed)
    chosen, used_link = family_and_link(family, link)
    specification: Any = None
    kept: IntVector | None = None
    index: Any = None
    if isinstance(formula, str):
        built = design_from_formula(formula, data, na=na, unsafe=unsafe)
        response, design, labels = built.response, built.design, built.names
        specification, kept = built.specification, built.kept
        index = data.index if isinstance(data, pd.DataFrame) else None
        n_given, table = len(pd.DataFrame(data)), data
    else:
        response, design, labels = _from_arrays(formula, data, names)
        n_given = len(response)
        table = data if isinstance(data, pd.DataFrame) else None
    chosen.check_response(response)
    made = GeneralizedLinear(
        design,
        response,
        labels,
        chosen,
        used_link,
        specification=specification,
        data=table,
        kept=kept,
        index=index,
        n_given=n_given,
    )
    return with_offset_and_weights(made, offset, exposure, weights)


def ols(
    formula: Any,
    data: Any,
    *,
    weights: Weights | None = None,
    names: Sequence[str] | None = None,
    na: Literal["raise", "drop"] = "raise",
    unsafe: bool = False,
) -> GeneralizedLinear:
    r"""Return the estimating equation of least squares, :math:`\psi_i = x_i e_i`.

    Parameters are those of `glm`.

    Examples
    --------
    >>> import pandas as pd
    >>> table = pd.DataFrame({"y": [1.0, 2.0, 4.0], "x": [0.0, 1.0, 2.0]})
    >>> equation = ols("y ~ x", table)
    >>> equation.psi(np.array([1.0, 1.0]))
    array([[0., 0.], [0., 0.], [1., 2.]])
    """
    return glm(
        formula,
        data,
        family="gaussian",
        weights=weights,
        names=names,
        na=na,
        unsafe=unsafe,
    )


def _from_arrays(
    y: Any, X: Any, names: Sequence[str] | None
) -> tuple[Vector, Matrix, tuple[str, ...]]:
    response = check_finite(as_float(y, "y", 1), "y")
    if isinstance(X, pd.DataFrame):
        bad = [str(c) for c in X.columns if X[c].dtype.kind not in "fiub"]
        if bad:
            raise DataError(
                f"`X` has columns that are not numeric: {', '.join(bad)}; convert them "
                "or use a formula, which codes categories."
            )
        names = names or [str(column) for column in X.columns]
    design = as_float(X, "X", 2)
    if len(design) != len(response):
        raise DataError(
            f"`y` has {len(response)} rows and `X` has {len(design)}; they must agree."
        )
    if len(response) == 0:
        raise DataError("`y` has no rows; at least one is needed.")
    for rows in range(0, len(design), 65536):
        block = design[rows : rows + 65536]
        if not np.isfinite(block).all():
            check_finite(design, "X")
    labels = tuple(names) if names else tuple(f"x{j}" for j in range(design.shape[1]))
    if len(labels) != design.shape[1]:
        raise DataError(
            f"`names` has {len(labels)} entries for {design.shape[1]} columns."
        )
    return response, design, labels


def with_offset_and_weights(
    made: GeneralizedLinear, offset: Any, exposure: Any, weights: Weights | None
) -> GeneralizedLinear:
    """Return the equation with offset and weights aligned to its rows."""
    if exposure is not None:
        if offset is not None or made.link.name != "log":
            raise ValueError(
                "`exposure` needs the log link and no `offset`; pass its logarithm as "
                "the offset instead."
            )
        values = _column_or_array(made, exposure, "exposure")
        if (values <= 0).any():
            raise DataError("`exposure` must be positive.")
        offset = np.log(values)
    shift = None if offset is None else _column_or_array(made, offset, "offset")
    if weights is not None and hasattr(weights, "values"):
        given = weights.values
        column = made.column(given) if isinstance(given, str) else made.aligned(given)
        weights = type(weights)(column)
    values_or_none = aligned_weights(weights, made.data, len(made.response))
    if values_or_none is not None and not isinstance(weights, Frequency):
        values_or_none = values_or_none * (len(values_or_none) / values_or_none.sum())
    return replace(
        made,
        offset=shift,
        row_weights=values_or_none,
        weight_kind=None if weights is None else type(weights),
    )


def _column_or_array(made: GeneralizedLinear, given: Any, argument: str) -> Vector:
    values = made.column(given) if isinstance(given, str) else made.aligned(given)
    array = check_finite(as_float(values, argument, 1), argument)
    if len(array) != len(made.response):
        raise DataError(
            f"`{argument}` has {len(array)} entries for {len(made.response)} rows."
        )
    return array
