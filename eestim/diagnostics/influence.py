"""Influence of single rows on a regression: leverage, Cook's distance, dfbeta."""

from typing import Any

import numpy as np
import pandas as pd

from eestim.covariance.base import leverage, working_of
from eestim.errors import InferenceError

__all__ = ["influence_measures"]


def influence_measures(estimate: Any) -> pd.DataFrame:
    r"""Return what each row does to a regression, one row a unit.

    Columns, with :math:`h_i` the leverage and :math:`e_i` the working residual in
    units of its standard deviation under unit dispersion:

    - ``leverage`` :math:`h_i`;
    - ``standardised`` :math:`e_i / \sqrt{\hat\phi (1 - h_i)}`;
    - ``studentised`` the same with the dispersion estimated without row i (families
      with a dispersion; else equal to ``standardised``);
    - ``cooks_distance`` :math:`h_i \, \mathrm{standardised}_i^2 / \{p (1 - h_i)\}`;
    - ``dfbeta[name]`` :math:`\hat\theta - \hat\theta_{(i)}`, exact for linear models
      and one step for others.

    Raises
    ------
    CapabilityError
        If the equation is not a regression with a linear predictor.
    InferenceError
        If a row has leverage 1.

    References
    ----------
    Cook and Weisberg (1982), Residuals and Influence in Regression, ch. 2-3;
    Williams (1987), Appl. Statist. 36, 181-191, for generalized linear models.

    Examples
    --------
    >>> import eestim as ee
    >>> fit = ee.estimate(ee.mean([1.0, 2.0, 6.0]))
    >>> influence_measures(fit)["dfbeta[mean]"].round(3).tolist()
    [-1.0, -0.5, 1.5]
    """
    equation = estimate.equation
    working = working_of(
        equation,
        estimate.theta,
        "`influence_measures`",
        "Use `fit.influence()`, which takes any psi.",
    )
    h = leverage(working)
    if (h > 1.0 - 1e-10).any():
        raise InferenceError(
            f"rows {np.flatnonzero(h > 1.0 - 1e-10)[:5].tolist()} have leverage 1: the "
            "fit without them does not exist. Drop the parameters they alone determine."
        )
    n, p = working.design.shape
    pearson = working.residual / np.sqrt(working.weight)
    has_dispersion = bool(getattr(equation, "has_dispersion", True))
    squares = pearson**2
    dispersion = squares.sum() / (n - p) if has_dispersion else 1.0
    standardised = pearson / np.sqrt(dispersion * (1.0 - h))
    studentised = standardised
    if has_dispersion:
        without = (squares.sum() - squares / (1.0 - h)) / (n - p - 1)
        studentised = pearson / np.sqrt(without * (1.0 - h))
    scaled = working.design * np.sqrt(working.weight)[:, None]
    inverse = np.linalg.pinv(scaled)  # leverage has checked the rank
    steps = inverse.T * (pearson / (1.0 - h))[:, None]
    columns: dict[str, Any] = {
        "leverage": h,
        "standardised": standardised,
        "studentised": studentised,
        "cooks_distance": h * standardised**2 / (p * (1.0 - h)),
    }
    columns |= {f"dfbeta[{name}]": steps[:, j] for j, name in enumerate(estimate.names)}
    return pd.DataFrame(columns)
