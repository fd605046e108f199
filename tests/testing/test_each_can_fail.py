"""Negative controls: each of the 49 checks fails once what it looks at is spoiled."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from faults import shared_draws

import eestim as ee
from eestim.testing import (
    PROPERTIES,
    Example,
    algebra,
    changed,
    regression,
    singular,
    strategies,
    units,
)
from eestim.testing.examples import Product
from eestim.testing.running import violation_of
from eestim.testing.subjects import source_of

TABLE = strategies.example_table(np.random.default_rng(1))
BY_NUMBER = {one.number: one for one in PROPERTIES}


def subject_of(factory=lambda data: ee.ols("y ~ x", data), data=TABLE):
    return source_of(factory, data).subject(Example(seed=1))


def assert_fails(number, subject):
    assert BY_NUMBER[number].applies(subject)
    assert violation_of(BY_NUMBER[number], subject) is not None


def assert_holds(number, subject):
    assert violation_of(BY_NUMBER[number], subject) is None


# ---------------------------------------- the fit, psi or A of the subject is spoiled


def wrong_covariance(subject):
    spread = subject.fit.spread
    spread = replace(spread, matrix=1.001 * spread.matrix, coordinates=None)
    subject.__dict__["fit"] = replace(subject.fit, spread=spread)


def wrong_root(subject):
    fit = subject.fit
    theta = fit.theta + 1e-3 * fit.se.to_numpy()
    root = replace(fit.root, theta=theta, working=None)
    subject.__dict__["fit"] = replace(fit, theta=theta, root=root)


def wrong_psi(subject):
    subject.__dict__["psi"] = subject.psi + 0.01 * np.arange(len(subject.psi))[:, None]


def wrong_slope(subject):
    subject.__dict__["slope"] = subject.slope * np.array([[1.001, 1.0], [1.0, 0.9]])


SPOILED = {
    wrong_covariance: (1, 2, 3, 4, 7, 8, 12, 17, 24, 25, 27, 28, 29, 32),
    wrong_root: (16, 18, 31),
    wrong_psi: (11, 13, 15, 34),
    wrong_slope: (33, 40),
}


@pytest.mark.parametrize(
    ("spoil", "number"), [(s, n) for s, ns in SPOILED.items() for n in ns]
)
def test_check_fails_on_a_spoiled_fit(spoil, number):
    subject = subject_of()
    assert_holds(number, subject)
    if number == 40:  # looks at its own residuals: spoil the design behind them
        subject.equation.design[0] += 10.0
    elif number == 11:
        subject.__dict__["slope"] = 1.001 * subject.slope
    else:
        spoil(subject)
    assert_fails(number, subject)


# -------------------------------------------- a function of the package is spoiled


def patched(module, name, value):
    return lambda monkeypatch: monkeypatch.setattr(module, name, value)


def weights_plus_one(monkeypatch):
    whole = subject_of()

    def take(rows, weights):
        kind = type(weights)
        return whole.take(rows, None if weights is None else kind(weights.values + 1))

    return replace(whole, take=take)


def all_rows(monkeypatch):
    whole = subject_of()
    return replace(whole, take=lambda rows, weights: whole.equation)


def by_label(subject, labels):
    """A covariance that depends on how clusters are called."""
    number = 1.0 if np.asarray(labels).dtype.kind == "i" else 2.0
    return number * subject.fit.spread.matrix


def coupled(blocks):
    return block_diagonal(blocks) + 0.01


block_diagonal = changed.block_diagonal
expected, gmm, redundant = (
    regression._expected,
    algebra._gmm,
    singular._with_redundant,
)
spectral_root, robin_smith = regression.spectral_root, singular.robin_smith
logistic, robust = regression.proportional_logistic, regression.proportional_robust


def off_range(subject):
    A, M, L = redundant(subject)
    return A, M + np.eye(len(M)), L


def by_norm(A, M, gradient, n):
    return SimpleNamespace(covariance=np.array(gradient @ gradient))


def moved_root(*arguments):
    made = spectral_root(*arguments)
    return replace(made, theta=made.theta + 0.01 * isinstance(arguments[2], NOT_NORM))


NOT_NORM = (regression.Ridge, regression.GradientDescent)


class WaldInstead:
    """Symmetric in each coordinate, so not invariant."""

    def interval(self, fit, level):
        return fit.interval(level, method="wald")


class Offset:
    """A path average whose scale does not follow the path."""

    start = staticmethod(lambda size: Offset(singular_path.start(size)))

    def __init__(self, inner):
        self.inner, self.mean = inner, inner.mean

    def updated(self, iterate):
        return Offset(self.inner.updated(iterate))

    @property
    def covariance(self):
        return self.inner.covariance + np.eye(len(self.mean))


singular_path = singular.PathAverage


class WrongTangent(Product):
    def tangents(self, theta):
        return np.array([[theta[0]], [theta[1]]])


def wrong_tangent(monkeypatch):
    x = np.linspace(-1, 2, 40)
    y = 1.5 * x + np.sin(9 * x)
    assert_holds(38, source_of(Product(x, y)).subject(Example()))
    return source_of(WrongTangent(x, y)).subject(Example())


def logit(monkeypatch):
    monkeypatch.setattr(
        regression,
        "proportional_logistic",
        lambda *a: replace(logistic(*a), alpha=1.2),
    )
    return subject_of(lambda data: ee.glm("b ~ x", data, family="binomial"))


CASES = {
    5: weights_plus_one,
    6: weights_plus_one,
    9: patched(units, "_clustered", lambda subject, labels: None),
    10: patched(units, "_clustered", by_label),
    14: patched(changed, "block_diagonal", coupled),
    19: patched(regression, "HC", lambda kind: ee.HC(0)),
    20: patched(regression, "HC", lambda kind: ee.HC(0)),
    21: patched(regression, "HC", lambda kind: ee.HC(0)),
    22: patched(regression, "_expected", lambda *a: 1.01 * expected(*a)),
    23: patched(regression, "_expected", lambda *a: 1.01 * expected(*a)),
    26: patched(algebra, "_gmm", lambda *a: 0.1 * gmm(*a)),
    30: weights_plus_one,
    35: all_rows,
    36: patched(singular, "_with_redundant", off_range),
    37: patched(singular, "functional_covariance", by_norm),
    38: wrong_tangent,
    39: patched(
        singular,
        "robin_smith",
        lambda *a: replace(robin_smith(*a), statistic=1.01 * robin_smith(*a).statistic),
    ),
    41: patched(
        regression,
        "_descended",
        lambda X, y, start, rate, steps: start + X.T @ (y - X @ start),
    ),
    42: patched(regression, "spectral_root", moved_root),
    43: patched(regression, "spectral_root", moved_root),
    44: logit,
    45: patched(
        regression,
        "proportional_robust",
        lambda *a: replace(robust(*a), r2=1.01 * robust(*a).r2),
    ),
    46: lambda monkeypatch: source_of(shared_draws).subject(Example()),
    47: patched(algebra, "ScoreInverted", WaldInstead),
    48: patched(singular, "PathAverage", Offset),
    49: patched(algebra, "Anytime", lambda n_star: "wald"),
}


@pytest.mark.parametrize("number", CASES)
def test_check_fails_where_what_it_relies_on_is_spoiled(number, monkeypatch):
    if number not in (38, 44, 46):
        assert_holds(number, subject_of())
    subject = CASES[number](monkeypatch) or subject_of()
    assert_fails(number, subject)


def test_every_property_has_its_negative_control():
    assert sorted([*CASES, *sum(SPOILED.values(), ())]) == list(range(1, 50))
