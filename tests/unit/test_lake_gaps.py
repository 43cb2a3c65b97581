"""The gap ledger's table, over a real SQLite catalog."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from k2.agents.assignment import Partition
from k2.agents.lane import Lane
from k2.tables.segments import Segments
from pyiceberg.catalog import Catalog

from k2.lake.audit import audit
from k2.lake.catalog import ensure_tables, gaps_name, load_table, open_catalog
from k2.lake.commit import Sink
from k2.lake.moves import Offsets
from k2.lake.offsets import Source
from k2.live import Live
from k2.schemas import GAPS, TRADES
from k2.sequence import Rules, gap_rows
from k2.settings import Settings
from tests.by_hand import DECODER
from tests.sequences import DAY, S, at, run

SOURCE = Source("c", "market.trades.sim", 0)
INGEST_TIME = GAPS.field("ingest_time").type
CHANNEL = Rules(by_channel=frozenset(["SIM"]))


class Lake:
    """The tables, and commits of what batches tell the ledger."""

    def __init__(self, data: Path) -> None:
        self.settings = Settings(data=data)
        self.catalog: Catalog = open_catalog(self.settings)
        ensure_tables(self.catalog, self.settings)
        self.sink = Sink(self.catalog, gaps_name(self.settings), self.settings)

    def tell(self, *batches: Any, rules: Rules = Rules(), now: int = 0) -> pa.Table:  # noqa: B008
        rows = gap_rows(run(*batches, rules=rules)[1], *SOURCE, pa.scalar(now, INGEST_TIME))
        self.sink.commit(self.sink.write(rows), {}, {SOURCE: 100})
        return rows

    def rows(self) -> list[dict[str, Any]]:
        table = load_table(self.catalog, gaps_name(self.settings)).scan().to_arrow()
        return sorted(table.cast(GAPS).to_pylist(), key=lambda row: row["kafka_offset"])


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path)


def test_rows_come_back_with_their_intervals(lake: Lake) -> None:
    """The table is made once and found again; lists of intervals and nulls are unchanged."""
    ensure_tables(lake.catalog, lake.settings)
    rows = lake.tell(at(1, 6), at((4, 7), offset=2))
    assert [row["remaining"] for row in lake.rows()] == [
        [{"first": 2, "last": 5}],
        [{"first": 2, "last": 3}, {"first": 5, "last": 5}],
    ]
    assert lake.rows() == rows.to_pylist()
    assert lake.sink.offsets() == {SOURCE: 100}


def test_all_rows_of_a_finding_are_in_the_partition_of_the_day_it_was_seen(lake: Lake) -> None:
    """Also those of a later day, and of a counter without a symbol."""
    late = [(*row[:3], 2 * DAY, row[4]) for row in at(4, offset=2)]
    opened = [(*row[:3], DAY + S, row[4]) for row in at(1, 6)]
    rules = Rules(by_channel=CHANNEL.by_channel, never_reset=frozenset(["SIM"]))
    rows = gap_rows(run(opened, late, rules=rules)[1], *SOURCE, pa.scalar(0, INGEST_TIME))
    assert rows["status"].to_pylist() == ["open", "partly_filled"]
    (file,) = lake.sink.write(rows)
    assert file.partition[0] == 1


def test_an_operators_move_goes_for_the_ledger_too(lake: Lake) -> None:
    """A log that begins again tells of other records: below its former offset as well."""
    lake.tell(at(1, 6))
    offsets = Offsets(lake.catalog, lake.settings)
    assert offsets.sources == [SOURCE]
    offsets.move(SOURCE, 3, "made anew")
    assert lake.sink.offsets() == offsets.gaps == {SOURCE: 3}
    offsets.forget([SOURCE], "gone")
    assert lake.sink.offsets() == {}


def test_the_audit_looks_at_the_ledgers_files(lake: Lake) -> None:
    """One gone, one listed twice, one that no snapshot names; its rows are no records."""
    lake.tell(at(1, 6))
    report = audit(lake.catalog, lake.settings)
    assert (report.findings, report.rows, report.files) == ([], 0, 0)
    lake.settings = replace(lake.settings, orphan_age_min_ms=0)
    rows = gap_rows(run(at(1, 9))[1], *SOURCE, pa.scalar(0, INGEST_TIME))
    (twice,), (gone,), _ = (lake.sink.write(rows) for _ in range(3))
    lake.sink.commit([twice, twice, gone], {}, {})
    Path(gone.file_path.removeprefix("file://")).unlink()
    report = audit(lake.catalog, lake.settings)
    found = sorted((f.kind, f.severity) for f in report.findings)
    assert [kind for kind, _ in found] == ["file_twice", "missing_file", "orphan_files"]
    assert not report.passed
    assert all("gaps" in f.detail for f in report.findings)


def test_tables_from_before_the_ledger_pass(lake: Lake) -> None:
    lake.catalog.drop_table(gaps_name(lake.settings))
    assert audit(lake.catalog, lake.settings).passed


@pytest.mark.parametrize(
    ("gaps_at", "records_at", "told"),
    [
        (None, None, 0),  # a new log
        (None, 7, 7),  # tables from before the ledger
        (3, 7, 7),  # nothing to write since
        (9, 7, 9),  # killed between the two commits
    ],
)
def test_the_ledger_goes_on_at_the_greater_of_two_offsets(
    lake: Lake, gaps_at: int | None, records_at: int | None, told: int
) -> None:
    partition = Partition(
        source=SOURCE,
        lane=Lane(TRADES, DECODER, lake.sink),
        next_offset=0,
        accepted=0,
        log_end=0,
        records_at=records_at,
        rejects_at=None,
        gaps_at=gaps_at,
        sequences=Segments({}),
        live=Live(TRADES, 0, lambda name, copied: None),
        epoch="",
        topic_id=None,
    )
    assert partition.gaps_from == told
