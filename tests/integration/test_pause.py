"""A critical gap pauses its partition, through a SIGKILL, until an operator resumes it.

What the tables hold is read by DuckDB and judged by the oracle, without K2.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest

from k2.feeds.producer import produce
from k2.feeds.simulate import Journal, Simulation
from k2.lake.offsets import decode
from k2.schemas import TRADES
from k2.settings import Settings
from tests.integration.oracle import check, connect
from tests.integration.parts import (
    Worker,
    committed,
    environment,
    get,
    iceberg,
    k2,
    metric,
    until,
    verify,
)
from tests.sequences import injected

pytestmark = pytest.mark.slow

TOPIC = TRADES.topic("SIM")
#: Two of this seed's 40 gaps miss more sequences, both in the first three quarters.
CRITICAL = 47
SIMULATION = {"gaps": 40, "duplicates": 40, "late": 40, "resets": 4}

CAUSES = f"""
SELECT kafka_partition, min_by(gap_id, kafka_offset) AS gap_id, min(kafka_offset) AS kafka_offset
FROM gaps WHERE severity = 'critical' AND kafka_topic = '{TOPIC}'
AND gap_id NOT IN (SELECT gap_id FROM gaps WHERE operator IS NOT NULL) GROUP BY ALL
"""
TOLD_TWICE = """
SELECT gap_id, revision FROM gaps WHERE operator IS NULL GROUP BY ALL HAVING count(*) > 1
"""


def test_a_critical_gap_pauses_its_partition_until_it_is_resumed(lake: Settings) -> None:
    """Rows before it and other partitions go on; killed, it is paused again; nothing is lost."""
    settings = replace(
        lake,
        gap_limits=f"SIM=1:{CRITICAL}",
        on_critical="SIM=pause",
        buffer_rows_max=500,
        fetch_bytes_max=64 * 1024,  # so that fetches are under way behind the one that pauses
    )
    simulation = Simulation(11, 20, 20_000, **SIMULATION)  # type: ignore[arg-type]
    journal, whole = simulation.journal, pa.concat_tables(simulation)
    wanted = _critical(journal)
    assert len(wanted) == 2
    cut = whole.num_rows * 3 // 4
    worker = Worker(settings)
    with worker:
        produce([whole.slice(0, cut)], TOPIC, settings)
        paused = _await_paused(worker, settings)
        _require_paused(worker, settings, paused)

        verify(settings)

        worker.kill()
        produce([whole.slice(cut)], TOPIC, settings)
        worker.start()
        assert _await_paused(worker, settings) == paused
        _require_paused(worker, settings, paused)
        listed = k2(environment(settings), "resume")
        assert (listed.returncode, listed.stdout.count(TOPIC)) == (0, len(paused)), listed.stderr
        status = json.loads(k2(environment(settings), "status", "--json").stdout)
        assert sorted(status["paused"]) == sorted(gap_id for gap_id, _ in paused.values())
        refused = k2(environment(settings), "resume", "feed", "--reason", "no such finding")
        assert (refused.returncode, refused.stdout) == (2, "")

        # The first by the word made for it, whatever follows by an acceptance.
        commands = [("resume",), *[("gaps", "accept")] * (len(wanted) - 1)]
        for command in commands:
            partition, (gap_id, _) = min(paused.items())
            done = k2(environment(settings), *command, gap_id, "--reason", "the venue says so")
            assert (done.returncode, gap_id in done.stdout) == (0, True), done.stderr
            sample = f'k2_paused{{partition="{partition}",topic="{TOPIC}"}}'
            until(lambda: _moved_on(worker, settings, gap_id), 60, worker.tail)  # noqa: B023
            paused = _await_paused(worker, settings) if command != commands[-1] else {}
            if partition not in paused:
                assert metric(worker.url, sample) == 0
        worker.await_ready()
        rows = sum(journal.rows.values())
        until(lambda: committed(settings) == rows, 60, lambda: f"{rows} rows:\n{worker.tail()}")
        worker.terminate()
    verify(settings)
    check(settings, [whole], journal)
    with connect(settings) as connection:
        assert connection.execute(TOLD_TWICE).fetchall() == []
        found = connection.execute(
            "SELECT kind, status, symbol, missing_first, missing_last FROM gaps"
            " QUALIFY row_number() OVER (PARTITION BY gap_id ORDER BY revision DESC, ingest_time"
            " DESC) = 1"
        ).fetchall()
        accepted = [row for row in found if row[1] == "accepted"]
        assert len(accepted) == len(wanted) - 1
        as_found = [(kind, "open" if s == "accepted" else s, *rest) for kind, s, *rest in found]
        assert sorted(as_found) == injected(journal.entries)
        heard = connection.execute(
            "SELECT symbol, missing_first, missing_last FROM gaps"
            " WHERE reason = 'the venue says so'"
        ).fetchall()
        assert sorted(heard) == wanted


def _critical(journal: Journal) -> list[tuple[str, int, int]]:
    gaps = [entry for entry in journal.entries if entry.kind == "gap"]
    return sorted((e.symbol, e.first, e.last) for e in gaps if e.last - e.first + 1 > CRITICAL)


def _await_paused(worker: Worker, settings: Settings) -> dict[int, tuple[str, int]]:
    """By partition the finding that it waits for, once all others have been read to their ends."""

    def still() -> Any:
        worker.child.check()
        try:
            said = _reasons(worker)
        except OSError:
            return None
        with connect(settings) as connection:
            found = connection.execute(CAUSES).fetchall()
        waiting = {partition: (gap_id, at) for partition, gap_id, at in found}
        if not waiting or len(said) != len(waiting):
            return None
        ends = _offsets(settings, "trades")
        whole = all(
            metric(worker.url, f'k2_lag_records{{partition="{p}",topic="{TOPIC}"}}') == 0
            for p in ends
            if p not in waiting
        )
        stopped = all(ends.get(p, 0) == at for p, (_, at) in waiting.items())
        return waiting if whole and stopped else None

    found: dict[int, tuple[str, int]] = until(still, 60, worker.tail)
    return found


def _require_paused(worker: Worker, settings: Settings, paused: dict[int, tuple[str, int]]) -> None:
    """The table ends before the finding's record, the ledger behind it; /ready and metrics tell."""
    said = " ".join(_reasons(worker))
    records, ledger = _offsets(settings, "trades"), _offsets(settings, "gaps")
    for partition, (gap_id, at) in paused.items():
        assert (records[partition], ledger[partition]) == (at, at + 1)
        assert f"{TOPIC}[{partition}] waits at offset {at}: gap {gap_id}" in said
        assert f"`k2 resume {gap_id} --reason TEXT`" in said
        assert metric(worker.url, f'k2_paused{{partition="{partition}",topic="{TOPIC}"}}') == 1
    with connect(settings) as connection:
        above = connection.execute(
            "SELECT count(*) FROM (FROM trades UNION ALL BY NAME FROM rejects) t"
            f" JOIN ({CAUSES}) c USING (kafka_partition) WHERE t.kafka_offset >= c.kafka_offset"
        ).fetchall()
        assert above == [(0,)]
        assert connection.execute(TOLD_TWICE).fetchall() == []


def _moved_on(worker: Worker, settings: Settings, gap_id: str) -> bool:
    worker.child.check()
    return gap_id not in " ".join(_reasons(worker))


def _reasons(worker: Worker) -> list[str]:
    status, _, body = get(f"{worker.url}/ready", 5.0)
    reasons: list[str] = json.loads(body)["reasons"].get("paused", [])
    assert (status == 503) or not reasons
    return reasons


def _offsets(settings: Settings, name: str) -> dict[int, int]:
    """Next offset by partition, from the newest snapshot."""
    snapshot = iceberg(settings, name).current_snapshot()
    if snapshot is None or snapshot.summary is None:
        return {}
    return {s.partition: at for s, at in decode(snapshot.summary["k2.offsets"]).items()}
