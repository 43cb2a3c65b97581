"""`k2 verify`: is every record of every partition in the tables, exactly once?

It trusts nothing that the ingest says about itself but one number a source, the next offset in the
summary, and compares that with the rows in the data files. Every offset below it must be in trades
or rejects, once, unless the broker can explain why not (control records, compaction, retention) or
an operator moved the offset.

It works beside a running ingest: it reads one snapshot of each table, whose files K2 never deletes.
Memory is bounded: offsets are checked in windows (`coverage`), sequences session by session by
DuckDB within `query_memory_max`, and findings are listed in part and counted (`findings`).
"""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Callable

import duckdb
import pyarrow as pa
from pyiceberg.catalog import Catalog

from k2.errors import CatalogUnavailable
from k2.lake.catalog import load_table, rejects_name, replays_name, trades_name
from k2.lake.coverage import cover
from k2.lake.findings import LISTED_MAX, Finding, Findings, Report, SourceReport
from k2.lake.offsets import MOVES_PROPERTY, OFFSETS_PROPERTY, Move, Source, decode, decode_moves
from k2.lake.orphans import orphans
from k2.lake.pinned import Pinned
from k2.lake.sequences import check_sequences
from k2.settings import Settings

__all__ = ["LISTED_MAX", "Explain", "Finding", "Progress", "Report", "SourceReport", "audit"]

#: (source, first, last) of a hole, inclusive -> why the broker has no such records, or None.
Explain = Callable[[Source, int, int], str | None]

#: Called with (what is being done, how much of it is done, of how much).
Progress = Callable[[str, int, int], None]

_NAMES = ("trades", "rejects")


def audit(
    catalog: Catalog,
    settings: Settings,
    explain: Explain | None = None,
    progress: Progress | None = None,
) -> Report:
    """Read both tables' newest snapshots and check them; works beside a running ingest.

    Args:
        catalog: where the tables are.
        settings: the namespace, `orphan_age_min_ms`, and `query_memory_max`: of it DuckDB, which
            spills to `data`, has three quarters, the offsets' window a quarter.
        explain: asks the broker about a hole; without it every hole is an error.
        progress: told what is being done, and how far it is.

    Returns:
        Every finding, those of severity ok (explained holes) included.

    Raises:
        CatalogUnavailable: the tables cannot be loaded, or a data file not read.
    """

    def tell(what: str) -> Callable[[int, int], None]:
        return (lambda done, of: progress(what, done, of)) if progress else (lambda done, of: None)

    # Trades first: rejects loaded later can only be further on, never behind by our own doing.
    tables = [load_table(catalog, name(settings)) for name in (trades_name, rejects_name)]
    head = tables[0].metadata.current_snapshot()
    report = Report(head.snapshot_id if head else None)
    spill = settings.data.resolve() / "spill" / f"audit-{os.getpid()}"
    spill.parent.mkdir(parents=True, exist_ok=True)  # DuckDB makes only the last part
    connection = duckdb.connect()
    try:
        limit = settings.query_memory_max * 3 // 4
        connection.execute(f"SET memory_limit = '{limit // 1024}KiB'")
        connection.execute("SET temp_directory = ?", [str(spill)])
        connection.execute("SET preserve_insertion_order = false")
        connection.execute("SET TimeZone = 'UTC'")
        pinned = [
            Pinned(name, table, report, tell(f"files of {name}"))
            for name, table in zip(_NAMES, tables, strict=True)
        ]
        for files in pinned:
            files.open(connection, report)
        _check_offsets(connection, pinned, explain, report, settings, tell("offsets"))
        check_sequences(connection, pinned[0], report, tell("sequences"))
    except (duckdb.Error, pa.ArrowException, OSError) as exc:
        raise CatalogUnavailable(f"audit: {type(exc).__name__}: {exc}") from exc
    finally:
        connection.close()
        shutil.rmtree(spill, ignore_errors=True)
    names = [trades_name(settings), rejects_name(settings)]
    if catalog.table_exists(replays_name(settings)):
        names.append(replays_name(settings))
    for number, name in enumerate(names):
        tell("orphans")(number, len(names))
        report.findings += orphans(catalog, name, settings)
    return report


_SOURCES_SQL = """
SELECT c, t, p, count(*), min(o), max(o), max(CASE WHEN ok THEN o END),
    max(CASE WHEN NOT ok THEN o END)
FROM (
    SELECT kafka_cluster AS c, kafka_topic AS t, kafka_partition AS p, kafka_offset AS o, true AS ok
    FROM trades
    UNION ALL
    SELECT kafka_cluster, kafka_topic, kafka_partition, kafka_offset, false FROM rejects
) GROUP BY ALL
"""


