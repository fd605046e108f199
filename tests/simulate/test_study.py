import json
import sys

import joblib
import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal
from tolerances import EXACT

import eestim as ee
from eestim.errors import ConvergenceError, DataError, SeparationError
from eestim.simulate import (
    Batched,
    Precision,
    Study,
    Under,
    Variants,
    batched_glm,
    read_results,
)
from eestim.simulate._threads import one_blas_thread

DESIGN = {"n": [20, 40], "shift": [0.0, 1.0]}


def generate(rng, n, shift):
    return rng.normal(shift, 1.0, n)


def mean(y):
    return y.mean(), y.std(ddof=1) / np.sqrt(len(y)), len(y) - 1


def noisy(y, rng):
    return y.mean() + 0.1 * rng.normal(), 1.0 / np.sqrt(len(y))


def truth(n, shift):
    return shift


def study(**changes):
    arguments = {
        "generate": generate,
        "estimators": {"mean": mean, "noisy": noisy},
        "truth": truth,
        "design": DESIGN,
    }
    return Study(**(arguments | changes))


def same(first, second):
    assert_frame_equal(first, second, check_exact=True)


@pytest.fixture(scope="module")
def results():
    return study().run(30, seed=7)


# ------------------------------------------------------------- what a table holds


def test_table_has_one_row_for_everything(results):
    table = results.table
    assert len(table) == 4 * 30 * 2
    keys = ["point", "replication", "method", "estimand"]
    assert not table.duplicated(keys).any()
    assert table[keys].equals(table.sort_values(keys)[keys])
    assert (table["truth"] == table["shift"]).all()
    assert results.methods == ("mean", "noisy")
    assert results.points["replications"].tolist() == [30] * 4
    assert table["stream"].nunique() == 4 * 30


def test_normal_and_t_intervals_are_those_of_their_laws(results):
    from scipy import stats

    own = results.table[results.table["method"] == "mean"]
    half = stats.t.ppf(0.975, own["n"] - 1) * own["se"]
    np.testing.assert_allclose(own["upper"] - own["estimate"], half, rtol=1e-12)
    other = results.table[results.table["method"] == "noisy"]
    half = stats.norm.ppf(0.975) * other["se"]
    np.testing.assert_allclose(other["estimate"] - other["lower"], half, rtol=1e-12)


