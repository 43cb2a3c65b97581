"""The gap ledger of a stream with faults, through kills: what was injected, in table and topic.

The rows are read by DuckDB from the files and by librdkafka from the topic, without K2.
"""

from __future__ import annotations

import json
import random
import signal
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from confluent_kafka import Consumer, TopicPartition

from k2.feeds.producer import produce
from k2.feeds.simulate import Journal, Simulation
from k2.schemas import TRADES
from k2.settings import Settings
from k2.topics import GAPS_TOPIC
from tests.chaos.rounds import ChaosWorker
from tests.integration.oracle import connect
from tests.integration.parts import Feed, Worker, committed, get, until, verify
from tests.sequences import injected

pytestmark = pytest.mark.slow

SEED = 11
ROWS = 20_000
RATE = 2_000.0
KILLS = 2
FAULTS = {"gaps": 40, "duplicates": 40, "late": 40, "resets": 4}

NEWEST = """
SELECT * FROM gaps QUALIFY row_number() OVER (PARTITION BY gap_id ORDER BY revision DESC) = 1
"""
#: Trades that a gap names, and that are not right before and right behind what is missing.
MISNAMED = f"""
SELECT count(*) FROM ({NEWEST}) g
LEFT JOIN trades b ON (b.kafka_partition, b.kafka_offset) = (g.kafka_partition, g.from_offset)
LEFT JOIN trades a ON (a.kafka_partition, a.kafka_offset) = (g.kafka_partition, g.to_offset)
WHERE kind = 'gap' AND (b.symbol, b.sequence, b.ts_event, a.symbol, a.sequence, a.ts_event)
    IS DISTINCT FROM (g.symbol, missing_first - 1, from_ts, g.symbol, missing_last + 1, to_ts)
"""


@pytest.mark.parametrize("place", ["local"], indirect=True)
def test_the_ledger_is_what_was_injected_through_sigkills(lake: Settings) -> None:
    """Every fault of the journal with its exact bounds and its status, none else, none twice."""
    simulation = Simulation(SEED, 20, ROWS, **FAULTS)  # type: ignore[arg-type]
    journal, stream = simulation.journal, pa.concat_tables(simulation)
    part = stream.num_rows // (KILLS + 1)
    moments = random.Random(SEED)
    worker = Worker(replace(lake, buffer_rows_max=500))  # many commits, with gaps in most of them
    with worker:
        for number in range(KILLS):
            worker.await_ready()
            rows = [stream.slice(number * part, part)]
            with Feed(rows, TRADES.topic("SIM"), lake, RATE) as feed:
                _await_rows(worker, number * part + part // 3)
                time.sleep(moments.uniform(0.0, 0.1))  # no condition to wait for: any moment
                worker.kill()
                assert committed(lake) < (number + 1) * part  # else it had nothing left to do
                assert committed(lake, "gaps") > 0
                feed.done.result(timeout=120)
            worker.start()
        rest = [stream.slice(KILLS * part)]
        with Feed(rest, TRADES.topic("SIM"), lake, RATE) as feed:
            _await_rows(worker, sum(journal.rows.values()))
        _, headers, _ = get(f"{worker.url}/v1/trades?limit=1")
        worker.terminate()
    missing = [e.last - e.first + 1 for e in journal.entries if e.kind == "gap"]
    assert headers["X-K2-Coverage"] == f"gaps={len(missing)}; missing={sum(missing)}"
    rows = _require_injected(lake, journal)
    # The topic has every row of the table, and may have some twice; the newest is the table's.
    told = _on_topic(lake, {(row["gap_id"], row["revision"]) for row in rows})
    assert len(told) == len(rows)
    for row in rows:
        value = told[row["gap_id"], row["revision"]]
        for name in ("status", "symbol", "missing_first", "count", "remaining", "kafka_offset"):
            assert value[name] == row[name], (name, value, row)


@pytest.mark.parametrize("place", ["local"], indirect=True)
def test_what_the_ledger_has_is_not_told_again_for_trades_that_are_not_there(
    lake: Settings, tmp_path: Path
) -> None:
    """Killed between the ledger's commit and the trades': all are read again, in other batches."""
    simulation = Simulation(SEED, 5, 5_000, gaps=20, late=20)
    journal, stream = simulation.journal, list(simulation)
    produce(stream, TRADES.topic("SIM"), lake)
    chaos = {"POINT": "after the ledger's swap", "FIRST": "1", "TIMES": "1", "ACTION": "kill"}
    armed = {f"CHAOS_{name}": value for name, value in chaos.items()}
    killed = ChaosWorker(lake, "0", {**armed, "CHAOS_MARK": str(tmp_path / "mark")})
    with killed:
        end = until(lambda: killed.child.poll(), 60, lambda: f"killed:\n{killed.tail()}")
        assert end == -signal.SIGKILL
    assert (committed(lake, "gaps") > 0, committed(lake)) == (True, 0)
    with Worker(replace(lake, fetch_bytes_max=64 * 1024)) as worker:
        _await_rows(worker, sum(journal.rows.values()))
        worker.terminate()
    _require_injected(lake, journal)


def _require_injected(lake: Settings, journal: Journal) -> list[dict[str, Any]]:
    """The newest rows are the journal's faults; returns all rows, of which none is twice."""
    verify(lake)
    with connect(lake) as connection:
        rows = _rows(connection, "SELECT * FROM gaps")
        names = "kind, status, symbol, missing_first, missing_last"
        found = connection.execute(f"SELECT {names} FROM ({NEWEST})").fetchall()
        assert sorted(found) == injected(journal.entries)
        assert connection.execute(MISNAMED).fetchall() == [(0,)]
    places = Counter((row["gap_id"], row["revision"]) for row in rows)
    assert max(places.values()) == 1
    return rows


def _rows(connection: duckdb.DuckDBPyConnection, sql: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = connection.sql(sql).to_arrow_table().to_pylist()
    return rows


def _await_rows(worker: Worker, rows: int) -> None:
    def there() -> bool:
        worker.child.check()
        return committed(worker.settings) >= rows

    until(there, 120, lambda: f"{rows} rows, but {committed(worker.settings)}:\n{worker.tail()}")


def _on_topic(lake: Settings, wanted: set[tuple[str, int]]) -> dict[tuple[str, int], Any]:
    """The topic's values by id and revision, once all that are wanted are there."""
    consumer = Consumer(
        {"bootstrap.servers": lake.broker, "group.id": "gaps", "auto.offset.reset": "earliest"}
    )
    partitions = range(lake.partitions)
    consumer.assign([TopicPartition(GAPS_TOPIC, partition, 0) for partition in partitions])
    found: dict[tuple[str, int], Any] = {}
    homes: dict[bytes, int] = {}

    def there() -> bool:
        for message in consumer.consume(1000, 0.1):
            value = json.loads(message.value())
            assert message.key() == value["gap_id"].encode()
            assert homes.setdefault(message.key(), message.partition()) == message.partition()
            found[value["gap_id"], value["revision"]] = value
        return wanted <= set(found)

    try:
        until(there, 30, lambda: f"{len(wanted)} rows on {GAPS_TOPIC}: {len(found)}")
    finally:
        consumer.close()
    return found
