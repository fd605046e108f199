"""Estimating equations for statistics and language models.

One way for every estimate: an equation supplies psi and its derivative, a solver
finds the root, a covariance rule gives its variance, and everything reported is a
function of these::

    fit = ee.estimate(ee.ols("y ~ x", data), covariance=ee.Clustered("firm"))
    fit.interval()
"""

import importlib
from typing import TYPE_CHECKING, Any

from eestim import covariance, errors, models
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
from eestim.models import from_statsmodels, glm, mean, ols
from eestim.stacking import stack
from eestim.storage import load
from eestim.weights import Frequency, Importance, Sampling

__version__ = "0.1.0"


# Imported when first used (PEP 562): `import eestim` stays fast for those who estimate.
_NAMESPACES = ("asymptotics", "diagnostics", "report", "simulate", "testing")
if TYPE_CHECKING:
    from eestim import asymptotics, diagnostics, report, simulate
    from eestim.diagnostics import diagnose


def __getattr__(name: str) -> Any:
    """Import a namespace, or `diagnose`, at its first use."""
    if name in _NAMESPACES:
        return importlib.import_module(f"eestim.{name}")
    if name == "diagnose":
        from eestim.diagnostics import diagnose

        return diagnose
    raise AttributeError(f"module 'eestim' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the lazy names too, for completion."""
    return sorted({*globals(), *__all__})


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
    "from_statsmodels",
    "glm",
    "load",
    "marginal_effects",
    "mean",
    "models",
    "ols",
    "pool",
    "report",
    "simulate",
    "stack",
]
