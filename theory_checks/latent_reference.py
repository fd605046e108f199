r"""Reference roots and asymptotic standard deviations of the binary latent model.

Claim: for Y in {0, 1}, logit = a + b tanh(4 u), u = x + s Z, (a, b, s) = (.3, 2, .5),
x uniform on 25 points of [-2, 2] or on the interval itself, the population roots and
the sqrt(n) standard deviations of (a, b, log s) are those tabulated below. Everything
is quadrature: over x of the interval by Gauss and Legendre, the expectation of the log
of a mean of K draws by

    E log(q_1 + ... + q_K) = int_0^inf (exp(-t) - (E exp(-t q))^K) / t dt,

its gradient by m int_0^inf (E exp(-t q))^(m-1) E[exp(-t q) dq] dt. Only the variance of
psi with nine draws used once is Monte Carlo, with Y summed out; its error is printed.

Run with ``--quick`` for fewer nodes and draws (the same tolerances).
"""

import argparse
import sys
from dataclasses import dataclass

import numpy as np
from scipy import optimize

TRUTH = np.array([0.3, 2.0, np.log(0.5)])


@dataclass(frozen=True)
class Design:
    """Covariates with their probabilities, and the figures tabulated for them."""

    name: str
    x: np.ndarray
    share: np.ndarray
    roots: dict[str, tuple[float, float, float]]
    deviations: dict[str, tuple[tuple[float, ...], tuple[float, ...]]]


POINTS = Design(
    "25 points",
    np.linspace(-2.0, 2.0, 25),
    np.full(25, 1 / 25),
    {  # (a, b, s)
        "noise-averaged": (0.2384, 1.6101, 0.0),
        "shared draw": (0.2329, 1.5792, 0.0),
        "IWAE K=2": (0.2386, 1.6118, 0.0395),
        "IWAE K=8": (0.2642, 1.7874, 0.3454),
        "IWAE K=64": (0.2927, 1.9587, 0.4738),
    },
    {  # sqrt(n) sd of (a, b, log s): latent averaged out; draws used once
        "MLE": ((3.27, 4.96, 5.81), (3.27, 4.96, 5.81)),
        "Brier K=2": ((3.49, 5.11, 6.01), (4.51, 13.92, 17.81)),
        "Brier K=8": ((3.49, 5.11, 6.01), (3.72, 7.64, 9.61)),
        "1/p oracle K=8": ((3.27, 4.96, 5.81), (3.37, 6.60, 9.59)),
        "centred IWAE K=2": ((3.35, 5.04, 5.97), (4.12, 12.80, 16.71)),
        "centred IWAE K=9": ((3.27, 4.96, 5.82), (3.41, 6.63, 8.82)),
    },
)
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(60)
INTERVAL = Design(
    "[-2, 2]",
    2 * _NODES,
    _WEIGHTS / 2,
    {
        "noise-averaged": (0.2367, 1.5945, 0.0),
        "IWAE K=2": (0.2369, 1.5958, 0.0334),
        "IWAE K=8": (0.2625, 1.7741, 0.3417),
    },
    {
        "MLE": ((3.28, 5.12, 5.81), (3.28, 5.12, 5.81)),
        "Brier K=2": ((3.50, 5.28, 6.01), (4.61, 14.95, 18.25)),
        "Brier K=8": ((3.50, 5.28, 6.01), (3.75, 8.09, 9.77)),
        "1/p oracle K=8": ((3.28, 5.12, 5.81), (3.39, 6.97, 9.72)),
        "centred IWAE K=2": ((3.36, 5.21, 5.97), (4.22, 13.75, 17.13)),
        "centred IWAE K=9": ((3.28, 5.12, 5.82), (3.44, 7.01, 8.96)),
    },
)


def latent_nodes(count):
    """Return nodes and weights of a standard normal by the trapezoid rule."""
    z = np.linspace(-8.0, 8.0, count)
    weight = np.exp(-(z**2) / 2)
    return z, weight / weight.sum()


