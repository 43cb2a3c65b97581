"""Rows into Iceberg exactly once: data files first (`files.py`), then a fenced compare-and-swap.

A commit swaps the table from the snapshot whose offsets were checked to a new one that carries the
rows and the new offsets together. PyIceberg's requirement that the head is still the checked
snapshot makes it atomic; its own retries, which would skip the check, are off (`catalog.py`).
"""

from __future__ import annotations

import logging
import random
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import CommitFailedException, ValidationException
from pyiceberg.manifest import DataFile
from pyiceberg.table import Table, Transaction
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.snapshots import Operation
from pyiceberg.table.update.snapshot import _MergeAppendFiles

from k2.errors import CommitFailed, Fenced, SchemaMismatch
from k2.lake.catalog import load_table
from k2.lake.files import DataFiles
from k2.lake.layouts import LAYOUTS
from k2.lake.maintenance import expire
from k2.lake.offsets import (
    COMMIT_PROPERTY,
    MOVES_PROPERTY,
    OFFSETS_PROPERTY,
    THROUGH_PROPERTY,
    TOPICS_PROPERTY,
    Carried,
    Move,
    Source,
    Through,
    Topic,
    carry_through,
    decode,
    decode_moves,
    decode_through,
    decode_topics,
    encode,
    encode_moves,
    encode_through,
    encode_topics,
)
from k2.settings import Settings

__all__ = ["Sink"]

log = logging.getLogger(__name__)

_BACKOFF_MAX_S = 1.0
#: After a conflict: whoever waited longer than a commit takes would be beaten again and again.
_CONFLICT_BACKOFF_MAX_S = 0.1


class _Swap(Transaction):
    """A transaction that does not copy the whole metadata at each of a dozen reads of it."""

    @property
    def table_metadata(self) -> TableMetadata:
        return self._table.metadata if not self._updates else super().table_metadata


@dataclass(frozen=True, slots=True)
class _Change:
    """What one commit asks for: the arguments of `Sink.commit`."""

    files: Sequence[DataFile]
    expected: Mapping[Source, int | None]
    advance: Mapping[Source, int | None]
    moves: Sequence[Move]
    topics: Mapping[Topic, str | None]
    through: Mapping[Source, Through | None]


