"""The map of next offsets that every Iceberg snapshot carries in its summary.

One property, `k2.offsets`, holds all sources as compact JSON, sorted so that equal maps are
equal text: `[["cluster","topic",0,1234],...]`. Every snapshot carries the full map, because the
snapshots before it expire.

Beside it stand the ids that Kafka gave the topics, `k2.topics`, oldest first:
`[["cluster","topic","id"],...]`. A topic that was made anew has the name of the former one and
another id; its offsets mean other records. Once an operator has accepted it, its offsets and rows
are kept under the cluster `CLUSTER/ID`: a log of its own, whose offsets are compared with none.

A third one, `k2.valid-through`, says through which time the rows are valid, ns, of every partition
of the logs that are read now: `[["cluster","topic",0,1700000000000000000],...]`; null: not known.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from k2.errors import SchemaMismatch

__all__ = [
    "COMMIT_PROPERTY",
    "MOVES_MAX",
    "MOVES_PROPERTY",
    "OFFSETS_PROPERTY",
    "THROUGH_PROPERTY",
    "TOPICS_PROPERTY",
    "Carried",
    "Move",
    "Source",
    "Through",
    "Topic",
    "anew",
    "carry_through",
    "decode",
    "decode_moves",
    "decode_through",
    "decode_topics",
    "encode",
    "encode_moves",
    "encode_through",
    "encode_topics",
    "kept_under",
    "known_ids",
    "together",
]

OFFSETS_PROPERTY = "k2.offsets"
TOPICS_PROPERTY = "k2.topics"
THROUGH_PROPERTY = "k2.valid-through"

#: A uuid of one call of `Sink.commit`; finds a commit whose answer was lost.
COMMIT_PROPERTY = "k2.commit"

#: What operators did to the offsets, carried forward like them: the audit explains holes by it.
MOVES_PROPERTY = "k2.moves"
#: Each snapshot carries all of them.
MOVES_MAX = 1000


class Topic(NamedTuple):
    """A topic of one cluster."""

    cluster: str  # as in `Source`
    topic: str


class Source(NamedTuple):
    """One Kafka partition of one cluster; offsets of another cluster are never compared."""

    cluster: str  # the cluster's id; `anew` of it for a topic that was made anew and accepted
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
        what = f"moved from {self.before} to {self.after}"
        if self.after is None:
            what = "forgotten"
        elif self.before is None:
            what = f"begun at {self.after}"
        return f"{what} by {self.operator} at {self.time}: {self.reason}"


class Through(NamedTuple):
    """What a worker has seen of a source: all that Kafka had before a time is below an offset."""

    offset: int
    time: int  # ns since the epoch, UTC, by the worker's clock or a record's timestamp


class Carried(NamedTuple):
    """What a snapshot's summary carries forward of all snapshots before it."""

    offsets: dict[Source, int]
    topics: dict[Topic, str]
    moves: list[Move]


def anew(cluster: str, topic_id: str) -> str:
    """Return the cluster under which a topic that was made anew is kept."""
    return f"{cluster}/{topic_id}"


def known_ids(cluster: str, topic: str, known: Mapping[Topic, str]) -> dict[str, str]:
    """Return all ids that a topic had in a cluster, oldest first, and what each is kept under.

    Args:
        cluster: its id.
        known: the ids that the tables carry.
    """
    return {
        number: name
        for (name, other), number in known.items()
        if other == topic and name in (cluster, anew(cluster, number))
    }


def kept_under(
    cluster: str, topic: str, topic_id: str | None, known: Mapping[Topic, str]
) -> str | None:
    """Return the cluster under which the offsets and rows of a topic, as it is now, are kept.

    Args:
        cluster: its id.
        topic_id: the topic's; None: the broker names none, so nothing can be compared.
        known: the ids that the tables carry.

    Returns:
        The cluster's id, or `anew` of it; None: the topic was made anew, and nobody accepted it.
    """
    names = known_ids(cluster, topic, known)
    if not names:
        return cluster
    return list(names.values())[-1] if topic_id is None else names.get(topic_id)


def encode_topics(topics: Mapping[Topic, str]) -> str:
    """Return the summary's text for the ids of topics, oldest first."""
    rows = [[*topic, number] for topic, number in topics.items()]
    return json.dumps(rows, separators=(",", ":"), ensure_ascii=False)


def decode_topics(text: str | None) -> dict[Topic, str]:
    """Return the ids of topics, oldest first; none for a table that never had any.

    Raises:
        SchemaMismatch: the text is not what `encode_topics` writes.
    """
    try:
        return {
            Topic(str(cluster), str(topic)): str(number)
            for cluster, topic, number in json.loads(text or "[]")
        }
    except (ValueError, TypeError) as exc:
        raise SchemaMismatch(f"{TOPICS_PROPERTY}: {str(text)[:200]!r} names no topics") from exc


def carry_through(
    known: Mapping[Source, int | None],
    before: Mapping[Source, int],
    after: Mapping[Source, int],
    seen: Mapping[Source, Through | None],
) -> dict[Source, int | None]:
    """Return through which times the rows behind a commit are valid, by source.

    Args:
        known: the same of the snapshot before.
        before, after: next offsets.
        seen: all partitions of the topics that the worker reads, also those of others: None.

    Returns:
        Times never earlier than before, but for a source that was moved back: None, as for those of
        which nothing is known. Sources that were forgotten, and former logs of a topic, are gone.
    """
    clusters = {source.topic: source.cluster for source in seen}
    times: dict[Source, int | None] = {}
    for source, time in known.items():
        former, now = before.get(source), after.get(source)
        gone = former is not None and now is None
        if not gone and clusters.get(source.topic, source.cluster) == source.cluster:
            moved_back = former is not None and now is not None and now < former
            times[source] = None if moved_back else time
    for source, through in seen.items():
        times.setdefault(source, None)
        # A source that has no offset has no records either: the worker saw its log empty.
        if through is not None and after.get(source, through.offset) >= through.offset:
            times[source] = max(times[source] or 0, through.time)
    return times


def encode_through(times: Mapping[Source, int | None]) -> str:
    """Return the summary's text for times by source."""
    rows = [[*source, times[source]] for source in sorted(times)]
    return json.dumps(rows, separators=(",", ":"), ensure_ascii=False)


def decode_through(text: str | None) -> dict[Source, int | None]:
    """Return times by source, ns; none for a table that never had any.

    Raises:
        SchemaMismatch: the text is not what `encode_through` writes.
    """
    try:
        return {
            Source(str(cluster), str(topic), int(partition)): None if time is None else int(time)
            for cluster, topic, partition, time in json.loads(text or "[]")
        }
    except (ValueError, TypeError) as exc:
        raise SchemaMismatch(f"{THROUGH_PROPERTY}: {str(text)[:200]!r} has no times") from exc


def together(tables: Iterable[Carried]) -> Carried:
    """What several tables say of sources that are each in one of them only."""
    whole = Carried({}, {}, [])
    for table in tables:
        whole.offsets.update(table.offsets)
        whole.topics.update(table.topics)
        whole.moves.extend(table.moves)
    return whole


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
