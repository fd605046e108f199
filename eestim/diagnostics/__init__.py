"""Checks of a fit: what each row does to it, and whether its assumptions hold."""

from eestim.diagnostics.influence import influence_measures
from eestim.diagnostics.report import Findings, diagnose
from eestim.diagnostics.sgd import (
    RANDOM_SCALING,
    PathAverage,
    batch_means,
    sgd_convergence,
)
from eestim.diagnostics.solution import (
    derivative_check,
    rank_check,
    root_multiplicity,
    root_residual,
)
from eestim.diagnostics.specification import (
    information_matrix_test,
    over_identification,
    unbiasedness,
    variance_ratio,
)
from eestim.diagnostics.stability import (
    half_sample_stability,
    influence_check,
    rate_check,
)

__all__ = [
    "RANDOM_SCALING",
    "Findings",
    "PathAverage",
    "batch_means",
    "derivative_check",
    "diagnose",
    "half_sample_stability",
    "influence_check",
    "influence_measures",
    "information_matrix_test",
    "over_identification",
    "rank_check",
    "rate_check",
    "root_multiplicity",
    "root_residual",
    "sgd_convergence",
    "unbiasedness",
    "variance_ratio",
]
