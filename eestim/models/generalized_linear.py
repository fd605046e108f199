"""Generalized linear models: psi, its derivative, and what rules ask of them."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import linalg, special

from eestim._arrays import IntVector, Matrix, Vector
from eestim._linalg import equilibrated_factor
from eestim.equations import Working, column_of
from eestim.errors import (
    CapabilityError,
    IdentificationError,
    InferenceError,
    InterpolationError,
)
from eestim.models._blocked import gradient, gram, linear_predictor
from eestim.models._orthonormal import orthonormal_transform
from eestim.models._prediction import Prediction, predicted
from eestim.models._reweighted_roots import glm_roots
from eestim.models._starting import scoring_start, subsample_root, subsampled
from eestim.models.families import Family, Link
from eestim.models.separation import check_separation
from eestim.moments import Moments
from eestim.roots import Root
from eestim.weights import (
    Frequency,
    combined_weights,
    count_units,
    effective_count,
    weighted_rows,
)

__all__ = ["GeneralizedLinear"]

_SUBSAMPLE_FROM = 50_000  # rows above which the start is found on a subsample
_INTERPOLATED = 1e-10  # residual size relative to the response

# The density of an outcome given its mean, up to a constant; squares where there is a
# dispersion to profile out.
_LOG_DENSITY: dict[str, Callable[[Vector, Vector], Any]] = {
    "gaussian": lambda y, mu: (y - mu) ** 2,
    "binomial": lambda y, mu: special.xlogy(y, mu) + special.xlog1py(1.0 - y, -mu),
    "poisson": lambda y, mu: special.xlogy(y, mu) - mu,
}


class _Terms(NamedTuple):
    """What every product of a GLM starts from, before weights; each (n,)."""

    eta: Vector
    mu: Vector
    slope: Vector
    residual: Vector


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class GeneralizedLinear:
    r"""Estimating equation of a generalized linear model.

    .. math:: \psi_i = w_i x_i (y_i - \mu_i) \mu'(\eta_i) / V(\mu_i), \qquad
              \eta_i = x_i^\top \theta + o_i.

    Made by `ols` and `glm`, which document the arguments.
    """

    design: Matrix
    response: Vector
    names: tuple[str, ...]
    family: Family
    link: Link
    offset: Vector | None = None
    row_weights: Vector | None = None
    weight_kind: type | None = None
    specification: Any = None
    data: Any = None
    kept: IntVector | None = None
    index: Any = None
    n_given: int = 0
    _last: dict[bytes, Moments] = field(default_factory=dict, init=False)

    def __repr__(self) -> str:
        shown = ", ".join(self.names[:6]) + (", ..." if len(self.names) > 6 else "")
        return (
            f"GeneralizedLinear({self.family.name}, {self.link.name} link; "
            f"{self.n_units} units; {shown})"
        )

    # ------------------------------------------------------------------ counts

    @property
    def n_units(self) -> int:
        """Number of independent units: rows, or the sum of frequencies."""
        return count_units(len(self.response), self.row_weights, self.weight_kind)

    @property
    def n_effective(self) -> float:
        """Kish's effective n under importance weights, else n."""
        return effective_count(self.n_units, self.row_weights, self.weight_kind)

    @property
    def is_canonical(self) -> bool:
        """Whether observed and expected information agree."""
        return self.link.name == self.family.canonical

    @property
    def has_dispersion(self) -> bool:
        """Whether the family has a dispersion to estimate."""
        return self.family.has_dispersion

    @property
    def is_score(self) -> bool:
        """Whether psi is the score of a likelihood with known dispersion."""
        return not self.has_dispersion and not self.is_sampling_weighted

    @property
    def is_sampling_weighted(self) -> bool:
        """Whether weights stand outside the model."""
        return self.row_weights is not None and self.weight_kind is not Frequency

    @property
    def is_newton_exact(self) -> bool:
        """Whether a Newton step uses the exact derivative (else Fisher scoring)."""
        return self.is_canonical

    # ------------------------------------------------------------------- psi, A

    def _terms(self, theta: Vector) -> "_Terms":
        return self.terms_at(linear_predictor(self.design, theta, self.offset))

    def terms_at(self, eta: Vector) -> "_Terms":
        """Return the terms of psi at linear predictors, (n,) or (R, n)."""
        mu = self.link.inverse(eta)
        if self.is_canonical:  # the slope of the mean is the variance function
            return _Terms(eta, mu, self.family.variance(mu), self.response - mu)
        slope = self.link.slope(eta)
        if self.link.ratio is not None:
            residual = (self.response - mu) * self.link.ratio(eta)
        else:
            residual = (self.response - mu) * slope / self.family.variance(mu)
        return _Terms(eta, mu, slope, residual)

    def _expected_weight(self, terms: "_Terms") -> Vector:
        if self.is_canonical:
            return terms.slope
        if self.link.ratio is not None:
            return terms.slope * self.link.ratio(terms.eta)
        return terms.slope**2 / self.family.variance(terms.mu)

    def observed_weight(self, terms: "_Terms") -> Vector:
        """Return what multiplies x x' in minus the derivative of psi."""
        if self.is_canonical:
            return terms.slope
        if self.link.ratio is not None and self.link.ratio_slope is not None:
            change = self.link.ratio_slope(terms.eta)
            expected = terms.slope * self.link.ratio(terms.eta)
            return expected - (self.response - terms.mu) * change
        variance = self.family.variance(terms.mu)
        change = self.link.curvature(terms.eta) / variance
        change -= terms.slope**2 * self.family.variance_slope(terms.mu) / variance**2
        return terms.slope**2 / variance - (self.response - terms.mu) * change

    def _weighted(self, values: Vector) -> Vector:
        return values if self.row_weights is None else values * self.row_weights

    def psi(self, theta: Vector) -> Matrix:
        """Return the contributions of the units, (n, p)."""
        rows = self.design * self._terms(theta).residual[:, None]
        return self._expanded(rows)

    def _expanded(self, rows: Matrix) -> Matrix:
        """Apply the weights: frequencies repeat a row, others multiply it."""
        return weighted_rows(rows, self.row_weights, self.weight_kind)

    def sensitivity(self, theta: Vector) -> Matrix:
        """Return A, minus the mean derivative of psi (observed), (p, p)."""
        weight = self._weighted(self.observed_weight(self._terms(theta)))
        return gram(self.design, weight) / self.n_units

    def newton_terms(self, theta: Vector) -> tuple[Vector, Vector, Matrix]:
        """Return the mean of psi, its squared size and A, in one pass.

        The squared size is the model's: the dispersion times the diagonal of A.
        """
        terms, n = self._terms(theta), self.n_units
        weight = self._weighted(self._expected_weight(terms))
        residual = self._weighted(terms.residual)
        sensitivity = gram(self.design, weight) / n
        spread = float(residual @ residual / max(float(weight.sum()), 1e-300))
        mean = gradient(self.design, residual) / n
        return mean, spread * np.diag(sensitivity), sensitivity

    def moments(self, theta: Vector) -> Moments:
        """Return the moments of psi, streamed over row blocks."""
        key = theta.tobytes()
        if key not in self._last:  # the solver's check and the rule meet at the root
            self._last.clear()
            self._last[key] = self._moments(theta)
        return self._last[key]

    def _moments(self, theta: Vector) -> Moments:
        terms, n = self._terms(theta), self.n_units
        residual = self._weighted(terms.residual)
        square = residual * (
            terms.residual if self.weight_kind is Frequency else residual
        )
        return Moments(
            n,
            gradient(self.design, residual) / n,
            gram(self.design, square) / n,
            gram(self.design, self._weighted(self.observed_weight(terms))) / n,
        )

    # -------------------------------------------------------------- capabilities

    def working(self, theta: Vector) -> Working:
        """Return the weighted linear form at theta."""
        terms = self._terms(theta)
        weight = self._expected_weight(terms)
        dispersion = 1.0
        if self.has_dispersion:
            pearson = terms.residual**2 / weight
            share = self.row_weights if self.row_weights is not None else 1.0
            dispersion = float(np.sum(share * pearson) / self.n_units)
        design = self.design
        if self.weight_kind is Frequency and self.row_weights is not None:
            design = np.repeat(design, self.row_weights.astype(int), axis=0)
        return Working(
            design,
            self._expanded(weight),
            self._expanded(terms.residual),
            dispersion,
            self._working_variance(terms.mu),
        )

    def _working_variance(self, mu: Vector) -> Vector | None:
        if self.family.name == "gaussian" and not self.is_sampling_weighted:
            return None
        variance = self.family.variance(mu)
        if self.row_weights is None:
            return variance
        if self.weight_kind is Frequency:
            return np.repeat(variance, self.row_weights.astype(int))
        weights = np.where(self.row_weights > 0, self.row_weights, np.inf)
        return variance / weights

    def unit_sensitivity(self, theta: Vector) -> Matrix:
        """Return minus the derivative of each unit's psi, (n, p, p)."""
        weight = self._expanded(self.observed_weight(self._terms(theta)))
        design = self.working(theta).design
        return weight[:, None, None] * design[:, :, None] * design[:, None, :]

    def reweighted(self, weights: Vector) -> "GeneralizedLinear":
        """Return the equation with its units weighted, for refitting bootstraps."""
        combined = combined_weights(weights, self.row_weights, self.weight_kind)
        return replace(self, row_weights=combined, weight_kind=None)

    def reweighted_roots(
        self, weights: Matrix, start: Vector, errors: Vector
    ) -> tuple[Matrix, Matrix]:
        """Return roots under each row of (R, n) weights, NaN where not found, and A."""
        return glm_roots(self, weights, start, errors)

    def log_likelihood(self, theta: Vector) -> float:
        r"""Return the log-likelihood of theta, up to a constant.

        A dispersion is replaced by its maximum likelihood estimate at theta (the
        concentrated likelihood, :math:`-\tfrac{n}{2} \log \sum_i e_i^2`).

        Raises
        ------
        InferenceError
            Under sampling or importance weights, which are not part of a model.
        CapabilityError
            If the family has no likelihood here.
        """
        if self.is_sampling_weighted:
            raise InferenceError(
                "there is no likelihood under sampling or importance weights; use "
                "`score`, `wald` or ScoreInverted(), which take any psi."
            )
        if self.family.name not in _LOG_DENSITY:
            raise CapabilityError(
                f"the {self.family.name} family supplies no likelihood; use `score`, "
                "`wald` or ScoreInverted(), which take any psi."
            )
        mu = self.link.inverse(linear_predictor(self.design, theta, self.offset))
        terms = self._weighted(_LOG_DENSITY[self.family.name](self.response, mu))
        if self.has_dispersion:
            return -0.5 * self.n_units * float(np.log(terms.sum()))
        return float(terms.sum())

    def predict(self, theta: Vector, new_data: Any) -> Prediction:
        """Return the linear predictor and its derivative at new rows.

        Parameters
        ----------
        new_data : DataFrame, mapping of columns, or (m, p) array
            Columns named in the formula, or rows of the design.
        """
        return predicted(self.specification, self.names, self.link, theta, new_data)

    def column(self, name: str) -> Any:
        """Return a column of the data by name, one entry a unit."""
        return self.aligned(column_of(self.data if self.data is not None else {}, name))

    def aligned(self, values: Any) -> Any:
        """Return labels for the rows used, aligned by index where they have one."""
        if isinstance(values, pd.Series) and self.index is not None:
            values = _by_index(values, self.index)
        array = np.asarray(values)
        if self.kept is not None and len(array) == self.n_given:
            array = array[self.kept]
        if self.weight_kind is Frequency and self.row_weights is not None:
            counts = self.row_weights.astype(int)
            if len(array) == len(counts):
                array = np.repeat(array, counts)
        return array

    # ----------------------------------------------------------------- solving

    @property
    def start(self) -> Vector:
        """Where the solver begins: a step of Fisher scoring, or a subsample's root."""
        n = len(self.response)
        if n >= _SUBSAMPLE_FROM:
            return subsample_root(self)
        if self.family.name == "gaussian" and self.link.name == "identity":
            return np.zeros(len(self.names))
        return scoring_start(self)

    def reparameterised(
        self, threshold: float
    ) -> tuple["GeneralizedLinear", Matrix] | None:
        """Return an orthonormal form ``(equation, L)``, or None if it is not needed.

        The design X = Q R is replaced by sqrt(n) Q where the scaled X'X has a
        reciprocal condition below the threshold, and ``theta = L eta``.

        Raises
        ------
        IdentificationError
            If columns are collinear, naming them, or more than the rows.
        """
        n, p = len(self.response), len(self.names)
        if n < p:
            raise IdentificationError(
                f"`design` has {p} columns for {n} rows; at most {n} combinations of "
                "the parameters are identified. Drop columns, or see "
                "ee.asymptotics.regime(equation)."
            )
        part = subsampled(self).design if n >= _SUBSAMPLE_FROM else self.design
        factor = equilibrated_factor(part.T @ part)
        if factor.rank == len(self.names) and factor.rcond >= threshold:
            return None
        size = np.sqrt(np.square(self.design).sum(axis=0))
        size = np.where(size > 0, size, 1.0)
        basis, triangular, order = linalg.qr(
            self.design / size, mode="economic", pivoting=True
        )
        transform = orthonormal_transform(triangular, order, size, n, self.names)
        design = np.ascontiguousarray(basis) * np.sqrt(n)
        return replace(self, design=design), transform

    def check_root(self, root: Root) -> None:
        """Raise where the fit is separated or interpolates.

        Raises
        ------
        SeparationError
            If a linear combination of the covariates predicts the outcome perfectly.
        InterpolationError
            If every residual is zero to rounding.
        """
        used = slice(None) if self.row_weights is None else self.row_weights > 0
        check_separation(
            self.design[used],
            self.response[used],
            None if self.offset is None else self.offset[used],
            self.family.name,
            self.names,
            root,
        )
        model, theta = self, root.theta  # nearly collinear terms would leave rounding
        if root.working is not None:
            model, theta = root.working[:2]
        residual = (self.response - model._terms(theta).mu)[used]
        scale = float(np.abs(self.response[used]).max())
        if float(np.abs(residual).max()) <= _INTERPOLATED * scale:
            raise InterpolationError(
                f"the fit reproduces all {len(residual)} outcomes exactly (largest "
                f"residual {np.abs(residual).max():.1e}), so every sandwich is zero "
                "whatever the noise. Use fewer covariates or more rows; for p near or "
                "above n see ee.asymptotics."
            )


def _by_index(values: "pd.Series[Any]", index: Any) -> Any:
    if values.index.equals(index):
        return values
    if values.index.is_unique and index.isin(values.index).all():
        return values.reindex(index)
    return values
