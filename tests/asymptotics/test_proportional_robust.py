"""Robust regression with p of the order of n: table 2.3 and property 45."""

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, optimize, special, stats
from tolerances import EXACT, REFERENCE

from eestim.asymptotics import (
    ErrorDensity,
    HuberLoss,
    LeastAbsolute,
    LeastSquares,
    ProportionalRobust,
    proportional_robust,
)

KAPPAS = (0.1, 0.2, 0.3, 0.5)
TABLE = {
    ("normal", "ols"): (0.11111, 0.25, 0.42857, 1.0),
    ("normal", "lad"): (0.17284, 0.38495, 0.65276, 1.48502),
    ("normal", "huber"): (0.11636, 0.26037, 0.44370, 1.02164),
    ("laplace", "ols"): (0.22222, 0.5, 0.85714, 2.0),
    ("laplace", "lad"): (0.17261, 0.45193, 0.86109, 2.32789),
    ("laplace", "huber"): (0.16730, 0.39780, 0.71870, 1.83721),
}


@pytest.mark.parametrize(("errors", "loss"), TABLE)
def test_system_matches_table_2_3(errors, loss):
    found = [proportional_robust(kappa, loss, errors) for kappa in KAPPAS]
    np.testing.assert_allclose(
        [f.r2 for f in found], TABLE[errors, loss], rtol=0, atol=6e-6
    )
    assert max(f.residual for f in found) < 1e-12


@settings(max_examples=30, deadline=None)
@given(kappa=st.floats(0.001, 0.99))
def test_property_45_least_squares_is_closed_form(kappa):
    assert proportional_robust(kappa, "ols", "normal").r2 == pytest.approx(
        kappa / (1 - kappa), rel=EXACT
    )
    assert proportional_robust(kappa, LeastSquares(), "laplace").r2 == pytest.approx(
        2 * kappa / (1 - kappa), rel=EXACT
    )


@settings(max_examples=10, deadline=None)
@given(kappa=st.floats(0.05, 0.8))
def test_property_45_huber_with_a_large_threshold_is_least_squares(kappa):
    """The general solver, at a threshold never reached, against the closed form."""
    found = proportional_robust(kappa, HuberLoss(1e4), "normal")
    assert found.r2 == pytest.approx(kappa / (1 - kappa), rel=1e-10)


def test_huber_with_a_small_threshold_is_least_absolute():
    tiny = proportional_robust(0.3, HuberLoss(1e-7), "laplace")
    lad = proportional_robust(0.3, LeastAbsolute(), "laplace")
    assert tiny.r2 == pytest.approx(lad.r2, rel=1e-5)


@pytest.mark.parametrize("loss", ["lad", "huber"])
@pytest.mark.parametrize("errors", ["normal", "laplace"])
def test_solution_satisfies_the_equations_by_adaptive_quadrature(loss, errors):
    kappa = 0.3
    found = proportional_robust(kappa, loss, errors)
    r, c = found.r2**0.5, found.c
    slope, t = (1.0, c) if loss == "lad" else (c / (1 + c), 1.345 * (1 + c))
    if errors == "normal":
        density = stats.norm(scale=np.sqrt(1 + r * r)).pdf
    else:  # Laplace plus normal noise, closed form by scaled tail functions

        def density(z):
            tails = special.log_ndtr(z / r - r) - z, special.log_ndtr(-z / r - r) + z
            return 0.5 * np.exp(r * r / 2) * (np.exp(tails[0]) + np.exp(tails[1]))

    inside = integrate.quad(density, -t, t, epsabs=1e-13)[0]
    square = integrate.quad(lambda z: z * z * density(z), -t, t, epsabs=1e-13)[0]
    assert slope * inside == pytest.approx(kappa, rel=REFERENCE)
    total = slope**2 * (square + t * t * (1 - inside))
    assert total == pytest.approx(kappa * r * r, rel=REFERENCE)


def test_crossover_of_least_absolute_and_least_squares_for_laplace_errors():
    """El Karoui et al.: least squares is preferable once p/n is about .3."""
    crossing = optimize.brentq(
        lambda k: proportional_robust(k, "lad", "laplace").r2 - 2 * k / (1 - k),
        0.2,
        0.4,
    )
    assert crossing == pytest.approx(0.2950, abs=6e-5)


@pytest.mark.parametrize(
    ("loss", "errors", "efficiency"),
    [
        ("lad", "normal", np.pi / 2),
        ("lad", "laplace", 1.0),
        ("huber", "normal", None),
    ],
)
def test_small_kappa_tends_to_the_classical_variance(loss, errors, efficiency):
    """r^2 / kappa tends to E psi^2 / (E psi')^2."""
    if efficiency is None:
        k = 1.345
        inside = 2 * stats.norm.cdf(k) - 1
        square = inside - 2 * k * stats.norm.pdf(k) + 2 * k * k * stats.norm.sf(k)
        efficiency = square / inside**2
    for kappa in (1e-3, 1e-4):
        found = proportional_robust(kappa, loss, errors)
        assert found.r2 / kappa == pytest.approx(efficiency, rel=3 * kappa**0.5)
    assert abs(found.r2 / kappa / efficiency - 1) < 0.02


def test_user_density_agrees_with_the_named_one():
    by_name = proportional_robust(0.3, "huber", "normal").r2
    by_density = proportional_robust(0.3, "huber", stats.norm.pdf).r2
    assert by_density == pytest.approx(by_name, rel=1e-10)


