"""Does the model fit: unbiasedness, variance ratio, over-identification."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import stats

from eestim._arrays import Matrix, Vector
from eestim._linalg import symmetric_power
from eestim.asymptotics.rank import rank_report
from eestim.covariance.base import sensitivity_factor
from eestim.covariance.hc import HC
from eestim.covariance.model_based import ModelBased
from eestim.diagnostics._families import family_moments, simulated_response
from eestim.diagnostics._verdicts import LEVEL, chi2_finding, not_applicable, solved
from eestim.equations import EstimatingEquation
from eestim.errors import CapabilityError, DataError, InferenceError
from eestim.findings import Finding

__all__ = [
    "over_identification",
    "over_identification_at",
    "over_identification_check",
    "unbiasedness",
    "unbiasedness_check",
    "variance_ratio",
]

_RATIO = (0.8, 1.25)  # of variances, warned outside
_ROWS_PER_EQUATION = 50  # simulated units, so that chi-squared is the law
_BIASED = (
    "The equations are biased at the truth: look for draws shared between a residual "
    "and its instrument, or a log of an average."
)


def unbiasedness(psi: Matrix, level: float = LEVEL) -> Finding:
    r"""Test that psi has mean zero at the true parameters of simulated data.

    .. math:: T = N \bar\psi^\top \hat C^+ \bar\psi \sim \chi^2_{\mathrm{rank}\,\hat C}

    The rank counts, not the number of columns: contributions of redundant
    parametrisations (softmax) are linearly dependent.

    Parameters
    ----------
    psi : (N, q) array
        Contributions of N simulated units at the parameters that simulated them.
    level : float

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> unbiasedness(rng.normal(size=(500, 2))).status
    'pass'
    >>> unbiasedness(rng.normal(0.3, 1.0, size=(500, 2))).status
    'fail'
    """
    n, mean = len(psi), psi.mean(axis=0)
    centred = psi - mean
    spread = centred.std(axis=0)
    rounding = 1e-12 * np.abs(psi).mean(axis=0)
    scale = np.where(spread > rounding, spread, 1.0)
    half, rank = symmetric_power(
        (centred / scale).T @ (centred / scale) / n, -0.5, rcond=1e-10
    )
    constant = (spread <= rounding) & (mean != 0)
    if constant.any():  # a mean without noise: no chance explains it
        return Finding(
            "unbiasedness",
            "fail",
            np.inf,
            0.0,
            f"Equation {int(np.argmax(constant))} is constant and not zero.",
            _BIASED,
        )
    root = half @ (mean / scale)
    return chi2_finding(
        "unbiasedness",
        float(n * root @ root),
        rank,
        level=level,
        says=f"Mean of psi over {n} simulated units against zero",
        advice=_BIASED,
        assumptions="As good as the simulator; many more units than equations.",
    )


def unbiasedness_check(
    fit: Any,
    rng: np.random.Generator,
    simulate: Callable[[Vector, np.random.Generator], Matrix] | None = None,
    level: float = LEVEL,
) -> Finding:
    """Test psi on data simulated at the estimate, which is the truth there.

    Parameters
    ----------
    simulate : callable, optional
        ``simulate(theta, rng) -> (N, q)``: contributions, at theta, of units drawn
        with theta as the truth. By default outcomes of the family of a linear or
        generalized linear model, given its design.
    """
    if simulate is not None:
        return unbiasedness(np.asarray(simulate(fit.theta, rng), float), level)
    equation = fit.equation
    draw = simulated_response(equation, fit.theta)
    if draw is None:
        return not_applicable(
            "unbiasedness",
            "Needs data simulated at the estimate: pass `simulate`, or fit an "
            "unweighted linear, logistic or Poisson model.",
        )
    needed = _ROWS_PER_EQUATION * len(fit.names)
    parts = [
        replace(equation, response=draw(rng)).psi(fit.theta)
        for _ in range(max(1, -(-needed // fit.n_units)))
    ]
    return unbiasedness(np.concatenate(parts), level)


# ------------------------------------------------------------------ variance ratio


def variance_ratio(estimate: Any, level: float = LEVEL) -> Finding:
    r"""Compare sandwich variances with those of the model, parameter by parameter.

    :math:`R_j = V_j / V_j^{model}`, neither with a finite-sample factor. Warned where
    a ratio is outside 0.8 to 1.25 and, for models whose moments are known (unweighted
    linear, binary logit, Poisson), its difference from one is more than chance
    explains: with :math:`a_{ij} = (H^{-1} x_i)_j^2` and residuals :math:`e_i` of
    variance :math:`v_i`, :math:`\sum_i a_{ij} (e_i^2 - v_i)` over its standard error,
    what estimating the parameters contributes taken out (Bonferroni over parameters).
    """
    try:
        model = estimate.with_covariance(ModelBased(df_adjust=False))
        robust = estimate.with_covariance(HC(0))
    except (CapabilityError, InferenceError) as error:
        return not_applicable("variance ratio", str(error))
    ratio = ((robust.se / model.se) ** 2).to_numpy()
    worst = int(np.argmax(np.abs(np.log(ratio))))
    low, high = _RATIO
    z = _excess(estimate)
    p = np.nan
    if z is not None:
        p = float(min(1.0, len(ratio) * 2.0 * stats.norm.sf(np.abs(z).max())))
    warned = not low <= ratio[worst] <= high and not p >= level
    return Finding(
        "variance ratio",
        "warn" if warned else "pass",
        float(ratio[worst]),
        high if ratio[worst] > 1 else low,
        f"The sandwich variance of {estimate.names[worst]} is {ratio[worst]:.2f} times "
        "that of the model"
        + (f" (p = {p:.3g} for equality)." if z is not None else "."),
        "Report the sandwich; the model's variance function does not fit."
        if warned
        else "",
        "psi is the score of the model; sandwiches are too small in small samples.",
        p=p,
    )


def _excess(estimate: Any) -> Vector | None:
    """Return the z statistic of each variance against the model's, (p,), or None."""
    equation, theta, turn = solved(estimate)
    moments = family_moments(equation, theta, linear=True)
    if moments is None:
        return None
    residual, second, third, fourth = moments
    X = equation.design
    factor = sensitivity_factor((X.T * second) @ X, estimate.names)
    squares = (factor.solve(X.T).T @ turn.T) ** 2
    if equation.has_dispersion:  # estimated: only variation of the weights counts
        squares = squares - squares.mean(axis=0)
    cross = (X.T * third) @ squares
    spread = squares.T**2 @ (fourth - second**2)
    spread = spread - np.einsum("jk,jk->k", cross, factor.solve(cross))
    total = squares.T @ (residual**2 - second)
    # A saturated model has neither: its residuals are functions of the scores.
    known = spread > 1e-9 * (squares.T**2 @ fourth)
    z: Vector = np.where(known, total / np.sqrt(np.where(known, spread, 1.0)), 0.0)
    return z


