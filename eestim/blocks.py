"""Block sources: tables larger than memory, read a block of rows at a time.

A Parquet file or folder, a Dask DataFrame, or a function that returns a new iterator of
DataFrames. What is a sum over units (psi, its outer products, its derivative) is added
up block by block; what needs every row says so.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd

from eestim._arrays import Matrix, Vector, show_rows
from eestim.errors import CapabilityError, DataError, InterpolationError
from eestim.moments import Moments, moments_of

__all__ = [
    "Block",
    "BlockSource",
    "BlockedEquation",
    "SummedEquation",
    "block_source",
    "in_block",
    "refuse_blocks",
    "summed_equation",
    "sums_within",
    "total_moments",
]

_ROWS = 65_536  # of a block of Parquet: 26 MB at 50 columns
_WORKING = (
    "HC(0), HC(1), Clustered(column, kind='CR0', 'CR1', 'CR1p' or 'CR1S') and, for "
    "models, ModelBased() and OPG()"
)


def refuse_blocks(wanted: str) -> NoReturn:
    """Raise CapabilityError for what needs every row in memory.

    Raises
    ------
    CapabilityError
        Naming the covariance rules that work with blocks.
    """
    raise CapabilityError(
        f"{wanted} needs all rows in memory, and this equation reads its data in "
        f"blocks. With blocks use {_WORKING}; or pass the data as a DataFrame."
    )


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive rows of a source.

    Attributes
    ----------
    number : int
        From 0, in the order of reading.
    first : int
        Row of the source that is row 0 of the frame.
    frame : DataFrame
    """

    number: int
    first: int
    frame: pd.DataFrame

    def __str__(self) -> str:
        return f"block {self.number} (rows {self.first} to {self.last} of the source)"

    @property
    def last(self) -> int:
        """The last row of the source in this block."""
        return self.first + len(self.frame) - 1


def in_block(block: Block, error: DataError) -> DataError:
    """Return the error with the place of its rows."""
    return DataError(f"in {block}, rows counted from its first: {error}")


@dataclass(frozen=True, slots=True)
class BlockSource:
    """A table that can be read again and again, a block at a time.

    Made by `block_source`.

    Attributes
    ----------
    read : callable
        From names of columns (None for all) to a new iterator of DataFrames.
    name : str
        What errors call it.
    """

    read: Callable[[Sequence[str] | None], Iterator[Any]]
    name: str

    def blocks(
        self, columns: Sequence[str] | None = None, n_rows: int | None = None
    ) -> Iterator[Block]:
        """Yield the blocks that have rows, their columns checked to agree.

        Parameters
        ----------
        columns : sequence of str, optional
            What to read; all by default.
        n_rows : int, optional
            Number of rows of an earlier reading.

        Raises
        ------
        DataError
            If a column is missing from a block or changes its kind, there are no rows
            at all, or not as many as there were.
        TypeError
            If something other than a DataFrame is read.
        """
        first, number, kinds = 0, -1, None
        for number, frame in enumerate(self.read(columns)):
            if not isinstance(frame, pd.DataFrame):
                raise TypeError(
                    f"{self.name} gave a {type(frame).__name__} as block {number}; "
                    "each must be a pandas DataFrame."
                )
            if not len(frame):
                continue
            kept = frame if columns is None else _selected(frame, columns, number)
            block = Block(number, first, _plain_text(kept.reset_index(drop=True)))
            kinds = _agreeing(kinds, block)
            yield block
            first += len(frame)
        if n_rows is not None and first != n_rows:
            raise DataError(
                f"{self.name} gave {n_rows} rows before and {first} now; every reading "
                "must give the same rows (a function must return a new iterator at "
                "every call)."
            )
        if not first:
            raise DataError(
                f"{self.name} has no rows ({number + 1} blocks were read)."
                + (
                    " If it is a function, it must return a new iterator at every call."
                    if number < 0
                    else ""
                )
            )


def _plain_text(frame: pd.DataFrame) -> pd.DataFrame:
    """Return text as objects: formulas do not take Arrow strings for categories."""
    arrow = [
        name
        for name in frame.columns
        if pd.api.types.is_string_dtype(frame[name].dtype)
        and not isinstance(frame[name].dtype, pd.CategoricalDtype)
        and str(frame[name].dtype) not in ("str", "object")
    ]
    return frame.astype(dict.fromkeys(arrow, object)) if arrow else frame


def _selected(frame: pd.DataFrame, columns: Sequence[str], number: int) -> pd.DataFrame:
    absent = [name for name in columns if name not in frame.columns]
    if absent:
        raise DataError(
            f"block {number} lacks the columns {absent}; it has "
            f"{[str(c) for c in frame.columns][:20]}."
        )
    return frame[list(columns)]


