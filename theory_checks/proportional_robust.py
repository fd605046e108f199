"""Claim: Huber, least absolute and least squares errors follow El Karoui et al.

At p/n = .4 the squared error is r^2 and the df-adjusted standard error (H6) covers
95%, for normal and Laplace errors; the classical Huber formula does not. Run with
``--quick`` for a few seconds; the full size takes about two minutes.
"""

import argparse
import sys

import numpy as np
from scipy import optimize, sparse

from eestim.asymptotics import df_adjusted_sandwich, proportional_robust

THRESHOLD = 1.345


def huber(X, y):
    """Return the Huber estimate by reweighted least squares."""
    beta = np.linalg.lstsq(X, y, rcond=None)[0]
    for _ in range(300):
        e = y - X @ beta
        w = np.minimum(1.0, THRESHOLD / np.maximum(np.abs(e), 1e-12))
        new = np.linalg.solve(X.T @ (w[:, None] * X), X.T @ (w * y))
        if np.abs(new - beta).max() < 1e-9:
            return new
        beta = new
    return beta


def least_absolute(X, y):
    """Return the median regression estimate by linear programming."""
    n, p = X.shape
    constraint = sparse.hstack([X, sparse.eye_array(n), -sparse.eye_array(n)])
    found = optimize.linprog(
        np.r_[np.zeros(p), np.ones(2 * n)],
        A_eq=constraint.tocsc(),
        b_eq=y,
        bounds=[(None, None)] * p + [(0, None)] * (2 * n),
        method="highs",
    )
    return found.x[:p]


def replicate(errors, n, p, rng):
    """Return squared errors of the three estimates, and coverage of two intervals."""
    X = rng.standard_normal((n, p))
    noise = rng.laplace(size=n) if errors == "laplace" else rng.standard_normal(n)
    beta = huber(X, noise)
    e = noise - X @ beta
    psi, slope = np.clip(e, -THRESHOLD, THRESHOLD), np.abs(e) <= THRESHOLD
    adjusted = df_adjusted_sandwich(X, psi, slope.astype(float))
    inverse = np.linalg.inv(X.T @ X)
    classical = np.sqrt(
        np.diag(inverse) * np.sum(psi**2) / (n - p) / np.mean(slope) ** 2
    )
    return (
        np.sum(np.linalg.lstsq(X, noise, rcond=None)[0] ** 2),
        np.sum(least_absolute(X, noise) ** 2),
        beta @ beta,
        np.mean(np.abs(beta) < 1.959964 * adjusted),
        np.mean(np.abs(beta) < 1.959964 * classical),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    n, reps = (150, 30) if quick else (600, 100)
    p = int(0.4 * n)
    rng = np.random.default_rng(3)
    failures = 0
    print(f"n = {n}, p = {p}, {reps} replications")
    print("errors   quantity                theory  simulation  MC error")
    for errors in ("normal", "laplace"):
        draws = np.array([replicate(errors, n, p, rng) for _ in range(reps)])
        theory = [
            proportional_robust(0.4, loss, errors).r2
            for loss in ("ols", "lad", "huber")
        ]
        labels = ["r2 least squares", "r2 least absolute", "r2 Huber 1.345"]
        labels += ["coverage, df-adjusted", "coverage, classical"]
        for j, (label, value) in enumerate(
            zip(labels, [*theory, 0.95, 0.95], strict=True)
        ):
            mean, error = draws[:, j].mean(), draws[:, j].std(ddof=1) / np.sqrt(reps)
            # the limit is approached at rate 1/n: allow 6 / n of the theory
            is_good = abs(mean - value) <= 4 * error + 6 * value / n * (j < 3)
            is_control = label == "coverage, classical"
            failures += not (is_good or is_control)
            verdict = "(control)" if is_control else ("ok" if is_good else "FAIL")
            print(f"{errors:8} {label:22} {value:7.4f} {mean:11.4f} ", end="")
            print(f"{error:9.4f} {verdict}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
