"""Run properties on examples drawn by Hypothesis, and shrink what fails."""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

from eestim.errors import CapabilityError, EestimError
from eestim.testing.properties import CONTRACT, PROPERTIES
from eestim.testing.records import (
    Example,
    FailedCheckError,
    Property,
    UnusableError,
    Violation,
)
from eestim.testing.reproduce import counterexample
from eestim.testing.subjects import Source, Subject, source_of

__all__ = ["check_equation", "check_property", "examples_of"]

_SHRINKING = 150  # runs of one property spent on a smaller counter-example
_QUIET: dict[str, Any] = {
    "database": None,
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
}

_NO_FIT = Property(
    0,
    "a root",
    "the equation has a root with a covariance",
    0.0,
    0.0,
    "it is found or it is not",
    lambda subject: True,  # noqa: ARG005
    lambda subject, bound: None,  # noqa: ARG005
)


def examples_of(
    source: Source, fewest: int | None = None
) -> st.SearchStrategy[Example]:
    """Return the examples of an equation: seeds, a distance, which rows are kept."""
    least = source.fewest if fewest is None else fewest
    rows: st.SearchStrategy[int | None] = st.none()
    if source.n_rows is not None and source.n_rows > least:
        rows = st.integers(least, source.n_rows)
    chooses = source.n_rows is not None or source.kind == "rng"
    return st.builds(
        Example,
        seed=st.integers(0, 2**16),
        shift=st.integers(1, 10).map(lambda tenths: tenths / 10),
        n_rows=rows,
        data_seed=st.integers(0, 2**16) if chooses else st.just(0),
    )


def violation_of(failed: Property, subject: Subject) -> Violation | None:
    """Return how a property fails for a subject, or None.

    Raises
    ------
    EestimError
        If it cannot be checked on this example.
    """
    # Every property draws its own numbers, whatever was checked before it.
    subject.__dict__["rng"] = np.random.default_rng(
        [subject.example.seed, failed.number]
    )
    with np.errstate(all="ignore"):
        try:
            bound = failed.bound(subject) if failed.number else failed.tolerance
            failed.check(subject, bound)
        except Violation as found:
            return found
        except EestimError as error:
            if failed.number or isinstance(error, UnusableError):
                raise
            return Violation(f"{type(error).__name__}: {error}")
    return None


def check_property(
    which: int | str, equation: Any, example: Example | None = None, *, data: Any = None
) -> None:
    """Check one property on one example.

    Parameters
    ----------
    which : int or str
        The number of a property, or the name of one without a number.
    equation : equation or factory
        As in `check_equation`.
    example : Example, optional
    data : table, optional
        What a factory is called with.

    Raises
    ------
    PropertyError
        If it does not hold.
    ValueError
        If there is no such property.

    Examples
    --------
    >>> import eestim as ee
    >>> check_property(31, ee.mean([1.0, 2.0, 4.0]))
    """
    known = [
        p for p in (*CONTRACT, *PROPERTIES, _NO_FIT) if which in (p.number, p.name)
    ]
    if not known or which == 0:
        raise ValueError(
            f"`which` must be a number from 1 to 49 or the name of a property; got "
            f"{which!r}."
        )
    source, at = source_of(equation, data), example or Example()
    subject = source.subject(at)
    found = (
        _fit_failure(subject)
        if known[0] is _NO_FIT
        else violation_of(known[0], subject)
    )
    if found is not None:
        raise FailedCheckError(
            known[0], at, found, counterexample(source, known[0], at)
        )


def _fit_failure(subject: Subject) -> Violation | None:
    with np.errstate(all="ignore"):
        try:
            subject.fit  # noqa: B018 - cached
        except CapabilityError:
            raise  # more equations than parameters: there is no root to find
        except EestimError as error:
            return Violation(
                f"{type(error).__name__}: {error}", "the model has no root"
            )
    return None


class _Run:
    """One check of an equation: which properties were seen, on how many examples."""

    def __init__(self, source: Source, wanted: Sequence[Property]) -> None:
        self.source, self.wanted = source, wanted
        self.seen: dict[tuple[int, str], int] = {}
        self.failure: tuple[Property, Example, Violation] | None = None
        self.unfit: Violation | None = None
        self.number = 0

    def example(self, example: Example) -> None:
        """Check every property that applies on one example, until one fails."""
        if self.failure is not None:
            return
        try:
            subject = self.source.subject(example)
        except UnusableError:
            return
        contract = [p for p in self.wanted if not p.number]
        rest = [p for p in self.wanted if p.number]
        if self._fails(contract, subject):
            return
        try:
            unfit = None if subject.is_degenerate else _fit_failure(subject)
        except CapabilityError:
            self.number += 1
            return
        if unfit is not None:
            self.unfit = unfit
            if subject.is_whole and self.source.kind != "rng":
                self.failure = (_NO_FIT, example, unfit)
            return
        self._fails(rest, subject)
        self.number += 1

    def _fails(self, wanted: Iterable[Property], subject: Subject) -> bool:
        for one in wanted:
            if self.number % one.every:
                continue
            try:
                if not one.applies(subject):
                    continue
                found = violation_of(one, subject)
            except (EestimError, np.linalg.LinAlgError):
                continue  # this example says nothing about it
            key = (one.number, one.name)
            self.seen[key] = self.seen.get(key, 0) + 1
            if found is not None:
                self.failure = (one, subject.example, found)
                return True
        return False


