r"""Write the figures and the table of docs/simulation.md from the store of a full run.

    eestim simulate examples/simulation_study.py --replications 2000 --seed 20260101 \
        --store STORE
    python docs/from_simulation.py STORE

Pictures go to docs/images; the text between the two comments of the page is replaced.
"""

import sys
from pathlib import Path

from eestim.report import pipe_table, png
from eestim.simulate import Results, read_results

DOCS = Path(__file__).resolve().parent
BEGIN, END = "<!-- figures of the full run -->", "<!-- end of the figures -->"
COLUMNS = {
    "rho": "rho",
    "clusters": "clusters",
    "method": "method",
    "bias": "bias",
    "empirical_se": "empirical se",
    "relative_error": "error of model se, %",
    "coverage": "coverage",
    "width": "width",
}
DIGITS = {"relative_error": 1, "coverage": 3}


def performance(results: Results) -> str:
    """Return measures with their Monte Carlo errors, one row a point and method."""
    found = results.performance()
    found = found[found["measure"].isin(COLUMNS)]
    digits = [DIGITS.get(name, 4) for name in found["measure"]]
    found = found.assign(
        text=[
            f"{value:.{places}f} ({error:.{places}f})"
            for value, error, places in zip(
                found["value"], found["mcse"], digits, strict=True
            )
        ]
    )
    wide = found.pivot_table(
        index=["rho", "clusters", "method"],
        columns="measure",
        values="text",
        aggfunc="first",
        sort=False,
        observed=True,
    ).reset_index()
    return pipe_table(wide[list(COLUMNS)].rename(columns=COLUMNS), left=3)


def differences(results: Results) -> str:
    """Return paired differences of coverage from CR2 at the hardest design point."""
    found = results.compare(results.methods[-1])
    rows = found[(found["measure"] == "coverage") & (found["rho"] == 0.3)]
    rows = rows.assign(
        difference=[
            f"{gap:+.3f} ({error:.3f})"
            for gap, error in zip(rows["difference"], rows["mcse"], strict=True)
        ]
    )
    shown = ["rho", "clusters", "method", "difference"]
    return pipe_table(rows[shown], left=3)


def accounts(results: Results) -> str:
    """Return what failed or warned, in words."""
    lost = int((results.table["status"] != "ok").sum())
    warned = int((results.table["warnings"] > 0).sum())
    counts = results.points["replications"]
    return (
        f"{len(results.points)} design points, {int(counts.min())} replications each, "
        f"{len(results.methods)} methods, seed {results.seed}. Of {len(results.table)} "
        f"results {lost} are failures and {warned} came with warnings."
    )


def text(results: Results) -> str:
    """Return the part of the page that the run determines."""
    failures = results.failures()
    rows = ["rho", "clusters", "method", "what", "count", "share", "mcse", "message"]
    failed = (
        f"\n\n{pipe_table(failures[rows].round(4), left=4)}" if len(failures) else ""
    )
    return (
        f"{accounts(results)}{failed}\n\n{performance(results)}\n\n"
        "Differences of coverage from CR2, paired by data set:\n\n"
        f"{differences(results)}"
    )


def main() -> None:
    """Read the store and write pictures and page."""
    if len(sys.argv) != 2:
        sys.exit("usage: python docs/from_simulation.py STORE")
    results = read_results(sys.argv[1])
    hardest = {"rho": 0.3, "clusters": 10}
    figures = {
        "zipper": results.zipper(point=hardest),
        "nested-loop": results.nested_loop("coverage"),
        "lollipop": results.lollipop(measures=("bias", "relative_error", "coverage")),
        "bias-and-se": results.bias_and_empirical_se(),
        "se-ratio": results.se_ratio(),
        "levels": results.coverage_plot(point=hardest),
    }
    for name, figure in figures.items():
        (DOCS / "images" / f"simulation-{name}.png").write_bytes(png(figure, dpi=110))
    page = DOCS / "simulation.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    made = f"{before}{BEGIN}\n\n{text(results)}\n\n{END}{after}"
    page.write_text(made, encoding="utf-8")


if __name__ == "__main__":
    main()
