"""Instruments: from a file to every worker; changed, deleted, broken, and after a restart."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from confluent_kafka import Producer

from k2.changelog import Changelog
from k2.dev.kafka import Kafka
from k2.logs import Logs
from k2.security import client_options
from k2.settings import Settings
from k2.topics import INSTRUMENTS_TOPIC
from tests.integration.parts import Worker, environment, get, k2, metric, rows_of, until

ASX = Path(os.environ.get("ASX_FOLDER", Path(__file__).resolve().parents[3] / "shared" / "asx"))
FILE = ASX / "reference-data" / "company_info.csv"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not FILE.is_file(), reason="no ASX data in ../shared/asx (ASX_FOLDER names another place)"
    ),
]

NAMES = {
    "BHP": ("BHP BILLITON LTD", "AU000000BHP4", "7078"),
    "DVN": ("DEVINE LTD", "AU000000DVN6", "7181"),
    "MWR": ("MGM WIRELESS LTD", "AU000000MWR6", "3153"),
    "RIO": ("RIO TINTO LTD", "AU000000RIO1", "7458"),
}
UNKNOWN = dict.fromkeys(("tick_size", "lot_size", "listed", "delisted"))


@pytest.fixture
def workers(lake: Settings) -> Iterator[tuple[Worker, Worker]]:
    """Two of a group, of whom only one has the topic's partition by Faust's own assignment."""
    with Worker(lake, "one") as one, Worker(lake, "two") as two:
        one.await_ready()
        two.await_ready()
        yield one, two


def test_every_worker_knows_what_the_topic_says(
    lake: Settings, workers: tuple[Worker, Worker], tmp_path: Path
) -> None:
    """Loaded, loaded again, changed, deleted; a restarted worker and one that joins know it too."""
    expected = {
        symbol: {"exchange": "ASX", "symbol": symbol, "name": name, "isin": isin,
                 "company_id": company} | UNKNOWN
        for symbol, (name, isin, company) in NAMES.items()
    }  # fmt: skip
    for _ in range(2):
        done = _k2(lake, "load", "--kind", "instruments", "--json", str(FILE))
        assert json.loads(done.stdout)["count"] == len(NAMES)
        _await(workers, expected)
    assert _records(lake) == 2 * len(NAMES)  # and Faust has added none

    more = tmp_path / "more.csv"
    more.write_text(
        "symbol,exchange,tick_size,lot_size,listed,name\n"
        'BHP,ASX,0.01,1,1885-08-13,"Billiton, ""BHP"""\n'
        "A/B,X,0.00000001,1000000000,,\n"
        "BAD,ASX,0.0x,1,,\n"
    )
    refused = k2(environment(lake), "load", "--kind", "instruments", str(more))
    assert refused.returncode == 1
    assert f"{more}:4: tick_size '0.0x' is not a decimal above 0" in refused.stderr
    known = {"isin": None, "company_id": None, "delisted": None}
    expected["BHP"] = known | {
        "exchange": "ASX",
        "symbol": "BHP",
        "name": 'Billiton, "BHP"',
        "tick_size": "0.01",
        "lot_size": "1",
        "listed": "1885-08-13",
    }
    expected["A/B"] = known | {
        "exchange": "X",
        "symbol": "A/B",
        "name": None,
        "tick_size": "0.00000001",
        "lot_size": "1000000000",
        "listed": None,
    }
    _await(workers, expected)

    _k2(lake, "instruments", "remove", "ASX.DVN")
    del expected["DVN"]
    _await(workers, expected)
    _require_views(workers[1], expected)

    one, _ = workers
    one.terminate()
    _k2(lake, "instruments", "remove", "ASX.MWR")
    del expected["MWR"]
    one.start()
    one.await_ready()
    _await(workers, expected)
    with Worker(lake, "three") as three:  # one more than needed: four partitions, three workers
        three.await_ready()
        _await((*workers, three), expected)
        _k2(lake, "load", "--kind", "instruments", str(more), code=1)
        _k2(lake, "instruments", "remove", "X.A/B")
        del expected["A/B"]
        _await((*workers, three), expected)
    shown = _k2(lake, "instruments", "--json").stdout
    assert [json.loads(line) for line in shown.splitlines()] == _ordered(expected)


