"""Write docs/reference-cases.md: every reference case with the deviation reached.

Run ``python tests/reference/report.py`` from the repository, with ``EESTIM_REFCASES``
naming the folder of reference cases where it is not beside the repository.
"""

import inspect
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests")]

from conftest import ReferenceCases, reference_folder  # noqa: E402
from reference.registry import ROWS  # noqa: E402
from reference.test_reference_cases import deviations, tolerance  # noqa: E402
from tolerances import REFERENCE  # noqa: E402

HEAD = """# Reference cases

Numbers of other packages on shared data, recomputed here. A covariance is compared as
the largest `|V - V_ref|_ij / sqrt(V_ii V_jj)`, an estimate in standard errors, other
numbers relative to the largest. The bound is 1e-8 unless a row names another: where the
reference itself is approximate (randomised quadrature, a solver stopped at 1e-6), or
prints fewer digits. Written by `tests/reference/report.py`.

| case | other package | quantity | deviation | bound |
|:---|:---|:---|---:|---:|
"""


_PACKAGES = (
    "clubSandwich|delicatessen|geex|linearmodels|lmtest|multcomp|sandwich|statsmodels|"
    "survey"
)


def package_of(source: str) -> str:
    """Return the package and its version that a case was computed with.

    >>> package_of("RUN here: vcovCR, R 4.2.2; clubSandwich 0.5.8")
    'clubSandwich 0.5.8'
    """
    found = re.findall(rf"(?:{_PACKAGES}) [0-9.]+[0-9]|R [0-9.]+[0-9]", source)
    return str(found[-1]) if found else source


def notes(loose: dict[str, list[str]]) -> str:
    """Return why bounds are above 1e-8, from the docstrings of the registry."""
    lines = ["## Bounds above 1e-8", ""]
    for reason, cases in loose.items():
        lines.append(f"- {', '.join(f'`{one}`' for one in cases)}: {reason}")
    return "\n".join(lines)


def main() -> None:
    cases = ReferenceCases(reference_folder())
    lines, absent, worst = [], [], 0.0
    loose: dict[str, list[str]] = {}
    for case in json.loads((cases.folder / "cases.json").read_text()):
        name = case["id"]
        if name not in ROWS:
            absent.append(name)
            continue
        found = deviations(ROWS[name](cases), case)
        for part, deviation in found.items():
            bound = tolerance(part)
            worst = max(worst, deviation / bound)
            label = part.rsplit(", ", 1)[0] if "e-" in part else part
            cells = (name, package_of(case["source"]), label)
            lines.append(f"| {' | '.join(cells)} | {deviation:.1e} | {bound:.0e} |")
        if any(tolerance(part) > REFERENCE for part in found):
            reason = " ".join(inspect.getdoc(ROWS[name]).split())
            loose.setdefault(reason, []).append(name)
    text = HEAD + "\n".join(lines) + "\n\n" + notes(loose)
    text += "\n\nCases of models that are not in this table: "
    text += (", ".join(absent) or "none") + ".\n"
    (ROOT / "docs" / "reference-cases.md").write_text(text)
    print(f"{len(lines)} numbers; the worst is {worst:.2f} of its bound")


if __name__ == "__main__":
    main()
