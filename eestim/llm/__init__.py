"""Language models whose prefixes carry a latent, and the equations that fit them.

A latent-prefix model perturbs the embeddings of a prefix by a learnable function of a
Gaussian latent and averages its predictions over it. The likelihood is intractable;
its parameters solve unbiased estimating equations by stochastic descent::

    model = LatentPrefixLM(base, LowRank(width, rank=16), tokenizer)
    fit(model, texts, Split(base=NoiseAveraged(), perturbation=Brier()), draws=4)
    evaluate({"base": plain, "latent": model}, {"held out": documents})
"""

from eestim.llm import baselines
from eestim.llm.base import byte_model, byte_tokenizer
from eestim.llm.batches import Packed, pack
from eestim.llm.continuations import continuations
from eestim.llm.contrasts import Contrast, TokenKernel
from eestim.llm.documents import Documents
from eestim.llm.equations import (
    IWAE,
    Brier,
    CentredIWAE,
    NoiseAveraged,
    Power,
    ScoreWeighted,
    SharedDraw,
    Split,
)
from eestim.llm.evaluation import Evaluation, evaluate
from eestim.llm.fixed_draws import FixedDraws
from eestim.llm.functionals import log_loss, probability
from eestim.llm.inference import infer, squared_size
from eestim.llm.levels import MLMC
from eestim.llm.null_test import no_perturbation
from eestim.llm.penalised import solve_penalised
from eestim.llm.perturbations import (
    Additive,
    ContextAttention,
    ContextMLP,
    Gated,
    LowRank,
    SurpriseGated,
)
from eestim.llm.prefix import LatentPrefixLM
from eestim.llm.recipe import Fit, StepReport
from eestim.llm.scores import scores
from eestim.llm.seeds import over_seeds
from eestim.llm.sensitivities import sensitivity
from eestim.llm.sequences import SequenceCentred, SequenceContrast, SequenceIWAE
from eestim.llm.sizes import SizePenalty
from eestim.llm.streaming import StreamedDocuments
from eestim.llm.training import fit

__all__ = [
    "IWAE",
    "MLMC",
    "Additive",
    "Brier",
    "CentredIWAE",
    "ContextAttention",
    "ContextMLP",
    "Contrast",
    "Documents",
    "Evaluation",
    "Fit",
    "FixedDraws",
    "Gated",
    "LatentPrefixLM",
    "LowRank",
    "NoiseAveraged",
    "Packed",
    "Power",
    "ScoreWeighted",
    "SequenceCentred",
    "SequenceContrast",
    "SequenceIWAE",
    "SharedDraw",
    "SizePenalty",
    "Split",
    "StepReport",
    "StreamedDocuments",
    "SurpriseGated",
    "TokenKernel",
    "baselines",
    "byte_model",
    "byte_tokenizer",
    "continuations",
    "evaluate",
    "fit",
    "infer",
    "log_loss",
    "no_perturbation",
    "over_seeds",
    "pack",
    "probability",
    "scores",
    "sensitivity",
    "solve_penalised",
    "squared_size",
]