def _agreeing(kinds: dict[str, str] | None, block: Block) -> dict[str, str]:
    """Return the kind of each column, or raise where a block differs from the first."""
    found = {str(name): _kind(block.frame[name]) for name in block.frame.columns}
    if kinds is None:
        return found
    if found.keys() != kinds.keys():
        lacking, extra = kinds.keys() - found.keys(), found.keys() - kinds.keys()
        raise DataError(
            f"the columns of {block} differ from those of the first: "
            f"missing {sorted(lacking)}, additional {sorted(extra)}. Every block needs "
            "the same columns."
        )
    changed = [name for name in found if found[name] != kinds[name]]
    if changed:
        name = changed[0]
        raise DataError(
            f"column {name!r} holds {found[name]} in {block} and {kinds[name]} in the "
            "first. Convert it before writing."
        )
    return kinds


def _kind(values: "pd.Series[Any]") -> str:
    if isinstance(values.dtype, pd.CategoricalDtype):
        return "categories"
    if values.dtype.kind in "fiub":
        return "numbers"
    return "dates" if values.dtype.kind in "mM" else "text"


def block_source(data: Any) -> BlockSource | None:
    """Return data as a block source, or None where it is held in memory.

    Parameters
    ----------
    data : path of a Parquet file or folder, Dask DataFrame, or callable
        A callable returns a new iterator of DataFrames with equal columns.

    Raises
    ------
    DataError
        If a path does not exist or holds no Parquet file.
    TypeError
        If an iterator is given, which could be read only once.

    Examples
    --------
    >>> source = block_source(lambda: iter([pd.DataFrame({"y": [1.0, 2.0]})]))
    >>> [(str(block), len(block.frame)) for block in source.blocks()]
    [('block 0 (rows 0 to 1 of the source)', 2)]
    """
    if isinstance(data, BlockSource):
        return data
    if isinstance(data, str | Path):
        return _parquet(Path(data))
    if type(data).__module__.partition(".")[0] == "dask" and hasattr(
        data, "get_partition"
    ):
        return _dask(data)
    if isinstance(data, Iterator):
        raise TypeError(
            "`data` is an iterator, which can be read only once, and solving reads the "
            "data several times; pass a function that returns a new iterator."
        )
    if callable(data) and not hasattr(data, "keys") and not isinstance(data, type):
        return BlockSource(lambda _: iter(data()), "the function given as `data`")
    return None


def _dask(frame: Any) -> BlockSource:
    def read(columns: Sequence[str] | None) -> Iterator[Any]:
        chosen = frame if columns is None else frame[list(columns)]
        for number in range(chosen.npartitions):
            yield chosen.get_partition(number).compute()

    return BlockSource(read, "the Dask DataFrame")


def _parquet(path: Path) -> BlockSource:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ImportError(
            "Parquet needs pyarrow: pip install 'eestim[stream]'"
        ) from error
    files = _parquet_files(path)
    schemas = [_schema(parquet, file) for file in files]
    known = set(schemas[0].names)
    for file, schema in zip(files, schemas, strict=True):
        if set(schema.names) != known:
            raise DataError(
                f"the columns of {file.name!r} differ from those of {files[0].name!r}: "
                f"missing {sorted(known - set(schema.names))}, additional "
                f"{sorted(set(schema.names) - known)}. Every file needs the same."
            )

    def read(columns: Sequence[str] | None) -> Iterator[Any]:
        chosen = None if columns is None else list(columns)
        absent = [name for name in chosen or () if name not in known]
        if absent:
            raise DataError(
                f"`data` ({path.name!r}) lacks the columns {absent}; it has "
                f"{sorted(known)[:20]}."
            )
        for file in files:
            with parquet.ParquetFile(file) as opened:
                for batch in opened.iter_batches(batch_size=_ROWS, columns=chosen):
                    yield batch.to_pandas()

    return BlockSource(read, f"{path.name!r}")


def _parquet_files(path: Path) -> list[Path]:
    if not path.exists():
        raise DataError(f"`data` names {str(path)!r}, which does not exist.")
    if path.is_file():
        return [path]
    found = sorted(
        file
        for file in path.rglob("*.parquet")
        if not file.name.startswith(("_", ".")) and file.is_file()
    )
    if not found:
        raise DataError(f"the folder {str(path)!r} holds no file named *.parquet.")
    if any("=" in part for file in found for part in file.relative_to(path).parts[:-1]):
        raise DataError(
            f"the folder {str(path)!r} keeps columns in the names of its folders "
            "(key=value); pass a function that reads it and adds them."
        )
    return found


