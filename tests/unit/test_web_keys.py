"""Keys, scopes, limits and origins on a real server, behind the middlewares of a worker."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer
from prometheus_client import REGISTRY

from k2.errors import PeerUnavailable, TooManyRequests
from k2.keyfile import create, revoke
from k2.keys import is_loopback
from k2.settings import Settings
from k2.web import keys as web_keys
from k2.web import limits as web_limits
from k2.web.gate import protect
from k2.web.keys import scope_of
from k2.web.limits import Limits
from tests.group import assign, member, peers

GROUP_SECRET = "a secret of the whole group"
PATHS = (
    "/live", "/ready", "/metrics", "/v1/trades", "/v1/symbols/{exchange}/{symbol}", "/v1/sql",
    "/internal/fresh", "/", "/table",
)  # fmt: skip
PAGE = "https://charts.example"


class Place:
    """A server with a worker's paths, and the keys of its data folder."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.holding = asyncio.Event()  # until it is set, /v1/trades?hold waits
        self.begun = 0
        self.held = asyncio.Semaphore(0)  # one for each that waits
        site = web.Application()
        protect(site, settings)
        for path in PATHS:
            site.router.add_route("*", path, self._view)
        self.server = TestServer(site)

    async def _view(self, request: web.Request) -> web.StreamResponse:
        self.begun += 1
        if "hold" in request.query:
            self.held.release()
            await self.holding.wait()
        if "stream" in request.query:
            response = web.StreamResponse()
            await response.prepare(request)
            await response.write(b"x")
            return response
        return web.Response(text="here")

    @property
    def url(self) -> str:
        return str(self.server.make_url("/")).rstrip("/")

    def key(self, *scopes: str, expires: dt.datetime | None = None) -> str:
        return create(self.settings.keys_path, scopes or ("read",), expires, "")[1]


Start = Callable[..., Awaitable[Place]]


@pytest.fixture
async def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Start]:
    """Start a server that looks for keys at every request; with keys, unless `keys=False`."""
    monkeypatch.setattr("k2.keys.LOOK_EVERY_S", 0.0)
    places: list[Place] = []

    async def start(*, keys: bool = True, **more: Any) -> Place:
        settings = Settings(data=tmp_path, **more)
        if keys:
            create(settings.keys_path, ("read",), None, "")
        place = Place(settings)
        places.append(place)
        await place.server.start_server()
        return place

    yield start
    for place in places:
        place.holding.set()
        await place.server.close()


