r"""No perturbation as a hypothesis: likelihood ratios and score tests at C = 0.

Claim: for one scalar variance s^2 along a known direction the likelihood ratio of
s = 0 is zero for about half of the samples, chi-square(1) is far too strict, the
half-half mixture has its level, and so has the one-sided score test; away from zero
(s = .8) the interval for s^2 covers. With two isotropic directions the ratio is zero
only where a 2 by 2 matrix of scores is negative semidefinite, probability
(1 - 2^(-1/2)) / 2 = .146, and the half-half mixture does not hold.

Random logits: 400 prefixes of 5 binary tokens, logit = b + s Z with one Z a prefix,
b = .3 estimated; for two directions logit = x'CZ with x ~ N(0, I_2). The figures of
another simulation of this design are compared within 4 combined standard errors.
"""

import argparse
import sys

import numpy as np
from scipy import special, stats

import eestim as ee
from eestim.asymptotics import (
    boundary_p_value,
    efficient_score,
    one_sided_score_test,
    simulated_null,
)

PREFIXES, TOKENS, INTERCEPT = 400, 5, 0.3
COUNTS = np.arange(TOKENS + 1)
Z, WEIGHT = np.polynomial.hermite_e.hermegauss(40)
WEIGHT = WEIGHT / WEIGHT.sum()
OTHER = {  # quantity: (figure, its standard error) of an independent simulation
    "P(LR = 0), one direction": (0.490, 0.0250),
    "size, chi-square(1)": (0.0200, 0.0060),
    "size, half-half mixture": (0.0520, 0.0100),
    "size, one-sided score": (0.0347, 0.0047),
    "coverage of s^2 at s = .8": (0.9325, 0.0130),
    "P(LR = 0), two isotropic": (0.147, 0.0100),
}


def law(b, tau):
    """Return P(count) and its derivatives in b and tau, (R, 3, 6).

    The derivative in tau of E f(b + tau^(1/2) Z) is half of E f'' (heat equation).
    """
    eta = b[:, None] + np.sqrt(tau)[:, None] * Z
    mean = special.expit(eta)[:, None, :]
    y = COUNTS[:, None]
    pmf = special.comb(TOKENS, y) * mean**y * (1 - mean) ** (TOKENS - y)
    first = y - TOKENS * mean
    second = first**2 - TOKENS * mean * (1 - mean)
    return np.stack(
        [pmf @ WEIGHT, (pmf * first) @ WEIGHT, (pmf * second) @ WEIGHT / 2], 1
    )


def likelihood(table, b, tau):
    return np.sum(table * np.log(law(b, tau)[:, 0]), axis=1)


def maximise(table):
    """Return (b, tau) with tau >= 0 by projected scoring, all samples at once."""
    share = table @ COUNTS / table.sum(1) / TOKENS
    b, tau = special.logit(share), np.zeros(len(table))
    null = likelihood(table, b, tau)
    tau = tau + 0.1
    value = likelihood(table, b, tau)
    for _ in range(200):
        p, db, dt = law(b, tau).transpose(1, 0, 2)
        n = table.sum(1)
        scores = np.stack([np.sum(table * d / p, 1) for d in (db, dt)], 1)
        info = np.stack(
            [np.sum(d * e / p, 1) for d, e in ((db, db), (db, dt), (dt, dt))]
        )
        det = n * (info[0] * info[2] - info[1] ** 2)
        step_b = (info[2] * scores[:, 0] - info[1] * scores[:, 1]) / det
        step_t = (info[0] * scores[:, 1] - info[1] * scores[:, 0]) / det
        held = (tau == 0) & (step_t < 0)  # on the boundary: b alone
        step_b = np.where(held, scores[:, 0] / (n * info[0]), step_b)
        step_t = np.where(held, 0.0, step_t)
        size = np.ones(len(b))
        for _ in range(30):
            new_b, new_t = b + size * step_b, np.maximum(tau + size * step_t, 0.0)
            new = likelihood(table, new_b, new_t)
            worse = new < value - 1e-12
            if not worse.any():
                break
            size = np.where(worse, size / 2, size)
        moved = np.abs(new_b - b).max() + np.abs(new_t - tau).max()
        b, tau, value = new_b, new_t, new
        if moved < 1e-10:
            break
    return b, tau, np.maximum(2 * (value - null), 0.0)


def draw_tables(s, reps, rng):
    """Return how many prefixes of each sample have each count, (R, 6)."""
    p = special.expit(INTERCEPT + s * rng.standard_normal((reps, PREFIXES)))
    y = rng.binomial(TOKENS, p)
    return np.stack([(y == k).sum(1) for k in COUNTS], 1).astype(float)


