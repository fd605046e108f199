"""How checks put a statistic into a Finding."""

from typing import Any

import numpy as np
from scipy import stats

from eestim._arrays import Matrix, Vector
from eestim.findings import Finding, FindingStatus

__all__ = ["LEVEL", "chi2_finding", "not_applicable", "solved"]

LEVEL = 0.05


def chi2_finding(
    name: str,
    statistic: float,
    dof: int,
    *,
    level: float,
    says: str,
    advice: str,
    assumptions: str,
    rejected: FindingStatus = "fail",
) -> Finding:
    """Return the finding of a chi-squared test; ``says`` begins its sentence.

    >>> chi2_finding(
    ...     "x", 9.0, 1, level=0.05, says="Means differ", advice="", assumptions=""
    ... ).meaning
    'Means differ: chi2(1) = 9.00, p = 0.0027.'
    """
    p = float(stats.chi2.sf(statistic, dof))
    is_rejected = p < level
    return Finding(
        name,
        rejected if is_rejected else "pass",
        statistic,
        float(stats.chi2.isf(level, dof)),
        f"{says}: chi2({dof}) = {statistic:.2f}, p = {p:.3g}.",
        advice if is_rejected else "",
        assumptions,
        float(dof),
        p,
    )


def not_applicable(name: str, why: str) -> Finding:
    """Return the finding of a check that does not apply, with the reason."""
    return Finding(name, "not applicable", np.nan, np.nan, why)


def solved(estimate: Any) -> tuple[Any, Vector, Matrix]:
    """Return equation, root and transform of the coordinates that were solved in.

    A design far from zero is near singular as it was given, not as it was solved.
    """
    if estimate.root.working is not None:
        equation, eta, turn = estimate.root.working
        return equation, eta, turn
    return estimate.equation, estimate.theta, np.eye(len(estimate.theta))
