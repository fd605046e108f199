"""Measures against published figures, closed forms, jackknives and simulation.

The published figures are those printed for the two example studies of R `rsimsum`
(1,000 and 100 replications). Their data are not here: samples are made whose moments
are the printed ones, and every other printed number must follow to the digits shown.
"""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from tolerances import EXACT

from eestim.simulate import replications_needed
from eestim.simulate._tables import compared, performance_table, stopping_error
from eestim.simulate.performance import (
    Sample,
    empirical_se,
    measures_of,
    model_se,
    proportion,
    relative_error,
    relative_precision,
    standard_error,
)


def exact_columns(n, k, seed=0):
    """Columns of mean 0, standard deviation 1 and correlation 0, exactly."""
    rng = np.random.default_rng(seed)
    draws = rng.normal(size=(n, k))
    basis = np.linalg.qr(draws - draws.mean(axis=0))[0]
    return basis * np.sqrt(n - 1)


def sample_with(n, truth, bias, emp, mod, mod_error, level=0.95):
    """A sample with given bias, empirical se, model se and its Monte Carlo error."""
    z = exact_columns(n, 2)
    estimate = truth + bias + emp * z[:, 0]
    spread = mod_error * 2 * mod * np.sqrt(n)  # standard deviation of se^2
    se = np.sqrt(mod**2 + spread * z[:, 1])
    half = stats.norm.ppf(0.5 + level / 2) * se
    return Sample(estimate, se, estimate - half, estimate + half, truth)


# bias, empirical se, model se with their errors; mse; relative bias; relative error
PUBLISHED = {
    "CC": (
        1000,
        0.5,
        (0.0168, 0.0048),
        (0.1511, 0.0034),
        (0.1471, 0.0005),
        (0.0231, 0.0011),
        (0.0335, 0.0096),
        (-2.6594, 2.2055),
    ),
    "MI_LOGT": (
        1000,
        0.5,
        (0.0009, 0.0042),
        (0.132, 0.003),
        (0.1349, 0.0006),
        (0.0174, 0.0009),
        (0.0018, 0.0083),
        (2.2233, 2.3323),
    ),
    "MI_T": (
        1000,
        0.5,
        (-0.0012, 0.0043),
        (0.1344, 0.003),
        (0.1338, 0.0006),
        (0.0181, 0.0009),
        (-0.0024, 0.0085),
        (-0.4412, 2.2695),
    ),
    "Cox, n = 50": (
        100,
        -0.5,
        (0.0215, 0.0328),
        (0.3285, 0.0233),
        (0.3185, 0.0013),
        None,
        None,
        (-3.0493, 6.9011),
    ),
}


@pytest.mark.parametrize("method", list(PUBLISHED))
def test_published_table_of_the_example_studies(method):
    n, truth, bias, emp, mod, mse, rbias, relative = PUBLISHED[method]
    found = measures_of(sample_with(n, truth, bias[0], emp[0], mod[0], mod[1]))
    half = 5.1e-5  # half a digit of the figures, and of what they were made from
    for name, (value, error) in {
        "bias": bias,
        "empirical_se": emp,
        "model_se": mod,
    }.items():
        assert found[name].value == pytest.approx(value, abs=half), name
        assert found[name].mcse == pytest.approx(error, abs=half), name
    if mse is not None:
        assert found["mse"].value == pytest.approx(mse[0], abs=2 * half)
        # Its printed error depends on the kurtosis, here that of the sample made.
        assert found["mse"].mcse == pytest.approx(mse[1], rel=0.2)
        assert found["relative_bias"].value == pytest.approx(rbias[0], abs=3 * half)
        assert found["relative_bias"].mcse == pytest.approx(rbias[1], abs=3 * half)
    digits = 100 * half * (1 / emp[0] + mod[0] / emp[0] ** 2)
    assert found["relative_error"].value == pytest.approx(relative[0], abs=digits)
    assert found["relative_error"].mcse == pytest.approx(relative[1], abs=0.02)


@pytest.mark.parametrize(
    ("share", "n", "printed"),
    [
        (0.943, 1000, 0.0073),
        (0.949, 1000, 0.0070),
        (0.940, 1000, 0.0075),
        (0.946, 1000, 0.0071),
        (0.969, 1000, 0.0055),
        (0.963, 1000, 0.0060),
        (0.95, 100, 0.0218),
        (0.36, 100, 0.0480),
        (0.85, 100, 0.0357),
        (0.09, 100, 0.0286),
        (0.86, 100, 0.0347),
    ],
)
def test_published_errors_of_proportions(share, n, printed):
    holds = np.arange(n) < round(share * n)
    assert round(proportion(holds).mcse, 4) == printed
    assert proportion(holds).value == pytest.approx(share, rel=EXACT)


