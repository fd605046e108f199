"""Exceptions that eestim raises, each naming a cause and a cure.

::

    EestimError
    ├── DataError            (also ValueError)   data that no estimate can use
    ├── CapabilityError      (also TypeError)    an equation lacks what a rule needs
    ├── IdentificationError                      the sensitivity A is singular
    ├── ConvergenceError                         no root was found
    │   └── SeparationError                      the root lies at infinity
    ├── InferenceError                           a variance or test is undefined
    │   └── InterpolationError                   psi vanishes at every unit
    └── PropertyError        (also AssertionError)  a property check failed

A bad argument that says nothing about the data (an unknown option, a negative
level) is a plain ``ValueError`` or ``TypeError``.

An IdentificationError or InterpolationError of `eestim.estimate` answers ``regime()``
as a fit does: which asymptotics hold, what may be reported, and what to do instead.
"""

from collections.abc import Callable
from typing import Any

__all__ = [
    "CapabilityError",
    "ConvergenceError",
    "DataError",
    "EestimError",
    "IdentificationError",
    "InferenceError",
    "InterpolationError",
    "PropertyError",
    "SeparationError",
]


class EestimError(Exception):
    """Base of every failure that belongs to estimation rather than to Python."""


class DataError(EestimError, ValueError):
    """Data that no estimate can use: missing, infinite, empty or misaligned."""


class CapabilityError(EestimError, TypeError):
    """An equation lacks a capability that was asked of it."""


class _RefusalError(EestimError):
    """A refusal whose cause is the asymptotic regime of a fit."""

    _explain: Callable[[], Any] | None = None

    def __reduce__(self) -> Any:
        """Leave the equation behind: user functions cannot be pickled."""
        return type(self), self.args

    def explained_by(self, explain: Callable[[], Any]) -> None:
        """Keep how to find the regime, and say in tracebacks that it can be asked."""
        if self._explain is None:
            self._explain = explain
            self.add_note(
                "`regime()` of this error, or ee.asymptotics.regime(equation), says "
                "what can be reported and what to do instead."
            )

    def regime(self) -> Any:
        """Return the `eestim.asymptotics.Regime` of the equation that was refused.

        Raises
        ------
        CapabilityError
            If the error was not raised by `eestim.estimate`.
        """
        if self._explain is None:
            raise CapabilityError(
                "this error does not know its equation; call "
                "ee.asymptotics.regime(equation, theta)."
            )
        return self._explain()


class IdentificationError(_RefusalError):
    """The sensitivity is singular: some direction of theta is not identified."""


class ConvergenceError(EestimError):
    """The solver did not reach a root."""


class SeparationError(ConvergenceError):
    """The root lies at infinity, as in a completely separated logistic model."""


class InferenceError(EestimError):
    """A variance, an interval or a test is not defined for this fit."""


class InterpolationError(_RefusalError, InferenceError):
    """Every contribution vanishes at the root, so the sandwich would be zero."""


class PropertyError(EestimError, AssertionError):
    """An equation violates a property that its use in a sandwich requires."""
