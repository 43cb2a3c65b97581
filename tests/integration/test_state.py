"""The states of the sequence check are forgotten by command, and workers make them anew."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from k2.feeds.producer import produce
from k2.feeds.simulate import Simulation
from k2.schemas import TRADES
from k2.settings import Settings
from tests.integration.oracle import check, connect
from tests.integration.parts import Worker, committed, environment, k2, until, verify

pytestmark = pytest.mark.slow

SYMBOLS = 60
ROWS = 60_000
FAULTS = {"gaps": 40, "duplicates": 60, "late": 40, "resets": 4}
REBUILT = "(at None) is rebuilt from the trades table, offsets 0 to "


def test_forgotten_states_are_made_anew_from_the_trades(lake: Settings) -> None:
    """Once on the folder that had them, once on an empty one: no false gap, no duplicate missed."""
    simulation = Simulation(11, SYMBOLS, ROWS, **FAULTS)
    journal, whole = simulation.journal, pa.concat_tables(simulation)
    quarter = whole.num_rows // 4
    topic = TRADES.topic("SIM")
    # The embedded broker calls a group stable also when all workers have left.
    sure = ("--yes",) if lake.catalog_uri else ("--yes", "--force")

    def flow(worker: Worker, piece: int) -> None:
        """Let a worker commit a quarter of the stream, and end it."""
        first, last = piece * quarter, whole.num_rows if piece == 3 else (piece + 1) * quarter
        produce([whole.slice(first, last - first)], topic, lake)
        sent = pc.count_distinct(whole["trade_id"].slice(0, last)).as_py()
        with worker:
            until(lambda: committed(lake) == sent, 60, lambda: f"{sent} rows:\n{worker.tail()}")
            if piece == 0:
                _refused(_rebuild(lake, "--yes"))
            if piece == 3:
                until(lambda: committed(lake, "rejects") == journal.duplicates, 60, worker.tail)
            # The states follow the commit; ended in between, they are behind.
            until(lambda: _verdicts(_show(lake)) == {"ok"}, 60, lambda: str(_show(lake)))
            worker.terminate()

    old = Worker(lake, "old")
    flow(old, 0)
    found = _show(lake)
    assert _verdicts(found) == {"ok"}
    assert sum(row["symbols"] for row in found) == SYMBOLS
    assert all(row["watermark"] == row["next_offset"] for row in found)
    for row in found:
        row["verdict"] = f"missing: rebuilt from {_rows(lake, row['partition']):,} rows"
        row |= {"symbols": 0, "open_gaps": 0, "epoch": None, "watermark": None}

    dry = _rebuild(lake)
    assert (dry.returncode, "nothing done: --yes does it" in dry.stderr) == (0, True), dry.stderr
    assert dry.stdout.count("to be forgotten") == len(found)
    assert _verdicts(_show(lake)) == {"ok"}
    _done(_rebuild(lake, *sure), len(found))
    assert [{**row, "epoch": None} for row in _show(lake)] == found
    assert "there is no state to forget" in _rebuild(lake, *sure).stderr

    flow(old, 1)
    assert old.log().count(REBUILT) == len(found)
    assert _verdicts(_show(lake)) == {"ok"}
    _done(_rebuild(lake, topic, "0", *sure), 1)
    assert [row["verdict"][:7] for row in _show(lake)] == ["missing"] + ["ok"] * (len(found) - 1)
    _done(_rebuild(lake, topic, *sure), len(found) - 1)

    flow(new := Worker(lake, "new"), 2)
    assert new.log().count(REBUILT) == len(found)
    flow(old, 3)  # its folder has states that were forgotten meanwhile
    # The embedded broker may not show it the last batch of the changelog: it then rebuilds again.
    assert old.log().count(REBUILT) == len(found) or not lake.catalog_uri
    found = _show(lake)
    assert _verdicts(found) == {"ok"}
    left_open = sum(entry.kind == "gap" for entry in journal.entries)
    assert sum(row["open_gaps"] for row in found) == left_open
    verify(lake)
    check(lake, [whole], journal)


def _rebuild(lake: Settings, *arguments: str) -> subprocess.CompletedProcess[str]:
    return k2(environment(lake), "state", "rebuild", *arguments)


def _done(done: subprocess.CompletedProcess[str], sources: int) -> None:
    said = (done.returncode, done.stdout.count("to be forgotten"), done.stdout[-5:])
    assert said == (0, sources, "done\n"), done.stderr


def _refused(done: subprocess.CompletedProcess[str]) -> None:
    assert (done.returncode, "Stop them first" in done.stderr) == (2, True), done.stderr


def _show(lake: Settings) -> list[dict[str, Any]]:
    done = k2(environment(lake), "state", "show", "--json")
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def _verdicts(rows: list[dict[str, Any]]) -> set[str]:
    return {row["verdict"] for row in rows}


def _rows(lake: Settings, partition: int) -> int:
    with connect(lake) as connection:
        sql = f"SELECT count(*) FROM trades WHERE kafka_partition = {partition}"
        return int(connection.execute(sql).fetchall()[0][0])
