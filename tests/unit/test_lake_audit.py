"""Every finding of the audit, provoked in real tables; and what looks like one but is not."""

from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.manifest import DataFile

from k2.errors import CatalogUnavailable
from k2.lake.audit import LISTED_MAX, Report, audit
from k2.lake.catalog import ensure_tables, load_table, open_catalog, rejects_name, table_name
from k2.lake.commit import Sink
from k2.lake.offsets import Source
from k2.schemas import KINDS, REJECTS, TRADES
from k2.settings import Settings

A, B = Source("c", "market.trades.sim", 0), Source("c", "market.trades.sim", 1)
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def trade(offset: int, source: Source = A, **more: Any) -> dict[str, Any]:
    """A trade whose sequence is its offset, unless `more` says otherwise."""
    return {
        "exchange": "SIM", "symbol": f"S{source.partition}", "session": date(2026, 1, 2),
        "event_time": NOW, "sequence": offset, "ts_event": 1, "ts_recv": 2,
        "price": Decimal("1.5"), "size": Decimal(1), "side": "BUY", "verdict": "ok",
        "kafka_cluster": source.cluster, "kafka_topic": source.topic,
        "kafka_partition": source.partition, "kafka_offset": offset, "ingest_time": NOW, **more,
    }  # fmt: skip


def reject(offset: int, source: Source = A) -> dict[str, Any]:
    return {
        "kafka_cluster": source.cluster, "kafka_topic": source.topic,
        "kafka_partition": source.partition, "kafka_offset": offset, "kafka_time": NOW,
        "reason": "decode", "detail": "3 bytes", "value": b"abc", "ingest_time": NOW,
    }  # fmt: skip


class Lake:
    """Both tables, and writes to them that no worker of K2 would make."""

    def __init__(self, data: Path) -> None:
        self.settings = Settings(data=data)
        self.catalog = open_catalog(self.settings)
        ensure_tables(self.catalog, self.settings)
        self.sinks = {
            schema: Sink(self.catalog, name, self.settings)
            for schema, name in (
                *((kind.table, table_name(self.settings, kind)) for kind in KINDS),
                (REJECTS, rejects_name(self.settings)),
            )
        }

    def add(
        self, rows: list[dict[str, Any]], advance: dict[Source, int], times: int = 1
    ) -> list[DataFile]:
        """Commit rows of either table, their file `times` times, without looking at offsets."""
        schema = REJECTS if rows and "reason" in rows[0] else TRADES.table
        files = self.sinks[schema].write(pa.Table.from_pylist(rows, schema))
        self.sinks[schema].commit(files * times, {}, advance)
        return files

    def audit(self, explain: Any = None) -> Report:
        return audit(self.catalog, self.settings, explain)


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[Lake]:
    lake = Lake(tmp_path)
    yield lake
    lake.catalog.close()


def local(file: DataFile) -> Path:
    return Path(file.file_path.removeprefix("file://"))


def found(report: Report) -> list[tuple[str, str]]:
    return [(finding.kind, finding.severity) for finding in report.findings]


def test_tables_without_a_commit_pass(lake: Lake) -> None:
    """Nothing is promised and nothing is there."""
    report = lake.audit()
    assert (report.passed, report.rows, report.files, report.sources) == (True, 0, 0, [])


def test_good_tables_pass_and_are_counted(lake: Lake) -> None:
    """Two partitions; rejects fill the offsets that trades lack."""
    lake.add([trade(0), trade(2), trade(0, B)], {A: 3, B: 1})
    lake.add([reject(1)], {A: 3})
    report = lake.audit()
    assert (report.passed, report.findings, report.rows, report.files) == (True, [], 4, 2)
    assert [(s.source, s.rows, s.first, s.last, s.next_offset) for s in report.sources] == [
        (A, 3, 0, 2, 3),
        (B, 1, 0, 0, 1),
    ]


def test_the_snapshot_that_was_read_is_named(lake: Lake) -> None:
    """So that a report can be repeated."""
    lake.add([trade(0)], {A: 1})
    snapshot = load_table(lake.catalog, table_name(lake.settings, TRADES)).current_snapshot()
    assert snapshot is not None
    assert lake.audit().snapshot_id == snapshot.snapshot_id


