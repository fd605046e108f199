"""Replicates with a covariance of their own, for studentized intervals and tests."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from eestim._arrays import Matrix, Vector
from eestim.covariance._least_squares import (
    is_linear,
    is_score_linear,
    reweighted_moves,
    whitened,
    working_slopes,
)
from eestim.covariance._refits import (
    Groups,
    failure_finding,
    group_scores,
    group_slopes,
    groups_of,
    in_parallel,
    reference_factor,
    unit_influence,
    unit_slopes,
)
from eestim.covariance._resampling import (
    MultiplierLaw,
    Seeds,
    batches,
    draw_matrix,
    seed_of,
    spawned,
)
from eestim.covariance._resampling import unit_weights as drawn_weights
from eestim.covariance._reweighted import (
    SINGULAR,
    Reference,
    reference_of,
    refit,
    require_reweighted,
)
from eestim.covariance.base import sensitivity_factor
from eestim.covariance.bootstrap import Bootstrap, restricted_influence
from eestim.equations import EstimatingEquation
from eestim.errors import EestimError
from eestim.findings import Finding
from eestim.roots import Root

__all__ = [
    "StudentizedDraws",
    "spread_draws",
    "studentized_draws",
    "wald_statistics",
]

_RANK = 1e-12  # an eigenvalue of a replicate's correlation matrix
_KINDS = ("pairs", "fractional", "cluster", "multiplier", "wild", "wild-cluster")


@dataclass(frozen=True, slots=True)
class StudentizedDraws:
    r"""Moves of the root in each replicate, each with its own covariance.

    Attributes
    ----------
    moved : (R, p) array
        :math:`\theta^*_r - c`, c the estimate or the restricted estimate.
    spread : (R, p, p) array
        The sandwich (HC0, or CR0 of clusters) computed from the replicate.
    own : (p, p) array
        The same sandwich computed from the data.
    failures : tuple of str
        Why the replicates that are left out have no root.
    text : str
        The resampling rule in words.
    """

    moved: Matrix
    spread: Matrix
    own: Matrix
    failures: tuple[str, ...]
    text: str

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The rate of failed refits, where some failed."""
        return failure_finding(self.failures, len(self.moved) + len(self.failures))

    def transformed(self, transform: Matrix) -> "StudentizedDraws":
        """Return the same for parameters ``transform @ theta``."""
        return StudentizedDraws(
            self.moved @ transform.T,
            transform @ self.spread @ transform.T,
            transform @ self.own @ transform.T,
            self.failures,
            self.text,
        )


def studentized_draws(
    equation: EstimatingEquation,
    root: Root,
    rule: Bootstrap,
    null: tuple[Matrix, Vector] | None = None,
) -> StudentizedDraws:
    """Return replicates of the root with their own covariances.

    Parameters
    ----------
    equation : EstimatingEquation
    root : Root
    rule : Bootstrap
        Of a kind that draws independent units or clusters.
    null : (m, p) and (m,) arrays, optional
        Restrictions imposed on a linear model before residuals are drawn.

    Raises
    ------
    ValueError
        If the rule is of another kind.
    """
    if rule.kind not in _KINDS:
        raise ValueError(
            f"studentized draws need a bootstrap of kind {_KINDS}; those of kind "
            f"{rule.kind!r} have no standard error to be divided by."
        )
    if root.working is not None:  # the solver's better-conditioned parameters
        inner, eta, transform = root.working
        there = Root(eta, root.status, root.residual, root.steps)
        restated = None if null is None else (null[0] @ transform, null[1])
        return studentized_draws(inner, there, rule, restated).transformed(transform)
    groups = groups_of(equation, root.theta, rule.labels, "labels")
    seed = seed_of(rule.rng)
    seeds = spawned(seed, rule.draws)
    influence = group_scores(unit_influence(equation, root.theta), groups)
    own = influence.T @ influence
    text = rule.described(seed, groups)
    if rule.kind in ("multiplier", "wild", "wild-cluster"):
        moved, spread = _score_draws(equation, root.theta, groups, rule, seeds, null)
        return StudentizedDraws(moved, spread, own, (), text)
    moved, spread, failures = _refit_draws(equation, root.theta, groups, rule, seeds)
    return StudentizedDraws(moved, spread, own, failures, text)


def _score_draws(
    equation: EstimatingEquation,
    theta: Vector,
    groups: Groups,
    rule: Bootstrap,
    seeds: Seeds,
    null: tuple[Matrix, Vector] | None,
) -> tuple[Matrix, Matrix]:
    if null is None:
        influence = unit_influence(equation, theta)
    else:
        _, influence = restricted_influence(equation, theta, *null)
    summed = group_scores(influence, groups)
    slopes = _relative_slopes(equation, theta, groups)
    return spread_draws(summed, slopes, summed, rule.weights, seeds)


def _relative_slopes(
    equation: EstimatingEquation, theta: Vector, groups: Groups
) -> Matrix | None:
    """Return ``inv(A) A_g / n`` of each group, or None where units have no slopes."""
    if is_score_linear(equation):
        slopes = working_slopes(equation.working(theta), groups)  # type: ignore[attr-defined]
    else:
        given = unit_slopes(equation, theta)
        if given is None:
            return None
        slopes = group_slopes(given, groups)
    factor = reference_factor(equation, theta)
    count, p, _ = slopes.shape
    flat = factor.solve(np.moveaxis(slopes, 0, 1).reshape(p, count * p))
    return np.moveaxis(flat.reshape(p, count, p), 0, 1) / equation.n_units