def _schema(parquet: Any, file: Path) -> Any:
    try:
        return parquet.read_schema(file)
    except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
        raise DataError(
            f"`data` {file.name!r} cannot be read as Parquet: {error} Convert it, or "
            "pass a function that returns an iterator of DataFrames."
        ) from error


# ------------------------------------------------------------------------------ sums


def total_moments(parts: Iterable[Any], theta: Vector) -> Moments:
    """Return the moments of the union of equations over disjoint units.

    Raises
    ------
    DataError
        If there are none.
    """
    total: Moments | None = None
    for part in parts:
        if not part.n_units:  # frequencies of zero throughout
            continue
        own = _moments(part, theta)
        total = own if total is None else total + own
    if total is None:
        raise DataError("there are no blocks.")
    return total


def _moments(part: Any, theta: Vector) -> Moments:
    fast = getattr(part, "moments", None)
    if fast is not None:
        result: Moments = fast(theta)
        return result
    return moments_of(part.psi(theta), part.sensitivity(theta))


@dataclass(frozen=True, slots=True)
class SummedEquation:
    """Sums of psi within groups of rows at one theta, for rules of clusters.

    Attributes
    ----------
    names : tuple of p str
    n_units : int
        Of the equation itself, not of the groups.
    n_effective : float
    table : (G, q) array
        Sums within the groups (the finest intersections of the labels).
    labels : DataFrame
        The labels of each group, one column a name.
    slope : (q, p) array
        A.
    row_squares : (q,) array
        Sums over rows of squared psi.
    """

    names: tuple[str, ...]
    n_units: int
    n_effective: float
    table: Matrix
    labels: pd.DataFrame
    slope: Matrix
    row_squares: Vector
    derivative_error: float = 0.0

    @property
    def n_observations(self) -> int:
        """Number of groups, one label each."""
        return len(self.table)

    def psi(self, theta: Vector) -> Matrix:  # noqa: ARG002 - tabulated at one theta
        """Return the sums, (G, q)."""
        return self.table

    def sensitivity(self, theta: Vector) -> Matrix:  # noqa: ARG002
        """Return A, (q, p)."""
        return self.slope

    def column(self, name: str) -> Any:
        """Return the labels of the groups."""
        return self.labels[name].to_numpy()


def sums_within(
    parts: Iterable[Any], labels: Sequence[str], theta: Vector
) -> tuple[Matrix, pd.DataFrame, Vector]:
    """Return sums of psi within groups, their labels, and sums of squared rows.

    A group may span blocks: partial sums are keyed by label and merged, so that memory
    grows with the number of groups and not of rows.

    Parameters
    ----------
    parts : iterable of equations
        Each with `column` for the labels.
    labels : sequence of str
        Names of columns; groups are the combinations that occur.

    Raises
    ------
    DataError
        If a label is missing.
    """
    keys = list(labels)
    total: pd.DataFrame | None = None
    squares: Any = 0.0
    for number, part in enumerate(parts):
        rows = getattr(part, "psi_rows", part.psi)(theta)
        squares = squares + np.square(rows).sum(axis=0)
        table = pd.DataFrame(rows)
        for place, key in enumerate(keys):
            table[f"label{place}"] = _labels(part, key, number)
        named = [f"label{place}" for place in range(len(keys))]
        sums = table.groupby(named, sort=False, observed=True).sum()
        if total is not None:
            sums = pd.concat([total, sums])
            sums = sums.groupby(level=named, sort=False, observed=True).sum()
        total = sums
    if total is None:
        raise DataError("there are no blocks.")
    found = total.index.to_frame(index=False)
    found.columns = pd.Index(keys)
    return total.to_numpy(dtype=np.float64), found, np.asarray(squares)


def _labels(part: Any, key: str, number: int) -> Any:
    values = np.asarray(part.column(key))
    missing = np.flatnonzero(np.asarray(pd.isna(values)))
    if len(missing):
        raise DataError(
            f"`labels` {key!r} is missing in block {number}, {show_rows(missing)} of "
            "it; drop those rows or give them a group of their own."
        )
    return values


# ----------------------------------------------------------------- a user's equation


