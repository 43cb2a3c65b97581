"""One sandbox process, seen from the worker: started, asked, stopped, and killed if need be."""

from __future__ import annotations

import logging
import os
import resource
import select
import socket
import subprocess
import sys
import tempfile
import time
from typing import Any, BinaryIO

import duckdb
import pyarrow as pa

from k2.errors import BadQuery, BadSql, CatalogUnavailable, K2Error, SandboxDied, SqlLimit
from k2.query.rows import Stop
from k2.sandbox.answer import Answer
from k2.sandbox.plan import Plan, Planner
from k2.sandbox.surroundings import Folder, environment
from k2.sandbox.wire import BODY_BYTES_MAX, Channel
from k2.settings import Settings

__all__ = ["Sandbox"]

_LOG = logging.getLogger(__name__)

THREADS = 2
_START_S = 30.0
_LOOK_EVERY_MS = 20
#: A statement that is told to stop may take this long; then its process is killed.
_GRACE_S = 0.5
#: A message comes whole within this time.
_MESSAGE_S = 10.0
_CPU_SLACK_S = 10
_SAID_BYTES = 4096


class Sandbox:
    """A process that runs one statement at a time; `alive` is False when it must be replaced."""

    def __init__(self, settings: Settings, planner: Planner) -> None:
        """Start it, which takes about a second; it ends with the thread that called this.

        Raises:
            SandboxDied: it does not start.
        """
        self._settings, self._planner = settings, planner
        self._spill = settings.data.resolve() / "spill"
        self._spill.mkdir(parents=True, exist_ok=True)
        self._own = Folder(self._spill)
        self._folder = self._own.path
        self._end, theirs = socket.socketpair()
        self._channel = Channel(self._end)
        self._said = select.poll()
        self._said.register(self._end, select.POLLIN)
        self._reading: dict[int, pa.NativeFile] = {}
        self._trouble: OSError | None = None
        with theirs, (self._folder / "stderr").open("wb") as errors:
            self._process = subprocess.Popen(
                self._command(theirs.fileno()),
                cwd=self._folder,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                pass_fds=(theirs.fileno(),),
            )
        self.alive, self._closed = True, False
        hello = self._wait(time.monotonic() + _START_S, Stop(), Plan())
        self.walls_missing: list[str] = hello.get("walls_missing", [])

    def _command(self, end: int) -> list[str]:
        limits = (
            self._settings.sql_memory_max,
            self._settings.sql_rows_max,
            self._settings.sql_bytes_max,
            THREADS,
        )
        # -P: nothing is imported from the folder that it may write to.
        start = [sys.executable, "-P", "-m", "k2.sandbox.child"]
        return [*start, str(end), str(os.getpid()), str(self._folder), *map(str, limits)]

    @property
    def pid(self) -> int:
        return self._process.pid

    def lives(self) -> bool:
        """Whether it can take a statement."""
        return self.alive and self._process.poll() is None

    def close(self) -> None:
        """Kill it, and remove its folder; a second time nothing happens."""
        if self._closed:
            return
        self.alive, self._closed = False, True
        self._process.kill()
        self._process.wait()
        self._channel.close()
        self._own.close()

    def run(
        self, sql: str, parameters: list[Any] | dict[str, Any], form: str, stop: Stop
    ) -> Answer:
        """Run a statement, to its end.

        Args:
            parameters: values for `?` and `$1`, or by name for `$name`.
            form: of the answer, see `k2.query.formats`.
            stop: lets another thread end this call.

        Raises:
            BadSql: it is not one SELECT over the tables, or fails.
            BadQuery: the parameters are no JSON.
            SqlLimit: it met a limit, which is named.
            CatalogUnavailable: a table or a file of it cannot be read.
            SandboxDied: the process ended.
        """
        until = time.monotonic() + self._settings.sql_timeout_ms / 1000
        try:
            return self._run({"sql": sql, "parameters": parameters}, form, until, stop)
        except (OSError, EOFError) as exc:  # of the channel: all others have a name by now
            raise self._died(str(exc)) from exc
        finally:
            for file in self._reading.values():
                file.close()
            self._reading.clear()
            self._trouble = None

    def _run(self, statement: dict[str, Any], form: str, until: float, stop: Stop) -> Answer:
        try:
            self._channel.send(statement)
        except TypeError as exc:  # nested deeper than JSON may be, or no JSON at all
            raise BadQuery("parameters", str(exc)) from exc
        told = self._wait(until, stop, Plan())
        if "tables" not in told:
            raise self._error(told)
        try:
            plan = self._planner.plan(told["tables"])
        except BaseException:
            self._channel.send({"drop": True})
            self._wait(until, Stop(), Plan())
            raise
        file = tempfile.TemporaryFile(dir=self._spill)  # noqa: SIM115 - the answer has it then
        try:
            self._limit_cpu(told.get("cpu_seconds", 0.0))
            what = {"setup": plan.setup, "files": len(plan.files)}
            self._channel.send(what, file=file.fileno())
            told = self._wait(until, stop, plan)
            return self._answer(file, form, told, plan)
        except BaseException:
            file.close()
            raise

    def _limit_cpu(self, spent_s: float) -> None:
        """The kernel ends it if this thread does not."""
        if sys.platform == "linux":
            more = THREADS * self._settings.sql_timeout_ms // 1000 + _CPU_SLACK_S
            most = int(spent_s) + more
            hard = resource.prlimit(self.pid, resource.RLIMIT_CPU)[1]
            resource.prlimit(self.pid, resource.RLIMIT_CPU, (most, hard))

    def _wait(self, until: float, stop: Stop, plan: Plan) -> dict[str, Any]:
        """What the process says, but for its questions about files, which are answered.

        Raises:
            SqlLimit: it was too late, and has been stopped.
            duckdb.InterruptException: so has it by `stop`.
            SandboxDied: it ended.
        """
        why: BaseException | None = None
        killed_at = 0.0
        while True:
            if why is None and (why := self._why_stop(until, stop)) is not None:
                killed_at = time.monotonic() + _GRACE_S
            if why is not None:
                if time.monotonic() > killed_at:
                    self.close()
                    raise why
                # Again and again: DuckDB forgets one that comes before a statement begins.
                self._channel.send({"stop": True})
            if not self._said.poll(_LOOK_EVERY_MS):
                continue
            message = self._receive()
            if "open" in message or "read" in message:
                self._serve(message, plan)
            elif why is not None:
                raise why
            else:
                return message

    def _why_stop(self, until: float, stop: Stop) -> BaseException | None:
        try:
            stop.check()
        except duckdb.InterruptException as exc:
            return exc
        if time.monotonic() > until:
            return self._limit("sql_timeout_ms")
        return None

    def _receive(self) -> dict[str, Any]:
        self._end.settimeout(_MESSAGE_S)
        try:
            message = self._channel.receive()
        except (OSError, EOFError) as exc:
            raise self._died(str(exc)) from exc
        self._end.settimeout(None)
        return message.head

    def _serve(self, asked: dict[str, Any], plan: Plan) -> None:
        """Hand over a planned file, or bytes of it; no other file has a number."""
        try:
            if "open" in asked:
                self._open(asked["open"], plan)
            else:
                number, at, size = asked["read"]
                if not (number in self._reading and 0 <= size <= BODY_BYTES_MAX and at >= 0):
                    raise FileNotFoundError(number)
                self._channel.send({"read": number}, self._reading[number].read_at(size, at))
        except OSError as exc:
            self._trouble = exc
            self._channel.send({"failed": "a data file cannot be read"})

    def _open(self, number: int, plan: Plan) -> None:
        if not 0 <= number < len(plan.files):
            raise FileNotFoundError(number)
        path = plan.files[number].local()
        if path is None:
            if number not in self._reading:
                self._reading[number] = plan.files[number].opened()
            self._channel.send({"size": self._reading[number].size()})
            return
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._channel.send({"size": os.fstat(file).st_size}, file=file)
        finally:
            os.close(file)

    def _answer(self, file: BinaryIO, form: str, told: dict[str, Any], plan: Plan) -> Answer:
        if "done" not in told:
            raise self._error(told)
        file.seek(0)
        try:
            return Answer(file, form, bool(told["done"]["truncated"]), plan.snapshots)
        except (KeyError, pa.ArrowInvalid) as exc:
            raise SandboxDied(f"the process of this statement wrote no answer: {exc}") from exc

    def _error(self, told: dict[str, Any]) -> Exception:
        """Its last word about a statement that did not work."""
        if "refused" in told:
            return BadSql(str(told["refused"]), told.get("position"))
        if "limit" in told:
            if told["limit"] == "sql_memory_max":
                self.close()  # what it holds may not come back
            return self._limit(str(told["limit"]))
        if "failed" in told:
            return CatalogUnavailable(f"data files: {self._trouble or told['failed']}")
        return self._died(f"it said {sorted(told)}")

    def _limit(self, name: str) -> SqlLimit:
        value = getattr(self._settings, name)
        return SqlLimit(f"{_MET[name]} {name}, {value:,}: {_HINT} or raise K2_{name.upper()}")

    def _died(self, why: str) -> K2Error:
        if not self.alive:
            return SandboxDied(f"the process of this statement is closed: {why}")
        try:
            code = self._process.wait(1)
            how = f"exit code {code}" if code >= 0 else f"signal {-code}"
        except subprocess.TimeoutExpired:
            how = why
        said = (self._folder / "stderr").read_bytes()[-_SAID_BYTES:].decode(errors="replace")
        self.close()
        if said.strip():
            _LOG.error("sandbox process %s ended (%s); it said:\n%s", self.pid, how, said.strip())
        return SandboxDied(f"the process of this statement ended: {how}")


_HINT = "ask for less"
_MET = {
    "sql_timeout_ms": "the statement takes longer than",
    "sql_memory_max": "the statement needs more memory than",
    "sql_bytes_max": "the answer has more bytes, or the statement spills more, than",
}