@pytest.mark.parametrize(
    ("emp", "value", "error"), [(0.1320, 31.0463, 3.9375), (0.1344, 26.3682, 3.8424)]
)
def test_published_relative_precision(emp, value, error):
    """Printed values fix the squared ratio, printed errors the correlation."""
    n, reference = 1000, 0.1511
    ratio = 1 + value / 100
    rho = np.sqrt(1 - (n - 1) * (error / (200 * ratio)) ** 2)
    assert 0.8 < rho < 0.95
    z = exact_columns(n, 2)
    other = reference * z[:, 0]
    own = reference / np.sqrt(ratio) * (rho * z[:, 0] + np.sqrt(1 - rho**2) * z[:, 1])
    found = relative_precision(own, other)
    assert found.value == pytest.approx(value, rel=1e-10)
    assert found.mcse == pytest.approx(error, rel=1e-10)
    assert np.std(own, ddof=1) == pytest.approx(emp, abs=1e-4)


def test_model_se_error_divides_by_its_square():
    """The printed formula of one vignette lacks the square; its code has it."""
    se = np.array([1.0, 2.0, 3.0, 6.0])
    m = np.sqrt(np.mean(se**2))
    expected = np.sqrt(np.var(se**2, ddof=1) / (4 * 4 * m**2))
    assert model_se(se).mcse == pytest.approx(expected, rel=EXACT)
    without = np.sqrt(np.var(se**2, ddof=1) / (4 * 4 * m))
    assert abs(model_se(se).mcse / without - 1) > 0.1


def test_coverage_power_and_bias_elimination_by_hand():
    estimate = np.array([1.0, 2.0, 3.0])  # mean 2
    sample = Sample(estimate, np.ones(3), estimate - 0.8, estimate + 0.8, truth=1.5)
    found = measures_of(sample)
    assert found["coverage"].value == pytest.approx(2 / 3)  # 1 and 2
    assert found["be_coverage"].value == pytest.approx(1 / 3)  # 2
    assert found["power"].value == 1.0
    assert measures_of(sample, null=1.0)["power"].value == pytest.approx(2 / 3)
    assert found["width"].value == pytest.approx(1.6)
    assert found["rmse"].value == pytest.approx(np.sqrt((0.25 + 0.25 + 2.25) / 3))


def test_measures_that_do_not_exist_are_absent():
    estimate, blank = np.array([1.0, 2.0, 3.0]), np.full(3, np.nan)
    found = measures_of(Sample(estimate, blank, blank, blank, truth=0.0))
    assert set(found) == {"mean", "bias", "empirical_se", "mse", "rmse"}
    infinite = np.array([np.inf, 5.0, 5.0])
    found = measures_of(Sample(estimate, blank, estimate - 1, infinite, truth=2.0))
    assert "coverage" in found
    assert "width" not in found


def test_estimates_without_spread_have_no_relative_error():
    same, zero = np.full(5, 2.0), np.zeros(5)
    found = measures_of(Sample(same, zero, same, same, truth=2.0))
    assert found["empirical_se"].value == found["model_se"].value == 0.0
    assert found["coverage"].value == 1.0
    assert found["empirical_se"].robust_mcse == 0.0
    assert "relative_error" not in found


def draws(n, rng, heavy=False):
    z = rng.standard_t(6, (n, 2)) if heavy else rng.normal(size=(n, 2))
    estimate = 1.0 + 0.1 + 0.5 * z[:, 0]
    se = 0.45 * np.exp(0.2 * z[:, 1] + 0.1 * z[:, 0])
    return Sample(estimate, se, estimate - 2 * se, estimate + 2 * se, 1.0)


def taken(sample, keep):
    parts = (sample.estimate, sample.se, sample.lower, sample.upper)
    return Sample(*(part[keep] for part in parts), sample.truth)


def test_influence_gives_the_jackknife_standard_error():
    sample = draws(300, np.random.default_rng(1), heavy=True)
    found = measures_of(sample)
    left_out = [measures_of(taken(sample, np.arange(300) != i)) for i in range(300)]
    for name, measured in found.items():
        if name == "be_coverage":  # its mean moves with the replication left out
            continue
        values = np.array([one[name].value for one in left_out])
        jackknife = np.sqrt(299 / 300 * np.square(values - values.mean()).sum())
        assert measured.robust_mcse == pytest.approx(jackknife, rel=0.05), name
        assert abs(measured.influence.mean()) < 1e-10 * np.abs(measured.influence).max()