def test_an_estimate_is_recorded_as_it_reports_itself():
    rng = np.random.default_rng(0)
    data = pd.DataFrame({"x": rng.normal(size=40), "g": np.arange(40) // 5})
    data["y"] = data["x"] + rng.normal(size=40)
    fit = ee.estimate(ee.ols("y ~ x", data))
    made = Study(
        generate=lambda rng: data,
        estimators={
            "HC0": lambda d: fit,
            "OLS": Variants(
                lambda d: fit,
                {
                    "HC3": Under(ee.HC(3)),
                    "HC3 normal": Under(ee.HC(3), "wald"),
                    "CR2": Under(ee.Clustered("g", kind="CR2")),
                    "twice": lambda fit: (2 * fit.params, fit.se),
                },
            ),
        },
        truth={"x": 1.0, "Intercept": 0.0},
        levels=(0.5,),
    ).run(1, seed=0)
    assert made.methods == ("HC0", "OLS HC3", "OLS HC3 normal", "OLS CR2", "OLS twice")
    table = made.table.set_index(["method", "estimand"])
    expected = {
        "HC0": (fit, None),
        "OLS HC3": (fit.with_covariance(ee.HC(3)), None),
        "OLS HC3 normal": (fit.with_covariance(ee.HC(3)), "wald"),
        "OLS CR2": (fit.with_covariance(ee.Clustered("g", kind="CR2")), None),
    }
    for name, (one, method) in expected.items():
        for estimand in ("x", "Intercept"):
            row = table.loc[(name, estimand)]
            bounds = one.interval(0.95, method).loc[estimand]
            assert row["estimate"] == one.params[estimand]
            assert row["se"] == pytest.approx(one.se[estimand], rel=EXACT)
            assert row["lower"] == pytest.approx(bounds["lower"], rel=1e-11)
            half = one.interval(0.5, method).loc[estimand, "upper"]
            assert row["upper 0.5"] == pytest.approx(half, rel=1e-11)
    assert table.loc[("OLS twice", "x"), "estimate"] == 2 * fit.params["x"]


def test_intervals_of_some_parameters_are_placed_by_name():
    """Row 0 of an interval with `names=` is not the first parameter."""
    rng = np.random.default_rng(4)
    data = pd.DataFrame({"x": rng.normal(size=60), "z": rng.normal(size=60)})
    data["y"] = rng.poisson(np.exp(0.3 * data["x"] - 0.2 * data["z"])).astype(float)
    fit = ee.estimate(ee.glm("y ~ x + z", data, family="poisson"))

    def run(names):
        return Study(
            generate=lambda rng: data,
            estimators={
                "m": Variants(
                    lambda d: fit, {"v": Under(interval=ee.Profile(names=names))}
                )
            },
            truth={"z": -0.2, "x": 0.3},
        ).run(1, seed=0)

    table = run(["z", "x"]).table.set_index("estimand")
    full = fit.interval(method=ee.Profile())
    for name in ("x", "z"):
        assert table.loc[name, "status"] == "ok"
        for end in ("lower", "upper"):
            assert table.loc[name, end] == pytest.approx(full.loc[name, end], rel=1e-9)
    left_out = run(["z"]).failures()  # no row of the wrong parameter in its place
    assert left_out["count"].sum() > 0


def test_interval_methods_that_are_values_are_kept_at_each_level():
    class Fixed:
        def interval(self, fit, level):
            return pd.DataFrame(
                {"estimate": fit.theta, "lower": -level, "upper": np.inf},
                index=list(fit.names),
            )

    made = Study(
        generate=lambda rng: rng.normal(size=20),
        estimators={
            "m": Variants(
                lambda y: ee.estimate(ee.mean(y)), {"v": Under(None, Fixed())}
            )
        },
        truth=0.0,
        levels=(0.8,),
    ).run(5, seed=1)
    assert (made.table["lower"] == -0.95).all()
    assert (made.table["lower 0.8"] == -0.8).all()
    assert (made.table["status"] == "ok").all()
    assert made.coverage_curve()["level"].tolist() == [0.8, 0.95]


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        (1.5, (1.5, np.nan, np.nan, np.nan)),
        ((1.5, 2.0), (1.5, 2.0, 1.5 - 2 * 1.959964, np.inf)),
        ((1.5, 2.0, 4), (1.5, 2.0, 1.5 - 2 * 2.776445, 4.0)),
        ((1.5, 2.0, (-1.0, 7.0)), (1.5, 2.0, -1.0, np.nan)),
        ({"estimate": 1.5, "lower": -1, "upper": 7}, (1.5, np.nan, -1.0, np.nan)),
        (
            {"estimate": {"theta": 1.5}, "se": pd.Series({"theta": 2.0}), "dof": 4},
            (1.5, 2.0, 1.5 - 2 * 2.776445, 4.0),
        ),
    ],
)
def test_what_an_estimator_may_return(returned, expected):
    made = Study(lambda rng: 0, {"m": lambda _: returned}, 1.0).run(1, seed=0)
    row = made.table.iloc[0]
    got = [row["estimate"], row["se"], row["lower"], row["dof"]]
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ((1.0, 2.0, 3.0, 4.0), "tuple of 4"),
        ("high", "str 'high'"),
        ((np.ones(3), np.ones(3)), r"shape \(3,\) for 1 estimands"),
        ({"estimate": 1.0, "lower": 0.0}, "both or neither"),
    ],
)
def test_what_cannot_be_read_stops_the_study(returned, message):
    with pytest.raises(ValueError, match=message):
        Study(lambda rng: 0, {"m": lambda _: returned}, 1.0).run(2, seed=0)


def test_a_missing_estimand_is_a_failure_of_its_replication():
    """A level of a factor that no row has: it may be missing now and then."""

    def by_name(y):
        return {"estimate": {"theta" if y[0] > 0 else "other": y.mean()}}

    table = study(estimators={"m": by_name}, design=[{"n": 9, "shift": 0}]).run(30, 1)
    rows = table.table
    assert set(rows["status"]) == {"ok", "error"}
    assert (
        rows["message"].str.contains(r"no value for \['theta'\]").sum()
        == (rows["status"] == "error").sum()
    )
    rng = np.random.default_rng(0)
    data = rng.normal(size=(20, 2))
    fit = ee.estimate(ee.ols(rng.normal(size=20), data, names=["a", "b"]))
    made = Study(lambda rng: 0, {"m": lambda _: fit}, {"c": 0.0}).run(2, seed=0)
    assert made.table["message"].str.contains("DataError: m has no value").all()


