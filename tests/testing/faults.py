"""Planted faults in psi or in its sensitivity, each a factory of data.

Every one runs without an error and gives a number; `check_equation` must name its
cause. `FAULTS` lists them, `SOUND` the equations that they spoil, which must pass.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

import eestim as ee
from eestim.testing.examples import SimulatedLogit, simulated_logit

_unseeded = np.random.default_rng(7)


def _chance(eta: Any) -> Any:
    return 1.0 / (1.0 + np.exp(-eta))


class Logit:
    """A weighted logit, written as an equation class with capabilities."""

    names = ("Intercept", "x", "z")

    def __init__(self, data: Any, weights: Any = None) -> None:
        self.x = np.column_stack([np.ones(len(data)), data["x"], data["z"]])
        self.y = np.asarray(data["b"], dtype=float)
        self.w = np.asarray(data["w"], dtype=float) if weights is None else weights
        self.table = data

    n_units = property(lambda self: len(self.y))
    start = property(lambda self: np.zeros(3))

    def psi(self, theta: Any) -> Any:
        return self.x * (self.w * (self.y - _chance(self.x @ theta)))[:, None]

    def sensitivity(self, theta: Any) -> Any:
        mu = _chance(self.x @ theta)
        return (self.x.T * (self.w * mu * (1 - mu))) @ self.x / len(self.y)

    def unit_sensitivity(self, theta: Any) -> Any:
        mu = _chance(self.x @ theta)
        slopes = self.w * mu * (1 - mu)
        return slopes[:, None, None] * self.x[:, :, None] * self.x[:, None, :]

    def reweighted(self, weights: Any) -> Any:
        return type(self)(self.table, self.w * weights)


class Clusters:
    """The moments of y, summed within groups."""

    names = ("mean", "variance")

    def __init__(self, data: Any) -> None:
        self.y = np.asarray(data["y"], dtype=float)
        self.codes = np.unique(np.asarray(data["g"]), return_inverse=True)[1]
        self.unit_codes = self.codes

    n_units = property(lambda self: int(self.codes.max()) + 1)
    start = property(lambda self: np.array([0.0, 1.0]))

    def psi(self, theta: Any) -> Any:
        away = self.y - theta[0]
        rows = np.column_stack([away, away**2 - theta[1]])
        made = np.zeros((self.n_units, 2))
        np.add.at(made, self.codes, rows)
        return made

    def sensitivity(self, theta: Any) -> Any:
        size = len(self.y) / self.n_units
        slope = 2 * np.mean(self.y - theta[0])
        return size * np.array([[1.0, 0.0], [slope, 1.0]])


class Ratio:
    """Two means and their ratio: A is not symmetric."""

    names = ("mean", "size", "ratio")

    def __init__(self, data: Any) -> None:
        self.y, self.e = np.array(data["y"]), np.array(data["e"])

    n_units = property(lambda self: len(self.y))
    start = property(lambda self: np.array([0.0, 1.0, 0.0]))

    def psi(self, theta: Any) -> Any:
        last = self.y - theta[2] * self.e
        return np.column_stack([self.y - theta[0], self.e - theta[1], last])

    def sensitivity(self, theta: Any) -> Any:
        made = np.eye(3)
        made[2, 2] = self.e.mean()
        return made


class ChainedRatio(Ratio):
    """The ratio computed from the two means, so that A is triangular."""

    def psi(self, theta: Any) -> Any:
        last = np.full(len(self.y), theta[0] - theta[2] * theta[1])
        return np.column_stack([self.y - theta[0], self.e - theta[1], last])

    def sensitivity(self, theta: Any) -> Any:
        made = np.eye(3)
        made[2] = [-1.0, theta[2], theta[1]]
        return made


class Probit:
    """Probit with the observed information, which is not the expected one."""

    names = ("Intercept", "x")

    def __init__(self, data: Any) -> None:
        self.inner = ee.glm("b ~ x", data, family="binomial", link="probit")
        self.start = self.inner.start

    n_units = property(lambda self: self.inner.n_units)

    def psi(self, theta: Any) -> Any:
        return self.inner.psi(theta)

    def sensitivity(self, theta: Any) -> Any:
        return self.inner.sensitivity(theta)


# ------------------------------------------------------------ faults of the sensitivity


class WrongSign(Logit):
    def sensitivity(self, theta):
        return -super().sensitivity(theta)


class WrongSignOfOneEntry(Logit):
    def sensitivity(self, theta):
        return super().sensitivity(theta) * np.where(np.eye(3)[1] > 0, -1, 1)[:, None]


class Transposed(ChainedRatio):
    def sensitivity(self, theta):
        return super().sensitivity(theta).T


class SumOverRows(Logit):
    def sensitivity(self, theta):
        return super().sensitivity(theta) * len(self.y)


class NoWeightInSlope(Logit):
    def sensitivity(self, theta):
        mu = _chance(self.x @ theta)
        return (self.x.T * (mu * (1 - mu))) @ self.x / len(self.y)


class WrongLinkDerivative(Logit):
    def sensitivity(self, theta):
        mu = _chance(self.x @ theta)
        return (self.x.T * (self.w * mu)) @ self.x / len(self.y)


class ExpectedInformation(Probit):
    def sensitivity(self, theta):
        working = self.inner.working(theta)
        return (working.design.T * working.weight) @ working.design / self.n_units


class ZeroColumn(Logit):
    def sensitivity(self, theta):
        return super().sensitivity(theta) * [1.0, 1.0, 0.0]


class LastRowLeftOut(Logit):
    def sensitivity(self, theta):
        mu = _chance(self.x @ theta)
        weight = (self.w * mu * (1 - mu))[:-1]
        return (self.x[:-1].T * weight) @ self.x[:-1] / (len(self.y) - 1)


class AtTheStart(Logit):
    def sensitivity(self, theta):
        return super().sensitivity(self.start)


class RoundedTheta(Logit):
    def sensitivity(self, theta):
        return super().sensitivity(np.round(theta, 2))


class StaleSlope(Logit):
    def sensitivity(self, theta):
        if not hasattr(self, "_slope"):
            self._slope = super().sensitivity(theta)
        return self._slope


class UnitSlopesNegative(Logit):
    def unit_sensitivity(self, theta):
        return -super().unit_sensitivity(theta)


class SlopeIgnoresWeights(Logit):
    def reweighted(self, weights):
        made, slope = super().reweighted(weights), self.sensitivity
        made.sensitivity = slope
        return made


# ------------------------------------------------------------------ faults of psi


class NoWeightInPsi(Logit):
    def psi(self, theta):
        return self.x * (self.y - _chance(self.x @ theta))[:, None]


class PsiIgnoresWeights(Logit):
    def reweighted(self, weights):
        return replace_weights(self, np.ones(len(weights)))


def replace_weights(made: Any, weights: Any) -> Any:
    return type(made)(made.table, made.w * weights)


class WrongRow(Logit):
    def psi(self, theta):
        return (
            self.x
            * (np.roll(self.w * self.y, 1) - self.w * _chance(self.x @ theta))[:, None]
        )


class SortedRows(Logit):
    def psi(self, theta):
        return self.x * (self.w * (np.sort(self.y) - _chance(self.x @ theta)))[:, None]


class RowsSummed(Logit):
    def psi(self, theta):
        return np.broadcast_to(super().psi(theta).sum(axis=0), self.x.shape).copy()


class CentredBySample(Logit):
    def __init__(self, data, weights=None):
        super().__init__(data, weights)
        self.x = self.x - np.array([0.0, *self.x[:, 1:].mean(axis=0)])


class WeightsShared(Logit):
    def __init__(self, data, weights=None):
        super().__init__(data, weights)
        self.w = self.w / self.w.sum()


class DuplicatesDropped(Logit):
    def psi(self, theta):
        first = np.zeros(len(self.y))
        first[np.unique(self.x, axis=0, return_index=True)[1]] = 1.0
        return super().psi(theta) * first[:, None]

    def sensitivity(self, theta):
        first = np.unique(self.x, axis=0, return_index=True)[1]
        slopes = super().unit_sensitivity(theta)
        return slopes[first].sum(axis=0) / len(self.y)

    unit_sensitivity = property()  # absent
    reweighted = property()


class Redrawn(Logit):
    def psi(self, theta):
        noise = _unseeded.normal(size=len(self.y))
        return self.x * (self.w * (self.y - _chance(self.x @ theta + noise)))[:, None]


class GlobalNumpy(Logit):
    def psi(self, theta):
        noise = 0.1 * np.random.normal(size=len(self.y))  # noqa: NPY002 - the fault
        return self.x * (self.w * (self.y - _chance(self.x @ theta + noise)))[:, None]


class GlobalPython(Logit):
    def psi(self, theta):
        return super().psi(theta) * (1.0 + 0.01 * random.random())


class GlobalSeed(Logit):
    def psi(self, theta):
        np.random.seed(0)  # noqa: NPY002 - the fault
        noise = 0.1 * np.random.normal(size=len(self.y))  # noqa: NPY002
        return self.x * (self.w * (self.y - _chance(self.x @ theta + noise)))[:, None]


class DrawsByPlace(Logit):
    def _eta(self, theta):
        return self.x @ theta + np.random.default_rng(0).normal(size=len(self.y))

    def psi(self, theta):
        return self.x * (self.w * (self.y - _chance(self._eta(theta))))[:, None]

    def sensitivity(self, theta):
        mu = _chance(self._eta(theta))
        return (self.x.T * (self.w * mu * (1 - mu))) @ self.x / len(self.y)


class CacheById(Logit):
    def psi(self, theta):
        if getattr(self, "_key", None) != id(theta):
            self._key, self._kept, self._value = id(theta), theta, super().psi(theta)
        return self._value


class WarmStart(Logit):
    def psi(self, theta):
        last = getattr(self, "_last", theta)
        self._last = theta.copy()
        return super().psi(theta + 0.01 * (last - theta))


class SameBuffer(Logit):
    def psi(self, theta):
        if not hasattr(self, "_buffer"):
            self._buffer = np.empty(self.x.shape)
        self._buffer[:] = super().psi(theta)
        return self._buffer


class ThetaModified(Logit):
    def psi(self, theta):
        made = super().psi(theta)
        theta[0] += 1e-9
        return made


class DataModified(Logit):
    def psi(self, theta):
        made = super().psi(theta)
        self.w *= 1.0 + 1e-12
        return made


def column_replaced(data):
    """A column of the user's table is replaced at every call."""

    def psi(theta, table):
        table["y"] = table["y"] + 1e-12
        away = np.asarray(table["y"]) - theta[0]
        return away[:, None]

    return ee.equation(psi, data.copy(), [0.0])


