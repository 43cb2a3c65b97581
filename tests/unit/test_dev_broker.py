"""The embedded broker: a cluster id a start, and clear refusals."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from k2.dev.broker import Embedded, free_port, port_is_free
from k2.errors import BrokerUnavailable
from k2.schemas import TRADES
from k2.settings import Settings
from k2.topics import GAPS_TOPIC, REJECTS_TOPIC, cluster_id, ensure_topics

if TYPE_CHECKING:
    from conftest import Broker


@pytest.mark.slow
def test_clients_read_the_cluster_id_of_this_start(broker: Broker) -> None:
    assert cluster_id(Settings(broker=broker.address)) == broker.cluster_id
    assert broker.cluster_id.startswith("k2-")


@pytest.mark.slow
def test_restart_on_the_same_port_is_another_cluster(tmp_path: Path) -> None:
    port, seen = free_port(), []
    for _ in range(2):
        with Embedded(tmp_path, port) as embedded:
            seen.append(cluster_id(Settings(broker=embedded.address)))
    assert seen[0] != seen[1]
    assert port_is_free("127.0.0.1", port)


@pytest.mark.slow
def test_topics_are_created_once(broker: Broker) -> None:
    settings = Settings(broker=broker.address, exchanges="DEVTEST", partitions=2)
    assert TRADES.topic("DEVTEST") in ensure_topics(settings)
    assert ensure_topics(settings) == []
    assert (REJECTS_TOPIC, GAPS_TOPIC) == ("market.rejects", "market.gaps")


def test_port_in_use_is_refused(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(BrokerUnavailable, match="in use"):
            Embedded(tmp_path, taken.getsockname()[1]).start()


@pytest.mark.slow
def test_absent_broker_is_named_within_seconds() -> None:
    address, begin = f"127.0.0.1:{free_port()}", time.monotonic()
    with pytest.raises(BrokerUnavailable, match=address):
        cluster_id(Settings(broker=address))
    assert time.monotonic() - begin < 8
