"""Is every offset of a source there, once? One byte an offset, in windows of bounded size.

A window holds the next stretches of as many sources as fit; each window is one pass over the files
whose bounds reach into it. So memory is bounded by the budget, whatever the tables hold, and a
table whose offsets fit into one window is read once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from k2.lake.findings import Findings
from k2.lake.offsets import Source

__all__ = ["Hole", "OffsetFile", "cover"]

BATCH_ROWS = 128 * 1024
_SLICE = 4 * 1024 * 1024
_COUNTED_MAX = 255
_COLUMNS = ["kafka_cluster", "kafka_topic", "kafka_partition", "kafka_offset"]

#: (source, first, last), inclusive: no row has these.
Hole = Callable[[Source, int, int], None]


@dataclass(frozen=True, slots=True)
class OffsetFile:
    """A data file and the least and greatest offset in it, of whatever source; None: unknown."""

    path: str
    first: int | None
    last: int | None


@dataclass(slots=True)
class _Stretch:
    """Offsets first..end-1 of a source, and how many rows each has."""

    source: Source
    first: int
    end: int
    rows: npt.NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))


def cover(
    spans: Mapping[Source, tuple[int, int]],
    files: Sequence[OffsetFile],
    filesystem: pyarrow.fs.FileSystem,
    budget: int,
    hole: Hole,
    twice: Mapping[Source, Findings],
    progress: Callable[[int, int], None],
) -> None:
    """Tell every hole, in order, and add what is there twice.

    Args:
        spans: by source the offsets first..end-1 that must be there.
        budget: bytes, that is offsets in memory at once.
        progress: told (files read, files to read).

    Raises:
        OSError, pyarrow.ArrowException: a file cannot be read.
    """
    windows = [(window, _within(files, window)) for window in _windows(spans, budget)]
    steps = sum(len(chosen) for _, chosen in windows)
    done = 0
    pending: dict[Source, tuple[int, int]] = {}
    for window, chosen in windows:
        for stretch in window if chosen else ():
            stretch.rows = np.zeros(stretch.end - stretch.first, np.uint8)
        by_source = {stretch.source: stretch for stretch in window}
        for file in chosen:
            _count(file, filesystem, by_source)
            done += 1
            progress(done, steps)
        for stretch in window:
            if chosen:
                _tell(stretch, pending, hole, twice[stretch.source])
                stretch.rows = np.empty(0, np.uint8)
            else:
                _extend(stretch.source, stretch.first, stretch.end - 1, pending, hole)
    for source, (first, last) in pending.items():
        hole(source, first, last)


def _windows(spans: Mapping[Source, tuple[int, int]], budget: int) -> Iterator[list[_Stretch]]:
    """Stretches of at most `budget` offsets together; those of a source in order, one a window."""
    window: list[_Stretch] = []
    left = budget
    for source, (first, end) in spans.items():
        while first < end:
            upto = min(end, first + left)
            window.append(_Stretch(source, first, upto))
            left -= upto - first
            first = upto
            if left == 0:
                yield window
                window, left = [], budget
    if window:
        yield window


def _within(files: Sequence[OffsetFile], window: Sequence[_Stretch]) -> list[OffsetFile]:
    first, end = min(s.first for s in window), max(s.end for s in window)
    return [
        file
        for file in files
        if file.first is None or file.last is None or (file.first < end and file.last >= first)
    ]


def _count(
    file: OffsetFile, filesystem: pyarrow.fs.FileSystem, stretches: Mapping[Source, _Stretch]
) -> None:
    with pq.ParquetFile(
        file.path, filesystem=filesystem, read_dictionary=_COLUMNS[:2], memory_map=False
    ) as parquet:
        for batch in parquet.iter_batches(BATCH_ROWS, columns=_COLUMNS):
            _count_batch(batch, stretches)


def _count_batch(batch: pa.RecordBatch, stretches: Mapping[Source, _Stretch]) -> None:
    cluster, topic = (batch.column(name) for name in _COLUMNS[:2])
    partitions = batch.column("kafka_partition").to_numpy().astype(np.int64)
    offsets = batch.column("kafka_offset").to_numpy()
    topics = len(topic.dictionary)
    codes = cluster.indices.to_numpy().astype(np.int64) * topics + topic.indices.to_numpy()
    codes = (codes << 32) | partitions
    for code in np.unique(codes).tolist():
        named, partition = divmod(code, 1 << 32)
        source = Source(
            cluster.dictionary[named // topics].as_py(),
            topic.dictionary[named % topics].as_py(),
            partition,
        )
        stretch = stretches.get(source)
        if stretch is None:
            continue
        own = offsets[codes == code]
        own = own[(own >= stretch.first) & (own < stretch.end)] - stretch.first
        places, counts = np.unique(own, return_counts=True)
        sums = stretch.rows[places] + counts
        stretch.rows[places] = np.minimum(sums, _COUNTED_MAX)


def _tell(
    stretch: _Stretch, pending: dict[Source, tuple[int, int]], hole: Hole, twice: Findings
) -> None:
    """Tell the holes but for one that ends with the stretch: it may go on in the next one."""
    source = stretch.source
    for first, last in _runs_of_zeros(stretch):
        _extend(source, first, last, pending, hole)
    for at in range(0, len(stretch.rows), _SLICE):
        piece = stretch.rows[at : at + _SLICE]
        for index in np.flatnonzero(piece > 1).tolist():
            count = int(piece[index])
            more = " or more" if count == _COUNTED_MAX else ""
            offset = stretch.first + at + index
            twice.add("offset_twice", f"{source}: offset {offset}: {count}{more} rows")


def _extend(
    source: Source, first: int, last: int, pending: dict[Source, tuple[int, int]], hole: Hole
) -> None:
    if source in pending:
        begin, before = pending[source]
        if before + 1 == first:
            pending[source] = begin, last
            return
        hole(source, begin, before)
    pending[source] = first, last


def _runs_of_zeros(stretch: _Stretch) -> Iterator[tuple[int, int]]:
    for at in range(0, len(stretch.rows), _SLICE):
        empty = stretch.rows[at : at + _SLICE] == 0
        edges = np.flatnonzero(np.diff(empty, prepend=False, append=False)) + stretch.first + at
        for first, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            yield first, end - 1