class DroppedEquation(Logit):
    def psi(self, theta):
        return super().psi(theta)[:, :2]

    def sensitivity(self, theta):
        return super().sensitivity(theta)[:2]


class Float32Psi(Logit):
    def psi(self, theta):
        return super().psi(theta).astype(np.float32).astype(np.float64)


class Float32Theta(Logit):
    def psi(self, theta):
        return super().psi(theta.astype(np.float32).astype(np.float64))


class OffByOneCluster(Clusters):
    def __init__(self, data):
        super().__init__(data)
        self.codes = np.concatenate([self.codes[:1], self.codes[:-1]])


class RowsCountedAsUnits(Clusters):
    n_units = property(lambda self: len(self.y))

    def psi(self, theta):
        away = self.y - theta[0]
        made = np.zeros((int(self.codes.max()) + 1, 2))
        np.add.at(made, self.codes, np.column_stack([away, away**2 - theta[1]]))
        return made


class StaleMoments(Logit):
    def moments(self, theta):
        if not hasattr(self, "_moments"):
            psi = self.psi(theta)
            self._moments = ee.equation(lambda t, d: psi, {"y": self.y}, np.zeros(3))
        from eestim.moments import moments_of

        return moments_of(self._moments.psi(theta), self.sensitivity(theta))