# ------------------------------------------------------------------ reproducibility


def test_results_do_not_depend_on_jobs(results):
    same(study().run(30, seed=7, jobs=2).table, results.table)


def test_results_do_not_depend_on_the_design_around_a_point(results):
    alone = study(design=[{"shift": 1.0, "n": 40}]).run(30, seed=7).table
    inside = results.table.query("n == 40 and shift == 1.0")
    for name in ("estimate", "lower", "stream", "replication"):
        assert alone[name].tolist() == inside[name].tolist()


def test_another_method_changes_no_random_numbers(results):
    wider = study(estimators={"new": mean, "noisy": noisy, "mean": mean}).run(30, 7)
    for method in ("mean", "noisy"):
        pair = [
            table.loc[table["method"] == method, "estimate"].tolist()
            for table in (wider.table, results.table)
        ]
        assert pair[0] == pair[1]


def test_seeds_matter_and_streams_differ(results):
    other = study().run(30, seed=8).table
    assert not set(other["stream"]) & set(results.table["stream"])
    assert (other["estimate"] != results.table["estimate"]).all()
    noise = results.table.query("method == 'noisy'")["estimate"].to_numpy()
    error = noise - results.table.query("method == 'mean'")["estimate"].to_numpy()
    assert len(np.unique(error)) == len(error)


def test_any_single_replication_can_be_run_alone(results):
    made = study()
    for point, number in ((0, 0), (3, 17), ({"n": 40, "shift": 0.0}, 29)):
        alone = made.replicate(point, number, seed=7)
        index = point if isinstance(point, int) else 2
        table = results.table
        inside = table[(table["point"] == index) & (table["replication"] == number)]
        same(alone.table, inside.reset_index(drop=True))
        assert alone.table["estimate"].iloc[0] == alone.data.mean()


def test_a_longer_run_begins_with_the_shorter_one(results):
    longer = study().run(45, seed=7).table
    same(longer.query("replication < 30").reset_index(drop=True), results.table)


def threaded_sum(rng):
    """A product large enough for threads, whose sums they would split."""
    x = rng.normal(size=(3000, 40))
    return x.T @ x


def test_one_blas_thread_in_the_process_and_in_workers():
    made = Study(
        lambda rng: threaded_sum(rng), {"sum": lambda x: float(np.sum(x**3))}, 0.0
    )
    here, there = made.run(4, seed=1), made.run(4, seed=1, jobs=2)
    same(here.table, there.table)
    with one_blas_thread():
        pass


# --------------------------------------------------------- failures are never silent


def sometimes(y):
    if y.mean() > 0.2:
        raise SeparationError("at infinity")
    if y.mean() < -0.3:
        raise KeyError("lost")
    if y[0] < -1:
        return y.mean(), np.nan
    return mean(y)


def test_failures_are_counted_by_kind_with_their_errors():
    made = study(
        estimators={"mean": mean, "sometimes": sometimes},
        design={"n": [20], "shift": 0},
    )
    results = made.run(120, seed=3)
    own = results.table.query("method == 'sometimes'")
    y = [made.replicate(0, k, 3).data for k in range(120)]
    expected = [
        "not converged"
        if one.mean() > 0.2
        else "error"
        if one.mean() < -0.3
        else "not finite"
        if one[0] < -1
        else "ok"
        for one in y
    ]
    assert own["status"].tolist() == expected
    bad = own[own["status"] != "ok"]
    numbers = ["estimate", "se", "dof", "lower", "upper"]
    assert bad[numbers].isna().all().all()
    assert own[own["status"] == "ok"][numbers].notna().all().all()
    failures = results.failures()
    counts = dict(zip(failures["what"], failures["count"], strict=True))
    assert counts == {kind: expected.count(kind) for kind in set(expected) - {"ok"}}
    share = counts["error"] / 120
    row = failures.set_index("what").loc["error"]
    assert row["mcse"] == pytest.approx(np.sqrt(share * (1 - share) / 120))
    assert row["message"] == "KeyError: 'lost'"
    assert expected[row["example"]] == "error"
    with pytest.raises(KeyError, match="lost"):
        made.replicate(0, row["example"], 3, on_error="raise")
    shown = str(results)
    assert "conditional on success" in shown
    assert "SeparationError: at infinity" in shown
    failed = results.performance().query(
        "method == 'sometimes' and measure == 'failed'"
    )
    assert failed["value"].item() == pytest.approx(1 - expected.count("ok") / 120)