def _check_offsets(
    connection: duckdb.DuckDBPyConnection,
    pinned: list[Pinned],
    explain: Explain | None,
    report: Report,
    settings: Settings,
    progress: Callable[[int, int], None],
) -> None:
    promised, rejects_promised = (decode(files.summary(OFFSETS_PROPERTY)) for files in pinned)
    moves: dict[Source, list[Move]] = defaultdict(list)
    for move in decode_moves(pinned[0].summary(MOVES_PROPERTY)):
        moves[move.source].append(move)
    found = {
        Source(c, t, p): (count, first, last, last_trade, last_reject)
        for c, t, p, count, first, last, last_trade, last_reject in connection.execute(
            _SOURCES_SQL
        ).fetchall()
    }
    spans: dict[Source, tuple[int, int]] = {}  # from the first row to the last one promised
    ends: dict[Source, int] = {}
    for source in sorted({*found, *promised}):
        rows, first, last, last_trade, last_reject = found.get(source, (0, None, None, None, None))
        end = promised.get(source)
        report.sources.append(SourceReport(source, rows, first, last, end))
        for name, highest, limit in (
            ("trades", last_trade, end),
            ("rejects", last_reject, rejects_promised.get(source)),
        ):
            if highest is not None:
                _check_end(source, name, highest, limit, moves[source], report)
        if end is None:
            # Nothing is promised of trades (any more): what is there, and was until forgotten.
            end = moves[source][-1].before if moves[source] else None
            end = last + 1 if end is None else end
        if last_reject is not None and last_reject >= end:
            detail = f"{source}: rejects reach {last_reject}, trades only {end - 1}: in flight"
            report.add("ahead", detail, "warning")
        spans[source] = (first, min(end, last + 1)) if rows else (0, 0)
        ends[source] = end
    twice = {source: Findings(str(source)) for source in spans}
    holes = {source: _Holes(source, moves[source], explain) for source in spans}
    for source, (first, end) in spans.items():
        if min(first, end) > 0:
            holes[source].add(0, min(first, end) - 1, before=True)
    cover(
        spans,
        [file for files in pinned for file in files.offsets],
        pinned[0].filesystem,
        settings.query_memory_max // 4,
        lambda source, first, last: holes[source].add(first, last),
        twice,
        progress,
    )
    for source, (_, upto) in spans.items():
        if upto < ends[source]:
            holes[source].add(upto, ends[source] - 1)
        report.findings += twice[source].take() + holes[source].findings.take()


def _check_end(
    source: Source, name: str, highest: int, limit: int | None, moves: list[Move], report: Report
) -> None:
    if limit is None:
        detail = f"{source}: rows in {name}, but no offset in its summary"
        if moves and moves[-1].after is None:
            report.add("no_offset", f"{detail}: {moves[-1]}", "ok")
        else:
            report.add("no_offset", detail)
    elif highest >= limit:
        detail = f"{source}: {name} has offset {highest}, its next offset is {limit}"
        back = [
            m
            for m in moves
            if m.after is not None and m.after <= limit and highest < (m.before or 0)
        ]
        if back:
            report.add("beyond_offset", f"{detail}: {back[-1]}", "warning")
        else:
            report.add("beyond_offset", detail)


class _Holes:
    """Holes of one source, and why they are none where somebody can tell."""

    def __init__(self, source: Source, moves: list[Move], explain: Explain | None) -> None:
        self.findings = Findings(str(source))
        self._source, self._moves, self._explain = source, moves, explain

    def add(self, first: int, last: int, *, before: bool = False) -> None:
        count = last - first + 1
        where = f"{self._source}: [{first}..{last}] ({count} offsets)"
        if (reason := self._reason(first, last)) is not None:
            self.findings.add("hole", f"{where}: {reason}", "ok")
            return
        place = "before the first row" if before else "missing"
        asked = "the broker was not asked" if self._explain is None else "unexplained"
        self.findings.add("hole", f"{where}: {place}, {asked}")

    def _reason(self, first: int, last: int) -> str | None:
        for move in self._moves:
            if move.after is not None and (move.before or 0) <= first and last < move.after:
                return str(move)
        return None if self._explain is None else self._explain(self._source, first, last)
