"""The law of the random-scaling statistic, for one and for several parameters."""

import numpy as np
import pytest
from scipy import stats

from eestim.diagnostics import (
    RANDOM_SCALING,
    PathAverage,
    random_scaling_critical,
    random_scaling_tail,
)
from eestim.diagnostics.random_scaling import _left_over
from eestim.errors import DataError


def averaged(path):
    """The average of a path, step by step."""
    made = PathAverage.start(path.shape[1])
    for iterate in path:
        made = made.updated(iterate)
    return made


def statistics_of(walks):
    """The statistic of the means of (replications, n, d) paths, by its definition."""
    n = walks.shape[1]
    s = np.arange(1, n + 1)[None, :, None]
    sums = walks.cumsum(axis=1)
    gaps = sums - s / n * sums[:, -1:]  # s (mean_s - mean_n)
    scale = gaps.transpose(0, 2, 1) @ gaps / n**2
    mean = sums[:, -1] / n
    return n * np.einsum(
        "rj,rj->r", mean, np.linalg.solve(scale, mean[..., None])[..., 0]
    )


@pytest.mark.parametrize("level", RANDOM_SCALING)
def test_one_parameter_against_the_published_table(level):
    critical, error = random_scaling_critical(level, 1)
    assert round(critical**0.5, 3) == RANDOM_SCALING[level]
    assert error == 0.0


def test_the_exact_law_of_one_parameter_against_simulated_draws():
    for c in (0.5, 10.0, 45.5, 74.2):
        tails = stats.chi2.sf(c * _left_over(1), 1)
        error = tails.std() / len(tails) ** 0.5
        assert abs(tails.mean() - random_scaling_tail(c, 1)[0]) < 4 * error


@pytest.mark.parametrize(
    ("dim", "figure", "its_error"), [(2, 103.3, 0.15), (5, 357.6, 0.7)]
)
def test_several_parameters_against_another_program(dim, figure, its_error):
    critical, error = random_scaling_critical(0.95, dim)
    assert error < 0.005 * critical
    assert abs(critical - figure) < 4 * np.hypot(error, its_error)


@pytest.mark.parametrize("dim", [2, 3])
def test_tail_against_random_walks(dim, rng):
    """The definition of the statistic, with 400 steps for the Wiener process."""
    found = statistics_of(rng.standard_normal((4000, 400, dim)))
    critical = random_scaling_critical(0.95, dim)[0]
    bound = 4 * np.sqrt(0.05 * 0.95 / 4000)
    assert abs(np.mean(found > critical) - 0.05) < bound
    # the control: squares of the value for one parameter, or chi-squared
    assert np.mean(found > 6.747**2) > 0.05 + 2 * bound
    assert np.mean(found > stats.chi2.isf(0.05, dim)) > 0.5


def test_tail_falls_from_one_and_inverts():
    for dim in (1, 4):
        tails = [random_scaling_tail(c, dim)[0] for c in (0.0, 1.0, 30.0, 300.0, 1e6)]
        assert tails[0] == 1.0
        assert (np.diff(tails) < 0).all()
        assert 0 <= tails[-1] < 1e-6
        critical = random_scaling_critical(0.9, dim)[0]
        np.testing.assert_allclose(
            random_scaling_tail(critical, dim)[0], 0.1, rtol=1e-9
        )


def test_joint_test_is_the_definition_and_free_of_coordinates(rng):
    walks = rng.standard_normal((1, 300, 3))
    path = averaged(walks[0])
    found = path.wald(np.eye(3))
    np.testing.assert_allclose(found.statistic, statistics_of(walks)[0], rtol=1e-8)
    assert found.dof == 3
    turn = np.diag([1e-6, 1.0, 1e6]) @ rng.normal(size=(3, 3))
    shift = np.array([1.0, -2.0, 3.0])
    moved = averaged(walks[0] @ turn.T + turn @ shift)
    again = moved.wald(np.linalg.inv(turn), shift)
    np.testing.assert_allclose(again.statistic, found.statistic, rtol=1e-6)
    redundant = path.wald([[1, 0, 0], [0, 1, 0], [1, 1, 0]])
    assert redundant.dof == 2
    np.testing.assert_allclose(
        redundant.statistic, path.wald(np.eye(3)[:2]).statistic, rtol=1e-8
    )
    one = path.wald([0.0, 0.0, 1.0])
    low, high = path.interval(1 - one.p)
    np.testing.assert_allclose(min(abs(low[2]), abs(high[2])), 0.0, atol=1e-6)


def test_joint_test_along_descent_has_its_size(rng):
    """Two parameters of a linear model; the control tests each at 5% instead."""
    n, replications, truth = 2000, 400, np.array([1.0, -1.0])
    steps = 0.5 * np.arange(1, n + 1) ** -0.505
    beta = np.zeros((replications, 2))
    path = np.empty((n, replications, 2))
    for t in range(n):
        x = rng.standard_normal((replications, 2))
        error = rng.standard_normal(replications) - np.sum(x * (beta - truth), axis=1)
        beta = beta + steps[t] * x * error[:, None]
        path[t] = beta
    found = statistics_of(path.transpose(1, 0, 2) - truth)
    own = averaged(path[:, 0]).wald(np.eye(2), truth)
    np.testing.assert_allclose(own.statistic, found[0], rtol=1e-6)
    rejected = np.mean(found > random_scaling_critical(0.95, 2)[0])
    bound = 4 * np.sqrt(0.05 * 0.95 / replications)
    assert abs(rejected - 0.05) < bound + 0.01  # a finite path: .9445 for intervals
    assert np.mean(found > 6.747**2) > 0.05 + bound + 0.01


def test_bonferroni_intervals_are_those_of_a_higher_level(rng):
    path = averaged(rng.standard_normal((200, 5)))
    wide, plain = path.interval(0.9, "bonferroni"), path.interval(0.98)
    np.testing.assert_allclose(wide, plain, rtol=1e-4)
    low, high = path.interval(0.97)
    assert (low > plain[0]).all() and (high < plain[1]).all()


def test_what_is_not_a_level_or_a_restriction_is_refused(rng):
    path = averaged(rng.standard_normal((120, 2)))
    with pytest.raises(ValueError, match="simultaneous"):
        path.interval(0.9, "sup-t")
    with pytest.raises(DataError, match="2 parameters"):
        path.wald(np.eye(3))
    with pytest.raises(DataError, match="`r`"):
        path.wald(np.eye(2), [1.0])
    with pytest.raises(ValueError, match="from 1 to 20"):
        random_scaling_tail(3.0, 21)
    with pytest.raises(ValueError, match="statistic"):
        random_scaling_tail(-1.0, 2)
    with pytest.raises(ValueError, match="level"):
        random_scaling_critical(95, 2)
