"""What each check says of a fault that was planted, and of a fit without one."""

import numpy as np
import pandas as pd
import pytest
from cases import table
from tolerances import EXACT

import eestim as ee
from eestim import diagnostics as checks
from eestim.errors import DataError, InferenceError
from eestim.findings import Finding
from eestim.moments import Moments


def product(y):
    """Two factors of a mean: identified only through their product."""

    def psi(t, d):
        error = d["y"] - t[0] * t[1]
        return np.column_stack([t[1] * error, t[0] * error])

    return ee.equation(psi, {"y": y}, [1.0, 1.0])


def test_finding_names_its_statistic_and_law():
    found = checks.unbiasedness(np.random.default_rng(0).normal(size=(200, 2)))
    assert found.statistic == found.value
    assert found.dof == 2
    assert 0 < found.p < 1
    assert found.assumptions
    assert np.isnan(Finding("x", "pass", 1.0, 2.0, "").p)


def test_unbiasedness_of_a_constant_that_is_not_zero():
    found = checks.unbiasedness(np.column_stack([np.ones(50), np.arange(50.0) - 24.5]))
    assert found.status == "fail"
    assert "Equation 0" in found.meaning


def test_unbiasedness_simulates_models_and_takes_a_simulator(rng):
    fit = ee.estimate(ee.glm("b ~ x", table(), family="binomial"))
    assert checks.unbiasedness_check(fit, rng, level=1e-3).status == "pass"
    biased = checks.unbiasedness_check(
        fit, rng, lambda theta, r: r.normal(theta[0] + 5, 1, size=(500, 2))
    )
    assert biased.status == "fail"
    bare = ee.estimate(
        ee.equation(lambda t, d: (d["y"] - t[0])[:, None], {"y": rng.normal(size=9)}, 0)
    )
    assert checks.unbiasedness_check(bare, rng).status == "not applicable"


def test_residual_of_a_functional_is_its_distance_in_standard_errors(rng):
    y = rng.normal(size=100)
    off = 0.3 * y.std() / 10
    fit = ee.estimate(ee.mean(y), root=[y.mean() + off])
    found = checks.root_residual(fit, gradient=[2.0])
    # the standard error at the shifted root counts the shift as spread
    exact = off / np.sqrt(np.mean((y - y.mean() - off) ** 2) / 100)
    np.testing.assert_allclose(found.value, exact, rtol=1e3 * EXACT)
    assert found.status == "fail"
    with pytest.raises(InferenceError, match="gradient"):
        checks.root_residual(fit, gradient=[0.0])


def test_residual_of_a_median_is_judged_as_a_jump(rng):
    fit = ee.estimate(ee.models.quantile("y", table(81), tau=0.5))
    assert checks.root_residual(fit).status == "pass"


def test_path_of_the_solver_falls_to_rounding():
    path = checks.residual_path(ee.glm("b ~ x", table(), family="binomial"))
    assert path[0] > 0.1
    assert path[-1] < 1e-8
    assert (np.diff(path) < 0).all()


def test_derivative_check_names_a_psi_that_draws(rng):
    draws = np.random.default_rng(1)
    y = rng.normal(size=50)

    class Drawing:
        names, n_units = ("mean",), 50

        def psi(self, theta):
            return (y - theta[0] + 0.1 * draws.normal(size=50))[:, None]

        def sensitivity(self, theta):
            return np.eye(1)

    fit = ee.estimate(ee.mean(y))
    object.__setattr__(fit, "equation", Drawing())
    found = checks.derivative_check(fit, rng)
    assert found.status == "fail"
    assert "different values" in found.meaning


def test_derivative_check_leaves_jumps_alone(rng):
    fit = ee.estimate(ee.models.quantile("y", table(81), tau=0.5))
    assert checks.derivative_check(fit, rng).status == "not applicable"


