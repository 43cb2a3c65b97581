"""Topics: what a worker needs of the broker, and how it is told what is missing."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from confluent_kafka import KafkaError, KafkaException, Uuid
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from k2.agents.reach import require_known

from k2.dev.broker import Embedded, free_port
from k2.errors import BrokerUnavailable, K2Error, SettingError, TopicMissing, TopicRecreated
from k2.lake.offsets import Source, Topic, anew
from k2.logs import Log, Logs
from k2.security import client_options
from k2.settings import Settings
from k2.topics import (
    INSTRUMENTS_TOPIC,
    _no_id,
    _no_policy,
    _text,
    check_topics,
    cluster_id,
    ensure_topics,
    require_instruments,
    topic_ids,
)

if TYPE_CHECKING:
    from conftest import Broker

pytestmark = pytest.mark.slow


def test_missing_topics_are_named_and_then_created_once(tmp_path: Path) -> None:
    with Embedded(tmp_path) as own:
        settings = Settings(data=tmp_path, broker=own.address, exchanges="T1,T2", partitions=3)
        with pytest.raises(
            TopicMissing,
            match=r"market\.trades\.t1, market\.trades\.t2.*rejects, market\.gaps.*`k2 init`",
        ):
            check_topics(settings)
        made = {f"market.{kind}.{name}" for kind in ("trades", "quotes") for name in ("t1", "t2")}
        assert made <= set(ensure_topics(settings))
        assert ensure_topics(settings) == []
        check_topics(settings)


def test_two_that_create_topics_at_once_both_succeed(broker: Broker, tmp_path: Path) -> None:
    """Two stacks that start side by side: each topic is created once, and nobody fails."""
    names = ",".join(f"AT{number}" for number in range(10))
    settings = Settings(data=tmp_path, broker=broker.address, exchanges=names, partitions=1)
    with ThreadPoolExecutor(4) as pool:
        created = [*pool.map(ensure_topics, [settings] * 4)]
    trades = [name for each in created for name in each if name.startswith("market.trades")]
    assert sorted(trades) == [f"market.trades.at{number}" for number in range(10)]
    check_topics(settings)


def test_another_number_of_partitions_is_refused(broker: Broker, tmp_path: Path) -> None:
    """The table of sequence states has as many partitions as the setting says."""
    ensure_topics(Settings(data=tmp_path, broker=broker.address, exchanges="T3", partitions=3))
    other = Settings(data=tmp_path, broker=broker.address, exchanges="T3", partitions=5)
    for check in (check_topics, ensure_topics):
        with pytest.raises(SettingError, match=r"partitions: 5.*market\.trades\.t3 has 3"):
            check(other)


@pytest.mark.parametrize(
    ("partitions", "policy", "why"),
    [(1, "delete", "cleanup.policy is delete .*, not compact"), (3, "compact", "3 partitions")],
)
def test_instruments_that_would_be_forgotten_are_refused(
    tmp_path: Path, partitions: int, policy: str, why: str
) -> None:
    """Their topic must be compacted, and of one partition; one that is not is left as it is."""
    with Embedded(tmp_path) as own:
        settings = Settings(data=tmp_path, broker=own.address, exchanges="T", partitions=1)
        with pytest.raises(TopicMissing, match=r"market\.instruments: no such topic.*`k2 init`"):
            require_instruments(settings)
        ensure_topics(settings)
        for check in (check_topics, require_instruments):
            check(settings)
        admin = AdminClient(client_options(settings))
        admin.delete_topics([INSTRUMENTS_TOPIC])[INSTRUMENTS_TOPIC].result(10)
        with pytest.raises(TopicMissing, match=r"market\.instruments: no such topic"):
            check_topics(settings)
        other = NewTopic(INSTRUMENTS_TOPIC, partitions, 1, config={"cleanup.policy": policy})
        admin.create_topics([other])[INSTRUMENTS_TOPIC].result(10)
        for check in (check_topics, ensure_topics, require_instruments):
            with pytest.raises(K2Error, match=rf"market\.instruments: {why}"):
                check(settings)


def test_who_may_not_ask_for_the_policy_works_without() -> None:
    """A worker needs no right to describe topics; a broker that fails is another thing."""
    _no_policy(Settings(), KafkaException(KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED)))
    with pytest.raises(BrokerUnavailable, match=r"does not tell its configuration: .*[Tt]imed out"):
        _no_policy(Settings(), KafkaException(KafkaError(KafkaError.REQUEST_TIMED_OUT)))


def test_an_absent_broker_is_named_within_seconds() -> None:
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(BrokerUnavailable, match=address):
        cluster_id(Settings(broker=address))
    with pytest.raises(BrokerUnavailable, match=f"{address} names no topic id: .*[Tt]imed out"):
        topic_ids(Settings(broker=address), ["t"])


def test_a_topic_made_anew_has_another_id(broker: Broker) -> None:
    """Of one life of a topic always the same; a log by its former id is not the present one."""
    settings = Settings(broker=broker.address)
    admin = AdminClient(client_options(settings))
    first = _made(settings, "anew")
    assert topic_ids(settings, ["anew"]) == {"anew": first}
    admin.delete_topics(["anew"])["anew"].result(10)
    second = _made(settings, "anew")
    assert first != second
    cluster = cluster_id(settings)
    before = Source(cluster, "anew", 0)
    after = Source(anew(cluster, second), "anew", 0)
    known = {Topic(*before[:2]): first}
    for ids, present in (
        ({}, before),
        ({Topic(*before[:2]): second}, before),
        (known, None),
        ({**known, Topic(*after[:2]): second}, after),
    ):
        logs = Logs(settings, ids)
        try:
            assert logs.kept_under("anew") == (present.cluster if present else None)
            assert [s for s in (before, after) if logs.has(s)] == ([present] if present else [])
            assert [logs.log(s) for s in (before, after)].count(Log(0, 0)) == bool(present)
            assert logs.bounds("anew", 0) == Log(0, 0)
            assert logs.topic_id("none of that name") is None
        finally:
            logs.close()


def _made(settings: Settings, name: str) -> str:
    """Create a topic; its id."""
    admin = AdminClient(client_options(settings))
    admin.create_topics([NewTopic(name, 1, 1)])[name].result(10)
    return topic_ids(settings, [name])[name]


def test_an_id_is_written_as_kafka_writes_it() -> None:
    """In the alphabet of URLs; zero is none."""
    assert _text(Uuid(0x01A2093329FF7FF8, -5797878723550779138)) == "AaIJMyn_f_ivicwE9_Xo_g"
    assert _text(Uuid(0, 0)) is None


def test_a_broker_without_ids_is_no_error_and_a_missing_topic_is(broker: Broker) -> None:
    """Nothing asked for is nothing asked."""
    settings = Settings(broker=broker.address)
    assert topic_ids(settings, []) == {}
    with pytest.raises(TopicMissing, match="nope: no such topic at"):
        topic_ids(settings, ["nope"])
    for code in (KafkaError.UNSUPPORTED_VERSION, KafkaError._UNSUPPORTED_FEATURE):
        _no_id(settings, "t", KafkaException(KafkaError(code)))


def test_another_id_is_refused_with_both_and_the_command() -> None:
    """Of several former ones the newest is named."""
    known = {Topic("c", "t"): "one", Topic("c/two", "t"): "two"}
    assert require_known("c", "t", "two", known) == "c/two"
    assert require_known("c", "t", None, known) == "c/two"
    with pytest.raises(TopicRecreated) as caught:
        require_known("c", "t", "three", known)
    for said in ("t@c", "id two", "is three", "`k2 offsets accept t --reason TEXT --yes`"):
        assert said in str(caught.value)
