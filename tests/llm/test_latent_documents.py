"""Texts to blocks: every byte scored once, units are documents, no leakage."""

import ast

import numpy as np
import pytest
import torch

from eestim.errors import DataError
from eestim.llm import corpora
from eestim.llm.base import byte_tokenizer
from eestim.llm.documents import Documents, refuse_leakage, tokenize
from eestim.llm.surrogates import IGNORED

TEXTS = ["The first document, of some length.", "Grüße, </s> <pad> zweites!", "ab"]


@pytest.fixture(scope="module")
def documents():
    return Documents.from_texts(TEXTS, byte_tokenizer(), context=8)


def test_every_byte_is_predicted_exactly_once(documents):
    tokenizer = byte_tokenizer()
    for number, text in enumerate(TEXTS):
        rows = np.flatnonzero(documents.unit == number)
        targets = documents.batch(rows).targets
        scored = targets[targets != IGNORED].tolist()
        assert bytes(t - 3 for t in scored) == text.encode()
        assert tokenizer.decode(scored) == text or "<" in text


def test_counts(documents):
    assert documents.n_units == 3
    assert documents.n_bytes.tolist() == [len(t.encode()) for t in TEXTS]
    assert documents.n_tokens.tolist() == documents.n_bytes.tolist()
    assert documents.context == 8


def test_targets_are_the_next_tokens(documents):
    inside = documents.targets[:, :-1] != IGNORED
    following = documents.tokens[:, 1:]
    assert torch.equal(documents.targets[:, :-1][inside], following[inside])
    assert (documents.targets[:, -1] == IGNORED).all()


def test_special_tokens_spelled_in_a_text_stay_text():
    (ids,) = tokenize(["a</s>b"], byte_tokenizer())
    assert ids == [1, *(b + 3 for b in b"a</s>b")]


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ([], {}, "`texts` is empty"),
        (["abcdefghij", " \n"], {}, "an empty document, 'document 1'"),
        (["abcdefghij", "abcdefghij"], {}, "the same document twice"),
        (["abc"], {}, "`context` is 8 tokens, but the longest.*has 4"),
    ],
)
def test_bad_texts_are_refused(texts, options, message):
    with pytest.raises(DataError, match=message):
        Documents.from_texts(texts, byte_tokenizer(), 8, **options)


def test_bad_arguments_are_refused():
    tokenizer = byte_tokenizer()
    with pytest.raises(TypeError, match="`texts` is one string"):
        Documents.from_texts("one", tokenizer, 8)
    with pytest.raises(ValueError, match="`context` is 1"):
        Documents.from_texts(TEXTS, tokenizer, 1)
    with pytest.raises(ValueError, match="`names` has 1 entries for 3 texts"):
        Documents.from_texts(TEXTS, tokenizer, 8, names=["x"])


def test_a_test_document_in_the_training_data_is_refused(documents):
    other = Documents.from_texts(["new text here", TEXTS[0]], byte_tokenizer(), 8)
    with pytest.raises(DataError, match="`held out` holds 'document 1', the same"):
        refuse_leakage(documents, other, "held out")


def test_split_is_disjoint_and_seeded():
    corpus = corpora.Corpus(tuple("abcdef"), tuple("uvwxyz"))
    rest, held = corpora.split(corpus, 2, seed=3)
    assert (len(rest), len(held)) == (4, 2)
    assert not set(rest.texts) & set(held.texts)
    assert corpora.split(corpus, 2, seed=3)[1] == held
    with pytest.raises(DataError, match="`held_out` is 6"):
        corpora.split(corpus, 6)


def test_embedded_corpora_hold_what_they_say():
    prose = corpora.documentation(modules=5)
    assert len(prose) > 60  # the manual's topics alone
    code = corpora.code(modules=6)
    assert 0 < len(code) <= 6
    for text in code.texts:
        tree = ast.parse(text)
        nodes = (ast.Module, ast.ClassDef, ast.FunctionDef)
        assert not any(
            ast.get_docstring(n) for n in ast.walk(tree) if isinstance(n, nodes)
        )
        assert "#" not in "".join(
            line for line in text.splitlines() if line.lstrip().startswith("#")
        )
    licences = corpora.licences()
    assert len(licences) >= 3
    assert any("warrant" in text.lower() for text in licences.texts)


def test_near_duplicates_are_one_document():
    licence = "permission is hereby granted free of charge to any person " * 3
    corpus = corpora.Corpus(
        ("a", "b", "c"),
        ("Copyright 2001 Ann. " + licence, "Copyright 2020 Bob. " + licence,
         "an entirely different text that shares no phrase with the other two"),
    )  # fmt: skip
    assert corpora.distinct(corpus).names == ("a", "c")


def test_reading_files(tmp_path):
    (tmp_path / "b.txt").write_text("second", encoding="utf-8")
    (tmp_path / "a.txt").write_text("first", encoding="utf-8")
    assert corpora.read_texts([tmp_path]).texts == ("first", "second")
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"c\.txt, which is not UTF-8"):
        corpora.read_texts([tmp_path / "c.txt"])
    with pytest.raises(DataError, match="does not exist"):
        corpora.read_texts([tmp_path / "none"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no text file"):
        corpora.read_texts([tmp_path / "empty"])
