"""Bars, and trades with their quotes, take every shape: pages, older snapshots, all formats."""

from __future__ import annotations

import asyncio
import gzip
import io
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer
from click.testing import CliRunner

from k2.cli import cli
from k2.errors import BadQuery, PeerUnavailable
from k2.query.asof import QUOTED
from k2.query.bars import BARS, FILLS
from k2.query.formats import plain
from k2.query.pages import Cursor
from k2.query.rows import Rows
from k2.query.snapshots import AsOf
from k2.query.times import iso
from k2.schemas import QUOTES, TRADES
from k2.web.answers import middlewares
from k2.web.views import routes
from tests.market import Market, S, quotes, trades

M, H, DAY = 60 * S, 3600 * S, 86_400 * S
OPEN = 1_394_406_000 * S  # 2014-03-10 10:00 in Sydney, where the session opens

Read = Callable[..., Rows]


@pytest.fixture
def market(tmp_path: Path) -> Iterator[Market]:
    """Of the ASX and of an exchange that never closes; both known for an hour from the open."""
    made = Market(tmp_path, OPEN + H, calendars="ASX=XASX,SIM=24/7")
    yield made
    made.engine.close()


def fill(market: Market, draw: random.Random, commits: int) -> None:
    """Trades and quotes at few times, of both exchanges: late ones, and many of one time."""
    for n in range(commits):
        exchange, names = [("ASX", "ABC"), ("SIM", "DE")][n % 2]
        times = [OPEN + draw.randrange(-4, 50) * 47 * S for _ in range(draw.randrange(1, 9))]
        rows = [(draw.choice(names), at, draw.randrange(1, 9)) for at in times]
        market.trades(*rows, exchange=exchange)
        booked = [(draw.choice(names), at, 1, draw.choice([None, 2, 5])) for at in times]
        market.quotes(*booked, exchange=exchange)
    market.tell_gaps()


def bars_of(market: Market, **more: Any) -> Read:
    start, end = more.pop("start", None), more.pop("end", None)
    return partial(market.engine.bars, None, list("ABCDE"), start, end, 90 * S, **more)


def pages(read: Read, draw: random.Random, size: int, between: Callable[[], None]) -> list[Any]:
    """All rows of an answer, from one page to the next; what is known of each page is the same."""
    found, after, known = [], None, None
    while True:
        rows = read(limit=draw.randrange(1, size), after=after)
        told = rows.snapshot_id, rows.known
        assert told == (known or told)
        known = told
        found += rows.read_all().to_pylist()
        assert rows.truncated == (rows.next is not None)
        if rows.next is None:
            return found
        after = Cursor.read(rows.next, "")
        between()


def changing(market: Market, draw: random.Random) -> Callable[[], None]:
    """Commits, for which more is known to be there, and snapshots that expire."""

    def between() -> None:
        if draw.random() < 0.3:
            market.through += 10 * M
            fill(market, draw, 1)
        if draw.random() < 0.2:
            market.expire()

    return between


