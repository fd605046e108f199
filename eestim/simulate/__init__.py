"""Simulation studies: seeded, resumable, with every number's Monte Carlo error."""

from eestim.simulate._outcomes import Batched, Under, Variants
from eestim.simulate._running import Precision, Progress
from eestim.simulate.batched import BatchedEquation, BatchedFit, batched_estimate
from eestim.simulate.batched_models import BatchedGLM, batched_glm
from eestim.simulate.performance import replications_needed
from eestim.simulate.results import Results, read_results
from eestim.simulate.study import Replication, Study

__all__ = [
    "Batched",
    "BatchedEquation",
    "BatchedFit",
    "BatchedGLM",
    "Precision",
    "Progress",
    "Replication",
    "Results",
    "Study",
    "Under",
    "Variants",
    "batched_estimate",
    "batched_glm",
    "read_results",
    "replications_needed",
]
