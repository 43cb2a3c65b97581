"""The fenced commit and the audit, over a real SQLite catalog."""

import threading
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.catalog import Catalog
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import CommitStateUnknownException
from pyiceberg.table import CommitTableResponse

from k2.errors import CatalogUnavailable, CommitFailed, Fenced, SchemaMismatch
from k2.lake.audit import audit
from k2.lake.catalog import ensure_tables, load_table, open_catalog, rejects_name, table_name
from k2.lake.commit import Sink
from k2.lake.offsets import OFFSETS_PROPERTY, TOPICS_PROPERTY, Source, Topic
from k2.schemas import REJECTS, TRADES
from k2.settings import Settings

A, B = Source("c", "market.trades.sim", 0), Source("c", "market.trades.sim", 1)
NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data=tmp_path, snapshots_keep=3, snapshot_age_min_ms=0)


@pytest.fixture
def catalog(settings: Settings) -> Iterator[Catalog]:
    catalog = open_catalog(settings)
    ensure_tables(catalog, settings)
    yield catalog
    catalog.close()


def rows(offsets: list[int], source: Source = A) -> pa.Table:
    def row(offset: int) -> dict[str, object]:
        values = {
            "exchange": "SIM", "symbol": f"S{source.partition}", "session": date(2026, 1, 2),
            "event_time": NOW, "sequence": offset, "ts_event": 1, "ts_recv": 2,
            "price": Decimal("1234567890.12345678"), "size": Decimal("0.00000001"),
            "side": "BUY", "verdict": "ok", "kafka_cluster": source.cluster,
            "kafka_topic": source.topic, "kafka_partition": source.partition,
            "kafka_offset": offset, "ingest_time": NOW,
        }  # fmt: skip
        return {name: values.get(name) for name in TRADES.table.names}

    return pa.Table.from_pylist([row(offset) for offset in offsets], schema=TRADES.table)


def test_rows_return_exactly_and_a_stale_commit_is_fenced(
    catalog: Catalog, settings: Settings
) -> None:
    one, zombie = (Sink(catalog, table_name(settings, TRADES), settings) for _ in range(2))
    one.commit(one.write(rows([0, 1])), {A: None}, {A: 2})
    with pytest.raises(Fenced, match="expected next offset None, found 2"):
        zombie.commit(zombie.write(rows([0, 1])), {A: None}, {A: 2})
    found = load_table(catalog, table_name(settings, TRADES)).scan().to_arrow().cast(TRADES.table)
    assert found.to_pylist() == rows([0, 1]).to_pylist()
    assert audit(catalog, settings).passed


def test_two_workers_lose_nothing_and_offsets_survive_expiry(
    catalog: Catalog, settings: Settings
) -> None:
    def work(source: Source) -> None:
        sink = Sink(catalog, table_name(settings, TRADES), settings)
        for n in range(20):
            sink.commit(sink.write(rows([n], source)), {source: n or None}, {source: n + 1})

    threads = [threading.Thread(target=work, args=(source,)) for source in (A, B)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sink = Sink(catalog, table_name(settings, TRADES), settings)
    sink.commit([], {A: 20}, {A: 20})
    assert sink.offsets() == {A: 20, B: 20}
    report = audit(catalog, settings)
    assert (report.rows, report.findings) == (40, [])


def test_audit_finds_holes_and_repeats(catalog: Catalog, settings: Settings) -> None:
    sink = Sink(catalog, table_name(settings, TRADES), settings)
    sink.commit(sink.write(rows([0, 1, 1, 4])), {A: None}, {A: 6})
    report = audit(catalog, settings)
    kinds = sorted(finding.kind for finding in report.findings)
    assert kinds == ["hole", "hole", "offset_twice", "sequence_twice"]
    assert "[2..3]" in str(report.findings)
    assert not report.passed


def test_commit_whose_answer_was_lost_is_found_not_repeated(settings: Settings) -> None:
    class Lossy(SqlCatalog):
        def commit_table(self, *args: Any) -> CommitTableResponse:
            super().commit_table(*args)
            raise CommitStateUnknownException("answer lost")

    plain = open_catalog(settings)
    ensure_tables(plain, settings)
    lossy = Lossy("k2", **plain.properties)
    sink = Sink(lossy, table_name(settings, TRADES), settings)
    sink.commit(sink.write(rows([0, 1])), {A: None}, {A: 2})
    assert audit(plain, settings).rows == 2
    assert sink.offsets() == {A: 2}
    plain.close()
    lossy.close()


def read(files: list[Any]) -> list[pa.Table]:
    return [pq.read_table(f.file_path.removeprefix("file://"), partitioning=None) for f in files]


def rejected(offset: int, partition: int, when: datetime = NOW) -> dict[str, Any]:
    """Only what is required, for a record whose bytes nobody understands."""
    return {
        "kafka_cluster": "c", "kafka_topic": "market.trades.sim", "kafka_partition": partition,
        "kafka_offset": offset, "kafka_time": when, "reason": "decode", "detail": "short",
        "value": b"\xff", "ingest_time": when,
    }  # fmt: skip


def test_rows_of_several_days_are_one_file_a_day(catalog: Catalog, settings: Settings) -> None:
    """Days are cut at midnight UTC, before the epoch too; a file's rows stay sorted."""
    midnight = datetime(2026, 1, 2, tzinfo=UTC)
    before = midnight - timedelta(microseconds=1)
    old = datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC)
    given = rows([0, 1, 2, 3]).drop_columns("event_time")
    times = pa.array([midnight, old, before, midnight], TRADES.table.field("event_time").type)
    table = given.append_column("event_time", times).select(TRADES.table.names).cast(TRADES.table)
    sink = Sink(catalog, table_name(settings, TRADES), settings)
    files = sink.write(table)
    assert [file.partition[0] for file in files] == [-1, 20_454, 20_455]
    assert [part["kafka_offset"].to_pylist() for part in read(files)] == [[1], [2], [0, 3]]
    sink.commit(files, {A: None}, {A: 4})
    assert audit(catalog, settings).passed


