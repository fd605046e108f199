"""Every equation of the package, one row each, for the conformance checks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

import eestim as ee
from eestim.testing.strategies import example_table


@dataclass(frozen=True, slots=True)
class Case:
    """An equation made from a table, and where to look at it.

    ``build(table)`` must depend on the rows of the table alone, so that the checks
    can permute, split and duplicate them.
    """

    name: str
    build: Callable[[pd.DataFrame], Any]
    theta: Callable[[Any], np.ndarray]
    is_additive: bool = True  # psi and A of some rows are their part of the whole
    is_smooth: bool = True  # psi does not jump

    def __str__(self) -> str:
        return self.name


def table(n: int = 80, seed: int = 3) -> pd.DataFrame:
    return example_table(np.random.default_rng(seed), n)


def near(equation: Any) -> np.ndarray:
    """A point away from the root, where nothing cancels."""
    root = ee.estimate(equation).theta
    return root + 0.05 * np.arange(1, len(root) + 1) / len(root)


def mean_variance(theta: Any, data: Any) -> np.ndarray:
    centred = np.asarray(data["y"]) - theta["mean"]
    return np.column_stack([centred, centred**2 - theta["variance"]])


def ratio(theta: Any, data: Any) -> np.ndarray:
    """An asymmetric A: a mean, another mean, and their ratio."""
    y, e = np.asarray(data["y"]), np.asarray(data["e"])
    first = np.full(len(y), theta[0] - theta[2] * theta[1])
    return np.column_stack([y - theta[0], e - theta[1], first])


def logistic(theta: Any, data: Any) -> np.ndarray:
    design = np.column_stack([np.ones(len(data)), data["x"]])
    mu = 1 / (1 + np.exp(-(design @ np.asarray(theta))))
    return (np.asarray(data["b"]) - mu)[:, None] * design


def torch_logistic(theta: Any, data: Any) -> Any:
    import torch

    mu = torch.sigmoid(theta[0] + theta[1] * data["x"])
    residual = data["b"] - mu
    return torch.stack([residual, residual * data["x"]], dim=1)


def torch_equation(data: pd.DataFrame) -> Any:
    from eestim import autodiff

    return autodiff.equation(torch_logistic, data, [0.0, 0.0])


def propensity(data: pd.DataFrame) -> Any:
    """A stack: inverse-probability weighting by a fitted logit."""

    def effect(theta: Any, d: Any) -> np.ndarray:
        mu = 1 / (1 + np.exp(-(theta["ps[Intercept]"] + theta["ps[x]"] * d["x"])))
        return (d["b"] * d["y"] / mu - theta["effect"]).to_numpy()[:, None]

    logit = ee.glm("b ~ x", data, family="binomial")
    return ee.stack(ps=logit, effect=effect, data=data, start={"effect": 0.0})


def logistic_jacobian(theta: Any, data: Any) -> np.ndarray:
    design = np.column_stack([np.ones(len(data)), data["x"]])
    mu = 1 / (1 + np.exp(-(design @ np.asarray(theta))))
    return -(design.T * (mu * (1 - mu))) @ design / len(design)


def _glm(formula: str, **options: Any) -> Callable[[pd.DataFrame], Any]:
    return lambda data: ee.glm(formula, data, **options)


CASES = [
    Case("mean", lambda d: ee.mean("y", d), near),
    Case("ols", lambda d: ee.ols("y ~ x + z", d), near),
    Case(
        "ols, frequencies",
        lambda d: ee.ols("y ~ x", d, weights=ee.Frequency("w")),
        near,
    ),
    Case("logit", _glm("b ~ x + z", family="binomial"), near),
    Case("probit", _glm("b ~ x + z", family="binomial", link="probit"), near),
    Case("cloglog", _glm("b ~ x", family="binomial", link="cloglog"), near),
    Case("cauchit", _glm("b ~ x", family="binomial", link="cauchit"), near),
    Case("poisson", _glm("c ~ x + z", family="poisson"), near),
    Case("poisson, exposure", _glm("c ~ x", family="poisson", exposure="e"), near),
    Case("poisson, sqrt link", _glm("c ~ x", family="poisson", link="sqrt"), near),
    Case("gaussian, log link", _glm("e ~ x", family="gaussian", link="log"), near),
    Case(
        "named blocks",
        lambda d: ee.equation(mean_variance, d, {"mean": 0.0, "variance": 1.0}),
        near,
    ),
    Case("ratio", lambda d: ee.equation(ratio, d, [0.0, 1.0, 0.0]), near),
    Case("user logistic", lambda d: ee.equation(logistic, d, [0, 0]), near),
    Case(
        "user logistic, jacobian",
        lambda d: ee.equation(logistic, d, [0, 0], jacobian=logistic_jacobian),
        near,
    ),
    Case(
        "user logistic, units",
        lambda d: ee.equation(logistic, d, [0, 0], units="g"),
        near,
        is_additive=False,
    ),
    Case("user logistic, torch", torch_equation, near),
    Case("stack", propensity, near),
    Case("huber", lambda d: ee.models.huber("y ~ x", d), near),
    Case(
        "quantile",
        lambda d: ee.models.quantile("y ~ x", d, tau=0.3),
        near,
        is_additive=False,
        is_smooth=False,
    ),
    Case(
        "lad",
        lambda d: ee.models.lad("y", d),
        near,
        is_additive=False,
        is_smooth=False,
    ),
]
