"""Claims about the sequence check, and its equality with a plain fold row by row."""

from __future__ import annotations

from copy import deepcopy
from datetime import date, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k2.errors import SchemaMismatch
from k2.schemas import TRADE_BATCH, VERDICTS
from k2.sequence import Chain, Gap, Rules, SymbolState, check, fold, sessions_of

S = 1_000_000_000
DAY = 86_400 * S
A = ("SIM", "A")
LOW, HIGH = -(2**63), 2**63 - 1
RULES = Rules({}, reset_window_ms=60_000, gaps_open_max=1000)
Row = tuple[str, str, int, int, int]  # exchange, symbol, sequence, ts_event, kafka_offset


def below(first: int) -> tuple[int, int]:
    """What a chain has not seen before its first row."""
    return (LOW, first - 1)


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
    return pa.table({k: list(v) for k, v in columns.items()}, schema=TRADE_BATCH)


def at(*places: tuple[int, int] | int, offset: int = 0) -> list[Row]:
    """Rows of symbol A: each place is a sequence, or (sequence, ts_event)."""
    pairs = [(p, 0) if isinstance(p, int) else p for p in places]
    return [(*A, seq, ts, offset + i) for i, (seq, ts) in enumerate(pairs)]


def run(*batches: list[Row], rules: Rules = RULES) -> tuple[list[str], list[Gap], Any]:
    """Verdicts (replayed rows as "replayed"), gaps and states after the batches."""
    states: dict[tuple[str, str], SymbolState] = {}
    words: list[str] = []
    gaps: list[Gap] = []
    for rows in batches:
        got = check(states, table(rows), rules)
        states.update(got.states)
        gaps += got.gaps
        words += [
            "replayed" if again else VERDICTS[v]
            for v, again in zip(got.verdicts.tolist(), got.replayed.tolist(), strict=True)
        ]
    return words, gaps, states


# ---- hand cases


def test_the_first_row_of_a_symbol_is_first_and_the_next_is_ok():
    words, gaps, states = run(at(7, 8))
    assert words == ["first", "ok"]
    assert gaps == []
    assert states[A] == SymbolState(7, 8, [below(7)], session=0, last_ts=0, offset=1, rows=2)


def test_a_gap_names_what_is_missing_and_the_row_that_showed_it():
    words, gaps, states = run(at(1, (5, 3 * S)))
    assert words == ["first", "gap"]
    assert gaps == [Gap(*A, session=0, missing_first=2, missing_last=4, offset=1, ts_event=3 * S)]
    assert states[A].gaps == [below(1), (2, 4)]
    assert (states[A].gaps_found, states[A].missing) == (1, 3)


def test_a_gap_across_two_batches_reports_both_ends():
    _, gaps, _ = run(at(1, 2), at(6, 7, offset=2))
    assert [(g.missing_first, g.missing_last, g.offset) for g in gaps] == [(3, 5, 2)]


def test_a_late_row_splits_the_interval_and_a_second_time_is_a_duplicate():
    words, _, states = run(at(1, 9, 5, 5))
    assert words == ["first", "gap", "late", "duplicate"]
    assert states[A].gaps == [below(1), (2, 4), (6, 8)]
    assert (states[A].late, states[A].duplicates) == (1, 1)


def test_late_rows_at_the_ends_shrink_the_interval_until_it_closes():
    words, _, states = run(at(1, 5, 2, 4, 3))
    assert words == ["first", "gap", "late", "late", "late"]
    assert states[A].gaps == [below(1)]


def test_a_sequence_seen_before_is_a_duplicate():
    assert run(at(1, 2, 3, 2, 3, 4))[0] == ["first", "ok", "ok", "duplicate", "duplicate", "ok"]


