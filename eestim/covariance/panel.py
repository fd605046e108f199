"""Covariances of panels: Driscoll-Kraay, panel Newey-West, Beck-Katz."""

from dataclasses import dataclass
from typing import Any

from eestim._arrays import IntVector
from eestim.covariance._kernels import (
    canonical_kernel,
    checked_bandwidth,
    checked_lags,
    lag_rule,
    lag_weights,
    lags_to_bandwidth,
)
from eestim.covariance._panel import (
    beck_katz_sum,
    driscoll_kraay_sum,
    panel_hac_sum,
)
from eestim.covariance._rows import (
    bandwidth_finding,
    degrees_factor,
    even_spacing_finding,
    ordered_codes,
    refuse_negative,
    refuse_repeated,
    row_values,
    semidefinite_finding,
)
from eestim.covariance.base import Covariance, equation_sandwich, row_psi, working_of
from eestim.equations import EstimatingEquation
from eestim.errors import InferenceError
from eestim.findings import Finding
from eestim.roots import Root

__all__ = ["BeckKatz", "DriscollKraay", "PanelHAC"]

_FEW_TIMES = 20  # below, averages over time are noisy; Driscoll and Kraay let T grow
_NOT_POSITIVE = (
    "Use the 'bartlett', 'parzen' or 'quadratic-spectral' kernel, whose variances are "
    "never negative."
)


def _checked_kernel(kernel: str, lags: Any, bandwidth: float | None) -> None:
    name = canonical_kernel(kernel)
    if lags is not None and bandwidth is not None:
        raise ValueError("give `lags` or `bandwidth`, not both.")
    if bandwidth is not None:
        checked_bandwidth(bandwidth)
    elif name == "quadratic-spectral":
        lags_to_bandwidth(name, 0)
    elif isinstance(lags, str):
        lag_rule(lags, 2)


def _bandwidth(kernel: str, lags: Any, bandwidth: float | None, n_times: int) -> float:
    if bandwidth is not None:
        return checked_bandwidth(bandwidth)
    if lags is None or isinstance(lags, str):
        rule = "newey-west-1987" if lags is None else lags
        return lags_to_bandwidth(kernel, lag_rule(rule, n_times))
    return lags_to_bandwidth(kernel, checked_lags(lags, n_times))


def _described(kernel: str, chosen: float, lags: Any, bandwidth: float | None) -> str:
    """Return the kernel, the bandwidth, and the rule that it comes from.

    >>> _described("bartlett", 4.0, None, None)
    'bartlett, bandwidth 4, lags by newey-west-1987'
    """
    is_rule = bandwidth is None and (lags is None or isinstance(lags, str))
    by = f", lags by {lags or 'newey-west-1987'}" if is_rule else ""
    return f"{kernel}, bandwidth {chosen:.6g}{by}"


