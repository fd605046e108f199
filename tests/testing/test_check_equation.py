"""`check_equation`: what it returns, what it says, and code that fails again."""

import json

import numpy as np
import pytest
from faults import Logit, WrongSign

import eestim as ee
from eestim.cli.app import run
from eestim.errors import PropertyError
from eestim.testing import (
    CONTRACT,
    PROPERTIES,
    Example,
    FailedCheckError,
    check_equation,
    check_property,
    examples,
    strategies,
)

VALUES = np.random.default_rng(0).normal(size=50)


def numbers(held):
    return {one.number for one in held}


def moments(theta, data):
    away = data["y"] - theta[0]
    return np.column_stack([away, away**2 - theta[1]])


def torch_moments(theta, data):
    import torch

    away = data["y"] - theta[0]
    return torch.stack([away, away**2 - theta[1]], dim=1)


def product(rng):
    x = rng.normal(size=40)
    return examples.Product(x, 1.5 * x + rng.normal(size=40))


def logit(rng):
    data = strategies.example_table(rng)
    return ee.glm("b ~ x", data, family="binomial")


# ------------------------------------------------------------------------- registry


def test_there_are_49_properties_each_with_a_statement_and_a_reason():
    assert [one.number for one in PROPERTIES] == list(range(1, 50))
    assert {one.number for one in CONTRACT} == {0}
    every = (*CONTRACT, *PROPERTIES)
    assert all(one.name and one.statement and one.reason for one in every)
    assert len({one.name for one in every}) == len(every)


def test_each_of_the_49_runs_on_at_least_one_equation():
    table = strategies.example_table(np.random.default_rng(2))
    checked = [
        check_equation(lambda data: ee.ols("y ~ x + z", data), data=table, examples=0),
        check_equation(logit, examples=0),
        check_equation(examples.simulated_logit, examples=0),
        check_equation(product, examples=0),
    ]
    assert set().union(*map(numbers, checked)) == set(range(50))


def test_applies_looks_at_the_equation():
    by_number = {one.number: one for one in PROPERTIES}
    assert by_number[17].applies(ee.ols(VALUES, np.ones((50, 1))))
    assert not by_number[17].applies(ee.mean(VALUES, weights=ee.Frequency(np.ones(50))))
    assert not by_number[46].applies(ee.mean(VALUES))
    assert by_number[46].applies(examples.simulated_logit)


# ------------------------------------------------------------------ what may be given


@pytest.mark.parametrize(
    ("given", "least"),
    [
        (ee.equation(moments, {"y": VALUES}, [0.0, 1.0]), {1, 5, 7, 27, 30, 31, 34}),
        (ee.ols(VALUES, np.ones((50, 1))), {17, 18, 19, 20, 29, 33, 35}),
        (Logit, {1, 7, 27, 34}),  # a factory of data, table by default
        (logit, {5, 33, 44}),
    ],
    ids=["numpy psi", "model", "factory of data", "factory of rng"],
)
def test_properties_that_apply_are_run(given, least):
    assert least <= numbers(check_equation(given, examples=2))


def test_torch_psi_is_checked_like_its_numpy_twin():
    autodiff = pytest.importorskip("eestim.autodiff")
    data = {"y": VALUES}
    exact = autodiff.equation(torch_moments, data, [0.0, 1.0])
    twin = ee.equation(moments, data, [0.0, 1.0])
    held = numbers(check_equation(exact, examples=2))
    assert held == numbers(check_equation(twin, examples=2))


def test_float32_is_named():
    torch = pytest.importorskip("torch")
    from eestim import autodiff

    half = autodiff.equation(torch_moments, {"y": VALUES}, [0, 1], dtype=torch.float32)
    with pytest.raises(PropertyError, match="float32"):
        check_equation(half, examples=2)


def test_an_equation_object_without_rows_is_checked_for_what_it_has():
    class Bare:
        n_units, names, start = 50, ("mean",), np.zeros(1)

        def psi(self, theta):
            return (VALUES - theta[0])[:, None]

        def sensitivity(self, theta):
            return np.eye(1)

    held = numbers(check_equation(Bare(), examples=3))
    assert {1, 3, 16, 31, 34} <= held and not held & {5, 7, 14, 27, 30}