def test_a_file_that_is_gone_is_missing_and_so_are_its_offsets(lake: Lake) -> None:
    """Somebody cleaned the warehouse by hand."""
    lake.add([trade(0)], {A: 1})
    (file,) = lake.add([trade(1)], {A: 2})
    local(file).unlink()
    report = lake.audit()
    assert found(report) == [("missing_file", "error"), ("hole", "error")]
    assert "1 rows lost" in report.findings[0].detail


def test_the_only_file_gone_leaves_a_hole_over_everything(lake: Lake) -> None:
    """The columns are still known, so every check runs over no rows."""
    (file,) = lake.add([trade(0), trade(1)], {A: 2})
    local(file).unlink()
    report = lake.audit()
    assert found(report) == [("missing_file", "error"), ("hole", "error")]
    assert "[0..1]" in report.findings[1].detail


def test_a_file_listed_twice_is_one_finding_not_one_a_row(lake: Lake) -> None:
    """Readers get its rows twice; the audit reads it once and says why."""
    lake.add([trade(n) for n in range(100)], {A: 100}, times=2)
    report = lake.audit()
    assert found(report) == [("file_twice", "error")]
    assert "listed 2 times" in report.findings[0].detail


def test_a_file_with_other_rows_than_the_manifest_says(lake: Lake) -> None:
    """A file replaced by a shorter one."""
    (file,) = lake.add([trade(0), trade(1)], {A: 2})
    whole = pq.read_table(local(file), partitioning=None)
    pq.write_table(whole.slice(0, 1), local(file))
    report = lake.audit()
    assert found(report) == [("row_count", "error"), ("hole", "error")]
    assert "1 rows in the files, 2 by the manifests" in report.findings[0].detail


def test_a_file_that_is_no_parquet_ends_the_audit(lake: Lake) -> None:
    """No verdict is better than one about the rest."""
    (file,) = lake.add([trade(0)], {A: 1})
    local(file).write_bytes(b"nothing")
    with pytest.raises(CatalogUnavailable, match="audit: "):
        lake.audit()


def test_tables_that_do_not_exist_end_the_audit(tmp_path: Path) -> None:
    """The message names the table."""
    settings = Settings(data=tmp_path)
    with pytest.raises(CatalogUnavailable, match=r"market\.trades"):
        audit(open_catalog(settings), settings)


def test_an_offset_twice_in_trades(lake: Lake) -> None:
    """Three rows of one offset are one finding with their number."""
    lake.add([trade(0), trade(1), trade(1, sequence=2), trade(1, sequence=3)], {A: 2})
    report = lake.audit()
    assert found(report) == [("offset_twice", "error")]
    assert "offset 1: 3 rows" in report.findings[0].detail


def test_an_offset_in_trades_and_in_rejects(lake: Lake) -> None:
    """A record is one or the other."""
    lake.add([trade(0)], {A: 1})
    lake.add([reject(0)], {A: 1})
    assert found(lake.audit()) == [("offset_twice", "error")]


@pytest.mark.parametrize(
    ("offsets", "place"),
    [((0, 3), "[1..2] (2 offsets)"), ((1, 2, 3), "[0..0]"), ((0, 1), "[2..3]"), ((), "[0..3]")],
    ids=["between", "before the first", "after the last", "no row at all"],
)
def test_a_hole_below_the_next_offset_is_an_error(
    lake: Lake, offsets: tuple[int, ...], place: str
) -> None:
    """The summary promises every offset below 4."""
    lake.add([trade(n) for n in offsets], {A: 4})
    report = lake.audit()
    assert found(report) == [("hole", "error")]
    assert place in report.findings[0].detail
    assert "the broker was not asked" in report.findings[0].detail