# -------------------------------------------------------------- over-identification


def over_identification(
    moments: Matrix,
    slope: Matrix,
    weight: Matrix | None = None,
    level: float = LEVEL,
    derivative_error: float = 0.0,
) -> Finding:
    r"""Test q moment conditions beyond those that the parameters use up.

    .. math:: J = n \| (I - P) \Omega^{-1/2} \bar g \|^2 \sim
              \chi^2_{\mathrm{rank}\,\Omega - r}, \qquad r = \mathrm{rank}\, A,

    with P the projection on the range of :math:`\Omega^{-1/2} A`. At the efficient
    estimate this is Hansen's J; at any other root-n consistent one it has the same
    law, since P takes out the first-order effect of the parameters.

    Parameters
    ----------
    moments : (n, q) array
        Moment contributions at an estimate.
    slope : (q, p) array
        Their mean derivative, of either sign; its rank, not p, is subtracted.
    weight : (q, q) array, optional
        The inverse of the covariance used in the efficient step; that of `moments`
        by default.
    derivative_error : float
        Relative error of ``slope``, below which its singular values count as zero.

    References
    ----------
    Hansen (1982), Econometrica 50, 1029-1054; Newey (1985), J. Econometrics 29,
    229-256, for estimates that are not efficient.
    """
    n, mean = len(moments), moments.mean(axis=0)
    scale = np.sqrt((moments**2).mean(axis=0))
    scale = np.where(scale > 0, scale, 1.0)
    if weight is None:
        scaled = moments / scale
        half, rank_moments = symmetric_power(scaled.T @ scaled / n, -0.5)
    else:
        half, rank_moments = symmetric_power(weight * np.outer(scale, scale), 0.5)
    name = "over-identification"
    report = rank_report(slope, derivative_error=derivative_error)
    rank = report.rank
    excess = rank_moments - rank
    if report.is_ambiguous:
        return not_applicable(
            name,
            "The rank of A has no clear gap, so J has no degrees of freedom; look at "
            "ee.asymptotics.rank_report.",
        )
    if excess <= 0:
        return not_applicable(
            name, "There are as many equations as identified parameters."
        )
    basis = np.linalg.svd(half @ (slope / scale[:, None]), full_matrices=False)[0]
    standard = half @ (mean / scale)
    left = standard - basis[:, :rank] @ (basis[:, :rank].T @ standard)
    return chi2_finding(
        name,
        float(n * left @ left),
        excess,
        level=level,
        says=f"J of {moments.shape[1]} equations for {rank} identified parameters",
        advice="The moment conditions contradict each other; drop the doubtful ones.",
        assumptions="Independent units; strong identification and few moments beside "
        "n: oversized with weak instruments, undersized with many moments.",
    )


