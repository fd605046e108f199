r"""Quantiles and quantile regression: a psi that jumps, with a kernel estimate of A.

.. math:: \psi_i = x_i \{\tau - 1(y_i \le x_i^\top \theta)\}, \qquad
          A = E\{f(x_i^\top\theta | x_i)\, x_i x_i^\top\}

A is a density, which differences of psi over a short step cannot see.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from scipy import optimize, special

from eestim._arrays import Matrix, Vector
from eestim._differentiate import hall_sheather
from eestim._linalg import equilibrated_factor
from eestim.errors import ConvergenceError, InferenceError, InterpolationError
from eestim.models._blocked import gram
from eestim.models._linear_predictor import LinearPredictor, linear_predictor_of
from eestim.moments import Moments
from eestim.roots import Root
from eestim.weights import Frequency, Weights

__all__ = [
    "Density",
    "Kernel",
    "QuantileRegression",
    "bofinger",
    "lad",
    "quantile",
    "weighted_quantile",
]

Density: TypeAlias = Literal["powell", "common"]
Kernel: TypeAlias = Literal["epanechnikov", "uniform", "gaussian"]

_ON_THE_PLANE = 1e-10  # a residual, of the terms it is the difference of
_FEWEST = 2  # units within the bandwidth for each parameter


def bofinger(n: float, tau: float) -> float:
    r"""Return the half width of a window of probability that minimises squared error.

    .. math:: h = n^{-1/5} \left\{ \frac{4.5 \phi^4(z_\tau)}{(2 z_\tau^2 + 1)^2}
              \right\}^{1/5}

    References
    ----------
    Bofinger (1975), Aust. J. Stat. 17, 1-7; Koenker (2005), section 3.4.2.

    Examples
    --------
    >>> round(bofinger(1000, 0.5), 6)
    0.162694
    """
    z = special.ndtri(tau)
    density = np.exp(-(z**2) / 2.0) / np.sqrt(2.0 * np.pi)
    return float((4.5 * density**4 / (2.0 * z**2 + 1.0) ** 2 / n) ** 0.2)


_WIDTHS = {"hall-sheather": hall_sheather, "bofinger": bofinger}


def _kernel_values(name: Kernel, u: Vector) -> Vector:
    if name == "gaussian":
        bell: Vector = np.exp(-(u**2) / 2.0) / np.sqrt(2.0 * np.pi)
        return bell
    height = 0.5 if name == "uniform" else 0.75 * (1.0 - u**2)
    return np.where(np.abs(u) <= 1.0, height, 0.0)


def weighted_quantile(values: Vector, weights: Vector, tau: float) -> float:
    """Return a quantile, the middle of those that solve its equation.

    Examples
    --------
    >>> weighted_quantile(np.array([4.0, 1.0, 2.0, 3.0]), np.ones(4), 0.5)
    2.5
    >>> weighted_quantile(np.array([1.0, 2.0, 3.0]), np.array([1.0, 1.0, 4.0]), 0.5)
    3.0
    """
    used = weights > 0
    order = np.argsort(values[used], kind="stable")
    ordered, mass = values[used][order], np.cumsum(weights[used][order])
    wanted = tau * mass[-1]
    place = int(np.searchsorted(mass, wanted * (1.0 - 1e-12)))
    if place + 1 < len(mass) and abs(mass[place] - wanted) <= 1e-12 * mass[-1]:
        return float((ordered[place] + ordered[place + 1]) / 2.0)
    return float(ordered[place])


def _weighted_quantiles(ordered: Vector, weights: Matrix, tau: float) -> Vector:
    """Return what `weighted_quantile` does for each row of (R, n) weights.

    NaN where one value has all the weight.

    Examples
    --------
    >>> rows = np.array([[1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 0.0, 2.0], [0.0, 4.0, 0, 0]])
    >>> _weighted_quantiles(np.array([1.0, 2.0, 3.0, 4.0]), rows, 0.5)
    array([2.5, 4. , nan])
    """
    mass = np.cumsum(weights, axis=1)
    total = mass[:, -1]
    wanted = tau * total
    place = (mass < (wanted * (1.0 - 1e-12))[:, None]).sum(axis=1)
    at = np.take_along_axis(mass, place[:, None], axis=1)[:, 0]
    following = np.minimum((mass <= at[:, None]).sum(axis=1), len(ordered) - 1)
    is_tie = np.abs(at - wanted) <= 1e-12 * total
    found = np.where(
        is_tie, (ordered[place] + ordered[following]) / 2.0, ordered[place]
    )
    used = weights > 0
    lowest = ordered[used.argmax(axis=1)]
    highest = ordered[len(ordered) - 1 - used[:, ::-1].argmax(axis=1)]
    return np.where(lowest < highest, found, np.nan)


def _regression_quantile(
    design: Matrix, response: Vector, weights: Vector, tau: float
) -> Vector:
    r"""Return the minimiser of :math:`\sum_i w_i \rho_\tau(y_i - x_i^\top\theta)`.

    It comes from the dual linear program, :math:`\max y^\top b` subject to
    :math:`X^\top b = (1 - \tau) X^\top w` and :math:`0 \le b \le w`; the rows with b
    inside its bounds lie on the plane and give theta to rounding.

    Raises
    ------
    ConvergenceError
        If the program is not solved.

    References
    ----------
    Koenker and Bassett (1978), Econometrica 46, 33-50; Koenker (2005), section 6.2.
    """
    used = weights > 0
    X, y, w = design[used], response[used], weights[used]
    columns = np.abs(X).max(axis=0)
    size = float(np.abs(y).max()) or 1.0
    scaled = X / columns
    bounds: Any = np.column_stack([np.zeros(len(w)), w])
    found = optimize.linprog(
        -y / size,
        A_eq=scaled.T,
        b_eq=(1.0 - tau) * (scaled.T @ w),
        bounds=bounds,
        method="highs",
    )
    if found.x is None:
        raise ConvergenceError(
            f"the linear program of the quantile regression was not solved "
            f"({found.message}). Centre and scale the covariates."
        )
    theta = -np.asarray(found.eqlin.marginals) * size / columns
    return _polished(X, y, w, found.x, theta)


def _polished(X: Matrix, y: Vector, w: Vector, b: Vector, theta: Vector) -> Vector:
    """Return theta from the rows on its plane, where they determine it."""
    inside = (b > 1e-9 * w) & (b < (1.0 - 1e-9) * w)
    rows = np.flatnonzero(inside)
    if len(rows) != X.shape[1]:
        return theta
    factor = equilibrated_factor(X[rows])
    if factor.rank < X.shape[1]:
        return theta
    return factor.solve(y[rows])


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class QuantileRegression(LinearPredictor):
    """Estimating equation of a regression quantile. Made by `quantile`."""

    tau: float = 0.5
    density: Density = "powell"
    kernel: Kernel = "epanechnikov"
    bandwidth: str | float = "hall-sheather"
    _found: dict[str, Vector] = field(default_factory=dict, init=False)

    def __repr__(self) -> str:
        shown = ", ".join(self.names[:6]) + (", ..." if len(self.names) > 6 else "")
        return f"QuantileRegression(tau {self.tau:g}; {self.n_units} units; {shown})"

    # ------------------------------------------------------------------- psi, A

    def _on_plane(self, theta: Vector, residual: Vector) -> Any:
        terms = np.abs(self.linear.response)
        terms = terms + np.abs(self.linear.design) @ np.abs(theta)
        return np.abs(residual) <= _ON_THE_PLANE * terms

    def _score_residual(self, theta: Vector) -> tuple[Vector, Any]:
        """Return what multiplies x for a mean nearest to zero, and who is on the plane.

        A unit on the fitted plane may count as below it by any share a in [0, 1], for
        tau - a. With the shares of the linear program the mean of psi is zero exactly
        where theta minimises the check loss.
        """
        residual = self.residual(theta)
        on = self._on_plane(theta, residual) & (self.weights() > 0)
        score: Vector = np.where(residual < 0, self.tau - 1.0, self.tau)
        if on.any():
            rows = self.linear.design * self.weights()[:, None]
            rest = rows[~on].T @ score[~on] + self.tau * rows[on].sum(axis=0)
            scale = np.abs(rows[on]).sum(axis=0)
            scale = np.where(scale > 0, scale, 1.0)
            share = optimize.lsq_linear(
                (rows[on] / scale).T, rest / scale, bounds=(0.0, 1.0), tol=1e-14
            ).x
            score[on] = self.tau - share
        return score, on

    def psi(self, theta: Vector) -> Matrix:
        r"""Return the contributions of the units, (n, p).

        The p units that the fitted plane goes through have the size
        :math:`\sqrt{\tau (1 - \tau)}` that is expected of them, as if it did not, and
        the contributions sum to zero but for these.
        """
        score, on = self._score_residual(theta)
        counts = self.weights() if self._is_frequency else np.ones(len(score))
        if counts[on].sum() <= len(self.names):  # more are ties, and share the rest
            size = np.sqrt(self.tau * (1.0 - self.tau))
            score[on] = np.where(score[on] >= 0, size, -size)
        return self.expanded(self.linear.design * score[:, None])

    def mean_psi(self, theta: Vector) -> Vector:
        """Return the mean of psi nearest to zero of those its jump allows, (p,)."""
        score, on = self._score_residual(theta)
        rows = self.linear.design * self.weights()[:, None]
        total = rows.T @ score
        if on.any():  # what the shares leave is rounding
            terms = np.abs(rows).sum(axis=0)
            total = np.where(np.abs(total) > 1e-12 * terms, total, 0.0)
        return total / self.n_units

    def sensitivity(self, theta: Vector) -> Matrix:
        r"""Return the kernel estimate of A, (p, p).

        .. math:: \hat A = \frac{1}{n h} \sum_i K(e_i / h) x_i x_i^\top

        ("powell"), or the kernel estimate of one density at zero for all units times
        :math:`X^\top X / n` ("common").
        """
        weight = self.weights() * self._density_weights(theta)
        return gram(self.linear.design, weight) / self.n_units

    def _density_weights(self, theta: Vector) -> Vector:
        """Return what multiplies x x' for each row before its weight, (n,)."""
        residual = self.residual(theta)
        width = self.kernel_width(theta)
        values = _kernel_values(self.kernel, residual / width) / width
        if self.density == "common":
            weights = self.weights()
            return np.full(len(values), float(weights @ values / weights.sum()))
        near = int(np.sum((np.abs(residual) <= width) & (self.weights() > 0)))
        if near < _FEWEST * len(self.names):
            raise InferenceError(
                f"{near} units lie within the bandwidth {width:.3g} of the fitted "
                f"plane, too few for the density of {len(self.names)} parameters. Give "
                "a larger `bandwidth`, or use density='common'."
            )
        return values

    def kernel_width(self, theta: Vector) -> float:
        r"""Return the bandwidth in units of the outcome.

        .. math:: \min\{sd(y), IQR(e) / 1.34\}
                  \{\Phi^{-1}(\tau + h) - \Phi^{-1}(\tau - h)\}

        with h the window of probability of Hall and Sheather, or of Bofinger.

        Raises
        ------
        InferenceError
            If the window leaves (0, 1), or half of the residuals are equal.
        """
        if not isinstance(self.bandwidth, str):
            return float(self.bandwidth)
        h = _WIDTHS[self.bandwidth](self.n_units, self.tau)
        if not h < min(self.tau, 1.0 - self.tau):
            raise InferenceError(
                f"tau = {self.tau:g} has too few units beyond it: the {self.bandwidth} "
                f"window of {h:.3g} for n = {self.n_units} leaves (0, 1). Give "
                "`bandwidth` in units of the outcome; of a single quantile, "
                "ScoreInverted() then has the interval of the sign test, which is free "
                "of it."
            )
        e = self.expanded(self.residual(theta)) if self._is_frequency else None
        e = self.residual(theta)[self.weights() > 0] if e is None else e
        y = self.linear.response
        y = self.expanded(y) if self._is_frequency else y[self.weights() > 0]
        spread = min(float(np.std(y)), float(np.subtract(*_quartiles(e))) / 1.34)
        if not spread > 0:
            raise InferenceError(
                "half of the residuals are equal, so the outcome has no density at the "
                "quantile and no normal law holds. Give `bandwidth` to smooth over the "
                "ties, and use ScoreInverted() for the interval."
            )
        return float(
            spread * (special.ndtri(self.tau + h) - special.ndtri(self.tau - h))
        )

    @property
    def _is_frequency(self) -> bool:
        return self.weight_kind is Frequency

    def moments(self, theta: Vector) -> Moments:
        """Return the moments of psi, its mean that of `mean_psi`."""
        psi = self.psi(theta)
        meat = psi.T @ psi / self.n_units
        return Moments(
            self.n_units, self.mean_psi(theta), meat, self.sensitivity(theta)
        )

    # -------------------------------------------------------------- capabilities

    def unit_sensitivity(self, theta: Vector) -> Matrix:
        """Return the share of each unit in the estimate of A, (n, p, p)."""
        x = self.linear.design
        rows = self._density_weights(theta)[:, None, None] * x[:, :, None] * x[:, None]
        return self.expanded(rows)

    def reweighted(self, weights: Vector) -> "QuantileRegression":
        """Return the equation with its units weighted, for refitting bootstraps."""
        return replace(self, linear=self.linear.reweighted(weights))

    def reweighted_roots(
        self,
        weights: Matrix,
        start: Vector,
        errors: Vector,  # noqa: ARG002 - steps are measured in it elsewhere
    ) -> tuple[Matrix, None]:
        """Return quantiles under each row of (R, n) weights, (R, 1).

        NaN for a regression, whose program is solved for one set of weights at a time,
        and where all weight is on one value.
        """
        if not self._is_constant:
            return np.full((len(weights), len(start)), np.nan), None
        rows = np.array([self.linear.reweighted(w).row_weights for w in weights])
        values, level = self._of_constant()
        order = np.argsort(values, kind="stable")
        found = _weighted_quantiles(values[order], rows[:, order], level)
        return found[:, None], None

    # ----------------------------------------------------------------- solving

    @property
    def start(self) -> Vector:
        """The minimiser of the check loss, by linear programming, (p,)."""
        if "root" not in self._found:
            self._found["root"] = self._solution()
        return self._found["root"].copy()

    def _solution(self) -> Vector:
        design, weights = self.linear.design, self.weights()
        if self._is_constant:
            values, level = self._of_constant()
            theta = np.array([weighted_quantile(values, weights, level)])
        else:
            equilibrated_factor(gram(design, weights)).require_full_rank(self.names)
            response = self.linear.response
            theta = _regression_quantile(design, response, weights, self.tau)
        self._refuse_saturated(theta)
        return theta

    @property
    def _is_constant(self) -> bool:
        """Whether the only covariate is a constant, so that values can be sorted."""
        design = self.linear.design
        return bool(design.shape[1] == 1 and np.ptp(design) == 0 and design[0, 0] != 0)

    def _of_constant(self) -> tuple[Vector, float]:
        """Return the values and the level of the quantile that theta is."""
        constant = float(self.linear.design[0, 0])
        level = self.tau if constant > 0 else 1.0 - self.tau
        return self.linear.response / constant, level

    def _refuse_saturated(self, theta: Vector) -> None:
        on = self._on_plane(theta, self.residual(theta))
        if on[self.weights() > 0].all():
            raise InterpolationError(
                f"the fitted plane passes through all {len(on)} outcomes, so that "
                "nothing is left to estimate a variance with. Use fewer covariates or "
                "more rows."
            )

    def newton_terms(self, theta: Vector) -> tuple[Vector, Vector, Matrix]:
        """Return terms whose Newton step leads to the minimiser from anywhere.

        The program is solved rather than iterated. The residual that is reported for
        the root is that of psi itself, in `moments`.
        """
        slope = gram(self.linear.design, self.weights()) / self.n_units
        size = self.tau * (1.0 - self.tau) * np.diag(slope)
        return slope @ (self.start - theta), size, slope

    def check_root(self, root: Root) -> None:
        """Raise where the fit passes through every outcome.

        Raises
        ------
        InterpolationError
            Since every residual is zero.
        """
        self._refuse_saturated(root.theta)


