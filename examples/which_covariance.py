"""One regression on panel data, and its intervals under five covariance rules."""

import numpy as np
import pandas as pd
from statsmodels.datasets import grunfeld

import eestim as ee

firms = grunfeld.load_pandas().data
formula = "np.log(invest) ~ np.log(value) + np.log(capital)"
fit = ee.estimate(ee.ols(formula, firms), covariance=ee.ModelBased())

rules = {
    "model-based": ee.ModelBased(),
    "unequal variances, HC3": ee.HC(3),
    "firms, CR1": ee.Clustered("firm", kind="CR1"),
    "firms, CR2": ee.Clustered("firm", kind="CR2"),
    "firms and years": ee.Clustered("firm", "year", kind="CR1"),
}
rows = {}
for name, rule in rules.items():
    made = fit.with_covariance(rule)  # the root is not solved for again
    bounds = made.interval().loc["np.log(value)"]
    rows[name] = {
        "se": made.se["np.log(value)"],
        "dof": made.dof["np.log(value)"],
        "lower": bounds["lower"],
        "upper": bounds["upper"],
    }
print(f"elasticity of investment to value: {fit.params['np.log(value)']:.3f}")
print(pd.DataFrame(rows).T.replace(np.inf, np.nan).round(4).to_string())