async def ask(
    place: Place, path: str, key: str | None = None, method: str = "GET", **headers: str
) -> tuple[int, Any, Any]:
    """Status, headers and body; `headers` with _ for -."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    if key is not None:
        sent["Authorization"] = f"Bearer {key}"
    async with (
        ClientSession() as client,
        client.request(method, place.url + path, headers=sent) as answer,
    ):
        form = answer.content_type
        body = await (answer.json() if form == "application/problem+json" else answer.text())
        return answer.status, answer.headers, body


def refused(reason: str) -> float:
    return REGISTRY.get_sample_value("k2_refused_total", {"reason": reason}) or 0.0


@pytest.mark.parametrize(
    ("path", "scope"),
    [
        ("/live", None), ("/ready", None), ("/metrics", "read"), ("/v1/trades", "read"),
        ("/v1/symbols/{exchange}/{symbol}", "read"), ("/v1/sql", "sql"), ("/v1/sql/x", "sql"),
        ("/v1/sqlite", "read"), ("/internal/fresh", "admin"), ("/", "admin"), ("/table", "admin"),
        ("/livery", "admin"), ("", "admin"),
    ],
)  # fmt: skip
def test_every_path_has_one_scope(path: str, scope: str | None) -> None:
    assert scope_of(path) == scope


async def test_with_keys_each_scope_opens_its_own_paths_only(start: Start) -> None:
    place = await start()
    of = {scope: place.key(scope) for scope in ("read", "sql", "admin")}
    asked = {path: path.format(exchange="SIM", symbol="A") for path in PATHS}
    for path, real in asked.items():
        needed = scope_of(path)
        for scope, key in of.items():
            status, _, body = await ask(place, real, key)
            if needed in (None, scope):
                assert status == 200, (path, scope)
            else:
                assert (status, body["type"]) == (403, "urn:k2:error:forbidden"), (path, scope)
                assert body["detail"].endswith(f"lacks the scope {needed}")
        status, headers, body = await ask(place, real)
        if needed is None or path == "/metrics":
            assert status == 200, path
        else:
            assert (status, body["type"]) == (401, "urn:k2:error:unauthorized"), path
            assert headers["WWW-Authenticate"] == 'Bearer realm="k2"'
            assert headers["X-Request-Id"]


async def test_a_path_is_known_by_its_route_not_by_how_it_is_written(start: Start) -> None:
    place = await start()
    read = place.key("read")
    for path in ("/v1/%73ql", "/v1/../v1/sql", "/v1/trades/../sql", "/%761/sql"):
        assert (await ask(place, path, read))[0] == 403, path
    for path in ("/v1/sql/", "//v1/sql", "/v1/nothing"):
        assert (await ask(place, path, read))[0] == 404, path
        assert (await ask(place, path))[0] == 401, path


async def test_a_key_comes_in_either_header_and_nowhere_else(start: Start) -> None:
    place = await start()
    key = place.key()
    for good in ({"Authorization": f"bearer {key}"}, {"X_API_Key": key}):
        assert (await ask(place, "/v1/trades", **good))[0] == 200
    for bad in ({"Authorization": f"Basic {key}"}, {"Authorization": key}, {"X_API_Key": "k2_x"}):
        assert (await ask(place, "/v1/trades", **bad))[0] == 401
    assert (await ask(place, f"/v1/trades?api_key={key}"))[0] == 401
    wrong = key[:-1] + ("0" if key[-1] != "0" else "1")
    status, _, body = await ask(place, "/v1/trades", wrong)
    assert (status, body["detail"]) == (401, "the API key is unknown, or was revoked")
    assert wrong not in str(body)
    assert (await ask(place, "/metrics", wrong))[0] == 401  # a wrong key is none, and says so


async def test_expired_and_revoked_keys_are_refused_at_once(start: Start) -> None:
    place = await start()
    key = place.key(expires=dt.datetime.now(dt.UTC) + dt.timedelta(seconds=2))
    assert (await ask(place, "/v1/trades", key))[0] == 200
    await asyncio.sleep(2)
    status, _, body = await ask(place, "/v1/trades", key)
    assert status == 401
    assert "expired at" in body["detail"]
    other = place.key()
    assert (await ask(place, "/v1/trades", other))[0] == 200
    revoke(place.settings.keys_path, [other.split("_")[1]])
    assert (await ask(place, "/v1/trades", other))[0] == 401


async def test_without_keys_loopback_is_open_until_the_first_one(start: Start) -> None:
    place = await start(keys=False)
    for path in PATHS:
        assert (await ask(place, path.format(exchange="SIM", symbol="A")))[0] == 200, path
    key = place.key()
    assert (await ask(place, "/v1/trades"))[0] == 401
    assert (await ask(place, "/v1/trades", key))[0] == 200
    place.settings.keys_path.unlink()
    assert (await ask(place, "/v1/trades"))[0] == 401


async def test_without_keys_another_address_is_closed(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No start allows it; if a socket is there all the same, it opens nothing."""
    place = await start(keys=False)
    monkeypatch.setattr(web_keys, "is_loopback", lambda a: a != "127.0.0.1" and is_loopback(a))
    assert (await ask(place, "/v1/trades"))[0] == 401
    assert (await ask(place, "/metrics"))[0] == 401
    assert (await ask(place, "/live"))[0] == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:6066", 200), ("127.0.0.1", 200), ("[::1]:6066", 200), ("k2-1.lan", 200),
        ("rebound.example", 403), ("localhost.rebound.example:6066", 403), ("[::1", 403),
    ],
)  # fmt: skip
async def test_without_keys_a_page_of_another_host_name_reads_nothing(
    start: Start, host: str, status: int
) -> None:
    """A name that resolves to 127.0.0.1 would otherwise open all of K2 to any page."""
    place = await start(keys=False, advertise="http://k2-1.lan:6066")
    assert (await ask(place, "/v1/trades", Host=host))[0] == status


async def test_workers_are_known_by_the_groups_secret(start: Start) -> None:
    place = await start(group_secret=GROUP_SECRET)
    assert (await ask(place, "/internal/fresh", GROUP_SECRET))[0] == 200
    assert (await ask(place, "/internal/fresh", GROUP_SECRET + "x"))[0] == 401
    assert (await ask(place, "/v1/trades", GROUP_SECRET))[0] == 401  # for nothing else
    for secret, known in ((GROUP_SECRET, True), ("another secret of a group", False), ("", False)):
        asking = member("http://a:1", Settings(group_secret=secret))
        assign(asking)
        try:
            if known:
                answer = await peers(asking).ask(place.url, "/internal/fresh")
                assert answer == b"here"
            else:
                with pytest.raises(PeerUnavailable, match=rf"{place.url}: 401: .*K2_GROUP_SECRET"):
                    await peers(asking).ask(place.url, "/internal/fresh")
        finally:
            await asking._maybe_close_http_client()


async def test_without_a_groups_secret_nothing_empty_is_one(start: Start) -> None:
    place = await start()
    assert (await ask(place, "/internal/fresh", ""))[0] == 401


async def test_a_key_that_asks_too_often_is_told_when_to_ask_again(start: Start) -> None:
    place = await start(key_rate_max=1, key_burst_max=3)
    key, other = place.key(), place.key()
    before = refused("TooManyRequests")
    answers = [await ask(place, "/v1/trades", key) for _ in range(5)]
    assert [status for status, _, _ in answers] == [200, 200, 200, 429, 429]
    _, headers, body = answers[-1]
    assert (headers["Retry-After"], body["type"]) == ("1", "urn:k2:error:too-many-requests")
    assert "more than 1 requests/s" in body["detail"]
    assert (await ask(place, "/v1/trades", other))[0] == 200  # each key has its own
    assert (await ask(place, "/live", key))[0] == 200
    assert place.begun == 5
    assert refused("TooManyRequests") == before + 2


