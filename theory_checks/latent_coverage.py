r"""Coverage of the sandwich interval for the scale of the latent.

Claim: in the binary latent model (25 points, n = 8,000) the roots of Brier with K = 8
draws that stay fixed for each unit have 95% intervals for b and log s that cover, with
standard errors of the size that `latent_reference.py` tabulates (7.64 and 9.61, by the
root of n): psi with its own draws already holds the latent noise. A few samples have no
root near the truth, because the scale is weakly identified; they are counted.
"""

import argparse
import sys

import numpy as np
import torch
from scipy import optimize

from eestim.llm import Brier, infer, scores, sensitivity
from eestim.llm.synthetic import BinaryModel, binary_data

TRUTH = np.array([0.3, 2.0, np.log(0.5)])
DEVIATION = np.array([3.72, 7.64, 9.61])
N, DRAWS = 8000, 8


def placed(theta):
    """Return the model at theta = (a, b, log s)."""
    return BinaryModel(theta[0], theta[1], float(np.exp(theta[2])))


def solved(seed):
    """Return (theta, standard errors) of one replication, or None without a root."""
    data = binary_data(N, seed)
    options = {
        "draws": DRAWS,
        "parameters": "all",
        "batch_size": N,
        "seed": seed,
    }

    def mean_psi(theta):
        return scores(placed(theta), data, Brier(), **options).mean(0)

    def slope(theta):
        return -sensitivity(placed(theta), data, Brier(), kind="expected", **options)

    found = optimize.root(mean_psi, TRUTH, jac=slope, method="hybr", tol=1e-7)
    if not found.success or np.abs(found.x - TRUTH).max() > 3:
        return None
    made = infer(
        placed(found.x),
        data,
        lambda m: torch.stack([m.a, m.b, m.perturbation.log_scale[0]]),
        Brier(),
        passes=1,
        kind="expected",
        **options,
    )
    return found.x, made.se.to_numpy()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    replications = 16 if parser.parse_args().quick else 400
    torch.set_num_threads(1)
    runs = [solved(seed) for seed in range(replications)]
    kept = [run for run in runs if run is not None]
    theta = np.array([run[0] for run in kept])
    se = np.array([run[1] for run in kept])
    cover = (np.abs(theta - TRUTH) <= 1.96 * se).mean(0)
    error = (0.95 * 0.05 / len(kept)) ** 0.5
    ratio = np.median(se, axis=0) * N**0.5 / DEVIATION
    print(f"{len(kept)} of {replications} replications have a root near the truth")
    print(f"coverage of (a, b, log s): theory 0.95, found {np.round(cover, 3)}")
    print(f"Monte Carlo standard error {error:.3f}")
    print(f"median standard error / asymptotic: {np.round(ratio, 3)} (theory 1)")
    failed = np.abs(cover - 0.95).max() > 4 * error + 0.01
    failed |= len(kept) < 0.9 * replications or np.abs(ratio - 1).max() > 0.1
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
