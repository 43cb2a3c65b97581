"""The sandbox processes of a worker: `sql_processes` at most, each replaced when it was killed."""

from __future__ import annotations

import asyncio
import atexit
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pyiceberg.catalog import Catalog

from k2 import metrics
from k2.errors import SandboxDied, SqlBusy
from k2.query.rows import Stop
from k2.sandbox.answer import Answer
from k2.sandbox.plan import Planner
from k2.sandbox.process import Sandbox
from k2.settings import Settings

__all__ = ["Pool", "Turn"]

_LOG = logging.getLogger(__name__)
#: A statement waits this long for a process.
WAIT_S = 5.0


class Turn:
    """The right to one process, from `Pool.turn`; any thread may give it back, once or often."""

    def __init__(self, turns: asyncio.Semaphore) -> None:
        self._turns: asyncio.Semaphore | None = turns
        self._loop = asyncio.get_running_loop()

    def release(self) -> None:
        turns, self._turns = self._turns, None
        if turns is not None:
            self._loop.call_soon_threadsafe(turns.release)


class Pool:
    """Runs statements. The first one starts a process."""

    def __init__(self, catalog: Catalog, settings: Settings) -> None:
        self._settings = settings
        self._planner = Planner(catalog, settings)
        self._turns = asyncio.Semaphore(settings.sql_processes)
        self._lock = threading.Lock()
        self._idle: list[Sandbox] = []
        self._all: set[Sandbox] = set()
        self._told = False
        # A process ends with the thread that started it: this one lives as long as the pool.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="k2-sandbox")
        atexit.register(self.close)

    async def turn(self) -> Turn:
        """Wait for a process that is free.

        Raises:
            SqlBusy: none was within `WAIT_S`.
        """
        try:
            async with asyncio.timeout(WAIT_S):
                await self._turns.acquire()
        except TimeoutError as exc:
            most = self._settings.sql_processes
            raise SqlBusy(
                f"all {most} processes for SQL (sql_processes) are busy for {WAIT_S:g} s: try later"
            ) from exc
        return Turn(self._turns)

    def run(
        self,
        sql: str,
        parameters: list[Any] | dict[str, Any],
        form: str,
        stop: Stop,
        turn: Turn | None = None,
    ) -> Answer:
        """Run a statement; its answer as `form` wants it. Blocks.

        Args:
            turn: is given back as soon as the process is free, which is before the answer is read.

        Raises:
            BadSql, SqlLimit, CatalogUnavailable, SandboxDied: see `Sandbox.run`.
        """
        try:
            with metrics.query_seconds.labels(resource="sql").time():
                sandbox = self._take()
                try:
                    return sandbox.run(sql, parameters, form, stop)
                finally:
                    self._give_back(sandbox)
        finally:
            if turn is not None:
                turn.release()

    def pids(self) -> list[int]:
        """The processes that there are."""
        with self._lock:
            return sorted(sandbox.pid for sandbox in self._all)

    def close(self) -> None:
        """Kill all processes."""
        atexit.unregister(self.close)
        with self._lock:
            every, self._all, self._idle = self._all, set(), []
        for sandbox in every:
            sandbox.close()
        self._starter.shutdown(wait=False, cancel_futures=True)

    def _take(self) -> Sandbox:
        # Behind the replacement that may be on its way.
        return (
            self._waiting()
            or self._starter.submit(lambda: self._waiting() or self._start()).result()
        )

    def _waiting(self) -> Sandbox | None:
        with self._lock:
            while self._idle:
                sandbox = self._idle.pop()
                if sandbox.lives():
                    return sandbox
                self._drop(sandbox)
        return None

    def _start(self) -> Sandbox:
        sandbox = Sandbox(self._settings, self._planner)
        if sandbox.walls_missing and not self._told:
            self._told = True
            _LOG.warning(
                "SQL runs without %s, which this system does not give: DuckDB's own lock and the "
                "limits of the process remain",
                " and ".join(sandbox.walls_missing),
            )
        with self._lock:
            self._all.add(sandbox)
        return sandbox

    def _give_back(self, sandbox: Sandbox) -> None:
        with self._lock:
            if sandbox.alive:
                self._idle.append(sandbox)
                return
            self._drop(sandbox)
        # Another one in its place, so that nobody waits for it later.
        self._starter.submit(self._replace)

    def _drop(self, sandbox: Sandbox) -> None:
        self._all.discard(sandbox)
        sandbox.close()

    def _replace(self) -> None:
        with self._lock:
            enough = len(self._all) >= self._settings.sql_processes
        if enough:
            return
        try:
            sandbox = self._start()
        except SandboxDied:
            _LOG.exception("a sandbox process cannot be replaced; the next statement tries again")
            return
        with self._lock:
            self._idle.append(sandbox)
