"""Stacked equations: blocks read by name, exact block-triangular A, two-step variances.

Numbers in the names are those of the property list in the theory notes.
"""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import DERIVATIVE, EXACT, REFERENCE

import eestim as ee
from eestim.errors import (
    CapabilityError,
    ConvergenceError,
    DataError,
    InterpolationError,
    SeparationError,
)
from eestim.stacking import stack

SETTINGS = settings(deadline=None, max_examples=10)
EFFECT = {"mu1": 0.0, "mu0": 0.0, "ate": 0.0}


def expit(eta):
    return 1.0 / (1.0 + np.exp(-eta))


def columns(*values):
    return np.column_stack(values)


def deviation(fit, case, order=None):
    """Largest deviation from a reference case: (estimate, covariance), in its SEs."""
    order = list(range(len(fit.theta))) if order is None else order
    wanted = np.array(case["vcov"])
    errors = np.sqrt(np.diag(wanted))
    V = fit.spread.matrix[np.ix_(order, order)]
    return (
        np.max(np.abs(fit.theta[order] - np.array(case["estimate"])) / errors),
        np.max(np.abs(V - wanted) / np.outer(errors, errors)),
    )


def relative(a, b):
    return np.max(np.abs(np.asarray(a) - b)) / np.max(np.abs(b))


# ------------------------------------------------------------------ reference cases


def propensity(theta, data):
    W = columns(np.ones(len(data)), data["age"], data["lwt"], data["ht"])
    return expit(W @ theta["ps"])


def difference(theta, data):
    return np.full(len(data), theta["mu1"] - theta["mu0"] - theta["ate"])


def horvitz_thompson(theta, data):
    p, a, y = propensity(theta, data), data["smoke"], data["bwt"]
    return columns(
        a * y / p - theta["mu1"],
        (1 - a) * y / (1 - p) - theta["mu0"],
        difference(theta, data),
    )


def hajek(theta, data):
    p, a, y = propensity(theta, data), data["smoke"], data["bwt"]
    return columns(
        a * (y - theta["mu1"]) / p,
        (1 - a) * (y - theta["mu0"]) / (1 - p),
        difference(theta, data),
    )


def outcome_means(theta, data):
    one = np.ones(len(data))
    rest = (data["age"], data["lwt"], data["ht"])
    return (
        columns(one, one, *rest) @ theta["om"],
        columns(one, 0 * one, *rest) @ theta["om"],
    )


def doubly_robust(theta, data):
    p, a, y = propensity(theta, data), data["smoke"], data["bwt"]
    m1, m0 = outcome_means(theta, data)
    return columns(
        a * y / p - (a - p) / p * m1 - theta["mu1"],
        (1 - a) * y / (1 - p) + (a - p) / (1 - p) * m0 - theta["mu0"],
        difference(theta, data),
    )


def standardised(theta, data):
    m1, m0 = outcome_means(theta, data)
    return columns(m1 - theta["mu1"], m0 - theta["mu0"], difference(theta, data))


def standardised_interaction(theta, data):
    one, age = np.ones(len(data)), data["age"]
    m1 = columns(one, one, age, age) @ theta["om"]
    m0 = columns(one, 0 * one, age, 0 * age) @ theta["om"]
    return columns(m1 - theta["mu1"], m0 - theta["mu0"], difference(theta, data))


def treatment(data):
    return ee.glm("smoke ~ age + lwt + ht", data, family="binomial")


def outcome(data, formula="bwt ~ smoke + age + lwt + ht"):
    return ee.ols(formula, data)


def stacked_case(name, data):
    first = {"ps": treatment(data)} if "ipw" in name else {}
    if "aipw" in name or "gformula" in name:
        interacted = name == "geex_gformula_birthwt"
        formula = "bwt ~ smoke * age" if interacted else "bwt ~ smoke + age + lwt + ht"
        first["om"] = outcome(data, formula)
    effect = {
        "geex_ipw_birthwt_HT": horvitz_thompson,
        "deli_ipw_birthwt": horvitz_thompson,
        "geex_ipw_birthwt_Hajek": hajek,
        "deli_ipw_hajek_birthwt": hajek,
        "geex_aipw_birthwt": doubly_robust,
        "deli_aipw_birthwt": doubly_robust,
        "geex_gformula_birthwt": standardised_interaction,
        "deli_gformula_birthwt": standardised,
    }[name]
    return stack(**first, effect=effect, data=data, start={"effect": EFFECT})


