"""Models: suppliers of psi and its derivative, by subject."""

from eestim.models.basic import mean
from eestim.models.linear import glm, ols
from eestim.models.quantiles import lad, quantile
from eestim.models.robust import huber
from eestim.models.statsmodels_results import from_statsmodels

__all__ = ["from_statsmodels", "glm", "huber", "lad", "mean", "ols", "quantile"]
