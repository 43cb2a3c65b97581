"""What is known live of symbols, as the table of a kind tells it: where no checkpoint does.

Mostly a few seconds' worth of rows, behind what is stored. Where nothing is, the sessions that are
some symbol's newest are read; the former ones only for which sessions these are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyiceberg.expressions
from pyiceberg.catalog import Catalog

from k2.lake.offsets import Source
from k2.lake.states import committed
from k2.live import BARS, BARS_AGE_MAX_NS, LATEST, Piece, aggregate, merge
from k2.schemas import Kind
from k2.settings import Settings

__all__ = ["Logs", "gather", "gather_newest"]

#: Untyped: the annotations of these pydantic classes know their keywords only.
_iceberg: Any = pyiceberg.expressions

BATCH_ROWS = 128 * 1024


#: Of each log the rows that count: from an offset on, and below another one.
Logs = Mapping[Source, tuple[int, int]]


def gather(catalog: Catalog, settings: Settings, kind: Kind, logs: Logs) -> Piece:
    """Return what committed rows of a partition say of its symbols.

    Args:
        settings: `query_memory_max` for the reading.
        kind: what the partition holds.
        logs: that it had.

    Raises:
        CatalogUnavailable: the table or a data file cannot be read.
    """
    collected = _Collected(kind)
    for source, (first, end) in logs.items():
        with committed(catalog, settings, kind, source, first, end) as select:
            if select is not None:
                collected.read(select, "")
    return collected.piece()


def gather_newest(catalog: Catalog, settings: Settings, kind: Kind, logs: Logs) -> Piece:
    """The same of the sessions only that are the newest of a symbol.

    Raises:
        CatalogUnavailable: the table or a data file cannot be read.
    """
    collected = _Collected(kind)
    for source, (first, end) in logs.items():
        sessions = _newest(catalog, settings, kind, source, first, end)
        also = _iceberg.In("session", sessions)
        with committed(catalog, settings, kind, source, first, end, also) as select:
            if select is not None and sessions:
                days = ", ".join(f"DATE '{day}'" for day in sorted(sessions))
                collected.read(select, f"AND session IN ({days})")
    return collected.piece()


def _newest(
    catalog: Catalog, settings: Settings, kind: Kind, source: Source, first: int, end: int
) -> set[date]:
    """The sessions that are the newest of a symbol."""
    with committed(catalog, settings, kind, source, first, end) as select:
        if select is None:
            return set()
        newest = select("max(session)", "GROUP BY exchange, symbol").fetchall()
    return {day for (day,) in newest}


class _Collected:
    """Pieces, merged whenever the new ones have as many rows as what is merged already."""

    def __init__(self, kind: Kind) -> None:
        self._kind = kind
        self._whole = Piece(LATEST[kind].schema.empty_table(), BARS.schema.empty_table())
        self._new: list[Piece] = []
        self._rows = 0

    def read(self, select: Callable[[str, str], Any], also: str) -> None:
        kind = self._kind
        columns = ", ".join(f'"{name}"' for name in (*kind.batch.names, "session"))
        for batch in select(columns, also).to_arrow_reader(BATCH_ROWS):
            arrays = [batch.column(field.name).cast(field.type) for field in kind.batch]
            days = batch.column("session").cast(pa.date32()).cast(pa.int32()).to_numpy()
            table = pa.table(arrays, schema=kind.batch)
            self.add(aggregate(kind, table, days, np.ones(len(days), np.bool_)))

    def add(self, piece: Piece) -> None:
        self._new.append(piece)
        self._rows += piece.latest.num_rows + piece.bars.num_rows
        if self._rows > self._whole.latest.num_rows + self._whole.bars.num_rows:
            self.piece()

    def piece(self) -> Piece:
        pieces, self._new, self._rows = [self._whole, *self._new], [], 0
        latest = merge(LATEST[self._kind], [piece.latest for piece in pieces])
        bars = merge(BARS, [piece.bars for piece in pieces])
        if bars.num_rows:
            oldest = pc.max(bars.column("start")).as_py() - BARS_AGE_MAX_NS
            bars = bars.filter(pc.greater(bars.column("start"), oldest))
        self._whole = Piece(latest, bars)
        return self._whole