def check_equation(
    equation: Any,
    *,
    data: Any = None,
    examples: int = 20,
    seed: int = 0,
    properties: Iterable[int] | None = None,
    count: Callable[[int], None] | None = None,
) -> list[Property]:
    """Check that an equation has the properties that its sandwich relies on.

    Parameters
    ----------
    equation : equation, or factory
        An estimating equation, or a function that makes one from a table (its argument
        is called ``data``, or `data` is given here) or from a numpy Generator.
    data : table, optional
        What a factory is called with; its rows are chosen, permuted and repeated.
    examples : int
        How many examples are drawn besides the equation as it is.
    seed : int
        Of Hypothesis.
    properties : iterable of int, optional
        Numbers of the properties to check; all by default. Those without a number,
        which any equation must have, are always checked first.
    count : callable, optional
        Called with the number of examples done, for progress.

    Returns
    -------
    list of Property
        Those that applied and held, in the order of their numbers.

    Raises
    ------
    PropertyError
        With the property, a shrunk counter-example as code that runs, and a likely
        cause.
    TypeError
        If `equation` is neither an equation nor makes one.

    Examples
    --------
    >>> import eestim as ee
    >>> values = np.random.default_rng(0).normal(size=40)
    >>> held = check_equation(ee.mean(values), examples=2)
    >>> 31 in [one.number for one in held]
    True
    >>> def sums(theta, data):
    ...     return np.full((40, 1), np.sum(data["y"] - theta[0]))
    >>> check_equation(ee.equation(sums, {"y": values}, [0.0]), examples=2)
    Traceback (most recent call last):
        ...
    eestim.testing.records.FailedCheckError: property units differ does not hold: ...
    likely cause: psi sums over rows
    ...
    """
    source = source_of(equation, data)
    chosen = None if properties is None else set(properties)
    wanted = [
        one
        for one in (*CONTRACT, *PROPERTIES)
        if not one.number or chosen is None or one.number in chosen
    ]
    return checked(source, wanted, examples, seed, count)


def checked(
    source: Source,
    wanted: Sequence[Property],
    examples: int,
    seed: int = 0,
    count: Callable[[int], None] | None = None,
) -> list[Property]:
    """Return those of the wanted properties that applied, raising where one fails."""
    run = _Run(source, wanted)
    run.example(Example())
    if run.failure is None and examples:
        _drawn(run, examples, seed, count)
    if run.failure is None and not run.number and run.unfit is not None:
        run.failure = (_NO_FIT, Example(), run.unfit)
    if run.failure is not None:
        failed, example, found = _shrunk(source, *run.failure)
        raise FailedCheckError(
            failed, example, found, counterexample(source, failed, example)
        )
    return [one for one in wanted if (one.number, one.name) in run.seen]


def _drawn(
    run: _Run, examples: int, seed: int, count: Callable[[int], None] | None
) -> None:
    done = 0

    @seeded(seed)
    @settings(max_examples=examples, phases=[Phase.generate], **_QUIET)
    @given(examples_of(run.source))
    def each(example: Example) -> None:
        nonlocal done
        run.example(example)
        done += 1
        if count is not None:
            count(done)

    each()


def _shrunk(
    source: Source, failed: Property, example: Example, found: Violation
) -> tuple[Property, Example, Violation]:
    """Return the smallest example of the same failure that Hypothesis finds."""
    best, runs = (example, found), 0
    fewest = max(source.p + 1, 2) if failed.number == 0 else source.fewest

    @seeded(0)
    @settings(max_examples=40, phases=[Phase.generate, Phase.shrink], **_QUIET)
    @given(examples_of(source, min(fewest, source.n_rows or fewest)))
    def attempt(candidate: Example) -> None:
        nonlocal best, runs
        runs += 1
        if runs > _SHRINKING:
            return
        again = _again(source, failed, candidate)
        if again is not None and again.cause == found.cause:
            best = candidate, again
            raise again

    with contextlib.suppress(Exception):  # what failed is in `best`, flaky or not
        attempt()
    return (failed, *best)


def _again(source: Source, failed: Property, candidate: Example) -> Violation | None:
    try:
        subject = source.subject(candidate)
        if failed is _NO_FIT:
            return _fit_failure(subject) if subject.is_whole else None
        return violation_of(failed, subject) if failed.applies(subject) else None
    except (EestimError, np.linalg.LinAlgError):
        return None
