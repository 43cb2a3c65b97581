"""The gap ledger's rows: each says what is known of one finding from one offset on.

The ledger is a log. A finding has one id for life; its newest row, the one with the highest
`revision`, tells all of it, so nothing has to be joined. Rows of status open, filled and forgotten
are the same however the stream was cut into batches. In between there is one row a batch for a gap
that was filled in part, and for a run of duplicates or of records out of session that grew: how
many of these there are depends on the batches, what the newest one says does not.

A row's `offset` is that of the record which caused it. A sink that holds everything below offset n
takes the rows from n on, and has each finding whole.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa

from k2.schemas import GAP_KINDS, GAPS
from k2.sequence.rules import LIMITS, Rules, severity
from k2.sequence.state import INT64_MAX, Gap, Interval, Run

__all__ = ["Change", "Ledger", "gap_rows", "order", "stop"]


@dataclass(frozen=True, slots=True)
class Change:
    """One row of the ledger.

    By kind, what `missing_first`..`missing_last` (inclusive), `count` and from, to are:
    gap - the sequences skipped, their number, the records before and after;
    duplicates - the sequences repeated, the records that repeat them, the first and last of these;
    out_of_session - lowest and highest sequence, number of records, the first and last of these;
    reset - the sequence begun with and the highest before, 1, the records that have these.
    """

    gap_id: str
    exchange: str
    symbol: str  # empty where a channel has one counter for all
    session: int  # days since the epoch
    kind: str  # of GAP_KINDS
    status: str  # of GAP_STATUSES
    severity: str  # of SEVERITIES
    missing_first: int
    missing_last: int
    count: int  # saturates at 2**63 - 1
    remaining: tuple[Interval, ...]  # of a gap: what has not come
    from_offset: int
    from_ts: int  # ns, ts_event
    to_offset: int
    to_ts: int  # ns, ts_event
    seen_at: int  # ns, ts_recv of the record that showed it
    filled_at: int | None  # ns, ts_recv of the newest record that filled some of it
    revision: int
    offset: int

    @property
    def remaining_count(self) -> int:
        return min(_size(self.remaining), INT64_MAX)


class Ledger:
    """Collects the changes of one counter.

    Args:
        stream: topic and partition, part of every id: trades and quotes count apart.
        key: (exchange, symbol).
    """

    def __init__(self, stream: str, key: tuple[str, str], rules: Rules) -> None:
        self._stream, (self._exchange, self._symbol) = stream, key
        self._limits = rules.limits.get(self._exchange, LIMITS)
        self.changes: list[Change] = []

    def gap(self, gap: Gap, status: str, offset: int) -> None:
        """Note what has become of a gap; here its `missing` may be empty."""
        size = gap.last - gap.first + 1
        # One more with each record that fills some of it, and as it is forgotten.
        revision = 1 + size - _size(gap.missing) + (status == "forgotten")
        self._add(
            "gap",
            status,
            Run(
                gap.session,
                gap.first,
                gap.last,
                min(size, INT64_MAX),
                gap.from_offset,
                gap.from_ts,
                gap.seen_at,
                gap.offset,
                gap.ts,
            ),
            shown_by=gap.offset,
            offset=offset,
            revision=min(revision, INT64_MAX),
            remaining=gap.missing,
            filled_at=gap.filled_at,
        )

    def run(self, kind: str, run: Run) -> None:
        """Note a run as it is after its last record."""
        self._add(
            kind,
            "open",
            run,
            shown_by=run.from_offset,
            offset=run.to_offset,
            revision=run.records,
        )

    def reset(self, reset: Run, at_start: bool) -> None:
        """Note a reset that no new session explains, unless it came before the session opened."""
        self._add(
            "reset",
            "accepted" if at_start else "open",
            reset,
            shown_by=reset.to_offset,
            offset=reset.to_offset,
            revision=1,
        )

    def _add(
        self,
        kind: str,
        status: str,
        facts: Run,
        shown_by: int,
        offset: int,
        revision: int,
        remaining: tuple[Interval, ...] = (),
        filled_at: int | None = None,
    ) -> None:
        alert = severity(kind, facts.records, self._limits)
        # The lowest sequence of a run out of session may fall as it grows, so it is not in the id.
        first = "" if kind == "out_of_session" else facts.first
        parts = (self._stream, kind, self._exchange, self._symbol, facts.session, first, shown_by)
        name = "\0".join(map(str, parts)).encode()
        self.changes.append(
            Change(
                blake2b(name, digest_size=16).hexdigest(),
                self._exchange,
                self._symbol,
                facts.session,
                kind,
                status,
                "info" if status == "accepted" else alert,
                facts.first,
                facts.last,
                facts.records,
                remaining,
                facts.from_offset,
                facts.from_ts,
                facts.to_offset,
                facts.to_ts,
                facts.seen_at,
                filled_at,
                revision,
                offset,
            )
        )


def order(change: Change) -> tuple[int, int, int]:
    """By offset; of what one record caused, by kind and sequence."""
    return change.offset, GAP_KINDS.index(change.kind), change.missing_first


def stop(
    changes: Iterable[Change], rules: Rules, since: int, passed: Container[str] = ()
) -> Change | None:
    """Return the first change behind which its partition must wait, if there is one.

    Only what opens is critical: a row of a finding that goes on is not of status `open`, and runs
    never are critical.

    Args:
        changes: of a batch, in offset order.
        since: whatever lies below has been let in already, and cannot wait.
        passed: ids that an operator has resumed.
    """
    if not rules.pausing:
        return None
    for change in changes:
        if (
            change.offset >= since
            and (change.status, change.severity) == ("open", "critical")
            and change.exchange in rules.pausing
            and change.gap_id not in passed
        ):
            return change
    return None


def gap_rows(
    changes: Sequence[Change], cluster: str, topic: str, partition: int, ingest_time: pa.Scalar
) -> pa.Table:
    """Return n rows of GAPS, in the order of the changes.

    Args:
        ingest_time: of the type of GAPS' column.
    """
    told: dict[str, list[Any]] = {
        name: [getattr(change, name) for change in changes]
        for name in (*Change.__slots__, "remaining_count")
    }
    n = len(changes)
    told["kafka_offset"] = told.pop("offset")
    told["symbol"] = [symbol or None for symbol in told["symbol"]]
    told["seen_at"] = [at // 1000 for at in told["seen_at"]]
    told["filled_at"] = [at if at is None else at // 1000 for at in told["filled_at"]]
    interval = GAPS.field("remaining").type.value_type
    flat = [part for parts in told["remaining"] for part in parts]
    ends = np.cumsum([0, *map(len, told["remaining"])]).astype(np.int32)
    bounds = [pa.array([part[i] for part in flat], pa.int64()) for i in (0, 1)]
    columns: dict[str, pa.Array] = {
        "remaining": pa.ListArray.from_arrays(
            pa.array(ends), pa.StructArray.from_arrays(bounds, fields=list(interval))
        ).cast(GAPS.field("remaining").type),
        "kafka_cluster": pa.repeat(pa.scalar(cluster), n),
        "kafka_topic": pa.repeat(pa.scalar(topic), n),
        "kafka_partition": pa.repeat(pa.scalar(partition, pa.int32()), n),
        "ingest_time": pa.repeat(ingest_time, n),
    }
    for field in GAPS:
        if field.name not in columns:
            # Only operators have a name and a reason.
            columns[field.name] = pa.array(told.get(field.name, [None] * n), field.type)
    return pa.table([columns[name] for name in GAPS.names], schema=GAPS)


def _size(intervals: tuple[Interval, ...]) -> int:
    return sum(last - first + 1 for first, last in intervals)
