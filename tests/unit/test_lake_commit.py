"""The fenced commit and the audit, over a real SQLite catalog."""

import threading
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyiceberg.catalog import Catalog
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import CommitStateUnknownException
from pyiceberg.table import CommitTableResponse

from k2.errors import Fenced
from k2.lake.audit import audit
from k2.lake.catalog import ensure_tables, load_table, open_catalog, trades_name
from k2.lake.commit import Sink
from k2.lake.offsets import Source
from k2.schemas import TRADES
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
        return {name: values.get(name) for name in TRADES.names}

    return pa.Table.from_pylist([row(offset) for offset in offsets], schema=TRADES)


def test_rows_return_exactly_and_a_stale_commit_is_fenced(
    catalog: Catalog, settings: Settings
) -> None:
    one, zombie = (Sink(catalog, trades_name(settings), settings) for _ in range(2))
    one.commit(one.write(rows([0, 1])), {A: None}, {A: 2})
    with pytest.raises(Fenced, match="expected next offset None, found 2"):
        zombie.commit(zombie.write(rows([0, 1])), {A: None}, {A: 2})
    found = load_table(catalog, trades_name(settings)).scan().to_arrow().cast(TRADES)
    assert found.to_pylist() == rows([0, 1]).to_pylist()
    assert audit(catalog, settings).passed


def test_two_workers_lose_nothing_and_offsets_survive_expiry(
    catalog: Catalog, settings: Settings
) -> None:
    def work(source: Source) -> None:
        sink = Sink(catalog, trades_name(settings), settings)
        for n in range(20):
            sink.commit(sink.write(rows([n], source)), {source: n or None}, {source: n + 1})

    threads = [threading.Thread(target=work, args=(source,)) for source in (A, B)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sink = Sink(catalog, trades_name(settings), settings)
    sink.commit([], {A: 20}, {A: 20})
    assert sink.offsets() == {A: 20, B: 20}
    report = audit(catalog, settings)
    assert (report.rows, report.findings) == (40, [])


def test_audit_finds_holes_and_repeats(catalog: Catalog, settings: Settings) -> None:
    sink = Sink(catalog, trades_name(settings), settings)
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
    sink = Sink(lossy, trades_name(settings), settings)
    sink.commit(sink.write(rows([0, 1])), {A: None}, {A: 2})
    assert audit(plain, settings).rows == 2
    assert sink.offsets() == {A: 2}
    plain.close()
    lossy.close()
