from dataclasses import dataclass, replace

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tolerances import EXACT, REFERENCE

import eestim as ee
from eestim.errors import DataError, EestimError, IdentificationError
from eestim.simulate import Study
from eestim.simulate._threads import blas_threads
from eestim.simulate.batched import _rough_root, batched_estimate, batched_inverse
from eestim.simulate.batched_models import BatchedGLM, batched_glm

FAMILIES = ("gaussian", "binomial", "poisson")


def problems(family, R=30, n=60, p=3, seed=1, shared=False):
    rng = np.random.default_rng(seed)
    shape = (n, p) if shared else (R, n, p)
    X = rng.normal(size=shape)
    X[..., 0] = 1.0
    eta = np.broadcast_to(X @ np.linspace(0.4, -0.5, p), (R, n))
    if family == "gaussian":
        return eta + rng.standard_t(5, (R, n)), X
    if family == "binomial":
        return (rng.random((R, n)) < 1 / (1 + np.exp(-eta))).astype(float), X
    return rng.poisson(np.exp(eta)).astype(float), X


def design(X, r):
    return X if X.ndim == 2 else X[r]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_problem_equals_its_own_fit_by_estimate(family, shared):
    y, X = problems(family, shared=shared)
    for kind in (0, 1):
        fit = batched_glm(y, X, family, kind=kind)
        assert (fit.status == "converged").all()
        lower, upper = fit.interval(0.9)
        for r in range(len(y)):
            one = ee.estimate(ee.glm(y[r], design(X, r), family=family), ee.HC(kind))
            size = np.sqrt(np.diag(one.spread.matrix))
            assert np.abs(fit.theta[r] - one.theta).max() <= REFERENCE * size.max()
            gap = np.abs(fit.covariance[r] - one.spread.matrix)
            assert (gap <= REFERENCE * np.outer(size, size)).all()
            ours = np.column_stack([lower[r], upper[r]])
            theirs = one.interval(0.9)[["lower", "upper"]].to_numpy()
            np.testing.assert_allclose(ours, theirs, rtol=1e-7, atol=1e-8)


def test_logistic_equals_statsmodels():
    y, X = problems("binomial", R=5, n=200)
    fit = batched_glm(y, X, "binomial")
    for r in range(5):
        other = sm.Logit(y[r], X[r]).fit(
            disp=0, cov_type="HC0", method="newton", tol=1e-14
        )
        np.testing.assert_allclose(fit.theta[r], other.params, rtol=1e-9)
        np.testing.assert_allclose(fit.se[r], other.bse, rtol=REFERENCE)


def test_offset_equals_the_single_fit():
    y, X = problems("poisson")
    offset = np.random.default_rng(2).normal(size=y.shape)
    for given_offset in (offset, offset[0]):
        fit = batched_glm(y, X, "poisson", offset=given_offset)
        own = np.broadcast_to(given_offset, y.shape)
        one = ee.estimate(ee.glm(y[4], X[4], family="poisson", offset=own[4]))
        np.testing.assert_allclose(fit.theta[4], one.theta, rtol=1e-9)
        np.testing.assert_allclose(fit.se[4], one.se, rtol=REFERENCE)


@pytest.mark.parametrize("family", FAMILIES)
def test_statuses_are_never_numbers(family):
    """Singular, separated and interpolated problems stand among good ones."""
    y, X = problems(family, R=40, n=30)
    X = X.copy()
    X[3, :, 2] = 2.0 * X[3, :, 1] - X[3, :, 0]  # collinear
    X[9, :, 1] = 0.0
    if family == "gaussian":
        y[5] = X[5] @ [1.0, 2.0, 3.0]  # perfect
        y[7] = 4.0
    if family == "binomial":
        y[5] = X[5, :, 1] > 0.2  # complete separation
        y[7] = 1.0
        X[11, :, 2] = X[11, :, 1] > 0  # quasi-complete: a level without successes
        y[11] = np.where(X[11, :, 2] > 0, 0.0, y[11])
    if family == "poisson":
        y[5], y[7] = 0.0, 3.0  # all zero; constant, which is reproduced exactly
    fit = batched_glm(y, X, family)
    assert fit.status[3] == fit.status[9] == "singular"
    expected = {
        "gaussian": {5: "interpolated", 7: "interpolated"},
        "binomial": {5: "separated", 7: "separated", 11: "separated"},
        "poisson": {5: "separated", 7: "interpolated"},
    }[family]
    for r, status in expected.items():
        assert fit.status[r] == status, (r, fit.status[r])
    bad = fit.status != "converged"
    assert bad.sum() == 2 + len(expected)
    for values in (fit.theta, fit.covariance, *fit.interval()):
        assert np.isnan(values[bad]).all()
        assert np.isfinite(values[~bad]).all()


def test_status_agrees_with_estimate_on_small_samples():
    """At n = 11 many samples are separated; both routes say which."""
    y, X = problems("binomial", R=150, n=11, p=4, seed=4)
    fit = batched_glm(y, X, "binomial")
    for r in range(len(y)):
        try:
            one = ee.estimate(ee.glm(y[r], X[r], family="binomial"))
        except EestimError:
            assert fit.status[r] != "converged", r
        else:
            assert fit.status[r] == "converged", r
            np.testing.assert_allclose(fit.theta[r], one.theta, rtol=1e-6, atol=1e-9)
    assert 10 < (fit.status == "separated").sum() < 140


