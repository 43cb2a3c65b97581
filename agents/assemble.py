"""From a decoded batch to the rows of its table, rejects and gap ledger; pure, runs in a thread."""

from __future__ import annotations

import time
from collections.abc import Container, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from k2 import metrics
from k2.codec import Decoded, Reject
from k2.lake.offsets import Source
from k2.live import Piece, aggregate
from k2.schemas import GAPS, REJECTS, VERDICTS, Kind
from k2.sequence import Change, Rules, SymbolState, check, gap_rows, stop

__all__ = ["Checked", "assemble"]

DUPLICATE = VERDICTS.index("duplicate")
_NO_GAPS = GAPS.empty_table()


@dataclass(frozen=True, slots=True)
class Checked:
    """A batch ready for the buffer, the sequence states behind it, and what it says of symbols."""

    kind: Kind
    records: pa.Table  # schema `kind.table`
    rejects: pa.Table  # schema REJECTS
    gaps: pa.Table  # schema GAPS
    changes: list[Change]  # those that `gaps` are the rows of
    states: dict[tuple[str, str], SymbolState]
    reasons: Mapping[str, int]
    live: Piece
    stop: Change | None = None  # behind it the partition waits: all but `gaps` ends before it

    def count(self, exchanges: Container[str]) -> None:
        """Add the batch to the metrics.

        Args:
            exchanges: whose names are labels; whatever else a record says is "other".
        """
        metrics.records_total.labels(table=self.kind.name).inc(self.records.num_rows)
        metrics.records_total.labels(table="rejects").inc(self.rejects.num_rows)
        metrics.records_total.labels(table="gaps").inc(self.gaps.num_rows)
        for reason, rows in self.reasons.items():
            metrics.rejects_total.labels(reason=reason).inc(rows)
        for change in self.changes:
            if (change.kind, change.status) == ("gap", "open"):
                exchange = change.exchange if change.exchange in exchanges else "other"
                metrics.gaps_total.labels(exchange, change.severity).inc()
                metrics.missing_total.labels(exchange, change.severity).inc(change.count)


