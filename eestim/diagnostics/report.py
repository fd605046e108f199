"""Run the checks that apply to a fit, and show what they found."""

import html
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from eestim._arrays import Matrix, Vector
from eestim.diagnostics._verdicts import not_applicable
from eestim.diagnostics.identification import (
    rank_check,
    separation_check,
    weak_rank_check,
)
from eestim.diagnostics.information import (
    information_matrix_test,
    information_ratio_test,
)
from eestim.diagnostics.latent import latent_noise
from eestim.diagnostics.rate import RateCurve, rate_finding, subsample_rate
from eestim.diagnostics.solution import (
    derivative_check,
    root_multiplicity,
    root_residual,
)
from eestim.diagnostics.specification import (
    over_identification_check,
    unbiasedness_check,
    variance_ratio,
)
from eestim.diagnostics.stability import half_sample_stability, influence_check
from eestim.equations import EstimatingEquation
from eestim.errors import CapabilityError, EestimError, InferenceError
from eestim.findings import Finding

__all__ = ["Findings", "diagnose"]

_ORDER = {"fail": 0, "warn": 1, "pass": 2, "not applicable": 3}
_CERTAIN = 1e-3  # level where more data can be simulated at will
_VAGUE = 0.12  # standard error of a slope that tells nothing about -1/2 and -1/4
_MOST_DRAWS = 240  # subsamples of a size: a standard error of about 0.05
_COLUMNS = ("status", "check", "statistic", "threshold", "p", "meaning")


@dataclass(frozen=True, slots=True)
class Findings:
    """The findings of `diagnose`, in the order in which checks ran.

    Attributes
    ----------
    items : tuple of Finding
    seed : int
        Of the generator that the checks used.
    fit : Estimate or None
        What was checked, for the plots.
    curve : RateCurve or None
        Subsample estimates of the rate check, where it ran.
    """

    items: tuple[Finding, ...]
    seed: int
    fit: Any = field(default=None, repr=False, compare=False)
    curve: RateCurve | None = field(default=None, repr=False, compare=False)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, name: str) -> Finding:
        for finding in self.items:
            if finding.name == name:
                return finding
        raise KeyError(f"no check {name!r}; there are {[f.name for f in self.items]}")

    @property
    def worst(self) -> str:
        """The worst status: "fail", "warn" or "pass"."""
        found = {finding.status for finding in self.items}
        return next((s for s in ("fail", "warn") if s in found), "pass")

    def to_frame(self) -> pd.DataFrame:
        """Return one row a check: every field of its Finding."""
        rows = [
            {name: getattr(finding, name) for name in Finding.__slots__}
            for finding in self.items
        ]
        return pd.DataFrame(rows).set_index("name")

    def _rows(self) -> list[tuple[str, ...]]:
        found = sorted(self.items, key=lambda finding: _ORDER[finding.status])
        return [
            (f.status, f.name, *map(_number, (f.value, f.threshold, f.p)), f.meaning)
            for f in found
        ]

    def _advice(self) -> list[tuple[str, str]]:
        return [(f.name, f.advice) for f in self.items if f.advice]

    def __str__(self) -> str:
        rows = [_COLUMNS, *self._rows()]
        widths = [max(len(row[j]) for row in rows) for j in range(5)]
        lines = [
            "  ".join(
                [*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[5]]
            )
            for row in rows
        ]
        lines += [f"{name}: {advice}" for name, advice in self._advice()]
        return "\n".join(line.rstrip() for line in lines)

    def to_markdown(self) -> str:
        """Return the table in Markdown, the advice below it."""
        rows = [_COLUMNS, ("---",) * len(_COLUMNS), *self._rows()]
        lines = [
            "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
            for row in rows
        ]
        lines += ["", *(f"- {name}: {advice}" for name, advice in self._advice())]
        return "\n".join(lines).rstrip()

    def to_html(self) -> str:
        """Return the table as an HTML fragment, the advice below it."""

        def line(cells: tuple[str, ...], tag: str) -> str:
            inner = "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)
            return f"<tr>{inner}</tr>"

        body = "".join(line(row, "td") for row in self._rows())
        advice = "".join(
            f"<li>{html.escape(name)}: {html.escape(text)}</li>"
            for name, text in self._advice()
        )
        return (
            f"<table><thead>{line(_COLUMNS, 'th')}</thead><tbody>{body}</tbody></table>"
            + (f"<ul>{advice}</ul>" if advice else "")
        )

    def _repr_html_(self) -> str:
        return self.to_html()

    def plot(self) -> Any:
        """Return a figure of the checks (`eestim.diagnostics.plot_diagnostics`)."""
        from eestim.diagnostics.plots import plot_diagnostics

        if self.fit is None:
            raise ValueError("these findings hold no fit; use those of `diagnose`.")
        return plot_diagnostics(self.fit, self.curve)


def _number(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.3g}"


