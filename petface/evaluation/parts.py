"""An evaluation by several processes: each writes a part, and the first puts them together.

A process has neighbouring slices of the plan, so that the parts one after the other are the file of
one process alone. The first writes into the final files' unfinished ones, the others beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from petface import distributed
from petface.resumable import ResumableRecords, ResumableTable


def own_range(sizes: Sequence[int]) -> tuple[int, int]:
    """Give begin and end of this process's slices in a plan of slices of these sizes.

    Slices go where the middle of their images falls when the images are cut evenly.
    """
    ends = np.cumsum(np.asarray(sizes, np.int64))
    middles = ends - np.asarray(sizes) / 2
    total, world_size = int(ends[-1]) if len(ends) else 0, distributed.world_size()
    limits = total * np.arange(world_size + 1) / world_size
    begin, end = np.searchsorted(middles, limits[distributed.rank() :][:2]).tolist()
    return begin, end


def own_path(path: Path) -> Path:
    """Name the file of this process; that of the first is `path`."""
    return path if distributed.is_main() else _part(path, distributed.rank())


def take_in_parts(table: ResumableTable, records: ResumableRecords, num_rows: int) -> None:
    """Put what the others have written behind the `num_rows` of the first process."""
    for rank in range(1, distributed.world_size()):
        found = np.load(_unfinished(_part(records.path, rank)), allow_pickle=False)
        records.write(num_rows, found)
        table.take_in(_unfinished(_part(table.path, rank)))
        num_rows += len(found)


def remove_parts(*paths: Path) -> None:
    """Remove the parts of files that are finished, also those of an earlier start."""
    for path in paths:
        for part in path.parent.glob(f"{path.stem}_rank*of*"):
            part.unlink(missing_ok=True)


def _part(path: Path, rank: int) -> Path:
    return path.with_name(f"{path.stem}_rank{rank}of{distributed.world_size()}{path.suffix}")


def _unfinished(path: Path) -> Path:
    return path.with_name(path.name + ".unfinished")
