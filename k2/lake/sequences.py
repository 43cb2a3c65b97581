"""No (exchange, symbol, session, sequence) twice, but for resets: checked session by session."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date

import duckdb

from k2.lake.findings import Findings, Report
from k2.lake.pinned import Pinned

__all__ = ["check_sequences"]

_EPOCH = date(1970, 1, 1)
_FETCHED = 1000

#: A sequence may occur again after a reset within the session, so only the symbols in which one
#: does are counted by epoch: the resets of the same source up to the row. By CASE, since DuckDB
#: takes quadratic time for a FILTER in such a window: 5 s, not 0.02, for 200,000 rows.
_SEQUENCES_SQL = """
WITH rows AS (
    SELECT exchange, symbol, sequence, verdict, kafka_cluster, kafka_topic, kafka_partition,
        kafka_offset
    FROM session_rows WHERE session = $session
), candidates AS (
    SELECT DISTINCT exchange, symbol FROM (
        SELECT exchange, symbol FROM rows GROUP BY exchange, symbol, sequence HAVING count(*) > 1
    )
), epochs AS (
    SELECT exchange, symbol, sequence, kafka_offset,
        kafka_topic || '[' || kafka_partition || ']:' || kafka_offset AS place,
        count(CASE WHEN verdict = 'reset' THEN 1 END) OVER (
            PARTITION BY exchange, symbol, kafka_cluster, kafka_topic, kafka_partition
            ORDER BY kafka_offset
        ) AS epoch
    FROM rows SEMI JOIN candidates USING (exchange, symbol)
)
SELECT exchange, symbol, sequence, count(*), arg_min(place, kafka_offset),
    arg_max(place, kafka_offset)
FROM epochs
GROUP BY exchange, symbol, sequence, epoch HAVING count(*) > 1
ORDER BY exchange, symbol, sequence
"""


def check_sequences(
    connection: duckdb.DuckDBPyConnection,
    files: Pinned,
    report: Report,
    progress: Callable[[int, int], None],
) -> None:
    """Add what is there twice; one session, and the files that reach into it, at a time.

    Args:
        files: of a kind's table, whose view is open.
    """
    distinct = f"SELECT DISTINCT session FROM {files.name} ORDER BY 1"
    sessions = connection.execute(distinct).fetchall()
    bounds = files.bounds("session")
    findings = Findings(files.name)
    for number, (session,) in enumerate(sessions):
        progress(number, len(sessions))
        day = (session - _EPOCH).days
        within = [
            path
            for path, (low, high) in bounds.items()
            if low is None or high is None or low <= day <= high
        ]
        files.view(connection, "session_rows", within)
        found = connection.execute(_SEQUENCES_SQL, {"session": session})
        while rows := found.fetchmany(_FETCHED):
            for exchange, symbol, sequence, count, first, last in rows:
                places = f"{first}, {last}" if count == 2 else f"{first} to {last}"
                name = f"{exchange}.{symbol} {session}: sequence {sequence}"
                findings.add("sequence_twice", f"{name}: {count} rows, at {places}")
    report.findings += findings.take()
    progress(len(sessions), len(sessions))
