"""An operator's word on a finding of the gap ledger: a further row of it.

It has the revision of the newest row, which it follows in time: what a worker tells of the finding
from there on counts, be it told at the same moment. Any row with an operator, `accepted` or not,
lets a partition go on that waits behind the finding.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import reduce
from typing import Any

import pyarrow as pa
import pyiceberg.expressions
from pyiceberg.catalog import Catalog
from pyiceberg.table import Table

from k2.errors import BadQuery, CatalogUnavailable
from k2.lake.catalog import gaps_name, load_table
from k2.lake.commit import Sink
from k2.lake.moves import Offsets
from k2.lake.replays import operator
from k2.schemas import GAPS
from k2.settings import Settings

__all__ = ["accept", "paused", "resume", "resumed"]

#: Untyped: the annotations of these pydantic classes know their keywords only.
_iceberg: Any = pyiceberg.expressions

Row = dict[str, Any]


def accept(catalog: Catalog, settings: Settings, gap_ids: Sequence[str], reason: str) -> list[Row]:
    """Let findings be accepted: all of them, or none if one cannot be.

    Returns:
        The rows that were added, of GAPS.

    Raises:
        BadQuery: no such finding, one that is filled, or no reason.
        CatalogUnavailable: the table cannot be read.
        CommitFailed: the catalog refused.
    """
    newest = _known(catalog, settings, gap_ids)
    if filled := [gap_id for gap_id, row in newest.items() if row["status"] == "filled"]:
        raise BadQuery("id", f"{', '.join(filled)}: filled, so there is nothing to accept")
    said = {"status": "accepted", "severity": "info"}
    return _say(catalog, settings, newest.values(), reason, said)


def resume(catalog: Catalog, settings: Settings, gap_ids: Sequence[str], reason: str) -> list[Row]:
    """Let the partitions go on that wait behind findings: all of them, or none if one does not.

    Status and severity stay: nothing is filled by it.

    Returns and raises: as `accept`; BadQuery also where nothing waits.
    """
    newest = _known(catalog, settings, gap_ids)
    waiting = {row["gap_id"] for row in paused(catalog, settings)}
    if others := [gap_id for gap_id in newest if gap_id not in waiting]:
        raise BadQuery("id", f"{', '.join(others)}: nothing waits for it, or no longer")
    return _say(catalog, settings, newest.values(), reason, {})


def paused(catalog: Catalog, settings: Settings) -> list[Row]:
    """Return the findings behind which partitions wait: the ledger has them, ingest has stopped.

    That is what the lake says, whether a worker runs or not: the record that showed the finding is
    not in its table yet, and no operator has said a word.

    Returns:
        Rows of GAPS, by topic and partition.

    Raises:
        CatalogUnavailable: a table cannot be read.
    """
    offsets = Offsets(catalog, settings)
    # Of all others the ledger knows nothing that their table does not hold yet.
    ahead = {s: offsets.records.get(s, 0) for s in offsets.gaps}
    ahead = {s: next_offset for s, next_offset in ahead.items() if offsets.gaps[s] > next_offset}
    if not ahead:
        return []
    places = [
        _all(
            _iceberg.EqualTo("kafka_cluster", source.cluster),
            _iceberg.EqualTo("kafka_topic", source.topic),
            _iceberg.EqualTo("kafka_partition", source.partition),
            _iceberg.GreaterThanOrEqual("kafka_offset", next_offset),
        )
        for source, next_offset in ahead.items()
    ]
    rows = _rows(load_table(catalog, gaps_name(settings)), reduce(_iceberg.Or, places))
    heard = {row["gap_id"] for row in rows if row["operator"] is not None}
    waiting = [
        row
        for row in rows
        if (row["status"], row["severity"]) == ("open", "critical") and row["gap_id"] not in heard
    ]
    return sorted(waiting, key=lambda row: (row["kafka_topic"], row["kafka_partition"]))


def resumed(catalog: Catalog, settings: Settings, seen: Mapping[str, int]) -> set[str]:
    """Return those findings to which an operator has said a word; quick, to be asked every second.

    Args:
        seen: by id when each was seen, ns: all rows of a finding are in the partition of that day.

    Raises:
        CatalogUnavailable: the table cannot be read.
    """
    if not seen:
        return set()
    days = [ns // 1000 for ns in seen.values()]
    asked = _all(
        _iceberg.In("gap_id", set(seen)),
        _iceberg.NotNull("operator"),
        _iceberg.GreaterThanOrEqual("seen_at", min(days)),
        _iceberg.LessThanOrEqual("seen_at", max(days)),
    )
    table = load_table(catalog, gaps_name(settings))
    return {row["gap_id"] for row in _rows(table, asked, ("gap_id",))}


def _known(catalog: Catalog, settings: Settings, gap_ids: Sequence[str]) -> dict[str, Row]:
    """The newest row of each.

    Raises:
        BadQuery: there is none.
    """
    table = load_table(catalog, gaps_name(settings))
    rows = _rows(table, _iceberg.In("gap_id", set(gap_ids)))
    rows.sort(key=lambda row: (row["revision"], row["ingest_time"]))
    newest = {row["gap_id"]: row for row in rows}
    if unknown := [gap_id for gap_id in gap_ids if gap_id not in newest]:
        raise BadQuery("id", f"{', '.join(unknown)}: no such finding in the gap ledger")
    return newest


def _say(
    catalog: Catalog, settings: Settings, newest: Iterable[Row], reason: str, said: Row
) -> list[Row]:
    if not reason.strip():
        raise BadQuery("reason", "empty: say why")
    now, who = datetime.now(UTC), operator()
    rows = [
        {
            **row,
            **said,
            "operator": who,
            "reason": reason,
            # A worker's clock may be ahead of ours.
            "ingest_time": max(now, row["ingest_time"] + timedelta(microseconds=1)),
        }
        for row in newest
    ]
    sink = Sink(catalog, gaps_name(settings), settings)
    sink.commit(sink.write(pa.Table.from_pylist(rows, GAPS)), {}, {})
    return rows


def _all(*conditions: Any) -> Any:
    return reduce(_iceberg.And, conditions)


def _rows(table: Table, wanted: Any, columns: tuple[str, ...] = ("*",)) -> list[Row]:
    try:
        found = table.scan(row_filter=wanted, selected_fields=columns).to_arrow()
    except (pa.ArrowException, OSError) as exc:
        raise CatalogUnavailable(f"{'.'.join(table.name())}: {exc}") from exc
    rows: list[Row] = found.to_pylist()
    return rows
