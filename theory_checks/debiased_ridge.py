"""Claim: df-debiased ridge intervals cover 95% at every p/n; naive ones do not (H5).

Run with
``--quick`` for a few seconds; the full size takes about two minutes.
"""

import argparse
import sys

import numpy as np

from eestim.asymptotics import debiased_ridge

CASES = [(0.5, 0.1), (2.0, 0.4), (2.0, 0.05)]


def one_case(aspect, penalty, n, reps, rng):
    """Return coverage of both intervals and the spread of z, one row a replication."""
    p = round(aspect * n)
    rows = []
    for _ in range(reps):
        beta = rng.standard_normal(p)
        beta *= np.sqrt(5.0) / np.linalg.norm(beta)
        X = rng.standard_normal((n, p))
        y = X @ beta + rng.standard_normal(n)
        fit = debiased_ridge(X, y, penalty, np.eye(p))
        z = (fit.estimate - beta) / fit.se
        inner = np.linalg.inv(X.T @ X + n * penalty * np.eye(p))
        theta = inner @ (X.T @ y)
        influence = (X * (y - X @ theta)[:, None]) @ inner
        naive_se = np.sqrt(np.sum(influence**2, axis=0))
        rows.append(
            (
                np.mean(np.abs(z) < 1.959964),
                np.mean(np.abs(theta - beta) < 1.959964 * naive_se),
                np.sqrt(np.mean(z**2)),
            )
        )
    return np.array(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    n, reps = (150, 20) if quick else (400, 60)
    rng = np.random.default_rng(2)
    print(f"n = {n}, {reps} replications; squared signal 5, noise variance 1")
    print("aspect penalty  coverage  MC error  sd(z)  naive ridge sandwich")
    failures = 0
    for aspect, penalty in CASES:
        rows = one_case(aspect, penalty, n, reps, rng)
        coverage, naive, spread = rows.mean(axis=0)
        error = rows[:, 0].std(ddof=1) / np.sqrt(reps)
        is_good = abs(coverage - 0.95) <= 4 * error and naive < 0.90
        failures += not is_good
        print(
            f"{aspect:6.2f} {penalty:7.2f} {coverage:9.4f} {error:9.4f} {spread:6.3f} "
            f"{naive:9.3f} {'ok' if is_good else 'FAIL'}"
        )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
