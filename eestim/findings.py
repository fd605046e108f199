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
    assumptions : str
        What the verdict rests on, and where it misleads.
    dof : float
        Degrees of freedom of the law of the statistic; NaN where it has none.
    p : float
        p value; NaN where the bound is not that of a test.

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
    assumptions: str = ""
    dof: float = float("nan")
    p: float = float("nan")

    @property
    def statistic(self) -> float:
        """The value that was compared with the threshold."""
        return self.value

    def __str__(self) -> str:
        return f"[{self.status}] {self.name}: {self.meaning} {self.advice}".rstrip()
