"""K2: a `k2 worker` as the embedded stack starts it, with the settings it ships with."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from bench.measure import (
    PATIENCE_S,
    CheckFailed,
    Process,
    Run,
    TableWatch,
    assigned_by_faust,
    check_table,
)
from bench.workload import EXCHANGE, PARTITIONS, SESSION_TIMEOUT_MS, Workload
from k2.dev.broker import free_port
from k2.dev.stack import init
from k2.registry import open_registry
from k2.schemas import TRADE_AVRO
from k2.settings import Settings

__all__ = ["NAME", "run"]

NAME = "K2"
RATE_MIN = 5_000


def run(workload: Workload, broker: int, folder: Path, group: str) -> Run:
    """One worker from a cold start until the table holds all trades.

    Every setting has its default but those that name things, and the session timeout.
    """
    settings = Settings(
        data=folder,
        broker=workload.broker,
        group=group,
        exchanges=EXCHANGE,
        partitions=PARTITIONS,
        port=free_port(),
        session_timeout_ms=SESSION_TIMEOUT_MS,
        shutdown_timeout_ms=SESSION_TIMEOUT_MS - 1000,
    )
    init(settings)
    schema_id = open_registry(settings).register(f"{workload.topic}-value", TRADE_AVRO)
    if schema_id != workload.schema_id:
        raise CheckFailed(f"{NAME}: schema id {schema_id}, the trades have {workload.schema_id}")
    env = {
        f"K2_{spec.name.upper()}": str(getattr(settings, spec.name)) for spec in fields(settings)
    }
    trades = workload.plan.trades
    watch = TableWatch(settings)
    try:
        with Process(NAME, ["-m", "k2", "worker"], folder, broker, env) as process:
            end = watch.wait(process, trades, PATIENCE_S + trades / RATE_MIN)
            process.finish()
            assigned = assigned_by_faust(process.child.log)
    finally:
        watch.close()
    check_table(NAME, settings, trades, workload.plan.symbols)
    first, rows = watch.commits[0]
    return process.run(
        NAME,
        trades,
        assigned,
        end,
        commits=len(watch.commits),
        first_commit_seconds=first - assigned,
        first_commit_rows=rows,
    )
