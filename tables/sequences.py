"""The state of the sequence check, in RocksDB beside its changelog.

Key: JSON of [cluster, topic, partition, epoch, exchange, symbol], value: the packed `SymbolState`.
The key without exchange and symbol holds the partition's watermark, the offset from which the state
must go on, and the number of symbols below it. It is written last in a checkpoint, so that a torn
checkpoint shows the former one; an epoch with fewer symbols is not all there, and is not used.

Each assignment writes an epoch of its own, all symbols in its first checkpoint. Kafka does not
fence a changelog: what a worker sent before it froze may arrive after its successor's checkpoints.
Under the same keys that would leave old states below a new watermark, and false gaps.
"""

from __future__ import annotations

import asyncio
import uuid
import weakref
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from faust.streams import _current_event

from k2.app import app
from k2.errors import BrokerUnavailable
from k2.lake.offsets import Source
from k2.sequence import SymbolState

__all__ = ["Stored", "checkpoint", "epoch_after", "load", "table"]

Symbols = dict[tuple[str, str], SymbolState]

table = app.Table(
    "sequences",
    key_type=bytes,
    value_type=bytes,
    partitions=app.settings.partitions,
    help="Sequence state per symbol",
)


@dataclass(frozen=True, slots=True)
class Stored:
    """What the newest complete epoch of a partition says."""

    epoch: str
    watermark: int
    symbols: Symbols


def load(sources: set[Source]) -> tuple[dict[Source, Stored], dict[Source, list[bytes]]]:
    """Return what is known of the partitions, and all keys of each, which a checkpoint replaces."""
    marks: dict[tuple[Source, str], tuple[int, int]] = {}
    symbols: defaultdict[tuple[Source, str], Symbols] = defaultdict(dict)
    keys: dict[Source, list[bytes]] = {source: [] for source in sources}
    for key, value in table.items():
        cluster, topic, partition, epoch, *name = orjson.loads(key)
        source = Source(cluster, topic, partition)
        if source not in sources:
            continue
        keys[source].append(key)
        if name:
            exchange, symbol = name
            symbols[source, epoch][exchange, symbol] = SymbolState.from_bytes(value)
        else:
            marks[source, epoch] = orjson.loads(value)
    stored: dict[Source, Stored] = {}
    # Two workers may have begun an epoch of one number; each is whole in itself.
    newest_last = sorted(marks, key=lambda place: (_number(place[1]), marks[place][0]))
    for source, epoch in newest_last:
        watermark, count = marks[source, epoch]
        if len(symbols[source, epoch]) >= count:
            stored[source] = Stored(epoch, watermark, symbols[source, epoch])
    return stored, keys


def epoch_after(epoch: str | None) -> str:
    """Return a name for the epoch that follows; never the same twice."""
    return f"{_number(epoch) + 1 if epoch else 1}-{uuid.uuid4().hex}"


def _number(epoch: str) -> int:
    return int(epoch.partition("-")[0])


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
    sent = [_put(source, (epoch, *name), state) for name, state in states.items()]
    sent.append(_put(source, (epoch,), orjson.dumps((watermark, count))))
    for key in former:
        sent.append(table.send_changelog(source.partition, key, None, value_serializer="raw"))
        del table.data[key]
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
