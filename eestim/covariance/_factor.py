"""Finite-sample factors written as arithmetic in G, n and k."""

import ast
from collections.abc import Callable

import numpy as np

from eestim.errors import InferenceError

__all__ = ["finite_factor"]

_OPERATIONS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
    ast.Pow: lambda a, b: float(a**b),
}
_SYMBOLS = ("G", "n", "k")


def finite_factor(expression: str, **values: float) -> float:
    """Return the value of an arithmetic expression in G, n and k.

    Only numbers, the three symbols, parentheses and ``+ - * / **`` are read; nothing
    is executed.

    Parameters
    ----------
    expression : str
        For instance ``"G/(G-1)*(n-1)/n"``.
    **values : float
        Values of ``G``, ``n`` and ``k``.

    Raises
    ------
    ValueError
        If the expression has anything else in it.
    InferenceError
        If its value is not a positive number, as G/(G-k) with G <= k.

    Examples
    --------
    >>> finite_factor("G/(G-1)*(n-1)/(n-k)", G=50, n=1000, k=3)
    1.0224551204634311
    """
    try:
        tree = ast.parse(expression, mode="eval").body
    except SyntaxError as error:
        raise ValueError(_bad_factor(expression, "is not an expression")) from error
    try:
        value = _evaluate(tree, expression, values)
    except (ZeroDivisionError, OverflowError, TypeError):
        value = float("nan")
    if not (np.isfinite(value) and value > 0.0):
        given = ", ".join(f"{name} = {values[name]:g}" for name in values)
        raise InferenceError(
            f"the factor {expression} is {value:g} for {given}, not a positive number; "
            "more clusters than parameters are needed, or another `kind` or `factor`."
        )
    return value


def _evaluate(node: ast.expr, expression: str, values: dict[str, float]) -> float:
    match node:
        case ast.Constant(value=int() | float() as number) if number is not True:
            return float(number)
        case ast.Name(id=name) if name in _SYMBOLS:
            return float(values[name])
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return -_evaluate(inner, expression, values)
        case ast.BinOp(left=left, op=operation, right=right) if (
            type(operation) in _OPERATIONS
        ):
            return _OPERATIONS[type(operation)](
                _evaluate(left, expression, values),
                _evaluate(right, expression, values),
            )
    raise ValueError(_bad_factor(expression, f"contains {ast.unparse(node)!r}"))


def _bad_factor(expression: str, cause: str) -> str:
    return (
        f"`factor={expression!r}` {cause}; write arithmetic (+ - * / **) in the number "
        "of clusters G, of rows n and of parameters k, such as 'G/(G-1)*(n-1)/n'."
    )
