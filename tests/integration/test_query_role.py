"""Two workers that ingest and one that answers: the same answers, and it is in no group."""

from __future__ import annotations

import json
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from confluent_kafka.admin import AdminClient

from k2.feeds.producer import produce
from k2.feeds.simulate import Simulation
from k2.schemas import QUOTES, TRADES
from k2.security import client_options
from k2.settings import Settings
from tests.integration.parts import Worker, committed, environment, get, k2, metric, rows_of, until

pytestmark = pytest.mark.slow

ROWS = 20_000
SYMBOLS = 20
FAULTS = {"gaps": 20, "duplicates": 20, "late": 20}
#: Nothing is committed by age: a flush comes by rows, so that much stays in hand.
PATIENT = {"flush_age_max_ms": 3_600_000, "buffer_rows_max": 15_000}
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
#: What tells the moment of an answer, not what it is about.
MOMENT = ("valid_through", "snapshot_id", "coverage")


def said(worker: Worker, path: str) -> Any:
    status, _, body = get(worker.url + path)
    assert status == 200, f"{path}: {body.decode()}\n{worker.tail()}"
    answer = json.loads(body)
    return {name: value for name, value in answer.items() if name not in MOMENT}


def require_same(asked: list[Worker], symbols: list[str]) -> None:
    """One answer to each question, whoever is asked."""
    for path in (*PATHS, *(f"/v1/symbols/SIM/{symbol}?bars=true" for symbol in symbols)):
        first, *others = [said(worker, path) for worker in asked]
        for other in others:
            assert other == first, path


def trades(worker: Worker) -> int:
    return len(rows_of(f"{worker.url}/v1/trades?fresh=true&limit=100000"))


def members(settings: Settings) -> dict[str, int]:
    """By consumer group of the broker, how many are in it."""
    admin = AdminClient({**client_options(settings), "log_level": 0})
    names = [group.group_id for group in admin.list_consumer_groups().result(10).valid]
    return {
        name: len(each.result(10).members)
        for name, each in admin.describe_consumer_groups(names).items()
    }


def peers_of(*workers: Worker) -> str:
    return ",".join(worker.url for worker in workers)


def test_a_query_worker_says_what_members_say(lake: Settings, tmp_path: Path) -> None:
    """Committed and in hand, of both kinds; after a rebalance too; and it is in no group."""
    settings = replace(lake, **PATIENT)
    days = {kind: Simulation(7, SYMBOLS, ROWS, kind=kind, **FAULTS) for kind in (TRADES, QUOTES)}
    wanted = sum(days[TRADES].journal.rows.values())
    symbols = sorted(days[TRADES].journal.rows)[:5]
    listed = tmp_path / "instruments.csv"
    listed.write_text("exchange,symbol,name\nSIM,A,First\nSIM,B,Second\n")
    done = k2(environment(settings), "load", "--kind", "instruments", str(listed))
    assert done.returncode == 0, done.stderr
    with Worker(settings, "a") as one, Worker(replace(settings, role="ingest"), "b") as two:
        query = Worker(replace(settings, role="query", peers=peers_of(one, two)), "q")
        with query:
            for worker in (one, two, query):
                worker.await_ready()
            for kind, day in days.items():
                produce([pa.concat_tables(day)], kind.topic("SIM"), settings)
            until(lambda: trades(query) == wanted, 60, lambda: f"{wanted} trades:\n{query.tail()}")
            assert committed(settings) < wanted  # the rest is in hand
            until(lambda: said(query, "/v1/instruments")["count"] == 2, 30, "two instruments")
            assert said(query, "/v1/instruments/SIM/A")["name"] == "First"
            assert get(f"{query.url}/v1/instruments/SIM/C")[0] == 404
            require_same([one, query], symbols)
            _require_roles(two, query)
            _require_replay(query, wanted)
            assert members(settings) == {settings.group: 2}

            two.terminate()
            until(lambda: _owns_all(one, query), 60, lambda: f"one owner:\n{one.tail()}")
            assert trades(query) == wanted
            require_same([one, query], symbols)
            assert members(settings) == {settings.group: 1}

            one.terminate()
            _require_nobody(one, two, query)
            assert trades_committed(query) == wanted
            query.terminate()
        assert "Traceback" not in query.log()
        assert not (settings.data / "tables" / "q").exists()


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