@dataclass(frozen=True, slots=True)
class DriscollKraay:
    r"""The sandwich for panels with dependence across units and over time.

    Contributions are added up within each time; the kernel then weighs the
    autocovariances of those T sums, so T, not the number of units, must be large.

    Attributes
    ----------
    time : str or (N,) array
        Column name or labels of the times; observed times next to each other are one
        lag apart.
    lags : int or {"newey-west-1987", "newey-west-1994", "max"}, optional
        Number of lags with weight, or a rule in T: the integer part of T^(1/4) (the
        default), of 4 (T / 100)^(2/9), or T - 1.
    kernel : str
        As in `HAC`; the quadratic spectral kernel needs a bandwidth.
    bandwidth : float, optional
        In time steps, instead of lags.
    adjust : bool
        Multiply by n / (n - k), n the number of rows.

    Raises
    ------
    DataError
        If labels are missing or have no order.
    InferenceError
        If there is one time only, or a variance is negative.

    Notes
    -----
    R ``vcovPL(cluster = ~ unit + time, lag = L)`` is ``lags=L, adjust=True``;
    linearmodels' ``bandwidth=L`` is ``lags=L`` (its default the 1994 rule), with
    ``adjust`` its ``debiased``. Intervals use T - 1 degrees of freedom; `FixedB` with
    b = (L + 1) / T allows for the noise of the variance (Vogelsang, 2012).

    References
    ----------
    Driscoll and Kraay (1998), Rev. Econ. Stat. 80, 549-560.

    Examples
    --------
    >>> DriscollKraay(time="year", lags=2).kernel
    'bartlett'
    """

    time: Any
    lags: Any = None
    kernel: str = "bartlett"
    bandwidth: float | None = None
    adjust: bool = False

    def __post_init__(self) -> None:
        _checked_kernel(self.kernel, self.lags, self.bandwidth)

    def __call__(self, equation: EstimatingEquation, root: Root) -> Covariance:
        """Return the covariance of the root."""
        psi = row_psi(equation, root.theta)
        n, k = len(psi), len(equation.names)
        codes, labels = ordered_codes(
            row_values(equation, self.time, "time", n), "time"
        )
        if len(labels) < 2:
            raise InferenceError(
                "DriscollKraay averages over time and `time` has one label; use "
                "Clustered(unit) or HC(1)."
            )
        name = canonical_kernel(self.kernel)
        bandwidth = _bandwidth(name, self.lags, self.bandwidth, len(labels))
        weights = lag_weights(name, bandwidth, len(labels))
        factor = degrees_factor(n, k, "DriscollKraay") if self.adjust else 1.0
        meat = driscoll_kraay_sum(psi, codes, weights) * (factor / equation.n_units)
        matrix = equation_sandwich(equation, equation.sensitivity(root.theta), meat)
        chosen = _described(name, bandwidth, self.lags, self.bandwidth)
        rule = f"Driscoll-Kraay ({chosen})"
        refuse_negative(matrix, tuple(equation.names), rule, _NOT_POSITIVE)
        return Covariance(
            matrix,
            rule,
            "Driscoll and Kraay (1998), Rev. Econ. Stat. 80, 549-560",
            factor="n/(n-k)" if self.adjust else "",
            dof=float(len(labels) - 1),
            dof_kind="T-1",
            n_clusters=(len(labels),),
            findings=(
                bandwidth_finding(name, bandwidth, len(labels)),
                *_few_times(len(labels)),
                *even_spacing_finding(labels, "time"),
                *semidefinite_finding(matrix, _NOT_POSITIVE),
            ),
        )


def _few_times(n_times: int) -> tuple[Finding, ...]:
    if n_times >= _FEW_TIMES:
        return ()
    return (
        Finding(
            "number of times",
            "warn",
            float(n_times),
            float(_FEW_TIMES),
            f"{n_times} times: Driscoll-Kraay needs many, even with many units.",
            "With many units, Clustered(unit) allows for any dependence over time.",
        ),
    )


@dataclass(frozen=True, slots=True)
class PanelHAC:
    r"""The sandwich for panels of independent units, each autocorrelated over time.

    Newey-West within each unit: lagged products are taken between the times at which
    the unit was observed, so gaps in an unbalanced panel keep their length.

    Attributes
    ----------
    unit, time : str or (N,) array
        Column names or labels; a unit has one row a time.
    lags : int or {"newey-west-1987", "newey-west-1994", "max"}, optional
        Number of lags with weight, or a rule in the number of times; the 1987 rule by
        default.
    kernel : str
        As in `HAC`; the quadratic spectral kernel needs a bandwidth.
    bandwidth : float, optional
        In time steps, instead of lags.
    adjust : bool
        Multiply by n / (n - k), n the number of rows.

    Raises
    ------
    DataError
        If labels are missing or a unit has two rows at a time.
    InferenceError
        If a variance is negative.

    Notes
    -----
    R ``vcovPL(cluster = ~ unit + time, lag = L, aggregate = FALSE)`` is ``lags=L,
    adjust=True``. Clustered(unit) needs no kernel where there are many units.

    References
    ----------
    Newey and West (1987), Econometrica 55, 703-708; Petersen (2009), Rev. Financ.
    Stud. 22, 435-480.

    Examples
    --------
    >>> PanelHAC(unit="firm", time="year", lags=2).lags
    2
    """

    unit: Any
    time: Any
    lags: Any = None
    kernel: str = "bartlett"
    bandwidth: float | None = None
    adjust: bool = False

    def __post_init__(self) -> None:
        _checked_kernel(self.kernel, self.lags, self.bandwidth)

    def __call__(self, equation: EstimatingEquation, root: Root) -> Covariance:
        """Return the covariance of the root."""
        psi = row_psi(equation, root.theta)
        n, k = len(psi), len(equation.names)
        units, times, labels = _panel_codes(equation, self.unit, self.time, n)
        name = canonical_kernel(self.kernel)
        bandwidth = _bandwidth(name, self.lags, self.bandwidth, len(labels))
        weights = lag_weights(name, bandwidth, len(labels))
        factor = degrees_factor(n, k, "PanelHAC") if self.adjust else 1.0
        meat = panel_hac_sum(psi, units, times, weights) * (factor / equation.n_units)
        matrix = equation_sandwich(equation, equation.sensitivity(root.theta), meat)
        chosen = _described(name, bandwidth, self.lags, self.bandwidth)
        rule = f"panel HAC ({chosen})"
        refuse_negative(matrix, tuple(equation.names), rule, _NOT_POSITIVE)
        return Covariance(
            matrix,
            rule,
            "Newey and West (1987); Petersen (2009), Rev. Financ. Stud. 22, 435-480",
            factor="n/(n-k)" if self.adjust else "",
            dof=float(n - k) if self.adjust else float("inf"),
            dof_kind="n-k" if self.adjust else "normal",
            findings=(
                *even_spacing_finding(labels, "time"),
                *semidefinite_finding(matrix, _NOT_POSITIVE),
            ),
        )


