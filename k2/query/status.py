"""A table now, from its metadata: rows, files, snapshot, and where each partition goes on."""

from __future__ import annotations

import time
from typing import Any

from k2.query.index import Pin
from k2.query.records import next_offsets

__all__ = ["state", "total"]


def state(name: str, table: Pin) -> dict[str, Any]:
    """What `/v1/status` says of a table."""
    snapshot = table.snapshot
    found: dict[str, Any] = {
        "table": name,
        "rows": 0,
        "files": 0,
        "snapshot_id": None,
        "snapshot_ts": None,
        "commit_age_seconds": None,
        "offsets": [],
    }
    if snapshot is None:
        return found
    found["rows"] = total(table, "records")
    found["files"] = total(table, "data-files")
    found["snapshot_id"] = snapshot.snapshot_id
    found["snapshot_ts"] = snapshot.timestamp_ms * 1_000_000
    found["commit_age_seconds"] = max(0.0, time.time() - snapshot.timestamp_ms / 1000)
    found["offsets"] = [
        {**source._asdict(), "next_offset": offset}
        for source, offset in sorted(next_offsets(table).items())
    ]
    return found


def total(pin: Pin, what: str) -> int:
    """How many of them a snapshot has in all."""
    return int(pin.said(f"total-{what}") or 0)
