"""Cursors: pages of any size are together the whole answer, whatever is committed in between."""

from __future__ import annotations

import base64
import json
import random
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pytest
from pyiceberg.catalog import Catalog

from k2.errors import BadQuery, PeerUnavailable
from k2.lake.catalog import ensure_tables, load_table, open_catalog, table_name
from k2.lake.commit import Sink
from k2.lake.offsets import Move, Source
from k2.query import pages
from k2.query.engine import Engine
from k2.query.fresh import Fresh, Part
from k2.query.pages import Cursor, Cut, digest
from k2.query.snapshots import AsOf
from k2.schemas import GAPS, TRADES
from k2.settings import Settings
from tests.unit.test_query_engine import START, row

TOPIC = "market.trades.asx"
ASKED = digest("trades", {})
NO_GAPS = GAPS.empty_table()


class Lake(NamedTuple):
    engine: Engine
    catalog: Catalog
    settings: Settings
    sink: Sink
    offsets: dict[Source, int]

    def commit(self, rows: list[dict[str, Any]], to: dict[int, int], *moves: Move) -> None:
        """Rows, and the next offsets of partitions."""
        files = self.sink.write(pa.Table.from_pylist(rows, TRADES.table))
        sources = {Source("c", TOPIC, partition): offset for partition, offset in to.items()}
        before = {s: self.offsets[s] for s in sources if s in self.offsets}
        self.sink.commit(files, before, sources, moves)
        self.offsets.update(sources)

    def expire(self) -> None:
        table = load_table(self.catalog, table_name(self.settings, TRADES))
        newest = table.metadata.current_snapshot_id
        gone = [s.snapshot_id for s in table.metadata.snapshots if s.snapshot_id != newest]
        if gone:
            table.maintenance.expire_snapshots().by_ids(gone).commit()

    def page(self, cursor: str | None, limit: int | None = None, **more: Any) -> Any:
        after = None if cursor is None else Cursor.read(cursor, ASKED)
        rows = self.engine.records(TRADES, limit=limit, after=after, asked=ASKED, **more)
        return rows.read_all().to_pylist(), rows


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[Lake]:
    settings = Settings(data=tmp_path)
    catalog = open_catalog(settings)
    ensure_tables(catalog, settings)
    engine = Engine(catalog, settings)
    yield Lake(engine, catalog, settings, Sink(catalog, table_name(settings, TRADES), settings), {})
    engine.close()


def some(draw: random.Random, partition: int, offsets: range, **more: object) -> list[dict]:
    """Rows of a partition; many of one time, some late."""
    return [
        row(n, START + draw.randrange(12) * 1000, kafka_partition=partition, sequence=n, **more)
        for n in offsets
    ]


def fill(lake: Lake, draw: random.Random, commits: int) -> None:
    for _ in range(commits):
        partition, count = draw.randrange(3), draw.randrange(1, 12)
        first = lake.offsets.get(Source("c", TOPIC, partition), 0)
        rows = some(draw, partition, range(first, first + count))
        lake.commit(rows, {partition: first + count})


def all_pages(
    lake: Lake, draw: random.Random, between: Callable[[], None], **more: Any
) -> list[dict]:
    found, cursor = [], None
    while True:
        page, rows = lake.page(cursor, draw.randrange(1, 9), **more)
        found += page
        cursor = rows.next
        assert rows.truncated == (cursor is not None)
        if cursor is None:
            return found
        between()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("at_once", [True, False])