def _quartiles(values: Vector) -> tuple[float, float]:
    upper, lower = np.percentile(values, [75.0, 25.0])
    return float(upper), float(lower)


def quantile(
    formula: Any,
    data: Any = None,
    tau: float = 0.5,
    *,
    density: Density = "powell",
    kernel: Kernel = "epanechnikov",
    bandwidth: Literal["hall-sheather", "bofinger"] | float = "hall-sheather",
    weights: Weights | None = None,
    names: Sequence[str] | None = None,
    na: Literal["raise", "drop"] = "raise",
    unsafe: bool = False,
) -> QuantileRegression:
    r"""Return the estimating equation of a quantile, or of a quantile regression.

    .. math:: \psi_i = x_i \{\tau - 1(y_i \le x_i^\top \theta)\}

    It is solved by linear programming, from any start. Where many values solve the
    equation of a single quantile, their middle is returned.

    Parameters
    ----------
    formula : str, or (n,) array
        A formula ``"y ~ x"``, the name of a column, or values.
    data : DataFrame or mapping, (n, p) array, or None
        The table, the design (no intercept is added), or nothing, for the quantile of
        the values.
    tau : float
        Between 0 and 1.
    density : {"powell", "common"}
        "powell" lets the density at the quantile differ between units, as
        heteroskedastic data need. "common" estimates one density for all, which is the
        "robust" covariance of statsmodels.
    kernel : {"epanechnikov", "uniform", "gaussian"}
    bandwidth : {"hall-sheather", "bofinger"} or float
        A number is in units of the outcome.
    weights, names, na, unsafe
        As for `eestim.glm`.

    Raises
    ------
    ValueError
        If an option is not one of those above.
    DataError
        If the data cannot be used.

    References
    ----------
    Koenker and Bassett (1978), Econometrica 46, 33-50; Powell (1991); Koenker (2005),
    Quantile Regression, section 3.4.

    Examples
    --------
    >>> equation = quantile([1.0, 2.0, 3.0, 4.0, 10.0], tau=0.5)
    >>> equation.start
    array([3.])
    """
    if not 0.0 < tau < 1.0:
        raise ValueError(f"`tau` must lie between 0 and 1; got {tau!r}.")
    if density not in get_args(Density):
        raise ValueError(
            f"`density` must be one of {get_args(Density)}; got {density!r}."
        )
    if kernel not in get_args(Kernel):
        raise ValueError(f"`kernel` must be one of {get_args(Kernel)}; got {kernel!r}.")
    is_known = bandwidth in _WIDTHS if isinstance(bandwidth, str) else bandwidth > 0
    if not is_known:
        raise ValueError(
            f"`bandwidth` must be one of {tuple(_WIDTHS)} or a positive number; got "
            f"{bandwidth!r}."
        )
    linear = linear_predictor_of(
        formula,
        data,
        weights=weights,
        names=names,
        na=na,
        unsafe=unsafe,
        location="quantile",
    )
    return QuantileRegression(linear, float(tau), density, kernel, bandwidth)


def lad(formula: Any, data: Any = None, **options: Any) -> QuantileRegression:
    """Return the estimating equation of least absolute deviations: a median.

    Parameters are those of `quantile`, whose tau is one half.

    Examples
    --------
    >>> lad([1.0, 2.0, 9.0]).start
    array([2.])
    """
    return quantile(formula, data, 0.5, **options)