def _refit_draws(
    equation: EstimatingEquation,
    theta: Vector,
    groups: Groups,
    rule: Bootstrap,
    seeds: Seeds,
) -> tuple[Matrix, Matrix, tuple[str, ...]]:
    require_reweighted(
        equation,
        f'studentizing Bootstrap(kind="{rule.kind}")',
        'Use Bootstrap(kind="multiplier"), which needs psi and its derivative alone.',
    )
    scheme = rule.weighting(groups.count)[0]
    if is_linear(equation):
        working = equation.working(theta)  # type: ignore[attr-defined]
        form = whitened(working.design, working.weight, working.residual)
        if form.fits_in_memory(groups.count):
            moved, spread, failed = reweighted_moves(
                form, groups, scheme, 1.0, seeds, with_spread=True
            )
            assert spread is not None  # asked for
            return moved, spread, (SINGULAR,) * failed
    reference = reference_of(equation, theta)
    task = partial(_spread_chunk, equation, theta, reference, groups, scheme)
    made = in_parallel(task, seeds, rule.jobs)
    failures = tuple(one for one in made if isinstance(one, str))
    kept = [one for one in made if not isinstance(one, str)]
    p = len(theta)
    moved = np.array([one[0] - theta for one in kept]).reshape(len(kept), p)
    spread = np.array([one[1] for one in kept]).reshape(len(kept), p, p)
    return moved, spread, failures


def _spread_chunk(
    equation: Any,
    theta: Vector,
    reference: Reference,
    groups: Groups,
    scheme: str,
    seeds: Seeds,
) -> list[tuple[Vector, Matrix] | str]:
    """Return root and sandwich of the sample of each seed, or what went wrong."""
    made: list[tuple[Vector, Matrix] | str] = []
    for seed in seeds:
        weights = drawn_weights(np.random.default_rng(seed), groups.count, scheme)
        again = refit(equation, groups.spread(weights), theta, reference)
        if isinstance(again, str):
            made.append(again)
            continue
        try:
            rows = group_scores(equation.psi(again.theta), groups)
            half = sensitivity_factor(again.information()).solve(
                (rows * np.sqrt(weights)[:, None]).T
            )
            made.append((again.theta, half @ half.T))
        except EestimError as error:
            made.append(type(error).__name__)
    return made


# -------------------------------------------------------------------------- arrays


def spread_draws(
    influence: Matrix,
    slopes: Matrix | None,
    move: Matrix,
    law: MultiplierLaw,
    seeds: Seeds,
) -> tuple[Matrix, Matrix]:
    r"""Return multiplier replicates of q contrasts, (draws, q), and their covariances.

    .. math::
        d^* = \sum_g v_g \phi_g, \quad
        V^* = \sum_g u_g^* u_g^{*\top}, \quad
        u_g^* = v_g \phi_g - B_g \delta^* .

    The second term is what refitting takes out of the contribution of group g, so for
    a linear model :math:`u_g^*` is the contribution at the refitted parameters.

    Parameters
    ----------
    influence : (m, q) array
        :math:`\phi_g`, contributions of units or clusters to the contrasts.
    slopes : (m, q, p) array or None
        :math:`B_g = C A^{-1} A_g / n`; None recentres, :math:`u_g^* = v_g \phi_g -
        d^* / m`.
    move : (m, p) array
        Contributions to theta itself: :math:`\delta^*` is the sum of v times these.
    law : str
    seeds : sequence of SeedSequence

    Returns
    -------
    moved : (draws, q) array
    spread : (draws, q, q) array

    References
    ----------
    Cameron, Gelbach and Miller (2008), Rev. Econ. Stat. 90, 414-427, appendix B;
    Kline and Santos (2012), J. Econom. Methods 1, 23-41.

    Examples
    --------
    >>> phi = np.array([[1.0], [-1.0]])
    >>> moved, spread = spread_draws(phi, None, phi, "rademacher", spawned(3, 4))
    >>> (spread[:, 0, 0] + moved[:, 0] ** 2 / 2).round(9)
    array([2., 2., 2., 2.])
    """
    m, q = influence.shape
    moved, spread = [], []
    for batch in batches(seeds, m * q * 2):
        v = draw_matrix(batch, m, law)
        moved.append(v @ influence)
        units = v[:, :, None] * influence
        if slopes is None:
            units -= moved[-1][:, None, :] / m
        else:
            units -= np.einsum("gqp,bp->bgq", slopes, v @ move, optimize=True)
        spread.append(np.swapaxes(units, 1, 2) @ units)
    return np.concatenate(moved), np.concatenate(spread)


def wald_statistics(moved: Matrix, spread: Matrix) -> Vector:
    r"""Return :math:`d^\top V^{-1} d` of each replicate, (draws,).

    It is infinite where V has lost rank, unless d is zero.

    Examples
    --------
    >>> wald_statistics(np.array([[2.0], [1.0]]), np.array([[[1.0]], [[0.0]]]))
    array([ 4., inf])
    """
    scale = np.sqrt(np.diagonal(spread, axis1=1, axis2=2))
    positive = (scale > 0).all(axis=1)
    scale = np.where(scale > 0, scale, 1.0)
    standard = spread / scale[:, :, None] / scale[:, None, :]
    full = positive & (np.linalg.eigvalsh(standard)[:, 0] > _RANK)
    safe = np.where(full[:, None, None], standard, np.eye(moved.shape[1]))
    ratio = moved / scale
    solved = np.linalg.solve(safe, ratio[:, :, None])[:, :, 0]
    statistic = np.einsum("bq,bq->b", ratio, solved)
    still = (moved == 0.0).all(axis=1)
    return np.where(full, statistic, np.where(still, 0.0, np.inf))
