"""What is known live of a symbol equals a plain fold of its records, however these were cut."""

from __future__ import annotations

from decimal import Decimal
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from k2.live import BARS, LATEST, Form, Piece, aggregate, merge
from k2.live.forms import AHEAD_MAX_NS, BAR_NS, NOTIONAL, TEXT_MAX, VOLUME
from k2.live.groups import Groups, codes
from k2.live.limbs import carried, joined, product, split
from k2.schemas import QUOTES, TRADES, Kind

E8 = 10**8
MOST = 10**18 - 1  # unscaled
AMOUNTS = st.one_of(st.integers(1, 50 * E8), st.sampled_from([MOST, -MOST, 0, 1, -1]))

#: A record: symbol, session, ts_event, sequence, price, size, counts.
RECORDS = st.tuples(
    st.sampled_from(["A", "BB", "Ü"]),
    st.integers(16_000, 16_002),
    st.one_of(st.integers(-2, 3).map(lambda m: m * BAR_NS), st.integers(-BAR_NS, 3 * BAR_NS)),
    st.integers(1, 5),
    AMOUNTS,
    AMOUNTS,
    st.booleans(),
)


def batch(kind: Kind, records: list[Any], first_offset: int) -> tuple[pa.Table, Any, Any]:
    n = len(records)
    symbols, sessions, times, sequences, prices, sizes, counted = (
        zip(*records, strict=True) if n else ((),) * 7
    )
    amounts = {
        name: [Decimal(v).scaleb(-8) for v in values]
        for name, values in (("price", prices), ("size", sizes))
    }
    columns: dict[str, Any] = {
        "exchange": ["X" if s != "BB" else "Y" for s in symbols],
        "symbol": symbols,
        "sequence": sequences,
        "ts_event": times,
        "ts_recv": [t + 7 for t in times],
        "side": ["BUY"] * n,
        "kafka_offset": range(first_offset, first_offset + n),
        "trade_id": [f"t{first_offset + i}" for i in range(n)],
        **amounts,
        "bid_price": amounts["price"],
        "ask_size": amounts["size"],
    }
    arrays = [pa.array(columns.get(f.name, [None] * n), f.type) for f in kind.batch]
    whole = pa.table(arrays, schema=kind.batch)
    return whole, np.array(sessions, np.int32), np.array(counted, np.bool_)


def pieces(kind: Kind, records: list[Any], cuts: list[int]) -> list[Piece]:
    bounds = [0, *sorted(cut % (len(records) + 1) for cut in cuts), len(records)]
    return [aggregate(kind, *batch(kind, records[a:b], a)) for a, b in pairwise(bounds)]


