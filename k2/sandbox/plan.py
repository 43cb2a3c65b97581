"""What a statement reads: of each table that it names the files of one snapshot."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import NoSuchTableError
from pyiceberg.io.pyarrow import PyArrowFileIO
from pyiceberg.table import Table

from k2.errors import CatalogUnavailable
from k2.lake.offsets import THROUGH_PROPERTY, decode_through
from k2.query.index import Pin, Tables
from k2.sandbox import views
from k2.settings import Settings

__all__ = ["Plan", "Planner", "Readable"]

#: Tables of the lake that `snapshots` tells of, in this order.
_LISTED = ("trades", "quotes", "gaps", "rejects")
#: What a table is made of, if not of itself.
_MADE_OF = {"bars": "trades"}


class Readable(Protocol):
    """A planned file: a path of this machine, or something to read from."""

    def local(self) -> str | None:
        """Its path, if it is a file of this machine."""

    def opened(self) -> pa.NativeFile:
        """It, to be read from any place of it."""


@dataclass(slots=True)
class Plan:
    """The files of a statement by number, and how DuckDB makes its tables of them."""

    files: list[Readable] = field(default_factory=list)
    setup: list[str] = field(default_factory=list)
    snapshots: dict[str, int | None] = field(default_factory=dict)

    def numbered(self, files: Sequence[Readable]) -> list[int]:
        first = len(self.files)
        self.files += files
        return list(range(first, len(self.files)))


class Planner:
    """Plans against a catalog; from any thread."""

    def __init__(self, catalog: Catalog, settings: Settings) -> None:
        self._tables, self._settings = Tables(catalog), settings

    def plan(self, names: Sequence[str]) -> Plan:
        """Pin the newest snapshot of each table that is named.

        Args:
            names: some of `k2.sandbox.statement.TABLES`.

        Raises:
            CatalogUnavailable: a table cannot be loaded or planned.
        """
        plan = Plan()
        for name in dict.fromkeys(_MADE_OF.get(name, name) for name in names):
            if name == "snapshots":
                plan.setup.append(views.snapshots(plan.numbered([self._snapshots()])))
                continue
            pin = self._load(name)
            files = plan.numbered([] if pin is None else _files(pin))
            plan.snapshots[name] = None if pin is None else pin.snapshot_id
            made = views.gaps(files) if name == "gaps" else views.records(name, files)
            plan.setup.append(made)
        if "bars" in names:
            plan.setup.append(views.bars())
        return plan

    def _load(self, name: str) -> Pin | None:
        """The table; None: this deployment is older than the ledger, and has none."""
        try:
            return self._tables.load(f"{self._settings.namespace}.{name}")
        except CatalogUnavailable as exc:
            if name in ("gaps", "rejects") and isinstance(exc.__cause__, NoSuchTableError):
                return None
            raise

    def _snapshots(self) -> Readable:
        """The tables' snapshots, `views.SNAPSHOTS`, as a file."""
        rows: list[dict[str, Any]] = []
        for name in _LISTED:
            pin = self._load(name)
            if pin is not None:
                rows += _told(name, pin.table)
        return _parquet(pa.Table.from_pylist(rows, views.SNAPSHOTS))


def _told(name: str, table: Table) -> list[dict[str, Any]]:
    current = table.metadata.current_snapshot_id
    rows = []
    for snapshot in table.metadata.snapshots:
        summary = snapshot.summary
        times = decode_through(summary[THROUGH_PROPERTY] if summary else None)
        rows.append(
            {
                "table": name,
                "snapshot_id": snapshot.snapshot_id,
                "parent_id": snapshot.parent_snapshot_id,
                "committed_at": snapshot.timestamp_ms * 1_000_000,
                "operation": None if summary is None else summary.operation.value,
                "rows": _total(summary, "total-records"),
                "files": _total(summary, "total-data-files"),
                "valid_through": min((time or 0 for time in times.values()), default=0) or None,
                "current": snapshot.snapshot_id == current,
            }
        )
    return sorted(rows, key=lambda row: row["committed_at"])


def _total(summary: Any, name: str) -> int | None:
    text = summary[name] if summary is not None else None
    return None if text is None else int(text)


def _files(pin: Pin) -> list[Readable]:
    """The data files of a snapshot.

    Raises:
        CatalogUnavailable: its manifests cannot be read.
    """
    table, found = pin.table, pin.files()
    if found.deletes:  # none of K2's; somebody else's may be
        try:
            return [_parquet(table.scan(snapshot_id=pin.snapshot_id).to_arrow())]
        except OSError as exc:
            raise CatalogUnavailable(f"{'.'.join(table.name())}: {exc}") from exc
    assert isinstance(table.io, PyArrowFileIO)
    paths = found.frame.filter(pl.col("rows") > 0)["path"]
    return [_Stored(table.io, path) for path in paths]


class _Stored:
    """A data file of the warehouse."""

    def __init__(self, files: PyArrowFileIO, location: str) -> None:
        self._files, self._location = files, location

    def local(self) -> str | None:
        scheme, _, path = self._files.parse_location(self._location)
        return path if scheme == "file" else None

    def opened(self) -> pa.NativeFile:
        scheme, netloc, path = self._files.parse_location(self._location)
        return self._files.fs_by_scheme(scheme, netloc).open_input_file(path)


class _Made:
    """A file that is only in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def local(self) -> str | None:
        return None

    def opened(self) -> pa.NativeFile:
        return pa.BufferReader(self._data)


def _parquet(table: pa.Table) -> Readable:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return _Made(sink.getvalue())
