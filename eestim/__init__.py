"""Estimating equations for statistics and language models.

One way for every estimate: an equation supplies psi and its derivative, a solver
finds the root, a covariance rule gives its variance, and everything reported is a
function of these::

    fit = ee.estimate(ee.ols("y ~ x", data), covariance=ee.Clustered("firm"))
    fit.interval()
"""

import importlib
from typing import Any

from eestim import asymptotics, covariance, diagnostics, errors, models, report
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
    FixedB,
    Jackknife,
    LeaveOut,
    ModelBased,
    PanelHAC,
    Survey,
)
from eestim.diagnostics import diagnose
from eestim.equations import equation
from eestim.estimation import Estimate, estimate
from eestim.inference.anytime import Anytime
from eestim.inference.bootstrap_intervals import Basic, BCa, Percentile, Studentized
from eestim.inference.bootstrap_tests import bootstrap_test
from eestim.inference.comparison import compare
from eestim.inference.empirical_likelihood import EmpiricalLikelihood
from eestim.inference.marginal import average_predictions, marginal_effects
from eestim.inference.pooling import pool
from eestim.inference.profile import Profile, ScoreInverted
from eestim.inference.transformed import Transformed
from eestim.models import glm, mean, ols
from eestim.stacking import stack
from eestim.storage import load
from eestim.weights import Frequency, Importance, Sampling

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import `eestim.simulate` when it is first used: few sessions need it."""
    if name == "simulate":
        return importlib.import_module("eestim.simulate")
    raise AttributeError(f"module 'eestim' has no attribute {name!r}")


__all__ = [
    "HAC",
    "HC",
    "HCK",
    "OPG",
    "Anytime",
    "BCa",
    "Basic",
    "BeckKatz",
    "Bootstrap",
    "Clustered",
    "DriscollKraay",
    "EmpiricalLikelihood",
    "Estimate",
    "FayGraubard",
    "FixedB",
    "Frequency",
    "Importance",
    "Jackknife",
    "LeaveOut",
    "ModelBased",
    "PanelHAC",
    "Percentile",
    "Profile",
    "Sampling",
    "ScoreInverted",
    "Studentized",
    "Survey",
    "Transformed",
    "asymptotics",
    "average_predictions",
    "bootstrap_test",
    "compare",
    "covariance",
    "diagnose",
    "diagnostics",
    "equation",
    "errors",
    "estimate",
    "glm",
    "load",
    "marginal_effects",
    "mean",
    "models",
    "ols",
    "pool",
    "report",
    "stack",
]
