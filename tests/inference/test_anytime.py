"""Asymptotic confidence sequences: formula, comparison with Wald, and peeking.

Numbers in the names are those of the property list in the theory notes.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, special, stats
from tolerances import EXACT

import eestim as ee
from eestim.inference.anytime import Anytime, anytime_factor, anytime_tuning

Z95 = stats.norm.ppf(0.975)


def half_width(fit, method, level=0.95):
    bounds = fit.interval(level, method)
    return (bounds["upper"] - bounds["estimate"]).to_numpy()


def published(n, n_star, alpha):
    """Half width in units of sigma-hat, as the paper writes it."""
    rho2 = (-2 * np.log(alpha) + np.log(1 - 2 * np.log(alpha))) / n_star
    inside = 2 * (n * rho2 + 1) / (n**2 * rho2)
    return np.sqrt(inside * np.log(np.sqrt(n * rho2 + 1) / alpha))


@given(n=st.integers(2, 5000), n_star=st.integers(1, 5000), level=st.floats(0.5, 0.99))
@settings(deadline=None, max_examples=30)
def test_half_widths_equal_the_published_formula(n, n_star, level):
    y = np.arange(n) % 5
    fit = ee.estimate(ee.mean(np.append(y[:-1], 7.0)))
    sigma = fit.se.to_numpy() * np.sqrt(n)
    wanted = sigma * published(n, n_star, 1 - level)
    np.testing.assert_allclose(
        half_width(fit, Anytime(n_star), level), wanted, rtol=1e-10
    )


def test_tuning_is_near_the_exact_optimum_by_lambert_w_and_by_search():
    alpha, n_star = 0.05, 500
    exact = (-special.lambertw(-(alpha**2) / np.e, -1).real - 1) / n_star
    assert n_star * exact == pytest.approx(8.212, abs=5e-4)
    assert n_star * anytime_tuning(n_star) == pytest.approx(7.936, abs=5e-4)

    def width(log_rho2):
        grown = n_star * np.exp(log_rho2)
        return 2 * (grown + 1) / grown * np.log(np.sqrt(grown + 1) / alpha)

    found = optimize.minimize_scalar(width, bracket=(-6.0, -3.0)).x
    assert np.exp(found) == pytest.approx(exact, rel=1e-5)


@given(n=st.integers(1, 10**7))
@settings(deadline=None, max_examples=100)
def test_49_the_sequence_contains_wald_at_every_size(n):
    assert anytime_factor(n, 500) / Z95 > 1.5484


def test_49_its_smallest_width_is_1_5485_times_walds_near_517():
    sizes = np.arange(300, 900)
    ratios = np.array([anytime_factor(n, 500) for n in sizes]) / Z95
    assert ratios.min() == pytest.approx(1.5485, abs=1e-4)
    assert abs(sizes[ratios.argmin()] - 517) <= 2
    assert anytime_factor(10_000, 500) / Z95 == pytest.approx(1.70, abs=0.02)


def test_the_sequence_covers_under_peeking_where_wald_does_not():
    """Exponential data looked at 100 times from n = 100 to 10,000."""
    rng = np.random.default_rng(7)
    looks = np.unique(np.geomspace(100, 10_000, 100).astype(int))
    reps, missed = 400, np.zeros(2)
    factors = np.array([[anytime_factor(n, 500), Z95] for n in looks])
    for _ in range(reps):
        y = rng.exponential(size=looks[-1])
        total, square = np.cumsum(y)[looks - 1], np.cumsum(y**2)[looks - 1]
        mean = total / looks
        error = np.sqrt((square / looks - mean**2) / looks)
        missed += (np.abs(mean - 1.0)[:, None] > factors * error[:, None]).any(axis=0)
    rate, noise = missed / reps, np.sqrt(0.05 * 0.95 / reps)
    assert rate[0] < 0.05 + 4 * noise
    assert rate[1] > 0.3  # negative control: .49 with a look at every unit


def test_sizes_count_clusters_where_the_rule_has_them():
    rng = np.random.default_rng(8)
    groups = np.repeat(np.arange(40), 5)
    y = rng.normal(size=200) + rng.normal(size=40)[groups]
    fit = ee.estimate(ee.mean(y), ee.Clustered(groups))
    wanted = anytime_factor(40, 100) * fit.se.to_numpy()
    np.testing.assert_allclose(half_width(fit, Anytime(100)), wanted, rtol=EXACT)


def test_every_parameter_of_any_fit_has_a_sequence(rng):
    X = np.column_stack([np.ones(60), rng.normal(size=60)])
    fit = ee.estimate(ee.ols(X @ [1.0, 2.0] + rng.normal(size=60), X))
    bounds = fit.interval(method=Anytime(60))
    assert list(bounds.index) == list(fit.names)
    assert (bounds["lower"] < fit.interval()["lower"]).all()


@pytest.mark.parametrize("n_star", [0, -5.0, np.inf, np.nan])
def test_sizes_that_are_none_are_refused(n_star):
    with pytest.raises(ValueError, match="`n_star` must be a positive number"):
        Anytime(n_star)


def test_levels_are_checked():
    fit = ee.estimate(ee.mean([1.0, 2.0, 4.0]))
    with pytest.raises(ValueError, match="`level` must lie"):
        fit.interval(2.0, Anytime(10))
