"""Queries beside the records: the gap ledger, rejects, snapshots, and what a table is now.

One DuckDB database, so that all queries together stay within `query_memory_max`; one cursor a
query, so that they do not wait for each other.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import duckdb
from pyiceberg.catalog import Catalog

from k2 import metrics
from k2.errors import BadQuery
from k2.lake.catalog import gaps_name, rejects_name, table_name
from k2.lake.replays import Ledger
from k2.query import gaps, rejects
from k2.query.index import Pin, Tables
from k2.query.records import Records
from k2.query.rejects import Selection
from k2.query.rows import Rows, Stop
from k2.query.scan import Scan
from k2.query.snapshots import SNAPSHOTS, AsOf, listed
from k2.query.span import Span
from k2.query.status import state, total
from k2.query.times import check_bounds
from k2.schemas import KINDS, Kind
from k2.settings import Settings

__all__ = ["TABLES", "Ledgers"]

#: Tables whose snapshots are listed.
TABLES = (*(kind.name for kind in KINDS), "gaps", "rejects")


class Ledgers:
    """Reads of the tables; every method may be called from any thread."""

    def __init__(self, catalog: Catalog, settings: Settings) -> None:
        self._tables = Tables(catalog)
        self._settings = settings
        self._ledger = Ledger(catalog, settings)
        self._records = Records(self._tables, settings)
        spill = settings.data.resolve() / "spill" / f"{os.getpid()}-{id(self):x}"
        spill.parent.mkdir(parents=True, exist_ok=True)  # DuckDB makes only the last part
        self._database = duckdb.connect(
            ":memory:",
            config={
                "memory_limit": f"{settings.query_memory_max // 1024}KiB",
                "temp_directory": str(spill),
                "autoload_known_extensions": "false",
                "autoinstall_known_extensions": "false",
            },
        )

    def close(self) -> None:
        self._database.close()

    def snapshots(
        self,
        tables: Sequence[str] | None = None,
        start_ns: int | None = None,
        end_ns: int | None = None,
        limit: int | None = None,
    ) -> Rows:
        """The newest snapshots of [start_ns, end_ns), `k2.query.snapshots.SNAPSHOTS`, oldest first.

        Args:
            tables: of `TABLES`; None is all.

        Raises:
            BadQuery: names the parameter.
            CatalogUnavailable: a table cannot be loaded.
        """
        most, names = self._limit(limit), list(tables or TABLES)
        check_bounds(start_ns, end_ns)
        if unknown := [name for name in names if name not in TABLES]:
            raise BadQuery("table", f"{', '.join(unknown)}: not one of {', '.join(TABLES)}")
        with metrics.query_seconds.labels(resource="snapshots").time():
            pins = {n: self._tables.load(f"{self._settings.namespace}.{n}") for n in names}
            found = listed({name: pin.table for name, pin in pins.items()}, start_ns, end_ns)
        newest = found.slice(max(0, found.num_rows - most))
        one = pins[names[0]].snapshot_id if len(set(names)) == 1 else None
        return Rows(SNAPSHOTS, iter(newest.to_batches()), one, found.num_rows > most)

    def rejects(self, which: Selection, limit: int | None = None, stop: Stop | None = None) -> Rows:
        """The newest rejects of a selection, oldest first, `k2.query.rejects.LISTED`.

        Raises:
            BadQuery: names the parameter.
            CatalogUnavailable: a table cannot be loaded.
        """
        most = self._limit(limit)
        with metrics.query_seconds.labels(resource="rejects").time():
            table, notes = self._rejects(which), self._ledger.notes()
            return rejects.listed(self._database, table, which, notes, most, stop or Stop())

    def reject_counts(self, which: Selection, stop: Stop | None = None) -> Rows:
        """Rejects of a selection by reason, `k2.query.rejects.COUNTS`, most first."""
        with metrics.query_seconds.labels(resource="rejects").time():
            table, notes = self._rejects(which), self._ledger.notes()
            return rejects.counts(self._database, table, which, notes, stop or Stop())

    def reject_records(self, which: Selection, stop: Stop | None = None) -> Rows:
        """Rejects of a selection with their bytes, `k2.query.rejects.RECORDS`, as in their logs."""
        with metrics.query_seconds.labels(resource="rejects").time():
            return rejects.records(self._database, self._rejects(which), which, stop or Stop())

    def _rejects(self, which: Selection) -> Pin:
        check_bounds(which.start_ns, which.end_ns)
        return self._tables.load(rejects_name(self._settings))

    def gaps(
        self,
        which: gaps.Selection,
        limit: int | None = None,
        stop: Stop | None = None,
        as_of: AsOf | None = None,
    ) -> Rows:
        """The newest findings of the gap ledger, oldest first, `k2.query.gaps.LISTED`.

        Each as it stands, or stood as of a snapshot of the ledger; all rows of one if `which`
        names it.

        Raises:
            BadQuery: names the parameter.
            CatalogUnavailable: the table cannot be loaded.
        """
        most = self._limit(limit)
        check_bounds(which.start_ns, which.end_ns)
        with metrics.query_seconds.labels(resource="gaps").time():
            through = self._records.told_through(as_of)
            table = self._tables.load(gaps_name(self._settings), as_of)
            rows = gaps.rows(self._database, table, which, most, stop or Stop())
            rows.valid_through = through
            return rows

    def status(self) -> dict[str, Any]:
        """The table of trades now: rows, files, snapshot, offsets, the last commit's age (s).

        Beside it `quotes`, the same of their table, and `rejects`, the rows of the one for both.
        All of it is from metadata.
        """
        with metrics.query_seconds.labels(resource="status").time():
            trades, *others = (self._state(kind) for kind in KINDS)
            rejects = self._tables.load(rejects_name(self._settings))
        states = {kind.name: state for kind, state in zip(KINDS[1:], others, strict=True)}
        return {**trades, "rejects": total(rejects, "records"), **states}

    def _state(self, kind: Kind) -> dict[str, Any]:
        name = table_name(self._settings, kind)
        return state(name, self._tables.load(name))

    def verdicts(self, kind: Kind, stop: Stop | None = None) -> dict[str, int]:
        """Rows by verdict of the sequence check; reads one column of every file."""
        with metrics.query_seconds.labels(resource="verdicts").time():
            pin = self._tables.load(table_name(self._settings, kind))
            scan = Scan(self._database, kind, pin, Span(), stop or Stop())
            if scan.rows_max == 0:
                return {}
            counted = f"SELECT verdict, count(*) FROM ({scan.sql}) GROUP BY ALL ORDER BY 1"
            batches = scan.run(counted, {})
            return {
                verdict.as_py(): n.as_py()
                for b in batches
                for verdict, n in zip(*b.columns, strict=True)
            }

    def _limit(self, limit: int | None) -> int:
        most = self._settings.query_rows_max
        if limit is not None and not 1 <= limit <= most:
            raise BadQuery("limit", f"{limit} is outside 1..{most}")
        return most if limit is None else limit
