"""The code of the README and the docs runs and prints what they show."""

import contextlib
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", re.DOTALL)


def with_code(paths):
    return [path for path in paths if BLOCK.search(path.read_text())]


@pytest.mark.parametrize("page", with_code(PAGES), ids=lambda path: path.name)
def test_code_blocks_print_what_is_shown(page):
    namespace: dict[str, object] = {}
    for code, shown in BLOCK.findall(page.read_text()):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, page.name, "exec"), namespace)
        assert printed.getvalue().rstrip() == shown.rstrip()


def test_the_quickstart_is_short():
    code = BLOCK.search((ROOT / "README.md").read_text()).group(1)
    assert len(code.strip().splitlines()) <= 20


def test_links_and_pictures_exist():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)\)", page.read_text()):
            if target and "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
