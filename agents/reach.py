"""Is a log the one that Iceberg knows, and does it reach to where that goes on? What if not."""

from __future__ import annotations

from collections.abc import Mapping

from k2.errors import LogTruncated, TopicRecreated
from k2.lake.offsets import Source, Topic, kept_under, known_ids
from k2.logs import Logs
from k2.settings import Settings

__all__ = ["remedy", "require_end", "require_known"]


def require_known(
    cluster: str, topic: str, topic_id: str | None, known: Mapping[Topic, str]
) -> str:
    """Return the cluster under which a topic's offsets and rows are kept.

    Raises:
        TopicRecreated: the topic has another id than the one that Iceberg knows.
    """
    name = kept_under(cluster, topic, topic_id, known)
    if name is None:
        former = list(known_ids(cluster, topic, known))[-1]
        raise TopicRecreated(
            f"{topic}@{cluster}: Iceberg has the topic with the id {former}, but now its id is "
            f"{topic_id}: it was deleted and made anew, and its offsets mean other records. "
            "`k2 offsets show` compares both; to read the new one from its start: "
            f"`k2 offsets accept {topic} --reason TEXT --yes`"
        )
    return name


def require_end(settings: Settings, source: Source, stored: int) -> None:
    """Read where the log ends: Tansu names its last batch's first offset as the end.

    Kafka refuses a fetch from beyond the end; Tansu waits until the log has grown, and what came
    meanwhile would be skipped in silence.
    """
    logs = Logs(settings)
    try:
        log = logs.bounds(source.topic, source.partition)
    finally:
        logs.close()
    if log is not None and log.end < stored:
        raise LogTruncated(
            f"{source}: Iceberg has the log up to offset {stored}, but it ends at {log.end}: was "
            f"the topic made anew, or the log truncated? {remedy(source, 'end', '--force --yes')}"
        )


def remedy(source: Source, to: str, more: str = "--yes") -> str:
    """What an operator does about a log that does not reach; for the end of a message."""
    return (
        "`k2 offsets show` compares both; to go on without what is lost: `k2 offsets move "
        f"{source.topic} {source.partition} --to {to} --reason TEXT {more}`"
    )