@pytest.mark.parametrize(
    "name",
    [
        "geex_ipw_birthwt_HT",
        "geex_ipw_birthwt_Hajek",
        "geex_aipw_birthwt",
        "geex_gformula_birthwt",
        "deli_ipw_birthwt",
        "deli_ipw_hajek_birthwt",
        "deli_aipw_birthwt",
        "deli_gformula_birthwt",
    ],
)
def test_causal_estimates_equal_those_of_geex_and_delicatessen(name, refcases):
    fit = ee.estimate(stacked_case(name, refcases.frame("birthwt.csv")))
    p = len(fit.theta)
    # Delicatessen puts the effect first: ate, mu1, mu0, then the nuisance models.
    order = [p - 1, p - 3, p - 2, *range(p - 3)] if name.startswith("deli") else None
    estimate, covariance = deviation(fit, refcases.case(name), order)
    assert estimate < REFERENCE
    assert covariance < REFERENCE
    assert fit.root.residual < 1e-9  # a relation without noise leaves no residual


def test_a_propensity_taken_as_known_gives_another_variance(refcases):
    """Negative control: the stack is what carries the first step's error."""
    data = refcases.frame("birthwt.csv")
    first = ee.estimate(treatment(data))

    def known(theta, data):
        return horvitz_thompson({"ps": first.theta, **_named(theta)}, data)

    alone = ee.estimate(stack(effect=known, data=data, start={"effect": EFFECT}))
    both = ee.estimate(stacked_case("geex_ipw_birthwt_HT", data))
    assert abs(alone.theta[2] - both.theta[-1]) < 1e-6
    assert alone.se.iloc[0] > 1.2 * both.se["effect[mu1]"]


def _named(theta):
    return {name: theta[name] for name in EFFECT}


# ------------------------------------------------------------ names, reading, shape


@pytest.fixture
def data():
    rng = np.random.default_rng(4)
    n = 120
    x, z = rng.normal(size=(2, n))
    a = (rng.random(n) < expit(0.4 * x)).astype(float)
    return pd.DataFrame(
        {
            "x": x,
            "z": z,
            "a": a,
            "y": 1 + a + x + rng.normal(size=n) * (1 + a),
            "g": rng.integers(0, 30, n),
            "w": rng.integers(1, 4, n),
        }
    )


def weighted_mean(theta, data):
    p = expit(theta["ps[Intercept]"] + theta["ps[x]"] * data["x"])
    return (data["a"] * (data["y"] - theta["effect"]) / p).to_numpy()[:, None]


def simple(data, **options):
    return stack(
        ps=ee.glm("a ~ x", data, family="binomial"),
        effect=weighted_mean,
        data=data,
        start={"effect": 0.0},
        **options,
    )


def test_names_and_reading_by_block_full_name_label_and_position(data):
    seen = {}

    def reads(theta, data):
        seen.update(
            block=np.array(theta["ps"]),
            full=theta["ps[x]"],
            label=theta["x"],
            position=np.asarray(theta)[1],
            own=theta["effect"],
        )
        return weighted_mean(theta, data)

    fit = ee.estimate(
        stack(
            ps=ee.glm("a ~ x", data, family="binomial"),
            effect=reads,
            data=data,
            start={"effect": 0.0},
        )
    )
    assert fit.names == ("ps[Intercept]", "ps[x]", "effect")
    assert seen["block"].shape == (2,)
    assert seen["full"] == seen["label"] == seen["position"] == seen["block"][1]
    assert isinstance(seen["own"], float)
    assert "StackedEquation(ps, effect; 120 units)" in repr(fit.equation)


@pytest.mark.parametrize(
    ("start", "names", "wanted"),
    [
        ({"effect": 0.0}, None, ("effect",)),
        (0.0, None, ("effect",)),
        ({"effect": [0.0]}, None, ("effect[0]",)),
        ([0.0], {"effect": ["mu"]}, ("effect[mu]",)),
        ({"effect": {"mu": 0}}, None, ("effect[mu]",)),
        ({"mu": 0}, None, ("effect[mu]",)),
    ],
)
def test_starts_and_names_may_be_written_in_several_ways(data, start, names, wanted):
    def mean(theta, data):
        return (data["y"] - np.ravel(theta["effect"])[0]).to_numpy()[:, None]

    made = stack(m=ee.mean("x", data), effect=mean, data=data, start=start, names=names)
    assert made.names == ("m[x]", *wanted)
    assert ee.estimate(made).theta[1] == pytest.approx(data["y"].mean(), rel=EXACT)


