"""Replay over HTTP of real workers: history in every form, and on into what is live."""

from __future__ import annotations

import asyncio
import io
import json
import os
import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp
import orjson
import pyarrow as pa
import pytest

from k2.feeds.simulate import Simulation
from k2.schemas import QUOTES, TRADES
from k2.settings import Settings
from tests.integration.parts import Feed, Worker, committed, environment, get, k2, until, verify

pytestmark = pytest.mark.slow

ROWS = 30_000
#: Of trades, a second, beside a follower: `make follow` has more, and more reconnects.
RATE = float(os.environ.get("FOLLOW_RATE", "3000"))
RECONNECTS = int(os.environ.get("FOLLOW_RECONNECTS", "6"))
#: For each part of it: what is made in a second takes a follower that leaves for long some more.
PATIENCE_S = 60.0 + RATE / 100
FEED_S = 4 * PATIENCE_S

#: Of a worker that is killed with a question in hand, nothing comes.
_PATIENT = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=10)
#: (topic, partition): the offsets of its records, as they came.
Offsets = dict[tuple[str, int], list[int]]


@pytest.fixture
def quick(lake: Settings) -> Settings:
    """Snapshots expire as soon as may be, so that no replay can count on one."""
    return replace(lake, snapshots_keep=1, snapshots_expire_every=1, snapshot_age_min_ms=0)


def _lines(body: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in body.splitlines()]


def _replayed(worker: Worker, query: str = "") -> list[dict[str, Any]]:
    status, _, body = get(f"{worker.url}/v1/replay{query}")
    assert status == 200, body
    return _lines(body)


