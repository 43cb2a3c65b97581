"""The state of the sequence check, in RocksDB beside its changelog.

Key: `<cluster>/<topic>/<partition>/<exchange>.<symbol>`, value: `SymbolState.to_bytes()`. The key
without a symbol holds the partition's watermark, the offset from which the state must go on; it is
written last in a checkpoint, so that a torn checkpoint shows the former one.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Mapping
from typing import Any

import orjson
from faust.streams import _current_event

from k2.app import app
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


def _prefix(source: Source) -> str:
    return f"{source.cluster}/{source.topic}/{source.partition}/"


def load(sources: set[Source]) -> dict[Source, tuple[int, Symbols]]:
    """Return watermark and states of the partitions that the table knows."""
    prefixes = {_prefix(source): source for source in sources}
    watermarks: dict[Source, int] = {}
    symbols: dict[Source, Symbols] = {source: {} for source in sources}
    for key, value in table.items():
        head, _, name = key.decode().rpartition("/")
        source = prefixes.get(head + "/")
        if source is None:
            continue
        if name:
            exchange, _, symbol = name.partition(".")
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

    Args:
        event: any event of the source's partition: Faust finds the partition's store by it.
        watermark: the offset behind the last record that `states` include.

    Raises:
        TimeoutError: the broker did not take the changelog records in time.
    """
    _current_event.set(weakref.ref(event))
    prefix = _prefix(source)
    sent = []
    for (exchange, symbol), state in states.items():
        sent.append(_put(source.partition, f"{prefix}{exchange}.{symbol}", state.to_bytes()))
    sent.append(_put(source.partition, prefix, orjson.dumps(watermark)))
    # Faust's own flush gives up after 0.1 s a message: wait for the deliveries themselves.
    await asyncio.wait_for(asyncio.gather(*sent), timeout_s)


def _put(partition: int, name: str, value: bytes) -> Any:
    key = name.encode()
    delivered = table.send_changelog(partition, key, value)
    table.data[key] = value
    return delivered
