"""Records of the property checks: examples, properties, violations and failures."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from eestim.errors import EestimError, PropertyError

__all__ = ["Example", "FailedCheckError", "Property", "UnusableError", "Violation"]


_ORBITS = 38  # the one property of an equation whose A is singular by design


@dataclass(frozen=True, slots=True)
class Example:
    """What one run of a property depends on; Hypothesis shrinks it.

    Attributes
    ----------
    seed : int
        Of the matrices, permutations and weights that a property draws.
    shift : float
        Distance from the root, in standard errors, at which psi is evaluated.
    n_rows : int or None
        How many rows of the data are kept, all of them where None.
    data_seed : int
        Of the choice of those rows, or of the generator handed to a factory.
    """

    seed: int = 0
    shift: float = 0.5
    n_rows: int | None = None
    data_seed: int = 0


class Violation(Exception):  # noqa: N818 - a finding, turned into an error later
    """A property that does not hold, with the likely cause where one is known."""

    def __init__(self, message: str, cause: str = "") -> None:
        super().__init__(message)
        self.message, self.cause = message, cause


class UnusableError(EestimError):
    """An example whose rows do not make the model: nothing can be said from it."""


@dataclass(frozen=True, slots=True)
class Property:
    """A property that a sandwich must have.

    Attributes
    ----------
    number : int
        Its number in the list of 49; 0 for what any equation must satisfy before a
        sandwich makes sense.
    name : str
    statement : str
        As a formula or a sentence.
    tolerance : float
        For an analytic A, relative to standard errors unless `reason` says otherwise.
    difference_tolerance : float
        The same where A is by differences.
    reason : str
        Why this tolerance.
    needs : callable
        From a subject to bool: what `applies` asks.
    check : callable
        ``check(subject, tolerance)`` raises `Violation`.
    every : int
        Run on one example in so many: costly ones are run less.
    """

    number: int
    name: str
    statement: str
    tolerance: float
    difference_tolerance: float
    reason: str
    needs: Callable[[Any], bool]
    check: Callable[[Any, float], None]
    every: int = 1

    def applies(self, equation: Any) -> bool:
        """Return whether the property makes sense for an equation or a factory."""
        from eestim.testing.subjects import Subject, source_of

        subject = equation
        if not isinstance(equation, Subject):
            subject = source_of(equation).subject(Example())
        if subject.is_degenerate and self.number:
            return self.number == _ORBITS
        return self.needs(subject)

    def bound(self, subject: Any) -> float:
        """Return the tolerance for a subject: its derivative, its conditioning."""
        if subject.is_degenerate:
            return self.tolerance
        exact = subject.is_exact and subject.is_smooth
        own = self.tolerance if exact else self.difference_tolerance
        return own * float(subject.slack)

    def __str__(self) -> str:
        return f"{self.number} {self.name}" if self.number else self.name


class FailedCheckError(PropertyError):
    """A property that failed, with what is needed to see it fail again.

    Attributes
    ----------
    property : Property
    example : Example
        The shrunk example.
    cause : str
        The likely cause, in a few words.
    counterexample : str
        Python code that fails in the same way.
    """

    def __init__(
        self, failed: Property, example: Example, violation: Violation, code: str
    ) -> None:
        self.property, self.example = failed, example
        self.cause, self.counterexample = violation.cause, code
        self.violation = violation.message
        likely = f"\nlikely cause: {violation.cause}" if violation.cause else ""
        super().__init__(
            f"property {failed} does not hold: {violation.message}{likely}\n"
            f"property: {failed.statement}\n"
            f"tolerance: {failed.reason}\n\ncounter-example:\n\n{_indented(code)}"
        )


def _indented(code: str) -> str:
    return "\n".join(f"    {line}" if line else "" for line in code.splitlines())
