"""The sandbox process itself: `python -m k2.sandbox.child`, started by `k2.sandbox.process`.

It says hello, then takes one statement after the other: says which tables it names, is given their
files and a file for the answer, and runs it in a DuckDB of its own. It imports nothing of K2 but
this package, so that what it has in memory is little, and none of it secret.
"""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import socket
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import orjson
import pyarrow as pa

from k2.sandbox import walls
from k2.sandbox.files import Asked, PlannedFiles, name_of
from k2.sandbox.statement import Refused, examine, place, system_views
from k2.sandbox.wire import Channel, Message

__all__ = ["main"]

#: Few: rows may be wide.
BATCH_ROWS = 8_192
#: Beyond what DuckDB may take: stacks of threads, buffers of Arrow, of Python and of the allocator.
OVERHEAD_BYTES = 384 * 1024 * 1024
#: Beyond the answer's own bytes.
_FILE_SLACK = 64 * 1024 * 1024
_FILES_MAX = 256
_EXPLAIN = "EXPLAIN "


@dataclass(frozen=True, slots=True)
class _Limits:
    """As the worker's settings have them; see `k2.settings`."""

    memory: int
    rows: int
    bytes: int
    threads: int


class _Over(Exception):
    """A limit is met; `name` is the setting's."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class _Process:
    """Takes messages in one thread, and runs statements in another."""

    def __init__(
        self, channel: Channel, folder: Path, limits: _Limits, system: frozenset[str]
    ) -> None:
        self._channel, self._folder, self._limits = channel, folder, limits
        self._system = system
        self._asked = Asked(channel)
        self._work: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._running: duckdb.DuckDBPyConnection | None = None

    def run(self) -> None:
        threading.Thread(target=self._listen, daemon=True).start()
        while True:
            files = PlannedFiles(self._asked)
            database = self._database(files)  # before it is needed: it takes 20 ms
            examine(database, "SELECT 1", self._system)
            with contextlib.closing(files), contextlib.closing(database):
                self._running = database
                said = self._statement(database, self._work.get().head)
                self._running = None
                database.unregister_filesystem(files.protocol)
            self._channel.send(said)

    def _listen(self) -> None:
        """Messages as they come. The worker has gone when they end, and so does this process."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                message = self._channel.receive()
                if "stop" in message.head:
                    if (running := self._running) is not None:
                        running.interrupt()
                elif "sql" in message.head or "setup" in message.head or "drop" in message.head:
                    self._work.put(message)
                else:
                    self._asked.answered(message)
        os._exit(0)

    def _database(self, files: PlannedFiles) -> duckdb.DuckDBPyConnection:
        database = duckdb.connect(
            ":memory:",
            config={
                "threads": str(self._limits.threads),
                "memory_limit": f"{self._limits.memory // 1024}KiB",
                "temp_directory": str(self._folder / "spill"),
                "autoload_known_extensions": "false",
                "autoinstall_known_extensions": "false",
                "allow_community_extensions": "false",
                "allow_persistent_secrets": "false",
                "python_enable_replacements": "false",
                "errors_as_json": "true",
            },
        )
        # DuckDB 2.0 shows this one, but does not keep to it, if it is given with the others.
        database.execute(f"SET max_temp_directory_size = '{self._limits.bytes // 1024}KiB'")
        database.execute("SET TimeZone = 'UTC'")
        database.execute("SET parquet_metadata_cache = true")
        database.register_filesystem(files)
        return database

    def _statement(self, database: duckdb.DuckDBPyConnection, asked: dict[str, Any]) -> Any:
        """Run one; returns the last message about it."""
        sql, self._asked.failed = asked["sql"], False
        try:
            tables = examine(database, sql, self._system)
            self._channel.send({"tables": tables, "cpu_seconds": time.process_time()})
            plan = self._work.get()
            if plan.file is None:
                return {"dropped": True}
            with os.fdopen(plan.file, "wb") as answer:
                _lock(database, plan.head["setup"], plan.head["files"])
                return {"done": self._answer(database, sql, asked["parameters"], answer)}
        except Refused as exc:
            return _refused(sql, str(exc), exc.at)
        except _Over as exc:
            return {"limit": exc.name}
        except MemoryError:  # Arrow's is one too
            return {"limit": "sql_memory_max"}
        except (duckdb.Error, pa.ArrowException, OSError) as exc:
            # What DuckDB raises while its rows are read comes as an error of Arrow's.
            return self._failure(database, asked, str(exc))

    def _failure(
        self, database: duckdb.DuckDBPyConnection, asked: dict[str, Any], text: str
    ) -> dict[str, Any]:
        """The last message about a statement that DuckDB gave up."""
        kind, message, at = _told(text)
        if self._asked.failed:
            return {"failed": "a data file cannot be read"}
        if "max_temp_directory_size" in message:
            return {"limit": "sql_bytes_max"}
        if "Out of Memory" in kind or "bad alloc" in message or "bad_alloc" in message:
            return {"limit": "sql_memory_max"}
        if "INTERRUPT" in kind:
            return {"stopped": True}
        if os.strerror(errno.EFBIG) in message or os.strerror(errno.ENOSPC) in message:
            return {"limit": "sql_bytes_max"}
        if at is None:
            at = _bound_at(database, asked["sql"], asked["parameters"])
        # Its own folder is the one path of this machine that it knows.
        clean = f"{kind}: {message}".replace(str(self._folder), "")
        return _refused(asked["sql"], clean, at)

    def _answer(
        self, database: duckdb.DuckDBPyConnection, sql: str, parameters: Any, answer: Any
    ) -> dict[str, Any]:
        """Write the rows as an Arrow IPC stream."""
        reader = database.sql(sql, params=parameters).to_arrow_reader(BATCH_ROWS)
        schema = _named_once(reader.schema)
        rows, truncated = 0, False
        with pa.ipc.new_stream(answer, schema) as writer:
            for batch in reader:
                if rows + batch.num_rows > self._limits.rows:
                    batch, truncated = batch.slice(0, self._limits.rows - rows), True
                rows += batch.num_rows
                writer.write_batch(pa.RecordBatch.from_arrays(batch.columns, schema=schema))
                if answer.tell() > self._limits.bytes:
                    raise _Over("sql_bytes_max")
                if truncated:
                    break
        reader.close()
        return {"rows": rows, "truncated": truncated}


