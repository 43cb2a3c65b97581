"""Escapes: each is refused or stopped, and after each a plain statement is answered."""

import os
import socket
from pathlib import Path

import orjson
import pytest
from aiohttp import web

from k2.lake.catalog import load_table
from k2.sandbox.pool import Pool
from k2.web.gate import protect
from k2.web.sql import routes
from tests.attempts import ATTEMPTS, SHORTENED
from tests.served import Served
from tests.statements import TRADES_EACH, lake

CANARY = "k2-canary-5f3b"
ROWS_MAX = 5_000
TIMEOUT_MS = 1_500


class Target:
    """A server with small limits, beside files, a variable and a listener to be kept from."""

    def __init__(self, folder: Path, listener: socket.socket) -> None:
        self.folder, self._listener = folder, listener
        (folder / "secret.csv").write_text(f"a,b\n{CANARY},1\n")
        limits = {"sql_timeout_ms": TIMEOUT_MS, "sql_rows_max": ROWS_MAX, "sql_processes": 1}
        sizes = {"sql_memory_max": 64 << 20, "sql_bytes_max": 8 << 20}
        self.catalog, settings = lake(folder / "data", **limits, **sizes)
        self.pool = Pool(self.catalog, settings)
        (task, *_) = load_table(self.catalog, "market.trades").scan().plan_files()
        self._known = {
            b"{secret}": str(folder / "secret.csv"),
            b"{made}": str(folder / "made"),
            b"{parquet}": task.file.file_path.removeprefix("file://"),
            b"{port}": str(listener.getsockname()[1]),
        }
        app = web.Application()
        protect(app, settings)
        app.add_routes(routes(self.pool))
        self.served = Served(app)

    def post(self, body):
        data = body if isinstance(body, bytes) else orjson.dumps(body)
        for name, value in self._known.items():
            data = data.replace(name, value.encode())
        return self.served.post("/v1/sql", data)

    def reached(self) -> bool:
        """Whether somebody has connected to the listener."""
        self._listener.setblocking(False)
        try:
            self._listener.accept()[0].close()
        except BlockingIOError:
            return False
        return True


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    os.environ["CANARY"] = CANARY
    with socket.create_server(("127.0.0.1", 0)) as listener:
        target = Target(Path(tmp_path_factory.mktemp("attempts")), listener)
        with target.served:
            yield target
        target.pool.close()
        target.catalog.close()
    del os.environ["CANARY"]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(ATTEMPTS)), ids=lambda n: f"{ATTEMPTS[n].group}-{n}")
def test_an_attempt_gains_nothing_and_the_next_statement_is_answered(target, number):
    """Its status is that of the table; no file is read, made or reached; the service is alive."""
    attempt = ATTEMPTS[number]
    status, headers, body = target.post(attempt.body)
    wanted = (attempt.status,) if isinstance(attempt.status, int) else attempt.status
    assert status in wanted, body[:500]
    assert CANARY.encode() not in body
    if status == SHORTENED:
        answer = orjson.loads(body)
        assert answer["truncated"] is (headers["X-K2-Truncated"] == "true")
        assert answer["count"] == (ROWS_MAX if answer["truncated"] else 0)
    else:
        problem = orjson.loads(body)
        assert problem["type"].startswith("urn:k2:error:")
        assert attempt.says in problem["detail"]
    assert sorted(path.name for path in target.folder.iterdir()) == ["data", "secret.csv"]
    assert not target.reached()
    status, _, body = target.post({"sql": "SELECT count(*) AS n FROM trades"})
    assert status == 200, body
    assert orjson.loads(body)["data"] == [{"n": 2 * TRADES_EACH}]
