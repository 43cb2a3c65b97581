"""One round: a stream with anomalies, workers to which something happens, and the oracle."""

from __future__ import annotations

import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from k2.dev.children import Child
from k2.errors import ChildDied
from k2.feeds.simulate import Journal, Simulation
from k2.schemas import TRADES
from k2.settings import Settings
from tests.chaos.lakes import Lake, Place
from tests.integration.oracle import Wrong, check, check_topics
from tests.integration.parts import Feed, Worker, committed, environment, get, until, verify

__all__ = ["SMALL", "ChaosWorker", "Fault", "Outcome", "Round", "Scene", "run"]

T = TypeVar("T")

DONE_S = 120.0
#: Fetches and commits are small, so that there are many of them.
SMALL = {"fetch_bytes_max": 128 * 1024, "buffer_rows_max": 5_000}


@dataclass(slots=True)
class Outcome:
    """What came of one round."""

    fault: str
    place: str
    rows: int = 0
    lost: int = 0
    doubled: int = 0
    wrong: str = ""
    recovery_s: float = 0.0  # from the fault (a death: from the restart) to the last row
    rss_bytes_max: int = 0  # where it is measured


class Round:
    """What a scene has to play with: workers, and ways to wait for what they do."""

    def __init__(self, fault: Fault, seed: int, lake: Lake, without: str, outcome: Outcome) -> None:
        self.fault, self.lake, self.settings, self.outcome = fault, lake, lake.settings, outcome
        self.rng = random.Random(f"{fault.name} {seed}")
        self.workers: list[ChaosWorker] = []
        self.left: int | None = None  # records in the topic, where they are not all that was sent
        self._stack = ExitStack()
        self._mark = self.settings.data / "hit"
        self._hits_before = 0
        self._guard = {"CHAOS_WITHOUT": without} if without else {}
        self._simulation = Simulation(
            self.rng.randrange(2**32), 50, fault.trades, gaps=30, duplicates=40, late=30, resets=4
        )
        self._armed = (
            self.arm(fault.point, self.rng.randint(1, fault.within)) if fault.point else {}
        )

    def arm(self, point: str, first: int) -> dict[str, str]:
        """The variables that make a worker do the fault's action at a point."""
        return {
            "CHAOS_POINT": point,
            "CHAOS_ACTION": self.fault.action,
            "CHAOS_FIRST": str(first),
            "CHAOS_TIMES": str(self.fault.times),
            "CHAOS_MARK": str(self._mark),
        }

    def play(self) -> None:
        """Let it happen in mid-stream, go on as an operator would, and ask the oracle."""
        journal, stream = self._simulation.journal, list(self._simulation)
        topic = TRADES.topic("SIM")
        try:
            with Feed(stream, topic, self.settings, self.fault.rate) as self.feed:
                hit_at, worker = self.fault.scene(self)
                self.wait(lambda: self._is_all_there(journal), worker, "all rows")
                if self.left is None:
                    self.await_feed()
            self.outcome.recovery_s = time.monotonic() - hit_at
            worker.await_ready()
            worker.terminate()
        except ChildDied:
            # Without a guard: a worker that reads doubled rows again refuses them, and ends.
            if not self._guard:
                raise
        finally:
            for each in self.workers:
                each.child.signal(signal.SIGKILL)
                each.child.stop(0.0)
            self._stack.close()
        self.outcome.rows = committed(self.settings)
        if self.left is None:
            check(self.settings, stream, journal)
        else:
            check_topics(self.settings)
        verify(self.settings)

    def _is_all_there(self, journal: Journal) -> bool:
        if self.left is None:
            return committed(self.settings) >= sum(journal.rows.values())
        return committed(self.settings) + committed(self.settings, "rejects") >= self.left

    def await_feed(self) -> int:
        """Until all is sent; return how many records that are."""
        count = self.feed.done.result(timeout=60).count
        assert count == self._simulation.journal.sent
        return count

    def until_the_end(self, context: AbstractContextManager[T]) -> T:
        """Enter a context that outlasts the workers."""
        return self._stack.enter_context(context)

    def start(
        self, name: str, *, armed: bool | dict[str, str] = False, settings: Settings | None = None
    ) -> ChaosWorker:
        """Start a worker; `armed` with the fault's own point, or with what `arm` gave."""
        chaos = armed if isinstance(armed, dict) else self._armed if armed else {}
        if chaos:
            self._hits_before = self.hits()
        worker = ChaosWorker(settings or self.settings, name, {**self._guard, **chaos})
        self.workers.append(worker)
        worker.start()
        return worker

    def hits(self) -> int:
        """How often the fault has happened."""
        return len(self._mark.read_text().splitlines()) if self._mark.exists() else 0

    def await_death(self, victim: Worker) -> None:
        """Until the worker that was armed last is dead, of its point."""
        until(lambda: victim.child.poll() is not None, DONE_S, lambda: f"dead: {victim.tail()}")
        assert self.hits() > self._hits_before, f"it died of something else: {victim.tail()}"

    def await_shares(self, *workers: Worker) -> None:
        """Until each has partitions and rows."""
        for worker in workers:
            worker.await_ready()
            self.wait(lambda: worker.ingested() > 0, worker, "a share")  # noqa: B023

    def await_some(self, worker: Worker, rows: int = 1) -> None:
        self.wait(lambda: committed(self.settings) >= rows, worker, f"{rows} committed rows")

    def wait(self, condition: Callable[[], bool], worker: Worker, what: str) -> None:
        """Until the condition holds, while the worker lives."""

        def holds() -> bool:
            worker.child.check()
            return condition()

        until(holds, DONE_S, lambda: f"{what}; {worker.tail()}")


