"""A rank close to noise is warned of in report, regime and checks; a Gram is not."""

import numpy as np
import pytest

import eestim as ee
from eestim.asymptotics import (
    estimable,
    jacobian_omega,
    rank_report,
    regime,
    weak_rank,
)
from eestim.asymptotics.weak import weak_rank_at, weak_rank_finding
from eestim.diagnostics import rank_of, weak_rank_check
from eestim.errors import CapabilityError, DataError


def instrumented(strength, n=2000, seed=0):
    """Return y = x + u with u in x too, instrument z, as an equation without mean."""
    rng = np.random.default_rng(seed)
    z, u, v = rng.standard_normal((3, n))
    x = strength * z + 0.6 * u + 0.8 * v
    data = {"y": x + u, "x": x, "z": z}

    def psi(theta, data):
        return (data["z"] * (data["y"] - theta[0] * data["x"]))[:, None]

    return ee.equation(psi, data, start=[0.0], names=["effect"]), data


def test_a_weak_instrument_is_told_in_standard_errors_of_its_covariance():
    equation, data = instrumented(0.1)
    told = regime(ee.estimate(equation))
    (finding,) = told.findings
    product = data["z"] * data["x"]
    ratio = abs(product.mean()) / product.std() * len(product) ** 0.5
    assert finding.value == pytest.approx(ratio, rel=1e-6)
    assert ratio < 10
    assert (told.name, finding.name, finding.status) == (
        "classical", "weak rank", "warn",
    )  # fmt: skip
    text = str(told)
    assert "+1*effect is weakly identified" in text
    assert "refused: coverage of Wald intervals in the weak direction" in text
    assert "ScoreInverted" in text


def test_a_strong_instrument_is_not_called_weak():
    told = regime(ee.estimate(instrumented(1.0)[0]))
    assert (told.findings, told.refused) == ((), "nothing.")


def exponential(theta, data):
    e = data["y"] - np.exp(theta[0] + theta[1] * data["x"])
    return e[:, None] * np.column_stack([np.ones(len(e)), data["z"]])


def test_the_error_of_the_plugged_in_root_is_that_of_weak_rank_on_arrays():
    """Oracle: all of Omega from derivatives in closed form."""
    rng = np.random.default_rng(1)
    n = 1500
    z, v = rng.standard_normal((2, n))
    x = 0.15 * z + v
    data = {"x": x, "z": z, "y": np.exp(0.3 + 0.4 * x) + rng.standard_normal(n)}
    fit = ee.estimate(ee.equation(exponential, data, start=[0.0, 0.0]))
    mean = np.exp(fit.theta[0] + fit.theta[1] * x)
    Z, X = np.column_stack([np.ones(n), z]), np.column_stack([np.ones(n), x])
    units = mean[:, None, None] * Z[:, :, None] * X[:, None, :]
    bend = np.einsum("i,iq,ip,ik->pqk", mean, Z, X, X) / n  # columns of A stacked
    psi = exponential(fit.theta, data)
    omega = jacobian_omega(units, psi, bend.reshape(4, 2))
    A = units.mean(axis=0)
    exact = weak_rank(A, omega, n)
    found = weak_rank_finding(fit.equation, fit.theta, rank_report(A))
    assert exact.is_weak
    assert found.value == pytest.approx(exact.ratio, rel=1e-5)
    known = weak_rank(A, jacobian_omega(units), n)  # the control: the root as known
    assert abs(found.value / known.ratio - 1.0) > 0.01


def test_a_gram_matrix_of_few_units_is_not_called_weak():
    """The control: on arrays alone its smallest value looks weak, for any design."""
    X, y = np.random.default_rng(2).standard_normal((2, 60, 2))
    fit = ee.estimate(ee.ols(y[:, 0], X))
    units = X[:, :, None] * X[:, None, :]
    assert weak_rank(units.mean(axis=0), jacobian_omega(units), 60).is_weak
    assert regime(fit).findings == ()


def test_a_singular_equation_whose_kept_part_is_weak_says_both():
    equation, data = instrumented(0.1)

    def doubled(theta, data):
        one = data["z"] * (data["y"] - (theta[0] + theta[1]) * data["x"])
        return np.column_stack([one, one])

    told = regime(ee.equation(doubled, data, start=[0.0, 0.0], names=["a", "b"]))
    assert told.name == "rank-deficient"
    assert "Also: coverage of Wald intervals" in told.refused
    one = regime(ee.estimate(equation)).findings[0].value
    assert told.findings[-1].value == pytest.approx(one, rel=1e-6)


def test_the_report_says_weak_in_status_and_text_and_only_where_it_is():
    weak, data = instrumented(0.1)
    report = rank_of(weak, ee.estimate(weak).theta)
    product = data["z"] * data["x"]
    ratio = abs(product.mean()) / product.std() * len(product) ** 0.5
    assert (report.status, report.is_weak, report.rank) == ("weak_rank", True, 1)
    assert report.weak.ratio == pytest.approx(ratio, rel=1e-6)
    assert "warning: a singular value that was kept is" in str(report)
    assert "+1*effect is weakly identified" in str(report)
    strong = instrumented(1.0)[0]
    report = rank_of(strong, ee.estimate(strong).theta)
    assert (report.status, report.is_weak) == ("full_rank", False)
    assert report.weak.ratio > 10
    assert "warning" not in str(report) and "standard errors or more" in str(report)


