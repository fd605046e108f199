"""Robust variances of one coefficient when covariates are a large share of n.

Claim: HCK and LeaveOut are right at any share K / n, HC0 is too small, HC3 too large.

Design (Model 1 of Cattaneo, Jansson and Newey, 2018, and its replication files):
n = 700, W an intercept and K indicators of probability .02, S their sum with the
intercept, ``y = x + u`` without an effect of W, and

    homoskedastic     x = N,                        u = N
    heteroskedastic   x = kv (1 + S^2)^.75 N,       u = ku (1 + (t(x) + S)^2)^.75 N

with t(x) = x clipped to +-1.5 and constants that make both variances about one.
For each rule: coverage of the nominal 95% interval, and the mean of the estimated over
the mean of the true conditional variance of the coefficient.
"""

import argparse
import sys

import numpy as np

import eestim as ee
from eestim.covariance.many_covariates import HCK, LeaveOut

N, QUICK_N = 700, 350  # half of it takes an eighth of the time
CONSTANTS = {
    0.1: (0.187162, 0.170566),
    0.2: (0.102817, 0.098371),
    0.4: (0.049253, 0.048372),
}
RULES = {
    "HO1": ee.ModelBased(),
    "HC0": ee.HC(0),
    "HC1": ee.HC(1),
    "HC2": ee.HC(2),
    "HC3": ee.HC(3),
    "HCK": HCK(of="x"),
    "KSS": LeaveOut(of="x"),
}
CELLS = ((0.1, "hom"), (0.1, "het"), (0.2, "het"), (0.4, "hom"), (0.4, "het"))


def draw(share, errors, rng, n=N):
    """Return x, W, and the standard deviation of u for each row."""
    indicators = rng.random((n, round(share * n))) < 0.02
    indicators = indicators[:, indicators.sum(axis=0) >= 2]
    W = np.column_stack([np.ones(n), indicators])
    if errors == "hom":
        return rng.standard_normal(n), W, np.ones(n)
    kv, ku = CONSTANTS[share]
    S = W.sum(axis=1)
    x = kv * (1 + S**2) ** 0.75 * rng.standard_normal(n)
    return x, W, ku * (1 + (np.clip(x, -1.5, 1.5) + S) ** 2) ** 0.75


def cell(share, errors, replications, rng, n=N):
    """Return coverage and variance ratio of each rule, refusals, and MC error."""
    covered = {name: [] for name in RULES}
    estimated = {name: [] for name in RULES}
    true, refused = [], dict.fromkeys(RULES, 0)
    for _ in range(replications):
        x, W, sd = draw(share, errors, rng, n)
        y = x + sd * rng.standard_normal(n)
        names = ["x", *(f"w{j}" for j in range(W.shape[1]))]
        fit = ee.estimate(ee.ols(y, np.column_stack([x, W]), names=names))
        v = x - W @ np.linalg.lstsq(W, x, rcond=None)[0]
        true.append((v**2 * sd**2).sum() / (v @ v) ** 2)
        for name, rule in RULES.items():
            try:
                variance = fit.with_covariance(rule).spread.matrix[0, 0]
            except ee.errors.InferenceError:  # counted, as a miss
                refused[name] += 1
                covered[name].append(False)
                continue
            estimated[name].append(variance)
            covered[name].append(abs(fit.theta[0] - 1) <= 1.96 * np.sqrt(variance))
    rows = {}
    for name in RULES:
        ratio = np.mean(estimated[name]) / np.mean(true)
        error = np.std(estimated[name]) / np.sqrt(replications) / np.mean(true)
        rows[name] = np.mean(covered[name]), ratio, error, refused[name]
    return rows


def failures(share, errors, rows, replications):
    """Return what contradicts the claim in one cell, allowing 4 Monte Carlo errors."""
    wrong = []
    binomial = np.sqrt(0.95 * 0.05 / replications)
    for name in ("HCK", "KSS"):
        coverage, ratio, error, _ = rows[name]
        if abs(ratio - 1) > 4 * error:
            wrong.append(f"{name}: variance ratio {ratio:.3f} is not 1")
        if abs(coverage - 0.95) > 4 * binomial + 0.015:
            wrong.append(f"{name}: coverage {coverage:.3f} is not .95")
    if share == 0.4:
        if rows["HC0"][1] > 0.75:
            wrong.append(f"HC0: variance ratio {rows['HC0'][1]:.3f} is not far below 1")
        if rows["HC3"][1] < 1.25:
            wrong.append(f"HC3: variance ratio {rows['HC3'][1]:.3f} is not far above 1")
    if errors == "hom":  # balanced leverages: 1 - K/n, 1 and 1 / (1 - K/n)
        for name, limit in (("HC0", 1 - share), ("HC2", 1), ("HC3", 1 / (1 - share))):
            _, ratio, error, _ = rows[name]
            if abs(ratio - limit) > 4 * error + 0.03 * limit:
                wrong.append(f"{name}: ratio {ratio:.3f}, theory {limit:.3f}")
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--replications", type=int)
    arguments = parser.parse_args()
    replications = arguments.replications or (20 if arguments.quick else 250)
    cells, n = (CELLS[3:], QUICK_N) if arguments.quick else (CELLS, N)
    print(
        f"n = {n}, {replications} replications; coverage [variance ratio +- MC error]"
    )
    print(
        "theory: HCK and KSS .95 [1]; homoskedastic HC0 [1-K/n], HC2 [1], "
        "HC3 [1/(1-K/n)]"
    )
    wrong = []
    for index, (share, errors) in enumerate(cells):
        rng = np.random.default_rng([2018, index])
        rows = cell(share, errors, replications, rng, n)
        print(f"K/n = {share}, {errors}:")
        for name, (coverage, ratio, error, refused) in rows.items():
            note = f"  ({refused} refused)" if refused else ""
            print(f"  {name}  {coverage:.3f} [{ratio:.3f} +- {error:.3f}]{note}")
        wrong += [
            f"K/n = {share}, {errors}: {text}"
            for text in failures(share, errors, rows, replications)
        ]
    print("\n".join(["FAILED", *wrong]) if wrong else "passed")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
