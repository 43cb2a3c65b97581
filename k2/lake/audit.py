"""`k2 verify`: is every record of every partition in the tables, exactly once?

It trusts nothing that the ingest says about itself but one number a source, the next offset in the
summary, and compares that with the rows in the data files. Every offset below it must be in trades
or rejects, once, unless the broker can explain why not (control records, compaction, retention).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import duckdb
import pyarrow.dataset as ds
from pyiceberg.catalog import Catalog
from pyiceberg.io.pyarrow import schema_to_pyarrow
from pyiceberg.table import Table

from k2.errors import CatalogUnavailable
from k2.lake.catalog import load_table, rejects_name, trades_name
from k2.lake.offsets import OFFSETS_PROPERTY, Source, decode
from k2.settings import Settings

__all__ = ["Explain", "Finding", "Progress", "Report", "SourceReport", "audit"]

#: (source, first, last) of a hole, inclusive -> why the broker has no such records, or None.
Explain = Callable[[Source, int, int], str | None]

#: Called with (what is being done, step, steps).
Progress = Callable[[str, int, int], None]

#: Findings of one kind and source that are listed one by one; the rest is counted.
LISTED_MAX = 20

_NAMES = ("trades", "rejects")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked into.

    kind: missing_file | file_twice | offset_twice | hole | beyond_offset | no_offset | ahead |
    sequence_twice | row_count | more.
    """

    kind: str
    detail: str
    severity: Literal["ok", "warning", "error"]


@dataclass(frozen=True, slots=True)
class SourceReport:
    """What is there of one Kafka partition; `first`, `last` are offsets, inclusive."""

    source: Source
    rows: int
    first: int | None
    last: int | None
    next_offset: int | None


@dataclass(slots=True)
class Report:
    """The outcome; `rows` and `files` count trades and rejects, `snapshot_id` is of trades."""

    snapshot_id: int | None
    rows: int = 0
    files: int = 0
    sources: list[SourceReport] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return all(finding.severity != "error" for finding in self.findings)


def audit(
    catalog: Catalog,
    settings: Settings,
    explain: Explain | None = None,
    progress: Progress | None = None,
) -> Report:
    """Read both tables' newest snapshots and check them; works beside a running ingest.

    Args:
        catalog: where the tables are.
        settings: the namespace, and `query_memory_max` for DuckDB, which spills to `data`.
        explain: asks the broker about a hole; without it every hole is an error.
        progress: told before each step.

    Returns:
        Every finding, those of severity ok (explained holes) included.

    Raises:
        CatalogUnavailable: the tables cannot be loaded, or a data file not read.
    """
    steps = ("files", "offsets", "sequences")

    def tell(step: int) -> None:
        if progress is not None:
            progress(steps[step], step + 1, len(steps))

    # Trades first: rejects loaded later can only be further on, never behind by our own doing.
    tables = [load_table(catalog, name(settings)) for name in (trades_name, rejects_name)]
    head = tables[0].metadata.current_snapshot()
    report = Report(head.snapshot_id if head else None)
    connection = duckdb.connect()
    try:
        connection.execute(f"SET memory_limit = '{settings.query_memory_max // 2**20}MiB'")
        connection.execute("SET temp_directory = ?", [str(settings.data / "audit.tmp")])
        connection.execute("SET preserve_insertion_order = false")
        connection.execute("SET TimeZone = 'UTC'")
        tell(0)
        for name, table in zip(_NAMES, tables, strict=True):
            _open_files(connection, name, table, report)
        tell(1)
        _check_offsets(connection, tables, explain, report)
        tell(2)
        _check_sequences(connection, report)
    except duckdb.Error as exc:
        raise CatalogUnavailable(f"audit: {type(exc).__name__}: {exc}") from exc
    finally:
        connection.close()
    return report


