"""Kafka's side of K2: which cluster this is, and the topics that must exist."""

from __future__ import annotations

import base64
import struct
import time
from collections.abc import Iterable
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import ConfigResource
from confluent_kafka.admin._resource import ResourceType
from confluent_kafka.cimpl import NewTopic

from k2.errors import BrokerUnavailable, K2Error, SettingError, TopicMissing
from k2.schemas import KINDS
from k2.security import client_options
from k2.settings import Settings

__all__ = [
    "GAPS_TOPIC",
    "INSTRUMENTS_TOPIC",
    "REJECTS_TOPIC",
    "check_topics",
    "cluster_id",
    "ensure_topics",
    "require_instruments",
    "topic_ids",
]

ANSWER_TIMEOUT_S = 5.0
REJECTS_TOPIC = "market.rejects"
GAPS_TOPIC = "market.gaps"
#: One partition: every worker reads all of it, and its offsets are one order of all changes.
INSTRUMENTS_TOPIC = "market.instruments"
_OWN_TOPICS = (REJECTS_TOPIC, GAPS_TOPIC, INSTRUMENTS_TOPIC)


def _metadata(settings: Settings) -> Any:
    said: list[str] = []
    client = _admin(settings, error_cb=lambda error: said.append(error.str()))
    try:
        return client.list_topics(timeout=ANSWER_TIMEOUT_S)
    except KafkaException as exc:
        # The call itself says no more than that nobody answered: not that a password is wrong.
        client.poll(0)
        why = "; ".join(dict.fromkeys([exc.args[0].str(), *said]))
        raise BrokerUnavailable(
            f"no Kafka broker answers at {settings.broker} by {settings.broker_security} within "
            f"{ANSWER_TIMEOUT_S:g} s: {settings.hide(why)}"
        ) from exc


def _admin(settings: Settings, **more: Any) -> AdminClient:
    # librdkafka prints every connection attempt; the error we raise says it once.
    options = {**client_options(settings), "log_level": 0, **more}
    return AdminClient(options, logger=_Silent())


class _Silent:
    """A logger for librdkafka that says nothing."""

    def log(self, *args: object) -> None:
        """Drop it."""


def cluster_id(settings: Settings) -> str:
    """Return the id of the cluster at the settings' broker.

    Raises:
        BrokerUnavailable: nobody answers within seconds; names the address.
    """
    found = _metadata(settings).cluster_id
    if not found:
        raise BrokerUnavailable(f"the broker at {settings.broker} names no cluster id")
    return str(found)


def topic_ids(settings: Settings, names: Iterable[str]) -> dict[str, str]:
    """Return the ids that tell topics from former ones of the same name, as Kafka writes them.

    A broker that knows no ids (Kafka before 2.8) gives none: the topics are then left out.

    Raises:
        BrokerUnavailable: nobody answers within seconds; names the address.
        TopicMissing: a topic does not exist.
    """
    wanted = sorted(names)
    if not wanted:
        return {}
    client = _admin(settings)  # its answers end with it
    asked = client.describe_topics(TopicCollection(wanted), request_timeout=ANSWER_TIMEOUT_S)
    found: dict[str, str] = {}
    for name, answer in asked.items():
        try:
            number = _text(answer.result().topic_id)
        except KafkaException as exc:
            _no_id(settings, name, exc)
            continue
        if number is not None:
            found[name] = number
    return found


def _text(number: Any) -> str | None:
    """An id as Kafka's own tools write it; None for zero, which says that there is none."""
    bits = number.get_most_significant_bits(), number.get_least_significant_bits()
    if not any(bits):
        return None
    return base64.urlsafe_b64encode(struct.pack(">qq", *bits)).decode().rstrip("=")


def _no_id(settings: Settings, name: str, exc: KafkaException) -> None:
    """Return if the broker has no ids at all; raise if it only did not tell this one."""
    error = exc.args[0]
    if error.code() in (KafkaError.UNSUPPORTED_VERSION, KafkaError._UNSUPPORTED_FEATURE):
        return
    if error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
        raise TopicMissing(f"{name}: no such topic at {settings.broker}") from exc
    why = settings.hide(error.str())
    raise BrokerUnavailable(f"{name}: {settings.broker} names no topic id: {why}") from exc


def check_topics(settings: Settings) -> None:
    """See that a worker finds the topics that it reads and writes, as the settings have them.

    Raises:
        BrokerUnavailable: nobody answers within seconds; names the address.
        TopicMissing: a topic does not exist.
        SettingError: a topic has another number of partitions than the setting.
        K2Error: the topic of instruments is not as it must be.
    """
    existing = _metadata(settings).topics
    wanted = _feed_topics(settings)
    if missing := [name for name in [*wanted, *_OWN_TOPICS] if name not in existing]:
        raise TopicMissing(
            f"{', '.join(missing)}: no such topic at {settings.broker}; `k2 init` creates them"
        )
    _check_partitions(wanted, existing, settings)
    _check_instruments(existing, settings)


