"""Comparing two fits to the same units, paired through their influences."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from eestim._arrays import Matrix, Vector
from eestim.covariance.base import CovarianceRule
from eestim.covariance.hc import HC
from eestim.equations import require
from eestim.errors import DataError, InferenceError
from eestim.estimation import Estimate, estimate
from eestim.findings import Finding
from eestim.inference._replicates import allows_dependence
from eestim.roots import Root

__all__ = ["PairedDifference", "compare"]

_Functional = Callable[[Any], Any]
_SAME = 1e-12  # a difference of influences, relative to the influences


@dataclass(frozen=True, slots=True)
class PairedDifference:
    r"""The difference of two estimates as an estimating equation of its own.

    .. math:: \psi_i = \mathrm{IF}^a_i - \mathrm{IF}^b_i, \qquad A = I,

    tabulated at the difference. Labels are looked up in the data of the first fit.

    Attributes
    ----------
    names : tuple of m str
    table : (n, m) array
    theta : (m,) array
    source : equation of the first fit
    scale : (m,) array
        Root mean square of the influences before they are subtracted.
    """

    names: tuple[str, ...]
    table: Matrix
    theta: Vector
    source: Any
    scale: Vector

    @property
    def n_units(self) -> int:
        """Number of independent units, n."""
        return len(self.table)

    def psi(self, theta: Vector) -> Matrix:  # noqa: ARG002 - tabulated
        """Return the paired differences of influences, (n, m)."""
        return self.table

    def sensitivity(self, theta: Vector) -> Matrix:
        """Return the identity: the difference is a mean of influences."""
        return np.eye(len(theta))

    def column(self, name: str) -> Any:
        """Return a column of the data of the first fit."""
        member = require(
            self.source,
            "column",
            f"the column {name!r}",
            "Pass the labels as an array.",
        )
        return self._per_unit(member(name))

    def aligned(self, values: Any) -> Any:
        """Return labels for the units of the first fit."""
        align = getattr(self.source, "aligned", None)
        return self._per_unit(values if align is None else align(values))

    def _per_unit(self, values: Any) -> Any:
        """Return one label a unit, where the first fit sums rows within units."""
        codes = getattr(self.source, "unit_codes", None)
        array = np.asarray(values)
        if codes is None or len(array) != len(codes):
            return values
        labels = np.empty(self.n_units, dtype=array.dtype)
        labels[codes] = array
        if (labels[codes] != array).any():
            raise DataError("labels differ within a unit; they must hold whole units.")
        return labels

    def check_root(self, root: Root) -> None:  # noqa: ARG002 - tabulated
        """Raise where the two fits have the same influences.

        Raises
        ------
        InferenceError
            Naming the quantity that does not differ.
        """
        spread = np.sqrt(np.mean(self.table**2, axis=0))
        same = np.flatnonzero(spread <= _SAME * self.scale)
        if len(same):
            raise InferenceError(
                f"the two fits have the same influences on {self.names[int(same[0])]!r}"
                ", so their difference has no variance. Compare different fits."
            )


def compare(
    fit_a: Estimate,
    fit_b: Estimate,
    h: _Functional | tuple[_Functional, _Functional] | None = None,
    *,
    parameters: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    covariance: CovarianceRule | None = None,
) -> Estimate:
    r"""Return the difference a - b of two fits to the same units.

    .. math:: V = \frac{1}{n^2} \sum_i (\mathrm{IF}^a_i - \mathrm{IF}^b_i)
        (\mathrm{IF}^a_i - \mathrm{IF}^b_i)^\top

    Pairing by unit keeps the covariance between the fits, which standard errors added
    in quadrature leave out.

    Parameters
    ----------
    fit_a, fit_b : Estimate
        Of equations with the same units in the same order; the models may differ.
    h : callable, or a pair of callables, optional
        Compare functionals, evaluated at each fit as in `Estimate.functional`; a pair
        has one for each fit.
    parameters : sequence of str, optional
        Which parameters to compare; those that both fits have by default.
    names : sequence of str, optional
        Names of the values of h.
    covariance : covariance rule, optional
        For the paired influences; ``HC(0)`` by default. Any rule that needs psi alone:
        ``HC(1)``, ``Clustered("firm")``, ``Bootstrap(kind="multiplier")``.

    Returns
    -------
    Estimate
        With a Finding on the correlation between the fits.

    Raises
    ------
    DataError
        If the units differ, or nothing is shared.
    InferenceError
        If a fit allows for dependence and `covariance` is not given, or the fits have
        the same influences.

    References
    ----------
    Clogg, Petkova and Haritou (1995), Am. J. Sociol. 100, 1261-1293; Weesie (1999),
    Stata Tech. Bull. 52, sg121 (seemingly unrelated estimation).

    Examples
    --------
    The slope with and without a covariate:

    >>> import pandas as pd
    >>> import eestim as ee
    >>> data = pd.DataFrame({"y": [1.0, 3, 2, 5, 4], "x": [0.0, 1, 2, 3, 4],
    ...                      "z": [1.0, 0, 1, 1, 0]})
    >>> short = ee.estimate(ee.ols("y ~ x", data))
    >>> long = ee.estimate(ee.ols("y ~ x + z", data))
    >>> compare(long, short, parameters=["x"]).params.round(4).to_dict()
    {'x': -0.0182}
    """
    _refuse_different_units(fit_a, fit_b)
    for fit in (fit_a, fit_b):
        refuse = getattr(fit.equation, "refuse_rows", None)
        if refuse is not None:
            refuse()
        if covariance is None and allows_dependence(fit.spread):
            raise InferenceError(
                f"a fit has the covariance {fit.spread.rule}, but the difference would "
                "treat units as independent. Pass `covariance=`, for instance "
                "the same rule with its labels."
            )
    label, (a, rows_a), (b, rows_b) = _compared(fit_a, fit_b, h, parameters, names)
    scale = np.sqrt(np.mean(rows_a**2 + rows_b**2, axis=0))
    difference = PairedDifference(label, rows_a - rows_b, a - b, fit_a.equation, scale)
    worst = fit_a if fit_a.root.residual >= fit_b.root.residual else fit_b
    root = Root(a - b, worst.root.status, worst.root.residual, worst.root.steps)
    made = estimate(difference, covariance or HC(0), root=root)
    paired = replace(
        made.spread,
        rule=f"paired difference, {made.spread.rule}",
        findings=(*made.spread.findings, *_pairing_findings(label, rows_a, rows_b)),
    )
    return replace(made, spread=paired)


# ------------------------------------------------------------------ what is compared


_Compared = tuple[Vector, Matrix]


def _compared(
    fit_a: Estimate,
    fit_b: Estimate,
    h: _Functional | tuple[_Functional, _Functional] | None,
    parameters: Sequence[str] | None,
    names: Sequence[str] | None,
) -> tuple[tuple[str, ...], _Compared, _Compared]:
    if h is not None:
        if parameters is not None:
            raise ValueError("give `h` or `parameters`, not both.")
        first, second = h if isinstance(h, tuple) else (h, h)
        made_a = fit_a.functional(first, names=names)
        made_b = fit_b.functional(second, names=names)
        if made_a.names != made_b.names:
            raise DataError(
                f"`h` has {len(made_a.names)} values at one fit and "
                f"{len(made_b.names)} at the other."
            )
        return (
            made_a.names,
            (made_a.theta, made_a._influence()),
            (made_b.theta, made_b._influence()),
        )
    if names is not None:
        raise ValueError("`names` are those of the values of `h`; pass `h` too.")
    shared = tuple(name for name in fit_a.names if name in fit_b.names)
    wanted = shared if parameters is None else tuple(parameters)
    unknown = [name for name in wanted if name not in shared]
    if unknown or not wanted:
        what = f"do not both have {unknown}" if unknown else "share no parameter"
        raise DataError(
            f"the fits {what}; they have {list(fit_a.names)} and {list(fit_b.names)}. "
            "Pass a functional `h`, or one for each fit."
        )
    return wanted, _chosen(fit_a, wanted), _chosen(fit_b, wanted)


def _chosen(fit: Estimate, names: Sequence[str]) -> _Compared:
    places = [fit.names.index(name) for name in names]
    return fit.theta[places], fit._influence()[:, places]


# ------------------------------------------------------------------------- the units


def _refuse_different_units(fit_a: Estimate, fit_b: Estimate) -> None:
    """Raise where the rows of the two fits are known not to be the same units."""
    if fit_a.n_units != fit_b.n_units:
        raise DataError(
            f"the fits have {fit_a.n_units} and {fit_b.n_units} units; a paired "
            "comparison needs the same ones. Fit both to the rows that both can use."
        )
    one, two = _unit_labels(fit_a.equation), _unit_labels(fit_b.equation)
    if one is None or two is None:
        return
    different = one != two
    if different.any():
        row = int(np.flatnonzero(different)[0])
        raise DataError(
            f"the fits have different units: unit {row} is {one[row]!r} in one and "
            f"{two[row]!r} in the other. Fit both to the same rows in the same order."
        )


def _unit_labels(equation: Any) -> Any:
    """Return the index labels of the units, or None where they are not known."""
    source = getattr(equation, "source", equation)
    index = getattr(source, "index", None)
    if index is None:
        index = getattr(getattr(source, "data", None), "index", None)
    if index is None or getattr(source, "unit_codes", None) is not None:
        return None
    labels = np.asarray(index, dtype=object)
    kept = getattr(source, "kept", None)
    labels = labels if kept is None else labels[kept]
    if len(labels) != equation.n_units:
        return None
    return labels


def _pairing_findings(
    names: Sequence[str], rows_a: Matrix, rows_b: Matrix
) -> tuple[Finding, ...]:
    """Return the correlation of the two estimates, the reason for pairing."""
    found = []
    for j, name in enumerate(names):
        a, b = rows_a[:, j], rows_b[:, j]
        size = float(np.sqrt((a @ a) * (b @ b)))
        if size == 0.0:
            continue
        correlation = float(a @ b) / size
        unpaired = float(np.sqrt(a @ a + b @ b)) / len(a)
        found.append(
            Finding(
                f"pairing of {name}",
                "pass",
                correlation,
                float("nan"),
                f"the estimates have correlation {correlation:.3f}; adding their "
                f"variances would give a standard error of {unpaired:.3g}.",
            )
        )
    return tuple(found)