def test_roots_that_share_h_are_one(rng):
    y = rng.normal(0.0, 0.05, 50)
    two = ee.equation(lambda t, d: (t[0] ** 2 - 1 + d["y"])[:, None], {"y": y}, [0.8])
    fit = ee.estimate(two)
    apart = checks.root_multiplicity(fit, rng, spread=40.0)
    same = checks.root_multiplicity(fit, rng, spread=40.0, h=lambda t: t[0] ** 2)
    assert (apart.status, same.status) == ("warn", "pass")


def test_invariance_over_roots_of_a_product_and_of_a_factor(rng):
    equation = product(rng.normal(1, 1, 60))
    shared = checks.invariance_check(equation, lambda t: t[0] * t[1], rng, starts=6)
    alone = checks.invariance_check(equation, lambda t: t[0], rng, starts=6)
    assert shared.status == "pass"
    assert alone.status == "fail"
    assert "not estimable" in alone.meaning


def test_estimability_and_range_of_a_product(rng):
    y = rng.normal(1, 1, 60)
    theta = np.array([2.0, y.mean() / 2])
    equation = product(y)
    assert checks.estimability_check(equation, theta, theta[::-1]).status == "pass"
    alone = checks.estimability_check(equation, theta, [1.0, 0.0])
    assert alone.status == "fail"
    assert "theta[0]" in alone.meaning
    assert checks.range_check(equation, theta).status == "pass"
    full = ee.ols("y ~ x", table())
    assert checks.range_check(full, [0.0, 0.0]).status == "not applicable"


def test_range_refuses_equations_without_a_regular_root(rng):
    y = rng.normal(size=(2, 100))
    equation = ee.equation(
        lambda t, d: np.column_stack([d["a"] - t[0], d["b"] - t[1] ** 2]),
        {"a": y[0], "b": y[1]},
        [0.0, 1.0],
        jacobian=lambda t, _: np.diag([-1.0, -2 * t[1]]),
    )
    found = checks.range_check(equation, [0.0, 0.0])
    assert found.status == "fail"
    assert found.value > 0.1


def test_separation_measures_the_distance_to_the_frontier(rng):
    n = 200
    y = (rng.random(n) < 0.5).astype(float)
    few, many = rng.normal(size=(n, 3)), rng.normal(size=(n, 60))
    near = checks.separation_check(ee.estimate(ee.glm(y, many, family="binomial")))
    far = checks.separation_check(ee.estimate(ee.glm(y, few, family="binomial")))
    assert (far.status, near.status) == ("pass", "warn")
    linear = ee.estimate(ee.ols("y ~ x", table()))
    assert checks.separation_check(linear).status == "not applicable"


def test_over_identification_does_not_depend_on_units_or_on_the_estimate(rng):
    x = rng.normal([1.0, 1.0, 1.0], [1, 2, 3], size=(150, 3))
    equation = ee.equation(lambda t, d: d["x"] - t[0], {"x": x}, [0.0])
    near = checks.over_identification_at(equation, [1.0])
    psi, slope = equation.psi(np.array([1.0])), np.ones((3, 1))
    scale = np.array([1e-8, 1.0, 1e6])
    scaled = checks.over_identification(psi * scale, slope * scale[:, None])
    np.testing.assert_allclose(scaled.value, near.value, rtol=1e-8)
    assert near.dof == 2
    # Hansen's J, minimised, with the same weight
    weight = np.linalg.inv(psi.T @ psi / 150)
    g, one = psi.mean(axis=0), np.ones(3)
    best = g - one * (one @ weight @ g) / (one @ weight @ one)
    np.testing.assert_allclose(near.value, 150 * best @ weight @ best, rtol=1e-8)


def test_exactly_identified_equations_have_no_j():
    found = checks.over_identification_at(ee.ols("y ~ x", table()), [0.0, 0.0])
    assert found.status == "not applicable"


