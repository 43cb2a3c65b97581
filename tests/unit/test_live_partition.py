"""What a partition's owner says of a symbol does not depend on checkpoints, nor on restarts."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k2.live import LATEST, Live, Piece, aggregate, partition, stored
from k2.live import segments as module
from k2.live.forms import BAR_NS
from k2.live.packed import pack, through, unpack
from k2.live.segments import BARS_AGE_MAX_NS, Families, Name, residue
from k2.live.stored import MARK, Stored, mark
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


class Killed(Exception):
    """In the place of a write."""


class Table:
    """The table of symbols of one partition, by epoch and name, and that of its records."""

    def __init__(self, kind: Kind, records: list[Any]) -> None:
        self.kind, self.records = kind, list(records)
        self.committed, self.epoch = 0, 0
        self.epochs: dict[int, dict[Name, bytes]] = {}
        self.marks: dict[int, int] = {}  # of the sequence states, by epoch
        self.sure = 0  # through where the last live write that was not cut short has them
        self.kill_after: int | None = None  # so many writes

    def begin(self) -> tuple[Live, int]:
        """A new owner goes on from the newest epoch with a mark; and where it reads from."""
        former, own = max(self.marks, default=0), self.epoch + 1
        self.epoch, self.epochs[own], self.kill_after = own, {}, None

        def get(name: Name, before: bool) -> bytes | None:
            return self.epochs[former if before else own].get(name)

        if not former:
            whole = self.said(0, self.committed)
            return Live(self.kind, self.committed, get, None, whole), 0
        known = stored(self.epochs[former])
        assert known is not None, "whatever was cut short, all that a mark names is there"
        assert self.sure <= known.end <= self.committed, "no more is read than came since"
        since = self.said(known.end, self.committed)
        return Live(self.kind, self.committed, get, known, since), self.marks[former]

    def said(self, first: int, end: int) -> Piece:
        return aggregate(self.kind, *batch(self.kind, self.records[first:end], first))

    def checkpoint(self, live: Live, *, last: bool = False, kill_after: int | None = None) -> bool:
        """In the writer's order; False: killed on the way. Removals may not come at all."""
        self.kill_after = kill_after
        live.take(last=last)
        # A commit of rows comes before; what is read again does not move it back.
        end = live.next_offset
        self.committed = max(self.committed, end)
        own, removed = self.epochs[self.epoch], list[Name]()
        known = stored(own)
        try:
            if live.taken:
                writing = live.writing(end)
                removed = writing.removed
                named = set(known.families.all_names()) if known is not None else set()
                assert not named & writing.changed.keys(), "written over"
                assert named.issuperset(removed)
                live.written(writing)
                for name, value in writing.changed.items():
                    self._write(own, name, value)
            self._write(self.marks, self.epoch, end)
            known = stored(own)
            assert known is not None
            self.sure = known.end
            for name in removed:
                self._write(own, name, None)
        except Killed:
            return False
        assert len(own) == live.count
        return True

    def _write(self, into: dict[Any, Any], key: Any, value: Any) -> None:
        if self.kill_after == 0:
            raise Killed
        if self.kill_after is not None:
            self.kill_after -= 1
        if value is None:
            del into[key]
        else:
            into[key] = value


@pytest.fixture(params=[False, True], ids=["as it is", "small segments"])
def _sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param:
        monkeypatch.setattr(module, "RECENT_ROWS_MAX", 3)
        monkeypatch.setattr(module, "SEGMENT_BYTES_MAX", {})
        monkeypatch.setattr(module, "OTHER_SEGMENT_BYTES_MAX", 3_000)
        monkeypatch.setattr(partition, "PIECES_ROWS_MAX", 10)


STEPS = st.tuples(
    st.integers(0, 60),
    st.sampled_from(["", "condense", "checkpoint", "checkpoint", "last", "restart"]),
    st.one_of(st.none(), st.integers(0, 40)),
)


@pytest.mark.usefixtures("_sizes")
@pytest.mark.parametrize("kind", [TRADES, QUOTES], ids=lambda kind: kind.name)
@settings(deadline=None, max_examples=150)
@given(records=st.lists(RECORDS, max_size=60), steps=st.lists(STEPS, max_size=10))
def test_an_answer_is_that_of_a_plain_fold_whatever_was_written_or_lost_meanwhile(
    kind: Kind, records: list[Any], steps: list[tuple[int, str, int | None]]
) -> None:
    """Batches of any size; checkpoints with a live write and without, whole or killed between any
    two writes; restarts, after which is read again what the states' mark does not have."""
    table = Table(kind, records)
    live, at = table.begin()
    cuts = [(to % (len(records) + 1), what, kill_after) for to, what, kill_after in steps]
    cuts.sort(key=lambda step: step[0])

    def follow(live: Live, first: int, end: int) -> None:
        rows, sessions, counted = batch(kind, records[first:end], first)
        counted &= rows.column("kafka_offset").to_numpy() >= live.offset
        live.add(aggregate(kind, rows, sessions, counted), end)

    for cut, what, kill_after in [*cuts, (len(records), "", None)]:
        follow(live, at, cut)
        at = cut
        lives = True
        if what in ("checkpoint", "last"):
            lives = table.checkpoint(live, last=what == "last", kill_after=kill_after)
        elif what == "condense" and (crowd := live.crowded()):
            live.condense(crowd, live.merged(crowd))
        if not lives or what == "restart":
            live, at = table.begin()
            follow(live, at, cut)
            at = cut
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


