"""Faust's RocksDB store, which throws a broken database away: the changelog has it all."""

from __future__ import annotations

import logging
import shutil
from typing import Any

from faust.stores.rocksdb import Store as RocksDBStore

__all__ = ["Store"]

log = logging.getLogger(__name__)


class Store(RocksDBStore):
    """Opens a partition's database only if all of it can be read.

    A block that fails its checksum would otherwise end the worker at its first read, and again
    after every restart.

    How far it has the changelog, it notes without a gap. A worker that wakes up after another one
    has taken over delivers late: the records of the other one lie before its own, and were never
    read here.
    """

    _recovering = False

    def apply_changelog_batch(self, *args: Any, **kwargs: Any) -> None:
        self._recovering = True  # read in order, compacted records left out
        try:
            super().apply_changelog_batch(*args, **kwargs)
        finally:
            self._recovering = False

    def set_persisted_offset(self, tp: Any, offset: int) -> None:
        known = self.persisted_offset(tp)
        if self._recovering or offset == (-1 if known is None else known) + 1:
            super().set_persisted_offset(tp, offset)

    def value(self, partition: int, key: bytes) -> bytes | None:
        """Read without an event, by which Faust finds the partition; None if it is not open."""
        db = self._dbs.get(partition)
        value: bytes | None = None if db is None else db.get(key)
        return value

    def _open_for_partition(self, partition: int) -> Any:
        path = self.partition_path(partition)
        db = None
        try:
            db = super()._open_for_partition(partition)
            for _ in db.items():
                pass
        except Exception as exc:  # RocksDB's errors are plain ones
            if db is None and "lock" in repr(exc).lower():
                raise  # another process has it open: Faust tries again
            log.error(  # noqa: TRY400 - expected, a trace says nothing
                "%s: cannot be read, to be rebuilt from the changelog: %s", path, exc
            )
        else:
            return db
        if db is not None:
            db.close()
        shutil.rmtree(path, ignore_errors=True)
        return super()._open_for_partition(partition)