def test_trades_are_sorted_by_symbol_then_time_then_offset(
    catalog: Catalog, settings: Settings
) -> None:
    """A query of one symbol then skips the row groups of the others."""
    sink = Sink(catalog, table_name(settings, TRADES), settings)
    (part,) = read(sink.write(pa.concat_tables([rows([3, 1], B), rows([2, 0])])))
    order = zip(part["symbol"].to_pylist(), part["kafka_offset"].to_pylist(), strict=True)
    assert list(order) == [("S0", 0), ("S0", 2), ("S1", 1), ("S1", 3)]


def test_rejects_are_written_sorted_and_come_back(catalog: Catalog, settings: Settings) -> None:
    """By source and offset, a file a day of ingest; bytes and nulls unchanged."""
    tomorrow = NOW + timedelta(days=1)
    given = [rejected(5, 1), rejected(9, 0), rejected(2, 1), rejected(0, 2, tomorrow)]
    sink = Sink(catalog, rejects_name(settings), settings)
    files = sink.write(pa.Table.from_pylist(given, REJECTS))
    places = [
        list(
            zip(*part.select(["kafka_partition", "kafka_offset"]).to_pydict().values(), strict=True)
        )
        for part in read(files)
    ]
    assert places == [[(0, 9), (1, 2), (1, 5)], [(2, 0)]]
    sink.commit(files, {A: None, B: None}, {A: 10, B: 6})
    assert sink.offsets() == {A: 10, B: 6}
    back = load_table(catalog, rejects_name(settings)).scan().to_arrow().cast(REJECTS)
    key = lambda row: (row["kafka_partition"], row["kafka_offset"])  # noqa: E731
    wanted = pa.Table.from_pylist(given, REJECTS).to_pylist()
    assert sorted(back.to_pylist(), key=key) == sorted(wanted, key=key)


def test_no_rows_are_no_file_and_offsets_still_move(catalog: Catalog, settings: Settings) -> None:
    """A batch of which every record was rejected."""
    sink = Sink(catalog, table_name(settings, TRADES), settings)
    assert sink.write(TRADES.table.empty_table()) == []
    sink.commit([], {A: None}, {A: 7})
    assert sink.offsets() == {A: 7}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.drop_columns("venue"), "in: venue"),
        (lambda t: t.append_column("more", t["venue"]), "in: more"),
        (lambda t: t.rename_columns({"venue": "place"}), "in: place, venue"),
        (lambda t: t.set_column(4, "sequence", t["sequence"].cast(pa.int32())), "in: sequence"),
        (lambda t: t.select(t.schema.names[::-1]), "in: their order"),
        (
            lambda t: t.set_column(0, "exchange", pa.array([None] * 2, pa.string())),
            "exchange: null",
        ),
    ],
    ids=["column absent", "column too many", "name", "type", "order", "required null"],
)
def test_rows_of_another_shape_are_refused_by_column(
    catalog: Catalog, settings: Settings, change: Any, named: str
) -> None:
    """Nothing is written, and the message names the table and the column."""
    sink = Sink(catalog, table_name(settings, TRADES), settings)
    with pytest.raises(SchemaMismatch, match=f"market.trades: .*{named}"):
        sink.write(change(rows([0, 1])))
    assert not list((settings.data / "warehouse").rglob("*.parquet"))


def test_a_warehouse_that_refuses_the_file_is_a_failed_commit(
    catalog: Catalog, settings: Settings
) -> None:
    """A file stands where the data's folder must be."""
    sink = Sink(catalog, table_name(settings, TRADES), settings)
    (settings.data / "warehouse" / "market" / "trades" / "data").write_text("in the way")
    with pytest.raises(CommitFailed, match=r"market\.trades: cannot write .*\.parquet"):
        sink.write(rows([0]))


