"""Speed-up of `Study.run` from one worker process to two.

Run ``python tests/benchmarks/bench_parallel.py [--rounds 5]`` with
one BLAS thread (``OMP_NUM_THREADS=1``) on a machine that is otherwise idle. Runs with
one and with two processes alternate. Beside the clock stand

- the load of the machine before each round: on a busy machine a second process also
  takes time away from others, and the ratio of the clock says little;
- the CPU seconds of all processes: twice the ratio of one to two jobs is what two idle
  cores could give at the most, whatever else runs.
"""

import argparse
import os
import resource
import statistics
import time

import numpy as np

import eestim as ee
from eestim.simulate import Study


def generate(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    X = np.column_stack([np.ones(2000), rng.standard_normal((2000, 9))])
    return (rng.random(2000) < 1 / (1 + np.exp(-0.3 * X[:, 1]))).astype(float), X


def logit(data: tuple[np.ndarray, np.ndarray]) -> tuple[float, float]:
    fit = ee.estimate(ee.glm(*data, family="binomial"))
    return float(fit.theta[1]), float(np.sqrt(fit.spread.matrix[1, 1]))


STUDY = Study(generate, {"logit": logit}, 0.3)


def cpu_seconds() -> float:
    """Return CPU seconds of this process and of its children that have ended."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    used = [resource.getrusage(kind) for kind in kinds]
    return sum(one.ru_utime + one.ru_stime for one in used)


def timed(jobs: int, replications: int) -> tuple[float, float]:
    """Return seconds on the clock, workers warm, and CPU seconds of all processes."""
    from joblib.externals.loky import get_reusable_executor

    if jobs > 1:
        STUDY.run(20, seed=1, jobs=jobs)  # workers start and import outside the timing
    before, began = cpu_seconds(), time.perf_counter()
    warm = worker_seconds(jobs)
    STUDY.run(replications, seed=1, jobs=jobs)
    clock = time.perf_counter() - began
    cpu = cpu_seconds() - before + worker_seconds(jobs) - warm
    if jobs > 1:
        get_reusable_executor().shutdown(wait=True)
    return clock, cpu


def worker_seconds(jobs: int) -> float:
    """Return CPU seconds of the workers that are running."""
    import psutil

    if jobs == 1:
        return 0.0
    times = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
    return sum(one.user + one.system for one in times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--replications", type=int, default=1500)
    options = parser.parse_args()
    STUDY.run(20, seed=1)
    ratios, bounds = [], []
    for number in range(options.rounds):
        load = os.getloadavg()[0]
        one, two = (timed(jobs, options.replications) for jobs in (1, 2))
        ratios.append(one[0] / two[0])
        bounds.append(2.0 * one[1] / two[1])
        print(
            f"round {number + 1}, load {load:.1f}: one process {one[0]:.2f} s "
            f"({one[1]:.2f} s CPU), two {two[0]:.2f} s ({two[1]:.2f} s CPU): "
            f"{ratios[-1]:.2f} times by the clock",
            flush=True,
        )
    print(
        f"medians: {statistics.median(ratios):.2f} times by the clock; CPU seconds "
        f"allow {statistics.median(bounds):.2f} on two idle cores"
    )


if __name__ == "__main__":
    main()
