"""The command line: answers, exit states, and folders that are whole or untouched."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from tolerances import REFERENCE

import eestim as ee
from eestim.cli import demo as demo_module
from eestim.cli import main
from eestim.cli.demo import Part, Settings, run_demo
from eestim.cli.demo_coverage import study, truth_from
from eestim.cli.demo_intervals import FORMULA, fits, interval_table, investment
from eestim.cli.files import check_folder, publish, read_table
from eestim.errors import DataError
from eestim.report.page import Section, Table, Text

QUIET = Console(quiet=True)


@pytest.fixture
def table(rng):
    x = rng.normal(size=80)
    return pd.DataFrame(
        {
            "y": 1 + 2 * x + rng.normal(size=80),
            "hit": (x + rng.normal(size=80) > 0).astype(int),
            "x": x,
            "x2": 2 * x,
            "text": "word",
            "g": np.repeat(np.arange(16), 5),
            "one": 1,
        }
    )


@pytest.fixture
def file(table, tmp_path):
    path = tmp_path / "table.csv"
    table.to_csv(path, index=False)
    return path


def run(*arguments) -> int:
    return main([str(argument) for argument in arguments])


# ------------------------------------------------------------------------- fit


def test_fit_prints_the_summary_of_the_library(file, table, capsys):
    assert run("fit", "y ~ x", file) == 0
    expected = ee.estimate(ee.ols("y ~ x", read_table(file)), covariance=ee.HC(1))
    assert capsys.readouterr().out == expected.summary(0.95) + "\n"


def test_fit_json_holds_every_digit_of_the_library(file, capsys):
    options = ("--family", "binomial", "--cluster", "g", "--covariance", "cr2")
    assert run("fit", "hit ~ x", file, *options, "--level", "0.9", "--json") == 0
    record = json.loads(capsys.readouterr().out)
    equation = ee.glm("hit ~ x", read_table(file), family="binomial")
    expected = ee.estimate(equation, covariance=ee.Clustered("g", kind="CR2"))
    assert record["covariance"] == expected.spread.matrix.tolist()
    assert record["n_clusters"] == [16]
    for entry in record["parameters"]:
        row = expected.table(0.9).loc[entry.pop("name")]
        assert entry.pop("dof") == pytest.approx(expected.dof[row.name], rel=1e-15)
        assert entry == row.to_dict()


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ([], "HC1"),
        (["--covariance", "hc3"], "HC3"),
        (["--covariance", "model"], "model-based"),
        (["--cluster", "g"], "CR1S clustered by g (16 clusters)"),
        (["--cluster", "g", "--cluster", "one2"], "CR1S clustered by g and one2"),
    ],
)
def test_fit_rules(table, tmp_path, capsys, options, rule):
    path = tmp_path / "t.csv"
    table.assign(one2=np.arange(80) % 7).to_csv(path)
    assert run("fit", "y ~ x", path, *options) == 0
    assert f"covariance: {rule}" in capsys.readouterr().out


@pytest.mark.parametrize("ending", [".csv", ".csv.gz", ".tsv", ".parquet"])
def test_tables_are_read_in_each_format(table, tmp_path, ending):
    path = tmp_path / f"table{ending}"
    if ending == ".parquet":
        table.to_parquet(path)
    else:
        table.to_csv(path, index=False, sep="\t" if ending == ".tsv" else ",")
    pd.testing.assert_frame_equal(read_table(path), table, rtol=1e-14)


def test_fit_saves_what_load_reads(file, tmp_path, capsys):
    target = tmp_path / "fit.eestim"
    assert run("fit", "y ~ x", file, "--save", target) == 0
    assert capsys.readouterr().out == ee.load(target).summary() + "\n"
    before = target.read_bytes()
    assert run("fit", "y ~ x", file, "--save", target) == 1
    assert "`--save`" in capsys.readouterr().err
    assert target.read_bytes() == before


@pytest.mark.parametrize(
    ("formula", "options", "cause"),
    [
        ("y ~ nosuch", [], "'nosuch', which is not a column"),
        ("y ~ exec(x)", [], "allow-list"),
        ("y ~ x + x2", [], "rank 2"),
        ("one ~ x", [], "constant"),
        ("text ~ x", [], "`"),
        ("y ~ x", ["--covariance", "hc9"], "`--covariance` must be one of"),
        ("y ~ x", ["--covariance", "cr2"], "`--cluster`"),
        ("y ~ x", ["--covariance", "hc1", "--cluster", "g"], "takes no clusters"),
        ("y ~ x", ["--cluster", "one"], "one cluster"),
        ("y ~ x", ["--cluster", "nosuch"], "no column 'nosuch'"),
        ("y ~ x", ["--family", "gamma2"], "`family` must be one of"),
        ("y ~ x", ["--level", "95"], "`--level`"),
        ("y ~ x", ["--na", "ignore"], "`--na`"),
        ("y ~ x", ["--save", "nosuch/folder/fit.eestim"], "nosuch"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_file(
    file, tmp_path, capsys, monkeypatch, formula, options, cause
):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert run("fit", formula, file, *options) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("error: ")
    assert told.err.count("\n") == 1
    assert cause in told.err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("name", "content", "cause"),
    [
        ("absent.csv", None, "is not a file"),
        ("table.xlsx", b"x", "ends in '.xlsx'"),
        ("empty.csv", b"", "cannot be read"),
        ("head.csv", b"x,y\n", "has no rows"),
        ("bad.parquet", b"no parquet", "cannot be read"),
        ("ragged.csv", b"x,y\n1,2\n1,2,3,4\n", "cannot be read"),
        ("missing.csv", b"x,y\n1,2\n,3\n2,3\n", "missing values in row 1"),
    ],
)
def test_bad_files_are_named(tmp_path, capsys, name, content, cause):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert run("fit", "y ~ x", tmp_path / name) == 1
    told = capsys.readouterr().err
    assert cause in told
    assert told.count("\n") == 1


@pytest.mark.parametrize("arguments", [["nosuch"], ["fit"], ["fit", "y ~ x", "--what"]])
def test_wrong_usage_has_status_2(arguments, capsys):
    assert run(*arguments) == 2
    assert "Usage: eestim" in capsys.readouterr().err


def test_version_and_help(capsys):
    assert run("version") == 0
    assert capsys.readouterr().out == f"{ee.__version__}\n"
    assert run("--help") == 0
    assert "demo" in capsys.readouterr().out


def test_traceback_option_shows_where_an_error_came_from(tmp_path):
    with pytest.raises(DataError, match="is not a file"):
        run("--traceback", "fit", "y ~ x", tmp_path / "absent.csv")


# ------------------------------------------------------------------------ folders


def test_folder_with_other_content_is_refused_and_kept(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match=r"other content \(thesis\.tex\)"):
        check_folder(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_earlier_report_is_replaced_but_not_what_was_added_to_it(tmp_path):
    out, made = tmp_path / "out", tmp_path / "made"
    for text in ("first", "second"):
        made.mkdir()
        (made / "index.html").write_text(text)
        publish(made, out)
    assert (out / "index.html").read_text() == "second"
    (out / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"notes\.txt"):
        check_folder(out)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(DataError, match="is a file"):
        check_folder(tmp_path / "out")


# --------------------------------------------------------------------------- demo


def part(name, calls, fails=False):
    def work(settings, folder, tick):
        calls.append(name)
        tick(0.5, "half")
        (folder / "checkpoint").write_text("half")
        if fails:
            raise KeyboardInterrupt
        frame = pd.DataFrame({"seed": [settings.seed], "value": [1 / 3]})
        return Section(name, (Text("Done."), Table(name, frame, name)), "It worked.")

    return Part(name, name, 1.0, work)


def content(folder: Path) -> dict[str, bytes]:
    files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*")}
    return {name: p.read_bytes() for name, p in files.items() if p.is_file()}


def test_interrupted_demo_writes_nothing_and_resumes(tmp_path):
    out, calls = tmp_path / "out", []
    with pytest.raises(KeyboardInterrupt):
        run_demo(
            out, Settings(), QUIET, (part("a", calls), part("b", calls, fails=True))
        )
    assert not out.exists()
    assert (tmp_path / "out.part" / "b" / "checkpoint").read_text() == "half"
    index = run_demo(out, Settings(), QUIET, (part("a", calls), part("b", calls)))
    assert calls == ["a", "b", "b"]
    assert index == out / "index.html"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    assert {"index.html", "results.json", "tables/a.csv"} <= content(out).keys()


def test_other_settings_do_not_reuse_finished_parts(tmp_path):
    out, calls = tmp_path / "out", []
    for seed in (0, 1):
        chosen = (part("a", calls), part("b", calls, fails=seed == 0))
        if seed == 0:
            with pytest.raises(KeyboardInterrupt):
                run_demo(out, Settings(seed=0), QUIET, chosen)
        else:
            run_demo(out, Settings(seed=1), QUIET, chosen)
    assert calls == ["a", "b", "a", "b"]
    assert pd.read_csv(out / "tables" / "a.csv")["seed"].tolist() == [1]


def test_resumed_tables_equal_those_of_an_uninterrupted_run(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run_demo(
            tmp_path / "x",
            Settings(),
            QUIET,
            (part("a", []), part("b", [], fails=True)),
        )
    run_demo(tmp_path / "x", Settings(), QUIET, (part("a", []), part("b", [])))
    run_demo(tmp_path / "y", Settings(), QUIET, (part("a", []), part("b", [])))
    first, second = content(tmp_path / "x"), content(tmp_path / "y")
    assert first["tables/a.csv"] == second["tables/a.csv"]
    assert first.keys() == second.keys()


def test_unfinished_work_does_not_overwrite_a_users_folder(tmp_path):
    (tmp_path / "out.part").mkdir()
    (tmp_path / "out.part" / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="other content"):
        run_demo(tmp_path / "out", Settings(), QUIET, (part("a", []),))
    assert (tmp_path / "out.part" / "mine.txt").read_text() == "mine"


def test_demo_command_reports_an_interruption(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        demo_module, "parts", lambda settings: (part("a", [], fails=True),)
    )
    assert run("demo", "--out", tmp_path / "out") == 130
    assert "run the same command again" in capsys.readouterr().err
    monkeypatch.setattr(demo_module, "parts", lambda settings: (part("a", []),))
    assert run("demo", "--out", tmp_path / "out") == 0
    assert "index.html" in capsys.readouterr().out


def test_demo_command_refuses_a_folder_with_other_content(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert run("demo", "--out", tmp_path) == 1
    assert "other content (mine.txt)" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_demo_intervals_equal_statsmodels():
    import statsmodels.formula.api as smf

    table = investment()
    shown = interval_table(fits(table)).set_index(["rule", "parameter"])
    model = smf.ols(FORMULA, table)
    g = table["firm"].nunique()
    n, k = len(table), 3
    theirs = {
        "model-based": model.fit().bse,
        "HC1": model.fit(cov_type="HC1").bse,
        "clustered, CR1": model.fit(
            cov_type="cluster", cov_kwds={"groups": pd.factorize(table["firm"])[0]}
        ).bse
        * np.sqrt((n - k) / (n - 1)),  # theirs is CR1S
    }
    for rule, errors in theirs.items():
        np.testing.assert_allclose(shown.loc[rule, "se"], errors, rtol=REFERENCE)
    assert g == 11


@pytest.fixture(scope="module")
def law():
    return truth_from(investment())


def test_coverage_study_does_not_depend_on_processes(law):
    alone = study(law, 12, seed=3, jobs=1)
    pd.testing.assert_frame_equal(alone, study(law, 12, seed=3, jobs=2))
    assert not alone["coverage"].equals(study(law, 12, seed=4, jobs=1)["coverage"])


def test_coverage_of_cr2_is_nominal_and_of_model_based_is_not(law):
    """Four Monte Carlo standard errors; the model-based rule is the control."""
    results = study(law, 60, seed=1, jobs=1).set_index(["rule", "parameter"])
    error = np.sqrt(0.95 * 0.05 / 60)
    found = results["coverage"].unstack()[["log_value", "log_capital"]]
    assert (found.loc["clustered, CR2"] >= 0.95 - 4 * error).all()
    assert (found.loc["model-based"] < 0.95 - 4 * error).all()
    assert (results["failures"] == 0).all()


def test_drawn_data_have_the_variances_asked_for(law):
    draws = [law.draw(np.random.default_rng(seed)) for seed in range(200)]
    errors = np.stack([d["log_invest"] - law.mean for d in draws])
    spread = errors.var(axis=0).mean()
    total = law.between + law.within
    assert abs(spread - total) <= 4 * total * np.sqrt(2 / (200 * 11))
