"""Diagnostics: size under the null and power against one alternative each."""

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from cases import table
from tolerances import EXACT

import eestim as ee
from eestim.diagnostics import (
    PathAverage,
    batch_means,
    derivative_check,
    diagnose,
    half_sample_stability,
    influence_check,
    influence_measures,
    information_matrix_test,
    over_identification,
    rank_check,
    rate_check,
    root_multiplicity,
    root_residual,
    unbiasedness,
    variance_ratio,
)
from eestim.errors import CapabilityError, InferenceError


def rejections(statuses):
    """Rejection rate and four Monte Carlo standard errors at the nominal 5%."""
    rate = np.mean([status in ("warn", "fail") for status in statuses])
    return rate, 4 * np.sqrt(0.05 * 0.95 / len(statuses))


def poisson_fit(rng, n, dispersion=0.0):
    x = rng.normal(size=n)
    mu = np.exp(0.5 + 0.5 * x)
    if dispersion:
        mu = mu * rng.gamma(1 / dispersion, dispersion, n)
    y = rng.poisson(mu).astype(float)
    return ee.estimate(ee.glm(y, np.column_stack([np.ones(n), x]), family="poisson"))


def test_information_matrix_size_and_power(rng):
    null = [information_matrix_test(poisson_fit(rng, 200)).status for _ in range(400)]
    rate, bound = rejections(null)
    assert abs(rate - 0.05) < bound + 0.01  # the efficient form: .042 at n = 200
    power = [
        information_matrix_test(poisson_fit(rng, 200, 0.25)).status for _ in range(60)
    ]
    assert rejections(power)[0] > 0.75  # .932 in a long run


def test_information_matrix_of_a_logit_has_the_right_size(rng):
    def fit():
        x = rng.normal(size=300)
        y = (rng.random(300) < 1 / (1 + np.exp(-(0.2 + 0.6 * x)))).astype(float)
        return ee.estimate(
            ee.glm(y, np.column_stack([np.ones(300), x]), family="binomial")
        )

    rate, bound = rejections(
        [information_matrix_test(fit()).status for _ in range(300)]
    )
    assert rate < 0.05 + bound


def test_information_matrix_bootstrap_agrees_with_the_law(rng):
    fit = poisson_fit(rng, 150)
    law = information_matrix_test(fit)
    boot = information_matrix_test(fit, bootstrap=99, rng=np.random.default_rng(1))
    assert boot.value == law.value
    assert "bootstrap of 99" in boot.meaning
    p_law = float(law.meaning.split("p = ")[1].split(" ")[0])
    p_boot = float(boot.meaning.split("p = ")[1].split(" ")[0])
    assert abs(p_law - p_boot) < 4 * np.sqrt(p_law * (1 - p_law) / 99) + 0.03


def test_half_samples_have_the_right_size(rng):
    def fit(n=300):
        x = rng.normal(size=n)
        y = (rng.random(n) < 1 / (1 + np.exp(-x))).astype(float)
        return ee.estimate(
            ee.glm(y, np.column_stack([np.ones(n), x]), family="binomial")
        )

    rate, bound = rejections(
        [half_sample_stability(fit(), rng).status for _ in range(300)]
    )
    assert rate < 0.05 + bound


def test_half_samples_see_standard_errors_that_are_too_small(rng):
    """A doubled sensitivity halves every standard error: four times the statistic."""

    class Doubled:
        """The equation of a mean with a planted fault in A."""

        def __init__(self, inner):
            self.inner = inner
            self.names, self.n_units = inner.names, inner.n_units
            self.start, self.psi = inner.start, inner.psi

        def sensitivity(self, theta):
            return 2.0 * self.inner.sensitivity(theta)

        def reweighted(self, weights):
            return Doubled(self.inner.reweighted(weights))

    def statistics(wrap):
        fits = (ee.mean(rng.normal(size=200)) for _ in range(150))
        return [half_sample_stability(ee.estimate(wrap(e)), rng).value for e in fits]

    error = np.sqrt(2 / 150)  # of the mean of chi-squared values on one degree
    assert abs(np.mean(statistics(lambda equation: equation)) - 1) < 4 * error + 0.02
    assert np.mean(statistics(Doubled)) > 4 - 4 * 4 * error


