"""What a reader of clustered standard errors should know."""

from collections.abc import Sequence

import numpy as np

from eestim._arrays import Matrix, Vector
from eestim.covariance._clusters import clip_negative
from eestim.errors import InferenceError
from eestim.findings import Finding

__all__ = ["cluster_findings", "dof_findings", "semidefinite"]

FEW_CLUSTERS = 20
FEW_DOF = 4.0
_INDEFINITE = 1e-12  # of an eigenvalue in units of the one-way standard errors


def cluster_findings(fewest: int, singular: int) -> tuple[Finding, ...]:
    """Return warnings about few clusters, and clusters of full leverage."""
    found = []
    if fewest < FEW_CLUSTERS:
        found.append(
            Finding(
                "number of clusters",
                "warn",
                float(fewest),
                float(FEW_CLUSTERS),
                f"{fewest} clusters: the clustered covariance is noisy and on average "
                "too small.",
                'Use kind="CR2" with its Satterthwaite degrees of freedom, or '
                'Bootstrap(kind="wild-cluster").',
            )
        )
    if singular:
        found.append(
            Finding(
                "clusters of full leverage",
                "warn",
                float(singular),
                0.0,
                f"{singular} clusters determine some parameters alone (I - H_gg is "
                "singular); a pseudo-inverse leaves those directions out.",
                "Standard errors of the parameters that belong to one cluster, such as "
                "its own dummy, are not trustworthy; the others are.",
            )
        )
    return tuple(found)


def dof_findings(dof: Vector, names: Sequence[str]) -> tuple[Finding, ...]:
    """Return a warning where some degrees of freedom are low."""
    low = np.flatnonzero(dof < FEW_DOF)
    if not len(low):
        return ()
    worst = int(dof.argmin())
    affected = ", ".join(names[j] for j in low[:5]) + (", ..." if len(low) > 5 else "")
    return (
        Finding(
            "Satterthwaite degrees of freedom",
            "warn",
            float(dof[worst]),
            FEW_DOF,
            f"below {FEW_DOF:g} for {affected} (lowest {dof[worst]:.2g}): a few "
            "clusters carry the estimate, and the t approximation is rough.",
            "Read these intervals as indicative; a randomisation test or "
            'Bootstrap(kind="wild-cluster") does not rest on the approximation.',
        ),
    )


def semidefinite(
    matrix: Matrix, one_way: Matrix, repair: bool, names: Sequence[str]
) -> tuple[Matrix, tuple[Finding, ...]]:
    """Refuse negative variances; report or repair a matrix that is indefinite."""
    scale = np.sqrt(np.diag(one_way))
    scale = np.where(scale > 0.0, scale, 1.0)
    lowest = float(np.linalg.eigvalsh(matrix / np.outer(scale, scale))[0])
    if lowest >= -_INDEFINITE * len(matrix):
        return matrix, ()
    negative = np.flatnonzero(np.diag(matrix) <= 0.0)
    if len(negative) and not repair:
        raise InferenceError(
            f"the multi-way covariance gives {names[negative[0]]!r} the variance "
            f"{matrix[negative[0], negative[0]]:.3g}; pass `repair_psd=True` to set "
            "negative eigenvalues to zero, or cluster on one way."
        )
    what = (
        "The multi-way covariance is not positive semidefinite (smallest eigenvalue "
        f"{lowest:.2g} in units of one-way standard errors)"
    )
    if not repair:
        advice = (
            "Do not use it for joint tests as it is; pass `repair_psd=True`, or use "
            "kind='CR1S', which is less often indefinite, or fewer ways."
        )
        meaning = f"{what}; some contrast has a negative variance."
        return matrix, (_psd_finding(lowest, meaning, advice),)
    repaired = clip_negative(matrix, scale)
    meaning = f"{what}; its negative eigenvalues were set to zero."
    advice = "Standard errors grew by the repair; compare them with one-way clustering."
    return repaired, (_psd_finding(lowest, meaning, advice),)


def _psd_finding(lowest: float, meaning: str, advice: str) -> Finding:
    return Finding(
        "positive semidefinite covariance", "warn", lowest, 0.0, meaning, advice
    )
