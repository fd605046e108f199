"""Fitted models of statsmodels as estimates: every rule, interval and check."""

from dataclasses import replace
from typing import Any

import numpy as np

from eestim._arrays import Vector
from eestim.covariance.base import CovarianceRule
from eestim.errors import CapabilityError
from eestim.estimation import Estimate, estimate
from eestim.models.linear import glm
from eestim.weights import Frequency

__all__ = ["from_statsmodels"]

_MODELS = {
    "OLS": ("gaussian", "identity"),
    "Logit": ("binomial", "logit"),
    "Probit": ("binomial", "probit"),
    "Poisson": ("poisson", "log"),
}
_LINKS = {
    "identity": "identity",
    "logit": "logit",
    "log": "log",
    "probit": "probit",
    "cloglog": "cloglog",
    "cauchy": "cauchit",
    "inversepower": "inverse",
    "sqrt": "sqrt",
}


def from_statsmodels(
    results: Any, covariance: CovarianceRule | None = None
) -> Estimate:
    """Return a fitted statsmodels model as an estimate, without solving again.

    The equation holds the design that statsmodels built, and its coefficients are the
    root, whose residual in units of noise is reported: penalised or unconverged fits
    show as roots that are none. Clusters can be named where the model was built from
    a formula and its data.

    Parameters
    ----------
    results : results of OLS, GLM, Logit, Probit or Poisson
        As ``fit`` returns them; `GLM` with the Gaussian, Binomial (zero-one or
        proportions of one trial) or Poisson family, offsets, exposure and frequency
        weights.
    covariance : covariance rule, optional
        ``ee.HC(0)`` by default; `Estimate.with_covariance` gives others.

    Raises
    ------
    CapabilityError
        If the model is of another kind, or has variance weights.
    TypeError
        If this is not the result of a fit.

    Examples
    --------
    >>> import statsmodels.api as sm
    >>> import eestim as ee
    >>> X = sm.add_constant(np.arange(6.0))
    >>> results = sm.OLS([1.0, 2.5, 2.0, 4.5, 4.0, 6.5], X).fit()
    >>> fit = from_statsmodels(results, ee.ModelBased())
    >>> bool(np.allclose(fit.se, results.bse))
    True
    """
    model = getattr(results, "model", None)
    if model is None or not hasattr(results, "params"):
        raise TypeError(
            "`results` must be what `fit` returns in statsmodels; got "
            f"{type(results).__name__}."
        )
    family, link = _kind(model)
    equation = glm(
        np.asarray(model.endog, dtype=np.float64),
        np.asarray(model.exog, dtype=np.float64),
        family=family,
        link=link,
        offset=_offset(model),
        weights=_frequencies(model),
        names=[str(name) for name in model.exog_names],
    )
    table, index = _table(model)
    equation = replace(equation, data=table, index=index)
    return estimate(
        equation, covariance, root=np.asarray(results.params, dtype=np.float64)
    )


def _kind(model: Any) -> tuple[str, str]:
    name = type(model).__name__
    if name in _MODELS:
        return _MODELS[name]
    if name != "GLM":
        raise CapabilityError(
            f"`results` are of a {name} model; OLS, GLM, Logit, Probit and Poisson are "
            "understood. Write psi with ee.equation and pass root=results.params."
        )
    family = type(model.family).__name__.lower()
    link = _LINKS.get(type(model.family.link).__name__.lower())
    if family not in ("gaussian", "binomial", "poisson") or link is None:
        raise CapabilityError(
            f"`results` are of a GLM with the {family} family and the "
            f"{type(model.family.link).__name__} link, which ee.glm does not have. "
            "Write psi with ee.equation and pass root=results.params."
        )
    return family, link


def _offset(model: Any) -> Vector | None:
    """Return offset plus log exposure, which statsmodels keeps on the log scale."""
    if type(model).__name__ == "GLM":
        parts = [getattr(model, "_offset_exposure", None)]
    else:
        parts = [getattr(model, name, None) for name in ("offset", "exposure")]
    total = np.zeros(len(model.endog))
    for part in parts:
        if part is not None:
            total = total + np.asarray(part, dtype=np.float64)
    return total if total.any() else None


def _frequencies(model: Any) -> Frequency | None:
    n_trials = np.asarray(getattr(model, "n_trials", 1.0), dtype=np.float64)
    variances = np.asarray(getattr(model, "var_weights", 1.0), dtype=np.float64)
    if not (variances == 1).all() or not (n_trials == 1).all():
        raise CapabilityError(
            "`results` have variance weights or several trials a row; expand the rows "
            "or use frequency weights."
        )
    counts = np.asarray(getattr(model, "freq_weights", 1.0), dtype=np.float64)
    return None if (counts == 1).all() else Frequency(counts)


def _table(model: Any) -> tuple[Any, Any]:
    """Return the rows used of the data of a formula, and their index."""
    labels = getattr(model.data, "row_labels", None)
    frame = getattr(model.data, "frame", None)
    if frame is None or labels is None or len(frame) < len(model.endog):
        return None, labels
    used = frame if len(frame) == len(model.endog) else frame.loc[labels]
    if len(used) != len(model.endog):  # repeated labels: rows cannot be told apart
        return None, labels
    return used, used.index
