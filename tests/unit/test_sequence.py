"""Claims about the sequence check, and its equality with a plain fold row by row."""

from __future__ import annotations

from collections import Counter
from copy import deepcopy
from datetime import date, datetime, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k2.calendars import load, local_dates
from k2.errors import SchemaMismatch
from k2.schemas import GAP_KINDS, VERDICTS
from k2.sequence import Chain, Change, Memory, Rules, SymbolState, check, fold
from tests.sequences import (
    DAY,
    HIGH,
    LOW,
    RULES,
    A,
    Row,
    S,
    at,
    below,
    newest,
    opened,
    run,
    table,
    told,
    unseen,
)

# ---- hand cases


def test_the_first_row_of_a_symbol_is_first_and_the_next_is_ok():
    words, changes, states = run(at(7, 8))
    assert words == ["first", "ok"]
    assert changes == []
    assert states[A] == Memory(0, Chain(7, 8, 0, 1, Chain.unseen_below(7)), offset=1, rows=2)


def test_a_gap_names_what_is_missing_and_the_row_that_showed_it():
    words, (gap,), states = run(at(1, (5, 3 * S)))
    assert words == ["first", "gap"]
    assert (gap.kind, gap.status, gap.severity) == ("gap", "open", "warn")
    assert (gap.missing_first, gap.missing_last, gap.count) == (2, 4, 3)
    assert (gap.remaining, gap.remaining_count) == (((2, 4),), 3)
    assert (gap.from_offset, gap.from_ts, gap.to_offset, gap.to_ts) == (0, 0, 1, 3 * S)
    assert (gap.offset, gap.seen_at, gap.filled_at, gap.revision) == (1, 3 * S, None, 1)
    assert (gap.exchange, gap.symbol, gap.session) == (*A, 0)
    assert unseen(states[A].chain) == [below(1), (2, 4)]
    assert (states[A].gaps_found, states[A].missing) == (1, 3)


def test_a_gap_across_two_batches_reports_both_ends():
    _, changes, _ = run(at(1, 2), at(6, 7, offset=2))
    assert told(changes, "missing_first", "missing_last", "offset") == [(3, 5, 2)]


def test_a_late_row_splits_the_interval_and_a_second_time_is_a_duplicate():
    words, _, states = run(at(1, 9, 5, 5))
    assert words == ["first", "gap", "late", "duplicate"]
    assert unseen(states[A].chain) == [below(1), (2, 4), (6, 8)]
    assert (states[A].late, states[A].duplicates) == (1, 1)


def test_late_rows_at_the_ends_shrink_the_interval_until_it_closes():
    words, _, states = run(at(1, 5, 2, 4, 3))
    assert words == ["first", "gap", "late", "late", "late"]
    assert unseen(states[A].chain) == [below(1)]


def test_a_sequence_seen_before_is_a_duplicate():
    assert run(at(1, 2, 3, 2, 3, 4))[0] == ["first", "ok", "ok", "duplicate", "duplicate", "ok"]


def test_a_fall_by_half_after_a_pause_is_a_reset_within_the_session():
    words, _, states = run(at(90, 100, (1, 61 * S), (2, 61 * S)))
    assert words == ["first", "gap", "reset", "ok"]
    assert (states[A].session, states[A].chain.last) == (0, 2)
    assert unseen(states[A].chain) == [below(1)]
    assert states[A].earlier == {}


@pytest.mark.parametrize("place", [(1, 60 * S), (50, 61 * S)], ids=["no pause", "not by half"])
def test_a_fall_without_a_pause_or_by_less_than_half_is_a_duplicate(place):
    assert run(at(*range(1, 101), place))[0][-1] == "duplicate"


def test_a_row_below_the_first_one_was_never_seen_and_is_late_once():
    words, changes, states = run(at(100, 99, 99, 97))
    assert words == ["first", "late", "duplicate", "late"]
    assert [c.kind for c in changes] == ["duplicates"]
    assert unseen(states[A].chain) == [below(97), (98, 98)]


