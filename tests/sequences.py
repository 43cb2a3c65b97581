"""Rows for the sequence check, and what it makes of them."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pyarrow as pa

from k2.feeds.faults import Entry
from k2.schemas import TRADES, VERDICTS
from k2.sequence import Chain, Change, Memory, Rules, SymbolState, check

S = 1_000_000_000
DAY = 86_400 * S
A = ("SIM", "A")
LOW, HIGH = -(2**63), 2**63 - 1
RULES = Rules({}, reset_window_ms=60_000, gaps_open_max=1000)
Row = tuple[str, str, int, int, int]  # exchange, symbol, sequence, ts_event, kafka_offset


def below(first: int) -> tuple[int, int]:
    """What a chain has not seen before its first row."""
    return (LOW, first - 1)


def unseen(chain: Chain) -> list[tuple[int, int]]:
    """The intervals that a chain has not seen below its last row."""
    return [interval for gap in chain.gaps for interval in gap.missing]


def table(rows: list[Row]) -> pa.Table:
    exchange, symbol, sequence, ts, offset = zip(*rows, strict=True) if rows else ((),) * 5
    n = len(rows)
    one = Decimal("1.00000000")
    columns = {
        "exchange": exchange,
        "symbol": symbol,
        "sequence": sequence,
        "ts_event": ts,
        "ts_recv": ts,
        "price": [one] * n,
        "size": [one] * n,
        "side": ["NONE"] * n,
        "trade_id": [None] * n,
        "conditions": [None] * n,
        "venue": [None] * n,
        "kafka_offset": offset,
    }
    return pa.table({k: list(v) for k, v in columns.items()}, schema=TRADES.batch)


def at(*places: tuple[int, int] | int, offset: int = 0) -> list[Row]:
    """Rows of symbol A: each place is a sequence, or (sequence, ts_event)."""
    pairs = [(p, 0) if isinstance(p, int) else p for p in places]
    return [(*A, seq, ts, offset + i) for i, (seq, ts) in enumerate(pairs)]


def run(
    *batches: list[Row], rules: Rules = RULES, stored: bool = False
) -> tuple[list[str], list[Change], dict[Any, Memory]]:
    """Verdicts (replayed rows as "replayed"), the ledger's rows, and memories after the batches."""
    states: dict[tuple[str, str], SymbolState] = {}
    words: list[str] = []
    changes: list[Change] = []
    for rows in batches:
        if stored:  # a restart: all that is left are bytes
            states = {key: SymbolState.from_bytes(bytes(s)) for key, s in states.items()}
        got = check(states, table(rows), rules)
        states.update(got.states)
        changes += got.changes
        words += [
            "replayed" if again else VERDICTS[v]
            for v, again in zip(got.verdicts.tolist(), got.replayed.tolist(), strict=True)
        ]
    return words, changes, {key: state.unpack() for key, state in states.items()}


def opened(changes: list[Change]) -> list[Change]:
    return [c for c in changes if (c.kind, c.status) == ("gap", "open")]


def told(changes: list[Change], *names: str) -> list[tuple[Any, ...]]:
    return [tuple(getattr(c, name) for name in names) for c in changes]


def newest(changes: list[Change]) -> dict[str, Change]:
    """Each finding's newest row; revisions rise with the rows."""
    rows: dict[str, Change] = {}
    for change in changes:
        former = rows.get(change.gap_id)
        assert former is None or former.revision < change.revision
        rows[change.gap_id] = change
    return rows


def injected(entries: tuple[Entry, ...]) -> list[tuple[str, str, str, int, int]]:
    """What the ledger must say of each fault: a late record is a gap of one that was filled."""
    kinds = {
        "gap": ("gap", "open"),
        "late": ("gap", "filled"),
        "duplicate": ("duplicates", "open"),
        "reset": ("reset", "open"),
    }
    return sorted((*kinds[e.kind], e.symbol, e.first, e.last) for e in entries)
