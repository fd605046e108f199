"""Checks of a fit: what each row does to it, and whether its assumptions hold.

`diagnose` runs those that apply to an estimate. The others need what a fit alone does
not hold: simulated data (`unbiasedness`), a second set of latent draws
(`latent_noise`), the path of a stochastic search (`PathAverage`, `batch_means`,
`plug_in`), more equations than parameters (`diagnose` takes them as ``moments=``), or
an equation that is not identified (`range_check`, `estimability_check`,
`invariance_check`).
"""

from eestim.diagnostics.complex_steps import complex_step_sensitivity
from eestim.diagnostics.identification import (
    estimability_check,
    range_check,
    rank_check,
    rank_of,
    separation_check,
    weak_rank_check,
)
from eestim.diagnostics.influence import influence_measures
from eestim.diagnostics.information import (
    information_matrix_test,
    information_ratio_test,
)
from eestim.diagnostics.latent import latent_noise, latent_shares, shared_draws
from eestim.diagnostics.plots import (
    plot_diagnostics,
    plot_influence,
    plot_rate,
    plot_residual_path,
    plot_spectrum,
)
from eestim.diagnostics.random_scaling import (
    RandomScalingTest,
    random_scaling_critical,
    random_scaling_tail,
)
from eestim.diagnostics.rate import (
    RateCurve,
    rate_check,
    rate_finding,
    subsample_rate,
)
from eestim.diagnostics.report import Findings, diagnose
from eestim.diagnostics.sgd import (
    RANDOM_SCALING,
    PathAverage,
    batch_means,
    plug_in,
    sgd_convergence,
)
from eestim.diagnostics.solution import (
    derivative_check,
    invariance_check,
    residual_path,
    root_multiplicity,
    root_residual,
)
from eestim.diagnostics.specification import (
    over_identification,
    over_identification_at,
    over_identification_check,
    unbiasedness,
    unbiasedness_check,
    variance_ratio,
)
from eestim.diagnostics.stability import half_sample_stability, influence_check

__all__ = [
    "RANDOM_SCALING",
    "Findings",
    "PathAverage",
    "RandomScalingTest",
    "RateCurve",
    "batch_means",
    "complex_step_sensitivity",
    "derivative_check",
    "diagnose",
    "estimability_check",
    "half_sample_stability",
    "influence_check",
    "influence_measures",
    "information_matrix_test",
    "information_ratio_test",
    "invariance_check",
    "latent_noise",
    "latent_shares",
    "over_identification",
    "over_identification_at",
    "over_identification_check",
    "plot_diagnostics",
    "plot_influence",
    "plot_rate",
    "plot_residual_path",
    "plot_spectrum",
    "plug_in",
    "random_scaling_critical",
    "random_scaling_tail",
    "range_check",
    "rank_check",
    "rank_of",
    "rate_check",
    "rate_finding",
    "residual_path",
    "root_multiplicity",
    "root_residual",
    "separation_check",
    "sgd_convergence",
    "shared_draws",
    "subsample_rate",
    "unbiasedness",
    "unbiasedness_check",
    "variance_ratio",
    "weak_rank_check",
]