def test_warnings_are_counted_and_do_not_stop_anything():
    def warns(y):
        import warnings

        if y[0] > 0:
            warnings.warn("doubtful", RuntimeWarning, stacklevel=1)
            np.log(np.zeros(1))
        return mean(y)

    results = study(estimators={"w": warns}, design=[{"n": 5, "shift": 0}]).run(50, 1)
    table = results.table
    assert set(table["warnings"]) == {0, 2}
    assert (table["status"] == "ok").all()
    row = results.failures().iloc[0]
    assert (row["what"], row["message"]) == ("warnings", "RuntimeWarning: doubtful")
    assert row["count"] == (table["warnings"] > 0).sum()


def test_a_generator_that_fails_fails_every_method():
    def failing(rng, n, shift):
        y = generate(rng, n, shift)
        if y[0] > 1:
            raise ConvergenceError("no data")
        return y

    table = study(generate=failing).run(40, seed=2).table
    bad = table[table["status"] != "ok"]
    assert bad.groupby(["point", "replication"]).size().eq(2).all()
    assert set(bad["message"]) == {"generate: ConvergenceError: no data"}
    assert 0 < len(bad) < len(table)


def test_a_generator_that_cannot_be_called_stops_the_study():
    """A wrong signature is no property of the data."""
    with pytest.raises(TypeError, match="unexpected keyword argument 'shift'"):
        study(generate=lambda rng, n: rng.normal(size=n)).run(3, seed=1)


def test_a_failed_fit_fails_its_variants_and_a_failed_variant_itself_alone():
    def fit(y):
        if y[0] > 1:
            raise SeparationError("gone")
        return y

    def fragile(y):
        if y[0] < -1:
            raise ValueError("fragile")
        return mean(y)

    variants = {"sound": mean, "fragile": fragile}
    table = study(estimators={"": Variants(fit, variants)}).run(60, seed=2).table
    wide = table.pivot(
        index=["point", "replication"], columns="method", values="status"
    )
    assert set(wide[wide["sound"] != "ok"]["fragile"]) == {"not converged"}
    assert set(wide[wide["fragile"] == "error"]["sound"]) == {"ok"}
    assert list(wide.columns) == ["sound", "fragile"]


# --------------------------------------------------------------------------- store


def test_a_store_gives_the_table_of_memory(results, tmp_path):
    stored = study().run(30, seed=7, store=tmp_path / "s")
    same(stored.table, results.table)
    same(read_results(tmp_path / "s").table, results.table)
    parts = pd.read_parquet(tmp_path / "s")  # as any reader sees the folder
    assert len(parts) == len(results.table)
    assert not list((tmp_path / "s").glob(".unfinished*"))


def test_a_store_is_extended_not_repeated(results, tmp_path):
    calls = []

    def counting(rng, n, shift):
        calls.append((n, shift))
        return generate(rng, n, shift)

    store = tmp_path / "s"
    study(generate=counting, design=[{"n": 20, "shift": 0.0}]).run(10, 7, store=store)
    assert len(calls) == 10
    stored = study(generate=counting).run(30, seed=7, store=store, verify=False)
    assert len(calls) == 4 * 30
    same(stored.table, results.table)
    shorter = study().run(12, seed=7, store=store)
    same(
        shorter.table,
        results.table.query("replication < 12").reset_index(drop=True),
    )


def test_missing_and_leftover_parts_are_dealt_with(results, tmp_path):
    store = tmp_path / "s"
    study().run(30, seed=7, store=store)
    parts = sorted(store.glob("part-*.parquet"))
    assert len(parts) > 4
    parts[2].unlink()
    (store / ".unfinished-1-part-x.parquet").write_bytes(b"half")
    same(study().run(30, seed=7, store=store).table, results.table)
    assert not list(store.glob(".unfinished*"))
    parts[1].write_bytes(b"PAR1 not a table")
    with pytest.raises(DataError, match="cannot be read"):
        study().run(30, seed=7, store=store)