def diagnose(
    fit: Any,
    *,
    budget: float = 10.0,
    seed: int = 0,
    h: Callable[[Vector], float] | None = None,
    simulate: Callable[[Vector, np.random.Generator], Matrix] | None = None,
    latent: Callable[[np.random.Generator], Matrix] | None = None,
    moments: EstimatingEquation | None = None,
) -> Findings:
    """Return what the checks that apply to a fit find, within a time budget.

    Parameters
    ----------
    fit : Estimate
    budget : float
        Seconds; a check is not begun after it is spent, and says so. Refits to
        subsamples, the longest check, come last and are stopped with it.
    seed : int
        Of the generator for random directions, halves, starts and subsamples.
    h : callable, optional
        What is reported, from theta to a number: roots and rates are judged by it.
    simulate : callable, optional
        See `unbiasedness_check`.
    latent : callable, optional
        ``latent(rng) -> (n, q)``: contributions at the estimate with fresh latent
        draws, for the share of the variance that draws make.
    moments : EstimatingEquation, optional
        More equations than parameters, of which the fit solves a combination (two-stage
        least squares, GMM): whether they agree is tested by Hansen's J
        (`over_identification_check`).

    Examples
    --------
    >>> import eestim as ee
    >>> rng = np.random.default_rng(1)
    >>> found = diagnose(ee.estimate(ee.mean(rng.normal(5, 1, 200))))
    >>> found.worst, found["root residual"].status
    ('pass', 'pass')
    """
    deadline = time.monotonic() + budget
    found = [f for f in fit.findings if f.name != "root residual"]
    known = {finding.name for finding in found}
    checks = _checks(fit, h, simulate, latent, moments)
    for name, check in checks.items():
        if name not in known:  # the fit was told of the equation behind it
            found.append(_run(name, check, deadline, budget, seed))
    curve = None
    if time.monotonic() > deadline:
        found.append(_too_late("rate", budget))
    else:
        curve, finding = _rate(fit, h, deadline, seed)
        found.append(finding)
    return Findings(tuple(found), seed, fit, curve)


_Check = Callable[[np.random.Generator], Finding]


def _checks(
    fit: Any, h: Any, simulate: Any, latent: Any, moments: Any
) -> dict[str, _Check]:
    """Return the checks in the order of their cost."""
    checks: dict[str, _Check] = {
        "root residual": lambda _: root_residual(fit),
        "rank": lambda _: rank_check(fit),
        "weak rank": lambda _: weak_rank_check(fit),
        "influence": lambda _: influence_check(fit),
        "variance ratio": lambda _: variance_ratio(fit),
        "information matrix": lambda _: information_matrix_test(fit),
        "unbiasedness": lambda rng: unbiasedness_check(
            fit, rng, simulate, level=_CERTAIN
        ),
        "derivative": lambda rng: derivative_check(fit, rng),
        "separation": lambda _: separation_check(fit),
        "half-sample stability": lambda rng: half_sample_stability(fit, rng),
        "root multiplicity": lambda rng: root_multiplicity(fit, rng, h=h),
        "information ratio": lambda rng: information_ratio_test(fit, rng),
    }
    if moments is not None:  # cheap, so the first
        checks = {
            "over-identification": lambda _: over_identification_check(fit, moments),
            **checks,
        }
    if latent is not None:
        checks["latent noise"] = lambda rng: latent_noise(
            latent(rng), latent(rng), fit.equation.sensitivity(fit.theta)
        )
    return checks


def _run(
    name: str, check: _Check, deadline: float, budget: float, seed: int
) -> Finding:
    if time.monotonic() > deadline:
        return _too_late(name, budget)
    try:
        return check(_stream(seed, name))
    except CapabilityError as error:
        return not_applicable(name, str(error))
    except EestimError as error:
        return Finding(name, "fail", np.nan, np.nan, str(error), "See the message.")


def _stream(seed: int, name: str) -> np.random.Generator:
    """Return a generator of its own for a check.

    Not ``default_rng(seed)``: data simulated with that seed would be drawn again, and
    look like noise that knows the covariates.
    """
    return np.random.default_rng([seed, *name.encode()])


def _too_late(name: str, budget: float) -> Finding:
    return not_applicable(name, f"not run: the budget of {budget:g} s is spent.")


def _rate(
    fit: Any, h: Any, deadline: float, seed: int
) -> tuple[RateCurve | None, Finding]:
    """Return the rate with as many subsamples as the time left allows."""
    rng = _stream(seed, "rate")
    try:
        began = time.monotonic()
        curve = subsample_rate(fit, rng, h=h, draws=20)
        spent = time.monotonic() - began
        draws = int(20 * (deadline - time.monotonic()) / max(spent, 1e-6))
        if draws >= 40:
            rng = _stream(seed, "rate")
            curve = subsample_rate(fit, rng, h=h, draws=min(draws, _MOST_DRAWS))
    except (CapabilityError, InferenceError) as error:
        return None, not_applicable("rate", str(error))
    if curve.error > _VAGUE:
        return curve, not_applicable(
            "rate",
            f"The slope {curve.slope:.2f} has a standard error of {curve.error:.2f} "
            "after the subsamples that the budget allows; give a larger `budget`.",
        )
    return curve, rate_finding(curve)