def test_a_commit_that_is_never_taken_fails_after_its_time(settings: Settings) -> None:
    """A catalog that refuses every swap: the limit is named, and no offset has moved."""

    class Refusing(SqlCatalog):
        def commit_table(self, *args: Any) -> CommitTableResponse:
            raise CommitStateUnknownException("refused")

    plain = open_catalog(settings)
    ensure_tables(plain, settings)
    refusing = Refusing("k2", **plain.properties)
    short = Settings(data=settings.data, commit_timeout_ms=100)
    sink = Sink(refusing, table_name(settings, TRADES), short)
    with pytest.raises(CommitFailed, match=r"not committed within 100 ms \(commit_timeout_ms\)"):
        sink.commit(sink.write(rows([0])), {A: None}, {A: 1})
    assert sink.offsets() == {}
    plain.close()
    refusing.close()


@pytest.mark.parametrize("name", ["a b", "50%", "k2[1]", "it's"])
def test_everything_stands_in_the_folder_that_was_named(tmp_path: Path, name: str) -> None:
    """A character that URIs encode must not make a second folder beside the first."""
    settings = Settings(data=tmp_path / name)
    catalog = open_catalog(settings)
    ensure_tables(catalog, settings)
    sink = Sink(catalog, table_name(settings, TRADES), settings)
    sink.commit(sink.write(rows([0])), {A: None}, {A: 1})
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert audit(catalog, settings).passed
    catalog.close()


@pytest.mark.parametrize("name", ["what?", "#1"])
def test_a_folder_that_no_uri_can_name_is_refused(tmp_path: Path, name: str) -> None:
    """PyIceberg would cut the path there."""
    with pytest.raises(CatalogUnavailable, match="a URI cannot hold"):
        open_catalog(Settings(data=tmp_path / name))


@pytest.mark.parametrize("text", ["{", '{"a": 1}', '[["c","t",0]]', '[["c","t","x",1]]'])
def test_offsets_that_k2_did_not_write_are_not_guessed(
    catalog: Catalog, settings: Settings, text: str
) -> None:
    """To start from nothing would write every row once more."""
    table = load_table(catalog, table_name(settings, TRADES))
    table.append(rows([0]), snapshot_properties={OFFSETS_PROPERTY: text})
    with pytest.raises(SchemaMismatch, match=OFFSETS_PROPERTY):
        Sink(catalog, table_name(settings, TRADES), settings).offsets()


def test_the_id_of_a_topic_is_put_in_once_and_carried_forward(
    catalog: Catalog, settings: Settings
) -> None:
    """Also into a table that had none; a worker that read another topic of the name is fenced."""
    sink = Sink(catalog, table_name(settings, TRADES), settings)
    topic = Topic(*A[:2])
    sink.commit([], {A: None}, {A: 1})
    assert sink.carried().topics == {}
    sink.commit([], {A: 1}, {A: 2}, topics={topic: "x"})
    sink.commit([], {A: 2}, {A: 3})
    sink.commit([], {A: 3}, {A: 4}, topics={topic: "x"})
    assert sink.carried() == ({A: 4}, {topic: "x"}, [])
    with pytest.raises(Fenced, match=r"market\.trades\.sim@c: expected topic id y, found x"):
        sink.commit([], {A: 4}, {A: 5}, topics={topic: "y"})
    assert sink.carried() == ({A: 4}, {topic: "x"}, [])
    sink.commit([], {A: 4}, {A: None}, topics={topic: None})
    assert sink.carried() == ({}, {}, [])


def test_a_stale_handle_learns_the_id_of_a_topic_before_it_commits(
    catalog: Catalog, settings: Settings
) -> None:
    """Of two workers the second one read a topic that was made anew meanwhile."""
    one, two = (Sink(catalog, table_name(settings, TRADES), settings) for _ in range(2))
    one.commit([], {A: None}, {A: 1}, topics={Topic(*A[:2]): "x"})
    with pytest.raises(Fenced, match="expected topic id y, found x"):
        two.commit([], {B: None}, {B: 1}, topics={Topic(*B[:2]): "y"})


@pytest.mark.parametrize("text", ["{", '[["c","t"]]', "[1]"])
def test_ids_of_topics_that_k2_did_not_write_are_not_guessed(
    catalog: Catalog, settings: Settings, text: str
) -> None:
    """A topic that was made anew would be taken for the former one."""
    table = load_table(catalog, table_name(settings, TRADES))
    table.append(rows([0]), snapshot_properties={TOPICS_PROPERTY: text})
    with pytest.raises(SchemaMismatch, match=TOPICS_PROPERTY):
        Sink(catalog, table_name(settings, TRADES), settings).carried()


def test_a_table_with_other_columns_is_refused_at_start(
    catalog: Catalog, settings: Settings
) -> None:
    """Somebody evolved the table; the message names the column."""
    with load_table(catalog, table_name(settings, TRADES)).update_schema() as update:
        update.delete_column("venue")
    with pytest.raises(SchemaMismatch, match=r"differs from k2\.schemas in: venue"):
        ensure_tables(catalog, settings)


def test_a_catalog_that_cannot_be_opened_is_named_without_its_password(tmp_path):
    """The message goes to the log and to the terminal."""
    uri = "rest://k2:secret@127.0.0.1:1/catalog"
    with pytest.raises(CatalogUnavailable, match=r"127\.0\.0\.1:1") as caught:
        open_catalog(Settings(data=tmp_path, catalog_uri=uri))
    assert "secret" not in str(caught.value)
