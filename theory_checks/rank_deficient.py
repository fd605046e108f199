"""Claim: rank-deficient roots have honest tests and intervals for what is identified.

y = abx + cx^2 with heteroskedastic errors: the product ab is covered, its error does
not depend on the root or the inverse, and a Wald test counts the rank. So is a contrast
of a redundant softmax. Rank tests have their size; a singular stratum shows the rate
n^(-1/4); an equation whose noise leaves the range of A has a root in half of the
samples only. Run with ``--quick`` for a few seconds; the full size takes a minute.
"""

import argparse
import sys

import numpy as np
from scipy import special, stats

from eestim.asymptotics import (
    functional_covariance,
    jacobian_omega,
    kleibergen_paap,
    point_wald,
    rank_report,
    rate_slope,
)

N = 300


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
    roots = np.roots([1.0, -1.0, 0.0, h, -(h**2)])  # of the slope of the distance
    a = roots[np.abs(roots.imag) < 1e-9].real
    a = a[np.argmin((a - 1) ** 2 + (h / a - 1) ** 2)]
    return np.array([a, h / a, c])


def product_study(reps, rng):
    """Return coverage of ab, three tests of theta, and spread over roots.

    The tests are Wald's at the nearest root with the rank and with the number of
    parameters as degrees of freedom, and the ordinary one of (ab, c).
    """
    truth = np.array([1.0, 1.0, 0.5])
    covered, values, joint, spread = [], [], [], 0.0
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
        X = np.column_stack([x, x**2])
        inner = np.linalg.inv(X.T @ X)
        gap, rows = np.array([h - 1.0, c - 0.5]), X * (y - X @ [h, c])[:, None]
        half = rows @ inner
        joint.append(gap @ np.linalg.solve(half.T @ half, gap))
    values = np.array(values)
    right = np.mean(values > stats.chi2.isf(0.05, 2))
    wrong = np.mean(values > stats.chi2.isf(0.05, 3))
    ordinary = np.mean(np.array(joint) > stats.chi2.isf(0.05, 2))
    return np.mean(covered), right, wrong, ordinary, spread


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


def softmax_study(reps, rng):
    """Return coverage of a contrast of a redundant softmax, and spread over roots.

    Four logits of three covariates, of which the data identify 9 of 12 numbers.
    """
    truth = np.array([[0.5, -0.5, 0.0], [0.0, 0.6, 0.3], [-0.4, 0.0, 0.5], [0, 0, 0]])
    gradient = np.zeros((4, 3))
    gradient[0, 1], gradient[1, 1] = 1.0, -1.0
    covered, spread = [], 0.0
    for _ in range(reps):
        x = np.column_stack([np.ones(300), rng.standard_normal((300, 2))])
        y = np.argmax(x @ truth.T + rng.gumbel(size=(300, 4)), axis=1)
        theta = np.zeros((4, 3))
        for _ in range(30):
            psi, A = softmax_terms(x, y, theta)
            step = np.linalg.lstsq(A, psi.mean(axis=0), rcond=1e-9)[0].reshape(4, 3)
            theta = theta + step
            if np.abs(step).max() < 1e-12:
                break
        errors = []
        for shift in (0.0, rng.standard_normal(3)):  # another root of the orbit
            psi, A = softmax_terms(x, y, theta + shift)
            M = psi.T @ psi / 300
            errors.append(functional_covariance(A, M, gradient.ravel(), 300).se[0])
        spread = max(spread, np.ptp(errors) / errors[0])
        gap = (theta - truth)[0, 1] - (theta - truth)[1, 1]
        covered.append(abs(gap) < 1.959964 * errors[0])
    return np.mean(covered), spread


def softmax_terms(x, y, theta):
    """Return psi (n, 12) and A (12, 12)."""
    p = special.softmax(x @ theta.T, axis=1)
    residual = np.eye(4)[y] - p
    psi = (residual[:, :, None] * x[:, None, :]).reshape(len(x), 12)
    weight = p[:, :, None] * (np.eye(4) - p[:, None, :])
    A = np.einsum("nuv,ni,nj->uivj", weight, x, x, optimize=True) / len(x)
    return psi, A.reshape(12, 12)


