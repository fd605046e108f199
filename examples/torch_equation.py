"""A psi written in torch: the exact sensitivity, and no derivative to write."""

import numpy as np
import torch

import eestim as ee
from eestim import autodiff

rng = np.random.default_rng(5)
dose = rng.uniform(0.0, 8.0, size=300)
response = 2.0 + 5.0 * dose / (1.5 + dose) + rng.normal(scale=0.3, size=300)
data = {"dose": dose, "response": response}


def psi(theta, data):
    """Least squares for an Emax curve: residual times the gradient, (n, 3)."""
    base, top = theta["base"], theta["top"]
    half = torch.exp(theta["log_half"])
    share = data["dose"] / (half + data["dose"])
    residual = data["response"] - base - top * share
    slope = -top * share * half / (half + data["dose"])
    return residual[:, None] * torch.stack(
        [torch.ones_like(share), share, slope], dim=1
    )


start = {"base": 2.0, "top": 4.0, "log_half": 0.0}
equation = autodiff.equation(psi, data, start)
fit = ee.estimate(equation, covariance=ee.HC(1))
print(fit.table().round(3).to_string())

half = fit.functional(
    lambda theta: np.exp(theta["log_half"]), names=["half-effect dose"]
)
print(half.interval().round(3).to_string())