def test_a_fall_by_half_after_a_pause_is_a_reset_within_the_session():
    words, _, states = run(at(90, 100, (1, 61 * S), (2, 61 * S)))
    assert words == ["first", "gap", "reset", "ok"]
    assert (states[A].session, states[A].last, states[A].gaps) == (0, 2, [below(1)])
    assert states[A].earlier == {}


@pytest.mark.parametrize("place", [(1, 60 * S), (50, 61 * S)], ids=["no pause", "not by half"])
def test_a_fall_without_a_pause_or_by_less_than_half_is_a_duplicate(place):
    assert run(at(*range(1, 101), place))[0][-1] == "duplicate"


def test_a_row_below_the_first_one_was_never_seen_and_is_late_once():
    words, gaps, states = run(at(100, 99, 99, 97))
    assert words == ["first", "late", "duplicate", "late"]
    assert gaps == []
    assert states[A].gaps == [below(97), (98, 98)]


def test_a_fall_below_the_first_row_is_a_reset_where_a_fall_within_would_be_one():
    words, _, states = run(at(1000, 1001, (998, 1), (7, 99 * S), (8, 99 * S)))
    assert words == ["first", "ok", "late", "reset", "ok"]
    assert (states[A].first, states[A].gaps) == (7, [below(7)])


def test_a_long_run_that_falls_to_exactly_half_is_no_reset_and_below_half_is_one():
    later = 61 * S
    seen = list(range(1, 201))
    half = run(at(*seen, *[(seq, later) for seq in range(100, 140)]))[0]
    assert set(half[200:]) == {"duplicate"}
    lower = run(at(*seen, *[(seq, later) for seq in range(99, 139)]))[0]
    assert lower[200:] == ["reset"] + ["ok"] * 39


def test_a_duplicate_does_not_shorten_the_pause_before_a_reset():
    assert run(at(100, (100, 59 * S), (1, 61 * S)))[0] == ["first", "duplicate", "reset"]


def test_a_new_session_is_a_reset_and_the_former_chain_is_kept():
    words, _, states = run(at(1, 4, (1, DAY), (2, DAY)))
    assert words == ["first", "gap", "reset", "ok"]
    assert (states[A].session, states[A].last) == (1, 2)
    assert states[A].earlier == {0: Chain(1, 4, [below(1), (2, 3)])}


def test_a_sequence_that_runs_on_into_the_next_session_is_still_a_reset():
    words, _, states = run(at(1, 2), at((3, DAY), (4, DAY), offset=2))
    assert words == ["first", "ok", "reset", "ok"]
    assert states[A].earlier == {0: Chain(1, 2, [below(1)])}


def test_the_lowest_int64_does_not_continue_the_highest():
    words, _, states = run(at(HIGH), at(LOW, offset=1))
    assert words == ["first", "late"]
    assert states[A].last == HIGH


def test_a_row_of_a_former_session_is_judged_by_that_sessions_chain():
    rows = at(1, 4, (1, DAY), (3, 9), (3, 9), (5, 9), (8, 9), (2, DAY))
    words, gaps, states = run(rows)
    assert words[3:] == ["late", "duplicate", "ok", "gap", "ok"]
    assert (gaps[-1].session, gaps[-1].missing_first, gaps[-1].missing_last) == (0, 6, 7)
    assert states[A].earlier == {0: Chain(1, 8, [below(1), (2, 2), (6, 7)])}
    assert states[A].last_ts == DAY


def test_a_row_of_an_unknown_former_session_is_never_a_duplicate():
    words, _, states = run(at((1, 9 * DAY), (5, 0), (3, 0), (5, 0), (6, 0)))
    assert words == ["first", "late", "late", "duplicate", "ok"]
    assert states[A].earlier == {0: Chain(5, 6, [below(3), (4, 4)])}


def test_only_the_four_newest_former_sessions_are_kept():
    words, _, states = run(at(*[(1, day * DAY) for day in range(1, 7)], (1, DAY), (1, 0)))
    assert words[-2:] == ["late", "late"]
    assert sorted(states[A].earlier) == [2, 3, 4, 5]


