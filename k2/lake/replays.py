"""The ledger of replayed rejects: an Iceberg table, so that every operator on any machine sees it.

A replay is noted twice: `intended` before a record is sent, `done` when the broker has it. Two
operators cannot both intend a record: a note is appended by compare-and-swap against the snapshot
that was read. Whoever finds `intended` without `done` knows that the record may have been sent.
"""

from __future__ import annotations

import getpass
import random
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

import pyarrow as pa
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import NoSuchTableError
from pyiceberg.table import Table

from k2.errors import CatalogUnavailable, CommitFailed
from k2.lake.catalog import ensure_replays, load_table, replays_name
from k2.lake.offsets import COMMIT_PROPERTY, Source
from k2.schemas import REPLAYS
from k2.settings import Settings

__all__ = ["Ledger", "Note", "Place", "operator"]

_BACKOFF_MAX_S = 0.5

Row = dict[str, Any]


class Place(NamedTuple):
    """Where a record stood when it was rejected."""

    cluster: str
    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}]@{self.offset}"


@dataclass(frozen=True, slots=True)
class Note:
    """The newest replay of a place; `done` is False while nobody knows whether it was sent."""

    replay: str
    done: bool
    sent_cluster: str
    log_end: int | None
    sent_offset: int | None
    operator: str


def operator() -> str:
    """Who runs this, for the notes: user@host."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


class Ledger:
    """What was replayed; made by the first replay, absent before."""

    def __init__(self, catalog: Catalog, settings: Settings) -> None:
        self._catalog, self._settings = catalog, settings
        self._name = replays_name(settings)

    def notes(self) -> dict[Place, Note]:
        """The newest note of every place; none when nothing was ever replayed.

        Raises:
            CatalogUnavailable: the table cannot be read.
        """
        try:
            return _notes(load_table(self._catalog, self._name))
        except CatalogUnavailable as exc:
            if isinstance(exc.__cause__, NoSuchTableError):
                return {}
            raise

    def intend(
        self,
        replay: str,
        places: Iterable[Place],
        sent_cluster: str,
        log_ends: Mapping[Source, int | None],
        *,
        force: bool,
    ) -> list[Place]:
        """Note that these are about to be sent; whoever has noted one before keeps it.

        Args:
            replay: the name of this replay.
            log_ends: end of each log, by its source, before anything is sent.
            force: replay also what was intended or done before.

        Returns:
            The places that are this replay's own, in the given order: send no others.

        Raises:
            CommitFailed: not noted within `commit_timeout_ms`; send nothing.
        """
        ensure_replays(self._catalog, self._settings)
        wanted = list(places)

        def rows(notes: dict[Place, Note]) -> list[Row]:
            return [
                _row(replay, "intended", place, sent_cluster, log_ends.get(Source(*place[:3])))
                for place in wanted
                if force or place not in notes
            ]

        own = self._append(rows)
        kept = {_place(row) for row in own}
        return [place for place in wanted if place in kept]

    def done(self, sent: Mapping[Place, int], notes: Mapping[Place, Note]) -> None:
        """Note what the broker has, by place its new offset.

        Args:
            notes: of each place, the intention that this fulfils.

        Raises:
            CommitFailed: not noted; the places stay in doubt.
        """
        if not sent:
            return
        rows = [
            _row(
                notes[place].replay,
                "done",
                place,
                notes[place].sent_cluster,
                notes[place].log_end,
                offset,
            )
            for place, offset in sent.items()
        ]
        self._append(lambda _: rows)

    def _append(self, make: Callable[[dict[Place, Note]], list[Row]]) -> list[Row]:
        identity = str(uuid.uuid4())
        deadline = time.monotonic() + self._settings.commit_timeout_ms / 1000
        rows: list[Row] = []
        while True:
            try:
                table = load_table(self._catalog, self._name)
                if rows and _holds(table, identity):
                    return rows  # the answer to the last attempt was lost, its effect was not
                rows = make(_notes(table))
                if rows:
                    table.append(
                        pa.Table.from_pylist(rows, REPLAYS),
                        snapshot_properties={COMMIT_PROPERTY: identity},
                    )
                return rows
            except Exception as exc:
                if time.monotonic() > deadline:
                    raise CommitFailed(
                        f"{self._name}: not noted within {self._settings.commit_timeout_ms} ms"
                        f" (commit_timeout_ms): {type(exc).__name__}: {exc}"
                    ) from exc
            time.sleep(random.uniform(0.005, _BACKOFF_MAX_S))


def _holds(table: Table, identity: str) -> bool:
    return any(
        snapshot.summary is not None and snapshot.summary[COMMIT_PROPERTY] == identity
        for snapshot in table.metadata.snapshots
    )


def _row(
    replay: str,
    state: str,
    place: Place,
    sent_cluster: str,
    log_end: int | None,
    sent_offset: int | None = None,
) -> Row:
    return {
        "replay": replay, "state": state, "kafka_cluster": place.cluster,
        "kafka_topic": place.topic, "kafka_partition": place.partition,
        "kafka_offset": place.offset, "sent_cluster": sent_cluster, "log_end": log_end,
        "sent_offset": sent_offset, "operator": operator(), "noted_at": datetime.now(UTC),
    }  # fmt: skip


def _place(row: Row) -> Place:
    return Place(
        row["kafka_cluster"], row["kafka_topic"], row["kafka_partition"], row["kafka_offset"]
    )


def _notes(table: Table) -> dict[Place, Note]:
    """Places and their newest intention; done ones are found by the replay that they name."""
    rows = table.scan().to_arrow().sort_by("noted_at").to_pylist()
    done = {(row["replay"], _place(row)): row["sent_offset"] for row in rows if _is_done(row)}
    notes: dict[Place, Note] = {}
    for row in rows:
        if _is_done(row):
            continue
        place, key = _place(row), (row["replay"], _place(row))
        notes[place] = Note(
            row["replay"],
            key in done,
            row["sent_cluster"],
            row["log_end"],
            done.get(key),
            row["operator"],
        )
    return notes


def _is_done(row: Row) -> bool:
    return bool(row["state"] == "done")
