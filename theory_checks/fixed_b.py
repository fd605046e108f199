"""Critical values of t statistics with kernel variances at a fixed bandwidth share b.

Claims: (1) the critical values that `fixed_b_critical` computes from the eigenvalues of
the kernel are the quantiles of the simulated statistic, for three kernels and any b;
(2) they lie near the published cubic for the Bartlett kernel (Kiefer and Vogelsang,
2005, 95% two-sided: 1.96 + 2.9694 b + 0.4160 b^2 - 0.5324 b^3); (3) for the mean of an
autoregression, intervals with them cover at the nominal rate to the order of 1/n, where
normal intervals miss by the more the larger b is.
"""

import argparse
import sys

import numpy as np
from scipy import linalg

import eestim as ee
from eestim.covariance._kernels import kernel_weights
from eestim.covariance.fixed_b import FixedB, fixed_b_critical
from eestim.covariance.hac import HAC

KERNELS = ("bartlett", "parzen", "quadratic-spectral")
SHARES = (0.02, 0.1, 0.3, 0.5, 1.0)
LEVEL = 0.95


def statistics(kernel, b, noise):
    """Return |t| of the mean of each row of noise."""
    n = noise.shape[1]
    table = linalg.toeplitz(kernel_weights(kernel, np.arange(n) / (b * n)))
    centred = noise - noise.mean(axis=1, keepdims=True)
    variance = np.einsum("ri,ri->r", centred @ table, centred)
    return np.abs(noise.sum(axis=1)) / np.sqrt(variance)


def check_quantiles(replications, rng):
    wrong = []
    noise = rng.standard_normal((replications, 500))
    print(f"rejection rates of 5% tests, n = 500, {replications} replications")
    print(
        "kernel              b     cubic   theory  reject  (MC error)  reject at 1.96"
    )
    error = np.sqrt(0.05 * 0.95 / replications)
    for kernel in KERNELS:
        for b in SHARES:
            t = statistics(kernel, b, noise)
            theory = fixed_b_critical(kernel, b, LEVEL)
            cubic = 1.96 + 2.9694 * b + 0.4160 * b**2 - 0.5324 * b**3
            shown = f"{cubic:.3f}" if kernel == "bartlett" else "  -  "
            rate, normal = (t > theory).mean(), (t > 1.96).mean()
            print(
                f"{kernel:18s} {b:4.2f}   {shown}   {theory:7.3f}  {rate:.4f}  "
                f"({error:.4f})     {normal:.4f}"
            )
            if abs(rate - 0.05) > 4 * error:
                wrong.append(f"{kernel}, b = {b}: rejects {rate:.4f} instead of .05")
            if kernel == "bartlett" and abs(theory - cubic) > 0.06:
                wrong.append(f"b = {b}: {theory:.3f} is far from the cubic {cubic:.3f}")
            if b >= 0.3 and normal < 0.05 + 10 * error:
                wrong.append(f"{kernel}, b = {b}: the normal value should fail")
    return wrong


def check_coverage(replications, rng):
    wrong = []
    n, rho = 200, 0.5
    print(f"coverage of the mean of AR(1), rho = {rho}, n = {n}, {replications} draws")
    print("b      fixed-b  normal  (MC error)")
    error = np.sqrt(0.05 * 0.95 / replications)
    for b in (0.1, 0.3):
        method, rule = FixedB("bartlett", b), HAC("bartlett", bandwidth=b * n)
        hits = np.zeros(2)
        for _ in range(replications):
            noise = rng.standard_normal(n + 50)
            y = linalg.solve_banded(
                (1, 0), [np.ones(n + 50), np.full(n + 50, -rho)], noise
            )
            fit = ee.estimate(ee.mean(y[50:]), covariance=rule)
            for k, bounds in enumerate((fit.interval(method=method), fit.interval())):
                low, high = bounds.iloc[0, 1:]
                hits[k] += low <= 0 <= high
        fixed, normal = hits / replications
        print(f"{b:.2f}   {fixed:.3f}    {normal:.3f}   ({error:.3f})")
        if abs(fixed - LEVEL) > 4 * error + 0.01:  # kernel bias, of order 1 / (b n)
            wrong.append(f"b = {b}: fixed-b intervals cover {fixed:.3f}")
        if normal > fixed:
            wrong.append(f"b = {b}: normal intervals should cover less")
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    rng = np.random.default_rng(2005)
    wrong = check_quantiles(4_000 if arguments.quick else 40_000, rng)
    wrong += check_coverage(400 if arguments.quick else 4_000, rng)
    print("\n".join(["FAILED", *wrong]) if wrong else "passed")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
