"""Stacking: equations whose later blocks read the parameters of earlier ones."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd

from eestim._arrays import Vector, as_float, as_start
from eestim._stacked import (
    Block,
    EquationBlock,
    FunctionBlock,
    Places,
    StackedEquation,
)
from eestim.equations import checked_data, column_of, labels_of
from eestim.errors import DataError
from eestim.weights import (
    Frequency,
    Weights,
    aligned_weights,
    check_units_present,
)

__all__ = ["StackedEquation", "stack"]

_Function: TypeAlias = Callable[[Any, Any], Any]


class _Labels(NamedTuple):
    """Labels of the parameters of one block, and the shape in which they are read."""

    labels: tuple[str, ...]
    shape: tuple[int, ...]


def stack(
    *,
    data: Mapping[str, Any] | pd.DataFrame | None = None,
    start: Any = None,
    names: Mapping[str, Sequence[str]] | Sequence[str] | None = None,
    jacobian: Mapping[str, _Function] | None = None,
    units: Any = None,
    weights: Weights | None = None,
    **blocks: Any,
) -> StackedEquation:
    r"""Return the estimating equation of several blocks on the same units.

    Parameters
    ----------
    **blocks : equation, or callable
        In the order in which they are solved. An equation (``ee.glm(...)``,
        ``ee.equation(...)``) has parameters of its own. A function
        ``psi(theta, data) -> (n, size)`` reads earlier blocks and its own parameters:
        ``theta["ps"]`` is the vector of the block ps, ``theta["ps[x]"]`` (or
        ``theta["x"]`` where only one block has it) one parameter.
    data : mapping of arrays, or DataFrame
        Passed to the functions. Row i is the same unit in every block.
    start : mapping, optional
        The start of each function by name: a number, a vector, or a mapping that names
        its parameters. Those of equations are optional. With one function, its start
        alone.
    names : mapping or sequence, optional
        Labels of the parameters of blocks, or the names of all parameters. By default
        ``ps[Intercept]``, ``effect[0]``, or ``effect`` for a number.
    jacobian : mapping, optional
        For some functions, ``jacobian(theta, data) -> (size, parameters so far)``, the
        mean derivative of psi without a change of sign; differences otherwise.
    units : str or (n,) array, optional
        Rows with the same label belong to one independent unit.
    weights : Frequency, Sampling or Importance, optional
        For the rows of every block; blocks must then have none of their own.

    Raises
    ------
    DataError
        If the blocks disagree about the rows, a function lacks a start, or returns
        another number of equations than it has parameters.

    References
    ----------
    Stefanski and Boos (2002), Am. Stat. 56, 29-38, section 3; Newey and McFadden
    (1994), Handbook of Econometrics 4, section 6.

    Examples
    --------
    The variance of a mean that was divided by an estimated one:

    >>> import eestim as ee
    >>> table = {"y": np.array([1.0, 2, 3, 6]), "z": np.array([1.0, 1, 2, 2])}
    >>> both = stack(
    ...     z=ee.mean("z", table),
    ...     ratio=lambda theta, d: (d["y"] - theta["ratio"] * theta["z"])[:, None],
    ...     data=table, start={"ratio": 1.0},
    ... )
    >>> fit = ee.estimate(both)
    >>> fit.params.to_dict()
    {'z[z]': 1.5, 'ratio': 2.0}
    """
    if not blocks:
        raise ValueError(
            "`stack` needs blocks: name them, as in stack(ps=equation, effect=psi)."
        )
    table, n_data = _as_data(data, blocks)
    starts = _starts(start, blocks)
    labels = _block_labels(names, blocks, starts)
    made = tuple(_laid_out(blocks, starts, labels, jacobian or {}))
    n_rows = _common_rows(made, n_data)
    known = {} if table is None else table
    codes = None
    if units is not None:
        given = column_of(known, units) if isinstance(units, str) else units
        codes, _ = labels_of(given, "units", n_rows)
    values = aligned_weights(weights, known, n_rows)
    check_units_present(weights, values, codes)
    if values is not None:
        _refuse_double_weights(made)
        if not isinstance(weights, Frequency):
            values = values * (n_rows / values.sum())  # results are free of the scale
    stacked = StackedEquation(
        made,
        _all_names(names, made, labels),
        _places_of(made, labels),
        table,
        n_rows,
        codes,
        values,
        None if weights is None else type(weights),
    )
    _check_functions(stacked)
    return stacked


def _is_equation(block: Any) -> bool:
    return hasattr(block, "psi") and hasattr(block, "sensitivity")


def _as_data(data: Any, blocks: Mapping[str, Any]) -> tuple[Any, int | None]:
    for name, block in blocks.items():
        if not (_is_equation(block) or callable(block)):
            hint = (
                f" Pass its equation: {name}=fit.equation."
                if hasattr(block, "equation")
                else ""
            )
            raise TypeError(
                f"block {name!r} must be an estimating equation or a function "
                f"psi(theta, data); got {type(block).__name__}.{hint}"
            )
    if data is None:
        wanting = [name for name, block in blocks.items() if not _is_equation(block)]
        if wanting:
            raise DataError(f"`data` is needed for the functions {wanting}.")
        return None, None
    if isinstance(data, Mapping):
        data = {
            name: np.asarray(value) if isinstance(value, list | tuple) else value
            for name, value in data.items()
        }
    return data, checked_data(data)


def _starts(start: Any, blocks: Mapping[str, Any]) -> dict[str, Any]:
    """Return the start of each block that was given one."""
    functions = [name for name, block in blocks.items() if not _is_equation(block)]
    if start is None:
        start = {}
    if not isinstance(start, Mapping):
        if len(functions) != 1:
            raise DataError(
                f"`start` must name its blocks ({', '.join(functions) or 'no function'}"
                "), as in start={'effect': 0.0}."
            )
        start = {functions[0]: start}
    strange = [name for name in start if name not in blocks]
    if strange and len(functions) == 1 and functions[0] not in start:
        own = {name: start[name] for name in strange}  # its parameters, by name
        start = {k: v for k, v in start.items() if k in blocks} | {functions[0]: own}
        strange = []
    missing = [name for name in functions if name not in start]
    if strange or missing:
        raise DataError(
            f"`start` has {strange or 'nothing'} that no block is called by, and lacks "
            f"{missing or 'nothing'}; each function needs a start, which says how many "
            f"parameters it has. Blocks are {list(blocks)}."
        )
    return dict(start)


def _block_labels(
    names: Any, blocks: Mapping[str, Any], starts: Mapping[str, Any]
) -> dict[str, _Labels]:
    """Return labels and the shape of the parameters of each block."""
    given = names if isinstance(names, Mapping) else {}
    unknown = [name for name in given if name not in blocks]
    if unknown:
        raise DataError(f"`names` has {unknown}; blocks are {list(blocks)}.")
    made: dict[str, _Labels] = {}
    for name, block in blocks.items():
        begun = starts.get(name)
        if _is_equation(block):
            labels: tuple[str, ...] = tuple(block.names)
            shape: tuple[int, ...] = (len(labels),)
        elif isinstance(begun, Mapping):
            labels, shape = tuple(map(str, begun)), (len(begun),)
        else:
            shape = np.asarray(begun).shape
            labels = tuple(",".join(map(str, place)) for place in np.ndindex(*shape))
        if name in given:
            if len(given[name]) != len(labels):
                raise DataError(
                    f"`names[{name!r}]` has {len(given[name])} entries for "
                    f"{len(labels)} parameters."
                )
            labels = tuple(map(str, given[name]))
        made[name] = _Labels(labels, shape)
    return made


def _full(name: str, label: str) -> str:
    return f"{name}[{label}]" if label else name


def _laid_out(
    blocks: Mapping[str, Any],
    starts: Mapping[str, Any],
    labels: Mapping[str, _Labels],
    jacobian: Mapping[str, _Function],
) -> list[Block]:
    unknown = [n for n in jacobian if n not in blocks or _is_equation(blocks[n])]
    if unknown:
        raise DataError(f"`jacobian` has {unknown}, which are not function blocks.")
    made: list[Block] = []
    position = 0
    for name, block in blocks.items():
        size = len(labels[name].labels)
        if size == 0:
            raise DataError(f"`start[{name!r}]` has no parameters.")
        initial = _initial(name, starts.get(name), size)
        where = slice(position, position + size)
        if _is_equation(block):
            made.append(EquationBlock(name, where, block, initial))
        elif initial is not None:
            own = FunctionBlock(name, where, block, initial, jacobian.get(name))
            made.append(replace(own, places=_places_of([*made, own], labels)))
        position += size
    return made


def _initial(name: str, begun: Any, size: int) -> Vector | None:
    if begun is None:
        return None
    if isinstance(begun, Mapping):
        begun = list(begun.values())
    vector = as_start(np.ravel(as_float(begun, f"start[{name!r}]")), f"start[{name!r}]")
    if len(vector) != size:
        raise DataError(
            f"`start[{name!r}]` has {len(vector)} entries for {size} parameters."
        )
    return vector


def _places_of(
    blocks: Sequence[Block],
    labels: Mapping[str, _Labels],
) -> Places:
    """Return what can be read by name: blocks, full names, and unshared labels."""
    places: dict[str, tuple[slice, tuple[int, ...]]] = {}
    every = [label for block in blocks for label in labels[block.name].labels]
    for block in blocks:
        for j, label in enumerate(labels[block.name].labels, start=block.where.start):
            one = (slice(j, j + 1), ())
            places[_full(block.name, label)] = one
            if label and every.count(label) == 1 and not label[0].isdigit():
                places.setdefault(label, one)
    for block in blocks:  # a block's name wins over a parameter's
        places[block.name] = (block.where, labels[block.name].shape)
    return places


def _all_names(
    names: Any,
    blocks: Sequence[Block],
    labels: Mapping[str, _Labels],
) -> tuple[str, ...]:
    made = [
        _full(block.name, label)
        for block in blocks
        for label in labels[block.name].labels
    ]
    if names is not None and not isinstance(names, Mapping):
        given = [str(name) for name in names]
        if len(given) != len(made):
            raise DataError(
                f"`names` has {len(given)} entries for {len(made)} parameters."
            )
        made = given
    if len(set(made)) != len(made):
        double = sorted({name for name in made if made.count(name) > 1})
        raise DataError(f"`names` are not different: {double}.")
    return tuple(made)


def _common_rows(blocks: Sequence[Block], n_data: int | None) -> int:
    counts = {} if n_data is None else {"`data`": n_data}
    for block in blocks:
        if not isinstance(block, EquationBlock):
            continue
        counts[f"block {block.name!r}"] = int(block.equation.n_units)
        _refuse_dropped(block)
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{what} has {count}" for what, count in counts.items())
        raise DataError(
            f"the blocks disagree about the units: {told}. Build all of them from the "
            "same rows, and give `units` and `weights` to `stack` alone."
        )
    return next(iter(counts.values()))


def _refuse_dropped(block: EquationBlock) -> None:
    kept = getattr(block.equation, "kept", None)
    given = int(getattr(block.equation, "n_given", 0))
    if kept is not None and len(kept) != given:
        raise DataError(
            f"block {block.name!r} dropped {given - len(kept)} of {given} rows, so its "
            "units are not those of the other blocks. Drop the same rows from the data "
            "of all blocks first."
        )


def _refuse_double_weights(blocks: Sequence[Block]) -> None:
    own = [
        block.name
        for block in blocks
        if isinstance(block, EquationBlock)
        and getattr(block.equation, "row_weights", None) is not None
    ]
    if own:
        raise DataError(
            f"`weights` were given to the stack and to the blocks {own}; those of the "
            "stack already weight the rows of every block."
        )


def _check_functions(stacked: StackedEquation) -> None:
    """Call each function once at its start, so that wrong shapes fail early."""
    theta = np.zeros(len(stacked.names))
    with np.errstate(all="ignore"):
        for block in stacked.blocks:
            if isinstance(block, FunctionBlock):
                theta[block.where] = block.initial
                block.rows(theta, stacked.data, stacked.n_rows)
            else:
                begun = block.initial
                begun = (
                    getattr(block.equation, "start", None) if begun is None else begun
                )
                theta[block.where] = 0.0 if begun is None else begun
