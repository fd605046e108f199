"""Files, data sets and documents on disk give the rows of a list of texts."""

import json

import numpy as np
import pytest
import torch
from test_latent_documents import TEXTS
from test_latent_training import TEXT, language_model, parameters, quick

from eestim.errors import DataError
from eestim.llm.base import byte_tokenizer
from eestim.llm.batches import Packed
from eestim.llm.documents import Documents, refuse_leakage
from eestim.llm.equations import Brier
from eestim.llm.protocols import Units
from eestim.llm.sources import named_texts, texts_of
from eestim.llm.streaming import StreamedDocuments
from eestim.llm.training import fit


def json_lines(path, texts=TEXTS, column="text"):
    lines = [json.dumps({column: text, "other": 1}) for text in texts]
    path.write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    return path


def parquet(path, texts=TEXTS, column="text"):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    write_table(pyarrow.table({column: texts, "other": [1] * len(texts)}), path)
    return path


class DataSet:
    """What a Hugging Face data set looks like from outside: an iterable of dicts."""

    column_names = ("text", "label")

    def __init__(self, texts):
        self.texts = texts

    def __len__(self):
        return len(self.texts)

    def __iter__(self):
        return ({"text": text, "label": 0} for text in self.texts)

    def __getitem__(self, index):
        return {"text": self.texts[index], "label": 0}


def test_every_kind_of_source_gives_the_same_texts(tmp_path):
    for number, text in enumerate(TEXTS):
        (tmp_path / f"{number}.txt").write_text(text, encoding="utf-8")
    sources = [
        TEXTS,
        iter(TEXTS),
        DataSet(TEXTS),
        [{"text": text} for text in TEXTS],
        json_lines(tmp_path / "a.jsonl"),
        parquet(tmp_path / "a.parquet"),
        [tmp_path / f"{number}.txt" for number in range(3)],
    ]
    for source in sources:
        assert texts_of(source)[1] == TEXTS
    assert texts_of("one text")[1] == ["one text"]
    names, texts = texts_of(tmp_path)
    assert len(texts) == len(set(names)) == 3 + 3 + 3
    other = json_lines(tmp_path / "b.jsonl", column="body")
    assert texts_of(other, "body")[1] == TEXTS


def test_sources_are_read_one_document_at_a_time():
    read = []

    def source():
        for text in TEXTS:
            read.append(text)
            yield {"text": text}

    first = next(named_texts(source()))
    assert first[1] == TEXTS[0]
    assert len(read) == 1


@pytest.mark.parametrize("kind", ["list", "jsonl", "parquet", "data set", "streamed"])
def test_fit_takes_every_kind(tmp_path, kind):
    source = {
        "list": lambda: TEXT,
        "jsonl": lambda: json_lines(tmp_path / "a.jsonl", TEXT),
        "parquet": lambda: parquet(tmp_path / "a.parquet", TEXT),
        "data set": lambda: DataSet(TEXT),
        "streamed": lambda: StreamedDocuments.write(
            json_lines(tmp_path / "a.jsonl", TEXT), byte_tokenizer(), tmp_path / "s", 16
        ),
    }[kind]()
    model, expected = language_model(), language_model()
    quick(expected)
    record = fit(
        model, source, Brier(), draws=3, steps=6, batch_size=4, warmup=2, seed=5
    )
    assert torch.equal(parameters(model), parameters(expected))
    assert record.n_units == 2


def test_streamed_documents_are_the_documents_in_memory(tmp_path):
    whole = Documents.from_texts(TEXTS, byte_tokenizer(), 8)
    written = StreamedDocuments.write(iter(TEXTS), byte_tokenizer(), tmp_path, 8)
    for streamed in (written, StreamedDocuments.open(tmp_path)):
        assert isinstance(streamed, Units)
        assert isinstance(streamed.rows, np.memmap)
        assert np.array_equal(streamed.unit, whole.unit)
        assert np.array_equal(streamed.n_bytes, whole.n_bytes)
        assert streamed.digests == whole.digests
        assert streamed.context == 8
        rows = np.array([4, 0, 3])
        assert torch.equal(streamed.batch(rows).input_ids, whole.batch(rows).input_ids)
        assert torch.equal(streamed.batch(rows).targets, whole.batch(rows).targets)
    with pytest.raises(DataError, match="`x` holds 'document 0', the same text"):
        refuse_leakage(written, whole, "x")


def test_streaming_holds_a_few_documents_at_a_time(tmp_path):
    """The tokenizer, through which every document goes, sees 64 at once."""
    seen = []

    class Counting:
        bos_token_id, eos_token_id = 1, 1

        def __call__(self, texts, **options):
            seen.append(len(texts))
            return byte_tokenizer()(texts, **options)

    texts = (f"document number {number}" for number in range(200))
    StreamedDocuments.write(texts, Counting(), tmp_path, 8)
    assert seen == [64, 64, 64, 8]


def test_packed_rows_train_whole_documents():
    texts = ["one two", "three four", "five six seven", "eight"]
    model = language_model()
    record = quick_packed(model, texts)
    assert record.n_units == Packed.from_texts(texts, byte_tokenizer(), 16).n_units
    assert record.n_units < len(texts)


def quick_packed(model, texts):
    return fit(
        model, texts, Brier(), draws=2, steps=2, batch_size=2, warmup=1, packed=True
    )


def test_bad_sources_are_refused(tmp_path):
    tokenizer = byte_tokenizer()
    with pytest.raises(DataError, match=r"no column 'text'.*\['body', 'other'\]"):
        texts_of(json_lines(tmp_path / "a.jsonl", column="body"))
    with pytest.raises(DataError, match=r"no column 'text'.*\['body', 'other'\]"):
        texts_of(parquet(tmp_path / "a.parquet", column="body"))
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"text"\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"bad\.jsonl:2, which is not a JSON record"):
        texts_of(tmp_path / "bad.jsonl")
    (tmp_path / "latin.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"latin\.txt, which is not UTF-8"):
        texts_of(tmp_path / "latin.txt")
    with pytest.raises(DataError, match="does not exist"):
        texts_of(tmp_path / "none.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="a folder without a file"):
        texts_of(tmp_path / "empty")
    with pytest.raises(TypeError, match="`documents` is a int"):
        texts_of(3)
    with pytest.raises(TypeError, match="whose document 0 is a int"):
        texts_of([3])
    for texts, message in (
        ([], "holds no document"),
        (["abc", " "], "an empty document, 'document 1'"),
        (["abc", "abc"], "the same document twice, number 0 and 'document 1'"),
    ):
        with pytest.raises(DataError, match=message):
            StreamedDocuments.write(texts, tokenizer, tmp_path / "s", 8)
    with pytest.raises(DataError, match=r"holds no index\.json"):
        StreamedDocuments.open(tmp_path / "s")  # writing was cut off
    with pytest.raises(ValueError, match="`context` is 1"):
        StreamedDocuments.write(TEXTS, tokenizer, tmp_path / "s", 1)
    with pytest.raises(DataError, match="the same document twice"):
        quick_packed(language_model(), ["same", "same"])
