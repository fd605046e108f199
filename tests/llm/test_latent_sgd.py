"""Intervals from paths of descent: critical values, coverage, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest

from eestim.diagnostics.sgd import RANDOM_SCALING
from eestim.errors import InferenceError
from eestim.llm.equations import Brier
from eestim.llm.sgd_inference import (
    check_fit,
    joint_critical_value,
    joint_test,
    path_interval,
)
from eestim.llm.synthetic import BinaryModel, binary_data
from eestim.llm.training import fit


@pytest.mark.parametrize(("dimension", "published"), [(2, 103.3), (5, 357.6)])
def test_joint_critical_values_equal_independent_figures(dimension, published):
    """Those of another simulation, of the process on a grid."""
    value, error = joint_critical_value(dimension)
    assert abs(value - published) <= 4 * (error + 0.002 * published)
    assert abs(value - dimension * RANDOM_SCALING[0.95] ** 2) > 4 * error  # control


def paths(runs, steps):
    """Return (runs, steps) paths of one-pass least squares of slope 1."""
    rng = np.random.default_rng(0)
    theta, recorded = np.zeros((runs, 2)), np.empty((steps, runs, 2))
    for t in range(steps):
        x = rng.standard_normal((runs, 2))
        noise = rng.standard_normal(runs)
        residual = x.sum(1) + noise - (x * theta).sum(1)
        theta = theta + 0.5 * (t + 1) ** -0.505 * residual[:, None] * x
        recorded[t] = theta
    return recorded.transpose(1, 0, 2)


def test_intervals_and_joint_tests_of_one_pass_cover():
    """Random scaling near 95%, its joint test near 5%, batch means below."""
    runs = 120
    tables = paths(runs, 3000)
    error = (0.95 * 0.05 / runs) ** 0.5

    def coverage(method):
        bounds = [path_interval(t[:, :1], method=method).iloc[0] for t in tables]
        return np.mean([b["lower"] <= 1 <= b["upper"] for b in bounds])

    assert abs(coverage("random-scaling") - 0.95) <= 4 * error + 0.02
    assert coverage("batch-means") < 0.95
    p = [joint_test(table, [1.0, 1.0], draws=2000)[1] for table in tables[:40]]
    assert np.mean(np.array(p) < 0.05) <= 0.05 + 4 * (0.05 * 0.95 / 40) ** 0.5
    far = [joint_test(table, [1.3, 1.0], draws=2000)[1] for table in tables[:10]]
    assert np.mean(np.array(far) < 0.05) > 0.8  # the control


def test_recipes_without_the_limit_law_are_refused():
    data = binary_data(400, 0)
    options = {"steps": 200, "batch_size": 20, "draws": 2, "learning_rate": 0.01}
    made = fit(BinaryModel(), data, Brier(), **options)
    with pytest.raises(
        InferenceError, match=r"'adamw', not plain.*met 10 times.*infer"
    ):
        check_fit(made)

    class Falling(type(made.recipe)):
        """Steps that fall like t ** -0.6."""

        __slots__ = ()

        def rate(self, step):
            return (step + 1) ** -0.6

    fields = {name: getattr(made.recipe, name) for name in made.recipe.__slots__}
    falling = Falling(**(fields | {"optimizer": "sgd"}))
    proper = replace(made, recipe=falling, passes=1.0)
    check_fit(proper)
    with pytest.raises(InferenceError, match="steps do not fall"):
        check_fit(replace(proper, recipe=type(made.recipe)(**(fields))))
    path = np.random.default_rng(0).standard_normal(300)
    decayed = Falling(**(fields | {"optimizer": "sgd", "weight_decay": 0.1}))
    with pytest.raises(InferenceError, match="weights decay"):
        path_interval(path, fit=replace(proper, recipe=decayed))


def test_bad_paths_are_refused():
    path = np.random.default_rng(0).standard_normal((300, 2))
    with pytest.raises(InferenceError, match="has 50 steps"):
        path_interval(path[:50])
    with pytest.raises(InferenceError, match="not finite"):
        path_interval(np.where(path > 3, np.nan, path) * np.inf)
    with pytest.raises(InferenceError, match="does not move"):
        path_interval(np.zeros(300))
    with pytest.raises(ValueError, match="`method` is 'plug-in'"):
        path_interval(path, method="plug-in")
    with pytest.raises(ValueError, match="`burn` is 1"):
        path_interval(path, burn=1.0)
    with pytest.raises(ValueError, match="`value` has 1 entries for 2"):
        joint_test(path, [0.0])
