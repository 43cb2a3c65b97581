"""What queries read of the tables: a snapshot, its data files, and the bounds of their columns.

A manifest never changes. So each is read once, by whichever query meets it first, and a plan is a
comparison of columns: what a query pays follows neither the number of commits nor that of files
that it does not need.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import polars as pl
from pyiceberg.catalog import Catalog
from pyiceberg.manifest import ManifestContent, ManifestFile
from pyiceberg.table import Table
from pyiceberg.table.snapshots import Snapshot
from pyiceberg.types import StringType

from k2.errors import CatalogUnavailable
from k2.lake.catalog import load_table
from k2.query.snapshots import AsOf

__all__ = ["Bound", "Files", "Index", "Pin", "Tables"]

#: Columns that queries select by; of those that a table has, the bounds are kept.
BOUNDED = (
    "exchange", "symbol", "session", "event_time", "ingest_time", "kafka_cluster", "kafka_topic",
    "kafka_partition", "kafka_offset", "reason", "kind", "gap_id", "seen_at", "from_ts", "to_ts",
)  # fmt: skip
#: Files whose bounds are kept, of each table: some 500 bytes each.
FILES_KEPT_MAX = 400_000
SNAPSHOTS_KEPT = 4
#: Manifests that are read at once: an object store answers slowly, but many.
READING = 8

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
_TEXT_MIN, _TEXT_MAX = "", "\U0010ffff"


class Bound(NamedTuple):
    """What a query wants of a column: one of some values, or what lies in [least, greatest]."""

    column: str
    values: Sequence[Any] | None = None  # of str or int
    least: int = INT64_MIN
    greatest: int = INT64_MAX


@dataclass(frozen=True, slots=True)
class Files:
    """The data files of one snapshot.

    Columns: `path`, `rows`, and `low_NAME` and `high_NAME` of each of `BOUNDED` that the table
    has; where a manifest does not tell a bound it is as wide as can be.
    """

    frame: pl.DataFrame
    deletes: bool = False  # whether rows of them are deleted by further files

    def among(self, bounds: Sequence[Bound]) -> pl.DataFrame:
        """Those that may have rows within all bounds; a column without bounds tells nothing."""
        tests = [test for bound in bounds for test in self._tests(bound)]
        return self.frame.filter(*tests) if tests else self.frame

    def _tests(self, bound: Bound) -> list[Any]:
        low, high = f"low_{bound.column}", f"high_{bound.column}"
        if low not in self.frame.columns:
            return []
        if bound.values is None:
            return [pl.col(low) <= bound.greatest, pl.col(high) >= bound.least]
        # Some value is in [low, high] if more are up to `high` than below `low`.
        values = pl.Series(sorted(bound.values), dtype=self.frame.schema[low])
        below = values.search_sorted(self.frame[low], side="left")
        upto = values.search_sorted(self.frame[high], side="right")
        return [below < upto]


class Index:
    """The files of a table's snapshots; may be used from any thread. Memory: `FILES_KEPT_MAX`."""

    def __init__(self, files_kept_max: int = FILES_KEPT_MAX) -> None:
        self._files_kept_max = files_kept_max
        self._lock = threading.Lock()
        self._manifests: OrderedDict[str, pl.DataFrame] = OrderedDict()
        self._kept = 0
        self._snapshots: OrderedDict[int, Files] = OrderedDict()

    def files(self, table: Table, snapshot: Snapshot | None) -> Files:
        """The files of a snapshot; only manifests that are new are read.

        Raises:
            CatalogUnavailable: a manifest cannot be read.
        """
        columns = _columns(table)
        if snapshot is None:
            return Files(_frame([], columns))
        with self._lock:
            if (known := self._snapshots.get(snapshot.snapshot_id)) is not None:
                return known
        try:
            manifests = snapshot.manifests(table.io)
            found = self._read(manifests, table, columns)
        except OSError as exc:
            raise CatalogUnavailable(f"{'.'.join(table.name())}: manifests: {exc}") from exc
        frame = pl.concat([_frame([], columns), *found.values()])
        deletes = any(manifest.content == ManifestContent.DELETES for manifest in manifests)
        files = Files(frame.rechunk(), deletes)
        with self._lock:
            self._snapshots[snapshot.snapshot_id] = files
            while len(self._snapshots) > SNAPSHOTS_KEPT:
                self._snapshots.popitem(last=False)
        return files

    def _read(
        self, manifests: Sequence[ManifestFile], table: Table, columns: Mapping[str, _Column]
    ) -> dict[str, pl.DataFrame]:
        """The data files of manifests, by path."""
        found: dict[str, pl.DataFrame] = {}
        new = []
        with self._lock:
            for manifest in manifests:
                if manifest.content == ManifestContent.DELETES:
                    continue
                path = manifest.manifest_path
                if (frame := self._manifests.get(path)) is not None:
                    self._manifests.move_to_end(path)
                    found[path] = frame
                else:
                    new.append(manifest)
        if new:
            with ThreadPoolExecutor(min(READING, len(new))) as pool:
                read = pool.map(lambda manifest: _files(manifest, table, columns), new)
                fresh = {m.manifest_path: frame for m, frame in zip(new, read, strict=True)}
            self._keep(fresh)
            found |= fresh
        return found

    def _keep(self, read: Mapping[str, pl.DataFrame]) -> None:
        with self._lock:
            for path, frame in read.items():
                if path not in self._manifests:
                    self._manifests[path] = frame
                    self._kept += max(1, frame.height)
            while self._kept > self._files_kept_max:
                _, frame = self._manifests.popitem(last=False)
                self._kept -= max(1, frame.height)


