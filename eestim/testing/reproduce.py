"""Counter-examples as Python code that runs."""

import ast
import importlib
import inspect
import sys
import textwrap
import types
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from eestim.equations import UserEquation
from eestim.models.linear import GeneralizedLinear
from eestim.testing.records import Example, Property
from eestim.testing.subjects import Source, _row_count, chosen_rows, rows_of

__all__ = ["counterexample"]

_MOST_CELLS = 2000  # of data written into the code


def counterexample(source: Source, failed: Property, example: Example) -> str:
    """Return code that makes a property fail again."""
    code = _Code()
    given, example = code.equation(source, example)
    which = failed.number or failed.name
    data = ", data=data" if code.has_data_argument else ""
    call = f"check_property({which!r}, {given}, {_shown(example)}{data})"
    return "\n".join([*code.header(), "", *code.lines, call])


def _shown(example: Example) -> str:
    plain = Example()
    parts = [
        f"{name}={getattr(example, name)!r}"
        for name in ("seed", "shift", "n_rows", "data_seed")
        if getattr(example, name) != getattr(plain, name)
    ]
    return f"Example({', '.join(parts)})"


class _Code:
    """Lines of code with the imports that they need."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.imports = {
            "import numpy as np",
            "from eestim.testing import Example, check_property",
        }
        self.known: set[str] = {"np"}
        self.has_data_argument = False

    def header(self) -> list[str]:
        return sorted(
            self.imports, key=lambda line: (not line.startswith("import"), line)
        )

    def add(self, *lines: str) -> None:
        self.lines += lines

    # -------------------------------------------------------------- equations

    def equation(self, source: Source, example: Example) -> tuple[str, Example]:
        """Write what was checked; return its expression and the example left."""
        if source.kind == "rng":
            return self.name_of(source.given, "factory"), example
        if source.kind == "data":
            name = self.name_of(source.given, "factory")
            example = self.data(source.data, example, "data")
            self.has_data_argument = True
            return name, example
        made = source.given
        if isinstance(made, GeneralizedLinear):
            return self.linear(made, example)
        if isinstance(made, UserEquation) or hasattr(made, "tensors"):
            return self.user(made, example)
        return self.found(made), example

    def data(self, data: Any, example: Example, name: str) -> Example:
        """Write the rows of an example; it then uses all of them."""
        rows = len(data) if isinstance(data, pd.DataFrame) else _length(data)
        chosen = chosen_rows(example, rows)
        which = np.arange(rows) if chosen is None else chosen
        self.add(f"{name} = {self.table(rows_of(data, which))}")
        seed = example.data_seed if chosen is None else 0
        return Example(example.seed, example.shift, None, seed)

    def table(self, data: Any) -> str:
        items = [f"    {str(k)!r}: {self.array(data[k])}," for k in data]
        body = "\n".join(["{", *items, "}"])
        if isinstance(data, pd.DataFrame):
            self.imports.add("import pandas as pd")
            return f"pd.DataFrame({body})"
        return body

    def array(self, values: Any) -> str:
        if np.ndim(values) == 0:
            return repr(values.item() if hasattr(values, "item") else values)
        array = np.asarray(values)
        text = f"np.array({array.tolist()!r})"
        return textwrap.fill(
            text,
            84,
            subsequent_indent="        ",
            break_long_words=False,
            break_on_hyphens=False,
        ).lstrip()

    def linear(self, made: GeneralizedLinear, example: Example) -> tuple[str, Example]:
        self.imports.add("import eestim as ee")
        columns = {"y": made.response, "X": made.design}
        for name in ("offset", "row_weights"):
            if getattr(made, name) is not None:
                columns[name] = getattr(made, name)
        example = self.data(columns, example, "data")
        options = [f"family={made.family.name!r}", f"link={made.link.name!r}"]
        if made.offset is not None:
            options.append('offset=data["offset"]')
        if made.row_weights is not None and made.weight_kind is not None:
            options.append(
                f'weights=ee.{made.weight_kind.__name__}(data["row_weights"])'
            )
        self.add(f'equation = ee.glm(data["y"], data["X"], {", ".join(options)})')
        return "equation", example

    def user(self, made: Any, example: Example) -> tuple[str, Example]:
        function = self.name_of(made.function, "psi")
        whole = _row_count(made)
        chosen = chosen_rows(example, whole)
        which = np.arange(whole) if chosen is None else chosen
        options = [f"names={made.names!r}"]
        derivative = getattr(made, "derivative", None)
        if derivative is not None:
            options.append(f"jacobian={self.name_of(derivative, 'jacobian')}")
        if made.unit_codes is not None:
            options.append(f"units={self.array(made.unit_codes[which])}")
        kind = getattr(made, "weight_kind", None)
        if made.row_weights is not None and kind is not None:
            self.imports.add("import eestim as ee")
            weights = self.array(made.row_weights[which])
            options.append(f"weights=ee.{kind.__name__}({weights})")
        example = self.data(made.data, example, "data")
        if hasattr(made, "tensors"):
            self.imports.add("from eestim import autodiff")
            options.append(f"dtype={made.dtype}")
            self.imports.add("import torch")
            maker = "autodiff.equation"
        else:
            self.imports.add("import eestim as ee")
            maker = "ee.equation"
        start = self.start(made)
        self.add(f"equation = {maker}({function}, data, {start}, {', '.join(options)})")
        return "equation", example

    def start(self, made: Any) -> str:
        if not made.block_places:
            return repr(made.start.tolist())
        parts = [
            f"{name!r}: {self.array(made.start[where].reshape(shape))}"
            for name, (where, shape) in made.block_places.items()
        ]
        return "{" + ", ".join(parts) + "}"

    def found(self, made: Any) -> str:
        """Return how an object is imported from a module that holds it."""
        for module_name, module in list(sys.modules.items()):
            if module_name.startswith("eestim") or not isinstance(
                module, types.ModuleType
            ):
                continue
            for name, value in list(vars(module).items()):
                if value is made and name.isidentifier():
                    self.imports.add(f"from {module_name} import {name}")
                    return name
        self.add(f"# equation: the {type(made).__name__} that was checked")
        return "equation"

    # -------------------------------------------------------------- functions

    def name_of(self, function: Any, fallback: str) -> str:
        """Import a function or write its source; return what it is called."""
        name, module = getattr(function, "__name__", ""), _module_of(function)
        if module and name.isidentifier():
            self.imports.add(f"from {module} import {name}")
            return str(name)
        if not isinstance(function, types.FunctionType):
            return self.found(function)
        source = _source_of(function)
        if source is None:
            self.add(f"# {fallback}: {function!r}, whose source is not at hand")
            return fallback
        name = name if name.isidentifier() else fallback
        if name not in self.known:
            self.known.add(name)
            self.free_names(function)
            self.add(source if source.startswith("def") else f"{name} = {source}", "")
        return name

    def free_names(self, function: types.FunctionType) -> None:
        """Write what a function reads from around it."""
        around = inspect.getclosurevars(function)
        for name, value in {**around.globals, **around.nonlocals}.items():
            if name in self.known or name == function.__name__:
                continue
            if isinstance(value, types.ModuleType):
                self.known.add(name)
                self.imports.add(f"import {value.__name__} as {name}")
            elif isinstance(value, types.FunctionType | type):
                made = self.name_of(value, name)
                if made != name:
                    self.add(f"{name} = {made}")
            elif isinstance(value, np.ndarray):
                self.known.add(name)
                self.add(f"{name} = {self.array(value)}")
            elif isinstance(value, Mapping | pd.DataFrame):
                self.known.add(name)
                self.add(f"{name} = {self.table(value)}")
            else:
                self.known.add(name)
                self.add(f"{name} = {value!r}")


def _length(data: Mapping[str, Any]) -> int:
    return next((len(value) for value in data.values() if np.ndim(value) > 0), 0)


def _module_of(function: Any) -> str | None:
    """Return the module that a function can be imported from."""
    module = getattr(function, "__module__", None)
    name = getattr(function, "__name__", "")
    if not module or module == "__main__":
        return None
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None
    return str(module) if found is function else None


def _source_of(function: types.FunctionType) -> str | None:
    """Return the source of a function, or of the only lambda on its lines."""
    try:
        source = textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError):
        return None
    if source.startswith("def"):
        return source
    try:
        tree = ast.parse(source.strip().rstrip(","))
    except SyntaxError:
        return None
    lambdas = [node for node in ast.walk(tree) if isinstance(node, ast.Lambda)]
    return ast.unparse(lambdas[0]) if len(lambdas) == 1 else None
