"""Estimating equations for statistics and language models.

One way for every estimate: an equation supplies psi and its derivative, a solver
finds the root, a covariance rule gives its variance, and everything reported is a
function of these::

    fit = ee.estimate(ee.ols("y ~ x", data), covariance=ee.Clustered("firm"))
    fit.interval()
"""

from eestim import asymptotics, covariance, diagnostics, errors, models
from eestim.covariance import (
    HAC,
    HC,
    HCK,
    OPG,
    BeckKatz,
    Bootstrap,
    Clustered,
    DriscollKraay,
    FayGraubard,
    Jackknife,
    LeaveOut,
    ModelBased,
    PanelHAC,
    Survey,
)
from eestim.diagnostics import diagnose
from eestim.equations import equation
from eestim.estimation import Estimate, estimate
from eestim.models import glm, mean, ols
from eestim.storage import load
from eestim.weights import Frequency, Importance, Sampling

__version__ = "0.1.0"

__all__ = [
    "HAC",
    "HC",
    "HCK",
    "OPG",
    "BeckKatz",
    "Bootstrap",
    "Clustered",
    "DriscollKraay",
    "Estimate",
    "FayGraubard",
    "Frequency",
    "Importance",
    "Jackknife",
    "LeaveOut",
    "ModelBased",
    "PanelHAC",
    "Sampling",
    "Survey",
    "asymptotics",
    "covariance",
    "diagnose",
    "diagnostics",
    "errors",
    "equation",
    "estimate",
    "glm",
    "load",
    "mean",
    "models",
    "ols",
]
