"""Block sources: tables larger than memory, read a block of rows at a time.

A Parquet file or folder, a Dask DataFrame, or a function that returns a new iterator of
DataFrames. What is a sum over units (psi, its outer products, its derivative) is added
up block by block; what needs every row says so.
"""

from eestim.blocks.sources import Block, BlockSource, block_source, in_block
from eestim.blocks.sums import (
    SummedEquation,
    refuse_blocks,
    summed_equation,
    sums_within,
    total_moments,
)
from eestim.blocks.user import BlockedEquation

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
