"""Exponential families and links: the numbers a GLM is made of."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import special

from eestim._arrays import Vector, show_rows
from eestim.errors import DataError

__all__ = ["FAMILIES", "LINKS", "Family", "Link", "family_and_link"]

_Function = Callable[[Vector], Vector]


@dataclass(frozen=True, slots=True)
class Link:
    r"""A link: the mean :math:`\mu(\eta)` and its first two derivatives.

    Attributes
    ----------
    ratio, ratio_slope : callable, optional
        :math:`\mu' / \{\mu (1 - \mu)\}` and its derivative in eta, where the quotient
        would be 0 / 0 as soon as the mean rounds to 1.
    """

    name: str
    forward: _Function
    inverse: _Function
    slope: _Function
    curvature: _Function
    ratio: _Function | None = None
    ratio_slope: _Function | None = None


def _logit_slope(eta: Vector) -> Vector:
    slope: Vector = special.expit(eta) * special.expit(-eta)
    return slope


def _normal_density(eta: Vector) -> Vector:
    return np.exp(-0.5 * eta**2) / math.sqrt(2.0 * math.pi)


def _cloglog_slope(eta: Vector) -> Vector:
    return np.exp(eta - np.exp(np.minimum(eta, 700.0)))


def _cloglog_ratio(eta: Vector) -> Vector:
    rate = np.exp(np.minimum(eta, 700.0))
    return -rate / np.expm1(-rate)


def _cloglog_ratio_slope(eta: Vector) -> Vector:
    ratio = _cloglog_ratio(eta)
    return ratio * (1.0 - ratio * np.exp(-np.exp(np.minimum(eta, 700.0))))


def _hazard(eta: Vector) -> Vector:
    """Return the normal density over the upper tail."""
    density = np.exp(-0.5 * eta**2 - special.log_ndtr(-eta))
    hazard: Vector = density / math.sqrt(2.0 * math.pi)
    return hazard


def _probit_ratio(eta: Vector) -> Vector:
    return _hazard(eta) + _hazard(-eta)  # 1 / {a (1 - a)} = 1 / a + 1 / (1 - a)


def _probit_ratio_slope(eta: Vector) -> Vector:
    upper, lower = _hazard(eta), _hazard(-eta)
    return upper * (upper - eta) - lower * (lower + eta)


LINKS: dict[str, Link] = {
    link.name: link
    for link in (
        Link(
            "identity",
            lambda mu: mu,
            lambda eta: eta,
            np.ones_like,
            np.zeros_like,
        ),
        Link("log", np.log, np.exp, np.exp, np.exp),
        Link(
            "logit",
            special.logit,
            special.expit,
            _logit_slope,
            lambda eta: -_logit_slope(eta) * np.tanh(eta / 2.0),
        ),
        Link(
            "probit",
            special.ndtri,
            special.ndtr,
            _normal_density,
            lambda eta: -eta * _normal_density(eta),
            _probit_ratio,
            _probit_ratio_slope,
        ),
        Link(
            "cloglog",
            lambda mu: np.log(-np.log1p(-mu)),
            lambda eta: -np.expm1(-np.exp(np.minimum(eta, 700.0))),
            _cloglog_slope,
            lambda eta: _cloglog_slope(eta) * (1.0 - np.exp(np.minimum(eta, 700.0))),
            _cloglog_ratio,
            _cloglog_ratio_slope,
        ),
        Link(
            "cauchit",
            lambda mu: np.tan(np.pi * (mu - 0.5)),
            lambda eta: 0.5 + np.arctan(eta) / np.pi,
            lambda eta: 1.0 / (np.pi * (1.0 + eta**2)),
            lambda eta: -2.0 * eta / (np.pi * (1.0 + eta**2) ** 2),
        ),
        Link(
            "inverse",
            lambda mu: 1.0 / mu,
            lambda eta: 1.0 / eta,
            lambda eta: -1.0 / eta**2,
            lambda eta: 2.0 / eta**3,
        ),
        Link(
            "sqrt",
            np.sqrt,
            lambda eta: eta**2,
            lambda eta: 2.0 * eta,
            lambda eta: np.full_like(eta, 2.0),
        ),
    )
}


@dataclass(frozen=True, slots=True)
class Family:
    r"""A family: variance :math:`V(\mu)`, its slope, and where fitting begins."""

    name: str
    canonical: str
    links: tuple[str, ...]
    variance: _Function
    variance_slope: _Function
    starting_mean: Callable[[Vector, float], Vector]
    has_dispersion: bool
    lowest: float = -np.inf
    highest: float = np.inf

    def check_response(self, y: Vector) -> None:
        """Raise where the outcome lies outside the range of the family.

        Raises
        ------
        DataError
            Naming the first rows.
        """
        bad = (y < self.lowest) | (y > self.highest)
        if bad.any():
            wanted = (
                f"between {self.lowest:g} and {self.highest:g}"
                if np.isfinite(self.highest)
                else f"at least {self.lowest:g}"
            )
            raise DataError(
                f"`y` must be {wanted} for the {self.name} family; it is not in "
                f"{show_rows(np.flatnonzero(bad))}."
            )
        if len(y) and np.ptp(y) == 0:
            raise DataError(
                f"`y` is constant ({y[0]:g} in every row), so nothing can be "
                "estimated; check the outcome and the rows kept."
            )


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            "gaussian",
            "identity",
            ("identity", "log", "inverse"),
            np.ones_like,
            np.zeros_like,
            lambda y, _: y,
            True,
        ),
        Family(
            "binomial",
            "logit",
            ("logit", "probit", "cloglog", "cauchit", "log", "identity"),
            lambda mu: mu * (1.0 - mu),
            lambda mu: 1.0 - 2.0 * mu,
            lambda y, _: (y + 0.5) / 2.0,
            False,
            0.0,
            1.0,
        ),
        Family(
            "poisson",
            "log",
            ("log", "identity", "sqrt"),
            lambda mu: mu,
            np.ones_like,
            lambda y, mean: (y + mean) / 2.0,
            False,
            0.0,
        ),
    )
}


def family_and_link(family: str, link: str | None) -> tuple[Family, Link]:
    """Return a family and one of its links by name, the canonical one by default.

    Examples
    --------
    >>> family_and_link("poisson", None)[1].name
    'log'

    Raises
    ------
    ValueError
        If either is unknown.
    """
    if family not in FAMILIES:
        raise ValueError(f"`family` must be one of {sorted(FAMILIES)}; got {family!r}.")
    chosen = FAMILIES[family]
    name = link or chosen.canonical
    if name not in chosen.links:
        raise ValueError(
            f"`link` for the {family} family must be one of {list(chosen.links)}; "
            f"got {name!r}."
        )
    return chosen, LINKS[name]