def test_rate_of_a_regular_estimate_and_of_a_heavy_tailed_mean(rng):
    regular = rate_check(ee.estimate(ee.mean(rng.normal(size=1000))), rng, draws=50)
    assert regular.status == "pass"
    assert abs(regular.value + 0.5) < 0.2
    cauchy = rate_check(ee.estimate(ee.mean(rng.standard_cauchy(1000))), rng, draws=50)
    assert cauchy.status == "warn"


def test_unbiasedness_counts_the_rank_of_redundant_equations(rng):
    """Softmax residuals sum to zero: three columns, rank two."""
    accepted = []
    for _ in range(200):
        y = rng.integers(0, 3, 300)
        psi = np.eye(3)[y] - 1 / 3
        found = unbiasedness(psi)
        assert "chi2(2)" in found.meaning
        accepted.append(found.status)
    rate, bound = rejections(accepted)
    assert abs(rate - 0.05) < bound


def test_over_identification_size_and_power(rng):
    def statistic(direct):
        n = 300
        z = rng.normal(size=(n, 3))
        u = rng.normal(size=n)
        x = z.sum(axis=1) + u + rng.normal(size=n)
        y = x + u + direct * z[:, 0]
        beta = 0.0
        weight = np.linalg.inv(z.T @ z / n)
        for _ in range(2):
            a, b = z.T @ x / n, z.T @ y / n
            beta = (a @ weight @ b) / (a @ weight @ a)
            g = z * (y - x * beta)[:, None]
            weight = np.linalg.inv(g.T @ g / n)
        a, b = z.T @ x / n, z.T @ y / n
        beta = (a @ weight @ b) / (a @ weight @ a)
        return over_identification(z * (y - x * beta)[:, None], -(z.T @ x / n)[:, None])

    rate, bound = rejections([statistic(0.0).status for _ in range(400)])
    assert abs(rate - 0.05) < bound
    assert rejections([statistic(0.4).status for _ in range(50)])[0] > 0.6


def test_variance_ratio_sees_overdispersion(rng):
    assert variance_ratio(poisson_fit(rng, 2000)).status == "pass"
    over = variance_ratio(poisson_fit(rng, 2000, 0.5))
    assert over.status == "warn"
    assert over.value > 1.5


def test_influence_names_the_dominating_unit(rng):
    values = rng.normal(size=400)
    assert influence_check(ee.estimate(ee.mean(values))).status == "pass"
    values[37] = 60.0
    found = influence_check(ee.estimate(ee.mean(values)))
    assert found.status == "warn"
    assert "Unit 37" in found.meaning


def test_derivative_check_sees_a_wrong_jacobian(rng):
    fit = ee.estimate(ee.glm("b ~ x", table(), family="binomial"))
    assert derivative_check(fit, rng).status == "pass"
    equation = fit.equation

    class Wrong:
        names, n_units, psi = equation.names, equation.n_units, equation.psi

        def sensitivity(self, theta):
            return 1.01 * equation.sensitivity(theta)

    wrong = ee.estimate(Wrong(), root=fit.theta)
    assert derivative_check(wrong, rng).status == "fail"


def test_a_second_root_is_found(rng):
    y = rng.normal(0.0, 0.05, 50)
    equation = ee.equation(
        lambda t, d: (t[0] ** 2 - 1 + d["y"])[:, None], {"y": y}, [0.8]
    )
    fit = ee.estimate(equation)
    found = root_multiplicity(fit, rng, starts=20, spread=40.0)
    assert found.status == "warn"
    assert found.value == 2
    single = root_multiplicity(ee.estimate(ee.mean(y)), rng)
    assert single.status == "pass"


def test_rank_and_residual_are_measured(rng):
    fit = ee.estimate(ee.ols("y ~ x + z", table()))
    assert rank_check(fit).status == "pass"
    assert root_residual(fit).value < 1e-8
    off = ee.estimate(ee.ols("y ~ x + z", table()), root=fit.theta + fit.se.to_numpy())
    assert root_residual(off).status == "fail"


def test_influence_measures_against_statsmodels():
    data = sm.datasets.stackloss.load_pandas().data
    design = sm.add_constant(data.iloc[:, 1:])
    fit = ee.estimate(ee.ols(data.iloc[:, 0].to_numpy(), design), ee.ModelBased())
    oracle = sm.OLS(data.iloc[:, 0], design).fit().get_influence()
    ours = influence_measures(fit)
    np.testing.assert_allclose(ours["leverage"], oracle.hat_matrix_diag, rtol=1e-9)
    np.testing.assert_allclose(
        ours["cooks_distance"], oracle.cooks_distance[0], rtol=1e-8
    )
    np.testing.assert_allclose(
        ours["studentised"], oracle.resid_studentized_external, rtol=1e-8
    )
    np.testing.assert_allclose(
        ours.filter(like="dfbeta[").to_numpy(), oracle.dfbeta, rtol=1e-7, atol=1e-10
    )


