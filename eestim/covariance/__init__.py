"""Covariance rules: small frozen values, ``(equation, root) -> Covariance``."""

from eestim.covariance.base import Covariance, CovarianceRule, sandwich
from eestim.covariance.clustered import Clustered
from eestim.covariance.hc import HC
from eestim.covariance.model_based import OPG, ModelBased

__all__ = [
    "HC",
    "OPG",
    "Clustered",
    "Covariance",
    "CovarianceRule",
    "ModelBased",
    "sandwich",
]
