"""Reads of the gap ledger: each finding as it stands, or all rows of one."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import duckdb
import pyarrow as pa

from k2.errors import BadQuery
from k2.query.index import Pin
from k2.query.rows import Rows, Stop
from k2.query.scan import Scan
from k2.schemas import GAP_KINDS, GAP_STATUSES, GAPS
from k2.sequence import SEVERITIES

__all__ = ["LISTED", "Selection", "rows"]

_INTERVALS = pa.list_(pa.struct([("first", pa.int64()), ("last", pa.int64())]))

#: A row: the ledger's own, times in ns.
LISTED = pa.schema(
    [
        field.with_type(
            pa.int64()
            if pa.types.is_timestamp(field.type)
            else _INTERVALS
            if pa.types.is_list(field.type)
            else field.type
        )
        for field in GAPS
    ]
)

_COLUMNS = ", ".join(
    f"epoch_us({field.name}) * 1000 AS {field.name}"
    if pa.types.is_timestamp(field.type)
    else f'"{field.name}"'
    for field in GAPS
)
_NEWEST = "PARTITION BY gap_id ORDER BY revision DESC, ingest_time DESC"


@dataclass(frozen=True, slots=True)
class Selection:
    """Which findings; empty or None is any. Times are those of `seen_at`, ns, [start_ns, end_ns).

    Raises:
        BadQuery: a kind, status or severity that there is not.
    """

    exchange: str | None = None
    symbols: Sequence[str] = ()
    session: dt.date | None = None
    start_ns: int | None = None
    end_ns: int | None = None
    kinds: Sequence[str] = ()
    statuses: Sequence[str] = ()
    severities: Sequence[str] = ()
    history_of: str | None = None  # a gap_id: all of its rows, not the newest alone

    def __post_init__(self) -> None:
        for name, values, known in (
            ("kind", self.kinds, GAP_KINDS),
            ("status", self.statuses, GAP_STATUSES),
            ("severity", self.severities, SEVERITIES),
        ):
            if unknown := [value for value in values if value not in known]:
                raise BadQuery(name, f"{', '.join(unknown)}: not one of {', '.join(known)}")


class _GapScan(Scan):
    """Only what is alike in all rows of a finding may be selected here, before the newest is."""

    def __init__(
        self, database: duckdb.DuckDBPyConnection, pin: Pin, which: Selection, stop: Stop
    ) -> None:
        self._begin(pin, stop)
        self._equal("exchange", which.exchange)
        self._among("symbol", which.symbols or None)
        self._equal("session", which.session)
        self._among("kind", which.kinds or None)
        self._within("seen_at", which.start_ns, which.end_ns)
        self._equal("gap_id", which.history_of)
        self._open(database, GAPS)


def rows(
    database: duckdb.DuckDBPyConnection, pin: Pin, which: Selection, limit: int, stop: Stop
) -> Rows:
    """The newest row of each of the newest `limit` findings, oldest first by seen_at; LISTED.

    Of the one finding whose history is asked for all rows, oldest first.
    """
    scan = _GapScan(database, pin, which, stop)
    if scan.cursor is None:
        return Rows(LISTED, iter(()), scan.snapshot_id)
    conditions = [f"row_number() OVER ({_NEWEST}) = 1"] if which.history_of is None else []
    more: dict[str, object] = {}
    for column, values in (("status", which.statuses), ("severity", which.severities)):
        if values:
            conditions.append(f"list_contains($wanted_{column}, {column})")
            more[f"wanted_{column}"] = list(dict.fromkeys(values))
    chosen = f"SELECT {_COLUMNS} FROM ({scan.sql})"
    if conditions:
        chosen += f" QUALIFY {' AND '.join(conditions)}"
    truncated = scan.rows_max > limit and scan.exceeds(limit, chosen, more)
    order = ("seen_at", "exchange", "symbol", "gap_id", "revision", "ingest_time")
    newest = ", ".join(f"{name} DESC" for name in order)
    batches = scan.run(
        f"SELECT * FROM (SELECT * FROM ({chosen}) ORDER BY {newest} LIMIT $most)"
        f" ORDER BY {', '.join(order)}",
        {**more, "most": limit},
    )
    return Rows(LISTED, _cast(batches), scan.snapshot_id, truncated, scan.cursor)


def _cast(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        arrays = [batch.column(field.name).cast(field.type) for field in LISTED]
        yield pa.RecordBatch.from_arrays(arrays, schema=LISTED)