def plain(kind: Kind, records: list[Any]) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """The same by a fold, record by record."""
    whole, sessions, counted = batch(kind, records, 0)
    by_bar: dict[Any, list[Any]] = {}
    by_session: dict[Any, list[Any]] = {}
    for row, session, counts in zip(whole.to_pylist(), sessions.tolist(), counted, strict=True):
        if counts:
            key = (row["exchange"], row["symbol"], session)
            by_session.setdefault(key, []).append(row)
            by_bar.setdefault((*key, row["ts_event"] // BAR_NS * BAR_NS), []).append(row)
    newest: dict[Any, int] = {}
    for exchange, symbol, session in by_session:
        newest[exchange, symbol] = max(session, newest.get((exchange, symbol), session))
    latest = {
        key: _told(kind, by_session[*key, session], session) for key, session in newest.items()
    }
    bars = {key: _told(kind, rows, key[2]) for key, rows in by_bar.items()}
    return latest, bars if kind is TRADES else {}


def _told(kind: Kind, rows: list[Any], session: int) -> dict[str, Any]:
    rows = sorted(rows, key=lambda r: (r["ts_event"], r["sequence"], r["kafka_offset"]))
    told: dict[str, Any] = {
        "session": session,
        "records": len(rows),
        "first": (rows[0]["ts_event"], rows[0]["sequence"], rows[0]["kafka_offset"]),
        "last": (rows[-1]["ts_event"], rows[-1]["sequence"], rows[-1]["kafka_offset"]),
    }
    if kind is TRADES:
        prices = [_unscaled(r["price"]) for r in rows]
        sizes = [_unscaled(r["size"]) for r in rows]
        told |= {
            "open": prices[0],
            "high": max(prices),
            "low": min(prices),
            "close": prices[-1],
            "volume": sum(sizes),
            "notional": sum(p * s for p, s in zip(prices, sizes, strict=True)),
        }
    return told


def read(kind: Kind, form: Form, rows: pa.Table) -> dict[Any, Any]:
    """The merged rows in the terms of the fold."""
    assert rows.schema == form.schema
    found = {}
    for row in rows.to_pylist():
        told = {
            "session": row["session"],
            "records": row["records"],
            "first": tuple(row[f"first_{name}"] for name in ("ts", "sequence", "offset")),
            "last": tuple(row[name] for name in form.last),
        }
        if kind is TRADES:
            told |= {name: row[name] for name in ("open", "high", "low")}
            told |= {
                "close": row["close"] if form is BARS else _unscaled(row["price"]),
                "volume": joined(row[name] for name in VOLUME),
                "notional": joined(row[name] for name in NOTIONAL),
            }
        key = tuple(row[name] for name in form.keys)
        assert key not in found
        found[key] = told
    return found


def _unscaled(value: Decimal) -> int:
    return int(value.scaleb(8))


@pytest.mark.parametrize("kind", [TRADES, QUOTES], ids=lambda kind: kind.name)
@given(
    records=st.lists(RECORDS, max_size=40),
    cuts=st.lists(st.integers(0, 40), max_size=4),
    order=st.randoms(use_true_random=False),
)
def test_any_split_and_any_order_of_merging_says_what_a_plain_fold_says(
    kind: Kind, records: list[Any], cuts: list[int], order: Any
) -> None:
    """Batches are a monoid: what they say together depends on the records alone."""
    latest, bars = plain(kind, records)
    parts = pieces(kind, records, cuts)
    order.shuffle(parts)
    while len(parts) > 1:  # merged two at a time, in any shape of tree
        one, other = (parts.pop(order.randrange(len(parts))) for _ in range(2))
        merged = Piece(
            merge(LATEST[kind], [one.latest, other.latest]), merge(BARS, [one.bars, other.bars])
        )
        parts.append(merged)
    assert read(kind, LATEST[kind], parts[0].latest) == latest
    assert read(kind, BARS, parts[0].bars) == bars


@given(records=st.lists(RECORDS, min_size=1, max_size=40), cuts=st.lists(st.integers(0, 40)))
def test_the_last_record_is_kept_whole(records: list[Any], cuts: list[int]) -> None:
    """All of its columns are those of one record, nulls too."""
    whole, _, _ = batch(TRADES, records, 0)
    by_offset = {row["kafka_offset"]: row for row in whole.to_pylist()}
    tables = [piece.latest for piece in pieces(TRADES, records, cuts)]
    for row in merge(LATEST[TRADES], tables).to_pylist():
        expected = by_offset[row["kafka_offset"]]
        assert {name: row[name] for name in TRADES.batch.names} == expected


@given(records=st.lists(RECORDS, max_size=60))
def test_a_session_is_the_sum_of_its_bars(records: list[Any]) -> None:
    (piece,) = pieces(TRADES, records, [])
    bars = read(TRADES, BARS, piece.bars)
    for key, told in read(TRADES, LATEST[TRADES], piece.latest).items():
        own = [bar for at, bar in bars.items() if at[:3] == (*key, told["session"])]
        for name in ("records", "volume", "notional"):
            assert sum(bar[name] for bar in own) == told[name]
        assert min(bar["first"] for bar in own) == told["first"]
        assert max(bar["last"] for bar in own) == told["last"]


def test_a_late_record_counts_in_its_minute_and_is_not_the_last() -> None:
    """It came behind a newer one, with a lower time."""
    records = [
        ("A", 1, BAR_NS + 5, 9, 10 * E8, E8, True),
        ("A", 1, 3, 8, 30 * E8, 2 * E8, True),
    ]
    (piece,) = pieces(TRADES, records, [])
    (row,) = piece.latest.to_pylist()
    assert (row["sequence"], row["records"], row["open"], row["high"]) == (9, 2, 30 * E8, 30 * E8)
    assert [(bar["start"], bar["records"]) for bar in piece.bars.to_pylist()] == [
        (0, 1),
        (BAR_NS, 1),
    ]


def test_a_newer_session_begins_anew_and_an_older_one_no_longer_counts() -> None:
    """Also when the older session's record has the later time."""
    records = [("A", 5, 100, 1, E8, E8, True), ("A", 4, 200, 1, 9 * E8, E8, True)]
    for cuts in ([], [1]):
        rows = merge(LATEST[TRADES], [p.latest for p in pieces(TRADES, records, cuts)])
        (row,) = rows.to_pylist()
        assert (row["session"], row["records"], row["ts_event"], row["high"]) == (5, 1, 100, E8)


@given(
    records=st.lists(RECORDS, max_size=40),
    ahead=st.lists(st.sampled_from([0, 1, AHEAD_MAX_NS, AHEAD_MAX_NS + BAR_NS, 2**61])),
    cut=st.integers(0, 40),
)
def test_a_clock_far_ahead_begins_no_bar(records: list[Any], ahead: list[int], cut: int) -> None:
    """Such a record counts in its session, and may be the last; whatever it is in a batch with."""
    whole, sessions, counted = batch(TRADES, records, 0)
    times = whole.column("ts_event").to_pylist()
    received = [t - (ahead[i % len(ahead)] if ahead else 0) for i, t in enumerate(times)]
    place = whole.schema.get_field_index("ts_recv")
    whole = whole.set_column(place, whole.schema.field(place), pa.array(received, pa.int64()))
    parts = [
        aggregate(TRADES, whole[own], sessions[own], counted[own])
        for own in (slice(0, cut), slice(cut, None))
    ]
    latest, _ = plain(TRADES, records)
    assert read(TRADES, LATEST[TRADES], merge(LATEST[TRADES], [p.latest for p in parts])) == latest
    near = [
        (*record[:-1], record[-1] and t // BAR_NS - r // BAR_NS <= AHEAD_MAX_NS // BAR_NS)
        for record, t, r in zip(records, times, received, strict=True)
    ]
    _, bars = plain(TRADES, near)
    assert read(TRADES, BARS, merge(BARS, [p.bars for p in parts])) == bars


def test_long_strings_of_the_last_record_are_cut_and_the_keys_are_not() -> None:
    """By characters, not by bytes; without them the strings are those of the record."""
    symbol, text = "Ä" * 3 * TEXT_MAX, "Ü" * (TEXT_MAX + 1)
    for own, kept in ((text, text[:TEXT_MAX]), (text[1:], text[1:]), ("", ""), (None, None)):
        whole, sessions, counted = batch(TRADES, [(symbol, 1, 0, 1, E8, E8, True)] * 2, 0)
        place = whole.schema.get_field_index("conditions")
        column = pa.array([None, own], pa.string())
        whole = whole.set_column(place, whole.schema.field(place), column)
        piece = aggregate(TRADES, whole, sessions, counted)
        assert piece.latest.schema == LATEST[TRADES].schema
        assert piece.latest.column("conditions").to_pylist() == [kept]
        assert piece.latest.column("symbol").to_pylist() == [symbol]
        assert piece.bars.column("symbol").to_pylist() == [symbol]
    quotes = aggregate(QUOTES, *batch(QUOTES, [("A", 1, 0, 1, E8, E8, True)], 0))
    assert quotes.latest.column("venue").to_pylist() == [None]


def test_nothing_says_nothing() -> None:
    for kind in (TRADES, QUOTES):
        (piece,) = pieces(kind, [], [])
        assert (piece.latest, piece.bars) == (
            LATEST[kind].schema.empty_table(),
            BARS.schema.empty_table(),
        )
        assert merge(LATEST[kind], []) == LATEST[kind].schema.empty_table()
        none_counts = [("A", 1, 0, 1, E8, E8, False)]
        assert pieces(kind, none_counts, [])[0] == piece


def test_tables_of_two_forms_are_not_merged() -> None:
    (piece,) = pieces(TRADES, [("A", 1, 0, 1, E8, E8, True)], [])
    with pytest.raises(pa.ArrowInvalid):
        merge(BARS, [piece.bars, piece.latest])


@given(st.lists(st.tuples(AMOUNTS, AMOUNTS), min_size=1, max_size=20))
def test_limbs_add_up_to_the_exact_sums(pairs: list[tuple[int, int]]) -> None:
    one, other = (np.array(values, np.int64) for values in zip(*pairs, strict=True))
    exact = sum(a * b for a, b in pairs)
    for limbs, expected in (
        (product(one, other), exact),
        (split(one), sum(a for a, _ in pairs)),
    ):
        sums = [np.array([limb.sum()]) for limb in limbs]
        narrow = carried(sums)
        for found in (sums, narrow):
            assert joined(int(limb[0]) for limb in found) == expected
        assert all(0 <= limb[0] < 1 << 32 for limb in narrow[:-1])


@given(
    st.lists(
        st.tuples(
            *[st.sampled_from([0, 1, 3, 65_535, 2**40, -(2**62), 2**62])] * 4,
            st.integers(0, 3),
        ),
        min_size=1,
        max_size=300,
    )
)
def test_groups_are_those_of_the_keys_whatever_their_width(rows: list[tuple[int, ...]]) -> None:
    """Codes of 16 bits, of 32 and of more are sorted in different ways."""
    columns = [np.array(values, np.int64) for values in zip(*rows, strict=True)]
    groups = Groups(codes(*columns))
    found = [
        groups.by[a : a + n].tolist() for a, n in zip(groups.starts, groups.counts, strict=True)
    ]
    expected: dict[tuple[int, ...], list[int]] = {}
    for i, key in enumerate(rows):
        expected.setdefault(key, []).append(i)
    assert found == [expected[key] for key in sorted(expected)]
