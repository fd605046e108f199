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
"""

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


class IdentificationError(EestimError):
    """The sensitivity is singular: some direction of theta is not identified."""


class ConvergenceError(EestimError):
    """The solver did not reach a root."""


class SeparationError(ConvergenceError):
    """The root lies at infinity, as in a completely separated logistic model."""


class InferenceError(EestimError):
    """A variance, an interval or a test is not defined for this fit."""


class InterpolationError(InferenceError):
    """Every contribution vanishes at the root, so the sandwich would be zero."""


class PropertyError(EestimError, AssertionError):
    """An equation violates a property that its use in a sandwich requires."""