def test_rows_at_or_below_the_states_offset_are_replayed_and_change_nothing():
    _, _, states = run(at(1, 2, 5))
    kept = deepcopy(states)
    got = check(states, table(at(1, 2, 5)), RULES)
    assert got.replayed.all()
    assert got.states == {}
    got = check(states, table(at(2, 5, 6, offset=1)), RULES)
    assert got.replayed.tolist() == [True, True, False]
    assert VERDICTS[got.verdicts[2]] == "ok"
    assert got.states[A].rows == 4
    assert states == kept


def test_the_oldest_gaps_are_forgotten_and_their_rows_then_count_as_late():
    rules = Rules({}, gaps_open_max=2)
    words, _, states = run(at(1, 3, 5, 7, 2, 2, 4, 4), rules=rules)
    assert words[-4:] == ["late", "late", "late", "duplicate"]
    assert states[A].gaps == [(6, 6)]
    assert (states[A].forgotten_through, states[A].gaps_forgotten) == (2, 1)


def test_symbols_of_the_same_name_on_two_exchanges_are_apart():
    rows = [("X", "A", 1, 0, 0), ("Y", "A", 9, 0, 1), ("X", "A", 2, 0, 2), ("Y", "A", 10, 0, 3)]
    words, gaps, states = run(rows)
    assert words == ["first", "first", "ok", "ok"]
    assert gaps == []
    assert sorted(states) == [("X", "A"), ("Y", "A")]


def test_the_session_is_the_local_date_of_the_exchange():
    evening = int(datetime(2026, 1, 1, 14, tzinfo=ZoneInfo("UTC")).timestamp()) * S
    rows = [("ASX", "A", 1, evening, 0), ("SIM", "A", 1, evening, 1)]
    got = check({}, table(rows), Rules({"ASX": "Australia/Sydney"}))
    days = [date(1970, 1, 1) + timedelta(days=d) for d in got.sessions.tolist()]
    assert days == [date(2026, 1, 2), date(2026, 1, 1)]


def test_an_absurd_sequence_neither_stops_the_check_nor_the_serialisation():
    words, gaps, states = run(at(LOW, HIGH, LOW, HIGH))
    assert words == ["first", "gap", "duplicate", "duplicate"]
    assert (gaps[0].missing_first, gaps[0].missing_last) == (LOW + 1, HIGH - 1)
    assert states[A].missing == HIGH
    assert SymbolState.from_bytes(states[A].to_bytes()) == states[A]
    words, _, states = run(at((1, DAY), (LOW, 0), (HIGH, 0)))
    assert words == ["first", "late", "gap"]
    assert SymbolState.from_bytes(states[A].to_bytes()) == states[A]


def test_an_empty_batch_gives_nothing():
    got = check({}, table([]), RULES)
    assert (len(got.verdicts), len(got.sessions), got.gaps, got.states) == (0, 0, [], {})


def test_a_full_replay_of_a_long_stream_is_all_duplicates():
    n = 100_000
    words, _, states = run(at(*range(1, n + 1)), at(*range(1, n + 1), offset=n))
    assert set(words[n:]) == {"duplicate"}
    assert states[A].duplicates == n


def test_a_batch_without_a_column_or_of_another_type_or_order_is_refused():
    good = table(at(1, 2))
    as_text = pa.array(["1", "2"])
    with pytest.raises(SchemaMismatch, match="sequence: absent"):
        check({}, good.drop_columns(["sequence"]), RULES)
    with pytest.raises(SchemaMismatch, match="sequence: string, not int64"):
        check({}, good.set_column(2, "sequence", as_text), RULES)
    with pytest.raises(SchemaMismatch, match="1 nulls"):
        check({}, good.set_column(2, "sequence", pa.array([1, None])), RULES)
    with pytest.raises(SchemaMismatch, match="does not ascend"):
        check({}, good.take([1, 0]), RULES)


