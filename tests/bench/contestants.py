"""The contestants: how each is set up, started, timed and checked."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path

from k2.dev.broker import free_port
from k2.dev.stack import init
from k2.lake.catalog import ensure_tables, load_table, open_catalog, table_name
from k2.registry import open_registry
from k2.schemas import TRADES
from k2.settings import Settings
from tests.bench.measure import (
    CheckFailed,
    Place,
    Process,
    Run,
    TableWatch,
    assigned_by_faust,
    await_result,
    check_table,
)
from tests.bench.wire import PARTITIONS, SESSION_TIMEOUT_MS
from tests.bench.workload import EXCHANGE, Feed, Workload

__all__ = ["CONTESTANTS", "K2", "K2_MANY", "LIMIT", "LOOP", "STOCK_FAUST"]

K2 = "K2"
K2_MANY = "K2, many symbols"
LOOP = "loop"
STOCK_FAUST = "stock Faust"
LIMIT = "limit: consumer that only counts"

#: A run has failed that takes a minute longer than its trades would at this rate.
RATE_MIN = 5_000
FAUST_RATE_MIN = 200
PATIENCE_S = 60.0


def _k2(workload: Workload, place: Place) -> Run:
    """One worker from a cold start until the table holds all trades.

    Every setting has its default but those that name things, and the session timeout.
    """
    return _worker(workload, workload.feed, K2, place, ["-m", "k2", "worker"], {})


def _k2_many(workload: Workload, place: Place) -> Run:
    """The same with the feed of many symbols; and what its checkpoints cost."""
    assert workload.many is not None
    file = place.folder / "checkpoints.jsonl"
    argv = ["-m", "tests.bench.clocked_worker", "worker"]
    env = {"BENCH_CHECKPOINTS": str(file)}
    run = _worker(workload, workload.many, K2_MANY, place, argv, env)
    return replace(run, details=run.details | _checkpoints(file, run.seconds))


def _checkpoints(file: Path, seconds: float) -> dict[str, float]:
    """Processor time of all checkpoints, a second of the run: there is one a second.

    The last one, at the worker's end, comes behind the clock, and counts too.

    Raises:
        CheckFailed: there was none.
    """
    seen = [json.loads(line) for line in file.read_text().splitlines()]
    if not seen:
        raise CheckFailed(f"{K2_MANY}: no checkpoint")
    return {
        "checkpoints": len(seen),
        "checkpoint_share": seen[-1]["seconds"] / seconds,
        "live_share": seen[-1]["live_seconds"] / seconds,  # not in the one above
    }


def _worker(
    workload: Workload,
    feed: Feed,
    name: str,
    place: Place,
    argv: list[str],
    more: Mapping[str, str],
) -> Run:
    settings = Settings(
        data=place.folder,
        broker=workload.broker,
        group=place.group,
        exchanges=feed.exchange,
        partitions=PARTITIONS,
        port=free_port(),
        session_timeout_ms=SESSION_TIMEOUT_MS,
        shutdown_timeout_ms=SESSION_TIMEOUT_MS - 1000,
    )
    init(settings)
    schema_id = open_registry(settings).register(f"{feed.topic}-value", TRADES.avro)
    if schema_id != workload.schema_id:
        raise CheckFailed(f"{name}: schema id {schema_id}, the trades have {workload.schema_id}")
    env = {
        f"K2_{spec.name.upper()}": str(getattr(settings, spec.name)) for spec in fields(settings)
    }
    trades = workload.plan.trades
    watch = TableWatch(settings)
    try:
        with Process(name, argv, place, {**env, **more}) as process:
            end = watch.wait(process, trades, PATIENCE_S + trades / RATE_MIN)
            process.finish()
            assigned = assigned_by_faust(process.child.log)
    finally:
        watch.close()
    check_table(name, settings, trades, feed.symbols)
    first, rows = watch.commits[0]
    return process.run(
        name,
        trades,
        assigned,
        end,
        commits=len(watch.commits),
        first_commit_seconds=first - assigned,
        first_commit_rows=rows,
    )


def _loop(workload: Workload, place: Place) -> Run:
    """One process from a cold start until the table, made like K2's, holds all trades."""
    settings = Settings(data=place.folder, broker=workload.broker, exchanges=EXCHANGE)
    catalog = open_catalog(settings)
    ensure_tables(catalog, settings)
    table = load_table(catalog, table_name(settings, TRADES))
    table.transaction().set_properties(
        {"write.parquet.compression-level": "1"}
    ).commit_transaction()
    noted = place.folder / "assigned.json"
    argv = [
        "-m", "tests.bench.loop",
        workload.broker, place.group, workload.feed.topic, str(workload.schema_id),
        str(place.folder), str(noted),
    ]  # fmt: skip
    trades = workload.plan.trades
    watch = TableWatch(settings)
    try:
        with Process(LOOP, argv, place, {}) as process:
            end = watch.wait(process, trades, PATIENCE_S + trades / RATE_MIN)
            process.finish()
    finally:
        watch.close()
    check_table(LOOP, settings, trades, workload.feed.symbols)
    assigned = json.loads(noted.read_text())["assigned"]
    return process.run(LOOP, trades, assigned, end, commits=len(watch.commits))


def _stock_faust(workload: Workload, place: Place) -> Run:
    """One worker from a cold start until every event's sequence is in the table."""
    trades = workload.plan.faust_trades
    place.folder.mkdir(parents=True)
    result = place.folder / "result.json"
    env = {
        "BENCH_BROKER": workload.broker,
        "BENCH_GROUP": place.group,
        "BENCH_FOLDER": str(place.folder),
        "BENCH_TRADES": str(trades),
        "BENCH_SCHEMA_ID": str(workload.schema_id),
        "BENCH_PORT": str(free_port()),
    }
    with Process(STOCK_FAUST, ["-m", "tests.bench.stock_faust"], place, env) as process:
        found = await_result(process, result, PATIENCE_S + trades / FAUST_RATE_MIN)
        process.finish()
        assigned = assigned_by_faust(process.child.log)
    if found["count"] != trades or found["sequences"] != workload.faust_rows:
        right = found["sequences"] == workload.faust_rows
        raise CheckFailed(
            f"{STOCK_FAUST}: {found['count']} events of {trades}, last sequences in the table "
            f"{'right' if right else 'wrong'}"
        )
    waited = found["first"] - assigned
    return process.run(STOCK_FAUST, trades, assigned, found["end"], first_event_seconds=waited)


def _limit(workload: Workload, place: Place) -> Run:
    """One process until all messages are counted."""
    trades = workload.plan.trades
    place.folder.mkdir(parents=True)
    result = place.folder / "result.json"
    argv = [
        "-m", "tests.bench.limit",
        workload.broker, place.group, workload.feed.topic, str(trades), str(result),
    ]  # fmt: skip
    with Process(LIMIT, argv, place, {}) as process:
        found = await_result(process, result, PATIENCE_S + trades / RATE_MIN)
        process.finish()
    if found["count"] != trades:
        raise CheckFailed(f"{LIMIT}: counted {found['count']}, wanted {trades}")
    return process.run(LIMIT, trades, found["assigned"], found["end"])


CONTESTANTS: dict[str, Callable[[Workload, Place], Run]] = {
    K2: _k2,
    K2_MANY: _k2_many,
    LOOP: _loop,
    STOCK_FAUST: _stock_faust,
    LIMIT: _limit,
}