def test_a_fall_below_the_first_row_is_a_reset_where_a_fall_within_would_be_one():
    words, _, states = run(at(1000, 1001, (998, 1), (7, 99 * S), (8, 99 * S)))
    assert words == ["first", "ok", "late", "reset", "ok"]
    assert unseen(states[A].chain) == [below(7)]


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
    assert (states[A].session, states[A].chain.last) == (1, 2)
    (former,) = states[A].earlier.values()
    assert (former.last, unseen(former)) == (4, [below(1), (2, 3)])


def test_a_sequence_that_runs_on_into_the_next_session_is_still_a_reset():
    words, _, states = run(at(1, 2), at((3, DAY), (4, DAY), offset=2))
    assert words == ["first", "ok", "reset", "ok"]
    assert states[A].earlier == {0: Chain(1, 2, 0, 1, Chain.unseen_below(1))}


def test_the_lowest_int64_does_not_continue_the_highest():
    words, _, states = run(at(HIGH), at(LOW, offset=1))
    assert words == ["first", "late"]
    assert states[A].chain.last == HIGH


def test_a_row_of_a_former_session_is_judged_by_that_sessions_chain():
    rows = at(1, 4, (1, DAY), (3, 9), (3, 9), (5, 9), (8, 9), (2, DAY))
    words, changes, states = run(rows)
    assert words[3:] == ["late", "duplicate", "ok", "gap", "ok"]
    bounds = told(opened(changes), "session", "missing_first", "missing_last")
    assert bounds == [(0, 2, 3), (0, 6, 7)]
    (former,) = states[A].earlier.values()
    assert (former.last, unseen(former)) == (8, [below(1), (2, 2), (6, 7)])
    assert states[A].chain.last_ts == DAY


def test_a_row_of_an_unknown_former_session_is_never_a_duplicate():
    words, _, states = run(at((1, 9 * DAY), (5, 0), (3, 0), (5, 0), (6, 0)))
    assert words == ["first", "late", "late", "duplicate", "ok"]
    (former,) = states[A].earlier.values()
    assert (former.last, unseen(former)) == (6, [below(3), (4, 4)])


def test_only_the_four_newest_former_sessions_are_kept():
    words, _, states = run(at(*[(1, day * DAY) for day in range(1, 7)], (1, DAY), (1, 0)))
    assert words[-2:] == ["late", "late"]
    assert sorted(states[A].earlier) == [2, 3, 4, 5]


def test_rows_at_or_below_the_states_offset_are_replayed_and_change_nothing():
    states = check({}, table(at(1, 2, 5)), RULES).states
    kept = deepcopy(states)
    got = check(states, table(at(1, 2, 5)), RULES)
    assert got.replayed.all()
    assert got.states == {}
    got = check(states, table(at(2, 5, 6, offset=1)), RULES)
    assert got.replayed.tolist() == [True, True, False]
    assert VERDICTS[got.verdicts[2]] == "ok"
    assert got.states[A].unpack().rows == 4
    assert got.changes == []
    assert states == kept


def test_the_oldest_gaps_are_forgotten_and_their_rows_then_count_as_late():
    rules = Rules({}, gaps_open_max=2)
    words, _, states = run(at(1, 3, 5, 7, 2, 2, 4, 4), rules=rules)
    assert words[-4:] == ["late", "late", "late", "duplicate"]
    assert unseen(states[A].chain) == [(6, 6)]
    assert (states[A].chain.forgotten_through, states[A].gaps_forgotten) == (2, 1)


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
    assert (gaps[0].count, gaps[0].remaining_count, gaps[0].severity) == (HIGH, HIGH, "critical")
    assert states[A].missing == HIGH
    assert states[A].pack().unpack() == states[A]
    words, _, states = run(at((1, DAY), (LOW, 0), (HIGH, 0)))
    assert words == ["first", "late", "gap"]
    assert states[A].pack().unpack() == states[A]


