"""The client against a real worker: every resource, keys, and replays that are cut at random."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest

from k2.client import AsyncClient, Client, Coverage, Denied
from k2.feeds.simulate import Simulation
from k2.schemas import QUOTES, TRADES
from k2.settings import Settings
from tests.cuts import Cuts
from tests.integration.parts import Feed, Worker, committed, environment, k2, until, verify

pytestmark = pytest.mark.slow

ROWS = 60_000
RATE = 1_000.0


@pytest.fixture
def worker(lake: Settings) -> Iterator[Worker]:
    with Worker(lake) as worker:
        worker.await_ready()
        yield worker
        worker.terminate()
    verify(lake)


def fed(worker: Worker, rows: int = ROWS) -> dict[str, int]:
    """How many records of each kind are committed."""
    settings, made = worker.settings, {}
    for kind, simulated in (
        (TRADES, Simulation(1, 10, rows, gaps=5, late=2)),
        (QUOTES, Simulation(1, 10, rows // 2, kind=QUOTES)),
    ):
        with Feed([pa.concat_tables(simulated)], kind.topic("SIM"), settings, 1e9) as feed:
            made[kind.name] = feed.done.result().count
    for name, count in made.items():
        until(lambda: committed(settings, name) == count, 60, f"{count} {name}")  # noqa: B023
    return made


def address(worker: Worker) -> tuple[str, int]:
    return "127.0.0.1", worker.settings.port


def test_every_resource(worker: Worker, tmp_path: Any) -> None:
    """By both clients, from one worker; what it says of itself too."""
    made = fed(worker)
    file = tmp_path / "instruments.csv"
    file.write_text("symbol,exchange,tick_size\nS00001,SIM,0.01\n")
    done = k2(environment(worker.settings), "load", "--kind", "instruments", str(file))
    assert done.returncode == 0, done.stderr
    with Client(worker.url) as client:
        until(lambda: client.instruments().arrow().num_rows == 1, 30, "an instrument")
        assert client.instrument("SIM", "S00001")["tick_size"] == "0.01"
        trades = client.trades()
        table = trades.arrow()
        assert table.num_rows == made["trades"]
        coverage = trades.coverage
        assert coverage is not None
        assert not coverage.complete
        gaps = client.gaps(kind="gap", status=["open", "partly_filled"]).polars()
        assert coverage == Coverage(gaps.height, gaps["remaining_count"].sum())
        assert trades.valid_through is not None
        assert client.trades(symbol="S00001", fresh=True).fresh
        one = client.trades(symbol=["S00001", "S00002"], page_rows=5000).polars()
        named = table.to_pandas()["symbol"].isin(["S00001", "S00002"]).sum()
        assert one.height == named > 5000
        bars = client.bars(symbol="S00001", interval="5m").pandas()
        assert bars["trades"].sum() == one.filter(symbol="S00001").height
        assert client.quotes().arrow().num_rows == made["quotes"]
        assert client.symbols().arrow().num_rows == 10
        assert client.snapshots(table="trades").arrow()["snapshot_id"].to_pylist()
        known = client.symbol("SIM", "S00001", bars=True)
        assert known["symbol"] == "S00001"
        assert len(known["bars"]) > 1
        assert client.status()["rows"] == made["trades"]
        assert client.ready() == {"ready": True, "reasons": {}}
        assert set(client.silence(exchange="SIM")) == {
            "limits", "topics", "symbols", "watched",
        }  # fmt: skip
        rows = client.sql("SELECT count(*) AS n FROM trades WHERE symbol = $s", {"s": "S00001"})
        assert rows.arrow().to_pylist() == [{"n": one.filter(symbol="S00001").height}]
        assert rows.snapshots == {"trades": trades.snapshot_id}

    async def again() -> None:
        async with AsyncClient(worker.url) as client:
            rows = await client.trades()
            assert (await rows.arrow()).equals(table)
            assert rows.coverage == coverage
            both = await asyncio.gather(client.ready(), client.status())
            assert both[0] == {"ready": True, "reasons": {}}

    asyncio.run(again())
    created = k2(environment(worker.settings), "keys", "create", "--scope", "read")
    key = created.stdout.strip()
    with Client(worker.url, key="") as stranger:
        until(lambda: denied(stranger), 10, "a key is needed")
    with Client(worker.url, key=key) as client:
        assert client.trades(limit=1).arrow().num_rows == 1
        with pytest.raises(Denied) as raised:
            client.sql("SELECT 1")
        assert raised.value.status == 403


def denied(client: Client) -> bool:
    try:
        client.status()
    except Denied:
        return True
    return False


def test_a_history_that_is_cut_at_random_has_every_record_once(worker: Worker) -> None:
    """Sync and async; the digest over all connections is that of the whole."""
    made = fed(worker)
    with Client(worker.url) as client:
        replay = client.replay()
        whole = pa.Table.from_batches(replay.batches())
        completed = replay.completed
    assert completed is not None
    assert (completed.trades, completed.quotes) == (made["trades"], made["quotes"])
    # A piece of 32,768 records is some 10 MB: some connections live for one, some for none.
    with Cuts(address(worker), lambda draw: draw.randrange(25_000_000), 1) as cuts:
        with Client(cuts.url) as client:
            replay = client.replay(attempts=50)
            found = pa.Table.from_batches(replay.batches())
            assert found.equals(whole)
            assert replay.digest == completed.digest

        async def again() -> None:
            async with AsyncClient(cuts.url) as client:
                replay = client.replay(attempts=50)
                batches = [batch async for batch in replay.batches()]
                assert pa.Table.from_batches(batches).equals(whole)
                assert replay.digest == completed.digest

        asyncio.run(again())
    assert cuts.cut >= 4


def test_a_follower_that_is_cut_at_random_has_every_record_once(worker: Worker) -> None:
    """Sync and async at once, while records flow and commits happen."""
    first, rest = [], []
    for kind in (TRADES, QUOTES):
        whole = pa.concat_tables(Simulation(5, 10, 3 * ROWS, kind=kind))
        for feeds, rows, rate in ((first, whole[:1500], 1e9), (rest, whole[1500:], RATE)):
            feeds.append(Feed([rows], kind.topic("SIM"), worker.settings, rate))
    with first[0], first[1]:
        before = sum(feed.done.result().count for feed in first)
    until(lambda: committed(worker.settings) == before // 2, 60, "a history is committed")
    # A loss does not know how long a connection lasts: now and then one outlasts any piece.
    with Cuts(address(worker), lambda draw: int(draw.expovariate(1 / 1_500_000)), 2) as cuts:
        with rest[0], rest[1]:
            found = asyncio.run(both_followed(cuts, rest, before))
        assert cuts.cut >= 6
    made = before + sum(feed.done.result().count for feed in rest)
    for offsets in found:
        assert sum(map(len, offsets.values())) == made
        for place, one in offsets.items():
            assert one == list(range(len(one))), place


#: (topic, partition): the offsets of its records, as they came.
Offsets = dict[tuple[str, int], list[int]]


async def both_followed(cuts: Cuts, feeds: list[Feed], before: int) -> list[Offsets]:
    """What each client has when all has been sent, and for a while longer.

    Args:
        before: records that are there already.
    """
    found: list[Offsets] = [defaultdict(list), defaultdict(list)]

    def take(record: dict[str, Any], offsets: Offsets) -> None:
        if record["type"] != "gap":
            place = record["kafka_topic"], record["kafka_partition"]
            offsets[place].append(record["kafka_offset"])

    blocking = Client(cuts.url)

    def read() -> None:
        for record in blocking.replay(follow=True, attempts=50):
            take(record, found[0])
            if leaving.is_set():
                return

    async def wait() -> None:
        async with AsyncClient(cuts.url) as client:
            async for record in client.replay(follow=True, attempts=50):
                take(record, found[1])

    leaving = asyncio.Event()
    running = [asyncio.create_task(asyncio.to_thread(read)), asyncio.create_task(wait())]

    def counts() -> list[int]:
        return [sum(map(len, list(offsets.values()))) for offsets in found]

    async def soon(enough: int) -> None:
        end = time.monotonic() + 90
        while min(counts()) < enough:
            for task in running:
                assert not task.done(), task.exception()
            assert time.monotonic() < end, (counts(), enough)
            await asyncio.sleep(0.05)

    try:
        await soon(before + 20_000)
        for feed in feeds:
            feed.stop()
        await soon(before + sum(feed.done.result().count for feed in feeds))
        await asyncio.sleep(2.0)  # for what would come twice
    finally:
        leaving.set()
        running[1].cancel()
        blocking.close()
        await asyncio.gather(*running, return_exceptions=True)
    return found
