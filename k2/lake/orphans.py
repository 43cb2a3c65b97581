"""Files below a table's location that no snapshot in its metadata names.

A commit that was refused or cut short leaves data files, expiry of snapshots leaves manifest
lists, and K2 deletes neither. They cost space, and nothing else: readers never see them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pyarrow.fs
from pyiceberg.catalog import Catalog
from pyiceberg.io.pyarrow import PyArrowFileIO
from pyiceberg.table import Table

from k2.errors import CatalogUnavailable
from k2.lake.catalog import load_table
from k2.lake.findings import Finding
from k2.settings import Settings

__all__ = ["orphans"]

_NS = 1_000_000


def orphans(catalog: Catalog, name: str, settings: Settings) -> list[Finding]:
    """Look for orphans of one table, local or in an object store.

    Args:
        settings: `orphan_age_min_ms`; younger files may belong to a commit in flight.

    Returns:
        A warning for data files and one for metadata files, with count and bytes, if there are any.

    Raises:
        CatalogUnavailable: the table cannot be loaded, or its folders not be listed.
    """
    table = load_table(catalog, name)
    io = table.io
    assert isinstance(io, PyArrowFileIO)
    scheme, netloc, root = io.parse_location(table.location())
    try:
        filesystem = io.fs_by_scheme(scheme, netloc)
        until_ns = time.time_ns() - settings.orphan_age_min_ms * _NS
        # The files first, then what is named: a commit in between then names too many, not too few.
        present = {
            folder: list(_older(filesystem, f"{root.rstrip('/')}/{folder}", until_ns))
            for folder in ("data", "metadata")
        }
        table = load_table(catalog, name)
        named = {
            "data": {io.parse_location(path)[2] for path in _data_files(table)},
            "metadata": {io.parse_location(path)[2] for path in _metadata_files(table)},
        }
    except OSError as exc:
        raise CatalogUnavailable(f"{name}: its files cannot be listed: {exc}") from exc
    found = []
    for folder, kind in (("data", "orphan_files"), ("metadata", "orphan_metadata")):
        extra = [info for info in present[folder] if info.path not in named[folder]]
        if extra:
            size = sum(info.size or 0 for info in extra)
            oldest = min(extra, key=lambda info: info.mtime_ns or 0)
            detail = (
                f"{name}: {len(extra):,} files, {size:,} bytes, in no snapshot; oldest: "
                f"{oldest.path}"
            )
            found.append(Finding(kind, detail, "warning"))
    return found


def _older(
    filesystem: pyarrow.fs.FileSystem, folder: str, until_ns: int
) -> Iterator[pyarrow.fs.FileInfo]:
    selector = pyarrow.fs.FileSelector(folder, recursive=True, allow_not_found=True)
    for info in filesystem.get_file_info(selector):
        if info.type == pyarrow.fs.FileType.File and (info.mtime_ns or 0) < until_ns:
            yield info


def _data_files(table: Table) -> Iterator[str]:
    read: set[str] = set()
    for snapshot in table.metadata.snapshots:
        for manifest in snapshot.manifests(table.io):
            if manifest.manifest_path not in read:
                read.add(manifest.manifest_path)
                for entry in manifest.fetch_manifest_entry(table.io, discard_deleted=False):
                    yield entry.data_file.file_path


def _metadata_files(table: Table) -> Iterator[str]:
    yield table.metadata_location
    for former in table.metadata.metadata_log:
        yield former.metadata_file
    for snapshot in table.metadata.snapshots:
        yield snapshot.manifest_list
        for manifest in snapshot.manifests(table.io):
            yield manifest.manifest_path