def test_the_report_of_arrays_takes_the_noise_of_A_and_not_its_units():
    rng = np.random.default_rng(3)
    units = rng.standard_normal((400, 2, 2)) + np.diag([3.0, 0.2])
    A, omega = units.mean(axis=0), jacobian_omega(units)
    report = rank_report(A, omega=omega, n_units=400, names=["a", "b"])
    assert (report.status, report.rank) == ("weak_rank", 2)
    assert "+1*b is weakly" in str(report)
    rows, columns = np.array([1e5, 1e-3]), np.array([1e-4, 1e6])
    scaled = units * rows[:, None] * columns
    other = rank_report(scaled.mean(axis=0), omega=jacobian_omega(scaled), n_units=400)
    assert other.weak.ratio == pytest.approx(report.weak.ratio, rel=1e-6)
    # the control: a hundred times the units make ten times the ratio, no longer weak
    more = rank_report(A, omega=omega, n_units=40_000)
    assert more.weak.ratio == pytest.approx(10 * report.weak.ratio, rel=1e-12)
    assert (more.status, more.is_weak) == ("full_rank", False)
    assert rank_report(A).weak is None
    # a rank that is not clear in numbers stays "ambiguous", with the verdict beside it
    blurred = rank_report([[1e-14, 0], [0, 1.0]], rank=2, omega=np.eye(4), n_units=9)
    assert blurred.is_weak


def test_diagnose_shows_the_weak_rank_and_only_where_it_is():
    equation, data = instrumented(0.1)
    finding = ee.diagnose(ee.estimate(equation), budget=2)["weak rank"]
    product = data["z"] * data["x"]
    ratio = abs(product.mean()) / product.std() * len(product) ** 0.5
    assert (finding.status, finding.threshold) == ("warn", 10.0)
    assert finding.statistic == pytest.approx(ratio, rel=1e-6)
    assert "effect is weakly identified" in finding.meaning
    assert "ScoreInverted" in finding.advice
    strong = ee.diagnose(ee.estimate(instrumented(1.0)[0]), budget=2)["weak rank"]
    assert (strong.status, strong.advice) == ("pass", "")
    assert strong.statistic > 10


@pytest.mark.parametrize("n", [30, 300])
def test_least_squares_and_a_mean_are_not_judged_however_few_the_units(n):
    X, y = np.random.default_rng(2).standard_normal((2, n, 2))
    for fit in (ee.estimate(ee.ols(y[:, 0], X)), ee.estimate(ee.mean(y[:, 0]))):
        finding = ee.diagnose(fit, budget=2)["weak rank"]
        assert finding.status == "not applicable"
    with pytest.raises(CapabilityError, match="Gram matrix"):
        weak_rank_check(ee.estimate(ee.ols(y[:, 0], X)))


def test_functionals_of_a_singular_equation_carry_the_warning():
    equation, _ = instrumented(0.1)

    def doubled(theta, data):
        one = data["z"] * (data["y"] - (theta[0] + theta[1]) * data["x"])
        return np.column_stack([one, one])

    singular = ee.equation(doubled, equation.data, start=[0.0, 0.0], names=["a", "b"])
    fit = estimable(singular, lambda theta: theta[0] + theta[1])
    found = ee.diagnose(fit, budget=2)
    alone = weak_rank_check(ee.estimate(equation))
    assert [f.name for f in found].count("weak rank") == 1
    assert found["weak rank"].status == "warn"
    assert found["weak rank"].value == pytest.approx(alone.value, rel=1e-6)
    assert "Also: coverage of Wald intervals" in fit.regime().refused


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"omega": np.eye(4)}, ValueError, "together"),
        ({"n_units": 10}, ValueError, "together"),
        ({"omega": np.eye(3), "n_units": 10}, ValueError, "`omega` has shape"),
        ({"omega": -np.eye(4), "n_units": 10}, ValueError, "semidefinite"),
        ({"omega": np.eye(4), "n_units": 0}, ValueError, "`n_units` is 0"),
        ({"omega": np.full((4, 4), np.nan), "n_units": 9}, DataError, "`omega`"),
    ],
)
def test_noise_that_is_none_is_refused_by_name(options, error, message):
    with pytest.raises(error, match=message):
        rank_report(np.eye(2), **options)


def test_what_cannot_be_judged_says_why():
    zero = rank_report(np.zeros((1, 1)))
    equation, _ = instrumented(0.1)
    with pytest.raises(CapabilityError, match="A is zero"):
        weak_rank_at(equation, [0.0], zero)
    with pytest.raises(ValueError, match="no singular value is kept"):
        weak_rank(np.zeros((1, 1)), np.eye(1), 10)


@pytest.mark.parametrize("seed", range(8))
def test_a_weak_instrument_beside_a_strong_one_is_found_by_its_t_statistic(seed):
    """Balanced, both have singular values of about one: the smallest is no guide."""
    rng = np.random.default_rng(seed)
    z, u, v = rng.standard_normal((3, 2000, 2))
    x = z * [1.0, 0.05] + 0.6 * u + 0.8 * v
    data = {"z": z, "x": x, "y": x + u}

    def psi(theta, data):
        return data["z"] * (data["y"] - data["x"] * theta)

    equation = ee.equation(psi, data, start=[0.0, 0.0], names=["strong", "weak"])
    product = (z * x)[:, 1]
    ratio = abs(product.mean()) / product.std() * 2000**0.5
    found = weak_rank_check(ee.estimate(equation))
    assert (found.status, "1*weak is weakly" in found.meaning) == ("warn", True)
    assert found.value == pytest.approx(ratio, rel=1e-3)
