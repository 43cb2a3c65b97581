"""Files that no snapshot names are told, and only those."""

import os
import time
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
from test_lake_audit import A, Lake, found, lake, local, reject, trade

from k2.lake.audit import audit
from k2.lake.catalog import table_name
from k2.lake.maintenance import expire
from k2.lake.orphans import orphans
from k2.schemas import TRADES

__all__ = ["lake"]

HOUR_S = 3600


def age(path: Path, seconds: float) -> None:
    moment = time.time() - seconds
    os.utime(path, (moment, moment))


def test_a_file_of_a_commit_that_never_came_is_an_orphan_when_old(lake: Lake) -> None:
    """Count, bytes and the oldest one's path; a warning, so that the audit passes."""
    lake.add([trade(0)], {A: 1})
    rows = pa.Table.from_pylist([trade(1)], TRADES.table)
    (file,) = lake.sinks[TRADES.table].write(rows)
    assert lake.audit().findings == []
    age(local(file), 2 * HOUR_S)
    report = lake.audit()
    assert (report.passed, found(report)) == (True, [("orphan_files", "warning")])
    detail = report.findings[0].detail
    assert detail.startswith("market.trades: 1 files, ")
    assert f"{local(file).stat().st_size:,} bytes" in detail
    assert detail.endswith(str(local(file)))


def test_files_of_any_snapshot_are_no_orphans_however_old(lake: Lake) -> None:
    """Both tables, data and metadata."""
    for offset in range(3):
        lake.add([trade(offset)], {A: offset + 1})
    lake.add([reject(3)], {A: 4})
    for path in lake.settings.data.resolve().rglob("*"):
        if path.is_file():
            age(path, 2 * HOUR_S)
    lake.add([trade(4)], {A: 5})
    lake.add([], {A: 5})
    assert found(lake.audit()) == []


def test_manifest_lists_of_expired_snapshots_are_orphan_metadata(lake: Lake) -> None:
    """Expiry removes snapshots from the metadata and leaves their files."""
    settings = replace(lake.settings, snapshots_keep=1, snapshot_age_min_ms=0, orphan_age_min_ms=0)
    for offset in range(4):
        lake.add([trade(offset)], {A: offset + 1})
    table = lake.catalog.load_table(table_name(settings, TRADES))
    assert expire(table, settings) == 3
    (finding,) = orphans(lake.catalog, table_name(settings, TRADES), settings)
    assert (finding.kind, finding.severity) == ("orphan_metadata", "warning")
    assert finding.detail.startswith("market.trades: 3 files")
    report = audit(lake.catalog, settings)
    assert (report.passed, report.rows) == (True, 4)
