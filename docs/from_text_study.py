r"""Write the figures and tables of docs/real-text-study.md from a finished study.

    python examples/text_study.py --full --only SEED --out STUDY --ood ...   # each seed
    python docs/from_text_study.py STUDY

Pictures go to docs/images; the text between the two comments of the page is replaced.
A method that only some seeds trained is compared over those seeds.
"""

import itertools
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from eestim.llm import over_seeds
from eestim.llm.evaluation import MEASURES
from eestim.report.plots import PALETTE, canvas, png, style

DOCS = Path(__file__).resolve().parent
BEGIN, END = "<!-- figures of the full run -->", "<!-- end of the figures -->"
ORACLE, RAW = "bits per byte, oracle T", "bits per byte"
CHOSEN = "surprise"  # the learned method that is compared with every rival
ALLOWED = 0.01  # bits per byte of in-domain loss above the base
KINDS = {  # first words of a method's name, and how its point is drawn
    "fixed": ("fixed noise", "s", PALETTE[1]),
    "surprise": ("surprise gate", "D", PALETTE[2]),
    "noise-averaged": ("other learned noise", "^", PALETTE[3]),
    "shared": ("other learned noise", "^", PALETTE[3]),
    "IWAE": ("other learned noise", "^", PALETTE[3]),
    "split": ("other learned noise", "^", PALETTE[3]),
    "embedding dropout": ("dropout or discrete noise", "v", PALETTE[0]),
    "word dropout": ("dropout or discrete noise", "v", PALETTE[0]),
    "neighbours": ("dropout or discrete noise", "v", PALETTE[0]),
    "deletion": ("dropout or discrete noise", "v", PALETTE[0]),
    "": ("no noise at prediction", "o", PALETTE[4]),
}


def read(folder: Path) -> list[pd.DataFrame]:
    """Return the sums over documents of each seed."""
    found = [pd.read_parquet(path) for path in sorted(folder.glob("documents-*"))]
    if len(found) < 2:
        sys.exit(f"{folder} holds {len(found)} finished seed; two are needed.")
    return found


def of_models(seeds: list[pd.DataFrame], models: list[str]) -> list[pd.DataFrame]:
    """Return the seeds that have all of the models, with these alone."""
    return [
        table[table["model"].isin(models)].reset_index(drop=True)
        for table in seeds
        if set(models) <= set(table["model"])
    ]


def differences(
    seeds: list[pd.DataFrame], measure: str, baseline: str = "base"
) -> pd.DataFrame:
    """Return the difference of every method from one, over the seeds that have both."""
    models = list(dict.fromkeys(m for table in seeds for m in table["model"].unique()))
    parts = []
    for model in models:
        pair = of_models(seeds, [model, baseline])
        if model != baseline and len(pair) > 1:
            parts.append(over_seeds(pair, measure, baseline=baseline))
    return pd.concat(parts, ignore_index=True)


def cell(row: Any) -> str:
    """Return a difference with its half width; bold where the interval excludes 0."""
    half = (row.upper - row.lower) / 2
    text = f"{row.difference:+.3f} ± {half:.3f}"
    return f"**{text}**" if row.lower > 0 or row.upper < 0 else text


def wide(found: pd.DataFrame) -> str:
    """Return one row a method, one column a corpus, as a Markdown table."""
    corpora = list(found["corpus"].unique())
    rows = []
    for model, part in found.groupby("model", sort=False):
        cells = {row.corpus: cell(row) for row in part.itertuples()}
        rows.append([model, *(cells[name] for name in corpora), part["seeds"].iloc[0]])
    return pipe_table(pd.DataFrame(rows, columns=["method", *corpora, "seeds"]))


def pipe_table(frame: pd.DataFrame) -> str:
    """Return a Markdown table of text."""
    head = "| " + " | ".join(map(str, frame.columns)) + " |"
    rule = "|:--|" + "--:|" * (frame.shape[1] - 1)
    rows = ["| " + " | ".join(map(str, row)) + " |" for row in frame.to_numpy()]
    return "\n".join([head, rule, *rows])


