"""Replays of the client: resumed whatever is cut where, and compared with the digest."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from aiohttp import web

from k2.client import (
    AsyncClient,
    BadRequest,
    Client,
    DigestMismatch,
    Replay,
    ReplayBroken,
    TooMany,
    Unreachable,
)
from k2.client import course as course_module
from k2.client.ask import ARROW, get
from k2.client.course import Course
from k2.client.errors import CutOff
from k2.client.pages import Give, Head, Open, Pause, Read
from k2.errors import CatalogUnavailable
from k2.lake.offsets import Source
from k2.query.fresh import Fresh
from k2.query.span import Span
from k2.replay import play as play_module
from k2.replay.archive import Archive
from k2.replay.forms import form
from k2.replay.history import History
from k2.replay.live import Gather
from k2.schemas import KINDS, QUOTES, TRADES, Kind
from k2.settings import Settings
from k2.web.gate import protect
from k2.web.replay import Replays
from tests.cuts import Cuts
from tests.lakes import Lake, finding, source
from tests.owner import SOURCES, Owner
from tests.served import Served

ONE, BIDS = source(TRADES, 0), source(QUOTES, 0)
ROWS = 1500

#: Sync and async: takes a URL and parameters, gives all records and the replay.
Take = Callable[..., tuple[list[dict[str, Any]], Any]]


def served(archive: Archive, settings: Settings, gather: Gather | None = None) -> Served:
    """Replays as a worker serves them."""
    site = web.Application()
    protect(site, settings)
    replays = Replays(archive, settings, gather)
    site.add_routes(replays.routes())
    site.on_shutdown.append(replays.close)
    return Served(site)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small pieces, so that a lost connection has brought some; short pauses."""
    monkeypatch.setattr(play_module, "PIECE_ROWS", 50)
    monkeypatch.setattr(course_module, "PAUSE_S", 0.001)


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    lake = Lake(Path(tmp_path_factory.mktemp("lake")), replays_max=2)
    draw = random.Random(1)
    for of, kind in ((ONE, TRADES), (BIDS, QUOTES)):
        rows = [(draw.randrange(10**9), draw.choice("ABC")) for _ in range(ROWS)]
        lake.commit(kind, {of: rows})
    lake.tell(*(finding(ONE, f"g{n}", n, from_offset=n, to_offset=n) for n in range(0, ROWS, 50)))
    return lake


@pytest.fixture
def url(lake: Lake) -> Iterator[str]:
    archive = Archive(lake.catalog, lake.settings)
    with served(archive, lake.settings) as server:
        yield at(server)
    archive.close()


def at(server: Served) -> str:
    return "http://{}:{}".format(*server.address)


def address(url: str) -> tuple[str, int]:
    host, _, port = url.removeprefix("http://").rpartition(":")
    return host, int(port)


def blocking(url: str, most: int | None = None, **asked: Any) -> tuple[list[Any], Any]:
    with Client(url) as client, client.replay(**asked) as replay:
        found = []
        for record in replay:
            found.append(record)
            if len(found) == most:
                break
        return found, replay


def waiting(url: str, most: int | None = None, **asked: Any) -> tuple[list[Any], Any]:
    async def take() -> tuple[list[Any], Any]:
        async with AsyncClient(url) as client, client.replay(**asked) as replay:
            found = []
            async for record in replay:
                found.append(record)
                if len(found) == most:
                    break
            return found, replay

    return asyncio.run(take())


both = pytest.mark.parametrize("take", [blocking, waiting])


def places(records: list[dict[str, Any]]) -> list[Any]:
    """What tells records apart."""
    return [
        (r["type"], r.get("gap_id"), r.get("revision"), r["kafka_topic"], r["kafka_partition"],
         r.get("kafka_offset"))
        for r in records
    ]  # fmt: skip


@both
def test_records_are_those_of_ndjson_with_exact_decimals(url: str, take: Take) -> None:
    found, replay = take(url)
    with urllib.request.urlopen(f"{url}/v1/replay") as answer:
        lines = [json.loads(line) for line in answer]
    assert [list(record) for record in found] == [list(line) for line in lines[1:-1]]
    told = [{**r, "session": str(r["session"])} for r in found]
    for record in told:
        for name, value in record.items():
            if isinstance(value, Decimal):
                record[name] = f"{value.normalize():f}"
    assert told == lines[1:-1]
    assert replay.completed.digest == replay.digest == lines[-1]["digest"]
    assert (replay.completed.trades, replay.completed.quotes) == (ROWS, ROWS)
    assert replay.cursor == found[-1]["cursor"]
    assert replay.connections == 1


def test_batches_are_the_same_rows(url: str) -> None:
    found, _ = blocking(url, kind="trades", symbol=["A", "B"])
    with Client(url) as client:
        table = pa.Table.from_batches(client.replay(kind="trades", symbol="A,B").batches())
    assert table["cursor"].to_pylist() == [record["cursor"] for record in found]
    assert "bid_price" not in table.schema.names

    async def columns() -> list[str]:
        async with AsyncClient(url) as client:
            batches = client.replay(kind="trades", symbol=["A", "B"]).batches()
            return [text async for b in batches for text in b["cursor"].to_pylist()]

    assert asyncio.run(columns()) == table["cursor"].to_pylist()