def _lock(database: duckdb.DuckDBPyConnection, setup: list[str], files: int) -> None:
    """Make the tables, after which nothing but them can be seen and no setting changed."""
    if files:
        names = ", ".join(f"'{name_of(number)}'" for number in range(files))
        database.execute(f"SET allowed_paths = [{names}]")
    database.execute("SET enable_external_access = false")
    for step in setup:
        database.execute(step)
    database.execute("SET lock_configuration = true")


def _told(text: str) -> tuple[str, str, int | None]:
    """Kind and text of DuckDB's message, and the byte of the statement that it is about."""
    kind, _, rest = text.partition(": ")
    try:
        told = orjson.loads(rest)
    except orjson.JSONDecodeError:
        return kind, rest, None
    at = told.get("position")
    return kind, str(told.get("exception_message", "")), None if at is None else int(at)


def _bound_at(database: duckdb.DuckDBPyConnection, sql: str, parameters: Any) -> int | None:
    """Where a statement cannot be bound: a relation does not say, but EXPLAIN does."""
    try:
        database.execute(_EXPLAIN + sql, parameters)
    except duckdb.Error as exc:
        at = _told(str(exc))[2]
        return None if at is None else max(0, at - len(_EXPLAIN))
    return None


def _refused(sql: str, message: str, at: int | None) -> dict[str, Any]:
    return {"refused": message, "position": None if at is None else place(sql, at)}


def _named_once(schema: pa.Schema) -> pa.Schema:
    """`a, a` as `a, a_1`: in JSON one of both would be lost."""
    taken: set[str] = set()
    fields = []
    for field in schema:
        name, number = field.name, 0
        while name in taken:
            number += 1
            name = f"{field.name}_{number}"
        taken.add(name)
        fields.append(field.with_name(name))
    return pa.schema(fields)


def _rehearse() -> frozenset[str]:
    """Use once all that is imported or opened when it is first used: later nothing can be.

    Returns DuckDB's own views.
    """
    with contextlib.closing(duckdb.connect(":memory:", config={"threads": "1"})) as database:
        sql = (
            "SELECT $a::DECIMAL(18, 8) AS a, now() AS b, uuid() AS c, [1.5] AS d, DATE '2020-01-01'"
        )
        (batch,) = database.sql(sql, params={"a": "1.5"}).to_arrow_reader(BATCH_ROWS)
        system = system_views(database)
        examine(database, "SELECT 1", system)
        with pa.ipc.new_stream(pa.BufferOutputStream(), batch.schema) as writer:
            writer.write_batch(batch)
        with contextlib.suppress(duckdb.Error):
            database.execute("SELECT ?", [[1, "a", None, 1.5, True]])
        return system


def main() -> None:
    """Become a sandbox; `argv`: a socket, the parent's id, a folder, then the limits."""
    end, parent, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    limits = _Limits(*map(int, sys.argv[4:8]))
    walls.die_with_parent(parent)
    system = _rehearse()
    walls.limit(limits.memory + OVERHEAD_BYTES, limits.bytes + _FILE_SLACK, _FILES_MAX)
    missing = walls.raise_walls(folder)
    channel = Channel(socket.socket(fileno=end), takes_files=True)
    channel.send({"walls_missing": missing, "pid": os.getpid()})
    _Process(channel, folder, limits, system).run()


if __name__ == "__main__":
    main()
