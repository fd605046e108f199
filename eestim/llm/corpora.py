"""Text that every Python installation holds, and the user's own files.

Documentation prose: the topics of ``pydoc_data`` and the docstrings of each module of
the standard library, one document each. Out of domain: standard-library code without
docstrings and comments, and the licence texts (legal English) of the installed
distributions.
"""

from __future__ import annotations

import ast
import re
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np

from eestim.errors import DataError

__all__ = [
    "Corpus",
    "code",
    "distinct",
    "documentation",
    "licences",
    "read_texts",
    "refuse_shared_texts",
    "split",
]

_SHORTEST = 400  # characters; a shorter text says little about its domain


@dataclass(frozen=True, slots=True)
class Corpus:
    """Named texts, one independent document each."""

    names: tuple[str, ...]
    texts: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: Iterable[int]) -> Corpus:
        """Return some of the documents."""
        chosen = list(indices)
        return Corpus(
            tuple(self.names[i] for i in chosen), tuple(self.texts[i] for i in chosen)
        )

    def truncated(self, characters: int) -> Corpus:
        """Return the documents cut to their first characters, repeats left out."""
        kept: dict[str, str] = {}
        for name, text in zip(self.names, self.texts, strict=True):
            kept.setdefault(text[:characters], name)
        return Corpus(tuple(kept.values()), tuple(kept))


def split(corpus: Corpus, held_out: int, seed: int = 0) -> tuple[Corpus, Corpus]:
    """Return (rest, held out) by a random choice of documents.

    Examples
    --------
    >>> corpus = Corpus(tuple("abc"), ("one", "two", "three"))
    >>> [len(part) for part in split(corpus, held_out=1)]
    [2, 1]
    """
    if not 0 < held_out < len(corpus):
        raise DataError(
            f"`held_out` is {held_out}, but the corpus has {len(corpus)} documents; "
            f"hold out from 1 to {len(corpus) - 1}."
        )
    order = np.random.default_rng(seed).permutation(len(corpus))
    return corpus.take(sorted(order[held_out:])), corpus.take(sorted(order[:held_out]))


def refuse_shared_texts(training: Corpus, test: Corpus, name: str) -> None:
    """Refuse a test corpus that holds a text of the training corpus.

    Raises
    ------
    DataError
        Naming the two documents.
    """
    known = {
        " ".join(text.split()): title
        for title, text in zip(training.names, training.texts, strict=True)
    }
    for title, text in zip(test.names, test.texts, strict=True):
        found = known.get(" ".join(text.split()))
        if found is not None:
            raise DataError(
                f"`{name}` holds {title!r}, the same text as {found!r} of the training "
                "domain; remove it from one of them."
            )


def documentation(modules: int | None = None, seed: int = 0) -> Corpus:
    """Return the manual's topics and the docstrings of each standard module.

    Parameters
    ----------
    modules : int, optional
        Read a random choice of this many modules only.
    seed : int
        Seed of that choice.
    """
    pairs = [(f"topic {name}", text) for name, text in sorted(topics.items())]
    for name, tree in _standard_modules(modules, seed):
        nodes = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        found = [
            ast.get_docstring(node)
            for node in ast.walk(tree)
            if isinstance(node, nodes)
        ]
        pairs.append((f"module {name}", "\n\n".join(text for text in found if text)))
    return _corpus(pairs)


def code(modules: int | None = None, seed: int = 0) -> Corpus:
    """Return standard modules without docstrings and comments.

    Parameters
    ----------
    modules : int, optional
        Read a random choice of this many modules only.
    seed : int
        Seed of that choice.
    """
    pairs = []
    for name, tree in _standard_modules(modules, seed):
        pairs.append((f"code {name}", ast.unparse(_StripDocstrings().visit(tree))))
    return _corpus(pairs)


def licences() -> Corpus:
    """Return the distinct licence texts of the installed distributions.

    Licences that differ by little more than a name and a year are one document: the
    intervals count documents as independent.
    """
    pairs = []
    for distribution in sorted(distributions(), key=lambda d: d.metadata["Name"] or ""):
        for path in distribution.files or ():
            if re.match(r"(?i)(licen[cs]e|copying|notice|eula)", path.name):
                text = _read(Path(str(path.locate())))
                pairs.append((f"{distribution.metadata['Name']} {path.name}", text))
    return distinct(_corpus(pairs))


