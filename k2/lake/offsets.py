"""The map of next offsets that every Iceberg snapshot carries in its summary.

One property, `k2.offsets`, holds all sources as compact JSON, sorted so that equal maps are
equal text: `[["cluster","topic",0,1234],...]`. Every snapshot carries the full map, because the
snapshots before it expire.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NamedTuple

from k2.errors import SchemaMismatch

__all__ = ["COMMIT_PROPERTY", "OFFSETS_PROPERTY", "Source", "decode", "encode"]

OFFSETS_PROPERTY = "k2.offsets"

#: A uuid of one call of `Sink.commit`; finds a commit whose answer was lost.
COMMIT_PROPERTY = "k2.commit"


class Source(NamedTuple):
    """One Kafka partition of one cluster; offsets of another cluster are never compared."""

    cluster: str
    topic: str
    partition: int

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}]@{self.cluster}"


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
