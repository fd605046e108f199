"""Claim: each check of a fit has its size under the null and power against a fault.

Rows are those of the table in docs/theory/diagnostics.md. ``theory`` is the nominal
level, an exact value, or the figure of a long run made for this design with another
program; agreement means within four Monte Carlo standard errors of the difference.
"""

import argparse
import sys

import numpy as np
from scipy import special, stats

import eestim as ee
from eestim import diagnostics as checks

_REJECTED = ("warn", "fail")


class Table:
    """Rows of simulation against theory, printed as they come."""

    def __init__(self):
        self.failures = 0
        print(f"row   {'quantity':<44} simulation (error)  theory")

    def add(self, row, quantity, value, error, theory, slack=0.0, own_error=0.0):
        """Add an estimate that must agree with the theory."""
        bound = 4 * np.hypot(error, own_error) + slack
        self._show(
            row, quantity, value, error, f"{theory:.4g}", abs(value - theory) <= bound
        )

    def above(self, row, quantity, value, error, least):
        """Add an estimate that must be at least some number."""
        self._show(
            row, quantity, value, error, f">= {least:.4g}", value + 4 * error >= least
        )

    def below(self, row, quantity, value, error, most):
        """Add an estimate that must be at most some number."""
        self._show(
            row, quantity, value, error, f"<= {most:.4g}", value - 4 * error <= most
        )

    def _show(self, row, quantity, value, error, theory, is_good):
        self.failures += not is_good
        verdict = "ok" if is_good else "FAIL"
        print(
            f"{row:<5} {quantity:<44} {value:9.4g} ({error:.2g})  {theory:>9}",
            verdict,
            flush=True,
        )


def share(findings):
    """Return the share that warned or failed, with its Monte Carlo error."""
    hits = [f.status in _REJECTED for f in findings]
    rate = float(np.mean(hits))
    return rate, float(np.sqrt(max(rate * (1 - rate), 0.5 / len(hits)) / len(hits)))


def streams(seed, count):
    return [np.random.default_rng([seed, k]) for k in range(count)]


# ------------------------------------------------------------------ 3.1 unbiasedness