@dataclass(frozen=True, slots=True)
class BeckKatz:
    r"""Panel-corrected covariance: units correlated at each time, none over time.

    .. math:: V = (X^\top W X)^{-1} \Big( \sum_t X_t^\top \hat\Sigma X_t \Big)
        (X^\top W X)^{-1}, \qquad
        \hat\Sigma_{ij} = \frac{1}{T_{ij}} \sum_t e_{it} e_{jt} .

    Attributes
    ----------
    unit, time : str or (N,) array
        Column names or labels; a unit has one row a time.
    pairwise : bool
        In unbalanced panels, estimate each covariance of two units from the times at
        which both were observed, instead of those at which all were.

    Raises
    ------
    CapabilityError
        If the equation is not a regression with a linear predictor.
    DataError
        If labels are missing or a unit has two rows at a time, or no time has all
        units and ``pairwise`` is false.
    InferenceError
        If a variance is negative (``pairwise`` only).

    Notes
    -----
    R ``vcovPC(cluster = ~ unit + time)``. Meant for more times than units.

    References
    ----------
    Beck and Katz (1995), Am. Polit. Sci. Rev. 89, 634-647; Bailey and Katz (2011),
    J. Stat. Softw. 42(CS1).

    Examples
    --------
    >>> BeckKatz(unit="state", time="year").pairwise
    False
    """

    unit: Any
    time: Any
    pairwise: bool = False

    def __call__(self, equation: EstimatingEquation, root: Root) -> Covariance:
        """Return the covariance of the root."""
        working = working_of(
            equation,
            root.theta,
            "BeckKatz",
            "Use DriscollKraay(time=...) or Clustered(time), which take any psi.",
        )
        n = len(working.residual)
        units, times, _ = _panel_codes(equation, self.unit, self.time, n)
        total = beck_katz_sum(
            working.design, working.residual, units, times, self.pairwise
        )
        matrix = equation_sandwich(
            equation, equation.sensitivity(root.theta), total / equation.n_units
        )
        advice = "Pairwise covariances need not fit together; use `pairwise=False`."
        refuse_negative(matrix, tuple(equation.names), "BeckKatz", advice)
        return Covariance(
            matrix,
            "Beck-Katz panel-corrected" + (" (pairwise)" if self.pairwise else ""),
            "Beck and Katz (1995), Am. Polit. Sci. Rev. 89, 634-647",
            findings=semidefinite_finding(matrix, advice),
        )


def _panel_codes(
    equation: EstimatingEquation, unit: Any, time: Any, n_rows: int
) -> tuple[IntVector, IntVector, Any]:
    """Return codes of units and times, and the ordered labels of the times."""
    units, _ = ordered_codes(row_values(equation, unit, "unit", n_rows), "unit")
    times, labels = ordered_codes(row_values(equation, time, "time", n_rows), "time")
    refuse_repeated(
        units * len(labels) + times,
        "time",
        "A unit has one row a time in a panel; aggregate the rows, or use "
        "DriscollKraay or Clustered, which need no such order.",
    )
    return units, times, labels