@dataclass(frozen=True)
class SharedDraws(SimulatedLogit):
    """One set of K draws for all units."""

    def redrawn(self, rng, draws):
        one = rng.normal(size=(1, draws))
        return replace(self, draws=np.repeat(one, len(self.y), axis=0))


@dataclass(frozen=True)
class DrawsIgnored(SimulatedLogit):
    """Fresh draws are asked for and only the first four used."""

    def redrawn(self, rng, draws):
        return replace(self, draws=rng.normal(size=(len(self.y), 4)))


def shared_draws(rng):
    sound = simulated_logit(rng)
    return SharedDraws(sound.x, sound.y, sound.draws)


def ignored_draws(rng):
    sound = simulated_logit(rng)
    return DrawsIgnored(sound.x, sound.y, sound.draws)


@dataclass(frozen=True, slots=True)
class Fault:
    """A factory with a fault, where it is and a part of the cause to be named."""

    name: str
    where: str
    factory: Callable[[Any], Any]
    cause: str

    def data(self, table):
        """Return what the factory is called with: a table, or a Generator if None."""
        return None if self.factory in (shared_draws, ignored_draws) else table


def _psi(name, factory, cause):
    return Fault(name, "psi", factory, cause)


def _slope(name, factory, cause):
    return Fault(name, "sensitivity", factory, cause)


