"""Design-based covariance of stratified and clustered samples, by linearisation."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from eestim._arrays import IntVector, Matrix, Vector, as_float, check_finite
from eestim.covariance._rows import row_values
from eestim.covariance.base import Covariance, equation_sandwich, label_text, row_psi
from eestim.equations import EstimatingEquation, labels_of, sum_by_code
from eestim.errors import DataError, InferenceError
from eestim.findings import Finding
from eestim.roots import Root

__all__ = ["Survey", "survey_sum"]

Lonely = Literal["refuse", "center", "certainty"]


def survey_sum(
    totals: Matrix, strata_codes: IntVector, fractions: Vector, is_centred: bool = False
) -> Matrix:
    r"""Return the design variance of the sum of psi from totals of sampling units.

    .. math:: S = \sum_h (1 - f_h) \frac{n_h}{n_h - 1} \sum_{c \in h}
        (z_c - \bar z_h)(z_c - \bar z_h)^\top .

    Parameters
    ----------
    totals : (m, q) array
        z_c, weighted psi added up within each primary sampling unit.
    strata_codes : (m,) integers
        0 .. H - 1.
    fractions : (H,) array
        f_h, the sampled share of the units of each stratum.
    is_centred : bool
        What a stratum with one unit contributes: nothing, or (true) the squared
        deviation of its total from the mean of all.

    References
    ----------
    Binder (1983), Int. Stat. Rev. 51, eq. 4.1; Lumley (2004), J. Stat. Softw. 9(8).

    Examples
    --------
    A simple random sample has the usual n / (n - 1):

    >>> survey_sum(np.array([[-1.0], [1.0]]), np.array([0, 0]), np.zeros(1))
    array([[4.]])
    """
    n_strata = len(fractions)
    sizes = np.bincount(strata_codes, minlength=n_strata).astype(float)
    centres = sum_by_code(totals, strata_codes, n_strata) / sizes[:, None]
    lonely = sizes == 1
    if is_centred:
        centres[lonely] = totals.mean(axis=0)
    scale = (1 - fractions) * sizes / np.where(lonely, 1.0, sizes - 1)
    deviations = (totals - centres[strata_codes]) * np.sqrt(scale[strata_codes])[
        :, None
    ]
    result: Matrix = deviations.T @ deviations
    return result


@dataclass(frozen=True, slots=True)
class Survey:
    r"""Taylor linearisation for a stratified, clustered sample.

    Weighted contributions are added up within primary sampling units, whose totals
    vary about their mean within strata. Sampling weights belong to the equation
    (``weights=ee.Sampling("w")``).

    Attributes
    ----------
    strata : str or (n,) array, optional
        Stratum of each row; one stratum by default.
    psu : str or (n,) array, optional
        Primary sampling unit of each row; each row its own by default. Later stages
        of sampling need not be named (ultimate clusters).
    fpc : str, (n,) array, or number, optional
        Finite population correction: the number of sampling units in the population
        of the stratum (all above 1), or the sampled share (all at most 1). Constant
        within strata; a number serves all of them.
    nest : bool
        Whether units of the same label in different strata are different units.
    lonely : {"refuse", "center", "certainty"}
        A stratum with one sampling unit has no variance of its own: refuse, centre
        its total at the mean of all units (conservative), or count it as sampled with
        certainty (no contribution). One that ``fpc`` says is sampled whole
        contributes nothing in any case.

    Raises
    ------
    DataError
        If labels are missing, a unit lies in several strata, or ``fpc`` varies within
        a stratum or is smaller than its sample.
    InferenceError
        If a stratum has one unit, or there are no more units than strata.

    Notes
    -----
    R ``svydesign(ids = ~psu, strata = ~strata, fpc = ~fpc)`` with ``svyglm``,
    ``svymean`` or ``svyratio``. Intervals use the degrees of freedom of the design,
    units minus strata.

    References
    ----------
    Binder (1983), Int. Stat. Rev. 51, 279-292; Lumley (2010), Complex Surveys, ch. 2.

    Examples
    --------
    >>> Survey(strata="region", psu="village").lonely
    'refuse'
    """

    strata: Any = None
    psu: Any = None
    fpc: Any = None
    nest: bool = False
    lonely: Lonely = "refuse"

    def __post_init__(self) -> None:
        if self.lonely not in ("refuse", "center", "certainty"):
            raise ValueError(
                f"`lonely` is {self.lonely!r}; choose 'refuse', 'center' or "
                "'certainty'."
            )

    def __call__(self, equation: EstimatingEquation, root: Root) -> Covariance:
        """Return the covariance of the root."""
        psi = row_psi(equation, root.theta)
        strata, names = _codes(equation, self.strata, "strata", len(psi))
        units, labels = _codes(equation, self.psu, "psu", len(psi))
        if self.psu is None:
            units, labels = np.arange(len(psi)), None
        units, of_stratum = _nested_units(units, strata, labels, names, self.nest)
        sizes = np.bincount(of_stratum)
        fractions = self._fractions(equation, strata, sizes, names)
        self._check_lonely(sizes, fractions, names)
        n_psu = len(of_stratum)
        if (fractions == 1).all():
            raise InferenceError(
                "`fpc` says that every stratum was sampled whole, so the design leaves "
                "no sampling variance; drop `fpc` to infer about a superpopulation."
            )
        if n_psu <= len(sizes):
            raise InferenceError(
                f"the design has {n_psu} sampling units in {len(sizes)} strata, hence "
                "no degrees of freedom; combine strata."
            )
        totals = sum_by_code(psi, units, n_psu)
        meat = survey_sum(totals, of_stratum, fractions, self.lonely == "center")
        matrix = equation_sandwich(
            equation, equation.sensitivity(root.theta), meat / equation.n_units
        )
        return Covariance(
            matrix,
            self._text(),
            "Binder (1983), Int. Stat. Rev. 51, 279-292",
            factor="n_h/(n_h-1)" if self.fpc is None else "(1-f_h) n_h/(n_h-1)",
            dof=float(n_psu - len(sizes)),
            dof_kind="design",
            n_clusters=(n_psu,),
            findings=self._lonely_finding(sizes, fractions),
        )

    def _text(self) -> str:
        parts = [
            f"{name} {label_text(label)}"
            for name, label in (("strata", self.strata), ("psu", self.psu))
            if label is not None
        ]
        return "survey linearisation" + (f" ({', '.join(parts)})" if parts else "")

    def _fractions(
        self,
        equation: EstimatingEquation,
        strata: IntVector,
        sizes: IntVector,
        names: Any,
    ) -> Vector:
        """Return the sampled share of each stratum."""
        if self.fpc is None:
            return np.zeros(len(sizes))
        if np.ndim(self.fpc) == 0 and not isinstance(self.fpc, str):
            given = as_float(self.fpc, "fpc", 0).reshape(1)
            by_stratum = np.repeat(given, len(sizes))
        else:
            values = row_values(equation, self.fpc, "fpc", len(strata))
            rows = check_finite(as_float(values, "fpc", 1), "fpc")
            by_stratum = _constant_within(rows, strata, len(sizes), names)
        return _sampled_share(by_stratum, sizes, names)

    def _check_lonely(self, sizes: IntVector, fractions: Vector, names: Any) -> None:
        alone = np.flatnonzero((sizes == 1) & (fractions < 1))
        if self.lonely != "refuse" or not len(alone):
            return
        listed = ", ".join(str(names[h]) for h in alone[:5])
        more = f" and {len(alone) - 5} more" if len(alone) > 5 else ""
        raise InferenceError(
            f"strata {listed}{more} have one sampling unit, so their variance cannot "
            "be estimated; combine them with similar strata, or choose "
            "`lonely='center'` (conservative) or `lonely='certainty'` (if the unit was "
            "taken on purpose)."
        )

    def _lonely_finding(
        self, sizes: IntVector, fractions: Vector
    ) -> tuple[Finding, ...]:
        alone = int(((sizes == 1) & (fractions < 1)).sum())
        if not alone:
            return ()
        how = (
            "their totals are centred at the mean of all units, which is conservative"
            if self.lonely == "center"
            else "they contribute nothing, as if sampled with certainty"
        )
        return (
            Finding(
                "strata with one unit",
                "warn",
                float(alone),
                0.0,
                f"{alone} of {len(sizes)} strata have one sampling unit; {how}.",
                "Combine them with similar strata.",
            ),
        )


def _codes(
    equation: EstimatingEquation, label: Any, argument: str, n_rows: int
) -> tuple[IntVector, Any]:
    """Return codes of the rows and the label of each code; one group without."""
    if label is None:
        return np.zeros(n_rows, dtype=np.intp), np.array(["(all)"])
    values = row_values(equation, label, argument, n_rows)
    codes, count = labels_of(values, argument, n_rows)
    first = np.empty(count, dtype=np.intp)
    first[codes[::-1]] = np.arange(n_rows)[::-1]
    return codes, values[first]


def _nested_units(
    units: IntVector, strata: IntVector, labels: Any, names: Any, nest: bool
) -> tuple[IntVector, IntVector]:
    """Return codes of sampling units, and the stratum of each."""
    n_strata = int(strata.max()) + 1
    pairs, found = pd.factorize(units * n_strata + strata)
    of_unit, of_stratum = np.divmod(np.asarray(found, dtype=np.intp), n_strata)
    if not nest and len(found) > len(np.unique(of_unit)):
        counts = np.bincount(of_unit)
        unit = int(np.flatnonzero(counts > 1)[0])
        listed = ", ".join(str(names[h]) for h in of_stratum[of_unit == unit][:5])
        raise DataError(
            f"`psu` {labels[unit]!s} lies in several strata ({listed}); if labels are "
            "reused and these are different units, say `nest=True`."
        )
    return pairs.astype(np.intp), of_stratum


def _constant_within(
    rows: Vector, strata: IntVector, n_strata: int, names: Any
) -> Vector:
    by_stratum = np.empty(n_strata)
    by_stratum[strata] = rows
    differs = rows != by_stratum[strata]
    if differs.any():
        h = int(strata[np.flatnonzero(differs)[0]])
        values = np.unique(rows[strata == h])[:3]
        raise DataError(
            f"`fpc` varies within stratum {names[h]} ({', '.join(map(str, values))}); "
            "it must be the number of sampling units of the stratum in the population, "
            "or the sampled share of them."
        )
    return by_stratum


def _sampled_share(by_stratum: Vector, sizes: IntVector, names: Any) -> Vector:
    if not (np.isfinite(by_stratum) & (by_stratum > 0)).all():
        h = int(np.flatnonzero(~(np.isfinite(by_stratum) & (by_stratum > 0)))[0])
        raise DataError(
            f"`fpc` is {by_stratum[h]} in stratum {names[h]}; a positive number of "
            "population units, or a share in (0, 1], was expected."
        )
    is_share = by_stratum <= 1
    if is_share.all():
        return by_stratum
    if is_share.any() and (sizes[is_share] > 1).any():
        raise DataError(
            "`fpc` mixes shares (at most 1) and numbers of units (above 1); give one "
            "kind for all strata."
        )
    small = np.flatnonzero(by_stratum < sizes)
    if len(small):
        h = int(small[0])
        raise DataError(
            f"`fpc` says that stratum {names[h]} has {by_stratum[h]:g} units in the "
            f"population, but {sizes[h]} were sampled."
        )
    return sizes / by_stratum