def test_relative_precision_influence_gives_the_jackknife_standard_error():
    rng = np.random.default_rng(2)
    first = rng.standard_t(6, 300)
    second = 0.6 * first + 0.5 * rng.standard_t(6, 300)
    found = relative_precision(first, second)
    keep = ~np.eye(300, dtype=bool)
    values = np.array([relative_precision(first[k], second[k]).value for k in keep])
    jackknife = np.sqrt(299 / 300 * np.square(values - values.mean()).sum())
    assert found.robust_mcse == pytest.approx(jackknife, rel=0.02)


def test_published_errors_are_the_spread_of_repeated_studies():
    """400 studies of 150 normal replications; wrong formulas are outside."""
    rng = np.random.default_rng(3)
    studies = []
    for _ in range(400):
        z = rng.normal(size=(150, 3))
        se = 0.45 * np.exp(0.3 * z[:, 1])
        estimate, other = 1.1 + 0.5 * z[:, 0], 1 + 0.4 * z[:, 0] + 0.2 * z[:, 2]
        made = measures_of(
            Sample(estimate, se, estimate - 2 * se, estimate + 2 * se, 1.0)
        )
        studies.append(made | {"gain": relative_precision(estimate, other)})
    tolerance = 4 / np.sqrt(2 * 400)  # of a standard deviation of 400 values
    for name in studies[0]:
        values = np.array([study[name].value for study in studies])
        errors = np.array([study[name].mcse for study in studies])
        ratio = values.std(ddof=1) / np.sqrt(np.mean(errors**2))
        if name == "be_coverage":  # the mean is estimated too: it varies less
            assert ratio < 1 + tolerance
            continue
        assert abs(ratio - 1) < tolerance, (name, ratio)
        robust = np.array([study[name].robust_mcse for study in studies])
        assert abs(np.sqrt(np.mean(robust**2)) / values.std(ddof=1) - 1) < tolerance
    # Negative control: the gain as if the two methods had been run on separate data.
    gains = np.array([study["gain"].value for study in studies])
    apart = 200 * np.sqrt(2) * (1 + gains.mean() / 100) / np.sqrt(2 * 149)
    assert abs(gains.std(ddof=1) / apart - 1) > tolerance


def test_robust_error_of_a_heavy_tailed_empirical_se():
    """The published error supposes normal estimates; the robust one does not."""
    rng = np.random.default_rng(4)
    found = [empirical_se(rng.standard_t(5, 400)) for _ in range(500)]
    spread = np.std([one.value for one in found], ddof=1)
    published = np.sqrt(np.mean([one.mcse**2 for one in found]))
    robust = np.sqrt(np.mean([one.robust_mcse**2 for one in found]))
    tolerance = 4 / np.sqrt(2 * 500)
    assert abs(robust / spread - 1) < 2 * tolerance
    assert published / spread < 1 - tolerance


# -------------------------------------------------------------------------- tables


def long_table(n=200, seed=5, failing=0):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, 2))
    estimates = {"A": z[:, 0], "B": 0.9 * z[:, 0] + 0.3 * z[:, 1] + 0.1}
    frames = []
    for method, estimate in estimates.items():
        bad = (np.arange(n) < failing) & (method == "B")
        shown = np.where(bad, np.nan, estimate)
        frame = pd.DataFrame({"point": 0, "size": 30, "replication": np.arange(n)})
        frame = frame.assign(method=method, estimand="theta", truth=0.0, estimate=shown)
        frame = frame.assign(se=np.where(bad, np.nan, 1.0))
        frame = frame.assign(lower=shown - 1.96, upper=shown + 1.96)
        frame["status"] = np.where(bad, "not converged", "ok")
        frame["warnings"] = np.where((frame.index % 10 == 0) & (method == "A"), 2, 0)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def value(found, method, measure, column="value"):
    return found.loc[
        (found["method"] == method) & (found["measure"] == measure), column
    ].item()


def test_failures_are_counted_and_everything_else_is_conditional():
    table = long_table(failing=20)
    found = performance_table(table, ["size"], "A", 0.0, "published")
    assert value(found, "B", "failed") == pytest.approx(0.1)
    assert value(found, "B", "failed", "mcse") == pytest.approx(
        np.sqrt(0.1 * 0.9 / 200)
    )
    assert value(found, "B", "not_converged") == pytest.approx(0.1)
    assert value(found, "A", "failed") == 0.0
    assert value(found, "A", "warned") == pytest.approx(0.1)
    assert value(found, "B", "bias", "n_used") == 180
    assert value(found, "B", "bias", "n_failed") == 20
    inside = value(found, "B", "coverage") * 180
    assert value(found, "B", "coverage_of_all") == pytest.approx(inside / 200)
    assert value(found, "B", "coverage_of_all", "n_used") == 200
    assert value(found, "B", "relative_precision", "n_used") == 180
    assert list(found.columns[:3]) == ["point", "size", "estimand"]