def read_texts(paths: Sequence[str | Path]) -> Corpus:
    """Return text files, one document each; folders are searched for ``*.txt``.

    Raises
    ------
    DataError
        If a path is missing, is not UTF-8, or nothing is found.
    """
    files: list[Path] = []
    for entry in map(Path, paths):
        if entry.is_dir():
            files += sorted(p for p in entry.rglob("*.txt") if p.is_file())
        elif entry.is_file():
            files.append(entry)
        else:
            raise DataError(f"`paths` names {entry}, which does not exist; check it.")
    if not files:
        raise DataError(f"`paths` holds no text file: {[str(p) for p in paths]}.")
    texts = []
    for file in files:
        try:
            texts.append(file.read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            raise DataError(
                f"`paths` names {file}, which is not UTF-8 text ({error.reason} at "
                f"byte {error.start}); convert it to UTF-8."
            ) from error
    return Corpus(tuple(str(f) for f in files), tuple(texts))


def _standard_modules(limit: int | None, seed: int) -> Iterator[tuple[str, ast.Module]]:
    """Yield (name, syntax tree) of modules of the standard library."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = [p for p in sorted(root.rglob("*.py")) if _is_module(p.relative_to(root))]
    if limit is not None and limit < len(paths):
        chosen = np.random.default_rng(seed).permutation(len(paths))[:limit]
        paths = [paths[i] for i in sorted(chosen)]
    for path in paths:
        name = ".".join(path.relative_to(root).with_suffix("").parts)
        try:
            yield name, ast.parse(_read(path))
        except SyntaxError:
            continue  # a template, not a module


def _is_module(path: Path) -> bool:
    """Whether a path below the standard library is library code."""
    skipped = {"site-packages", "test", "tests", "idlelib", "lib2to3", "pydoc_data"}
    return not skipped.intersection(path.parts) and not path.parts[0].startswith(
        "config-"
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _corpus(pairs: Iterable[tuple[str, str]]) -> Corpus:
    """Return the texts that are long enough, each once."""
    kept: dict[str, str] = {}
    for name, text in pairs:
        if len(text) >= _SHORTEST:
            kept.setdefault(" ".join(text.split()), f"{name}\0{text}")
    entries = [entry.split("\0", 1) for entry in kept.values()]
    return Corpus(tuple(e[0] for e in entries), tuple(e[1] for e in entries))


def distinct(corpus: Corpus, overlap: float = 0.5) -> Corpus:
    """Drop each text that shares most of its five-word phrases with an earlier one.

    Parameters
    ----------
    corpus : Corpus
    overlap : float
        Largest share of a text's phrases that an earlier text may hold.
    """
    seen: list[set[str]] = []
    chosen = []
    for number, text in enumerate(corpus.texts):
        words = re.findall(r"[a-z]+", text.lower())
        phrases = {" ".join(words[i : i + 5]) for i in range(len(words) - 4)}
        if not phrases:
            continue
        shared = max((len(phrases & old) for old in seen), default=0)
        if shared < overlap * len(phrases):
            seen.append(phrases)
            chosen.append(number)
    return corpus.take(chosen)


class _StripDocstrings(ast.NodeTransformer):
    """Remove docstrings; comments are already gone from a syntax tree."""

    def _strip(self, node: ast.AST) -> ast.AST:
        """Return the node without a leading string."""
        self.generic_visit(node)
        body = getattr(node, "body", None)
        if body and isinstance(body[0], ast.Expr):
            value = body[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                del body[0]
                if not body and not isinstance(node, ast.Module):
                    body.append(ast.Pass())
        return node

    visit_Module = _strip  # noqa: N815 - ast's own names
    visit_ClassDef = _strip  # noqa: N815
    visit_FunctionDef = _strip  # noqa: N815
    visit_AsyncFunctionDef = _strip  # noqa: N815