FAULTS = [
    _slope("sign", WrongSign, "sensitivity has the wrong sign"),
    _slope("sign of one row", WrongSignOfOneEntry, "wrong sign in some entries"),
    _slope("transposed Jacobian", Transposed, "transposed"),
    _slope("sum instead of mean", SumOverRows, "sums over rows"),
    _slope("missing weight", NoWeightInSlope, "a weight or a term is missing"),
    _slope("wrong link derivative", WrongLinkDerivative, "link derivative"),
    _slope("expected information", ExpectedInformation, "not the derivative of psi"),
    _slope("dropped column", ZeroColumn, "misses the column of parameter 2"),
    _slope("last row left out", LastRowLeftOut, "not the derivative of psi"),
    _slope("taken at the start", AtTheStart, "that of another theta"),
    _slope("theta rounded", RoundedTheta, "that of another theta"),
    _slope("stale cache", StaleSlope, "hidden state"),
    _slope("unit slopes of the wrong sign", UnitSlopesNegative, "wrong sign"),
    _slope("weights ignored on refitting", SlopeIgnoresWeights, "ignores the weights"),
    _psi("missing weight", NoWeightInPsi, "a weight or a term is missing"),
    _psi("weights ignored on refitting", PsiIgnoresWeights, "psi ignores the weights"),
    _psi("wrong row", WrongRow, "another row is read"),
    _psi("rows sorted", SortedRows, "another row is read"),
    _psi("sum over rows", RowsSummed, "psi sums over rows"),
    _psi("centred by the sample", CentredBySample, "centres by the sample"),
    _psi("weights divided by their sum", WeightsShared, "looks at other rows"),
    _psi("duplicate rows dropped", DuplicatesDropped, "looks at other rows"),
    _psi("redrawn at every call", Redrawn, "redrawn at every call"),
    _psi("global generator of NumPy", GlobalNumpy, "uses the global generator"),
    _psi("global generator of Python", GlobalPython, "uses the global generator"),
    _psi("global seed set", GlobalSeed, "uses the global generator"),
    _psi("draws by place", DrawsByPlace, "draws go by position"),
    _psi("shared draws", shared_draws, "draws are shared between units"),
    _psi("draws ignored", ignored_draws, "draws not used"),
    _psi("stale cache", CacheById, "stale cache"),
    _psi("hidden state", WarmStart, "hidden state"),
    _psi("one buffer returned", SameBuffer, "same array"),
    _psi("theta modified", ThetaModified, "theta is modified in place"),
    _psi("data modified", DataModified, "modified in place"),
    _psi("column of the data replaced", column_replaced, "modified in place"),
    _psi("dropped equation", DroppedEquation, "drops an equation"),
    _psi("truncated to float32", Float32Psi, "float32"),
    _psi("theta truncated to float32", Float32Theta, "float32"),
    _psi("cluster off by one", OffByOneCluster, "another row is read"),
    _psi("rows counted as units", RowsCountedAsUnits, "n_units is not the number"),
    _psi("stale moments", StaleMoments, "stale"),
]

SOUND = [Logit, Clusters, Ratio, ChainedRatio, Probit, simulated_logit]
