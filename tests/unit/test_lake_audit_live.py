"""The audit beside a running ingest: commits and expiry go on while it reads."""

import threading
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
from test_lake_audit import A, B, Lake, reject, trade

from k2.lake.audit import audit
from k2.lake.catalog import ensure_tables, open_catalog, rejects_name, table_name
from k2.lake.commit import Sink
from k2.lake.offsets import Source
from k2.schemas import REJECTS, TRADES
from k2.settings import Settings

ROWS = 20


class Writer(threading.Thread):
    """Commits as a worker does, rejects before trades, and lets snapshots expire at once."""

    def __init__(self, settings: Settings, source: Source) -> None:
        super().__init__(daemon=True)
        self._settings, self._source = settings, source
        self.stop, self.commits = threading.Event(), 0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self._write()
        except BaseException as exc:
            self.error = exc

    def _write(self) -> None:
        catalog = open_catalog(self._settings)
        trades = Sink(catalog, table_name(self._settings, TRADES), self._settings)
        rejects = Sink(catalog, rejects_name(self._settings), self._settings)
        at: int | None = None
        while not self.stop.is_set():
            begin = at or 0
            end = begin + ROWS
            for sink, schema, rows in (
                (rejects, REJECTS, [reject(begin, self._source)]),
                (trades, TRADES.table, [trade(o, self._source) for o in range(begin + 1, end)]),
            ):
                files = sink.write(pa.Table.from_pylist(rows, schema))
                sink.commit(files, {self._source: at}, {self._source: end})
            at = end
            self.commits += 1


def test_an_audit_beside_writers_passes_every_time(tmp_path: Path) -> None:
    """It reads one snapshot of each table, while others come and go, and no file is an orphan."""
    settings = Settings(
        data=tmp_path, snapshots_keep=1, snapshots_expire_every=1, snapshot_age_min_ms=0
    )
    catalog = open_catalog(settings)
    ensure_tables(catalog, settings)
    writers = [Writer(settings, source) for source in (A, B)]
    for writer in writers:
        writer.start()
    rows, steps = [], set()
    while len(rows) < 5 or rows[-1] == rows[0] == 0:
        report = audit(catalog, settings, None, lambda what, done, of: steps.add(what))
        errors = [finding for finding in report.findings if finding.severity == "error"]
        assert errors == []
        assert {finding.kind for finding in report.findings} <= {"ahead", "orphan_metadata"}
        rows.append(report.rows)
    for writer in writers:
        writer.stop.set()
        writer.join(30)
        assert writer.error is None
        assert writer.commits > 0
    assert rows == sorted(rows)
    assert rows[-1] > rows[0]
    assert steps == {
        *(f"files of {name}" for name in ("trades", "rejects")),
        *(f"sequences of {name}" for name in ("trades", "quotes")),
        "offsets",
        "orphans",
    }
    assert audit(catalog, settings).rows == ROWS * sum(writer.commits for writer in writers)


def test_an_orphan_is_not_what_is_being_committed(tmp_path: Path) -> None:
    """Without a grace a file between its writing and its commit would be one."""
    lake = Lake(tmp_path)
    lake.sinks[TRADES.table].write(pa.Table.from_pylist([trade(0)], TRADES.table))
    assert lake.audit().findings == []
    (finding,) = audit(lake.catalog, replace(lake.settings, orphan_age_min_ms=0)).findings
    assert finding.kind == "orphan_files"
