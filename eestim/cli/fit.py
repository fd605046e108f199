"""The command ``eestim fit``: a model and its covariance from words."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import eestim as ee
from eestim.cli.files import read_table
from eestim.covariance import Clustered, CovarianceRule
from eestim.errors import DataError
from eestim.estimation import Estimate
from eestim.report.page import plain

__all__ = [
    "Request",
    "as_json",
    "check_level",
    "estimate_from",
    "rule_from",
    "save_new",
]

_CLUSTERED = {
    kind.lower(): kind for kind in ("CR0", "CR1", "CR1p", "CR1S", "CR2", "CR3")
}
_UNCLUSTERED: dict[str, CovarianceRule] = {
    "model": ee.ModelBased(),
    "opg": ee.OPG(),
    "hc0": ee.HC(0),
    "hc1": ee.HC(1),
    "hc2": ee.HC(2),
    "hc3": ee.HC(3),
    "hc4": ee.HC(4),
    "hc4m": ee.HC("4m"),
    "hc5": ee.HC(5),
}


@dataclass(frozen=True, slots=True)
class Request:
    """What ``eestim fit`` was asked for; options as on the command line."""

    formula: str
    data: Path
    family: str = "gaussian"
    link: str | None = None
    covariance: str | None = None
    clusters: tuple[str, ...] = ()
    offset: str | None = None
    exposure: str | None = None
    na: str = "raise"


def rule_from(name: str | None, clusters: tuple[str, ...]) -> CovarianceRule:
    """Return the covariance rule that a name and columns of clusters mean.

    Without a name it is HC1, and with clusters CR1S, the default of Stata.

    Raises
    ------
    ValueError
        If the name is unknown, or the clusters and the name do not fit together.

    Examples
    --------
    >>> rule_from("HC3", ()), rule_from(None, ("firm",)).kind
    (HC(kind=3), 'CR1S')
    """
    chosen = (name or ("cr1s" if clusters else "hc1")).lower()
    if chosen in _CLUSTERED:
        if not clusters:
            raise ValueError(
                f"`--covariance {name}` needs clusters; name their column with "
                "`--cluster`."
            )
        return Clustered(*clusters, kind=cast(Any, _CLUSTERED[chosen]))
    if chosen not in _UNCLUSTERED:
        known = ", ".join([*_UNCLUSTERED, *_CLUSTERED])
        raise ValueError(f"`--covariance` must be one of {known}; got {name!r}.")
    if clusters:
        raise ValueError(
            f"`--covariance {name}` takes no clusters, but `--cluster` names "
            f"{', '.join(clusters)}; use one of {', '.join(_CLUSTERED)}."
        )
    return _UNCLUSTERED[chosen]


def estimate_from(request: Request) -> Estimate:
    """Return the estimate that was asked for."""
    rule = rule_from(request.covariance, request.clusters)
    if request.na not in ("raise", "drop"):
        raise ValueError(f"`--na` must be raise or drop; got {request.na!r}.")
    equation = ee.glm(
        request.formula,
        read_table(request.data),
        family=request.family,
        link=request.link,
        offset=request.offset,
        exposure=request.exposure,
        na=cast(Literal["raise", "drop"], request.na),
    )
    return ee.estimate(equation, covariance=rule)


def check_level(level: float) -> None:
    """Refuse a level that is no probability, before anything is computed."""
    if not 0.0 < level < 1.0:
        raise ValueError(f"`--level` must lie between 0 and 1; got {level:g}.")


def save_new(estimate: Estimate, path: Path) -> None:
    """Save an estimate to a file that does not exist yet.

    Raises
    ------
    DataError
        If the file exists.
    """
    if path.exists():
        raise DataError(f"`--save` {path} exists; name a new file, or remove it.")
    estimate.save(path)


def as_json(estimate: Estimate, formula: str, level: float) -> str:
    """Return everything about an estimate as JSON, for machines.

    Infinite degrees of freedom are null.
    """
    table = estimate.table(level).assign(dof=estimate.dof)
    record = {
        "eestim": ee.__version__,
        "formula": formula,
        "n_units": estimate.n_units,
        "level": level,
        "rule": estimate.rule,
        "dof_kind": estimate.dof_kind,
        "n_clusters": list(estimate.spread.n_clusters),
        "root": {
            "status": estimate.root.status.name.lower(),
            "residual": estimate.root.residual,
            "steps": estimate.root.steps,
        },
        "parameters": [
            {"name": name, **row} for name, row in table.to_dict("index").items()
        ],
        "covariance": estimate.spread.matrix,
        "findings": [
            {
                name: getattr(finding, name)
                for name in (
                    "name",
                    "status",
                    "value",
                    "threshold",
                    "meaning",
                    "advice",
                )
            }
            for finding in estimate.findings
        ],
    }
    return json.dumps(plain(record), indent=1, allow_nan=False)
