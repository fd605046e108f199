"""Roots of estimating equations, found in units of noise rather than of measurement.

Newton steps solve ``A delta = mean psi`` after equilibration; a step is accepted when
the next Newton correction, measured in the same equilibrated units, is shorter
(Deuflhard's natural monotonicity). Neither the path nor the stopping rule changes
when a covariate, a parameter or an equation is measured in other units.
"""

from eestim.roots._search import DOUBTFUL
from eestim.roots.root import Root, Status, noise_residual
from eestim.roots.solving import root_at, solve

__all__ = ["DOUBTFUL", "Root", "Status", "noise_residual", "root_at", "solve"]
