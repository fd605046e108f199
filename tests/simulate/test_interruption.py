"""A run killed at any moment and resumed gives the table of an undisturbed one."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from pandas.testing import assert_frame_equal

from eestim.simulate import Study, read_results

SCRIPT = """
    import sys, time
    import numpy as np
    from eestim.simulate import Study

    def generate(rng, n):
        return rng.normal(size=n)

    def mean(y):
        time.sleep(0.003)
        return y.mean(), y.std(ddof=1) / len(y) ** 0.5, len(y) - 1

    def jittered(y, rng):
        return y.mean() + rng.normal(), 1.0

    study = Study(
        generate, {"mean": mean, "jittered": jittered}, 0.0, {"n": [10, 20, 30]}
    )
    if __name__ == "__main__":
        study.run(150, seed=5, jobs=int(sys.argv[2]), store=sys.argv[1])
"""


def script_study(folder):
    path = folder / "script.py"
    path.write_text(textwrap.dedent(SCRIPT))
    namespace = {"__name__": "script"}
    exec(compile(path.read_text(), str(path), "exec"), namespace)
    return path, namespace["study"]


def killed(path, store, jobs, parts):
    """Start the script, wait for some parts, and kill it with its workers."""
    process = subprocess.Popen(
        [sys.executable, str(path), str(store), str(jobs)],
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while len(list(store.glob("part-*.parquet"))) < parts:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline, "no parts were written in a minute"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL and process groups")
@pytest.mark.parametrize("jobs", [1, 2])
def test_killed_and_resumed_equals_undisturbed(tmp_path, jobs):
    path, study = script_study(tmp_path)
    store = tmp_path / "store"
    store.mkdir()
    for parts in (2, 7):  # killed twice
        killed(path, store, jobs, parts)
        held = read_results(store).table
        assert 0 < len(held) < 3 * 150 * 2
    resumed = study.run(150, seed=5, store=store)
    undisturbed = study.run(150, seed=5)
    assert_frame_equal(resumed.table, undisturbed.table, check_exact=True)
    assert_frame_equal(read_results(store).table, resumed.table, check_exact=True)


def test_an_interrupt_keeps_what_was_done(tmp_path):
    calls = []

    def generate(rng):
        calls.append(1)
        if len(calls) == 25:
            raise KeyboardInterrupt
        return rng.normal(size=5)

    study = Study(generate, {"mean": lambda y: (y.mean(), 0.4)}, 0.0)
    with pytest.raises(KeyboardInterrupt):
        study.run(100, seed=1, store=tmp_path / "s")
    held = read_results(tmp_path / "s").table
    assert 0 < len(held) < 25
    whole = study.run(100, seed=1, store=tmp_path / "s").table
    assert_frame_equal(study.run(100, seed=1).table, whole, check_exact=True)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_dask_cluster_gives_the_same_table(tmp_path):
    distributed = pytest.importorskip("distributed", reason="needs the extra `dask`")
    import joblib

    _, study = script_study(tmp_path)
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None
    )
    client = distributed.Client(cluster)
    with cluster, client, joblib.parallel_config(backend="dask"):
        there = study.run(20, seed=5, jobs=None)
    here = study.run(20, seed=5)
    assert_frame_equal(there.table, here.table, check_exact=True)
