"""Two workers that ingest and one that answers: the same answers, and it is in no group."""

from __future__ import annotations

import json
import urllib.request
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from confluent_kafka.admin import AdminClient

from k2.feeds.producer import produce
from k2.feeds.simulate import Simulation
from k2.schemas import QUOTES, TRADES, Kind
from k2.security import client_options
from k2.settings import Settings
from tests.integration.parts import Worker, committed, environment, get, k2, metric, rows_of, until

pytestmark = pytest.mark.slow

ROWS = 20_000
SYMBOLS = 20
FAULTS = {"gaps": 20, "duplicates": 20, "late": 20}
#: Nothing is committed but when partitions move: what comes stays in hand.
PATIENT = {"flush_age_max_ms": 3_600_000, "buffer_rows_max": 1_000_000}
PATHS = (
    "/v1/trades?limit=50000",
    "/v1/quotes?limit=50000",
    "/v1/trades?fresh=true&limit=50000",
    "/v1/quotes?fresh=true&limit=50000",
    "/v1/bars?symbol=S00001&interval=1m&fresh=true",
    "/v1/bars?symbol=S00001&interval=1h",
    "/v1/symbols",
    "/v1/gaps",
    "/v1/instruments",
    "/v1/instruments?exchange=SIM&symbol=A,B",
)


def said(worker: Worker, path: str) -> Any:
    status, _, body = get(worker.url + path)
    assert status == 200, f"{path}: {body.decode()}\n{worker.tail()}"
    answer = json.loads(body)
    answer.pop("valid_through", None)  # the moment, not what it is about
    return answer


def require_same(asked: list[Worker], symbols: list[str]) -> None:
    """One answer to each question, whoever is asked."""
    for path in (*PATHS, *(f"/v1/symbols/SIM/{symbol}?bars=true" for symbol in symbols)):
        first, *others = [said(worker, path) for worker in asked]
        for other in others:
            assert other == first, path


def produce_all(days: dict[Kind, pa.Table], part: slice, settings: Settings) -> None:
    for kind, table in days.items():
        some = table.slice(part.start, part.stop - part.start)
        produce([some], kind.topic("SIM"), settings)


def kept(table: pa.Table, end: int) -> int:
    """Trades among the first `end` rows, duplicates once."""
    return int(table.slice(0, end).group_by(["symbol", "sequence"]).aggregate([]).num_rows)


def trades(worker: Worker) -> int:
    """Committed and in hand; -1 while an owner reads up to where it was read before."""
    status, _, body = get(f"{worker.url}/v1/trades?fresh=true&limit=100000")
    assert status in (200, 503), body
    return int(json.loads(body)["count"]) if status == 200 else -1


def _asking(settings: Settings, *named: Worker) -> Settings:
    """Those of a query worker. At its broker's address nobody is: so it can be in no group."""
    peers = ",".join(worker.url for worker in named)
    return replace(settings, role="query", peers=peers, broker="127.0.0.1:1")


def _require_members(settings: Settings, number: int, one: Worker) -> None:
    """The group has so many, by what a member knows and by what the broker says."""
    asked = urllib.request.Request(f"{one.url}/internal/owners", b"")
    with urllib.request.urlopen(asked, timeout=30) as answer:
        assert len(json.loads(answer.read())) == number
    if not settings.catalog_uri:
        return  # the embedded broker does not tell its members
    admin = AdminClient({**client_options(settings), "log_level": 0})
    names = [group.group_id for group in admin.list_consumer_groups().result(10).valid]
    described = admin.describe_consumer_groups(names)
    found = {name: len(each.result(10).members) for name, each in described.items()}
    assert found == {settings.group: number}


