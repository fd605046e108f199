"""Pictures of a study, readable in grey: markers and lines differ, not only colours.

Each function takes `Results` and returns a matplotlib figure.
"""

from eestim.simulate._design_plots import (
    bias_and_empirical_se,
    lollipop,
    nested_loop,
    se_ratio,
)
from eestim.simulate._drawing import wilson
from eestim.simulate._point_plots import coverage_plot, zipper

__all__ = [
    "bias_and_empirical_se",
    "coverage_plot",
    "lollipop",
    "nested_loop",
    "se_ratio",
    "wilson",
    "zipper",
]