@pytest.mark.parametrize("family", FAMILIES)
def test_units_of_measure_change_nothing(family):
    y, X = problems(family)
    scale = np.array([1.0, 1e6, 1e-6])
    plain, scaled = batched_glm(y, X, family), batched_glm(y, X * scale, family)
    assert (scaled.status == "converged").all()
    np.testing.assert_allclose(scaled.theta * scale, plain.theta, rtol=1e-7, atol=1e-10)
    np.testing.assert_allclose(scaled.se * scale, plain.se, rtol=REFERENCE)


def test_hard_starts_are_damped():
    """Counts of very different size, where a full Newton step overflows."""
    rng = np.random.default_rng(3)
    X = np.stack([np.column_stack([np.ones(40), rng.normal(size=40) * 3])] * 8)
    eta = X @ np.array([0.5, 2.0])
    y = rng.poisson(np.exp(eta)).astype(float)
    fit = batched_glm(y, X, "poisson")
    assert (fit.status == "converged").all()
    psi = ee.glm(y[0], X[0], family="poisson").psi(fit.theta[0])
    assert np.abs(psi.sum(axis=0)).max() <= REFERENCE * np.abs(psi).sum(axis=0).max()


def test_results_do_not_depend_on_threads():
    y, X = problems("binomial", R=400, n=80, p=4)
    one = batched_glm(y, X, "binomial", jobs=1)
    for jobs in (2, None):
        other = batched_glm(y, X, "binomial", jobs=jobs)
        np.testing.assert_array_equal(one.theta, other.theta)
        np.testing.assert_array_equal(one.covariance, other.covariance)


def test_threads_are_those_of_blas_and_one_within_a_study():
    before = blas_threads()
    seen = []

    def counted(rng):
        seen.append(blas_threads())
        return rng.normal(size=5)

    Study(counted, {"mean": np.mean}, 0.0).run(2, seed=1)
    assert seen == [1, 1]
    assert blas_threads() == before >= 1


@pytest.mark.parametrize("family", ["binomial", "poisson"])
def test_the_search_in_single_precision_equals_the_one_in_double(family):
    """Same root to 1e-8 standard errors, same covariance; the fast way was taken."""
    y, X = problems(family, R=200, n=150, p=4)
    quick = batched_glm(y, X, family)
    slow = batched_estimate(InDouble(equation_of(y, X, family)))
    assert (slow.status == quick.status).all()
    assert (np.abs(quick.theta - slow.theta) <= 1e-8 * slow.se).all()
    size = slow.se[:, :, None] * slow.se[:, None, :]
    assert (np.abs(quick.covariance - slow.covariance) <= REFERENCE * size).all()
    theta, _ = rough_root(y, X, family)
    off = np.abs(theta - slow.theta) / slow.se
    assert np.mean(off.max(axis=1) <= 1e-8) > 0.95


def test_what_single_precision_cannot_hold_is_found_in_double():
    """A column of years far from zero: its root is beyond seven digits.

    Its condition is 1.1e8, so that double precision holds 2.5e-8 times a few.
    """
    y, X = problems("binomial", R=40, n=150)
    shifted = X.copy()
    shifted[:, :, 1] += 10_000.0
    plain, far = batched_glm(y, X, "binomial"), batched_glm(y, shifted, "binomial")
    assert far.is_converged.all()
    np.testing.assert_allclose(far.theta[:, 1], plain.theta[:, 1], rtol=1e-6)
    np.testing.assert_allclose(far.se[:, 1], plain.se[:, 1], rtol=1e-6)
    theta, _ = rough_root(y, shifted, "binomial")
    off = np.abs(theta - far.theta) / far.se
    assert np.mean(off.max(axis=1) > 1e-8) > 0.5  # the fast way alone would be wrong


@dataclass(frozen=True)
class InDouble:
    """An equation without its search in single precision."""

    equation: BatchedGLM

    def __getattr__(self, name):
        if name == "rough":
            raise AttributeError(name)
        return getattr(self.equation, name)

    def part(self, which):
        return InDouble(self.equation.part(which))


def rough_root(y, X, family):
    equation = equation_of(y, X, family)
    with np.errstate(all="ignore"):
        return _rough_root(equation, equation.rough())


def equation_of(y, X, family):
    names = tuple(f"x{j}" for j in range(X.shape[-1]))
    return BatchedGLM(np.ascontiguousarray(X.swapaxes(1, 2)), y, names, family)


@given(seed=st.integers(0, 2**31), R=st.integers(1, 9))
@settings(max_examples=15, deadline=None)
def test_a_problem_does_not_depend_on_its_batch(seed, R):
    y, X = problems("binomial", R=R, n=40, seed=seed)
    whole, alone = batched_glm(y, X, "binomial"), batched_glm(y[:1], X[:1], "binomial")
    assert whole.status[0] == alone.status[0]
    np.testing.assert_allclose(whole.theta[0], alone.theta[0], rtol=1e-8, atol=1e-10)


