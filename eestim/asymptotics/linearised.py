"""Predictions of a model linearised at its start, with P larger than n."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import stats

from eestim._arrays import Matrix, Vector, as_float, check_finite
from eestim.asymptotics.rank import describe_direction
from eestim.errors import IdentificationError, InferenceError, InterpolationError

__all__ = ["LinearisedPrediction", "linearised_prediction"]

_LEVERAGE_LIMIT = 1e-8
_OUTSIDE = 1e-6  # share of a gradient outside the span that rounding explains
_UNBIASED = 1e-6  # share of a gradient that shrinkage takes without being told of
_FAR = 30.0  # bias over noise from where on the far tail has no mass
_SHOWN = 200  # characters of a direction in a message

PredictionStatus = Literal["estimable", "shrunk", "non_estimable"]


@dataclass(frozen=True, slots=True)
class LinearisedPrediction:
    r"""Functionals of a linearised model: value, noise, and bias apart.

    Attributes
    ----------
    value : (k,) array
        :math:`\ell(x^*)'y`, the change from the start.
    se : (k,) array
        :math:`(\sum_i \ell_i^2\hat\sigma_i^2)^{1/2}` from left-out residuals, without
        the bias of shrinkage; NaN where the gradient leaves the span of the features,
        of whose part outside no response ever tells anything.
    noise : (k,) array
        The same for every row: the standard deviation of `value` over responses. Of a
        row that is not estimable it says how stable the value is, not how far from
        its target.
    bias_factor : (k,) array
        :math:`\|(I - \Phi'(K + n\lambda I)^{-1}\Phi)\phi^*\|`: the bias is at most
        this times the norm of the true change of theta.
    bias_estimate : (k,) array
        Plug-in :math:`-\phi^{*\prime}(I - \Phi'(K + n\lambda I)^{-1}\Phi)\hat\delta`;
        it knows nothing of the part outside the span.
    outside : (k,) array
        :math:`\|(I - \Phi^+\Phi)\phi^*\| / \|\phi^*\|`, the share of the gradient
        outside the span of the features, from 0 to 1, in the units of theta.
    status : tuple of {"estimable", "shrunk", "non_estimable"}
        Of each row: no bias, a bias of the penalty only, or outside the span (decided
        after scaling, so that it does not depend on units).
    directions : tuple of str
        The part outside the span in words, empty for rows inside.
    df : float
        tr S of the smoother.
    """

    value: Vector
    se: Vector
    noise: Vector
    bias_factor: Vector
    bias_estimate: Vector
    outside: Vector
    status: tuple[PredictionStatus, ...]
    directions: tuple[str, ...]
    df: float

    def interval(self, level: float = 0.95, *, norm: float | None = None) -> Matrix:
        r"""Return lower and upper limits for the target :math:`\phi^{*\prime}\delta`.

        .. math:: \ell'y \pm cv(b/s)\,s, \quad
           P(|N(b/s, 1)| \le cv) = \text{level}

        with s the `noise` and b = `bias_factor` times `norm`, the largest bias. Without
        `norm` only unbiased rows have an interval, and it is the usual one.

        Parameters
        ----------
        level : float
            Coverage, inside (0, 1).
        norm : float, optional
            Bound on the Euclidean norm of the true change of theta, from knowledge;
            no data can give it for the part outside the span.

        Returns
        -------
        (k, 2) array

        Raises
        ------
        IdentificationError
            If `norm` is missing and a row is outside the span of the features.
        InferenceError
            If `norm` is missing and the penalty biases a row.
        ValueError
            If the level or the norm is out of range.

        References
        ----------
        Armstrong and Kolesar (2018), Econometrica 86, 655-683, section 2.

        Examples
        --------
        >>> found = linearised_prediction(np.ones((4, 1)), [1.0, 2, 3, 4], [[1.0]], 0.0)
        >>> found.interval().round(3)
        array([[1.039, 3.961]])
        """
        if not 0 < level < 1:
            raise ValueError(f"`level` is {level}; choose one inside (0, 1).")
        if norm is None:
            self._refuse_biased()
            bias = np.zeros_like(self.noise)
        elif not (np.isfinite(norm) and norm >= 0):
            raise ValueError(f"`norm` is {norm}; give a finite bound >= 0.")
        else:
            bias = self.bias_factor * norm
        half = _half_width(bias, self.noise, level)
        return np.column_stack([self.value - half, self.value + half])

    def _refuse_biased(self) -> None:
        for j, status in enumerate(self.status):
            if status == "non_estimable":
                raise IdentificationError(
                    f"`new_features` row {j} is not estimable: {self.outside[j]:.2e} "
                    "of it lies outside the span of the features, along "
                    f"{self.directions[j]}, of which no response tells anything, so "
                    "value +- 1.96 se is no interval for it. Give `norm`, a bound on "
                    "the true change of theta, or report a point inside the span."
                )
            if status == "shrunk":
                raise InferenceError(
                    f"`new_features` row {j} is biased by the penalty, by up to "
                    f"{self.bias_factor[j]:.3g} times the norm of the true change of "
                    "theta, which its standard error does not contain. Give `norm`, a "
                    "bound on it, or a penalty of zero where the fit allows it."
                )


def _half_width(bias: Vector, noise: Vector, level: float) -> Vector:
    """Return cv(bias / noise) noise, the half width that bears the largest bias.

    >>> _half_width(np.array([0.0, 5.0]), np.array([1.0, 0.0]), 0.95).round(3)
    array([1.96, 5.  ])
    """
    ratio = bias / np.where(noise > 0, noise, 1.0)
    near = np.sqrt(stats.ncx2.ppf(level, 1, np.minimum(ratio, _FAR) ** 2))
    critical = np.where(ratio < _FAR, near, ratio + stats.norm.ppf(level))
    half: Vector = np.where(noise > 0, critical * noise, bias)
    return half


def linearised_prediction(
    features: Any, response: Any, new_features: Any, penalty: float
) -> LinearisedPrediction:
    r"""Return predictions of a linearised (lazy) model through the n by n kernel.

    With :math:`f_\theta(x) \approx f_0(x) + \phi(x)'(\theta - \theta_0)` and
    :math:`K = \Phi\Phi'`,

    .. math:: \ell(x^*) = (K + n\lambda I)^{-1}\Phi\phi^*, \quad
       se^2 = \sum_i \ell_i^2\hat\sigma_i^2, \quad
       \hat\sigma_i = \hat e_i/(1 - S_{ii}).

    A prediction is estimable where its gradient lies in the span of the features of
    the units. Outside it, as nearly every new point is when P > n, a penalty still
    gives a value, with a noise that is small for want of information: such rows have
    the status "non_estimable", a standard error of NaN, and an interval only for a
    given bound on the true change of theta (`LinearisedPrediction.interval`).

    Parameters
    ----------
    features : (n, P) array
        Gradients phi(x_i) of the model at its start; P may exceed n.
    response : (n,) array
        y minus the prediction at the start.
    new_features : (P,) or (k, P) array
        Gradients at the points of interest.
    penalty : float
        lambda >= 0. At zero the new points must be estimable, and the fit must not
        interpolate.

    Raises
    ------
    InterpolationError
        If a unit is fitted exactly, so that it has no left-out residual.
    IdentificationError
        If the penalty is zero and a new point is not in the span of the features.
    DataError
        If an array is not numeric or not finite.
    ValueError
        If shapes do not fit, or the penalty is negative or not finite.

    References
    ----------
    Jacot, Gabriel and Hongler (2018), NeurIPS 31, section 5, for the regime; the
    variance is the jackknife of a linear smoother.

    Examples
    --------
    Twenty units inform on their own predictions, not on the fiftieth coordinate:

    >>> rng = np.random.default_rng(0)
    >>> features = rng.standard_normal((20, 50))
    >>> new = np.vstack([features[0], np.eye(50)[49]])
    >>> found = linearised_prediction(features, features[:, 0], new, 0.1)
    >>> found.status, np.isnan(found.se).tolist(), 0 < found.df < 20
    (('shrunk', 'non_estimable'), [False, True], True)
    """
    phi = check_finite(as_float(features, "features", ndim=2), "features")
    y = check_finite(as_float(response, "response", ndim=1), "response")
    new = np.atleast_2d(as_float(new_features, "new_features"))
    check_finite(new, "new_features")
    n, p = phi.shape
    fits = y.shape == (n,) and new.ndim == 2 and new.shape[1] == p
    if not (fits and n > 0 and p > 0 and np.isfinite(penalty) and penalty >= 0):
        raise ValueError(
            f"`features` is {phi.shape}, `response` {y.shape}, `new_features` "
            f"{new.shape}, `penalty` {penalty}; they do not fit: give n >= 1 rows, one "
            "response each, new rows of P entries, and a finite penalty >= 0."
        )
    is_outside, outside, directions = _outside_span(phi, new)
    if penalty == 0.0 and is_outside.any():
        j = int(np.argmax(is_outside))
        raise IdentificationError(
            f"`new_features` row {j} is not estimable without a penalty: "
            f"{outside[j]:.2e} of it lies outside the span of the features, along "
            f"{directions[j]}. Use a penalty, with its bias stated, or another point."
        )
    values, vectors = np.linalg.eigh(phi @ phi.T)
    values = np.clip(values, 0.0, None)
    kept = values > 10 * n * np.finfo(float).eps * values[-1]
    inverse = np.where(kept, 1.0 / np.where(kept, values + n * penalty, 1.0), 0.0)
    solve = (vectors * inverse) @ vectors.T
    smoother_diagonal = np.sum(vectors**2 * (inverse * values), axis=1)
    _refuse_exact(smoother_diagonal)
    dual = solve @ y
    residual = y - vectors @ (inverse * values * (vectors.T @ y))
    weights = new @ phi.T @ solve
    missing = new - weights @ phi
    left_out = residual / (1.0 - smoother_diagonal)
    noise = np.sqrt(weights**2 @ left_out**2)
    bias_factor = np.linalg.norm(missing, axis=1)
    is_shrunk = bias_factor > _UNBIASED * np.linalg.norm(new, axis=1)
    return LinearisedPrediction(
        value=weights @ y,
        se=np.where(is_outside, np.nan, noise),
        noise=noise,
        bias_factor=bias_factor,
        bias_estimate=-missing @ (phi.T @ dual),
        outside=outside,
        status=tuple(map(_status, is_outside, is_shrunk)),
        directions=directions,
        df=float(smoother_diagonal.sum()),
    )


def _status(is_outside: bool, is_shrunk: bool) -> PredictionStatus:
    if is_outside:
        return "non_estimable"
    return "shrunk" if is_shrunk else "estimable"


def _refuse_exact(leverage: Vector) -> None:
    worst = int(np.argmax(leverage))
    if leverage[worst] >= 1.0 - _LEVERAGE_LIMIT:
        raise InterpolationError(
            f"`features` fit row {worst} exactly (leverage {leverage[worst]:.10f}), so "
            "its left-out residual does not exist. Use a positive `penalty` or stop "
            "earlier."
        )


def _outside_span(
    phi: Matrix, new: Matrix
) -> tuple[np.ndarray[Any, np.dtype[np.bool_]], Vector, tuple[str, ...]]:
    """Return whether rows leave the span of the features, their share, and where.

    Columns, then rows, are given one norm before the rank is decided. Nothing of size
    P by P is formed.
    """
    columns = 1.0 / _norm_or_one(phi, axis=0)
    scaled = phi * columns
    scaled = scaled / _norm_or_one(scaled, axis=1)[:, None]
    _, values, right = np.linalg.svd(scaled, full_matrices=False)
    kept = values > 10 * max(phi.shape) * np.finfo(float).eps * values[0]
    span = right[kept]
    gradient = new * columns
    part = gradient - (gradient @ span.T) @ span
    share = np.linalg.norm(part, axis=1) / _norm_or_one(gradient, axis=1)
    is_outside = share > _OUTSIDE
    basis = np.linalg.qr((span / columns).T)[0]
    raw = new - (new @ basis) @ basis.T
    raw_share = np.linalg.norm(raw, axis=1) / _norm_or_one(new, axis=1)
    names = [f"theta[{j}]" for j in range(phi.shape[1])] if is_outside.any() else []
    words = tuple(
        describe_direction(part[j] * columns, columns, names)[:_SHOWN] if out else ""
        for j, out in enumerate(is_outside)
    )
    return is_outside, np.where(is_outside, raw_share, 0.0), words


def _norm_or_one(matrix: Matrix, axis: int) -> Vector:
    norms = np.linalg.norm(matrix, axis=axis)
    return np.where(norms > 0, norms, 1.0)