def begun(records: list[Any]) -> tuple[Table, Live]:
    """A partition of trades that has written these."""
    table = Table(TRADES, records)
    live, _ = table.begin()
    live.add(table.said(0, len(records)), len(records))
    assert table.checkpoint(live)
    return table, live


def test_every_kill_point_of_a_split_leaves_the_former_segments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A write that doubles the modulus of several families, cut short at each of its writes."""
    monkeypatch.setattr(module, "SEGMENT_BYTES_MAX", {})
    monkeypatch.setattr(module, "OTHER_SEGMENT_BYTES_MAX", 2_000)
    monkeypatch.setattr(module, "RECENT_ROWS_MAX", 8)
    few = [(f"S{i % 5}", 1, i * BAR_NS, 1, E8, E8, True) for i in range(20)]
    many = [(f"S{i % 70}", 1, i * BAR_NS, 1, E8, E8, True) for i in range(200)]
    latest, bars = plain(TRADES, few + many)
    kill_after, whole = 0, False
    while not whole:
        table, live = begun(few)
        before = Families(stored(table.epochs[1]).families.all_names())  # type: ignore[union-attr]
        table.records += many
        live.add(table.said(20, 220), 220)
        whole = table.checkpoint(live, last=True, kill_after=kill_after)
        again, _ = table.begin()
        for exchange, symbol in sorted(latest)[::6]:
            asked = again.ask(exchange, symbol, bars=True)
            key = exchange, symbol
            assert read(TRADES, LATEST[TRADES], asked.latest()) == {key: latest[key]}
            own = {k: v for k, v in bars.items() if k[:3] == (*key, 1)}
            assert read(TRADES, module.BARS, asked.bars(1)) == own
        kill_after += 1
    assert kill_after > 20
    after = stored(table.epochs[1])
    assert after is not None
    assert after.families.of(module.LATEST_SEGMENTS)[0] > before.of(module.LATEST_SEGMENTS)[0]


def test_what_is_not_due_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first checkpoint of an epoch writes, then age or rows of what came, or the last one."""
    table, live = begun([("S1", 1, i * BAR_NS, 1, E8, E8, True) for i in range(40)])

    def written(count: int, *, last: bool = False) -> bool:
        at = live.next_offset
        table.records += [("S1", 1, i * BAR_NS, 1, E8, E8, True) for i in range(at, at + count)]
        live.add(table.said(at, at + count), at + count)
        assert table.checkpoint(live, last=last)
        assert live.pending != (table.sure == at + count)
        return not live.pending

    assert not written(1)
    monkeypatch.setattr(partition, "LIVE_WRITE_S", 0.0)
    assert written(1)
    monkeypatch.setattr(partition, "LIVE_WRITE_S", 3600.0)
    monkeypatch.setattr(partition, "PIECES_ROWS_MAX", 6)
    assert not written(3)  # as many bars, and one symbol
    assert written(1)
    assert not written(1)
    assert written(1, last=True)
    live.take(last=True)
    assert not live.taken, "nothing came"