def test_names_of_all_parameters(data):
    assert simple(data, names=["a", "b", "c"]).names == ("a", "b", "c")


def test_a_block_cannot_read_a_later_one(data):
    def early(theta, data):
        return (data["y"] - theta["late"]).to_numpy()[:, None]

    def late(theta, data):
        return (data["x"] - theta["late"]).to_numpy()[:, None]

    with pytest.raises(KeyError, match="no block 'late' in theta"):
        stack(early=early, late=late, data=data, start={"early": 0.0, "late": 0.0})


def test_a_label_of_two_blocks_is_ambiguous_and_needs_its_block(data):
    def both(theta, data):
        return (data["y"] - theta["x"] - theta["own"]).to_numpy()[:, None]

    with pytest.raises(KeyError, match="no block 'x' in theta"):
        stack(
            one=ee.ols("y ~ x", data),
            two=ee.glm("a ~ x", data, family="binomial"),
            own=both,
            data=data,
            start={"own": 0.0},
        )


def test_functionals_read_the_stack_by_the_same_names(data):
    fit = ee.estimate(simple(data))
    h = fit.functional(lambda theta: theta["effect"] * theta["ps"][1])
    assert h.theta[0] == pytest.approx(fit.theta[2] * fit.theta[1], rel=EXACT)


# ------------------------------------------------------------------- A and variance


def test_sensitivity_is_block_triangular_with_the_models_own_block(data):
    made = simple(data)
    theta = np.array([0.1, 0.3, 1.5])
    A = made.sensitivity(theta)
    own = ee.glm("a ~ x", data, family="binomial").sensitivity(theta[:2])
    assert np.array_equal(A[:2, :2], own)  # analytic, not differenced
    assert np.array_equal(A[:2, 2], np.zeros(2))


def test_sensitivity_equals_plain_differences_and_a_given_jacobian(data):
    def slope(theta, data):
        p = expit(theta["ps[Intercept]"] + theta["ps[x]"] * data["x"])
        through = -data["a"] * (data["y"] - theta["effect"]) * (1 - p) / p
        return np.array(
            [[through.mean(), (through * data["x"]).mean(), -(data["a"] / p).mean()]]
        )

    made, analytic = simple(data), simple(data, jacobian={"effect": slope})
    theta = np.array([0.1, 0.3, 1.5])
    assert made.derivative_error > analytic.derivative_error == 0.0
    assert relative(made.sensitivity(theta), analytic.sensitivity(theta)) < 1e-10
    for j in range(3):
        step = 1e-5 * np.eye(3)[j]
        change = made.psi(theta + step) - made.psi(theta - step)
        seen = -change.mean(axis=0) / 2e-5
        assert relative(made.sensitivity(theta)[:, j], seen) < DERIVATIVE


def test_unit_sensitivities_average_to_the_sensitivity(data):
    for made in (simple(data), simple(data, weights=ee.Sampling("w"))):
        theta = np.array([0.1, 0.3, 1.5])
        each = made.unit_sensitivity(theta)
        assert each.shape == (120, 3, 3)
        assert relative(each.mean(axis=0), made.sensitivity(theta)) < 1e-9


def two_step_influence(data, theta):
    """The influence of the second step by hand, ps estimated by logistic regression."""
    X = columns(np.ones(len(data)), data["x"])
    a, y = data["a"].to_numpy(), data["y"].to_numpy()
    p = expit(X @ theta[:2])
    first = np.linalg.solve((X.T * p * (1 - p)) @ X / len(X), (X * (a - p)[:, None]).T)
    own = a * (y - theta[2]) / p
    through = (-(a * (y - theta[2]) * (1 - p) / p)[:, None] * X).mean(axis=0)
    return (own + through @ first) / (a / p).mean()