def score_p_value(table):
    """Return the p-value of the package's one-sided test of one sample."""
    y = np.repeat(COUNTS, table.astype(int)).astype(float)
    mean = y.mean() / TOKENS
    gap, variance = y - TOKENS * mean, TOKENS * mean * (1 - mean)
    psi_tau = (gap**2 - variance) / 2
    cross = variance * (1 - 2 * mean) / 2  # minus the mean derivative of psi_tau in b
    score = efficient_score(psi_tau, gap[:, None], [cross], [[variance]])
    return one_sided_score_test(score).p_value


def interval(table, b, tau):
    """Return the sandwich interval of tau = s^2 from the package, given the root."""

    def psi(theta, data):
        p, db, dt = law(np.array([theta[0]]), np.array([theta[1]]))[0]
        rows = np.column_stack([db / p, dt / p])
        return rows[data["count"]]

    seen = table > 0
    equation = ee.equation(
        psi,
        {"count": COUNTS[seen], "weight": table[seen].astype(int)},
        [b, tau],
        names=["b", "s2"],
        weights=ee.Frequency("weight"),
    )
    fit = ee.estimate(equation, root=np.array([b, tau]))
    return fit.interval().loc["s2", ["lower", "upper"]].to_numpy()


def two_directions(reps, rng):
    """Return the share of samples whose 2 by 2 score matrix has no positive part."""
    negative = 0
    for _ in range(reps):
        x = rng.standard_normal((PREFIXES, TOKENS, 2))
        residual = rng.integers(0, 2, (PREFIXES, TOKENS)) - 0.5
        sums = np.einsum("it,itj->ij", residual, x)
        score = sums.T @ sums - 0.25 * np.einsum("itj,itk->jk", x, x)
        negative += np.linalg.eigvalsh(score)[-1] <= 0
    return negative / reps


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    reps, tests, covers = (1000, 400, 60) if quick else (10_000, 5000, 1500)
    rng = np.random.default_rng(1987)
    table = draw_tables(0.0, reps, rng)
    ratio = maximise(table)[2]
    ratio[ratio < 1e-8] = 0.0
    mixture = np.array([boundary_p_value(float(r)) for r in ratio]) < 0.05
    score = np.array([score_p_value(t) for t in table[:tests]]) < 0.05
    away = draw_tables(0.8, covers, rng)
    b, tau, _ = maximise(away)
    bounds = np.array([interval(*row) for row in zip(away, b, tau, strict=True)])
    covered = (bounds[:, 0] <= 0.64) & (bounds[:, 1] >= 0.64)
    null = simulated_null(np.diag([1.0, 2.0, 1.0]), 2, rng, rank=2, draws=tests)
    rows = {
        "P(LR = 0), one direction": (0.5, np.mean(ratio == 0), reps),
        "size, chi-square(1)": (0.025, np.mean(ratio > stats.chi2.isf(0.05, 1)), reps),
        "size, half-half mixture": (0.05, mixture.mean(), reps),
        "size, one-sided score": (0.05, score.mean(), tests),
        "coverage of s^2 at s = .8": (0.95, covered.mean(), covers),
        "P(LR = 0), two isotropic": (0.1464, two_directions(reps, rng), reps),
    }
    print(f"{PREFIXES} prefixes of {TOKENS} tokens; {reps} samples")
    print(
        "quantity                       limit  simulation  MC error  other  its error"
    )
    failures = 0
    for name, (limit, value, count) in rows.items():
        error = np.sqrt(max(value * (1 - value), 0.01) / count)
        other, its_error = OTHER[name]
        is_good = abs(value - other) <= 4 * np.hypot(error, its_error)
        is_good &= abs(value - limit) <= 4 * error + 0.02  # n = 400 prefixes
        failures += not is_good
        print(
            f"{name:29} {limit:6.4f} {value:11.4f} {error:9.4f} {other:6.4f} "
            f"{its_error:8.4f} {'ok' if is_good else 'FAIL'}"
        )
    zero, law_error = null.probability_zero, np.sqrt(0.146 * 0.854 / tests)
    print(f"simulated_null, two isotropic directions: P(LR = 0) {zero:.4f}")
    failures += abs(zero - 0.1464) > 4 * law_error
    wrong = np.mean(null.draws > stats.chi2.isf(0.10, 1))
    print(f"negative control: the half-half mixture there has size {wrong:.4f}")
    failures += wrong < 0.07
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
