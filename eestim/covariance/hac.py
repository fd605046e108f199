"""Covariances of time series: kernels, automatic bandwidths, prewhitening, weave."""

import operator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from eestim._arrays import Matrix, Vector
from eestim.covariance._bandwidth import column_weights
from eestim.covariance._kernels import (
    Prewhitened,
    canonical_kernel,
    checked_bandwidth,
    checked_lags,
    lag_weights,
    lags_to_bandwidth,
    long_run_sum,
    prewhiten,
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
from eestim.covariance._weave import weave_weights
from eestim.covariance.bandwidths import (
    SMALLEST_BANDWIDTH,
    Andrews1991,
    Chosen,
    NeweyWest1994,
    Weave,
    as_automatic,
    as_weave,
    description,
)
from eestim.covariance.base import Covariance, equation_sandwich, row_psi, working_of
from eestim.equations import EstimatingEquation
from eestim.errors import DataError
from eestim.findings import Finding
from eestim.roots import Root

__all__ = ["HAC", "hac_meat"]

_NEARLY_UNIT_ROOT = 0.97  # Andrews and Monahan (1992) shrink roots beyond this
_NOT_POSITIVE = (
    "Use the 'bartlett', 'parzen' or 'quadratic-spectral' kernel, whose variances are "
    "never negative."
)


def hac_meat(white: Prewhitened, weights: Vector) -> Matrix:
    r"""Return the long-run sum of psi from its prewhitened residuals, (q, q).

    .. math:: S = D \Big[ w_0 \Gamma_0 +
        \sum_{j \ge 1} w_j (\Gamma_j + \Gamma_j^\top) \Big] D^\top .

    References
    ----------
    Andrews and Monahan (1992), Econometrica 60, eq. 2.5.
    """
    inner = long_run_sum(white.residuals, weights)
    total: Matrix = white.recolour @ inner @ white.recolour.T
    return (total + total.T) / 2


@dataclass(frozen=True, slots=True)
class HAC:
    r"""The sandwich for a time series, robust to autocorrelation of psi.

    .. math::
        M = \frac1n \Big[ \Gamma_0 + \sum_{j=1}^{n-1} k(j / b)
        (\Gamma_j + \Gamma_j^\top) \Big], \qquad
        \Gamma_j = \sum_t \psi_t \psi_{t-j}^\top .

    Rows are in time order, or ``time`` says when each was observed.

    Attributes
    ----------
    kernel : str or Weave
        "bartlett", "parzen", "quadratic-spectral" ("qs"), "tukey-hanning", or
        "truncated"; "weave" and "weave-smooth" are `Weave` values.
    bandwidth : float, "newey-west", "andrews", or a value, optional
        b in time steps, or how it is chosen: `NeweyWest1994` and `Andrews1991` have
        options. Without bandwidth and lags: "newey-west" where it is defined,
        "andrews" for the truncated and Tukey-Hanning kernels.
    lags : int, optional
        Number of lags with weight, instead of a bandwidth: L lags are bandwidth L + 1
        for the kernels that vanish at the bandwidth, L for the truncated one.
    prewhiten : int
        Order of a vector autoregression that psi is filtered by, 0 for none.
    adjust : bool
        Multiply by n / (n - k).
    time : str or (n,) array, optional
        Column name or labels that order the rows; each may occur once.

    Raises
    ------
    ValueError
        If an argument is out of range or both bandwidth and lags are given.
    DataError
        If times are missing or repeated, or the series is too short.
    InferenceError
        If a variance is negative (truncated and Tukey-Hanning kernels) or infinite.

    Notes
    -----
    Other packages: R ``NeweyWest(lag=L, prewhite=FALSE)`` is ``HAC(lags=L)`` and its
    default ``HAC(bandwidth="newey-west", prewhiten=1)``; ``kernHAC`` is
    ``HAC("qs", "andrews", prewhiten=1, adjust=True)``; ``weave`` is ``HAC("weave")``.
    statsmodels ``maxlags=L`` is ``lags=L``, its ``use_correction`` is ``adjust``.
    linearmodels' Bartlett and Parzen ``bandwidth=L`` is ``lags=L``, its quadratic
    spectral ``bandwidth`` is ours and its automatic choice is
    ``NeweyWest1994(rounding="ceil", pilot_rounding="ceil")``. Prewhitened variances
    keep n, the length before the autoregression, as divisor.

    References
    ----------
    Newey and West (1987), Econometrica 55, 703-708, and (1994), Rev. Econ. Stud. 61,
    631-653; Andrews (1991), Econometrica 59, 817-858; Andrews and Monahan (1992),
    Econometrica 60, 953-966; Zeileis (2004), J. Stat. Softw. 11(10).

    Examples
    --------
    >>> HAC("bartlett", lags=4).kernel
    'bartlett'
    """

    kernel: str | Weave = "bartlett"
    bandwidth: float | str | NeweyWest1994 | Andrews1991 | Chosen | None = None
    lags: int | None = None
    prewhiten: int = 0
    adjust: bool = False
    time: Any = None

    def __post_init__(self) -> None:
        weave = as_weave(self.kernel)
        if weave is None:
            name = canonical_kernel(self.kernel)  # type: ignore[arg-type]
            if self.lags is not None:
                lags_to_bandwidth(name, 0)
        elif self.bandwidth is not None or self.lags is not None:
            raise ValueError(
                "`bandwidth` and `lags` have no meaning for empirical (weave) weights, "
                "which are read off the residuals; drop them."
            )
        if self.bandwidth is not None and self.lags is not None:
            raise ValueError("give `bandwidth` or `lags`, not both.")
        if self.bandwidth is not None and as_automatic(self.bandwidth) is None:
            checked_bandwidth(self.bandwidth)
        try:
            order = operator.index(self.prewhiten)
        except TypeError:
            order = -1
        if order < 0:
            raise ValueError(
                f"`prewhiten` is {self.prewhiten!r}; the order of an autoregression "
                "was expected, 0 for none."
            )

    @property
    def is_equivariant(self) -> bool:
        """Whether a linear change of parameters changes V accordingly.

        Automatic bandwidths look at the columns of psi one by one, so they belong to
        the parameters as the user wrote them; `fixed_at` makes the choice there.
        """
        if as_weave(self.kernel) is not None or self.lags is not None:
            return True
        if isinstance(self.bandwidth, Chosen):
            return True
        return self.bandwidth is not None and as_automatic(self.bandwidth) is None

    def fixed_at(self, equation: EstimatingEquation, root: Root) -> "HAC":
        """Return the rule with its bandwidth chosen for this equation and root.

        The result is equivariant, so that the covariance may be computed in other
        coordinates than those whose psi chose the bandwidth.
        """
        if self.is_equivariant:
            return self
        rows = row_psi(equation, root.theta)
        order, _ = self._order(equation, len(rows))
        white = prewhiten(rows[order], operator.index(self.prewhiten))
        name = canonical_kernel(self.kernel)  # type: ignore[arg-type]
        size, how = self._bandwidth(equation, root.theta, name, white.residuals)
        return replace(self, bandwidth=Chosen(size, how.strip()))

    def __call__(self, equation: EstimatingEquation, root: Root) -> Covariance:
        """Return the covariance of the root."""
        rows = row_psi(equation, root.theta)
        n, k = len(rows), len(equation.names)
        order, spacing = self._order(equation, n)
        white = prewhiten(rows[order], operator.index(self.prewhiten))
        weights, label, about = self._weights(equation, root.theta, white, order)
        factor = degrees_factor(n, k, "HAC") if self.adjust else 1.0
        meat = hac_meat(white, weights) * (factor / equation.n_units)
        matrix = equation_sandwich(equation, equation.sensitivity(root.theta), meat)
        refuse_negative(matrix, tuple(equation.names), label, _NOT_POSITIVE)
        return Covariance(
            matrix,
            label + self._whitening_text(),
            _citation(self.kernel),
            factor="n/(n-k)" if self.adjust else "",
            dof=float(n - k) if self.adjust else float("inf"),
            dof_kind="n-k" if self.adjust else "normal",
            findings=(
                *about,
                *spacing,
                *_whitening_finding(white),
                *semidefinite_finding(matrix, _NOT_POSITIVE),
            ),
        )

    def _whitening_text(self) -> str:
        order = operator.index(self.prewhiten)
        return f", VAR({order}) prewhitened" if order else ""

    def _order(
        self, equation: EstimatingEquation, n: int
    ) -> tuple[Any, tuple[Finding, ...]]:
        """Return what sorts the rows by time."""
        if n < 2:
            raise DataError("HAC needs at least 2 time points; `psi` has one row.")
        if self.time is None:
            return slice(None), ()
        codes, labels = ordered_codes(
            row_values(equation, self.time, "time", n), "time"
        )
        refuse_repeated(
            codes,
            "time",
            "A time series has one row a time; for panels use "
            "DriscollKraay(time=...) or PanelHAC(unit=..., time=...).",
        )
        return np.argsort(codes), even_spacing_finding(labels, "time")

    def _weights(
        self,
        equation: EstimatingEquation,
        theta: Vector,
        white: Prewhitened,
        order: Any,
    ) -> tuple[Vector, str, tuple[Finding, ...]]:
        """Return the weights of lags, how they are called, and what to know of them."""
        n_times = len(white.residuals)
        weave = as_weave(self.kernel)
        if weave is not None:
            working = working_of(
                equation,
                theta,
                "HAC with empirical (weave) weights",
                "Use a kernel, for instance HAC('bartlett'), which takes any psi.",
            )
            weights = weave_weights(working.residual[order], weave.method, weave.cutoff)
            return weights[:n_times], f"WEAVE ({weave.method})", ()
        name = canonical_kernel(self.kernel)  # type: ignore[arg-type]
        bandwidth, how = self._bandwidth(equation, theta, name, white.residuals)
        label = f"HAC ({name}, bandwidth {bandwidth:.6g}{how})"
        finding = bandwidth_finding(name, bandwidth, n_times)
        return lag_weights(name, bandwidth, n_times), label, (finding,)

    def _bandwidth(
        self, equation: EstimatingEquation, theta: Vector, name: str, psi: Matrix
    ) -> tuple[float, str]:
        if self.lags is not None:
            return lags_to_bandwidth(name, checked_lags(self.lags, len(psi))), ""
        automatic = as_automatic(self.bandwidth, name)
        if automatic is None:
            return checked_bandwidth(self.bandwidth), ""
        working = getattr(equation, "working", None)
        design = None if working is None else working(theta).design
        weights = column_weights(equation.names, automatic.weights, design)
        order = operator.index(self.prewhiten)
        size = automatic.bandwidth(name, psi, weights, order)
        return max(size, SMALLEST_BANDWIDTH), f" {description(automatic)}"


def _citation(kernel: str | Weave) -> str:
    if as_weave(kernel) is not None:
        return "Lumley and Heagerty (1999), J. R. Stat. Soc. B 61, 459-477"
    if isinstance(kernel, str) and canonical_kernel(kernel) == "bartlett":
        return "Newey and West (1987), Econometrica 55, 703-708"
    return "Andrews (1991), Econometrica 59, 817-858"


def _whitening_finding(white: Prewhitened) -> tuple[Finding, ...]:
    if white.radius < _NEARLY_UNIT_ROOT:
        return ()
    explosive = white.radius >= 1
    return (
        Finding(
            "prewhitening",
            "fail" if explosive else "warn",
            white.radius,
            1.0 if explosive else _NEARLY_UNIT_ROOT,
            "The autoregression that prewhitens psi has a root of modulus "
            f"{white.radius:.3f}; "
            + (
                "psi is not stationary under it, so the recoloured variance has no "
                "meaning as a long-run variance."
                if explosive
                else "the recoloured variance is dominated by it."
            ),
            "Lower the order of `prewhiten`, or difference or detrend the series.",
        ),
    )
