"""How what is known of a partition's symbols is written down: keys, and which epoch counts.

Key: JSON of [cluster, topic, partition, epoch, *name], value: a segment, what is known of many
symbols; its name and form are its kind's (`segments` has those of the sequence states). The key
without a name, the mark, holds the partition's watermark, the offset from which the segments must
go on, and how many of them there are. It is written behind them in a checkpoint, so that a torn
checkpoint shows the former one, though with segments that are ahead of it: what is in them says how
far it is applied. Behind the mark comes what it makes superfluous. So an epoch with fewer segments
than its mark says is not all there, and is not used.

Each assignment writes an epoch of its own, all segments in its first checkpoint. Kafka does not
fence a changelog: what a worker sent before it froze may arrive after its successor's checkpoints.
Under the same keys that would leave old states below a new watermark, and false gaps.

A partition's states are forgotten by an epoch above all others, whose watermark is null. One record
does it, at once. To delete the others would not do: a worker may still write to them, and a folder
that was away for longer than Kafka keeps deletions (a day) would bring them back.
"""

from __future__ import annotations

import math
import uuid
from collections import defaultdict
from collections.abc import Container, Iterable
from dataclasses import dataclass

import orjson
from k2.tables.segments import Name, Symbols, unpack

from k2.lake.offsets import Move, Source

__all__ = ["Stored", "epoch_after", "forgotten", "key", "mark", "parse", "read_states", "unfit"]


@dataclass(frozen=True, slots=True)
class Stored:
    """What the newest complete epoch of a partition says."""

    epoch: str
    watermark: int | None  # None: the states were forgotten
    segments: dict[Name, bytes]


def key(source: Source, epoch: str, *name: str | int) -> bytes:
    """The key of a segment; without a name that of the mark."""
    return orjson.dumps((*source, epoch, *name))


def mark(watermark: int | None, count: int) -> bytes:
    """The value for a watermark, and the number of all segments below it."""
    return orjson.dumps((watermark, count))


def parse(
    pairs: Iterable[tuple[bytes, bytes]], wanted: Container[Source] | None = None
) -> tuple[dict[Source, Stored], dict[Source, list[bytes]]]:
    """Return what is known of partitions, and all keys of each.

    Args:
        pairs: the newest value of each key.
        wanted: all others are left out; None: every partition is wanted.
    """
    marks: dict[tuple[Source, str], tuple[int | None, int]] = {}
    segments: defaultdict[tuple[Source, str], dict[Name, bytes]] = defaultdict(dict)
    keys: defaultdict[Source, list[bytes]] = defaultdict(list)
    for each, value in pairs:
        source, epoch, name = _place(each)
        if wanted is not None and source not in wanted:
            continue
        keys[source].append(each)
        if name:
            segments[source, epoch][name] = value
        else:
            marks[source, epoch] = orjson.loads(value)

    def age(place: tuple[Source, str]) -> tuple[int, float]:
        # Two workers may have begun an epoch of one number; each is whole in itself. If one of
        # them forgets, it does so for both.
        watermark, _ = marks[place]
        return _number(place[1]), math.inf if watermark is None else watermark

    stored: dict[Source, Stored] = {}
    for source, epoch in sorted(marks, key=age):
        watermark, count = marks[source, epoch]
        if len(segments[source, epoch]) >= count:
            stored[source] = Stored(epoch, watermark, segments[source, epoch])
    return stored, dict(keys)


def read_states(stored: Stored | None) -> tuple[int | None, Symbols]:
    """Return the watermark (None: there is no state) and the states of the sequence check.

    What another release packed is as good as nothing.
    """
    if stored is None:
        return None, {}
    try:
        return stored.watermark, unpack(stored.segments)
    except ValueError:
        return None, {}


def forgotten(keys: Iterable[bytes]) -> tuple[bytes, bytes]:
    """Return key and value that let all states of a partition be forgotten.

    Args:
        keys: all keys of the partition, one at least.
    """
    places = [_place(each) for each in keys]
    source, newest, _ = max(places, key=lambda place: _number(place[1]))
    return key(source, epoch_after(newest)), mark(None, 0)


def unfit(
    source: Source,
    watermark: int | None,
    symbols: Symbols,
    start: int,
    following: int,
    moves: Iterable[Move],
) -> tuple[int, Symbols] | None:
    """Return what to fold the committed rows into, if a state cannot be gone on with.

    Args:
        watermark: of the state; None: there is none.
        start: of the log.
        following: the next offset of the table.
        moves: of all sources.

    Returns:
        The first offset to be folded, and the states there; None: the log can advance the state.
    """
    # What an operator skipped is not read, not even for the state.
    least = max([start, *(move.after or 0 for move in moves if move.source == source)])
    if watermark is not None and watermark <= following:
        newest = max((state.offset for state in symbols.values()), default=-1)
        if least <= watermark and newest < following:
            return None
        if newest < watermark:
            return watermark, symbols
    # A state ahead of the table is of no use: the table was rolled back, or moved.
    return 0, {}


def epoch_after(epoch: str | None) -> str:
    """Return a name for the epoch that follows; never the same twice."""
    return f"{_number(epoch) + 1 if epoch else 1}-{uuid.uuid4().hex}"


def _number(epoch: str) -> int:
    return int(epoch.partition("-")[0])


def _place(each: bytes) -> tuple[Source, str, Name]:
    cluster, topic, partition, epoch, *name = orjson.loads(each)
    return Source(cluster, topic, partition), epoch, tuple(name)
