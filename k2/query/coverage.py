"""Whether an answer is complete: what the gap ledger says of exactly its span and its snapshot.

A sequence that is missing would have a time between those of its neighbours, both included: a gap
counts if that span and [start, end) meet, with all that remains of it. A gap of a channel, which
has no symbol, counts for every symbol.

The ledger is committed before the records, so it is read after their table was loaded, and of its
rows those count that records below the snapshot's next offsets caused: the ledger as it stood.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence

import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
from pyiceberg.io.pyarrow import PyArrowFileIO
from pyiceberg.table import Table

from k2.errors import CatalogUnavailable
from k2.lake.offsets import Move, Source
from k2.query.index import Pin
from k2.query.rows import Coverage
from k2.query.span import Span
from k2.schemas import GAPS

__all__ = ["KnownGaps", "told"]

INT64_MAX = 2**63 - 1
#: Rows of the ledger that are kept in memory, some 200 bytes each.
ROWS_KEPT_MAX = 200_000

_SOURCE = ["kafka_cluster", "kafka_topic", "kafka_partition"]
_COLUMNS = [
    "gap_id", "exchange", "symbol", "status", "remaining_count", "from_ts", "to_ts", "revision",
    "ingest_time", *_SOURCE, "kafka_offset",
]  # fmt: skip


def told(offsets: Mapping[Source, int], moves: Iterable[Move]) -> dict[Source, int]:
    """Return below which offset of each source the ledger's rows belong to a snapshot.

    A source that an operator moved back, or made K2 forget, keeps the rows that it had: so does
    the ledger. Rows of its new records may then count a commit too early, never too late.
    """
    bounds = dict(offsets)
    for move in moves:
        if move.before is not None:
            bounds[move.source] = max(bounds.get(move.source, 0), move.before)
    return bounds


class KnownGaps:
    """The ledger as far as queries need it: which files, and the gaps of those last read.

    A file never changes, so what was read of it holds for all snapshots; memory is bounded by
    `ROWS_KEPT_MAX`. May be used from any thread.
    """

    def __init__(self, rows_kept_max: int = ROWS_KEPT_MAX) -> None:
        self._rows_kept_max = rows_kept_max
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, pl.DataFrame] = OrderedDict()
        self._rows_kept = 0

    def coverage(
        self,
        ledger: Pin,
        span: Span,
        bounds: Mapping[Source, int],
        held: Sequence[pa.Table] = (),
    ) -> Coverage:
        """What is missing of a span.

        Args:
            ledger: loaded after the table of the records.
            bounds: rows below these offsets count, of these sources; see `told`.
            held: further rows of GAPS, which the table may have or not.

        Raises:
            CatalogUnavailable: a file cannot be read.
        """
        frames = self._frames(ledger, span)
        frames += [_frame(rows.filter(ds.field("kind") == "gap")) for rows in held]
        if not frames or not bounds:
            return Coverage()
        found = _meeting(span, pl.concat(frames, rechunk=True))
        if found.is_empty():
            return Coverage()
        limits = pl.DataFrame(
            [(*source, offset) for source, offset in bounds.items()],
            {**{name: found.schema[name] for name in _SOURCE}, "bound": pl.Int64()},
            orient="row",
        )
        newest = (
            found.join(limits, on=_SOURCE)
            .filter(pl.col("kafka_offset") < pl.col("bound"))
            .sort("revision", "ingest_time")
            .unique("gap_id", keep="last")
            .filter(pl.col("remaining_count") > 0)
        )
        accepted = newest["status"] == "accepted"
        open_, closed = newest.filter(~accepted), newest.filter(accepted)
        return Coverage(open_.height, _sum(open_), _sum(closed))

    def _frames(self, ledger: Pin, span: Span) -> list[pl.DataFrame]:
        """The gaps of all files that may have some of a span."""
        paths = _near(span, ledger.files().frame)["path"].to_list()
        found: dict[str, pl.DataFrame] = {}
        with self._lock:
            for path in paths:
                if (frame := self._kept.get(path)) is not None:
                    self._kept.move_to_end(path)
                    found[path] = frame
        if missing := [path for path in paths if path not in found]:
            read = _read(ledger.table, missing)
            found |= read
            self._keep(read)
        return [frame for frame in found.values() if frame.height]

    def _keep(self, read: Mapping[str, pl.DataFrame]) -> None:
        with self._lock:
            for path, frame in read.items():
                if path not in self._kept:
                    self._kept[path] = frame
                    self._rows_kept += max(1, frame.height)
            while self._rows_kept > self._rows_kept_max:
                _, frame = self._kept.popitem(last=False)
                self._rows_kept -= max(1, frame.height)


def _read(table: Table, paths: Sequence[str]) -> dict[str, pl.DataFrame]:
    """The gaps of some files, by path."""
    located = [PyArrowFileIO.parse_location(path) for path in paths]
    files = table.io
    assert isinstance(files, PyArrowFileIO)
    scheme, netloc, _ = located[0]
    names = {name: path for path, (_, _, name) in zip(paths, located, strict=True)}
    try:
        dataset = ds.dataset(list(names), GAPS, "parquet", files.fs_by_scheme(scheme, netloc))
        rows = dataset.to_table([*_COLUMNS, "__filename"], filter=ds.field("kind") == "gap")
    except (pa.ArrowException, OSError) as exc:
        raise CatalogUnavailable(f"gap ledger: data files: {exc}") from exc
    frame = pl.DataFrame(rows)
    parts = frame.partition_by("__filename", as_dict=True, include_key=False)
    none = frame.clear().drop("__filename")
    return {path: parts.get((name,), none) for name, path in names.items()}


def _frame(rows: pa.Table) -> pl.DataFrame:
    return pl.DataFrame(rows.select(_COLUMNS))


def _near(span: Span, files: pl.DataFrame) -> pl.DataFrame:
    """The files that may have gaps of a span."""
    wanted = []
    if span.start_ns is not None:
        wanted.append(pl.max_horizontal("high_from_ts", "high_to_ts") >= span.start_ns)
    if span.end_ns is not None:
        wanted.append(pl.min_horizontal("low_from_ts", "low_to_ts") < span.end_ns)
    return files.filter(*wanted) if wanted else files


def _meeting(span: Span, frame: pl.DataFrame) -> pl.DataFrame:
    """The gaps that may lie in a span. Times may fall from one sequence to the next."""
    first, last = pl.col("from_ts"), pl.col("to_ts")
    wanted = []
    if span.exchange is not None:
        wanted.append(pl.col("exchange") == span.exchange)
    if span.symbols is not None:
        symbol = pl.col("symbol")
        wanted.append(symbol.is_null() | symbol.is_in(list(span.symbols)))
    if span.start_ns is not None:
        wanted.append((first >= span.start_ns) | (last >= span.start_ns))
    if span.end_ns is not None:
        wanted.append((first < span.end_ns) | (last < span.end_ns))
    return frame.filter(*wanted) if wanted else frame


def _sum(rows: pl.DataFrame) -> int:
    total: int = sum(rows["remaining_count"].to_list())
    return min(total, INT64_MAX)  # what Arrow and JSON can say