def draws(theta, x, z):
    """Return q_1(x, z) and its gradient in (a, b, log s), (x, m) and (x, m, 3).

    z is (m,), the same for every x, or (x, m).
    """
    a, b, log_s = theta
    s = np.exp(log_s)
    t = np.tanh(4 * (x[:, None] + s * z))
    q = 1 / (1 + np.exp(-(a + b * t)))
    slope = q * (1 - q)
    bend = slope * b * 4 * (1 - t**2) * s * z
    return q, np.stack([slope, slope * t, bend], axis=-1)


def truth_law(design, nodes):
    z, weight = nodes
    return draws(TRUTH, design.x, z)[0] @ weight


# ------------------------------------------------------------------ population roots


def log_mean(q, weight, count, time):
    """Return E log of the mean of `count` draws of q, one for each x."""
    t, step = time
    transform = np.exp(-np.multiply.outer(q, t))  # (25, m, T)
    laplace = np.einsum("m,xmt->xt", weight, transform)
    inner = (np.exp(-t) - laplace**count) / t
    return inner @ step - np.log(count)


def log_time(count):
    """Return nodes and weights of dt on a logarithmic grid."""
    v = np.linspace(-25.0, np.log(4000.0), count)
    t = np.exp(v)
    return t, t * (v[1] - v[0])


def objective(name, design, nodes, time):
    z, weight = nodes
    p0 = truth_law(design, nodes)

    def loss(theta):
        q = draws(theta, design.x, z)[0]
        if name == "noise-averaged":
            gain = p0 * (np.log(q) @ weight) + (1 - p0) * (np.log1p(-q) @ weight)
        elif name == "shared draw":
            square = (q**2 + (1 - q) ** 2) @ weight / 2
            p = q @ weight
            gain = p0 * p + (1 - p0) * (1 - p) - square
        else:
            count = int(name.split("=")[1])
            gain = p0 * log_mean(q, weight, count, time)
            gain = gain + (1 - p0) * log_mean(1 - q, weight, count, time)
        return -gain @ design.share

    return loss


def root(name, design, nodes, time):
    """Return the best (a, b, s), from starts with and without noise."""
    loss = objective(name, design, nodes, time)
    guess = design.roots[name]
    starts = [[0.28, 1.9, np.log(0.4)], [guess[0], guess[1], np.log(guess[2] + 0.02)]]
    options = {"xatol": 1e-6, "fatol": 1e-13, "maxiter": 4000}
    fits = [
        optimize.minimize(loss, s, method="Nelder-Mead", options=options)
        for s in starts
    ]
    a, b, log_s = min(fits, key=lambda f: f.fun).x
    return np.array([a, b, np.exp(log_s)])


# ------------------------------------------------------------ asymptotic deviations


def sandwich(A, M):
    inverse = np.linalg.inv(A)
    return np.sqrt(np.diag(inverse @ M @ inverse.T))


def averaged_over_outcomes(share, p0, value_1, value_0):
    """Return the mean over x and Y of outer products of psi(Y, x), (3, 3)."""
    one = np.einsum("x,xi,xj->ij", share * p0, value_1, value_1)
    zero = np.einsum("x,xi,xj->ij", share * (1 - p0), value_0, value_0)
    return one + zero


def weighted_pairs(count, design, nodes, power):
    """Return sd pairs for weights p ** -power known exactly (Brier: power 0).

    psi = mean over i != j of c (Y - q_i) dq_j, with c = sum of the two weights; its
    second moment over the draws splits by which indices of two pairs coincide.
    """
    z, weight = nodes
    q, dq = draws(TRUTH, design.x, z)
    p, dp = q @ weight, np.einsum("m,xmi->xi", weight, dq)
    c = p**-power + (1 - p) ** -power
    A = np.einsum("x,xi,xj->ij", design.share * c, dp, dp)
    limit = sandwich(
        A,
        averaged_over_outcomes(
            design.share, p, (c * (1 - p))[:, None] * dp, (c * (0 - p))[:, None] * dp
        ),
    )
    meat = 0.0
    for y, mass in ((1, p), (0, 1 - p)):
        r = y - q
        moments = {
            "r": r @ weight,
            "rr": (r**2) @ weight,
            "dd": np.einsum("m,xmi,xmj->xij", weight, dq, dq),
            "rd": np.einsum("m,xm,xmi->xi", weight, r, dq),
            "d": dp,
        }
        meat = meat + np.einsum(
            "x,xij->ij", design.share * mass * c**2, pair_moment(count, moments)
        )
    return limit, sandwich(A, meat)