def test_rules_without_room_for_a_gap_are_refused():
    with pytest.raises(ValueError, match="gaps_open_max"):
        Rules({}, gaps_open_max=0)


def test_bytes_that_are_no_state_are_refused():
    with pytest.raises(ValueError, match="unpack"):
        SymbolState.from_bytes(b"[1,2]")


# ---- properties


class Reference:
    """The rules once more, row by row, in the plainest words; open gaps as a list of intervals."""

    def __init__(self, rules: Rules) -> None:
        self.rules, self.states, self.gaps = rules, {}, []

    def row(self, exchange: str, symbol: str, seq: int, ts: int, offset: int) -> str:
        zone = ZoneInfo(self.rules.zones.get(exchange, "UTC"))
        moment = datetime(1970, 1, 1, tzinfo=ZoneInfo("UTC")) + timedelta(microseconds=ts // 1000)
        day = (moment.astimezone(zone).date() - date(1970, 1, 1)).days
        key = (exchange, symbol)
        s = self.states.get(key)
        if s is None:
            chain = (seq, seq, [below(seq)])
            self.states[key] = SymbolState(*chain, session=day, last_ts=ts, offset=offset, rows=1)
            return "first"
        if offset <= s.offset:
            return "replayed"
        s.offset = offset
        s.rows += 1
        word = self.judge(s, key, day, seq, ts, offset)
        s.late += word == "late"
        s.duplicates += word == "duplicate"
        s.resets += word == "reset"
        s.gaps_found += word == "gap"
        return word

    def judge(self, s: Any, key: Any, day: int, seq: int, ts: int, offset: int) -> str:
        if day > s.session:
            s.earlier[s.session] = Chain(s.first, s.last, s.gaps, s.forgotten_through)
            s.session = day
            self.prune(s)
            return self.restart(s, seq, ts)
        if day < s.session and day not in s.earlier:
            s.earlier[day] = Chain(seq, seq, [below(seq)])
            self.prune(s)
            return "late"
        chain = s if day == s.session else s.earlier[day]
        if seq > chain.last:
            word = "ok"
            if seq > chain.last + 1:
                word = "gap"
                self.gaps.append(Gap(*key, day, chain.last + 1, seq - 1, offset, ts))
                s.missing += seq - 1 - chain.last
                chain.gaps = [*chain.gaps, (chain.last + 1, seq - 1)]
                self.bound(s, chain)
            chain.last = seq
            if chain is s:
                s.last_ts = ts
            return word
        unseen = any(a <= seq <= b for a, b in chain.gaps)
        pause = ts - s.last_ts
        fell = chain is s and seq * 2 < s.last
        fell = fell and pause > self.rules.reset_window_ms * 1_000_000
        if fell and (not unseen or seq < s.first):
            return self.restart(s, seq, ts)
        if unseen:
            parts = []
            for a, b in chain.gaps:
                split = [(a, seq - 1), (seq + 1, b)] if a <= seq <= b else [(a, b)]
                parts += [(x, y) for x, y in split if x <= y]
            chain.gaps = parts
            self.bound(s, chain)
            return "late"
        through = chain.forgotten_through
        return "late" if through is not None and seq <= through else "duplicate"

    def restart(self, s: Any, seq: int, ts: int) -> str:
        s.first, s.last, s.last_ts = seq, seq, ts
        s.gaps, s.forgotten_through = [below(seq)], None
        return "reset"

    def prune(self, s: Any) -> None:
        s.earlier = {day: s.earlier[day] for day in sorted(s.earlier)[-4:]}

    def bound(self, s: Any, chain: Any) -> None:
        while len(chain.gaps) > self.rules.gaps_open_max:
            chain.forgotten_through = chain.gaps[0][1]
            s.gaps_forgotten += chain.gaps[0][0] > chain.first
            chain.gaps = chain.gaps[1:]


@st.composite
def streams(draw: st.DrawFn) -> list[Row]:
    """Stretches of rising sequences, some replayed from below, of few symbols and days."""
    rows: list[Row] = []
    offset = -1
    few = st.sampled_from([1, 1, 1, 1, 2, 4])
    for _ in range(draw(st.integers(1, 12))):
        exchange = draw(st.sampled_from(["SIM", "ASX"]))
        symbol = draw(st.sampled_from(["A", "A", "B"]))
        day = draw(st.integers(0, 6))
        ts = day * DAY + draw(st.integers(0, 2 * 86_400)) * S
        seq = draw(st.integers(0, 60))
        for step in draw(st.lists(few, min_size=1, max_size=12)):
            seq += step
            ts += draw(st.sampled_from([0, 1, 30 * S, 61 * S]))
            offset += draw(st.sampled_from([1, 1, 1, 3]))
            rows.append((exchange, symbol, seq, ts, offset))
    return rows


rules_of = st.builds(
    Rules,
    st.just({"ASX": "Australia/Sydney"}),
    reset_window_ms=st.sampled_from([0, 60_000]),
    gaps_open_max=st.sampled_from([1, 2, 3, 1000]),
)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), rows=streams(), rules=rules_of, shortest=st.sampled_from([1, 2, 5, 32]))
def test_any_split_with_replays_equals_the_plain_fold(data, rows, rules, shortest):
    """Verdicts, gaps and states are those of a fold row by row, whatever the batches are."""
    reference = Reference(rules)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=4)))
    edges = [0, *cuts, len(rows)]
    batches = []
    for a, b in pairwise(edges):
        back = data.draw(st.sampled_from([0, 0, 3]))  # a crash: rows already applied come again
        batches.append(rows[max(a - back, 0) : b])
    expected = [[reference.row(*row) for row in batch] for batch in batches]
    # Short runs are folded row by row, long ones by numpy: lowering the border tests both.
    usual = fold.RUN_ROWS_MIN
    fold.RUN_ROWS_MIN = shortest
    try:
        words, gaps, states = run(*batches, rules=rules)
    finally:
        fold.RUN_ROWS_MIN = usual
    assert words == [word for batch in expected for word in batch]
    assert gaps == reference.gaps
    assert states == reference.states


