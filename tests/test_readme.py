"""The code of the README and the docs runs and prints what they show."""

import ast
import contextlib
import importlib
import inspect
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
GENERATED = ("_build", "_api", "_generated")
PAGES = [
    README,
    *sorted(
        page
        for page in (ROOT / "docs").rglob("*.md")
        if not set(GENERATED) & set(page.relative_to(ROOT / "docs").parts)
    ),
]
BLOCK = re.compile(
    r"```(python|console)\n(.*?)```(?:\n\n```text\n(.*?)```)?", re.DOTALL
)
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def with_code(paths):
    return [path for path in paths if BLOCK.search(path.read_text(encoding="utf-8"))]


def python_output(code: str, page: Path, namespace: dict[str, object]) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, page.name, "exec"), namespace)
    return printed.getvalue()


def stable(text: str) -> str:
    """Return printed text without the part that is rounding error."""
    return re.sub(r"residual \S+ in units", "residual ~0 in units", text.rstrip())


def session(text: str) -> list[tuple[str, str]]:
    """Return (command, what it shows) of a console block."""
    parts = re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]
    return [tuple(part.split("\n", 1)) for part in parts]


def command_output(command: str) -> str:
    from eestim.cli import main

    program, *arguments = shlex.split(command)
    assert program == "eestim", f"only eestim's own commands are run, not {program}"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        main(arguments)
    return printed.getvalue()


@pytest.mark.parametrize("page", with_code(PAGES), ids=name_of)
def test_code_blocks_print_what_is_shown(page, tmp_path, monkeypatch):
    if "eestim.llm" in page.read_text(encoding="utf-8"):
        pytest.importorskip("torch")
        pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for kind, code, shown in BLOCK.findall(page.read_text(encoding="utf-8")):
        if kind == "python":
            printed = python_output(code, page, namespace)
            assert stable(printed) == stable(shown)
            continue
        for command, expected in session(code):
            assert stable(command_output(command)) == stable(expected), command


def test_a_wrong_output_would_be_seen(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(1 + 1)\n```\n\n```text\n3\n```\n")
    ((kind, code, shown),) = BLOCK.findall(page.read_text())
    assert kind == "python"
    assert python_output(code, page, {}).rstrip() != shown.rstrip()


def test_the_quickstart_is_short():
    _, code, shown = BLOCK.findall(README.read_text(encoding="utf-8"))[0]
    assert len(code.strip().splitlines()) <= 20
    assert shown


def test_the_readme_shows_the_two_commands():
    text = README.read_text(encoding="utf-8")
    assert 'pip install -e ".[all]" && eestim demo' in text
    assert 'pip install -e ".[all]" && pytest' in text
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert 'pip install -q -e ".[all]"' in script


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_and_pictures_exist(page):
    for target in re.findall(r"\]\(([^)#\s]+)\)", page.read_text(encoding="utf-8")):
        if target and "://" not in target:
            assert (page.parent / target).exists(), target


def test_every_page_of_the_docs_is_in_a_table_of_contents():
    listed = set()
    for page in PAGES[1:]:
        for tree in re.findall(
            r"```\{toctree\}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL
        ):
            entries = [e for e in tree.split() if not e.startswith(":")]
            listed |= {(page.parent / entry).with_suffix(".md") for entry in entries}
    missing = set(PAGES[1:]) - listed - {ROOT / "docs" / "index.md"}
    assert missing == set()


def test_every_theory_check_states_its_claim():
    for check in sorted((ROOT / "theory_checks").glob("*.py")):
        claim = ast.get_docstring(ast.parse(check.read_text(encoding="utf-8")))
        assert claim, f"{check.name} has no docstring"


def test_every_public_module_is_in_the_reference():
    listed = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    for path in sorted((ROOT / "eestim").iterdir()):
        is_module = path.suffix == ".py" or (path / "__init__.py").is_file()
        if is_module and not path.name.startswith("_"):
            assert f"   eestim.{path.stem}\n" in listed, path.name


def test_every_top_level_name_is_in_the_reference():
    import eestim as ee

    listed = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    targets = re.findall(r"   ~(eestim\S*)\.(\w+)\n", listed)
    found = {n: getattr(importlib.import_module(m), n) for m, n in targets}
    for name in ee.__all__:
        if not inspect.ismodule(getattr(ee, name)):
            assert found.get(name) is getattr(ee, name), name


@pytest.mark.parametrize("example", EXAMPLES, ids=name_of)
def test_examples_run(example, tmp_path):
    if "torch" in example.read_text() or "eestim.llm" in example.read_text():
        pytest.importorskip("torch")
        pytest.importorskip("transformers")
    quiet = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(
        [sys.executable, str(example)],
        cwd=tmp_path,
        env=quiet,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert list(tmp_path.iterdir()) == []
