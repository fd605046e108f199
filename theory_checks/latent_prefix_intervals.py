r"""Coverage of intervals of a latent-prefix model with more parameters than units.

Claim: with P = 14 entries of C (2 embedding coordinates, 7 latent dimensions) and
n = 12 units, the intervals that `eestim.llm.infer` gives for tr(CC') and for an
out-of-sample log-probability log p(y* | x*) cover 95%. Only the 3 numbers of CC' are
identified: A has rank 3 of 14, and 11 directions are rotations of the latent. In a
sample A is regular, because fixed draws do not rotate: what it sees along the orbit is
noise. `infer` solves on the orthogonal complement of the orbit (3 < n), where the
variance is that of every generalised inverse; quantiles are those of t with n - 1
degrees of freedom.

Each unit is a prefix with 80 positions of its own. The frozen base reads a known
direction w of the perturbed embedding x + C Z, another at each position, and puts 11
tokens along it: logits -(w'(x + CZ) - c_v)^2 / (2 .8^2). Brier with K = 6 draws that
stay fixed for each unit is solved across the orbit. Samples without a root are counted
as misses. Beside them: the sandwich with the sampled A of all 14 parameters inverted,
whose errors are too long by the noise along the orbit; the inverse of A as a variance,
as if Brier were a likelihood; intervals of half the length, which must not cover; and a
single entry of C, which must be refused.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from scipy import linalg, optimize, stats
from torch import nn

from eestim.errors import IdentificationError
from eestim.llm import Brier, infer, scores, sensitivity
from eestim.llm.averaging import standard_normal
from eestim.llm.directions import Perturbation, rotations
from eestim.llm.scores import unit_batches

WIDTH, RANK, TOKENS, UNITS, POSITIONS, DRAWS = 2, 7, 11, 12, 80, 6
IDENTIFIED = WIDTH * (WIDTH + 1) // 2
FULL = 600  # samples, from which on the comparison of intervals is tested
CENTRES, SPREAD = torch.linspace(-5.0, 5.0, TOKENS).double(), 0.8


def base_logits(index):
    """Return the logits of the frozen base at an index, (..., V)."""
    return -((index.unsqueeze(-1) - CENTRES) ** 2) / (2 * SPREAD**2)


class OverComplete(Perturbation):
    """u = e + C Z with more latent dimensions than coordinates."""

    def __init__(self):
        super().__init__(WIDTH, latent=RANK)
        self.directions = nn.Parameter(torch.zeros(WIDTH, RANK).double())

    def forward(self, embeddings, latent, start=None):  # noqa: ARG002 - one law
        """Return e + C Z."""
        return embeddings + latent @ self.directions.T

    def squared_size(self, embeddings):  # noqa: ARG002 - one law
        """Return tr(C C')."""
        return self.directions.square().sum()

    def config(self):
        """Return the arguments of the constructor."""
        return {}

    def invariances(self):
        """Return the tangents C K of rotations of the latent, K skew."""
        return rotations(self.directions.detach(), held=False)


class ReadOut(nn.Module):
    """A frozen base that reads a direction w of the perturbed embedding x + C Z."""

    def __init__(self, directions):
        super().__init__()
        self.perturbation = OverComplete()
        self.perturbation.directions.data.copy_(directions)

    def draw_logits(self, batch, draws, generator):
        """Return the logits of every draw and position, (K, B, T, V)."""
        x, w, _ = batch
        z = standard_normal((draws, *x.shape[:-1], RANK), generator, x)
        return base_logits((self.perturbation(x, z) * w).sum(-1))

    def targets(self, batch):
        """Return the next tokens, (B, T)."""
        return batch[2]


class Prefixes:
    """Units of POSITIONS embeddings, directions and next tokens."""

    def __init__(self, model, seed, units=UNITS):
        self.n_units, self.unit = units, np.arange(units)
        generator = torch.Generator().manual_seed(seed)
        shape = (units, POSITIONS, WIDTH)
        self.x = torch.randn(shape, generator=generator).double()
        w = torch.randn(shape, generator=generator).double()
        self.w = w / w.norm(dim=-1, keepdim=True)
        empty = torch.zeros(units, POSITIONS, dtype=torch.long)
        with torch.no_grad():
            p = model.draw_logits((self.x, self.w, empty), 1, generator)[0].softmax(-1)
        flat = torch.multinomial(p.reshape(-1, TOKENS), 1, generator=generator)
        self.y = flat.reshape(units, POSITIONS)

    def batch(self, rows):
        """Return (x, w, y) of some units."""
        index = torch.as_tensor(rows)
        return self.x[index], self.w[index], self.y[index]


def true_model():
    """Return the truth: random directions, tr(CC') = 3."""
    generator = torch.Generator().manual_seed(3)
    C = torch.randn(WIDTH, RANK, generator=generator).double()
    return ReadOut(C * (3.0**0.5 / C.norm()))


NEW_W = torch.eye(WIDTH).double()[0]
NEW_INDEX, NEW_TOKEN = 1.0, 8
NODES, WEIGHTS = map(torch.as_tensor, np.polynomial.hermite_e.hermegauss(80))


def functionals(model):
    """Return tr(CC') and log p(y* | x*, w*), by quadrature of the index."""
    C = model.perturbation.directions
    index = NEW_INDEX + (C.T @ NEW_W).norm() * NODES
    log_q = base_logits(index).log_softmax(-1)[:, NEW_TOKEN]
    log_p = (log_q + (WEIGHTS / WEIGHTS.sum()).log()).logsumexp(0)
    return torch.stack([C.square().sum(), log_p])


def options(seed, units=UNITS):
    return {"draws": DRAWS, "batch_size": units, "seed": seed}


def mean_psi(model, data, seed):
    """Return the mean of psi over units, (P,), by one backward pass."""
    (rows, _, generator), *_ = unit_batches(data, data.n_units, seed, 0)
    logits = model.draw_logits(rows, DRAWS, generator)
    loss = Brier().loss(logits, model.targets(rows)) * POSITIONS
    (slope,) = torch.autograd.grad(loss, model.perturbation.directions)
    return -slope.numpy().ravel()


class Slice:
    """The complement of the orbit at the truth, and A on it from a large sample."""

    def __init__(self):
        model = true_model()
        self.across = linalg.null_space(
            model.perturbation.invariances().numpy().T, rcond=1e-8
        )
        data = Prefixes(model, 10**6, units=400)
        self.A = sensitivity(
            model, data, Brier(), kind="expected", **options(0, units=400)
        )
        self.slope = -self.across.T @ self.A @ self.across
        self.origin = model.perturbation.directions.detach().clone()

    def solved(self, seed):
        """Return the model at a root near the truth and its data, or None.

        Broyden's method from the A of the large sample.
        """
        model, data = true_model(), Prefixes(true_model(), seed)

        def equations(eta):
            moved = torch.as_tensor((self.across @ eta).reshape(WIDTH, RANK))
            model.perturbation.directions.data.copy_(self.origin + moved)
            return self.across.T @ mean_psi(model, data, seed)

        start = np.zeros(self.across.shape[1])
        found = optimize.root(equations, start, jac=lambda _: self.slope, tol=1e-9)
        is_root = np.abs(equations(found.x)).max() < 1e-7
        return (model, data) if is_root and np.abs(found.x).max() < 2.0 else None


def naive(model, data, seed):
    """Return errors by inverting the sampled A, and by taking A^-1 as a variance."""
    gradient = []
    for value in functionals(model):
        (g,) = torch.autograd.grad(
            value, model.perturbation.directions, retain_graph=True
        )
        gradient.append(g.numpy().ravel())
    g = np.array(gradient)
    A = sensitivity(model, data, Brier(), kind="expected", **options(seed))
    psi = scores(model, data, Brier(), **options(seed))
    rows = psi @ np.linalg.solve(A.T, g.T)
    inverted = rows.std(axis=0) / np.sqrt(UNITS)
    as_likelihood = np.sqrt(np.diag(g @ np.linalg.solve(A, g.T)).clip(0) / UNITS)
    return inverted, as_likelihood


def one(slice_, seed):
    """Return (estimates, standard errors, two naive ones), or None without a root."""
    found = slice_.solved(seed)
    if found is None:
        return None
    model, data = found
    fit = infer(
        model, data, functionals, Brier(), sets=2, kind="expected", **options(seed)
    )
    return fit.theta, fit.se.to_numpy(), *naive(model, data, seed)


def is_refused():
    """Return whether an entry of C is refused as not estimable."""
    model = true_model()
    try:
        infer(model, Prefixes(model, 0), lambda m: m.perturbation.directions[0, 0])
    except IdentificationError:
        return True
    return False


def describe(slice_):
    """Print what A sees across the orbit and along it, in a large sample and a small.

    The draws of a sample give A entries along the orbit that are noise.
    """
    along = linalg.null_space(slice_.across.T)
    model = true_model()
    small = sensitivity(
        model, Prefixes(model, 0), Brier(), kind="expected", **options(0)
    )
    for name, A in (("400 units", slice_.A), (f"{UNITS} units", small)):
        least = np.linalg.svd(slice_.across.T @ A @ slice_.across)[1][-1]
        most = np.linalg.svd(along.T @ A @ along)[1][0]
        print(
            f"A, {name}: smallest across the orbit {least:.3f}, largest along it "
            f"{most:.3f}"
        )


def stored(path, seeds):
    """Return the runs of these seeds, taking those of the store and adding to it."""
    known = {}
    if path is not None and path.exists():
        known = dict(json.loads(line) for line in path.read_text().splitlines())
    slice_ = Slice()
    for seed in seeds:
        if seed in known:
            continue
        run = one(slice_, seed)
        known[seed] = None if run is None else [list(map(float, v)) for v in run]
        if path is not None:
            with path.open("a") as file:
                file.write(json.dumps([seed, known[seed]]) + "\n")
    return slice_, [known[seed] for seed in seeds]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int, nargs=2, metavar=("FIRST", "END"))
    parser.add_argument("--store", type=Path, help="file to resume from and add to")
    arguments = parser.parse_args()
    first, end = arguments.seeds or ((0, 8) if arguments.quick else (0, FULL))
    torch.set_num_threads(1)
    slice_, runs = stored(arguments.store, range(first, end))
    return reported(slice_, runs)


