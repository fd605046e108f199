"""Robust covariances of linear models whose covariates are a large share of n."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from eestim._arrays import Matrix, Vector
from eestim.covariance._many import (
    confounded_pairs,
    hck_variances,
    leave_out_variances,
    orthonormal_basis,
)
from eestim.covariance._rows import refuse_negative, semidefinite_finding
from eestim.covariance.base import (
    Covariance,
    equation_sandwich,
    sensitivity_factor,
    working_of,
)
from eestim.equations import EstimatingEquation, Working
from eestim.errors import CapabilityError, DataError, InferenceError
from eestim.findings import Finding
from eestim.roots import Root

__all__ = ["HCK", "LeaveOut"]

Negative = Literal["keep", "truncate"]
_ADVICE = (
    "If this is a nuisance, name the parameters of interest with `of=`; else choose "
    "`negative='truncate'` (positive semidefinite, biased upwards), or HC(3), which is "
    "conservative with many covariates."
)
_LINEAR = 1e-7  # agreement of a linear model with itself at another theta


@dataclass(frozen=True, slots=True)
class _Standardised:
    """A linear model with weights moved into rows: V = A^-1 X' diag(s2) X A^-T."""

    design: Matrix
    response: Vector
    residual: Vector


def _standardised(
    equation: EstimatingEquation, theta: Vector, rule: str
) -> _Standardised:
    instead = "Use HC(1), FayGraubard() or Jackknife(), which take any psi."
    working = working_of(equation, theta, rule, instead)
    if not _is_linear(equation, theta, working):
        raise CapabilityError(
            f"{rule} is exact for linear models only (identity link, constant "
            f"variance function); this model is not linear. {instead}"
        )
    kept = working.weight > 0
    root = np.sqrt(working.weight[kept])
    design = working.design[kept] * root[:, None]
    residual = working.residual[kept] / root
    if len(residual) <= design.shape[1]:
        raise InferenceError(
            f"{rule} needs more rows than covariates; there are {len(residual)} rows "
            f"and {design.shape[1]} covariates."
        )
    return _Standardised(design, design @ theta + residual, residual)


def _is_linear(equation: EstimatingEquation, theta: Vector, working: Working) -> bool:
    """Return whether the residual is linear in theta with constant weights."""
    size = np.sqrt(np.square(working.design).mean(axis=0))
    spread = np.sqrt(np.mean(working.residual**2) / max(working.weight.mean(), 1e-300))
    step = spread / np.where(size > 0, size, 1.0)
    moved = working_of(equation, theta + step, "", "")
    change = working.weight * (working.design @ step)
    gap = np.abs(moved.residual - (working.residual - change)).max()
    size_of_terms = np.abs(working.residual).max() + np.abs(change).max()
    fitted = working.weight * (working.design @ theta)
    allowed = _LINEAR * size_of_terms + 1e-13 * np.abs(fitted).max()
    return bool(
        gap <= allowed
        and np.allclose(moved.weight, working.weight, rtol=_LINEAR, atol=0)
    )


def _covariance(
    equation: EstimatingEquation,
    root: Root,
    options: "HCK | LeaveOut",
    rule: str,
    citation: str,
) -> Covariance:
    model = _standardised(equation, root.theta, rule)
    basis = orthonormal_basis(model.design)
    left_out = leave_out_variances(basis, model.response, model.residual)
    sensitivity, names = equation.sensitivity(root.theta), tuple(equation.names)
    wanted = _places(options.of, names)
    if isinstance(options, HCK):
        variances, null = hck_variances(basis, model.residual)
        _refuse_confounded(model.design, sensitivity, null, names, wanted)
    else:
        variances = left_out

    def spread(each: Vector) -> Matrix:
        meat = model.design.T @ (model.design * each[:, None]) / equation.n_units
        return equation_sandwich(equation, sensitivity, meat)

    truncated = options.negative == "truncate"
    matrix = spread(np.maximum(variances, 0.0) if truncated else variances)
    if len(wanted) < len(names):
        block = np.ix_(wanted, wanted)
        shielded = spread(np.maximum(left_out, 0.0))
        shielded[block] = matrix[block]
        matrix = shielded
    refuse_negative(matrix, names, rule, _ADVICE)
    return Covariance(
        matrix,
        rule + _how(options),
        citation,
        findings=(
            *_negative_finding(variances, options),
            *semidefinite_finding(matrix, _ADVICE),
        ),
    )


def _refuse_confounded(
    design: Matrix,
    sensitivity: Matrix,
    null: Matrix,
    names: tuple[str, ...],
    wanted: list[int],
) -> None:
    if not null.shape[1]:
        return
    weights = sensitivity_factor(sensitivity, names).solve(design.T).T[:, wanted]
    bad = np.flatnonzero(confounded_pairs(weights, null).any(axis=1))
    if len(bad):
        listed = ", ".join(repr(names[wanted[j]]) for j in bad[:5])
        raise InferenceError(
            "HCK inverts M∘M (squared entries of I - H), which is singular: the error "
            f"variances that the variance of {listed} needs are confounded by the "
            "covariates. Use LeaveOut(), which needs leverages below 1 only, or, if "
            "these are nuisances, name the parameters of interest with `of=`."
        )


def _places(of: str | Sequence[str] | None, names: tuple[str, ...]) -> list[int]:
    """Return the positions of the parameters of interest, all by default."""
    if of is None:
        return list(range(len(names)))
    wanted = [of] if isinstance(of, str) else list(of)
    unknown = [name for name in wanted if name not in names]
    if unknown or not wanted:
        shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
        raise DataError(
            f"`of` is {of!r}; names of parameters were expected, which are {shown}."
        )
    return [names.index(name) for name in wanted]


