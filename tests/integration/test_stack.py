"""K2 as a user runs it: `k2 up`, its answers, its end; and what it does when parts fail."""

from __future__ import annotations

import json
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from k2.dev.broker import free_port
from k2.dev.children import Child
from k2.settings import Settings
from tests.integration.oracle import connect
from tests.integration.parts import committed, environment, get, k2, metric, rows_of, until

pytestmark = pytest.mark.slow

ROWS = 20_000
#: What `k2 up` may take to stop: flush deadline, the stack's margin, the broker.
STOP_S = 5 + 15 + 5


@dataclass(frozen=True)
class Up:
    child: Child
    url: str
    env: dict[str, str]  # of commands beside it

    @property
    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.child.pid).children(recursive=True)


@contextmanager
def up(data: Path, log: Path, **more: str) -> Iterator[Up]:
    """`k2 up` as a process, from its banner on; ended and buried in any case."""
    port = free_port()
    env = environment(K2_SESSION_TIMEOUT_MS="6000", K2_SHUTDOWN_TIMEOUT_MS="5000", **more)
    argv = [sys.executable, "-m", "k2", "up", "--data", str(data), "--port", str(port)]
    child = Child("k2 up", argv, env, log)
    child.start()
    try:

        def banner() -> re.Match[str] | None:
            child.check()
            return re.search(r"k2 is up\. Broker (\S+) \(K2_BROKER\)", log.read_text())

        broker = until(banner, 60, lambda: f"the banner:\n{child.tail()}")[1]
        beside = environment(K2_DATA=str(data), K2_BROKER=broker)
        yield Up(child, f"http://127.0.0.1:{port}", beside)
    finally:
        family = psutil.Process(child.pid).children(recursive=True) if child.poll() is None else []
        child.stop(STOP_S)
        for left in family:
            if left.is_running():
                left.kill()


def _stop(running: Up) -> None:
    """Ctrl-C: it ends by itself with exit code 0 and takes its children along."""
    family = running.family
    assert len(family) == 2, f"a broker and a worker, not {family}"
    running.child.signal(signal.SIGINT)
    done = lambda: running.child.poll() is not None  # noqa: E731
    until(done, STOP_S, lambda: f"ended:\n{running.child.tail()}")
    assert running.child.poll() == 0, running.child.tail()
    assert not [process for process in family if process.is_running()]


def _simulate(running: Up, *options: str) -> None:
    done = k2(running.env, "simulate", "--trades", str(ROWS), *options)
    assert done.returncode == 0, done.stderr


def test_a_users_day(tmp_path: Path) -> None:
    """Up, simulate, ask, Ctrl-C, up again: answers are right, nothing that K2 had is lost."""
    data, journal = tmp_path / "data", tmp_path / "journal.json"
    settings = Settings(data=data)
    with up(data, tmp_path / "up-1.log") as running:
        _simulate(running, "--gaps", "3", "--journal", str(journal))
        written = json.loads(journal.read_bytes())
        sent = written["sent"]
        until(lambda: committed(settings) == sent, 30, lambda: f"{sent} rows: {running.child}")
        _ask(running.url, written)
        assert k2(running.env, "verify").returncode == 0
        _stop(running)
    assert committed(settings) == sent

    # Nothing is committed before the stop: what the worker had in hand must be, by the stop.
    log = tmp_path / "up-2.log"
    with up(data, log, K2_FLUSH_AGE_MAX_MS="3600000") as running:
        assert "another Kafka cluster than last time" in log.read_text()
        assert "not committed when it ended are gone: send them again" in log.read_text()
        _simulate(running, "--date", "2024-03-12")
        sample = 'k2_records_total{table="trades"}'
        until(lambda: metric(running.url, sample) == ROWS, 30, "all trades in the buffer")
        assert committed(settings) == sent
        _stop(running)
    assert committed(settings) == sent + ROWS
    assert k2(environment(K2_DATA=str(data)), "verify", "--offline").returncode == 0
    with connect(settings) as connection:
        days = "SELECT session, count(*) FROM trades GROUP BY ALL ORDER BY ALL"
        assert [count for _, count in connection.execute(days).fetchall()] == [ROWS, sent]


def _ask(url: str, journal: dict[str, object]) -> None:
    """Every view of a worker answers, and the rows are those of the journal."""
    rows = journal["rows"]
    assert isinstance(rows, dict)
    trades = rows_of(f"{url}/v1/trades?exchange=SIM&symbol=S00001&limit=1000000")
    assert len(trades) == rows["S00001"]
    assert all(trade["symbol"] == "S00001" for trade in trades)
    bars = rows_of(f"{url}/v1/bars?exchange=SIM&symbol=S00001&interval=1d")
    assert [bar["trades"] for bar in bars] == [rows["S00001"]]
    symbols = rows_of(f"{url}/v1/symbols")
    assert {row["symbol"] for row in symbols} == set(rows)
    for path in ("/v1/status", "/live", "/ready"):
        status, headers, body = get(url + path)
        assert (status, headers["Content-Type"]) == (200, "application/json"), path
        assert isinstance(json.loads(body), dict)
    status, _, body = get(f"{url}/metrics")
    assert status == 200
    assert metric(url, 'k2_records_total{table="trades"}') == journal["sent"]
    gaps = [line for line in body.decode().splitlines() if line.startswith("k2_gaps_total{")]
    assert sum(float(line.rpartition(" ")[2]) for line in gaps) == 3
    assert all('{exchange="SIM",severity="' in line for line in gaps)
    assert get(f"{url}/v1/bars")[0] == 400


def test_worker_killed_under_up_ends_it_with_the_workers_log(tmp_path: Path) -> None:
    """A stack without its worker does not go on as if all were well."""
    with up(tmp_path / "data", tmp_path / "up.log") as running:
        family = running.family
        (worker,) = (process for process in family if "worker" in process.cmdline())
        worker.kill()
        done = lambda: running.child.poll() is not None  # noqa: E731
        until(done, STOP_S, lambda: f"ended:\n{running.child.tail()}")
        assert running.child.poll() != 0
        said = running.child.log.read_text()
        assert "worker-0 ended by itself (signal 9)" in said
        assert "Worker ready" in said, "the end of the worker's log"
        assert not [process for process in family if process.is_running()]


def test_worker_without_broker_says_which_address(tmp_path: Path) -> None:
    """Within seconds, and with an exit code."""
    address = f"127.0.0.1:{free_port()}"
    started = time.monotonic()
    done = k2(environment(K2_DATA=str(tmp_path), K2_BROKER=address), "worker")
    assert done.returncode != 0
    assert address in done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - started < 30, "meant to be about ten seconds"
