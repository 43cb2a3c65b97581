"""The map of next offsets that every Iceberg snapshot carries in its summary.

One property, `k2.offsets`, holds all sources as compact JSON, sorted so that equal maps are
equal text: `[["cluster","topic",0,1234],...]`. Every snapshot carries the full map, because the
snapshots before it expire.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from k2.errors import SchemaMismatch

__all__ = [
    "COMMIT_PROPERTY",
    "MOVES_MAX",
    "MOVES_PROPERTY",
    "OFFSETS_PROPERTY",
    "Move",
    "Source",
    "decode",
    "decode_moves",
    "encode",
    "encode_moves",
]

OFFSETS_PROPERTY = "k2.offsets"

#: A uuid of one call of `Sink.commit`; finds a commit whose answer was lost.
COMMIT_PROPERTY = "k2.commit"

#: What operators did to the offsets, carried forward like them: the audit explains holes by it.
MOVES_PROPERTY = "k2.moves"
#: Each snapshot carries all of them.
MOVES_MAX = 1000


class Source(NamedTuple):
    """One Kafka partition of one cluster; offsets of another cluster are never compared."""

    cluster: str
    topic: str
    partition: int

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}]@{self.cluster}"


class Move(NamedTuple):
    """An operator's change of a next offset; None: there was none before, or there is none since.

    time: ISO 8601, UTC.
    """

    source: Source
    before: int | None
    after: int | None
    operator: str
    time: str
    reason: str

    def __str__(self) -> str:
        what = "forgotten" if self.after is None else f"moved from {self.before} to {self.after}"
        return f"{what} by {self.operator} at {self.time}: {self.reason}"


def encode_moves(moves: Sequence[Move]) -> str:
    """Return the summary's text for moves, oldest first."""
    return json.dumps(moves, separators=(",", ":"), ensure_ascii=False)


def decode_moves(text: str | None) -> list[Move]:
    """Return moves, oldest first.

    Raises:
        SchemaMismatch: the text is not what `encode_moves` writes.
    """
    try:
        return [Move(Source(*source), *rest) for source, *rest in json.loads(text or "[]")]
    except (ValueError, TypeError) as exc:
        raise SchemaMismatch(f"{MOVES_PROPERTY}: {str(text)[:200]!r} is no list of moves") from exc


def encode(offsets: Mapping[Source, int]) -> str:
    """Return the summary's text for next offsets by source."""
    return json.dumps(
        [[*source, offsets[source]] for source in sorted(offsets)],
        separators=(",", ":"),
        ensure_ascii=False,
    )


def decode(text: str | None) -> dict[Source, int]:
    """Return next offsets by source; none for a table without a snapshot of K2.

    Raises:
        SchemaMismatch: the text is not what `encode` writes; guessing would repeat or lose rows.
    """
    if text is None:
        return {}
    try:
        return {
            Source(str(cluster), str(topic), int(partition)): int(offset)
            for cluster, topic, partition, offset in json.loads(text)
        }
    except (ValueError, TypeError) as exc:
        raise SchemaMismatch(f"{OFFSETS_PROPERTY}: {text[:200]!r} is not a map of offsets") from exc
