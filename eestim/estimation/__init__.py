"""Estimates: a root with its covariance, and everything reported from them."""

from eestim.estimation.fitting import estimate
from eestim.estimation.result import Estimate, IntervalMethod

__all__ = ["Estimate", "IntervalMethod", "estimate"]