def _feed_topics(settings: Settings) -> list[str]:
    return [kind.topic(exchange) for kind in KINDS for exchange in settings.exchange_names]


def _check_partitions(names: list[str], existing: Any, settings: Settings) -> None:
    # The table of sequence states has as many partitions as the topics that it follows.
    for name in names:
        count = len(existing[name].partitions)
        if count != settings.partitions:
            raise SettingError(
                f"partitions: {settings.partitions}, but the topic {name} has {count}; "
                f"set K2_PARTITIONS={count}"
            )


def require_instruments(settings: Settings) -> None:
    """See that the topic of instruments is there, of one partition, and compacted.

    Raises:
        BrokerUnavailable: nobody answers within seconds; names the address.
        TopicMissing: it does not exist.
        K2Error: it is not as it must be.
    """
    existing = _metadata(settings).topics
    if INSTRUMENTS_TOPIC not in existing:
        raise TopicMissing(
            f"{INSTRUMENTS_TOPIC}: no such topic at {settings.broker}; `k2 init` creates it"
        )
    _check_instruments(existing, settings)


def _check_instruments(existing: Any, settings: Settings) -> None:
    # Else the broker drops instruments with time.
    count = len(existing[INSTRUMENTS_TOPIC].partitions)
    if count != 1:
        raise K2Error(f"{INSTRUMENTS_TOPIC}: {count} partitions at {settings.broker}, not 1")
    client = _admin(settings)  # its answers end with it
    try:
        topic = ConfigResource(ResourceType.TOPIC, INSTRUMENTS_TOPIC)
        asked = client.describe_configs([topic], request_timeout=ANSWER_TIMEOUT_S)
        (answer,) = asked.values()
        found = answer.result().get("cleanup.policy")
    except KafkaException as exc:
        _no_policy(settings, exc)
        return
    if found is None or found.value != "compact":
        raise K2Error(
            f"{INSTRUMENTS_TOPIC}: cleanup.policy is {found.value if found else None} at "
            f"{settings.broker}, not compact: the broker would forget instruments"
        )


def _no_policy(settings: Settings, exc: KafkaException) -> None:
    """Return if we may not ask for the policy; raise if the broker only did not tell it."""
    error = exc.args[0]
    if error.code() in (
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.UNSUPPORTED_VERSION,
        KafkaError._UNSUPPORTED_FEATURE,
    ):
        return
    why = settings.hide(error.str())
    raise BrokerUnavailable(
        f"{INSTRUMENTS_TOPIC}: {settings.broker} does not tell its configuration: {why}"
    ) from exc


def ensure_topics(settings: Settings) -> list[str]:
    """Create the topics that do not exist yet; those that do are left as they are.

    Returns:
        Names of the topics created.

    Raises:
        BrokerUnavailable: nobody answers within seconds.
        SettingError: a topic has another number of partitions than the setting.
        K2Error: the broker refused to create a topic, or that of instruments is not as it must be.
    """
    existing = _metadata(settings).topics
    wanted = _feed_topics(settings)
    _check_partitions([name for name in wanted if name in existing], existing, settings)
    if INSTRUMENTS_TOPIC in existing:
        _check_instruments(existing, settings)
    missing = [name for name in [*wanted, *_OWN_TOPICS] if name not in existing]
    if not missing:
        return []
    requests = [_request(name, settings) for name in missing]
    admin, created = _admin(settings), []
    for name, request in admin.create_topics(requests, request_timeout=30.0).items():
        try:
            request.result()
            created.append(name)
        except KafkaException as exc:
            # Somebody was quicker; also lately, when the broker asked did not know of it yet.
            if exc.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise K2Error(
                    f"{name}: the broker did not create the topic: {exc.args[0].str()}"
                ) from exc
    _await_known([*wanted, *_OWN_TOPICS], settings)
    return created


def _request(name: str, settings: Settings) -> NewTopic:
    if name == INSTRUMENTS_TOPIC:
        return NewTopic(name, 1, settings.replication, config={"cleanup.policy": "compact"})
    return NewTopic(name, settings.partitions, settings.replication)


def _await_known(names: list[str], settings: Settings) -> None:
    """Wait until clients are told of the topics: Kafka answers before every broker knows."""
    until = time.monotonic() + ANSWER_TIMEOUT_S
    while missing := set(names) - set(existing := _metadata(settings).topics):
        if time.monotonic() > until:
            raise K2Error(
                f"{', '.join(sorted(missing))}: created, but not known at {settings.broker} "
                f"within {ANSWER_TIMEOUT_S:g} s"
            )
        time.sleep(0.05)
    _check_partitions(_feed_topics(settings), existing, settings)
