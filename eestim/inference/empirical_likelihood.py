"""Empirical-likelihood intervals, for means and for any just-identified psi."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import scipy

from eestim.errors import InferenceError
from eestim.inference._crossing import checked_level, wanted_places
from eestim.inference._dual import empirical
from eestim.inference.profile import profiled_interval

__all__ = ["EmpiricalLikelihood"]


@dataclass(frozen=True, slots=True)
class EmpiricalLikelihood:
    r"""Intervals from the empirical likelihood ratio, profiled over other parameters.

    .. math:: \Big\{c : \min_{\theta_j = c} \max_\lambda 2 \sum_i
              \log\{1 + \lambda^\top \psi_i(\theta)\} \le q\Big\}

    The data shape the interval: it respects the range of the parameter and is as skewed
    as the data are.

    Attributes
    ----------
    calibration : {"F", "chi2"}
        q is the quantile of :math:`F_{1, n - p}`, which covers better in small
        samples, or of :math:`\chi^2_1`.
    names : sequence of str, optional
        Parameters whose intervals are wanted; all by default.

    References
    ----------
    Owen (1988), Biometrika 75, 237-249; Qin and Lawless (1994), Ann. Stat. 22,
    300-325; Owen (2001), Empirical Likelihood, sections 3.3 and 3.5.

    Examples
    --------
    >>> import eestim as ee
    >>> fit = ee.estimate(ee.mean([1.0, 2.0, 4.0, 5.0, 8.0, 10.0]))
    >>> fit.interval(method=EmpiricalLikelihood("chi2")).round(3).values.tolist()
    [[5.0, 2.787, 7.552]]
    """

    calibration: Literal["F", "chi2"] = "F"
    names: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if self.calibration not in ("F", "chi2"):
            raise ValueError(
                f'`calibration` must be "F" or "chi2"; got {self.calibration!r}.'
            )

    def interval(self, estimate: Any, level: float = 0.95) -> pd.DataFrame:
        """Return estimate, lower and upper, one row a parameter.

        Raises
        ------
        InferenceError
            If units depend on each other, an equation has no noise, psi jumps and there
            is more than one parameter, or n does not exceed p.
        """
        below = estimate.n_units - len(estimate.names)
        if below <= 0:
            raise InferenceError(
                f"EmpiricalLikelihood needs more units than parameters; there are "
                f"{estimate.n_units} and {len(estimate.names)}."
            )
        law = (
            scipy.stats.f(1, below) if self.calibration == "F" else scipy.stats.chi2(1)
        )
        critical = float(law.ppf(checked_level(level)))
        method = "EmpiricalLikelihood()"
        places = wanted_places(self.names, estimate.names, method)
        return profiled_interval(estimate, empirical, critical, method, places)
