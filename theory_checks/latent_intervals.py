r"""Coverage of intervals for the scale of a latent, Z averaged out or drawn once.

Claim: in the binary latent model of `latent_reference.py` at n = 2,000, with A in its
expected form, 95% sandwich intervals for b and log s cover within 0.02 of 0.95 where Z
is averaged out. With K draws used once, those for b cover within 0.03 among samples
with a root, those for log s cover at least 0.93 (wide: 0.98 to 1.00), and a few
samples have no root. Standard errors that leave the noise of draws used once out (M_lim
in place of M_1) cover less than 0.85 of log s: the control, which must fail.

"Averaged" solves E_Z psi = 0 by quadrature, the limit of many epochs with fresh draws;
"once" solves the equation with K draws of each unit held fixed, which has the
first-order law of one pass. Samples without a root near the truth are counted, and
given as misses in the second figure of each pair.
"""

import argparse
import sys
import time
from dataclasses import dataclass

import numpy as np
from scipy import optimize

TRUTH = np.array([0.3, 2.0, np.log(0.5)])
X = np.linspace(-2.0, 2.0, 25)
N = 2000
BLOCK = 2  # replications solved together: their arrays stay in cache
Z975 = 1.959963984540054
METHODS = (("Brier", 2), ("Brier", 4), ("Brier", 8), ("centred IWAE", 9))
NOISE = {  # sqrt(n) sd of (b, log s): averaged, once
    ("Brier", 2): ((5.11, 6.01), (13.92, 17.81)),
    ("Brier", 4): ((5.11, 6.01), None),
    ("Brier", 8): ((5.11, 6.01), (7.64, 9.61)),
    ("centred IWAE", 9): ((4.96, 5.82), (6.63, 8.82)),
}


def jets(theta, x, z):
    """Return q, its gradient and Hessian in (a, b, log s).

    theta (r, 3); x and z broadcast to (r, ...). Shapes (r, ...), (3, r, ...), and a
    list of the six entries of the upper triangle.
    """
    a, b, log_s = (theta[:, j].reshape(-1, *[1] * (z.ndim - 1)) for j in range(3))
    sz = np.exp(log_s) * z
    t = np.tanh(4 * (x + sz))
    q = 1 / (1 + np.exp(-(a + b * t)))
    move = 4 * (1 - t * t) * sz  # dt / dlog s
    eta = (np.ones_like(t), t, b * move)
    slope = q * (1 - q)
    bend = slope * (1 - 2 * q)
    first = np.stack([slope * e for e in eta])
    second = [bend * eta[i] * eta[j] for i, j in PAIRS]
    second[4] = second[4] + slope * move  # (b, log s)
    second[5] = second[5] + slope * b * move * (1 - 8 * t * sz)  # (log s, log s)
    return q, first, second


PAIRS = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))


def square(entries):
    """Return (3, 3, ...) from the six entries of the upper triangle."""
    full = np.empty((3, 3, *entries[0].shape))
    for (i, j), value in zip(PAIRS, entries, strict=True):
        full[i, j] = full[j, i] = value
    return full


# ----------------------------------------------------------------- draws used once


def drawn(theta, y, x, z, name):
    """Return psi (3, r, n) and its slope A (r, 3, 3), observed, z (r, n, K)."""
    count = z.shape[-1]
    q, dq, hq = jets(theta, x[..., None], z)
    r = y[..., None] - q
    others = dq.sum(-1, keepdims=True) - dq  # D of the other draws
    bent = [h.sum(-1, keepdims=True) - h for h in hq]
    if name == "Brier":
        weight, tilt = np.broadcast_to(2.0 / (count - 1), q.shape), None
    else:
        mass, m = q.sum(-1, keepdims=True) - q, count - 1
        weight = m / (mass * (m - mass))
        tilt = -(m - 2 * mass) * weight**2 / m  # derivative of the weight in mass
    rw = r * weight
    psi = (rw * others).mean(-1)
    through = products(others * weight, dq) / count
    curved = square([(rw * h).mean(-1).sum(-1) for h in bent]).transpose(2, 0, 1)
    if tilt is not None:
        curved = curved + products(others * (r * tilt), others) / count
    return psi, (through - curved) / y.shape[1]