@pytest.mark.slow
@both
@pytest.mark.parametrize("seed", range(3))
def test_a_replay_that_is_cut_at_random_has_every_record_once(
    url: str, take: Take, seed: int
) -> None:
    """The digest over all connections is that of a replay that was never cut."""
    whole, uncut = blocking(url)
    with Cuts(address(url), lambda draw: draw.randrange(100_000), seed) as cuts:
        found, replay = take(cuts.url, attempts=100)
        assert cuts.cut >= 8
    assert found == whole
    assert replay.digest == uncut.digest
    assert replay.completed.cursor == uncut.completed.cursor
    assert replay.connections > 5


@both
def test_what_was_left_goes_on_by_its_cursor(url: str, take: Take) -> None:
    whole, _ = take(url)
    some, replay = take(url, most=1111)
    assert replay.completed is None
    rest, _ = take(url, cursor=replay.cursor)
    assert some + rest == whole


class Flowing(Owner):
    """Reads on as long as it is asked, and finds a gap now and then."""

    left = 60

    async def gather(self, kind: Kind, span: Span, after: Mapping[Source, int]) -> Fresh:
        assert self.asked < 10_000, "the follower waits for what does not come"
        if self.left:
            self.left -= 1
            of = self.draw.choice(SOURCES[kind])
            had = len(self.logs[of])
            self.read(6)
            if len(self.logs[of]) > had and self.left % 3 == 0:
                offset = len(self.logs[of]) - 1
                found = [
                    finding(of, f"g{self.left}", offset, revision=n, symbol=None) for n in (1, 2)
                ]
                self.lake.tell(*found)
                self.findings += found
        return await super().gather(kind, span, after)


@pytest.mark.slow
@both
@pytest.mark.parametrize("seed", range(2))
def test_a_follower_that_is_cut_at_random_has_every_record_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, take: Take, seed: int
) -> None:
    """History and live, while rows come and commits happen; findings too."""
    monkeypatch.setattr(play_module, "HEARTBEAT_S", 0.02)
    lake = Lake(tmp_path, snapshots_keep=1, snapshots_expire_every=1, snapshot_age_min_ms=0)
    archive, owner = Archive(lake.catalog, lake.settings), Flowing(lake, seed)
    owner.read(200)
    for kind in KINDS:
        owner.commit(kind)
    with served(archive, lake.settings, owner.gather) as server:

        def enough(records: int) -> bool:
            made = sum(map(len, owner.logs.values())) + len(owner.findings)
            return not owner.left and records >= made

        with Cuts(server.address, lambda draw: draw.randrange(40_000), seed) as cuts:
            found, replay = followed(take, cuts.url, enough)
    archive.close()
    assert cuts.cut >= 3
    assert replay.completed is not None
    seen = Counter(places(found))
    assert max(seen.values()) == 1, [place for place, n in seen.items() if n > 1]
    made = Counter(
        ("trade" if kind is TRADES else "quote", None, None, of.topic, of.partition, offset)
        for kind, several in SOURCES.items()
        for of in several
        for offset in range(len(owner.logs[of]))
    )
    assert Counter(place for place in seen if place[0] != "gap") == made
    assert sum(place[0] == "gap" for place in seen) == len(owner.findings)


def followed(take: Take, url: str, enough: Callable[[int], bool]) -> tuple[list[Any], Any]:
    """Follow until there is enough."""
    found: list[Any] = []
    if take is blocking:
        with Client(url) as client, client.replay(follow=True, attempts=100) as replay:
            for record in replay:
                found.append(record)
                if enough(len(found)):
                    break
            return found, replay

    async def run() -> tuple[list[Any], Any]:
        async with AsyncClient(url) as client, client.replay(follow=True, attempts=100) as replay:
            async for record in replay:
                found.append(record)
                if enough(len(found)):
                    break
            return found, replay

    return asyncio.run(run())


