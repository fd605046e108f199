"""The 49 properties, and what comes before them."""

from eestim.testing import (  # noqa: F401 - each fills the registry
    algebra,
    contract,
    regression,
    singular,
    units,
)
from eestim.testing.records import Property
from eestim.testing.registry import REGISTRY

__all__ = ["CONTRACT", "PROPERTIES"]

CONTRACT: tuple[Property, ...] = tuple(one for one in REGISTRY if one.number == 0)
"""What any equation must satisfy before a sandwich makes sense; they run first."""

PROPERTIES: tuple[Property, ...] = tuple(
    sorted((one for one in REGISTRY if one.number), key=lambda one: one.number)
)
"""The 49 properties in the order of their numbers."""
