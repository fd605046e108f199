"""Write docs/reference-cases.md: every reference case with the deviation reached.

Run ``python tests/reference/report.py`` from the repository, with ``EESTIM_REFCASES``
naming the folder of reference cases where it is not beside the repository.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests")]

from conftest import ReferenceCases, reference_folder  # noqa: E402
from reference.registry import ROWS  # noqa: E402
from reference.test_reference_cases import deviations, tolerance  # noqa: E402

HEAD = """# Reference cases

Numbers of other packages on shared data, recomputed here. A covariance is compared as
the largest `|V - V_ref|_ij / sqrt(V_ii V_jj)`, an estimate in standard errors, other
numbers relative to the largest. The bound is 1e-8 unless a row names another: where the
reference itself is approximate (randomised quadrature, a solver stopped at 1e-6), or
prints fewer digits. Written by `tests/reference/report.py`.

| case | other package | quantity | deviation | bound |
|:---|:---|:---|---:|---:|
"""


def main() -> None:
    cases = ReferenceCases(reference_folder())
    lines, absent, worst = [], [], 0.0
    for case in json.loads((cases.folder / "cases.json").read_text()):
        if case["id"] not in ROWS:
            absent.append(case["id"])
            continue
        found = deviations(ROWS[case["id"]](cases), case)
        package = case["source"].split(";")[-1].split(",")[-1].split(":")[-1].strip()
        for part, deviation in found.items():
            bound = tolerance(part)
            worst = max(worst, deviation / bound)
            label = part.rsplit(", ", 1)[0] if "e-" in part else part
            cells = (case["id"], package, label, f"{deviation:.1e}", f"{bound:.0e}")
            lines.append(f"| {' | '.join(cells)} |")
    text = HEAD + "\n".join(lines)
    text += "\n\nCases of models that are not part of the package yet: "
    text += (", ".join(absent) or "none") + ".\n"
    (ROOT / "docs" / "reference-cases.md").write_text(text)
    print(f"{len(lines)} numbers; the worst is {worst:.2f} of its bound")


if __name__ == "__main__":
    main()
