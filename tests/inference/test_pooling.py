import numpy as np
import pandas as pd
import pytest
from scipy import stats
from tolerances import EXACT

import eestim as ee
from eestim.covariance.bootstrap import Bootstrap
from eestim.covariance.clustered import Clustered
from eestim.covariance.jackknife import Jackknife
from eestim.errors import DataError, InferenceError
from eestim.inference.comparison import compare
from eestim.inference.pooling import barnard_rubin_dof, pool


def imputed(m=5, n=30, seed=1, missing=10):
    """Data sets that differ in the y of the first rows."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    y = 1 + x + rng.normal(size=n)
    for _ in range(m):
        filled = y.copy()
        filled[:missing] = 1 + x[:missing] + rng.normal(size=missing)
        yield pd.DataFrame({"x": x, "y": filled, "g": np.arange(n) % 6})


def fits(rule=None, **options):
    rule = ee.HC(1) if rule is None else rule
    return [ee.estimate(ee.ols("y ~ x", data), rule) for data in imputed(**options)]


def test_rules_of_rubin_by_hand():
    made = fits()
    pooled = pool(made)
    theta = np.array([fit.theta for fit in made])
    U = np.mean([fit.spread.matrix for fit in made], axis=0)
    away = theta - theta.mean(axis=0)
    B = away.T @ away / 4
    np.testing.assert_allclose(pooled.theta, theta.mean(axis=0), rtol=EXACT)
    np.testing.assert_allclose(pooled.spread.matrix, U + 1.2 * B, rtol=1e-12)
    # the negative control: without the variance between imputations it is too small
    assert (np.diag(U) < 0.95 * np.diag(pooled.spread.matrix)).all()


def test_degrees_of_freedom_of_barnard_and_rubin_by_hand():
    U, B, m, complete = 2.0, 0.5, 5, 28.0
    T = U + 1.2 * B
    share = 1.2 * B / T
    old = 4 / share**2
    observed = (29 / 31) * 28 * (1 - share)
    got = barnard_rubin_dof(np.array([U]), np.array([B]), m, complete)
    np.testing.assert_allclose(got, [old * observed / (old + observed)], rtol=1e-12)
    relative = 1.2 * B / U
    classic = barnard_rubin_dof(np.array([U]), np.array([B]), m, np.inf)
    np.testing.assert_allclose(classic, [4 * (1 + 1 / relative) ** 2], rtol=1e-12)


def test_degrees_of_freedom_at_the_limits():
    none = barnard_rubin_dof(np.ones(1), np.zeros(1), 5, 28.0)
    np.testing.assert_allclose(none, [28 * 29 / 31], rtol=EXACT)
    assert np.isinf(barnard_rubin_dof(np.ones(1), np.zeros(1), 5, np.inf))
    many = barnard_rubin_dof(np.ones(1), np.ones(1), 10**9, 28.0)
    np.testing.assert_allclose(many, [28 * 29 / 31 / 2], rtol=1e-6)
    # never more than complete data, nor than between imputations
    for b in (0.1, 1.0, 10.0):
        dof = barnard_rubin_dof(np.ones(1), np.full(1, b), 5, 28.0)
        assert dof < 28
        assert dof < barnard_rubin_dof(np.ones(1), np.full(1, b), 5, np.inf)


def test_intervals_are_t_with_those_degrees_of_freedom():
    pooled = pool(fits())
    assert pooled.dof_kind == "Barnard-Rubin"
    bounds = pooled.interval()
    half = stats.t.ppf(0.975, pooled.dof) * pooled.se
    np.testing.assert_allclose(bounds["upper"] - pooled.params, half, rtol=1e-12)


def test_complete_degrees_of_freedom_come_from_the_fits_or_n_minus_p():
    clustered = pool(fits(Clustered("g")))
    assert (clustered.dof < 5).all()
    assert clustered.spread.n_clusters == (6,)
    normal, t = pool(fits(ee.HC(0))), pool(fits(ee.HC(0)), complete_dof=28)
    np.testing.assert_allclose(normal.dof, t.dof)
    large = pool(fits(ee.HC(0)), complete_dof=np.inf)
    assert (large.dof > t.dof).all()


def test_equal_imputations_keep_the_variance():
    fit = fits()[0]
    pooled = pool([fit, fit, fit])
    np.testing.assert_allclose(pooled.spread.matrix, fit.spread.matrix, rtol=EXACT)
    assert pooled.findings[0].status == "warn"  # 3 imputations


def test_functionals_and_contrasts_pool_as_parameters_do():
    """Pooling a linear function of the fits, and a linear function of the pool."""
    made = fits()
    pooled = pool(made)

    def both(theta):
        return theta["Intercept"] + 2 * theta["x"]

    after = pooled.functional(both)
    before = pool([fit.functional(both) for fit in made])
    np.testing.assert_allclose(after.theta, before.theta, rtol=1e-10)
    np.testing.assert_allclose(after.se, before.se, rtol=1e-7)
    np.testing.assert_allclose(after.dof, before.dof, rtol=1e-6)


def test_scale_of_measurement_does_not_matter():
    def scaled(data):
        return data.assign(y=1000 * data["y"])

    plain = pool(fits())
    far = pool([ee.estimate(ee.ols("y ~ x", scaled(d)), ee.HC(1)) for d in imputed()])
    np.testing.assert_allclose(far.se, 1000 * plain.se, rtol=1e-10)
    np.testing.assert_allclose(far.dof, plain.dof, rtol=1e-10)


def test_missing_information_and_how_many_imputations_are_reported():
    found = pool(fits(m=3, missing=20)).findings[0]
    assert found.name == "fraction of missing information"
    assert found.status == "warn"
    assert "imputations" in found.advice
    assert pool(fits(m=60, missing=2)).findings[0].status == "pass"


def test_rows_of_a_pooled_estimate_are_refused_as_a_covariance():
    pooled = pool(fits())
    rules = [
        ee.HC(0),
        Clustered(np.arange(30) % 6),
        Jackknife(kind="infinitesimal"),
        Bootstrap("multiplier", draws=9),
    ]
    for rule in rules:
        with pytest.raises(InferenceError, match="between imputations"):
            pooled.with_covariance(rule)
    with pytest.raises(InferenceError, match="pool the results"):
        compare(pooled, pool(fits(seed=2)))


def test_comparisons_are_pooled_imputation_by_imputation():
    """The order of pooling and of taking the difference does not matter for theta."""
    made = list(imputed())
    long = [ee.estimate(ee.ols("y ~ x", data)) for data in made]
    short = [ee.estimate(ee.ols("y ~ 1", data)) for data in made]
    pooled = pool([compare(a, b) for a, b in zip(long, short, strict=True)])
    gap = pool(long).params["Intercept"] - pool(short).params["Intercept"]
    np.testing.assert_allclose(pooled.params["Intercept"], gap, rtol=1e-10)


def test_pooled_estimates_are_saved(tmp_path):
    pooled = pool(fits())
    again = ee.load(pooled.save(tmp_path / "fit.npz"))
    np.testing.assert_array_equal(again.spread.matrix, pooled.spread.matrix)
    np.testing.assert_array_equal(again.dof, pooled.dof)


def test_what_is_refused():
    made = fits()
    with pytest.raises(DataError, match="at least two"):
        pool(made[:1])
    with pytest.raises(TypeError, match=r"estimates\[1\]"):
        pool([made[0], made[0].theta])
    with pytest.raises(DataError, match="same model"):
        pool([made[0], ee.estimate(ee.ols("y ~ 1", next(imputed())))])
    with pytest.raises(DataError, match="same rows"):
        pool([made[0], ee.estimate(ee.ols("y ~ x", next(imputed(n=31))))])
    with pytest.raises(ValueError, match="complete_dof"):
        pool(made, complete_dof=0)


def test_coverage_of_a_normal_mean_with_missing_values():
    """Proper imputation: 95% within 4 Monte Carlo errors; one imputation is short."""
    rng = np.random.default_rng(8)
    n, observed, m, covered, naive = 30, 18, 10, [], []
    for _ in range(250):
        y = rng.normal(size=observed)
        made = []
        for _ in range(m):
            sigma = np.sqrt(
                y.var(ddof=1) * (observed - 1) / rng.chisquare(observed - 1)
            )
            mu = rng.normal(y.mean(), sigma / np.sqrt(observed))
            filled = np.r_[y, rng.normal(mu, sigma, n - observed)]
            made.append(ee.estimate(ee.mean(filled), ee.HC(1)))
        for kept, fit in ((covered, pool(made)), (naive, made[0])):
            low, high = fit.interval().to_numpy()[0, 1:]
            kept.append(low <= 0 <= high)
    error = np.sqrt(0.95 * 0.05 / 250)
    assert abs(np.mean(covered) - 0.95) <= 4 * error
    assert np.mean(naive) < 0.95 - 4 * error
