"""Write `docs/demo.md` and its pictures from the folder of a finished demo.

Usage: ``python docs/from_demo.py eestim-demo``. Every number and every sentence about a
result is copied from the demo's ``results.json``.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from eestim.report import formatted, pipe_table

DOCS = Path(__file__).resolve().parent
MEASURES = {
    "bits per byte": "bits per byte",
    "bits per byte, in-domain T": "in-domain temperature",
    "bits per byte, oracle T": "best temperature",
    "top-1": "top-1 accuracy",
}


def numbers(
    records: list[dict[str, Any]], columns: dict[str, str], **formats: str
) -> str:
    """Return chosen columns of a table under other names."""
    frame = pd.DataFrame(records)[list(columns)]
    return pipe_table(formatted(frame, formats).rename(columns=columns))


def difference_table(records: list[dict[str, Any]]) -> str:
    """Return one row a method with an interval for each measure."""
    cells = {(row["model"], row["measure"]): row for row in records}
    rows = []
    for model in dict.fromkeys(row["model"] for row in records):
        found: dict[str, str] = {"method": model}
        for measure, head in MEASURES.items():
            row = cells[model, measure]
            bounds = f"[{row['lower']:+.3f}, {row['upper']:+.3f}]"
            found[head] = f"{row['difference']:+.3f} {bounds}"
        first = cells[model, "bits per byte"]
        found |= {"documents": str(first["documents"]), "dof": f"{first['dof']:.1f}"}
        rows.append(found)
    return pipe_table(pd.DataFrame(rows))


def page(results: dict[str, Any]) -> str:
    """Return the page."""
    tables, said, facts = results["tables"], results["headlines"], results["facts"]
    sentences = list(said.values())
    corpora = [name for name in tables if name.startswith("differences-")]
    text = "\n\n".join(
        f"**{name.removeprefix('differences-').replace('-', ' ')}**\n\n"
        f"{difference_table(tables[name])}"
        for name in corpora
    )
    machine = f"{facts['machine']}, Python {facts['python']}, {facts['packages']}"
    return f"""# The demo

`eestim demo` writes one self-contained page with its tables (CSV), pictures (PNG) and
numbers (JSON); `--quick` takes small sizes and at most two minutes. An interrupted run
goes on where it stopped. Own data and models replace each piece of the text experiment:
`--model FOLDER_OR_ID --train FILES --ood NAME=FILES`.

What follows is a full run with seed {facts["seed"]} on {machine}; seconds: {
        facts["seconds"]
    }.

## Intervals on a panel of firms

{sentences[0][0].upper() + sentences[0][1:]}

![Intervals under four rules](images/intervals.png)

## Do these intervals cover?

Data are drawn from the fitted model with firm effects; {sentences[1]}

{
        numbers(
            tables["coverage"],
            {
                "parameter": "parameter",
                "rule": "rule",
                "coverage": "coverage",
                "mc_se": "Monte Carlo se",
                "width": "mean width",
            },
            coverage=".3f",
            mc_se=".3f",
            width=".3f",
        )
    }

![Observed coverage](images/coverage.png)

## Extrapolation where the truth is known

An outcome in 21 classes follows a curved index of x + s Z, and x is seen on half of its
range. {sentences[2][0].upper() + sentences[2][1:]}

{
        numbers(
            tables["synthetic"],
            {
                "method": "method",
                "scale": "s (true 0.6)",
                "lower": "lower",
                "upper": "upper",
                "kl_inside": "KL inside",
                "kl_outside": "KL outside",
            },
            scale=".3f",
            lower=".3f",
            upper=".3f",
        )
    }

![Recovered scale and divergence](images/recovery.png)

![True and fitted laws](images/laws.png)

## A language model in and out of domain

A byte-level model trained on documentation prose, with every method against that base,
on held-out documentation, on standard-library code without comments, and on licence
texts. Differences are paired by document; documents are the independent units (CR2,
Satterthwaite degrees of freedom). {sentences[3][0].upper() + sentences[3][1:]}

{text}

![Differences from the base](images/differences.png)

![In-domain against out-of-domain differences](images/frontier.png)

The intervals hold for these trained models: variation between training seeds is not in
them, and each is for one comparison, not for all at once. A raw difference out of
domain mostly measures how flat the predictions are; the best temperature of each
domain, on both sides, removes that.
"""


def main() -> None:
    """Read the demo's folder and write the page."""
    if len(sys.argv) != 2 or not (Path(sys.argv[1]) / "results.json").is_file():
        sys.exit("usage: python docs/from_demo.py FOLDER_OF_A_FINISHED_DEMO")
    folder = Path(sys.argv[1])
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    (DOCS / "images").mkdir(exist_ok=True)
    for picture in sorted((folder / "figures").glob("*.png")):
        shutil.copyfile(picture, DOCS / "images" / picture.name)
    (DOCS / "demo.md").write_text(page(results), encoding="utf-8")


if __name__ == "__main__":
    main()
