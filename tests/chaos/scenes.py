"""What happens to the workers of a round; each scene returns when it was over, and who goes on."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from tests.chaos.logs import Aborting, Changelog, compact
from tests.chaos.points import DOWN_S
from tests.chaos.proxy import Kind, Predicate, Proxy, anything
from tests.chaos.rounds import Round, Scene
from tests.integration.oracle.topic import Topics
from tests.integration.parts import Worker, committed, iceberg

#: As many as four workers make in twenty minutes at one a second.
COMMITS_MANY = 4 * 20 * 60
COMMITS_S = 1800.0
#: With K2's default buffers; see docs/guides/recovery.md.
RSS_BYTES_MAX = 1_500_000_000
#: Where a worker that nothing else happens to comes by often.
ON_THE_WAY = (
    "after fetch", "after sequence check", "mid-Parquet", "after Parquet", "after manifest",
    "before swap", "after swap", "after table flush", "before ack",
)  # fmt: skip
BROKER_DOWN_S = 3.0
#: Twice as long as a commit is tried, see `faults.IMPATIENT`.
NETWORK_S = 6.0

Played = tuple[float, Worker]


# -- a worker and its point


def killed(round: Round) -> Played:
    """At the fault's point, and its successor at another one."""
    round.await_death(round.start("a", armed=True))
    point = round.rng.choice(ON_THE_WAY)
    round.await_death(round.start("a", armed=round.arm(point, 1)))
    return time.monotonic(), round.start("a")


def alone(round: Round) -> Played:
    """The worker gets over its point by itself."""
    victim = round.start("a", armed=True)
    round.wait(lambda: round.hits() == round.fault.times, victim, "the fault")
    return time.monotonic(), victim


def terminated(round: Round) -> Played:
    victim = round.start("a", armed=True)
    round.await_some(victim)
    victim.child.signal(signal.SIGTERM)
    round.await_death(victim)
    return time.monotonic(), round.start("a")


def moved(round: Round) -> Played:
    """A worker with an empty folder: its tables come from the changelog."""
    before = round.start("a")
    round.await_some(before)
    before.terminate()
    round.await_death(round.start("b", armed=True))
    return time.monotonic(), round.start("b")


def joined(round: Round) -> Played:
    """Another worker joins, which takes partitions from the first one."""
    victim = round.start("a", armed=True)
    round.await_some(victim)
    other = round.start("b")
    round.await_death(victim)
    return time.monotonic(), other


def pressed(round: Round) -> Played:
    """Nothing can be committed while trades come as fast as they can: memory is bounded."""
    victim = round.start("a", armed=True)
    round.wait(lambda: round.hits() > 0, victim, "a commit")
    process = psutil.Process(victim.child.pid)
    end = time.monotonic() + DOWN_S
    while time.monotonic() < end:
        used = process.memory_info().rss
        round.outcome.rss_bytes_max = max(round.outcome.rss_bytes_max, used)
        assert used < RSS_BYTES_MAX, f"{used} bytes resident"
        victim.child.check()
        time.sleep(0.1)
    assert victim.is_down("lake"), "it says that it is ready"
    return time.monotonic(), victim


# -- several workers


def frozen(round: Round) -> Played:
    """One of two stops in its commit for longer than its session, and goes on with it."""
    victim, other = round.start("a", armed=True), round.start("b")
    round.wait(lambda: round.hits() > 0, victim, "a commit")
    before = other.ingested()
    # Its session is over when the other one has read what was the frozen one's share.
    time.sleep(2 * round.settings.session_timeout_ms / 1000)
    round.wait(lambda: other.ingested() > before, other, "a take-over")
    assigned = _assigned(victim)
    victim.child.signal(signal.SIGCONT)
    # It is no member any more; whatever becomes of its commit, it joins again after it.
    round.wait(lambda: _assigned(victim) > assigned, victim, "its return")
    return time.monotonic(), other


def _assigned(worker: Worker) -> int:
    return worker.log().count("Setting newly assigned partitions")


def storm(round: Round) -> Played:
    """Workers join, leave and die, one at a time, faster than the group settles."""
    steady = round.start("a")
    for number in range(3):
        passing = round.start(f"passing-{number}")
        time.sleep(round.rng.uniform(3.0, 7.0))
        passing.child.signal(round.rng.choice((signal.SIGTERM, signal.SIGKILL)))
    return time.monotonic(), steady


def rivals(round: Round) -> Played:
    """Two groups, neither of which knows of the other: each owns every partition all the time."""
    one = round.start("a")
    two = round.start("b", settings=replace(round.settings, group="rival"))

    def refused(worker: Worker) -> int:
        return worker.log().count("expected next offset")

    round.wait(lambda: refused(one) + refused(two) > 0, two, "a refused commit")
    winner, loser = sorted((one, two), key=refused)
    winner.kill()
    return time.monotonic(), loser


