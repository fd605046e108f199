"""Design matrices from formulas, with calls limited to an allow-list."""

import ast
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from eestim._arrays import IntVector, Matrix, Vector, check_finite, show_rows
from eestim.errors import DataError

__all__ = [
    "ALLOWED_CALLS",
    "FormulaDesign",
    "design_from_formula",
    "new_design",
    "refuse_new_categories",
    "refuse_stateful",
]

# Formulaic's own transforms; NumPy functions are allowed as np.<name>.
ALLOWED_CALLS = frozenset(
    {
        *("C", "I", "Q", "bs", "cs", "cc", "cr", "center", "scale", "standardize"),
        *("poly", "lag", "hashed", "log", "log2", "log10", "exp", "exp2", "exp10"),
        *("sqrt", "abs", "min", "max"),
    }
)
# Of these, the value in a row depends on other rows.
_STATEFUL = frozenset(
    {
        *("bs", "cs", "cc", "cr", "center", "scale", "standardize", "poly", "lag"),
        *("min", "max"),
    }
)
_MOST_NUMERIC_LEVELS = 20
_NUMPY_CALLS = frozenset(
    {
        *("log", "log2", "log10", "log1p", "exp", "expm1", "sqrt", "abs", "absolute"),
        *("sin", "cos", "tan", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh"),
        *("minimum", "maximum", "where", "clip", "floor", "ceil", "round", "sign"),
        *("square", "power", "cbrt", "reciprocal", "isnan", "isfinite", "logical_not"),
    }
)


@dataclass(frozen=True, slots=True)
class FormulaDesign:
    """What a formula makes of a table.

    Attributes
    ----------
    response : (n,) array
    design : (n, p) array
    names : tuple of str
        Columns of the design, as formulaic spells them.
    specification : formulaic.ModelSpec
        Rebuilds the design for new data with the same coding.
    kept : (n,) int array
        Positions of the rows used.
    coding : formulaic.ModelSpecs
        Rebuilds outcome and design of another block alike.
    """

    response: Vector
    design: Matrix
    names: tuple[str, ...]
    specification: Any
    kept: IntVector
    coding: Any = None


def _check_call(node: ast.Call, expression: str) -> None:
    function = node.func
    if isinstance(function, ast.Name) and function.id in ALLOWED_CALLS:
        return
    if (
        isinstance(function, ast.Attribute)
        and isinstance(function.value, ast.Name)
        and function.value.id == "np"
        and function.attr in _NUMPY_CALLS
    ):
        return
    raise ValueError(
        f"`formula` calls {ast.unparse(function)!r} in {expression!r}, which is not in "
        "the allow-list (NumPy functions as np.log, and C, I, bs, poly, center, ...). "
        "Compute the column first, or pass `unsafe=True` for a formula you trust."
    )


def _check_expression(expression: str) -> None:
    """Refuse anything but arithmetic, comparisons and allowed calls.

    >>> _check_expression("np.log(x) + I(x**2)")
    """
    tree = ast.parse(expression, mode="eval")
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            _check_call(node, expression)
        elif isinstance(node, ast.Attribute):
            is_numpy = isinstance(node.value, ast.Name) and node.value.id == "np"
            if not is_numpy or node.attr.startswith("_"):
                raise ValueError(
                    f"`formula` reads the attribute {ast.unparse(node)!r}; only NumPy "
                    "functions (np.log) may be named with a dot. Compute the column "
                    "first, or pass `unsafe=True`."
                )
        elif isinstance(node, ast.Lambda | ast.comprehension | ast.NamedExpr):
            raise ValueError(
                f"`formula` contains {ast.unparse(node)!r}; use plain expressions."
            )


def _factors(formula: Any) -> list[Any]:
    """Return every factor of a formula, whatever its structure."""
    from formulaic.formula import SimpleFormula

    found: list[Any] = []

    def collect(part: Any) -> None:
        if isinstance(part, SimpleFormula):
            for term in part:
                found.extend(term.factors)

    formula._map(collect)
    return found


def _parsed(formula: str, data: pd.DataFrame, unsafe: bool) -> Any:
    from formulaic import Formula
    from formulaic.errors import FormulaSyntaxError

    try:
        parsed = Formula(formula)
    except (FormulaSyntaxError, SyntaxError) as error:
        raise ValueError(f"`formula` {formula!r} cannot be read: {error}") from error
    if not hasattr(parsed, "lhs") or not hasattr(parsed, "rhs"):
        raise ValueError(
            f"`formula` {formula!r} has no outcome; write it as 'y ~ x1 + x2'."
        )
    for side, part in (("left", parsed.lhs), ("right", parsed.rhs)):
        if isinstance(part, tuple):
            raise ValueError(
                f"`formula` {formula!r} has several parts (`|`) on the {side}, as "
                "instrumental variables have; this model takes one. Write the moments "
                "as an equation: ee.equation(psi, data, start)."
            )
    if len(parsed.lhs) != 1:
        raise ValueError(
            f"`formula` {formula!r} has {len(parsed.lhs)} outcomes; give one (a sum of "
            "columns is I(a + b))."
        )
    for factor in _factors(parsed):
        if factor.eval_method.value == "python" and not unsafe:
            _check_expression(factor.expr)
    _check_names(parsed, data, unsafe)
    return parsed


def _check_names(parsed: Any, data: pd.DataFrame, unsafe: bool) -> None:
    known = {str(column) for column in data.columns}
    if unsafe:
        return
    for name in sorted(str(variable) for variable in parsed.required_variables):
        if name not in known and name != "np":
            close = difflib.get_close_matches(name, sorted(known), n=1)
            hint = f"; did you mean {close[0]!r}?" if close else "."
            raise DataError(
                f"`formula` names {name!r}, which is not a column of `data`{hint} "
                f"Columns: {', '.join(sorted(known)[:20])}."
            )


def _complete_rows(parsed: Any, data: pd.DataFrame, na: str) -> IntVector:
    used = [
        c for c in data.columns if str(c) in set(map(str, parsed.required_variables))
    ]
    missing = data[used].isna().to_numpy().any(axis=1)
    if missing.any() and na == "raise":
        columns = [str(c) for c in used if data[c].isna().any()]
        raise DataError(
            f"`data` has missing values in {show_rows(np.flatnonzero(missing))} "
            f'(columns {", ".join(columns)}); impute them or pass `na="drop"`.'
        )
    if missing.all():
        raise DataError("`data` has no complete rows for this formula.")
    plain = {f.expr for f in _factors(parsed) if f.eval_method.value == "lookup"}
    for column in used:
        values = data[column]
        if str(column) in plain:
            _check_text(values.iloc[np.flatnonzero(~missing)], str(column))
        if values.dtype.kind == "f" and np.isinf(values.to_numpy()).any():
            rows = np.flatnonzero(np.isinf(values.to_numpy()))
            raise DataError(f"`{column}` has infinite values in {show_rows(rows)}.")
    return np.flatnonzero(~missing)


def _check_text(values: "pd.Series[Any]", column: str) -> None:
    """Refuse numbers stored as text, which would become one category each.

    A few levels that look like numbers are taken as the categories that they are;
    mixed types, stray words among numbers and many numeric levels are not.
    """
    if isinstance(values.dtype, pd.CategoricalDtype) or not (
        values.dtype.kind == "O" or pd.api.types.is_string_dtype(values.dtype)
    ):
        return
    is_text = values.map(lambda value: isinstance(value, str)).astype(bool)
    numeric = pd.to_numeric(values.where(is_text), errors="coerce").notna()
    share = float(numeric.mean())
    is_mixed = bool(is_text.any()) and not bool(is_text.all())
    if (
        is_mixed
        or not is_text.any()
        or 0.5 < share < 1.0
        or (share > 0 and values.nunique() > _MOST_NUMERIC_LEVELS)
    ):
        raise DataError(
            f"`{column}` has dtype {values.dtype} with numbers among its text; convert "
            f"it with pandas.to_numeric, or write C({column}) if they are categories."
        )


def design_from_formula(
    formula: str,
    data: pd.DataFrame | Mapping[str, Any],
    *,
    na: Literal["raise", "drop"] = "raise",
    unsafe: bool = False,
    like: Any = None,
) -> FormulaDesign:
    """Return the outcome and the design that a formula describes.

    Parameters
    ----------
    formula : str
        In the syntax of formulaic, ``"y ~ x1 + C(group)"``.
    data : DataFrame or mapping of columns
    na : {"raise", "drop"}
        What to do about rows with missing values in the columns used.
    unsafe : bool
        Allow any call in the formula. Never for formulas from strangers.
    like : formulaic.ModelSpecs, optional
        `FormulaDesign.coding` of an earlier block of the same table, whose coding of
        categories is kept.

    Raises
    ------
    DataError
        If a name is unknown, values are missing or infinite, or there are no rows, or
        a category is new to ``like``.
    ValueError
        If the formula cannot be read or calls what is not allowed.

    Examples
    --------
    >>> d = design_from_formula("y ~ x", {"y": [1.0, 2.0], "x": [0.0, 1.0]})
    >>> d.names, d.design.tolist()
    (('Intercept', 'x'), [[1.0, 0.0], [1.0, 1.0]])
    """
    from formulaic import model_matrix
    from formulaic.errors import FormulaMaterializationError

    if na not in ("raise", "drop"):
        raise ValueError(f'`na` must be "raise" or "drop"; got {na!r}.')
    table = pd.DataFrame(data).reset_index(drop=True)
    if len(table) == 0:
        raise DataError("`data` has no rows.")
    parsed = _parsed(formula, table, unsafe)
    kept = _complete_rows(parsed, table, na)
    table = table.iloc[kept].reset_index(drop=True)
    context = {"np": np}
    try:
        if like is None:
            matrices = model_matrix(parsed, table, na_action="ignore", context=context)
        else:
            refuse_new_categories(like, table)
            matrices = like.get_model_matrix(table, na_action="ignore", context=context)
    except FormulaMaterializationError as error:
        raise DataError(
            f"`formula` {formula!r} cannot be evaluated: {error}"
        ) from error
    response = _response(matrices.lhs, formula)
    design = np.ascontiguousarray(matrices.rhs.to_numpy(dtype=np.float64))
    names = tuple(str(name) for name in matrices.rhs.columns)
    for j, name in enumerate(names):
        check_finite(design[:, j], name)
    return FormulaDesign(
        response, design, names, matrices.rhs.model_spec, kept, matrices.model_spec
    )


def refuse_stateful(formula: str) -> None:
    """Raise where a term of a formula depends on more than its own row.

    Raises
    ------
    ValueError
        Naming the term.

    Examples
    --------
    >>> refuse_stateful("y ~ np.log(x) + C(g)")
    """
    from formulaic import Formula
    from formulaic.errors import FormulaSyntaxError

    try:
        factors = _factors(Formula(formula))
    except (FormulaSyntaxError, SyntaxError):
        return  # said by `design_from_formula`
    for factor in factors:
        if factor.eval_method.value != "python":
            continue
        for node in ast.walk(ast.parse(factor.expr, mode="eval")):
            called = getattr(node, "func", None)
            if isinstance(called, ast.Name) and called.id in _STATEFUL:
                raise ValueError(
                    f"`formula` has the term {factor.expr!r}, which depends on all "
                    "rows, and the data are read in blocks; make it a column first."
                )


def refuse_new_categories(coding: Any, table: pd.DataFrame) -> None:
    """Raise where a table has categories that a coding has not seen.

    Raises
    ------
    DataError
        Naming the factor, the category and its first row.
    """
    for part in (coding.lhs, coding.rhs):
        for factor, (_, state) in part.encoder_state.items():
            known = state.get("categories")
            if known is None:
                continue
            column = factor if factor in table.columns else factor[2:-1].split(",")[0]
            if column not in table.columns:
                raise DataError(
                    f"`formula` codes the expression {factor!r} as categories, which "
                    "cannot be checked block by block; make it a column first."
                )
            values = table[column]
            new = np.flatnonzero(~values.isin(list(known)).to_numpy())
            if len(new):
                raise DataError(
                    f"`{column}` has the category {values.iloc[int(new[0])]!r} in row "
                    f"{int(new[0])}, which the first block lacks. Make it a pandas "
                    "Categorical with all levels, or let the first block hold every "
                    "category."
                )


def _response(matrix: pd.DataFrame, formula: str) -> Vector:
    if matrix.shape[1] == 1:
        values = matrix.iloc[:, 0].to_numpy(dtype=np.float64)
    elif matrix.shape[1] == 2:  # a two-level outcome, coded by formulaic as two columns
        values = matrix.iloc[:, 1].to_numpy(dtype=np.float64)
    else:
        raise DataError(
            f"the outcome of {formula!r} has {matrix.shape[1]} columns "
            f"({', '.join(map(str, matrix.columns[:4]))}); it must be one numeric or "
            "two-level column. Convert text to numbers first."
        )
    return check_finite(values, formula.split("~")[0].strip())


def new_design(specification: Any, data: Any) -> Matrix:
    """Return the design of new data with the coding of the fit.

    Raises
    ------
    DataError
        If a column is missing or values are not finite.
    """
    from formulaic.errors import FormulaicError

    table = pd.DataFrame(data).reset_index(drop=True)
    needed = {str(name) for name in specification.required_variables} - {"np"}
    absent = sorted(needed - {str(column) for column in table.columns})
    if absent:
        raise DataError(f"`new_data` lacks the columns {absent}.")
    try:
        matrix = specification.get_model_matrix(
            table, na_action="ignore", context={"np": np}
        )
    except FormulaicError as error:
        raise DataError(f"`new_data` cannot be coded: {error}") from error
    return check_finite(matrix.to_numpy(dtype=np.float64), "new_data")
