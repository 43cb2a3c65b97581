"""What a partition's owner says of a symbol does not depend on checkpoints, nor on restarts."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k2.live import LATEST, Live, Piece, aggregate, stored_whole
from k2.live import segments as module
from k2.live.forms import BAR_NS
from k2.live.packed import pack, through, unpack
from k2.live.segments import BARS_AGE_MAX_NS, Families, Name, residue
from k2.schemas import QUOTES, TRADES, Kind
from tests.unit.test_live import E8, batch, plain, read

SYMBOLS = [f"S{i}" for i in range(9)]
HOUR = 60 * BAR_NS
RECORDS = st.tuples(
    st.sampled_from(SYMBOLS),
    st.integers(1, 2),
    st.one_of(st.integers(0, 40 * HOUR), st.integers(20 * HOUR, 20 * HOUR + 3 * BAR_NS)),
    st.integers(1, 5),
    st.integers(1, 50 * E8),
    st.integers(0, 50 * E8),
    st.booleans(),
)


class Table:
    """The table of symbols of one partition, as it is kept in memory: by epoch and name."""

    def __init__(self) -> None:
        self.epoch, self.whole, self.watermark = 0, 0, 0
        self.epochs: dict[int, dict[Name, bytes]] = {0: {}}

    def begin(self, kind: Kind) -> Live:
        """A new owner goes on from the mark."""
        former, self.epoch = self.whole, self.epoch + 1
        self.epochs[self.epoch] = {}
        own = self.epoch

        def get(name: Name, before: bool) -> bytes | None:
            return self.epochs[former if before else own].get(name)

        return Live(kind, self.watermark, get, self.epochs[former])

    def checkpoint(self, live: Live, lag: bool) -> None:
        """All of it, or all but the removals, which come behind the mark."""
        live.take()
        writing = live.writing(live.next_offset)
        assert not writing.changed.keys() & set(writing.removed)
        live.written(writing)
        self.epochs[self.epoch] |= writing.changed
        for name in () if lag else writing.removed:
            del self.epochs[self.epoch][name]
        self.whole, self.watermark = self.epoch, live.next_offset
        assert len(writing.families) <= len(self.epochs[self.epoch])


@pytest.fixture(params=[False, True], ids=["as it is", "small segments"])
def _sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param:
        monkeypatch.setattr(module, "RECENT_ROWS_MAX", 3)
        monkeypatch.setattr(module, "SEGMENT_BYTES_MAX", {})
        monkeypatch.setattr(module, "OTHER_SEGMENT_BYTES_MAX", 5_000)


@pytest.mark.usefixtures("_sizes")
@pytest.mark.parametrize("kind", [TRADES, QUOTES], ids=lambda kind: kind.name)
@settings(deadline=None, max_examples=150)
@given(
    records=st.lists(RECORDS, max_size=60),
    steps=st.lists(
        st.tuples(st.integers(0, 60), st.sampled_from(["", "checkpoint", "lag", "restart"])),
        max_size=8,
    ),
)
def test_an_answer_is_that_of_a_plain_fold_whatever_was_written_or_lost_meanwhile(
    kind: Kind, records: list[Any], steps: list[tuple[int, str]]
) -> None:
    """Batches of any size; checkpoints; restarts, after which is read again what was not marked."""
    table = Table()
    live = table.begin(kind)
    cuts = sorted((at % (len(records) + 1), what) for at, what in steps)
    plan = [(0, ""), *cuts, (len(records), "")]
    for (a, _), (b, what) in pairwise(plan):
        live.add(aggregate(kind, *batch(kind, records[a:b], a)), b)
        if what in ("checkpoint", "lag"):
            table.checkpoint(live, what == "lag")
        elif what == "restart":
            live = table.begin(kind)
            assert live.next_offset == table.watermark
            assert stored_whole(table.epochs[table.whole], table.watermark, expected=False)
            again = batch(kind, records[table.watermark : b], table.watermark)
            live.add(aggregate(kind, *again), b)
    latest, bars = plain(kind, records)
    oldest = max((start for *_, start in bars), default=0) - BARS_AGE_MAX_NS
    for exchange, symbol in [*latest, ("X", "never seen")]:
        asked = live.ask(exchange, symbol, bars=True)
        assert asked.next_offset == len(records)
        told = read(kind, LATEST[kind], asked.latest())
        key = exchange, symbol
        assert told == {k: v for k, v in latest.items() if k == key}
        if told and kind is TRADES:
            session = told[key]["session"]
            of_session = asked.bars(session)
            starts = of_session.column("start").to_pylist()
            assert starts == sorted(starts)
            expected = {k: v for k, v in bars.items() if k[:3] == (*key, session) and k[3] > oldest}
            assert read(kind, module.BARS, of_session) == expected


def test_only_segments_with_touched_symbols_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen symbols in several segments: one trade writes one, and the recent bars."""
    monkeypatch.setattr(module, "SEGMENT_BYTES_MAX", {module.LATEST_SEGMENTS: 6_000})
    table = Table()
    live = table.begin(TRADES)
    records = [(f"S{i}", 1, i, 1, E8, E8, True) for i in range(200)]
    live.add(aggregate(TRADES, *batch(TRADES, records, 0)), 200)
    table.checkpoint(live, lag=False)
    assert len(table.epochs[1]) > 4
    live.add(aggregate(TRADES, *batch(TRADES, records[:1], 200)), 201)
    live.take()
    writing = live.writing(201)
    assert sorted(str(name[0]) for name in writing.changed) == ["bars", "live"]
    assert {through(value) for value in writing.changed.values()} == {201}


