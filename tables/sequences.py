"""The state of the sequence check, in RocksDB beside its changelog; as `epochs` writes it down."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

from faust.streams import _current_event
from k2.tables.epochs import Stored, epoch_after, key, mark, parse, unfit

from k2.app import app
from k2.errors import BrokerUnavailable
from k2.lake.offsets import Source
from k2.sequence import SymbolState

__all__ = ["Stored", "checkpoint", "epoch_after", "load", "table", "unfit"]

table = app.Table(
    "sequences",
    key_type=bytes,
    value_type=bytes,
    partitions=app.settings.partitions,
    help="Sequence state per symbol",
)


def load(sources: set[Source]) -> tuple[dict[Source, Stored], dict[Source, list[bytes]]]:
    """Return what is known of the partitions, and all keys of each, which a checkpoint replaces."""
    stored, keys = parse(table.items(), sources)
    return stored, {source: keys.get(source, []) for source in sources}


async def checkpoint(
    source: Source,
    epoch: str,
    event: Any,
    states: Mapping[tuple[str, str], SymbolState],
    count: int,
    watermark: int,
    former: Iterable[bytes],
    timeout_s: float,
) -> None:
    """Write what changed since the last checkpoint; return when the changelog has it.

    A worker that was frozen meanwhile finds the time over when it wakes, whatever the broker did.

    Args:
        epoch: this assignment's own; in its first checkpoint `states` are those of all symbols.
        event: any event of the source's partition: Faust finds the partition's store by it.
        count: of all symbols below the watermark.
        watermark: the offset behind the last record that `states` include.
        former: keys of epochs before, which this checkpoint makes superfluous.

    Raises:
        BrokerUnavailable: the changelog did not take the records in time.
    """
    _current_event.set(weakref.ref(event))
    partition = source.partition
    sent = [_put(partition, key(source, epoch, *n), s) for n, s in states.items()]
    sent.append(_put(partition, key(source, epoch), mark(watermark, count)))
    for each in former:
        sent.append(table.send_changelog(partition, each, None, value_serializer="raw"))
        del table.data[each]
    # Faust's own flush gives up after 0.1 s a message: wait for the deliveries themselves.
    # `wait` does not cancel those that are late: Faust sets their results all the same.
    delivered, late = await asyncio.wait(sent, timeout=timeout_s)
    if late:
        raise BrokerUnavailable(
            f"{source}: {len(late)} of {len(sent)} changelog records not taken in {timeout_s:g} s"
        )
    for future in delivered:
        future.result()


def _put(partition: int, each: bytes, value: bytes) -> Any:
    delivered = table.send_changelog(partition, each, value)
    table.data[each] = value
    return delivered
