"""Means and other one-line equations."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from eestim._arrays import as_float, check_finite
from eestim.equations import column_of
from eestim.models.linear import GeneralizedLinear, glm, with_offset_and_weights
from eestim.weights import Frequency, Importance, Sampling, Weights

__all__ = ["mean"]


def mean(
    values: Any,
    data: Any = None,
    *,
    weights: Weights | None = None,
    names: Sequence[str] | None = None,
) -> GeneralizedLinear:
    r"""Return the estimating equation of a mean, :math:`\psi_i = y_i - \mu`.

    It is a regression on a constant, so every covariance rule of a linear model
    applies.

    Parameters
    ----------
    values : (n,) array, or str
        The values, or the name of a column of ``data``.
    data : DataFrame or mapping, optional
        Where names (of values, weights, clusters) are looked up.
    weights : Frequency, Sampling or Importance, optional
    names : sequence of one str, optional

    Examples
    --------
    >>> mean([1.0, 2.0, 6.0]).psi(np.array([3.0])).ravel()
    array([-2., -1.,  3.])
    """
    if isinstance(data, Frequency | Sampling | Importance):
        raise TypeError(
            "`data` is a weight; pass it by name: mean(values, weights=...)."
        )
    label = values if isinstance(values, str) else "mean"
    given = column_of(data, values) if isinstance(values, str) else values
    array = check_finite(as_float(given, label, 1), label)
    made = glm(
        array,
        np.ones((len(array), 1)),
        family="gaussian",
        names=list(names) if names else [label],
        weights=None,
    )
    made = replace(made, data=data, index=getattr(data, "index", None))
    if weights is None:
        return made
    return with_offset_and_weights(made, None, None, weights)
