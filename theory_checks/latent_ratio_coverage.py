r"""Coverage of intervals for a held-out loss difference, documents of unequal length.

Claim: with log-normal document lengths (sigma = 0.9) and losses that share a document's
level, the interval of independent tokens covers far too little, CR0 with the normal law
too little at 20 documents, and CR2 with Satterthwaite's t nearly 95% at 20, 50 and 200
documents; the unpaired interval is several times wider. The tabulated figures come from
a simulation of another mixture of document and token noise: the column of independent
tokens depends on it, the clustered ones hardly.
"""

import argparse
import sys

import numpy as np
from scipy import stats

from eestim.inference.ratio import ratio

TABULATED = {  # iid tokens, CR0 z, CR1 t(G-1), CR2 + Satterthwaite
    20: (0.633, 0.883, 0.911, 0.938),
    50: (0.587, 0.913, 0.929, 0.945),
    200: (0.585, 0.940, 0.944, 0.947),
}
Z = stats.norm.ppf(0.975)


def one_corpus(rng, documents):
    """Return (paired differences, losses of one model, lengths) by document."""
    size = np.maximum(5, np.rint(40 * rng.lognormal(0.0, 0.9, documents)))
    level = rng.normal(0.0, 0.085, documents)  # a document's own difference
    within = rng.normal(0.0, 1.0, documents)
    difference = 0.05 * size + level * size + 0.55 * np.sqrt(size) * within
    loss = size * (4.0 + rng.normal(0.0, 1.0, documents))
    return difference, loss, size


def covers(rng, documents):
    """Return whether each interval covers 0.05, and two half widths."""
    top, loss, size = one_corpus(rng, documents)
    made = ratio(top, size)
    total = size.sum()
    u = top - made.estimate * size
    cr0 = np.sqrt((u**2).sum()) / total
    iid = np.sqrt((0.55**2 + 0.085**2) / total)
    unpaired = np.sqrt(2) * ratio(loss, size).se * stats.t.ppf(0.975, documents - 1)
    cr1 = cr0 * np.sqrt(documents / (documents - 1))
    half = [
        Z * iid,
        Z * cr0,
        stats.t.ppf(0.975, documents - 1) * cr1,
        stats.t.ppf(0.975, made.dof) * made.se,
    ]
    error = abs(made.estimate - 0.05)
    return [error <= h for h in half], half[-1], unpaired, made.dof


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    replications = 1500 if quick else 10_000
    error = (0.95 * 0.05 / replications) ** 0.5
    failed = False
    print("G: coverage of iid tokens, CR0 z, CR1 t, CR2 t (tabulated) | widths, dof")
    for documents, expected in TABULATED.items():
        rng = np.random.default_rng(documents)
        runs = [covers(rng, documents) for _ in range(replications)]
        found = np.mean([r[0] for r in runs], axis=0)
        width, unpaired, dof = (2 * np.mean([r[j] for r in runs]) for j in (1, 2, 3))
        print(
            f"  {documents:3d}: {np.round(found, 3)} {expected} | CR2 {width:.3f}, "
            f"unpaired {unpaired:.3f}, dof {dof / 2:.1f}"
        )
        failed |= abs(found[3] - expected[3]) > 4 * error + 0.012
        failed |= found[0] > 0.75 or unpaired < 3 * width
    print(f"Monte Carlo standard error near 95%: {error:.4f}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