def test_the_first_checkpoint_of_an_epoch_copies_what_nothing_touched() -> None:
    """With the offset that they had."""
    table = Table()
    live = table.begin(TRADES)
    live.add(aggregate(TRADES, *batch(TRADES, [("S1", 1, 0, 1, E8, E8, True)], 0)), 1)
    table.checkpoint(live, lag=False)
    live = table.begin(TRADES)
    live.add(aggregate(TRADES, *batch(TRADES, [], 1)), 4)
    table.checkpoint(live, lag=False)
    assert table.epochs[2] == table.epochs[1]
    live.take()
    assert live.writing(4).changed == {}


def test_bars_of_a_day_before_the_newest_are_removed() -> None:
    """With their hour, once there is a newer one; those of the day itself stay."""
    table = Table()
    live = table.begin(TRADES)
    count = module.RECENT_ROWS_MAX + 2
    many = [(f"S{i}", 1, i % 2 * HOUR, 1, E8, E8, True) for i in range(count)]
    live.add(aggregate(TRADES, *batch(TRADES, many, 0)), count)
    table.checkpoint(live, lag=False)
    assert ("bars", 0) in Families(table.epochs[1])
    newer = [("S1", 1, BARS_AGE_MAX_NS + HOUR - BAR_NS, 1, E8, E8, True)]
    live.add(aggregate(TRADES, *batch(TRADES, newer, count)), count + 1)
    table.checkpoint(live, lag=False)
    assert ("bars", 0) not in Families(table.epochs[1])
    starts = live.ask("X", "S1", bars=True).bars(1).column("start").to_pylist()
    assert starts == [HOUR, BARS_AGE_MAX_NS + HOUR - BAR_NS]


def test_a_checkpoint_cut_short_is_seen() -> None:
    """A segment counts records behind the mark: they would count twice."""
    row = aggregate(TRADES, *batch(TRADES, [("S1", 1, 0, 1, E8, E8, True)], 7)).latest
    name = ("live", module.FORM, 1, 0)
    assert stored_whole({name: pack(row, 8)}, 8, expected=True)
    assert not stored_whole({name: pack(row, 9)}, 8, expected=True)
    others: Mapping[Name, bytes] = {("sequences", 16, 0): pack(row, 9)}
    assert stored_whole(others, 8, expected=False)
    assert not stored_whole(others, 8, expected=True), "of an older release"


def test_pieces_are_condensed_unless_a_checkpoint_has_taken_them() -> None:
    live = Live(TRADES, 0, lambda name, before: None)
    records = [("S1", 1, i, 1, E8, E8, True) for i in range(20)]
    for i, record in enumerate(records[:10]):
        live.add(aggregate(TRADES, *batch(TRADES, [record], i)), i + 1)
    crowd = live.crowded()
    merged = live.merged(crowd)
    live.condense(crowd, merged)
    assert live.crowded() == []
    assert live.ask("X", "S1", bars=False).latest().column("records").to_pylist() == [10]
    live.take()
    live.add(aggregate(TRADES, *batch(TRADES, [records[10]], 10)), 11)
    live.condense(crowd, merged)
    assert live.ask("X", "S1", bars=False).latest().column("records").to_pylist() == [11]


def test_what_is_rebuilt_is_written_by_the_first_checkpoint() -> None:
    """It stands in the place of all segments."""
    piece: Piece = aggregate(TRADES, *batch(TRADES, [("S1", 1, 0, 1, E8, E8, True)], 0))
    live = Live(TRADES, 5, lambda name, before: None, None, piece)
    assert live.offset == live.next_offset == 5
    live.add(aggregate(TRADES, *batch(TRADES, [], 3)), 4)
    assert live.next_offset == 5, "what the table holds counts, whatever is read again"
    live.take()
    writing = live.writing(4)
    assert sorted(str(name[0]) for name in writing.changed) == ["bars", "live"]
    assert {through(value) for value in writing.changed.values()} == {5}


def test_a_segment_that_is_gone_is_an_error_and_not_an_empty_answer() -> None:
    row = aggregate(TRADES, *batch(TRADES, [("S1", 1, 0, 1, E8, E8, True)], 0)).latest
    live = Live(TRADES, 1, lambda name, before: None, {("live", module.FORM, 1, 0): pack(row, 1)})
    with pytest.raises(LookupError, match="written, and not there"):
        live.ask("X", "S1", bars=False)


def test_what_is_no_segment_is_refused() -> None:
    with pytest.raises(ValueError, match="no segment of live rows"):
        unpack(LATEST[TRADES], b"12345678 and more")
    other = pack(pa.table({"a": [1]}), 3)
    with pytest.raises(ValueError, match="other columns"):
        unpack(LATEST[TRADES], other)


def test_segments_of_another_form_or_kind_are_as_good_as_none() -> None:
    names: list[Name] = [("live", module.FORM + 1, 1, 0), ("sequences", 16, 3), ("x",)]
    assert len(Families(names)) == 0
    both: list[Name] = [("live", module.FORM, 1, 0), ("live", module.FORM, 2, 1)]
    for order in (both, both[::-1]):
        assert Families(order).of(("live",)) == (2, frozenset({1}))


def test_the_residue_of_a_symbol_never_changes() -> None:
    """It is stored in the names of segments."""
    assert [residue("ASX", "BHP", 1 << n) for n in (0, 4, 16)] == [0, 7, 37559]
