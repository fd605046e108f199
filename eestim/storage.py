"""Saving and loading estimates without executing code."""

import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eestim.covariance.base import Covariance
from eestim.equations import Evaluated
from eestim.errors import DataError
from eestim.findings import Finding
from eestim.roots import Root, Status

if TYPE_CHECKING:
    from eestim.estimation import Estimate

__all__ = ["FORMAT", "load", "save"]

FORMAT = 1


def save(estimate: "Estimate", path: str | Path) -> Path:
    """Write an estimate to one file: JSON for names and choices, NPY for arrays.

    Contributions psi and A at the root are stored, so that influence, functionals
    and covariance rules that need psi alone work after loading.

    Returns
    -------
    Path
        The file written.
    """
    target, spread = Path(path), estimate.spread
    meta = {
        "format": FORMAT,
        "names": list(estimate.names),
        "n_units": int(estimate.n_units),
        "status": estimate.root.status.name,
        "residual": estimate.root.residual,
        "steps": estimate.root.steps,
        "rule": spread.rule,
        "citation": spread.citation,
        "factor": spread.factor,
        "dof_kind": spread.dof_kind,
        "n_clusters": list(spread.n_clusters),
        "findings": [_finding_record(finding) for finding in spread.findings],
    }
    arrays: dict[str, Any] = {
        "theta": estimate.theta,
        "matrix": spread.matrix,
        "dof": np.broadcast_to(spread.dof, len(estimate.names)).astype(float),
        "psi": estimate.equation.psi(estimate.theta),
        "sensitivity": estimate.equation.sensitivity(estimate.theta),
    }
    if spread.replicates is not None:
        arrays["replicates"] = spread.replicates
    if spread.coordinates is not None:
        arrays["inner"], arrays["turn"] = spread.coordinates
    temporary = target.with_name(target.name + ".part")
    with temporary.open("wb") as stream:
        np.savez(stream, meta=np.array(json.dumps(meta)), **arrays)
    temporary.replace(target)
    return target


def _finding_record(finding: Finding) -> dict[str, Any]:
    return {name: getattr(finding, name) for name in Finding.__slots__}


def load(path: str | Path) -> "Estimate":
    """Return an estimate written by `Estimate.save`.

    Raises
    ------
    DataError
        If the file is not one, or was written by a newer version.
    """
    from eestim.estimation import Estimate

    try:
        with np.load(Path(path), allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        meta = json.loads(str(arrays.pop("meta")))
    except (KeyError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"`path` {path} is not an eestim estimate: {error}") from error
    if meta.get("format") != FORMAT:
        raise DataError(
            f"`path` {path} has format {meta.get('format')!r}; this version reads "
            f"{FORMAT}. Update eestim."
        )
    names, theta = tuple(meta["names"]), arrays["theta"]
    spread = Covariance(
        arrays["matrix"],
        meta["rule"],
        meta["citation"],
        factor=meta["factor"],
        dof=arrays["dof"],
        dof_kind=meta["dof_kind"],
        n_clusters=tuple(meta["n_clusters"]),
        findings=tuple(Finding(**record) for record in meta["findings"]),
        replicates=arrays.get("replicates"),
        coordinates=(arrays["inner"], arrays["turn"]) if "turn" in arrays else None,
    )
    root = Root(theta, Status[meta["status"]], meta["residual"], meta["steps"])
    equation = Evaluated(names, arrays["psi"], arrays["sensitivity"], theta)
    return Estimate(names, theta, root, meta["n_units"], spread, equation)
