"""POST /v1/sql on a server as Faust makes it."""

import http.client
import logging
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path

import orjson
import psutil
import pyarrow as pa
import pytest
from aiohttp import web

from k2.keyfile import create
from k2.keys import authorization
from k2.sandbox import pool as pools
from k2.sandbox.pool import Pool
from k2.web.gate import protect
from k2.web.sql import routes
from tests.served import Served
from tests.statements import START, TRADES_EACH, lake

ENDLESS = (
    "SELECT count(*) FROM range(99999) a(n), range(99999) b(n), range(99999) c(n) "
    "WHERE (a.n + b.n + c.n) % 7 = 8"
)
WAIT_S = 20.0


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    catalog, settings = lake(Path(tmp_path_factory.mktemp("lake")), sql_processes=1)
    yield catalog, settings
    catalog.close()


@pytest.fixture(scope="module")
def pool(tables):
    pool = Pool(*tables)
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def served(tables, pool):
    app = web.Application()
    protect(app, tables[1])
    app.add_routes(routes(pool))
    with Served(app) as served:
        yield served


def leave(served, sql, key="") -> socket.socket:
    """Ask, and keep the connection, to be closed without reading."""
    end = socket.create_connection(served.address)
    body = orjson.dumps({"sql": sql})
    head = "POST /v1/sql HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in authorization(key).items())
    head += f"Content-Length: {len(body)}\r\n\r\n"
    end.sendall(head.encode() + body)
    return end


def until(what) -> None:
    end = time.monotonic() + WAIT_S
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


def busy(pool) -> bool:
    return bool(pool._all) and not pool._idle


def test_json_names_the_snapshots_and_says_whether_rows_were_cut(served):
    sql = "SELECT symbol, price, ts_event FROM trades ORDER BY ts_event, symbol LIMIT 2"
    status, headers, body = served.post("/v1/sql", {"sql": sql})
    answer = orjson.loads(body)
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert answer["data"] == [
        {"symbol": "BHP", "price": "30", "ts_event": START},
        {"symbol": "RIO", "price": "30", "ts_event": START},
    ]
    assert (answer["count"], answer["truncated"]) == (2, False)
    assert headers["X-K2-Snapshots"] == f"trades={answer['snapshots']['trades']}"
    assert headers["X-Request-Id"]


def test_every_format_gives_the_rows(served):
    sql = "SELECT symbol, price, event_time FROM trades WHERE sequence < 2 ORDER BY ALL"
    _, _, body = served.post("/v1/sql", {"sql": sql, "format": "ndjson"})
    rows = [orjson.loads(line) for line in body.splitlines()]
    assert rows[1] == {
        "symbol": "BHP",
        "price": "30.01",
        "event_time": "2014-03-10T00:00:01.000000Z",
    }
    _, headers, body = served.post("/v1/sql", {"sql": sql}, Accept="text/csv")
    assert headers["Content-Type"] == "text/csv"
    assert body.splitlines()[2] == b"BHP,30.01,2014-03-10T00:00:01.000000Z"
    _, _, body = served.post("/v1/sql", {"sql": sql, "format": "arrow"})
    table = pa.ipc.open_stream(body).read_all()
    assert table.schema.field("price").type == pa.decimal128(18, 8)
    assert table.schema.field("event_time").type == pa.timestamp("us", tz="UTC")
    assert b"k2.snapshots" in table.schema.metadata
    assert table.num_rows == len(rows) == 4


def test_parameters_come_by_place_or_by_name(served):
    for sql, parameters in (
        ("SELECT count(*) AS n FROM trades WHERE symbol = ? AND sequence < ?", ["BHP", 5]),
        (
            "SELECT count(*) AS n FROM trades WHERE symbol = $s AND sequence < $n",
            {"s": "BHP", "n": 5},
        ),
    ):
        _, _, body = served.post("/v1/sql", {"sql": sql, "parameters": parameters})
        assert orjson.loads(body)["data"] == [{"n": 5}]


def test_the_problem_of_a_wrong_statement_has_its_position(served):
    status, headers, body = served.post(
        "/v1/sql", {"sql": "SELECT *\nFROM trades\nWHER symbol = 1"}
    )
    problem = orjson.loads(body)
    assert (status, headers["Content-Type"]) == (400, "application/problem+json")
    assert problem["type"] == "urn:k2:error:bad-sql"
    assert (problem["position"]["line"], problem["status"]) == (3, 400)


