"""`k2 verify`: is every record of every partition in the tables, exactly once?

It trusts nothing that the ingest says about itself but one number a source, the next offset in the
summary, and compares that with the rows in the data files. Every offset below it must be in the
table of its kind or in rejects, once, unless the broker can explain why not (control records,
compaction, retention) or an operator moved the offset.

It works beside a running ingest: it reads one snapshot of each table, whose files K2 never deletes.
Memory is bounded: offsets are checked in windows (`coverage`), sequences session by session by
DuckDB within `query_memory_max`, and findings are listed in part and counted (`findings`).
"""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import duckdb
import pyarrow as pa
from pyiceberg.catalog import Catalog

from k2.errors import CatalogUnavailable
from k2.lake.catalog import gaps_name, load_table, rejects_name, replays_name, table_name
from k2.lake.coverage import cover
from k2.lake.findings import LISTED_MAX, Finding, Findings, Report, SourceReport
from k2.lake.offsets import MOVES_PROPERTY, OFFSETS_PROPERTY, Move, Source, decode, decode_moves
from k2.lake.orphans import orphans
from k2.lake.pinned import Pinned
from k2.lake.sequences import check_sequences
from k2.schemas import KINDS
from k2.settings import Settings

__all__ = ["LISTED_MAX", "Explain", "Finding", "Progress", "Report", "SourceReport", "audit"]

#: (source, first, last) of a hole, inclusive -> why the broker has no such records, or None.
Explain = Callable[[Source, int, int], str | None]

#: Called with (what is being done, how much of it is done, of how much).
Progress = Callable[[str, int, int], None]


def audit(
    catalog: Catalog,
    settings: Settings,
    explain: Explain | None = None,
    progress: Progress | None = None,
) -> Report:
    """Read all tables' newest snapshots and check them; works beside a running ingest.

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

    # Rejects last: loaded later they can only be further on, never behind by our own doing.
    names = {kind.name: table_name(settings, kind) for kind in KINDS}
    names["rejects"] = rejects_name(settings)
    tables = {name: load_table(catalog, full) for name, full in names.items()}
    others = [
        name
        for name in (gaps_name(settings), replays_name(settings))
        if catalog.table_exists(name)  # one is made by an upgrade, the other by the first replay
    ]
    head = tables[KINDS[0].name].metadata.current_snapshot()
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
            Pinned(name, table, report, tell(f"files of {name}")) for name, table in tables.items()
        ]
        for files in pinned:
            files.open(connection, report)
        if gaps_name(settings) in others:
            # Its rows are no records: they are not counted with them.
            ledger, table = Report(None), load_table(catalog, gaps_name(settings))
            Pinned("gaps", table, ledger, tell("files of gaps")).open(connection, ledger)
            report.findings += ledger.findings
        _check_offsets(connection, pinned, explain, report, settings, tell("offsets"))
        for files in pinned[:-1]:
            check_sequences(connection, files, report, tell(f"sequences of {files.name}"))
    except (duckdb.Error, pa.ArrowException, OSError) as exc:
        raise CatalogUnavailable(f"audit: {type(exc).__name__}: {exc}") from exc
    finally:
        connection.close()
        shutil.rmtree(spill, ignore_errors=True)
    owned = [*names.values(), *others]
    for number, name in enumerate(owned):
        tell("orphans")(number, len(owned))
        report.findings += orphans(catalog, name, settings)
    return report


_SOURCES_SQL = """
SELECT kafka_cluster, kafka_topic, kafka_partition, count(*), min(kafka_offset), max(kafka_offset)
FROM {table} GROUP BY ALL
"""


@dataclass(slots=True)
class _Found:
    """The rows of one source: how many, the offsets that they span, and the last of each table."""

    rows: int = 0
    first: int = 1 << 63
    last: int = -1
    last_of: dict[str, int] = field(default_factory=dict)


def _found(connection: duckdb.DuckDBPyConnection, tables: Iterable[str]) -> dict[Source, _Found]:
    found: defaultdict[Source, _Found] = defaultdict(_Found)
    for table in tables:
        sql = _SOURCES_SQL.format(table=table)
        for *source, rows, first, last in connection.execute(sql).fetchall():
            own = found[Source(*source)]
            own.rows += rows
            own.first, own.last = min(own.first, first), max(own.last, last)
            own.last_of[table] = last
    return found


def _check_offsets(
    connection: duckdb.DuckDBPyConnection,
    pinned: list[Pinned],
    explain: Explain | None,
    report: Report,
    settings: Settings,
    progress: Callable[[int, int], None],
) -> None:
    promised = {files.name: decode(files.summary(OFFSETS_PROPERTY)) for files in pinned}
    moves: dict[Source, list[Move]] = defaultdict(list)
    ends: dict[Source, int | None] = {}  # promised by the table of the source's kind
    for files in pinned[:-1]:
        ends |= promised[files.name]
        for move in decode_moves(files.summary(MOVES_PROPERTY)):
            moves[move.source].append(move)
    found = _found(connection, promised)
    spans: dict[Source, tuple[int, int]] = {}  # from the first row to the last one promised
    upto: dict[Source, int] = {}
    for source in sorted({*found, *ends}):
        own, end = found.get(source, _Found()), ends.get(source)
        first, last = (own.first, own.last) if own.rows else (None, None)
        report.sources.append(SourceReport(source, own.rows, first, last, end))
        for name, highest in own.last_of.items():
            limit = promised[name].get(source)
            _check_end(source, name, highest, limit, moves[source], report)
        if end is None:
            # Nothing is promised of it (any more): what is there, and was until forgotten.
            end = moves[source][-1].before if moves[source] else None
            end = own.last + 1 if end is None else end
        last_reject = own.last_of.get("rejects", -1)
        if last_reject >= end:
            detail = f"{source}: rejects reach {last_reject}, records only {end - 1}: in flight"
            report.add("ahead", detail, "warning")
        spans[source] = (own.first, min(end, own.last + 1)) if own.rows else (0, 0)
        upto[source] = end
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
    for source, (_, seen) in spans.items():
        if seen < upto[source]:
            holes[source].add(seen, upto[source] - 1)
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
