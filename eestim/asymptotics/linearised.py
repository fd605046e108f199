"""Predictions of a model linearised at its start, with P larger than n."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from eestim._arrays import Matrix, Vector, as_float, check_finite
from eestim.asymptotics.rank import describe_direction, scaled_svd
from eestim.errors import IdentificationError, InterpolationError

__all__ = ["LinearisedPrediction", "linearised_prediction"]

_LEVERAGE_LIMIT = 1e-8


@dataclass(frozen=True, slots=True)
class LinearisedPrediction:
    r"""Functionals of a linearised model: value, standard error, and bias apart.

    Attributes
    ----------
    value : (k,) array
        :math:`\ell(x^*)'y`, the change from the start.
    se : (k,) array
        :math:`(\sum_i \ell_i^2\hat\sigma_i^2)^{1/2}` from left-out residuals: it does
        not contain the bias of shrinkage.
    bias_factor : (k,) array
        :math:`\|(I - \Phi'(K + n\lambda I)^{-1}\Phi)\phi^*\|`: the bias is at most
        this times the norm of the true change of theta.
    bias_estimate : (k,) array
        Plug-in :math:`-\phi^{*\prime}(I - \Phi'(K + n\lambda I)^{-1}\Phi)\hat\delta`.
    df : float
        tr S of the smoother.
    """

    value: Vector
    se: Vector
    bias_factor: Vector
    bias_estimate: Vector
    df: float


def linearised_prediction(
    features: Any, response: Any, new_features: Any, penalty: float
) -> LinearisedPrediction:
    r"""Return predictions of a linearised (lazy) model through the n by n kernel.

    With :math:`f_\theta(x) \approx f_0(x) + \phi(x)'(\theta - \theta_0)` and
    :math:`K = \Phi\Phi'`,

    .. math:: \ell(x^*) = (K + n\lambda I)^{-1}\Phi\phi^*, \quad
       se^2 = \sum_i \ell_i^2\hat\sigma_i^2, \quad
       \hat\sigma_i = \hat e_i/(1 - S_{ii}).

    Parameters
    ----------
    features : (n, P) array
        Gradients phi(x_i) of the model at its start; P may exceed n.
    response : (n,) array
        y minus the prediction at the start.
    new_features : (P,) or (k, P) array
        Gradients at the points of interest.
    penalty : float
        lambda >= 0. At zero the kernel must be regular or the new points estimable,
        and the fit must not interpolate.

    Raises
    ------
    InterpolationError
        If a unit is fitted exactly, so that it has no left-out residual.
    IdentificationError
        If the penalty is zero and a new point is not in the span of the features.

    References
    ----------
    Jacot, Gabriel and Hongler (2018), NeurIPS 31, section 5, for the regime; the
    variance is the jackknife of a linear smoother.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> features = rng.standard_normal((20, 50))
    >>> found = linearised_prediction(features, features[:, 0], features[:2], 0.1)
    >>> found.se.shape, 0 < found.df < 20
    ((2,), True)
    """
    phi = check_finite(as_float(features, "features", ndim=2), "features")
    y = check_finite(as_float(response, "response", ndim=1), "response")
    new = np.atleast_2d(as_float(new_features, "new_features"))
    n, p = phi.shape
    if y.shape != (n,) or new.shape[1] != p or not penalty >= 0:
        raise ValueError(
            f"`features` is {phi.shape}, `response` {y.shape}, `new_features` "
            f"{new.shape}, `penalty` {penalty}; they do not fit."
        )
    if penalty == 0.0:
        _refuse_outside_span(phi, new)
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
    return LinearisedPrediction(
        value=weights @ y,
        se=np.sqrt(weights**2 @ left_out**2),
        bias_factor=np.linalg.norm(missing, axis=1),
        bias_estimate=-missing @ (phi.T @ dual),
        df=float(smoother_diagonal.sum()),
    )


def _refuse_exact(leverage: Vector) -> None:
    worst = int(np.argmax(leverage))
    if leverage[worst] >= 1.0 - _LEVERAGE_LIMIT:
        raise InterpolationError(
            f"`features` fit row {worst} exactly (leverage {leverage[worst]:.10f}), so "
            "its left-out residual does not exist. Use a positive `penalty` or stop "
            "earlier."
        )


def _refuse_outside_span(phi: Matrix, new: Matrix) -> None:
    """Raise if a point needs directions that no unit informs on."""
    svd = scaled_svd(phi)
    rank = int((svd.values > 10 * max(phi.shape) * np.finfo(float).eps).sum())
    kernel = svd.right[:, rank:]
    scaled = new * svd.columns
    outside = scaled @ kernel @ kernel.T
    size = np.linalg.norm(scaled, axis=1)
    share = np.linalg.norm(outside, axis=1) / np.where(size > 0, size, 1.0)
    if (share > 1e-6).any():
        j = int(np.argmax(share))
        names = [f"theta[{i}]" for i in range(phi.shape[1])]
        shown = describe_direction(outside[j] * svd.columns, svd.columns, names)
        raise IdentificationError(
            f"`new_features` row {j} is not estimable without a penalty: "
            f"{share[j]:.2e} of it lies outside the span of the features, along "
            f"{shown[:200]}. Use a "
            "penalty, with its bias stated, or another point."
        )