@dataclass(frozen=True, slots=True)
class BlockedEquation:
    """A user's estimating equation over a block source; made by `eestim.equation`.

    Attributes
    ----------
    source : BlockSource
    build : callable
        From a block and the factor of its weights to the equation of its rows.
    names : tuple of p str
    initial : (p,) array
    block_places : mapping
        Places of named blocks of parameters.
    n_rows, n_units : int
    n_effective : float
    weight_scale : float
        What brings sampling weights to mean one over the source.
    derivative_error : float
    units : str or None
        Column of the labels of independent units, which may span blocks.
    """

    source: BlockSource
    build: Callable[[Block, float], Any]
    names: tuple[str, ...]
    initial: Vector
    block_places: Any
    n_rows: int
    n_units: int
    n_effective: float
    weight_scale: float
    derivative_error: float
    units: str | None = None
    _last: dict[bytes, Moments] = field(default_factory=dict, init=False)

    @property
    def start(self) -> Vector:
        """Where the solver begins, (p,)."""
        return self.initial.copy()

    def blocks(self) -> Iterator[Any]:
        """Yield the equation of each block, its data in memory."""
        for block in self.source.blocks(n_rows=self.n_rows):
            yield self.build(block, self.weight_scale)

    def moments(self, theta: Vector) -> Moments:
        """Return the moments of psi over units, in one pass."""
        key = np.asarray(theta).tobytes()
        if key not in self._last:  # the solver's check and the rule meet at the root
            self._last.clear()
            self._last[key] = self._moments(theta)
        return self._last[key]

    def _moments(self, theta: Vector) -> Moments:
        by_row = total_moments(self.blocks(), theta)
        if self.units is None:
            return by_row
        table, _, _ = sums_within(self.blocks(), [self.units], theta)
        share = by_row.n / len(table)
        return Moments(
            float(len(table)),
            table.mean(axis=0),
            table.T @ table / len(table),
            by_row.sensitivity * share,
        )

    def newton_terms(self, theta: Vector) -> tuple[Vector, Vector, Matrix]:
        """Return the mean of psi, its squared size and A, in one pass.

        All are NaN where psi is not finite, which the solver steps back from.
        """
        try:
            made = self.moments(theta)
        except DataError as error:
            if "not finite" not in str(error):
                raise
            bad = np.full((len(self.names), len(self.names)), np.nan)
            return bad[0], bad[0], bad
        return made.mean, np.diag(made.meat), made.sensitivity

    def sensitivity(self, theta: Vector) -> Matrix:
        """Return A, minus the mean derivative of psi, (q, p)."""
        return self.moments(theta).sensitivity

    def summed_within(self, labels: Sequence[Any], theta: Vector) -> SummedEquation:
        """Return sums of psi within groups of rows, labelled by columns."""
        return summed_equation(self, self.blocks(), labels, theta)

    def check_root(self, root: Any) -> None:
        """Raise where psi vanishes at every unit, so that M says nothing.

        Raises
        ------
        InterpolationError
        """
        if not all(_vanishes(part, root.theta) for part in self.blocks()):
            return
        raise InterpolationError(
            "psi vanishes at every unit at the root, so the sandwich would be zero "
            "whatever the noise. Use fewer parameters or more units; see "
            "ee.asymptotics."
        )

    def psi(self, theta: Vector) -> Matrix:  # noqa: ARG002 - the protocol's argument
        """Refuse: contributions of all units are not held in memory."""
        refuse_blocks("psi of every unit")

    def working(self, theta: Vector) -> Any:  # noqa: ARG002
        """Refuse: there is no linear form of an equation of one's own."""
        refuse_blocks("`working`, the linear form of a regression,")

    def reweighted(self, weights: Vector) -> Any:  # noqa: ARG002
        """Refuse: refits need a weight for every unit."""
        refuse_blocks("a refit under other weights (bootstrap, jackknife, halves)")


def summed_equation(
    equation: Any, parts: Iterable[Any], labels: Sequence[Any], theta: Vector
) -> SummedEquation:
    """Return sums of psi within groups as an equation for rules of clusters.

    Raises
    ------
    CapabilityError
        If labels are not names of columns.
    """
    if not all(isinstance(label, str) for label in labels):
        raise CapabilityError(
            "labels must be names of columns where data are read in blocks; an array "
            "has no place in the source. Write it into the table as a column."
        )
    table, found, squares = sums_within(parts, labels, theta)
    return SummedEquation(
        equation.names,
        equation.n_units,
        equation.n_effective,
        table,
        found,
        equation.sensitivity(theta),
        squares,
        float(getattr(equation, "derivative_error", 0.0)),
    )


def _vanishes(part: Any, theta: Vector) -> bool:
    """Whether psi is zero to rounding at more than half of the units of a block."""
    psi = part.psi(theta)
    wobble = 8.0 * np.finfo(np.float64).eps * np.maximum(np.abs(theta), 1e-300)
    rounding = np.abs(part.psi(theta + wobble) - psi)
    used = psi != 0
    if not used.any():
        return True
    return bool(np.mean((np.abs(psi) <= 20.0 * rounding)[used]) > 0.5)
