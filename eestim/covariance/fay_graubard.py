"""Bias-corrected sandwich and degrees of freedom of Fay and Graubard for any psi."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from eestim._arrays import Matrix, Vector
from eestim._linalg import Factor
from eestim.covariance._refits import group_scores, group_slopes, groups_of
from eestim.covariance.base import Covariance, sensitivity_factor
from eestim.covariance.jackknife import leave_out_newton
from eestim.equations import EstimatingEquation, require
from eestim.errors import InferenceError
from eestim.findings import Finding
from eestim.roots import Root

__all__ = ["FayGraubard", "FayGraubardDof", "bias_factors", "quadratic_form_dof"]


def bias_factors(slopes: Matrix, factor: Factor, bound: float) -> Matrix:
    r"""Return the factor of each entry of psi, (G, p).

    .. math:: h_{ij} = [1 - \min\{b, (A_i A^{-1})_{jj}\}]^{-1/2}, \qquad
        A = \sum_i A_i .

    Parameters
    ----------
    slopes : (G, p, p) array
        Minus the derivative of psi of each unit or group, A_i.
    factor : Factor
        Of their sum A.
    bound : float
        b, so that no entry grows by more than :math:`(1 - b)^{-1/2}`.

    References
    ----------
    Fay and Graubard (2001), Biometrics 57, 1198-1206, section 2.2.

    Examples
    --------
    >>> from eestim._linalg import equilibrated_factor
    >>> factor = equilibrated_factor(2 * np.eye(1))
    >>> (bias_factors(np.ones((2, 1, 1)), factor, 0.75) ** 2).round(9).ravel()
    array([2., 2.])
    """
    inverse = factor.solve(np.eye(slopes.shape[1]))
    share = np.einsum("gjk,kj->gj", slopes, inverse)
    result: Matrix = 1.0 / np.sqrt(1.0 - np.minimum(bound, share))
    return result


def quadratic_form_dof(variances: Matrix, weights: Matrix, shared: Matrix) -> float:
    r"""Return Satterthwaite degrees of freedom of :math:`\sum_i (r_i^\top U)^2`.

    With :math:`r_i^\top U = m_i^\top U_i - b_i^\top \sum_j U_j` and independent
    :math:`U_i` of variance :math:`\Psi_i`, the form has the matrix

    .. math:: K_{ik} = \delta_{ik} m_i^\top \Psi_i m_i - m_i^\top \Psi_i b_k
        - b_i^\top \Psi_k m_k + b_i^\top \Psi b_k, \qquad \Psi = \sum_j \Psi_j,

    and :math:`\nu = (\mathrm{tr} K)^2 / \mathrm{tr} K^2`, computed without forming K.

    Parameters
    ----------
    variances : (G, p, p) array
        :math:`\Psi_i`, symmetric.
    weights : (G, p) array
        :math:`m_i`.
    shared : (G, p) array
        :math:`b_i`.

    References
    ----------
    Fay and Graubard (2001), Biometrics 57, 1198-1206, section 2.3.

    Examples
    --------
    A mean of n values has n - 1:

    >>> one = np.ones((7, 1))
    >>> round(quadratic_form_dof(np.ones((7, 1, 1)), one, one / 7), 9)
    6.0
    """
    p = weights.shape[1]
    own = np.einsum("gjk,gk->gj", variances, weights)
    diagonal = np.einsum("gj,gj->g", weights, own)
    # K is a diagonal plus U S U' with the 2p columns U = [own, shared].
    both = np.hstack([own, shared])
    middle = np.zeros((2 * p, 2 * p))
    middle[:p, p:] = middle[p:, :p] = -np.eye(p)
    middle[p:, p:] = variances.sum(axis=0)
    inner = middle @ (both.T @ both)
    crossed = diagonal @ np.einsum("gj,jk,gk->g", both, middle, both)
    trace = float(diagonal.sum() + np.trace(inner))
    square = float(diagonal @ diagonal + 2.0 * crossed + np.sum(inner * inner.T))
    return trace**2 / square


@dataclass(frozen=True, slots=True)
class FayGraubardDof:
    r"""Degrees of freedom of the bias-corrected variance of contrasts.

    Calling it with contrasts (m, p) returns (m,) degrees of freedom.

    Attributes
    ----------
    kind : {"tilde", "hat"}
    slopes : (G, p, p) array
        A_i.
    factors : (G, p) array
        Bias factors of psi.
    corrected : (p, p) array
        Sum of bias-corrected :math:`\psi_i \psi_i^\top`.
    transform : (r, p) array or None
        Parameters of the estimate as linear functions of those of the equation.
    """

    kind: Literal["tilde", "hat"]
    slopes: Matrix
    factors: Matrix
    corrected: Matrix
    transform: Matrix | None = None

    def __call__(self, contrasts: Matrix) -> Vector:
        """Return the degrees of freedom of each row, (m,)."""
        rows = np.atleast_2d(np.asarray(contrasts, dtype=np.float64))
        rows = rows if self.transform is None else rows @ self.transform
        total = sensitivity_factor(self.slopes.sum(axis=0))
        inverse = total.solve(np.eye(rows.shape[1]))
        change = None
        if self.kind == "tilde":
            change = leave_out_newton(self.slopes, self.slopes @ inverse)
        return np.array([self._one(row, inverse, change) for row in rows])

    def _one(self, contrast: Vector, inverse: Matrix, change: Matrix | None) -> float:
        direction = contrast @ inverse  # c' A^-1
        weights = self.factors * direction
        shared = np.einsum("gkj,gk->gj", self.slopes, weights) @ inverse
        if change is None:
            variances = (self.slopes + np.swapaxes(self.slopes, 1, 2)) / 2.0
        else:
            share = np.einsum("j,gjk,k->g", contrast, change, contrast)
            share = np.maximum(share, 0.0)
            variances = (share / share.sum())[:, None, None] * self.corrected
        return quadratic_form_dof(variances, weights, shared)

    def transformed(self, transform: Matrix) -> "FayGraubardDof":
        """Return the same for parameters ``transform @ theta``."""
        own = transform if self.transform is None else transform @ self.transform
        return replace(self, transform=own)


@dataclass(frozen=True, slots=True)
class FayGraubard:
    r"""The sandwich with contributions inflated for what estimation took from them.

    .. math:: V = A^{-1} \Big(\sum_i H_i \psi_i \psi_i^\top H_i\Big) A^{-\top},
        \qquad H_i = \mathrm{diag}[1 - \min\{b, (A_i A^{-1})_{jj}\}]^{-1/2}

    with :math:`A = \sum_i A_i`, for any psi with derivatives of its units.

    Attributes
    ----------
    bound : float
        b in [0, 1), the largest share that a unit is credited with.
    groups : str or (n,) array, optional
        Sum psi within groups (clusters) first.
    dof : {"tilde", "hat", "normal"}
        "tilde" is :math:`\tilde d_H` of the paper (R geex version 2): units have
        variances proportional to how much their deletion adds to the variance. "hat"
        takes :math:`A_i` for the variance of :math:`\psi_i`, as geex version 1 does;
        it needs psi to be a score. "normal" uses the normal law.

    Raises
    ------
    CapabilityError
        If the equation has no `unit_sensitivity`.

    Notes
    -----
    The correction works on the entries of psi one by one, so it depends on the
    parameterisation; it is applied to the parameters as the equation names them. It
    holds n p^2 numbers.

    References
    ----------
    Fay and Graubard (2001), Biometrics 57, 1198-1206.
    """

    bound: float = 0.75
    groups: Any = None
    dof: Literal["tilde", "hat", "normal"] = "tilde"

    def __post_init__(self) -> None:
        if not 0.0 <= self.bound < 1.0:
            raise ValueError(f"`bound` must lie in [0, 1); got {self.bound!r}.")
        if self.dof not in ("tilde", "hat", "normal"):
            raise ValueError(
                f'`dof` must be "tilde", "hat" or "normal"; got {self.dof!r}.'
            )

    @property
    def is_equivariant(self) -> bool:
        """Whether a linear change of parameters changes V accordingly."""
        return False

    def __call__(self, equation: EstimatingEquation, root: Root) -> Covariance:
        """Return the covariance of the root."""
        capability = require(
            equation,
            "unit_sensitivity",
            "FayGraubard",
            'Use HC(0) or Jackknife(kind="infinitesimal"), which need psi alone.',
        )
        groups = groups_of(equation, root.theta, self.groups, "groups")
        slopes = group_slopes(np.asarray(capability(root.theta)), groups)
        scores = group_scores(equation.psi(root.theta), groups)
        error = float(getattr(equation, "derivative_error", 0.0))
        factor = sensitivity_factor(slopes.sum(axis=0), equation.names, error)
        factors = bias_factors(slopes, factor, self.bound)
        half = factor.solve((factors * scores).T)
        spread = None
        if self.dof != "normal":
            grown = factors * scores
            spread = FayGraubardDof(self.dof, slopes, factors, grown.T @ grown)
        by = f" by {groups.name}" if groups.name else ""
        return Covariance(
            half @ half.T,
            f"Fay-Graubard (bound {self.bound:g}){by}",
            "Fay and Graubard (2001), Biometrics 57, 1198-1206",
            dof=float("inf")
            if spread is None
            else _checked_dof(spread(np.eye(len(equation.names))), equation.names),
            dof_kind="normal" if spread is None else f"Fay-Graubard {self.dof}",
            n_clusters=(groups.count,) if groups.name else (),
            findings=_bound_finding(factors, self.bound),
            contrast_dof=spread,
        )


def _checked_dof(dof: Vector, names: tuple[str, ...]) -> Vector:
    bad = np.flatnonzero(~(np.isfinite(dof) & (dof > 0)))
    if len(bad):
        raise InferenceError(
            f"the degrees of freedom of {names[int(bad[0])]!r} are {dof[bad[0]]:.3g}: "
            'the A_i are not variances here. Use FayGraubard(dof="tilde") or "normal".'
        )
    return dof


def _bound_finding(factors: Matrix, bound: float) -> tuple[Finding, ...]:
    largest = 1.0 / np.sqrt(1.0 - bound)
    share = float((factors >= largest * (1.0 - 1e-12)).any(axis=1).mean())
    if share == 0.0 or bound == 0.0:
        return ()
    return (
        Finding(
            "bound of the bias correction",
            "warn",
            share,
            0.0,
            f"{share:.1%} of the units reach the bound {bound:g}: their share of "
            "the information is larger, and the correction is cut off.",
            "Compare several bounds: where the standard errors differ, they rest on "
            "those units.",
        ),
    )
