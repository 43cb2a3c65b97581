"""Expiry of old snapshots, which keeps the metadata small: a commit's time follows its size.

Nothing is lost by it: every snapshot carries the full map of offsets, and data files that a newer
snapshot still names stay. Expiry never asks for the head to be removed, and changes the metadata
by the same compare-and-swap as a commit: whoever loses that race tries again.
"""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime

from pyiceberg.table import Table

from k2.settings import Settings

__all__ = ["expire"]

log = logging.getLogger(__name__)


def expire(table: Table, settings: Settings) -> int:
    """Remove snapshots that are old, but for the newest `settings.snapshots_keep` and the head.

    Args:
        table: the caller's handle; its metadata is the newest one afterwards, if any was removed.
        settings: `snapshot_age_min_ms` (younger ones stay) and `snapshots_keep`.

    Returns:
        How many snapshots were removed. 0 as well when it failed, which is logged: the next
        expiry removes what this one did not.
    """
    stamps = sorted((snapshot.timestamp_ms for snapshot in table.metadata.snapshots), reverse=True)
    if len(stamps) <= settings.snapshots_keep:
        return 0
    now_ms = time.time_ns() // 1_000_000
    cutoff_ms = min(now_ms - settings.snapshot_age_min_ms, stamps[settings.snapshots_keep - 1])
    if stamps[-1] >= cutoff_ms:
        return 0
    try:
        # `older_than` passes over the snapshots once; `by_ids` copies the metadata for each.
        cutoff = datetime.fromtimestamp(cutoff_ms / 1000, tz=UTC)
        table.maintenance.expire_snapshots().older_than(cutoff).commit()
    except Exception as exc:
        # Another worker committed or expired meanwhile, or the catalog is away: not our loss.
        log.warning("%s: snapshots not expired: %s: %s", table.name(), type(exc).__name__, exc)
        return 0
    return len(stamps) - len(table.metadata.snapshots)
