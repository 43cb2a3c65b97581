"""Topics: what a worker needs of the broker, and how it is told what is missing."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from k2.dev.broker import free_port
from k2.errors import BrokerUnavailable, SettingError, TopicMissing
from k2.settings import Settings
from k2.topics import check_topics, cluster_id, ensure_topics

if TYPE_CHECKING:
    from conftest import Broker

pytestmark = pytest.mark.slow


def test_missing_topics_are_named_and_then_created_once(broker: Broker, tmp_path: Path) -> None:
    settings = Settings(data=tmp_path, broker=broker.address, exchanges="T1,T2", partitions=3)
    with pytest.raises(TopicMissing, match=r"market\.trades\.t1, market\.trades\.t2.*`k2 init`"):
        check_topics(settings)
    assert {"market.trades.t1", "market.trades.t2"} <= set(ensure_topics(settings))
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


def test_an_absent_broker_is_named_within_seconds() -> None:
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(BrokerUnavailable, match=address):
        cluster_id(Settings(broker=address))
