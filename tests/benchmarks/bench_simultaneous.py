"""Sup-t critical values: eestim against delicatessen, in one process.

Run with ``python tests/benchmarks/bench_simultaneous.py [--parameters 50] [--dof 30]``.
Both see the same covariance; ``reference`` is a simulation of four million draws, and
``off`` the difference from it. Time is that of the process (median of three), memory
the peak of NumPy's allocations (tracemalloc). delicatessen draws from the normal law
whatever the degrees of freedom, so ``off`` is shown against the law asked for.
"""

import argparse
import statistics
import time
import tracemalloc
from collections.abc import Callable

import numpy as np

from eestim.inference.simultaneous import correlation, max_t


def regression_covariance(k: int) -> np.ndarray:
    """Return the covariance of k correlated regression coefficients."""
    rng = np.random.default_rng(50)
    design = rng.normal(size=(4 * k, k)) + rng.normal(size=(4 * k, 1))
    return np.linalg.inv(design.T @ design)


def simulated(covariance: np.ndarray, dof: float) -> tuple[float, float]:
    """Return the 95% quantile of the largest statistic, and its standard error."""
    rng, largest = np.random.default_rng(1), []
    root = np.linalg.cholesky(correlation(covariance))
    for _ in range(80):
        draws = np.abs(rng.standard_normal((50_000, len(root))) @ root.T).max(axis=1)
        scale = (
            rng.chisquare(dof, 50_000) / dof if np.isfinite(dof) else np.ones(50_000)
        )
        largest.append(draws / np.sqrt(scale))
    every = np.concatenate(largest)
    c = float(np.quantile(every, 0.95))
    density = ((every > c - 0.02).mean() - (every > c + 0.02).mean()) / 0.04
    return c, float(np.sqrt(0.95 * 0.05 / len(every)) / density)


def by_delicatessen(covariance: np.ndarray) -> float:
    from delicatessen.sandwich import compute_critical_value_bands

    return float(
        compute_critical_value_bands(
            np.zeros(len(covariance)), covariance, n_draws=1_000_000, seed=1
        )
    )


def measured(call: Callable[[], float]) -> tuple[float, float, float]:
    """Return the value, seconds of the process and peak megabytes."""
    seconds = []
    for _ in range(3):
        start = time.process_time()
        value = call()
        seconds.append(time.process_time() - start)
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    return value, statistics.median(seconds), peak


def main() -> None:
    """Print one row a contestant."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parameters", type=int, default=50)
    parser.add_argument("--dof", type=float, default=float("inf"))
    options = parser.parse_args()
    covariance = regression_covariance(options.parameters)
    standard = correlation(covariance)
    reference, error = simulated(covariance, options.dof)
    print(f"reference {reference:.4f} (standard error {error:.4f})")
    contestants: dict[str, Callable[[], float]] = {
        "eestim": lambda: max_t(standard, dof=options.dof).critical
    }
    try:
        import delicatessen  # noqa: F401
    except ImportError:
        print("delicatessen is not installed; showing eestim alone")
    else:
        contestants["delicatessen"] = lambda: by_delicatessen(covariance)
    for name, call in contestants.items():
        value, seconds, peak = measured(call)
        off = value - reference
        print(f"{name:14s} {value:.4f} off {off:+.4f} {seconds:6.2f} s {peak:8.1f} MB")


if __name__ == "__main__":
    main()
