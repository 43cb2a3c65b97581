"""A small lake for SQL: trades and quotes of two symbols, and two rows of one gap."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyiceberg.catalog import Catalog

from k2.lake.catalog import ensure_tables, open_catalog
from k2.lake.commit import Sink
from k2.schemas import GAPS, QUOTES, TRADES
from k2.settings import Settings

START = 1394409600_000_000_000  # 2014-03-10, UTC
SECOND = 1_000_000_000
TRADES_EACH = 600  # a trade a second, a quote every ten, of each symbol

_ALIKE = {
    "exchange": "ASX",
    "session": dt.date(2014, 3, 10),
    "side": "BUY",
    "verdict": "ok",
    "kafka_partition": 0,
    "size": Decimal("2.5"),
    "bid_size": Decimal(100),
    "ask_size": Decimal(100),
}


def lake(folder: Path, **limits: Any) -> tuple[Catalog, Settings]:
    """A catalog with the tables, and settings with the limits."""
    settings = Settings(data=folder, **limits)
    catalog = open_catalog(settings)
    ensure_tables(catalog, settings)
    for kind, every in ((TRADES, 1), (QUOTES, 10)):
        rows = [
            row
            for number, symbol in enumerate(("BHP", "RIO"))
            for row in _rows(symbol, number * TRADES_EACH, every)
        ]
        _commit(catalog, settings, kind.name, pa.Table.from_pylist(rows, kind.table))
    _commit(catalog, settings, "gaps", pa.Table.from_pylist(_gaps(), GAPS))
    return catalog, settings


def _rows(symbol: str, offset: int, every: int) -> list[dict[str, Any]]:
    rows = []
    for n in range(0, TRADES_EACH, every):
        ns = START + n * SECOND
        price = Decimal(30) + Decimal(n) / 100
        rows.append(
            {
                **dict.fromkeys((*TRADES.table.names, *QUOTES.table.names), None),
                **_ALIKE,
                "symbol": symbol,
                "ts_event": ns,
                "ts_recv": ns,
                "event_time": ns // 1000,
                "ingest_time": ns // 1000,
                "sequence": n,
                "kafka_cluster": "c",
                "kafka_topic": "t",
                "kafka_offset": offset + n,
                "price": price,
                "bid_price": price - 1,
                "ask_price": price + 1,
            }
        )
    return rows


def _gaps() -> list[dict[str, Any]]:
    opened = {
        **dict.fromkeys(GAPS.names, 7),
        **{"gap_id": "g1", "exchange": "ASX", "symbol": "BHP", "kind": "gap", "status": "open"},
        **{"severity": "warn", "session": dt.date(2014, 3, 10), "seen_at": START // 1000},
        **{"filled_at": None, "operator": None, "reason": None, "ingest_time": START // 1000},
        **{"kafka_cluster": "c", "kafka_topic": "t", "kafka_partition": 0, "revision": 0},
        "remaining": [{"first": 5, "last": 7}],
    }
    filled = {**opened, "status": "filled", "revision": 1, "remaining": []}
    return [opened, filled]


def _commit(catalog: Catalog, settings: Settings, name: str, rows: pa.Table) -> None:
    sink = Sink(catalog, f"{settings.namespace}.{name}", settings)
    sink.commit(sink.write(rows), {}, {})
