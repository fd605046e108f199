"""Hypothesis strategies: designs, tables, equations, functionals and examples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import pandas as pd
from hypothesis import strategies as st

from eestim._arrays import IntVector, Matrix, Vector
from eestim.equations import equation
from eestim.models.basic import mean
from eestim.models.linear import glm, ols
from eestim.weights import Frequency, Sampling

__all__ = [
    "DESIGN_KINDS",
    "Design",
    "DesignKind",
    "Functional",
    "designs",
    "equations",
    "example_table",
    "functionals",
    "tables",
]

DesignKind: TypeAlias = Literal[
    "well conditioned",
    "badly scaled",
    "nearly collinear",
    "few clusters",
    "heavy-tailed",
    "weighted",
]
DESIGN_KINDS: tuple[DesignKind, ...] = get_args(DesignKind)


@dataclass(frozen=True, slots=True, eq=False)
class Design:
    """A design with an outcome of every family, clusters and weights.

    Attributes
    ----------
    kind : str
        One of `DESIGN_KINDS`.
    X : (n, p) array
        The first column is the intercept.
    outcomes : mapping
        "gaussian", "binomial" and "poisson" outcomes, (n,).
    clusters : (n,) array of int
    weights : (n,) array
        Whole numbers from 1 to 4, all 1 unless the kind is "weighted".
    seed : int
        What made it.
    """

    kind: DesignKind
    X: Matrix
    outcomes: dict[str, Vector]
    clusters: IntVector
    weights: Vector
    seed: int

    def __repr__(self) -> str:
        n, p = self.X.shape
        return f"Design({self.kind!r}, n={n}, p={p}, seed={self.seed})"


def made_design(kind: DesignKind, n: int, p: int, seed: int) -> Design:
    """Return the design of a kind, a size and a seed; condition below 1e4 scaled."""
    rng = np.random.default_rng(seed)
    Z = (
        rng.standard_t(3, (n, p - 1))
        if kind == "heavy-tailed"
        else (rng.normal(size=(n, p - 1)))
    )
    if kind == "nearly collinear" and p > 2:
        Z[:, -1] = Z[:, 0] + 1e-3 * Z[:, -1]
    clusters = rng.integers(0, 6 if kind == "few clusters" else max(n // 4, 6), n)
    eta = (
        0.4 * np.clip(Z, -4, 4) @ rng.normal(size=p - 1) / np.sqrt(max(p - 1, 1)) + 0.2
    )
    if kind == "few clusters":
        eta = eta + 0.3 * rng.normal(size=clusters.max() + 1)[clusters]
    noise = rng.standard_t(3, n) if kind == "heavy-tailed" else rng.normal(size=n)
    outcomes = {
        "gaussian": eta + noise * (0.5 + rng.random(n)),
        "binomial": (rng.random(n) < 1 / (1 + np.exp(-eta))).astype(float),
        "poisson": rng.poisson(np.exp(eta)).astype(float),
    }
    if kind == "badly scaled":
        Z = Z * 10.0 ** rng.integers(-6, 7, p - 1)
    weights = rng.integers(1, 5, n) if kind == "weighted" else np.ones(n)
    X = np.column_stack([np.ones(n), Z])
    return Design(kind, X, outcomes, clusters, weights.astype(float), seed)


def designs(
    kinds: Sequence[DesignKind] = DESIGN_KINDS, max_p: int = 4, max_n: int = 120
) -> st.SearchStrategy[Design]:
    """Return designs of the given kinds, n at least 15 p; they shrink on n.

    Examples
    --------
    >>> from hypothesis import find
    >>> find(designs(["badly scaled"]), lambda design: True)
    Design('badly scaled', n=30, p=2, seed=0)
    """

    @st.composite
    def draw_design(draw: Callable[[Any], Any]) -> Design:
        kind = draw(st.sampled_from(list(kinds)))
        p = draw(st.integers(2, max_p))
        n = draw(st.integers(15 * p, max(max_n, 15 * p)))
        return made_design(kind, n, p, draw(st.integers(0, 2**16)))

    return draw_design()


def example_table(rng: np.random.Generator, n: int = 80) -> pd.DataFrame:
    """Return a table with outcomes y (real), b (0, 1), c (counts) and covariates.

    Columns x and z are covariates, g a group, w a count and e an exposure.
    """
    x, z = rng.normal(size=n), rng.normal(size=n) * 3 + 1
    eta = 0.3 + 0.6 * x - 0.2 * z
    return pd.DataFrame(
        {
            "x": x,
            "z": z,
            "g": rng.integers(0, 12, n),
            "y": eta + rng.standard_t(5, n),
            "b": (rng.random(n) < 1 / (1 + np.exp(-eta))).astype(float),
            "c": rng.poisson(np.exp(0.5 * eta)).astype(float),
            "w": rng.integers(1, 4, n),
            "e": rng.uniform(0.5, 2.0, n),
        }
    )


def tables(max_n: int = 120) -> st.SearchStrategy[pd.DataFrame]:
    """Return tables as `example_table` makes them."""
    return st.builds(
        lambda seed, n: example_table(np.random.default_rng(seed), n),
        st.integers(0, 2**16),
        st.integers(40, max_n),
    )


# ------------------------------------------------------------------------ equations


def _logistic(theta: Any, data: Any) -> Matrix:
    mu = 1.0 / (1.0 + np.exp(-(data["X"] @ np.asarray(theta))))
    rows: Matrix = (data["y"] - mu)[:, None] * data["X"]
    return rows


def _moments(theta: Any, data: Any) -> Matrix:
    centred = data["y"] - theta[0]
    return np.column_stack([centred, centred**2 - theta[1]])


def equations(
    design: st.SearchStrategy[Design] | None = None,
) -> st.SearchStrategy[Any]:
    """Return equations of the package and functions of NumPy, on drawn designs."""
    made: list[Callable[[Design], Any]] = [
        lambda d: mean(d.outcomes["gaussian"]),
        lambda d: ols(d.outcomes["gaussian"], d.X),
        lambda d: ols(d.outcomes["gaussian"], d.X, weights=Frequency(d.weights)),
        lambda d: ols(d.outcomes["gaussian"], d.X, weights=Sampling(d.weights)),
        lambda d: glm(d.outcomes["binomial"], d.X, family="binomial"),
        lambda d: glm(d.outcomes["poisson"], d.X, family="poisson"),
        lambda d: equation(
            _moments, {"y": d.outcomes["gaussian"]}, [0.0, 1.0], units=d.clusters
        ),
        lambda d: equation(
            _logistic, {"y": d.outcomes["binomial"], "X": d.X}, np.zeros(d.X.shape[1])
        ),
    ]
    return st.builds(
        lambda make, drawn: make(drawn),
        st.sampled_from(made),
        designs() if design is None else design,
    )


# ---------------------------------------------------------------------- functionals


@dataclass(frozen=True, slots=True, eq=False)
class Functional:
    """A function of theta with its gradient.

    Attributes
    ----------
    name : str
    value : callable
        From (p,) to a float.
    gradient : callable
        From (p,) to (p,).
    """

    name: str
    value: Callable[[Vector], float]
    gradient: Callable[[Vector], Vector]

    def __repr__(self) -> str:
        return f"Functional({self.name})"


def functionals(p: int) -> st.SearchStrategy[Functional]:
    """Return contrasts, exponentials of them and products of two of them.

    Examples
    --------
    >>> from hypothesis import find
    >>> find(functionals(2), lambda h: True).value(np.array([1.0, 2.0]))
    0.0
    """
    numbers = st.integers(-3, 3).map(float)
    vectors = st.lists(numbers, min_size=p, max_size=p).map(np.array)

    def linear(c: Vector) -> Functional:
        return Functional(f"{c} theta", lambda t: float(c @ t), lambda t: c)  # noqa: ARG005

    def exponential(c: Vector) -> Functional:
        c = c / 10.0
        return Functional(
            f"exp({c} theta)",
            lambda t: float(np.exp(c @ t)),
            lambda t: np.exp(c @ t) * c,
        )

    def product(c: Vector, d: Vector) -> Functional:
        return Functional(
            f"({c} theta)({d} theta)",
            lambda t: float((c @ t) * (d @ t)),
            lambda t: (d @ t) * c + (c @ t) * d,
        )

    return st.one_of(
        vectors.map(linear),
        vectors.map(exponential),
        st.builds(product, vectors, vectors),
    )
