"""Variances for a logistic regression with clustered outcomes, compared.

A complete study in the form of Morris, White and Crowther (2019):

- aims: coverage of intervals for a cluster-level covariate;
- data: G clusters of 5 to 25 rows; outcomes follow a logistic model exactly, and are
  dependent within clusters through a Gaussian copula of correlation rho, so that the
  truth is known without approximation;
- estimand: the coefficient of the covariate, 0.5;
- methods: model-based, CR0 with the normal law, CR1 with t(G - 1), CR2 with
  Satterthwaite degrees of freedom, all at the same estimate;
- performance: bias, standard errors, coverage, with Monte Carlo errors.

In full: ``eestim simulate examples/simulation_study.py --replications 2000 --jobs 2``,
which can be stopped at any time, goes on from where it was, and writes a report. Run as
a script it takes a small number of replications and prints its table.
"""

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import special

import eestim as ee
from eestim.simulate import Study, Under, Variants

TRUTH = {"x": 0.5}
Data = dict[str, np.ndarray]


def generate(rng: np.random.Generator, clusters: int, rho: float) -> Data:
    sizes = rng.integers(5, 26, clusters)
    group = np.repeat(np.arange(clusters), sizes)
    x = rng.normal(size=clusters)[group]
    latent = np.sqrt(rho) * rng.normal(size=clusters)[group]
    latent += np.sqrt(1.0 - rho) * rng.normal(size=len(group))
    chance = special.expit(-0.5 + TRUTH["x"] * x)
    y = (special.ndtr(latent) < chance).astype(float)  # P(y = 1) is exactly `chance`
    return {"y": y, "x": x, "group": group}


def logistic(data: Data) -> tuple[ee.Estimate, Any]:
    X = np.column_stack([np.ones(len(data["y"])), data["x"]])
    equation = ee.glm(data["y"], X, family="binomial", names=["Intercept", "x"])
    return ee.estimate(equation, ee.ModelBased()), data["group"]


def clustered(kind: Any, interval: str | None = None) -> Callable[..., Any]:
    def variant(fit: tuple[ee.Estimate, Any]) -> Any:
        estimate, group = fit
        return Under(ee.Clustered(group, kind=kind), interval)(estimate)

    return variant


STUDY = Study(
    generate=generate,
    estimators={
        "": Variants(
            logistic,
            {
                "model-based": lambda fit: fit[0],
                "CR0, normal": clustered("CR0", "wald"),
                "CR1, t(G-1)": clustered("CR1"),
                "CR2, Satterthwaite": clustered("CR2"),
            },
        )
    },
    truth=TRUTH,
    design={"rho": [0.0, 0.3], "clusters": [10, 20, 50]},
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replications", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=20260101)
    options = parser.parse_args()
    print(STUDY.run(options.replications, options.seed, options.jobs))


if __name__ == "__main__":
    main()