def test_results_of_another_study_are_not_mixed(tmp_path):
    store = tmp_path / "s"
    study().run(3, seed=7, store=store)
    with pytest.raises(DataError, match="begun with seed 7"):
        study().run(3, seed=8, store=store)
    with pytest.raises(DataError, match="begun with methods"):
        study(estimators={"mean": mean}).run(3, seed=7, store=store)
    with pytest.raises(DataError, match="gives other results"):
        study(generate=lambda rng, n, shift: rng.normal(shift, 1.1, n)).run(
            5, seed=7, store=store
        )
    with pytest.raises(DataError, match="gives other results"):
        study(
            estimators={
                "mean": mean,
                "noisy": lambda y: (y.mean() + np.random.default_rng().normal(), 1.0),
            }
        ).run(5, seed=7, store=store)
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "mine.txt").write_text("notes")
    with pytest.raises(DataError, match="holds"):
        study().run(3, seed=7, store=strange)
    with pytest.raises(DataError, match="holds no study"):
        read_results(tmp_path / "nothing")
    manifest = json.loads((store / "_study.json").read_text())
    (store / "_study.json").write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(DataError, match="format 99"):
        study().run(3, seed=7, store=store)


def test_a_store_without_pyarrow_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r"eestim\[stream\]"):
        study().run(2, seed=1, store=tmp_path / "s")
    assert len(study().run(2, seed=1).table) == 16  # memory needs none


def test_text_and_booleans_as_factors(tmp_path):
    design = {"law": ["wide", "narrow"], "squared": [True, False]}

    def made(rng, law, squared):
        y = rng.normal(size=10) * (2 if law == "wide" else 1)
        return y**2 if squared else y

    one = Study(made, {"mean": mean}, 0.0, design)
    memory, stored = one.run(4, seed=1), one.run(4, seed=1, store=tmp_path / "s")
    same(memory.table, stored.table)
    same(memory.table, read_results(tmp_path / "s").table)
    assert list(memory.table["law"].cat.categories) == ["wide", "narrow"]
    assert memory.table["squared"].dtype == bool
    assert len(memory.performance()) == len(stored.performance()) > 0


# ------------------------------------------------------------- stopping and progress


def test_stopping_at_a_target_error():
    made = study(estimators={"mean": mean}, design={"n": [20], "shift": [0.0, 5.0]})
    results = made.run(2000, seed=1, until=Precision("coverage", 0.015, every=50))
    counts = results.points["replications"]
    found = results.performance().query("measure == 'coverage'")
    assert (found["mcse"] <= 0.015).all()
    assert (counts % 50 == 0).all()
    assert (counts < 600).all()
    jobs = made.run(2000, 1, jobs=2, until=Precision("coverage", 0.015, every=50))
    same(jobs.table, results.table)
    capped = made.run(100, 1, until=Precision("coverage", 1e-9, every=40))
    assert capped.points["replications"].tolist() == [100, 100]


def test_replications_needed_of_a_pilot(results):
    needed = results.replications_needed("bias", 0.01)
    pilot = results.performance()
    worst = pilot.query("measure == 'bias'")["mcse"].max()
    assert needed == int(np.ceil(30 * (worst / 0.01) ** 2))
    with pytest.raises(ValueError, match="cannot be aimed at"):
        results.replications_needed("beauty", 0.1)


def test_progress_is_told():
    seen = []
    study().run(40, seed=1, progress=seen.append)
    last = seen[-1]
    assert (last.done, last.total, last.failures) == (160, 160, 0)
    assert [one.done for one in seen] == sorted(one.done for one in seen)
    assert last.rate > 0
    assert last.seconds_left == 0.0
    coverage, error = last.coverage["mean"]
    assert error == pytest.approx(np.sqrt(coverage * (1 - coverage) / 160))


# ------------------------------------------------------------------------- batched


def logistic(rng, n):
    x = rng.normal(size=n)
    return x, (rng.random(n) < 1 / (1 + np.exp(-x))).astype(float)


def many(data):
    y = np.stack([y for _, y in data])
    X = np.stack([np.column_stack([np.ones(len(x)), x]) for x, _ in data])
    return batched_glm(y, X, "binomial", names=["Intercept", "x"])


def single(data):
    x, y = data
    X = np.column_stack([np.ones(len(x)), x])
    equation = ee.glm(y, X, family="binomial", names=["Intercept", "x"])
    return ee.estimate(equation)


def batched_study(**changes):
    arguments = {
        "generate": logistic,
        "estimators": {"batched": Batched(many), "single": single},
        "truth": {"x": 1.0},
        "design": {"n": [12, 60]},
        "batch": 16,
    }
    return Study(**(arguments | changes))


