"""The instruments, all of them on every worker: a global table whose changelog is their topic.

Others write the topic (`k2 load`); the table only follows it, and Faust neither makes the topic nor
writes to it. Values stay as they came and are decoded when they are read, so that none can hurt a
worker.

They are held in memory, unlike other tables. A folder that was away for longer than Kafka keeps
deletions would show what was deleted for good, and one that had read more than a topic that was
made anew would never see its first records; and Faust closes RocksDB while workers come and go,
when questions still want an answer. Read anew is all of it once a start; what the table has read
it knows afterwards, so that a rebalance reads only what is new.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import faust
import pyarrow as pa
from aiokafka.errors import IllegalStateError
from faust.types import TP

from k2 import metrics
from k2.app import app
from k2.codec import InstrumentReader, WriterSchemas
from k2.codec.instruments import key_of, table_of
from k2.errors import RegistryUnavailable
from k2.topics import INSTRUMENTS_TOPIC

__all__ = ["Instruments", "InstrumentsTable", "table"]

#: How long nothing more must have come; Faust itself looks every 5 s whether it has all.
MARKER_LOOK_S = 1.0

_LOG = logging.getLogger(__name__)


class _GivenTopic(faust.Topic):
    """A topic that `k2 init` makes, and nobody else."""

    async def declare(self) -> None:
        """Leave it as it is."""


class InstrumentsTable(faust.GlobalTable):
    """Newest value of each key of the topic, as bytes."""

    def __init__(self, app: faust.App, **more: Any) -> None:
        topic = _GivenTopic(
            app,
            topics=[INSTRUMENTS_TOPIC],
            key_type=bytes,
            value_type=bytes,
            key_serializer="raw",
            value_serializer="raw",
            acks=False,
            allow_empty=True,
            maxsize=131_072,  # as Faust's changelogs have it
        )
        super().__init__(
            app,
            name="instruments",
            store="memory://instruments",  # without a name Faust takes it for none
            key_type=bytes,
            value_type=bytes,
            changelog_topic=topic,
            is_global=True,
            # Only with buffers of 1 does Faust follow the changelog of a global table.
            recovery_buffer_size=1,
            standby_buffer_size=1,
            help="Reference data per symbol",
            **more,
        )
        self._read: dict[TP, int] = {}
        self.complete = False  # whether all that was there at the start has been read

    def _changelog_topic_name(self) -> str:
        return INSTRUMENTS_TOPIC  # the assignor does not ask the topic

    def persisted_offset(self, tp: TP) -> int | None:
        """The last offset that was applied in this process."""
        return self._read.get(tp)

    def apply_changelog_batch(self, batch: Iterable[Any]) -> None:
        """Take records as they came; one without a key names nothing."""
        for event in batch:
            message = event.message
            if message.value is None:
                self.data.pop(message.key, None)
            elif message.key is not None:
                self.data[message.key] = message.value
            self._read[message.tp] = message.offset

    async def on_recovery_completed(self, active_tps: set[TP], standby_tps: set[TP]) -> None:
        await super().on_recovery_completed(active_tps, standby_tps)
        self.complete = True

    @faust.Service.task
    async def _pass_markers(self) -> None:
        """Let a recovery end behind which only markers of transactions are left.

        Faust waits for the last offset, and a marker is given to nobody. What it waits for is
        lowered, not what was read raised: at worst the recovery ends a moment early.
        """
        recovery = self.app.tables.recovery
        before: dict[TP, int | None] = {}
        while not self.should_stop:
            await self.sleep(MARKER_LOOK_S)
            read = {tp: recovery.active_offsets.get(tp) for tp in recovery.actives_for_table[self]}
            for tp, offset in read.items() if recovery.in_recovery else ():
                highwater = recovery.active_highwaters.get(tp)
                if offset is None or highwater is None or offset >= highwater:
                    continue
                if before.get(tp) == offset and await self._position(tp) > highwater:
                    recovery.active_highwaters[tp] = offset
            before = read

    async def _position(self, tp: TP) -> int:
        try:
            position: int | None = await self.app.consumer.position(tp)
        except IllegalStateError:  # no longer assigned
            return -1
        return -1 if position is None else position

    def send_changelog(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse: the topic is not ours to write."""
        raise TypeError(f"{INSTRUMENTS_TOPIC} is written by `k2 load`, not by a worker")

    def pairs(self) -> dict[bytes, bytes]:
        """A copy of all keys and values; from any thread."""
        return dict(self.data.data)


table: InstrumentsTable = app.tables.add(InstrumentsTable(app, beacon=app.tables.beacon))


class Instruments:
    """What the table holds, decoded; from any thread.

    A value that is no instrument is left out, counted, and logged once. One thread at a time asks
    the registry; where that has just failed, the others do not wait for it.
    """

    def __init__(self, table: InstrumentsTable, schemas: WriterSchemas) -> None:
        self._table, self._reader = table, InstrumentReader(schemas)
        self._lock = threading.Lock()
        self._decoded: dict[bytes, tuple[bytes, dict[str, Any]]] = {}
        self._bad: dict[bytes, bytes] = {}

    @property
    def complete(self) -> bool:
        """Whether all that was there at the worker's start has been read."""
        return self._table.complete

    def rows(self, exchange: str | None, symbols: Collection[str] | None) -> pa.Table:
        """Return instruments of an exchange and of symbols (None: any), ordered by both.

        Raises:
            RegistryUnavailable: a value's schema cannot be asked for.
        """
        return table_of(
            row
            for row in self._all()
            if (exchange is None or row["exchange"] == exchange)
            and (symbols is None or row["symbol"] in symbols)
        )

    def one(self, exchange: str, symbol: str) -> pa.Table | None:
        """Return one instrument as a table of one row; None: it is not known.

        Raises:
            RegistryUnavailable: its schema cannot be asked for.
        """
        key = key_of(exchange, symbol)
        value = self._table.pairs().get(key)
        row = None if value is None else self._row(key, value)
        return None if row is None else table_of([row])

    def _all(self) -> list[dict[str, Any]]:
        pairs = self._table.pairs()
        # Decoded values of keys that are gone would stay for ever; who asks next may drop them.
        if self._lock.acquire(blocking=False):
            try:
                for known in (self._decoded, self._bad):
                    for key in known.keys() - pairs.keys():
                        del known[key]
            finally:
                self._lock.release()
        found = (self._row(key, value) for key, value in pairs.items())
        return [row for row in found if row is not None]

    def _row(self, key: bytes, value: bytes) -> dict[str, Any] | None:
        if (row := self._known(key, value)) is not None:
            return row
        with self._asking():
            if (row := self._known(key, value)) is not None:  # read by another thread meanwhile
                return row
            try:
                row = self._reader.read(key, value)
            except ValueError as exc:
                if self._bad.get(key) != value:
                    self._bad[key] = value
                    metrics.instruments_bad_total.inc()
                    _LOG.warning("%s: %r is left out: %s", INSTRUMENTS_TOPIC, key, exc)
                return None
            self._decoded[key] = value, row
            return row

    def _known(self, key: bytes, value: bytes) -> dict[str, Any] | None:
        known = self._decoded.get(key)
        return known[1] if known is not None and known[0] == value else None

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Alone with the reader.

        Raises:
            RegistryUnavailable: it has failed, and another thread tries again.
        """
        failure = self._reader.failure
        if not self._lock.acquire(blocking=not failure):
            raise RegistryUnavailable(failure)
        try:
            yield
        finally:
            self._lock.release()
