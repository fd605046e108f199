"""Tables larger than memory, read a block of rows at a time, again and again."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from eestim.errors import DataError

__all__ = ["Block", "BlockSource", "block_source", "in_block"]

_ROWS = 65_536  # of a block of Parquet: 26 MB at 50 columns


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
