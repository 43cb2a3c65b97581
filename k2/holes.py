"""Why a log has no record at some offsets: read from the log itself, while it still has them."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from k2.errors import BrokerUnavailable
from k2.lake.offsets import Source, Topic
from k2.logs import Logs
from k2.security import client_options
from k2.settings import Settings

__all__ = ["BrokerHoles"]

ANSWER_TIMEOUT_S = 10.0
#: Reading on over so many records costs less than finding the next place in the log.
READ_ON_MAX = 20_000
BATCH = 1000


class BrokerHoles:
    """Reads each log at most once, forward, as long as holes are asked for in their order.

    A topic of transactions has a hole for each of them. Close it.
    """

    def __init__(self, settings: Settings, known: Mapping[Topic, str]) -> None:
        """Ask the broker who it is.

        Args:
            known: ids of topics that the tables carry: a topic that was made anew explains nothing
                of the former one.

        Raises:
            BrokerUnavailable: nobody answers within seconds.
        """
        self._logs = Logs(settings, known)
        self._consumer = Consumer(
            {
                **client_options(settings),
                "group.id": f"{settings.group}-verify",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "auto.offset.reset": "error",
                "enable.partition.eof": True,  # an end that is told, not guessed from silence
            }
        )
        self._source: Source | None = None
        self._start = self._end = 0  # of the source's log
        self._next = -1  # what is read next; none: -1
        self._ahead: deque[Message] = deque()  # all from `_passed` on that was read, in order
        self._passed = 0

    def explain(self, source: Source, first: int, last: int) -> str | None:
        """Say why offsets `first`..`last` hold no record; None if they do, or nobody knows.

        Raises:
            BrokerUnavailable: it no longer answers.
        """
        if not self._logs.has(source):
            return None
        if source != self._source:
            self._turn_to(source)
        if first < self._start or first >= self._end:
            return None  # the log no longer has them all: nobody can say what they were
        message = self._first_from(first)
        offset = message.offset() if message is not None else None
        if message is None or offset is None or offset <= last:
            return None
        if (error := message.error()) is None:
            return "control records, aborted or compacted away"
        if error.code() == KafkaError._PARTITION_EOF:
            return "no record follows: control records, aborted or compacted away"
        return None

    def close(self) -> None:
        self._logs.close()
        self._consumer.close()

    def _turn_to(self, source: Source) -> None:
        place = TopicPartition(source.topic, source.partition)
        try:
            self._start, self._end = self._consumer.get_watermark_offsets(
                place, timeout=ANSWER_TIMEOUT_S
            )
        except KafkaException as exc:
            raise BrokerUnavailable(f"{source}: bounds of the log: {exc.args[0].str()}") from exc
        self._source, self._next = source, -1

    def _first_from(self, first: int) -> Message | None:
        """The first record at or above an offset, or the log's end; None: no answer in time."""
        assert self._source is not None
        if self._next < 0 or first < self._passed or first - self._next > READ_ON_MAX:
            place = TopicPartition(self._source.topic, self._source.partition, first)
            self._consumer.assign([place])
            self._ahead.clear()
            self._next = self._passed = first
        while True:
            while self._ahead:
                message = self._ahead[0]
                if message.error() is not None or (message.offset() or 0) >= first:
                    return message
                self._passed = (message.offset() or 0) + 1
                self._ahead.popleft()
            answer = self._consumer.poll(ANSWER_TIMEOUT_S)
            if answer is None:
                return None
            self._ahead.extend([answer, *self._consumer.consume(BATCH, 0)])
            self._next = (self._ahead[-1].offset() or 0) + 1