def test_batched_estimators_equal_single_ones_and_fail_alike():
    table = batched_study().run(40, seed=2).table
    wide = table.pivot(index=["point", "replication"], columns="method")
    assert (wide["status", "batched"] == wide["status", "single"]).all()
    assert (wide["status", "batched"] == "not converged").sum() > 0
    for name in ("estimate", "se", "lower", "upper"):
        np.testing.assert_allclose(
            wide[name, "batched"], wide[name, "single"], rtol=1e-6, atol=1e-9
        )
    assert "separated" in set(table["message"])


def test_batches_do_not_depend_on_jobs_or_on_what_is_asked_for(tmp_path):
    made = batched_study(estimators={"batched": Batched(many)})
    whole = made.run(40, seed=2)
    same(made.run(40, seed=2, jobs=2).table, whole.table)
    made.run(7, seed=2, store=tmp_path / "s")
    made.run(23, seed=2, store=tmp_path / "s")
    same(made.run(40, seed=2, store=tmp_path / "s").table, whole.table)
    alone = made.replicate({"n": 60}, 19, seed=2).table
    inside = whole.table.query("n == 60 and replication == 19")
    same(alone, inside.reset_index(drop=True))


def test_a_batched_estimator_may_return_results_and_exceptions():
    def one_by_one(data):
        return [ValueError("odd") if y.sum() % 2 else (x.mean(), 1.0) for x, y in data]

    made = batched_study(estimators={"b": Batched(one_by_one)}, truth=0.0)
    table = made.run(20, seed=2).table
    assert set(table["status"]) == {"ok", "error"}
    assert set(table.query("status == 'error'")["message"]) == {"ValueError: odd"}

    def broken(data):
        raise RuntimeError("all of it")

    table = batched_study(estimators={"b": Batched(broken)}).run(20, seed=2).table
    assert (table["message"] == "RuntimeError: all of it").all()
    with pytest.raises(ValueError, match="1 results for 16 data sets"):
        batched_study(estimators={"b": Batched(lambda data: [1.0])}).run(3, seed=1)


# ----------------------------------------------------------------- bad descriptions


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"generate": 3}, TypeError, "`generate`"),
        ({"estimators": {}}, TypeError, "`estimators`"),
        ({"estimators": {"a": 3}}, TypeError, "cannot be called"),
        (
            {"estimators": {"a b": mean, "a": Variants(mean, {"b": mean})}},
            ValueError,
            "coincide",
        ),
        ({"design": {"n": [1, 1]}, "truth": 0}, ValueError, "twice"),
        ({"design": {"n": [30, "x"]}, "truth": 0}, ValueError, "mixes"),
        ({"design": {"n": [None]}, "truth": 0}, ValueError, "level None"),
        ({"design": {"estimate": [1]}, "truth": 0}, ValueError, "names are taken"),
        ({"design": [{"n": 1}, {"m": 2}], "truth": 0}, ValueError, "same factors"),
        ({"design": "n", "truth": 0}, ValueError, "`design` must be"),
        ({"truth": "one"}, ValueError, "`truth`"),
        ({"truth": lambda n, shift: {f"b{n}": 1.0}}, ValueError, "same estimands"),
        ({"level": 95}, ValueError, "between 0 and 1"),
        ({"batch": 0}, ValueError, "`batch`"),
    ],
)
def test_bad_studies_are_refused(change, error, message):
    with pytest.raises(error, match=message):
        study(**change)


def test_bad_runs_are_refused(results):
    made = study()
    for bad, error in ((0, ValueError), (2.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match="`replications`"):
            made.run(bad, seed=1)
    with pytest.raises(ValueError, match="`seed`"):
        made.run(2, seed=-1)
    with pytest.raises(ValueError, match="none of the 4 points"):
        made.replicate({"n": 21, "shift": 0.0}, 0, 1)
    with pytest.raises(ValueError, match="`mcse`"):
        Precision("coverage", 0.0)
    with pytest.raises(ValueError, match="methods are"):
        results.performance("median")
    with pytest.raises(ValueError, match="`mcse` must be"):
        results.performance(mcse="boot")


def test_joblib_configuration_is_used(results):
    with joblib.parallel_config(backend="threading", n_jobs=2):
        same(study().run(30, seed=7, jobs=None).table, results.table)