def products(left, right):
    """Return sums of outer products, (r, 3, 3), of arrays (3, r, ...)."""
    rows = left.shape[1]
    a = left.swapaxes(0, 1).reshape(rows, 3, -1)
    b = right.swapaxes(0, 1).reshape(rows, 3, -1)
    return a @ b.swapaxes(1, 2)


# ----------------------------------------------------------------- Z averaged out


def nodes(count):
    z = np.linspace(-7.0, 7.0, count)
    weight = np.exp(-(z**2) / 2)
    return z, weight / weight.sum()


@dataclass(frozen=True)
class Rule:
    """Quadrature over the latent, and over the time of a Laplace transform."""

    z: np.ndarray
    weight: np.ndarray
    time: np.ndarray
    step: np.ndarray

    @classmethod
    def of(cls, latent, moments):
        """Return a rule of that many nodes in z and in time."""
        v = np.linspace(-16.0, np.log(400.0), moments)
        t = np.exp(v)
        return cls(*nodes(latent), t, t * (v[1] - v[0]))


def averaged(theta, rule, name, count):
    """Return p (r, 25), instrument g (3, r, 25), dp, and the derivative of g.

    E_Z psi is (Y - p(x)) g(x), with g = 2 dp for Brier and
    E[s_G(1) - s_G(0)] for centred IWAE, whose derivative is left out (None).
    """
    z = np.broadcast_to(rule.z, (len(theta), 25, len(rule.z)))
    q, dq, hq = jets(theta, X[None, :, None], z)
    p, dp = q @ rule.weight, dq @ rule.weight
    if name == "Brier":
        return p, 2 * dp, dp, 2 * square([h @ rule.weight for h in hq])
    g = log_mean_slope(q, dq, rule, count - 1) + log_mean_slope(
        1 - q, dq, rule, count - 1
    )
    return p, g, dp, None


def log_mean_slope(q, dq, rule, m):
    r"""Return the gradient of E log of a mean of m draws, up to the sign of dq.

    .. math:: m \int_0^\infty (E e^{-tq})^{m-1} E[e^{-tq} \dot q] \, dt
    """
    kernel = np.exp(-q[..., None] * rule.time)  # (r, 25, z, T)
    ones = np.ones((1, *q.shape))
    rows = np.concatenate([ones, dq]).transpose(1, 2, 0, 3) * rule.weight
    found = rows @ kernel  # (r, 25, 4, T): the transform, and moved along dq
    power = found[:, :, 0] ** (m - 1) * rule.step
    return m * np.einsum("rxt,rxit->irx", power, found[:, :, 1:])


def tabulated(theta, counts, rule, name, count):
    """Return mean psi (r, 3), A expected, and (p, g): E_Z psi by counts (r, 25, 2)."""
    p, g, dp, _ = averaged(theta, rule, name, count)
    total = counts.sum(-1)
    mean = np.einsum("irx,rx->ri", g, counts[..., 1] - p * total) / N
    return mean, np.einsum("irx,jrx,rx->rij", g, dp, total) / N, (p, g)


def averaged_meat(p, g, counts):
    one = np.einsum("irx,jrx,rx->rij", g, g, (1 - p) ** 2 * counts[..., 1])
    zero = np.einsum("irx,jrx,rx->rij", g, g, p**2 * counts[..., 0])
    return (one + zero) / N


def observed_averaged(theta, counts, rule, name, count):
    """Return A of the averaged equation by central differences of its mean."""
    columns = []
    for j in range(3):
        e = 1e-4 * np.eye(3)[j]
        up = tabulated(theta + e, counts, rule, name, count)[0]
        down = tabulated(theta - e, counts, rule, name, count)[0]
        columns.append((down - up) / 2e-4)
    return np.stack(columns, -1)