def test_a_query_worker_says_what_members_say(lake: Settings, tmp_path: Path) -> None:
    """Committed and in hand, of both kinds; after a rebalance too; and it is in no group."""
    settings = replace(lake, **PATIENT)
    sims = {kind: Simulation(7, SYMBOLS, ROWS, kind=kind, **FAULTS) for kind in (TRADES, QUOTES)}
    days = {kind: pa.concat_tables(day) for kind, day in sims.items()}
    symbols = sorted(sims[TRADES].journal.rows)[:5]
    cuts = [0, ROWS // 3, 2 * ROWS // 3, min(table.num_rows for table in days.values())]
    first, second, third = (slice(*pair) for pair in pairwise(cuts))
    wanted = [kept(days[TRADES], part.stop) for part in (first, second, third)]
    _load_instruments(settings, tmp_path / "instruments.csv")
    produce_all(days, first, settings)
    with Worker(settings, "a") as one:
        one.await_ready()
        until(lambda: trades(one) == wanted[0], 60, lambda: f"{wanted[0]} trades:\n{one.tail()}")
        one.terminate()
    assert committed(settings) == wanted[0]
    with Worker(settings, "a") as one, Worker(replace(settings, role="ingest"), "b") as two:
        query = Worker(_asking(settings, one, two), "q")
        with query:
            for worker in (one, two, query):
                worker.await_ready()
            until(lambda: _owns_all(one, query), 60, lambda: f"owners:\n{one.tail()}")
            produce_all(days, second, settings)
            _await_trades(query, wanted[1])
            assert committed(settings) == wanted[0]  # the rest is in hand
            until(lambda: said(query, "/v1/instruments")["count"] == 2, 30, "two instruments")
            assert said(query, "/v1/instruments/SIM/A")["name"] == "First"
            assert get(f"{query.url}/v1/instruments/SIM/C")[0] == 404
            require_same([one, query], symbols)
            _require_roles(two, query)
            _require_replay(query, wanted[1])
            _require_members(settings, 2, one)

            two.terminate()
            until(lambda: _owns_all(one, query), 60, lambda: f"one owner:\n{one.tail()}")
            assert trades(query) == wanted[1]
            produce_all(days, third, settings)
            _await_trades(query, wanted[2])
            assert committed(settings) == wanted[1]
            require_same([one, query], symbols)
            _require_members(settings, 1, one)

            one.terminate()
            _require_nobody(one, two, query)
            assert trades_committed(query) == wanted[2]
            query.terminate()
        assert not (settings.data / "tables" / "q").exists()


def _load_instruments(settings: Settings, file: Path) -> None:
    file.write_text("exchange,symbol,name\nSIM,A,First\nSIM,B,Second\n")
    done = k2(environment(settings), "load", "--kind", "instruments", str(file))
    assert done.returncode == 0, done.stderr


def _await_trades(query: Worker, number: int) -> None:
    until(lambda: trades(query) == number, 60, lambda: f"{number} trades:\n{query.tail()}")


def trades_committed(worker: Worker) -> int:
    return len(rows_of(f"{worker.url}/v1/trades?limit=100000"))


def _owns_all(one: Worker, query: Worker) -> bool:
    """The worker that stays has read again, and the query worker knows."""
    fresh = "/v1/trades?fresh=true&limit=1"
    return all(get(worker.url + fresh)[0] == 200 for worker in (one, query)) and one.is_ready()


def _require_roles(ingesting: Worker, query: Worker) -> None:
    """A worker that ingests answers operators; both have metrics, and say what they depend on."""
    for path in ("/live", "/ready", "/metrics"):
        assert get(ingesting.url + path)[0] == get(query.url + path)[0] == 200
    assert json.loads(get(f"{query.url}/ready")[2]) == {"ready": True, "reasons": {}}
    assert metric(query.url, 'k2_query_seconds_count{resource="trades"}') > 0
    for path in ("/v1/trades", "/v1/symbols/SIM/S00001", "/v1/status", "/v1/replay"):
        assert get(ingesting.url + path)[0] == 404, path
    for path in ("/internal/fresh", "/internal/owners", "/"):
        assert get(query.url + path)[0] == 404, path


def _require_replay(query: Worker, wanted: int) -> None:
    """It follows into what is in hand, from the buffers of both."""
    found = 0
    with urllib.request.urlopen(f"{query.url}/v1/replay?kind=trades&follow=true") as lines:
        while found < wanted:
            found += json.loads(next(lines))["type"] == "trade"


def _require_nobody(one: Worker, two: Worker, query: Worker) -> None:
    """With no owner left what is live is a 503 that names them and the setting."""
    for path in ("/v1/trades?fresh=true", "/v1/symbols/SIM/S00001", "/v1/instruments"):
        status, headers, body = get(query.url + path)
        assert (status, headers["Retry-After"]) == (503, "1"), body
        detail = json.loads(body)["detail"]
        assert one.url in detail
        assert two.url in detail
        assert "K2_PEERS" in detail
    until(lambda: "peers" in json.loads(get(f"{query.url}/ready")[2])["reasons"], 10, "it says so")
    status, _, body = get(f"{query.url}/ready")
    assert (status, json.loads(body)["ready"]) == (200, True)