@given(seed=st.integers(0, 10**6), n=st.integers(60, 200))
@SETTINGS
def test_15_two_step_variance_is_that_of_the_influence_by_hand(seed, n):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    a = (rng.random(n) < expit(0.5 * x)).astype(float)
    a[:2] = [0.0, 1.0]
    table = pd.DataFrame({"x": x, "a": a, "y": x + a + rng.normal(size=n)})
    fit = ee.estimate(simple(table))
    by_hand = np.sum(two_step_influence(table, fit.theta) ** 2) / n**2
    assert fit.spread.matrix[2, 2] == pytest.approx(by_hand, rel=1e-8)


@given(seed=st.integers(0, 10**6), n=st.integers(40, 150))
@SETTINGS
def test_12_13_without_shared_parameters_blocks_are_separate_and_correlated(seed, n):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    table = pd.DataFrame({"x": x, "y": x + rng.normal(size=n)})
    table["c"] = rng.poisson(np.exp(0.3 * x)).astype(float)
    one, two = ee.ols("y ~ x", table), ee.glm("c ~ x", table, family="poisson")
    both = ee.estimate(stack(one=one, two=two))
    alone = ee.estimate(one), ee.estimate(two)
    for block, fit in zip((slice(0, 2), slice(2, 4)), alone, strict=True):
        errors = fit.se.to_numpy()
        assert np.max(np.abs(both.theta[block] - fit.theta) / errors) < REFERENCE
        gap = np.abs(both.spread.matrix[block, block] - fit.spread.matrix)
        assert np.max(gap / np.outer(errors, errors)) < REFERENCE
    influence = [fit.influence().to_numpy() for fit in alone]
    cross = influence[0].T @ influence[1] / n**2
    scale = np.outer(alone[0].se, alone[1].se)
    assert np.max(np.abs(both.spread.matrix[:2, 2:] - cross) / scale) < REFERENCE


@given(seed=st.integers(0, 10**6), n=st.integers(20, 100))
@SETTINGS
def test_14_disjoint_samples_give_a_block_diagonal_covariance(seed, n):
    rng = np.random.default_rng(seed)
    member = np.arange(n) < max(n // 3, 5)
    table = {"y": rng.normal(size=n), "s": member.astype(float)}

    def part(which):
        def psi(theta, data):
            inside = data["s"] == which
            return (inside * (data["y"] - theta[f"m{which}"]))[:, None]

        return psi

    fit = ee.estimate(
        stack(m1=part(1), m0=part(0), data=table, start={"m1": 0.0, "m0": 0.0})
    )
    assert fit.spread.matrix[0, 1] == 0.0
    y = table["y"][member]
    assert fit.spread.matrix[0, 0] == pytest.approx(y.var() / len(y), rel=1e-9)


@given(seed=st.integers(0, 10**6), power=st.floats(0.5, 2.0))
@SETTINGS
def test_16_appending_a_functional_is_the_delta_method(seed, power):
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"x": rng.normal(size=80)})
    table["y"] = 1.0 + 2.0 * table["x"] + rng.normal(size=80)

    def h(theta):
        return np.exp(power * theta["x"] / 3) + theta["Intercept"] ** 2

    base = ee.ols("y ~ x", table)

    def appended(theta, data):
        return np.full((len(data), 1), h(theta) - theta["eta"])

    stacked = ee.estimate(stack(ols=base, eta=appended, data=table, start={"eta": 0.0}))
    delta = ee.estimate(base).functional(h)
    assert stacked.theta[2] == pytest.approx(delta.theta[0], rel=1e-10)
    assert stacked.se["eta"] == pytest.approx(delta.se.iloc[0], rel=1e-10)


# ---------------------------------------------------------------- weights and units


def test_frequencies_equal_the_data_written_out(data):
    counted = ee.estimate(simple(data, weights=ee.Frequency("w")))
    written = data.loc[data.index.repeat(data["w"])].reset_index(drop=True)
    whole = ee.estimate(simple(written))
    assert counted.n_units == whole.n_units == data["w"].sum()
    assert np.max(np.abs(counted.theta - whole.theta) / whole.se) < REFERENCE
    assert relative(counted.spread.matrix, whole.spread.matrix) < REFERENCE


def test_units_that_frequencies_leave_without_a_row_are_refused(data):
    counts = np.tile([1, 0, 1], 40)
    with pytest.raises(DataError, match=r"40 unit"):
        simple(data, units=np.arange(120), weights=ee.Frequency(counts))


