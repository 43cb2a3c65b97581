"""The offsets that the snapshots promise: they only rise, and go with the rows as they came."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import pyarrow.parquet as pq
from pyiceberg.manifest import ManifestEntryStatus
from pyiceberg.table import Table
from pyiceberg.table.snapshots import Snapshot, ancestors_of

from k2.settings import Settings
from tests.integration.oracle.tables import NAMES, connect
from tests.integration.oracle.topic import Topics
from tests.integration.oracle.wrong import Wrong
from tests.integration.parts import iceberg

__all__ = ["same_offsets"]

_SOURCE = ["kafka_cluster", "kafka_topic", "kafka_partition"]


class Source(NamedTuple):
    """A log: offsets of two are never compared."""

    cluster: str
    topic: str
    partition: int

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}] of {self.cluster}"


Offsets = Mapping[Source, int]


class Added(NamedTuple):
    """The least and the greatest offset that a snapshot added to a table."""

    source: Source
    first: int
    last: int


def same_offsets(settings: Settings, topics: Topics) -> None:
    """Every snapshot's next offsets go with the rows that it added, and the newest with the logs.

    In each table, from its oldest snapshot on: no next offset is below the one before, but for an
    operator's move; and what a snapshot added lies from the offset before up to its own. In the
    end a log's next offset is the greatest one in both tables and 1, which is the log's end. Where
    control records, aborted ones or a compacted hole follow the last record, it may lie behind
    some or all of these: no record is passed over by that.

    Raises:
        Wrong: names the table, the snapshot and the log.
    """
    trades, rejects = (_follow(name, iceberg(settings, name)) for name in NAMES)
    highest = _highest(settings)
    for place, (start, end) in topics.bounds.items():
        source = Source(topics.cluster, *place)
        behind = highest.get(source, start - 1) + 1
        found = trades.get(source, start)
        if not behind <= found <= end:
            raise Wrong(
                f"trades: {source}: next offset {found}, but the rows of both tables end before "
                f"{behind} and the log before {end}"
            )
        if (other := rejects.get(source, start)) > found:
            raise Wrong(f"rejects: {source}: next offset {other}, above that of trades, {found}")


def _follow(name: str, table: Table) -> Offsets:
    """Go through the snapshots, oldest first; returns the newest one's offsets."""
    former: Snapshot | None = None
    offsets: Offsets = {}
    for snapshot in reversed([*ancestors_of(table.current_snapshot(), table.metadata)]):
        where = f"{name}: snapshot {snapshot.snapshot_id}"
        # Of the oldest one that is kept, the offsets before it are known only if it is the first.
        floor = _floor(former, snapshot) if former or not snapshot.parent_snapshot_id else {}
        offsets = _offsets(snapshot)
        for source, least in floor.items():
            if offsets.get(source, -1) < least:
                raise Wrong(f"{where}: {source}: next offset {offsets.get(source)} after {least}")
        for source, first, last in _added(table, snapshot):
            if last >= offsets.get(source, 0):
                raise Wrong(f"{where}: {source}: next offset {offsets.get(source)}, added {last}")
            if first < floor.get(source, 0):
                raise Wrong(f"{where}: {source}: added {first} after next offset {floor[source]}")
        former = snapshot
    return offsets


def _floor(former: Snapshot | None, snapshot: Snapshot) -> Offsets:
    """From where the snapshot's rows and offsets may be: the former one's offsets, as moved."""
    before = _offsets(former) if former else {}
    known = len(_moves(former)) if former else 0
    moved = {Source(*source): after for source, _, after, *_ in _moves(snapshot)[known:]}
    return {source: at for source, at in {**before, **moved}.items() if at is not None}


def _offsets(snapshot: Snapshot) -> Offsets:
    return {Source(*source): at for *source, at in _property(snapshot, "k2.offsets")}


def _moves(snapshot: Snapshot) -> list[Any]:
    return _property(snapshot, "k2.moves")


def _property(snapshot: Snapshot, name: str) -> list[Any]:
    assert snapshot.summary is not None
    found: list[Any] = json.loads(snapshot.summary[name] or "[]")
    return found


def _added(table: Table, snapshot: Snapshot) -> Iterator[Added]:
    """By file and log. The manifests' bounds cannot say: a file holds rows of several logs."""
    for manifest in snapshot.manifests(table.io):
        if manifest.added_snapshot_id != snapshot.snapshot_id:
            continue
        for entry in manifest.fetch_manifest_entry(table.io):
            # A merged manifest names files of former snapshots too.
            added = entry.status == ManifestEntryStatus.ADDED
            if added and entry.snapshot_id == snapshot.snapshot_id:
                yield from _in_file(table, entry.data_file.file_path)


def _in_file(table: Table, path: str) -> Iterator[Added]:
    with table.io.new_input(path).open() as file:
        rows = pq.read_table(file, columns=[*_SOURCE, "kafka_offset"])
    ends = [("kafka_offset", "min"), ("kafka_offset", "max")]
    for row in rows.group_by(_SOURCE).aggregate(ends).to_pylist():
        source = Source(*(row[name] for name in _SOURCE))
        yield Added(source, row["kafka_offset_min"], row["kafka_offset_max"])


def _highest(settings: Settings) -> Offsets:
    """The greatest offset of each log in both tables."""
    with connect(settings) as connection:
        named = ", ".join(_SOURCE)
        sql = " UNION ALL ".join(f"SELECT {named}, kafka_offset FROM {name}" for name in NAMES)
        found = connection.execute(f"SELECT {named}, max(kafka_offset) FROM ({sql}) GROUP BY ALL")
        return {Source(*source): last for *source, last in found.fetchall()}