def test_pages_are_together_the_whole_while_commits_happen(
    lake: Lake, seed: int, at_once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the snapshot of the first page expires, and for pages of either way of reading."""
    if not at_once:
        monkeypatch.setattr(pages, "PAGE_ROWS_MAX", 0)
    draw = random.Random(seed)
    fill(lake, draw, 6)
    whole, rows = lake.page(None)
    keys = [[one[name] for name in pages.KEY if name in one] for one in whole]
    assert keys == sorted(keys)

    def between() -> None:
        if draw.random() < 0.5:
            fill(lake, draw, 1)
        if draw.random() < 0.3:
            lake.expire()

    assert all_pages(lake, draw, between) == whole
    after = lake.page(None)[1]
    assert after.snapshot_id != rows.snapshot_id


@pytest.mark.parametrize("at_once", [True, False])
def test_records_that_were_read_twice_are_given_twice(
    lake: Lake, at_once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the whole has them, wherever a page ends between them."""
    if not at_once:
        monkeypatch.setattr(pages, "PAGE_ROWS_MAX", 0)
    draw = random.Random(3)
    rows = some(draw, 0, range(5))
    lake.commit(rows * 3, {0: 5})
    whole, _ = lake.page(None)
    assert len(whole) == 15
    for seed in range(5):
        assert all_pages(lake, random.Random(seed), lambda: None) == whole


def test_with_quotes_they_are_given_twice_too(lake: Lake) -> None:
    """A page of them ends anywhere between rows of one key."""
    lake.commit(some(random.Random(3), 0, range(5)) * 3, {0: 5})
    whole = lake.engine.quoted(asked=ASKED).read_all().to_pylist()
    for size in (1, 2, 4):
        found, after = [], None
        while True:
            rows = lake.engine.quoted(limit=size, after=after, asked=ASKED)
            found += rows.read_all().to_pylist()
            if rows.next is None:
                break
            after = Cursor.read(rows.next, ASKED)
        assert found == whole
        assert len(whole) == 15


def test_a_page_names_the_snapshot_of_the_first(lake: Lake) -> None:
    """And its valid_through and coverage, though a later snapshot is read."""
    draw = random.Random(1)
    fill(lake, draw, 3)
    _, first = lake.page(None, 1)
    fill(lake, draw, 2)
    for _ in range(2):
        _, second = lake.page(first.next, 2)
        assert second.snapshot_id == first.snapshot_id
        assert second.known == first.known
        lake.expire()


def test_an_older_snapshot_has_pages_too(lake: Lake) -> None:
    draw = random.Random(2)
    fill(lake, draw, 4)
    then = AsOf.id(lake.page(None)[1].snapshot_id)
    whole, _ = lake.page(None)
    fill(lake, draw, 3)
    assert all_pages(lake, draw, lambda: None, as_of=then) == whole


def test_a_cursor_keeps_the_span_that_was_asked_for_first(lake: Lake) -> None:
    """`range=-1h:now` means another hour when the second page is asked for."""
    lake.commit([row(n, START + n) for n in range(6)], {0: 6})
    first, rows = lake.page(None, 2, start_ns=START + 1, end_ns=START + 5)
    rest, _ = lake.page(rows.next, start_ns=START + 3, end_ns=START + 9)
    assert [one["ts_event"] - START for one in first + rest] == [1, 2, 3, 4]


def moved(before: int | None, after: int | None) -> Move:
    return Move(Source("c", TOPIC, 0), before, after, "ann", "2026-01-01T00:00:00Z", "why")


def test_a_cursor_ends_where_offsets_no_longer_tell_its_rows(lake: Lake) -> None:
    """An operator moved the offset back: rows below it are added, which the answer did not have."""
    lake.commit([row(n, START + n) for n in range(6)], {0: 6})
    _, rows = lake.page(None, 2)
    lake.commit([], {0: 0}, moved(6, 0))
    assert len(lake.page(rows.next)[0]) == 4  # its snapshot is still there
    lake.expire()
    with pytest.raises(BadQuery, match="expired"):
        lake.page(rows.next)


def test_a_cursor_without_offsets_ends_with_its_snapshot(lake: Lake) -> None:
    """Another engine's commits carry none, and those of very many sources do not fit."""
    sources = {n: 10**9 + n * 7919 for n in range(3000)}
    lake.commit([row(n, START + n) for n in range(6)], sources)
    _, rows = lake.page(None, 2)
    assert len(rows.next) < pages.TEXT_MAX
    assert len(lake.page(rows.next)[0]) == 4
    lake.commit([], {0: 5 * 10**9})
    lake.expire()
    with pytest.raises(BadQuery, match="expired"):
        lake.page(rows.next)


def test_fresh_pages_go_on_after_what_was_in_hand_is_committed(lake: Lake) -> None:
    """What comes meanwhile is not among them; what a new owner must read again is waited for."""
    rows = [row(n, START + n) for n in range(8)]
    lake.commit(rows[:2], {0: 2})
    source = Source("c", TOPIC, 0)

    def fresh(first: int, following: int) -> Fresh:
        held = pa.Table.from_pylist(rows[first:following], TRADES.table)
        return Fresh([Part(source, first, following, 0, held)], NO_GAPS)

    found, page = lake.page(None, 3, fresh=fresh(2, 6))
    assert page.snapshot_id is not None
    with pytest.raises(PeerUnavailable, match="again"):
        lake.page(page.next, fresh=fresh(2, 3))
    lake.commit(rows[2:5], {0: 5})
    more, page = lake.page(page.next, 2, fresh=fresh(5, 8))
    lake.commit(rows[5:8], {0: 8})
    rest, page = lake.page(page.next, fresh=fresh(8, 8))
    assert [one["kafka_offset"] for one in found + more + rest] == [0, 1, 2, 3, 4, 5]
    assert page.next is None


def test_a_cursor_of_another_query_is_refused() -> None:
    last = pages.Place((START, TOPIC, 0, 1, "c"))
    text = str(Cursor(ASKED, None, None, (Cut(7, {Source("c", TOPIC, 0): 2}, 0, None),), last))
    assert Cursor.read(text, ASKED).last == last
    with pytest.raises(BadQuery, match="another query"):
        Cursor.read(text, digest("trades", {"symbol": "BHP"}))


LAST = ([1, "t", 0, 1, "c"], 1)
ONE = [[7, None, 0, None]]


@pytest.mark.parametrize(
    "told",
    [
        [],
        {},
        [ASKED, None, None, [], *LAST],
        [ASKED, None, None, [["7", None, 0, None]], *LAST],
        [ASKED, None, None, [[7, None, None, None]], *LAST],
        [ASKED, None, None, [[7, [["c", "t", 0, None]], 0, None]], *LAST],
        [ASKED, None, None, ONE, [1, "t", 0, "1", "c"], 1],
        [ASKED, None, None, ONE, [1, "t", 0, 1], 1],
        [ASKED, None, None, ONE, [1, "t", 0, 1, "c"], 0],
        [ASKED, None, None, ONE, [], 2**63 - 1],
        [ASKED, None, None, ONE, [2**63, "t", 0, 1, "c"], 1],
        [ASKED, 2**63, None, ONE, *LAST],
    ],
)
def test_a_forged_cursor_is_refused(told: object) -> None:
    text = base64.urlsafe_b64encode(zlib.compress(json.dumps(told).encode())).decode()
    with pytest.raises(BadQuery, match="cursor"):
        Cursor.read(text, ASKED)


def test_a_cut_cursor_is_refused() -> None:
    last = pages.Place((START, TOPIC, 0, 1, "c"))
    text = str(Cursor(ASKED, None, None, (Cut(7, None, 0, None),), last))
    for cut in (text[:-3], text[1:], text + "A", "", "é"):
        with pytest.raises(BadQuery, match="cursor"):
            Cursor.read(cut, ASKED)


def test_bars_and_symbols_have_pages_too(lake: Lake) -> None:
    """Of the trades that the first page was made of, also when its snapshot has expired."""
    draw = random.Random(5)
    names = [f"S{n}" for n in range(9)]

    def more() -> None:
        first = lake.offsets.get(Source("c", TOPIC, 0), 0)
        rows = [r | {"symbol": draw.choice(names)} for r in some(draw, 0, range(first, first + 40))]
        lake.commit(rows, {0: first + 40})
        if draw.random() < 0.5:
            lake.expire()

    def bars(limit: int | None = None, after: Cursor | None = None) -> Any:
        return lake.engine.bars("ASX", "S1", None, None, 10**6, limit, after=after, asked=ASKED)

    def symbols(limit: int | None = None, after: Cursor | None = None) -> Any:
        return lake.engine.symbols(limit=limit, after=after, asked=ASKED)

    more()
    spread = [
        row(n, START + n * 10**7, symbol="S1", kafka_partition=1, sequence=n) for n in range(20)
    ]
    lake.commit(spread, {1: 20})
    for read in (bars, symbols):
        whole = read()
        rows = whole.read_all().to_pylist()
        assert len(rows) >= 9
        found, after = [], None
        while True:
            page = read(draw.randrange(1, 5), after)
            assert (page.snapshot_id, page.known) == (whole.snapshot_id, whole.known)
            found += page.read_all().to_pylist()
            if page.next is None:
                break
            after = Cursor.read(page.next, ASKED)
            more()
        assert found == rows
