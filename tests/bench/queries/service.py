"""A real worker over the table, and a client that asks it over HTTP."""

from __future__ import annotations

import http.client
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from urllib.parse import urlsplit

import pyarrow as pa

from k2.dev.broker import Embedded, free_port
from k2.dev.children import Child
from k2.dev.stack import init
from k2.settings import Settings
from tests.bench.measure import CheckFailed
from tests.bench.queries.questions import Asked
from tests.bench.wire import PARTITIONS, SESSION_TIMEOUT_MS
from tests.bench.workload import EXCHANGE

__all__ = ["Client", "Refused", "Service", "serving", "settings_of"]

READY_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 20.0
_TIMEOUT_S = 120.0


class Refused(Exception):
    """The service has too much to do, and says so."""


@dataclass(frozen=True, slots=True)
class Service:
    url: str
    pid: int  # of the worker


def settings_of(settings: Settings) -> dict[str, str]:
    """As variables of an environment."""
    return {
        f"K2_{spec.name.upper()}": str(getattr(settings, spec.name)) for spec in fields(Settings)
    }


@contextmanager
def serving(settings: Settings) -> Iterator[Service]:
    """Broker and worker over the tables of `settings.data`; every other setting has its default.

    Raises:
        CheckFailed: it is not ready in time.
    """
    with Embedded(settings.data / "broker") as broker:
        own = Settings(
            data=settings.data,
            broker=broker.address,
            exchanges=EXCHANGE,
            partitions=PARTITIONS,
            port=free_port(),
            session_timeout_ms=SESSION_TIMEOUT_MS,
            shutdown_timeout_ms=SESSION_TIMEOUT_MS - 1000,
        )
        init(own)
        base = {name: value for name, value in os.environ.items() if not name.startswith("K2_")}
        argv = [sys.executable, "-m", "k2", "worker"]
        child = Child("worker", argv, base | settings_of(own), settings.data / "worker.log")
        child.start()
        try:
            _await_ready(own.url, child)
            assert child.pid is not None
            yield Service(own.url, child.pid)
        finally:
            child.stop(STOP_TIMEOUT_S)


def _await_ready(url: str, child: Child) -> None:
    until = time.monotonic() + READY_TIMEOUT_S
    while True:
        child.check()
        try:
            with Client(url) as client:
                client.get("/ready")
            return
        except (OSError, Refused) as exc:
            if time.monotonic() > until:
                raise CheckFailed(f"worker: not ready: {exc}; {child.tail()}") from exc
        time.sleep(0.1)


class Client:
    """One connection that is kept open; not thread safe."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._connection = http.client.HTTPConnection(
            parts.hostname or "", parts.port, timeout=_TIMEOUT_S
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def get(self, path: str, body: bytes | None = None) -> bytes:
        """The whole body of an answer.

        Raises:
            Refused: too busy.
            CheckFailed: another error.
        """
        with self.open(path, body) as answer:
            return answer.read()

    def open(self, path: str, body: bytes | None = None) -> http.client.HTTPResponse:
        """An answer whose body is still to be read. Raises as `get`."""
        headers = {} if body is None else {"Content-Type": "application/json"}
        self._connection.request("GET" if body is None else "POST", path, body, headers)
        answer = self._connection.getresponse()
        if answer.status == 200:
            return answer
        problem = answer.read()
        if answer.status in (429, 503):
            raise Refused(problem.decode())
        raise CheckFailed(f"{path}: {answer.status}: {problem.decode()}")

    def rows(self, asked: Asked) -> pa.Table:
        """An answer as a table."""
        with pa.ipc.open_stream(self.get(asked.path, asked.body)) as reader:
            return reader.read_all()

    def ask(self, asked: Asked) -> tuple[float, int]:
        """Seconds from the request to the table in this process, and its rows."""
        began = time.perf_counter()
        rows = self.rows(asked).num_rows
        return time.perf_counter() - began, rows

    def nothing(self) -> float:
        """Seconds of a request that asks for nothing: what HTTP and this client cost."""
        began = time.perf_counter()
        json.loads(self.get("/live"))
        return time.perf_counter() - began
