"""GET /v1/replay over a real server: every form, orders, cursors, limits."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from aiohttp import ClientPayloadError, ClientSession, WSMsgType, web
from aiohttp.test_utils import TestServer

from k2.replay import play
from k2.replay.archive import Archive
from k2.schemas import QUOTES, TRADES
from k2.settings import Settings
from k2.web.gate import protect
from k2.web.replay import Replays
from tests.lakes import START, Lake, finding, source

ONE, BIDS = source(TRADES, 0), source(QUOTES, 0)
SECOND = 1_000_000_000


def served(archive: Archive, settings: Settings) -> web.Application:
    """Replays as a worker serves them."""
    site = web.Application()
    protect(site, settings)
    replays = Replays(archive, settings)
    site.add_routes(replays.routes())
    site.on_shutdown.append(replays.close)
    return site


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[ClientSession]:
    lake = Lake(tmp_path, replays_max=2)
    lake.commit(TRADES, {ONE: [(0, 'A"é'), (SECOND, "B"), (3 * SECOND, "B")]})
    lake.commit(QUOTES, {BIDS: [(0, "B"), (2 * SECOND, "B")]})
    lake.tell(finding(ONE, "g", 2, from_ts=START + SECOND, from_offset=1, to_ts=START + 3 * SECOND))
    archive = Archive(lake.catalog, lake.settings)
    site = served(archive, lake.settings)
    async with TestServer(site) as server, ClientSession(server.make_url("/")) as session:
        yield session
    archive.close()


async def lines(client: ClientSession, query: str = "", **more: Any) -> list[dict[str, Any]]:
    async with client.get(f"/v1/replay{query}", **more) as answer:
        assert answer.status == 200, await answer.text()
        return [json.loads(line) for line in (await answer.text()).splitlines()]


async def test_ndjson_has_the_fields_of_each_type(client: ClientSession) -> None:
    records = await lines(client)
    assert [record["type"] for record in records] == [
        "replay_started", "quote", "trade", "trade", "gap", "quote", "trade", "replay_completed",
    ]  # fmt: skip
    quote, trade, gap = records[1], records[2], records[4]
    assert (trade["symbol"], trade["price"], trade["size"]) == ('A"é', "0.1", "100")
    assert trade["trade_id"] == "t"
    assert trade["venue"] is None
    assert trade["session"] == "2014-03-10"
    assert "bid_price" not in trade
    assert (quote["bid_price"], quote["ask_price"]) == ("0.1", None)
    assert "price" not in quote
    assert (gap["gap_id"], gap["remaining_count"], gap["symbol"]) == ("g", 2, "A")
    assert gap["ts_event"] == START + SECOND
    assert "price" not in gap
    done = records[-1]
    assert (done["trades"], done["quotes"], done["gaps"]) == (3, 2, 1)
    assert (await lines(client))[-1] == done
    assert all("cursor" in record for record in records)


async def test_reconnect_goes_on_exactly_there(client: ClientSession) -> None:
    records = await lines(client)
    for at, record in enumerate(records[:-1]):
        rest = await lines(client, "?cursor=" + record["cursor"])
        assert rest[1:-1] == records[at + 1 : -1] or at == 0
        assert rest[0]["since"] == rest[-1]["since"] == record["cursor"]
        assert rest[-1]["cursor"] == records[-1]["cursor"]
    assert (await lines(client, "?cursor=" + records[0]["cursor"]))[1:-1] == records[1:-1]


async def test_events_have_the_cursor_as_their_id(client: ClientSession) -> None:
    records = await lines(client)
    asked = {"Accept": "text/event-stream"}
    async with client.get("/v1/replay", headers=asked) as answer:
        assert answer.content_type == "text/event-stream"
        events = (await answer.text()).split("\n\n")
    assert events.pop() == ""
    told = [dict(line.split(": ", 1) for line in event.split("\n")) for event in events]
    assert [json.loads(event["data"]) for event in told] == records
    assert [event["id"] for event in told] == [record["cursor"] for record in records]
    again = await lines(client, headers={"Last-Event-ID": told[3]["id"]})
    assert again[1:-1] == records[4:-1]


async def test_arrow_has_one_schema_for_all(client: ClientSession) -> None:
    records = await lines(client)
    for query, kinds in (("?format=arrow", 2), ("?format=arrow&kind=trades", 1)):
        async with client.get(f"/v1/replay{query}") as answer:
            assert answer.content_type == "application/vnd.apache.arrow.stream"
            rows = pa.ipc.open_stream(io.BytesIO(await answer.read())).read_all()
        rows.validate(full=True)
        assert ("bid_price" in rows.schema.names) == (kinds == 2)
        found = rows.to_pylist()
        if kinds == 2:
            assert [row["type"] for row in found] == [record["type"] for record in records]
            assert [row["cursor"] for row in found] == [record["cursor"] for record in records]
            assert json.loads(found[4]["detail"])["gap_id"] == "g"
            assert json.loads(found[-1]["detail"])["digest"] == records[-1]["digest"]
            assert rows["price"].type == pa.decimal128(18, 8)


async def test_websocket_takes_orders(client: ClientSession) -> None:
    whole = await lines(client)
    async with client.ws_connect("/v1/replay?speed=1") as socket:
        seen: list[dict[str, Any]] = []

        async def until(kind: str) -> dict[str, Any]:
            while not any(record["type"] == kind for record in seen):
                seen.extend(json.loads(line) for line in (await socket.receive_str()).splitlines())
            (found, *_) = [record for record in seen if record["type"] == kind]
            del seen[: seen.index(found) + 1]
            return found

        await until("trade")
        await socket.send_json({"op": "pause"})
        await until("paused")
        await socket.send_str("nonsense")
        assert "not JSON" in (await until("refused"))["detail"]
        await socket.send_json({"op": "speed", "speed": 0})
        assert (await until("speed"))["speed"] == 0
        await socket.send_json({"op": "resume"})
        await until("resumed")
        done = await until("replay_completed")
        assert done["digest"] == whole[-1]["digest"]
        assert (await socket.receive()).type in (WSMsgType.CLOSE, WSMsgType.CLOSED)


async def test_seek_begins_anew_at_a_time(client: ClientSession) -> None:
    async with client.ws_connect("/v1/replay?speed=1") as socket:
        await socket.receive_str()
        await socket.send_json({"op": "seek", "to": START + 2 * SECOND})
        await socket.send_json({"op": "speed", "speed": 0})
        seen = []
        async for message in socket:
            seen += [json.loads(line) for line in message.data.splitlines()]
    begun = [at for at, record in enumerate(seen) if record["type"] == "replay_started"]
    told = [r for r in seen[begun[-1] :] if r["type"] not in ("speed", "heartbeat")]
    assert [r["type"] for r in told] == [
        "replay_started", "quote", "gap", "trade", "replay_completed",
    ]  # fmt: skip
    assert told[0]["since"] == told[-1]["since"] == START + 2 * SECOND


async def test_websocket_gives_arrow_too(client: ClientSession) -> None:
    async with client.ws_connect("/v1/replay?format=arrow") as socket:
        data = b"".join([message.data async for message in socket])
    assert pa.ipc.open_stream(io.BytesIO(data)).read_all().num_rows == 8


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("?format=csv", "format"),
        ("?speed=-1", "speed"),
        ("?kind=news", "kind"),
        ("?start=2&end=1", "start"),
        ("?cursor=x", "cursor"),
        ("?who=me", "who"),
    ],
)
async def test_impossible_questions_are_named(
    client: ClientSession, query: str, parameter: str
) -> None:
    async with client.get(f"/v1/replay{query}") as answer:
        assert (answer.status, (await answer.json())["parameter"]) == (400, parameter)


async def test_cursor_behind_the_history_wants_to_follow(client: ClientSession) -> None:
    done = (await lines(client))[-1]
    async with client.get(f"/v1/replay?cursor={done['cursor']}") as answer:
        said = await answer.json()
        assert (answer.status, said["parameter"]) == (400, "cursor")
        assert "follow=true" in said["detail"]


async def test_more_replays_than_may_be_are_refused(client: ClientSession) -> None:
    slow = "/v1/replay?speed=1"
    async with client.ws_connect(slow), client.ws_connect(slow), client.get(slow) as answer:
        assert (answer.status, answer.headers["Retry-After"]) == (429, "1")
        problem = await answer.json()
        assert problem["type"] == "urn:k2:error:too-many-requests"
        assert "replays_max" in problem["detail"]
    for _ in range(100):
        async with client.get("/v1/replay") as answer:
            if answer.status == 200:
                break
        await asyncio.sleep(0.02)
    assert answer.status == 200


async def test_heartbeats_in_quiet_times(
    client: ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(play, "HEARTBEAT_S", 0.05)
    records = await lines(client, "?speed=5")
    beats = [record for record in records if record["type"] == "heartbeat"]
    assert len(beats) > 3
    assert {beat["cursor"] for beat in beats} <= {
        record["cursor"] for record in records if record["type"] != "heartbeat"
    }


async def test_replay_that_fails_says_so_and_where_to_go_on(
    client: ClientSession, tmp_path: Path
) -> None:
    for path in (tmp_path / "warehouse").rglob("trades/**/*.parquet"):
        path.unlink()
    *_, last = await lines(client)
    assert (last["type"], last["retriable"]) == ("error", True)
    assert "data files" in last["detail"]
    assert last["cursor"]


async def test_server_that_stops_cuts_replays_off(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    lake.commit(TRADES, {ONE: [(n * 3600 * SECOND, "A") for n in range(2)]})
    archive = Archive(lake.catalog, lake.settings)
    server = TestServer(served(archive, lake.settings))
    async with (
        server,
        ClientSession(server.make_url("/")) as client,
        client.get("/v1/replay?speed=1") as answer,
    ):
        assert b"replay_started" in await answer.content.readline()
        async with asyncio.timeout(5):
            await server.close()
            with pytest.raises(ClientPayloadError):  # nobody takes it for whole
                await answer.content.read()
    archive.close()
