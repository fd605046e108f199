"""Data read in blocks: the same numbers as in memory, and what is refused."""

import gc
import weakref

import numpy as np
import pandas as pd
import pytest

import eestim as ee
from eestim.blocks import block_source
from eestim.errors import (
    CapabilityError,
    DataError,
    IdentificationError,
    InterpolationError,
    SeparationError,
)

AGREE = 1e-10  # a sum in another order
N = 1500


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(5)
    x, z = rng.normal(size=N), rng.normal(3, 2, size=N)
    g = rng.choice(list("abc"), N)
    eta = 0.2 + 0.4 * x - 0.1 * z + 0.3 * (g == "b")
    return pd.DataFrame(
        {
            "x": x,
            "z": z,
            "g": g,
            "firm": rng.integers(0, 40, N),
            "year": rng.integers(0, 22, N),
            "w": rng.integers(0, 4, N),
            "e": rng.uniform(0.5, 2, N),
            "far": 1e5 + x,
            "y": eta + rng.normal(size=N) * (1 + x**2),
            "b": (rng.random(N) < 1 / (1 + np.exp(-eta))).astype(float),
            "c": rng.poisson(np.exp(eta)).astype(float),
        }
    )


def factory(frame, rows=400):
    return lambda: (frame.iloc[k : k + rows] for k in range(0, len(frame), rows))


def parts(*frames):
    return lambda: iter(frames)


RULES = [
    ee.HC(0),
    ee.HC(1),
    ee.Clustered("firm"),
    ee.Clustered("firm", kind="CR1S"),
    ee.Clustered("firm", "year", kind="CR1"),
    ee.ModelBased(),
]


def assert_same(streamed, whole, rules=RULES):
    """Theta, covariance, degrees of freedom and description agree."""
    np.testing.assert_allclose(streamed.theta, whole.theta, rtol=AGREE)
    assert (streamed.names, streamed.n_units) == (whole.names, whole.n_units)
    for rule in rules:
        ours, theirs = streamed.with_covariance(rule), whole.with_covariance(rule)
        scale = theirs.se.to_numpy()
        gap = (ours.spread.matrix - theirs.spread.matrix) / np.outer(scale, scale)
        assert np.abs(gap).max() < AGREE, rule
        np.testing.assert_allclose(ours.dof, theirs.dof, rtol=AGREE)
        assert ours.rule == theirs.rule