def test_information_ratio_sees_heteroskedasticity(rng):
    n = 300
    x = rng.normal(size=n)
    X = np.column_stack([np.ones(n), x])
    even = ee.estimate(ee.ols(x + rng.normal(size=n), X))
    uneven = ee.estimate(ee.ols(x + (1 + x**2) * rng.normal(size=n), X))
    assert checks.information_ratio_test(even, rng, draws=60).status == "pass"
    found = checks.information_ratio_test(uneven, rng, draws=60)
    assert found.status == "fail"
    assert found.value > 1.3
    assert checks.variance_ratio(uneven).status == "warn"


def test_information_of_a_saturated_model_is_an_identity(rng):
    g = np.repeat([0.0, 1.0], 50)
    y = (rng.random(100) < 0.4 + 0.2 * g).astype(float)
    design = np.column_stack([np.ones(100), g])
    fit = ee.estimate(ee.glm(y, design, family="binomial"))
    assert checks.information_matrix_test(fit).status == "not applicable"


def test_latent_shares_are_exact_for_two_columns_of_known_noise(rng):
    signal = rng.normal(size=(20_000, 2)) * [1.0, 3.0]
    pair = [signal + rng.normal(size=signal.shape) * [1.0, 1.0] for _ in range(2)]
    shares = checks.latent_shares(*pair, slope=np.diag([2.0, 5.0]))
    # a fourth of a percent: the error of a variance ratio at n = 20,000
    np.testing.assert_allclose(shares, [0.5, 0.1], atol=4 * 0.0035)
    found = checks.latent_noise(*pair, draws=4)
    assert found.status == "warn"
    needed = int(found.advice.split("about ")[1].split()[0])
    assert 34 <= needed <= 38  # 4 * 9 for a share of a half


def test_draws_shared_by_all_units_fail(rng):
    signal = rng.normal(size=(400, 1))
    own = [signal + 0.3 * rng.normal(size=(400, 1)) for _ in range(2)]
    shared = [signal + 0.3 * (1 + k) for k in range(2)]
    assert checks.latent_noise(*own).status == "pass"
    found = checks.latent_noise(*shared)
    assert found.status == "fail"
    assert found.name == "shared draws"
    with pytest.raises(DataError, match="same units"):
        checks.latent_noise(signal, signal[:5])


def test_plug_in_is_the_sandwich_of_the_sum_of_moments():
    rows = np.random.default_rng(2).normal(size=(40, 2))
    slope = np.array([[2.0, 0.3], [0.0, 1.0]])
    whole = Moments(40.0, rows.mean(axis=0), rows.T @ rows / 40, slope)
    half = [
        Moments(20.0, part.mean(axis=0), part.T @ part / 20, slope)
        for part in (rows[:20], rows[20:])
    ]
    inverse = np.linalg.inv(slope)
    direct = inverse @ whole.meat @ inverse.T / 40
    np.testing.assert_allclose(checks.plug_in(half[0] + half[1]), direct, rtol=1e-12)


def test_several_passes_over_the_data_are_named():
    assert checks.sgd_convergence(0.05).status == "pass"
    again = checks.sgd_convergence(0.05, passes=3)
    assert again.status == "warn"
    assert "one pass" in again.advice
    assert checks.sgd_convergence(2.0).status == "fail"


def test_rate_curve_of_a_quarter_root(rng):
    u = rng.normal(size=2000)
    equation = ee.equation(
        lambda t, d: (d["y"] - t[0] * np.abs(t[0]))[:, None],
        {"y": u - u.mean()},
        [0.5],
        jacobian=lambda t, _: np.array([[-2 * abs(t[0])]]),
    )
    curve = checks.subsample_rate(equation, rng, start=[0.5], draws=80)
    assert abs(curve.slope + 0.25) < 4 * curve.error
    assert checks.rate_finding(curve).status == "warn"
    assert curve.n_failed == 0
    with pytest.raises(ValueError, match="draws"):
        checks.subsample_rate(equation, rng, start=[0.5], draws=5)
    short = ee.estimate(ee.mean(u[:12]))
    assert checks.rate_check(short, rng).status == "not applicable"


