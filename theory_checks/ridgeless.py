"""Claim: minimum-norm and ridge regression have the limit risks H3 and H4.

Isotropic Gaussian covariates, squared signal 5, noise variance 1. Run with ``--quick``
for a few seconds; the full size takes about a minute.
"""

import argparse
import sys

import numpy as np

from eestim.asymptotics import Ridge, ridge_risk, ridgeless_risk, spectral_root

SIGNAL, NOISE = 5.0, 1.0
CASES = [  # aspect ratio, penalty (0 is minimum norm)
    (0.5, 0.0),
    (1.5, 0.0),
    (2.0, 0.0),
    (4.0, 0.0),
    (0.5, 0.2),
    (2.0, 0.2),
    (2.0, 0.4),
]


def excess_risks(aspect, penalty, n, reps, rng):
    p = round(aspect * n)
    risks = []
    for _ in range(reps):
        X = rng.standard_normal((n, p))
        beta = rng.standard_normal(p)
        beta *= np.sqrt(SIGNAL) / np.linalg.norm(beta)
        y = X @ beta + np.sqrt(NOISE) * rng.standard_normal(n)
        if penalty > 0:
            theta = spectral_root(X, y, Ridge(penalty)).theta
        else:
            theta = np.linalg.lstsq(X, y, rcond=None)[0]
        risks.append(np.sum((theta - beta) ** 2))
    return np.array(risks)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    n, reps = (150, 40) if quick else (300, 200)
    rng = np.random.default_rng(1)
    print(f"n = {n}, {reps} replications; squared signal 5, noise variance 1")
    print("aspect  penalty   theory  simulation  MC error     z")
    failures = 0
    for aspect, penalty in CASES:
        theory = ridge_risk(aspect, SIGNAL, NOISE, penalty)
        risks = excess_risks(aspect, penalty, n, reps, rng)
        error = risks.std(ddof=1) / np.sqrt(reps)
        z = (risks.mean() - theory) / error
        # the limit is approached at rate 1/n: allow 2 / n of the theory
        is_good = abs(risks.mean() - theory) <= 4 * error + 2 * theory / n
        failures += not is_good
        print(
            f"{aspect:6.2f} {penalty:8.2f} {theory:8.4f} {risks.mean():11.4f} "
            f"{error:9.4f} {z:5.1f} {'ok' if is_good else 'FAIL'}"
        )
    wrong = ridgeless_risk(2.0, SIGNAL, NOISE) - SIGNAL / 2  # without its bias
    print(f"negative control: variance alone at aspect 2 would be {wrong:.4f}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
