"""Design points of a study: their factors, their identity, and the truth at each."""

import hashlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

__all__ = ["RESERVED", "Point", "Scalar", "points_of", "words_of"]

Scalar: TypeAlias = bool | int | float | str
RESERVED = (
    "point",
    "replication",
    "method",
    "estimand",
    "truth",
    "estimate",
    "se",
    "dof",
    "lower",
    "upper",
    "status",
    "warnings",
    "message",
    "stream",
    "measure",
    "value",
    "mcse",
    "n_used",
    "n_failed",
    "reference",
    "difference",
    "level",
    "coverage",
    "what",
    "count",
    "share",
    "example",
)
_WORDS = 4  # 128 bits: no two design points share random numbers
_LONE = "theta"  # the estimand of a truth that is a bare number


@dataclass(frozen=True, slots=True)
class Point:
    """One combination of the factors.

    Attributes
    ----------
    number : int
        Its place in the design.
    factors : dict
    key : tuple of int
        Words that identify the factors, wherever the point stands in a design; its
        random numbers are drawn from them.
    truth : dict from estimand to float
    """

    number: int
    factors: dict[str, Scalar]
    key: tuple[int, ...]
    truth: dict[str, float]

    @property
    def name(self) -> str:
        """The key as text."""
        return "".join(f"{word:08x}" for word in self.key)

    def __str__(self) -> str:
        shown = ", ".join(f"{name}={value}" for name, value in self.factors.items())
        return shown or "the only design point"


def words_of(text: str) -> tuple[int, ...]:
    """Return 32-bit words that identify a text.

    >>> len(words_of("n=30"))
    4
    """
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return tuple(int(word) for word in np.frombuffer(digest, dtype="<u4")[:_WORDS])


def _scalar(value: Any, factor: str) -> Scalar:
    plain = value.item() if isinstance(value, np.generic) else value
    if isinstance(plain, bool | int | str):
        return plain
    if isinstance(plain, float) and np.isfinite(plain):
        return plain
    raise ValueError(
        f"`design` has the level {value!r} in factor {factor!r}; levels are finite "
        "numbers, text or booleans. Pass a name and look the object up in `generate`."
    )


def _canonical(factors: Mapping[str, Scalar]) -> str:
    """Return a text that is the same for equal points, 30 and 30.0 included."""
    plain = {
        name: int(value) if isinstance(value, float) and value.is_integer() else value
        for name, value in factors.items()
    }
    return json.dumps(plain, sort_keys=True)


def _combinations(design: Any) -> list[dict[str, Any]]:
    if design is None:
        return [{}]
    if isinstance(design, pd.DataFrame):
        records = design.to_dict("records")
        return [{str(name): row[name] for name in row} for row in records]
    if isinstance(design, Mapping):
        levels = [
            [value] if isinstance(value, str) or np.ndim(value) == 0 else list(value)
            for value in design.values()
        ]
        return [
            dict(zip(design, combination, strict=True))
            for combination in itertools.product(*levels)
        ]
    if isinstance(design, Sequence) and all(isinstance(row, Mapping) for row in design):
        return [dict(row) for row in design]
    raise ValueError(
        "`design` must be a mapping of factors to levels (all combinations), a "
        f"DataFrame or a sequence of mappings (one a point); got "
        f"{type(design).__name__}."
    )


def points_of(design: Any, truth: Any | Callable[..., Any]) -> tuple[Point, ...]:
    """Return the points of a design with the truth at each.

    Parameters
    ----------
    design : mapping, DataFrame, sequence of mappings or None
    truth : number, mapping from estimand to number, or callable of the factors

    Raises
    ------
    ValueError
        If the design or the truth cannot be used.

    Examples
    --------
    >>> [str(point) for point in points_of({"n": [30, 100], "rho": 0.5}, 1.0)]
    ['n=30, rho=0.5', 'n=100, rho=0.5']
    """
    rows = _combinations(design)
    if not rows or any(row.keys() != rows[0].keys() for row in rows):
        raise ValueError(
            "`design` needs at least one point, all with the same factors."
        )
    clash = [name for name in rows[0] if name in RESERVED]
    if clash:
        raise ValueError(f"`design` has factors {clash}; these names are taken.")
    points = []
    for number, row in enumerate(rows):
        factors = {name: _scalar(value, name) for name, value in row.items()}
        value = truth(**factors) if callable(truth) else truth
        points.append(
            Point(number, factors, words_of(_canonical(factors)), _estimands(value))
        )
    _check_points(points)
    return tuple(points)


def _estimands(truth: Any) -> dict[str, float]:
    named = truth if isinstance(truth, Mapping | pd.Series) else {_LONE: truth}
    try:
        values = {str(name): float(value) for name, value in named.items()}
    except (TypeError, ValueError):
        values = {}
    if not values or not np.isfinite(list(values.values())).all():
        raise ValueError(
            f"`truth` is {truth!r}; a finite number, or a mapping from the names of "
            "the estimands to numbers, was expected (or a function of the factors "
            "that returns one)."
        )
    return values


def _check_points(points: Sequence[Point]) -> None:
    seen: dict[tuple[int, ...], Point] = {}
    for point in points:
        if point.key in seen:
            raise ValueError(f"`design` has the point ({point}) twice.")
        seen[point.key] = point
        if point.truth.keys() != points[0].truth.keys():
            raise ValueError(
                f"`truth` names {list(point.truth)} at ({point}) and "
                f"{list(points[0].truth)} at ({points[0]}); every point needs the "
                "same estimands."
            )
    for name in points[0].factors:
        kinds = {_kind(point.factors[name]) for point in points}
        if len(kinds) > 1:
            raise ValueError(
                f"`design` mixes {' and '.join(sorted(kinds))} in factor {name!r}; use "
                "one type."
            )


def _kind(value: Scalar) -> str:
    if isinstance(value, str):
        return "text"
    return "booleans" if isinstance(value, bool) else "numbers"
