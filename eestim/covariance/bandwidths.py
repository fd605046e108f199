"""How lags are weighed without a number from the user: values for `HAC`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from eestim._arrays import Matrix, Vector
from eestim.covariance._bandwidth import (
    Approximation,
    Rounding,
    andrews_bandwidth,
    newey_west_bandwidth,
    pilot_lags,
)
from eestim.covariance._kernels import canonical_kernel
from eestim.covariance._weave import WeaveMethod, weave_weights

__all__ = [
    "SMALLEST_BANDWIDTH",
    "Andrews1991",
    "Automatic",
    "Chosen",
    "NeweyWest1994",
    "Weave",
    "as_automatic",
    "as_weave",
    "description",
]

SMALLEST_BANDWIDTH = 1e-6  # one estimated as zero leaves lag 0 alone


@dataclass(frozen=True, slots=True)
class NeweyWest1994:
    """The automatic bandwidth of Newey and West (1994), as a value with options.

    Attributes
    ----------
    rounding : {"auto", "floor", "ceil", "none"}
        How the estimated optimum becomes a number of lags. "auto" takes the integer
        part for the Bartlett kernel, as the paper and R's ``NeweyWest`` do, and the
        real number as the bandwidth for the Parzen and quadratic spectral kernels, as
        ``kernHAC(bw = bwNeweyWest)`` does. An integer m means m lags (bandwidth
        m + 1) for Bartlett and Parzen, and bandwidth m for quadratic spectral.
    pilot_rounding : {"floor", "ceil"}
        How the number of pilot autocovariances is rounded. linearmodels rounds both
        up: ``NeweyWest1994(rounding="ceil", pilot_rounding="ceil")``.
    weights : sequence of float, optional
        Weight of each column of psi; by default one, zero for an intercept.
    """

    rounding: Literal["auto", "floor", "ceil", "none"] = "auto"
    pilot_rounding: Rounding = "floor"
    weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if self.rounding not in ("auto", "floor", "ceil", "none"):
            raise ValueError(
                f"`rounding` is {self.rounding!r}; choose 'auto', 'floor', 'ceil' or "
                "'none'."
            )
        if self.pilot_rounding not in ("floor", "ceil"):
            raise ValueError(
                f"`pilot_rounding` is {self.pilot_rounding!r}; choose 'floor' or "
                "'ceil'."
            )

    def bandwidth(self, kernel: str, psi: Matrix, weights: Vector, order: int) -> float:
        """Return the bandwidth for psi prewhitened by an autoregression of an order."""
        name, n = canonical_kernel(kernel), len(psi) + order
        pilot = pilot_lags(
            name, n, is_prewhitened=order > 0, rounding=self.pilot_rounding
        )
        size = newey_west_bandwidth(
            psi, name, weights, n_times=n, pilot=min(pilot, len(psi) - 1)
        )
        if self.rounding == "none" or (self.rounding == "auto" and name != "bartlett"):
            return size
        whole = np.ceil(size) if self.rounding == "ceil" else np.floor(size)
        lags = min(int(whole), len(psi) - 1)
        return float(lags) if name == "quadratic-spectral" else float(lags + 1)


@dataclass(frozen=True, slots=True)
class Andrews1991:
    """The plug-in bandwidth of Andrews (1991), as a value with options.

    Attributes
    ----------
    approximation : {"AR(1)", "ARMA(1,1)"}
        The model that approximates each column of psi.
    weights : sequence of float, optional
        Weight of each column of psi; by default one, zero for an intercept.
    """

    approximation: Approximation = "AR(1)"
    weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if self.approximation not in ("AR(1)", "ARMA(1,1)"):
            raise ValueError(
                f"`approximation` is {self.approximation!r}; choose 'AR(1)' or "
                "'ARMA(1,1)'."
            )

    def bandwidth(self, kernel: str, psi: Matrix, weights: Vector, order: int) -> float:
        """Return the bandwidth for psi, prewhitened (order > 0) or not."""
        del order  # T is the length of what is given
        return andrews_bandwidth(psi, kernel, weights, self.approximation)


@dataclass(frozen=True, slots=True)
class Weave:
    r"""Empirical weights of Lumley and Heagerty (1999) in place of a kernel.

    The weight of lag j is :math:`1\{n \rho_j^2 > C\}` ("truncate") or
    :math:`\min(1, C n \rho_j^2)` ("smooth"), with the autocorrelations of the
    residuals forced to decrease; needs a regression, whose residuals it reads.

    Attributes
    ----------
    method : {"truncate", "smooth"}
    cutoff : float, optional
        C; 4 for "truncate" and 1 for "smooth" by default.
    """

    method: WeaveMethod = "truncate"
    cutoff: float | None = None

    def __post_init__(self) -> None:
        weave_weights(np.array([1.0, -1.0]), self.method, self.cutoff)  # checks both


@dataclass(frozen=True, slots=True)
class Chosen:
    """A bandwidth that was chosen from the data, with how.

    Attributes
    ----------
    size : float
    how : str
    """

    size: float
    how: str
    weights: Sequence[float] | None = None

    def bandwidth(self, kernel: str, psi: Matrix, weights: Vector, order: int) -> float:
        """Return the bandwidth chosen before."""
        del kernel, psi, weights, order
        return self.size


Automatic: TypeAlias = NeweyWest1994 | Andrews1991 | Chosen
_AUTOMATIC: dict[str, Automatic] = {
    "newey-west": NeweyWest1994(),
    "newey-west-1994": NeweyWest1994(),
    "andrews": Andrews1991(),
    "andrews-1991": Andrews1991(),
}
_WEAVES = {
    "weave": Weave(),
    "lumley": Weave(),
    "weave-truncate": Weave("truncate"),
    "weave-smooth": Weave("smooth"),
}


def as_weave(kernel: object) -> Weave | None:
    """Return empirical weights given by value or name, None for a kernel.

    >>> as_weave("weave"), as_weave("bartlett")
    (Weave(method='truncate', cutoff=None), None)
    """
    if isinstance(kernel, Weave):
        return kernel
    if isinstance(kernel, str):
        return _WEAVES.get(kernel.lower().replace("_", "-").replace(" ", "-"))
    return None


def description(automatic: Automatic) -> str:
    """Return how a bandwidth was chosen, for the label of a rule.

    >>> description(Andrews1991())
    'by Andrews'
    """
    if isinstance(automatic, Chosen):
        return automatic.how
    return "by Newey-West" if isinstance(automatic, NeweyWest1994) else "by Andrews"


def as_automatic(bandwidth: object, kernel: str | None = None) -> Automatic | None:
    """Return how a bandwidth is chosen, or None where it is a number.

    Raises
    ------
    ValueError
        If it is a name that is not known.
    """
    if isinstance(bandwidth, NeweyWest1994 | Andrews1991 | Chosen):
        return bandwidth
    if bandwidth is None and kernel is not None:
        defined = kernel in ("bartlett", "parzen", "quadratic-spectral")
        return NeweyWest1994() if defined else Andrews1991()
    if isinstance(bandwidth, str):
        key = bandwidth.lower().replace("_", "-").replace(" ", "-")
        if key not in _AUTOMATIC:
            raise ValueError(
                f"`bandwidth` is {bandwidth!r}; give a number of time steps, "
                "'newey-west' or 'andrews'."
            )
        return _AUTOMATIC[key]
    return None