def levels(seeds: list[pd.DataFrame]) -> str:
    """Return the base's own figures, means over seeds."""
    rows = []
    for corpus in seeds[0]["corpus"].unique():
        parts = [t[(t["corpus"] == corpus) & (t["model"] == "base")] for t in seeds]
        row: list[Any] = [corpus, len(parts[0]), int(parts[0]["bytes"].sum())]
        for measure in (RAW, "bits per byte, in-domain T", ORACLE, "top-1"):
            column, size = MEASURES[measure]
            below = "bytes" if size == "bits" else size
            share = [p[column].sum() / p[below].sum() for p in parts]
            scale = 0.6931471805599453 if size == "bits" else 1.0
            row.append(f"{sum(share) / len(share) / scale:.3f}")
        rows.append(row)
    columns = [
        "corpus",
        "documents",
        "bytes",
        "raw",
        "in-domain T",
        "oracle T",
        "top-1",
    ]
    return pipe_table(pd.DataFrame(rows, columns=columns))


def against(seeds: list[pd.DataFrame], measure: str) -> str:
    """Return the chosen method less each rival that keeps the in-domain loss."""
    raw = differences(seeds, RAW)
    inside = raw[raw["corpus"] == seeds[0]["corpus"].iloc[0]]
    rivals = inside.loc[inside["difference"] <= ALLOWED, "model"]
    rows = []
    for rival in ["base", *rivals]:
        if rival.startswith(CHOSEN):
            continue
        pair = of_models(seeds, [rival, CHOSEN])
        found = over_seeds(pair, measure, baseline=rival)
        others = found[found["corpus"] != found["corpus"].iloc[0]]
        below, above = (
            int((others["upper"] < 0).sum()),
            int((others["lower"] > 0).sum()),
        )
        cells = [cell(row) for row in found.itertuples()]
        rows.append([rival, *cells, below, above, len(pair)])
    corpora = list(seeds[0]["corpus"].unique())
    columns = ["rival", *corpora, "better", "worse", "seeds"]
    return pipe_table(pd.DataFrame(rows, columns=columns))


def matched(seeds: list[pd.DataFrame]) -> str:
    """Return the chosen method less fixed noise of the same in-domain loss.

    The fixed scales next to it in domain are mixed linearly, in the same shares for
    every document and seed, until the mean in-domain losses agree.
    """
    found = differences(seeds, ORACLE)
    inside = found[found["corpus"] == found["corpus"].iloc[0]]
    inside = inside.set_index("model")["difference"]
    fixed = [m for m in inside.index if m.startswith("fixed") and "," not in m]
    fixed = sorted(fixed, key=lambda name: float(inside[name]))
    pairs = list(itertools.pairwise(fixed))
    between = [p for p in pairs if inside[p[0]] <= inside[CHOSEN] <= inside[p[1]]]
    if not between:
        return f"No two fixed scales lie around `{CHOSEN}` in domain."
    low, high = between[0]
    share = (inside[high] - inside[CHOSEN]) / (inside[high] - inside[low])
    tables = of_models(seeds, [low, high, CHOSEN])
    rows = []
    for measure in (ORACLE, RAW, "bits per byte, in-domain T"):
        column, _ = MEASURES[measure]
        mixed = []
        for table in tables:
            of = {m: table[table["model"] == m] for m in (low, high, CHOSEN)}
            both = of[low].assign(model="mixed")
            both[column] = (
                share * of[low][column].to_numpy()
                + (1 - share) * of[high][column].to_numpy()
            )
            mixed.append(pd.concat([both, of[CHOSEN]], ignore_index=True))
        part = over_seeds(mixed, measure, baseline="mixed")
        rows.append([measure, *(cell(row) for row in part.itertuples()), len(mixed)])
    columns = ["measure", *found["corpus"].unique(), "seeds"]
    shares = f"{share:.0%} {low} and {1 - share:.0%} {high}"
    return (
        f"The mixture is {shares}.\n\n{pipe_table(pd.DataFrame(rows, columns=columns))}"
    )


