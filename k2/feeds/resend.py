"""Rejected records back to where they came from, each once: `k2 rejects replay`.

For each chunk of records:
1. the ledger notes them as intended - a crash after it leaves them in doubt
2. they are sent, key and value as they came, to their topic and partition
3. the ledger notes them as done, with their new offsets

Headers name the place that a record had. So the next replay can tell of those in doubt which ones
arrived: it looks for their headers behind the end that the log had before they were sent. Whoever
is not found there is named and not sent again without `force`: the sender may still be alive.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

from k2.errors import FeedError, TopicMissing
from k2.feeds.producer import DELIVERY_TIMEOUT_MS
from k2.lake.offsets import Source
from k2.lake.replays import Ledger, Note, Place
from k2.query.rows import Rows
from k2.security import client_options
from k2.settings import Settings
from k2.topics import cluster_id

__all__ = ["NOT_REPLAYED", "Outcome", "Resender"]

#: Reasons that are replayed only when they are named: what is known already, and what is no
#: record's value but all that could not be read of a batch.
NOT_REPLAYED = ("duplicate", "broken_record")

CHUNK_ROWS = 5000
CHUNK_BYTES = 16 * 1024 * 1024
#: Records read behind a log's former end for one that is in doubt; more than that stays in doubt.
SEARCHED_MAX = 2_000_000
READ_TIMEOUT_S = 5.0

_PREFIX = "k2-replayed-"
_CONFIG = {
    "acks": "all",
    "enable.idempotence": True,
    "message.timeout.ms": DELIVERY_TIMEOUT_MS,
    "linger.ms": 20,
    # A record that Kafka has taken once must not be too large for the client: the broker decides.
    "message.max.bytes": 1_000_000_000,
    "log_level": 0,
}

Row = dict[str, Any]


@dataclass(slots=True)
class Outcome:
    """What became of the records that were asked for."""

    replay: str
    selected: int = 0
    sent: int = 0
    already: int = 0  # replayed before
    found: int = 0  # had been in doubt and were found in the log
    left_out: Counter[str] = field(default_factory=Counter)  # by reason, see NOT_REPLAYED
    in_doubt: list[Place] = field(default_factory=list)  # an earlier replay may have sent them


class Resender:
    """One replay; close it."""

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        """Ask the broker who it is.

        Raises:
            BrokerUnavailable: nobody answers within seconds.
        """
        self._settings, self._ledger = settings, ledger
        self.cluster = cluster_id(settings)
        base = client_options(settings)
        self._producer = Producer({**_CONFIG, **base})
        self._topics = self._producer.list_topics(timeout=READ_TIMEOUT_S).topics
        self._consumer = Consumer(
            {
                **base,
                "group.id": f"{settings.group}-replay",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "enable.partition.eof": True,
                "log_level": 0,
            }
        )

    def close(self) -> None:
        self._consumer.close()

    def replay(
        self,
        rows: Rows,
        reasons: Iterable[str] = (),
        *,
        force: bool = False,
        dry_run: bool = False,
        progress: Callable[[int], None] = lambda selected: None,
    ) -> Outcome:
        """Send what was not replayed before; in the order of their logs.

        Args:
            rows: `k2.query.rejects.RECORDS`.
            reasons: those named, which are then not left out.
            force: also what was replayed before, or is in doubt.
            dry_run: send and note nothing; `sent` is what would be.

        Raises:
            TopicMissing: the broker has no such topic or partition.
            CommitFailed: the ledger cannot be written; what was sent last is in doubt.
            FeedError: the broker did not take a record in time; it is in doubt.
        """
        outcome = Outcome(uuid.uuid4().hex)
        notes = self._ledger.notes()
        outcome.found = self._settle(notes, dry_run)
        left_out = set(NOT_REPLAYED) - set(reasons)
        for chunk in _chunks(rows):
            outcome.selected += len(chunk)
            wanted: dict[Place, Row] = {}
            for row in chunk:
                place = _place(row)
                if row["reason"] in left_out:
                    outcome.left_out[row["reason"]] += 1
                elif place in notes and not force:
                    self._known(place, notes[place], outcome)
                else:
                    self._require(place)
                    wanted[place] = row
            outcome.sent += len(wanted) if dry_run else self._resend(wanted, outcome, force)
            progress(outcome.selected)
        return outcome

    @staticmethod
    def _known(place: Place, note: Note, outcome: Outcome) -> None:
        if note.done:
            outcome.already += 1
        else:
            outcome.in_doubt.append(place)

    def _require(self, place: Place) -> None:
        topic = self._topics.get(place.topic)
        if topic is None or place.partition not in topic.partitions:
            raise TopicMissing(
                f"{place}: {self._settings.broker} has no such topic and partition to replay to"
            )

    def _resend(self, wanted: Mapping[Place, Row], outcome: Outcome, force: bool) -> int:
        """Note, send, note; how many were sent."""
        if not wanted:
            return 0
        sources = {Source(*place[:3]) for place in wanted}
        ends = {source: self._end(source.topic, source.partition) for source in sources}
        own = self._ledger.intend(outcome.replay, wanted, self.cluster, ends, force=force)
        if len(own) < len(wanted):
            # Another operator was quicker than our reading of the ledger.
            notes, ours = self._ledger.notes(), set(own)
            for place in wanted:
                if place not in ours:
                    self._known(place, notes[place], outcome)
        sent, problem = self._send(outcome.replay, own, wanted)
        note = Note(outcome.replay, False, self.cluster, None, None, "")
        self._ledger.done(sent, dict.fromkeys(sent, note))
        if problem:
            raise FeedError(
                f"{len(own) - len(sent)} of {len(own)} records not acknowledged by "
                f"{self._settings.broker}, the others are replayed; first: {problem}"
            )
        return len(sent)

    def _send(
        self, replay: str, own: list[Place], wanted: Mapping[Place, Row]
    ) -> tuple[dict[Place, int], str | None]:
        """Send these; new offsets of those that the broker has, and the first failure."""
        sent: dict[Place, int] = {}
        failures: list[str] = []
        for place in own:
            row = wanted[place]

            def delivered(error: Any, message: Any, place: Place = place) -> None:
                if error is not None:
                    failures.append(f"{place}: {error.str()}")
                else:
                    sent[place] = message.offset()

            while True:
                try:
                    self._producer.produce(
                        place.topic,
                        row["value"],
                        row["key"],
                        partition=place.partition,
                        headers=_headers(place, replay),
                        on_delivery=delivered,
                    )
                    break
                except BufferError:
                    self._producer.poll(0.05)
                except KafkaException as exc:
                    failures.append(f"{place}: {exc.args[0].str()}")
                    break
        self._producer.flush(2 * DELIVERY_TIMEOUT_MS / 1000)
        if not failures and len(sent) < len(own):
            failures.append("no acknowledgement")
        return sent, failures[0] if failures else None

    # -- those in doubt

    def _settle(self, notes: dict[Place, Note], dry_run: bool) -> int:
        """Look for those in doubt in the logs, and note the ones found as done."""
        doubtful = {
            place: note
            for place, note in notes.items()
            if not note.done and note.sent_cluster == self.cluster
        }
        found: dict[Place, int] = {}
        for topic, partition in sorted({(place.topic, place.partition) for place in doubtful}):
            own = {
                p: n for p, n in doubtful.items() if (p.topic, p.partition) == (topic, partition)
            }
            start = min(note.log_end or 0 for note in own.values())
            found.update(self._search(topic, partition, start, own))
        if not dry_run:
            self._ledger.done(found, notes)
        for place, offset in found.items():
            note = notes[place]
            notes[place] = Note(
                note.replay, True, note.sent_cluster, note.log_end, offset, note.operator
            )
        return len(found)

    def _search(
        self, topic: str, partition: int, start: int, places: Mapping[Place, Note]
    ) -> dict[Place, int]:
        if self._topics.get(topic) is None or partition not in self._topics[topic].partitions:
            return {}
        found: dict[Place, int] = {}
        self._consumer.assign([TopicPartition(topic, partition, start)])
        for _ in range(SEARCHED_MAX):
            message = self._consumer.poll(READ_TIMEOUT_S)
            if message is None or message.error() or len(found) == len(places):
                break
            named, offset = _named(message.headers()), message.offset()
            if named is None or offset is None:
                continue
            place, replay = named
            if place in places and places[place].replay == replay:
                found[place] = offset
        self._consumer.unassign()
        return found

    def _end(self, topic: str, partition: int) -> int | None:
        try:
            _, end = self._consumer.get_watermark_offsets(
                TopicPartition(topic, partition), timeout=READ_TIMEOUT_S
            )
        except KafkaException:
            return None
        return int(end)


def _headers(place: Place, replay: str) -> list[tuple[str, str | bytes | None]]:
    named = zip((*Place._fields, "by"), (*place, replay), strict=True)
    return [(f"{_PREFIX}{name}", str(value)) for name, value in named]


def _named(headers: Any) -> tuple[Place, str] | None:
    """The place that a replayed record names, and its replay; None for any other record."""
    said = dict(headers or ())
    values = [said.get(f"{_PREFIX}{name}") for name in (*Place._fields, "by")]
    try:
        cluster, topic, partition, offset, replay = (value.decode() for value in values if value)
        return Place(cluster, topic, int(partition), int(offset)), replay
    except ValueError:
        return None


def _place(row: Row) -> Place:
    return Place(
        row["kafka_cluster"], row["kafka_topic"], row["kafka_partition"], row["kafka_offset"]
    )


def _chunks(rows: Rows) -> Iterator[list[Row]]:
    chunk: list[Row] = []
    size = 0
    for batch in rows:
        for row in batch.to_pylist():
            chunk.append(row)
            size += len(row["value"] or b"") + len(row["key"] or b"")
            if len(chunk) >= CHUNK_ROWS or size >= CHUNK_BYTES:
                yield chunk
                chunk, size = [], 0
    if chunk:
        yield chunk
