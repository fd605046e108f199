"""Every planted fault is caught and its cause named; what they spoil passes."""

import numpy as np
import pytest
from faults import FAULTS, SOUND, simulated_logit

from eestim.testing import FailedCheckError, check_equation, strategies


@pytest.fixture(scope="module")
def table():
    return strategies.example_table(np.random.default_rng(3))


def test_there_are_at_least_25_faults_of_either_kind():
    assert len(FAULTS) >= 25
    assert {fault.where for fault in FAULTS} == {"psi", "sensitivity"}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f"{f.where}-{f.name}")
def test_fault_is_caught_and_its_cause_named(fault, table):
    with pytest.raises(FailedCheckError) as caught:
        check_equation(fault.factory, data=fault.data(table), examples=5)
    assert fault.cause in caught.value.cause
    with pytest.raises(FailedCheckError) as again:
        exec(caught.value.counterexample, {"__name__": "counterexample"})
    assert again.value.property is caught.value.property


@pytest.mark.parametrize("sound", SOUND, ids=lambda f: f.__name__)
def test_the_same_equation_without_a_fault_passes(sound, table):
    """Negative control: the causes above are not what any equation is told."""
    data = None if sound is simulated_logit else table
    assert len(check_equation(sound, data=data, examples=3)) > 25
