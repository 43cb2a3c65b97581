"""The data files of one snapshot, each once, for the audit: present, counted, with their bounds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import duckdb
import pyarrow.dataset as ds
from pyiceberg.conversions import from_bytes
from pyiceberg.io.pyarrow import PyArrowFileIO, schema_to_pyarrow
from pyiceberg.manifest import DataFile
from pyiceberg.table import Table
from pyiceberg.types import PrimitiveType

from k2.lake.coverage import OffsetFile
from k2.lake.findings import Report

__all__ = ["Pinned"]

_LOOKING = 16  # threads: an object store answers slowly, but many at once


class Pinned:
    """What the newest snapshot of a loaded table names; later commits and expiry change nothing."""

    def __init__(
        self, name: str, table: Table, report: Report, progress: Callable[[int, int], None]
    ) -> None:
        """List the files and look for each.

        Args:
            name: of the view that `open` makes.
            report: gets what is gone, or listed twice, and counts the files.
            progress: told (files looked for, files).
        """
        self.name, self._table = name, table
        io = table.io
        assert isinstance(io, PyArrowFileIO)
        scheme, netloc, _ = io.parse_location(table.location())
        self.filesystem = io.fs_by_scheme(scheme, netloc)
        self._local = scheme == "file"
        listed: Counter[str] = Counter()
        files: dict[str, DataFile] = {}
        for task in table.scan().plan_files():
            listed[task.file.file_path] += 1
            files[task.file.file_path] = task.file
        report.files += len(files)
        self._files: dict[str, DataFile] = {}
        with ThreadPoolExecutor(_LOOKING) as pool:
            there = pool.map(lambda path: io.new_input(path).exists(), files)
            for number, (path, exists) in enumerate(zip(files, there, strict=True), start=1):
                if listed[path] > 1:
                    detail = f"{name}: {path}: listed {listed[path]} times in the snapshot"
                    report.add("file_twice", detail)
                if exists:
                    self._files[io.parse_location(path)[2]] = files[path]
                else:
                    lost = files[path].record_count
                    detail = f"{name}: {path}: in the snapshot, but gone; {lost} rows lost"
                    report.add("missing_file", detail)
                progress(number, len(files))

    def open(self, connection: duckdb.DuckDBPyConnection, report: Report) -> None:
        """Make the view over all files; its rows are counted and compared with the manifests."""
        self.view(connection, self.name, list(self._files))
        ((found,),) = connection.execute(f"SELECT count(*) FROM {self.name}").fetchall()
        report.rows += found
        promised = sum(file.record_count for file in self._files.values())
        if found != promised:
            detail = f"{self.name}: {found} rows in the files, {promised} by the manifests"
            report.add("row_count", detail)

    def view(self, connection: duckdb.DuckDBPyConnection, name: str, paths: Sequence[str]) -> None:
        """Make (or remake) a view over some of the files."""
        if not paths:
            schema = schema_to_pyarrow(self._table.schema(), include_field_ids=False)
            connection.register(name, schema.empty_table())
        elif self._local:
            connection.from_parquet(list(paths)).create_view(name, replace=True)
        else:
            # DuckDB itself reads no object store without a download: PyArrow's file system does.
            files = ds.dataset(list(paths), format="parquet", filesystem=self.filesystem)
            connection.register(name, files)

    def summary(self, name: str) -> str | None:
        """A property of the snapshot's summary."""
        head = self._table.metadata.current_snapshot()
        return head.summary[name] if head is not None and head.summary is not None else None

    @property
    def offsets(self) -> list[OffsetFile]:
        """The files with the bounds of their offsets."""
        return [OffsetFile(path, *bounds) for path, bounds in self.bounds("kafka_offset").items()]

    def bounds(self, column: str) -> dict[str, tuple[Any, Any]]:
        """Least and greatest value of a column by file; None: the manifest does not say."""
        field = self._table.schema().find_field(column)
        kind = field.field_type
        assert isinstance(kind, PrimitiveType)

        def value(bound: dict[int, bytes] | None) -> Any:
            data = (bound or {}).get(field.field_id)
            return None if data is None else from_bytes(kind, data)

        return {
            path: (value(file.lower_bounds), value(file.upper_bounds))
            for path, file in self._files.items()
        }