def test_frequencies_within_units_equal_the_data_written_out(data):
    counts, units = np.tile([1, 0, 1], 40), np.arange(120) // 3
    written = data.loc[data.index.repeat(counts)].reset_index(drop=True)
    counted = simple(data, units=units, weights=ee.Frequency(counts))
    whole = simple(written, units=units.repeat(counts))
    theta = np.array([0.1, 0.3, 1.5])
    weights = np.random.default_rng(5).uniform(size=40)
    for one, two in (
        (counted, whole),
        (counted.reweighted(weights), whole.reweighted(weights)),
    ):
        assert one.n_units == two.n_units == 40
        assert relative(one.psi(theta), two.psi(theta)) < EXACT
        assert relative(one.sensitivity(theta), two.sensitivity(theta)) < REFERENCE
        each, written_out = one.unit_sensitivity(theta), two.unit_sensitivity(theta)
        assert relative(each, written_out) < REFERENCE


def test_sampling_weights_have_no_scale_and_weight_every_block(data):
    one = ee.estimate(simple(data, weights=ee.Sampling("w")))
    two = ee.estimate(simple(data, weights=ee.Sampling(7.0 * data["w"])))
    assert relative(two.spread.matrix, one.spread.matrix) < EXACT * 100
    block = ee.estimate(
        ee.glm("a ~ x", data, family="binomial", weights=ee.Sampling("w"))
    )
    assert np.max(np.abs(one.theta[:2] - block.theta) / block.se) < REFERENCE
    assert relative(one.spread.matrix[:2, :2], block.spread.matrix) < REFERENCE


def test_importance_weights_have_an_effective_size(data):
    made = simple(data, weights=ee.Importance("w"))
    w = data["w"].to_numpy()
    assert made.n_effective == pytest.approx(w.sum() ** 2 / (w**2).sum(), rel=EXACT)


def test_units_equal_the_clustered_covariance(data):
    summed = ee.estimate(simple(data, units="g"))
    rule = ee.Clustered(data["g"].to_numpy())
    clustered = ee.estimate(simple(data), covariance=rule)
    assert summed.n_units == data["g"].nunique()
    assert relative(summed.spread.matrix, clustered.spread.matrix) < REFERENCE
    named = ee.estimate(simple(data), covariance=ee.Clustered("g"))
    assert np.array_equal(named.spread.matrix, clustered.spread.matrix)


def test_reweighting_units_equals_duplicating_their_rows(data):
    counts = np.random.default_rng(1).integers(0, 3, len(data)).astype(float)
    again = simple(data).reweighted(counts)
    rows = np.repeat(np.arange(len(data)), counts.astype(int))
    written = simple(data.iloc[rows].reset_index(drop=True))
    ours, theirs = ee.estimate(again), ee.estimate(written)
    assert np.max(np.abs(ours.theta - theirs.theta) / theirs.se) < REFERENCE


def test_a_multiplier_bootstrap_of_the_stack_is_near_its_sandwich(data):
    fit = ee.estimate(simple(data))
    rule = ee.Bootstrap("multiplier", draws=1000, rng=3)
    drawn = fit.with_covariance(rule).se / fit.se
    assert np.max(np.abs(drawn - 1.0)) < 4 / np.sqrt(2 * 1000)


def test_a_start_in_order_is_the_joint_root(data):
    made = simple(data)
    fit = ee.estimate(made)
    assert np.max(np.abs(made.start - fit.theta) / fit.se) < 1e-8
    far = ee.estimate(made, start=np.zeros(3))
    assert np.max(np.abs(far.theta - fit.theta) / fit.se) < REFERENCE


def test_a_stack_is_a_block_of_another(data):
    inner = simple(data)

    def double(theta, data):
        return np.full((len(data), 1), 2 * theta["in[effect]"] - theta["twice"])

    fit = ee.estimate(
        stack(**{"in": inner}, twice=double, data=data, start={"twice": 0.0})
    )
    assert fit.names[-2:] == ("in[effect]", "twice")
    assert fit.se["twice"] == pytest.approx(2 * fit.se["in[effect]"], rel=1e-9)


# ------------------------------------------------------------------------ refusals


