"""One way for every estimate: solve, or take a root as given, then the covariance."""

from typing import Any

import numpy as np

from eestim.covariance.base import CovarianceRule
from eestim.covariance.hc import HC
from eestim.equations import EstimatingEquation
from eestim.errors import IdentificationError, InterpolationError
from eestim.estimation._refusals import (
    check_interpolation,
    explain_singular,
    refuse_unidentified,
)
from eestim.estimation.result import Estimate, completed
from eestim.roots import Root, root_at, solve

__all__ = ["estimate"]


def estimate(
    equation: EstimatingEquation,
    covariance: CovarianceRule | None = None,
    *,
    start: Any = None,
    root: Any = None,
) -> Estimate:
    """Solve an estimating equation and attach the covariance of its root.

    Parameters
    ----------
    equation : EstimatingEquation
        A model (``ee.ols(...)``), ``ee.equation(...)``, ``ee.stack(...)``.
    covariance : covariance rule, optional
        ``ee.HC(0)`` by default.
    start : (p,) array-like, optional
        Where the solver begins; the equation's own start by default.
    root : (p,) array-like or Root, optional
        A root found elsewhere (SGD, another package). Nothing is solved; its
        residual is reported in units of noise, with a finding where it is large.

    Returns
    -------
    Estimate

    Raises
    ------
    ConvergenceError
        If no root is found, SeparationError where it lies at infinity.
    IdentificationError
        If A is singular at the root, naming the free direction.
    InterpolationError
        If psi vanishes at every unit.
    CapabilityError
        If the rule needs what the equation does not supply.

    Examples
    --------
    >>> import eestim as ee
    >>> fit = ee.estimate(ee.mean([1.0, 2.0, 6.0]), covariance=ee.HC(1))
    >>> fit.params.round(3).to_dict(), fit.se.round(3).to_dict()
    ({'mean': 3.0}, {'mean': 1.528})
    """
    rule = HC(0) if covariance is None else covariance
    if isinstance(equation, Estimate):
        raise TypeError(
            "`equation` is already an Estimate; use its `with_covariance(rule)`."
        )
    if root is not None and start is not None:
        raise ValueError("pass `start` or `root`, not both.")
    try:
        return _solved(equation, rule, start, root)
    except (IdentificationError, InterpolationError) as refused:
        refused.explained_by(lambda: _regime_of(equation, start, root))
        raise


def _regime_of(equation: EstimatingEquation, start: Any, root: Any) -> Any:
    """Return the regime of an equation that has no Estimate."""
    from eestim.asymptotics import regime

    at = root.theta if isinstance(root, Root) else root
    return regime(equation, at, start=start)


def _solved(
    equation: EstimatingEquation, rule: CovarianceRule, start: Any, root: Any
) -> Estimate:
    """Return the estimate at a root, given or solved for, after refusing bad ones."""
    if root is not None:
        found = root if isinstance(root, Root) else root_at(equation, root)
    else:
        found = solve(equation, start)
    inspect = getattr(equation, "check_root", None)
    with np.errstate(all="ignore"):  # what is not finite is refused below, by name
        if inspect is not None and np.isfinite(found.theta).all():
            inspect(found)
        if root is not None:
            refuse_unidentified(equation, found)
        explain_singular(equation, found)
        found.require_converged()
        check_interpolation(equation, found)
        return completed(equation, found, rule)