def is_longer(gap, half, ratio) -> bool:
    """Whether other intervals cover significantly more often, on the same samples.

    By McNemar's comparison of samples that one of them covers alone, at four errors.
    """
    right, other = np.abs(gap) <= half, np.abs(gap) <= half * ratio
    gained, lost = int((other & ~right).sum()), int((right & ~other).sum())
    return gained - lost > 4 * np.sqrt(gained + lost)


def reported(slice_, runs) -> int:
    """Print the table and return whether a claim failed."""
    replications, rank = len(runs), slice_.across.shape[1]
    truth = functionals(true_model()).detach().numpy()
    kept = [run for run in runs if run is not None]
    gap = np.array([run[0] for run in kept]) - truth
    se, inverted, likelihood = (np.array([run[j] for run in kept]) for j in (1, 2, 3))
    missed = replications - len(kept)
    print(f"P = {WIDTH * RANK} parameters, n = {UNITS} units of {POSITIONS} positions")
    print(f"identified: {rank}; {replications} samples, {missed} without a root")
    describe(slice_)
    print(
        "functional   truth    mean  sd of it  mean se  covered  error"
        "  A inverted  A^-1  half"
    )
    quantile = stats.t.ppf(0.975, UNITS - 1)
    failed = rank != IDENTIFIED or missed > 0.02 * replications
    error = np.sqrt(0.95 * 0.05 / replications)
    for j, name in enumerate(("tr(CC')", "log p(y*)")):
        cover, wide, info, half = (
            float(np.sum(np.abs(gap[:, j]) <= size) / replications)
            for size in (
                quantile * se[:, j],
                quantile * inverted[:, j],
                quantile * likelihood[:, j],
                0.5 * quantile * se[:, j],
            )
        )
        print(
            f"{name:10} {truth[j]:7.3f} {truth[j] + gap[:, j].mean():7.3f} "
            f"{gap[:, j].std(ddof=1):9.3f} {se[:, j].mean():8.3f} {cover:8.3f} "
            f"{error:6.3f} {wide:11.3f} {info:5.3f} {half:5.3f}"
        )
        failed |= abs(cover - 0.95) > 4 * error
        failed |= half > 0.95 - 4 * error and replications > 50
        if replications >= FULL:
            failed |= not is_longer(
                gap[:, j], quantile * se[:, j], inverted[:, j] / se[:, j]
            )
    ratio = np.median(inverted / se, axis=0)
    print(
        "se with the sampled A inverted, over the right one (median):", ratio.round(1)
    )
    failed |= bool((ratio < 1.5).any())
    refused = is_refused()
    print(f"an entry of C itself is {'refused' if refused else 'NOT refused'}")
    return int(failed or not refused)


if __name__ == "__main__":
    sys.exit(main())
