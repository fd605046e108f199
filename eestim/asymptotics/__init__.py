"""Honest numbers when A is singular, p is of the order of n, or p exceeds n.

- What is identified: `rank_report`, `estimability`, `functional_covariance`,
  `estimable_wald`, `root_invariance`; tests of rank `kleibergen_paap`,
  `robin_smith`, `select_rank`, `weak_rank`.
- p of the order of n: `proportional_logistic`, `existence_frontier`, `separation`,
  `adjusted_logistic`, `proportional_robust`, `df_adjusted_sandwich`.
- p beyond n: `interpolation_guard`, `spectral_root`, `ridgeless_risk`, `ridge_risk`,
  `df_debiased`, `debiased_ridge`, `linearised_prediction`.
- No perturbation as a hypothesis: `one_sided_score_test`, `boundary_p_value`,
  `simulated_null`, `rate_slope`.
- A too large to store: `solve_adjoint`, `operator_functional`, `design_operators`,
  `dense_operators` (in torch: `eestim.autodiff.surrogate_operators`).

- Equations and fits of the package: `regime`, `estimable`, `invariance_over_roots`,
  `adjusted_fit`, `free_root`, `term_sizes`.

All but the last six take arrays.
"""

from eestim.asymptotics.adjusted import (
    AdjustedLogistic,
    LogisticScale,
    adjusted_logistic,
    observable_scale,
    precision_multipliers,
    rescaled_lrt,
    sloe,
)
from eestim.asymptotics.corrupted import proportional_logistic_from_eta
from eestim.asymptotics.debiased import (
    AdjustedCoefficients,
    debiased_ridge,
    df_adjusted_sandwich,
    df_debiased,
)
from eestim.asymptotics.designs import design_findings
from eestim.asymptotics.estimable import (
    Estimability,
    FunctionalCovariance,
    estimability,
    functional_covariance,
)
from eestim.asymptotics.existence import (
    Separation,
    check_separation,
    existence_frontier,
    frontier_aspect,
    separation,
)
from eestim.asymptotics.fits import (
    AdjustedFit,
    adjusted_fit,
    estimable,
    invariance_over_roots,
)
from eestim.asymptotics.free_roots import free_root
from eestim.asymptotics.interpolation import interpolation_guard, interpolation_ratio
from eestim.asymptotics.linearised import LinearisedPrediction, linearised_prediction
from eestim.asymptotics.operators import (
    AdjointSolution,
    EquationOperators,
    OperatorFunctional,
    dense_operators,
    design_operators,
    operator_functional,
    solve_adjoint,
)
from eestim.asymptotics.perturbation import NullDistribution, simulated_null
from eestim.asymptotics.proportional import (
    ProportionalLogistic,
    logistic_residuals,
    proportional_logistic,
)
from eestim.asymptotics.rank import RankCut, RankReport, rank_report, scaled_svd
from eestim.asymptotics.rank_tests import (
    RankSelection,
    RankTest,
    WeakRank,
    jacobian_omega,
    kleibergen_paap,
    robin_smith,
    select_rank,
    weak_rank,
)
from eestim.asymptotics.rank_wald import (
    RankWald,
    RootInvariance,
    estimable_wald,
    point_wald,
    root_invariance,
)
from eestim.asymptotics.regimes import Regime, regime
from eestim.asymptotics.ridge import (
    optimal_ridge_penalty,
    ridge_risk,
    ridgeless_risk,
)
from eestim.asymptotics.robust import (
    ErrorDensity,
    HuberLoss,
    LeastAbsolute,
    LeastSquares,
    ProportionalRobust,
    proportional_robust,
)
from eestim.asymptotics.singular import (
    RateSlope,
    ScoreTest,
    boundary_critical_value,
    boundary_p_value,
    efficient_score,
    one_sided_score_test,
    rate_slope,
)
from eestim.asymptotics.spectral import (
    GradientDescent,
    GradientFlow,
    MinimumNorm,
    Ridge,
    SpectralRoot,
    filter_weights,
    spectral_root,
)
from eestim.asymptotics.terms import term_sizes

__all__ = [
    "AdjointSolution",
    "AdjustedCoefficients",
    "AdjustedFit",
    "AdjustedLogistic",
    "EquationOperators",
    "ErrorDensity",
    "Estimability",
    "FunctionalCovariance",
    "GradientDescent",
    "GradientFlow",
    "HuberLoss",
    "LeastAbsolute",
    "LeastSquares",
    "LinearisedPrediction",
    "LogisticScale",
    "MinimumNorm",
    "NullDistribution",
    "OperatorFunctional",
    "ProportionalLogistic",
    "ProportionalRobust",
    "RankCut",
    "RankReport",
    "RankSelection",
    "RankTest",
    "RankWald",
    "RateSlope",
    "Regime",
    "Ridge",
    "RootInvariance",
    "ScoreTest",
    "Separation",
    "SpectralRoot",
    "WeakRank",
    "adjusted_fit",
    "adjusted_logistic",
    "boundary_critical_value",
    "boundary_p_value",
    "check_separation",
    "debiased_ridge",
    "dense_operators",
    "design_findings",
    "design_operators",
    "df_adjusted_sandwich",
    "df_debiased",
    "efficient_score",
    "estimability",
    "estimable",
    "estimable_wald",
    "existence_frontier",
    "filter_weights",
    "free_root",
    "frontier_aspect",
    "functional_covariance",
    "interpolation_guard",
    "interpolation_ratio",
    "invariance_over_roots",
    "jacobian_omega",
    "kleibergen_paap",
    "linearised_prediction",
    "logistic_residuals",
    "observable_scale",
    "one_sided_score_test",
    "operator_functional",
    "optimal_ridge_penalty",
    "point_wald",
    "precision_multipliers",
    "proportional_logistic",
    "proportional_logistic_from_eta",
    "proportional_robust",
    "rank_report",
    "rate_slope",
    "regime",
    "rescaled_lrt",
    "ridge_risk",
    "ridgeless_risk",
    "robin_smith",
    "root_invariance",
    "scaled_svd",
    "select_rank",
    "separation",
    "simulated_null",
    "sloe",
    "solve_adjoint",
    "spectral_root",
    "term_sizes",
    "weak_rank",
]
