"""Findings: what a check saw, what it means, and what to do about it."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["Finding", "FindingStatus"]

FindingStatus = Literal["pass", "warn", "fail", "not applicable"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One checked claim about a fit.

    Attributes
    ----------
    name : str
        What was checked.
    status : {"pass", "warn", "fail", "not applicable"}
        The verdict at ``threshold``.
    value, threshold : float
        The statistic and the bound it was compared with; NaN where none applies.
    meaning : str
        One sentence on what the value says about this fit.
    advice : str
        What to do next; empty when nothing needs doing.

    Examples
    --------
    >>> print(Finding("clusters", "warn", 6.0, 20.0, "6 clusters.", "Use CR2."))
    [warn] clusters: 6 clusters. Use CR2.
    """

    name: str
    status: FindingStatus
    value: float
    threshold: float
    meaning: str
    advice: str = ""

    def __str__(self) -> str:
        return f"[{self.status}] {self.name}: {self.meaning} {self.advice}".rstrip()
