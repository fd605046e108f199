"""The public surface: pinned, documented, and named apart from its modules."""

import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest

import eestim as ee

TOP_LEVEL = [
    "HAC",
    "HC",
    "HCK",
    "OPG",
    "Anytime",
    "BCa",
    "Basic",
    "BeckKatz",
    "Bootstrap",
    "Clustered",
    "DriscollKraay",
    "EmpiricalLikelihood",
    "Estimate",
    "FayGraubard",
    "FixedB",
    "Frequency",
    "Importance",
    "Jackknife",
    "LeaveOut",
    "ModelBased",
    "PanelHAC",
    "Percentile",
    "Profile",
    "Sampling",
    "ScoreInverted",
    "Studentized",
    "Survey",
    "Transformed",
    "asymptotics",
    "average_predictions",
    "bootstrap_test",
    "compare",
    "covariance",
    "diagnose",
    "diagnostics",
    "equation",
    "errors",
    "estimate",
    "from_statsmodels",
    "glm",
    "load",
    "marginal_effects",
    "mean",
    "models",
    "ols",
    "pool",
    "report",
    "simulate",
    "stack",
]
NEEDS_TORCH = ("eestim.autodiff", "eestim.llm")


def modules() -> list[str]:
    found = pkgutil.walk_packages(ee.__path__, "eestim.")
    return sorted(module.name for module in found if "._" not in module.name)


def members(name: str) -> list[tuple[str, object]]:
    module = importlib.import_module(name)
    return [(entry, getattr(module, entry)) for entry in getattr(module, "__all__", [])]


def test_top_level_names_are_pinned():
    assert ee.__all__ == TOP_LEVEL


def test_top_level_names_are_documented():
    undocumented = [n for n in ee.__all__ if not inspect.getdoc(getattr(ee, n))]
    assert undocumented == []


@pytest.mark.parametrize("name", modules())
def test_every_public_name_exists_and_is_documented(name):
    if name.startswith(NEEDS_TORCH):
        pytest.importorskip("torch")
        pytest.importorskip("transformers")
    module = importlib.import_module(name)
    assert inspect.getdoc(module) or name.endswith("llm"), f"{name} has no docstring"
    for entry, value in members(name):
        if not (inspect.isclass(value) or inspect.isroutine(value)):
            continue  # constants and type aliases
        assert inspect.getdoc(value), f"{name}.{entry} has no docstring"
        if not inspect.isclass(value):
            continue
        for method, body in vars(value).items():
            if inspect.isfunction(body) and not method.startswith("_"):
                shown = inspect.getdoc(getattr(value, method))
                assert shown, f"{name}.{entry}.{method} has no docstring"


@pytest.mark.parametrize("name", modules())
def test_all_is_sorted_and_without_private_names(name):
    if name.startswith(NEEDS_TORCH):
        pytest.importorskip("torch")
        pytest.importorskip("transformers")
    listed = list(getattr(importlib.import_module(name), "__all__", []))
    assert len(set(listed)) == len(listed)
    assert [entry for entry in listed if entry.startswith("_")] == []


def test_no_module_shares_the_name_of_a_public_function():
    files = {path.stem for path in Path(ee.__path__[0]).iterdir()}
    functions = [n for n in ee.__all__ if inspect.isroutine(getattr(ee, n))]
    assert files & set(functions) == set()


def test_version_is_that_of_the_distribution():
    from importlib.metadata import PackageNotFoundError, version

    try:
        assert version("eestim") == ee.__version__
    except PackageNotFoundError:
        pytest.skip("eestim is not installed as a distribution")
