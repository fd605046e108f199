"""``eestim simulate``: a study from a file, watched, reported, killed and resumed."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from io import StringIO

import pandas as pd
import pytest
from pandas.testing import assert_frame_equal
from rich.console import Console

from eestim.cli import main
from eestim.cli.simulate import load_study, watching
from eestim.simulate import Progress, read_results

STUDY = '''
    """Two intervals for a mean.

    Normal data; one interval is
    too narrow.

    Details that the report leaves out.
    """

    import time

    import numpy as np

    from eestim.simulate import Study

    def generate(rng, n):
        time.sleep(PAUSE)
        return rng.normal(size=n)

    def mean(y):
        return y.mean(), y.std(ddof=1) / len(y) ** 0.5, len(y) - 1

    def narrow(y):
        return y.mean(), 0.5 * y.std(ddof=1) / len(y) ** 0.5

    def broken(y):
        return y.nosuch

    PAUSE = 0.0
    STUDY = Study(generate, {"mean": mean, "narrow": narrow}, 0.0, {"n": [5, 20]})
'''


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "means.py"
    path.write_text(textwrap.dedent(STUDY))
    return path


def run(*arguments) -> int:
    return main([str(argument) for argument in arguments])


def undisturbed(file, replications, seed=0):
    return load_study(file)[0].run(replications, seed)


def test_a_run_prints_its_table_and_writes_one_page(file, tmp_path, capsys):
    assert run("simulate", "means.py", "--replications", 30, "--seed", 4) == 0
    expected = undisturbed(file, 30, seed=4)
    told = capsys.readouterr().out
    assert told == f"{expected}\nreport: means-report/index.html\n"
    held = read_results(tmp_path / "means-store").table
    assert_frame_equal(held, expected.table, check_exact=True)
    page = (tmp_path / "means-report" / "index.html").read_text(encoding="utf-8")
    assert "<h1>Two intervals for a mean</h1>" in page
    assert "Normal data; one interval is too narrow." in page
    assert page.count("data:image/png;base64,") == 6
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)
    assert not list(tmp_path.glob("*.part"))


def test_json_has_every_digit_of_the_results(file, capsys):
    options = ("--replications", 400, "--quick", "--json", "--out", "page")
    assert run("simulate", "means.py:STUDY", *options) == 0
    record = json.loads(capsys.readouterr().out)
    expected = undisturbed(file, 50)
    assert [point["replications"] for point in record["points"]] == [50, 50]
    found = pd.DataFrame(record["performance"])
    assert_frame_equal(
        found, expected.performance(), check_exact=True, check_dtype=False
    )
    assert record["methods"] == ["mean", "narrow"]
    assert record["failures"] == []
    assert record["report"] == "page/index.html"


def test_the_same_command_goes_on_where_it_was(file, tmp_path, capsys):
    assert run("simulate", "means.py", "--replications", 20) == 0
    before = sorted(path.name for path in (tmp_path / "means-store").iterdir())
    assert run("simulate", "means.py", "--replications", 20) == 0
    assert sorted(p.name for p in (tmp_path / "means-store").iterdir()) == before
    assert run("simulate", "means.py", "--replications", 35) == 0
    held = read_results(tmp_path / "means-store").table
    assert_frame_equal(held, undisturbed(file, 35).table, check_exact=True)
    assert str(undisturbed(file, 35)) in capsys.readouterr().out


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL and process groups")
def test_killed_and_run_again_equals_undisturbed_with_workers(file, tmp_path):
    expected = undisturbed(file, 150)
    file.write_text(file.read_text().replace("PAUSE = 0.0", "PAUSE = 0.004"))
    command = ["simulate", "means.py", "--replications", "150", "--jobs", "2"]
    code = f"from eestim.cli import main; main({command})"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        start_new_session=True,
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    store, deadline = tmp_path / "means-store", time.monotonic() + 60
    while len(list(store.glob("part-*.parquet"))) < 4:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline, "no parts were written in a minute"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL
    assert 0 < len(read_results(store).table) < len(expected.table)
    assert not (tmp_path / "means-report").exists()
    assert run(*command) == 0
    assert_frame_equal(read_results(store).table, expected.table, check_exact=True)
    assert (tmp_path / "means-report" / "index.html").is_file()


def test_until_stops_at_the_target(file, capsys):
    options = ("--until", "coverage=0.03", "--replications", 2000, "--json")
    assert run("simulate", "means.py", *options) == 0
    record = json.loads(capsys.readouterr().out)
    counts = {point["replications"] for point in record["points"]}
    assert max(counts) < 2000
    errors = [
        row["mcse"] for row in record["performance"] if row["measure"] == "coverage"
    ]
    assert max(errors) <= 0.03


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (["absent.py"], "`study` absent.py is not a Python file"),
        (["means.txt"], "is not a Python file"),
        (["means.py:nosuch"], "has no Study named 'nosuch'; it has ['STUDY']"),
        (["syntax.py"], "fails with SyntaxError"),
        (["raises.py"], "fails with KeyError: 'no key'"),
        (["nothing.py"], "(none)"),
        (["two.py"], "2 values of the class"),
        (["broken.py"], "stops with AttributeError"),
        (["unreadable.py"], "estimate"),
        (["means.py", "--replications", "0"], "`--replications`"),
        (["means.py", "--jobs", "0"], "`--jobs`"),
        (["means.py", "--seed", "-1"], "`--seed`"),
        (["means.py", "--until", "coverage"], "`--until`"),
        (["means.py", "--until", "coverage=-1"], "`--until`"),
        (["means.py", "--until", "beauty=0.1"], "'beauty'"),
        (["means.py", "--store", "full"], "holds ['thesis.tex'] but no study"),
        (["means.py", "--out", "full"], "other content (thesis.tex)"),
    ],
)
def test_bad_input_is_one_line(file, tmp_path, capsys, arguments, cause):
    variants = {
        "syntax": "def (",
        "raises": "{}['no key']",
        "nothing": "STUDY = 3",
        "two": file.read_text() + "OTHER = Study(generate, {'m': mean}, 0.0, {'n': 5})",
        "broken": file.read_text().replace("rng.normal", "rng.nosuch"),
        "unreadable": file.read_text().replace("y.mean(), 0.5", "'word', 0.5"),
    }
    for name, text in variants.items():
        (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    assert run("simulate", *arguments) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("error: ")
    assert told.err.count("\n") == 1
    assert cause in told.err
    assert (tmp_path / "full" / "thesis.tex").read_text() == "years of work"


def test_failures_are_said_and_counted(file, capsys):
    file.write_text(file.read_text().replace("0.5 * y.std", "1 / (y[0] < 1) * y.std"))
    assert run("simulate", "means.py", "--replications", 40, "--json") == 0
    told = capsys.readouterr()
    record = json.loads(told.out)
    kinds = [row for row in record["failures"] if row["what"] != "warnings"]
    lost = sum(row["count"] for row in kinds)
    assert 4 < lost < 40  # P(y > 1) is 0.16, of 80
    assert told.err == (
        f"warning: {lost} of 160 results are failures; the report counts them by "
        "method and cause.\n"
    )


def test_results_of_another_seed_are_not_mixed(file, capsys):
    assert run("simulate", "means.py", "--replications", 5, "--seed", 1) == 0
    assert run("simulate", "means.py", "--replications", 5, "--seed", 2) == 1
    assert "begun with seed 1; this run has 2" in capsys.readouterr().err


TOLD = Progress(30, 120, 3.0, 10.0, 2, {"mean": (0.95, 0.0218)})


def test_a_terminal_shows_pace_time_left_and_coverage():
    screen = StringIO()
    console = Console(file=screen, force_terminal=True, width=110)
    with watching(console, 120) as watch:
        watch(TOLD)
    shown = screen.getvalue()
    for part in ("30/120", "10.0 replications/s", "0:09 left", "2 failures"):
        assert part in shown
    assert re.search(r"mean\s+0\.9500 \(0\.0218\)", shown)


def test_a_log_gets_a_line_now_and_then(monkeypatch):
    clock = iter([0.0, 1.0, 20.0, 20.0, 21.0])
    monkeypatch.setattr("eestim.cli.simulate.time.monotonic", lambda: next(clock))
    log = StringIO()
    with watching(Console(file=log, width=200), 120) as watch:
        for _ in range(3):
            watch(TOLD)
    assert log.getvalue() == (
        "30/120, 10.0 replications/s, 0:09 left, 2 failures, "
        "mean covers 0.9500 (0.0218)\n"
    )
