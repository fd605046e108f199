"""Fixtures shared by the suite: reference cases kept outside the repository."""

import json
import os

if "PYTEST_XDIST_WORKER" in os.environ:
    # Before anything loads OpenMP: more threads than cores slow each other down.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]

# The same examples every time: a new one is a change of the code, not of the weather.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")


def pytest_xdist_auto_num_workers() -> int:
    """Return the cores that this process may use; each loads a torch: at most eight."""
    return min(joblib.cpu_count(), 8)


@dataclass(frozen=True, slots=True)
class ReferenceCases:
    """Numbers of other packages, with the data they were computed on."""

    folder: Path

    def case(self, name: str) -> dict[str, Any]:
        for entry in json.loads((self.folder / "cases.json").read_text()):
            if entry["id"] == name:
                return entry
        pytest.skip(f"no reference case {name!r} in {self.folder}")

    def frame(self, name: str) -> pd.DataFrame:
        return pd.read_csv(self.folder / "data" / name)


def reference_folder() -> Path:
    return Path(os.environ.get("EESTIM_REFCASES", ROOT.parent / "shared" / "refcases"))


@pytest.fixture(scope="session")
def refcases() -> ReferenceCases:
    folder = reference_folder()
    if not (folder / "cases.json").is_file():
        pytest.skip(f"reference cases absent: set EESTIM_REFCASES (looked in {folder})")
    return ReferenceCases(folder)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20260101)
