"""The client against the views of a worker over real tables: rows, pages, values, refusals."""

from __future__ import annotations

import asyncio
import datetime as dt
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from aiohttp import web

from k2.client import (
    AsyncClient,
    BadRequest,
    Client,
    ClientError,
    Coverage,
    CutOff,
    Denied,
    NotFound,
    TooMany,
    Unavailable,
    Unreachable,
)
from k2.client.ask import get, post
from k2.client.errors import refusal
from k2.client.told import Told
from k2.errors import BadQuery
from k2.keyfile import create
from k2.query.engine import Engine
from k2.sandbox.pool import Pool
from k2.schemas import QUOTES, TRADES
from k2.web import sql
from k2.web.gate import protect
from k2.web.views import routes
from tests.cuts import Cuts
from tests.lakes import START, Lake, finding, source
from tests.served import Served

ONE, BIDS = source(TRADES, 0), source(QUOTES, 0)
MS = 1_000_000
ROWS = 20_000


class Place:
    """A worker's views, without keys and with them."""

    def __init__(self, folder: Path) -> None:
        self.lake = lake = Lake(folder)
        lake.commit(QUOTES, {BIDS: [(n * MS, "A") for n in range(10)]})
        lake.commit(TRADES, {ONE: [(n * MS, "AB"[n % 2]) for n in range(ROWS)]})
        lake.tell(finding(ONE, "g", 2, to_offset=2, to_ts=START + 2 * MS))
        self.engine = Engine(lake.catalog, lake.settings)
        self.pool = Pool(lake.catalog, lake.settings)
        self.open = Served(self._site())

    def _site(self) -> web.Application:
        site = web.Application()
        protect(site, self.lake.settings)
        site.add_routes(routes(self.engine, ready=lambda: (False, {"group": "rebalancing"})))
        site.add_routes(sql.routes(self.pool))
        return site

    @property
    def url(self) -> str:
        return "http://{}:{}".format(*self.open.address)

    def close(self) -> None:
        self.engine.close()
        self.pool.close()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    place = Place(Path(tmp_path_factory.mktemp("lake")))
    with place.open:
        yield place
    place.close()


@pytest.fixture
def client(place: Place) -> Iterator[Client]:
    with Client(place.url) as client:
        yield client


def awaited(url: str, call: Callable[[AsyncClient], Awaitable[Any]], **more: Any) -> Any:
    async def run() -> Any:
        async with AsyncClient(url, **more) as client:
            return await call(client)

    return asyncio.run(run())


RESOURCES: list[tuple[str, dict[str, Any]]] = [
    ("trades", {"symbol": ["A", "B"], "limit": 7}),
    ("quotes", {"exchange": "SIM"}),
    ("bars", {"symbol": "A", "interval": "1s"}),
    ("gaps", {"kind": "gap", "status": ["open", "partly_filled"]}),
    ("symbols", {}),
    ("sql", {"statement": "SELECT symbol, count(*) AS n FROM trades GROUP BY ALL ORDER BY 1"}),
]


@pytest.mark.parametrize(("name", "asked"), RESOURCES, ids=[name for name, _ in RESOURCES])
def test_every_resource_is_the_same_for_both_clients(
    place: Place, client: Client, name: str, asked: dict[str, Any]
) -> None:
    rows = getattr(client, name)(**asked)
    table = rows.arrow()

    async def take(other: AsyncClient) -> tuple[pa.Table, Any]:
        found = await getattr(other, name)(**asked)
        return await found.arrow(), found

    again, also = awaited(place.url, take)
    assert table.num_rows > 0
    assert table.equals(again)
    for known in ("coverage", "snapshot_id", "snapshots", "valid_through", "truncated", "next"):
        assert getattr(rows, known) == getattr(also, known)
    assert rows.request_id != also.request_id


def test_rows_say_what_is_known_of_them(client: Client) -> None:
    with client.trades(symbol="A") as rows:
        assert rows.coverage == Coverage(gaps=1, missing=2)
        assert not rows.coverage.complete
        assert isinstance(rows.snapshot_id, int)
        assert (rows.valid_through, rows.truncated, rows.next) == (None, False, None)
        assert not rows.fresh
        assert rows.schema.names[:2] == ["exchange", "symbol"]
    later = client.trades(symbol="A", start=START + 3 * MS)
    assert later.coverage == Coverage()
    assert later.coverage.complete
    assert client.trades(symbol="A", limit=5).truncated
    named = client.sql("SELECT 1 AS one FROM trades, quotes LIMIT 1")
    assert set(named.snapshots) == {"trades", "quotes"}
    assert named.snapshots["trades"] == rows.snapshot_id


