"""Claim: planted faults are caught, with their cause, and sound equations pass.

A table of faults in psi or in its sensitivity (tests/testing/faults.py), then every
equation of the package and of the strategies over examples of Hypothesis, 10,000 in
total, where no property may fail. ``--quick`` draws 60.
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


def false_alarms(total, start):
    """Run examples until there are that many in all; return the alarms."""
    listed = sources()
    each = total // (2 * len(listed))
    done, checks, alarms = 0, 0, []
    for name, given_equation, data in listed:
        began = time.process_time()
        counted = []
        try:
            held = check_equation(
                given_equation,
                data=data,
                examples=each,
                seed=start,
                count=counted.append,
            )
            checks += len(held)
        except PropertyError as alarm:
            alarms.append((name, alarm))
        done += len(counted)
        spent = time.process_time() - began
        print(f"  {name:26s} {len(counted):5d} examples {spent:7.1f} s", flush=True)
    for kind in strategies.DESIGN_KINDS:
        count = (total - done) // (len(strategies.DESIGN_KINDS))
        began = time.process_time()
        ran, found = drawn(kind, max(count, 1), start)
        alarms += [(kind, alarm) for alarm in found]
        spent = time.process_time() - began
        print(f"  {kind + ' designs':26s} {ran:5d} examples {spent:7.1f} s", flush=True)
    return alarms


def drawn(kind, count, start):
    """Check equations on drawn designs of one kind; return examples and alarms."""
    alarms, ran = [], 0

    @seed(start)
    @settings(
        max_examples=max(count // 5, 1),
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategies.equations(strategies.designs([kind])))
    def each(equation):
        nonlocal ran
        try:
            check_equation(equation, examples=4, seed=ran)
        except PropertyError as alarm:
            alarms.append(alarm)
        ran += 5

    each()
    return ran, alarms


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--examples", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    total = options.examples or (60 if options.quick else 10_000)
    missed = mutation_table()
    print(f"\nsound equations, {total} examples:", flush=True)
    alarms = false_alarms(total, options.seed)
    for name, alarm in alarms:
        print(f"\nFALSE ALARM {name}: {str(alarm)[:3000]}")
    print(f"{len(alarms)} false alarms")
    return 1 if missed or alarms else 0


if __name__ == "__main__":
    sys.exit(main())
