"""Whether everything that the newest snapshots name is there, and is named once."""

from __future__ import annotations

from collections import Counter

from pyiceberg.table import Table

from k2.settings import Settings
from tests.integration.oracle.tables import NAMES
from tests.integration.oracle.wrong import Wrong, listed
from tests.integration.parts import iceberg

__all__ = ["same_files"]


def same_files(settings: Settings) -> None:
    """Manifest list, manifests and data files of both tables exist; no data file is there twice.

    Raises:
        Wrong: names the files; `lost` and `doubled` are the rows that the manifests say are in
            missing files and in files named again.
    """
    for name in NAMES:
        _same(name, iceberg(settings, name))


def _same(name: str, table: Table) -> None:
    snapshot = table.current_snapshot()
    if snapshot is None:
        return
    _require(name, table, [snapshot.manifest_list])
    manifests = snapshot.manifests(table.io)
    _require(name, table, [manifest.manifest_path for manifest in manifests])
    entries = [entry for manifest in manifests for entry in manifest.fetch_manifest_entry(table.io)]
    files = [entry.data_file for entry in entries]
    rows = {file.file_path: file.record_count for file in files}
    times = Counter(file.file_path for file in files)
    if again := [path for path, count in times.items() if count > 1]:
        doubled = sum(rows[path] * (times[path] - 1) for path in again)
        raise Wrong(f"{name}: named more than once: {listed(again)}", doubled=doubled)
    if gone := _gone(table, list(rows)):
        lost = sum(rows[path] for path in gone)
        raise Wrong(f"{name}: files that do not exist: {listed(gone)}", lost=lost)


def _gone(table: Table, paths: list[str]) -> list[str]:
    return [path for path in paths if not table.io.new_input(path).exists()]


def _require(name: str, table: Table, paths: list[str]) -> None:
    if gone := _gone(table, paths):
        raise Wrong(f"{name}: files that do not exist: {listed(gone)}")
