"""What is known of each symbol, in RocksDB beside its changelog; as `epochs` writes it down."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from aiokafka.errors import KafkaError
from faust.streams import _current_event
from k2.tables.epochs import Stored, key, mark, parse
from k2.tables.segments import Name

from k2.app import app
from k2.errors import BrokerUnavailable
from k2.lake.offsets import Source

__all__ = ["checkpoint", "get", "load", "table"]

table = app.Table(
    "symbols",
    key_type=bytes,
    value_type=bytes,
    partitions=app.settings.partitions,
    help="What is known of each symbol",
)


def load(sources: set[Source]) -> tuple[dict[Source, Stored], dict[Source, list[bytes]]]:
    """Return what is known of the partitions, and all keys of each, which a checkpoint replaces."""
    stored, keys = parse(table.items(), sources)
    return stored, {source: keys.get(source, []) for source in sources}


def get(source: Source, epoch: str, name: Name) -> bytes | None:
    """Return a segment as it was last written; None: there is none, or the partition is not ours.

    From anywhere, in any thread.
    """
    value: bytes | None = table.data.value(source.partition, key(source, epoch, *name))
    return value


async def checkpoint(
    source: Source,
    epoch: str,
    event: Any,
    changed: Mapping[Name, bytes],
    removed: Collection[Name],
    count: int,
    watermark: int,
    former: Collection[bytes],
    timeout_s: float,
) -> None:
    """Write what changed since the last checkpoint; return when the changelog has it.

    A worker that was frozen meanwhile finds the time over when it wakes, whatever the broker did.

    Args:
        epoch: this assignment's own; in its first checkpoint `changed` are all segments.
        event: any event of the source's partition: Faust finds the partition's store by it.
        changed: written in this order, before the mark.
        removed: of the same epoch; none of them is in `changed`.
        count: of all segments, without those removed.
        watermark: the offset behind the last record that all segments include.
        former: keys of epochs before, which this checkpoint makes superfluous.
        timeout_s: for what is written, and again for what is deleted.

    Raises:
        BrokerUnavailable: the changelog did not take the records in time.
    """
    _current_event.set(weakref.ref(event))
    sent = [_put(source, key(source, epoch, *name), value) for name, value in changed.items()]
    sent.append(_put(source, key(source, epoch), mark(watermark, count)))
    await _delivered(source, sent, timeout_s)
    # Only now: without these, nothing but the new mark is whole.
    superfluous = [*former, *(key(source, epoch, *name) for name in removed)]
    if superfluous:
        await _delivered(source, [_delete(source, each) for each in superfluous], timeout_s)


async def _delivered(source: Source, sent: Iterable[Any], timeout_s: float) -> None:
    # Faust's own flush gives up after 0.1 s a message: wait for the deliveries themselves.
    # `wait` does not cancel those that are late: Faust sets their results all the same.
    delivered, late = await asyncio.wait(sent, timeout=timeout_s)
    if late:
        count = len(delivered) + len(late)
        raise BrokerUnavailable(
            f"{source}: {len(late)} of {count} changelog records not taken in {timeout_s:g} s"
        )
    try:
        for future in delivered:
            future.result()
    except KafkaError as exc:
        raise BrokerUnavailable(f"{source}: a changelog record was not taken: {exc}") from exc


def _put(source: Source, each: bytes, value: bytes) -> Any:
    delivered = table.send_changelog(source.partition, each, value)
    table.data[each] = value
    return delivered


def _delete(source: Source, each: bytes) -> Any:
    delivered = table.send_changelog(source.partition, each, None, value_serializer="raw")
    del table.data[each]
    return delivered
