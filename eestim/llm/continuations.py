r"""How models continue held-out documents: overlap with the truth, and repetition.

A loss scores one token at a time with the true prefix before it; a continuation has to
live with its own. ROUGE-1 is the overlap of its words with those of the document, and
repetition the share of its phrases that it has said before.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from eestim.errors import DataError
from eestim.inference.ratio import ratio
from eestim.llm.documents import tokenize

__all__ = ["continuations", "repetition", "rouge_1"]


def rouge_1(text: str, reference: str) -> float:
    """Return the F measure of the words that two texts share.

    Words are runs of letters and digits, in lower case, each counted as often as it
    stands in both.

    References
    ----------
    Lin (2004), ROUGE: A package for automatic evaluation of summaries.

    Examples
    --------
    >>> rouge_1("the cat sat", "The cat slept on the mat.")  # 2 of 3, and 2 of 6
    0.4444444444444444
    """
    own, other = (Counter(_words(part)) for part in (text, reference))
    shared = (own & other).total()
    both = own.total() + other.total()
    return 2.0 * shared / both if both else 0.0


def repetition(text: str, length: int = 4) -> float:
    """Return the share of phrases that have occurred before in the text.

    Parameters
    ----------
    text : str
    length : int
        Words of a phrase.

    References
    ----------
    Welleck et al. (2020), Neural text generation with unlikelihood training: seq-rep-n.

    Examples
    --------
    >>> repetition("to be to be to be", length=2)  # 3 of 5 pairs are old
    0.6
    """
    words = _words(text)
    phrases = [tuple(words[i : i + length]) for i in range(len(words) - length + 1)]
    return 1.0 - len(set(phrases)) / len(phrases) if phrases else 0.0


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def continuations(
    models: Mapping[str, Any],
    texts: Sequence[str],
    *,
    prefix: int = 64,
    length: int = 64,
    draws: int = 8,
    baseline: str | None = None,
    level: float = 0.95,
    seed: int = 0,
    **settings: Any,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Continue each document from its first tokens, and compare with its own words.

    Parameters
    ----------
    models : mapping of name to LatentPrefixLM
        With a tokenizer.
    texts : sequence of str
        Held-out documents; each is one independent unit.
    prefix, length : int
        Tokens given, and tokens generated and compared.
    draws : int
        Latent paths of each continuation.
    baseline : str, optional
        The first model by default.
    level : float
    seed : int
        Every model meets the same latents and the same random tokens.
    **settings
        As in `LatentPrefixLM.generate`: `do_sample`, `temperature`, `top_p`, ...

    Returns
    -------
    documents : DataFrame
        One row for each document and model: continuation, ROUGE-1, repetition.
    differences : DataFrame
        Mean difference from the baseline for each model and measure, paired by
        document, with its standard error and t interval.

    Raises
    ------
    DataError
        If no document has more tokens than `prefix`.
    """
    if baseline is None:
        baseline = next(iter(models))
    if baseline not in models:
        raise ValueError(f"`baseline` is {baseline!r}; known are {list(models)}.")
    rows = [
        {"model": name, "document": number, **row}
        for name, model in models.items()
        for number, row in _continued(
            model, texts, prefix, length, draws=draws, seed=seed, **settings
        )
    ]
    documents = pd.DataFrame(rows)
    differences = [
        {
            "model": name,
            "measure": measure,
            **_paired(documents, name, baseline, measure, level),
        }
        for name in models
        if name != baseline
        for measure in ("rouge_1", "repetition")
    ]
    return documents, pd.DataFrame(differences)


def _continued(
    model: Any,
    texts: Sequence[str],
    prefix: int,
    length: int,
    *,
    draws: int,
    seed: int,
    **settings: Any,
) -> list[tuple[int, dict[str, Any]]]:
    """Return (number, row) of each document that goes on after its prefix."""
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise ValueError("`models` holds a model without a tokenizer; give it one.")
    found = []
    for number, ids in enumerate(tokenize(texts, tokenizer)):
        if len(ids) <= prefix:
            continue
        generator = torch.Generator().manual_seed(seed + number)
        given = torch.tensor([ids[:prefix]])
        made = model.generate(
            given, length, draws=draws, generator=generator, **settings
        )
        text, truth = (
            tokenizer.decode(part, skip_special_tokens=True)
            for part in (made[0, prefix:], ids[prefix : prefix + length])
        )
        row = {
            "continuation": text,
            "rouge_1": rouge_1(text, truth),
            "repetition": repetition(text),
        }
        found.append((number, row))
    if not found:
        raise DataError(
            f"`texts` holds no document of more than {prefix} tokens; lower `prefix`."
        )
    return found


def _paired(
    documents: pd.DataFrame, name: str, baseline: str, measure: str, level: float
) -> dict[str, float]:
    """Return the mean difference of two models with its interval."""
    table = documents.pivot_table(index="document", columns="model", values=measure)
    gap = (table[name] - table[baseline]).to_numpy()
    result = ratio(gap, np.ones(len(gap)))
    lower, upper = result.interval(level)
    return {
        "difference": result.estimate,
        "se": result.se,
        "lower": lower,
        "upper": upper,
        "dof": result.dof,
        "documents": len(gap),
    }
