"""Claim: rank-deficient roots have honest tests and intervals for what is identified.

y = abx + cx^2 with heteroskedastic errors: the product ab is covered, its error does
not depend on the root or the inverse, and a Wald test counts the rank. Rank tests have
their size, and a singular stratum shows the rate n^(-1/4). Run
with ``--quick`` for a few seconds; the full size takes about two minutes.
"""

import argparse
import sys

import numpy as np
from scipy import optimize, stats

from eestim.asymptotics import (
    functional_covariance,
    jacobian_omega,
    kleibergen_paap,
    point_wald,
    rank_report,
    rate_slope,
)

N = 600


def fit_product(x, y, theta):
    """Return psi rows and A of (a, b, c) at a root."""
    a, b, c = theta
    e = y - a * b * x - c * x**2
    J = np.column_stack([b * x, a * x, x**2])
    A = J.T @ J / len(x)
    A[0, 1] -= np.mean(e * x)
    A[1, 0] -= np.mean(e * x)
    return e[:, None] * J, A


def nearest_root(h, c):
    """Return the root (a, h/a, c) nearest to (1, 1, 0.5)."""
    a = optimize.minimize_scalar(
        lambda a: (a - 1) ** 2 + (h / a - 1) ** 2, bounds=(0.2, 4), method="bounded"
    ).x
    return np.array([a, h / a, c])


def product_study(reps, rng):
    """Return coverage of ab, tests on rank and wrong df, and spread over roots."""
    truth = np.array([1.0, 1.0, 0.5])
    covered, values, spread = [], [], 0.0
    for _ in range(reps):
        x = rng.standard_normal(N)
        y = x + 0.5 * x**2 + rng.standard_normal(N) * np.sqrt(1 + 0.5 * x**2)
        h, c = np.linalg.lstsq(np.column_stack([x, x**2]), y, rcond=None)[0]
        errors = []
        for a in (1.0, rng.uniform(0.3, 3)):
            psi, A = fit_product(x, y, (a, h / a, c))
            M = psi.T @ psi / N
            errors.append(functional_covariance(A, M, [h / a, a, 0], N).se[0])
        spread = max(spread, np.ptp(errors) / errors[0])
        covered.append(abs(h - 1.0) < 1.959964 * errors[0])
        theta = nearest_root(h, c)
        psi, A = fit_product(x, y, theta)
        inverse = np.linalg.pinv(A, rcond=1e-9)
        V = inverse @ (psi.T @ psi / N) @ inverse.T / N
        values.append(point_wald(theta, truth, (V + V.T) / 2).statistic)
    values = np.array(values)
    right = np.mean(values > stats.chi2.isf(0.05, 2))
    wrong = np.mean(values > stats.chi2.isf(0.05, 3))
    return np.mean(covered), right, wrong, spread


def rank_test_sizes(reps, rng):
    """Return the size of the test of the true rank 2, and power against rank 1."""
    two, one = 0, 0
    for _ in range(reps):
        z = rng.standard_normal((400, 3))
        noise = rng.standard_normal((400, 3)) * (0.5 + np.abs(z[:, :1]))
        units = np.einsum("ni,nj->nij", z, z @ np.diag([1.0, 0.7, 0.0]) + noise)
        A, omega = units.mean(axis=0), jacobian_omega(units)
        two += kleibergen_paap(A, omega, 400, 2).p_value < 0.05
        one += kleibergen_paap(A, omega, 400, 1).p_value < 0.05
    return two / reps, one / reps


def singular_rate(reps, rng):
    """Return the rate of |a| where ab = 0, at the root a = b."""
    sizes = np.array([100, 400, 1600, 6400])
    spreads = []
    for n in sizes:
        h = rng.standard_normal(reps) / np.sqrt(n)
        spreads.append(stats.iqr(np.sign(h) * np.sqrt(np.abs(h))))
    return rate_slope(sizes, spreads).slope


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    reps = 300 if quick else 2000
    rng = np.random.default_rng(4)
    coverage, right, wrong, spread = product_study(reps, rng)
    size, power = rank_test_sizes(reps, rng)
    slope = singular_rate(20 * reps, rng)
    null = rank_report(fit_product(*_exact_data(rng), (1.0, 1.0, 0.5))[1])
    error = np.sqrt(0.05 * 0.95 / reps)
    small = 0.01  # HC0 is short of heteroskedasticity at finite n
    checks = [
        ("coverage of ab", 0.95, coverage, error, 4 * error + small),
        (
            "Wald at nearest root, df = rank 2",
            0.05,
            right,
            error,
            4 * error + small,
        ),
        ("Kleibergen-Paap size, true rank 2", 0.05, size, error, 4 * error),
        ("rate on the singular stratum", -0.25, slope, 0.01, 0.04),
    ]
    print(f"n = {N}, {reps} replications; rank {null.rank} of 3")
    print("quantity                              theory  simulation  MC error")
    failures = 0
    for label, theory, value, mc, allowed in checks:
        is_good = abs(value - theory) <= allowed
        failures += not is_good
        verdict = "ok" if is_good else "FAIL"
        print(f"{label:37} {theory:7.3f} {value:11.4f} {mc:9.4f} {verdict}")
    print(f"negative control: the same Wald test on 3 df rejects {wrong:.4f}")
    print(f"negative control: power against rank 1 {power:.4f}")
    print(f"largest spread of the standard error over roots {spread:.1e}")
    failures += power < 0.95 or wrong >= right or spread > 1e-10
    return 1 if failures else 0


def _exact_data(rng):
    x = rng.standard_normal(N)
    return x, x + 0.5 * x**2


if __name__ == "__main__":
    sys.exit(main())
