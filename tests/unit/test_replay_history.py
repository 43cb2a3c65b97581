"""History in event-time order: of any files, in windows of any size, from any position on."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from k2.errors import BadQuery, CatalogUnavailable
from k2.lake.offsets import Source
from k2.query.rows import Stop
from k2.replay.archive import Archive, Selection
from k2.replay.cursor import START as BEGINNING
from k2.replay.cursor import Position, parse
from k2.replay.digest import Digest
from k2.replay.history import History
from k2.schemas import KINDS, QUOTES, TRADES
from tests.lakes import START, Lake, Row, finding, source

ONE, TWO = source(TRADES, 0), source(TRADES, 1)
FORMER = source(TRADES, 0, "c/former")
BIDS = source(QUOTES, 0)


def some(seed: int, count: int, spread: int = 50_000) -> list[Row]:
    """Times that repeat, fall and lie far from each other."""
    draw = random.Random(seed)
    far = 86_400_000_000_000
    return [
        (draw.randrange(spread) + far * (draw.random() < 0.1), draw.choice("ABC"))
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """Six commits of four logs, of which two have one name."""
    made = Lake(tmp_path_factory.mktemp("lake"))
    for seed in range(3):
        rows = {ONE: some(seed, 90), TWO: some(seed + 10, 70), FORMER: some(seed + 20, 20)}
        made.commit(TRADES, rows)
        made.commit(QUOTES, {BIDS: some(seed + 30, 120)})
    return made


@pytest.fixture(scope="module")
def archive(lake: Lake) -> Iterator[Archive]:
    opened = Archive(lake.catalog, lake.settings)
    yield opened
    opened.close()


def replay(
    archive: Archive,
    which: Selection = Selection(),  # noqa: B008 - it is frozen
    cursor: str | None = None,
    rows: int = 50,
) -> tuple[pa.Table, Digest]:
    moment, pin, after = archive.now(), None, BEGINNING
    if cursor is not None:
        moment, (pin, after) = archive.at(cursor)
    history = History(archive, moment, pin or moment.pin, which, after, Stop(), rows)
    pieces = []
    while (piece := history.read()) is not None:
        assert 0 < piece.num_rows <= 3 * rows
        pieces.append(piece)
    history.close()
    whole = pa.concat_tables(pieces, promote_options="default") if pieces else pa.table({})
    return whole, history.digest


def order(rows: pa.Table) -> list[tuple[Any, ...]]:
    names = ("ts_event", "kafka_topic", "kafka_partition", "kafka_offset")
    return list(zip(*(rows[name].to_pylist() for name in names), strict=True))


def same(rows: pa.Table, others: pa.Table) -> bool:
    """Equal, but for the columns of kinds of which there is nothing among `rows`."""
    return rows.num_rows == others.num_rows and rows.equals(others.select(rows.column_names))


def test_order_is_by_time_and_then_by_topic_partition_and_offset(archive: Archive) -> None:
    rows, digest = replay(archive)
    assert rows.num_rows == 3 * (90 + 70 + 20 + 120)
    keys = order(rows)
    assert keys == sorted(keys)
    assert digest.counts == {"trade": 540, "quote": 360, "gap": 0}
    times = [key[0] for key in keys]
    assert len(set(times)) < len(times), "no two records of one time"


@pytest.mark.parametrize("rows", [1, 7, 100, 10_000])
def test_windows_of_any_size_give_the_same_and_the_same_digest(archive: Archive, rows: int) -> None:
    whole, digest = replay(archive)
    again, alike = replay(archive, rows=rows)
    assert again.equals(whole)
    assert alike.text == digest.text


def test_cursor_of_every_record_goes_on_behind_it(archive: Archive) -> None:
    whole, _ = replay(archive)
    cursors = whole["cursor"].to_pylist()
    assert len(set(cursors)) == len(cursors)
    for at in range(0, len(cursors), 13):
        rest, _ = replay(archive, cursor=cursors[at], rows=200)
        assert same(rest, whole.slice(at + 1))


def test_history_goes_on_as_it_was_pinned_whatever_is_committed_or_expires(tmp_path: Path) -> None:
    lake = Lake(tmp_path, snapshots_keep=1, snapshots_expire_every=1, snapshot_age_min_ms=0)
    archive = Archive(lake.catalog, lake.settings)
    for seed in range(3):
        lake.commit(TRADES, {ONE: some(seed, 50)})
        lake.commit(QUOTES, {BIDS: some(seed, 50)})
    whole, digest = replay(archive)
    moment = archive.now()
    for seed in range(5):
        lake.commit(TRADES, {ONE: some(seed, 50), TWO: some(seed + 1, 50)})
        lake.commit(QUOTES, {BIDS: some(seed, 50)})
    kept = {s.snapshot_id for s in archive.now().tables[TRADES].metadata.snapshots}
    assert moment.snapshots["trades"] not in kept
    rest, _ = replay(archive, cursor=whole["cursor"][99].as_py())
    assert same(rest, whole.slice(100))
    again, alike = replay(archive, cursor=moment.pin.cursor(BEGINNING))
    assert again.equals(whole)
    assert alike.text == digest.text
    assert replay(archive)[0].num_rows == whole.num_rows + 750
    archive.close()


def test_selection_is_what_is_replayed(archive: Archive) -> None:
    whole, _ = replay(archive)
    frame = whole.to_pylist()

    def chosen(which: Selection) -> list[str]:
        rows, _ = replay(archive, which)
        return rows["cursor"].to_pylist() if rows.num_rows else []

    def wanted(test: Any) -> list[str]:
        return [row["cursor"] for row in frame if test(row)]

    start, end = START + 10_000, START + 20_000
    assert chosen(Selection(KINDS, None, None, start, end)) == wanted(
        lambda row: start <= row["ts_event"] < end
    )
    assert chosen(Selection((QUOTES,), "SIM", ["A", "X"])) == wanted(
        lambda row: row["type"] == "quote" and row["symbol"] == "A"
    )
    assert chosen(Selection(KINDS, "ASX")) == []
    assert chosen(Selection(KINDS, None, None, None, START)) == []


def test_digest_is_of_the_content_and_of_the_order(archive: Archive) -> None:
    rows, digest = replay(archive)
    split = Digest()
    for first in range(0, rows.num_rows, 17):
        split.add(rows.slice(first, 17))
    assert split.text == digest.text
    seen = {digest.text}
    flipped = pa.concat_tables([rows.slice(1, 1), rows.slice(0, 1), rows.slice(2)])
    texts = rows.set_column(
        rows.schema.get_field_index("symbol"), "symbol",
        pa.chunked_array([pa.array(["AB", *rows["symbol"].to_pylist()[1:]])]),
    )  # fmt: skip
    for other in (flipped, rows.slice(1), texts):
        changed = Digest()
        changed.add(other)
        seen.add(changed.text)
    assert len(seen) == 4


def test_findings_stand_behind_the_record_before_what_is_missing(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    lake.commit(TRADES, {ONE: [(0, "A"), (10, "A"), (20, "A")]})
    lake.commit(QUOTES, {BIDS: [(0, "A"), (15, "A")]})
    lake.tell(
        finding(ONE, "one", 1, from_ts=START + 10, from_offset=1, to_ts=START + 20),
        finding(ONE, "two", 1, from_ts=START + 10, from_offset=1, to_ts=START + 20),
        finding(ONE, "filled", 1),
        finding(BIDS, "early", 1, from_ts=START - 50, to_ts=START + 15, kind="reset"),
        finding(ONE, "behind", 3, from_ts=START + 20, from_offset=2, to_ts=START + 30),
        finding(TWO, "unknown", 0),
    )
    lake.tell(finding(ONE, "filled", 2, revision=2, status="filled", remaining_count=0))
    lake.tell(
        finding(
            ONE, "two", 2, from_ts=START + 10, from_offset=1, to_ts=START + 20, revision=2,
            status="partly_filled", remaining_count=1,
        )
    )  # fmt: skip
    archive = Archive(lake.catalog, lake.settings)

    def told(which: Selection, **more: Any) -> list[Any]:
        rows, digest = replay(archive, which, **more)
        names = [gap or ts - START for gap, ts in zip(
            rows["gap_id"].to_pylist(), rows["ts_event"].to_pylist(), strict=True)]  # fmt: skip
        assert digest.counts["gap"] == sum(isinstance(name, str) for name in names)
        return names

    assert told(Selection()) == ["early", 0, 0, 10, "one", "two", 15, 20]
    assert told(Selection(KINDS, None, None, START + 5)) == ["early", 10, "one", "two", 15, 20]
    assert told(Selection((TRADES,), "SIM", ["A"])) == [0, 10, "one", "two", 20]
    whole, digest = replay(archive)
    assert whole.filter(pc.equal(whole["gap_id"], "two"))["remaining_count"].to_pylist() == [1]
    for at, cursor in enumerate(whole["cursor"].to_pylist()):
        rest, _ = replay(archive, cursor=cursor)
        assert same(rest, whole.slice(at + 1))
    lake.tell(
        finding(ONE, "one", 1, from_ts=START + 10, from_offset=1, status="accepted", operator="o")
    )
    assert replay(archive)[1].text == digest.text
    archive.close()


def test_rows_of_what_an_operator_made_k2_forget_stay(tmp_path: Path) -> None:
    from k2.lake.moves import Offsets

    lake = Lake(tmp_path)
    lake.commit(TRADES, {ONE: [(0, "A"), (5, "A")], TWO: [(3, "A")]})
    archive = Archive(lake.catalog, lake.settings)
    whole, _ = replay(archive)
    Offsets(lake.catalog, lake.settings).forget([ONE], "gone")
    now, _ = replay(archive)
    assert now.drop_columns("cursor").equals(whole.drop_columns("cursor"))
    assert replay(archive, cursor=whole["cursor"][0].as_py())[0].equals(whole.slice(1))
    archive.close()


def test_nothing_is_a_replay_of_nothing(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    archive = Archive(lake.catalog, lake.settings)
    rows, digest = replay(archive)
    assert (rows.num_rows, digest.counts["trade"]) == (0, 0)
    assert replay(archive, cursor=archive.now().pin.cursor(BEGINNING))[0].num_rows == 0
    archive.close()


def test_table_older_than_a_cursor_is_refused(lake: Lake, tmp_path: Path) -> None:
    archive = Archive(lake.catalog, lake.settings)
    pin = archive.now().pin
    later = type(pin)({**pin.following, ONE: 271}, pin.seen)
    with pytest.raises(CatalogUnavailable, match="read up to 270, not 271"):
        archive.at(later.cursor(BEGINNING))
    archive.close()


def test_impossible_selection_is_named() -> None:
    with pytest.raises(BadQuery, match="start: 2 is not before end 1"):
        Selection(KINDS, None, None, 2, 1)


def test_data_file_that_is_gone_is_named(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    lake.commit(TRADES, {ONE: [(0, "A")]})
    archive = Archive(lake.catalog, lake.settings)
    for path in (tmp_path / "warehouse").rglob("*.parquet"):
        path.unlink()
    with pytest.raises(CatalogUnavailable, match="data files: "):
        replay(archive)
    archive.close()


def test_memory_is_that_of_windows_not_of_the_span(tmp_path: Path) -> None:
    """A burst of one moment, and files that overlap all: no read is larger than it may be."""
    lake = Lake(tmp_path)
    for seed in range(4):
        lake.commit(TRADES, {ONE: [(7, "A")] * 500 + some(seed, 500)})
    archive = Archive(lake.catalog, lake.settings)
    rows, _ = replay(archive, rows=40)
    assert rows.num_rows == 4000
    keys = order(rows)
    assert keys == sorted(keys)
    archive.close()


def test_position_is_of_the_record(archive: Archive) -> None:
    rows, _ = replay(archive)
    pin = archive.now().pin
    for row in rows.slice(5, 20).to_pylist():
        cursor = parse(row["cursor"], pin.following)
        of = cursor.pin.sources[cursor.position.source]
        assert isinstance(of, Source)
        assert (of.topic, of.partition) == (row["kafka_topic"], row["kafka_partition"])
        assert cursor.position[:2] == Position(row["ts_event"], row["kafka_offset"], 0, 0)[:2]
        assert cursor.pin == pin