def test_rows_as_polars_and_pandas(place: Place, client: Client) -> None:
    frame, panda = client.trades(limit=3).polars(), client.trades(limit=3).pandas()
    assert frame["price"].dtype == pl.Decimal(18, 8)
    assert frame["ts_event"].to_list() == [START, START + MS, START + 2 * MS]
    assert panda["ts_event"].tolist() == frame["ts_event"].to_list()

    async def take(other: AsyncClient) -> tuple[pl.DataFrame, pd.DataFrame]:
        one, two = await other.trades(limit=3), await other.trades(limit=3)
        return await one.polars(), await two.pandas()

    other, also = awaited(place.url, take)
    assert other.equals(frame)
    assert also.equals(panda)


def test_rows_come_batch_by_batch(client: Client) -> None:
    rows = client.trades(columns="sequence")
    seen = [n for batch in rows for n in batch["sequence"].to_pylist()]
    assert seen == list(range(ROWS))
    assert rows.arrow().num_rows == 0  # they are iterated once


@pytest.mark.parametrize(
    "moment",
    [
        START + 5 * MS,
        str(START + 5 * MS),
        "2014-03-10T00:00:00.005",
        dt.datetime(2014, 3, 10, 0, 0, 0, 5000),
        dt.datetime(2014, 3, 10, 11, 0, 0, 5000, dt.timezone(dt.timedelta(hours=11))),
        pd.Timestamp(START + 5 * MS, tz="UTC"),
    ],
    ids=str,
)
def test_times_of_every_kind(client: Client, moment: Any) -> None:
    found = client.trades(start=moment, limit=1).arrow()
    assert found["sequence"].to_pylist() == [5]


def test_parameters_become_text_exactly() -> None:
    ask = get(
        "/v1/x", "a", "B/H", "P?", start=pd.Timestamp(START + 7, tz="UTC"),
        end=dt.date(2014, 3, 11), symbol=["BHP", "A&B"], with_="quote", fresh=True,
        none=None, speed=0.5,
    )  # fmt: skip
    assert ask.target == (
        f"/v1/x/B%2FH/P%3F?start={START + 7}&end=2014-03-11&symbol=BHP%2CA%26B&with=quote"
        "&fresh=true&speed=0.5"
    )
    with pytest.raises(ValueError, match="symbol: 'A,B' is no name"):
        get("/v1/x", "a", symbol=["A,B"])
    with pytest.raises(TypeError):
        post("/v1/sql", parameters=[object()])


def test_pages_are_one_answer(place: Place, client: Client) -> None:
    whole = client.trades(symbol=["A", "B"]).arrow()
    rows = client.trades(symbol=["A", "B"], page_rows=7000)
    assert rows.truncated
    assert rows.next is not None
    assert rows.arrow().equals(whole)
    assert not rows.truncated
    assert client.trades(limit=3333, page_rows=2000).arrow().num_rows == 3333

    async def take(other: AsyncClient) -> pa.Table:
        return await (await other.trades(symbol=["A", "B"], page_rows=7000)).arrow()

    assert awaited(place.url, take).equals(whole)
    first = client.trades(limit=100)
    rest = client.trades(cursor=first.next)
    assert pa.concat_tables([first.arrow(), rest.arrow()]).num_rows == ROWS
    with pytest.raises(ValueError, match="page_rows: 0"):
        client.trades(page_rows=0)


def test_an_older_snapshot_is_asked_for_by_its_id(client: Client) -> None:
    (known,) = client.snapshots(table="trades").arrow().to_pylist()
    rows = client.trades(as_of=known["snapshot_id"], with_="quote", limit=2)
    assert rows.snapshot_id == known["snapshot_id"]
    assert rows.arrow()["bid_price"].null_count < 2


def test_values_are_objects(place: Place, client: Client) -> None:
    assert client.ready() == {"ready": False, "reasons": {"group": "rebalancing"}}
    assert client.status()["rows"] == ROWS
    assert awaited(place.url, lambda other: other.ready()) == client.ready()


def test_refusals_say_what_is_wrong(place: Place, client: Client) -> None:
    with pytest.raises(BadRequest) as raised:
        client.trades(limit=0)
    refused = raised.value
    assert (refused.status, refused.title, refused.kind) == (400, "Bad Request", "bad-query")
    assert (refused.parameter, refused.detail) == ("limit", "limit: 0 is outside 1..10000000")
    assert len(refused.request_id or "") == 32
    assert not refused.retriable
    with pytest.raises(BadRequest) as wrong:
        client.sql("SELECT 1,\n  nonsense FROM trades")
    assert wrong.value.position == {"offset": 12, "line": 2, "column": 3}
    assert wrong.value.parameter is None
    with pytest.raises(NotFound):
        client.symbol("SIM", "NO/NE")
    with pytest.raises(Unavailable) as busy:
        client.trades(fresh=True)
    assert (busy.value.retry_after_s, busy.value.retriable) == (1, True)
    with pytest.raises(BadRequest):
        awaited(place.url, lambda other: other.quotes(limit=0))


