r"""Mean of psi at the truth: zero for the unbiased equations, not for the others.

Claim: in the binary latent model (25 points, see latent_reference.py), with
N = 400,000 units, every unbiased equation has |t| < 4 in (a, b, log s), while IWAE with
K = 2 draws has t near -67 for b and -70 for log s, and the shared draw fails too.
"""

import argparse
import sys

import numpy as np

from eestim.llm.equations import (
    IWAE,
    Brier,
    CentredIWAE,
    NoiseAveraged,
    Power,
    ScoreWeighted,
    SharedDraw,
)
from eestim.llm.scores import scores
from eestim.llm.synthetic import BinaryModel, binary_data

UNBIASED = [
    (Brier(), 2),
    (Brier(), 8),
    (Power(0.5), 4),
    (CentredIWAE(group=1), 2),
    (CentredIWAE(), 9),
    (ScoreWeighted(), 8),
]
BIASED = [(SharedDraw(), 2), (IWAE(), 2), (IWAE(), 8), (NoiseAveraged(), 2)]


def t_values(equation, draws, n, seed=0):
    """Return t of the mean of psi in (a, b, log s)."""
    psi = scores(
        BinaryModel(),
        binary_data(n, seed + 1),
        equation,
        draws=draws,
        parameters="all",
        batch_size=50_000,
        seed=seed,
    )
    return psi.mean(0) / (psi.std(0) / len(psi) ** 0.5)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    n = 50_000 if parser.parse_args().quick else 400_000
    failures = 0
    print(f"t of the mean of psi at the truth, N = {n}: (a, b, log s)")
    for equation, draws in UNBIASED:
        t = t_values(equation, draws, n)
        failures += bool(np.abs(t).max() >= 4)
        print(f"  {equation!s:28s} K={draws}  {np.round(t, 2)}  theory: |t| < 4")
    for equation, draws in BIASED:
        t = t_values(equation, draws, n)
        failures += bool(np.abs(t).max() < 4)
        print(f"  {equation!s:28s} K={draws}  {np.round(t, 1)}  theory: not zero")
    expected = np.array([-67.0, -70.0]) * (n / 400_000) ** 0.5
    gap = np.abs(t_values(IWAE(), 2, n)[1:] - expected).max()
    print(f"IWAE K=2, t of (b, log s): theory {expected}, largest gap {gap:.1f} (< 5)")
    return int(failures > 0 or gap >= 5)


if __name__ == "__main__":
    sys.exit(main())