def test_influence_measures_refuse_full_leverage():
    X = np.column_stack([np.ones(6), [0, 0, 0, 0, 0, 1.0]])
    fit = ee.estimate(ee.ols([1.0, 2, 4, 3, 1, 7], X))
    with pytest.raises(InferenceError, match="leverage 1"):
        influence_measures(fit)


def test_path_average_against_the_definition(rng):
    path = rng.normal(size=(150, 3)).cumsum(axis=0)
    made = PathAverage.start(3)
    for iterate in path:
        made = made.updated(iterate)
    means = np.cumsum(path, axis=0) / np.arange(1, 151)[:, None]
    gaps = means - means[-1]
    s = np.arange(1, 151)
    direct = (gaps.T * s**2) @ gaps / 150**2
    np.testing.assert_allclose(made.mean, means[-1], rtol=1e3 * EXACT)
    np.testing.assert_allclose(made.covariance, direct, rtol=1e-8)
    low, high = made.interval()
    half = 6.747 * np.sqrt(np.diag(direct) / 150)
    np.testing.assert_allclose((high - low) / 2, half, rtol=1e-8)


def test_random_scaling_covers_and_batch_means_do_not(rng):
    """Lee et al.: .9445 and .9035 at n = 20,000; here a shorter path, one parameter."""
    n, replications = 2000, 300
    steps = 0.5 * np.arange(1, n + 1) ** -0.505
    x, e = rng.normal(size=(2, n, replications))
    beta, path = np.zeros(replications), np.empty((n, replications))
    for t in range(n):
        beta = beta + steps[t] * x[t] * (x[t] * (1.0 - beta) + e[t])
        path[t] = beta
    s = np.arange(1, n + 1)[:, None]
    means = path.cumsum(axis=0) / s
    scale = np.sqrt(np.sum(s**2 * (means - means[-1]) ** 2, axis=0) / n**3)
    covered = np.sum(np.abs(means[-1] - 1.0) <= 6.747 * scale)
    spread = [np.sqrt(batch_means(one[:, None])[0, 0]) for one in path.T]
    batched = np.sum(np.abs(means[-1] - 1.0) <= 1.96 * np.array(spread))
    bound = 4 * np.sqrt(0.95 * 0.05 / replications)
    assert covered / replications > 0.95 - bound - 0.02
    assert batched / replications < covered / replications


def test_short_paths_and_odd_levels_are_refused():
    path = PathAverage.start(1).updated(np.array([1.0]))
    with pytest.raises(InferenceError, match="100"):
        path.interval()
    with pytest.raises(ValueError, match="level"):
        path.interval(1.5)
    with pytest.raises(InferenceError, match="100"):
        path.wald([1.0])


def test_diagnose_runs_what_applies_and_says_what_does_not(rng):
    fit = ee.estimate(ee.glm("b ~ x", table(200, seed=4), family="binomial"))
    found = diagnose(fit, budget=30.0)
    assert found.worst in ("pass", "warn")
    frame = found.to_frame()
    assert isinstance(frame, pd.DataFrame)
    assert frame.loc["derivative", "status"] == "pass"
    loaded = ee.estimate(
        ee.equation(
            lambda t, d: (d["y"] - t[0])[:, None], {"y": rng.normal(size=60)}, [0]
        )
    )
    assert diagnose(loaded)["information matrix"].status == "not applicable"
    assert diagnose(fit, budget=0.0)["rate"].meaning.startswith("not run")
    with pytest.raises(KeyError, match="no check"):
        found["colour"]


def test_checks_that_refit_name_the_capability():
    fit = ee.estimate(ee.mean([1.0, 2.0, 5.0, 4.0]))

    class Bare:
        names, n_units = fit.equation.names, fit.equation.n_units
        psi, sensitivity = fit.equation.psi, fit.equation.sensitivity

    bare = ee.estimate(Bare(), root=fit.theta)
    with pytest.raises(CapabilityError, match="reweighted"):
        half_sample_stability(bare, np.random.default_rng(0))