def test_half_samples_of_one_contrast(rng):
    fit = ee.estimate(ee.ols("y ~ x + z", table(200)))
    found = checks.half_sample_stability(fit, rng, contrasts=[[0.0, 1.0, -1.0]])
    assert found.dof == 1


def test_findings_print_as_text_markdown_and_html(rng):
    fit = ee.estimate(ee.ols("y ~ x", table(60)))
    found = ee.diagnose(fit, budget=0.5)
    text, page = str(found), found.to_html()
    assert text.splitlines()[0].split() == [
        *("status", "check", "statistic", "threshold", "p", "meaning")
    ]
    assert len(found.to_markdown().splitlines()) >= len(found) + 2
    assert page.count("<tr>") == len(found) + 1
    order = [line.split()[0] for line in text.splitlines()[1 : len(found) + 1]]
    rank = {"fail": 0, "warn": 1, "pass": 2, "not": 3}
    assert order == sorted(order, key=rank.__getitem__)
    assert isinstance(found.to_frame(), pd.DataFrame)


def test_html_escapes_what_users_name():
    data = table(60).rename(columns={"x": "<b>"})
    fit = ee.estimate(ee.ols("y ~ Q('<b>')", data))
    page = ee.diagnose(fit, budget=1.0).to_html()
    assert "<b>" not in page
    assert "&lt;b&gt;" in page


def test_pictures_show_what_was_found(rng):
    fit = ee.estimate(ee.glm("b ~ x", table(200), family="binomial"))
    found = ee.diagnose(fit, budget=20.0)
    figure = found.plot()
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert titles[0].startswith("Influence on")
    assert titles[2:] == ["Path of the solver", "Rank 2 of 2"]
    cut = checks.plot_spectrum(
        ee.asymptotics.rank_report([[1.0, 1.0], [1.0, 1.0]])
    ).get_title(loc="left")
    assert cut == "Rank 1 of 2"
    bare = checks.Findings((), 0)
    with pytest.raises(ValueError, match="no fit"):
        bare.plot()


def test_diagnose_judges_what_is_reported_and_latent_draws(rng):
    y = rng.normal(size=150)
    fit = ee.estimate(ee.mean(y))

    def latent(r):
        return (y - fit.theta[0] + r.normal(size=150))[:, None]

    found = ee.diagnose(
        fit,
        budget=60.0,
        latent=latent,
        simulate=lambda theta, r: r.normal(size=(400, 1)),
    )
    assert found["latent noise"].status == "warn"
    assert found["unbiasedness"].status == "pass"


def instruments(rng, n=300):
    """One effect, three instruments, unequal variances."""
    z = rng.normal(size=(n, 3))
    u = rng.normal(size=n)
    x = z @ [1.0, 0.8, 0.6] + u + rng.normal(size=n)
    y = 0.5 * x + u + rng.normal(size=n) * (1 + z[:, 0] ** 2) / 2
    return {"y": y, "x": x, "z": z}


def moments_of(theta, d):
    return d["z"] * (d["y"] - d["x"] * theta[0])[:, None]


def combined(table, weights):
    return ee.equation(lambda t, d: moments_of(t, d) @ weights, table, [0.0])