MODELS = {
    "ols": lambda d: ee.ols("y ~ x + z + C(g)", d),
    "logit": lambda d: ee.glm("b ~ x + z + g", d, family="binomial"),
    "probit": lambda d: ee.glm("b ~ x + z", d, family="binomial", link="probit"),
    "poisson": lambda d: ee.glm("c ~ x + z", d, family="poisson", exposure="e"),
    "frequencies": lambda d: ee.glm(
        "b ~ x", d, family="binomial", weights=ee.Frequency("w")
    ),
    "far from zero": lambda d: ee.ols("y ~ far + z", d),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_agree_with_the_fit_in_memory(data, name):
    build = MODELS[name]
    assert_same(ee.estimate(build(factory(data))), ee.estimate(build(data)))


@pytest.mark.parametrize("kind", [ee.Sampling, ee.Importance])
def test_weights_have_one_scale_over_all_blocks(data, kind):
    def fit(d):
        return ee.estimate(ee.ols("y ~ x", d, weights=kind("e")))

    assert_same(fit(factory(data)), fit(data), RULES[:-1])


def test_sources_of_every_kind(data, tmp_path):
    dask = pytest.importorskip("dask.dataframe")
    pytest.importorskip("pyarrow")
    whole = ee.estimate(ee.ols("y ~ x + g", data))
    data.to_parquet(tmp_path / "all.parquet")
    (tmp_path / "folder").mkdir()
    for k in range(3):
        piece = data.iloc[k * 500 : (k + 1) * 500]
        piece.to_parquet(tmp_path / "folder" / f"{k}.parquet")
    for source in (
        tmp_path / "all.parquet",
        str(tmp_path / "folder"),
        dask.from_pandas(data, npartitions=4),
    ):
        assert_same(ee.estimate(ee.ols("y ~ x + g", source)), whole)


def residuals(theta, d):
    error = np.asarray(d["y"] - theta[0] - theta[1] * d["x"])
    return np.column_stack([error, error * d["x"]])


def slope(theta, d):
    x = np.asarray(d["x"])
    return -np.array([[1, x.mean()], [x.mean(), np.mean(x**2)]])


USERS = {
    "differences": {},
    "jacobian": {"jacobian": slope},
    "units that span blocks": {"jacobian": slope, "units": "firm"},
    "sampling": {"weights": ee.Sampling("e")},
    "frequencies": {"weights": ee.Frequency("w")},
}


@pytest.mark.parametrize("name", USERS)
def test_equations_of_users_agree_with_the_fit_in_memory(data, name):
    def fit(d):
        return ee.estimate(ee.equation(residuals, d, [0, 0], **USERS[name]))

    rules = RULES[:2] if "units" in name else RULES[:-1]
    assert_same(fit(factory(data)), fit(data), rules)


def test_blocks_are_let_go_as_they_are_read(data):
    """Bounded memory: never more than a few of ten blocks at once."""
    alive: list[weakref.ref] = []
    most = 0

    def read():
        nonlocal most
        for k in range(0, N, 150):
            block = data.iloc[k : k + 150].copy()
            alive.append(weakref.ref(block))
            if sum(ref() is not None for ref in alive) > 4:
                gc.collect()  # formulas leave cycles, which the collector would find
            most = max(most, sum(ref() is not None for ref in alive))
            yield block

    ee.estimate(ee.ols("y ~ x", read), covariance=ee.Clustered("firm"))
    assert len(alive) >= 50  # several readings
    assert most <= 4


@pytest.mark.parametrize(
    "rule",
    [
        ee.HC(3),
        ee.Clustered("firm", kind="CR2"),
        ee.Clustered("firm", "year", multi0=True),
        ee.Jackknife(),
        ee.Bootstrap(draws=9, rng=1),
        ee.HAC("bartlett", bandwidth=3.0),
        ee.FayGraubard(),
        ee.HCK(of="x"),
    ],
    ids=str,
)
def test_rules_that_need_all_rows_name_those_that_work(data, rule):
    fit = ee.estimate(ee.ols("y ~ x", factory(data)))
    with pytest.raises(CapabilityError, match=r"HC\(0\), HC\(1\), Clustered"):
        fit.with_covariance(rule)


def test_arrays_have_no_place_in_a_source(data):
    fit = ee.estimate(ee.ols("y ~ x", factory(data)))
    with pytest.raises(CapabilityError, match="names of columns"):
        fit.with_covariance(ee.Clustered(data["firm"].to_numpy()))
    with pytest.raises(TypeError, match="formula"):
        ee.models.streamed.streamed_glm(
            data["y"],
            block_source(factory(data)),
            family="gaussian",
            link=None,
            offset=None,
            exposure=None,
            weights=None,
            na="raise",
            unsafe=False,
        )
    with pytest.raises(TypeError, match="offset"):
        ee.glm("c ~ x", factory(data), family="poisson", offset=np.ones(N))
    with pytest.raises(TypeError, match="of the name of a column"):
        ee.ols("y ~ x", factory(data), weights=ee.Sampling(np.ones(N)))
    with pytest.raises(TypeError, match="units"):
        ee.equation(residuals, factory(data), [0, 0], units=np.ones(N))


def test_missing_values_are_named_by_block_and_row(data):
    hole = data.copy()
    hole.loc[807, "x"] = np.nan
    message = r"block 2 \(rows 800 to 1199 of the source\).*row 7 "
    with pytest.raises(DataError, match=message):
        ee.ols("y ~ x", factory(hole))
    with pytest.raises(DataError, match=r"block 2 .*row 7"):
        ee.equation(residuals, factory(hole[["x", "y"]]), [0, 0])
    dropped = ee.estimate(ee.ols("y ~ x", factory(hole), na="drop"))
    assert_same(dropped, ee.estimate(ee.ols("y ~ x", hole, na="drop")))


def test_missing_labels_are_named(data):
    hole = data.assign(firm=data["firm"].astype(float))
    hole.loc[401, "firm"] = np.nan
    fit = ee.estimate(ee.ols("y ~ x", factory(hole)))
    with pytest.raises(DataError, match="'firm' is missing in block 1, row 1"):
        fit.with_covariance(ee.Clustered("firm"))


def test_a_category_of_a_later_block_is_named(data):
    late = data.copy()
    late.loc[900, "g"] = "d"
    for formula in ("y ~ g", "y ~ C(g)"):
        with pytest.raises(DataError, match=r"block 2.*category 'd' in row 100.*lacks"):
            ee.ols(formula, factory(late))
    # declared levels are known from the start
    declared = late.assign(g=pd.Categorical(late["g"]))
    assert_same(
        ee.estimate(ee.ols("y ~ g", factory(declared))),
        ee.estimate(ee.ols("y ~ g", declared)),
    )


@pytest.mark.parametrize("term", ["center(x)", "bs(x, df=4)", "poly(x, 2)", "lag(x)"])
def test_terms_of_all_rows_are_refused(data, term):
    with pytest.raises(ValueError, match="depends on all rows"):
        ee.ols(f"y ~ {term}", factory(data))


def test_sources_that_cannot_be_read(data, tmp_path):
    pytest.importorskip("pyarrow")
    with pytest.raises(DataError, match="does not exist"):
        ee.ols("y ~ x", tmp_path / "none.parquet")
    with pytest.raises(DataError, match=r"no file named \*.parquet"):
        ee.ols("y ~ x", tmp_path)
    (tmp_path / "t.csv").write_text("y,x\n1,2\n")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        ee.ols("y ~ x", tmp_path / "t.csv")
    folder = tmp_path / "hive" / "k=1"
    folder.mkdir(parents=True)
    data.head(5).to_parquet(folder / "a.parquet")
    with pytest.raises(DataError, match="key=value"):
        ee.ols("y ~ x", tmp_path / "hive")
    with pytest.raises(DataError, match=r"lacks the columns|not a column"):
        ee.ols("y ~ nowhere", folder / "a.parquet")


def test_columns_that_differ_between_blocks(data, tmp_path):
    pytest.importorskip("pyarrow")
    first, second = data.iloc[:500], data.iloc[500:].drop(columns="z")
    with pytest.raises(DataError, match=r"missing \['z'\]"):
        ee.equation(residuals, parts(first, second), [0, 0])
    with pytest.raises(DataError, match=r"lacks the columns \['z'\]"):
        ee.ols("y ~ z", parts(first, second))
    first.to_parquet(tmp_path / "1.parquet")
    second.to_parquet(tmp_path / "2.parquet")
    with pytest.raises(DataError, match=r"'2.parquet' differ.*missing \['z'\]"):
        ee.ols("y ~ z", tmp_path)
    text = data.iloc[500:].assign(z="1.5")
    with pytest.raises(DataError, match=r"'z' holds text in block 1 .* numbers"):
        ee.ols("y ~ z", parts(first, text))


def test_sources_without_rows(data):
    with pytest.raises(DataError, match="no rows"):
        ee.ols("y ~ x", parts())
    with pytest.raises(DataError, match=r"no rows \(1 blocks"):
        ee.ols("y ~ x", parts(data.head(0)))
    # empty blocks between others are passed over
    fit = ee.estimate(ee.ols("y ~ x", parts(data.head(0), data, data.head(0))))
    assert_same(fit, ee.estimate(ee.ols("y ~ x", data)))


def test_iterators_that_can_be_read_once(data):
    with pytest.raises(TypeError, match="only once"):
        ee.ols("y ~ x", iter([data]))
    spent = iter([data.iloc[:700], data.iloc[700:]])
    with pytest.raises(DataError, match="new iterator"):
        ee.estimate(ee.ols("y ~ x", lambda: spent))
    with pytest.raises(TypeError, match="ndarray as block 0"):
        ee.ols("y ~ x", parts(np.ones((3, 2))))


def test_a_source_that_changes_between_readings(data):
    shorter = iter([data, data, data, data.head(100), data.head(100)])
    with pytest.raises(DataError, match="before and 100 now"):
        ee.estimate(ee.ols("y ~ x", lambda: iter([next(shorter)])))


def test_collinear_columns_are_named(data):
    twice = data.assign(double=2 * data["x"])
    with pytest.raises(IdentificationError, match=r"x = \+0.5\*double"):
        ee.estimate(ee.ols("y ~ x + double", factory(twice)))
    with pytest.raises(IdentificationError, match="3 columns for 2 rows"):
        ee.ols("y ~ x + z", factory(data.head(2)))


def test_interpolation_is_refused(data):
    exact = data.assign(y=1 + 2 * data["x"])
    with pytest.raises(InterpolationError):
        ee.estimate(ee.ols("y ~ x", factory(exact)))
    with pytest.raises(InterpolationError):
        ee.estimate(ee.equation(residuals, factory(exact), [0, 0], jacobian=slope))


def test_separation_is_found_over_blocks(data):
    data = data.head(800)
    apart = data.assign(b=(data["x"] > 0.3).astype(float))
    with pytest.raises(SeparationError, match="x"):
        ee.estimate(ee.glm("b ~ x + z", factory(apart), family="binomial"))
    # one category without events: quasi-complete
    quasi = data.assign(b=np.where(data["g"] == "c", 0.0, data["b"]))
    with pytest.raises(SeparationError, match="g"):
        ee.estimate(ee.glm("b ~ g", factory(quasi), family="binomial"))
    zeros = data.assign(c=np.where(data["g"] == "c", 0.0, data["c"]))
    with pytest.raises(SeparationError, match="g"):
        ee.estimate(ee.glm("c ~ g", factory(zeros), family="poisson"))


def test_extreme_fitted_values_without_separation(data):
    """The program grows until a block breaks every direction: no false alarm."""
    steep = 9 * data["x"]
    rng = np.random.default_rng(2)
    drawn = (rng.random(N) < 1 / (1 + np.exp(-steep))).astype(float)
    spread = data.assign(b=drawn)
    build = MODELS["logit"]
    assert_same(ee.estimate(build(factory(spread))), ee.estimate(build(spread)))


def test_predictions_and_tables_of_a_streamed_fit(data):
    fit = ee.estimate(ee.ols("y ~ x + C(g)", factory(data)), covariance=ee.HC(1))
    whole = ee.estimate(ee.ols("y ~ x + C(g)", data), covariance=ee.HC(1))
    np.testing.assert_allclose(
        fit.predict(data.head()), whole.predict(data.head()), rtol=1e-8
    )
    np.testing.assert_allclose(fit.interval(), whole.interval(), rtol=1e-8)
    assert "units read from" in repr(fit.equation)
    found = ee.diagnose(fit, budget=5.0)
    assert found["influence"].status == "not applicable"
