"""What the records' table says live of symbols is what their stream said."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from test_lake_audit import A, B, Lake, lake, trade

from k2.lake import lives
from k2.lake.lives import gather, gather_newest
from k2.lake.offsets import Source
from k2.live import BARS, LATEST, Piece, aggregate, merge
from k2.live.forms import BAR_NS
from k2.live.segments import BARS_AGE_MAX_NS
from k2.schemas import QUOTES, TRADES

__all__ = ["lake"]

DAY_NS = 86_400_000_000_000
FIRST = datetime(2026, 1, 2, tzinfo=UTC)


def row(offset: int, day: int, ts: int, source: Source = A, **more: Any) -> dict[str, Any]:
    """A trade of the day-th session, `ts` ns after its midnight."""
    at = FIRST + timedelta(days=day)
    return trade(
        offset,
        source,
        session=at.date(),
        event_time=at + timedelta(microseconds=ts // 1000),
        ts_event=int(at.timestamp()) * 10**9 + ts,
        ts_recv=int(at.timestamp()) * 10**9 + ts + 5,
        price=Decimal(offset % 7 + 1) / 8,
        size=Decimal(offset),
        **more,
    )


def said(rows: list[dict[str, Any]]) -> Piece:
    """What the stream of these rows says, in one batch."""
    table = pa.Table.from_pylist(rows, TRADES.table)
    sessions = table.column("session").cast(pa.int32()).to_numpy()
    counted = sessions == sessions
    return aggregate(TRADES, table.select(TRADES.batch.names), sessions, counted)


def same(found: pa.Table, expected: pa.Table, keys: list[str]) -> bool:
    order = [(key, "ascending") for key in keys]
    return bool(found.sort_by(order).equals(expected.sort_by(order)))


def test_symbols_are_as_their_stream_left_them(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several sessions and files; a symbol that rests for months; rows behind the end; others'."""
    monkeypatch.setattr(lives, "BATCH_ROWS", 3)
    rows = [row(0, -200, 5, symbol="OLD"), row(1, -200, BAR_NS, symbol="OLD")]
    rows += [row(o, o // 20, o % 20 * 3 * BAR_NS, symbol=f"S{o % 3}") for o in range(2, 60)]
    rows += [row(60, 2, 7, symbol="S1", trade_id="late")]
    for first in range(0, 61, 20):
        lake.add(rows[first : first + 20], {A: first + 20})
    lake.add([row(o, 3, o, B) for o in range(10)], {B: 10})
    lake.add([row(61, 5, 9, symbol="S1")], {A: 62})
    piece = gather_newest(lake.catalog, lake.settings, TRADES, {A: (0, 61)})
    whole = said(rows)
    assert same(piece.latest, whole.latest, ["exchange", "symbol"])
    newest = pc.max(whole.bars.column("start")).as_py()
    kept = whole.bars.filter(pc.greater(whole.bars.column("start"), newest - BARS_AGE_MAX_NS))
    # Of sessions that are nobody's newest nothing is read.
    sessions = set(whole.latest.column("session").to_pylist())
    kept = kept.filter(pc.is_in(kept.column("session"), pa.array(sorted(sessions), pa.int64())))
    assert kept.num_rows < whole.bars.num_rows
    assert same(piece.bars, kept, list(BARS.keys))


def test_a_partition_is_known_through_all_of_its_logs(lake: Lake) -> None:
    """A new log is sent again what the former one held: these are duplicates, and count there."""
    new = Source("c/anew", A.topic, A.partition)
    before, since = [row(o, 0, o) for o in range(5)], [row(o, 0, o + 2, new) for o in range(3, 6)]
    lake.add(before, {A: 5})
    lake.add(since, {new: 6})
    piece = gather_newest(lake.catalog, lake.settings, TRADES, {A: (0, 1 << 62), new: (0, 6)})
    parts = [said(before).latest, said(since).latest]
    assert piece.latest.equals(merge(LATEST[TRADES], parts))
    assert piece.latest.column("records").to_pylist() == [8]


@pytest.mark.parametrize("call", [gather, gather_newest])
def test_without_rows_nothing_is_known(lake: Lake, call: Any) -> None:
    """No snapshot, no file, no row between first and end."""
    for kind in (TRADES, QUOTES):
        none = call(lake.catalog, lake.settings, kind, {A: (0, 5), B: (0, 0)})
        assert none.latest.num_rows == 0
    lake.add([row(7, 0, 0)], {A: 8})
    for logs in ({A: (0, 7)}, {A: (8, 9)}, {B: (0, 9)}, {}):
        piece = call(lake.catalog, lake.settings, TRADES, logs)
        assert (piece.latest.num_rows, piece.bars.num_rows) == (0, 0)


def test_rows_of_any_session_from_an_offset_on(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies behind a live mark: exactly these offsets, several files and sessions."""
    monkeypatch.setattr(lives, "BATCH_ROWS", 3)
    rows = [row(o, o // 20, o % 20 * 3 * BAR_NS, symbol=f"S{o % 3}") for o in range(60)]
    for first in range(0, 60, 20):
        lake.add(rows[first : first + 20], {A: first + 20})
    lake.add([row(o, 3, o, B) for o in range(60)], {B: 60})
    piece = gather(lake.catalog, lake.settings, TRADES, {A: (17, 55)})
    whole = said(rows[17:55])
    assert same(piece.latest, whole.latest, ["exchange", "symbol"])
    newest = pc.max(whole.bars.column("start")).as_py()
    kept = whole.bars.filter(pc.greater(whole.bars.column("start"), newest - BARS_AGE_MAX_NS))
    assert same(piece.bars, kept, list(BARS.keys))