async def test_a_key_has_so_many_requests_at_once_streams_included(start: Start) -> None:
    place = await start(key_concurrency_max=2)
    key, other = place.key(), place.key()
    holding = [asyncio.create_task(ask(place, "/v1/trades?hold=1", key)) for _ in range(2)]
    for _ in holding:
        await place.held.acquire()
    status, headers, body = await ask(place, "/v1/trades", key)
    assert (status, headers["Retry-After"]) == (429, "1")
    assert "2 requests of the key" in body["detail"]
    assert (await ask(place, "/v1/trades", other))[0] == 200
    place.holding.set()
    assert [status for status, _, _ in await asyncio.gather(*holding)] == [200, 200]
    assert (await ask(place, "/v1/trades", key))[0] == 200


async def test_without_keys_nobody_is_counted(start: Start) -> None:
    place = await start(keys=False, key_rate_max=1, key_burst_max=1)
    assert {(await ask(place, "/v1/trades"))[0] for _ in range(5)} == {200}


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def admitted(limits: Limits, key: str) -> int:
    """0, or after how many seconds to ask again."""
    try:
        with limits.admit(key):
            return 0
    except TooManyRequests as exc:
        return exc.retry_after_s


def test_a_bucket_fills_at_its_rate_up_to_its_burst() -> None:
    clock = Clock()
    limits = Limits(Settings(key_rate_max=2, key_burst_max=4), clock)
    assert [admitted(limits, "a") for _ in range(5)] == [0, 0, 0, 0, 1]
    clock.now += 0.5
    assert [admitted(limits, "a") for _ in range(2)] == [0, 1]
    clock.now += 1000.0
    assert [admitted(limits, "a") for _ in range(5)] == [0, 0, 0, 0, 1]
    assert admitted(limits, "b") == 0


def test_over_any_time_no_more_pass_than_rate_and_burst_say() -> None:
    clock = Clock()
    limits = Limits(Settings(key_rate_max=10, key_burst_max=5), clock)
    passed = 0
    for _ in range(1000):
        clock.now += 0.01
        passed += admitted(limits, "a") == 0
    assert 100 <= passed <= 10 * 10 + 5


def test_a_request_that_fails_gives_its_place_back() -> None:
    limits = Limits(Settings(key_concurrency_max=1))
    with pytest.raises(KeyError), limits.admit("a"):
        raise KeyError
    assert admitted(limits, "a") == 0
    with limits.admit("a"):
        assert admitted(limits, "a") == 1
    assert admitted(limits, "a") == 0


def test_what_is_remembered_is_bounded_and_never_a_way_to_start_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(web_limits, "ROOM", 10)
    clock = Clock()
    limits = Limits(Settings(key_rate_max=1, key_burst_max=1), clock)
    assert admitted(limits, "a") == 0
    with limits.admit("running"):
        for number in range(1000):
            clock.now += 0.0005
            admitted(limits, f"k{number % 5}")
        assert admitted(limits, "a") == 1
        for number in range(1000):
            clock.now += 1.1
            admitted(limits, f"n{number}")
        assert len(limits._uses) <= 11
        assert limits._uses["running"].running == 1


async def test_cors_is_closed_unless_an_origin_is_named(start: Start) -> None:
    place = await start()
    asks = {"Origin": PAGE, "Access_Control_Request_Method": "GET"}
    status, headers, _ = await ask(place, "/v1/trades", method="OPTIONS", **asks)
    assert status == 401
    _, others, _ = await ask(place, "/v1/trades", place.key(), Origin=PAGE)
    for name in (*headers, *others):
        assert not name.lower().startswith("access-control"), name


async def test_a_named_origin_may_ask_and_reads_answers_and_streams(start: Start) -> None:
    place = await start(cors_origins=f"{PAGE}, http://localhost:3000")
    key = place.key()
    asks = {"Origin": PAGE, "Access_Control_Request_Method": "GET"}
    status, headers, _ = await ask(place, "/v1/trades", method="OPTIONS", **asks)
    assert (status, headers["Access-Control-Allow-Origin"]) == (204, PAGE)
    assert "Authorization" in headers["Access-Control-Allow-Headers"]
    for path, expected in (("/v1/trades", 200), ("/v1/trades?stream=1", 200), ("/v1/sql", 403)):
        status, headers, _ = await ask(place, path, key, Origin=PAGE)
        assert (status, headers["Access-Control-Allow-Origin"]) == (expected, PAGE)
        assert headers["Vary"] == "Origin"
        assert "Access-Control-Allow-Credentials" not in headers
    for other in ("https://charts.example.evil", "null", "https://CHARTS.example:444"):
        status, headers, _ = await ask(place, "/v1/trades", key, Origin=other)
        assert (status, headers["Vary"]) == (200, "Origin")
        assert "Access-Control-Allow-Origin" not in headers
        status, _, _ = await ask(place, "/v1/trades", method="OPTIONS", **{**asks, "Origin": other})
        assert status == 401
