"""Every fault that is known, and in which places it can happen."""

from __future__ import annotations

from tests.chaos import scenes
from tests.chaos.rounds import Fault

__all__ = ["FAULTS"]

KAFKA = ("kafka",)

FAULTS = (
    # A worker dies, and its successor too.
    Fault("killed after fetch", scenes.killed, "after fetch"),
    Fault("killed after sequence check", scenes.killed, "after sequence check"),
    Fault("killed mid-Parquet", scenes.killed, "mid-Parquet"),
    Fault("killed after Parquet", scenes.killed, "after Parquet"),
    Fault("killed after manifest", scenes.killed, "after manifest"),
    Fault("killed before swap", scenes.killed, "before swap"),
    Fault("killed after swap", scenes.killed, "after swap"),
    Fault("killed mid-table-flush", scenes.killed, "mid-table-flush", within=300),
    Fault("killed after table flush", scenes.killed, "after table flush"),
    Fault("killed before ack", scenes.killed, "before ack"),
    Fault("killed after ack", scenes.terminated, "after ack", within=2),
    Fault("killed at assignment", scenes.killed, "at assignment", within=1),
    Fault("killed in recovery", scenes.moved, "in recovery", within=1),
    Fault("killed in a rebalance", scenes.joined, "after drain", within=1),
    Fault("killed in shutdown", scenes.terminated, "before drain", within=1),
    # Several workers.
    Fault("frozen, then woken", scenes.frozen, "at swap", "freeze"),
    Fault("workers come and go", scenes.storm),
    Fault("two groups own all partitions", scenes.rivals),
    Fault(
        "four workers, twenty minutes' commits",
        scenes.four,
        places=("embedded",),
        trades=3_000_000,
        settings={"flush_age_max_ms": 10, "snapshot_age_min_ms": 0},
    ),
    # The broker.
    Fault("broker killed", scenes.broker_killed, places=KAFKA),  # the embedded one has no log then
    Fault("broker paused", scenes.broker_paused),
    Fault("broker paused, worker killed", scenes.broker_paused_and_killed),
    Fault("transactions aborted, killed", scenes.aborting, "after swap", places=KAFKA),
    # The state of the sequence check.
    Fault("state folder lost", scenes.lost_folder),
    Fault("state folder corrupt", scenes.corrupt_folder),
    Fault("changelog behind", scenes.changelog_behind),
    Fault("changelog lost", scenes.changelog_lost),
    Fault("changelog ahead", scenes.changelog_ahead),
    # Catalog and warehouse.
    Fault("disk full", scenes.alone, "at file", "disk full", times=3),
    Fault("catalog conflicts", scenes.alone, "at swap", "conflict", times=4),
    Fault("catalog's answers lost", scenes.alone, "after swap", "lost answer", times=3),
    Fault("catalog slow", scenes.alone, "at swap", "slow", times=2),
    Fault(
        "catalog down for a minute, full load",
        scenes.pressed,
        "at swap",
        "down",
        within=2,
        times=1 << 30,
        trades=3_000_000,
        rate=None,
        settings={},
    ),
)