def brier_scores(rng, n, is_shared):
    """Return Brier scores of a softmax with a latent shift, 5 tokens, 3 features.

    Draws of the residual and of its derivative are independent, or one and the same.
    """
    theta = np.random.default_rng(5).normal(size=(5, 3)) / 2
    x = np.column_stack([np.ones(n), rng.normal(size=(n, 2))])

    def probabilities():
        return special.softmax(x @ theta.T + 1.5 * rng.normal(size=(n, 5)), axis=1)

    y = (probabilities().cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    first = probabilities()
    second = first if is_shared else probabilities()
    residual = np.eye(5)[y] - first
    inner = (residual * second).sum(axis=1, keepdims=True)
    return (second * (residual - inner))[:, :, None] * x[:, None, :]


def check_unbiasedness(table, reps):
    found = [
        checks.unbiasedness(brier_scores(r, 5000, False).reshape(5000, -1))
        for r in streams(31, reps)
    ]
    table.add("3.1", "two draws: rejections at 5%", *share(found), 0.05)
    table.add("3.1", "rank of 15 softmax contributions", found[0].dof, 0, 12)
    p = [f.p for f in found]
    table.above(
        "3.1",
        "p values uniform: p of Kolmogorov-Smirnov",
        stats.kstest(p, "uniform").pvalue,
        0,
        1e-3,
    )
    wrong = [
        checks.unbiasedness(brier_scores(r, 200_000, True).reshape(200_000, -1))
        for r in streams(32, 3)
    ]
    table.above(
        "3.1",
        "one draw for both: smallest statistic",
        min(f.value for f in wrong),
        0,
        500,
    )


# ------------------------------------------------------ 3.2 residual, 3.3 derivative


def check_root(table, reps):
    gaps, missed = [], []
    for r in streams(33, reps):
        y = r.normal(size=100)
        off = 0.05 * y.std() / 10
        fit = ee.estimate(ee.mean(y), root=[y.mean() + off])
        gaps.append(checks.root_residual(fit).value)
        good = ee.estimate(logistic(r, 200))
        wrong = ee.estimate(Scaled(good.equation, 1 + 1e-3), root=good.theta)
        missed.append(
            (checks.derivative_check(good, r), checks.derivative_check(wrong, r))
        )
    table.add(
        "3.2",
        "residual, 0.05 standard errors off the root",
        np.mean(gaps),
        np.std(gaps) / reps**0.5,
        0.05,
        1e-4,
    )
    table.add("3.3", "derivative: false alarms", *share([a for a, _ in missed]), 0.0)
    table.add(
        "3.3", "derivative: A too large by 0.1%", *share([b for _, b in missed]), 1.0
    )


class Scaled:
    """An equation whose A is multiplied by a factor."""

    def __init__(self, inner, factor):
        self.inner, self.factor = inner, factor
        self.names, self.n_units, self.psi = inner.names, inner.n_units, inner.psi

    def sensitivity(self, theta):
        """Return A with the fault."""
        return self.factor * self.inner.sensitivity(theta)


def logistic(rng, n):
    x = rng.normal(size=n)
    y = (rng.random(n) < special.expit(x)).astype(float)
    return ee.glm(y, np.column_stack([np.ones(n), x]), family="binomial")


# --------------------------------------------- 3.4 information, 3.8 variance ratio


def poisson(rng, n, dispersion=0.0):
    x = rng.normal(size=n)
    mu = np.exp(0.5 + 0.5 * x)
    if dispersion:
        mu = mu * rng.gamma(1 / dispersion, dispersion, n)
    y = rng.poisson(mu).astype(float)
    return ee.estimate(ee.glm(y, np.column_stack([np.ones(n), x]), family="poisson"))


def outer_product_rejects(fit):
    """Return whether the n R^2 form rejects, which the package does not offer."""
    X, y = fit.equation.design, fit.equation.response
    mu = np.exp(X @ fit.theta)
    x = X[:, 1]
    d = np.column_stack([np.ones_like(x), x, x**2]) * ((y - mu) ** 2 - mu)[:, None]
    both = np.column_stack([d, X * (y - mu)[:, None]])
    ones = np.ones(len(y))
    left = ones - both @ np.linalg.lstsq(both, ones, rcond=None)[0]
    return len(y) - left @ left > stats.chi2.isf(0.05, 3)


def check_information(table, reps, boots):
    for n, efficient, outer in (
        (50, 0.045, 0.210),
        (200, 0.044, 0.147),
        (1000, 0.042, 0.083),
    ):
        fits = [poisson(r, n) for r in streams(34 + n, reps)]
        rate, error = share([checks.information_matrix_test(f) for f in fits])
        table.add(
            "3.4",
            f"efficient form: size, n = {n}",
            rate,
            error,
            efficient,
            own_error=0.0046,
        )
        raw = np.mean([outer_product_rejects(f) for f in fits])
        table.add(
            "3.4",
            f"outer-product form: size, n = {n}",
            raw,
            (raw * (1 - raw) / reps) ** 0.5,
            outer,
            own_error=0.009,
        )
    fits = [poisson(r, 200, 0.25) for r in streams(35, reps)]
    table.add(
        "3.4",
        "efficient form: power, NB 1/4, n = 200",
        *share([checks.information_matrix_test(f) for f in fits]),
        0.932,
        own_error=0.006,
    )
    fits = [poisson(r, 50) for r in streams(36, boots)]
    rate, error = share(
        [
            checks.information_ratio_test(f, np.random.default_rng(k))
            for k, f in enumerate(fits)
        ]
    )
    table.add("3.4", "information ratio, bootstrap: size, n = 50", rate, error, 0.05)
    fits = [poisson(r, 200, 0.25) for r in streams(37, max(boots // 4, 10))]
    rate, error = share(
        [
            checks.information_ratio_test(f, np.random.default_rng(k))
            for k, f in enumerate(fits)
        ]
    )
    table.above("3.4", "information ratio: power, NB 1/4, n = 200", rate, error, 0.7)


def check_variance_ratio(table, reps):
    for n in (100, 400):
        rate, error = share(
            [checks.variance_ratio(poisson(r, n)) for r in streams(38 + n, reps)]
        )
        table.below("3.8", f"variance ratio: size, n = {n}", rate, error, 0.05)
    rate, error = share(
        [checks.variance_ratio(poisson(r, 400, 0.5)) for r in streams(39, reps // 4)]
    )
    table.above("3.8", "variance ratio: power, NB 1/2, n = 400", rate, error, 0.8)


# ------------------------------------------------------- 3.5 rate, 3.6 half samples


def check_rate(table, reps, draws):
    n, sizes = 4000, (50, 100, 200, 400)
    cases = {
        "regular (mean)": (lambda y: ee.mean(y), "normal", -0.5),
        "quarter root, psi = y - t|t|": (quarter, "normal", -0.25),
        "Cauchy mean": (lambda y: ee.mean(y), "standard_cauchy", 0.0),
    }
    for name, (build, law, slope) in cases.items():
        curves = [
            checks.subsample_rate(
                build(getattr(r, law)(size=n)),
                r,
                h=lambda t: t[0],
                sizes=sizes,
                draws=draws,
                start=[0.5],
            )
            for r in streams(40, reps)
        ]
        slopes = np.array([c.slope for c in curves])
        error = slopes.std(ddof=1) / reps**0.5
        table.add("3.5", f"slope: {name}", slopes.mean(), error, slope, 0.02)
        rate, rate_error = share([checks.rate_finding(c) for c in curves])
        if slope != -0.5:
            table.above("3.5", "  warned", rate, rate_error, 0.95)
            continue
        table.below("3.5", "  warned (test at 5%)", rate, rate_error, 0.05)
        if reps >= 20:  # a few slopes have no standard deviation
            told = np.mean([c.error for c in curves])
            table.add(
                "3.5",
                "  jackknife error over sd of slopes",
                told / slopes.std(ddof=1),
                0.71 / reps**0.5,
                1.0,
                0.15,
            )


def quarter(y):
    return ee.equation(
        lambda t, d: (d["y"] - t[0] * np.abs(t[0]))[:, None],
        {"y": y - y.mean()},
        [0.5],
        jacobian=lambda t, _: np.array([[-2 * abs(t[0])]]),
    )


def check_halves(table, reps):
    found = [
        checks.half_sample_stability(ee.estimate(logistic(r, 400)), r)
        for r in streams(41, reps)
    ]
    table.add(
        "3.6",
        "halves: size, logistic, n = 400",
        *share(found),
        0.0507,
        own_error=0.0057,
    )
    found = [
        checks.half_sample_stability(
            ee.estimate(Halved(ee.mean(r.normal(size=200)))), r
        )
        for r in streams(42, reps // 3)
    ]
    table.add(
        "3.6",
        "halves: power, errors halved",
        *share(found),
        2 * stats.norm.sf(1.96 / 2),
        0.01,
    )


class Halved:
    """The equation of a mean whose variance is read with twice its A.

    The solver is given the right A: only standard errors are halved.
    """

    def __init__(self, inner):
        self.inner, self.names, self.n_units = inner, inner.names, inner.n_units
        self.start, self.psi = inner.start, inner.psi
        self.newton_terms = inner.newton_terms

    def sensitivity(self, theta):
        """Return A with the fault."""
        return 2.0 * self.inner.sensitivity(theta)

    def reweighted(self, weights):
        """Return the faulty equation with its units weighted."""
        return Halved(self.inner.reweighted(weights))


# ------------------------------------------------------------ 3.7 over-identification


def instruments(rng, n, direct):
    z = rng.normal(size=(n, 4))
    v = rng.normal(size=n)
    u = (0.5 * v + rng.normal(size=n)) * np.sqrt(0.5 + 0.5 * z[:, 0] ** 2)
    x = 0.5 * z.sum(axis=1) + v
    y = x + u + direct * z[:, 1]
    return z, x, y


def iv_finding(rng, n, direct):
    z, x, y = instruments(rng, n, direct)
    fitted = z @ np.linalg.lstsq(z, x, rcond=None)[0]
    first = fitted @ y / (fitted @ x)
    equation = ee.equation(
        lambda t, d: d["z"] * (d["y"] - t[0] * d["x"])[:, None],
        {"z": z, "x": x, "y": y},
        [first],
        jacobian=lambda _, d: -(d["z"].T @ d["x"] / len(d["x"]))[:, None],
    )
    return checks.over_identification_at(equation, [first])


def check_over_identification(table, reps):
    found = [iv_finding(r, 200, 0.0) for r in streams(43, reps)]
    table.add(
        "3.7", "J: degrees of freedom, 4 instruments, 1 effect", found[0].dof, 0, 3
    )
    table.add("3.7", "J: size, heteroskedastic, n = 200", *share(found), 0.05, 0.01)
    found = [iv_finding(r, 2000, 0.0) for r in streams(44, reps)]
    table.add("3.7", "J: size, n = 2000", *share(found), 0.05)
    found = [iv_finding(r, 200, 0.25) for r in streams(45, reps // 2)]
    table.above("3.7", "J: power, direct effect 0.25, n = 200", *share(found), 0.5)
    redundant = [
        checks.over_identification(
            np.column_stack([m, m[:, 0] - m[:, 1]]),
            np.ones((4, 1)) * [[1], [1], [1], [0]],
        )
        for m in (r.normal(size=(300, 3)) for r in streams(46, reps))
    ]
    table.add("3.7", "J: a redundant equation is not counted", redundant[0].dof, 0, 2)
    table.add("3.7", "J: size with a redundant equation", *share(redundant), 0.05)


# --------------------------------- 3.9 multiplicity, 3.10 influence, 3.13 and 3.14


def check_roots_and_units(table, reps):
    found, single = [], []
    for r in streams(47, reps):
        y = r.normal(0, 0.05, 50)
        two = ee.equation(
            lambda t, d: (t[0] ** 2 - 1 + d["y"])[:, None], {"y": y}, [0.8]
        )
        found.append(checks.root_multiplicity(ee.estimate(two), r, spread=40.0))
        single.append(checks.root_multiplicity(ee.estimate(logistic(r, 100)), r))
    # starts are normal around 1 with sd 400 se, and Newton keeps to their side of 0
    told = 1 - stats.norm.cdf(1 / (400 * 0.025 / 50**0.5)) ** 10
    table.add("3.9", "two roots, 10 starts: seen", *share(found), told)
    table.add("3.9", "one root: false alarms", *share(single), 0.0)
    normal = [
        checks.influence_check(ee.estimate(ee.mean(r.normal(size=200))))
        for r in streams(48, reps)
    ]
    table.add("3.10", "influence, normal, n = 200: false alarms", *share(normal), 0.0)
    heavy = [
        checks.influence_check(ee.estimate(ee.mean(r.standard_cauchy(200))))
        for r in streams(49, reps)
    ]
    table.above("3.10", "influence, Cauchy, n = 200: warned", *share(heavy), 0.95)


def check_identification(table, reps):
    worst, seen, regular = 0.0, [], []
    for r in streams(50, reps):
        y = r.normal(1.0, 1.0, 200)
        product = ee.equation(product_psi, {"y": y}, [1.0, 1.0])
        a = r.uniform(0.5, 2.0)
        theta = np.array([a, y.mean() / a])
        regular.append(checks.range_check(product, theta))
        worst = max(worst, checks.estimability_check(product, theta, theta[::-1]).value)
        seen.append(checks.estimability_check(product, theta, [1.0, 0.0]))
    table.below("3.13", "estimability residual of ab in y = ab + e", worst, 0, 1e-8)
    table.add("3.13", "a alone refused", *share(seen), 1.0)
    table.add("3.13", "range of A, likelihood: false alarms", *share(regular), 0.0)
    outside, exists = [], []
    for r in streams(51, reps):
        y = r.normal(size=(2, 200))
        exists.append(y[1].mean() >= 0)
        quadratic = ee.equation(
            lambda t, d: np.column_stack([d["a"] - t[0], d["b"] - t[1] ** 2]),
            {"a": y[0], "b": y[1]},
            [0.0, 1.0],
            jacobian=lambda t, _: np.diag([-1.0, -2 * t[1]]),
        )
        outside.append(checks.range_check(quadratic, [y[0].mean(), 0.0]))
    table.add(
        "3.13", "range of A, psi = (y1 - a, y2 - b^2): refused", *share(outside), 1.0
    )
    table.add("3.13", "  where a root exists in", np.mean(exists), 0.5 / reps**0.5, 0.5)


def product_psi(t, d):
    error = d["y"] - t[0] * t[1]
    return np.column_stack([t[1] * error, t[0] * error])


def check_separation(table, reps):
    n, gamma = 400, 2.0
    edge = ee.asymptotics.frontier_aspect(gamma)
    for part, wanted in ((0.15, "pass"), (1.5, "fail")):
        p = round(part * edge * n)
        found = []
        for r in streams(52, reps):
            X = r.normal(size=(n, p))
            y = (r.random(n) < special.expit(X[:, 0] * gamma)).astype(float)
            found.append(separation_status(ee.glm(y, X, family="binomial")))
        rate = np.mean([s == wanted for s in found])
        table.add(
            "3.14",
            f"p/n at {part:.2f} of the frontier: {wanted}",
            rate,
            (0.5 / reps) ** 0.5 / reps**0.5,
            1.0,
        )


def separation_status(equation):
    try:
        return checks.separation_check(ee.estimate(equation)).status
    except (ee.errors.ConvergenceError, ee.errors.InterpolationError):
        return "fail"


SECTIONS = {
    "3.1": lambda table, size: check_unbiasedness(table, size(1000, 60)),
    "3.2": lambda table, size: check_root(table, size(200, 20)),
    "3.4": lambda table, size: check_information(table, size(2000, 100), size(400, 6)),
    "3.5": lambda table, size: check_rate(table, size(100, 3), size(120, 40)),
    "3.6": lambda table, size: check_halves(table, size(1500, 60)),
    "3.7": lambda table, size: check_over_identification(table, size(2000, 150)),
    "3.8": lambda table, size: check_variance_ratio(table, size(2000, 80)),
    "3.9": lambda table, size: check_roots_and_units(table, size(200, 10)),
    "3.13": lambda table, size: check_identification(table, size(400, 20)),
    "3.14": lambda table, size: check_separation(table, size(100, 2)),
}


def run(sections, claim):
    """Run the sections asked for and return whether a claim failed."""
    parser = argparse.ArgumentParser(description=claim)
    parser.add_argument("--quick", action="store_true", help="a few seconds")
    parser.add_argument("--rows", nargs="*", choices=list(sections), help="some only")
    parser.add_argument("--fraction", type=float, default=1.0, help="of the full size")
    given = parser.parse_args()

    def size(full, quick):
        return quick if given.quick else max(quick, round(given.fraction * full))

    table = Table()
    for row in given.rows or sections:
        sections[row](table, size)
    print("all claims hold" if not table.failures else f"{table.failures} claims FAIL")
    return bool(table.failures)


if __name__ == "__main__":
    sys.exit(run(SECTIONS, __doc__.splitlines()[0]))