def test_differences_are_paired():
    table = long_table(failing=20)
    found = compared(table, ["size"], "A", 0.0)
    first = table[(table["method"] == "A") & (table["replication"] >= 20)]
    second = table[(table["method"] == "B") & (table["replication"] >= 20)]
    gap = second["estimate"].to_numpy() - first["estimate"].to_numpy()
    assert value(found, "B", "bias", "difference") == pytest.approx(gap.mean())
    expected = gap.std(ddof=1) / np.sqrt(180)
    assert value(found, "B", "bias", "mcse") == pytest.approx(expected, rel=EXACT)
    assert value(found, "B", "bias", "n_used") == 180
    covered = [
        ((rows["lower"] <= 0) & (rows["upper"] >= 0)).to_numpy(dtype=float)
        for rows in (second, first)
    ]
    change = covered[0] - covered[1]
    assert value(found, "B", "coverage", "difference") == pytest.approx(change.mean())
    assert value(found, "B", "coverage", "mcse") == pytest.approx(
        change.std(ddof=1) / np.sqrt(180), rel=EXACT
    )


def test_paired_errors_are_the_spread_of_repeated_studies():
    rng = np.random.default_rng(6)
    errors, gaps, apart = [], [], []
    for _ in range(400):
        first = rng.normal(size=100)
        second = 0.9 * first + 0.3 * rng.normal(size=100)
        pair = [empirical_se(first), empirical_se(second)]
        gaps.append(pair[1].value - pair[0].value)
        errors.append(standard_error(pair[1].influence - pair[0].influence))
        apart.append(np.hypot(pair[0].mcse, pair[1].mcse))
    tolerance = 4 / np.sqrt(2 * 400)
    spread = np.std(gaps, ddof=1)
    assert abs(spread / np.sqrt(np.mean(np.square(errors))) - 1) < tolerance
    assert spread / np.mean(apart) < 1 - tolerance  # negative control: not paired


def test_a_method_that_always_fails_still_has_its_rows():
    found = performance_table(long_table(50, failing=50), ["size"], "A", 0.0, "robust")
    assert value(found, "B", "failed") == 1.0
    assert "bias" not in set(found.loc[found["method"] == "B", "measure"])


def test_stopping_error_does_not_trust_an_observed_certainty():
    table = long_table(50)
    table["lower"], table["upper"] = -10.0, 10.0
    expected = np.sqrt(52 / 54 * 2 / 54 / 54)
    assert stopping_error(table, "coverage") == pytest.approx(expected)
    assert stopping_error(long_table(50, failing=50), "coverage") == np.inf
    with pytest.raises(ValueError, match="`measure` 'cover'"):
        stopping_error(long_table(50), "cover")


# ---------------------------------------------------------------- how many to run


@pytest.mark.parametrize(
    ("measure", "mcse", "options", "needed"),
    [
        ("coverage", 0.005, {"expected": 0.95}, 1900),
        ("coverage", 0.005, {"expected": 0.5}, 10_000),
        ("power", 0.01, {"expected": 0.8}, 1600),
        ("bias", 0.005, {"sd": 0.2}, 1600),
        ("empirical_se", 0.0034, {"sd": 0.1511}, 989),
    ],
)
def test_replications_needed(measure, mcse, options, needed):
    assert replications_needed(measure, mcse, **options) == needed


def test_replications_needed_brings_the_error_there():
    n = replications_needed("empirical_se", 0.01, sd=0.3)
    assert empirical_se(0.3 * exact_columns(n, 1)[:, 0]).mcse <= 0.01 * (1 + EXACT)
    assert empirical_se(0.3 * exact_columns(n - 1, 1)[:, 0]).mcse > 0.01


@pytest.mark.parametrize(
    ("measure", "mcse", "options", "message"),
    [
        ("coverage", 0.0, {"expected": 0.9}, "`mcse`"),
        ("coverage", 0.01, {}, "`expected`"),
        ("bias", 0.01, {"expected": 0.1}, "`sd`"),
        ("relative_error", 0.01, {"sd": 0.1}, "pilot"),
    ],
)
def test_replications_needed_names_what_is_missing(measure, mcse, options, message):
    with pytest.raises(ValueError, match=message):
        replications_needed(measure, mcse, **options)


def test_relative_error_is_zero_where_standard_errors_are_right():
    z = exact_columns(400, 1)[:, 0]
    assert relative_error(2.0 * z, np.full(400, 2.0)).value == pytest.approx(
        0, abs=1e-9
    )
