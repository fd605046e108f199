import cases
import conformance
import numpy as np
import pytest

CASES = pytest.mark.parametrize("case", cases.CASES, ids=str)


@pytest.fixture(scope="module")
def data():
    return cases.table()


@CASES
def test_contract(case, data):
    held = conformance.check_contract(case.build, data)
    assert {"shapes", "no memory", "derivative", "capabilities"} <= held


@CASES
def test_sensitivity_against_plain_central_differences(case, data):
    if not case.is_smooth:
        pytest.skip("psi jumps: its sensitivity is an estimate of a density")
    equation = case.build(data)
    conformance.check_sensitivity(equation, case.theta(equation))


@CASES
def test_streamed_moments_against_whole(case, data):
    equation = case.build(data)
    conformance.check_moments(equation, case.theta(equation))


@CASES
def test_moments_merge_over_a_random_partition(case, data, rng):
    if not case.is_additive:
        pytest.skip("psi or A of a part is not that part of the whole")
    equation = case.build(data)
    conformance.check_merging(case.build, data, case.theta(equation), rng)


def test_a_wrong_sensitivity_is_caught(data):
    """Negative control: the derivative check must see a sign and a missing factor."""
    equation = cases.CASES[3].build(data)
    theta = cases.near(equation)

    class Wrong:
        names, n_units, psi = equation.names, equation.n_units, equation.psi

        def __init__(self, factor):
            self.factor = factor

        def sensitivity(self, t):
            return self.factor * equation.sensitivity(t)

    for factor in (-1.0, 1.001):
        with pytest.raises(AssertionError):
            conformance.check_sensitivity(Wrong(factor), theta)
    conformance.check_sensitivity(Wrong(1.0), theta)


def test_a_psi_that_looks_at_other_rows_is_caught(data, rng):
    """Negative control: centring by the sample mean is not additive over units."""
    import eestim as ee

    def centred(theta, table):
        y = np.asarray(table["y"])
        return (y - y.mean() - theta[0] + 0.1 * y**2)[:, None]

    with pytest.raises(AssertionError):
        conformance.check_merging(
            lambda d: ee.equation(centred, d, [0.0]), data, np.array([0.2]), rng
        )
