"""What is known live of symbols, as the table of a kind tells it: where no checkpoint does.

Only the sessions that are some symbol's newest are read, in batches; the former ones only for
which sessions these are.
"""

from __future__ import annotations

from collections.abc import Mapping
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

__all__ = ["gather"]

#: Untyped: the annotations of these pydantic classes know their keywords only.
_iceberg: Any = pyiceberg.expressions

BATCH_ROWS = 128 * 1024


def gather(
    catalog: Catalog, settings: Settings, kind: Kind, offsets: Mapping[Source, int]
) -> Piece:
    """Return what the committed rows of a partition say of its symbols.

    Args:
        settings: `query_memory_max` for the reading.
        kind: what the partition holds.
        offsets: of each log that it had, the offset below which rows count.

    Raises:
        CatalogUnavailable: the table or a data file cannot be read.
    """
    collected = _Collected(kind)
    for source, end in offsets.items():
        sessions = _newest(catalog, settings, kind, source, end)
        also = _iceberg.In("session", sessions)
        with committed(catalog, settings, kind, source, 0, end, also) as select:
            if select is None or not sessions:
                continue
            days = ", ".join(f"DATE '{day}'" for day in sorted(sessions))
            columns = ", ".join(f'"{name}"' for name in (*kind.batch.names, "session"))
            rows = select(columns, f"AND session IN ({days})")
            for batch in rows.to_arrow_reader(BATCH_ROWS):
                arrays = [batch.column(field.name).cast(field.type) for field in kind.batch]
                days_of = batch.column("session").cast(pa.date32()).cast(pa.int32()).to_numpy()
                table = pa.table(arrays, schema=kind.batch)
                collected.add(aggregate(kind, table, days_of, np.ones(len(days_of), np.bool_)))
    return collected.piece()


def _newest(
    catalog: Catalog, settings: Settings, kind: Kind, source: Source, end: int
) -> set[date]:
    """The sessions that are the newest of a symbol."""
    with committed(catalog, settings, kind, source, 0, end) as select:
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
