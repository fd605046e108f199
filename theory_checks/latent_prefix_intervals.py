r"""Coverage of intervals of a latent-prefix model with more parameters than units.

Claim: with P = 16 entries of C (8 embedding coordinates, 2 latent dimensions; 15
numbers are identified) and n = 14 units, the intervals that `eestim.llm.infer` gives
for tr(CC') and for an out-of-sample log-probability log p(y* | x*) cover 95%. A
regular A does not need P <= n: it is a mean over units of sums over tokens and
outcomes. Only M has rank at most n, and an interval for one functional uses M only
through c'psi_i. With n = 14 units the quantiles are those of t with n - 1 degrees of
freedom; normal ones are short.

Each unit is a prefix with 200 positions of its own. The frozen base reads a known
direction w of the perturbed embedding x + C Z, another at each position, and puts 11
tokens along it: logits -(w'(x + CZ) - c_v)^2 / (2 .8^2). (A linear softmax of x + C Z
would hardly tell the scale of C: its law is close to a rescaled softmax.) Brier with
K = 8 draws that stay fixed for each unit is solved to a root. Samples without a root
near the truth are counted and given as misses. Controls: intervals of half the length
must not cover, and a single entry of C, which rotations of Z change, must be refused.
"""

import argparse
import sys

import numpy as np
import torch
from scipy import linalg, optimize, stats
from torch import nn

from eestim.errors import IdentificationError
from eestim.llm import Brier, LowRank, infer, sensitivity
from eestim.llm.averaging import standard_normal
from eestim.llm.scores import unit_batches

WIDTH, RANK, TOKENS, UNITS, POSITIONS, DRAWS = 8, 2, 11, 14, 200, 8
CENTRES, SPREAD = torch.linspace(-5.0, 5.0, TOKENS).double(), 0.8


def base_logits(index):
    """Return the logits of the frozen base at an index, (..., V)."""
    return -((index.unsqueeze(-1) - CENTRES) ** 2) / (2 * SPREAD**2)


class ReadOut(nn.Module):
    """A frozen base that reads a direction w of the perturbed embedding x + C Z."""

    def __init__(self, directions):
        super().__init__()
        self.perturbation = LowRank(WIDTH, RANK).double()
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

    n_units = UNITS
    unit = np.arange(UNITS)

    def __init__(self, model, seed):
        generator = torch.Generator().manual_seed(seed)
        shape = (UNITS, POSITIONS, WIDTH)
        self.x = torch.randn(shape, generator=generator).double()
        w = torch.randn(shape, generator=generator).double()
        self.w = w / w.norm(dim=-1, keepdim=True)
        empty = torch.zeros(UNITS, POSITIONS, dtype=torch.long)
        with torch.no_grad():
            p = model.draw_logits((self.x, self.w, empty), 1, generator)[0].softmax(-1)
        flat = torch.multinomial(p.reshape(-1, TOKENS), 1, generator=generator)
        self.y = flat.reshape(UNITS, POSITIONS)

    def batch(self, rows):
        """Return (x, w, y) of some units."""
        index = torch.as_tensor(rows)
        return self.x[index], self.w[index], self.y[index]


def true_model():
    generator = torch.Generator().manual_seed(3)
    C = torch.randn(WIDTH, RANK, generator=generator).double()
    return ReadOut(C * (8.0**0.5 / C.norm()))


NEW_W = torch.eye(WIDTH).double()[0]
NEW_INDEX, NEW_TOKEN = 0.4, 7
NODES, WEIGHTS = map(torch.as_tensor, np.polynomial.hermite_e.hermegauss(80))


def functionals(model):
    """Return tr(CC') and log p(y* | x*, w*), by quadrature of the index."""
    C = model.perturbation.matrix()
    index = NEW_INDEX + (C.T @ NEW_W).norm() * NODES
    log_q = base_logits(index).log_softmax(-1)[:, NEW_TOKEN]
    log_p = (log_q + (WEIGHTS / WEIGHTS.sum()).log()).logsumexp(0)
    return torch.stack([C.square().sum(), log_p])


