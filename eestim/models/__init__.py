"""Models: suppliers of psi and its derivative, by subject."""

from eestim.models.basic import mean
from eestim.models.linear import glm, ols

__all__ = ["glm", "mean", "ols"]
