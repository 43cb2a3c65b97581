"""Through which time all that Kafka had is in the tables, or will be with the next commit."""

from __future__ import annotations

from collections.abc import Mapping

from faust.types import TP
from k2.agents.assignment import Partition

from k2.lake.offsets import Source, Through
from k2.transport import Fetched, LogEnd

__all__ = ["reached", "seen"]

NS_PER_MS = 1_000_000


def reached(fetched: Fetched) -> int:
    """The time, ns, before which Kafka had nothing behind a fetch; 0: not known.

    At the log's end it is when the broker was asked. Before it, the newest timestamp that was read:
    what stands behind that record was appended later. A producer's clock may be ahead of ours.
    """
    offset, asked_at = fetched.end
    if offset <= fetched.next_offset:
        return asked_at
    newest_ms = max((batch.max_timestamp for batch in fetched.batches), default=0)
    return max(0, min(newest_ms * NS_PER_MS, asked_at))


def seen(
    partitions: Mapping[TP, Partition], ends: Mapping[TP, LogEnd], count: int
) -> dict[Source, Through | None]:
    """What a worker knows of all partitions of its topics, as of now.

    Args:
        partitions: its own.
        ends: where logs ended when they were last fetched; nothing came of those without records.
        count: of partitions of each topic; of those that others own it knows nothing.
    """
    logs = {partition.source[:2] for partition in partitions.values()}
    found: dict[Source, Through | None]
    found = {Source(*log, number): None for log in logs for number in range(count)}
    for tp, partition in partitions.items():
        below, time = max(partition.accepted, partition.records_at or 0), partition.through
        offset, asked_at = ends.get(tp, LogEnd())
        if offset <= below:
            time = max(time, asked_at)
        if time:
            found[partition.source] = Through(below, time)
    return found
