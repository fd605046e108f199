"""Batched logistic fits with HC0 intervals against a loop over statsmodels.

Run ``python tests/benchmarks/bench_batched.py [--problems 10000] [--jobs 1]`` with one
BLAS thread (``OMP_NUM_THREADS=1``). The loop is timed over 200 fits and scaled, in the
same process and in turn with the batched fits; CPU seconds as well as seconds on the
clock are given, because only the former mean anything on a busy machine. The loop holds
the interpreter's lock; batched fits can use ``--jobs`` threads, shown beside one.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from eestim.simulate import batched_glm

LOOP = 200


def problems(count: int, n: int, p: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    X = rng.standard_normal((count, n, p))
    X[:, :, 0] = 1.0
    eta = X @ np.linspace(0.5, -0.5, p)
    return (rng.random((count, n)) < 1 / (1 + np.exp(-eta))).astype(float), X


def timed(function: Callable[[], Any]) -> tuple[float, float, Any]:
    """Return CPU seconds, seconds on the clock, and the result."""
    cpu, clock = time.process_time(), time.perf_counter()
    result = function()
    return time.process_time() - cpu, time.perf_counter() - clock, result


def loops(y: np.ndarray, X: np.ndarray) -> dict[str, Callable[[], list[Any]]]:
    import statsmodels.api as sm

    def logit(r: int) -> Any:
        fit = sm.Logit(y[r], X[r]).fit(disp=0, cov_type="HC0")
        return fit.params, fit.bse, fit.conf_int()

    def glm(r: int) -> Any:
        fit = sm.GLM(y[r], X[r], family=sm.families.Binomial()).fit(cov_type="HC0")
        return fit.params, fit.bse, fit.conf_int()

    return {
        "statsmodels Logit": lambda: [logit(r) for r in range(LOOP)],
        "statsmodels GLM": lambda: [glm(r) for r in range(LOOP)],
    }


def compare(options: argparse.Namespace) -> None:
    y, X = problems(options.problems, options.n, options.p)

    def batched(design: np.ndarray, jobs: int = 1) -> Callable[[], Any]:
        def run() -> Any:
            fit = batched_glm(y, design, "binomial", jobs=jobs)
            fit.interval()
            return fit

        return run

    contestants = {"own designs": batched(X), "one shared design": batched(X[0])}
    if options.jobs > 1:
        contestants |= {
            f"{name}, {options.jobs} threads": batched(design, options.jobs)
            for name, design in {"own designs": X, "one shared design": X[0]}.items()
        }
    seconds: dict[str, list[tuple[float, float]]] = {}
    results = {}
    for _ in range(options.rounds):
        for name, run in (contestants | loops(y, X)).items():
            cpu, clock, results[name] = timed(run)
            scale = options.problems / LOOP if name.startswith("stats") else 1.0
            seconds.setdefault(name, []).append((cpu * scale, clock * scale))
    print(
        f"{options.problems} logistic fits with HC0 intervals, n = {options.n}, "
        f"p = {options.p}; medians of {options.rounds}, load {os.getloadavg()[0]:.1f}"
    )
    medians = {
        name: tuple(statistics.median(column) for column in zip(*pairs, strict=True))
        for name, pairs in seconds.items()
    }
    for name, (cpu, clock) in medians.items():
        print(f"{name:30s} {cpu:8.2f} s CPU  {clock:8.2f} s")
    for name in contestants:
        for other in loops(y, X):
            cpu, clock = (
                theirs / ours
                for theirs, ours in zip(medians[other], medians[name], strict=True)
            )
            print(f"{other} / {name}: {cpu:.0f} by CPU, {clock:.0f} by the clock")
    fit = results["own designs"]
    gap = max(
        np.abs(fit.theta[r] - one[0]).max() / fit.se[r].max()
        for r, one in enumerate(results["statsmodels GLM"])
    )
    print(f"estimates differ by at most {gap:.1e} standard errors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", type=int, default=10_000)
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--p", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    compare(options)


if __name__ == "__main__":
    main()