def quadratic_existence(reps, rng):
    """Return how often (y1 - a, y2 - b^2) has a root at b = 0."""
    return np.mean(rng.standard_normal((reps, N)).mean(axis=1) >= 0)


def singular_rate(reps, rng):
    """Return median |a| at the root a = b of y = abx where ab = 0, and its rate."""
    sizes = np.array([100, 400, 1600, 6400])
    medians, spreads = [], []
    for n in sizes:
        x, e = rng.standard_normal((2, reps, n))
        h = np.sum(x * e, axis=1) / np.sum(x * x, axis=1)
        a = np.sign(h) * np.sqrt(np.abs(h))
        medians.append(np.median(np.abs(a)))
        spreads.append(stats.iqr(a))
    return np.array(medians), rate_slope(sizes, spreads).slope


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    reps, softmaxes, singular = (300, 60, 500) if quick else (2000, 600, 2000)
    rng = np.random.default_rng(4)
    coverage, right, wrong, ordinary, spread = product_study(reps, rng)
    size, power = rank_test_sizes(reps, rng)
    contrast, apart = softmax_study(softmaxes, rng)
    exists = quadratic_existence(reps, rng)
    medians, slope = singular_rate(singular, rng)
    null = rank_report(fit_product(*_exact_data(rng), (1.0, 1.0, 0.5))[1])
    small = 0.015  # HC0 is short of heteroskedasticity at n = 300
    checks = [  # label, theory, simulation, its error, what else is allowed
        ("coverage of ab", 0.95, coverage, _binomial(0.95, reps), small),
        ("Wald at nearest root, 2 df", ordinary, right, _binomial(0.05, reps), small),
        ("Kleibergen-Paap size, rank 2", 0.05, size, _binomial(0.05, reps), 0.0),
        (
            "coverage, softmax contrast",
            0.95,
            contrast,
            _binomial(0.95, softmaxes),
            small,
        ),
        ("P(root of y2 - b^2 exists)", 0.5, exists, _binomial(0.5, reps), 0.0),
        ("rate on the singular stratum", -0.25, slope, 0.01, 0.0),
    ]
    for n, value in zip((100, 400, 1600, 6400), medians, strict=True):
        h = stats.norm.ppf(0.75) / np.sqrt(n)  # median |h|, and a = h^(1/2)
        error = 1.2533 * h**0.5 * 0.787 / np.sqrt(singular)
        checks.append((f"median |a|, n = {n}", h**0.5, value, error, 0.01 * h**0.5))
    print(f"n = {N}, {reps} replications; rank {null.rank} of 3")
    print("quantity                        theory  simulation  MC error")
    failures = 0
    for label, theory, value, mc, allowed in checks:
        is_good = abs(value - theory) <= 4 * mc + allowed
        failures += not is_good
        verdict = "ok" if is_good else "FAIL"
        print(f"{label:31} {theory:7.4f} {value:11.4f} {mc:9.4f} {verdict}")
    print("(theory of the Wald test: the size of the ordinary one of ab and c, HC0)")
    print(f"negative control: the same Wald test on 3 df rejects {wrong:.4f}")
    print(f"negative control: power against rank 1 {power:.4f}")
    print(f"largest spread of the error over roots: product {spread:.1e}, ", end="")
    print(f"softmax {apart:.1e}")
    failures += power < 0.95 or wrong > 0.7 * right or max(spread, apart) > 1e-10
    return 1 if failures else 0


def _binomial(p, reps):
    return np.sqrt(p * (1 - p) / reps)


def _exact_data(rng):
    x = rng.standard_normal(N)
    return x, x + 0.5 * x**2


if __name__ == "__main__":
    sys.exit(main())
