"""Jackknife covariances: exact, one Newton step, fully iterated and infinitesimal."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from scipy import linalg

from eestim._arrays import Matrix, Vector
from eestim._linalg import Factor
from eestim.covariance._least_squares import is_linear, is_score_linear, whitened
from eestim.covariance._refits import (
    Groups,
    aspect_finding,
    group_scores,
    group_slopes,
    groups_of,
    in_parallel,
    unit_influence,
)
from eestim.covariance._reweighted import (
    Reference,
    Refit,
    reference_of,
    refit,
    require_reweighted,
)
from eestim.covariance.base import Covariance, sensitivity_factor
from eestim.covariance.clustered import finite_factor
from eestim.equations import EstimatingEquation, effective_n, require
from eestim.errors import InferenceError
from eestim.roots import Root

__all__ = ["Jackknife", "JackknifeKind", "leave_out_newton", "leave_out_regression"]

JackknifeKind: TypeAlias = Literal["exact", "one-step", "fij", "infinitesimal"]

_UNIDENTIFIED = 1e-10  # what deletion leaves of the information in some direction
_BATCH_ENTRIES = 1 << 20
_CITATION = {
    "exact": "Efron and Stein (1981), Ann. Statist. 9, 586-596; Miller (1974)",
    "one-step": "Lipsitz, Laird and Harrington (1990), Biometrics 46, 1011-1020",
    "fij": "Lipsitz, Dear and Zhao (1994), Biometrics 50, 842-846",
    "infinitesimal": "Jaeckel (1972); Efron (1982), SIAM, chapter 6",
}
_INSTEAD = (
    'Use Jackknife(kind="one-step"), which needs `unit_sensitivity`, or '
    '"infinitesimal", which needs psi and its derivative alone.'
)


@dataclass(frozen=True, slots=True)
class Jackknife:
    r"""The covariance of leave-one-out estimates.

    .. math:: V = \frac{G - 1}{G} \sum_g (\hat\theta_{(g)} - c)
        (\hat\theta_{(g)} - c)^\top

    with G units or groups deleted one at a time.

    Attributes
    ----------
    center : {"estimate", "mean"}
        c, the estimate from all data or the mean of the leave-one-out estimates.
    groups : str or (n,) array, optional
        Delete whole groups (clusters) of units rather than single units.
    kind : str
        "exact" solves without each group, in closed form where psi is linear in
        theta. "fij" (fully iterated) is the same value found by Newton's iteration
        for every psi. "one-step" stops after one Newton step from the estimate with
        the updated derivative, :math:`\hat\theta - (\sum_{i \notin g} A_i)^{-1}
        \sum_{i \in g} \psi_i`, exact for a linear psi. "infinitesimal" does not
        update the derivative and has no factor: it is HC0, or CR0 with groups.
    factor : str, optional
        Expression in G, n (units) and k (parameters) that replaces (G-1)/G: "1"
        makes the one-step jackknife of a linear model HC3 (CR3 with groups), and
        "(G-k)/G" is the factor of Lipsitz, Dear and Zhao (1994) for GEE.
    jobs : int
        Worker processes that share the refits.

    Raises
    ------
    InferenceError
        If the estimate does not exist without some group.
    CapabilityError
        If the equation lacks what the kind needs.

    Notes
    -----
    Leave-one-out estimates are in `Covariance.replicates`, in the order of the
    groups. Intervals use n - k degrees of freedom, or G - 1 with groups. The jackknife
    is inconsistent for estimates that are not smooth, such as quantiles.
    """

    center: Literal["estimate", "mean"] = "estimate"
    groups: Any = None
    kind: JackknifeKind = "exact"
    factor: str | None = None
    jobs: int = 1

    def __post_init__(self) -> None:
        if self.center not in ("estimate", "mean"):
            raise ValueError(
                f'`center` must be "estimate" or "mean"; got {self.center!r}.'
            )
        if self.kind not in get_args(JackknifeKind):
            raise ValueError(
                f"`kind` must be one of {get_args(JackknifeKind)}; got {self.kind!r}."
            )
        if self.factor is not None:
            finite_factor(self.factor, G=1e9, n=1e12, k=1.0)

    def __call__(self, equation: EstimatingEquation, root: Root) -> Covariance:
        """Return the covariance of the root."""
        theta, p = root.theta, len(equation.names)
        groups = groups_of(equation, theta, self.groups, "groups")
        left_out = self._left_out(equation, theta, groups)
        expression = self.factor or ("1" if self._is_infinitesimal else "(G-1)/G")
        value = finite_factor(expression, G=groups.count, n=effective_n(equation), k=p)
        centre = theta if self.center == "estimate" else left_out.mean(axis=0)
        away = left_out - centre
        dof = groups.count - 1 if groups.name else effective_n(equation) - p
        if dof <= 0:
            raise InferenceError(
                f"the jackknife has {dof:g} degrees of freedom ({groups.count} units, "
                f"{p} parameters); more units than parameters are needed."
            )
        return Covariance(
            value * (away.T @ away),
            self._text(groups),
            _CITATION[self.kind],
            factor="" if expression == "1" else expression,
            dof=float(dof),
            dof_kind="G-1" if groups.name else "n-k",
            n_clusters=(groups.count,) if groups.name else (),
            findings=()
            if self._is_infinitesimal
            else aspect_finding(p, groups.count, "jackknife"),
            replicates=left_out,
        )

    @property
    def _is_infinitesimal(self) -> bool:
        return self.kind == "infinitesimal"

    def _left_out(
        self, equation: EstimatingEquation, theta: Vector, groups: Groups
    ) -> Matrix:
        if self._is_infinitesimal:
            return theta - group_scores(unit_influence(equation, theta), groups)
        is_closed = (is_linear if self.kind == "exact" else is_score_linear)(equation)
        if is_closed and self.kind != "fij":
            working = equation.working(theta)  # type: ignore[attr-defined]
            moves = leave_out_regression(
                working.design, working.weight, working.residual, groups
            )
            return theta - moves
        if self.kind == "one-step":
            return theta - _newton_moves(equation, theta, groups, "one-step")
        return self._refitted(equation, theta, groups)

    def _refitted(
        self, equation: EstimatingEquation, theta: Vector, groups: Groups
    ) -> Matrix:
        require_reweighted(equation, f'Jackknife(kind="{self.kind}")', _INSTEAD)
        starts = np.broadcast_to(theta, (groups.count, len(theta)))
        if getattr(equation, "unit_sensitivity", None) is not None:
            starts = theta - _newton_moves(equation, theta, groups, self.kind)
        reference = reference_of(equation, theta)
        task = partial(_without, equation, reference, groups, starts)
        made = in_parallel(task, range(groups.count), self.jobs)
        failed = [g for g, one in enumerate(made) if isinstance(one, str)]
        if failed:
            first = failed[0]
            raise InferenceError(
                f"the estimate does not exist without group {first} ({made[first]}; "
                f"{len(failed)} of {groups.count} deletions fail), so its jackknife is "
                'not defined. Use kind="infinitesimal", HC(0) or FayGraubard().'
            )
        return np.array([one.theta for one in made if not isinstance(one, str)])

    def _text(self, groups: Groups) -> str:
        centred = "" if self._is_infinitesimal else f", centred at the {self.center}"
        by = f" deleting groups of {groups.name}" if groups.name else ""
        return f"jackknife ({self.kind}{centred}){by}"


def _without(
    equation: Any,
    reference: Reference,
    groups: Groups,
    starts: Matrix,
    which: Sequence[int],
) -> list[Refit | str]:
    """Return the root without each of some groups, or what went wrong."""
    made = []
    for g in which:
        weights = (groups.codes != g).astype(np.float64)
        made.append(refit(equation, weights, starts[g], reference))
    return made


# ------------------------------------------------------------------- closed forms


def _refuse_unidentified(group: int, left: float) -> None:
    raise InferenceError(
        f"without group {group} the parameters are not identified ({left:.1e} of the "
        "information is left in some direction), so the jackknife is not defined. Drop "
        'the parameter that this group determines, or use kind="infinitesimal".'
    )


def leave_out_regression(
    design: Matrix, weight: Vector, residual: Vector, groups: Groups
) -> Matrix:
    r"""Return how far the estimate moves when each group is deleted, (G, p).

    .. math:: \hat\theta - \hat\theta_{(g)} = R^{-1} (I - Q_g^\top Q_g)^{-1}
        R^{-\top} X_g^\top r_g, \qquad W^{1/2} X = Q R,

    which for one row is :math:`(X^\top W X)^{-1} x_i r_i / (1 - h_i)`. Exact for least
    squares; one Newton step for a GLM with its canonical link.

    Parameters
    ----------
    design : (n, p) array
    weight : (n,) array
        Nonnegative.
    residual : (n,) array
        Score residuals, ``psi_i = x_i r_i``.
    groups : Groups

    Raises
    ------
    InferenceError
        If a group determines a parameter alone.

    References
    ----------
    Miller (1974), Ann. Statist. 2, 880-891, eq. 3.2; Bell and McCaffrey (2002) for
    groups.

    Examples
    --------
    The mean of 1, 2, 6 without each value is 4, 3.5 and 1.5:

    >>> rows = Groups(np.arange(3), 3, "")
    >>> one = np.ones(3)
    >>> 3 - leave_out_regression(one[:, None], one, np.array([-2.0, -1, 3]), rows)
    array([[4. ], [3.5], [1.5]])
    """
    form = whitened(design, weight, residual)
    basis, scores = form.basis, form.scores
    if not groups.name:
        left = 1.0 - np.einsum("ij,ij->i", basis, basis)
        worst = int(left.argmin())
        if left[worst] < _UNIDENTIFIED:
            _refuse_unidentified(worst, float(left[worst]))
        moved = scores / left[:, None]
    else:
        moved = _solved_groups(basis, group_scores(scores, groups), groups)
    return form.back(moved)


def _solved_groups(basis: Matrix, scores: Matrix, groups: Groups) -> Matrix:
    order = np.argsort(groups.codes, kind="stable")
    bounds = np.concatenate([[0], np.cumsum(np.bincount(groups.codes))])
    moved = np.empty_like(scores)
    for g in range(groups.count):
        rows = basis[order[bounds[g] : bounds[g + 1]]]
        left = np.eye(basis.shape[1]) - rows.T @ rows
        smallest = float(np.linalg.eigvalsh(left)[0])
        if smallest < _UNIDENTIFIED:
            _refuse_unidentified(g, smallest)
        moved[g] = linalg.solve(left, scores[g], assume_a="pos")
    return moved


def _newton_moves(
    equation: EstimatingEquation, theta: Vector, groups: Groups, kind: str
) -> Matrix:
    capability = require(
        equation,
        "unit_sensitivity",
        f'Jackknife(kind="{kind}")',
        'Use kind="infinitesimal", which needs psi and its derivative alone.',
    )
    slopes = group_slopes(np.asarray(capability(theta)), groups)
    return leave_out_newton(slopes, group_scores(equation.psi(theta), groups))


def leave_out_newton(slopes: Matrix, scores: Matrix) -> Matrix:
    r"""Return one Newton step of the estimate when each group is deleted, (G, p).

    .. math:: \delta_g = \Big(\sum_{h \ne g} A_h\Big)^{-1} s_g, \qquad
        \hat\theta_{(g)} \approx \hat\theta - \delta_g .

    Parameters
    ----------
    slopes : (G, p, p) array
        Minus the derivative of psi summed within groups, A_g.
    scores : (G, p) array, or (G, p, m) for several right-hand sides
        psi summed within groups, s_g; zero in total.

    Raises
    ------
    InferenceError
        If a group determines a parameter alone.

    References
    ----------
    Lipsitz, Laird and Harrington (1990), Biometrics 46, 1011-1020.

    Examples
    --------
    >>> leave_out_newton(np.ones((3, 1, 1)), np.array([[-2.0], [-1.0], [3.0]])).ravel()
    array([-1. , -0.5,  1.5])
    """
    right = scores if scores.ndim == 3 else scores[:, :, None]
    count, p, m = right.shape
    factor = sensitivity_factor(slopes.sum(axis=0))
    units = factor.columns[:, None]  # equilibrated, so that "nearly singular" means it
    moved = np.empty_like(right)
    step = max(1, _BATCH_ENTRIES // (p * (p + m)))
    for first in range(0, count, step):
        part = slice(first, min(first + step, count))
        left = np.eye(p) - _solved(factor, slopes[part]) * (units.T / units)
        smallest = np.linalg.svd(left, compute_uv=False)[:, -1]
        worst = int(smallest.argmin())
        if smallest[worst] < _UNIDENTIFIED:
            _refuse_unidentified(first + worst, float(smallest[worst]))
        moved[part] = units * np.linalg.solve(
            left, _solved(factor, right[part]) / units
        )
    return moved if scores.ndim == 3 else moved[:, :, 0]


def _solved(factor: Factor, right: Matrix) -> Matrix:
    """Return ``inv(A) @ right[g]`` for every group."""
    count, p, m = right.shape
    flat = factor.solve(np.moveaxis(right, 0, 1).reshape(p, count * m))
    return np.moveaxis(flat.reshape(p, count, m), 0, 1)
