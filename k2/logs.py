"""The broker's side of the offsets: where each log starts and ends, and who reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from confluent_kafka import Consumer, ConsumerGroupState, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from k2.errors import BrokerUnavailable
from k2.lake.offsets import Source, Topic, kept_under
from k2.security import client_options
from k2.settings import Settings
from k2.topics import cluster_id, topic_ids

__all__ = ["Log", "Logs"]

ANSWER_TIMEOUT_S = 5.0
_WITH_MEMBERS = (
    ConsumerGroupState.STABLE,
    ConsumerGroupState.PREPARING_REBALANCING,
    ConsumerGroupState.COMPLETING_REBALANCING,
)


class Log(NamedTuple):
    """First offset of a log, and the one behind its last."""

    start: int
    end: int


class Logs:
    """A connection to the broker that only looks; close it."""

    def __init__(self, settings: Settings, known: Mapping[Topic, str] | None = None) -> None:
        """Ask the broker who it is.

        Args:
            known: ids of topics that the tables carry; without them every topic is taken for the
                one that they know.

        Raises:
            BrokerUnavailable: nobody answers within seconds.
        """
        self.cluster = cluster_id(settings)
        self._settings, self._known = settings, known or {}
        self._ids: dict[str, str | None] = {}
        base: dict[str, str | int | float | bool] = {**client_options(settings), "log_level": 0}
        self._consumer = Consumer(
            {
                **base,
                "group.id": f"{settings.group}-offsets",
                "enable.auto.commit": False,
                "auto.offset.reset": "error",
                "enable.partition.eof": True,
                "fetch.wait.max.ms": 20,
            }
        )
        self._admin = AdminClient(base)
        self._topics = self._consumer.list_topics(timeout=ANSWER_TIMEOUT_S).topics

    def close(self) -> None:
        self._consumer.close()

    def partitions(self, topic: str) -> list[int]:
        """Its partitions; none: this cluster has no such topic."""
        found = self._topics.get(topic)
        return sorted(found.partitions) if found is not None else []

    def topic_id(self, topic: str) -> str | None:
        """Its id; None: the broker names none, or has no such topic.

        Raises:
            BrokerUnavailable: it does not answer.
        """
        if topic not in self._topics:
            return None
        if topic not in self._ids:
            self._ids[topic] = topic_ids(self._settings, [topic]).get(topic)
        return self._ids[topic]

    def kept_under(self, topic: str) -> str | None:
        """What the topic, as it is now, is kept under; None: it was made anew, not accepted.

        Raises:
            BrokerUnavailable: it does not answer.
        """
        return kept_under(self.cluster, topic, self.topic_id(topic), self._known)

    def has(self, source: Source) -> bool:
        """Whether the log is there, and not only another one of its name.

        Raises:
            BrokerUnavailable: it does not answer.
        """
        there = source.partition in self.partitions(source.topic)
        return there and source.cluster == self.kept_under(source.topic)

    def log(self, source: Source) -> Log | None:
        """Bounds of a log; None: this cluster does not have it, see `has`.

        Raises:
            BrokerUnavailable: it does not answer.
        """
        return self.bounds(source.topic, source.partition) if self.has(source) else None

    def bounds(self, topic: str, partition: int) -> Log | None:
        """Bounds of what has this name now; None: nothing has.

        Raises:
            BrokerUnavailable: it does not answer.
        """
        if partition not in self.partitions(topic):
            return None
        place = TopicPartition(topic, partition)
        try:
            start, end = self._consumer.get_watermark_offsets(place, timeout=ANSWER_TIMEOUT_S)
        except KafkaException as exc:
            why = exc.args[0].str()
            raise BrokerUnavailable(f"{topic}[{partition}]: bounds of the log: {why}") from exc
        return Log(start, self._end(topic, partition, start, end))

    def _end(self, topic: str, partition: int, start: int, end: int) -> int:
        """The end, read: Tansu names the last batch's first offset as the end."""
        if end <= start:
            return end
        self._consumer.assign([TopicPartition(topic, partition, end - 1)])
        try:
            while True:
                message = self._consumer.poll(ANSWER_TIMEOUT_S)
                if message is None or message.error():
                    return end
                end = max(end, (message.offset() or 0) + 1)
        finally:
            self._consumer.unassign()

    def workers(self) -> str | None:
        """What the broker says of workers that run now; None: there are none.

        Raises:
            BrokerUnavailable: it does not say.
        """
        group = self._settings.group
        try:
            described = self._admin.describe_consumer_groups(
                [group], request_timeout=ANSWER_TIMEOUT_S
            )
            found = described[group].result()
        except KafkaException as exc:
            raise BrokerUnavailable(f"group {group}: {exc.args[0].str()}") from exc
        if found.members:
            return f"workers run: {len(found.members)} members in group {group}"
        if found.state in _WITH_MEMBERS:
            # Tansu lists no members, and calls a group stable also after the last one has left.
            state = found.state.name.lower()
            return f"the broker calls group {group} {state} and lists no members: workers may run"
        return None
