"""Tables of trades and quotes, made directly: what replays read."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa

from k2.lake.catalog import ensure_tables, gaps_name, open_catalog, table_name
from k2.lake.commit import Sink
from k2.lake.offsets import Source
from k2.schemas import GAPS, KINDS, QUOTES, TRADES, Kind
from k2.settings import Settings

START = 1394409600_000_000_000
DAY = dt.date(2014, 3, 10)
MOMENT = dt.datetime(2014, 3, 10, tzinfo=dt.UTC)

#: ts_event behind START (ns), symbol.
Row = tuple[int, str]


def source(kind: Kind, partition: int, cluster: str = "c") -> Source:
    return Source(cluster, kind.topic("SIM"), partition)


def records(kind: Kind, of: Source, first: int, rows: Sequence[Row]) -> pa.Table:
    """Rows of a source from an offset on."""
    own = {
        TRADES: {"price": Decimal("0.10"), "size": Decimal(100), "side": "BUY", "trade_id": "t"},
        QUOTES: {"bid_price": Decimal("0.10"), "bid_size": Decimal(7)},
    }[kind]
    listed = [
        {
            "exchange": "SIM",
            "symbol": symbol,
            "session": DAY,
            "event_time": MOMENT + dt.timedelta(microseconds=after // 1000),
            "sequence": offset,
            "ts_event": START + after,
            "ts_recv": START + after + 5,
            **own,
            "verdict": "ok",
            "kafka_cluster": of.cluster,
            "kafka_topic": of.topic,
            "kafka_partition": of.partition,
            "kafka_offset": offset,
            "ingest_time": MOMENT,
        }
        for offset, (after, symbol) in enumerate(rows, start=first)
    ]
    return pa.Table.from_pylist(listed, kind.table)


def finding(of: Source, gap_id: str, offset: int, **more: Any) -> dict[str, Any]:
    """A row of the gap ledger: a gap behind the record at START."""
    return {
        "gap_id": gap_id, "exchange": "SIM", "symbol": "A", "session": DAY, "kind": "gap",
        "status": "open", "severity": "warn", "missing_first": 3, "missing_last": 4, "count": 2,
        "remaining_count": 2, "from_offset": 0, "from_ts": START, "to_offset": 1,
        "to_ts": START + 1, "seen_at": MOMENT, "revision": 1, "ingest_time": MOMENT,
        "remaining": [{"first": 3, "last": 4}], "kafka_cluster": of.cluster,
        "kafka_topic": of.topic, "kafka_partition": of.partition, "kafka_offset": offset, **more,
    }  # fmt: skip


class Lake:
    """Tables in a folder, and what has been committed."""

    def __init__(self, folder: Path, **more: Any) -> None:
        self.settings = Settings(data=folder, **more)
        self.catalog = open_catalog(self.settings)
        ensure_tables(self.catalog, self.settings)
        self.sinks = {
            kind: Sink(self.catalog, table_name(self.settings, kind), self.settings)
            for kind in KINDS
        }
        self.gaps = Sink(self.catalog, gaps_name(self.settings), self.settings)
        self.following: dict[Source, int] = {}

    def commit(self, kind: Kind, rows: dict[Source, Sequence[Row]]) -> None:
        """One snapshot with rows of some sources, each behind what it has."""
        sink, tables, after = self.sinks[kind], [], {}
        for of, some in rows.items():
            first = self.following.get(of, 0)
            tables.append(records(kind, of, first, some))
            after[of] = first + len(some)
        files = [file for table in tables for file in sink.write(table)]
        sink.commit(files, {of: self.following.get(of) for of in rows}, after)
        self.following |= after

    def tell(self, *findings: dict[str, Any]) -> None:
        """One snapshot of the gap ledger."""
        self.gaps.commit(self.gaps.write(pa.Table.from_pylist(list(findings), GAPS)), {}, {})