def test_j_at_two_step_gmm_against_statsmodels(rng):
    from statsmodels.sandbox.regression.gmm import IVGMM

    n, table = 300, instruments(rng)
    one = np.ones(n)
    X, Z = np.column_stack([one, table["x"]]), np.column_stack([one, table["z"]])
    # their optimiser is told to stop where rounding does
    oracle = IVGMM(table["y"], X, Z).fit(
        [0.0, 0.0],
        maxiter=2,
        inv_weights=Z.T @ Z / n,
        wargs={"centered": False},
        optim_args={"disp": 0, "gtol": 1e-11},
    )

    def every_row(t, d):
        return Z * (d["y"] - X @ t)[:, None]

    def fitted(weights):
        return ee.estimate(
            ee.equation(lambda t, d: every_row(t, d) @ weights, table, [0.0, 0.0])
        )

    every = ee.equation(every_row, table, [0.0, 0.0])
    first = fitted(np.linalg.solve(Z.T @ Z, Z.T @ X)).theta
    psi = every.psi(first)
    meat = psi.T @ psi / n
    fit = fitted(np.linalg.solve(meat, Z.T @ X))
    np.testing.assert_allclose(fit.theta, oracle.params, rtol=1e-5)
    found = checks.over_identification(
        every.psi(fit.theta), every.sensitivity(fit.theta), np.linalg.inv(meat)
    )
    np.testing.assert_allclose(found.value, oracle.jval, rtol=1e-6)
    assert found.dof == 2
    own = ee.diagnose(fit, moments=every, budget=1.0)["over-identification"]
    assert own.status == found.status
    assert abs(own.value / found.value - 1) < 0.1  # the weight of another root


def test_j_through_diagnose_sees_an_instrument_with_an_effect(rng):
    table = instruments(rng, 500)
    table["y"] = table["y"] + 0.6 * table["z"][:, 2]
    z = table["z"]
    fit = ee.estimate(
        combined(table, np.linalg.solve(z.T @ z, z.T @ table["x"])[:, None])
    )
    every = ee.equation(moments_of, table, [0.0])
    found = ee.diagnose(fit, moments=every, budget=1.0)
    assert found["over-identification"].status == "fail"
    with pytest.raises(KeyError, match="no check"):
        ee.diagnose(fit, budget=1.0)["over-identification"]
    with pytest.raises(DataError, match="same"):
        checks.over_identification_check(
            fit, ee.ols("y ~ x + z", {"y": table["y"], "x": table["x"], "z": z[:, 0]})
        )


def test_j_of_clustered_rows_is_that_of_their_sums(rng):
    table = instruments(rng)
    label = np.arange(300) // 3
    z = table["z"]
    fit = ee.estimate(
        combined(table, np.linalg.solve(z.T @ z, z.T @ table["x"])[:, None]),
        ee.Clustered(label),
    )
    rows = ee.equation(moments_of, table, [0.0])
    refused = checks.over_identification_check(fit, rows)
    assert refused.status == "not applicable"
    assert "units=" in refused.meaning
    sums = ee.equation(moments_of, table, [0.0], units=label)
    found = checks.over_identification_check(fit, sums)
    psi = moments_of(fit.theta, table)
    total = psi.reshape(100, 3, 3).sum(axis=1)
    weight = np.linalg.inv(total.T @ total)
    g, a = psi.sum(axis=0), z.T @ table["x"]
    best = g - a * (a @ weight @ g) / (a @ weight @ a)
    np.testing.assert_allclose(found.value, best @ weight @ best, rtol=1e-8)


def test_j_counts_a_parameter_that_is_not_identified_as_none(rng):
    """By differences A has an error of 1e-10: its third singular value is not zero."""
    x = rng.normal(1.0, 1.0, size=(200, 4))

    def psi(t, d):
        shared = np.exp(0.7 * t[1] + 0.3 * t[2])
        return d["x"] - np.array([t[0], t[0], shared, shared])

    equation = ee.equation(psi, {"x": x}, [1.0, 0.1, 0.1])
    found = checks.over_identification_at(equation, [1.0, 0.03, -0.07])
    assert found.dof == 2
    error = np.zeros((4, 3))
    error[2:, 1] = 1e-11
    slope = equation.sensitivity(np.array([1.0, 0.03, -0.07])) + error
    rows = equation.psi(np.array([1.0, 0.03, -0.07]))
    assert checks.over_identification(rows, slope, derivative_error=1e-10).dof == 2
