"""Bootstrap covariances: resampled units, random weights, wild and block draws."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from eestim._arrays import Matrix, Vector
from eestim.covariance._least_squares import is_linear, reweighted_moves, whitened
from eestim.covariance._refits import (
    Groups,
    aspect_finding,
    distinct_finding,
    failure_finding,
    few_clusters_finding,
    group_scores,
    groups_of,
    in_parallel,
    reference_factor,
    unit_influence,
)
from eestim.covariance._resampling import (
    MultiplierLaw,
    Seeds,
    influence_draws,
    residual_draws,
    restricted_root,
    seed_of,
    spawned,
    unit_weights,
)
from eestim.covariance._reweighted import (
    SINGULAR,
    Reference,
    quick_roots,
    reference_of,
    refit,
    require_reweighted,
)
from eestim.covariance._rows import ordered_codes, row_values
from eestim.covariance.base import Covariance, label_text, working_of
from eestim.equations import EstimatingEquation
from eestim.errors import CapabilityError, DataError, InferenceError
from eestim.findings import Finding
from eestim.roots import Root

__all__ = ["Bootstrap", "BootstrapKind", "own_replicates"]

BootstrapKind: TypeAlias = Literal[
    "pairs",
    "fractional",
    "cluster",
    "multiplier",
    "wild",
    "wild-cluster",
    "residual",
    "block",
]

DEFAULT_SEED = 123
_MARK = "bootstrap ("  # begins the rule text after the kind, and nothing else's
_MOST_WEIGHTS = 1 << 20  # of the replicates that are refitted at once
_REFITS = ("pairs", "fractional", "cluster", "block")
_SCORES = ("multiplier", "wild", "wild-cluster")
_LABELLED = ("cluster", "wild-cluster")
_MAY_LABEL = (*_LABELLED, "multiplier", "fractional", "block")
_INSTEAD = 'Use Bootstrap(kind="multiplier"), which needs psi and its derivative alone.'
_CITATION = {
    "pairs": "Efron (1979), Ann. Statist. 7, 1-26",
    "fractional": "Xu, Gotwalt, Hong, King and Meeker (2020), Am. Stat. 74, 345-358",
    "cluster": "Davison and Hinkley (1997), section 3.8",
    "multiplier": "Kline and Santos (2012), J. Econom. Methods 1, 23-41",
    "wild": "Wu (1986), Ann. Statist. 14, 1261-1295; Mammen (1993)",
    "wild-cluster": "Cameron, Gelbach and Miller (2008), Rev. Econ. Stat. 90, 414-427",
    "residual": "Freedman (1981), Ann. Statist. 9, 1218-1228",
    "block": "Künsch (1989), Ann. Statist. 17, 1217-1241",
}
_STATIONARY = "Politis and Romano (1994), J. Am. Stat. Assoc. 89, 1303-1313"


@dataclass(frozen=True, slots=True)
class Bootstrap:
    r"""The covariance of replicates of the root.

    .. math:: V = \frac{1}{R - 1} \sum_r (\theta^*_r - \bar\theta^*)
        (\theta^*_r - \bar\theta^*)^\top .

    Attributes
    ----------
    kind : str
        "pairs" refits to units drawn with replacement; "fractional" under Dirichlet
        weights, which are positive, so that no level of a factor and no outcome is
        ever lost; "cluster" to whole clusters; "block" to blocks of neighbouring
        rows. "multiplier" adds up influences times random multipliers, in one pass
        without refitting, for any psi. "wild" and "wild-cluster" are the same with
        the signs of residuals in mind: for a linear model they refit to
        ``fitted + v * residual``, for other psi they perturb the scores. "residual"
        refits to exchanged residuals and trusts the variance function of the model
        (exact for linear models, one scoring step for GLMs).
    draws : int
        Number of replicates, R.
    rng : int or numpy Generator
        A seed, 123 by default; from a generator one is drawn and recorded in the
        text of the rule.
    labels : str or (n,) array, optional
        The clusters of "cluster" and "wild-cluster"; clusters that share one weight
        for "fractional" and "multiplier"; the times of "block", whose rows are in
        order of time without them, and move together where a time is repeated.
    weights : {"rademacher", "mammen", "webb", "normal"}
        Law of the multipliers.
    length : int, optional
        Length of the blocks; the cube root of the number of times by default.
    blocks : {"moving", "stationary"}
        Of fixed, or of geometric length with that mean.
    null : mapping of names to numbers, optional
        Values that "wild" and "wild-cluster" impose on parameters of a linear model:
        residuals are those of the restricted fit, around which the replicates lie.
    jobs : int
        Worker processes that share the refits.

    Raises
    ------
    CapabilityError
        If the kind refits and the equation has no `reweighted`.
    InferenceError
        If more than half of the refits fail; fewer are counted in a Finding.

    Notes
    -----
    Replicates are in `Covariance.replicates`. Each has its own seed, so they do not
    depend on ``jobs``: to the last bit while BLAS runs on one thread (small problems,
    or ``OMP_NUM_THREADS=1``), to rounding otherwise.

    References
    ----------
    Davison and Hinkley (1997), Bootstrap Methods and their Application.
    """

    kind: BootstrapKind = "pairs"
    draws: int = 999
    rng: int | np.random.Generator = DEFAULT_SEED
    labels: Any = None
    weights: MultiplierLaw = "rademacher"
    length: int | None = None
    blocks: Literal["moving", "stationary"] = "moving"
    null: Mapping[str, float] | None = None
    jobs: int = 1

    def __post_init__(self) -> None:
        _check_choices(self)
        _check_labels(self.kind, self.labels)
        if self.null is not None and self.kind not in ("wild", "wild-cluster"):
            raise ValueError(
                '`null` is imposed by kind "wild" or "wild-cluster"; got '
                f"{self.kind!r}."
            )
        if self.length is not None and self.kind != "block":
            raise ValueError(f'`length` belongs to kind "block"; got {self.kind!r}.')

    @property
    def is_equivariant(self) -> bool:
        """Whether a linear change of parameters changes V accordingly."""
        return self.null is None

    def __call__(self, equation: EstimatingEquation, root: Root) -> Covariance:
        """Return the covariance of the root."""
        seed = seed_of(self.rng)
        groups = self._groups(equation, root.theta)
        seeds = spawned(seed, self.draws)
        replicates, failures = self._replicates(equation, root, groups, seeds)
        _require_successes(len(replicates), self.draws, failures)
        p = len(equation.names)
        is_clustered = bool(groups.name) and self.kind != "block"
        return Covariance(
            np.atleast_2d(np.cov(replicates, rowvar=False)),
            self.described(seed, groups),
            _STATIONARY
            if self.kind == "block" and self.blocks == "stationary"
            else _CITATION[self.kind],
            dof=float(groups.count - 1) if is_clustered else float("inf"),
            dof_kind="G-1" if is_clustered else "normal",
            n_clusters=(groups.count,) if is_clustered else (),
            findings=(
                *failure_finding(failures, self.draws),
                *aspect_finding(p, groups.count, self._aspect_method()),
                *self._cluster_findings(groups),
            ),
            replicates=replicates,
        )

    # ------------------------------------------------------------------ replicates

    def _groups(self, equation: EstimatingEquation, theta: Vector) -> Groups:
        if self.kind == "block" and self.labels is not None:
            return _times(equation, self.labels)
        return groups_of(equation, theta, self.labels, "labels")

    def _replicates(
        self, equation: EstimatingEquation, root: Root, groups: Groups, seeds: Seeds
    ) -> tuple[Matrix, list[str]]:
        theta = root.theta
        if self.kind in _REFITS:
            return self._refitted(equation, theta, groups, seeds)
        if self.kind == "residual":
            return theta + _residual_moves(equation, theta, seeds), []
        if self.null is not None:
            return self._under_null(equation, root, groups, seeds), []
        influence = group_scores(unit_influence(equation, theta), groups)
        return theta + influence_draws(influence, self.weights, seeds), []

    def _under_null(
        self, equation: EstimatingEquation, root: Root, groups: Groups, seeds: Seeds
    ) -> Matrix:
        names, null = list(equation.names), self.null or {}
        unknown = [name for name in null if name not in names]
        if unknown:
            raise DataError(f"`null` names {unknown}; parameters are {names}.")
        R = np.eye(len(names))[[names.index(name) for name in null]]
        r = np.array(list(null.values()), dtype=np.float64)
        # the solver's better-conditioned parameters, where it used them
        inner, eta, transform = root.working or (
            equation,
            root.theta,
            np.eye(len(names)),
        )
        centre, influence = restricted_influence(inner, eta, R @ transform, r)
        summed = group_scores(influence, groups)
        replicates: Matrix = centre + influence_draws(summed, self.weights, seeds)
        return replicates @ transform.T

    def _refitted(
        self, equation: EstimatingEquation, theta: Vector, groups: Groups, seeds: Seeds
    ) -> tuple[Matrix, list[str]]:
        require_reweighted(equation, f'Bootstrap(kind="{self.kind}")', _INSTEAD)
        scheme, length = self.weighting(groups.count)
        if is_linear(equation):
            working = equation.working(theta)  # type: ignore[attr-defined]
            form = whitened(working.design, working.weight, working.residual)
            if form.fits_in_memory(groups.count):
                moved, _, failed = reweighted_moves(form, groups, scheme, length, seeds)
                return theta + moved, [SINGULAR] * failed
        reference = reference_of(equation, theta)
        task = Refitting(equation, theta, reference, groups, scheme, length)
        made = task.replicates(seeds, self.jobs)
        failures = [one for one in made if isinstance(one, str)]
        kept = [one for one in made if not isinstance(one, str)]
        return np.array(kept).reshape(len(kept), len(theta)), failures

    def weighting(self, count: int) -> tuple[str, float]:
        """Return the kind of random weights and the length of their blocks."""
        if self.kind == "block":
            return self.blocks, self._length(count)
        return ("fractional" if self.kind == "fractional" else "pairs"), 1.0

    def _length(self, count: int) -> float:
        length = self.length if self.length is not None else round(count ** (1 / 3))
        if not 1 <= length <= count:
            raise ValueError(
                f"`length` must lie between 1 and the {count} rows or times; got "
                f"{length}."
            )
        return float(length)

    # ------------------------------------------------------------------------ text

    def _cluster_findings(self, groups: Groups) -> tuple[Finding, ...]:
        if not groups.name or self.kind == "block":
            return ()
        found = few_clusters_finding(groups.count)
        if self.kind in _SCORES and self.weights in ("rademacher", "mammen"):
            found += distinct_finding(groups.count, self.draws, self.weights)
        return found

    def _aspect_method(self) -> str:
        return "pairs" if self.kind in ("pairs", "cluster", "block") else self.kind

    def described(self, seed: int, groups: Groups) -> str:
        """Return the rule in words, with its seed."""
        parts = [f"{self.draws} draws", f"seed {seed}"]
        if self.kind in _SCORES:
            parts.insert(0, f"{self.weights} weights")
        if self.kind == "block":
            parts.insert(0, f"{self.blocks}, length {self._length(groups.count):g}")
        if self.null is not None:
            imposed = ", ".join(f"{name} = {v:g}" for name, v in self.null.items())
            parts.append(f"null imposed: {imposed}")
        by = f" by {groups.name}" if groups.name else ""
        return f"{self.kind} {_MARK}{', '.join(parts)}){by}"


def own_replicates(covariance: Covariance) -> Matrix | None:
    """Return the replicates of a bootstrap covariance around the estimate, or None.

    Jackknife values and replicates under a null hypothesis are not draws from the
    law of the estimate.
    """
    is_drawn = _MARK in covariance.rule and "null imposed" not in covariance.rule
    return covariance.replicates if is_drawn else None


@dataclass(frozen=True, slots=True)
class Refitting:
    """What it takes to refit an equation to random weights.

    Attributes
    ----------
    equation : EstimatingEquation with `reweighted`
    theta : (p,) array
        Its root.
    reference : Reference
    groups : Groups
    scheme, length
        As in `Bootstrap.weighting`.
    """

    equation: Any
    theta: Vector
    reference: Reference
    groups: Groups
    scheme: str
    length: float

    def replicates(self, seeds: Seeds, jobs: int) -> list[Vector | str]:
        """Return the replicate of each seed, or the name of what went wrong.

        Those that an equation finds for many weights at once come first, in batches
        that do not depend on ``jobs``.
        """
        made: list[Vector | str | None] = [None] * len(seeds)
        if getattr(self.equation, "reweighted_roots", None) is not None:
            size = max(1, _MOST_WEIGHTS // max(1, self.equation.n_units))
            for k in range(0, len(seeds), size):
                made[k : k + size] = self._at_once(seeds[k : k + size])
        left = [k for k, one in enumerate(made) if one is None]
        found = in_parallel(self._one_by_one, [seeds[k] for k in left], jobs)
        for k, one in zip(left, found, strict=True):
            made[k] = one
        return [one for one in made if one is not None]

    def _weights(self, seed: Any) -> Vector:
        rng = np.random.default_rng(seed)
        drawn = unit_weights(rng, self.groups.count, self.scheme, self.length)
        return self.groups.spread(drawn)

    def _at_once(self, seeds: Seeds) -> list[Vector | None]:
        weights = np.array([self._weights(seed) for seed in seeds])
        roots = quick_roots(self.equation, weights, self.theta, self.reference)
        return [root if np.isfinite(root).all() else None for root in roots]

    def _one_by_one(self, seeds: Seeds) -> list[Vector | str]:
        made = []
        for seed in seeds:
            weights = self._weights(seed)
            found = refit(self.equation, weights, self.theta, self.reference)
            made.append(found if isinstance(found, str) else found.theta)
        return made


def _residual_moves(
    equation: EstimatingEquation, theta: Vector, seeds: Seeds
) -> Matrix:
    if getattr(equation, "is_sampling_weighted", False):
        raise InferenceError(
            "residuals are not exchangeable under sampling or importance weights; use "
            'Bootstrap(kind="pairs") or "multiplier".'
        )
    working = working_of(equation, theta, 'Bootstrap(kind="residual")', _INSTEAD)
    return residual_draws(working.design, working.weight, working.residual, seeds)


def restricted_influence(
    equation: EstimatingEquation, theta: Vector, R: Matrix, r: Vector
) -> tuple[Vector, Matrix]:
    r"""Return the root of a linear model under :math:`R\theta = r`, and influences.

    The influences :math:`A^{-1} \psi_i(\tilde\theta) / n` are those of the
    unrestricted estimate when residuals are taken at the restricted one.

    Raises
    ------
    CapabilityError
        If psi is not linear in theta.
    """
    if not is_linear(equation):
        raise CapabilityError(
            "a null hypothesis can be imposed on linear models (ee.ols) only; leave "
            "`null` out: replicates then lie around the estimate."
        )
    information = equation.sensitivity(theta)
    centre = restricted_root(theta, information, R, r)
    factor = reference_factor(equation, theta)
    influence: Matrix = factor.solve(equation.psi(centre).T).T / equation.n_units
    return centre, influence


# ------------------------------------------------------------------------ checking


def _check_choices(rule: Bootstrap) -> None:
    choices = {
        "kind": get_args(BootstrapKind),
        "weights": get_args(MultiplierLaw),
        "blocks": ("moving", "stationary"),
    }
    for argument, allowed in choices.items():
        value = getattr(rule, argument)
        if value not in allowed:
            raise ValueError(f"`{argument}` must be one of {allowed}; got {value!r}.")
    for argument, least in (("draws", 2), ("jobs", None)):
        value = getattr(rule, argument)
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise TypeError(f"`{argument}` must be a whole number; got {value!r}.")
        if value == 0 or (least is not None and value < least):
            raise ValueError(
                f"`{argument}` is {value}; at least {least or 1} is needed."
            )
    if not isinstance(rule.rng, np.random.Generator):
        seed_of(rule.rng)


def _check_labels(kind: str, labels: Any) -> None:
    if labels is None and kind in _LABELLED:
        raise ValueError(
            f'kind "{kind}" needs `labels`, the column name or the array of clusters.'
        )
    if labels is not None and kind not in _MAY_LABEL:
        other = "wild-cluster" if kind == "wild" else "cluster"
        raise ValueError(
            f'kind "{kind}" draws single units and takes no `labels`; use '
            f'kind "{other}".'
        )


def _require_successes(kept: int, draws: int, failures: Sequence[str]) -> None:
    if kept < max(2, draws / 2):
        causes = ", ".join(sorted(set(failures)))
        raise InferenceError(
            f"{draws - kept} of {draws} refits failed ({causes}), so the replicates "
            "say nothing about the estimate. Use "
            'Bootstrap(kind="fractional") or "multiplier", or a larger sample.'
        )


def _times(equation: EstimatingEquation, labels: Any) -> Groups:
    """Return the times of the units, in order."""
    places = getattr(equation, "unit_codes", None)
    if places is not None:
        raise CapabilityError(
            "`labels` of block draws are the times of rows, but rows are summed within "
            "`units=`; sort the units by time and leave `labels` out."
        )
    values = row_values(equation, labels, "labels", equation.n_units)
    codes, times = ordered_codes(values, "labels")
    if len(times) < 2:
        raise InferenceError("`labels` has one time; blocks need at least two.")
    return Groups(codes, len(times), label_text(labels))
