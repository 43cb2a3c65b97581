"""What all contestants share: a run's outcome, the observers, the checks outside the clock."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import psutil

from k2.dev.children import Child
from k2.lake.catalog import load_table, open_catalog, table_name
from k2.schemas import TRADES
from k2.settings import Settings

__all__ = [
    "CheckFailed",
    "Place",
    "Process",
    "Run",
    "TableWatch",
    "assigned_by_faust",
    "await_result",
    "check_table",
]

MEMORY_POLL_S = 0.05
RESULT_POLL_S = 0.005
STOP_TIMEOUT_S = 10.0


class CheckFailed(Exception):
    """Raised when a contestant did not do its work: rows missing, doubled, or too late."""


@dataclass(frozen=True, slots=True)
class Place:
    """What a run has to itself, and the pid of the broker, which it shares."""

    folder: Path
    group: str
    broker: int


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one contestant; times in seconds."""

    contestant: str
    trades: int
    seconds: float  # from assignment to the last row committed
    wall_seconds: float  # from the start of the process
    rss_bytes_max: int  # of the process tree, sampled
    hwm_bytes: int  # VmHWM of the process itself, kept by the kernel
    cpu_seconds: float  # of the process, from assignment to end
    broker_cpu_seconds: float  # of the broker, from the start of the process
    details: dict[str, float]

    @property
    def rate(self) -> float:
        return self.trades / self.seconds


class Process:
    """A contestant's process, and what it uses of memory and processor; stopped at the end."""

    def __init__(self, name: str, argv: list[str], place: Place, env: dict[str, str]) -> None:
        """`env` is added to an environment without K2_ variables."""
        base = {k: v for k, v in os.environ.items() if not k.startswith("K2_")}
        # UTC: the times in Faust's log are local ones.
        environment = base | {"TZ": "UTC", "PYTHONUNBUFFERED": "1"} | env
        self.child = Child(name, [sys.executable, *argv], environment, place.folder / "process.log")
        self.started_at = 0.0
        self.rss_bytes_max = self.hwm_bytes = 0
        self.broker_cpu_seconds = 0.0
        self._cpu: list[tuple[float, float]] = []  # when, seconds used until then
        self._broker = psutil.Process(place.broker)
        self._broker_before = 0.0
        self._stop = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Process:
        self._broker_before = _cpu(self._broker)
        self.started_at = time.time()
        self.child.start()
        self._sampler.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._sampler.join()
        self.child.stop(STOP_TIMEOUT_S)

    def finish(self) -> None:
        """Take the last figures; call at the run's end, before the process is stopped."""
        self._stop.set()
        self._sampler.join()
        self._look(psutil.Process(self.child.pid))
        self.broker_cpu_seconds = _cpu(self._broker) - self._broker_before

    def run(
        self, contestant: str, trades: int, assigned: float, end: float, **details: float
    ) -> Run:
        """The outcome, from the times (seconds since the epoch) of assignment and end."""
        return Run(
            contestant,
            trades,
            end - assigned,
            end - self.started_at,
            self.rss_bytes_max,
            self.hwm_bytes,
            self._cpu[-1][1] - max((cpu for at, cpu in self._cpu if at <= assigned), default=0.0),
            self.broker_cpu_seconds,
            details,
        )

    def _sample(self) -> None:
        assert self.child.pid is not None
        try:
            root = psutil.Process(self.child.pid)
            while True:
                self._look(root)
                if self._stop.wait(MEMORY_POLL_S):
                    return
        except (psutil.NoSuchProcess, OSError):
            return  # it has ended; whoever waits for it says so

    def _look(self, root: psutil.Process) -> None:
        tree = [root, *root.children(recursive=True)]
        self.rss_bytes_max = max(self.rss_bytes_max, sum(map(_rss, tree)))
        self.hwm_bytes = max(self.hwm_bytes, _hwm(root.pid))
        self._cpu.append((time.time(), _cpu(root)))