# ------------------------------------------------------------------------ solving


def newton(values, start, limit=60):
    """Return (roots, solved) of vectorised damped Newton steps.

    `values(theta) -> (mean psi (r, 3), A (r, 3, 3))`; a step is accepted when the next
    Newton correction is shorter.
    """
    theta = start.copy()
    mean, A = values(theta)
    for _ in range(limit):
        step = solve(A, mean)
        size = np.linalg.norm(step, axis=1)
        if (size < 1e-9).all():
            break
        step *= np.minimum(1.0, 0.7 / np.maximum(size, 1e-12))[:, None]
        damping = np.ones(len(theta))
        for _ in range(6):
            trial = theta + damping[:, None] * step
            new, slope = values(trial)
            worse = np.linalg.norm(solve(A, new), axis=1) > np.maximum(size, 1e-12)
            if not worse.any():
                break
            damping = np.where(worse, damping / 2, damping)
        theta, mean, A = trial, new, slope
    return theta, np.linalg.norm(solve(A, mean), axis=1) < 1e-6


def solve(A, mean):
    try:
        return np.linalg.solve(A, mean[..., None])[..., 0]
    except np.linalg.LinAlgError:
        return np.linalg.solve(A + 1e-8 * np.eye(3), mean[..., None])[..., 0]


def near(theta):
    """Return whether roots are near the truth, (r,)."""
    return np.isfinite(theta).all(1) & (np.abs(theta - TRUTH).max(1) < 3)


def rescued(values, theta, solved, start):
    """Try scipy's hybrid method from three starts where Newton found no root."""
    for i in np.flatnonzero(~(solved & near(theta))):
        for begin in (start[i], TRUTH, np.add(TRUTH, [0.0, 0.5, 0.3])):
            found = optimize.root(
                lambda t, i=i: values(t[None], i)[0][0], begin, method="hybr"
            )
            if found.success and near(found.x[None])[0]:
                theta[i], solved[i] = found.x, True
                break
    return solved & near(theta)


def deviation(A, meat):
    inverse = np.linalg.inv(A)
    V = inverse @ meat @ inverse.transpose(0, 2, 1) / N
    return np.sqrt(np.maximum(np.einsum("rii->ri", V), 0.0))


# --------------------------------------------------------------------- simulation


def sample(rng, size):
    """Return x and y of `size` samples, (size, N), and counts (size, 25, 2)."""
    place = rng.integers(25, size=(size, N))
    u = X[place] + 0.5 * rng.standard_normal((size, N))
    p = 1 / (1 + np.exp(-(0.3 + 2.0 * np.tanh(4 * u))))
    y = (rng.random((size, N)) < p).astype(int)
    flat = (np.arange(size)[:, None] * 50 + place * 2 + y).ravel()
    counts = np.bincount(flat, minlength=50 * size).reshape(size, 25, 2)
    return X[place], y.astype(float), counts.astype(float)


def averaged_regime(counts, rule, name, count):
    """Return (theta, solved, standard errors by label) where Z is averaged out."""

    def values(theta, i=None):
        some = counts if i is None else counts[i : i + 1]
        return tabulated(theta, some, rule, name, count)[:2]

    start = np.tile(TRUTH, (len(counts), 1))
    theta, solved = newton(values, start)
    solved = rescued(values, theta, solved, start)
    at = np.where(solved[:, None], theta, TRUTH)
    _, A, (p, g) = tabulated(at, counts, rule, name, count)
    meat = averaged_meat(p, g, counts)
    seen = observed_averaged(at, counts, rule, name, count)
    return (
        theta,
        solved,
        {"expected": deviation(A, meat), "observed": deviation(seen, meat)},
    )


