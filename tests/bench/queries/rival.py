"""Bare DuckDB over the same files, in a process of its own: what a query costs without K2.

As fast as it goes by hand: one warm database, the list of the snapshot's files made before any
clock starts, filters pushed down into Parquet, results to Arrow and sent nowhere.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

import duckdb
import pyarrow as pa

from tests.bench.queries.questions import Asked

__all__ = ["Rival"]

#: A question, and the files that it is asked of.
Task = tuple[Asked, Sequence[str]]

_TRADES = "WITH trades AS (SELECT * FROM read_parquet($files, hive_partitioning = false))"


class Rival:
    """The process, from `with` to its end; one call at a time."""

    def __enter__(self) -> Rival:
        # Not forked: this process has threads.
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other,), daemon=True)
        self._process.start()
        other.close()
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._process.join(5)
        self._process.kill()

    def rows(self, task: Task) -> pa.Table:
        """An answer, to be compared."""
        with pa.ipc.open_stream(self._call("rows", task)) as reader:
            return reader.read_all()

    def ask(self, task: Task) -> tuple[float, int]:
        """Seconds that an answer took in that process, and its rows."""
        found: tuple[float, int] = self._call("ask", task)
        return found

    def together(self, shares: Sequence[Sequence[Task]]) -> tuple[float, list[tuple[float, int]]]:
        """A cursor and thread for each share, all at once: seconds of all, and those of each."""
        found: tuple[float, list[tuple[float, int]]] = self._call("together", shares)
        return found

    def _call(self, name: str, argument: Any) -> Any:
        self._connection.send((name, argument))
        return self._connection.recv()


def _serve(connection: Connection) -> None:
    with duckdb.connect() as database:
        calls = {"rows": _rows, "ask": _ask, "together": _together}
        while True:
            try:
                name, argument = connection.recv()
            except EOFError:
                return
            connection.send(calls[name](database, argument))


def _answer(cursor: duckdb.DuckDBPyConnection, task: Task) -> pa.Table:
    asked, files = task
    values = {**asked.values, "files": list(files)}
    return cursor.sql(f"{_TRADES} {asked.sql}", params=values).to_arrow_table()


def _rows(database: duckdb.DuckDBPyConnection, task: Task) -> bytes:
    table = _answer(database, task)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return bytes(sink.getvalue())


def _ask(database: duckdb.DuckDBPyConnection, task: Task) -> tuple[float, int]:
    began = time.perf_counter()
    rows = _answer(database, task).num_rows
    return time.perf_counter() - began, rows


def _together(
    database: duckdb.DuckDBPyConnection, shares: Sequence[Sequence[Task]]
) -> tuple[float, list[tuple[float, int]]]:
    def work(share: Sequence[Task]) -> list[tuple[float, int]]:
        with database.cursor() as cursor:
            return [_ask(cursor, task) for task in share]

    with ThreadPoolExecutor(len(shares)) as pool:
        began = time.perf_counter()
        done = list(pool.map(work, shares))
        seconds = time.perf_counter() - began
    return seconds, [each for share in done for each in share]