def test_only_segments_with_touched_symbols_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many symbols in several segments: one trade writes one, the recent bars, and the mark."""
    monkeypatch.setattr(module, "SEGMENT_BYTES_MAX", {module.LATEST_SEGMENTS: 3_000})
    records = [(f"S{i}", 1, i, 1, E8, E8, True) for i in range(200)]
    table, live = begun(records)
    assert len(table.epochs[1]) > 4
    table.records += records[:1]
    live.add(table.said(200, 201), 201)
    live.take(last=True)
    writing = live.writing(201)
    assert [str(name[0]) for name in writing.changed] == ["live", "bars", "live-mark"]
    *segments, _ = writing.changed.values()
    assert {through(value) for value in segments} == {201}


def test_the_first_checkpoint_of_an_epoch_copies_what_nothing_touched() -> None:
    """With the offset that they had."""
    table, live = begun([("S1", 1, 0, 1, E8, E8, True)])
    live, _ = table.begin()
    table.records += [("S2", 1, 0, 1, E8, E8, False)] * 3
    live.add(table.said(1, 4), 4)
    assert table.checkpoint(live)
    former, own = stored(table.epochs[1]), stored(table.epochs[2])
    assert former is not None
    assert own is not None
    assert (former.end, own.end) == (1, 4)
    assert set(own.families.all_names()) == set(former.families.all_names())
    assert table.epochs[2] == {**table.epochs[1], MARK: table.epochs[2][MARK]}
    live.take(last=True)
    assert not live.taken


def test_bars_of_a_day_before_the_newest_are_removed() -> None:
    """With their hour, once there is a newer one; those of the day itself stay."""
    count = module.RECENT_ROWS_MAX + 2
    table, live = begun([(f"S{i}", 1, i % 2 * HOUR, 1, E8, E8, True) for i in range(count)])
    assert ("bars", 0) in stored(table.epochs[1]).families  # type: ignore[union-attr]
    table.records.append(("S1", 1, BARS_AGE_MAX_NS + HOUR - BAR_NS, 1, E8, E8, True))
    live.add(table.said(count, count + 1), count + 1)
    assert table.checkpoint(live, last=True)
    assert ("bars", 0) not in stored(table.epochs[1]).families  # type: ignore[union-attr]
    starts = live.ask("X", "S1", bars=True).bars(1).column("start").to_pylist()
    assert starts == [HOUR, BARS_AGE_MAX_NS + HOUR - BAR_NS]


def test_segments_count_if_a_mark_names_them_and_has_them_all() -> None:
    """Those beside them are of a write that was cut short, of other kinds, or of other releases."""
    row = aggregate(TRADES, *batch(TRADES, [("S1", 1, 0, 1, E8, E8, True)], 7)).latest
    one, other = (("live", module.FORM, 1, 0, slot) for slot in (0, 1))
    said = mark(8, Families([one]))
    segments = {("sequences", 16, 0): b"", other: pack(row, 9), one: pack(row, 8)}
    assert stored(segments) is None
    found = stored({**segments, MARK: said})
    assert found is not None
    assert (found.end, found.families.all_names()) == (8, [one])
    assert stored({other: pack(row, 9), MARK: said}) is None


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


def test_a_large_piece_is_not_merged_with_every_small_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """So a row is merged a few times, however many batches come between two live writes."""
    records = [("S1", 1, i * BAR_NS, 1, E8, E8, True) for i in range(1000)]
    table = Table(TRADES, records)
    live, _ = table.begin()
    live.add(table.said(0, 500), 500)
    merged = 0
    for i in range(500, 1000):
        live.add(table.said(i, i + 1), i + 1)
        if crowd := live.crowded():
            merged += sum(piece.bars.num_rows for piece in crowd)
            live.condense(crowd, live.merged(crowd))
    assert merged < 6_000
    assert live.ask("X", "S1", bars=True).bars(1).num_rows == 1000


def test_what_is_gathered_is_written_by_the_first_checkpoint() -> None:
    """It stands in the place of all segments."""
    piece: Piece = aggregate(TRADES, *batch(TRADES, [("S1", 1, 0, 1, E8, E8, True)], 0))
    live = Live(TRADES, 5, lambda name, before: None, None, piece)
    assert live.offset == live.next_offset == 5
    live.add(aggregate(TRADES, *batch(TRADES, [], 3)), 4)
    assert live.next_offset == 5, "what the table holds counts, whatever is read again"
    live.take()
    writing = live.writing(4)
    assert [str(name[0]) for name in writing.changed] == ["live", "bars", "live-mark"]
    *segments, said = writing.changed.values()
    assert {through(value) for value in segments} == {5}
    assert said == mark(5, writing.families)


def test_a_segment_that_is_gone_is_an_error_and_not_an_empty_answer() -> None:
    known = Stored(1, Families([("live", module.FORM, 1, 0, 0)]))
    live = Live(TRADES, 1, lambda name, before: None, known)
    with pytest.raises(LookupError, match="written, and not there"):
        live.ask("X", "S1", bars=False)


def test_what_is_no_segment_is_refused() -> None:
    with pytest.raises(ValueError, match="no segment of live rows"):
        unpack(LATEST[TRADES], b"12345678 and more")
    other = pack(pa.table({"a": [1]}), 3)
    with pytest.raises(ValueError, match="other columns"):
        unpack(LATEST[TRADES], other)


def test_the_residue_of_a_symbol_never_changes() -> None:
    """It is stored in the names of segments."""
    assert [residue("ASX", "BHP", 1 << n) for n in (0, 4, 16)] == [0, 7, 37559]
