"""Two workers share the partitions; when one goes, the other takes over and nothing changes."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from k2.feeds.simulate import Simulation
from k2.schemas import TRADES
from k2.settings import Settings
from tests.chaos.rounds import ChaosWorker
from tests.integration.oracle import check
from tests.integration.parts import Feed, Worker, committed, until, verify

pytestmark = pytest.mark.slow

ROWS = 600_000
RATE = 30_000.0
FAULTS = {"gaps": 60, "duplicates": 80, "late": 60, "resets": 6}


def test_other_worker_takes_over_while_trades_come(lake: Settings) -> None:
    """One of two is ended in mid-stream, first gently, then by SIGKILL: the other one goes on."""
    simulation = Simulation(7, 200, ROWS, **FAULTS)
    journal, whole = simulation.journal, pa.concat_tables(simulation)
    cut = ROWS // 2
    with _both(Worker(lake, "a"), Worker(lake, "b")) as (going, staying):
        with Feed([whole.slice(0, cut)], _topic(lake), lake, RATE) as feed:
            _await_shared(going, staying)
            assert 0 < committed(lake) < feed.count < cut, "not in mid-stream"
            going.terminate()
            assert feed.done.result(timeout=60).count == cut
        going.start()
        going.await_ready()
        before = committed(lake)
        with Feed([whole.slice(cut)], _topic(lake), lake, RATE) as feed:
            until(lambda: committed(lake) > before, 60, lambda: f"commits:\n{staying.tail()}")
            _await_shared(going, staying)
            assert 0 < feed.count < whole.num_rows - cut, "not in mid-stream"
            going.kill()
            assert feed.done.result(timeout=60).count == whole.num_rows - cut
        _await_rows(staying, sum(journal.rows.values()))
        staying.terminate()
    verify(lake)
    check(lake, [whole], journal)


def test_zombie_that_wakes_up_changes_nothing(lake: Settings) -> None:
    """A worker frozen in a commit, beyond its session, is refused and then works again."""
    simulation = Simulation(8, 200, ROWS, **FAULTS)
    journal, whole = simulation.journal, pa.concat_tables(simulation)
    cut = ROWS * 2 // 3
    first, rest = whole.slice(0, cut), whole.slice(cut)
    hit = lake.data / "frozen"
    armed = ChaosWorker(lake, "a", _freeze_at_swap(3, hit))
    with _both(armed, Worker(lake, "b")) as (zombie, other):
        with Feed([first], _topic(lake), lake, RATE) as feed:
            # A swap of rejects counts, and one that another worker was before: none may be through.
            until(hit.exists, 60, lambda: f"a third swap:\n{zombie.tail()}")
            assert committed(lake) < feed.count < cut, "not in mid-stream"
            assert feed.done.result(timeout=60).count == cut
        # The other one has taken over and committed everything: what the zombie holds is stale.
        _await_rows(other, pc.count_distinct(first["trade_id"]).as_py())
        with Feed([rest], _topic(lake), lake, RATE) as feed:
            zombie.child.signal(signal.SIGCONT)
            assert feed.done.result(timeout=60).count == rest.num_rows
        _await_rows(other, sum(journal.rows.values()))
        zombie.await_ready()
        zombie.terminate()
        other.terminate()
        assert "expected next offset" in zombie.log(), "its commit was not refused"
    verify(lake)
    check(lake, [whole], journal)


def _freeze_at_swap(commit: int, mark: Path) -> dict[str, str]:
    return {
        "CHAOS_POINT": "at swap",
        "CHAOS_ACTION": "freeze",
        "CHAOS_FIRST": str(commit),
        "CHAOS_TIMES": "1",
        "CHAOS_MARK": str(mark),
    }


@contextmanager
def _both(one: Worker, two: Worker) -> Iterator[tuple[Worker, Worker]]:
    with one, two:
        one.await_ready()
        two.await_ready()
        yield one, two


def _topic(lake: Settings) -> str:
    return TRADES.topic("SIM")


def _await_shared(*workers: Worker) -> None:
    """Until each has checked trades of its own partitions, and some are committed."""
    for worker in workers:
        worker.await_ready()
        until(worker.ingested, 60, lambda: f"a share of the trades:\n{worker.tail()}")  # noqa: B023
    until(lambda: committed(workers[0].settings), 30, "a commit")


def _await_rows(worker: Worker, rows: int) -> None:
    def there() -> bool:
        worker.child.check()
        return committed(worker.settings) >= rows

    until(there, 90, lambda: f"{rows} rows, but {committed(worker.settings)}:\n{worker.tail()}")