class Sink:
    """One Iceberg table as the place that rows go to; one a table and worker.

    `write` may run in many threads at once. `commit` and `offsets` take turns.
    """

    def __init__(self, catalog: Catalog, name: str, settings: Settings) -> None:
        """`name`: of one of `k2.lake.layouts.LAYOUTS`, with its namespace."""
        self._catalog = catalog
        self._name = name
        self._settings = settings
        self._lock = threading.Lock()
        self._table = load_table(catalog, name)
        self._commits = 0
        self._files = DataFiles(self._table, name, LAYOUTS[name.rpartition(".")[2]])

    @property
    def catalog(self) -> Catalog:
        """Where the table is."""
        return self._catalog

    def carried(self) -> Carried:
        """Return what the newest snapshot says: offsets, ids of topics, operators' moves.

        Raises:
            CatalogUnavailable: the catalog does not answer.
        """
        with self._lock:
            self._table = load_table(self._catalog, self._name)
            return _carried(self._table)

    def offsets(self) -> dict[Source, int]:
        """Return the next offset of every source written so far, from the newest snapshot.

        Raises:
            CatalogUnavailable: the catalog does not answer.
        """
        return self.carried().offsets

    def write(self, rows: pa.Table) -> list[DataFile]:
        """Write rows as data files; they are in no snapshot before `commit`.

        Args:
            rows: n >= 0 rows of the table's layout.

        Returns:
            A file for each day (UTC) that occurs; none for no rows.

        Raises:
            SchemaMismatch: the columns or types are others, or a required value is null.
            CommitFailed: the warehouse refuses the file.
        """
        return self._files.write(rows)

    def commit(
        self,
        files: Sequence[DataFile],
        expected: Mapping[Source, int | None],
        advance: Mapping[Source, int | None],
        moves: Sequence[Move] = (),
        topics: Mapping[Topic, str | None] | None = None,
        through: Mapping[Source, Through | None] | None = None,
    ) -> int:
        """Add files and move offsets in one atomic snapshot, or do nothing.

        Args:
            files: from `write`; none is fine, the offsets move all the same.
            expected: next offset that we last wrote, of each source (None: never written).
            advance: next offset after this commit, of each source that moves; the offsets of all
                other sources are carried forward. None: forget the source.
            moves: an operator's reasons, carried forward by all later commits.
            topics: ids of the topics that the sources are of, put in where the table has none,
                never changed. None: forget the id.
            through: what was seen of all partitions of the topics that are read; see
                `carry_through`.

        Returns:
            The id of the snapshot.

        Raises:
            Fenced: the table has another offset for a source, or another id for a topic; nothing
                was written.
            CommitFailed: refused until `settings.commit_timeout_ms` was over. The outcome is
                unknown if the catalog went away: read `offsets` before anything else.
        """
        with self._lock:
            change = _Change(files, expected, advance, moves, topics or {}, through or {})
            snapshot_id = self._commit(change)
            self._commits += 1
            if self._commits % self._settings.snapshots_expire_every == 0:
                expire(self._table, self._settings)
            return snapshot_id

    def _commit(self, change: _Change) -> int:
        identity = str(uuid.uuid4())
        deadline = time.monotonic() + self._settings.commit_timeout_ms / 1000
        fresh = tried = False
        backoff_s = 0.005
        while True:
            try:
                if not fresh and (tried or _difference(self._table, change)):
                    self._table = load_table(self._catalog, self._name)
                    fresh = True
                # An attempt whose answer was lost may stand: look before checking the offsets,
                # which are then no longer the expected ones.
                if tried and (found := _find(self._table, identity)) is not None:
                    return found
                _fence(self._table, change)
                tried = True
                return self._swap(change, identity)
            except (Fenced, SchemaMismatch):
                raise
            except ValidationException as exc:
                raise CommitFailed(f"{self._name}: refused: {exc}") from exc
            except Exception as exc:
                # A conflict, a locked database or a lost connection: read the newest state and
                # decide by it. Nothing is assumed about whether the attempt took effect.
                fresh = False
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    raise CommitFailed(
                        f"{self._name}: not committed within {self._settings.commit_timeout_ms} ms"
                        f" (commit_timeout_ms): {type(exc).__name__}: {exc}"
                    ) from exc
                conflict = isinstance(exc, CommitFailedException)
                if not conflict:
                    log.warning("%s: commit, outcome unknown: %r", self._name, exc)
                most_s = _CONFLICT_BACKOFF_MAX_S if conflict else _BACKOFF_MAX_S
            time.sleep(min(left_s, random.uniform(0.001, backoff_s)))
            backoff_s = min(backoff_s * 2, most_s)

    def _swap(self, change: _Change, identity: str) -> int:
        before = _carried(self._table)
        moved = {**before.offsets, **change.advance}
        offsets = {source: at for source, at in moved.items() if at is not None}
        properties = {OFFSETS_PROPERTY: encode(offsets), COMMIT_PROPERTY: identity}
        known = decode_through(_said(self._table, THROUGH_PROPERTY))
        if times := carry_through(known, before.offsets, offsets, change.through):
            properties[THROUGH_PROPERTY] = encode_through(times)
        named = {**before.topics, **change.topics}
        ids = {topic: number for topic, number in named.items() if number is not None}
        if ids:
            properties[TOPICS_PROPERTY] = encode_topics(ids)
        if all_moves := [*before.moves, *change.moves]:
            properties[MOVES_PROPERTY] = encode_moves(all_moves)
        transaction = _Swap(self._table, autocommit=False)
        append = _MergeAppendFiles(
            Operation.APPEND, transaction, self._table.io, snapshot_properties=properties
        )
        for file in change.files:
            append.append_data_file(file)
        append.commit()
        transaction.commit_transaction()
        return append.snapshot_id


def _offsets(table: Table) -> dict[Source, int]:
    return decode(_said(table, OFFSETS_PROPERTY))


def _topics(table: Table) -> dict[Topic, str]:
    return decode_topics(_said(table, TOPICS_PROPERTY))


def _carried(table: Table) -> Carried:
    moves = decode_moves(_said(table, MOVES_PROPERTY))
    return Carried(_offsets(table), _topics(table), moves)


def _said(table: Table, name: str) -> str | None:
    snapshot = table.metadata.current_snapshot()
    return None if snapshot is None or snapshot.summary is None else snapshot.summary[name]


def _difference(table: Table, change: _Change) -> str | None:
    """What the table says otherwise."""
    offsets, ids = _offsets(table), _topics(table)
    for source, offset in change.expected.items():
        if (found := offsets.get(source)) != offset:
            return f"{source}: expected next offset {offset}, found {found}"
    for topic, number in change.topics.items():
        if number is not None and (other := ids.get(topic, number)) != number:
            return f"{topic.topic}@{topic.cluster}: expected topic id {number}, found {other}"
    return None


def _fence(table: Table, change: _Change) -> None:
    if (difference := _difference(table, change)) is not None:
        raise Fenced(f"{'.'.join(table.name())}: {difference}")


def _find(table: Table, identity: str) -> int | None:
    for snapshot in reversed(table.metadata.snapshots):
        if snapshot.summary is not None and snapshot.summary[COMMIT_PROPERTY] == identity:
            return snapshot.snapshot_id
    return None