def constant(theta, data):
    return np.zeros((len(data), 1)) - 0.0 * theta["effect"]


@pytest.mark.parametrize(
    ("build", "error", "match"),
    [
        (lambda d: stack(), ValueError, "needs blocks"),
        (lambda d: stack(m=1.0), TypeError, "must be an estimating equation or a"),
        (
            lambda d: stack(m=ee.estimate(ee.mean("x", d))),
            TypeError,
            "Pass its equation: m=fit.equation",
        ),
        (
            lambda d: stack(effect=weighted_mean, start=0.0),
            DataError,
            "`data` is needed for the functions",
        ),
        (
            lambda d: stack(m=ee.mean("x", d), effect=constant, data=d),
            DataError,
            r"lacks \['effect'\]",
        ),
        (
            lambda d: stack(m=ee.mean("x", d), effect=constant, data=d, start={"m": 0}),
            DataError,
            r"lacks \['effect'\]",
        ),
        (
            lambda d: stack(m=ee.mean("x", d), start=[0.0]),
            DataError,
            "must name its blocks",
        ),
        (
            lambda d: stack(
                m=ee.mean(d["x"][:50].to_numpy()), e=constant, data=d, start={"e": 0}
            ),
            DataError,
            "`data` has 120, block 'm' has 50",
        ),
        (
            lambda d: stack(
                m=ee.ols("y ~ x", d.assign(x=d["x"].where(d["x"] < 1)), na="drop"),
                e=constant,
                data=d,
                start={"e": 0},
            ),
            DataError,
            "dropped .* of 120 rows",
        ),
        (
            lambda d: stack(
                m=ee.mean("x", d, weights=ee.Sampling("w")),
                data=d,
                weights=ee.Sampling("w"),
            ),
            DataError,
            "given to the stack and to the blocks",
        ),
        (
            lambda d: stack(
                e=lambda t, d: np.ones((len(d), 2)), data=d, start={"e": 0.0}
            ),
            DataError,
            "block 'e' returns 2 columns for 1 parameters",
        ),
        (
            lambda d: stack(e=lambda t, d: np.ones(len(d)), data=d, start={"e": 0.0}),
            DataError,
            r"block 'e': `psi` returned shape \(120,\)",
        ),
        (
            lambda d: simple(d, jacobian={"ps": constant}),
            DataError,
            "not function blocks",
        ),
        (lambda d: simple(d, names=["a"]), DataError, "1 entries for 3 parameters"),
        (lambda d: simple(d, names={"zz": ["a"]}), DataError, "`names` has"),
        (lambda d: simple(d, units="zz"), DataError, "no column 'zz'"),
        (lambda d: simple(d, weights=d["w"]), TypeError, "must say what they mean"),
    ],
)
def test_what_cannot_be_stacked_is_refused_with_the_cure(data, build, error, match):
    with pytest.raises(error, match=match):
        build(data)


def test_a_separated_block_is_named_as_separated(data):
    apart = data.assign(a=(data["x"] > 0).astype(float))
    with pytest.raises(SeparationError, match="separated"):
        ee.estimate(simple(apart))


def test_a_block_without_a_root_is_named(data):
    def rootless(theta, data):
        return (1.0 + (data["y"] - theta["e"]) ** 2).to_numpy()[:, None]

    made = stack(m=ee.mean("x", data), e=rootless, data=data, start={"e": 0.0})
    with pytest.raises(ConvergenceError, match="block 'e': no root found"):
        ee.estimate(made)


def test_an_interpolating_stack_is_refused():
    table = {"y": np.array([2.0, 2.0, 2.0])}
    made = stack(
        m=lambda t, d: (d["y"] - t["m"])[:, None], data=table, start={"m": 0.0}
    )
    with pytest.raises(InterpolationError, match="vanishes at every unit"):
        ee.estimate(made)


def test_weights_need_blocks_that_can_be_reweighted(data):
    class Bare:
        n_units, names = 120, ("m",)
        start = np.zeros(1)

        def psi(self, theta):
            return data["y"].to_numpy()[:, None] - theta

        def sensitivity(self, theta):
            return np.eye(1)

    with pytest.raises(CapabilityError, match="block 'm' needs `reweighted`"):
        ee.estimate(stack(m=Bare(), data=data, weights=ee.Sampling("w")))
