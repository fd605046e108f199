"""Estimating equations: the protocol, its capabilities, and user functions of NumPy.

An estimating equation supplies contributions ``psi(theta)`` of n independent units,
one a row, and A, minus their mean derivative. Everything else is optional: a rule
that needs more asks for a capability and says so where it is missing.
"""

from eestim.equations.columns import checked_data, column_of, labels_of, sum_by_code
from eestim.equations.functions import equation
from eestim.equations.parameters import Blocks, Parameters, named_blocks
from eestim.equations.protocol import EstimatingEquation, Working, effective_n, require
from eestim.equations.tabulated import Evaluated
from eestim.equations.user import UserEquation
from eestim.moments import moments_at

__all__ = [
    "Blocks",
    "EstimatingEquation",
    "Evaluated",
    "Parameters",
    "UserEquation",
    "Working",
    "checked_data",
    "column_of",
    "effective_n",
    "equation",
    "labels_of",
    "moments_at",
    "named_blocks",
    "require",
    "sum_by_code",
]
