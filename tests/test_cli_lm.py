"""The commands of language models: a small model, end to end."""

import json
import random

import pytest

from eestim.cli import main
from eestim.cli.options import named, named_paths

pytest.importorskip("torch")
pytest.importorskip("transformers")

WORDS = "a root is found where the mean of psi vanishes and its variance is a sandwich"


def text(seed: int, length: int = 60) -> str:
    return " ".join(random.Random(seed).choices(WORDS.split(), k=length)) + "."


def run(*arguments) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Texts and two models: one with and one without a perturbation."""
    from eestim.llm import LatentPrefixLM, byte_model, byte_tokenizer

    folder = tmp_path_factory.mktemp("lm")
    for name, seeds in (("train", range(12)), ("prose", range(50, 56))):
        (folder / name).mkdir()
        for seed in seeds:
            (folder / name / f"{seed}.txt").write_text(text(seed))
    (folder / "caps").mkdir()
    for seed in range(80, 86):
        (folder / "caps" / f"{seed}.txt").write_text(text(seed).upper())
    options = ("--steps", 3, "--batch-size", 2, "--context", 32, "--draws", 2)
    tiny = byte_model(32, width=8, layers=1, heads=2)
    LatentPrefixLM(tiny, None, byte_tokenizer()).save_pretrained(folder / "tiny")
    train = ("--train", folder / "train", "--model", folder / "tiny")
    plain = ("--perturbation", "none", "--equation", "noise-averaged")
    assert run("lm", "fit", folder / "base", *train, *options, *plain) == 0
    assert run("lm", "fit", folder / "latent", *train, *options, "--rank", 2) == 0
    return folder


def models(place):
    chosen = (
        "--model",
        f"base={place / 'base'}",
        "--model",
        f"latent={place / 'latent'}",
    )
    corpora = (f"in={place / 'prose'}", f"out={place / 'caps'}")
    return (*chosen, "--corpus", corpora[0], "--corpus", corpora[1], "--context", 32)


def test_fit_leaves_a_whole_model_and_no_unfinished_work(place):
    found = {p.name for p in place.iterdir()}
    assert found == {"train", "prose", "caps", "tiny", "base", "latent"}
    assert any(p.suffix == ".safetensors" for p in (place / "latent").iterdir())


def test_fit_refuses_a_folder_with_other_content(place, capsys):
    before = sorted(p.name for p in (place / "train").iterdir())
    assert run("lm", "fit", place / "train", "--train", place / "train") == 1
    assert "other content" in capsys.readouterr().err
    assert sorted(p.name for p in (place / "train").iterdir()) == before


def test_killed_fit_resumes_to_the_same_model(place, tmp_path, monkeypatch, capsys):
    """The oracle is the uninterrupted fit: parameters agree to the bit."""
    from eestim.llm import LatentPrefixLM, training

    options = ("--steps", 6, "--batch-size", 2, "--context", 32, "--draws", 2)
    train = ("--train", place / "train", "--rank", 2, "--model", place / "tiny")
    assert run("lm", "fit", tmp_path / "whole", *train, *options) == 0
    real, calls = training._one_step, []

    def killed(state, job, rows):
        calls.append(state.step)
        if state.step == 4:
            state.save(job.store)
            raise KeyboardInterrupt
        return real(state, job, rows)

    monkeypatch.setattr(training, "_one_step", killed)
    assert run("lm", "fit", tmp_path / "parts", *train, *options) == 130
    assert "run the same command again" in capsys.readouterr().err
    assert not (tmp_path / "parts").exists()
    monkeypatch.setattr(training, "_one_step", real)
    assert run("lm", "fit", tmp_path / "parts", *train, *options) == 0
    assert "resumed at 4" in capsys.readouterr().out
    one, two = (
        LatentPrefixLM.from_pretrained(tmp_path / n) for n in ("whole", "parts")
    )
    for (name, a), (_, b) in zip(
        one.state_dict().items(), two.state_dict().items(), strict=True
    ):
        assert (a == b).all(), name


def test_evaluate_json_counts_documents_as_units(place, capsys):
    assert run("lm", "evaluate", *models(place), "--draws", 2, "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["baseline"] == "base"
    assert record["in_domain"] == "in"
    assert {row["documents"] for row in record["differences"]} == {6}
    assert all(row["dof"] <= 5.0 + 1e-9 for row in record["differences"])


def test_evaluate_text_shows_both_domains(place, capsys):
    assert run("lm", "evaluate", *models(place), "--draws", 2) == 0
    out = capsys.readouterr().out
    assert "in: difference from the base" in out
    assert "out: difference from the base" in out
    assert "documents" in out


def test_report_is_one_page(place, tmp_path, capsys):
    assert run("lm", "report", tmp_path / "page", *models(place), "--draws", 2) == 0
    assert capsys.readouterr().out.strip().endswith("index.html")
    assert {p.name for p in (tmp_path / "page" / "figures").iterdir()} == {
        "differences.png",
        "frontier.png",
    }


def test_infer_prints_an_interval(place, capsys):
    options = ("--train", place / "train", "--context", 32, "--draws", 2)
    assert run("lm", "infer", place / "latent", *options) == 0
    told = capsys.readouterr().out
    assert told.startswith("12 units, 1 parameters")
    assert "squared size" in told


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (["fit", "OUT", "--train", "TRAIN", "--equation", "nosuch"], "`--equation`"),
        (["fit", "OUT", "--train", "nosuch.txt"], "`--train` nosuch.txt"),
        (["fit", "OUT", "--train", "TRAIN", "--perturbation", "x"], "`--perturbation`"),
        (["fit", "OUT", "--train", "TRAIN", "--draws", "1"], "draws"),
        (["fit", "OUT", "--train", "TRAIN", "--context", "9999"], "context"),
        (["fit", "OUT", "--train", "TRAIN", "--model", "EMPTY"], "EMPTY"),
        (["infer", "EMPTY", "--train", "TRAIN"], "EMPTY"),
        (["evaluate", "--model", "a=EMPTY", "--corpus", "in=TRAIN"], "at least two"),
        (["evaluate", "--model", "EMPTY", "--corpus", "in=TRAIN"], "NAME=VALUE"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    place, tmp_path, capsys, arguments, cause
):
    empty = tmp_path / "EMPTY"
    empty.mkdir()
    names = {"OUT": tmp_path / "OUT", "TRAIN": place / "train", "EMPTY": empty}
    given = [str(names.get(a, a)).replace("a=EMPTY", f"a={empty}") for a in arguments]
    given = [a.replace("in=TRAIN", f"in={place / 'train'}") for a in given]
    assert run("lm", *given) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    assert cause in told
    assert [p.name for p in tmp_path.iterdir()] == ["EMPTY"]


def test_a_document_in_training_and_test_is_refused(place, capsys):
    leak = ("--corpus", f"leak={place / 'train'}", "--train", place / "train")
    assert run("lm", "evaluate", *models(place), *leak) == 1
    assert "same text as the training document" in capsys.readouterr().err


def test_options_name_their_form(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_text("b")
    found = named_paths("--ood", [f"x={tmp_path}/*.txt", f"x={tmp_path}/a.txt"])
    assert [p.name for p in found["x"]] == ["a.txt", "b.txt", "a.txt"]
    with pytest.raises(ValueError, match="names no file"):
        named_paths("--ood", [f"x={tmp_path}/*.md"])
    with pytest.raises(ValueError, match="NAME=VALUE"):
        named("--ood", ["=files"])


def test_demo_takes_a_model_and_texts_of_ones_own(place, tmp_path, capsys, monkeypatch):
    from eestim.cli import demo

    all_parts = demo.parts

    def only_text(settings):
        return all_parts(settings)[-1:]

    monkeypatch.setattr(demo, "parts", only_text)
    own = ("--model", place / "tiny", "--train", place / "train")
    shouting = ("--ood", f"caps={place / 'caps'}")
    out = tmp_path / "demo"
    assert run("demo", "--quick", "--out", out, *own, *shouting) == 0
    results = json.loads((out / "results.json").read_text())
    corpora = {row["corpus"] for row in results["tables"]["corpora"]}
    assert corpora == {"train", "calibration", "in domain", "caps"}
    assert {p.name for p in tmp_path.iterdir()} == {"demo"}
    assert run("demo", "--out", tmp_path / "new", "--ood", "caps") == 1
    assert "NAME=VALUE" in capsys.readouterr().err
    assert not (tmp_path / "new.part").exists()
