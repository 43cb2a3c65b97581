"""Behind a history what is live: by offset, exactly, whatever is committed when."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from k2.errors import BadQuery, PeerUnavailable, QueryTooLarge
from k2.lake.offsets import Source
from k2.replay import live as live_module
from k2.replay import play as play_module
from k2.replay.archive import Archive, Selection
from k2.replay.cursor import START
from k2.replay.play import Play
from k2.schemas import KINDS, QUOTES, TRADES
from tests.lakes import Lake, finding
from tests.owner import SOURCES, Owner


class Gone(ConnectionError):
    """The reader has left."""


class Listener:
    """Takes records, and leaves after so many, or when told."""

    def __init__(self, most: int) -> None:
        self.rows_: list[dict[str, Any]] = []
        self.said: list[dict[str, Any]] = []
        self.cursor = ""
        self.most = most
        self.leave = False
        self.more = asyncio.Event()

    async def rows(self, rows: pa.Table) -> None:
        for row in rows.to_pylist():
            if len(self.rows_) >= self.most:
                raise Gone
            self.rows_.append(row)
            self.cursor = row["cursor"]
        self.more.set()

    async def say(self, what: dict[str, Any]) -> None:
        if self.leave:
            raise Gone
        self.said.append(what)
        self.cursor = what["cursor"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(play_module, "HEARTBEAT_S", 0.01)
    monkeypatch.setattr(play_module, "POLL_S", 0.002)
    monkeypatch.setattr(live_module, "READ_ROWS", 5)


async def followed(
    archive: Archive, owner: Owner, cursor: str | None, listener: Listener, which: Selection
) -> None:
    play = Play(archive, which, 0.0, cursor, owner.gather)
    await play.prepare()
    with pytest.raises(Gone):
        await play.run(listener)


@pytest.mark.parametrize("seed", range(6))
async def test_every_record_comes_once_and_in_order_whenever_commits_happen(
    tmp_path: Path, seed: int
) -> None:
    """Readers that leave at random and go on by the cursor, while rows come, commit and expire."""
    lake = Lake(tmp_path, snapshots_keep=1, snapshots_expire_every=1, snapshot_age_min_ms=0)
    archive, owner = Archive(lake.catalog, lake.settings), Owner(lake, seed)
    which = Selection(symbols=["A"]) if seed % 3 == 2 else Selection()
    owner.read(30)
    for kind in KINDS:
        owner.commit(kind)
    pinned = dict(lake.following)
    seen: list[dict[str, Any]] = []
    cursor: str | None = archive.now().pin.cursor(START)

    async def work(listener: Listener, rounds: int) -> None:
        for _ in range(rounds):
            owner.read(6)
            if owner.draw.random() < 0.3:
                owner.commit(owner.draw.choice(KINDS))
            if owner.draw.random() < 0.2:
                owner.refusals.append(PeerUnavailable("rebalancing"))
            if owner.draw.random() < 0.1:
                owner.refusals.append(QueryTooLarge("too many"))
            await asyncio.sleep(0.004)
        listener.leave = True

    for _ in range(8):
        listener = Listener(owner.draw.choice([0, 1, 3, 20, 10_000]))
        working = asyncio.create_task(work(listener, 12))
        await followed(archive, owner, cursor, listener, which)
        await working
        seen += listener.rows_
        cursor = listener.cursor or cursor
    owner.refusals.clear()
    listener = Listener(10_000)
    missing = Counter(
        offset
        for log in owner.logs.values()
        for offset, (_, symbol) in enumerate(log)
        if which.symbols is None or symbol == "A"
    ) - Counter(row["kafka_offset"] for row in seen)
    ending = asyncio.create_task(_left(listener, list(missing.elements())))
    await followed(archive, owner, cursor, listener, which)
    await ending
    seen += listener.rows_
    found: dict[Source, list[int]] = defaultdict(list)
    for row in seen:
        found[Source("c", row["kafka_topic"], row["kafka_partition"])].append(row["kafka_offset"])
    for of, log in owner.logs.items():
        wanted = [n for n, (_, symbol) in enumerate(log) if which.symbols is None or symbol == "A"]
        assert sorted(found[of]) == wanted
        behind = [n for n in found[of] if n >= pinned.get(of, 0)]
        assert behind == [n for n in wanted if n >= pinned.get(of, 0)], (
            "not in the order of its log"
        )
    archive.close()


async def _left(listener: Listener, names: Sequence[Any]) -> None:
    """Leave once these came, offsets or findings, and nothing comes twice."""
    async with asyncio.timeout(30):
        while Counter(names) - Counter(_names(listener)):
            listener.more.clear()
            await listener.more.wait()
    await asyncio.sleep(0.3)
    listener.leave = True


def _names(listener: Listener) -> list[Any]:
    return [row.get("gap_id") or row["kafka_offset"] for row in listener.rows_]


async def test_completed_stands_between_history_and_what_is_live(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    archive, owner = Archive(lake.catalog, lake.settings), Owner(lake, 1)
    first = SOURCES[TRADES][0]
    owner.logs[first] = [(5, "A"), (4, "A"), (3, "A")]
    lake.commit(TRADES, {first: owner.logs[first][:2]})
    listener = Listener(100)
    ending = asyncio.create_task(_left(listener, [1, 0, 2]))
    await followed(archive, owner, None, listener, Selection())
    await ending
    assert [row["kafka_offset"] for row in listener.rows_] == [1, 0, 2]
    types = [what["type"] for what in listener.said if what["type"] != "heartbeat"]
    assert types == ["replay_started", "replay_completed"]
    done = next(what for what in listener.said if what["type"] == "replay_completed")
    assert (done["trades"], done["quotes"]) == (2, 0)
    again = Listener(100)
    ending = asyncio.create_task(_left(again, [2]))
    await followed(archive, owner, done["cursor"], again, Selection())
    await ending
    assert [row["kafka_offset"] for row in again.rows_] == [2]
    archive.close()


async def test_findings_come_before_the_record_that_caused_them(tmp_path: Path) -> None:
    """In hand or in the table; who goes on at one hears of it again, and misses none."""
    lake = Lake(tmp_path)
    archive, owner = Archive(lake.catalog, lake.settings), Owner(lake, 1)
    first = SOURCES[TRADES][0]
    owner.draw.random = lambda: 1.0  # type: ignore[method-assign] - nothing more is committed
    owner.logs[first] = [(n, "A") for n in range(6)]
    start = archive.now().pin.cursor(START)
    told = finding(first, "g", 2)
    lake.tell(told)
    lake.commit(TRADES, {first: owner.logs[first][:4]})
    owner.findings = [
        finding(first, "h", 5),
        finding(first, "other", 5, symbol="B"),
        finding(first, "behind", 6),
    ]
    listener = Listener(100)
    ending = asyncio.create_task(_left(listener, [*range(6), "g", "h"]))
    await followed(archive, owner, start, listener, Selection(symbols=["A"]))
    await ending
    names = _names(listener)
    assert names == [0, 1, "g", 2, 3, 4, "h", 5]
    for at, row in enumerate(listener.rows_):
        again = Listener(100)
        behind = names[at:] if isinstance(names[at], str) else names[at + 1 :]
        ending = asyncio.create_task(_left(again, behind))
        await followed(archive, owner, row["cursor"], again, Selection(symbols=["A"]))
        await ending
        rest = _names(again)
        assert [name for name in rest if not isinstance(name, str)] == [
            name for name in behind if not isinstance(name, str)
        ]
        assert {n for n in behind if isinstance(n, str)} <= {n for n in rest if isinstance(n, str)}
    archive.close()


async def test_what_was_never_committed_can_be_gone_on_from(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    archive, owner = Archive(lake.catalog, lake.settings), Owner(lake, 1)
    first = SOURCES[QUOTES][0]
    owner.draw.random = lambda: 1.0  # type: ignore[method-assign] - nothing is committed
    owner.logs[first] = [(n, "A") for n in range(6)]
    listener = Listener(3)
    await followed(archive, owner, None, listener, Selection())
    again = Listener(100)
    ending = asyncio.create_task(_left(again, [3, 4, 5]))
    await followed(archive, owner, listener.cursor, again, Selection())
    await ending
    offsets = [row["kafka_offset"] for row in listener.rows_ + again.rows_]
    assert offsets == list(range(6))
    archive.close()


async def test_waiting_is_said_once_and_the_replay_goes_on(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    archive, owner = Archive(lake.catalog, lake.settings), Owner(lake, 1)
    owner.logs[SOURCES[TRADES][0]] = [(0, "A")]
    owner.refusals = [PeerUnavailable("rebalancing") for _ in range(8)]
    listener = Listener(100)
    ending = asyncio.create_task(_left(listener, [0]))
    await followed(archive, owner, None, listener, Selection())
    await ending
    waits = [what["detail"] for what in listener.said if what["type"] == "waiting"]
    assert waits == ["rebalancing"]
    assert len(listener.rows_) == 1
    archive.close()


async def test_seek_in_what_is_live_is_a_history_again(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    archive, owner = Archive(lake.catalog, lake.settings), Owner(lake, 1)
    owner.logs[SOURCES[TRADES][0]] = [(n, "A") for n in range(4)]
    play = Play(archive, Selection(), 0.0, None, owner.gather)
    listener = Listener(100)

    async def order() -> None:
        await _left(listener, range(4))
        listener.leave = False
        play.control.take('{"op":"seek","to":0}')
        await _left(listener, [*range(4)] * 2)

    ending = asyncio.create_task(order())
    await play.prepare()
    with pytest.raises(Gone):
        await play.run(listener)
    await ending
    types = [what["type"] for what in listener.said if what["type"] != "heartbeat"]
    assert types == ["replay_started", "replay_completed"] * 2
    assert [row["kafka_offset"] for row in listener.rows_] == [0, 1, 2, 3] * 2
    archive.close()


async def test_to_follow_there_must_be_no_end(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    archive, owner = Archive(lake.catalog, lake.settings), Owner(lake, 1)
    with pytest.raises(BadQuery, match="end: not together with follow"):
        Play(archive, Selection(end_ns=5), 0.0, None, owner.gather)
    archive.close()