def test_a_finding_that_comes_again_is_given_once() -> None:
    """A live one has the cursor of the record before it in its partition, so a reconnect repeats
    it, also if records of other partitions came in between."""
    arrow = form("arrow", KINDS)

    def rows(*named: tuple[str, int, int]) -> bytes:
        """Records, or revisions of findings, of partitions."""
        found = [
            {
                "type": "gap" if revision else "trade", "cursor": f"c{name}", "ts_event": 1,
                "kafka_topic": "t", "kafka_partition": partition, "gap_id": name,
                "revision": revision,
            }
            for name, revision, partition in named
        ]  # fmt: skip
        fields = ("kind", "status", "severity", "missing_first", "missing_last", "count",
                  "remaining_count", "from_ts", "from_offset", "to_ts", "to_offset")  # fmt: skip
        return arrow.rows(pa.Table.from_pylist([{**dict.fromkeys(fields, 1), **r} for r in found]))

    steps = Course(get("/v1/replay"), follow=True, verify=False, attempts=1).steps()

    def connected(cursor: str | None, *named: tuple[str, int, int]) -> list[str]:
        """What a connection gives that brings this and is lost."""
        started = {"type": "replay_started", "cursor": cursor or "c0", "since": None}
        assert isinstance(steps.send(Head(200, "OK", {"content-type": ARROW})), Read)
        given = steps.send(arrow.begin() + arrow.say(started) + rows(*named))
        assert isinstance(given, Give)
        assert isinstance(next(steps), Read)
        assert isinstance(steps.throw(CutOff("lost")), Pause)
        asked = steps.send(None)
        assert isinstance(asked, Open)
        assert asked.ask.query["cursor"] == f"c{named[-1][0]}"
        found: list[str] = given.item["cursor"].to_pylist()
        return found

    assert isinstance(next(steps), Open)
    assert connected(None, ("g", 1, 0), ("a", 0, 0), ("b", 1, 0)) == ["cg", "ca", "cb"]
    assert connected("cb", ("x", 0, 1)) == ["cx"]
    assert connected("cx", ("b", 1, 0), ("b", 2, 0), ("y", 0, 1)) == ["cb", "cy"]
    assert connected("cy", ("b", 1, 0), ("b", 2, 0), ("d", 0, 0)) == ["cd"]
    assert connected("cd", ("b", 1, 0), ("e", 0, 0)) == ["cb", "ce"]  # nothing to expect it by
    steps.close()


@both
def test_a_worker_that_is_gone_for_good_is_an_error_with_the_cursor(url: str, take: Take) -> None:
    whole, _ = blocking(url)
    seen: list[Any] = []
    with Cuts(address(url), lambda draw: 200_000) as cuts:

        def leave() -> None:
            cuts.refuse()

        with pytest.raises(ReplayBroken, match="3 attempts to go on have failed") as raised:
            interrupted(take, cuts.url, seen, leave)
    assert raised.value.retriable
    rest, _ = take(url, cursor=raised.value.cursor)
    assert seen + rest == whole


def interrupted(take: Take, url: str, seen: list[Any], leave: Callable[[], None]) -> None:
    if take is blocking:
        with Client(url) as client:
            for record in client.replay(attempts=3):
                seen.append(record)
                if len(seen) == 1:
                    leave()
        return

    async def run() -> None:
        async with AsyncClient(url) as client:
            async for record in client.replay(attempts=3):
                seen.append(record)
                if len(seen) == 1:
                    leave()

    asyncio.run(run())


def test_a_client_that_is_closed_ends_the_replays_that_other_threads_read(url: str) -> None:
    client = Client(url)
    replay = client.replay(speed=1e-9)
    with ThreadPoolExecutor(1) as pool:
        begun = threading.Event()

        def read() -> None:
            for _ in replay:
                begun.set()

        reading = pool.submit(read)
        assert begun.wait(10)
        client.close()
        with pytest.raises(ReplayBroken, match="was closed"):
            reading.result(2)  # before anything more would come


@both
def test_a_failure_that_passes_is_passed_over(
    url: str, take: Take, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker says it in the stream, and ends the stream."""
    whole, _ = blocking(url)
    read, failures = History.read, [CatalogUnavailable("away"), CatalogUnavailable("away")]

    def failing(history: History) -> Any:
        if failures:
            raise failures.pop()
        return read(history)

    monkeypatch.setattr(History, "read", failing)
    found, replay = take(url)
    assert (found, replay.connections) == (whole, 3)


@both
def test_a_failure_that_does_not_pass_ends_it(
    url: str, take: Take, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(history: History) -> Any:
        raise ValueError("never")

    monkeypatch.setattr(History, "read", failing)
    with pytest.raises(ReplayBroken, match="unexpected") as raised:
        take(url)
    assert not raised.value.retriable


@both
def test_a_record_that_was_altered_on_its_way_is_noticed(url: str, take: Take) -> None:
    with Cuts(address(url), lambda _: None, alter=(b"BUYBUY", b"BUYBYU")) as cuts:
        with pytest.raises(DigestMismatch, match="came"):
            take(cuts.url)
        assert take(cuts.url, verify=False)[1].digest is None


@both
def test_what_cannot_begin_says_why(url: str, take: Take, lake: Lake) -> None:
    with pytest.raises(BadRequest) as raised:
        take(url, cursor="x")
    assert raised.value.parameter == "cursor"
    with Client(url) as client:
        running: list[Replay] = [client.replay(speed=1e-9) for _ in range(2)]
        records = [next(iter(replay)) for replay in running]
        assert len(records) == lake.settings.replays_max
        with pytest.raises(TooMany) as refused:
            take(url)
        assert refused.value.retry_after_s == 1
        for replay in running:
            replay.close()
    with pytest.raises(Unreachable, match="is a worker running there"):
        take("http://127.0.0.1:9")
