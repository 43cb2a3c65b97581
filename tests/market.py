"""Tables with given trades and quotes, checked and committed as a worker does, and their engine."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from k2.agents.assemble import assemble

from k2.codec import Decoded
from k2.lake.catalog import ensure_tables, gaps_name, load_table, open_catalog, table_name
from k2.lake.commit import Sink
from k2.lake.offsets import Source, Through
from k2.query.engine import Engine
from k2.query.fresh import Fresh, Part
from k2.schemas import GAPS, KINDS, QUOTES, TRADES, Kind
from k2.sequence import Rules
from k2.settings import Settings

S = 1_000_000_000
NEVER = 2**62


class Market:
    """An empty lake; what is added is known to be all there was before `through`, ns."""

    def __init__(self, data: Path, through: int = NEVER, **settings: Any) -> None:
        self.settings = Settings(data=data, **settings)
        self.catalog = open_catalog(self.settings)
        ensure_tables(self.catalog, self.settings)
        self.engine = Engine(self.catalog, self.settings)
        self.through, self._rows = through, 0
        self._next: dict[Source, int] = {}
        self._gaps: list[pa.Table] = []
        self._states: dict[Source, dict[Any, Any]] = {}

    def add(self, kind: Kind, rows: pa.Table, partition: int = 0) -> None:
        """Commit rows of `kind.columns` of one exchange, in the order in which they come."""
        self._commit(kind, *self._checked(kind, rows, partition))

    def hold(self, kind: Kind, rows: pa.Table, partition: int = 0) -> Fresh:
        """The same rows in a worker's hand, behind those that are committed."""
        source, first, records = self._checked(kind, rows, partition)
        part = Part(source, first, self._next[source], self.through, records)
        return Fresh([part], GAPS.empty_table())

    def commit(self, kind: Kind, held: Fresh) -> None:
        """What was in hand, as the worker does in the end."""
        for part in held.parts:
            self._commit(kind, part.source, part.first, part.rows)

    def _commit(self, kind: Kind, source: Source, first: int | None, records: pa.Table) -> None:
        sink = Sink(self.catalog, table_name(self.settings, kind), self.settings)
        through = {source: Through(self._next[source], self.through)}
        files = sink.write(records)
        sink.commit(files, {source: first}, {source: self._next[source]}, through=through)

    def _checked(
        self, kind: Kind, rows: pa.Table, partition: int
    ) -> tuple[Source, int | None, pa.Table]:
        source = Source("c", kind.topic(rows["exchange"][0].as_py()), partition)
        first, states = self._next.get(source), self._states.setdefault(source, {})
        start = first or 0
        offsets = pa.array(np.arange(start, start + rows.num_rows))
        batch = rows.append_column(kind.batch.field("kafka_offset"), offsets)
        decoded = Decoded(batch, [], (), 0)
        rules = Rules.of(self.settings)
        checked = assemble(kind, source, decoded, states, rules, 0, 0, 0, 0)
        assert checked.rejects.num_rows == 0
        self._gaps.append(checked.gaps)
        states.update(checked.states)
        self._next[source] = start + rows.num_rows
        return source, first, checked.records

    def trades(self, *rows: tuple[Any, ...], exchange: str = "SIM", partition: int = 0) -> None:
        """(symbol, ts_event, price, size, conditions), the last two if they matter."""
        self.add(TRADES, trades(*rows, exchange=exchange, first=self._count(rows)), partition)

    def quotes(self, *rows: tuple[Any, ...], exchange: str = "SIM", partition: int = 0) -> None:
        """(symbol, ts_event, bid_price, ask_price); None: that side is empty."""
        self.add(QUOTES, quotes(*rows, exchange=exchange, first=self._count(rows)), partition)

    def tell_gaps(self) -> None:
        """Commit what was found: else the ledger is empty, and every answer complete."""
        sink = Sink(self.catalog, gaps_name(self.settings), self.settings)
        sink.commit(sink.write(pa.concat_tables(self._gaps)), {}, {})
        self._gaps.clear()

    def expire(self) -> None:
        """Of each table only the newest snapshot is left."""
        for kind in KINDS:
            table = load_table(self.catalog, table_name(self.settings, kind))
            newest = table.metadata.current_snapshot_id
            gone = [s.snapshot_id for s in table.metadata.snapshots if s.snapshot_id != newest]
            if gone:
                table.maintenance.expire_snapshots().by_ids(gone).commit()

    def _count(self, rows: tuple[Any, ...]) -> int:
        """The first of as many sequences that no row has yet."""
        self._rows += len(rows)
        return self._rows - len(rows) + 1

    def bars(self, symbols: Any, interval_ns: int, **more: Any) -> list[dict[str, Any]]:
        """Bars as dicts; `more` as `Engine.bars` has it."""
        exchange, start, end = (more.pop(name, None) for name in ("exchange", "start", "end"))
        rows = self.engine.bars(exchange, symbols, start, end, interval_ns, **more)
        return rows.read_all().to_pylist()


def trades(*rows: tuple[Any, ...], exchange: str = "SIM", first: int = 1) -> pa.Table:
    listed = []
    for symbol, ts, price, *rest in rows:
        size, conditions = [*rest, *(1, None)[len(rest) :]]
        named = {"price": Decimal(str(price)), "size": Decimal(str(size)), "side": "NONE"}
        listed.append({"symbol": symbol, "ts_event": ts, "conditions": conditions, **named})
    return _table(TRADES, listed, exchange, first)


def quotes(*rows: tuple[Any, ...], exchange: str = "SIM", first: int = 1) -> pa.Table:
    listed = []
    for symbol, ts, *prices in rows:
        row = {"symbol": symbol, "ts_event": ts}
        for side, price in zip(("bid", "ask"), prices, strict=True):
            if price is not None:
                row |= {f"{side}_price": Decimal(str(price)), f"{side}_size": Decimal(100)}
        listed.append(row)
    return _table(QUOTES, listed, exchange, first)


def _table(kind: Kind, rows: list[dict[str, Any]], exchange: str, first: int) -> pa.Table:
    rows = [
        {"exchange": exchange, "sequence": number, "ts_recv": row["ts_event"], **row}
        for number, row in enumerate(rows, first)
    ]
    return pa.Table.from_pylist(rows, kind.columns)