def pair_moment(count, m):
    """Return E of (mean over i != j of r_i d_j)(the same)', (25, 3, 3)."""

    def outer(a, b):
        return np.einsum("xi,xj->xij", a, b)

    r, rr, dd, rd, d = m["r"], m["rr"], m["dd"], m["rd"], m["d"]
    same = rr[:, None, None] * dd  # i = k, j = l
    swapped = outer(rd, rd)  # i = l, j = k
    share_r = rr[:, None, None] * outer(d, d)  # i = k only
    share_d = (r**2)[:, None, None] * dd  # j = l only
    cross = r[:, None, None] * (outer(rd, d) + outer(d, rd))  # i = l or j = k only
    free = (r**2)[:, None, None] * outer(d, d)
    k = count
    pairs = k * (k - 1)
    total = same + swapped + (k - 2) * (share_r + share_d + cross)
    return (total + (k - 2) * (k - 3) * free) / pairs


def centred_pair(design, nodes):
    """Return sd pairs of centred IWAE with K = 2, by quadrature over both draws."""
    z, weight = nodes
    q, dq = draws(TRUTH, design.x, z)
    p = q @ weight
    s1, s0 = dq / q[..., None], -dq / (1 - q)[..., None]  # score of each outcome
    mean1, mean0 = (np.einsum("m,xmi->xi", weight, s) for s in (s1, s0))
    dp = np.einsum("m,xmi->xi", weight, dq)
    A = np.einsum("x,xi,xj->ij", design.share, mean1 - mean0, dp)
    middle = p[:, None] * mean1 + (1 - p)[:, None] * mean0
    limit = sandwich(
        A, averaged_over_outcomes(design.share, p, mean1 - middle, mean0 - middle)
    )
    meat = np.zeros((3, 3))
    both = np.multiply.outer(weight, weight)
    for x in range(len(design.x)):
        gap = s1[x] - s0[x]  # (m, 3); psi_ij = (Y - q_i) (s1_j - s0_j)
        for y, mass in ((1.0, p[x]), (0.0, 1 - p[x])):
            r = y - q[x]
            one = r[:, None, None] * gap[None] + gap[:, None] * r[None, :, None]
            psi = (one / 2).reshape(-1, 3)
            meat += design.share[x] * mass * (psi.T * both.ravel()) @ psi
    return limit, sandwich(A, meat)


def log_mean_slope(q, dq, nodes, time, m):
    """Return the gradient of E log of a mean of m draws, (x, 3)."""
    t, step = time
    kernel = np.exp(-np.multiply.outer(q, t)) * nodes[1][:, None]  # (x, z, T)
    power = kernel.sum(1) ** (m - 1) * step
    return m * np.einsum("xt,xzt,xzi->xi", power, kernel, dq, optimize=True)


