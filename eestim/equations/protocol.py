"""What an estimating equation supplies, and how a rule asks for more."""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from eestim._arrays import Matrix, Vector
from eestim.errors import CapabilityError

__all__ = ["EstimatingEquation", "Working", "effective_n", "require"]


@runtime_checkable
class EstimatingEquation(Protocol):
    """What a model must supply: four members.

    Optional members are capabilities: ``psi_rows`` (before summing within units),
    ``moments``, ``working``, ``unit_sensitivity``, ``reweighted``, ``predict``,
    ``column``, ``start``, ``reparameterised`` and ``explain_failure``.
    """

    @property
    def n_units(self) -> int:
        """Number of independent units, n."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the p parameters."""

    def psi(self, theta: Vector) -> Matrix:
        """Return the contributions of the units, (n, q)."""

    def sensitivity(self, theta: Vector) -> Matrix:
        """Return A, minus the mean derivative of psi, (q, p)."""


@dataclass(frozen=True, slots=True)
class Working:
    """The weighted linear form of a regression at one theta.

    Attributes
    ----------
    design : (n, p) array
        Rows x_i, derivative of the linear predictor.
    weight : (n,) array
        W_i in ``A = X' diag(W) X / n``.
    residual : (n,) array
        Score residual: ``psi_i = x_i residual_i``.
    dispersion : float
        Variance of the residual in units of the weight: ``Var(residual_i) =
        dispersion * W_i`` under the model, degrees of freedom n - k.
    variance : (n,) array or None
        Working variance of the response up to a factor, V(mu) over the prior weight;
        None where it is constant.
    """

    design: Matrix
    weight: Vector
    residual: Vector
    dispersion: float
    variance: Vector | None = None


def require(equation: Any, capability: str, wanted_by: str, instead: str) -> Any:
    """Return a capability of an equation, or say which rules would work.

    Raises
    ------
    CapabilityError
        If the equation does not have it.
    """
    member = getattr(equation, capability, None)
    if member is None:
        raise CapabilityError(
            f"{wanted_by} needs `{capability}`, which {type(equation).__name__} does "
            f"not supply. {instead}"
        )
    return member


def effective_n(equation: EstimatingEquation) -> float:
    """Return the n of finite-sample factors: Kish's for importance weights."""
    return float(getattr(equation, "n_effective", equation.n_units))
