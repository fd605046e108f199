"""`eestim check`: the properties of an equation that a module holds."""

import importlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from eestim.cli.progress import steps
from eestim.errors import DataError

__all__ = ["Request", "checked", "found_equation"]


@dataclass(frozen=True, slots=True)
class Request:
    """What a user asked for.

    Attributes
    ----------
    target : str
        ``MODULE:EQUATION``; the module may be a file.
    data : Path or None
        A table for a factory.
    examples, seed : int
    as_json : bool
    """

    target: str
    data: Path | None
    examples: int
    seed: int
    as_json: bool


def found_equation(target: str) -> Any:
    """Return the equation or factory that ``MODULE:EQUATION`` names.

    Raises
    ------
    ValueError
        If it is not of that form, or the module has no such name.
    ImportError
        If there is no such module.
    """
    module_name, colon, name = target.rpartition(":")
    if not (colon and module_name and name):
        raise ValueError(
            f"{target!r} is not MODULE:EQUATION; write for instance models:equation, "
            "or models.py:equation for a file."
        )
    module = _module(module_name)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            known = [n for n in vars(module) if not n.startswith("_")][:12]
            raise ValueError(
                f"{module_name} has no {name!r}; it has {', '.join(known) or 'none'}."
            )
        found = getattr(found, part)
    return found


def _module(name: str) -> Any:
    path = Path(name)
    if path.suffix == ".py":
        if not path.is_file():
            raise DataError(f"no file {name}; check the path.")
        sys.path.insert(0, str(path.parent.resolve()))
        name = path.stem
    elif str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    return importlib.import_module(name)


def checked(request: Request, console: Console) -> tuple[str, str]:
    """Return the cause of a failure in a line, empty where all holds, and the report.

    Raises
    ------
    ValueError, ImportError
        If there is no such equation.
    """
    from eestim.testing import FailedCheckError, check_equation

    equation, table = found_equation(request.target), None
    if request.data is not None:
        from eestim.cli.files import read_table

        table = read_table(request.data)
    try:
        with steps(console, "examples") as report:
            held = check_equation(
                equation,
                data=table,
                examples=request.examples,
                seed=request.seed,
                count=lambda done: report(done, request.examples),
            )
    except FailedCheckError as failed:
        return f"{failed.property}: {failed.cause or failed.violation}", _told(
            request, failed
        )
    rows = [{"number": one.number, "name": one.name} for one in held]
    if request.as_json:
        return "", json.dumps({"target": request.target, "ok": True, "held": rows})
    named = "\n".join(f"  {one.number or '-':>3}  {one.name}" for one in held)
    return "", f"{request.target}: {len(held)} properties hold\n{named}"


def _told(request: Request, failed: Any) -> str:
    if not request.as_json:
        return str(failed)
    return json.dumps(
        {
            "target": request.target,
            "ok": False,
            "number": failed.property.number,
            "property": failed.property.name,
            "violation": failed.violation,
            "cause": failed.cause,
            "counterexample": failed.counterexample,
        }
    )
