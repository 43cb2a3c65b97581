"""What an operator does about offsets, each against a real broker and real workers."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from k2.codec import encode
from k2.feeds.simulate import Simulation
from k2.lake.catalog import open_catalog
from k2.lake.moves import Offsets
from k2.lake.offsets import Source
from k2.registry import open_registry
from k2.schemas import TRADES
from k2.settings import Settings
from k2.topics import cluster_id
from tests.integration.oracle import Wrong, check_topics, connect
from tests.integration.parts import Worker, committed, environment, k2, until, verify

#: On the embedded broker: nothing here depends on which one it is.
LOCAL = pytest.mark.parametrize("place", ["local"], indirect=True)
pytestmark = [pytest.mark.slow, LOCAL]

TOPIC = "market.trades.sim"
KEY = b"SIM.S00001"
WHY = ("--reason", "the test says so")


def test_skipped_records_are_given_up_and_the_audit_knows(lake: Settings) -> None:
    """An hour of a log is skipped by hand: a gap in the sequences, and no loss without a name."""
    trades = _trades(60)
    _send(lake, trades[:20])
    _work(lake, 20, meanwhile=lambda: _refused(_move(lake, "end"), "Stop them first"))
    _send(lake, trades[20:40])
    assert _show(lake)[0] == {"next_offset": 20, "log_start": 0, "log_end": 40, "verdict": "ok"}
    done = _move(lake, "end", sure=False)
    assert "nothing done" in done.stderr
    assert "20 offsets are given up: 20..39" in done.stdout
    assert _show(lake)[0]["next_offset"] == 20
    assert _move(lake, "end", "--force").returncode == 0
    _send(lake, trades[40:])
    _work(lake, 40)
    verify(lake)
    assert _rows(lake, "sequence, kafka_offset", "verdict = 'gap'") == [(41, 40)]
    (finding,) = json.loads(k2(environment(lake), "verify", "--json").stdout)["findings"]
    assert (finding["kind"], finding["severity"]) == ("hole", "ok")
    assert WHY[1] in finding["detail"]
    with pytest.raises(Wrong, match=r"^20 lost, 0 doubled: in neither table: \S+@20, "):
        check_topics(lake)


def test_a_log_that_ends_below_is_refused_until_it_is_moved(lake: Settings) -> None:
    """Iceberg is ahead of the log, as after a topic was made anew: the worker says what to do."""
    trades = _trades(30)
    _send(lake, trades[:20])
    _work(lake, 20)
    source = Source(cluster_id(lake), TOPIC, 0)
    Offsets(open_catalog(lake), lake).move(source, 1000, "as if the log had been longer")
    assert _show(lake, 1)[0]["verdict"].startswith("log ends below")
    with Worker(lake) as worker:
        until(lambda: worker.child.poll() is not None, 60, "it ends")
        assert "LogTruncated" in worker.log()
        worker.child.log.unlink()  # the refusal has a traceback
        worker.child.log.touch()
    _refused(_move(lake, "end"), "below the next offset")
    assert _move(lake, "end", "--force").returncode == 0
    _send(lake, trades[20:])
    _work(lake, 30)
    verify(lake)
    check_topics(lake)
    assert _verdicts(lake) == [("ok",)]


def test_a_lost_sequence_state_is_rebuilt_from_the_trades(lake: Settings) -> None:
    """RocksDB and its changelog are gone: what comes again is a duplicate all the same."""
    trades = _trades(40)
    _send(lake, trades[:30])
    _work(lake, 30)
    shutil.rmtree(lake.data / "tables")
    admin = AdminClient({"bootstrap.servers": lake.broker, "log_level": 0})
    topics = [name for name in admin.list_topics(timeout=10).topics if name.endswith("-changelog")]
    for done in admin.delete_topics(topics).values():
        done.result()
    _send(lake, trades[10:])
    assert "rebuilt from the trades table, offsets 0 to 30" in _work(lake, 40, rejects=20)
    verify(lake)
    check_topics(lake)
    assert _verdicts(lake) == [("ok",)]


def test_offsets_of_a_cluster_that_is_gone_are_forgotten(lake: Settings) -> None:
    """Their rows stay, and the audit passes."""
    gone = Source("gone", TOPIC, 0)
    Offsets(open_catalog(lake), lake).move(gone, 5, "as if it had been read")
    assert _show(lake)[0]["verdict"] == "other cluster"
    forget = ("offsets", "forget", "--cluster")
    assert "no offsets of such a cluster" in k2(environment(lake), *forget, "x", *WHY).stderr
    done = k2(environment(lake), *forget, "gone", *WHY, "--yes")
    assert (done.returncode, done.stdout.endswith("-> none\ndone\n")) == (0, True), done.stderr
    assert _show(lake) == []
    verify(lake)


def _trades(count: int) -> list[bytes]:
    table = pa.concat_tables(Simulation(3, 1, count))
    buffer, ends = encode(TRADES, table, 1)
    return [bytes(buffer[first:last]) for first, last in pairwise(ends)]


def _send(lake: Settings, values: list[bytes]) -> None:
    assert open_registry(lake).register(f"{TOPIC}-value", TRADES.avro) == 1
    producer = Producer({"bootstrap.servers": lake.broker, "log_level": 0})
    for value in values:
        producer.produce(TOPIC, value, KEY, partition=0)
    assert producer.flush(30) == 0


def _work(
    lake: Settings, trades: int, rejects: int = 0, meanwhile: Callable[[], None] | None = None
) -> str:
    """Let a worker commit until the tables have so many rows, and end it; returns its log."""
    wanted = (trades, rejects)
    with Worker(lake) as worker:
        until(
            lambda: (committed(lake), committed(lake, "rejects")) == wanted,
            60,
            lambda: f"{wanted} trades and rejects:\n{worker.tail()}",
        )
        if meanwhile is not None:
            meanwhile()
        worker.terminate()
    return worker.log()


def _move(
    lake: Settings, to: str, *more: str, sure: bool = True
) -> subprocess.CompletedProcess[str]:
    yes = ("--yes",) if sure else ()
    return k2(environment(lake), "offsets", "move", TOPIC, "0", "--to", to, *WHY, *yes, *more)


def _refused(done: subprocess.CompletedProcess[str], why: str) -> None:
    assert (done.returncode, why in done.stderr) == (2, True), done.stderr


def _rows(lake: Settings, columns: str, where: str) -> list[tuple[Any, ...]]:
    with connect(lake) as connection:
        return connection.execute(f"SELECT {columns} FROM trades WHERE {where}").fetchall()


def _verdicts(lake: Settings) -> list[tuple[str]]:
    """Of all trades but the first."""
    return _rows(lake, "DISTINCT verdict", "sequence > 1")


def _show(lake: Settings, code: int = 0) -> list[dict[str, object]]:
    done = k2(environment(lake), "offsets", "show", "--json")
    assert done.returncode == code, done.stderr
    names = ("next_offset", "log_start", "log_end", "verdict")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return [{name: row[name] for name in names} for row in rows]
