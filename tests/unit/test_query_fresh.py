"""Rows that are not committed yet: chosen, sent, and joined with a snapshot without a seam."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from k2.errors import BadQuery, CatalogUnavailable, QueryTooLarge, SchemaMismatch
from k2.lake.catalog import ensure_tables, open_catalog, table_name
from k2.lake.commit import Sink
from k2.lake.offsets import Source
from k2.query.engine import Engine
from k2.query.fresh import Fresh, Held, Part, choose, decode, encode
from k2.query.room import Room
from k2.query.rows import Coverage
from k2.query.span import Span
from k2.schemas import GAPS, QUOTES, TRADES
from k2.settings import Settings

START = 1394409600_000_000_000
SECOND = 1_000_000_000
ONE, TWO = (Source("c", "market.trades.asx", partition) for partition in (0, 1))
NO_GAPS = GAPS.empty_table()


def rows(source: Source, first: int, following: int, symbol: str = "BHP") -> pa.Table:
    """Trades of [first, following), one a second."""
    listed = [
        {
            "exchange": "ASX",
            "symbol": symbol,
            "session": dt.date(2014, 3, 10),
            "event_time": dt.datetime(2014, 3, 10, tzinfo=dt.UTC) + dt.timedelta(seconds=offset),
            "sequence": offset,
            "ts_event": START + offset * SECOND,
            "ts_recv": START + offset * SECOND,
            "price": Decimal(offset + 1),
            "size": Decimal(10),
            "side": "NONE",
            "verdict": "ok",
            "kafka_cluster": source.cluster,
            "kafka_topic": source.topic,
            "kafka_partition": source.partition,
            "kafka_offset": offset,
            "ingest_time": dt.datetime(2014, 3, 10, tzinfo=dt.UTC),
        }
        for offset in range(first, following)
    ]
    return pa.Table.from_pylist(listed, TRADES.table)


def gap(topic: str, gap_id: str = "g", **more: Any) -> pa.Table:
    fields: dict[str, Any] = {
        "string": "x", "int64": 7, "int32": 7, "date32[day]": dt.date(2014, 3, 10),
    }  # fmt: skip
    moment = dt.datetime(2014, 3, 10, tzinfo=dt.UTC)
    row = {f.name: fields.get(str(f.type), moment) for f in GAPS}
    row |= {"remaining": [{"first": 1, "last": 2}], "gap_id": gap_id, "kafka_topic": topic}
    row |= more
    return pa.Table.from_pylist([row], GAPS)


def room(bytes_max: int = 1 << 20) -> Room:
    return Room(bytes_max, "so we say")


def part(source: Source, first: int | None, following: int) -> Part:
    return Part(source, first, following, 7, rows(source, first or 0, following))


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[tuple[Engine, Callable[..., None]]]:
    settings = Settings(data=tmp_path)
    catalog = open_catalog(settings)
    ensure_tables(catalog, settings)
    sink = Sink(catalog, table_name(settings, TRADES), settings)
    engine = Engine(catalog, settings)

    def commit(*parts: tuple[Source, int]) -> None:
        """Rows up to the next offset of each source, from where the table ends."""
        before = sink.offsets()
        new = [rows(source, before.get(source, 0), end) for source, end in parts]
        files = sink.write(pa.concat_tables(new))
        sink.commit(files, {s: before.get(s) for s, _ in parts}, dict(parts))

    yield engine, commit
    engine.close()


def offsets(engine: Engine, fresh: Fresh, **more: Any) -> list[tuple[int, int]]:
    found = engine.records(TRADES, fresh=fresh, **more).read_all()
    return sorted(
        zip(found["kafka_partition"].to_pylist(), found["kafka_offset"].to_pylist(), strict=True)
    )


@given(
    committed=st.none() | st.integers(0, 30),
    known=st.none() | st.integers(0, 30),
    length=st.integers(0, 30),
    kept=st.integers(0, 30),
)
def test_no_row_is_twice_and_none_is_missing_wherever_the_table_ends(
    committed: int | None, known: int | None, length: int, kept: int
) -> None:
    """Unless the table is older than what the owner knew: that is told, and never joined."""
    following = (known or 0) + length
    held = rows(ONE, max(0, (known or 0) - kept), following)  # with some that are committed
    fresh = Fresh([Part(ONE, known, following, 0, held)], NO_GAPS)
    table = {} if committed is None else {ONE: committed}
    if known is not None and (committed is None or committed < known):
        assert fresh.stale(table)
        return
    assert fresh.stale(table) is None
    if committed is None and kept:
        return  # nothing was committed, so nothing below the first row is held
    there = list(range(committed or 0))
    there += fresh.beyond(table, TRADES)["kafka_offset"].to_pylist()
    assert there == list(range(max(committed or 0, following)))
    assert fresh.bounds(table) == {**table, ONE: len(there)}


def test_buffered_rows_stand_among_the_committed_ones(lake: Any) -> None:
    """In one order, under one limit, whether they are of one source or another."""
    engine, commit = lake
    commit((ONE, 3), (TWO, 2))
    fresh = Fresh([part(ONE, 3, 6), part(TWO, 1, 4)], NO_GAPS)
    both = [(0, n) for n in range(6)] + [(1, n) for n in range(4)]
    assert offsets(engine, fresh) == both
    answer = engine.records(TRADES, fresh=fresh, limit=5)
    assert answer.truncated
    assert answer.known is not None
    assert answer.known.fresh
    found = answer.read_all()
    assert found["kafka_offset"].to_pylist() == [0, 0, 1, 1, 2]
    one = {"start_ns": START + 2 * SECOND, "end_ns": START + 5 * SECOND}
    assert offsets(engine, fresh, **one) == [(0, 2), (0, 3), (0, 4), (1, 2), (1, 3)]
    assert offsets(engine, fresh, symbols="RIO") == []


def test_rows_committed_after_they_were_gathered_are_there_once(lake: Any) -> None:
    engine, commit = lake
    fresh = Fresh([part(ONE, None, 6), part(TWO, None, 2)], NO_GAPS)
    assert len(offsets(engine, fresh)) == 8  # no snapshot at all yet
    commit((ONE, 4))
    assert len(offsets(engine, fresh)) == 8
    commit((ONE, 9), (TWO, 2))
    assert offsets(engine, fresh) == [(0, n) for n in range(9)] + [(1, 0), (1, 1)]


def test_table_older_than_a_worker_has_seen_is_refused(lake: Any) -> None:
    engine, commit = lake
    commit((ONE, 3))
    with pytest.raises(CatalogUnavailable, match=r"read up to 3, but committed up to 4"):
        engine.records(TRADES, fresh=Fresh([part(ONE, 4, 6)], NO_GAPS))
    with pytest.raises(CatalogUnavailable, match=r"read up to None, but committed up to 1"):
        engine.bars("ASX", "BHP", None, None, SECOND, fresh=Fresh([part(TWO, 1, 1)], NO_GAPS))


def test_bars_are_over_both(lake: Any) -> None:
    engine, commit = lake
    commit((ONE, 3))
    fresh = Fresh([part(ONE, 2, 6)], NO_GAPS)
    bars = engine.bars("ASX", "BHP", None, None, 4 * SECOND, fresh=fresh).read_all().to_pylist()
    assert [(b["open"], b["close"], b["trades"]) for b in bars] == [(1, 4, 4), (5, 6, 2)]
    (first,) = (
        engine.bars(None, "BHP", None, None, 4 * SECOND, 1, fresh=Fresh([part(ONE, 3, 3)], NO_GAPS))
        .read_all()
        .to_pylist()
    )
    assert first["trades"] == 3


def test_owner_chooses_by_the_conditions_of_the_query() -> None:
    both = [rows(ONE, 3, 6), rows(ONE, 6, 9, "RIO")]
    held = [Held(ONE, 4, 9, 5, both), Held(TWO, None, 0, 5, [])]

    def chosen(which: Span) -> list[int]:
        fresh = choose(TRADES, held, [], which, room())
        assert [(p.source, p.first, p.following) for p in fresh.parts] == [
            (ONE, 4, 9),
            (TWO, None, 0),
        ]
        assert fresh.parts[1].rows.num_rows == 0
        return fresh.parts[0].rows["kafka_offset"].to_pylist()

    assert chosen(Span()) == [4, 5, 6, 7, 8]  # 3 is committed
    assert chosen(Span("ASX", ["RIO"])) == [6, 7, 8]
    assert chosen(Span("LSE")) == []
    assert chosen(Span(None, ["BHP", "RIO"], START + 5 * SECOND, START + 7 * SECOND)) == [5, 6]


def test_findings_of_the_kind_come_with_the_rows() -> None:
    gaps = [gap(ONE.topic, "a"), gap("market.quotes.asx", "b"), gap(ONE.topic, "c")]
    fresh = choose(TRADES, [Held(ONE, 0, 0, 5, [])], gaps, Span(), room())
    assert fresh.gaps["gap_id"].to_pylist() == ["a", "c"]
    again = decode(encode(fresh, TRADES), TRADES)
    assert again.gaps.equals(fresh.gaps)


def test_rows_above_the_bound_of_bytes_are_refused() -> None:
    held = [Held(ONE, 0, 100, 5, [rows(ONE, 0, 100)])]
    with pytest.raises(QueryTooLarge, match=r"gathered: \d+ bytes > 1000, so we say"):
        choose(TRADES, held, [], Span(), room(1000))
    assert choose(TRADES, held, [], Span(None, ["RIO"]), room(1000)).parts[0].following == 100
    with pytest.raises(QueryTooLarge, match=r"gathered: \d+ bytes > 1000, so we say"):
        choose(TRADES, held, [gap(ONE.topic)] * 100, Span(None, ["RIO"]), room(1000))


def test_room_is_for_all_that_takes_of_it() -> None:
    both = room(10)
    both.take(4)
    both.take(6)
    with pytest.raises(QueryTooLarge, match="gathered: 11 bytes > 10, so we say"):
        both.take(1)


def test_what_is_sent_is_what_was_chosen() -> None:
    fresh = Fresh([part(ONE, 3, 6), part(TWO, None, 0), part(Source("é", "t", 9), 0, 2)], NO_GAPS)
    again = decode(encode(fresh, TRADES), TRADES)
    assert [p.source for p in again.parts] == [p.source for p in fresh.parts]
    for one, other in zip(again.parts, fresh.parts, strict=True):
        assert (one.first, one.following) == (other.first, other.following)
        assert one.rows.equals(other.rows)


def test_what_is_not_of_the_kind_is_refused() -> None:
    body = encode(Fresh([part(ONE, 3, 6)], NO_GAPS), TRADES)
    for wrong in (body[:-1000], b"", b"<html>"):
        with pytest.raises(SchemaMismatch, match="rows of another worker"):
            decode(wrong, TRADES)
    with pytest.raises(SchemaMismatch, match="not those of quotes"):
        decode(body, QUOTES)


def test_coverage_has_the_findings_that_are_not_committed_yet(lake: Any) -> None:
    """Of exactly the records of the answer: a finding behind them is none of it."""
    engine, commit = lake
    commit((ONE, 3))
    found = gap(
        ONE.topic,
        exchange="ASX",
        symbol="BHP",
        kind="gap",
        status="open",
        remaining_count=2,
        kafka_cluster="c",
        kafka_partition=0,
        kafka_offset=5,
    )
    behind, with_it = (Fresh([part(ONE, 3, following)], found) for following in (5, 6))
    assert engine.records(TRADES).coverage == Coverage()
    assert engine.records(TRADES, fresh=behind).coverage == Coverage()
    assert engine.records(TRADES, fresh=with_it).coverage == Coverage(gaps=1, missing=2)
    bars = engine.bars("ASX", "BHP", None, None, SECOND, fresh=with_it)
    assert bars.coverage == Coverage(gaps=1, missing=2)
    assert engine.records(TRADES, symbols="RIO", fresh=with_it).coverage == Coverage()


def test_answer_is_valid_through_what_all_owners_have_seen(lake: Any) -> None:
    engine, _ = lake
    seen = [Part(source, None, 0, 7, rows(source, 0, 0)) for source in (ONE, TWO)]
    assert engine.records(TRADES, fresh=Fresh(seen, NO_GAPS)).valid_through == 7
    assert Fresh(seen, NO_GAPS).through({ONE: 9, Source("old", "t", 0): 1}) == {ONE: 9, TWO: 7}
    unseen = [seen[0], Part(TWO, None, 0, 0, rows(TWO, 0, 0))]
    assert engine.records(TRADES, fresh=Fresh(unseen, NO_GAPS)).valid_through is None


def test_impossible_span_is_named(lake: Any) -> None:
    engine, _ = lake
    with pytest.raises(BadQuery, match="start: 2 is not before end 1"):
        engine.records(TRADES, start_ns=2, end_ns=1, fresh=Fresh([], NO_GAPS))
