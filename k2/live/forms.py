"""The columns in which live knowledge is kept, and how each of them is merged.

A row says what is known of one key from some of its records; a row of one record is no different
from one of a million. Amounts are whole numbers of 1e-8, sums of them are in `limbs`. A record's
place is (ts_event, sequence, kafka_offset), as it is for the bars of `k2.query.bars`.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from k2.schemas import QUOTES, TRADES, Kind

__all__ = [
    "AHEAD_MAX_NS", "BARS", "BAR_NS", "FIRST", "LATEST", "NOTIONAL", "TEXT_MAX", "VOLUME", "Form",
]  # fmt: skip

BAR_NS = 60_000_000_000
#: A record whose minute is further ahead of that in which the feed received it is in no bar.
AHEAD_MAX_NS = 1440 * BAR_NS
#: Characters of a last record's string, but for the keys: with all four of them a row is small.
TEXT_MAX = 1024

FIRST = ("first_ts", "first_sequence", "first_offset")
VOLUME = tuple(f"volume_{i}" for i in range(2))
NOTIONAL = tuple(f"notional_{i}" for i in range(4))  # of price times size: 1e-16


@dataclass(frozen=True, slots=True, eq=False)
class Form:
    """A table with one row a key; every column that is not named below is the last record's."""

    schema: pa.Schema
    keys: tuple[str, ...]
    last: tuple[str, ...]  # place of the last record
    opening: tuple[str, ...]  # of the first record: its place, and what else is kept of it
    sums: tuple[str, ...]
    newest: bool  # whether rows of a session before the key's newest are left out


_STATISTICS = ("open", "high", "low", *VOLUME, *NOTIONAL)


def _int64s(*names: str) -> list[pa.Field]:
    return [pa.field(name, pa.int64(), nullable=False) for name in names]


def _latest(kind: Kind, *statistics: str) -> Form:
    """One row a symbol: the last record, and sums over the session it is of."""
    own = ("session", "records", *FIRST, *statistics)
    return Form(
        schema=pa.schema([*kind.batch, *_int64s(*own)]),
        keys=("exchange", "symbol"),
        last=("ts_event", "sequence", "kafka_offset"),
        opening=(*FIRST, *(name for name in statistics if name == "open")),
        sums=("records", *(name for name in statistics if name in (*VOLUME, *NOTIONAL))),
        newest=True,
    )


#: By kind; `session` is in days since the epoch, `records` how many are of it.
LATEST = {TRADES: _latest(TRADES, *_STATISTICS), QUOTES: _latest(QUOTES)}

_LAST = ("last_ts", "last_sequence", "last_offset")

#: One row a symbol, session and minute of trades; `start` is ns since the epoch.
BARS = Form(
    schema=pa.schema(
        [
            TRADES.batch.field("exchange"),
            TRADES.batch.field("symbol"),
            *_int64s("session", "start", "records", *FIRST, *_LAST, *_STATISTICS, "close"),
        ]
    ),
    keys=("exchange", "symbol", "session", "start"),
    last=_LAST,
    opening=(*FIRST, "open"),
    sums=("records", *VOLUME, *NOTIONAL),
    newest=False,
)
