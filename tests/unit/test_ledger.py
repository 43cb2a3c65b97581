"""The gap ledger: what is told of each kind of finding."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pyarrow as pa
import pytest

from k2.schemas import GAPS
from k2.sequence import Rules, check, gap_rows, severity
from tests.sequences import DAY, HIGH, A, S, at, run, told

STATUS = ("status", "remaining", "offset", "filled_at", "revision")
ASX = Rules(calendars={"ASX": "XASX"}, session_margin_ms=4 * 3_600_000)
#: Tuesday, 11 March 2014, 10:00 in Sydney.
OPEN = 1_394_492_400 * S


def asx(*places: tuple[int, int], offset: int = 0, symbol: str = "A") -> list[Any]:
    """Rows of the ASX: each place is (sequence, seconds after the open)."""
    return [("ASX", symbol, seq, OPEN + s * S, offset + i) for i, (seq, s) in enumerate(places)]


def test_late_rows_split_a_gap_and_then_close_it():
    rows = at(1, 6), at((4, 7), offset=2), at((2, 8), (3, 9), offset=3), at((5, 10), offset=5)
    _, changes, _ = run(*rows)
    assert told(changes, *STATUS) == [
        ("open", ((2, 5),), 1, None, 1),
        ("partly_filled", ((2, 3), (5, 5)), 2, 7, 2),
        ("partly_filled", ((5, 5),), 4, 9, 4),
        ("filled", (), 5, 10, 5),
    ]
    assert len({c.gap_id for c in changes}) == 1
    assert [c.remaining_count for c in changes] == [4, 3, 1, 0]
    assert {(c.missing_first, c.missing_last, c.count) for c in changes} == {(2, 5, 4)}


def test_a_gap_that_a_batch_opens_and_closes_has_both_rows():
    _, changes, _ = run(at(1, 3, 2))
    assert told(changes, "status", "offset") == [("open", 1), ("filled", 2)]


def test_a_gap_that_a_batch_fills_bit_by_bit_is_told_as_it_closes():
    _, changes, _ = run(at(1, 5), at(2, 3, 4, offset=2))
    assert told(changes, "status", "offset") == [("open", 1), ("filled", 4)]


def test_a_long_run_that_fills_a_gap_is_told_once():
    """Not once a record: a gap of a million may be sent again."""
    _, changes, _ = run(
        at(1, 1001), at(*range(2, 901), offset=2), at(*range(901, 1001), offset=901)
    )
    assert told(changes, "status", "remaining", "offset") == [
        ("open", ((2, 1000),), 1),
        ("partly_filled", ((901, 1000),), 900),
        ("filled", (), 1000),
    ]


def test_one_run_may_fill_several_gaps():
    seen = at(*range(1, 200, 2), offset=0)
    _, changes, states = run(seen, at(*range(2, 120, 2), offset=100))
    filled = [c for c in changes if c.status == "filled"]
    assert told(filled, "missing_first", "missing_last", "offset") == [
        (seq, seq, 99 + seq // 2) for seq in range(2, 120, 2)
    ]
    assert len(states[A].chain.gaps) == 1 + 40  # what lies below the first row, and 120 to 198


def test_a_gap_beyond_the_bound_is_said_to_be_forgotten():
    rules = Rules(gaps_open_max=2)
    _, changes, _ = run(at(1, 5, 3, 7, 9), rules=rules)
    forgotten = [c for c in changes if c.status == "forgotten"]
    assert told(forgotten, "missing_first", "remaining", "offset") == [(2, ((2, 2), (4, 4)), 3)]


def test_a_reset_within_a_session_pages_and_forgets_what_was_open():
    _, changes, _ = run(at(1, 90, 100, (1, 61 * S)))
    forgotten = [c for c in changes if c.status == "forgotten"]
    (reset,) = (c for c in changes if c.kind == "reset")
    assert (reset.status, reset.severity, reset.count) == ("open", "page", 1)
    assert (reset.missing_first, reset.missing_last) == (1, 100)
    assert (reset.from_offset, reset.to_offset, reset.to_ts) == (2, 3, 61 * S)
    assert told(forgotten, "missing_first", "offset") == [(2, 3), (91, 3)]


def test_a_new_session_is_no_finding_and_its_gaps_wait_for_four_more():
    days = [at((1, day * DAY), (3, day * DAY + 1), offset=2 * day) for day in range(6)]
    _, changes, _ = run(*days)
    assert {c.kind for c in changes} == {"gap"}
    forgotten = [c for c in changes if c.status == "forgotten"]
    assert told(forgotten, "session", "offset") == [(0, 10)]


def test_a_reset_before_the_open_is_accepted_and_one_after_it_is_not():
    rows = asx((100, -7200), (1, -3600), (2, -3000), (90, -2900), (1, 60))
    _, changes, _ = run(rows, rules=ASX)
    resets = [c for c in changes if c.kind == "reset"]
    assert told(resets, "offset", "status", "severity") == [
        (1, "accepted", "info"),
        (4, "open", "page"),
    ]


def test_duplicates_of_a_feed_connected_twice_are_one_run_a_symbol():
    twice = [seq for seq in range(1, 51) for _ in (0, 1)]
    parts = [at(*twice[a : a + 30], offset=a) for a in range(0, 100, 30)]
    _, changes, _ = run(*parts)
    assert {c.kind for c in changes} == {"duplicates"}
    assert len({c.gap_id for c in changes}) == 1
    assert told(changes, "missing_last", "count", "to_offset", "revision") == [
        (15, 15, 29, 15), (30, 30, 59, 30), (45, 45, 89, 45), (50, 50, 99, 50),
    ]  # fmt: skip
    assert {(c.missing_first, c.from_offset, c.severity) for c in changes} == {(1, 1, "warn")}


def test_a_record_again_and_again_is_one_run_and_another_elsewhere_a_new_one():
    _, changes, _ = run(at(*range(1, 10), 5, 5, 5, 6, 3))
    bounds = told(changes, "missing_first", "missing_last", "count", "from_offset", "to_offset")
    assert bounds == [(5, 6, 4, 9, 12), (3, 3, 1, 13, 13)]


def test_a_reset_ends_a_run_of_duplicates():
    """Whatever the batches are: 6 after the reset is not the 6 before it."""
    rows = at(*range(1, 20), 5, (1, 61 * S), *((seq, 61 * S) for seq in range(2, 7)), (6, 61 * S))
    for cut in range(19, 26):
        _, changes, _ = run(rows[:cut], rows[cut:])
        runs = [c for c in changes if c.kind == "duplicates"]
        assert told(runs, "missing_first", "missing_last") == [(5, 5), (6, 6)]


def test_the_highest_sequence_again_does_not_go_on_with_the_lowest():
    _, changes, _ = run(at(-HIGH - 1, HIGH, HIGH, -HIGH - 1))
    assert [c.count for c in changes if c.kind == "duplicates"] == [1, 1]


def test_records_out_of_session_are_runs():
    night = 12 * 3600
    rows = asx((1, 0), (2, night), (3, night + 1), (4, 60), (5, night + 2))
    _, changes, _ = run(rows[:2], rows[2:], rules=ASX)
    assert {(c.kind, c.severity, c.status) for c in changes} == {("out_of_session", "warn", "open")}
    assert told(changes, "missing_first", "missing_last", "count", "to_offset") == [
        (2, 2, 1, 1), (2, 3, 2, 2), (5, 5, 1, 4),
    ]  # fmt: skip
    assert len({c.gap_id for c in changes}) == 2


@pytest.mark.parametrize("cut", range(4))
def test_a_run_out_of_session_ends_with_a_record_in_session(cut):
    night = 12 * 3600
    rows = asx((1, 0), (2, night), (3, 60), (4, night + 1))
    _, changes, _ = run(rows[:cut], rows[cut:3], rows[3:], rules=ASX)
    assert told(changes, "missing_first", "count") == [(2, 1), (4, 1)]


@pytest.mark.parametrize("cut", range(3))
def test_each_session_has_its_own_run_out_of_session(cut):
    night = 12 * 3600
    rows = asx((1, night), (1, night + 86_400))
    _, changes, _ = run(rows[:cut], rows[cut:], rules=ASX)
    assert told(changes, "session", "count") == [(16_140, 1), (16_141, 1)]


def test_a_record_at_an_odd_hour_begins_no_session():
    """A clock that is wrong once must not make former rows of all that follows."""
    year = 365 * 86_400
    rows = asx((1, 0), (2, 9 * year + 43_200), (3, 1), (4, 86_400), (5, 86_401))
    words, changes, states = run(rows, rules=ASX)
    assert words == ["first", "late", "gap", "reset", "ok"]
    assert [c.kind for c in changes] == ["out_of_session", "gap"]
    assert states["ASX", "A"].session == 16_141


def test_a_session_that_begins_at_an_odd_hour_goes_on_with_its_chain():
    rows = asx((1, 0), (1, 66_000), (2, 66_001), (3, 86_400), (1, 86_401))
    words, _, _ = run(rows, rules=ASX)
    assert words == ["first", "late", "ok", "ok", "duplicate"]


def test_sequences_that_never_start_again_go_on_over_sessions():
    rules = Rules(never_reset=frozenset(["SIM"]))
    rows = at((7, 0), (8, DAY), (10, 2 * DAY), (9, 9 * DAY), (9, 9 * DAY), (1, 10 * DAY))
    words, changes, _ = run(rows, rules=rules)
    assert words == ["first", "ok", "gap", "late", "duplicate", "reset"]
    assert told(changes, "kind", "status", "session") == [
        ("gap", "open", 2), ("gap", "filled", 2), ("duplicates", "open", 9), ("reset", "open", 10),
    ]  # fmt: skip
    assert check({}, pa.table(stream_of(rows)), rules).sessions.tolist() == [0, 1, 2, 9, 9, 10]


def stream_of(rows: list[Any]) -> dict[str, list[Any]]:
    names = ("exchange", "symbol", "sequence", "ts_event", "kafka_offset")
    columns = {name: [row[i] for row in rows] for i, name in enumerate(names)}
    return columns | {"ts_recv": columns["ts_event"]}


def test_a_channel_counts_all_symbols_of_its_partition():
    rules = Rules(by_channel=frozenset(["X"]))
    rows = [("X", "A", 1, 0, 0), ("X", "B", 2, 0, 1), ("SIM", "B", 7, 0, 2), ("X", "A", 5, 0, 3)]
    words, changes, states = run(rows, rules=rules)
    assert words == ["first", "ok", "first", "gap"]
    assert set(states) == {("X", ""), ("SIM", "B")}
    assert told(changes, "exchange", "symbol", "missing_first", "missing_last") == [("X", "", 3, 4)]


@pytest.mark.parametrize(
    ("kind", "count", "expected"),
    [
        ("gap", 9, "warn"), ("gap", 10, "page"), ("gap", 100, "page"), ("gap", 101, "critical"),
        ("duplicates", 10**6, "warn"), ("out_of_session", 10**6, "warn"), ("reset", 1, "page"),
    ],
)  # fmt: skip
def test_severity_by_kind_and_size(kind, count, expected):
    assert severity(kind, count) == expected


def test_limits_are_an_exchanges_own():
    rules = Rules(limits={"SIM": (2, 3)})
    _, changes, _ = run(at(1, 3, 6, 10), rules=rules)
    assert [c.severity for c in changes] == ["warn", "page", "page"]
    _, changes, _ = run(at(1, 6), rules=rules)
    assert [c.severity for c in changes] == ["critical"]


def test_an_id_is_the_same_for_ever_and_differs_by_stream():
    """Readers keep ids: what they are made of must not change unnoticed."""
    batch = pa.table(stream_of(at(1, 5)))
    ids = {
        stream: check({}, batch, Rules(), stream).changes[0].gap_id
        for stream in ("market.trades.sim[0]", "market.trades.sim[1]", "market.quotes.sim[0]")
    }
    assert ids["market.trades.sim[0]"] == "f7981f08d82c70569743d63b23dec9df"
    assert len(set(ids.values())) == 3


def test_rows_of_the_ledgers_table():
    _, changes, _ = run(at(1, (6, S)), at((4, 7 * S), offset=2))
    now = pa.scalar(dt.datetime(2026, 1, 1, tzinfo=dt.UTC), GAPS.field("ingest_time").type)
    table = gap_rows(changes, "c", "market.trades.sim", 3, now)
    assert table.schema == GAPS
    table.validate(full=True)
    first, second = table.to_pylist()
    assert first["remaining"] == [{"first": 2, "last": 5}]
    assert second["remaining"] == [{"first": 2, "last": 3}, {"first": 5, "last": 5}]
    assert (second["kafka_partition"], second["kafka_offset"]) == (3, 2)
    assert (first["filled_at"], second["filled_at"].second) == (None, 7)
    assert (second["session"], second["seen_at"].second) == (dt.date(1970, 1, 1), 1)
    assert gap_rows([], "c", "t", 0, now).schema == GAPS


def test_the_counter_of_a_channel_has_no_symbol_in_the_table():
    rules = Rules(by_channel=frozenset(["SIM"]))
    now = pa.scalar(0, GAPS.field("ingest_time").type)
    table = gap_rows(run(at(1, 3), rules=rules)[1], "c", "t", 0, now)
    assert table["symbol"].to_pylist() == [None]