def over_identification_at(
    equation: EstimatingEquation, theta: Any, level: float = LEVEL
) -> Finding:
    """Test the equations of an over-identified system at a consistent root.

    Parameters
    ----------
    equation : EstimatingEquation
        With more equations than parameters: ``ee.equation`` of a psi with q > p.
    theta : (p,) array
        A root-n consistent estimate, as two-stage least squares or GMM gives it.

    Examples
    --------
    Three values with one mean, of which the third disagrees:

    >>> import eestim as ee
    >>> rng = np.random.default_rng(0)
    >>> x = {"x": rng.normal([1.0, 1.0, 2.0], size=(100, 3))}
    >>> eq = ee.equation(lambda t, d: d["x"] - t[0], x, [0.0])
    >>> over_identification_at(eq, [1.0]).status
    'fail'
    """
    at = np.asarray(theta, dtype=np.float64)
    return over_identification(
        equation.psi(at),
        equation.sensitivity(at),
        level=level,
        derivative_error=float(getattr(equation, "derivative_error", 0.0)),
    )


def over_identification_check(
    fit: Any, moments: EstimatingEquation, level: float = LEVEL
) -> Finding:
    """Test the equations of which a fit solves a combination, one for each parameter.

    Parameters
    ----------
    fit : Estimate
        Of a combination of the moments, as two-stage least squares or GMM make it.
    moments : EstimatingEquation
        All of them, with q > p, in the same parameters. Where the fit has clustered
        standard errors, made with ``units=`` those clusters.

    Raises
    ------
    DataError
        If the moments have other parameters than the fit.
    """
    if len(moments.names) != len(fit.theta):
        raise DataError(
            f"`moments` has {len(moments.names)} parameters and the fit "
            f"{len(fit.theta)}; they must be the same."
        )
    clusters = fit.spread.n_clusters
    if len(clusters) > 1:
        return not_applicable(
            "over-identification", "J is for clusters in one way, the fit has several."
        )
    if clusters and moments.n_units != clusters[0]:
        return not_applicable(
            "over-identification",
            f"The fit has {clusters[0]} clusters and `moments` {moments.n_units} "
            "independent units: give `moments` its clusters as `units=`.",
        )
    return over_identification_at(moments, fit.theta, level)