def test_a_hole_is_fine_if_the_broker_explains_it(lake: Lake) -> None:
    """The callback gets the hole, inclusive at both ends, and its answer is listed."""
    lake.add([trade(0), trade(3)], {A: 4})
    asked: list[tuple[Source, int, int]] = []

    def explain(source: Source, first: int, last: int) -> str:
        asked.append((source, first, last))
        return "control records"

    report = lake.audit(explain)
    assert (report.passed, found(report), asked) == (True, [("hole", "ok")], [(A, 1, 2)])
    assert "control records" in report.findings[0].detail


def test_a_hole_that_the_broker_cannot_explain_is_an_error(lake: Lake) -> None:
    """Asked in vain is not the same as not asked."""
    lake.add([trade(0), trade(3)], {A: 4})
    report = lake.audit(lambda *hole: None)
    assert found(report) == [("hole", "error")]
    assert "unexplained" in report.findings[0].detail


def test_a_row_beyond_the_next_offset(lake: Lake) -> None:
    """It would be read from Kafka and written once more."""
    lake.add([trade(0), trade(1)], {A: 1})
    assert found(lake.audit()) == [("beyond_offset", "error")]


def test_rows_of_a_source_without_an_offset(lake: Lake) -> None:
    """Rows that no commit of K2 brought."""
    lake.add([trade(0)], {})
    report = lake.audit()
    assert found(report) == [("no_offset", "error")]
    assert "rows in trades" in report.findings[0].detail


def test_rejects_ahead_of_trades_are_in_flight(lake: Lake) -> None:
    """Rejects are committed first: a worker between its two commits is no error."""
    lake.add([trade(0)], {A: 1})
    lake.add([reject(1)], {A: 2})
    report = lake.audit()
    assert (report.passed, found(report)) == (True, [("ahead", "warning")])


def test_rejects_beyond_their_own_offset(lake: Lake) -> None:
    """The same promise holds for the table of rejects."""
    lake.add([trade(0), trade(2)], {A: 3})
    lake.add([reject(1)], {A: 1})
    report = lake.audit()
    assert found(report) == [("beyond_offset", "error")]
    assert "rejects has offset 1" in report.findings[0].detail


def test_a_sequence_twice_is_named_with_its_places(lake: Lake) -> None:
    """The check let a duplicate through."""
    lake.add([trade(0), trade(1, sequence=0)], {A: 2})
    report = lake.audit()
    assert found(report) == [("sequence_twice", "error")]
    assert "sequence 0: 2 rows, at market.trades.sim[0]:0, market.trades.sim[0]:1" in (
        report.findings[0].detail
    )


def test_a_sequence_again_after_a_reset_is_another_trade(lake: Lake) -> None:
    """The venue began anew within the session, in another file and by another commit."""
    lake.add([trade(0), trade(1)], {A: 2})
    lake.add([trade(2, sequence=0, verdict="reset"), trade(3, sequence=1)], {A: 4})
    report = lake.audit()
    assert (report.passed, report.findings) == (True, [])


def test_a_sequence_twice_after_a_reset_is_found(lake: Lake) -> None:
    """A reset excuses what came before it only."""
    reset = trade(1, sequence=0, verdict="reset")
    lake.add([trade(0), reset, trade(2, sequence=1), trade(3, sequence=1)], {A: 4})
    report = lake.audit()
    assert found(report) == [("sequence_twice", "error")]
    assert "sequence 1" in report.findings[0].detail


@pytest.mark.parametrize(
    "more",
    [{"session": date(2026, 1, 3)}, {"symbol": "X"}, {"exchange": "ASX"}],
    ids=["session", "symbol", "exchange"],
)
def test_a_sequence_counts_within_symbol_and_session_only(lake: Lake, more: dict[str, Any]) -> None:
    """Every symbol and session has its own numbers."""
    lake.add([trade(0), trade(1, sequence=0, **more)], {A: 2})
    assert lake.audit().findings == []


def test_many_findings_are_listed_in_part_and_counted(lake: Lake) -> None:
    """A million holes must not fill a screen, nor the memory."""
    lake.add([trade(2 * n) for n in range(LISTED_MAX + 6)], {A: 2 * LISTED_MAX + 11})
    report = lake.audit()
    assert found(report) == [("hole", "error")] * LISTED_MAX + [("more", "error")]
    assert "5 more" in report.findings[-1].detail
