"""The snapshots that a table still has: which one was the newest at a time, and what each is."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pyiceberg.table import Table
from pyiceberg.table.snapshots import Snapshot

from k2.errors import BadQuery
from k2.lake.offsets import THROUGH_PROPERTY, decode_through
from k2.query.times import iso, time_ns

__all__ = ["SNAPSHOTS", "AsOf", "kept", "listed", "through"]

#: A row a snapshot; times in ns. `rows` and `files` are all that it has, `added` what it brought.
SNAPSHOTS = pa.schema(
    [
        pa.field("table", pa.string(), nullable=False),
        pa.field("snapshot_id", pa.int64(), nullable=False),
        pa.field("parent_id", pa.int64()),
        pa.field("committed_at", pa.int64(), nullable=False),
        pa.field("operation", pa.string()),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("added", pa.int64(), nullable=False),
        pa.field("files", pa.int64(), nullable=False),
        pa.field("valid_through", pa.int64()),
    ]
)


@dataclass(frozen=True, slots=True)
class AsOf:
    """A table as it was: by a snapshot's id, or the newest one of a time."""

    text: str
    time_ns: int | None  # None: only an id will do
    snapshot_id: int | None  # None: only a time will do

    @classmethod
    def read(cls, text: str, now_ns: int | None = None) -> AsOf:
        """An id, or a moment as `k2.query.times` has it. A number that is no id is ns.

        Raises:
            BadQuery: neither.
        """
        moment = time_ns("as_of", text, now_ns)
        return cls(text, moment, int(text) if text.isdecimal() else None)

    @classmethod
    def id(cls, number: int) -> AsOf:
        """The snapshot of that id."""
        return cls(str(number), None, number)

    def of(self, table: Table) -> Snapshot | None:
        """The snapshot of a table; None: nothing was ever committed to it.

        Raises:
            BadQuery: it has expired, or never was; says what there is.
        """
        snapshots = kept(table)
        for snapshot in snapshots:
            if snapshot.snapshot_id == self.snapshot_id:
                return snapshot
        if self.time_ns is not None and self.time_ns <= time.time_ns():
            if not snapshots and self.snapshot_id is None:
                return None
            for snapshot in reversed(snapshots):
                if _committed_at(snapshot) <= self.time_ns:
                    return snapshot
        raise BadQuery("as_of", f"{self.text}: {_there_is(table, snapshots)}")

    def beside(self, table: Table) -> AsOf:
        """What it means of other tables: an id of this one is the time of its commit."""
        for snapshot in kept(table):
            if snapshot.snapshot_id == self.snapshot_id:
                return AsOf(self.text, _committed_at(snapshot), None)
        return self


def kept(table: Table) -> list[Snapshot]:
    """Oldest first: the newest snapshot, and those before it that have not expired."""
    by_id = {snapshot.snapshot_id: snapshot for snapshot in table.metadata.snapshots}
    found, head = [], table.metadata.current_snapshot_id
    while head is not None and (snapshot := by_id.get(head)) is not None:
        found.append(snapshot)
        head = snapshot.parent_snapshot_id
    return found[::-1]


def listed(tables: Mapping[str, Table], start_ns: int | None, end_ns: int | None) -> pa.Table:
    """All snapshots of some tables committed in [start_ns, end_ns), SNAPSHOTS, oldest first."""
    rows: list[dict[str, Any]] = [
        {
            "table": name,
            "snapshot_id": snapshot.snapshot_id,
            "parent_id": snapshot.parent_snapshot_id,
            "committed_at": _committed_at(snapshot),
            "operation": _said(snapshot, "operation"),
            "rows": int(_said(snapshot, "total-records") or 0),
            "added": int(_said(snapshot, "added-records") or 0),
            "files": int(_said(snapshot, "total-data-files") or 0),
            "valid_through": through(decode_through(_said(snapshot, THROUGH_PROPERTY)).values()),
        }
        for name, table in tables.items()
        for snapshot in kept(table)
        if (start_ns is None or _committed_at(snapshot) >= start_ns)
        and (end_ns is None or _committed_at(snapshot) < end_ns)
    ]
    rows.sort(key=lambda row: row["committed_at"])  # stable: a table's own order stays
    return pa.Table.from_pylist(rows, SNAPSHOTS)


def through(times: Iterable[int | None]) -> int | None:
    """The least of all partitions' times, ns, if all are known."""
    return min((moment or 0 for moment in times), default=0) or None


def _committed_at(snapshot: Snapshot) -> int:
    return snapshot.timestamp_ms * 1_000_000


def _said(snapshot: Snapshot, name: str) -> str | None:
    value = snapshot.summary[name] if snapshot.summary else None
    return None if value is None else str(getattr(value, "value", value))


def _there_is(table: Table, snapshots: Sequence[Snapshot]) -> str:
    name = table.name()[-1]
    if not snapshots:
        return f"{name} has no snapshot yet"
    first, last = snapshots[0], snapshots[-1]
    return (
        f"{name} has {len(snapshots)} snapshots, from {first.snapshot_id} at"
        f" {iso(_committed_at(first))} to {last.snapshot_id} at {iso(_committed_at(last))};"
        " older ones have expired (/v1/snapshots, `k2 snapshots`)"
    )
