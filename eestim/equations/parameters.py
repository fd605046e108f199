"""Parameter vectors whose blocks are read by name."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eestim._arrays import Vector, as_float, as_start
from eestim.errors import DataError

__all__ = ["Blocks", "Parameters", "named_blocks"]


class Parameters(np.ndarray[Any, np.dtype[np.float64]]):
    """A parameter vector whose blocks can be read by name.

    It is an ordinary (p,) array; ``theta["beta"]`` is the block ``beta`` with the
    shape of its start (a float for a scalar block).
    """

    blocks: Mapping[str, tuple[slice, tuple[int, ...]]]

    def __new__(  # noqa: D102 - numpy's way to make a view
        cls, theta: Vector, blocks: Mapping[str, tuple[slice, tuple[int, ...]]]
    ) -> "Parameters":
        view = np.asarray(theta, dtype=np.float64).view(cls)
        view.blocks = blocks
        return view

    def __array_finalize__(self, source: Any) -> None:
        self.blocks = getattr(source, "blocks", {})

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            if key not in self.blocks:
                raise KeyError(
                    f"no block {key!r} in theta; blocks are {sorted(self.blocks)}"
                )
            where, shape = self.blocks[key]
            values = np.asarray(self)[where]
            return values.reshape(shape) if shape else float(values[0])
        return np.asarray(self)[key]


Blocks = Mapping[str, tuple[slice, tuple[int, ...]]]


def named_blocks(
    start: Any, names: Sequence[str] | Mapping[str, Sequence[str]] | None
) -> tuple[Vector, Blocks, tuple[str, ...]]:
    """Return the start as a vector, the place of each block, and parameter names.

    Parameters
    ----------
    start : vector, number, or mapping of named blocks
    names : names of all parameters, or of the entries of each block

    Examples
    --------
    >>> theta, blocks, names = named_blocks({"beta": [0, 0], "mu": 1}, None)
    >>> names
    ('beta[0]', 'beta[1]', 'mu')
    """
    if not isinstance(start, Mapping):
        vector = as_start(start)
        labels = _labels(names, [f"theta[{j}]" for j in range(len(vector))])
        return vector, {}, labels
    blocks: dict[str, tuple[slice, tuple[int, ...]]] = {}
    parts: list[Vector] = []
    default: list[str] = []
    position = 0
    for name, value in start.items():
        block = as_float(value, f"start[{name!r}]")
        if not np.isfinite(block).all():
            raise DataError(f"`start[{name!r}]` has values that are not finite.")
        blocks[name] = (slice(position, position + block.size), block.shape)
        given = names.get(name) if isinstance(names, Mapping) else None
        default += _block_labels(name, block.shape, given)
        parts.append(block.ravel())
        position += block.size
    if position == 0:
        raise DataError("`start` has no parameters.")
    labels = _labels(None if isinstance(names, Mapping) else names, default)
    return np.concatenate(parts), blocks, labels


def _block_labels(
    name: str, shape: tuple[int, ...], given: Sequence[str] | None
) -> list[str]:
    size = int(np.prod(shape, dtype=int))
    if given is not None:
        if len(given) != size:
            raise DataError(
                f"`names[{name!r}]` has {len(given)} entries for {size} parameters."
            )
        return [f"{name}[{label}]" for label in given]
    if not shape:
        return [name]
    return [f"{name}[{','.join(map(str, index))}]" for index in np.ndindex(*shape)]


def _labels(names: Any, default: list[str]) -> tuple[str, ...]:
    if names is None:
        return tuple(default)
    labels = tuple(str(name) for name in names)
    if len(labels) != len(default) or len(set(labels)) != len(labels):
        raise DataError(
            f"`names` has {len(labels)} entries ({len(set(labels))} different) for "
            f"{len(default)} parameters."
        )
    return labels