def assemble(
    kind: Kind,
    source: Source,
    decoded: Decoded,
    states: Mapping[tuple[str, str], SymbolState],
    rules: Rules,
    records_from: int,
    rejects_from: int,
    gaps_from: int,
    live_from: int,
    passed: Container[str] = (),
) -> Checked:
    """Check a batch's sequences and make the rows that each table does not have yet.

    Args:
        records_from, rejects_from, gaps_from: the tables hold everything below these offsets.
        live_from: everything below counts already in what is known live.
        passed: findings behind which the partition does not wait: an operator has resumed them.
    """
    stream = f"{source.topic}[{source.partition}]"
    checked = check(states, decoded.rows, rules, stream)
    found = checked.changes
    if (cause := stop(found, rules, records_from, passed)) is not None:
        # Any split gives the same: the ledger is told through the record that shows the finding,
        # all else ends before it, and goes on with it when the finding is resumed.
        found = check(states, _below(decoded, cause.offset + 1).rows, rules, stream).changes
        decoded = _below(decoded, cause.offset)
        checked = check(states, decoded.rows, rules, stream)
    rows = decoded.rows
    offsets = rows.column("kafka_offset").to_numpy()
    duplicate = checked.verdicts == DUPLICATE
    now = pa.scalar(time.time_ns() // 1000, REJECTS.field("ingest_time").type)

    wanted = (offsets >= records_from) & ~duplicate
    repeated = duplicate & (offsets >= rejects_from)
    rejects = [r for r in decoded.rejects if r.offset >= rejects_from]
    reject_rows = [_undecodable(source, rejects, now)] if rejects else []
    if repeated.any():
        reject_rows.append(_duplicates(source, decoded, checked.sessions, repeated, now))
    rejected = pa.concat_tables(reject_rows) if reject_rows else REJECTS.empty_table()
    counts = rejected.column("reason").value_counts().to_pylist()
    changes = [change for change in found if change.offset >= gaps_from]
    return Checked(
        kind=kind,
        records=_records(kind, source, rows, checked.verdicts, checked.sessions, wanted, now),
        rejects=rejected,
        gaps=gap_rows(changes, *source, now) if changes else _NO_GAPS,
        changes=changes,
        states=checked.states,
        reasons={count["values"]: count["counts"] for count in counts},
        live=aggregate(kind, rows, checked.sessions, (offsets >= live_from) & ~duplicate),
        stop=cause,
    )


def _below(decoded: Decoded, offset: int) -> Decoded:
    n = int(np.searchsorted(decoded.rows.column("kafka_offset").to_numpy(), offset))
    rejects = [reject for reject in decoded.rejects if reject.offset < offset]
    return replace(decoded, rows=decoded.rows.slice(0, n), rejects=rejects)


def _constant(value: object, n: int, kind: pa.DataType) -> pa.Array:
    return pa.repeat(pa.scalar(value, kind), n)


def _source_columns(source: Source, n: int) -> dict[str, pa.Array]:
    return {
        "kafka_cluster": _constant(source.cluster, n, pa.string()),
        "kafka_topic": _constant(source.topic, n, pa.string()),
        "kafka_partition": _constant(source.partition, n, pa.int32()),
    }


def _days(sessions: np.ndarray) -> pa.Array:
    return pa.array(sessions.astype(np.int32, copy=False)).cast(pa.date32())


def _records(
    kind: Kind,
    source: Source,
    rows: pa.Table,
    verdicts: np.ndarray,
    sessions: np.ndarray,
    wanted: np.ndarray,
    now: pa.Scalar,
) -> pa.Table:
    if not wanted.all():
        rows = rows.filter(pa.array(wanted))
        verdicts, sessions = verdicts[wanted], sessions[wanted]
    n = rows.num_rows
    micros = rows.column("ts_event").to_numpy() // 1000
    columns = {
        **{name: rows.column(name) for name in rows.column_names},
        **_source_columns(source, n),
        "session": _days(sessions),
        "event_time": pa.array(micros).cast(kind.table.field("event_time").type),
        "verdict": pa.array(VERDICTS).take(pa.array(verdicts)),
        "ingest_time": pa.repeat(now, n),
    }
    return pa.table([columns[name] for name in kind.table.names], schema=kind.table)


def _undecodable(source: Source, rejects: list[Reject], now: pa.Scalar) -> pa.Table:
    n = len(rejects)
    columns = {
        **_source_columns(source, n),
        "kafka_offset": [r.offset for r in rejects],
        "kafka_time": _kafka_times(pa.array([r.timestamp_ms for r in rejects], pa.int64())),
        "reason": [r.reason for r in rejects],
        "detail": [r.detail for r in rejects],
        "key": [r.key for r in rejects],
        "value": [r.value for r in rejects],
        "ingest_time": pa.repeat(now, n),
    }
    return _reject_table(columns, n)


def _duplicates(
    source: Source,
    decoded: Decoded,
    sessions: np.ndarray,
    repeated: np.ndarray,
    now: pa.Scalar,
) -> pa.Table:
    rows, sessions = decoded.rows.filter(pa.array(repeated)), sessions[repeated]
    n = rows.num_rows
    raw = decoded.raw(np.flatnonzero(repeated))
    sequence = rows.column("sequence")
    columns = {
        **_source_columns(source, n),
        "kafka_offset": rows.column("kafka_offset"),
        "kafka_time": _kafka_times(raw.column("timestamp_ms")),
        "reason": _constant("duplicate", n, pa.string()),
        "detail": pc.binary_join_element_wise("sequence", sequence.cast(pa.string()), "again", " "),
        "exchange": rows.column("exchange"),
        "symbol": rows.column("symbol"),
        "session": _days(sessions),
        "sequence": sequence,
        "key": raw.column("key"),
        "value": raw.column("value"),
        "ingest_time": pa.repeat(now, n),
    }
    return _reject_table(columns, n)


def _kafka_times(milliseconds: pa.Array) -> pa.Array:
    return milliseconds.cast(pa.timestamp("ms", "UTC")).cast(REJECTS.field("kafka_time").type)


def _reject_table(columns: dict[str, object], n: int) -> pa.Table:
    return pa.table([columns.get(f.name, pa.nulls(n, f.type)) for f in REJECTS], schema=REJECTS)
