"""Run the checks that apply to a fit, and show what they found."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from eestim.diagnostics.solution import (
    derivative_check,
    rank_check,
    root_multiplicity,
    root_residual,
)
from eestim.diagnostics.specification import information_matrix_test, variance_ratio
from eestim.diagnostics.stability import (
    half_sample_stability,
    influence_check,
    rate_check,
)
from eestim.errors import CapabilityError, EestimError
from eestim.findings import Finding

__all__ = ["Findings", "diagnose"]

_Check = Callable[[Any, np.random.Generator], Finding]

_CHECKS: dict[str, _Check] = {
    "root residual": lambda fit, _: root_residual(fit),
    "rank": lambda fit, _: rank_check(fit),
    "derivative": derivative_check,
    "influence": lambda fit, _: influence_check(fit),
    "variance ratio": lambda fit, _: variance_ratio(fit),
    "information matrix": lambda fit, _: information_matrix_test(fit),
    "half-sample stability": half_sample_stability,
    "root multiplicity": root_multiplicity,
    "rate": rate_check,
}


@dataclass(frozen=True, slots=True)
class Findings:
    """The findings of `diagnose`, in the order in which checks ran.

    Attributes
    ----------
    items : tuple of Finding
    seed : int
        Of the generator that the checks used.
    """

    items: tuple[Finding, ...]
    seed: int

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
        """Return one row a check: status, value, threshold, meaning, advice."""
        rows = [
            {name: getattr(finding, name) for name in Finding.__slots__}
            for finding in self.items
        ]
        return pd.DataFrame(rows).set_index("name")

    def __str__(self) -> str:
        width = max((len(finding.name) for finding in self.items), default=0)
        lines = [
            f"{finding.status:>14}  {finding.name:<{width}}  {finding.meaning}"
            + (f"\n{'':>{width + 18}}{finding.advice}" if finding.advice else "")
            for finding in self.items
        ]
        return "\n".join(lines)


def diagnose(fit: Any, *, budget: float = 10.0, seed: int = 0) -> Findings:
    """Return what the checks that apply to a fit find, within a time budget.

    Parameters
    ----------
    fit : Estimate
    budget : float
        Seconds; a check is not begun after it is spent, and says so.
    seed : int
        Of the generator for random directions, halves, starts and subsamples.

    Examples
    --------
    >>> import eestim as ee
    >>> rng = np.random.default_rng(1)
    >>> found = diagnose(ee.estimate(ee.mean(rng.normal(5, 1, 200))))
    >>> found.worst, found["root residual"].status
    ('pass', 'pass')
    """
    began = time.monotonic()
    found = [*fit.findings]
    for name, check in _CHECKS.items():
        if time.monotonic() - began > budget:
            found.append(
                _skipped(name, f"not run: the budget of {budget:g} s is spent.")
            )
            continue
        try:
            found.append(check(fit, np.random.default_rng(seed)))
        except CapabilityError as error:
            found.append(_skipped(name, str(error)))
        except EestimError as error:
            found.append(
                Finding(name, "fail", np.nan, np.nan, str(error), "See the message.")
            )
    return Findings(tuple(found), seed)


def _skipped(name: str, why: str) -> Finding:
    return Finding(name, "not applicable", np.nan, np.nan, why)