#: Plays the fault; returns when it was over, and the worker that goes on.
Scene = Callable[[Round], tuple[float, Worker]]


@dataclass(frozen=True, slots=True)
class Fault:
    """`action` at `point`, `times` times, from a seeded one of the first `within` on.

    Without a point, the scene itself is the fault.
    """

    name: str
    scene: Scene
    point: str = ""
    action: str = "kill"
    within: int = 6
    times: int = 1
    places: tuple[str, ...] = ("embedded", "kafka")
    trades: int = 60_000
    rate: float | None = 3_000.0  # so slow that a worker starts well before the end
    settings: Mapping[str, int] = field(default_factory=lambda: SMALL)


class ChaosWorker(Worker):
    """A worker with a fault armed, or without one of its guards."""

    def __init__(self, settings: Settings, name: str, chaos: Mapping[str, str]) -> None:
        self._chaos = chaos
        super().__init__(settings, name)

    def _new(self) -> Child:
        argv = [sys.executable, "-m", "tests.chaos.worker", "worker"]
        env = environment(self.settings, **self._chaos)
        return Child(f"worker-{self.settings.worker}", argv, env, self._log)

    def is_down(self, part: str) -> bool:
        """Whether it says that it is not ready because of that part."""
        status, _, body = get(f"{self.url}/ready")
        return status == 503 and part in json.loads(body)["reasons"]


def run(fault: Fault, seed: int, name: str, place: Place, without: str = "") -> Outcome:
    """Play a round in a place of that name.

    Args:
        without: a guard to take out of every worker, for the mutation check.
    """
    outcome = Outcome(fault.name, name)
    folder = Path(tempfile.mkdtemp(prefix="k2-chaos-"))
    try:
        with place(folder, fault.settings) as lake:
            Round(fault, seed, lake, without, outcome).play()
    except Wrong as exc:
        outcome.wrong, outcome.lost, outcome.doubled = str(exc), exc.lost, exc.doubled
    except (AssertionError, ChildDied) as exc:
        outcome.wrong = str(exc).strip() or "?"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return outcome
