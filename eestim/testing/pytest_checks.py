"""A parametrisation for pytest: one test for every equation and property."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from eestim.errors import EestimError
from eestim.testing.properties import CONTRACT, PROPERTIES
from eestim.testing.records import Example, Property
from eestim.testing.running import checked
from eestim.testing.subjects import source_of

__all__ = ["parametrize_properties"]


@dataclass(frozen=True, slots=True)
class _Check:
    """Check some properties of an equation, one or those that come before all."""

    name: str
    properties: tuple[Property, ...]
    examples: int

    def __call__(self, equation: Any) -> None:
        checked(source_of(equation), self.properties, self.examples)

    def __str__(self) -> str:
        return self.name


def parametrize_properties(
    cases: Iterable[Any] | Mapping[str, Any], *, examples: int = 5
) -> Callable[[Any], Any]:
    """Return a decorator: a test for every equation and each of its properties.

    The test takes two arguments, the equation and a check to call with it.

    Parameters
    ----------
    cases : iterable or mapping
        Equations or factories, as for `check_equation`; pairs (name, equation); or a
        mapping from names.
    examples : int
        Examples of each check.

    Examples
    --------
    >>> import eestim as ee
    >>> @parametrize_properties([ee.mean([1.0, 2.0, 4.0, 8.0, 9.0])])
    ... def test_properties(equation, check):
    ...     check(equation)
    """
    import pytest

    rows, labels = [], []
    for name, case in _named(cases):
        for check in _checks_of(case, examples):
            rows.append((case, check))
            labels.append(f"{name}-{check}")

    def decorate(test: Any) -> Any:
        arguments = list(inspect.signature(test).parameters)[:2]
        if len(arguments) < 2:
            raise TypeError(
                "the test must take two arguments, an equation and a check to call "
                f"with it; got {arguments}."
            )
        return pytest.mark.parametrize(arguments, rows, ids=labels)(test)

    return decorate


def _named(cases: Iterable[Any] | Mapping[str, Any]) -> list[tuple[str, Any]]:
    if isinstance(cases, Mapping):
        return [(str(name), case) for name, case in cases.items()]
    made = []
    for place, case in enumerate(cases):
        if isinstance(case, tuple) and len(case) == 2 and isinstance(case[0], str):
            made.append(case)
        else:
            name = getattr(case, "__name__", type(case).__name__)
            made.append((f"{name}{place}", case))
    return made


def _checks_of(case: Any, examples: int) -> list[_Check]:
    """Return a check of the contract and one of every property that applies."""
    first = _Check("contract", CONTRACT, examples)
    try:
        subject = source_of(case).subject(Example())
        found: list[Property] = [one for one in PROPERTIES if one.applies(subject)]
    except EestimError:  # no root: the contract check tells why
        found = []
    return [first, *(_Check(str(one), (one,), examples) for one in found)]
