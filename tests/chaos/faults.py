"""Every fault that is known, and in which places it can happen."""

from __future__ import annotations

from typing import Any

from tests.chaos import scenes
from tests.chaos.proxy import Kind, Predicate, anything, commits, data_files, manifests, reads
from tests.chaos.rounds import SMALL, Fault

__all__ = ["FAULTS"]

KAFKA = ("kafka",)
#: Whoever waits long for an answer sees few faults of a network in a short time.
IMPATIENT = {**SMALL, "lake_timeout_ms": 1000, "commit_timeout_ms": 3000}


def _network(name: str, before: str, kind: Kind, when: Predicate = anything, **how: Any) -> Fault:
    """What only the place with S3 and a REST catalog has."""
    scene = scenes.network(before, kind, when, **how)
    return Fault(name, scene, places=KAFKA, settings=IMPATIENT)


FAULTS = (
    # A worker dies, and its successor too.
    Fault("killed after fetch", scenes.killed, "after fetch"),
    Fault("killed after sequence check", scenes.killed, "after sequence check"),
    Fault("killed mid-Parquet", scenes.killed, "mid-Parquet"),
    Fault("killed after Parquet", scenes.killed, "after Parquet"),
    Fault("killed after manifest", scenes.killed, "after manifest"),
    Fault("killed before swap", scenes.killed, "before swap"),
    Fault("killed after swap", scenes.killed, "after swap"),
    Fault("killed after the ledger's swap", scenes.killed, "after the ledger's swap", within=3),
    Fault("killed mid-table-flush", scenes.killed, "mid-table-flush", within=150),
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
        trades=2_800_000,  # as long as it may take
        rate=1_500.0,
        settings={"flush_age_max_ms": 10, "snapshot_age_min_ms": 0},
    ),
    # The broker.
    Fault("broker killed", scenes.broker_killed, places=KAFKA),  # the embedded one has no log then
    Fault("broker paused", scenes.broker_paused),
    Fault("broker paused, worker killed", scenes.broker_paused_and_killed),
    Fault("transactions aborted, killed", scenes.aborting, "after swap", places=KAFKA),
    Fault(
        "topic compacted, killed",
        scenes.compacted,
        "after swap",
        within=1,
        places=KAFKA,
        rate=20_000.0,
    ),
    # The state of the sequence check.
    Fault("state folder lost", scenes.lost_folder),
    Fault("state folder corrupt", scenes.corrupt_folder),
    Fault("changelog behind", scenes.changelog_behind),
    Fault("changelog lost", scenes.changelog_lost),
    Fault("changelog ahead", scenes.changelog_ahead),
    # Catalog and warehouse.
    Fault("disk full", scenes.alone, "at file", "disk full", within=3, times=3),
    Fault("catalog conflicts", scenes.alone, "at swap", "conflict", within=3, times=3),
    Fault("catalog's answers lost", scenes.alone, "after swap", "lost answer", within=3, times=3),
    Fault("catalog slow", scenes.alone, "at swap", "slow", within=3, times=2),
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
    # The network to them.
    _network("catalog answers 500", "catalog", Kind.ERROR, status=500),
    _network("catalog answers 503 now and then", "catalog", Kind.ERROR, share=0.3),
    _network("catalog hangs", "catalog", Kind.HANG, commits),
    _network("catalog hangs, killed", "catalog", Kind.HANG, commits, killed=True),
    _network("catalog cut off before", "catalog", Kind.CUT_BEFORE, commits),
    _network("catalog cut off after the commit", "catalog", Kind.CUT_AFTER, commits),
    _network("commit cut off, killed", "catalog", Kind.CUT_AFTER, commits, killed=True),
    _network("catalog unreachable", "catalog", Kind.DOWN),
    _network("S3 answers 503 now and then", "s3", Kind.ERROR, share=0.3),
    _network("S3 answers 503, killed", "s3", Kind.ERROR, killed=True),
    _network("S3 hangs", "s3", Kind.HANG),
    _network("S3 slow", "s3", Kind.SLOW, seconds=0.5),
    _network("S3 reads trickle", "s3", Kind.TRICKLE, reads, seconds=0.005),
    _network("S3 reads cut off", "s3", Kind.CUT_WITHIN, reads, share=0.3),
    _network("S3 uploads cut off", "s3", Kind.CUT_BEFORE, data_files, share=0.5),
    _network("S3 manifests cut off", "s3", Kind.CUT_AFTER, manifests, share=0.5),
    _network("S3 unreachable", "s3", Kind.DOWN),
)