@dataclass(frozen=True, slots=True)
class Pin:
    """A table as one of its snapshots has it; `snapshot` is None before its first commit."""

    table: Table
    snapshot: Snapshot | None
    index: Index

    @property
    def snapshot_id(self) -> int | None:
        return None if self.snapshot is None else self.snapshot.snapshot_id

    def said(self, name: str) -> str | None:
        """A property of the snapshot's summary."""
        summary = None if self.snapshot is None else self.snapshot.summary
        return summary[name] if summary else None

    def files(self) -> Files:
        """Its data files.

        Raises:
            CatalogUnavailable: a manifest cannot be read.
        """
        return self.index.files(self.table, self.snapshot)


class Tables:
    """The tables of a catalog; may be used from any thread."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._indexes: dict[str, Index] = {}

    def load(self, name: str, as_of: AsOf | None = None) -> Pin:
        """A snapshot of a table; the newest, unless another is named.

        Raises:
            CatalogUnavailable: the catalog does not answer, or has no such table.
            BadQuery: the table has no such snapshot, or no more.
        """
        table = load_table(self._catalog, name)
        snapshot = table.current_snapshot() if as_of is None else as_of.of(table)
        return Pin(table, snapshot, self._indexes.setdefault(name, Index()))


class _Column(NamedTuple):
    field_id: int
    text: bool

    @property
    def kind(self) -> Any:
        return pl.String() if self.text else pl.Int64()

    def low(self, bounds: Mapping[int, bytes] | None) -> str | int:
        data = (bounds or {}).get(self.field_id)
        return (_TEXT_MIN if self.text else INT64_MIN) if data is None else self._value(data)

    def high(self, bounds: Mapping[int, bytes] | None) -> str | int:
        data = (bounds or {}).get(self.field_id)
        return (_TEXT_MAX if self.text else INT64_MAX) if data is None else self._value(data)

    def _value(self, data: bytes) -> str | int:
        # Ints, longs, dates and timestamps are all little-endian, of their own widths.
        return data.decode() if self.text else int.from_bytes(data, "little", signed=True)


def _columns(table: Table) -> dict[str, _Column]:
    fields = {field.name: field for field in table.schema().fields}
    return {
        name: _Column(fields[name].field_id, isinstance(fields[name].field_type, StringType))
        for name in BOUNDED
        if name in fields
    }


def _files(manifest: ManifestFile, table: Table, columns: Mapping[str, _Column]) -> pl.DataFrame:
    found = []
    for entry in manifest.fetch_manifest_entry(table.io):
        file = entry.data_file
        row: list[Any] = [file.file_path, file.record_count]
        for column in columns.values():
            row += [column.low(file.lower_bounds), column.high(file.upper_bounds)]
        found.append(row)
    return _frame(found, columns)


def _frame(rows: Sequence[Sequence[Any]], columns: Mapping[str, _Column]) -> pl.DataFrame:
    schema: dict[str, Any] = {"path": pl.String(), "rows": pl.Int64()}
    for name, column in columns.items():
        schema |= {f"low_{name}": column.kind, f"high_{name}": column.kind}
    return pl.DataFrame(rows, schema, orient="row")