def test_a_bad_record_is_left_out_and_hurts_nobody(
    lake: Settings, workers: tuple[Worker, Worker]
) -> None:
    """It is counted and logged once; the records around it are read, also after a restart."""
    _k2(lake, "load", "--kind", "instruments", str(FILE))
    with closing(Changelog(lake, INSTRUMENTS_TOPIC)) as topic:
        value = topic.newest([0])[b"ASX.BHP"]
        bad = {
            b"ASX.JSON": b'{"symbol":"JSON"}',
            b"ASX.EMPTY": b"",
            b"ASX.CUT": value[:-1],
            b"ASX.OTHER": value,
            b"ASX.ID": b"\0\0\0\xff\xff" + value[5:],
            b"__faust\0offset__": b"no number",
        }
        topic.write(0, list(bad.items()))
    _k2(lake, "instruments", "remove", "ASX.RIO")
    one, two = workers
    for worker in (one, two):
        _await((worker,), dict.fromkeys(("BHP", "DVN", "MWR")))
        rows_of(f"{worker.url}/v1/instruments")
        assert metric(worker.url, "k2_instruments_bad_total") == len(bad)
        assert worker.log().count("is left out") == len(bad)
        assert get(f"{worker.url}/v1/instruments/ASX/JSON")[0] == 404
    one.terminate()
    one.start()
    one.await_ready()
    _await((one, two), dict.fromkeys(("BHP", "DVN", "MWR")))


def test_a_transaction_at_the_end_of_the_topic_keeps_no_worker_waiting(
    kafka: tuple[Settings, Kafka],
) -> None:
    """Its marker is a record that nobody is given, and Faust waits for the last one."""
    settings, _ = kafka
    _k2(settings, "load", "--kind", "instruments", str(FILE))
    producer = Producer(client_options(settings) | {"transactional.id": "elsewhere"})
    producer.init_transactions()
    producer.begin_transaction()
    producer.produce(INSTRUMENTS_TOPIC, None, b"ASX.RIO")
    producer.commit_transaction()
    with Worker(settings) as worker:
        worker.await_ready()
        _await((worker,), dict.fromkeys(("BHP", "DVN", "MWR")))
        worker.terminate()


def _await(workers: tuple[Worker, ...], expected: dict[str, Any]) -> None:
    """Until every worker answers this; with None for a row, its symbol is enough."""
    for worker in workers:
        found: list[dict[str, Any]] = []

        def same(worker: Worker = worker, found: list[dict[str, Any]] = found) -> bool:
            worker.child.check()
            found[:] = rows_of(f"{worker.url}/v1/instruments")
            rows = [row if expected.get(row["symbol"]) else None for row in found]
            symbols = [row["symbol"] for row in found]
            return (symbols, rows) == ([*map(_symbol, _keys(expected))], _ordered(expected))

        until(same, 30, lambda found=found: f"{expected}, but {found}")  # type: ignore[misc]


def _keys(expected: dict[str, Any]) -> list[tuple[str, str]]:
    return sorted((row["exchange"] if row else "ASX", symbol) for symbol, row in expected.items())


def _symbol(key: tuple[str, str]) -> str:
    return key[1]


def _ordered(expected: dict[str, Any]) -> list[Any]:
    return [expected[symbol] for _, symbol in _keys(expected)]


def _require_views(worker: Worker, expected: dict[str, Any]) -> None:
    """Both views, in every form, and what is not there."""
    url = f"{worker.url}/v1/instruments"
    status, headers, body = get(f"{url}/ASX/BHP")
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert json.loads(body) == expected["BHP"]
    assert json.loads(get(f"{url}/X/A%2FB")[2]) == expected["A/B"]
    status, headers, body = get(f"{url}/ASX/DVN")
    assert (status, headers["Content-Type"]) == (404, "application/problem+json")
    assert "no instrument 'DVN' of 'ASX'" in json.loads(body)["detail"]
    assert [row["symbol"] for row in rows_of(f"{url}?exchange=ASX&symbol=RIO,A/B")] == ["RIO"]
    assert rows_of(f"{url}?exchange=X") == [expected["A/B"]]
    assert rows_of(f"{url}?exchange=NONE") == []
    assert [row["symbol"] for row in rows_of(f"{url}?limit=1")] == ["BHP"]
    assert get(f"{url}?limit=0")[0] == 400
    assert get(f"{url}?exchange=X&format=csv")[2].decode().splitlines() == [
        "exchange,symbol,name,isin,company_id,tick_size,lot_size,listed,delisted",
        "X,A/B,,,,0.00000001,1000000000,,",
    ]
    (line,) = get(f"{url}?symbol=BHP&format=ndjson")[2].splitlines()
    assert json.loads(line) == expected["BHP"]
    table = pa.ipc.open_stream(get(f"{url}?format=arrow")[2]).read_all()
    assert table["symbol"].to_pylist() == [row["symbol"] for row in _ordered(expected)]
    assert table.schema.field("tick_size").type == pa.decimal128(18, 8)
    assert table.schema.field("listed").type == pa.date32()


def _k2(lake: Settings, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = k2(environment(lake), *arguments)
    assert done.returncode == code, done.stderr
    return done


def _records(lake: Settings) -> int:
    """The offset behind the last record of the topic."""
    with closing(Logs(lake)) as logs:
        log = logs.bounds(INSTRUMENTS_TOPIC, 0)
        return log.end if log else -1
