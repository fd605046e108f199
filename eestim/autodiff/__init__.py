"""Estimating equations written in torch: exact derivatives on any device.

The core sees float64 NumPy arrays only; tensors, devices and precisions stay here.
"""

from eestim.autodiff.functions import TorchEquation, equation
from eestim.autodiff.modules import ModuleEquation, from_module
from eestim.autodiff.surrogates import functional_gradient, surrogate_operators
from eestim.autodiff.tensors import to_float64

__all__ = [
    "ModuleEquation",
    "TorchEquation",
    "equation",
    "from_module",
    "functional_gradient",
    "surrogate_operators",
    "to_float64",
]
