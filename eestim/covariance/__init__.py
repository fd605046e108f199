"""Covariance rules: small frozen values, ``(equation, root) -> Covariance``."""

from eestim.covariance.bandwidths import Andrews1991, NeweyWest1994, Weave
from eestim.covariance.base import Covariance, CovarianceRule, sandwich
from eestim.covariance.bootstrap import Bootstrap
from eestim.covariance.clustered import Clustered
from eestim.covariance.fay_graubard import FayGraubard
from eestim.covariance.fixed_b import FixedB, fixed_b_critical, fixed_b_pvalue
from eestim.covariance.hac import HAC
from eestim.covariance.hc import HC
from eestim.covariance.jackknife import Jackknife
from eestim.covariance.many_covariates import HCK, LeaveOut
from eestim.covariance.model_based import OPG, ModelBased
from eestim.covariance.panel import BeckKatz, DriscollKraay, PanelHAC
from eestim.covariance.survey import Survey

__all__ = [
    "HAC",
    "HC",
    "HCK",
    "OPG",
    "Andrews1991",
    "BeckKatz",
    "Bootstrap",
    "Clustered",
    "Covariance",
    "CovarianceRule",
    "DriscollKraay",
    "FayGraubard",
    "FixedB",
    "Jackknife",
    "LeaveOut",
    "ModelBased",
    "NeweyWest1994",
    "PanelHAC",
    "Survey",
    "Weave",
    "fixed_b_critical",
    "fixed_b_pvalue",
    "sandwich",
]