def mean_psi(model, data, seed):
    """Return the mean of psi over units, (P,), by one backward pass."""
    (rows, _, generator), *_ = unit_batches(data, UNITS, seed, 0)
    logits = model.draw_logits(rows, DRAWS, generator)
    loss = Brier().loss(logits, model.targets(rows)) * POSITIONS
    (slope,) = torch.autograd.grad(loss, model.perturbation.directions)
    return -slope.numpy().ravel()


def solved(seed):
    """Return the model at a root near the truth, its data and options, or None.

    Solved across the orbit of rotations, along which psi has no mean.
    """
    model = true_model()
    data = Prefixes(model, seed)
    across = linalg.null_space(model.perturbation.invariances().numpy().T)
    options = {"draws": DRAWS, "batch_size": UNITS, "seed": seed}
    origin = model.perturbation.directions.detach().clone()

    def place(eta):
        moved = torch.as_tensor((across @ eta).reshape(WIDTH, RANK))
        model.perturbation.directions.data.copy_(origin + moved)

    def equations(eta):
        place(eta)
        return across.T @ mean_psi(model, data, seed)

    def slope(eta):
        place(eta)
        return -across.T @ sensitivity(model, data, Brier(), **options) @ across

    start = np.zeros(across.shape[1])
    found = optimize.root(equations, start, jac=slope, method="hybr", tol=1e-8)
    place(found.x)
    is_root = found.success and np.abs(found.x).max() < 2.0
    return (model, data, options) if is_root else None


def one(seed):
    """Return (estimates, standard errors) of a sample, or None without a root."""
    found = solved(seed)
    if found is None:
        return None
    model, data, options = found
    fit = infer(model, data, functionals, Brier(), sets=2, kind="expected", **options)
    return fit.theta, fit.se.to_numpy()


def controls():
    """Return whether an entry of C is refused as not estimable."""
    model = true_model()
    try:
        infer(model, Prefixes(model, 0), lambda m: m.perturbation.matrix()[0, 0])
    except IdentificationError:
        return True
    return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    replications = 6 if parser.parse_args().quick else 60
    torch.set_num_threads(1)
    truth = functionals(true_model()).detach().numpy()
    runs = [one(seed) for seed in range(replications)]
    kept = [run for run in runs if run is not None]
    gap = np.array([run[0] for run in kept]) - truth
    se = np.array([run[1] for run in kept])
    missed = replications - len(kept)
    print(f"P = {WIDTH * RANK} parameters, n = {UNITS} units of {POSITIONS} positions")
    print(f"{replications} samples, {missed} without a root near the truth")
    print(
        "functional   truth    mean  sd of it  mean se  covered (t)  (normal)  MC error"
    )
    quantile = stats.t.ppf(0.975, UNITS - 1)
    failed = missed > 0.1 * replications
    for j, name in enumerate(("tr(CC')", "log p(y*)")):
        by_t = np.sum(np.abs(gap[:, j]) <= quantile * se[:, j]) / replications
        by_z = np.sum(np.abs(gap[:, j]) <= 1.959964 * se[:, j]) / replications
        error = np.sqrt(0.95 * 0.05 / replications)
        print(
            f"{name:10} {truth[j]:7.3f} {truth[j] + gap[:, j].mean():7.3f} "
            f"{gap[:, j].std(ddof=1):9.3f} {se[:, j].mean():8.3f} {by_t:12.3f} "
            f"{by_z:9.3f} {error:9.3f}"
        )
        failed |= abs(by_t - 0.95) > 4 * error
    half = np.abs(gap) <= 0.5 * quantile * se  # a control that must not cover
    print(
        f"negative control: intervals of half the length cover {half.mean(0).round(3)}"
    )
    failed |= bool((half.mean(0) > 0.85).any())
    refused = controls()
    print(f"an entry of C itself is {'refused' if refused else 'NOT refused'}")
    return int(failed or not refused)


if __name__ == "__main__":
    sys.exit(main())