def test_history_is_the_same_in_every_form(quick: Settings) -> None:
    """Records of both kinds in one order, a digest that all share, and `k2 replay` as well."""
    trades = pa.concat_tables(Simulation(1, 10, ROWS, gaps=5, late=2))
    quotes = pa.concat_tables(Simulation(1, 10, ROWS // 2, kind=QUOTES))
    with Worker(quick) as worker:
        worker.await_ready()
        with (
            Feed([trades], TRADES.topic("SIM"), quick, 1e9) as one,
            Feed([quotes], QUOTES.topic("SIM"), quick, 1e9) as two,
        ):
            made = {"trades": one.done.result().count, "quotes": two.done.result().count}
        for name, count in made.items():
            until(lambda: committed(quick, name) == count, 60, f"{count} {name}")  # noqa: B023
        records = _replayed(worker)
        done = records[-1]
        keys = [
            (r["ts_event"], r["kafka_topic"], r["kafka_partition"], r["kafka_offset"])
            for r in records
            if r["type"] in ("trade", "quote")
        ]
        assert keys == sorted(keys)
        assert done["type"] == "replay_completed"
        assert {name: done[name] for name in made} == made
        assert len(keys) == sum(made.values())
        assert done["gaps"] == sum(record["type"] == "gap" for record in records) > 0
        status, headers, body = get(f"{worker.url}/v1/replay?format=arrow")
        assert (status, headers["Content-Type"]) == (200, "application/vnd.apache.arrow.stream")
        table = pa.ipc.open_stream(io.BytesIO(body)).read_all()
        assert table["cursor"].to_pylist() == [record["cursor"] for record in records]
        assert json.loads(table["detail"][-1].as_py())["digest"] == done["digest"]
        _, _, body = get(f"{worker.url}/v1/replay?format=sse&kind=quotes")
        assert body.count(b"\n\n") == done["quotes"] + 2
        assert asyncio.run(_conversed(worker, records[100]["ts_event"])) == done["digest"]
        middle = records[len(records) // 2]
        rest = _replayed(worker, f"?cursor={middle['cursor']}")
        assert rest[1:-1] == records[len(records) // 2 + 1 : -1]
        said = k2(environment(quick), "replay")
        assert said.returncode == 0, said.stderr
        assert _lines(said.stdout.encode())[1:] == records[1:]
        assert done["digest"] in said.stderr
        worker.terminate()
    verify(quick)


async def _conversed(worker: Worker, to: int) -> str:
    """Seek, pause, change the speed, seek back; the digest of the whole in the end."""
    async with (
        aiohttp.ClientSession() as client,
        client.ws_connect(f"{worker.url}/v1/replay?speed=1", max_msg_size=0) as socket,
    ):
        said: Counter[str] = Counter()
        await socket.send_json({"op": "seek", "to": to})
        await socket.send_json({"op": "pause"})
        orders = [
            ("paused", {"op": "speed", "speed": 0}),
            ("speed", {"op": "seek", "to": 0}),
            ("replay_started", {"op": "resume"}),
        ]
        async for message in socket:
            for line in message.data.splitlines():
                record = json.loads(line)
                said[record["type"]] += 1
                if orders and record["type"] == orders[0][0]:
                    await socket.send_json(orders.pop(0)[1])
    assert said["paused"] >= 1
    assert record["type"] == "replay_completed"
    digest: str = record["digest"]
    return digest


@dataclass
class _Client:
    """Follows, leaves at random, and goes on by the cursor of its last record."""

    urls: list[str]
    draw: random.Random
    cursor: str = ""
    offsets: Offsets = field(default_factory=lambda: defaultdict(list), repr=False)
    completed: int = 0
    leaving: bool = True
    left: int = 0
    waited: int = 0

    @property
    def count(self) -> int:
        return sum(map(len, self.offsets.values()))

    async def run(self, enough: asyncio.Event) -> None:
        async with aiohttp.ClientSession() as client:
            while not enough.is_set():
                try:
                    await self._connect(client, enough)
                except (aiohttp.ClientError, TimeoutError):
                    await asyncio.sleep(0.1)  # that worker is restarting

    async def _connect(self, client: aiohttp.ClientSession, enough: asyncio.Event) -> None:
        url = self.draw.choice(self.urls)
        query = {"follow": "true", **({"cursor": self.cursor} if self.cursor else {})}
        async with client.get(f"{url}/v1/replay", params=query, timeout=_PATIENT) as answer:
            if answer.status != 200:
                assert answer.status in (503, 429), await answer.text()
                await asyncio.sleep(0.1)
                return
            # It leaves in the middle of whatever comes: what was not read whole is not received.
            rest, end = b"", 0.0
            async for piece in answer.content.iter_any():
                end = end or time.monotonic() + self.draw.uniform(0.0, 1.5)
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    self._take(orjson.loads(line))
                if enough.is_set():
                    return
                if self.leaving and time.monotonic() >= end:
                    break
            self.left += 1

    def _take(self, record: dict[str, Any]) -> None:
        if record["type"] in ("trade", "quote"):
            place = record["kafka_topic"], record["kafka_partition"]
            self.offsets[place].append(record["kafka_offset"])
        self.completed += record["type"] == "replay_completed"
        self.waited += record["type"] == "waiting"
        self.cursor = record["cursor"]


def _feeds(settings: Settings) -> Iterator[Feed]:
    for kind in (TRADES, QUOTES):
        rate = RATE if kind is TRADES else min(RATE, 3_000.0)
        stream = Simulation(5, 10, int(rate * FEED_S), kind=kind)
        yield Feed(stream, kind.topic("SIM"), settings, rate)


def test_follower_that_reconnects_at_random_has_every_record_once(quick: Settings) -> None:
    """While records flow, commits and expiry happen, and one of two workers is restarted."""
    one, two = _feeds(quick)
    with Worker(quick, "a") as staying, Worker(quick, "b") as going, one, two:
        for worker in (staying, going):
            worker.await_ready()
        until(lambda: committed(quick) > 1000, 60, "some are committed")
        asyncio.run(_followed(staying, going, one, two))
        for worker in (staying, going):
            worker.terminate()
    verify(quick)


async def _followed(staying: Worker, going: Worker, one: Feed, two: Feed) -> None:
    enough = asyncio.Event()
    client = _Client([staying.url, going.url], random.Random(5))
    running = asyncio.create_task(client.run(enough))

    async def soon(condition: Any, what: str, deadline_s: float = PATIENCE_S) -> None:
        end = time.monotonic() + deadline_s
        while not condition():
            assert not running.done(), await running
            assert time.monotonic() < end, f"{what}: {client}"[:2000]
            await asyncio.sleep(0.05)

    half = RECONNECTS // 2
    await soon(lambda: client.left >= half and client.completed, "reconnects")
    await asyncio.to_thread(going.terminate)
    before = client.count
    await soon(lambda: client.count > before + 500, "more, of one worker")
    going.start()
    await asyncio.to_thread(going.await_ready)
    before, left = client.count, client.left
    await soon(lambda: client.count > before + 500 and client.left >= left + half, "more, of two")
    for feed in (one, two):
        feed.stop()
    made = one.done.result().count + two.done.result().count
    client.leaving = False
    await soon(lambda: client.count >= made, f"all {made}", PATIENCE_S + made / 20_000)
    await asyncio.sleep(2.0)  # for what would come twice
    enough.set()
    await running
    assert client.count == made
    for place, offsets in client.offsets.items():
        assert offsets == list(range(len(offsets))), place
    assert client.left >= RECONNECTS
    print(f"{made:,} records, {client.left} times left, {client.waited} times told to wait")
