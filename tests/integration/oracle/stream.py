"""What must be in the tables, by the simulation's own records; DuckDB over Iceberg's files.

The simulation gives every trade an id of its own, so a record's first occurrence in the stream is
the trade and a second one is the duplicate; sequence 1 always arrives in order, so counting it
numbers the epochs between resets.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import duckdb
import pyarrow as pa

from k2.feeds.simulate import Journal
from k2.settings import Settings
from tests.integration.oracle.records import FIELDS
from tests.integration.oracle.tables import connect, one
from tests.integration.oracle.wrong import Wrong, listed

__all__ = ["same_as_stream"]

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


def same_as_stream(settings: Settings, stream: list[pa.Table], journal: Journal) -> None:
    """The tables hold what was sent, exactly once, with exactly the journal's verdicts.

    Args:
        stream: the simulation's chunks, in sending order.

    Raises:
        Wrong: `lost` and `doubled` count trades; of duplicates, those that are in rejects.
    """
    with connect(settings) as connection:
        connection.register("stream", pa.concat_tables(stream))
        connection.execute(_SENT)
        _same_trades(connection, journal)
        _same_verdicts(connection, journal)
        _same_rejects(connection, journal)


def _same_trades(connection: duckdb.DuckDBPyConnection, journal: Journal) -> None:
    wanted = sum(journal.rows.values())
    assert one(connection, "SELECT count(*) FROM sent WHERE NOT again") == wanted, "the stream"
    missing = _ids("sent ANTI JOIN trades USING (trade_id) WHERE NOT again")
    twice = _ids("trades GROUP BY trade_id HAVING count(*) > 1")
    lost = [trade for (trade,) in connection.execute(missing).fetchall()]
    again = [trade for (trade,) in connection.execute(twice).fetchall()]
    if lost or again:
        doubled = one(connection, "SELECT count(*) - count(DISTINCT trade_id) FROM trades")
        said = f"trades missing: {listed(lost)}; twice: {listed(again)}"
        raise Wrong(said, lost=len(lost), doubled=doubled)
    per_symbol = "SELECT symbol, count(*) FROM trades GROUP BY ALL"
    _equal("rows by symbol", dict(connection.execute(per_symbol).fetchall()), journal.rows)

    once = "(SELECT * FROM sent WHERE NOT again)"
    connection.execute(_NUMBERED.format(name="wanted", source=once, order="n"))
    connection.execute(_NUMBERED.format(name="found", source="trades", order="kafka_offset"))
    same = " AND ".join(f"w.{name} IS NOT DISTINCT FROM f.{name}" for name in FIELDS.names)
    sql = (
        "SELECT count(*), count(*) FILTER (w.place = f.place), count(*) FILTER (w.epoch = f.epoch),"
        "       count(*) FILTER (f.event_time = make_timestamptz(f.ts_event // 1000)),"
        "       count(*) FILTER (f.session = f.event_time::DATE)"
        f" FROM wanted w JOIN found f ON {same}"
    )
    (counts,) = connection.execute(sql).fetchall()
    names = ("equal fields", "in order", "epoch", "event_time", "session")
    _equal("trades", dict(zip(names, counts, strict=True)), dict.fromkeys(names, wanted))
    keys = "SELECT count(*) FROM (SELECT DISTINCT symbol, session, epoch, sequence FROM found)"
    _equal("(symbol, session, epoch, sequence)", one(connection, keys), wanted)


def _same_verdicts(connection: duckdb.DuckDBPyConnection, journal: Journal) -> None:
    connection.execute(_HIGHEST)

    def rows(columns: str, verdict: str) -> list[tuple[Any, ...]]:
        sql = f"SELECT symbol, {columns} FROM judged WHERE verdict = ? ORDER BY ALL"
        return connection.execute(sql, [verdict]).fetchall()

    def entries(kind: str) -> list[tuple[str, int, int]]:
        return sorted((e.symbol, e.first, e.last) for e in journal.entries if e.kind == kind)

    _equal("gaps", rows("highest + 1, sequence - 1", "gap"), journal.gaps())
    _equal("late", rows("sequence, sequence", "late"), entries("late"))
    _equal("resets", rows("sequence, former", "reset"), entries("reset"))
    _equal("firsts", rows("sequence", "first"), [(symbol, 1) for symbol in sorted(journal.rows)])
    others = (
        "SELECT count(*) FROM trades WHERE verdict NOT IN ('gap', 'late', 'reset', 'first', 'ok')"
    )
    _equal("other verdicts", one(connection, others), 0)


def _same_rejects(connection: duckdb.DuckDBPyConnection, journal: Journal) -> None:
    wanted = Counter((e.symbol, e.first) for e in journal.entries if e.kind == "duplicate")
    assert wanted.total() == journal.duplicates
    if not wanted:
        return
    of_trades = "kafka_topic LIKE 'market.trades.%'"
    sql = f"SELECT symbol, sequence, reason, key, value FROM rejects WHERE {of_trades}"
    found = connection.execute(sql).fetchall()
    _equal("reasons", {reason for _, _, reason, _, _ in found}, {"duplicate"})
    held = Counter((symbol, sequence) for symbol, sequence, *_ in found)
    if held != wanted:
        lost, again = wanted - held, held - wanted
        said = f"duplicates missing: {listed(lost)}; too often: {listed(again)}"
        raise Wrong(said, lost=lost.total(), doubled=again.total())
    _equal("keys", {key for *_, key, _ in found}, {f"SIM.{s}".encode() for s, _ in wanted})


def _ids(source: str) -> str:
    return f"SELECT trade_id FROM {source} ORDER BY ALL"


def _equal(what: str, found: Any, wanted: Any) -> None:
    if found == wanted:
        return
    if isinstance(found, dict):
        found, wanted = list(found.items()), list(wanted.items())
    if isinstance(found, list | set):
        only, lacking = (
            [each for each in one if each not in other]
            for one, other in ((found, wanted), (wanted, found))
        )
        raise Wrong(f"{what}: found only {listed(only)}; wanted only {listed(lacking)}")
    raise Wrong(f"{what}: {found}, not {wanted}")
