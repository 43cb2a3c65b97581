"""Replays behind a worker's gate: keys, their limits, origins, and readers that take their time."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientError, ClientResponse, ClientSession, WSServerHandshakeError, web

from k2.app import create_app
from k2.keyfile import create, revoke
from k2.keys import authorization
from k2.replay.archive import Archive
from k2.schemas import TRADES
from k2.web.gate import protect
from k2.web.replay import Replays
from tests.lakes import Lake, source

SECOND = 1_000_000_000
ROWS, SECONDS = 24_000, 4  # some 12 MB: more than the kernels hold of a connection
PATH = "/v1/replay"
WAIT_S = 20.0
#: A replay that takes seconds.
PACED = {"symbol": "A,B", "speed": "1"}


class Place:
    """A server as a worker makes it, with replays of one lake; its session sends no key."""

    def __init__(self, lake: Lake, session: ClientSession) -> None:
        self.session, self._settings = session, lake.settings
        self._archive = Archive(lake.catalog, lake.settings)
        site: web.Application = create_app(lake.settings).web.web_app
        protect(site, lake.settings)
        replays = Replays(self._archive, lake.settings)
        site.add_routes(replays.routes())
        site.on_shutdown.append(replays.close)
        self._runner = web.AppRunner(site, access_log=None)

    async def start(self) -> None:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()

    async def close(self) -> None:
        await self._runner.cleanup()
        self._archive.close()

    @property
    def url(self) -> str:
        host, port = self._runner.addresses[0][:2]
        return f"http://{host}:{port}"

    def key(self, scope: str = "read") -> dict[str, str]:
        """Headers that have a new key."""
        return authorization(create(self._settings.keys_path, [scope], None, "")[1])

    def revoke(self, headers: dict[str, str]) -> None:
        revoke(self._settings.keys_path, [headers["Authorization"].split("_")[1]])

    async def status(self, headers: dict[str, str]) -> int:
        """Of a replay of nothing."""
        query = {"symbol": "NONE"}
        async with self.session.get(self.url + PATH, params=query, headers=headers) as answer:
            await answer.read()
            return answer.status

    async def status_of_socket(self, headers: dict[str, str]) -> int:
        try:
            async with self.session.ws_connect(self.url + PATH, headers=headers):
                return 101
        except WSServerHandshakeError as exc:
            return exc.status


Start = Callable[..., Awaitable[Place]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake: trades of `SECONDS` seconds, as many in each; two of them of A and B."""
    path: Path = tmp_path_factory.mktemp("lake")
    many = [(n * SECONDS * SECOND // ROWS, "X") for n in range(ROWS)]
    Lake(path).commit(TRADES, {source(TRADES, 0): [(0, "A"), *many, (SECONDS * SECOND, "B")]})
    return path


@pytest.fixture
async def start(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Start]:
    monkeypatch.setattr("k2.keys.LOOK_EVERY_S", 0.0)
    places: list[Place] = []

    async def start(**more: Any) -> Place:
        lake = Lake(folder, keys_file=str(tmp_path / "keys"), **more)
        place = Place(lake, session)
        places.append(place)
        await place.start()
        return place

    async with ClientSession() as session:
        yield start
        for place in places:
            await place.close()


async def until(status: Callable[[], Awaitable[int]], wanted: int) -> None:
    end = time.monotonic() + WAIT_S
    while await status() != wanted:
        assert time.monotonic() < end
        await asyncio.sleep(0.02)


async def test_a_key_to_read_is_wanted_over_a_websocket_too(start: Start) -> None:
    place = await start()
    read, sql = place.key(), place.key("sql")
    wrong = authorization("k2_x")
    asked = [(headers, await place.status(headers)) for headers in (read, sql, wrong, {})]
    assert [status for _, status in asked] == [200, 403, 401, 401]
    for headers, status in asked:
        assert await place.status_of_socket(headers) == (101 if status == 200 else status)
    # A browser can give a WebSocket none of these headers, and a URL has no keys.
    name = read["Authorization"].removeprefix("Bearer ")
    async with place.session.get(f"{place.url}{PATH}?key={name}") as answer:
        assert answer.status == 401


@pytest.mark.slow
@pytest.mark.parametrize("socket", [False, True], ids=["stream", "websocket"])
async def test_who_has_a_key_that_is_revoked_is_cut_off(start: Start, socket: bool) -> None:
    """A replay that follows would have no end; others of the same worker go on."""
    place = await start()
    key, other = place.key(), place.key()
    url = place.url + PATH
    async with place.session.get(url, params=PACED, headers=other) as going:
        if socket:
            async with place.session.ws_connect(url, params=PACED, headers=key) as talk:
                await talk.receive_str()
                place.revoke(key)
                async with asyncio.timeout(WAIT_S):
                    said = [message.data async for message in talk]
                assert not any("replay_completed" in text for text in said)
        else:
            async with place.session.get(url, params=PACED, headers=key) as answer:
                assert b"replay_started" in await answer.content.readline()
                place.revoke(key)
                with pytest.raises(ClientError):
                    await take(answer, bytearray())
        assert await place.status(key) == 401
        *_, last = (await going.read()).splitlines()
    assert json.loads(last)["type"] == "replay_completed"


async def test_a_replay_is_one_request_of_its_key_as_long_as_it_runs(start: Start) -> None:
    place = await start(key_concurrency_max=1)
    key, other = place.key(), place.key()
    session, url = place.session, place.url + PATH
    async with session.get(url, params=PACED, headers=key) as answer:
        assert b"replay_started" in await answer.content.readline()
        assert await place.status(key) == 429
        assert await place.status_of_socket(key) == 429
        assert await place.status(other) == 200
        answer.close()
    await until(lambda: place.status(key), 200)
    async with session.ws_connect(url, params=PACED, headers=key) as socket:
        await socket.receive_str()
        assert await place.status(key) == 429
        assert await place.status(other) == 200
    await until(lambda: place.status(key), 200)


@pytest.mark.slow
async def test_a_replay_that_has_begun_may_take_longer_than_an_answer_may(start: Start) -> None:
    place = await start(answer_timeout_ms=1000, sql_timeout_ms=100)
    async with place.session.get(place.url + PATH, params=PACED) as answer:
        *_, last = (await answer.read()).splitlines()
    assert json.loads(last)["type"] == "replay_completed"


@pytest.mark.parametrize("keys", [False, True])
async def test_pages_of_elsewhere_open_no_websocket(start: Start, keys: bool) -> None:
    """Browsers would let them read it: no key is needed here, or a proxy adds one."""
    page = "https://charts.example"
    place = await start(cors_origins=page)
    key = place.key() if keys else {}
    origins = {
        page: 101, place.url: 101, "https://other.example": 403, "null": 403,
        place.url.replace("127.0.0.1", "localhost"): 403, f"{page}.evil": 403, "http://[": 403,
    }  # fmt: skip
    for origin, status in origins.items():
        assert await place.status_of_socket({**key, "Origin": origin}) == status, origin
    assert await place.status({**key, "Origin": "https://other.example"}) == 200


async def completed(place: Place) -> dict[str, Any]:
    """The end of a replay whose reader takes all at once."""
    async with place.session.get(place.url + PATH) as answer:
        *_, last = (await answer.read()).splitlines()
    done: dict[str, Any] = json.loads(last)
    assert (done["type"], done["trades"]) == ("replay_completed", ROWS + 2)
    return done


@pytest.mark.slow
@pytest.mark.parametrize("speed", ["0", "1"])
@pytest.mark.parametrize("socket", [False, True], ids=["stream", "websocket"])
async def test_a_reader_that_takes_nothing_for_long_has_a_slow_replay_and_all_of_it(
    start: Start, socket: bool, speed: str
) -> None:
    """For three times as long as the rule for other answers lets it."""
    place = await start(reader_timeout_ms=1000, replay_reader_timeout_ms=30_000)
    done = await completed(place)
    url, query = place.url + PATH, {"speed": speed}
    if socket:
        async with place.session.ws_connect(url, params=query, max_msg_size=0) as talk:
            await asyncio.sleep(5)
            lines = [line async for message in talk for line in message.data.splitlines()]
    else:
        async with place.session.get(url, params=query) as answer:
            await asyncio.sleep(5)
            lines = (await answer.read()).splitlines()
    records = [json.loads(line) for line in lines]
    offsets = [record["kafka_offset"] for record in records if record["type"] == "trade"]
    assert offsets == list(range(ROWS + 2))
    assert records[-1] == done


async def take(answer: ClientResponse, into: bytearray) -> None:
    async for piece in answer.content.iter_any():
        into += piece


@pytest.mark.slow
@pytest.mark.parametrize("socket", [False, True], ids=["stream", "websocket"])
async def test_a_reader_that_takes_nothing_at_all_makes_room_in_the_end(
    start: Start, socket: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Its cursor goes on exactly behind what it has."""
    place = await start(replay_reader_timeout_ms=1000, replays_max=1)
    url, data = place.url + PATH, bytearray()
    if socket:
        async with place.session.ws_connect(url, max_msg_size=0) as talk:
            assert await place.status({}) == 429
            await until(lambda: place.status({}), 200)
            async for message in talk:
                data += message.data.encode()
    else:
        async with place.session.get(url) as answer:
            assert await place.status({}) == 429
            await until(lambda: place.status({}), 200)
            with pytest.raises(ClientError):  # behind what the kernels hold: no end, a reset
                await take(answer, data)
    lines = data[: data.rfind(b"\n") + 1].splitlines()
    had = [json.loads(line) for line in lines]
    async with place.session.get(url, params={"cursor": had[-1]["cursor"]}) as answer:
        rest = [json.loads(line) for line in (await answer.read()).splitlines()]
    offsets = [r["kafka_offset"] for r in (*had, *rest) if r["type"] == "trade"]
    assert offsets == list(range(ROWS + 2))
    assert not [record for record in caplog.records if record.exc_info]