def _rss(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


def _hwm(pid: int) -> int:
    found = re.search(r"^VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _patiently(process: Process, look: Callable[[], Any], what: str, deadline_s: float) -> Any:
    until = time.monotonic() + deadline_s
    while (found := look()) is None:
        process.child.check()
        if time.monotonic() > until:
            raise CheckFailed(
                f"{process.child.name}: {what} not within {deadline_s:.0f} s; end of its log:\n"
                f"{process.child.tail()}"
            )
        time.sleep(RESULT_POLL_S)
    return found


def await_result(process: Process, path: Path, deadline_s: float) -> dict[str, Any]:
    """Wait for the file (JSON) in which a contestant says that it has finished."""

    def look() -> dict[str, Any] | None:
        found: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
        return found

    found: dict[str, Any] = _patiently(process, look, "no result", deadline_s)
    return found


class TableWatch:
    """Looks into a SQLite catalog from outside for the snapshot that holds all rows.

    Reading one row of SQLite costs microseconds; metadata is read only when it is new.
    """

    def __init__(self, settings: Settings) -> None:
        self._catalog = sqlite3.connect(f"file:{settings.data / 'catalog.db'}?mode=ro", uri=True)
        self._name = table_name(settings, TRADES).split(".")
        self._location = ""
        self.commits: list[tuple[float, int]] = []  # when seen, rows then

    def close(self) -> None:
        self._catalog.close()

    def wait(self, process: Process, rows: int, deadline_s: float) -> float:
        """Return when `rows` rows or more were first seen, seconds since the epoch."""

        def look() -> float | None:
            self._look()
            done = self.commits and self.commits[-1][1] >= rows
            return self.commits[-1][0] if done else None

        end: float = _patiently(process, look, f"{rows} rows", deadline_s)
        return end

    def _look(self) -> None:
        ((location,),) = self._catalog.execute(
            "SELECT metadata_location FROM iceberg_tables"
            " WHERE table_namespace = ? AND table_name = ?",
            self._name,
        ).fetchall()
        if location == self._location:
            return
        try:
            metadata = json.loads(Path(location.removeprefix("file://")).read_bytes())
        except FileNotFoundError:
            return  # already replaced and deleted: the next look finds the newer one
        now = time.time()
        self._location = location
        for snapshot in metadata["snapshots"]:
            if snapshot["snapshot-id"] == metadata.get("current-snapshot-id"):
                rows = int(snapshot["summary"]["total-records"])
                if not self.commits or rows > self.commits[-1][1]:
                    self.commits.append((now, rows))


def check_table(name: str, settings: Settings, trades: int, symbols: int) -> None:
    """Count the rows of the newest snapshot's data files, and distinct offsets.

    Raises:
        CheckFailed: not every trade is in the table once, or a verdict is wrong: the workload
            has no faults, so the verdict is `first` once a symbol, and else `ok`.
    """
    table = load_table(open_catalog(settings), table_name(settings, TRADES))
    paths = [task.file.file_path.removeprefix("file://") for task in table.scan().plan_files()]
    if not paths:
        raise CheckFailed(f"{name}: the table has no data files, wanted {trades} rows")
    with duckdb.connect() as connection:
        connection.from_parquet(paths).create_view("trades")
        ((rows, distinct, firsts, oks),) = connection.execute(
            "SELECT count(*), count(DISTINCT (kafka_partition, kafka_offset)),"
            " count(*) FILTER (verdict = 'first'), count(*) FILTER (verdict = 'ok') FROM trades"
        ).fetchall()
    found = {"rows": rows, "distinct offsets": distinct, "first": firsts, "ok": oks}
    wanted = {
        "rows": trades, "distinct offsets": trades, "first": symbols, "ok": trades - symbols,
    }  # fmt: skip
    if found != wanted:
        raise CheckFailed(f"{name}: the table has {found}, wanted {wanted}")


_ASSIGNED = re.compile(
    r"^\[(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3})\].*Executing _on_partitions_assigned", re.MULTILINE
)


def assigned_by_faust(log: Path) -> float:
    """When Faust began to handle its first assignment, seconds since the epoch, from its log."""
    found = _ASSIGNED.search(log.read_text(errors="replace"))
    if found is None:
        raise CheckFailed(f"{log}: no assignment is logged")
    return datetime.strptime(found[1] + "+0000", "%Y-%m-%d %H:%M:%S,%f%z").timestamp()
