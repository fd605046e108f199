"""An estimating equation of one's own: a trimmed mean and its spread, by patient."""

import numpy as np

import eestim as ee

rng = np.random.default_rng(11)
patient = np.repeat(np.arange(60), 4)
effect = rng.standard_t(df=3, size=60)[patient]
data = {"y": 10.0 + effect + rng.standard_t(df=3, size=240), "patient": patient}


def psi(theta, data):
    """Huber's location with a scale that is estimated beside it, (n, 2)."""
    z = (data["y"] - theta["location"]) / np.exp(theta["log_scale"])
    bounded = np.clip(z, -1.345, 1.345)
    return np.column_stack([bounded, bounded**2 - 0.710])


start = {"location": float(np.median(data["y"])), "log_scale": 0.0}
equation = ee.equation(psi, data, start, units="patient")
fit = ee.estimate(equation, covariance=ee.Jackknife(kind="one-step"))
print(fit)

ratio = fit.functional(
    lambda theta: np.exp(theta["log_scale"]) / theta["location"],
    names=["scale/location"],
)
print(ratio.interval().round(4).to_string())