def four(round: Round) -> Played:
    """Four workers commit to one table as often as they can, against each other.

    The feed ends with the scene, before all is sent that the simulation has.
    """
    workers = [round.start(name) for name in "abcd"]
    round.await_shares(*workers)
    end = time.monotonic() + COMMITS_S
    while (commits := _commits(round)) < COMMITS_MANY:
        assert time.monotonic() < end, f"{commits} commits in {COMMITS_S:g} s"
        time.sleep(2.0)  # a look into the catalog costs as much as a commit
    round.feed.stop()
    round.left = Topics.read(round.settings).records.num_rows
    return time.monotonic(), workers[0]


def _commits(round: Round) -> int:
    return int(iceberg(round.settings, "trades").metadata.last_sequence_number)


# -- the broker


def broker_killed(round: Round) -> Played:
    """It dies, and comes back with its log."""
    worker = round.start("a")
    round.await_some(worker)
    assert round.lake.broker.child is not None
    round.lake.broker.child.signal(signal.SIGKILL)
    round.lake.broker.child.stop(0.0)
    time.sleep(BROKER_DOWN_S)
    round.lake.broker.start()
    return time.monotonic(), worker


def broker_paused(round: Round) -> Played:
    """It answers nothing for longer than the session."""
    worker = round.start("a")
    round.await_some(worker)
    _pause(round)
    return time.monotonic(), worker


def broker_paused_and_killed(round: Round) -> Played:
    """The worker dies while its states and acks get no answer."""
    victim = round.start("a")
    round.await_some(victim)
    _pause(round, lambda: victim.kill())
    return time.monotonic(), round.start("a")


def _pause(round: Round, meanwhile: Callable[[], None] = lambda: None) -> None:
    assert round.lake.broker.child is not None
    round.lake.broker.child.signal(signal.SIGSTOP)
    try:
        time.sleep(1.5 * round.settings.session_timeout_ms / 1000)
        meanwhile()
    finally:
        round.lake.broker.child.signal(signal.SIGCONT)


def aborting(round: Round) -> Played:
    """Transactions of another producer are aborted all the time; workers die meanwhile."""
    with Aborting(round.settings):
        return killed(round)


def compacted(round: Round) -> Played:
    """A topic with holes where records were compacted away, and a worker that dies over it."""
    round.left = compact(round.settings, round.await_feed)
    round.await_death(round.start("a", armed=True))
    return time.monotonic(), round.start("a")


# -- the state of the sequence check


def lost_folder(round: Round) -> Played:
    return _without_folder(round, shutil.rmtree)


def corrupt_folder(round: Round) -> Played:
    def corrupt(folder: Path) -> None:
        """Overwrite the middle of every file of RocksDB's."""
        for path in folder.rglob("*"):
            if path.is_file() and path.stat().st_size > 16:
                data = bytearray(path.read_bytes())
                at = len(data) // 2
                data[at : at + 8] = round.rng.randbytes(8)
                path.write_bytes(data)

    return _without_folder(round, corrupt)


def changelog_behind(round: Round) -> Played:
    """Only the first half of it is left, as after a broker that lost what it had acknowledged."""
    return _without_folder(round, shutil.rmtree, keep=0.5)


def changelog_lost(round: Round) -> Played:
    return _without_folder(round, shutil.rmtree, keep=0.0)


def _without_folder(
    round: Round, harm: Callable[[Path], None], keep: float | None = None
) -> Played:
    before = round.start("a")
    round.await_some(before, round.fault.trades // 4)
    before.kill()
    harm(round.settings.data / "tables" / "a")
    if keep is not None:
        Changelog(round.settings).cut(keep)
    return time.monotonic(), round.start("a")


def changelog_ahead(round: Round) -> Played:
    """The table is rolled back to a snapshot before, so states and log are ahead of it."""
    before = round.start("a")
    round.await_some(before, round.fault.trades // 4)
    before.terminate()
    held = committed(round.settings)
    table = iceberg(round.settings, "trades")
    history = [entry.snapshot_id for entry in table.history()]
    table.manage_snapshots().rollback_to_snapshot(history[len(history) // 2]).commit()
    assert committed(round.settings) < held
    return time.monotonic(), round.start("a")


# -- the network between a worker, its catalog and its store


def network(
    before: str, kind: Kind, when: Predicate = anything, *, killed: bool = False, **how: Any
) -> Scene:
    """A scene: what a proxy before the "catalog" or "s3" does, for longer than a commit may take.

    Args:
        killed: the worker dies under it, and its successor begins under it.
        how: as `tests.chaos.proxy.Fault` has it.
    """

    def scene(round: Round) -> Played:
        direct = round.settings
        name = "catalog_uri" if before == "catalog" else "s3_endpoint"
        proxy = round.until_the_end(Proxy(getattr(direct, name), before))
        settings = replace(direct, **{name: proxy.url})
        worker = round.start("a", settings=settings)
        round.await_some(worker)
        with proxy.fault(kind, when, seed=round.rng.randrange(2**32), **how) as fault:
            time.sleep(NETWORK_S / 2)
            if killed:
                worker.kill()
                worker = round.start("a", settings=settings)
            time.sleep(NETWORK_S / 2)
            worker.child.check()
        assert fault.hits or kind is Kind.DOWN, f"nothing was {kind}: {fault.seen} requests"
        return time.monotonic(), worker

    return scene