def test_over_identified_equations_are_checked_before_their_root():
    def both(theta, data):
        return np.column_stack([data["y"] - theta[0], data["y"] ** 3 - theta[0]])

    held = check_equation(ee.equation(both, {"y": VALUES}, [0.0]), examples=2)
    assert numbers(held) == {0} and "derivative" in {one.name for one in held}


@pytest.mark.parametrize("given", [3, "y ~ x", lambda rng: 3])
def test_what_is_no_equation_is_refused(given):
    with pytest.raises(TypeError, match=r"psi|equation"):
        check_equation(given)


def test_a_domain_that_ends_near_the_start_is_no_fault():
    """Psi of a standardised chance is not finite beyond 1, and the start is 0.97."""
    coins = {"b": (np.arange(60) % 10 > 0).astype(float)}

    def psi(theta, data):
        spread = np.sqrt(theta[0] * (1.0 - theta[0]))
        return ((data["b"] - theta[0]) / spread)[:, None]

    assert check_equation(ee.equation(psi, coins, [0.97]), examples=2)


def logistic(theta, data):
    mu = 1 / (1 + np.exp(-(data["X"] @ theta)))
    return (data["y"] - mu)[:, None] * data["X"]


@pytest.mark.parametrize("scales", [(1.0, 1e6, 1e-6), (1e-6, 1e3, 1e6)])
def test_units_of_covariates_raise_no_alarm(scales):
    """A step of .05 in theta, whatever its units, once saturated every mu."""
    rng = np.random.default_rng(3)
    X = np.column_stack([np.ones(60), rng.normal(size=(60, 2))])
    y = (rng.random(60) < 1 / (1 + np.exp(-X[:, 1]))).astype(float)
    data = {"y": y, "X": X * np.array(scales)}
    check_equation(ee.equation(logistic, data, np.zeros(3)), examples=2)
    check_equation(ee.ols(X[:, 1] + y, data["X"]), examples=2)
    wrong = ee.equation(  # the control: a wrong derivative is seen in any units
        logistic, data, np.zeros(3), jacobian=jacobian_of(1.01)
    )
    with pytest.raises(PropertyError, match="derivative"):
        check_equation(wrong, examples=2)


def jacobian_of(factor):
    """Return the derivative of a logistic psi, wrong away from zero."""

    def jacobian(theta, data):
        mu = 1 / (1 + np.exp(-(data["X"] @ theta)))
        weight = mu * (1 - mu) * (1 + (factor - 1) * (mu != 0.5))
        return -(data["X"].T * weight) @ data["X"] / len(mu)

    return jacobian


def test_an_equation_without_a_root_says_so():
    def positive(theta, data):
        return (1.0 + np.exp(theta[0]) + 0 * data["y"])[:, None]

    with pytest.raises(PropertyError, match=r"psi|root"):
        check_equation(ee.equation(positive, {"y": VALUES}, [0.0]), examples=1)


# ------------------------------------------------------------------------- failures


def test_a_failure_names_property_cause_and_code_that_fails_again():
    table = strategies.example_table(np.random.default_rng(3))
    with pytest.raises(FailedCheckError) as caught:
        check_equation(WrongSign, data=table, examples=3)
    failed = caught.value
    assert failed.property.name == "derivative"
    assert failed.cause == "sensitivity has the wrong sign"
    assert failed.cause in str(failed) and failed.counterexample.splitlines()[0]
    with pytest.raises(FailedCheckError, match="wrong sign") as again:
        exec(failed.counterexample, {"__name__": "counterexample"})
    assert again.value.property is failed.property


def test_counter_examples_are_shrunk_in_rows():
    """A fault that needs 40 rows is shown on 40, not on the 80 given."""

    def many(theta, data):
        y = np.asarray(data["y"])
        return (y - theta[0] + 0.01 * (len(y) >= 40) * y.mean() ** 2)[:, None]

    table = strategies.example_table(np.random.default_rng(3))
    with pytest.raises(FailedCheckError) as caught:
        check_equation(ee.equation(many, table, [0.0]), examples=3)
    assert 40 <= caught.value.example.n_rows < 50