@pytest.mark.parametrize("how", FILLS)
@pytest.mark.parametrize("seed", range(2))
def test_pages_of_bars_are_together_the_whole(market: Market, how: str, seed: int) -> None:
    """Of several symbols and exchanges, wherever a page ends: none is cut, none filled anew."""
    draw = random.Random(seed)
    fill(market, draw, 6)
    for start, end in ((None, None), (OPEN + 10 * M + 1, None), (OPEN + M, OPEN + 2 * H)):
        read = bars_of(market, start=start, end=end, fill=how, conditions=["-auction"])
        whole = read().read_all().to_pylist()
        assert len(whole) >= 10
        assert {bar["exchange"] for bar in whole} == {"ASX", "SIM"}
        assert any(not bar["trades"] for bar in whole) == (how != "none")
        assert pages(read, draw, len(whole) // 2, changing(market, draw)) == whole


def test_a_price_is_carried_over_the_end_of_a_page(market: Market) -> None:
    """The page behind begins in the middle of what is filled, with one bar at a time."""
    market.trades(("A", OPEN, 5), ("B", OPEN + 5 * M, 7), exchange="ASX")
    asked = {"exchange": "ASX", "start": OPEN + M, "end": OPEN + 7 * M, "fill": "previous"}
    whole = market.bars(["A", "B"], M, **asked)
    assert [bar["close"] for bar in whole] == [5, None] * 4 + [5, 7] * 2
    read = partial(
        market.engine.bars, "ASX", ["A", "B"], OPEN + M, OPEN + 7 * M, M, fill="previous"
    )
    assert pages(read, random.Random(0), 2, lambda: None) == whole


@pytest.mark.parametrize("seed", range(4))
def test_pages_of_trades_with_quotes_are_together_the_whole(market: Market, seed: int) -> None:
    """Books and sides are those of the first page's snapshots, also when both have expired."""
    draw = random.Random(seed)
    fill(market, draw, 8)
    read = partial(market.engine.quoted, None, None, OPEN, OPEN + H)
    whole = read().read_all().to_pylist()
    assert {row["side_tick"] for row in whole} == {"NONE", "BUY", "SELL"}
    assert {row["spread"] is None for row in whole} == {True, False}
    assert pages(read, draw, 5, changing(market, draw)) == whole


def test_fresh_pages_go_on_with_what_both_tables_had_in_hand(market: Market) -> None:
    """Then committed; what came to either meanwhile is not among them."""
    market.trades(("A", OPEN, 1), ("A", OPEN + 3, 2), exchange="ASX")
    market.quotes(("A", OPEN - 1, 1, 2), exchange="ASX")
    held = trades(("A", OPEN + 1, 3), ("A", OPEN + 5, 4), exchange="ASX", first=90)
    book = quotes(("A", OPEN + 2, 3, 4), exchange="ASX", first=90)
    both = {"fresh": market.hold(TRADES, held), "quotes": market.hold(QUOTES, book)}
    whole = market.engine.quoted(**both)
    wanted = whole.read_all().to_pylist()
    assert [(row["price"], row["bid_price"]) for row in wanted] == [(1, 1), (3, 1), (2, 3), (4, 3)]
    first = market.engine.quoted(limit=2, **both)
    after = Cursor.read(first.next or "", "")
    with pytest.raises(PeerUnavailable, match="again"):
        market.engine.quoted(after=after)
    market.commit(TRADES, both["fresh"])
    with pytest.raises(PeerUnavailable, match="again"):
        market.engine.quoted(after=after)
    market.commit(QUOTES, both["quotes"])
    market.quotes(("A", OPEN + 3, 5, 6), exchange="ASX")
    market.trades(("A", OPEN + 4, 9), exchange="ASX")
    rest = market.engine.quoted(after=after)
    assert first.read_all().to_pylist() + rest.read_all().to_pylist() == wanted


def test_a_cursor_of_trades_is_none_of_trades_with_quotes(market: Market) -> None:
    market.trades(("A", OPEN, 1), ("A", OPEN + 1, 1), exchange="ASX")
    rows = market.engine.records(TRADES, limit=1)
    with pytest.raises(BadQuery, match="another query"):
        market.engine.quoted(after=Cursor.read(rows.next or "", ""))


def test_older_snapshots_of_both(market: Market) -> None:
    """By the id of the trades', or by a time: the quotes that had been committed by then."""
    draw = random.Random(9)
    for exchange in ("ASX", "SIM"):
        market.quotes(("A", OPEN - M, 1, 2), exchange=exchange)
    fill(market, draw, 4)
    market.trades(("A", OPEN + M, 3), exchange="ASX")
    market.tell_gaps()
    reads: list[Read] = [bars_of(market, fill="previous"), market.engine.quoted]
    before = [read() for read in reads]
    wanted = [(rows.read_all().to_pylist(), rows.snapshot_id, rows.known) for rows in before]
    (*_, last) = market.engine.snapshots(["trades"]).read_all().to_pylist()
    market.through += H
    market.quotes(("A", OPEN + M, 4, 5), exchange="ASX")
    fill(market, draw, 4)
    then = AsOf.id(last["snapshot_id"]), AsOf.read(iso(last["committed_at"]))
    for read, told in zip(reads, wanted, strict=True):
        assert read().read_all().to_pylist() != told[0]
        for as_of in then:
            rows = read(as_of=as_of)
            assert (rows.read_all().to_pylist(), rows.snapshot_id, rows.known) == told
            assert pages(partial(read, as_of=as_of), draw, 50, lambda: None) == told[0]
    market.expire()
    for read in reads:
        for as_of in then:
            with pytest.raises(BadQuery) as caught:
                read(as_of=as_of)
            assert caught.value.parameter == "as_of"


def as_plain(table: pa.Table) -> list[dict[str, Any]]:
    """As JSON has the rows."""
    rows = table.to_pylist()
    for name, column in zip(table.column_names, table.columns, strict=True):
        if not pa.types.is_integer(column.type):
            texts = plain(column.combine_chunks()).to_pylist()
            rows = [{**row, name: text} for row, text in zip(rows, texts, strict=True)]
    return rows


ASKED = {
    "bars": "/v1/bars?symbol=A,B&exchange=ASX&interval=90s&fill=previous",
    "quoted": "/v1/trades?symbol=A,B&with=quote",
}
TYPES = {"bars": BARS, "quoted": pa.schema([*TRADES.table, *QUOTED])}


async def got(market: Market, *paths: str, accept: str = "identity") -> list[Any]:
    app = web.Application(middlewares=middlewares())
    app.add_routes(routes(market.engine, ready=lambda: (True, {})))
    async with TestServer(app) as server, ClientSession(auto_decompress=False) as session:
        found = []
        for path in paths:
            headers = {"Accept-Encoding": accept}
            async with session.get(server.make_url(path), headers=headers) as response:
                found.append((response, await response.read()))
        return found


@pytest.mark.parametrize("resource", ASKED)
async def test_every_format_and_coding_has_the_same_rows(market: Market, resource: str) -> None:
    fill(market, random.Random(4), 8)
    path = f"{ASKED[resource]}&range=2014-03-09T23:00:1h&format="
    forms = ("json", "ndjson", "csv", "arrow", "parquet")
    answers = dict(zip(forms, await got(market, *(path + form for form in forms)), strict=True))
    whole = orjson.loads(answers["json"][1])
    rows = whole["data"]
    assert len(rows) == whole["count"] >= 7
    assert [orjson.loads(line) for line in answers["ndjson"][1].splitlines()] == rows
    tables = [
        pa.ipc.open_stream(answers["arrow"][1]).read_all(),
        pq.read_table(io.BytesIO(answers["parquet"][1])),
    ]
    for table in tables:
        assert as_plain(table) == rows
        assert {f.name: f.type for f in table.schema} == {
            name: TYPES[resource].field(name).type for name in rows[0]
        }
    texts = pl.read_csv(answers["csv"][1], infer_schema=False).to_dicts()
    assert texts == [{n: None if v is None else str(v) for n, v in row.items()} for row in rows]
    for response, _ in answers.values():
        assert response.headers["X-K2-Valid-Through"] == str(whole["valid_through"])
        assert response.headers["X-K2-Snapshot-Id"] == str(whole["snapshot_id"])
        missing = "gaps={gaps}; missing={missing}".format(**whole["coverage"])
        assert response.headers["X-K2-Coverage"] == missing
    for coding, unpack in (("gzip", gzip.decompress), ("zstd", unpacked)):
        ((response, body),) = await got(market, path + "ndjson", accept=coding)
        assert response.headers["Content-Encoding"] == coding
        assert unpack(body) == answers["ndjson"][1]


def unpacked(body: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompressobj().decompress(body)


@pytest.mark.parametrize(
    ("resource", "columns"),
    [("bars", ["close", "start", "symbol"]), ("quoted", ["mid", "kafka_cluster", "price"])],
)
async def test_columns_and_cursors_over_http(
    market: Market, resource: str, columns: list[str]
) -> None:
    """In any format; a cursor of another fill, or without the quotes, is refused."""
    fill(market, random.Random(5), 8)
    path = f"{ASKED[resource]}&columns={','.join(columns)}"
    ((_, body),) = await got(market, path)
    whole = orjson.loads(body)["data"]
    assert list(whole[0]) == columns
    ((first, _),) = await got(market, f"{path}&limit=3&format=parquet")
    cursor = first.headers["X-K2-Next"]
    other = {"bars": ("previous", "null"), "quoted": ("&with=quote", "")}[resource]
    one, rest, refused, unknown = await got(
        market,
        f"{path}&limit=3",
        f"{path}&format=arrow&cursor={cursor}",
        f"{path.replace(*other)}&cursor={cursor}",
        f"{path},nothing",
    )
    assert orjson.loads(one[1])["data"] == whole[:3]
    assert orjson.loads(one[1])["next"] == cursor
    assert as_plain(pa.ipc.open_stream(rest[1]).read_all()) == whole[3:]
    for (response, body), parameter in ((refused, "cursor"), (unknown, "columns")):
        assert (response.status, orjson.loads(body)["parameter"]) == (400, parameter)


@pytest.mark.parametrize(
    ("resource", "command"),
    [
        (
            "bars",
            "bars --symbol A --symbol B --exchange ASX --interval 90s --fill previous"
            " --columns start,close",
        ),
        ("quoted", "trades --symbol A --symbol B --with quote --columns ts_event,spread"),
    ],
)
def test_commands_say_the_same(market: Market, resource: str, command: str) -> None:
    """With a range, columns and an older snapshot; the table for people has these columns too."""
    draw = random.Random(6)
    market.quotes(("A", OPEN - M, 1, 2), exchange="ASX")
    fill(market, draw, 8)
    market.trades(("A", OPEN + M, 3), exchange="ASX")
    (*_, last) = market.engine.snapshots(["trades"]).read_all().to_pylist()
    fill(market, draw, 3)
    then, within = str(last["snapshot_id"]), "2014-03-09T23:00:1h"
    names = command.rpartition(" ")[2]
    path = f"{ASKED[resource]}&range={within}&as_of={then}&columns={names}&format=ndjson"
    ((_, body),) = asyncio.run(got(market, path))
    environment = {
        "K2_DATA": str(market.settings.data), "K2_CALENDARS": market.settings.calendars,
    }  # fmt: skip
    asked = [*command.split(), "--range", within, "--as-of", then]
    told = CliRunner(env=environment).invoke(cli, [*asked, "--json"])
    assert told.stdout_bytes == body != b""
    shown = CliRunner(env=environment).invoke(cli, [*asked, "--limit", "1"])
    assert shown.stdout.split()[:3] == ["time", "(UTC)", names.partition(",")[2]]
    assert "only the first 1 rows; there are more" in shown.stderr
