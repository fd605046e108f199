"""Claim: planted faults are caught, with their cause, and sound equations pass.

A table of faults in psi or in its sensitivity (tests/testing/faults.py), then every
equation of the package and of the strategies over examples of Hypothesis, 10,000 in
total, where no property may fail. ``--quick`` does one round of 46.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

TESTS = Path(__file__).resolve().parents[1] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "testing")]

import cases  # noqa: E402 - found in the tests' folder
import faults  # noqa: E402
from hypothesis import HealthCheck, Phase, given, seed, settings  # noqa: E402

from eestim.errors import PropertyError  # noqa: E402
from eestim.testing import check_equation, examples, strategies  # noqa: E402

# Examples of a round: drawn ones of every listed equation, besides it as it is, and
# equations on drawn designs of every kind, three examples each.
FULL, QUICK = (2, 10), (0, 1)


def table():
    return strategies.example_table(np.random.default_rng(3))


def mutation_table():
    """Print one line a fault; return how many were missed or misnamed."""
    print("| place | fault | caught by | cause named | runs again |")
    print("|---|---|---|---|---|")
    missed = 0
    for fault in faults.FAULTS:
        try:
            check_equation(fault.factory, data=fault.data(table()), examples=5)
        except PropertyError as found:
            again = runs_again(found)
            missed += fault.cause not in found.cause or not again
            print(
                f"| {fault.where} | {fault.name} | {found.property} | {found.cause} | "
                f"{'yes' if again else 'NO'} |"
            )
        else:
            missed += 1
            print(f"| {fault.where} | {fault.name} | MISSED | | |")
    print(f"\n{len(faults.FAULTS)} faults, {missed} missed or misnamed")
    return missed


def runs_again(found):
    """Return whether the counter-example fails in the same way when it is run."""
    try:
        exec(found.counterexample, {"__name__": "counterexample"})
    except PropertyError as again:
        return again.property is found.property
    return False


def sources():
    """Return (name, equation or factory, data) of everything that must pass."""
    made = [(str(case), case.build, cases.table()) for case in cases.CASES]
    made += [
        (one.__name__, one, None if one is faults.simulated_logit else table())
        for one in faults.SOUND
    ]
    made.append(("product", product, None))
    return made


def product(rng):
    x = rng.normal(size=40)
    return examples.Product(x, 1.5 * x + rng.normal(size=40))


def false_alarms(total, start, sizes):
    """Run rounds of examples until there are that many in all; return the alarms.

    An example is one data set with its seeds, on which every property that applies is
    checked. A round has a few of every equation, and as many on drawn designs. Round k
    has the seed ``start + k``, so that a run can be split, or gone on with, by `start`.
    An alarm ends its equation's examples of the round, and none of the others.
    """
    (each, on_designs), listed, alarms = sizes, sources(), []
    examples_done, checks, number, reported = 0, 0, 0, 0
    began = time.process_time()
    while examples_done < total:
        for name, given_equation, data in listed:
            ran, held, alarm = one_source(given_equation, data, each, start + number)
            examples_done, checks = examples_done + ran, checks + ran * held
            if alarm is not None:
                alarms.append((name, alarm))
        for kind in strategies.DESIGN_KINDS:
            ran, held, found = drawn(kind, on_designs, start + number)
            examples_done, checks = examples_done + ran, checks + held
            alarms += [(f"{kind} design", alarm) for alarm in found]
        for name, alarm in alarms[reported:]:
            print(f"\nFALSE ALARM {name}: {str(alarm)[:3000]}", flush=True)
        number, reported = number + 1, len(alarms)
        spent = time.process_time() - began
        print(
            f"round {number}, seed {start + number - 1}: {examples_done} examples, "
            f"about {checks} checks of a property, {len(alarms)} false alarms, "
            f"{spent:.0f} s",
            flush=True,
        )
    return alarms


def one_source(given_equation, data, each, start):
    """Check one equation; return examples, properties that held and an alarm."""
    counted = []
    try:
        held = check_equation(
            given_equation, data=data, examples=each, seed=start, count=counted.append
        )
    except PropertyError as alarm:
        return len(counted) + 1, 0, alarm
    return len(counted) + 1, len(held), None


def drawn(kind, count, start):
    """Check equations on drawn designs; return examples, checks and alarms."""
    alarms, ran, checks = [], 0, 0

    @seed(start)
    @settings(
        max_examples=count,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategies.equations(strategies.designs([kind])))
    def each(equation):
        nonlocal ran, checks
        try:
            checks += 3 * len(check_equation(equation, examples=2, seed=start + ran))
        except PropertyError as alarm:
            alarms.append(alarm)
        ran += 3

    each()
    return ran, checks, alarms


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--examples", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    total = options.examples or (1 if options.quick else 10_000)
    missed = mutation_table()
    print(f"\nsound equations, {total} examples:", flush=True)
    alarms = false_alarms(total, options.seed, QUICK if options.quick else FULL)
    print(f"{len(alarms)} false alarms")
    return 1 if missed or alarms else 0


if __name__ == "__main__":
    sys.exit(main())
