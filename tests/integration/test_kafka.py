"""What only a real Kafka does: transactions, compaction, compression, TLS and SASL, restarts."""

from __future__ import annotations

import json
import secrets
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from k2.codec import encode
from k2.dev.jars import tool
from k2.dev.kafka import Kafka, Secured
from k2.dev.seaweed import SeaweedFS
from k2.dev.stack import init
from k2.errors import BrokerUnavailable
from k2.feeds.producer import produce
from k2.feeds.simulate import Simulation
from k2.holes import BrokerHoles
from k2.lake.catalog import open_catalog
from k2.lake.moves import Offsets
from k2.lake.offsets import Source
from k2.registry import open_registry
from k2.schemas import TRADES
from k2.security import client_options
from k2.settings import Settings
from k2.topics import cluster_id, topic_ids
from tests.integration.oracle import check, check_topics, connect
from tests.integration.parts import Feed, Worker, committed, environment, k2, until, verify
from tests.integration.places import on_kafka

pytestmark = pytest.mark.slow

KEY = b"SIM.S00001"
CODECS = {"gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
On = tuple[Settings, Kafka]


def test_aborted_transactions_are_no_rows_and_their_offsets_explained(kafka: On) -> None:
    """Committed and aborted transactions of two producers at once: only the former are trades."""
    lake, _ = kafka
    topic, values = _topic(lake), _values(lake, 300)
    one, two = (_transactional(lake, name) for name in ("one", "two"))
    wanted: list[bytes] = []
    for number, first in enumerate(range(0, len(values), 100)):
        piece = values[first : first + 100]
        one.begin_transaction()
        two.begin_transaction()
        # Interleaved in the log, each flush a record batch of its own.
        for value in (piece[:50], piece[50:]):
            for producer in (one, two):
                for each in value:
                    producer.produce(topic, each, KEY, partition=0)
                assert producer.flush(30) == 0
        kept, dropped = (one, two) if number % 2 else (two, one)
        dropped.abort_transaction(30)
        kept.commit_transaction(30)
        wanted += piece
    with Worker(lake) as worker:
        until(lambda: committed(lake) >= len(values), 60, lambda: f"trades:\n{worker.tail()}")
        worker.terminate()
    check_topics(lake)
    found = _offsets(lake, "trades")
    # 200 records and two control records a round.
    assert len(found) == len(values)
    assert found[-1] < 3 * 202
    assert committed(lake, "rejects") == 0
    report = k2(environment(lake), "verify")
    assert report.returncode == 0, report.stdout + report.stderr
    assert "control records, aborted or compacted away" in report.stdout
    assert "no record follows" in report.stdout, "the control records behind the last trade"


def test_compacted_gaps_are_passed_over_and_explained(tmp_path: Path, seaweed: SeaweedFS) -> None:
    """Of a compacted topic the records that are left are trades; the others' offsets are holes."""
    quick = {"log.cleaner.backoff.ms": "100", "log.cleaner.threads": "1"}
    with on_kafka(tmp_path / "data", seaweed, options=quick) as (lake, _):
        topic = _topic(lake)
        compacted = {
            "cleanup.policy": "compact",
            "segment.ms": "100",
            "min.cleanable.dirty.ratio": "0.01",
            "min.compaction.lag.ms": "0",
        }
        _create(lake, NewTopic(topic, lake.partitions, 1, config=compacted))
        init(lake)
        values = _values(lake, 300)
        producer = Producer(client_options(lake))
        for number, value in enumerate(values):
            producer.produce(topic, value, f"SIM.{number % 10}".encode(), partition=0)
            if number % 100 == 99:
                assert producer.flush(30) == 0
                time.sleep(0.2)  # the segment's age, after which the next record begins another
        folder = tmp_path / "data" / "kafka" / "log" / f"{topic}-0"
        until(lambda: _records(folder) < 200, 30, lambda: f"compaction: {_records(folder)} left")
        left = _records(folder)
        with Worker(lake) as worker:
            until(lambda: committed(lake) >= left, 60, lambda: f"{left}:\n{worker.tail()}")
            worker.terminate()
        check_topics(lake)
        assert len(_offsets(lake, "trades")) == left < 200
        report = k2(environment(lake), "verify")
        assert report.returncode == 0, report.stdout + report.stderr
        assert "control records, aborted or compacted away" in report.stdout


def test_compressed_batches_come_out_as_they_went_in(kafka: On) -> None:
    """Each codec, as librdkafka writes it, and as Kafka itself does for a topic that asks."""
    topics = {f"{by}-{codec}": codec for by in ("feed", "kafka") for codec in CODECS}
    lake = replace(kafka[0], exchanges=",".join(topics))
    asked = [
        NewTopic(TRADES.topic(name), lake.partitions, 1, config={"compression.type": codec})
        for name, codec in topics.items()
        if name.startswith("kafka")
    ]
    _create(lake, *asked)
    init(lake)
    values = _values(lake, 800)
    for number, (name, codec) in enumerate(topics.items()):
        options = {**client_options(lake), "linger.ms": 100}
        if name.startswith("feed"):
            options["compression.type"] = codec
        producer = Producer(options)
        for value in values[number * 100 : number * 100 + 100]:
            producer.produce(TRADES.topic(name), value, KEY, partition=0)
        assert producer.flush(30) == 0
        log = lake.data / "kafka" / "log" / f"{TRADES.topic(name)}-0"
        assert {attributes & 7 for _, attributes in _batches(log)} == {CODECS[codec]}
    with Worker(lake) as worker:
        until(lambda: committed(lake) >= len(values), 60, lambda: f"trades:\n{worker.tail()}")
        worker.terminate()
    verify(lake)
    check_topics(lake)
    with connect(lake) as connection:
        rows = connection.execute("SELECT sequence FROM trades ORDER BY 1").fetchall()
    assert rows == [(number,) for number in range(1, len(values) + 1)]


def test_broker_that_dies_and_comes_back_costs_no_trade(kafka: On) -> None:
    """SIGKILL under a running worker and feed, and a start on the same log."""
    lake, broker = kafka
    simulation = Simulation(11, 50, 200_000, gaps=20, duplicates=20, late=20, resets=2)
    journal, stream = simulation.journal, list(simulation)
    total = sum(journal.rows.values())
    with Worker(lake) as worker:
        worker.await_ready()
        with Feed(stream, _topic(lake), lake, 20_000.0) as feed:
            until(lambda: committed(lake) > 20_000, 60, lambda: f"rows:\n{worker.tail()}")
            assert broker.child is not None
            broker.child.signal(signal.SIGKILL)
            broker.child.stop(0.0)
            former = broker.cluster_id
            broker.start()
            assert broker.cluster_id == former
            assert committed(lake) < total, "not in mid-stream"
            assert feed.done.result(timeout=90).count == journal.sent
        until(lambda: committed(lake) >= total, 60, lambda: f"{total}:\n{worker.tail()}")
        worker.terminate()
    verify(lake)
    check(lake, stream, journal)


def test_recreated_topic_that_is_shorter_is_refused(kafka: On) -> None:
    """Offsets of the former log mean nothing in the new one: no worker goes on, at either end."""
    lake, _ = kafka
    topic, values = _topic(lake), _values(lake, 300)
    _send(lake, values)
    with Worker(lake) as worker:
        until(lambda: committed(lake) >= len(values), 60, lambda: f"trades:\n{worker.tail()}")
        worker.terminate()
    _recreate(lake)
    _send(lake, values[:100])
    refusal = _refusal(worker)
    assert "TopicRecreated" in refusal
    assert f"`k2 offsets accept {topic} --reason TEXT --yes`" in refusal
    assert committed(lake) == len(values)


def test_recreated_topic_that_has_outgrown_its_former_self(kafka: On) -> None:
    """Refused by its id; accepted, all of it is read: what is new is a trade, once."""
    lake, _ = kafka
    topic, values, env = _topic(lake), _values(lake, 400), environment(lake)
    _send(lake, values[:200])
    with Worker(lake) as worker:
        until(lambda: committed(lake) >= 200, 60, lambda: f"trades:\n{worker.tail()}")
        worker.terminate()
    cluster, former = cluster_id(lake), topic_ids(lake, [topic])[topic]
    _recreate(lake)
    number = topic_ids(lake, [topic])[topic]
    assert number != former
    producer = _transactional(lake, "feed")
    producer.begin_transaction()
    for value in values[100:]:
        producer.produce(topic, value, KEY, partition=0)
    producer.commit_transaction(30)
    assert f"id {former}, but now its id is {number}" in _refusal(worker)
    assert committed(lake) == 200
    shown = k2(env, "offsets", "show", "--json")
    assert (shown.returncode, _verdicts(shown)) == (1, {cluster: "topic made anew: another id"})
    why = ("--reason", "the test says so")
    moved = k2(env, "offsets", "move", topic, "0", "--to", "start", *why, "--force", "--yes")
    assert (moved.returncode, "was made anew" in moved.stderr) == (2, True)
    assert "nothing done" in k2(env, "offsets", "accept", topic, *why).stderr
    done = k2(env, "offsets", "accept", topic, *why, "--yes")
    assert (done.returncode, done.stdout.endswith("done\n")) == (0, True), done.stderr
    again = k2(env, "offsets", "accept", topic, *why, "--yes")
    assert (again.returncode, "was not made anew" in again.stderr) == (2, True)
    with Worker(lake, "1") as worker:
        until(lambda: committed(lake) >= 400, 60, lambda: f"trades:\n{worker.tail()}")
        until(lambda: committed(lake, "rejects") >= 100, 60, lambda: f"rejects:\n{worker.tail()}")
        worker.terminate()
    verify(lake)
    shown = k2(env, "offsets", "show", "--json")
    anew = f"{cluster}/{number}"
    assert (shown.returncode, _verdicts(shown)) == (0, {cluster: "former topic", anew: "ok"})
    with connect(lake) as connection:
        places = "kafka_cluster, count(*), min(kafka_offset), max(kafka_offset)"
        sql = f"SELECT {places} FROM {{}} GROUP BY 1 ORDER BY 1"
        assert connection.execute(sql.format("trades")).fetchall() == [
            (cluster, 200, 0, 199),
            (anew, 200, 100, 299),
        ]
        assert connection.execute(sql.format("rejects")).fetchall() == [(anew, 100, 0, 99)]
        found = connection.execute("SELECT sequence, verdict FROM trades ORDER BY 1").fetchall()
    assert found == [(1, "first"), *((number, "ok") for number in range(2, 401))]
    # The control record behind the last trade is no hole of the former topic.
    holes = BrokerHoles(lake, Offsets(open_catalog(lake), lake).topics)
    try:
        reasons = [holes.explain(Source(name, topic, 0), 300, 300) for name in (cluster, anew)]
    finally:
        holes.close()
    assert reasons == [None, "no record follows: control records, aborted or compacted away"]
    replay = ("rejects", "replay", "--reason", "duplicate", "--dry-run", "--json")
    assert json.loads(k2(env, *replay).stdout)["sent"] == 100


def test_tls_and_sasl_from_the_feed_to_the_audit(tmp_path: Path, seaweed: SeaweedFS) -> None:
    """By the secured listener alone; a wrong password is refused with the address."""
    password, store_password = secrets.token_hex(12), secrets.token_hex(12)
    keystore, certificate = _certificate(tmp_path, store_password)
    secured = Secured(keystore, store_password, {"k2": password})
    with on_kafka(tmp_path / "data", seaweed, secured=secured) as (plain, broker):
        lake = replace(
            plain,
            broker=broker.secure_address,
            broker_security="SASL_SSL",
            broker_user="k2",
            broker_password=password,
            broker_ca=str(certificate),
        )
        init(lake)
        simulation = Simulation(5, 20, 5_000, gaps=3, duplicates=3)
        journal, stream = simulation.journal, list(simulation)
        assert produce(stream, _topic(lake), lake).count == journal.sent
        with Worker(lake) as worker:
            total = sum(journal.rows.values())
            until(lambda: committed(lake) >= total, 60, lambda: f"{total}:\n{worker.tail()}")
            worker.terminate()
            assert password not in worker.log()
        verify(lake)
        check(lake, stream, journal)
        with pytest.raises(
            BrokerUnavailable, match=f"{broker.secure_address}.*Authentication failed"
        ):
            cluster_id(replace(lake, broker_password="wrong"))


def _topic(lake: Settings) -> str:
    return TRADES.topic("SIM")


def _values(lake: Settings, count: int) -> list[bytes]:
    """Trades of one symbol, as they stand in a record's value."""
    schema_id = open_registry(lake).register("values", TRADES.avro)
    buffer, ends = encode(TRADES, pa.concat_tables(Simulation(3, 1, count)), schema_id)
    return [bytes(buffer[first:last]) for first, last in pairwise(ends)]


def _send(lake: Settings, values: list[bytes]) -> None:
    producer = Producer(client_options(lake))
    for value in values:
        producer.produce(_topic(lake), value, KEY, partition=0)
    assert producer.flush(30) == 0


def _recreate(lake: Settings) -> None:
    """The topic is deleted and made anew."""
    admin, topic = AdminClient(client_options(lake)), _topic(lake)
    admin.delete_topics([topic])[topic].result(30)
    until(lambda: topic not in admin.list_topics(timeout=5).topics, 30, "deletion")
    init(lake)


def _refusal(worker: Worker) -> str:
    """What a worker says that ends by itself."""
    worker.start()
    try:
        code = until(lambda: (worker.child.poll(),) if worker.child.poll() is not None else None,
                     60, lambda: f"refused:\n{worker.tail()}")  # fmt: skip
        assert code != (0,)
        return worker.log()
    finally:
        worker.child.stop(0.0)


def _verdicts(shown: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """By cluster what `k2 offsets show --json` says of partition 0."""
    rows = [json.loads(line) for line in shown.stdout.splitlines()]
    return {row["cluster"]: row["verdict"] for row in rows if row["partition"] == 0}


def _transactional(lake: Settings, name: str) -> Producer:
    producer = Producer({**client_options(lake), "transactional.id": name})
    producer.init_transactions(30)
    return producer


def _offsets(lake: Settings, table: str) -> list[int]:
    with connect(lake) as connection:
        found = connection.execute(f"SELECT kafka_offset FROM {table} ORDER BY ALL").fetchall()
    return [offset for (offset,) in found]


def _create(lake: Settings, *topics: NewTopic) -> None:
    admin = AdminClient(client_options(lake))
    for done in admin.create_topics(list(topics)).values():
        done.result(30)


def _batches(folder: Path) -> Iterator[tuple[int, int]]:
    """Record count and attributes of each record batch in a partition's log files."""
    for file in sorted(folder.glob("*.log")):
        try:
            raw, at = file.read_bytes(), 0
        except FileNotFoundError:  # the cleaner was there
            continue
        while at + 61 <= len(raw):
            (length,) = struct.unpack_from(">i", raw, at + 8)
            if not length:
                break
            (attributes,) = struct.unpack_from(">h", raw, at + 21)
            (count,) = struct.unpack_from(">i", raw, at + 57)
            yield count, attributes
            at += 12 + length


def _records(folder: Path) -> int:
    return sum(count for count, _ in _batches(folder))


def _certificate(folder: Path, password: str) -> tuple[Path, Path]:
    """A self-signed certificate of 127.0.0.1: keystore with its key, and itself as PEM."""
    keystore, certificate = folder / "broker.p12", folder / "ca.pem"
    common = ["-keystore", str(keystore), "-storepass", password, "-alias", "broker"]
    make = [
        "-genkeypair", "-keyalg", "EC", "-storetype", "PKCS12", "-validity", "2",
        "-dname", "CN=127.0.0.1", "-ext", "san=ip:127.0.0.1", "-ext", "bc:c",
    ]  # fmt: skip
    for arguments in (make, ["-exportcert", "-rfc", "-file", str(certificate)]):
        subprocess.run([tool("keytool"), *arguments, *common], check=True, capture_output=True)
    return keystore, certificate


def test_log_that_lost_its_start_before_the_first_worker(kafka: On) -> None:
    """What retention removed before K2 ever looked is nobody's loss; the rest is all there."""
    lake, _ = kafka
    topic, values = _topic(lake), _values(lake, 300)
    _send(lake, values)
    admin = AdminClient(client_options(lake))
    place = TopicPartition(topic, 0, 100)
    admin.delete_records([place])[TopicPartition(topic, 0)].result(30)
    with Worker(lake) as worker:
        until(lambda: committed(lake) >= 200, 60, lambda: f"trades:\n{worker.tail()}")
        worker.terminate()
    assert _offsets(lake, "trades") == list(range(100, 300))
    verify(lake)
    check_topics(lake)