@settings(max_examples=60, deadline=None)
@given(rows=streams(), rules=rules_of, cut=st.integers(0, 144))
def test_check_changes_no_state_it_was_given(rows, rules, cut):
    _, _, states = run(rows[:cut], rules=rules)
    kept = deepcopy(states)
    after = check(states, table(rows[cut:]), rules).states
    assert states == kept
    again = check(states, table(rows[cut:]), rules).states
    assert after == again


@settings(max_examples=60, deadline=None)
@given(rows=streams(), rules=rules_of)
def test_a_state_survives_its_bytes(rows, rules):
    for state in run(rows, rules=rules)[2].values():
        back = SymbolState.from_bytes(state.to_bytes())
        assert back == state
        assert back.to_bytes() == state.to_bytes()


@settings(max_examples=60, deadline=None)
@given(
    times=st.lists(
        st.one_of(
            st.integers(0, 2_000_000_000).map(lambda s: s * S),
            st.integers(-(10**9), 7 * 10**9).map(lambda s: s * S + 1),
        ),
        max_size=20,
    ),
    zone=st.sampled_from(["UTC", "Australia/Sydney", "America/New_York", "Asia/Kathmandu"]),
)
def test_sessions_are_the_dates_that_the_standard_library_gives(times, zone):
    epoch = datetime(1970, 1, 1, tzinfo=ZoneInfo("UTC"))
    expected = [
        ((epoch + timedelta(seconds=t // S)).astimezone(ZoneInfo(zone)).date() - epoch.date()).days
        for t in times
    ]
    assert sessions_of(np.array(times, np.int64), zone).tolist() == expected
