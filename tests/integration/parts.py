"""Real parts to test with: workers as processes, a feed in a thread, commands, deadlines."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyiceberg.catalog import load_catalog
from pyiceberg.table import Table

from k2.dev.broker import free_port
from k2.dev.children import Child
from k2.dev.server import Running
from k2.feeds.producer import Produced, produce
from k2.settings import Settings

POLL_S = 0.05
LOOK_FACTOR = 4
COMMAND_TIMEOUT_S = 60.0
PIECE_ROWS = 8192

#: What no log of a worker may hold, whatever is done to it.
BROKEN = ("Traceback", "RuntimeWarning", "never retrieved")

#: Tansu holds a group join for half of the session timeout: the shortest one there is.
QUICK = {"session_timeout_ms": 6000, "shutdown_timeout_ms": 5000}


def until(condition: Callable[[], Any], deadline_s: float, what: str | Callable[[], str]) -> Any:
    """Poll until `condition` gives something true and return it; fail with `what` after that."""
    end = time.monotonic() + deadline_s
    while True:
        began = time.monotonic()
        found = condition()
        if found:
            return found
        if time.monotonic() > end:
            said = what if isinstance(what, str) else what()
            raise AssertionError(f"not within {deadline_s:g} s: {said}")
        # A look into a catalog is work that the workers then wait for.
        time.sleep(max(POLL_S, LOOK_FACTOR * (time.monotonic() - began)))


def environment(settings: Settings | None = None, **more: str) -> dict[str, str]:
    """This process's environment without its own K2_*, then all settings as variables."""
    base = {name: value for name, value in os.environ.items() if not name.startswith("K2_")}
    if settings is not None:
        for spec in fields(settings):
            base[f"K2_{spec.name.upper()}"] = str(getattr(settings, spec.name))
    return base | more


def k2(env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command of K2 to its end."""
    return subprocess.run(
        [sys.executable, "-m", "k2", *arguments],
        env=env,
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        check=False,
    )


def verify(settings: Settings) -> None:
    """`k2 verify` finds nothing wrong, asking the broker too."""
    done = k2(environment(settings), "verify")
    assert done.returncode == 0, f"k2 verify: {done.returncode}\n{done.stdout}\n{done.stderr}"


def iceberg(settings: Settings, name: str) -> Table:
    """The newest state of a table, by PyIceberg alone."""
    if settings.catalog_uri:
        catalog = load_catalog(
            "rest",
            **{
                "uri": settings.catalog_uri,
                "warehouse": settings.warehouse,
                "credential": settings.catalog_credential,
                "oauth2-server-uri": f"{settings.catalog_uri}/v1/oauth/tokens",
                "s3.endpoint": settings.s3_endpoint,
                "s3.region": settings.s3_region,
                "s3.access-key-id": settings.s3_access_key,
                "s3.secret-access-key": settings.s3_secret_key,
            },
        )
        return catalog.load_table(f"{settings.namespace}.{name}")
    folder = settings.data.resolve()
    catalog = load_catalog(
        "k2", uri=f"sqlite:///{folder / 'catalog.db'}", warehouse=(folder / "warehouse").as_uri()
    )
    try:
        return catalog.load_table(f"{settings.namespace}.{name}")
    finally:
        catalog.close()


def committed(settings: Settings, name: str = "trades") -> int:
    """Rows in the newest snapshot."""
    try:
        snapshot = iceberg(settings, name).current_snapshot()
    except FileNotFoundError:  # a commit removed the metadata file that we were about to read
        return committed(settings, name)
    if snapshot is None or snapshot.summary is None:
        return 0
    return int(snapshot.summary["total-records"] or 0)


def get(url: str, timeout_s: float = 30.0) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of a GET, whatever the status."""
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, dict(refused.headers), refused.read()


def rows_of(url: str) -> list[dict[str, Any]]:
    """The rows of a query's JSON answer."""
    status, _, body = get(url)
    assert status == 200, body.decode()
    rows: list[dict[str, Any]] = json.loads(body)["data"]
    return rows


def metric(url: str, sample: str) -> float:
    """One sample of a worker's metrics; 0 when it has none yet."""
    _, _, body = get(f"{url}/metrics")
    for line in body.decode().splitlines():
        name, _, value = line.rpartition(" ")
        if name == sample:
            return float(value)
    return 0.0


class Worker(Running):
    """`k2 worker` as a process that can be killed, stopped and started again."""

    def __init__(self, settings: Settings, name: str = "0", logs: Path | None = None) -> None:
        self.settings = replace(settings, worker=name, port=free_port())
        self.url = f"http://127.0.0.1:{self.settings.port}"
        self._log = (logs or settings.data / "log") / f"worker-{name}.log"
        self.child = self._new()

    def _new(self) -> Child:
        argv = [sys.executable, "-m", "k2", "worker"]
        name = f"worker-{self.settings.worker}"
        return Child(name, argv, environment(self.settings), self._log)

    def start(self) -> None:
        self.child = self._new()
        self.child.start()

    def is_ready(self) -> bool:
        self.child.check()
        try:
            return get(f"{self.url}/ready", 2.0)[0] == 200
        except OSError:
            return False

    def await_ready(self, deadline_s: float = 60.0) -> None:
        until(self.is_ready, deadline_s, lambda: f"ready; end of its log:\n{self.child.tail()}")

    def ingested(self) -> float:
        """Trades that it has checked since its start."""
        return metric(self.url, 'k2_records_total{table="trades"}')

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self.child.signal(signal.SIGKILL)
        code = self.child.stop(0.0)
        assert code == -signal.SIGKILL, f"ended by itself before the kill: {code}\n{self.tail()}"

    def terminate(self) -> None:
        """SIGTERM; the flush must end by itself, well before its deadlines."""
        self.child.signal(signal.SIGTERM)
        deadline_s = self.settings.shutdown_timeout_ms / 1000 + 15
        code = until(lambda: (self.child.poll(),) if self.child.poll() is not None else None,
                     deadline_s, lambda: f"ended after SIGTERM:\n{self.tail()}")  # fmt: skip
        assert code == (0,), f"exit code {code[0]} after SIGTERM:\n{self.tail()}"

    def log(self) -> str:
        return self.child.log.read_text(errors="replace")

    def tail(self) -> str:
        return self.child.tail(40)

    def stop(self) -> None:
        """End it now, whatever state it is in."""
        self.child.signal(signal.SIGCONT)
        self.child.signal(signal.SIGKILL)
        self.child.stop(0.0)

    def __exit__(self, kind: Any, *raised: Any) -> None:
        super().__exit__(kind, *raised)
        if kind is None:
            found = [line for line in self.log().splitlines() if any(b in line for b in BROKEN)]
            assert not found, f"{self.child.log}: {found}"


class Feed(Running):
    """Produces in a thread, so that the test can kill workers meanwhile."""

    def __init__(
        self, tables: Iterable[pa.Table], topic: str, settings: Settings, rate: float
    ) -> None:
        self._tables, self._topic, self._settings, self._rate = tables, topic, settings, rate
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="feed")
        self.count = 0
        self.done: Future[Produced]

    def _pieces(self) -> Iterator[pa.Table]:
        for table in self._tables:
            for first in range(0, table.num_rows, PIECE_ROWS):
                if self._stop.is_set():
                    return
                yield table.slice(first, PIECE_ROWS)

    def _count(self, count: int) -> None:
        self.count = count

    def start(self) -> None:
        self.done = self._pool.submit(
            produce, self._pieces(), self._topic, self._settings, self._count, self._rate
        )

    def stop(self) -> None:
        self._stop.set()
        self._pool.shutdown(wait=True)
