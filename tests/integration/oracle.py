"""What must be in the tables, by the simulation's own records; DuckDB over Iceberg's files.

Nothing of K2's query engine, audit or sequence check is used. The simulation gives every trade an
id of its own, so a record's first occurrence in the stream is the trade and a second one is the
duplicate; sequence 1 always arrives in order, so counting it numbers the epochs between resets.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import duckdb
import pyarrow as pa
from pyarrow.dataset import dataset
from pyarrow.fs import S3FileSystem

from k2.feeds.simulate import Journal
from k2.settings import Settings
from tests.integration.parts import iceberg

FIELDS = (
    "exchange", "symbol", "sequence", "ts_event", "ts_recv", "price", "size", "side", "trade_id",
    "conditions", "venue",
)  # fmt: skip

_SENT = """
CREATE TABLE sent AS
SELECT *, row_number() OVER (PARTITION BY trade_id ORDER BY n) > 1 AS again FROM (
    SELECT *, row_number() OVER () AS n FROM stream
)
"""

#: Both sides with the same two columns: the epoch, and the place among its symbol's trades.
_NUMBERED = """
CREATE TABLE {name} AS
SELECT *, sum((sequence = 1)::INT) OVER w AS epoch, row_number() OVER w AS place
FROM {source} WINDOW w AS (PARTITION BY symbol ORDER BY {order} ROWS UNBOUNDED PRECEDING)
"""

_HIGHEST = """
CREATE VIEW judged AS
SELECT *, max(sequence) OVER (
    PARTITION BY symbol, epoch ORDER BY kafka_offset
    ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
) AS highest, lag(sequence) OVER (PARTITION BY symbol ORDER BY kafka_offset) AS former
FROM found
"""


def files(settings: Settings, name: str) -> list[str]:
    """Paths of the data files in the newest snapshot; none is listed twice."""
    paths = [task.file.file_path for task in iceberg(settings, name).scan().plan_files()]
    assert len(paths) == len(set(paths)), f"{name}: a file is in the snapshot twice"
    return [path.removeprefix("file://").removeprefix("s3://") for path in paths]


def connect(settings: Settings) -> duckdb.DuckDBPyConnection:
    """DuckDB with the views trades and rejects over the files; those on S3 read by PyArrow."""
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    for name in ("trades", "rejects"):
        if not (paths := files(settings, name)):
            continue
        if settings.warehouse:
            found = dataset(paths, format="parquet", filesystem=_store(settings))
            connection.register(f"{name}_files", found)
            # Read once: a join asks for them in several threads, and often.
            connection.execute(f"CREATE TABLE {name} AS SELECT * FROM {name}_files")
        else:
            connection.from_parquet(paths).create_view(name)
    return connection


def _store(settings: Settings) -> S3FileSystem:
    return S3FileSystem(
        access_key=settings.s3_access_key,
        secret_key=settings.s3_secret_key,
        endpoint_override=settings.s3_endpoint,
        region=settings.s3_region,
    )


def check(settings: Settings, stream: list[pa.Table], journal: Journal) -> None:
    """The tables hold what was sent, exactly once, with exactly the journal's verdicts.

    Args:
        stream: the simulation's chunks, in sending order.
    """
    connection = connect(settings)
    try:
        connection.register("stream", pa.concat_tables(stream))
        connection.execute(_SENT)
        _same_trades(connection, journal)
        _same_verdicts(connection, journal)
        _same_rejects(connection, journal)
    finally:
        connection.close()


def _one(connection: duckdb.DuckDBPyConnection, sql: str) -> Any:
    ((value,),) = connection.execute(sql).fetchall()
    return value


def _same_trades(connection: duckdb.DuckDBPyConnection, journal: Journal) -> None:
    wanted = sum(journal.rows.values())
    assert _one(connection, "SELECT count(*) FROM sent WHERE NOT again") == wanted, "the stream"
    missing = "SELECT count(*) FROM sent WHERE trade_id NOT IN (SELECT trade_id FROM trades)"
    twice = "SELECT count(*) - count(DISTINCT trade_id) FROM trades"
    found = {
        "rows": _one(connection, "SELECT count(*) FROM trades"),
        "missing": _one(connection, missing),
        "twice": _one(connection, twice),
    }
    assert found == {"rows": wanted, "missing": 0, "twice": 0}
    per_symbol = "SELECT symbol, count(*) FROM trades GROUP BY ALL"
    assert dict(connection.execute(per_symbol).fetchall()) == journal.rows

    once = "(SELECT * FROM sent WHERE NOT again)"
    connection.execute(_NUMBERED.format(name="wanted", source=once, order="n"))
    connection.execute(_NUMBERED.format(name="found", source="trades", order="kafka_offset"))
    same = " AND ".join(f"w.{name} IS NOT DISTINCT FROM f.{name}" for name in FIELDS)
    sql = (
        "SELECT count(*), count(*) FILTER (w.place = f.place), count(*) FILTER (w.epoch = f.epoch),"
        "       count(*) FILTER (f.event_time = make_timestamptz(f.ts_event // 1000)),"
        "       count(*) FILTER (f.session = f.event_time::DATE)"
        f" FROM wanted w JOIN found f ON {same}"
    )
    (counts,) = connection.execute(sql).fetchall()
    names = ("equal fields", "in order", "epoch", "event_time", "session")
    assert dict(zip(names, counts, strict=True)) == dict.fromkeys(names, wanted)
    keys = "SELECT count(*) FROM (SELECT DISTINCT symbol, session, epoch, sequence FROM found)"
    assert _one(connection, keys) == wanted, "a (symbol, session, epoch, sequence) occurs twice"


def _same_verdicts(connection: duckdb.DuckDBPyConnection, journal: Journal) -> None:
    connection.execute(_HIGHEST)

    def rows(columns: str, verdict: str) -> list[tuple[Any, ...]]:
        sql = f"SELECT symbol, {columns} FROM judged WHERE verdict = ? ORDER BY ALL"
        return connection.execute(sql, [verdict]).fetchall()

    def entries(kind: str) -> list[tuple[str, int, int]]:
        return sorted((e.symbol, e.first, e.last) for e in journal.entries if e.kind == kind)

    gaps = rows("highest + 1, sequence - 1", "gap")
    wrong = sorted(set(gaps) ^ set(journal.gaps()))
    assert gaps == journal.gaps(), f"gaps in one of both only: {wrong[:10]}"
    assert rows("sequence, sequence", "late") == entries("late")
    assert rows("sequence, former", "reset") == entries("reset")
    assert rows("sequence", "first") == [(symbol, 1) for symbol in sorted(journal.rows)]
    known = {"gap", "late", "reset", "first", "ok"}
    assert {v for (v,) in connection.execute("SELECT DISTINCT verdict FROM trades").fetchall()} <= (
        known
    )


def _same_rejects(connection: duckdb.DuckDBPyConnection, journal: Journal) -> None:
    wanted = Counter((e.symbol, e.first) for e in journal.entries if e.kind == "duplicate")
    assert wanted.total() == journal.duplicates
    if not wanted:
        return
    sql = "SELECT symbol, sequence, reason, key, value FROM rejects"
    found = connection.execute(sql).fetchall()
    assert {reason for _, _, reason, _, _ in found} == {"duplicate"}
    assert Counter((symbol, sequence) for symbol, sequence, *_ in found) == wanted
    assert all(key == f"SIM.{symbol}".encode() and value for symbol, *_, key, value in found)
    both = (
        "SELECT count(*) FROM rejects JOIN trades USING"
        " (kafka_cluster, kafka_topic, kafka_partition, kafka_offset)"
    )
    assert _one(connection, both) == 0, "an offset is in trades and in rejects"
