"""One round: a stream with faults in it, a worker to which something happens, and the oracle."""

from __future__ import annotations

import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from k2.dev.broker import Embedded
from k2.dev.children import Child
from k2.dev.stack import init
from k2.errors import ChildDied
from k2.feeds.simulate import Simulation
from k2.settings import Settings
from tests.chaos.points import DOWN_S
from tests.integration.oracle import check
from tests.integration.parts import (
    QUICK,
    Feed,
    Worker,
    committed,
    environment,
    get,
    iceberg,
    until,
    verify,
)

__all__ = ["FAULTS", "Fault", "Outcome", "run"]

DONE_S = 120.0
#: Fetches and commits are small, so that there are many of them.
SMALL = {"fetch_bytes_max": 128 * 1024, "buffer_rows_max": 5_000}
#: As many as four workers make in twenty minutes at one a second.
COMMITS_MANY = 4 * 20 * 60
COMMITS_S = 900.0
#: With K2's default buffers; see docs/guides/recovery.md.
RSS_BYTES_MAX = 1_500_000_000


@dataclass(frozen=True, slots=True)
class Fault:
    """`action` at `point`, `times` times, from a seeded one of the first `within` on.

    Without a point, the scene itself is the fault.
    """

    name: str
    point: str = ""
    action: str = "kill"
    within: int = 6
    times: int = 1
    scene: str = "alone"  # what has to happen for the point to be passed: see `_Round`
    trades: int = 60_000
    rate: float | None = 4_000.0  # so slow that a worker starts well before the end
    settings: Mapping[str, int] = field(default_factory=lambda: SMALL)


@dataclass(slots=True)
class Outcome:
    """What came of one round."""

    fault: str
    rows: int = 0
    wrong: str = ""
    recovery_s: float = 0.0  # from the fault (a death: from the restart) to the last row
    rss_bytes_max: int = 0  # where it is measured


FAULTS = (
    Fault("killed after fetch", "after fetch"),
    Fault("killed after sequence check", "after sequence check"),
    Fault("killed mid-Parquet", "mid-Parquet"),
    Fault("killed after Parquet", "after Parquet"),
    Fault("killed after manifest", "after manifest"),
    Fault("killed before swap", "before swap"),
    Fault("killed after swap", "after swap"),
    Fault("killed mid-table-flush", "mid-table-flush", within=300),
    Fault("killed after table flush", "after table flush"),
    Fault("killed before ack", "before ack"),
    Fault("killed after ack", "after ack", within=2, scene="terminated"),
    Fault("killed at assignment", "at assignment", within=1),
    Fault("killed in recovery", "in recovery", within=1, scene="moved"),
    Fault("killed in a rebalance", "after drain", within=1, scene="joined"),
    Fault("killed in shutdown", "before drain", within=1, scene="terminated"),
    Fault("frozen, then woken", scene="frozen"),
    Fault("workers come and go", scene="storm"),
    Fault("state folder lost", scene="lost_folder"),
    Fault("state folder corrupt", scene="corrupt_folder"),
    Fault("disk full", "at file", "disk full", times=3),
    Fault("catalog conflicts", "at swap", "conflict", times=4),
    Fault("catalog's answers lost", "after swap", "lost answer", times=3),
    Fault(
        "catalog down for a minute, full load",
        "at swap",
        "down",
        within=2,
        times=1 << 30,
        scene="pressed",
        trades=3_000_000,
        rate=None,
        settings={},
    ),
    Fault(
        "four workers, twenty minutes' commits",
        scene="four",
        trades=2_000_000,
        rate=4_000.0,
        settings={"flush_age_max_ms": 10},
    ),
    Fault("catalog slow", "at swap", "slow", times=2),
)


def _commits(settings: Settings) -> int:
    return int(iceberg(settings, "trades").metadata.last_sequence_number)


class ChaosWorker(Worker):
    """A worker with a fault armed, or without one of its guards."""

    def __init__(self, settings: Settings, name: str, chaos: dict[str, str]) -> None:
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