def centred_group(count, design, nodes, time, size):
    """Return sd pairs of centred IWAE with K draws; the second by Monte Carlo."""
    z, weight = nodes
    q, dq = draws(TRUTH, design.x, z)
    p, dp = q @ weight, np.einsum("m,xmi->xi", weight, dq)
    g1 = log_mean_slope(q, dq, nodes, time, count - 1)
    g0 = -log_mean_slope(1 - q, dq, nodes, time, count - 1)
    A = np.einsum("x,xi,xj->ij", design.share, g1 - g0, dp)
    middle = p[:, None] * g1 + (1 - p)[:, None] * g0
    limit = sandwich(
        A, averaged_over_outcomes(design.share, p, g1 - middle, g0 - middle)
    )
    rng = np.random.default_rng(count)
    parts = [group_meat(count, design, p, size, rng) for _ in range(10)]
    once = np.array([sandwich(A, part) for part in parts])
    error = (once.std(0, ddof=1) / once.mean(0)).max() / len(parts) ** 0.5
    print(f"    (Monte Carlo error of the next two lines {error:.1e} of each figure)")
    return limit, sandwich(A, np.mean(parts, axis=0))


def group_meat(count, design, p, size, rng):
    """Return the variance of psi, Y summed out, from `size` sets of draws each x."""
    x = np.repeat(design.x, size)
    q, dq = draws(TRUTH, x, rng.standard_normal((len(x), count)))
    mass = q.sum(1, keepdims=True) - q
    m = count - 1
    gap = (dq.sum(1, keepdims=True) - dq) * (1 / mass + 1 / (m - mass))[..., None]
    chance, share = np.repeat(p, size), np.repeat(design.share, size) / size
    meat = 0.0
    for y, law in ((1.0, chance), (0.0, 1 - chance)):
        psi = np.einsum("nk,nki->ni", y - q, gap) / count
        meat = meat + (psi.T * (share * law)) @ psi
    return meat


def likelihood(design, nodes):
    z, weight = nodes
    q, dq = draws(TRUTH, design.x, z)
    p, dp = q @ weight, np.einsum("m,xmi->xi", weight, dq)
    information = np.einsum("x,xi,xj->ij", design.share / (p * (1 - p)), dp, dp)
    sd = np.sqrt(np.diag(np.linalg.inv(information)))
    return sd, sd


def deviations(name, design, nodes, time, size):
    """Return sd with the latent averaged out, and with K draws used once."""
    if name == "MLE":
        return likelihood(design, nodes)
    count = int(name.split("=")[1])
    if name.startswith("Brier"):
        return weighted_pairs(count, design, nodes, 0.0)
    if name.startswith("1/p"):
        return weighted_pairs(count, design, nodes, 1.0)
    if count == 2:
        return centred_pair(design, nodes)
    return centred_group(count, design, nodes, time, size)


def compared(design, quick):
    """Print a design's table; return the largest gaps of a root and of a deviation."""
    time = log_time(120 if quick else 300)
    worst_root = worst_sd = 0.0
    print(f"x uniform on {design.name}")
    print("population roots (a, b, s): found | tabulated")
    for name, expected in design.roots.items():
        found = root(name, design, latent_nodes(161 if quick else 321), time)
        worst_root = max(worst_root, float(np.abs(found - expected).max()))
        print(f"  {name:16s} {np.round(found, 4)} | {np.array(expected)}")
    print("sqrt(n) sd of (a, b, log s): averaged, once: found | tabulated")
    nodes, size = latent_nodes(201 if quick else 401), 400 if quick else 4000
    for name, pair in design.deviations.items():
        both = deviations(name, design, nodes, time, size)
        for label, found, expected in zip(
            ("averaged", "once"), both, pair, strict=True
        ):
            gap = float(np.abs(found / np.array(expected) - 1).max())
            worst_sd = max(worst_sd, gap)
            print(
                f"  {name:18s} {label:9s} {np.round(found, 2)} | {np.array(expected)}"
            )
    return worst_root, worst_sd


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    worst = [compared(design, quick) for design in (POINTS, INTERVAL)]
    worst_root, worst_sd = np.max(worst, axis=0)
    print(f"largest gap of a root {worst_root:.1e} (allowed 1e-3)")
    print(f"largest relative gap of a deviation {worst_sd:.1e} (allowed 2e-2)")
    return int(worst_root > 1e-3 or worst_sd > 2e-2)


if __name__ == "__main__":
    sys.exit(main())