def _how(options: "HCK | LeaveOut") -> str:
    if options.negative == "truncate":
        return " (negative variances truncated)"
    if options.of is None:
        return ""
    wanted = [options.of] if isinstance(options.of, str) else options.of
    return f" (for {', '.join(wanted)}; truncated leave-out for the others)"


def _negative_finding(
    variances: Vector, options: "HCK | LeaveOut"
) -> tuple[Finding, ...]:
    share = float((variances < 0).mean())
    if share == 0:
        return ()
    if options.negative == "truncate":
        how = " and were set to zero: standard errors are biased upwards."
    elif options.of is not None:
        how = (
            ", as unbiased estimates of single variances may be; parameters not named "
            "in `of` have truncated ones, biased upwards."
        )
    else:
        how = ", as unbiased estimates of single variances may be; V is a weighted sum."
    return (
        Finding(
            "negative error variances",
            "warn" if options.negative == "truncate" else "pass",
            share,
            0.0,
            f"{share:.1%} of the estimated error variances are negative{how}",
        ),
    )


def _check_options(negative: str, of: str | Sequence[str] | None) -> None:
    if negative not in ("keep", "truncate"):
        raise ValueError(f"`negative` is {negative!r}; choose 'keep' or 'truncate'.")
    if of is not None and negative == "truncate":
        raise ValueError(
            "`of` names parameters whose variances stay unbiased, which "
            "`negative='truncate'` gives up; choose one."
        )


@dataclass(frozen=True, slots=True)
class HCK:
    r"""Heteroskedasticity-robust covariance that allows for many covariates.

    .. math:: V = (X^\top X)^{-1} X^\top \mathrm{diag}(\hat\sigma^2) X
        (X^\top X)^{-1}, \qquad \hat\sigma^2 = (M \circ M)^{-1} \hat e^2,
        \quad M = I - H .

    Exactly unbiased for any independent errors, however many covariates, as long as
    M∘M is invertible (every leverage below one half suffices), or singular only in
    directions that the wanted variances do not depend on.

    Attributes
    ----------
    of : str or sequence of str, optional
        Parameters of interest. Their block of V is unbiased; the other parameters,
        often hundreds of nuisances, get leave-out variances with the negative ones
        set to zero, biased upwards. By default all are.
    negative : {"keep", "truncate"}
        Estimated variances of single errors may be negative. "keep" stays unbiased
        and refuses where a standard error would not exist; "truncate" sets them to
        zero, biased upwards.

    Raises
    ------
    CapabilityError
        If the equation is not a linear model.
    InferenceError
        If M∘M is singular in a direction that matters, a row has leverage one, or a
        variance is negative.

    References
    ----------
    Cattaneo, Jansson and Newey (2018), J. Am. Stat. Assoc. 113, 1350-1361.

    Examples
    --------
    >>> HCK().negative
    'keep'
    """

    of: str | Sequence[str] | None = None
    negative: Negative = "keep"

    def __post_init__(self) -> None:
        _check_options(self.negative, self.of)

    @property
    def is_equivariant(self) -> bool:
        """Whether a linear change of parameters changes V accordingly."""
        return self.of is None

    def __call__(self, equation: EstimatingEquation, root: Root) -> Covariance:
        """Return the covariance of the root."""
        return _covariance(
            equation,
            root,
            self,
            "HCK",
            "Cattaneo, Jansson and Newey (2018), J. Am. Stat. Assoc. 113, 1350-1361",
        )


@dataclass(frozen=True, slots=True)
class LeaveOut:
    r"""Leave-one-out covariance of a linear model with many covariates.

    .. math:: V = (X^\top X)^{-1} X^\top \mathrm{diag}(\hat\sigma^2) X
        (X^\top X)^{-1}, \qquad \hat\sigma_i^2 = y_i \hat e_i / M_{ii} .

    Exactly unbiased for any independent errors, as long as every leverage is below
    one; in time and memory of order n k^2 and n k.

    Attributes
    ----------
    of : str or sequence of str, optional
        Parameters of interest. Their block of V is unbiased; the other parameters,
        often hundreds of nuisances, get leave-out variances with the negative ones
        set to zero, biased upwards. By default all are.
    negative : {"keep", "truncate"}
        Estimated variances of single errors may be negative. "keep" stays unbiased
        and refuses where a standard error would not exist; "truncate" sets them to
        zero, biased upwards.

    Raises
    ------
    CapabilityError
        If the equation is not a linear model.
    InferenceError
        If a row has leverage one, or a variance is negative.

    Notes
    -----
    Adding a constant to y leaves the expectation but not the value of
    :math:`\hat\sigma_i^2` unchanged; a response far from zero makes it noisier.

    References
    ----------
    Kline, Saggio and Sølvsten (2020), Econometrica 88, 1859-1898; Jochmans (2022),
    J. Am. Stat. Assoc. 117, 887-896.

    Examples
    --------
    >>> LeaveOut().negative
    'keep'
    """

    of: str | Sequence[str] | None = None
    negative: Negative = "keep"

    def __post_init__(self) -> None:
        _check_options(self.negative, self.of)

    @property
    def is_equivariant(self) -> bool:
        """Whether a linear change of parameters changes V accordingly."""
        return self.of is None

    def __call__(self, equation: EstimatingEquation, root: Root) -> Covariance:
        """Return the covariance of the root."""
        return _covariance(
            equation,
            root,
            self,
            "leave-out",
            "Kline, Saggio and Sølvsten (2020); Jochmans (2022), J. Am. Stat. Assoc. "
            "117, 887-896",
        )
