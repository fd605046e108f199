"""Batched logistic fits with HC0 intervals against a loop over statsmodels.

Run ``python tests/benchmarks/bench_batched.py [--problems 10000] [--jobs 1]`` with one
BLAS thread (``OMP_NUM_THREADS=1``). The loop is timed over 200 fits and scaled, in the
same process and in turn with the batched fits; CPU seconds as well as seconds on the
clock are given, because only the former mean anything on a busy machine. A second table
is the speed-up of `Study.run` from one to two worker processes.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from eestim.simulate import Study, batched_glm

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

    def batched(design: np.ndarray) -> Callable[[], Any]:
        def run() -> Any:
            fit = batched_glm(y, design, "binomial", jobs=options.jobs)
            fit.interval()
            return fit

        return run

    contestants = {"own designs": batched(X), "one shared design": batched(X[0])}
    seconds: dict[str, list[tuple[float, float]]] = {}
    results = {}
    for _ in range(options.rounds):
        for name, run in (contestants | loops(y, X)).items():
            cpu, clock, results[name] = timed(run)
            scale = options.problems / LOOP if name.startswith("stats") else 1.0
            seconds.setdefault(name, []).append((cpu * scale, clock * scale))
    print(
        f"{options.problems} logistic fits with HC0 intervals, n = {options.n}, "
        f"p = {options.p}, {options.jobs} thread(s); medians of {options.rounds}"
    )
    medians = {
        name: tuple(statistics.median(column) for column in zip(*pairs, strict=True))
        for name, pairs in seconds.items()
    }
    for name, (cpu, clock) in medians.items():
        print(f"{name:20s} {cpu:8.2f} s CPU  {clock:8.2f} s")
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


def speed_up(options: argparse.Namespace) -> None:
    study = Study(problems_of, {"logit": single}, {"milliseconds": 0.0})
    rates, cpu = {}, {}
    for jobs in (1, 2):
        study.run(20, seed=1, jobs=jobs)  # workers start outside the timing
        _, clock, results = timed(partial(study.run, options.study, 1, jobs))
        rates[jobs] = options.study / clock
        cpu[jobs] = results.table["estimate"].median()
    print(
        f"Study.run: {rates[1]:.0f} replications a second with one job, {rates[2]:.0f} "
        f"with two: {rates[2] / rates[1]:.2f} times; CPU of a fit {cpu[1]:.2f} and "
        f"{cpu[2]:.2f} ms"
    )


def problems_of(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    X = np.column_stack([np.ones(2000), rng.standard_normal((2000, 9))])
    return (rng.random(2000) < 1 / (1 + np.exp(-0.3 * X[:, 1]))).astype(float), X


def single(data: tuple[np.ndarray, np.ndarray]) -> float:
    """Return the CPU milliseconds of one fit."""
    import eestim as ee

    began = time.process_time()
    ee.estimate(ee.glm(*data, family="binomial"))
    return 1e3 * (time.process_time() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", type=int, default=10_000)
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--p", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--study", type=int, default=2000, help="replications")
    options = parser.parse_args()
    compare(options)
    speed_up(options)


if __name__ == "__main__":
    main()
