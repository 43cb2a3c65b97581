"""The changelog of what is known of symbols, read and written from outside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from k2.changelog import Changelog
from k2.errors import BrokerUnavailable
from k2.settings import Settings

if TYPE_CHECKING:
    from conftest import Broker

pytestmark = pytest.mark.slow


@pytest.fixture
def changelog(broker: Broker, request: pytest.FixtureRequest) -> Iterator[Changelog]:
    """Of a group that no other test has; two partitions."""
    settings = Settings(broker=broker.address, group=f"changelog-{request.node.name}")
    with closing(Changelog(settings)) as changelog:
        admin = AdminClient({"bootstrap.servers": broker.address, "log_level": 0})
        new = NewTopic(changelog.topic, 2, 1)
        admin.create_topics([new])[changelog.topic].result(10)
        yield changelog


def test_the_newest_value_of_each_key_counts(changelog: Changelog) -> None:
    """Whatever batches the records came in; a deleted key is not there, until written again."""
    assert changelog.newest([1]) == {}
    changelog.write(1, [(b"a", b"1"), (b"b", b"1"), (b"c", b"1")])
    changelog.write(1, [(b"b", None), (b"a", b"2"), (b"c", None)])
    assert changelog.newest([1]) == {b"a": b"2"}
    changelog.write(1, [(b"c", b"3")])
    assert changelog.newest([1]) == {b"a": b"2", b"c": b"3"}
    assert changelog.newest([0]) == {}
    changelog.write(0, [(b"d", b"4")])
    assert changelog.newest([0, 1]) == {b"a": b"2", b"c": b"3", b"d": b"4"}
    assert changelog.newest([]) == {}


def test_more_records_than_a_client_holds_keep_their_order(changelog: Changelog) -> None:
    """librdkafka's queue takes 100,000."""
    changelog.write(0, ((b"%d" % (n % 7), b"%d" % n) for n in range(150_000)))
    assert changelog.newest([0]) == {b"%d" % (n % 7): b"%d" % n for n in range(149_993, 150_000)}


def test_a_partition_that_is_not_there_is_named(changelog: Changelog) -> None:
    with pytest.raises(BrokerUnavailable, match=r"-changelog\[5\]: 2 records not taken: .*nknown"):
        changelog.write(5, [(b"a", b"1"), (b"b", None)])


def test_a_broker_that_is_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("k2.changelog.ANSWER_TIMEOUT_S", 0.2)
    settings = Settings(broker="127.0.0.1:1", group="changelog-dead")
    with closing(Changelog(settings)) as changelog, pytest.raises(BrokerUnavailable) as raised:
        changelog.newest([0])
    assert str(raised.value).startswith("changelog-dead-symbols-changelog[0]: no answer")
