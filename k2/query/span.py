"""What a query is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["Span"]


@dataclass(frozen=True, slots=True)
class Span:
    """[start_ns, end_ns), by ts_event, of an exchange's symbols; None: any."""

    exchange: str | None = None
    symbols: Sequence[str] | None = None
    start_ns: int | None = None
    end_ns: int | None = None

    def of(self, rows: pa.Table) -> pa.Table:
        """Those of `rows` that it names, in their order."""
        tests = []
        if self.exchange is not None:
            tests.append(pc.equal(rows["exchange"], self.exchange))
        if self.symbols is not None:
            tests.append(pc.is_in(rows["symbol"], pa.array(self.symbols, pa.string())))
        if self.start_ns is not None:
            tests.append(pc.greater_equal(rows["ts_event"], self.start_ns))
        if self.end_ns is not None:
            tests.append(pc.less(rows["ts_event"], self.end_ns))
        if not tests:
            return rows
        # Not by `filter`, which costs time for each column of each of a buffer's many pieces.
        return rows.take(pc.indices_nonzero(reduce(pc.and_, tests)))
