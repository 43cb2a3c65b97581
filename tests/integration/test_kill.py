"""SIGKILL in the middle of a stream loses nothing, repeats nothing and changes no verdict."""

from __future__ import annotations

import random
import time

import pytest

from k2.feeds.simulate import Simulation
from k2.schemas import TRADES
from k2.settings import Settings
from tests.integration.oracle import check
from tests.integration.parts import Feed, Worker, committed, until, verify

pytestmark = pytest.mark.slow

ROWS = 2_000_000
RATE = 70_000.0
KILLS = 4
SEED = 20_140_310


# Apache Kafka too keeps it, but takes two minutes more; its takeover test has a kill as well.
@pytest.mark.parametrize("place", ["local"], indirect=True)
def test_sigkill_at_random_moments_keeps_every_trade_once(lake: Settings) -> None:
    """The worker is killed again and again, once while it starts, as trades keep coming."""
    simulation = Simulation(SEED, 200, ROWS, gaps=300, duplicates=500, late=300, resets=20)
    journal, stream = simulation.journal, list(simulation)
    total = sum(journal.rows.values())
    moments = random.Random(SEED)
    killed_at: list[int] = []
    worker = Worker(lake)
    with Feed(stream, TRADES.topic("SIM"), lake, RATE) as feed, worker:
        for number in range(KILLS):
            _await_rows(worker, int(total * (number + moments.random()) / (KILLS + 1)))
            _kill(worker, moments.uniform(0.0, 0.3), killed_at)  # anywhere in a commit
            if number == 1:
                _kill(worker, moments.uniform(1.0, 5.0), killed_at)  # in start-up or recovery
        assert sum(0 < rows < total for rows in killed_at) >= 3, killed_at
        assert feed.done.result(timeout=120).count == journal.sent
        _await_rows(worker, total)
        worker.terminate()
    verify(lake)
    check(lake, stream, journal)


def _await_rows(worker: Worker, rows: int) -> None:
    def there() -> bool:
        worker.child.check()
        return committed(worker.settings) >= rows

    until(there, 120, lambda: f"{rows} rows, but {committed(worker.settings)}:\n{worker.tail()}")


def _kill(worker: Worker, after_s: float, killed_at: list[int]) -> None:
    """Kill it some time from now, note how many rows are there, and start it again."""
    time.sleep(after_s)  # no condition to wait for: any moment is meant
    worker.kill()
    killed_at.append(committed(worker.settings))
    worker.start()
