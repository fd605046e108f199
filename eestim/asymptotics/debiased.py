"""Degrees-of-freedom adjusted inference for penalised and unpenalised regression."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import linalg, stats

from eestim._arrays import Matrix, Vector, as_float, check_finite
from eestim.asymptotics.adjusted import precision_multipliers
from eestim.asymptotics.spectral import Ridge, spectral_root
from eestim.errors import IdentificationError, InterpolationError

__all__ = [
    "AdjustedCoefficients",
    "debiased_ridge",
    "df_adjusted_sandwich",
    "df_debiased",
]

_ROUNDING = 1e-8  # relative asymmetry of a covariance
_OFF_CENTRE = 6.0  # standard errors of a column mean, for rows of mean zero
_EXACT_FIT = 1e-12  # residual beside the size of fit and residual


@dataclass(frozen=True, slots=True)
class AdjustedCoefficients:
    """Coefficients with standard errors adjusted for degrees of freedom.

    Attributes
    ----------
    estimate, se : (P,) arrays
        Coefficients and their standard errors.
    df : float
        Degrees of freedom of the fit, tr d(fitted)/d(y).
    """

    estimate: Vector
    se: Vector
    df: float

    def interval(self, level: float = 0.95) -> Matrix:
        """Return lower and upper limits, (P, 2)."""
        if not 0 < level < 1:
            raise ValueError(f"`level` is {level}; choose one inside (0, 1).")
        half = stats.norm.ppf(0.5 + level / 2) * self.se
        return np.column_stack([self.estimate - half, self.estimate + half])


def _precision_of(covariance: Any, p: int) -> Matrix:
    matrix = check_finite(as_float(covariance, "covariance", ndim=2), "covariance")
    if matrix.shape != (p, p):
        raise ValueError(f"`covariance` has shape {matrix.shape}; expected ({p}, {p}).")
    spread = np.sqrt(np.abs(np.diag(matrix)))
    if (np.abs(matrix - matrix.T) > _ROUNDING * np.outer(spread, spread)).any():
        raise ValueError("`covariance` is not symmetric; give that of a row of X.")
    try:
        factor = linalg.cho_factor(matrix)
    except linalg.LinAlgError as error:
        raise IdentificationError(
            "`covariance` of the covariates is not positive definite; drop dependent "
            "covariates or give a regularised estimate."
        ) from error
    inverse: Matrix = linalg.cho_solve(factor, np.eye(p))
    return inverse


def df_debiased(
    X: Any, residual: Any, coefficients: Any, df: float, covariance: Any
) -> AdjustedCoefficients:
    r"""Return a convex-penalised estimate with its shrinkage removed.

    .. math:: \hat\beta^d = \hat\beta + \Sigma^{-1}X'\hat e/(n - df), \quad
       se_j = \{(\Sigma^{-1})_{jj}\}^{1/2}\|\hat e\|/(n - df)

    Valid for ridge, lasso, elastic net and group penalties with Gaussian rows of
    covariance Sigma, at every aspect ratio p/n.

    Parameters
    ----------
    X : (n, P) array
        Design with rows of mean zero.
    residual : (n,) array
        y minus the penalised fit.
    coefficients : (P,) array
        The penalised estimate.
    df : float
        tr d(fitted)/d(y): for the lasso the number of non-zero coefficients.
    covariance : (P, P) array
        Sigma, the covariance of a row, known or estimated elsewhere (for instance
        from unlabelled data).

    Raises
    ------
    InterpolationError
        If df >= n - 1, or the residuals vanish: nothing is left to estimate the noise
        from.
    IdentificationError
        If the covariance is not positive definite.
    ValueError
        If shapes do not fit, the covariance is not symmetric, or a column of X has a
        mean six standard errors from zero (as a column of ones has).
    DataError
        If an array is not finite.

    References
    ----------
    Bellec and Zhang (2023), Debiasing convex regularized estimators and interval
    estimation in linear models, Annals of Statistics 51, 391-436.

    Examples
    --------
    Without a penalty there is nothing to remove:

    >>> X = np.array([[1.0], [-1.0], [2.0], [-2.0]])
    >>> y = np.array([1.0, 0.0, 1.0, -2.0])
    >>> b = np.linalg.lstsq(X, y, rcond=None)[0]
    >>> bool(abs(df_debiased(X, y - X @ b, b, 1.0, [[1.0]]).estimate - b)[0] < 1e-12)
    True
    """
    design = check_finite(as_float(X, "X", ndim=2), "X")
    e = check_finite(as_float(residual, "residual", ndim=1), "residual")
    beta = as_float(coefficients, "coefficients", ndim=1)
    check_finite(beta, "coefficients")
    n, p = design.shape
    if e.shape != (n,) or beta.shape != (p,):
        raise ValueError(
            f"`X` is {design.shape}, `residual` {e.shape}, `coefficients` "
            f"{beta.shape}; they do not fit."
        )
    if not 0 <= df < n - 1:
        raise InterpolationError(
            f"`df` is {df:.6g} for {n} rows: the fit leaves no residual degrees of "
            "freedom. Increase the penalty, or stop earlier."
        )
    precision = _precision_of(covariance, p)
    _check_centred(design, np.diag(as_float(covariance, "covariance", ndim=2)))
    size = float(np.linalg.norm(design @ beta)) + float(np.linalg.norm(e))
    if not float(np.linalg.norm(e)) > _EXACT_FIT * size:
        raise InterpolationError(
            "`residual` vanishes: the fit interpolates, and its standard errors would "
            "be zero. Increase the penalty, or stop earlier."
        )
    scale = float(np.linalg.norm(e)) / (n - df)
    return AdjustedCoefficients(
        estimate=beta + precision @ (design.T @ e) / (n - df),
        se=np.sqrt(np.diag(precision)) * scale,
        df=float(df),
    )


def _check_centred(design: Matrix, variance: Vector) -> None:
    """Raise if a column mean is not that of rows of mean zero."""
    off = np.abs(design.mean(axis=0)) * np.sqrt(len(design) / variance)
    worst = int(np.argmax(off))
    if off[worst] > _OFF_CENTRE:
        raise ValueError(
            f"`X` column {worst} has a mean {off[worst]:.1f} standard errors off zero; "
            "the formula is for rows of mean zero. Centre columns and response, and "
            "leave the intercept out."
        )


def debiased_ridge(
    X: Any, y: Any, penalty: float, covariance: Any
) -> AdjustedCoefficients:
    r"""Return ridge regression with its shrinkage removed, at every p/n.

    Parameters
    ----------
    X : (n, P) array
        Design with rows of mean zero.
    y : (n,) array
        Response.
    penalty : float
        :math:`\lambda` of :math:`(X'X + n\lambda I)^{-1}X'y`.
    covariance : (P, P) array
        Covariance of a row of X; see `df_debiased`.

    Raises
    ------
    ValueError
        If the penalty is not positive or the shapes do not fit.

    References
    ----------
    Bellec and Zhang (2023), Annals of Statistics 51, 391-436.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((100, 200))
    >>> y = X[:, 0] + rng.standard_normal(100)
    >>> fit = debiased_ridge(X, y, penalty=0.4, covariance=np.eye(200))
    >>> bool(abs(fit.estimate[0] - 1) < 4 * fit.se[0]), round(fit.df, 1) < 100
    (True, True)
    """
    root = spectral_root(X, y, Ridge(penalty))
    residual = as_float(y, "y", ndim=1) - root.fitted
    return df_debiased(X, residual, root.theta, root.df, covariance)


def df_adjusted_sandwich(
    X: Any, psi: Any, psi_derivative: Any, *, precision_diagonal: Any = None
) -> Vector:
    r"""Return standard errors of an M-estimate of regression with p of the order of n.

    .. math:: se_j = \omega_j\|\hat\psi\|/\mathrm{tr}V, \quad
       V = D - DX(X'DX)^{-1}X'D, \quad \omega_j^2 \approx (n-p)\{(X'X)^{-1}\}_{jj}

    with :math:`D = \mathrm{diag}\,\psi'(\hat e)`. For least squares this is exactly
    the classical :math:`s^2(X'X)^{-1}`. Errors are taken independent of X.

    Parameters
    ----------
    X : (n, p) array
        Design, p < n.
    psi : (n,) array
        :math:`\psi(\hat e_i)`, the influence function at the residuals.
    psi_derivative : (n,) array
        :math:`\psi'(\hat e_i) \ge 0`.
    precision_diagonal : (p,) array, optional
        Diagonal of the inverse covariance of a row of X, if known.

    Returns
    -------
    (p,) array
        Standard errors.

    Raises
    ------
    IdentificationError
        If the rows where psi is not flat do not span all coefficients.
    InterpolationError
        If psi vanishes at every row.
    ValueError
        If shapes do not fit, psi_derivative is negative somewhere, or the precisions
        are not positive.
    DataError
        If an array is not finite.

    References
    ----------
    Bellec (2022), arXiv:2204.06990, and Bellec and Shen (2022), COLT, PMLR 178,
    1912-1947, with the classical case in El Karoui et al. (2013), PNAS 110.

    Examples
    --------
    >>> X = np.column_stack([np.ones(4), [0.0, 1.0, 2.0, 3.0]])
    >>> y = np.array([0.0, 1.0, 1.0, 3.0])
    >>> e = y - X @ np.linalg.lstsq(X, y, rcond=None)[0]
    >>> classical = np.sqrt(np.diag(np.linalg.inv(X.T @ X)) * (e @ e) / 2)
    >>> bool(np.allclose(df_adjusted_sandwich(X, e, np.ones(4)), classical, rtol=1e-12))
    True
    """
    design = check_finite(as_float(X, "X", ndim=2), "X")
    values = check_finite(as_float(psi, "psi", ndim=1), "psi")
    slopes = check_finite(as_float(psi_derivative, "psi_derivative", ndim=1), "D")
    n, p = design.shape
    if values.shape != (n,) or slopes.shape != (n,) or (slopes < 0).any():
        raise ValueError(
            f"`psi` is {values.shape} and `psi_derivative` {slopes.shape}; give {n} "
            "values each, the derivative >= 0 (a convex loss)."
        )
    if precision_diagonal is None:
        omega = precision_multipliers(design)
    else:
        known = as_float(precision_diagonal, "precision_diagonal", ndim=1)
        check_finite(known, "precision_diagonal")
        if known.shape != (p,) or not (known > 0).all():
            raise ValueError(
                f"`precision_diagonal` has shape {known.shape}; give {p} numbers > 0."
            )
        omega = np.sqrt(known)
    trace = float(slopes.sum() - _captured(design, slopes))
    size = float(np.linalg.norm(values))
    if not (trace > 1e-10 * max(slopes.sum(), 1e-300) and size > 0):
        raise InterpolationError(
            f"`psi` leaves no residual degrees of freedom (tr V = {trace:.3g} with "
            f"n = {n}, p = {p}). Use fewer covariates or a penalty with `df_debiased`."
        )
    return omega * size / trace


def _captured(design: Matrix, slopes: Vector) -> float:
    """Return tr D X (X'DX)^-1 X'D."""
    weighted = np.sqrt(slopes)[:, None] * design
    norms = np.linalg.norm(weighted, axis=0)  # the rank must not depend on units
    q, r, _ = linalg.qr(
        weighted / np.where(norms > 0, norms, 1.0), mode="economic", pivoting=True
    )
    size = np.abs(np.diag(r))
    if len(size) < design.shape[1] or size[-1] <= 1e-12 * size[0]:
        raise IdentificationError(
            f"`psi_derivative` is positive in {int((slopes > 0).sum())} rows, which do "
            f"not identify {design.shape[1]} coefficients. Use a less flat psi, such "
            "as a larger Huber threshold."
        )
    return float(slopes @ np.sum(q**2, axis=1))