def test_an_empty_batch_gives_nothing():
    got = check({}, table([]), RULES)
    assert (len(got.verdicts), len(got.sessions), got.changes, got.states) == (0, 0, [], {})


def test_a_full_replay_of_a_long_stream_is_all_duplicates():
    n = 100_000
    words, (run_,), states = run(at(*range(1, n + 1)), at(*range(1, n + 1), offset=n))
    assert set(words[n:]) == {"duplicate"}
    assert states[A].duplicates == n
    assert (run_.kind, run_.missing_first, run_.missing_last) == ("duplicates", 1, n)


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
    with pytest.raises(ValueError, match="no sequence state of form 2"):
        SymbolState.from_bytes(b"[1,2]")
    with pytest.raises(ValueError, match="no sequence state of form 2"):
        SymbolState.from_bytes(b"[" * 200)


# ---- properties


Fact = dict[str, Any]


class Reference:
    """The rules once more, row by row, in the plainest words.

    `newest` is each finding's newest row; `turns` are the rows that no cut of the stream changes:
    gaps that open, close or are forgotten, and resets.
    """

    def __init__(self, rules: Rules) -> None:
        self.rules, self.states = rules, {}
        self.newest: dict[Any, Fact] = {}
        self.turns: list[Any] = []

    def note(
        self, key: Any, kind: str, fact: Fact, shown_by: int, offset: int, status: str
    ) -> None:
        first = None if kind == "out_of_session" else fact["missing_first"]
        fact = fact | {"status": status, "offset": offset, "kind": kind}
        name = (*key, kind, fact["session"], first, shown_by)
        self.newest[name] = fact
        if kind == "reset" or (kind == "gap" and status != "partly_filled"):
            self.turns.append((offset, kind, fact["missing_first"], name, fact))

    def gap(self, key: Any, gap: Any, offset: int, status: str) -> None:
        if gap["offset"] is not None:
            size = gap["last"] - gap["first"] + 1
            fact = {
                "session": gap["session"], "missing_first": gap["first"],
                "missing_last": gap["last"], "count": size, "remaining": tuple(gap["missing"]),
                "from_offset": gap["from"][0], "from_ts": gap["from"][1],
                "to_offset": gap["offset"], "to_ts": gap["ts"], "filled_at": gap["filled_at"],
            }  # fmt: skip
            self.note(key, "gap", fact, gap["offset"], offset, status)

    def chain(self, seq: int, ts: int, offset: int) -> Any:
        first = {"first": LOW, "last": seq - 1, "missing": [below(seq)], "offset": None}
        place = {"last": seq, "last_ts": ts, "last_offset": offset}
        return {"first": seq, **place, "gaps": [first], "forgotten": None}

    def row(self, exchange: str, symbol: str, seq: int, ts: int, offset: int) -> str:
        zone = ZoneInfo(self.rules.zones.get(exchange, "UTC"))
        moment = datetime(1970, 1, 1, tzinfo=ZoneInfo("UTC")) + timedelta(microseconds=ts // 1000)
        day, strange = (moment.astimezone(zone).date() - date(1970, 1, 1)).days, False
        if calendar := load(self.rules.calendars.get(exchange, "24/7")):
            days, outside = calendar.place(np.array([ts]), self.rules.session_margin_ms * 1_000_000)
            day, strange = int(days[0]), outside is not None
        session = 0 if exchange in self.rules.never_reset else day
        key = (exchange, "" if exchange in self.rules.by_channel else symbol)
        s = self.states.get(key)
        if s is None:
            s = {"session": session, "chain": self.chain(seq, ts, offset), "earlier": {}}
            s |= {"offset": -1, "rows": 0, "repeated": None, "outside": None, "words": []}
            s |= {"missing": 0, "forgotten": 0}
            self.states[key] = s
            word = "first"
        elif offset <= s["offset"]:
            return "replayed"
        else:
            word = self.judge(s, key, session, day, strange, seq, ts, offset)
        s["offset"] = offset
        s["words"].append(word)
        self.follow(s, key, word, day, strange, seq, ts, offset)
        return word

    def follow(
        self, s: Any, key: Any, word: str, day: int, strange: bool, seq: int, ts: int, offset: int
    ) -> None:
        """Runs of duplicates, and of records out of session."""
        if word == "reset":
            s["repeated"] = None
        if word == "duplicate":
            run = s["repeated"]
            goes_on = run and run["session"] == day and seq - run["missing_last"] in (0, 1)
            s["repeated"] = self.extend(run if goes_on else None, day, seq, ts, offset)
            self.note(
                key, "duplicates", s["repeated"], s["repeated"]["from_offset"], offset, "open"
            )
        elif not strange:
            s["outside"] = None
        else:
            run = s["outside"] if s["outside"] and s["outside"]["session"] == day else None
            s["outside"] = self.extend(run, day, seq, ts, offset)
            begin = s["outside"]["from_offset"]
            self.note(key, "out_of_session", s["outside"], begin, offset, "open")

    def extend(self, run: Any, day: int, seq: int, ts: int, offset: int) -> Fact:
        if run is None:
            run = {"missing_first": seq, "missing_last": seq, "count": 0, "session": day}
            run |= {"from_offset": offset, "from_ts": ts, "remaining": (), "filled_at": None}
        low, high = min(run["missing_first"], seq), max(run["missing_last"], seq)
        now = {"missing_first": low, "missing_last": high, "count": run["count"] + 1}
        return run | now | {"to_offset": offset, "to_ts": ts}

    def judge(
        self,
        s: Any,
        key: Any,
        session: int,
        day: int,
        strange: bool,
        seq: int,
        ts: int,
        offset: int,
    ) -> str:
        if session > s["session"] and not strange:
            begun = s["earlier"].pop(session, None)
            s["earlier"][s["session"]] = s["chain"]
            self.prune(s, key, offset)
            s["session"], s["chain"] = session, begun or self.chain(seq, ts, offset)
            if begun is None:
                return "reset"
        chain = s["chain"] if session == s["session"] else s["earlier"].get(session)
        if chain is None:
            s["earlier"][session] = self.chain(seq, ts, offset)
            self.prune(s, key, offset)
            return "late"
        if seq > chain["last"]:
            word = "ok"
            if seq > chain["last"] + 1:
                word = "gap"
                lost = (chain["last"] + 1, seq - 1)
                gap = {"first": lost[0], "last": lost[1], "missing": [lost], "session": day}
                gap |= {"from": (chain["last_offset"], chain["last_ts"]), "offset": offset}
                gap |= {"ts": ts, "filled_at": None}
                self.gap(key, gap, offset, "open")
                s["missing"] += lost[1] - lost[0] + 1
                chain["gaps"].append(gap)
                self.bound(s, key, chain, offset)
            chain |= {"last": seq, "last_ts": ts, "last_offset": offset}
            return word
        of = [g for g in chain["gaps"] if any(a <= seq <= b for a, b in g["missing"])]
        pause = ts - chain["last_ts"]
        fell = chain is s["chain"] and seq * 2 < chain["last"]
        fell = fell and pause > self.rules.reset_window_ms * 1_000_000
        if fell and (not of or seq < chain["first"]):
            return self.restart(s, key, day, seq, ts, offset)
        if of:
            (gap,) = of
            parts = []
            for a, b in gap["missing"]:
                split = [(a, seq - 1), (seq + 1, b)] if a <= seq <= b else [(a, b)]
                parts += [(x, y) for x, y in split if x <= y]
            gap |= {"missing": parts, "filled_at": ts}
            if not parts:
                chain["gaps"].remove(gap)
            self.gap(key, gap, offset, "partly_filled" if parts else "filled")
            self.bound(s, key, chain, offset)
            return "late"
        through = chain["forgotten"]
        return "late" if through is not None and seq <= through else "duplicate"

    def restart(self, s: Any, key: Any, day: int, seq: int, ts: int, offset: int) -> str:
        former = s["chain"]
        calendar = load(self.rules.calendars.get(key[0], "24/7"))
        opens = calendar and calendar.open_of(day)
        status = "accepted" if opens is not None and ts < opens else "open"
        fact = {
            "session": day, "missing_first": seq, "missing_last": former["last"], "count": 1,
            "remaining": (), "from_offset": former["last_offset"], "from_ts": former["last_ts"],
            "to_offset": offset, "to_ts": ts, "filled_at": None,
        }  # fmt: skip
        self.note(key, "reset", fact, offset, offset, status)
        for gap in former["gaps"]:
            self.forget(s, key, gap, offset)
        s["chain"] = self.chain(seq, ts, offset)
        return "reset"

    def forget(self, s: Any, key: Any, gap: Any, offset: int) -> None:
        s["forgotten"] += gap["offset"] is not None
        self.gap(key, gap, offset, "forgotten")

    def prune(self, s: Any, key: Any, offset: int) -> None:
        while len(s["earlier"]) > 4:
            for gap in s["earlier"].pop(min(s["earlier"]))["gaps"]:
                self.forget(s, key, gap, offset)

    def bound(self, s: Any, key: Any, chain: Any, offset: int) -> None:
        while sum(len(g["missing"]) for g in chain["gaps"]) > self.rules.gaps_open_max:
            gap = chain["gaps"].pop(0)
            chain["forgotten"] = gap["missing"][-1][1]
            self.forget(s, key, gap, offset)


def same_memory(memory: Memory, s: Any) -> None:
    """A memory says what the reference's state says."""
    chains = [(memory.session, memory.chain), *memory.earlier.items()]
    expected = {s["session"]: s["chain"], **s["earlier"]}
    assert {session for session, _ in chains} == set(expected)
    for session, chain in chains:
        other = expected[session]
        assert unseen(chain) == [part for gap in other["gaps"] for part in gap["missing"]]
        place = (chain.first, chain.last, chain.last_ts, chain.last_offset)
        assert place == tuple(other[n] for n in ("first", "last", "last_ts", "last_offset"))
        assert chain.forgotten_through == other["forgotten"]
        assert chain.width == len(unseen(chain))
    words = Counter(s["words"])
    counts = (memory.gaps_found, memory.late, memory.duplicates, memory.resets)
    assert counts == tuple(words[w] for w in ("gap", "late", "duplicate", "reset"))
    assert (memory.offset, memory.rows) == (s["offset"], len(s["words"]))
    assert (memory.missing, memory.gaps_forgotten) == (s["missing"], s["forgotten"])


def same_fact(change: Change, name: Any, fact: Fact) -> None:
    assert (change.exchange, change.symbol, change.kind) == name[:3]
    assert {key: getattr(change, key) for key in fact} == fact


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
        # From Friday, 7 March 2014: a weekend follows.
        ts = (16_136 + day) * DAY + draw(st.integers(0, 2 * 86_400)) * S
        seq = draw(st.integers(0, 60))
        for step in draw(st.lists(few, min_size=1, max_size=12)):
            seq += step
            ts += draw(st.sampled_from([0, 1, 30 * S, 61 * S, 12 * 3600 * S]))
            offset += draw(st.sampled_from([1, 1, 1, 3]))
            rows.append((exchange, symbol, seq, ts, offset))
    return rows


rules_of = st.builds(
    Rules,
    st.just({"ASX": "Australia/Sydney"}),
    reset_window_ms=st.sampled_from([0, 60_000]),
    gaps_open_max=st.sampled_from([1, 2, 3, 1000]),
    calendars=st.sampled_from([{}, {"ASX": "XASX"}]),
    never_reset=st.sampled_from([frozenset(), frozenset(["SIM"])]),
    by_channel=st.sampled_from([frozenset(), frozenset(["ASX"])]),
)


@settings(max_examples=200, deadline=None)
@given(
    data=st.data(),
    rows=streams(),
    rules=rules_of,
    shortest=st.sampled_from([1, 2, 5, 32]),
    stored=st.booleans(),
)
def test_any_split_with_replays_equals_the_plain_fold(data, rows, rules, shortest, stored):
    """Verdicts, ledger and states are those of a fold row by row, whatever the batches are."""
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
        words, changes, states = run(*batches, rules=rules, stored=stored)
        _, whole, _ = run(rows, rules=rules)
    finally:
        fold.RUN_ROWS_MIN = usual
    assert words == [word for batch in expected for word in batch]
    assert set(states) == set(reference.states)
    for key, memory in states.items():
        same_memory(memory, reference.states[key])

    rows_of, turns = newest(changes), [c for c in changes if turning(c)]
    assert len(rows_of) == len(reference.newest)
    assert [c.offset for c in changes] == sorted(c.offset for c in changes)
    reference.turns.sort(key=lambda turn: (turn[0], GAP_KINDS.index(turn[1]), turn[2]))
    for change, (*_, name, fact) in zip(turns, reference.turns, strict=True):
        same_fact(change, name, fact)
    by_name = {finding(change): change for change in rows_of.values()}
    assert set(by_name) == set(reference.newest)
    for name, fact in reference.newest.items():
        same_fact(by_name[name], name, fact)
    # And uncut, without any restart, the same rows with the same ids.
    assert newest(whole) == rows_of
    assert [c for c in whole if turning(c)] == turns


def turning(change: Change) -> bool:
    """Rows that no cut of the stream changes."""
    return change.kind == "reset" or (change.kind == "gap" and change.status != "partly_filled")


def finding(change: Change) -> Any:
    """What names a finding, beside its id."""
    shown_by = change.to_offset if change.kind in ("gap", "reset") else change.from_offset
    first = None if change.kind == "out_of_session" else change.missing_first
    return change.exchange, change.symbol, change.kind, change.session, first, shown_by


@settings(max_examples=60, deadline=None)
@given(rows=streams(), rules=rules_of, first=st.integers(0, 150), cut=st.integers(0, 150))
def test_a_sink_that_goes_by_offset_has_every_finding_whole(rows, rules, first, cut):
    """A sink that holds all below an offset, and goes on with other batches, ends up the same."""
    a, b = sorted((min(first, len(rows)), min(cut, len(rows))))
    held = run(rows[:b], rules=rules)[1]
    end = rows[b - 1][-1] + 1 if b else 0
    # The state was stored before the sink's last commit: it reads again, and in other batches.
    _, again, _ = run(rows[:a], rows[a:], rules=rules)
    both = newest([*held, *(c for c in again if c.offset >= end)])
    assert both == newest(run(rows, rules=rules)[1])


@settings(max_examples=60, deadline=None)
@given(rows=streams(), rules=rules_of, cut=st.integers(0, 144))
def test_check_changes_no_state_it_was_given(rows, rules, cut):
    states = check({}, table(rows[:cut]), rules).states
    kept = deepcopy(states)
    after = check(states, table(rows[cut:]), rules).states
    assert states == kept
    again = check(states, table(rows[cut:]), rules).states
    assert after == again


@settings(max_examples=60, deadline=None)
@given(rows=streams(), rules=rules_of)
def test_a_memory_survives_its_bytes(rows, rules):
    for memory in run(rows, rules=rules)[2].values():
        assert memory.pack().unpack() == memory
        assert SymbolState.from_bytes(bytes(memory.pack())).unpack() == memory


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
    assert local_dates(np.array(times, np.int64), zone).tolist() == expected