@contextmanager
def lake(folder: Path, own: Mapping[str, int] = SMALL) -> Iterator[Settings]:
    """A broker, topics and tables of their own."""
    with Embedded(folder) as broker:
        settings = Settings(
            data=folder,
            broker=broker.address,
            exchanges="SIM",
            **QUICK,
            **own,
        )
        init(settings)
        yield settings


def run(fault: Fault, seed: int, without: str = "") -> Outcome:
    """Let the fault happen in mid-stream, go on as an operator would, and ask the oracle.

    Args:
        without: a guard to take out of every worker, for the mutation check.
    """
    outcome = Outcome(fault.name)
    folder = Path(tempfile.mkdtemp(prefix="k2-chaos-"))
    try:
        with lake(folder, fault.settings) as settings:
            _Round(fault, seed, settings, without, outcome).play()
    except (AssertionError, ChildDied) as exc:
        outcome.wrong = str(exc).strip() or "?"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return outcome


class _Round:
    def __init__(
        self, fault: Fault, seed: int, settings: Settings, without: str, outcome: Outcome
    ) -> None:
        rng = random.Random(f"{fault.name} {seed}")
        self.fault, self.settings, self.outcome = fault, settings, outcome
        self.mark = settings.data / "hit"
        self.simulation = Simulation(
            rng.randrange(2**32), 50, fault.trades, gaps=30, duplicates=40, late=30, resets=4
        )
        self.workers: list[ChaosWorker] = []
        self.guard = {"CHAOS_WITHOUT": without} if without else {}
        self.rng = rng
        self.armed = (
            {}
            if not fault.point
            else {
                "CHAOS_POINT": fault.point,
                "CHAOS_ACTION": fault.action,
                "CHAOS_FIRST": str(rng.randint(1, fault.within)),
                "CHAOS_TIMES": str(fault.times),
                "CHAOS_MARK": str(self.mark),
            }
        )

    def play(self) -> None:
        journal, stream = self.simulation.journal, list(self.simulation)
        total = sum(journal.rows.values())
        topic = self.settings.trades_topic("SIM")
        try:
            with Feed(stream, topic, self.settings, self.fault.rate) as feed:
                hit_at, worker = getattr(self, f"_{self.fault.scene}")()
                self._await(lambda: committed(self.settings) >= total, worker, "all rows")
                assert feed.done.result(timeout=60).count == journal.sent
            self.outcome.recovery_s = time.monotonic() - hit_at
            worker.await_ready()
            worker.terminate()
        finally:
            for each in self.workers:
                each.child.signal(signal.SIGKILL)
                each.child.stop(0.0)
        self.outcome.rows = total
        verify(self.settings)
        check(self.settings, stream, journal)

    # -- scenes: each returns when the fault was over, and the worker that goes on

    def _alone(self) -> tuple[float, Worker]:
        victim = self._start("a", armed=True)
        if self.fault.action == "kill":
            self._await_death(victim)
            return time.monotonic(), self._start("a")
        self._await(lambda: self._hits() == self.fault.times, victim, "the fault")
        return time.monotonic(), victim

    def _four(self) -> tuple[float, Worker]:
        """Four workers commit to one table as often as they can, against each other."""
        workers = [self._start(name) for name in "abcd"]
        self._await_shares(*workers)

        end = time.monotonic() + COMMITS_S
        while (commits := _commits(self.settings)) < COMMITS_MANY:
            assert time.monotonic() < end, f"{commits} commits in {COMMITS_S:g} s"
            time.sleep(2.0)  # a look into the catalog costs as much as a commit
        return time.monotonic(), workers[0]

    def _pressed(self) -> tuple[float, Worker]:
        """Nothing can be committed while trades come as fast as they can: memory is bounded."""
        victim = self._start("a", armed=True)
        self._await(lambda: self._hits() > 0, victim, "a commit")
        process = psutil.Process(victim.child.pid)
        end = time.monotonic() + DOWN_S
        while time.monotonic() < end:
            used = process.memory_info().rss
            self.outcome.rss_bytes_max = max(self.outcome.rss_bytes_max, used)
            assert used < RSS_BYTES_MAX, f"{used} bytes resident"
            victim.child.check()
            time.sleep(0.1)
        assert victim.is_down("lake"), "it says that it is ready"
        return time.monotonic(), victim

    def _terminated(self) -> tuple[float, Worker]:
        victim = self._start("a", armed=True)
        self._await_some(victim)
        victim.child.signal(signal.SIGTERM)
        self._await_death(victim)
        return time.monotonic(), self._start("a")

    def _moved(self) -> tuple[float, Worker]:
        """A worker with an empty folder: its tables come from the changelog."""
        before = self._start("a")
        self._await_some(before)
        before.terminate()
        self._await_death(self._start("b", armed=True))
        return time.monotonic(), self._start("b")

    def _joined(self) -> tuple[float, Worker]:
        """Another worker joins, which takes partitions from the first one."""
        victim = self._start("a", armed=True)
        self._await_some(victim)
        other = self._start("b")
        self._await_death(victim)
        return time.monotonic(), other

    def _frozen(self) -> tuple[float, Worker]:
        """One of two is stopped for longer than its session, with rows in hand, and goes on."""
        victim, other = self._start("a"), self._start("b")
        self._await_shares(victim, other)
        victim.child.signal(signal.SIGSTOP)
        before = other.ingested()
        # Its session is over when the other one has read what was the frozen one's share.
        time.sleep(2 * self.settings.session_timeout_ms / 1000)
        self._await(lambda: other.ingested() > before, other, "a take-over")
        victim.child.signal(signal.SIGCONT)
        return time.monotonic(), other

    def _storm(self) -> tuple[float, Worker]:
        """Workers join, leave and die, one at a time, faster than the group settles."""
        steady = self._start("a")
        for number in range(3):
            passing = self._start(f"passing-{number}")
            time.sleep(self.rng.uniform(3.0, 7.0))
            passing.child.signal(self.rng.choice((signal.SIGTERM, signal.SIGKILL)))
        return time.monotonic(), steady

    def _lost_folder(self) -> tuple[float, Worker]:
        return self._without_folder(shutil.rmtree)

    def _corrupt_folder(self) -> tuple[float, Worker]:
        return self._without_folder(self._corrupt)

    def _without_folder(self, harm: Callable[[Path], None]) -> tuple[float, Worker]:
        before = self._start("a")
        self._await_some(before)
        before.kill()
        harm(self.settings.data / "tables" / "a")
        return time.monotonic(), self._start("a")

    def _corrupt(self, folder: Path) -> None:
        """Overwrite the middle of every file of RocksDB's."""
        for path in folder.rglob("*"):
            if path.is_file() and path.stat().st_size > 16:
                data = bytearray(path.read_bytes())
                at = len(data) // 2
                data[at : at + 8] = self.rng.randbytes(8)
                path.write_bytes(data)

    def _start(self, name: str, *, armed: bool = False) -> ChaosWorker:
        chaos = {**self.guard, **self.armed} if armed else self.guard
        worker = ChaosWorker(self.settings, name, chaos)
        self.workers.append(worker)
        worker.start()
        return worker

    def _hits(self) -> int:
        return len(self.mark.read_text().splitlines()) if self.mark.exists() else 0

    def _await_death(self, victim: Worker) -> None:
        until(lambda: victim.child.poll() is not None, DONE_S, lambda: f"dead: {victim.tail()}")
        assert self._hits(), f"it died of something else: {victim.tail()}"

    def _await_shares(self, *workers: Worker) -> None:
        for worker in workers:
            worker.await_ready()
            self._await(lambda: worker.ingested() > 0, worker, "a share")  # noqa: B023

    def _await_some(self, worker: Worker) -> None:
        self._await(lambda: committed(self.settings) > 0, worker, "a first commit")

    def _await(self, condition: Callable[[], bool], worker: Worker, what: str) -> None:
        def holds() -> bool:
            worker.child.check()
            return condition()

        until(holds, DONE_S, lambda: f"{what}; {worker.tail()}")