def test_user_density_scales_as_the_errors_do():
    """Errors twice as large: least absolute r^2 is four times as large."""
    wide = ErrorDensity(stats.laplace(scale=2.0).pdf, reach=80.0)
    found = proportional_robust(0.2, "lad", wide)
    assert found.r2 == pytest.approx(
        4 * proportional_robust(0.2, "lad", "laplace").r2, rel=1e-9
    )


@settings(max_examples=8, deadline=None)
@given(low=st.floats(0.02, 0.5), more=st.floats(0.05, 0.4))
def test_risk_rises_with_the_aspect_ratio(low, more):
    for loss in ("lad", "huber"):
        small = proportional_robust(low, loss, "normal")
        large = proportional_robust(low + more, loss, "normal")
        assert small.r2 < large.r2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0,), "`kappa`"),
        ((1.0,), "`kappa`"),
        ((0.2, "cauchy"), "`loss`"),
        ((0.2, HuberLoss(-1.0)), "threshold"),
        ((0.2, "lad", "unknown"), "`errors`"),
        ((0.2, "lad", lambda x: np.exp(-np.abs(x))), "integrates to 2"),
        ((0.2, "lad", lambda x: stats.norm.pdf(x - 0.1)), "not symmetric"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        proportional_robust(*arguments)


def test_a_solution_takes_less_than_a_second():
    start = time.perf_counter()
    proportional_robust(0.2, "lad", "laplace")
    assert time.perf_counter() - start < 1.0


def residuals_by_quad(law, kappa, found, slope, t, points):
    """Return both equations for errors of a law of SciPy, adaptively integrated."""
    r = found.r2**0.5
    phi, ndtr = stats.norm.pdf, special.ndtr

    def moments(e):
        a, b = (-t - e) / r, (t - e) / r
        inside = ndtr(b) - ndtr(a)
        square = (e * e + r * r) * inside + 2 * e * r * (phi(a) - phi(b))
        square += r * r * (a * phi(a) - b * phi(b)) + t * t * (1 - inside)
        return np.array([inside, square])

    total = np.zeros(2)
    for low, high in itertools.pairwise(points):
        for j in range(2):
            total[j] += (
                2
                * integrate.quad(
                    lambda e, j=j: law.pdf(e) * moments(e)[j], low, high, epsabs=1e-12
                )[0]
            )
    return slope * total[0] / kappa - 1, slope**2 * total[1] / kappa / r**2 - 1


HEAVY = [0, 0.5, 1, 2, 4, 10, 100, 1e3, 1e5, 1e7, 1e9, 1e12]


@pytest.mark.parametrize(
    ("name", "law", "points"),
    [
        ("t3", stats.t(3), HEAVY),
        ("cauchy", stats.cauchy(), HEAVY),
        ("logistic", stats.logistic(), [0, 1, 2, 5, 10, 40]),
        ("uniform", stats.uniform(-1, 2), [0, 0.5, 1]),
    ],
)
def test_other_laws_satisfy_the_equations_by_adaptive_quadrature(name, law, points):
    for kappa, loss in ((0.01, "huber"), (0.4, "lad")):
        found = proportional_robust(kappa, loss, name)
        c = found.c
        shape = (1.0, c) if loss == "lad" else (c / (1 + c), 1.345 * (1 + c))
        gaps = residuals_by_quad(law, kappa, found, *shape, points)
        assert np.abs(gaps).max() < 1e-9
        assert proportional_robust(kappa, loss, law).r2 == found.r2
    wrong = ProportionalRobust(0.4, 1.01 * found.r2, c, 0.0)  # negative control
    assert np.abs(residuals_by_quad(law, 0.4, wrong, *shape, points)).max() > 1e-4


def test_scaled_laws_scale_the_error():
    """With the errors doubled, and Huber's threshold too, r doubles."""
    one = proportional_robust(0.2, HuberLoss(1.0), stats.t(3))
    two = proportional_robust(0.2, HuberLoss(2.0), stats.t(3, scale=2))
    assert two.r2 == pytest.approx(4 * one.r2, rel=1e-9)
    normal = proportional_robust(0.2, "lad", stats.norm(0, 2))
    assert normal.r2 == pytest.approx(4 * proportional_robust(0.2, "lad").r2, rel=1e-9)


def test_small_kappa_is_the_classical_variance():
    """r^2 / kappa tends to E psi^2 / (E psi')^2: pi / 2 and 1 for least absolute."""
    for errors, limit in (("normal", np.pi / 2), ("laplace", 1.0), ("cauchy", 2.4674)):
        found = proportional_robust(1e-5, "lad", errors)
        assert found.r2 / 1e-5 == pytest.approx(limit, rel=0.02)


def test_least_squares_needs_a_variance():
    assert proportional_robust(0.2, "ols", "t3").r2 == pytest.approx(0.75, rel=1e-12)
    found = proportional_robust(0.2, "ols", "logistic").r2
    assert found == pytest.approx(np.pi**2 / 12, rel=1e-10)
    for heavy in ("cauchy", "t2", stats.cauchy()):
        with pytest.raises(ValueError, match="variance"):
            proportional_robust(0.2, "ols", heavy)
    cut = ErrorDensity(stats.t(3).pdf, reach=1e7)
    with pytest.raises(ValueError, match="variance"):
        proportional_robust(0.2, "ols", cut)
    for bad in ("tx", 3, stats.norm(1, 1), stats.expon()):
        with pytest.raises(ValueError, match="`errors`"):
            proportional_robust(0.2, "huber", bad)