def test_another_type_of_body_or_method_is_refused(served):
    body = b'{"sql": "SELECT 1"}'
    status, _, _ = served.post("/v1/sql", body, **{"Content-Type": "text/plain"})
    assert status == 415
    connection = http.client.HTTPConnection(*served.address)
    connection.request("GET", "/v1/sql?sql=SELECT+1")
    answer = connection.getresponse()
    assert (answer.status, answer.headers["Allow"]) == (405, "POST")
    answer.read()
    connection.close()


def test_where_there_are_keys_one_with_the_scope_is_wanted(tables, pool, tmp_path):
    """And its limits hold: a statement too many at once is a 429."""
    settings = replace(tables[1], keys_file=str(tmp_path / "keys"), key_concurrency_max=1)
    sql, read = (create(settings.keys_path, [scope], None, "")[1] for scope in ("sql", "read"))
    app = web.Application()
    protect(app, settings)
    app.add_routes(routes(pool))
    place = Served(app)

    def asked(key):
        return place.post("/v1/sql", {"sql": "SELECT 1"}, **authorization(key))

    with place:
        for key, status in ((sql, 200), (read, 403), ("", 401)):
            assert asked(key)[0] == status
        end = leave(place, ENDLESS, sql)
        until(lambda: busy(pool))
        status, headers, body = asked(sql)
        assert (status, headers["Retry-After"]) == (429, "1")
        assert orjson.loads(body)["type"] == "urn:k2:error:too-many-requests"
        end.close()
        until(lambda: asked(sql)[0] == 200)


@pytest.mark.slow
def test_a_client_that_goes_away_takes_its_statement_with_it(served, pool, caplog):
    """The process is free for the next one at once; nothing is logged."""
    caplog.set_level(logging.WARNING)
    served.post("/v1/sql", {"sql": "SELECT 1"})
    (pid,) = pool.pids()
    end = leave(served, ENDLESS)
    until(lambda: busy(pool) and psutil.Process(pid).cpu_percent(0.1) > 20)
    end.close()
    begun = time.monotonic()
    status, _, _ = served.post("/v1/sql", {"sql": "SELECT 1"})
    assert status == 200
    assert time.monotonic() - begun < 3
    assert pool.pids() == [pid]
    assert not caplog.records


@pytest.mark.slow
def test_who_waits_too_long_for_a_process_is_asked_to_come_again(served, pool, monkeypatch):
    monkeypatch.setattr(pools, "WAIT_S", 0.2)
    served.post("/v1/sql", {"sql": "SELECT 1"})
    end = leave(served, ENDLESS)
    until(lambda: busy(pool))
    status, headers, body = served.post("/v1/sql", {"sql": "SELECT 1"})
    assert (status, headers["Retry-After"]) == (503, "1")
    assert "sql_processes" in orjson.loads(body)["detail"]
    end.close()
    until(lambda: served.post("/v1/sql", {"sql": "SELECT 1"})[0] == 200)


@pytest.mark.slow
def test_one_who_reads_slowly_keeps_no_process(served, pool):
    """The answer is complete before its first byte: the one process takes the next statement."""
    wide = "SELECT repeat('x', 1000) AS a FROM range(100000)"
    end = leave(served, wide)
    assert end.recv(12) == b"HTTP/1.1 200"
    begun = time.monotonic()
    status, _, body = served.post("/v1/sql", {"sql": "SELECT count(*) AS n FROM trades"})
    assert (status, orjson.loads(body)["data"]) == (200, [{"n": 2 * TRADES_EACH}])
    assert time.monotonic() - begun < 3
    end.close()


@pytest.mark.slow
def test_many_at_once_are_all_answered(served):
    got = []
    asking = [
        threading.Thread(
            target=lambda n=n: got.append(served.post("/v1/sql", {"sql": f"SELECT {n} AS n"}))
        )
        for n in range(20)
    ]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join(WAIT_S)
    assert sorted(orjson.loads(body)["data"][0]["n"] for _, _, body in got) == list(range(20))
