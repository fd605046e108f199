"""Asymptotic confidence sequences: intervals that stay valid under peeking."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from eestim._arrays import Vector
from eestim.inference._crossing import checked_level, interval_frame

__all__ = ["Anytime", "anytime_factor", "anytime_tuning"]


def anytime_tuning(n_star: float, level: float = 0.95) -> float:
    r"""Return the tuning that makes the sequence tightest near a sample size.

    .. math:: \rho^2 = \{-2 \log\alpha + \log(1 - 2 \log\alpha)\} / n^*

    References
    ----------
    Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas (2024), Ann. Stat. 52, 2613-2640,
    appendix on the choice of rho.

    Examples
    --------
    >>> round(500 * anytime_tuning(500), 3)
    7.936
    """
    log_alpha = np.log1p(-level)
    return float((-2.0 * log_alpha + np.log1p(-2.0 * log_alpha)) / n_star)


def anytime_factor(n: float, n_star: float, level: float = 0.95) -> float:
    r"""Return the half width of the sequence in standard errors of the estimate.

    .. math::
        \sqrt{\frac{2 (n \rho^2 + 1)}{n \rho^2}
        \log \frac{\sqrt{n \rho^2 + 1}}{\alpha}}

    References
    ----------
    Waudby-Smith et al. (2024), Ann. Stat. 52, 2613-2640, theorem 2.2.

    Examples
    --------
    Against 1.96 for an interval at one sample size fixed in advance:

    >>> round(anytime_factor(500, 500), 3)
    3.035
    """
    grown = n * anytime_tuning(n_star, level)
    alpha = 1.0 - level
    return float(
        np.sqrt(2.0 * (grown + 1.0) / grown * np.log(np.sqrt(grown + 1.0) / alpha))
    )


@dataclass(frozen=True, slots=True)
class Anytime:
    r"""Intervals valid at every sample size at once, for any estimate with a sandwich.

    .. math:: \hat\theta_n \pm \widehat{se}_n
        \sqrt{\frac{2 (n \rho^2 + 1)}{n \rho^2} \log \frac{\sqrt{n \rho^2 + 1}}{\alpha}}

    Data may be looked at as they come, and collection stopped when one likes: the whole
    sequence covers with the stated probability, for large first samples. The price is a
    width of at least 1.55 times Wald's at 95%.

    Attributes
    ----------
    n_star : float
        The number of independent units near which the sequence should be tightest, the
        same at every look. Coverage does not depend on it.

    Notes
    -----
    n is the number of clusters where the covariance rule has clusters.

    References
    ----------
    Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas (2024), Time-uniform central limit
    theory and asymptotic confidence sequences, Ann. Stat. 52, 2613-2640.

    Examples
    --------
    >>> import eestim as ee
    >>> fit = ee.estimate(ee.mean(np.arange(200.0) % 7))
    >>> bounds = fit.interval(method=Anytime(200))
    >>> half = (bounds["upper"] - bounds["estimate"]) / fit.se
    >>> half.round(3).to_dict()
    {'mean': 3.035}
    """

    n_star: float

    def __post_init__(self) -> None:
        if not (np.isfinite(self.n_star) and self.n_star > 0):
            raise ValueError(
                f"`n_star` must be a positive number of units; got {self.n_star!r}."
            )

    def interval(self, estimate: Any, level: float = 0.95) -> pd.DataFrame:
        """Return estimate, lower and upper, one row a parameter."""
        checked_level(level)
        clusters = estimate.spread.n_clusters
        n = min(clusters) if clusters else estimate.n_units
        errors: Vector = np.sqrt(np.diag(estimate.spread.matrix))
        half = anytime_factor(float(n), float(self.n_star), level) * errors
        bounds = list(zip(estimate.theta - half, estimate.theta + half, strict=True))
        return interval_frame(estimate.names, estimate.theta, bounds)
