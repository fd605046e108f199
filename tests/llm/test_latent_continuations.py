"""Continuations: measures by hand, pairing by document, refusals."""

import numpy as np
import pytest
import torch
from scipy import stats

from eestim.errors import DataError
from eestim.llm.base import byte_model, byte_tokenizer
from eestim.llm.continuations import continuations, repetition, rouge_1
from eestim.llm.perturbations import LowRank
from eestim.llm.prefix import LatentPrefixLM


def model(size=None, seed=0):
    base = byte_model(48, width=16, layers=1, heads=2, seed=seed)
    perturbation = None if size is None else LowRank(16, 2, size)
    return LatentPrefixLM(base, perturbation, byte_tokenizer())


@pytest.mark.parametrize(
    ("text", "reference", "value"),
    [
        ("a b c", "a b c", 1.0),
        ("a a a", "a", 0.5),  # one shared, three and one words
        ("x", "y", 0.0),
        ("", "", 0.0),
        ("Über uns", "über ALLEM", 0.5),
    ],
)
def test_rouge_1_counts_shared_words(text, reference, value):
    assert rouge_1(text, reference) == pytest.approx(value)
    assert rouge_1(reference, text) == pytest.approx(value)


def test_repetition_is_the_share_of_old_phrases():
    assert repetition("one two three four five six") == 0.0
    assert repetition("a b c d a b c d") == pytest.approx(1 / 5)
    assert repetition("too short") == 0.0


class Reciter:
    """Knows its documents by heart, but forgets the words after the first few."""

    tokenizer = byte_tokenizer()

    def __init__(self, texts, remembered):
        self.known = [[1, *self.tokenizer(t).input_ids[:-1]] for t in texts]
        self.remembered = remembered

    def generate(self, given, length, **settings):
        start = given[0].tolist()
        (ids,) = (k for k in self.known if k[: len(start)] == start)
        tail = ids[len(start) : len(start) + length]
        kept = tail[: self.remembered] + [3] * (len(tail) - self.remembered)
        return torch.tensor([start + kept])


def test_differences_are_paired_by_document():
    rng = np.random.default_rng(0)
    texts = [
        f"text {j} " + " ".join(rng.choice(["oak", "elm", "willow", "chestnut"], 12))
        for j in range(6)
    ]
    models = {"base": Reciter(texts, 8), "better": Reciter(texts, 24)}
    documents, differences = continuations(
        models, [*texts, "short"], prefix=16, length=30
    )
    assert len(documents) == 12  # the short one has nothing to continue
    scores = documents.pivot_table(index="document", columns="model", values="rouge_1")
    gap = scores["better"] - scores["base"]
    assert gap.min() > 0
    row = differences.query("measure == 'rouge_1'").iloc[0]
    test = stats.ttest_1samp(gap, 0.0)
    low, high = test.confidence_interval()
    assert row.difference == pytest.approx(gap.mean())
    assert row.difference / row.se == pytest.approx(test.statistic)
    assert (row.lower, row.upper, row.dof) == pytest.approx((low, high, 5))


def test_continuations_repeat_with_their_seed():
    texts = [f"document {j} has a text of its own, number {j * j}" for j in range(3)]
    models = {"noisy": model(2.0, seed=1)}
    options = {"prefix": 16, "length": 8, "draws": 2, "do_sample": True}
    one, two, other = (
        continuations(models, texts, seed=seed, **options)[0]["continuation"]
        for seed in (0, 0, 50)
    )
    assert list(one) == list(two) != list(other)


def test_a_continuation_is_what_generate_returns():
    plain, text = model(), "the truth of this text"
    documents, _ = continuations(
        {"a": plain, "b": plain}, [text, text[::-1]], prefix=8, length=6, draws=1
    )
    ids = torch.tensor(
        [[1, *plain.tokenizer(text, add_special_tokens=False).input_ids][:8]]
    )
    made = plain.generate(ids, 6, draws=1)[0, 8:]
    expected = plain.tokenizer.decode(made, skip_special_tokens=True)
    assert documents["continuation"].iloc[0] == expected
    assert np.array_equal(
        documents.query("model == 'a'")["rouge_1"],
        documents.query("model == 'b'")["rouge_1"],
    )


def test_documents_without_a_continuation_are_refused():
    with pytest.raises(DataError, match="no document of more than 30 tokens"):
        continuations({"base": model()}, ["short", "also"], prefix=30)
    with pytest.raises(ValueError, match="`baseline` is 'x'"):
        continuations({"base": model()}, ["short"], baseline="x")