def frontier(seeds: list[pd.DataFrame]) -> Any:
    """Return the picture of loss in domain against loss out of domain."""
    found = differences(seeds, ORACLE)
    corpora = list(found["corpus"].unique())
    inside = found[found["corpus"] == corpora[0]].set_index("model")
    with style():
        figure, axes = canvas(11, 7.5, 2, 3)
        for axis, corpus in zip(axes.flat, corpora[1:], strict=False):
            drawn = set()
            part = found[found["corpus"] == corpus].set_index("model")
            for model, row in part.iterrows():
                first = next(k for k in KINDS if str(model).startswith(k))
                label, shape, colour = KINDS[first]
                has_t = str(model).endswith("surprise temperature")
                key = (label, has_t)
                axis.errorbar(
                    inside.loc[model, "difference"],
                    row["difference"],
                    yerr=[
                        [row["difference"] - row["lower"]],
                        [row["upper"] - row["difference"]],
                    ]
                    if model == CHOSEN or first == "fixed"
                    else None,
                    fmt=shape,
                    color=colour,
                    markersize=8 if model == CHOSEN else 6,
                    fillstyle="none" if has_t else "full",
                    elinewidth=1,
                    label=None
                    if key in drawn
                    else label + (" + surprise temperature" if has_t else ""),
                )
                drawn.add(key)
            fixed = [m for m in part.index if m.startswith("fixed") and "," not in m]
            axis.plot(
                inside.loc[fixed, "difference"],
                part.loc[fixed, "difference"],
                color=PALETTE[1],
                linewidth=1,
            )
            axis.axvline(0, color="0.7", linewidth=0.8)
            axis.axhline(0, color="0.7", linewidth=0.8)
            axis.set_title(corpus)
            axis.locator_params(axis="x", nbins=4)
        for axis in axes[-1]:
            axis.set_xlabel("in domain, bits per byte less base")
        for axis in axes[:, 0]:
            axis.set_ylabel("out of domain, bits per byte less base")
        handles, names = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=3)
    return figure


def text(seeds: list[pd.DataFrame]) -> str:
    """Return the part of the page that the study determines."""
    blocks = [
        f"## Levels of the base, {len(seeds)} seeds\n\n{levels(seeds)}",
        "## Surprise gate less fixed noise of the same in-domain loss\n\n"
        f"{matched(seeds)}",
        "## Surprise gate less each rival, after oracle temperature\n\n"
        f"{against(seeds, ORACLE)}\n\n"
        "Rivals are those whose raw in-domain loss is at most .01 above the base's; "
        "better and worse count the out-of-domain corpora whose interval excludes 0.",
        f"## Surprise gate less each rival, raw\n\n{against(seeds, RAW)}",
    ]
    names = {
        ORACLE: "after the best temperature of each domain",
        RAW: "raw",
        "bits per byte, in-domain T": "after the temperature fitted in domain",
        "top-1": "top-1 accuracy",
        "reciprocal rank": "mean reciprocal rank",
        "calibration error": "expected calibration error",
    }
    for measure, name in names.items():
        unit = "bits per byte, " if measure.startswith("bits") else ""
        blocks.append(
            f"## All methods less base: {unit}{name}\n\n"
            f"{wide(differences(seeds, measure))}"
        )
    return "\n\n".join(blocks)


def main() -> None:
    """Read the study and write picture and page."""
    if len(sys.argv) != 2:
        sys.exit("usage: python docs/from_text_study.py STUDY")
    seeds = read(Path(sys.argv[1]))
    picture = DOCS / "images" / "text-frontier.png"
    picture.write_bytes(png(frontier(seeds), dpi=110))
    page = DOCS / "real-text-study.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    made = f"{before}{BEGIN}\n\n{text(seeds)}\n\n{END}{after}"
    page.write_text(made, encoding="utf-8")


if __name__ == "__main__":
    main()
