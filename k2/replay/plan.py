"""Which files of a snapshot a window of time is read from, and how long it may be.

Of each data file the manifests promise rows, and their least and greatest time. Rows are taken to
lie evenly between these, so that a window can be chosen that holds about as many as are wanted.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pyiceberg.manifest import ManifestContent, ManifestFile
from pyiceberg.table import Table

from k2.errors import CatalogUnavailable, SchemaMismatch

__all__ = ["Files", "Manifests", "Windows"]

Int64s = npt.NDArray[np.int64]
#: Beyond all times in µs that a row can have.
US_MIN, US_MAX = -(2**63) // 1000 - 1, (2**63 - 1) // 1000 + 1


@dataclass(frozen=True, slots=True, order=True)
class _File:
    path: str
    number: int  # the sequence number of the snapshot that brought it
    rows: int
    low: int  # µs, of event_time or seen_at, inclusive
    high: int
    offset: int  # the least kafka_offset


class Files:
    """Data files as columns."""

    def __init__(self, files: Sequence[_File]) -> None:
        self.paths = [file.path for file in files]
        self.rows, self.lows, self.highs = (
            np.array([getattr(file, name) for file in files], np.int64)
            for name in ("rows", "low", "high")
        )

    def within(self, low: int, high: int) -> list[str]:
        """Paths of those that may have rows of [low, high), µs."""
        found = (self.lows < high) & (self.highs >= low)
        return [self.paths[i] for i in np.flatnonzero(found)]


class Manifests:
    """The data files that snapshots of one table name; a manifest is read once, as long as it is.

    May be used from any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: Mapping[str, tuple[_File, ...]] = {}

    def files(self, table: Table, most: int, beyond: int) -> Files:
        """The files of the newest snapshot that may have rows of a pin.

        Args:
            most: the greatest of the pin's next offsets.
            beyond: files of snapshots with greater sequence numbers than this one matter only if
                they have offsets below `most`: somebody may have rewritten old rows.

        Raises:
            CatalogUnavailable: a manifest cannot be read.
        """
        listed = [f for f in self._listed(table) if f.number <= beyond or f.offset < most]
        return Files(listed)

    def newer(self, table: Table, seen: int, rows: int) -> Iterator[tuple[int, list[str]]]:
        """What came after the snapshot of a sequence number, a few snapshots at a time.

        K2 writes the rows of a source in the order of their offsets: so they come in that order.

        Args:
            rows: of files that are given together, about; those of one snapshot always are.

        Returns:
            The sequence number through which the files reach, and their paths.
        """
        listed = sorted((file.number, file) for file in self._listed(table, seen))
        paths: list[str] = []
        count, reached = 0, seen
        for number, file in listed:
            if number <= seen:
                continue
            if number > reached and count >= rows:
                yield reached, paths
                paths, count = [], 0
            paths.append(file.path)
            count, reached = count + file.rows, number
        if paths:
            yield reached, paths

    def _listed(self, table: Table, seen: int = -1) -> Iterator[_File]:
        snapshot = table.current_snapshot()
        if snapshot is None:
            return
        try:
            manifests = {m.manifest_path: m for m in snapshot.manifests(table.io)}
            found = {
                path: self._known.get(path) or _read(manifest, table)
                for path, manifest in manifests.items()
                if manifest.sequence_number > seen
            }
        except OSError as exc:
            raise CatalogUnavailable(f"{'.'.join(table.name())}: manifests: {exc}") from exc
        with self._lock:
            kept = {path: of for path, of in self._known.items() if path in manifests}
            self._known = {**kept, **found}
        for files in found.values():
            yield from files


def _read(manifest: ManifestFile, table: Table) -> tuple[_File, ...]:
    if manifest.content == ManifestContent.DELETES:
        raise SchemaMismatch(f"{'.'.join(table.name())}: somebody has deleted rows: no replay")
    fields = {field.name: field.field_id for field in table.schema().fields}
    time, offset = fields.get("event_time", fields.get("seen_at", -1)), fields["kafka_offset"]
    found = []
    for entry in manifest.fetch_manifest_entry(table.io):
        file = entry.data_file
        lower, upper = file.lower_bounds or {}, file.upper_bounds or {}
        found.append(
            _File(
                file.file_path,
                entry.sequence_number or 0,
                file.record_count,
                _long(lower[time]) if time in lower else US_MIN,
                _long(upper[time]) if time in upper else US_MAX,
                _long(lower[offset]) if offset in lower else 0,
            )
        )
    return tuple(found)


def _long(bound: bytes) -> int:
    return int.from_bytes(bound, "little", signed=True)


class Windows:
    """Bounds in time, ascending, that cut files into windows of about as many rows each.

    A window ends where a file does, if there is such a place soon enough: then no file is read
    for two of them.
    """

    def __init__(self, files: Sequence[Files], start: int, end: int) -> None:
        """`start`, `end`: µs; the windows fill [start, end)."""
        lows, highs, rows = (
            np.concatenate([getattr(f, name) for f in files]).astype(np.float64)
            if files
            else np.empty(0)
            for name in ("lows", "highs", "rows")
        )
        self._start, self._end = start, end
        self._ends = np.sort(highs + 1)
        steps = np.concatenate([lows, highs + 1])
        rates = rows / (highs + 1 - lows)
        order = np.argsort(steps, kind="stable")
        self._times = steps[order]
        rate = np.cumsum(np.concatenate([rates, -rates])[order])
        self._rows = np.concatenate([[0.0], np.cumsum(rate[:-1] * np.diff(self._times))])

    def after(self, low: int, rows: int) -> int:
        """Where the window of about `rows` rows ends that begins at `low`, µs."""
        if not len(self._times):
            return self._end
        before = self._before(low)
        if self._rows[-1] - before <= 2 * rows:
            return self._end
        end = float(np.interp(before + rows, self._rows, self._times))
        place = int(np.searchsorted(self._ends, end))
        if place < len(self._ends) and self._before(self._ends[place]) <= before + 2 * rows:
            end = self._ends[place]
        return min(self._end, max(low + 1, int(end)))

    def _before(self, time: float) -> float:
        return float(np.interp(time, self._times, self._rows))
