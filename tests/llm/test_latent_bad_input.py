"""What a new user can get wrong: one message each, with argument, value and cure."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from latent_families import WIDTH, gpt2, ids, seeded

import eestim.llm as lm
from eestim.errors import ConvergenceError, DataError, InferenceError
from eestim.llm import limits
from eestim.llm.checkpoints import CHECKPOINT

TOKENIZER = lm.byte_tokenizer()
TEXT = [f"text number {n}, which is long enough for a row of it" for n in range(4)]
SHORT = {"draws": 3, "steps": 2, "batch_size": 2, "context": 16}


def model(perturbation="low rank", seed=0, **options):
    if perturbation == "low rank":
        perturbation = lm.LowRank(WIDTH, rank=2)
    base = lm.byte_model(32, width=WIDTH, layers=2, heads=2, seed=seed)
    return lm.LatentPrefixLM(base, perturbation, TOKENIZER, **options)


def broken():
    """A model with a weight that became NaN after it was built."""
    found = model()
    with torch.no_grad():
        found.base.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    return found


def documents(texts=TEXT, context=16):
    return lm.Documents.from_texts(texts, TOKENIZER, context)


def rows(target):
    """Documents as an older or foreign tokenizer would have made them."""
    ones = torch.ones(2, 8, dtype=torch.long)
    return lm.Documents(
        5 * ones, target * ones, np.arange(2), np.full(2, 8), ("a", "b"), ("x", "y")
    )


# ------------------------------------------------------------------- models and tokens


def test_weights_that_are_not_finite_are_named_and_never_give_a_number():
    poisoned = broken()
    with pytest.raises(ValueError, match=r"not finite.*mlp\.up_proj\.weight; load"):
        lm.LatentPrefixLM(poisoned.base, lm.LowRank(WIDTH, rank=2))
    with pytest.raises(DataError, match=r"psi that is not finite at 4 of 4 units, fir"):
        lm.scores(poisoned, documents(), draws=2)
    with pytest.raises(DataError, match="sensitivity that is not finite"):
        lm.sensitivity(poisoned, documents(), draws=2)
    with pytest.raises(DataError, match="psi that is not finite at 4 of 4 units"):
        lm.no_perturbation(poisoned, documents(), draws=1)
    with pytest.raises(DataError, match=r"loss is not finite on 4 documents, first on"):
        lm.evaluate({"a": poisoned}, {"c": documents()}, draws=2)
    for sampled in (False, True):
        with pytest.raises(DataError, match="`model` predicts NaN"):
            poisoned.generate(ids(1, 4), 3, do_sample=sampled)


def test_a_base_that_is_set_to_train_stays_without_dropout():
    """Dropout would be a second latent that no prediction averages over."""
    found = lm.LatentPrefixLM(gpt2(), lm.LowRank(WIDTH, rank=2), TOKENIZER)
    calm = found.draw_logits(ids(), 1, seeded(0))
    psi = lm.scores(found, documents(), draws=2)
    found.base.train()
    assert torch.equal(found.draw_logits(ids(), 1, seeded(0)), calm)
    found.base.transformer.h[0].train()  # one block alone
    np.testing.assert_array_equal(lm.scores(found, documents(), draws=2), psi)
    found.base.train()  # the control: without the wrapper dropout acts
    both = [found.base(ids()).logits for _ in range(2)]
    assert not torch.equal(*both)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.tensor([[1, -4]]), "holds token -4; tokens count from 0"),
        (torch.zeros(1, 0, dtype=torch.long), r"shape \(1, 0\), which holds no token"),
        (torch.zeros(0, 4, dtype=torch.long), r"shape \(0, 4\), which holds no token"),
        ({"tokens": 1}, r"has \['tokens'\] but no `input_ids`"),
        ({"input_ids": [[1, 2]]}, "got list.*return_tensors='pt'"),
        (
            {"input_ids": ids(1, 3), "attention_mask": torch.tensor([[1, 0, 1]])},
            "0 before a 1.*on the left, or inside",
        ),
        (
            {"input_ids": ids(1, 3), "attention_mask": [[1, 1, 1]]},
            "`attention_mask` is list",
        ),
    ],
)
def test_rows_that_are_no_tokens_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        model().draw_logits(given, 2, seeded(0))


@pytest.mark.parametrize("target", [300, -1])
def test_targets_of_another_tokenizer_are_refused(target):
    """A negative target other than -100 was read as token 0."""
    with pytest.raises(ValueError, match=f"`targets` holds {target}; expected tokens"):
        lm.scores(model(), rows(target), draws=2)
    with pytest.raises(ValueError, match=f"`targets` holds {target}"):
        lm.fit(model(), rows(target), lm.Brier(), **SHORT)
    lm.scores(model(), rows(258), draws=2)  # the largest token is one


def test_a_perturbation_must_be_one():
    with pytest.raises(TypeError, match="is the class LowRank; expected"):
        model(lm.LowRank)
    with pytest.raises(TypeError, match="`perturbation` is Linear"):
        model(torch.nn.Linear(2, 2))


def test_devices_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="is 'gpu', which torch does not know"):
        model().to("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="is 'cuda:0', but torch sees no GPU"):
            model().cuda()


def test_a_path_that_does_not_exist_is_no_repository(tmp_path):
    with pytest.raises(DataError, match="which does not exist; check the path"):
        lm.LatentPrefixLM.from_pretrained(tmp_path / "none")


def test_logits_beyond_memory_are_refused_wherever_they_are_made(monkeypatch):
    monkeypatch.setattr(limits, "_free_memory", lambda device: 100_000)
    found = model()
    for call in (
        lambda: lm.scores(found, documents(), draws=4),
        lambda: lm.scores(found, documents(), draws=4, parameters="all"),
        lambda: lm.sensitivity(found, documents(), draws=4),
        lambda: lm.no_perturbation(found, documents(), draws=4),
        lambda: lm.fit(found, TEXT, lm.Brier(), head="plain", **SHORT),
    ):
        with pytest.raises(ValueError, match="lower `draws` or `batch_size`"):
            call()
    lm.fit(found, TEXT, lm.Brier(), **SHORT)  # in chunks of tokens it fits


# ------------------------------------------------------------------------------- draws


def test_a_model_without_a_latent_has_one_draw():
    plain, data = model(None), documents()
    for call in (
        lambda: lm.fit(plain, TEXT, lm.Brier(), **SHORT),
        lambda: lm.scores(plain, data, draws=4, parameters="all"),
        lambda: lm.sensitivity(plain, data, draws=4, parameters="all"),
    ):
        with pytest.raises(ValueError, match=r"no latent and gives one.*NoiseAveraged"):
            call()
    assert np.isfinite(
        lm.scores(plain, data, lm.NoiseAveraged(), parameters="all")
    ).all()


def test_half_precision_is_refused_where_a_is_inverted():
    half = model()
    half.base.bfloat16()
    assert np.isfinite(lm.scores(half, documents(), draws=2)).all()
    for method in ("dense", "matrix-free"):
        with pytest.raises(DataError, match=r"in torch.bfloat16.*call model.float\(\)"):
            lm.infer(half, documents(), draws=2, method=method)


# -------------------------------------------------------------------------------- data


class NoWords:
    """A tokenizer that makes nothing of some texts, as one that strips can."""

    bos_token_id = 1

    def __call__(self, texts, **_):
        return {"input_ids": [[] if "!" in t else list(t.encode()) for t in texts]}


def test_a_document_without_tokens_is_not_a_unit(tmp_path):
    """It would be an observation of psi zero, and shrink every interval."""
    texts = ["abcdefgh", "!!!"]
    with pytest.raises(DataError, match=r"'document 1', of which the tokenizer makes"):
        lm.Documents.from_texts(texts, NoWords(), 4)
    with pytest.raises(DataError, match="'document 1', of which"):
        lm.Packed.from_texts(texts, NoWords(), 16)
    with pytest.raises(DataError, match="'document 1', of which"):
        lm.StreamedDocuments.write(texts, NoWords(), tmp_path, 4)


@dataclass
class Rows:
    unit: np.ndarray
    n_units: int

    def batch(self, rows):
        return ids(len(rows), 8)


@pytest.mark.parametrize(
    ("unit", "count", "message"),
    [
        ([0, 0, 2], 3, "has 3 units, but unit 1 has no row"),
        ([0, 1, 2], 2, "from 0 to 2, but `n_units` is 2"),
        ([-1, 0, 1], 2, "from -1 to 1"),
        ([], 0, r"of shape \(0,\)"),
        ([0.0, 1.0], 2, "type float64"),
    ],
)
def test_labels_of_units_must_count_them(unit, count, message):
    with pytest.raises(DataError, match=message):
        lm.scores(model(), Rows(np.array(unit), count), draws=2)


def test_texts_that_are_none_are_refused(tmp_path):
    with pytest.raises(TypeError, match="`texts` holds a int, 'document 0'"):
        lm.Documents.from_texts([1], TOKENIZER, 8)
    lone = json.loads('"bad \\ud800"')
    with pytest.raises(
        DataError, match=r"'document 0', whose character 4 is half of a"
    ):
        lm.Documents.from_texts([lone], TOKENIZER, 8)
    with pytest.raises(DataError, match="whose character 4"):
        lm.StreamedDocuments.write([lone], TOKENIZER, tmp_path, 8)
    (tmp_path / "a.txt").write_text("words of a file")
    for name in (str(tmp_path / "a.txt"), "corpus.jsonl"):
        for given in (name, [name]):
            with pytest.raises(DataError, match=r"the name of a file; give Path\("):
                lm.fit(model(), given, lm.Brier(), **SHORT)
    (tmp_path / "a.csv").write_text("text\nwords\n")
    with pytest.raises(DataError, match=r"a\.csv, a table that would be read as one"):
        lm.fit(model(), tmp_path / "a.csv", lm.Brier(), **SHORT)


def test_files_that_are_damaged_are_named(tmp_path):
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "a"}\n{"text": "caf\xe9"}\n')
    with pytest.raises(DataError, match=r"latin\.jsonl:2, which is not UTF-8"):
        lm.fit(model(), tmp_path / "latin.jsonl", lm.Brier(), **SHORT)
    for content in (b"", b"PAR1garbage"):
        (tmp_path / "cut.parquet").write_bytes(content)
        with pytest.raises(DataError, match=r"cut\.parquet, which is not a whole"):
            lm.fit(model(), tmp_path / "cut.parquet", lm.Brier(), **SHORT)
    (tmp_path / "none.jsonl").write_text("")
    with pytest.raises(DataError, match="`texts` is empty"):
        lm.fit(model(), tmp_path / "none.jsonl", lm.Brier(), **SHORT)
    marked = b'\xef\xbb\xbf{"text": "' + TEXT[0].encode() + b'"}\n'
    (tmp_path / "marked.jsonl").write_bytes(marked)  # a byte order mark is no text
    lm.fit(model(), tmp_path / "marked.jsonl", lm.Brier(), **SHORT)


@pytest.mark.parametrize("part", ["rows.i32", "units.npz", "index.json"])
def test_damaged_streams_are_refused(tmp_path, part):
    lm.StreamedDocuments.write(TEXT, TOKENIZER, tmp_path, 16)
    whole = (tmp_path / part).read_bytes()
    (tmp_path / part).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"whose files are damaged.*write it again"):
        lm.StreamedDocuments.open(tmp_path)


def test_leakage_is_refused_whatever_form_the_training_texts_have():
    test, found = documents(TEXT[:2]), {"a": model()}
    for training in (TEXT, documents(), lm.fit(model(), TEXT, lm.Brier(), **SHORT)):
        with pytest.raises(DataError, match="the same text as the training document"):
            lm.evaluate(found, {"c": test}, training=training)
    with pytest.raises(DataError, match="`calibration` holds 'document 0', the same"):
        lm.evaluate(
            found, {"c": test}, calibration=documents(TEXT[2:]), training=TEXT[2:]
        )


def test_evaluation_of_what_it_cannot_compare_is_refused():
    plain = {"a": model(), "b": model(None)}
    with pytest.raises(TypeError, match="`corpora` holds 'c', a list; expected Docum"):
        lm.evaluate(plain, {"c": TEXT})
    with pytest.raises(TypeError, match="`models` is a list"):
        lm.evaluate([model()], {"c": documents()})
    with pytest.raises(DataError, match="`corpora` holds 'c' with one document"):
        lm.evaluate(plain, {"c": documents(TEXT[:1])}, draws=2)
    with pytest.raises(ValueError, match="`batch_size` is -1"):
        lm.evaluate(plain, {"c": documents()}, draws=2, batch_size=-1)


# ------------------------------------------------------------------------- checkpoints


def resumed(folder, made=None, **options):
    made = model(train_base=False) if made is None else made
    return lm.fit(
        made, TEXT, lm.Brier(), checkpoint=folder, every=1, **(SHORT | options)
    )


@pytest.mark.parametrize("damage", ["cut", "empty", "other", "dictionary"])
def test_a_damaged_checkpoint_is_refused_with_a_way_out(tmp_path, damage):
    resumed(tmp_path)
    path = tmp_path / CHECKPOINT
    whole = path.read_bytes()
    if damage == "dictionary":
        torch.save({"a": 1}, path)
    else:
        left = {"cut": whole[: len(whole) // 2], "empty": b"", "other": b"words" * 50}
        path.write_bytes(left[damage])
    with pytest.raises(DataError, match=r"no whole checkpoint.*delete that file"):
        resumed(tmp_path)
    assert resumed(tmp_path, resume=False).resumed_from == 0


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: model(train_base=False, seed=5), "frozen weights differ"),
        (lambda: model(train_base=False, site=1), "site, latent or frozen"),
        (lambda: model(train_base=False, latent="sequence"), "written for another"),
        (
            lambda: model(lm.LowRank(WIDTH, 2, held=True), train_base=False),
            "for another model: its perturbation",
        ),
        (lambda: model(lm.LowRank(WIDTH, 3), train_base=False), r"is \(16, 2\)"),
        (lambda: model(train_base=False).double(), "torch.float32, but the model's"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(tmp_path, other, message):
    resumed(tmp_path)
    with pytest.raises(DataError, match=message):
        resumed(tmp_path, other())
    again = model(lm.LowRank(WIDTH, 2, seed=9), train_base=False)  # another start
    assert resumed(tmp_path, again).resumed_from == 2


def test_a_checkpoint_of_other_rows_is_refused(tmp_path):
    """Also where units have no fingerprint of their texts."""
    own, other = (lm.Packed(documents(TEXT[n : n + 3]).batch([0, 3])) for n in (0, 1))
    options = {"draws": 3, "steps": 2, "batch_size": 2, "checkpoint": tmp_path}
    lm.fit(model(), own, lm.Brier(), **options)
    with pytest.raises(DataError, match="trained on other documents"):
        lm.fit(model(), other, lm.Brier(), **options)
    assert lm.fit(model(), own, lm.Brier(), **options).resumed_from == 2


def test_a_folder_for_checkpoints_is_tried_before_the_first_step(tmp_path):
    (tmp_path / "file").write_text("")
    met = []
    with pytest.raises(DataError, match="cannot hold checkpoints"):
        resumed(tmp_path / "file", progress=lambda *found: met.append(found))
    assert not met


def test_a_gradient_that_is_not_finite_is_named_and_no_checkpoint_invented(tmp_path):
    with pytest.raises(ConvergenceError, match="no checkpoint has been written to"):
        lm.fit(broken(), TEXT, lm.Brier(), checkpoint=tmp_path, **SHORT)
    found = model(train_base=False)
    found.perturbation.directions.register_hook(lambda g: g * float("inf"))
    with pytest.raises(
        ConvergenceError, match=r"gradient of perturbation\.directions is not finite"
    ):
        lm.fit(found, TEXT, lm.Brier(), **SHORT)


# ---------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"perturbation_rate": 0.0}, "`perturbation_rate` is 0.0.*requires_grad_"),
        ({"learning_rate": float("inf")}, "`learning_rate` is inf"),
        ({"final": -1.0}, "`final` is -1.0.*would climb"),
        ({"final": 2.0}, "`final` is 2.0"),
        ({"warmup": -3}, "`warmup` is -3"),
        ({"weight_decay": -0.5}, "`weight_decay` is -0.5"),
        ({"steps": 2.5}, "`steps` is 2.5; it must be a whole"),
        ({"batch_size": 2.5}, "`batch_size` is 2.5"),
        ({"seed": -1}, "`seed` is -1"),
        ({"draws": 2.5}, "`draws` is 2.5"),
        ({"penalty": 3.0}, "`penalty` is 3.0; expected SizePenalty"),
        ({"monitor": 3}, "`monitor` is 3; expected a function"),
    ],
)
def test_settings_that_mean_nothing_are_refused(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        lm.fit(model(), TEXT, lm.Brier(), **(SHORT | options))


@pytest.mark.parametrize("equation", [lm.Brier, "Brier", None])
def test_an_equation_is_a_value(equation):
    with pytest.raises(TypeError, match=r"`equation` is .*such as Brier\(\)"):
        lm.fit(model(), TEXT, equation, **SHORT)


@pytest.mark.parametrize(
    ("functional", "error", "message"),
    [
        (5, TypeError, "`functional` is 5; expected a function"),
        (lambda m: 3.0, TypeError, "value that is float"),
        (lambda m: torch.ones(1), TypeError, "cut off from the parameters"),
        (lambda m: m.perturbation.directions[:0], TypeError, "value that is empty"),
        (
            lambda m: m.perturbation.directions.sum() * float("nan"),
            InferenceError,
            r"has the value \[nan\].*32 entries",
        ),
        (
            lambda m: (m.perturbation.directions * 0).norm().sqrt(),
            InferenceError,
            r"has the value \[0.0\].*32 entries are not finite",
        ),
    ],
)
def test_functionals_without_a_derivative_are_refused(functional, error, message):
    with pytest.raises(error, match=message):
        lm.infer(model(), documents(), functional, draws=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ridge": -1.0}, "`ridge` is -1.0"),
        ({"tolerance": -1.0}, "`tolerance` is -1.0"),
        ({"max_iterations": 0}, "`max_iterations` is 0"),
        ({"names": ("a", "b")}, "`names` has 2 entries for 1 value"),
        ({"batch_size": 0}, "`batch_size` is 0"),
        ({"sets": 1}, "`sets` is 1"),
        ({"seed": -1}, "`seed` is -1"),
    ],
)
def test_bad_settings_of_infer_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        lm.infer(model(), documents(), draws=2, **options)


def test_a_probability_is_of_one_known_token():
    for token in (259, -1):
        with pytest.raises(ValueError, match=f"`token` is {token}; expected one of"):
            lm.probability(ids(1, 4), token, draws=2)(model())
    with pytest.raises(ValueError, match="`batch` has 3 rows; expected one"):
        lm.probability(ids(), 5, draws=2)(model())


@pytest.mark.parametrize("given", ["words", [[1, 2]], torch.zeros(2, 0).long()])
def test_prompts_that_are_no_rows_are_refused(given):
    with pytest.raises(ValueError, match=r"expected \(B, T\) tokens"):
        model().generate(given, 3)
