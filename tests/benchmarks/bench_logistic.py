"""Logistic regression with HC0: eestim against a hand-written Newton and peers.

Run with ``python tests/benchmarks/bench_logistic.py [--rows 1000000] [--columns 50]``.
All contestants see the same arrays in one process, in turn; the ratios of the medians
are what counts. Memory is the peak of NumPy's allocations over the data (tracemalloc).
"""

import argparse
import statistics
import time
import tracemalloc
from collections.abc import Callable

import numpy as np

import eestim as ee


def data(n: int, p: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    design = rng.standard_normal((n, p))
    design[:, 0] = 1.0
    beta = rng.standard_normal(p) / np.sqrt(p)
    outcome = (rng.random(n) < 1 / (1 + np.exp(-design @ beta))).astype(float)
    return outcome, design


def by_hand(y: np.ndarray, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Newton and sandwich as one would write them in NumPy, Hessian in blocks."""
    beta, n = np.zeros(X.shape[1]), len(y)
    for _ in range(50):
        mu = 1 / (1 + np.exp(-X @ beta))
        weight = mu * (1 - mu)
        hessian = np.zeros((X.shape[1],) * 2)
        for rows in range(0, n, 65536):
            block = X[rows : rows + 65536]
            hessian += block.T @ (block * weight[rows : rows + 65536, None])
        step = np.linalg.solve(hessian, X.T @ (y - mu))
        beta = beta + step
        if np.abs(step).max() < 1e-9:
            break
    square = (y - 1 / (1 + np.exp(-X @ beta))) ** 2
    meat = np.zeros_like(hessian)
    for rows in range(0, n, 65536):
        block = X[rows : rows + 65536]
        meat += block.T @ (block * square[rows : rows + 65536, None])
    half = np.linalg.solve(hessian, meat)
    return beta, np.sqrt(np.diag(np.linalg.solve(hessian, half.T)))


def by_eestim(y: np.ndarray, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    fit = ee.estimate(ee.glm(y, X, family="binomial"), covariance=ee.HC(0))
    return fit.theta, fit.se.to_numpy()


def by_statsmodels(y: np.ndarray, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    import statsmodels.api as sm

    fit = sm.GLM(y, X, family=sm.families.Binomial()).fit(cov_type="HC0")
    return fit.params, fit.bse


def measured(
    function: Callable[..., tuple[np.ndarray, np.ndarray]], y: np.ndarray, X: np.ndarray
) -> tuple[float, tuple[np.ndarray, np.ndarray]]:
    began = time.perf_counter()
    result = function(y, X)
    seconds = time.perf_counter() - began
    return seconds, result


def peak_mebibytes(
    function: Callable[..., object], y: np.ndarray, X: np.ndarray
) -> float:
    tracemalloc.start()
    function(y, X)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--columns", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--statsmodels", action="store_true")
    options = parser.parse_args()
    y, X = data(options.rows, options.columns)
    contestants = {"eestim": by_eestim, "numpy": by_hand}
    if options.statsmodels:
        contestants["statsmodels"] = by_statsmodels
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    results = {}
    for round_ in range(options.rounds):
        for name, function in contestants.items():
            if name == "statsmodels" and round_:
                continue
            took, results[name] = measured(function, y, X)
            seconds[name].append(took)
    memory = {name: peak_mebibytes(f, y, X) for name, f in contestants.items()}
    base = statistics.median(seconds["eestim"])
    print(
        f"n = {options.rows:,}, p = {options.columns}; data {X.nbytes / 2**20:.0f} MiB"
    )
    for name, times in seconds.items():
        took = statistics.median(times)
        off = max(
            float(np.max(np.abs(a - b) / results["eestim"][1]))
            for a, b in zip(results[name], results["eestim"], strict=True)
        )
        print(
            f"{name:12s} {took:8.2f} s   eestim / {name} = {base / took:5.2f}   "
            f"peak +{memory[name]:.0f} MiB   differs by {off:.1e} standard errors"
        )


if __name__ == "__main__":
    main()
