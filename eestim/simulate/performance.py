r"""Performance of methods: values, Monte Carlo errors, and differences between methods.

Every measure comes with its influence values, one a replication, so that

- its Monte Carlo standard error without a normality assumption is their standard
  error ("robust"; the default "published" ones are those of the references), and
- the difference of two methods on common data has the standard error of the
  difference of their influence values.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from eestim._arrays import Vector

__all__ = [
    "ACCOUNTS",
    "MEASURES",
    "PROPORTIONS",
    "Measured",
    "Sample",
    "empirical_se",
    "measures_of",
    "model_se",
    "proportion",
    "relative_error",
    "relative_precision",
    "replications_needed",
    "standard_error",
]

PROPORTIONS = ("coverage", "be_coverage", "power")
ACCOUNTS = ("failed", "not_converged", "warned", "coverage_of_all")
MEASURES = (
    "mean",
    "bias",
    "relative_bias",
    "empirical_se",
    "mse",
    "rmse",
    "model_se",
    "relative_error",
    *PROPORTIONS,
    "width",
)


@dataclass(frozen=True, slots=True)
class Measured:
    """A performance measure.

    Attributes
    ----------
    value : float
    mcse : float
        Monte Carlo standard error as published.
    influence : (n,) array
        Influence of each replication; their standard error is the robust one.
    """

    value: float
    mcse: float
    influence: Vector

    @property
    def robust_mcse(self) -> float:
        """Monte Carlo standard error without a normality assumption."""
        return standard_error(self.influence)


@dataclass(frozen=True, slots=True)
class Sample:
    """The replications of one method for one estimand that gave numbers.

    Attributes
    ----------
    estimate, se, lower, upper : (n,) arrays
        The last three NaN where the method gives none.
    truth : float
    """

    estimate: Vector
    se: Vector
    lower: Vector
    upper: Vector
    truth: float


def standard_error(values: Vector) -> float:
    """Return the standard error of the mean, NaN of a single value."""
    n = len(values)
    return float(np.std(values, ddof=1) / np.sqrt(n)) if n > 1 else float("nan")


def _mean(values: Vector) -> Measured:
    centred = values - values.mean()
    return Measured(float(values.mean()), standard_error(values), centred)


def proportion(holds: Any) -> Measured:
    """Return how often something holds, with its binomial standard error.

    >>> proportion([True, True, True, False]).value
    0.75
    """
    holds = np.asarray(holds, dtype=np.float64)
    share = float(holds.mean())
    mcse = float(np.sqrt(share * (1.0 - share) / len(holds)))
    return Measured(share, mcse, holds - share)


def _scaled(measured: Measured, factor: float) -> Measured:
    return Measured(
        measured.value * factor,
        measured.mcse * abs(factor),
        measured.influence * factor,
    )


def empirical_se(estimate: Vector) -> Measured:
    r"""Return the standard deviation s of the estimates.

    .. math:: \mathrm{MCSE} = s / \sqrt{2 (n - 1)} .

    Examples
    --------
    >>> empirical_se(np.array([1.0, 2.0, 3.0])).value
    1.0
    """
    n = len(estimate)
    centred = estimate - estimate.mean()
    variance = float(centred @ centred / (n - 1))
    value = math.sqrt(variance)
    slope = 1.0 / (2.0 * value) if value > 0.0 else 0.0
    influence = (np.square(centred) * n / (n - 1) - variance) * slope
    return Measured(value, value / math.sqrt(2.0 * (n - 1)), influence)


def model_se(se: Vector) -> Measured:
    r"""Return the root mean square m of the standard errors.

    .. math:: \mathrm{MCSE} = \sqrt{\mathrm{var}(se^2) / (4 n m^2)} .
    """
    variances = np.square(se)
    value = float(np.sqrt(variances.mean()))
    slope = 1.0 / (2.0 * value) if value > 0.0 else 0.0
    influence = (variances - variances.mean()) * slope
    return Measured(value, standard_error(variances) * slope, influence)


def relative_error(estimate: Vector, se: Vector) -> Measured:
    r"""Return the error of the model standard error, per cent: 100 (m / s - 1).

    .. math:: \mathrm{MCSE} = 100 \frac ms
        \sqrt{\frac{\mathrm{var}(se^2)}{4 n m^4} + \frac{1}{2 (n - 1)}} .
    """
    model, spread = model_se(se), empirical_se(estimate)
    ratio = model.value / spread.value
    relative = math.hypot(model.mcse / model.value, spread.mcse / spread.value)
    influence = 100.0 * (
        model.influence / spread.value - ratio * spread.influence / spread.value
    )
    return Measured(100.0 * (ratio - 1.0), 100.0 * ratio * relative, influence)


def _mse(sample: Sample) -> tuple[Measured, Measured]:
    squares = np.square(sample.estimate - sample.truth)
    mse = _mean(squares)
    root = math.sqrt(mse.value)
    slope = 1.0 / (2.0 * root) if root > 0.0 else 0.0
    return mse, Measured(root, mse.mcse * slope, mse.influence * slope)


def measures_of(sample: Sample, null: float = 0.0) -> dict[str, Measured]:
    """Return the measures of one method for one estimand, by name.

    Parameters
    ----------
    sample : Sample
        At least two replications.
    null : float
        The value that ``power`` is against: the share of intervals without it.

    References
    ----------
    Morris, White and Crowther (2019), Stat. Med. 38, table 6; White (2010), Stata
    Journal 10, 369-385, for the error of the model standard error.
    """
    estimate, truth = sample.estimate, sample.truth
    bias = _mean(estimate - truth)
    mse, rmse = _mse(sample)
    found = {
        "mean": _mean(estimate),
        "bias": bias,
        "empirical_se": empirical_se(estimate),
        "mse": mse,
        "rmse": rmse,
    }
    if truth != 0.0:
        found["relative_bias"] = _scaled(bias, 1.0 / truth)
    if not np.isnan(sample.se).any():
        found["model_se"] = model_se(sample.se)
        if min(found["model_se"].value, found["empirical_se"].value) > 0.0:
            found["relative_error"] = relative_error(estimate, sample.se)
    if not (np.isnan(sample.lower) | np.isnan(sample.upper)).any():
        found |= _of_intervals(sample, null)
    return {name: found[name] for name in MEASURES if name in found}


def _of_intervals(sample: Sample, null: float) -> dict[str, Measured]:
    lower, upper = sample.lower, sample.upper

    def share_with(value: float) -> Measured:
        return proportion((lower <= value) & (value <= upper))

    excluded = share_with(null)
    found = {
        "coverage": share_with(sample.truth),
        "be_coverage": share_with(float(sample.estimate.mean())),
        "power": Measured(1.0 - excluded.value, excluded.mcse, -excluded.influence),
    }
    if np.isfinite(upper - lower).all():
        found["width"] = _mean(upper - lower)
    return found


def relative_precision(estimate: Vector, reference: Vector) -> Measured:
    r"""Return the gain in precision over a reference on common data, per cent.

    .. math:: 100 \Big( \frac{s_B^2}{s_A^2} - 1 \Big), \qquad
        \mathrm{MCSE} = 200 \frac{s_B^2}{s_A^2} \sqrt{\frac{1 - \rho^2}{n - 1}}

    with the correlation :math:`\rho` of the two estimates, B the reference.

    Parameters
    ----------
    estimate, reference : (n,) arrays
        Estimates of the two methods on the same replications.

    References
    ----------
    White (2010), Stata Journal 10, 369-385.
    """
    n = len(estimate)
    own, other = empirical_se(estimate), empirical_se(reference)
    ratio = (other.value / own.value) ** 2
    rho = float(np.corrcoef(estimate, reference)[0, 1])
    mcse = 200.0 * ratio * math.sqrt(max(1.0 - rho**2, 0.0) / (n - 1))
    influence = (
        200.0 * ratio * (other.influence / other.value - own.influence / own.value)
    )
    return Measured(100.0 * (ratio - 1.0), mcse, influence)


# ---------------------------------------------------------------- how many to run


_SINGLE: Mapping[str, Callable[[float, float], float]] = {
    "bias": lambda sd, mcse: (sd / mcse) ** 2,
    "mean": lambda sd, mcse: (sd / mcse) ** 2,
    "empirical_se": lambda sd, mcse: 1.0 + (sd / mcse) ** 2 / 2.0,
}


def replications_needed(
    measure: str,
    mcse: float,
    *,
    expected: float | None = None,
    sd: float | None = None,
) -> int:
    r"""Return how many replications give a Monte Carlo standard error.

    .. math:: n = p (1 - p) / \mathrm{MCSE}^2, \quad (s / \mathrm{MCSE})^2, \quad
        1 + s^2 / (2\, \mathrm{MCSE}^2)

    for a proportion p (coverage, power, failures), the bias, and the empirical
    standard error.

    Parameters
    ----------
    measure : str
    mcse : float
        Aimed at.
    expected : float, optional
        The proportion expected; 0.5 needs the most.
    sd : float, optional
        The empirical standard error expected, for "bias" and "empirical_se".

    Raises
    ------
    ValueError
        If an argument is missing or out of range. Where the measure has no such
        formula use ``results.replications_needed`` of a pilot.

    References
    ----------
    Morris, White and Crowther (2019), Stat. Med. 38, section 5.3.

    Examples
    --------
    Coverage of 95% to half a percentage point, and the worst case:

    >>> replications_needed("coverage", 0.005, expected=0.95)
    1900
    >>> replications_needed("coverage", 0.005, expected=0.5)
    10000
    """
    if not mcse > 0.0:
        raise ValueError(f"`mcse` must be positive; got {mcse!r}.")
    if measure in (*PROPORTIONS, *ACCOUNTS):
        if expected is None or not 0.0 < expected < 1.0:
            raise ValueError(
                f"`expected` is {expected!r}; {measure} needs the proportion expected, "
                "between 0 and 1."
            )
        wanted = expected * (1.0 - expected) / mcse**2
    elif measure in _SINGLE:
        if sd is None or not sd > 0.0:
            raise ValueError(
                f"`sd` is {sd!r}; {measure} needs the empirical standard error "
                "expected."
            )
        wanted = _SINGLE[measure](sd, mcse)
    else:
        raise ValueError(
            f"`measure` is {measure!r}; a formula exists for "
            f"{[*PROPORTIONS, *ACCOUNTS, *_SINGLE]}. For others use the "
            "`replications_needed` of the results of a pilot study."
        )
    return max(2, math.ceil(wanted * (1.0 - 1e-12)))