def _open_files(
    connection: duckdb.DuckDBPyConnection, name: str, table: Table, report: Report
) -> None:
    """Make the view `name` over the data files of the newest snapshot, each file once."""
    listed: Counter[str] = Counter()
    rows: dict[str, int] = {}
    for task in table.scan().plan_files():
        listed[task.file.file_path] += 1
        rows[task.file.file_path] = task.file.record_count
    present = []
    for path, times in listed.items():
        if times > 1:
            detail = f"{name}: {path}: listed {times} times in the snapshot"
            report.findings.append(Finding("file_twice", detail, "error"))
        if table.io.new_input(path).exists():
            present.append(path)
        else:
            detail = f"{name}: {path}: in the snapshot, but gone; {rows[path]} rows lost"
            report.findings.append(Finding("missing_file", detail, "error"))
    report.files += len(listed)
    if not present:
        empty = schema_to_pyarrow(table.schema(), include_field_ids=False).empty_table()
        connection.register(name, empty)
        return
    if all(path.startswith(("file:", "/")) for path in present):
        paths = [path.removeprefix("file://") for path in present]
        connection.from_parquet(paths).create_view(name)
    else:
        # DuckDB itself reads no object store without a download: PyArrow's file system does.
        filesystem = table.io.fs_by_scheme(*_scheme(present[0]))  # type: ignore[attr-defined]
        paths = [path.split("://", 1)[1] for path in present]
        connection.register(name, ds.dataset(paths, format="parquet", filesystem=filesystem))
    ((found,),) = connection.execute(f"SELECT count(*) FROM {name}").fetchall()
    report.rows += found
    if found != (promised := sum(rows[path] for path in present)):
        detail = f"{name}: {found} rows in the files, {promised} by the manifests"
        report.findings.append(Finding("row_count", detail, "error"))


def _scheme(path: str) -> tuple[str, str]:
    scheme, _, rest = path.partition("://")
    return scheme, rest.partition("/")[0]


_OFFSETS_SQL = """
CREATE TEMP VIEW seen AS
    SELECT kafka_cluster AS c, kafka_topic AS t, kafka_partition AS p, kafka_offset AS o, true AS ok
    FROM trades
    UNION ALL
    SELECT kafka_cluster, kafka_topic, kafka_partition, kafka_offset, false FROM rejects
"""

#: The places where the next row of a source is not the next offset: twice (0) or a hole (> 1).
_STEPS_SQL = """
SELECT o, next FROM (
    SELECT o, lead(o) OVER (ORDER BY o) AS next FROM seen WHERE c = ? AND t = ? AND p = ? AND o < ?
) WHERE next <> o + 1 ORDER BY o
"""


def _check_offsets(
    connection: duckdb.DuckDBPyConnection,
    tables: list[Table],
    explain: Explain | None,
    report: Report,
) -> None:
    promised, rejects_promised = (_promised(table) for table in tables)
    connection.execute(_OFFSETS_SQL)
    found = {
        Source(c, t, p): (count, first, last, last_trade, last_reject)
        for c, t, p, count, first, last, last_trade, last_reject in connection.execute(
            "SELECT c, t, p, count(*), min(o), max(o), max(o) FILTER (ok), max(o) FILTER (NOT ok)"
            " FROM seen GROUP BY ALL"
        ).fetchall()
    }
    for source in sorted({*found, *promised}):
        rows, first, last, last_trade, last_reject = found.get(source, (0, None, None, None, None))
        end = promised.get(source)
        report.sources.append(SourceReport(source, rows, first, last, end))
        for name, highest, limit in (
            ("trades", last_trade, end),
            ("rejects", last_reject, rejects_promised.get(source)),
        ):
            if highest is None:
                continue
            if limit is None:
                detail = f"{source}: rows in {name}, but no offset in its summary"
                report.findings.append(Finding("no_offset", detail, "error"))
            elif highest >= limit:
                detail = f"{source}: {name} has offset {highest}, its next offset is {limit}"
                report.findings.append(Finding("beyond_offset", detail, "error"))
        if end is None:
            # Nothing is promised of trades yet: only what is there can be checked.
            end = last + 1
        if last_reject is not None and last_reject >= end:
            detail = f"{source}: rejects reach {last_reject}, trades only {end - 1}: in flight"
            report.findings.append(Finding("ahead", detail, "warning"))
        _check_steps(connection, source, end, explain, report)