def test_what_a_proxy_says_is_no_problem_of_ours() -> None:
    page = refusal(502, "Bad Gateway", {}, b"<html>")
    assert isinstance(page, Unavailable)
    assert (str(page), page.retry_after_s, page.request_id) == ("502 Bad Gateway", None, None)
    late = refusal(429, "?", {"retry-after": "7", "x-request-id": "r"}, b'{"detail": "slow"}')
    assert isinstance(late, TooMany)
    assert (late.detail, late.retry_after_s, late.request_id) == ("slow", 7, "r")


def test_headers_that_are_not_there_are_not_known() -> None:
    assert Told.read({}) == Told()
    told = Told.read({"x-k2-snapshots": "trades=7; gaps=none", "x-k2-coverage": "complete"})
    assert told.snapshots == {"trades": 7, "gaps": None}
    assert told.coverage == Coverage()


def test_a_key_is_sent_from_the_argument_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = Lake(tmp_path, key_rate_max=1, key_burst_max=2)
    lake.commit(TRADES, {ONE: [(0, "A")]})
    key = create(lake.settings.keys_path, ("read",), None, "")[1]
    engine = Engine(lake.catalog, lake.settings)
    site = web.Application()
    protect(site, lake.settings)
    site.add_routes(routes(engine, ready=lambda: (True, {})))
    with Served(site) as served:
        url = "http://{}:{}".format(*served.address)
        for wrong in ("", "k2_x"):
            with Client(url, key=wrong) as client, pytest.raises(Denied) as raised:
                client.trades()
            assert raised.value.status == 401
        with Client(url, key=key) as client:
            assert client.trades().arrow().num_rows == 1
        monkeypatch.setenv("K2_API_KEY", key)
        status = awaited(url, lambda other: other.status())
        assert status["rows"] == 1
        with Client(url) as client, pytest.raises(TooMany) as often:
            client.status()
        assert often.value.retry_after_s == 1
    engine.close()


def test_nobody_there_is_said_with_the_address() -> None:
    with Client("http://127.0.0.1:9/") as client, pytest.raises(Unreachable) as raised:
        client.trades()
    assert "http://127.0.0.1:9" in str(raised.value)
    with pytest.raises(Unreachable, match="is a worker running there"):
        awaited("http://127.0.0.1:9", lambda other: other.status())
    with pytest.raises(BadQuery, match="url"):
        Client("ftp://x")


@pytest.mark.parametrize("most", [400, 100_000])
def test_rows_that_were_cut_off_are_never_taken_for_all(place: Place, most: int) -> None:
    with Cuts(place.open.address, lambda _: most) as cuts:
        with Client(cuts.url) as client, pytest.raises((CutOff, Unreachable)):
            client.trades().arrow()

        async def take(other: AsyncClient) -> None:
            await (await other.trades()).arrow()

        with pytest.raises((CutOff, Unreachable)):
            awaited(cuts.url, take)
    assert cuts.cut == 2


def test_what_is_no_k2_is_said(tmp_path: Path) -> None:
    async def page(request: web.Request) -> web.Response:
        return web.Response(text="<html>", content_type="text/html")

    site = web.Application()
    site.router.add_get("/{any:.*}", page)
    with Served(site) as served, Client("http://{}:{}".format(*served.address)) as client:
        with pytest.raises(ClientError, match="the answer is text/html, not application/vnd"):
            client.trades()
        with pytest.raises(ClientError, match="not application/json"):
            client.status()


def test_what_is_left_is_closed(place: Place) -> None:
    """A client that is closed lets go of answers that nobody reads to their end."""
    client = Client(place.url)
    rows = client.trades()
    client.close()
    with pytest.raises(CutOff):
        rows.arrow()
    with pytest.raises(ClientError, match="was closed"):
        client.trades()
    with Client(place.url) as other:
        with other.trades() as rows:
            next(iter(rows))
        assert list(rows) == []

    async def leave(other: AsyncClient) -> None:
        rows = await other.trades()
        await other.close()
        with pytest.raises(CutOff):
            await rows.arrow()
        with pytest.raises(ClientError, match="was closed"):
            await other.trades()

    awaited(place.url, leave)


def test_it_is_imported_without_what_serves() -> None:
    """No Faust, no DuckDB, no Iceberg; and nothing is begun."""
    said = subprocess.run(
        [sys.executable, "-c", "import sys, k2.client, threading; "
         "print(*sys.modules, threading.active_count())"],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    heavy = {"faust", "duckdb", "pyiceberg", "polars", "pandas", "k2.app", "k2.query.engine"}
    assert heavy.isdisjoint(said)
    assert said[-1] == "1"