# ----------------------------------------------------------------- other equations


@dataclass(frozen=True)
class MeanAndVariance:
    """psi = (y - mu, (y - mu)^2 - v): the protocol needs no design."""

    y: np.ndarray
    names = ("mean", "variance")

    @property
    def n_problems(self):
        return len(self.y)

    @property
    def n_units(self):
        return self.y.shape[1]

    def part(self, which):
        return replace(self, y=self.y[which])

    def start(self):
        return np.tile([0.0, 1.0], (len(self.y), 1))

    def _psi(self, theta):
        e = self.y - theta[:, :1]
        return np.stack([e, e**2 - theta[:, 1:]], axis=2)

    def newton_terms(self, theta):
        psi = self._psi(theta)
        slope = np.tile(np.eye(2), (len(self.y), 1, 1))
        slope[:, 1, 0] = 2.0 * (self.y - theta[:, :1]).mean(axis=1)
        return psi.mean(axis=1), np.square(psi).mean(axis=1), slope

    def moments(self, theta):
        psi = self._psi(theta)
        meat = np.einsum("rni,rnj->rij", psi, psi) / self.n_units
        mean, _, slope = self.newton_terms(theta)
        return mean, meat, slope


def test_any_equation_with_a_batch_axis_is_solved():
    y = np.random.default_rng(5).gamma(2.0, size=(50, 40))
    fit = batched_estimate(MeanAndVariance(y))
    assert fit.is_converged.all()
    np.testing.assert_allclose(fit.theta[:, 0], y.mean(axis=1), rtol=EXACT)
    np.testing.assert_allclose(fit.theta[:, 1], y.var(axis=1), rtol=1e-10)
    np.testing.assert_allclose(fit.se[:, 0] ** 2, y.var(axis=1) / 40, rtol=1e-10)
    fourth = np.mean((y - y.mean(axis=1, keepdims=True)) ** 4, axis=1)
    expected = (fourth - y.var(axis=1) ** 2) / 40
    np.testing.assert_allclose(fit.se[:, 1] ** 2, expected, rtol=1e-9)


def test_inverse_finds_the_singular_among_others():
    rng = np.random.default_rng(0)
    stack = rng.normal(size=(6, 3, 3))
    stack[2, :, 1] = 0.0
    stack[4, 2] = stack[4, 0] + stack[4, 1]
    scale = np.array([1e9, 1.0, 1e-9])
    stack[5] *= scale
    stack[1, 0, 0] = np.nan
    inverse, singular = batched_inverse(stack)
    assert singular.tolist() == [False, True, True, False, True, False]
    for r in (0, 3):
        np.testing.assert_allclose(inverse[r] @ stack[r], np.eye(3), atol=1e-9)
    plain = (inverse[5] * scale[:, None]) @ (stack[5] / scale)
    np.testing.assert_allclose(plain, np.eye(3), atol=1e-9)


def test_intervals_cover_at_the_nominal_rate_by_simulation():
    y, X = problems("binomial", R=4000, n=300, seed=8)
    lower, upper = batched_glm(y, X, "binomial").interval(0.9)
    truth = np.linspace(0.4, -0.5, 3)
    hits = ((lower <= truth) & (truth <= upper)).mean(axis=0)
    mc_se = np.sqrt(0.9 * 0.1 / 4000)
    assert (np.abs(hits - 0.9) <= 4 * mc_se + 0.01).all()
    biased = ((lower <= truth + 0.2) & (truth + 0.2 <= upper)).mean(axis=0)
    assert (np.abs(biased - 0.9) > 4 * mc_se + 0.01).all()


def test_interval_quantiles():
    y, X = problems("gaussian", n=20)
    fit = batched_glm(y, X, "gaussian", kind=1)
    lower, upper = fit.interval(0.99)
    half = stats.t.ppf(0.995, 17) * fit.se
    np.testing.assert_allclose((upper - lower) / 2, half, rtol=EXACT)
    with pytest.raises(ValueError, match="between 0 and 1"):
        fit.interval(95)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"y": np.full((2, 5), 2.0)}, DataError, "range of the binomial"),
        ({"X": np.ones((3, 5, 2))}, DataError, "shape"),
        ({"X": np.full((2, 5, 1), np.nan)}, DataError, "`X` has missing"),
        ({"y": np.full((2, 5), np.nan)}, DataError, "`y` has missing"),
        ({"X": np.ones((2, 5, 7))}, IdentificationError, "7 columns for 5"),
        ({"names": ["a", "b"]}, DataError, "`names`"),
        ({"offset": np.zeros(4)}, DataError, "`offset`"),
        ({"kind": 3}, ValueError, "`kind`"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    rng = np.random.default_rng(0)
    arguments = {
        "y": (rng.random((2, 5)) < 0.5).astype(float),
        "X": np.ones((2, 5, 1)),
    } | change
    with pytest.raises(error, match=message):
        batched_glm(arguments.pop("y"), arguments.pop("X"), "binomial", **arguments)