def _check_steps(
    connection: duckdb.DuckDBPyConnection,
    source: Source,
    end: int,
    explain: Explain | None,
    report: Report,
) -> None:
    """Check offsets 0..end-1 of one source; rejects ahead of trades (>= end) are left out."""
    bounds = connection.execute(
        "SELECT min(o), max(o) FROM seen WHERE c = ? AND t = ? AND p = ? AND o < ?", [*source, end]
    ).fetchall()
    ((first, last),) = bounds
    twice: Counter[int] = Counter()
    holes: list[tuple[int, int]] = []
    if first is None:
        holes.append((0, end - 1))
    else:
        holes.append((0, first - 1))
        steps = connection.execute(_STEPS_SQL, [*source, end])
        while batch := steps.fetchmany(10_000):
            for offset, following in batch:
                if following == offset:
                    twice[offset] += 1
                else:
                    holes.append((offset + 1, following - 1))
        holes.append((last + 1, end - 1))
    found = [
        Finding("offset_twice", f"{source}: offset {offset}: {more + 1} rows", "error")
        for offset, more in sorted(twice.items())
    ]
    found += [
        _hole(source, low, high, explain, before=first is None or low < first)
        for low, high in holes
        if low <= high
    ]
    _list(found, str(source), report)


def _hole(
    source: Source, first: int, last: int, explain: Explain | None, *, before: bool
) -> Finding:
    count = last - first + 1
    where = f"{source}: [{first}..{last}] ({count} offsets)"
    reason = explain(source, first, last) if explain is not None else None
    if reason is not None:
        return Finding("hole", f"{where}: {reason}", "ok")
    place = "before the first row" if before else "missing"
    asked = "unexplained" if explain is not None else "the broker was not asked"
    return Finding("hole", f"{where}: {place}, {asked}", "error")


#: A sequence may occur again after a reset within the session, so only the symbols and sessions in
#: which one does are counted by epoch: the resets of the same source up to the row. By CASE, since
#: DuckDB takes quadratic time for a FILTER in such a window: 5 s, not 0.02, for 200,000 rows.
_SEQUENCES_SQL = """
WITH candidates AS (
    SELECT DISTINCT exchange, symbol, session FROM (
        SELECT exchange, symbol, session FROM trades
        GROUP BY exchange, symbol, session, sequence HAVING count(*) > 1
    )
), epochs AS (
    SELECT exchange, symbol, session, sequence, kafka_topic, kafka_partition, kafka_offset,
        count(CASE WHEN verdict = 'reset' THEN 1 END) OVER (
            PARTITION BY exchange, symbol, session, kafka_cluster, kafka_topic, kafka_partition
            ORDER BY kafka_offset
        ) AS epoch
    FROM trades SEMI JOIN candidates USING (exchange, symbol, session)
)
SELECT exchange, symbol, session, sequence, count(*),
    list(kafka_topic || '[' || kafka_partition || ']:' || kafka_offset ORDER BY kafka_offset)[:5]
FROM epochs
GROUP BY exchange, symbol, session, sequence, epoch HAVING count(*) > 1
ORDER BY exchange, symbol, session, sequence
"""


def _check_sequences(connection: duckdb.DuckDBPyConnection, report: Report) -> None:
    found = [
        Finding(
            "sequence_twice",
            f"{exchange}.{symbol} {session}: sequence {sequence}: {count} rows, at "
            + ", ".join(places),
            "error",
        )
        for exchange, symbol, session, sequence, count, places in connection.execute(
            _SEQUENCES_SQL
        ).fetchall()
    ]
    _list(found, "trades", report)


def _promised(table: Table) -> dict[Source, int]:
    head = table.metadata.current_snapshot()
    if head is None or head.summary is None:
        return {}
    return decode(head.summary[OFFSETS_PROPERTY])


def _list(found: list[Finding], where: str, report: Report) -> None:
    """Add findings; of those with the same kind and severity only the first `LISTED_MAX`."""
    counts: Counter[tuple[str, Any]] = Counter()
    for finding in found:
        counts[finding.kind, finding.severity] += 1
        if counts[finding.kind, finding.severity] <= LISTED_MAX:
            report.findings.append(finding)
    for (kind, severity), count in counts.items():
        if count > LISTED_MAX:
            detail = f"{where}: {kind}: {count - LISTED_MAX} more"
            report.findings.append(Finding("more", detail, severity))
