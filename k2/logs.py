"""The broker's side of the offsets: where each log starts and ends, and who reads it."""

from __future__ import annotations

from typing import NamedTuple

from confluent_kafka import Consumer, ConsumerGroupState, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from k2.errors import BrokerUnavailable
from k2.lake.offsets import Source
from k2.security import client_options
from k2.settings import Settings
from k2.topics import cluster_id

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

    def __init__(self, settings: Settings) -> None:
        """Ask the broker who it is.

        Raises:
            BrokerUnavailable: nobody answers within seconds.
        """
        self.cluster = cluster_id(settings)
        self._settings = settings
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

    def log(self, source: Source) -> Log | None:
        """Bounds of a log; None: this cluster has no such topic or partition.

        Raises:
            BrokerUnavailable: it does not answer.
        """
        topic = self._topics.get(source.topic)
        if source.cluster != self.cluster or topic is None:
            return None
        if source.partition not in topic.partitions:
            return None
        try:
            start, end = self._consumer.get_watermark_offsets(
                TopicPartition(source.topic, source.partition), timeout=ANSWER_TIMEOUT_S
            )
        except KafkaException as exc:
            raise BrokerUnavailable(f"{source}: bounds of the log: {exc.args[0].str()}") from exc
        return Log(start, self._end(source, start, end))

    def _end(self, source: Source, start: int, end: int) -> int:
        """The end, read: Tansu names the last batch's first offset as the end."""
        if end <= start:
            return end
        self._consumer.assign([TopicPartition(source.topic, source.partition, end - 1)])
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