def once_regime(data, start, rule, name, z):
    """Return the same for K draws of each unit, z (r, N, K), held fixed."""
    x, y, counts = data
    count = z.shape[-1]

    def values(theta, i=None):
        part = slice(None) if i is None else slice(i, i + 1)
        psi, slope = drawn(theta, y[part], x[part], z[part], name)
        return psi.mean(-1).T, slope

    theta, solved = newton(values, start)
    solved = rescued(values, theta, solved, start)
    at = np.where(solved[:, None], theta, TRUTH)
    psi, slope = drawn(at, y, x, z, name)
    meat = products(psi, psi) / N
    _, A, (p, g) = tabulated(at, counts, rule, name, count)
    errors = {
        "expected": deviation(A, meat),
        "observed": deviation(slope, meat),
        "without latent noise": deviation(A, averaged_meat(p, g, counts)),
    }
    return theta, solved, errors


def simulate(replications, seed, methods=METHODS, first=0):
    """Return {(name, K, regime): (theta, solved, {label: se})} over replications."""
    rules = {"Brier": Rule.of(161, 2), "centred IWAE": Rule.of(81, 60)}
    blocks = {}
    for number in range(first, first + -(-replications // BLOCK)):
        size = min(BLOCK, replications - (number - first) * BLOCK)
        data = sample(np.random.default_rng([seed, number]), size)
        centres = {}
        for place, (name, count) in enumerate(methods):
            if name not in centres:
                row = averaged_regime(data[2], rules[name], name, count)
                centres[name] = np.where(row[1][:, None], row[0], TRUTH)
                blocks.setdefault((name, count, "averaged"), []).append(row)
            rng = np.random.default_rng([seed, number, place])
            z = rng.standard_normal((size, N, count))
            row = once_regime(data, centres[name], rules[name], name, z)
            blocks.setdefault((name, count, "once"), []).append(row)
    return {key: joined(rows) for key, rows in blocks.items()}


def joined(rows):
    labels = rows[0][2]
    return (
        np.concatenate([r[0] for r in rows]),
        np.concatenate([r[1] for r in rows]),
        {k: np.concatenate([r[2][k] for r in rows]) for k in labels},
    )


def coverage(theta, solved, se):
    """Return coverage of (b, log s) among roots, and with missing roots as misses."""
    inside = (np.abs(theta - TRUTH) <= Z975 * se)[:, 1:] & solved[:, None]
    return inside.sum(0) / solved.sum(), inside.mean(0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--replications", type=int)
    options = parser.parse_args()
    replications = options.replications or (40 if options.quick else 1300)
    begun = time.perf_counter()
    results = simulate(replications, seed=20)
    mc = (0.95 * 0.05 / replications) ** 0.5
    print(f"n = {N}, {replications} samples; Monte Carlo error of a coverage {mc:.4f}")
    print("method, regime, A: coverage of b, log s (missing roots as misses) | ratios")
    failed = False
    for (name, count, regime), (theta, solved, errors) in results.items():
        spread = theta[solved][:, 1:].std(0, ddof=1)
        known = NOISE[name, count][regime == "once"]
        against = "" if known is None else f" | sd / limit {spread * N**0.5 / known}"
        print(f"{name} K={count}, {regime}: {(~solved).sum()} without a root{against}")
        for label, se in errors.items():
            among, all_of = coverage(theta, solved, se)
            ratio = np.median(se[solved][:, 1:], axis=0) / spread
            print(f"    {label:21s} {among} ({all_of}) | median se / sd {ratio}")
            if label == "without latent noise":
                failed |= among[1] > 0.85
            elif label == "expected":
                slack = (0.02 if regime == "averaged" else 0.03) + 4 * mc
                failed |= bool(abs(among[0] - 0.95) > slack or among[1] < 0.93 - 4 * mc)
                failed |= bool(regime == "averaged" and abs(among[1] - 0.95) > slack)
    print(f"{time.perf_counter() - begun:.0f} seconds")
    return int(failed)


if __name__ == "__main__":
    np.set_printoptions(precision=4, suppress=True)
    np.seterr(divide="ignore", over="ignore", invalid="ignore")  # roots far off
    sys.exit(main())
