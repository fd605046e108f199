"""Imports point one way, and `import eestim` stays light."""

import ast
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "eestim"

LAYERS = (
    {"errors", "_arrays", "_linalg", "_differentiate", "findings"},
    {"equations", "blocks", "moments", "weights"},
    {"roots", "covariance"},
    {"estimation", "storage", "stacking", "_stacked"},
    {"inference", "asymptotics", "diagnostics"},
    {"models", "testing", "simulate", "report"},
    {"autodiff"},
    {"llm"},
    {"cli"},
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
TOP = LEVEL["report"]  # what `eestim/__init__.py` may re-export

# `Estimate` reports itself: its methods import what they call, when called.
EXCEPTIONS = {
    ("estimation", name)
    for name in ("inference", "asymptotics", "diagnostics", "report")
}

TENSORS = {"torch", "transformers", "accelerate", "peft", "safetensors", "gguf"}
LAZY = {"matplotlib", "jinja2", "tabulate", "statsmodels", "dask", "formulaic"}
UNLOADED = [*sorted(TENSORS | LAZY), "distributed", "typer", "rich", "hypothesis"]


def module_name(path: Path) -> tuple[str, ...]:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def base_of(node: ast.ImportFrom, importer: tuple[str, ...], is_package: bool) -> str:
    """Return the absolute module that a `from` statement names."""
    if node.level == 0:
        return node.module or ""
    keep = len(importer) - node.level + (1 if is_package else 0)
    return ".".join([*importer[:keep], *([node.module] if node.module else [])])


def imports_of(
    source: str, importer: tuple[str, ...], is_package: bool = False
) -> Iterator[tuple[str, bool]]:
    """Yield (module, whether inside a function) of every import of a source."""
    tree = ast.parse(source)
    inside = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        is_lazy = id(node) in inside
        if isinstance(node, ast.Import):
            yield from ((alias.name, is_lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = base_of(node, importer, is_package)
            is_root = base == "eestim"
            for alias in node.names:
                found = LEVEL.keys() & {alias.name} if is_root else ()
                yield (f"eestim.{alias.name}" if found else base, is_lazy)


def faults_of(
    source: str, importer: tuple[str, ...], is_package: bool = False
) -> list[str]:
    """Return what a module imports against the direction of the layers."""
    own = importer[1] if len(importer) > 1 else None
    level = TOP if own is None else LEVEL.get(own, 0)
    faults = []
    for module, is_lazy in imports_of(source, importer, is_package):
        head, *rest = module.split(".")
        if head == "eestim":
            other = rest[0] if rest else None
            target = TOP if other is None else LEVEL.get(other, TOP)
            is_excepted = is_lazy and (own, other) in EXCEPTIONS
            if target > level and not is_excepted:
                faults.append(module)
            if other is None and level <= TOP and own is not None:
                faults.append(module)  # the package itself, which imports everyone
        elif (
            head in TENSORS
            and not (own in ("autodiff", "llm") or (own == "cli" and is_lazy))
        ) or (head in LAZY and not is_lazy and own != "llm"):
            faults.append(module)
    return faults


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def test_every_module_belongs_to_a_layer():
    known = set(LEVEL) | {"__init__"}
    found = {
        path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in sources()
    }
    assert found - known == set()


@pytest.mark.parametrize(
    "path", sources(), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_imports_point_one_way(path):
    faults = faults_of(
        path.read_text(encoding="utf-8"), module_name(path), path.name == "__init__.py"
    )
    assert faults == []


@pytest.mark.parametrize(
    ("source", "importer", "is_package"),
    [
        ("from . import llm", ("eestim",), True),
        ("from . import llm", ("eestim", "roots"), False),
        ("from ..llm import prefix", ("eestim", "covariance", "hc"), False),
        ("from eestim import llm", ("eestim", "models", "basic"), False),
        ("import eestim.cli.app", ("eestim", "llm", "base"), False),
        ("def f():\n    import eestim.report", ("eestim", "roots"), False),
        ("import eestim", ("eestim", "covariance", "hc"), False),
        ("import torch", ("eestim", "cli", "lm"), False),
        ("def f():\n    import torch", ("eestim", "report", "plots"), False),
        ("import matplotlib.pyplot", ("eestim", "report", "plots"), False),
        ("from eestim.inference import wald", ("eestim", "estimation"), False),
    ],
)
def test_scan_sees_a_forbidden_import(source, importer, is_package):
    assert faults_of(source, importer, is_package) != []


@pytest.mark.parametrize(
    ("source", "importer"),
    [
        ("import eestim as ee", ("eestim", "cli", "fit")),
        ("def f():\n    import torch", ("eestim", "cli", "lm")),
        ("def f():\n    import eestim.report.tables", ("eestim", "estimation")),
        ("from eestim.roots import Root", ("eestim", "covariance", "hc")),
    ],
)
def test_scan_allows_what_the_layers_allow(source, importer):
    assert faults_of(source, importer) == []


def resolved(module: str, known: set[str]) -> str | None:
    """Return the module itself, or the one that holds an imported name."""
    while module and module not in known:
        module = module.rpartition(".")[0]
    return module or None


def test_no_cycle_of_imports_at_module_level():
    files = {".".join(module_name(path)): path for path in sources()}
    graph: dict[str, set[str]] = {}
    for name, path in files.items():
        if path.name == "__init__.py":
            continue  # a package re-exports its modules
        tree = ast.parse(path.read_text(encoding="utf-8"))
        tree.body = [n for n in tree.body if not isinstance(n, ast.If)]  # typing only
        found = imports_of(ast.unparse(tree), tuple(name.split(".")))
        targets = {resolved(module, set(files)) for module, lazy in found if not lazy}
        graph[name] = {
            t for t in targets if t and files[t].name != "__init__.py" and t != name
        }
    done: set[str] = set()
    while graph:
        free = {name for name, needs in graph.items() if needs <= done}
        assert free, f"cycle among {sorted(graph)}"
        done |= free
        graph = {name: needs for name, needs in graph.items() if name not in free}


def loaded_after(statement: str) -> list[str]:
    code = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("statement", "allowed"),
    [
        ("import eestim", set()),
        ("import eestim.report.html, eestim.report.studies", set()),
        ("import eestim.cli.app", {"typer", "rich"}),
    ],
)
def test_fresh_interpreter_leaves_heavy_packages_unloaded(statement, allowed):
    loaded = set(loaded_after(statement))
    assert [name for name in UNLOADED if name in loaded - allowed] == []


def test_import_leaves_what_few_need_for_later():
    """scipy.stats alone takes longer than the rest of the package."""
    later = {"scipy.stats", "eestim.asymptotics", "eestim.simulate", "formulaic"}
    assert later & set(loaded_after("import eestim")) == set()
    assert later - set(loaded_after("import eestim.asymptotics")) == {
        "eestim.simulate",
        "formulaic",
    }


def test_import_time_is_measured(record_property):
    """Record how long `import eestim` takes beyond its dependencies; assert nothing."""

    def seconds(statement: str) -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", statement], check=True)
        return time.perf_counter() - began

    base = min(seconds("import numpy, scipy, pandas") for _ in range(2))
    whole = min(seconds("import numpy, scipy, pandas, eestim") for _ in range(2))
    record_property("import_eestim_extra_seconds", round(whole - base, 3))
    print(f"import eestim takes {whole - base:.2f} s more than numpy, scipy, pandas")
