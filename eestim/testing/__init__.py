"""Property-based validation of estimating equations.

`check_equation` checks an equation, or a function that makes one, against the 49
properties that sandwiches have, and what comes before them (`CONTRACT`): a psi that
gives the same answer twice, does not look at other rows, and a sensitivity that is its
derivative. `parametrize_properties` does so in pytest, ``eestim check`` in a shell, and
`strategies` has the Hypothesis strategies behind them.
"""

try:
    import hypothesis as _hypothesis  # noqa: F401
except ImportError as _absent:
    raise ImportError(
        "`eestim.testing` needs Hypothesis: pip install 'eestim[test]'."
    ) from _absent

from eestim.testing import examples, strategies
from eestim.testing.properties import CONTRACT, PROPERTIES
from eestim.testing.pytest_checks import parametrize_properties
from eestim.testing.records import Example, FailedCheckError, Property
from eestim.testing.running import check_equation, check_property, examples_of

__all__ = [
    "CONTRACT",
    "PROPERTIES",
    "Example",
    "FailedCheckError",
    "Property",
    "check_equation",
    "check_property",
    "examples",
    "examples_of",
    "parametrize_properties",
    "strategies",
]