SCALE = 2.0


def test_code_of_a_local_function_carries_what_it_reads():
    offset = np.array([0.25])

    def psi(theta, data):
        return (SCALE * (data["y"] - data["y"].mean() - offset - theta[0]))[:, None]

    with pytest.raises(FailedCheckError, match="other rows") as caught:
        check_equation(ee.equation(psi, {"y": VALUES}, {"m": 0.0}), examples=2)
    code = caught.value.counterexample
    assert "SCALE = 2.0" in code and "offset = np.array([0.25])" in code
    with pytest.raises(FailedCheckError, match="other rows"):
        exec(code, {"__name__": "counterexample"})


def test_weights_units_and_jacobian_reach_the_code():
    def psi(theta, data):
        return (np.sort(np.asarray(data["y"])) ** 2 - np.exp(theta[0]))[:, None]

    def jacobian(theta, data):
        return np.array([[-np.exp(theta[0])]])

    made = ee.equation(
        psi,
        {"y": VALUES},
        [0.0],
        jacobian=jacobian,
        weights=ee.Sampling(np.linspace(1, 2, 50)),
    )
    with pytest.raises(FailedCheckError, match="place") as caught:
        check_equation(made, examples=2)
    assert "ee.Sampling(" in caught.value.counterexample
    with pytest.raises(FailedCheckError, match="place"):
        exec(caught.value.counterexample, {"__name__": "counterexample"})


def test_the_same_seed_gives_the_same_failure():
    found = []
    for _ in range(2):
        with pytest.raises(FailedCheckError) as caught:
            check_equation(WrongSign, examples=2, seed=5)
        found.append(str(caught.value))
    assert found[0] == found[1]


def test_global_generators_are_left_alone():
    before = np.random.get_state()[1].copy()  # noqa: NPY002 - what is tested
    check_equation(ee.mean(VALUES), examples=2)
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_one_property_on_one_example():
    check_property(3, ee.mean(VALUES), Example(seed=4, n_rows=30, data_seed=2))
    check_property("derivative", ee.mean(VALUES))
    with pytest.raises(ValueError, match="from 1 to 49"):
        check_property(50, ee.mean(VALUES))
    with pytest.raises(FailedCheckError, match="wrong sign"):
        check_property("derivative", WrongSign)


# ------------------------------------------------------------------- the command line


@pytest.fixture
def models(tmp_path):
    path = tmp_path / "equations_to_check.py"
    path.write_text(
        "import numpy as np\nimport eestim as ee\n"
        "def psi(theta, data):\n    return (data['y'] - theta[0])[:, None]\n"
        "def summed(theta, data):\n"
        "    return np.full((30, 1), np.sum(data['y'] - theta[0]))\n"
        "data = {'y': np.arange(30.0) ** 1.5}\n"
        "good = ee.equation(psi, data, [0.0])\n"
        "bad = ee.equation(summed, data, [0.0])\n",
        encoding="utf-8",
    )
    return path


def test_shell_prints_what_held_or_the_cause(models, capsys):
    assert run(["check", f"{models}:good", "--examples", "2"]) == 0
    assert "properties hold" in capsys.readouterr().out
    assert run(["check", f"{models}:bad", "--examples", "2", "--json"]) == 1
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert not told["ok"] and told["cause"] == "psi sums over rows"
    assert err.strip().count("\n") == 0 and "psi sums over rows" in err
    assert "check_property" in told["counterexample"]


@pytest.mark.parametrize(
    ("target", "cause"),
    [("good", "MODULE:EQUATION"), ("absent.py:good", "no file"), ("m:x", "No module")],
)
def test_shell_says_what_is_wrong_with_its_argument(target, cause):
    from eestim.cli.check import found_equation

    with pytest.raises((ValueError, ImportError), match=cause):
        found_equation(target)


def test_shell_lists_the_names_of_a_module(models):
    from eestim.cli.check import found_equation

    with pytest.raises(ValueError, match=r"has no 'goood'; it has .*good"):
        found_equation(f"{models}:goood")
