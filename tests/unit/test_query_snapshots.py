"""Time travel: tables as they were, as far as their snapshots are kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pytest
from pyiceberg.catalog import Catalog

from k2.errors import BadQuery
from k2.lake.catalog import ensure_tables, load_table, open_catalog, table_name
from k2.lake.commit import Sink
from k2.lake.offsets import Source, Through
from k2.query.engine import Engine
from k2.query.gaps import Selection
from k2.query.rows import Rows
from k2.query.snapshots import AsOf
from k2.query.times import iso
from k2.schemas import TRADES
from k2.settings import Settings
from tests.unit.test_query_engine import SECOND, START, row

SOURCE = Source("c", "market.trades.asx", 0)


class Lake(NamedTuple):
    engine: Engine
    catalog: Catalog
    settings: Settings
    commit: Callable[[int], None]

    def ids(self) -> list[int]:
        return self.engine.snapshots(["trades"]).read_all()["snapshot_id"].to_pylist()

    def expire(self) -> None:
        """All snapshots but the newest."""
        table = load_table(self.catalog, table_name(self.settings, TRADES))
        newest = table.metadata.current_snapshot_id
        gone = [s.snapshot_id for s in table.metadata.snapshots if s.snapshot_id != newest]
        table.maintenance.expire_snapshots().by_ids(gone).commit()


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[Lake]:
    """Each commit brings one trade: that of its offset, a second behind the one before."""
    settings = Settings(data=tmp_path)
    catalog = open_catalog(settings)
    ensure_tables(catalog, settings)
    engine = Engine(catalog, settings)
    sink = Sink(catalog, table_name(settings, TRADES), settings)

    def commit(offset: int) -> None:
        rows = pa.Table.from_pylist([row(offset, START + offset * SECOND)], TRADES.table)
        before = {SOURCE: offset} if offset else {}
        sink.commit(
            sink.write(rows),
            before,
            {SOURCE: offset + 1},
            through={SOURCE: Through(offset + 1, START + offset * SECOND)},
        )
        time.sleep(0.002)  # snapshots are dated in whole ms

    yield Lake(engine, catalog, settings, commit)
    engine.close()


def offsets(rows: Rows) -> list[int]:
    return rows.read_all()["kafka_offset"].to_pylist()


def test_a_snapshot_is_named_by_its_id_or_by_a_time(lake: Lake) -> None:
    """Any time from its commit to the next one, in ns, ISO 8601 or as long ago."""
    for offset in range(4):
        lake.commit(offset)
    listed = lake.engine.snapshots(["trades"]).read_all().to_pylist()
    assert [s["rows"] for s in listed] == [1, 2, 3, 4]
    assert [s["added"] for s in listed] == [1, 1, 1, 1]
    assert [s["valid_through"] for s in listed] == [START + n * SECOND for n in range(4)]
    assert [s["parent_id"] for s in listed] == [None, *lake.ids()[:-1]]
    for n, snapshot in enumerate(listed):
        number, moment = snapshot["snapshot_id"], snapshot["committed_at"]
        for text in (str(number), str(moment), iso(moment), iso(moment + 999_999)):
            rows = lake.engine.records(TRADES, as_of=AsOf.read(text))
            assert rows.snapshot_id == number
            assert rows.valid_through == START + n * SECOND
            assert offsets(rows) == list(range(n + 1))
    assert offsets(lake.engine.records(TRADES, as_of=AsOf.read("now"))) == [0, 1, 2, 3]


def test_bars_and_symbols_are_as_they_were_too(lake: Lake) -> None:
    for offset in range(3):
        lake.commit(offset)
    then = AsOf.id(lake.ids()[1])
    bars = lake.engine.bars("ASX", "BHP", None, None, 3600 * SECOND, as_of=then)
    assert (bars.snapshot_id, bars.read_all()["trades"].to_pylist()) == (then.snapshot_id, [2])
    symbols = lake.engine.symbols(as_of=then)
    assert (symbols.snapshot_id, symbols.valid_through) == (then.snapshot_id, START + SECOND)
    assert symbols.read_all()["trades"].to_pylist() == [2]


@pytest.mark.parametrize("text", ["5", "2014-03-10", "9223372036854775807"])
def test_what_is_not_kept_is_refused_with_what_there_is(lake: Lake, text: str) -> None:
    """A number that is no snapshot, a time before the first, and one that is to come."""
    lake.commit(0)
    with pytest.raises(BadQuery, match=str(lake.ids()[0])) as caught:
        lake.engine.records(TRADES, as_of=AsOf.read(text))
    assert caught.value.parameter == "as_of"


def test_an_expired_snapshot_is_refused(lake: Lake) -> None:
    lake.commit(0)
    (first,) = lake.ids()
    lake.commit(1)
    lake.expire()
    assert lake.ids() != [first]
    with pytest.raises(BadQuery, match="expired"):
        lake.engine.records(TRADES, as_of=AsOf.read(str(first)))


def test_a_table_without_a_commit_was_empty_then(lake: Lake) -> None:
    assert offsets(lake.engine.records(TRADES, as_of=AsOf.read("now"))) == []
    with pytest.raises(BadQuery, match="no snapshot yet"):
        lake.engine.records(TRADES, as_of=AsOf.id(7))


def test_the_ledger_has_snapshots_of_its_own(lake: Lake) -> None:
    """An id is one table's: that of the trades is none of the ledger."""
    lake.commit(0)
    assert lake.engine.gaps(Selection()).snapshot_id is None
    with pytest.raises(BadQuery, match="gaps has no snapshot"):
        lake.engine.gaps(Selection(), as_of=AsOf.id(lake.ids()[0]))


def test_snapshots_of_a_span_and_the_newest_of_them(lake: Lake) -> None:
    for offset in range(3):
        lake.commit(offset)
    first, second, third = lake.engine.snapshots().read_all().to_pylist()
    assert {s["table"] for s in (first, second, third)} == {"trades"}
    within = lake.engine.snapshots(None, second["committed_at"], third["committed_at"])
    assert within.read_all().to_pylist() == [second]
    newest = lake.engine.snapshots(limit=1)
    assert (newest.truncated, newest.read_all().to_pylist()) == (True, [third])
    with pytest.raises(BadQuery, match="table"):
        lake.engine.snapshots(["replays"])


def test_symbols_by_name_and_span(lake: Lake) -> None:
    table = load_table(lake.catalog, table_name(lake.settings, TRADES))
    rows = [row(0, START), row(1, START, symbol="RIO"), row(2, START, exchange="SIM")]
    table.append(pa.Table.from_pylist(rows, TRADES.table))

    def named(**which: object) -> list[tuple[str, str]]:
        found = lake.engine.symbols(**which).read_all().to_pylist()  # type: ignore[arg-type]
        return [(one["exchange"], one["symbol"]) for one in found]

    assert named() == [("ASX", "BHP"), ("ASX", "RIO"), ("SIM", "BHP")]
    assert named(exchange="ASX", symbols=["BHP", "XRO"]) == [("ASX", "BHP")]
    assert named(start_ns=START + 1) == []
    assert lake.engine.symbols(limit=2).truncated
    assert not lake.engine.symbols(limit=3).truncated
