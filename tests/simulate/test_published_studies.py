"""Every figure that R's rsimsum prints for its example studies, from its own data.

The data are under another licence and not here: ``write.csv(rsimsum::MIsim,
"MIsim.csv")`` and the same for ``relhaz``, in the folder that EESTIM_RSIMSUM names.
Without them `test_performance.py` checks the same figures through their moments.

MIsim: White (2010), Stata Journal 10, 369-385; relhaz: rsimsum's vignette.
"""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from eestim.simulate._tables import compared, performance_table

FOLDER = Path(os.environ.get("EESTIM_RSIMSUM", "../shared/rsimsum"))

MISIM = {
    "CC": {
        "bias": (0.0168, 0.0048),
        "relative_bias": (0.0335, 0.0096),
        "empirical_se": (0.1511, 0.0034),
        "mse": (0.0231, 0.0011),
        "model_se": (0.1471, 0.0005),
        "relative_error": (-2.6594, 2.2055),
        "coverage": (0.9430, 0.0073),
        "be_coverage": (0.9400, 0.0075),
        "power": (0.9460, 0.0071),
    },
    "MI_LOGT": {
        "bias": (0.0009, 0.0042),
        "relative_bias": (0.0018, 0.0083),
        "empirical_se": (0.1320, 0.0030),
        "relative_precision": (31.0463, 3.9375),
        "mse": (0.0174, 0.0009),
        "model_se": (0.1349, 0.0006),
        "relative_error": (2.2233, 2.3323),
        "coverage": (0.9490, 0.0070),
        "be_coverage": (0.9490, 0.0070),
        "power": (0.9690, 0.0055),
    },
    "MI_T": {
        "bias": (-0.0012, 0.0043),
        "relative_bias": (-0.0024, 0.0085),
        "empirical_se": (0.1344, 0.0030),
        "relative_precision": (26.3682, 3.8424),
        "mse": (0.0181, 0.0009),
        "model_se": (0.1338, 0.0006),
        "relative_error": (-0.4412, 2.2695),
        "coverage": (0.9430, 0.0073),
        "be_coverage": (0.9430, 0.0073),
        "power": (0.9630, 0.0060),
    },
}
RELHAZ = {  # by n, true baseline and model
    (50, "Exponential", "Cox"): {
        "bias": (0.0215, 0.0328),
        "empirical_se": (0.3285, 0.0233),
        "model_se": (0.3185, 0.0013),
        "relative_error": (-3.0493, 6.9011),
        "coverage": (0.9500, 0.0218),
        "power": (0.3600, 0.0480),
    },
    (50, "Weibull", "Exp"): {
        "bias": (0.1509, 0.0204),
        "relative_error": (41.4993, 10.0594),
        "coverage": (0.9900, 0.0099),
        "be_coverage": (1.0000, 0.0000),
        "power": (0.0900, 0.0286),
    },
    (250, "Weibull", "Exp"): {
        "bias": (0.1482, 0.0093),
        "relative_error": (37.7762, 9.7917),
        "coverage": (0.8500, 0.0357),
        "be_coverage": (0.9900, 0.0099),
        "power": (0.8600, 0.0347),
    },
}


def data(name):
    file = FOLDER / f"{name}.csv"
    if not file.is_file():
        pytest.skip(f"needs {name}.csv of rsimsum in the folder EESTIM_RSIMSUM")
    return pd.read_csv(file)


def long_table(rows, truth, method, estimate):
    half = stats.norm.ppf(0.975) * rows["se"]
    return pd.DataFrame(
        {
            "point": 0,
            "replication": rows["dataset"].astype(int),
            "method": rows[method].astype(str),
            "estimand": "theta",
            "truth": truth,
            "estimate": rows[estimate],
            "se": rows["se"],
            "lower": rows[estimate] - half,
            "upper": rows[estimate] + half,
            "status": "ok",
            "warnings": 0,
        }
    )


def check(found, method, published):
    own = found[found["method"] == method].set_index("measure")
    for measure, (value, error) in published.items():
        shown = own.loc[measure, ["value", "mcse"]].to_numpy(dtype=float)
        assert np.round(shown, 4).tolist() == [value, error], (method, measure)


def test_every_figure_of_the_missing_data_study():
    table = long_table(data("MIsim"), 0.5, "method", "b")
    found = performance_table(table, [], "CC", 0.0, "published")
    for method, published in MISIM.items():
        check(found, method, published)


def test_every_figure_of_the_relative_hazards_study():
    rows = data("relhaz")
    for (n, baseline, model), published in RELHAZ.items():
        chosen = rows[(rows["n"] == n) & (rows["baseline"] == baseline)]
        table = long_table(chosen, -0.5, "model", "theta")
        found = performance_table(table, [], "Cox", 0.0, "published")
        check(found, model, published)


def test_pairing_of_the_missing_data_study_is_sharper_than_independence():
    table = long_table(data("MIsim"), 0.5, "method", "b")
    gaps = compared(table, [], "CC", 0.0).set_index(["method", "measure"])
    paired = gaps.loc[("MI_LOGT", "bias"), "mcse"]
    assert paired < 0.6 * np.hypot(0.0048, 0.0042)
