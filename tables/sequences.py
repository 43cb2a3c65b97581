"""The state of the sequence check, in RocksDB beside its changelog.

Key: JSON of [cluster, topic, partition, exchange, symbol], value: `SymbolState.to_bytes()`. The
key without exchange and symbol holds the partition's watermark, the offset from which the state
must go on; it is written last in a checkpoint, so that a torn checkpoint shows the former one.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Mapping
from typing import Any

import orjson
from faust.streams import _current_event

from k2.app import app
from k2.errors import BrokerUnavailable
from k2.lake.offsets import Source
from k2.sequence import SymbolState

__all__ = ["checkpoint", "load", "table"]

Symbols = dict[tuple[str, str], SymbolState]

table = app.Table(
    "sequences",
    key_type=bytes,
    value_type=bytes,
    partitions=app.settings.partitions,
    help="Sequence state per symbol",
)


def load(sources: set[Source]) -> dict[Source, tuple[int, Symbols]]:
    """Return watermark and states of the partitions that the table knows."""
    watermarks: dict[Source, int] = {}
    symbols: dict[Source, Symbols] = {source: {} for source in sources}
    for key, value in table.items():
        cluster, topic, partition, *name = orjson.loads(key)
        source = Source(cluster, topic, partition)
        if source not in sources:
            continue
        if name:
            exchange, symbol = name
            symbols[source][exchange, symbol] = SymbolState.from_bytes(value)
        else:
            watermarks[source] = orjson.loads(value)
    return {source: (watermarks[source], symbols[source]) for source in watermarks}


async def checkpoint(
    source: Source,
    event: Any,
    states: Mapping[tuple[str, str], SymbolState],
    watermark: int,
    timeout_s: float,
) -> None:
    """Write what changed since the last checkpoint; return when the changelog has it.

    A worker that was frozen meanwhile finds the time over when it wakes, whatever the broker did.

    Args:
        event: any event of the source's partition: Faust finds the partition's store by it.
        watermark: the offset behind the last record that `states` include.

    Raises:
        BrokerUnavailable: the changelog did not take the records in time.
    """
    _current_event.set(weakref.ref(event))
    sent = [_put(source, name, state.to_bytes()) for name, state in states.items()]
    sent.append(_put(source, (), orjson.dumps(watermark)))
    # Faust's own flush gives up after 0.1 s a message: wait for the deliveries themselves.
    # `wait` does not cancel those that are late: Faust sets their results all the same.
    delivered, late = await asyncio.wait(sent, timeout=timeout_s)
    if late:
        raise BrokerUnavailable(
            f"{source}: {len(late)} of {len(sent)} changelog records not taken in {timeout_s:g} s"
        )
    for future in delivered:
        future.result()


def _put(source: Source, name: tuple[str, ...], value: bytes) -> Any:
    key = orjson.dumps((*source, *name))
    delivered = table.send_changelog(source.partition, key, value)
    table.data[key] = value
    return delivered
