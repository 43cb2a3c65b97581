"""Trades as of their quotes, and the tick rule: against plain Python and against the files."""

from __future__ import annotations

import datetime as dt
import os
import random
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import orjson
import pyarrow.compute as pc
import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer
from click.testing import CliRunner

from k2.cli import cli
from k2.errors import BadQuery
from k2.feeds.asx import read
from k2.feeds.simulate import Simulation
from k2.lake.catalog import table_name
from k2.lake.commit import Sink
from k2.query.asof import QUOTED
from k2.query.rows import Coverage
from k2.schemas import KINDS, QUOTES, TRADES
from k2.web.answers import middlewares
from k2.web.views import routes
from tests.market import NEVER, Market, S, quotes, trades

ASX = Path(os.environ.get("ASX_FOLDER", Path(__file__).resolve().parents[3] / "shared" / "asx"))
H, DAY = 3600 * S, 86_400 * S
NOON = 1_710_158_400 * S  # 2024-03-11 12:00 UTC, a Monday

#: By windows over both files, without a join: the day's last quote at or before each trade, and its
#: last trade of another price. Rows of one day are in order, on both sides.
_FROM_FILES = """
WITH trade AS (
    SELECT row_number() OVER () AS row, column0 AS day, column1 AS time,
        column2::DECIMAL(18, 8) AS price
    FROM read_csv(?, header = false, all_varchar = true)
), quote AS (
    SELECT row_number() OVER () AS row, column0 AS day, column1 AS time,
        nullif(column2::DECIMAL(18, 8), 0) AS bid, nullif(column3::DECIMAL(18, 8), 0) AS ask,
        nullif(column4::DECIMAL(18, 8), 0) AS bid_size,
        nullif(column5::DECIMAL(18, 8), 0) AS ask_size
    FROM read_csv(?, header = false, all_varchar = true)
), events AS (
    SELECT day, time, 0 AS kind, row, NULL AS price, {'bid': bid, 'ask': ask,
        'bid_size': bid_size, 'ask_size': ask_size, 'time': time} AS book FROM quote
    UNION ALL SELECT day, time, 1, row, price, NULL FROM trade
), met AS (
    SELECT *, last_value(book IGNORE NULLS) OVER (PARTITION BY day ORDER BY time, kind, row)
        AS book_met
    FROM events
), runs AS (
    SELECT *, price <> lag(price) OVER w AS changed, lag(price) OVER w AS former
    FROM met WHERE kind = 1 WINDOW w AS (PARTITION BY day ORDER BY time, row)
), numbered AS (
    SELECT *, count(*) FILTER (changed) OVER (PARTITION BY day ORDER BY time, row) AS run FROM runs
)
SELECT price, book_met.bid AS bid_price, book_met.bid_size AS bid_size, book_met.ask AS ask_price,
    book_met.ask_size AS ask_size,
    epoch_ns(timezone('Australia/Sydney', strptime(day || book_met.time, '%m/%d/%Y%H:%M:%S.%g')))
        AS quote_ts_event,
    book_met.ask - book_met.bid AS spread, (book_met.bid + book_met.ask) / 2.0 AS mid,
    CASE WHEN run = 0 THEN 'NONE'
        WHEN price > any_value(former) FILTER (changed) OVER (PARTITION BY day, run) THEN 'BUY'
        ELSE 'SELL' END AS side_tick
FROM numbered ORDER BY strptime(day, '%m/%d/%Y'), time, row
"""


@pytest.fixture
def market(tmp_path: Path) -> Iterator[Market]:
    made = Market(tmp_path)
    yield made
    made.engine.close()


def asked(market: Market, *names: str, **more: Any) -> list[Any]:
    """Some columns of all trades, as tuples, or as values if it is one."""
    start, end = more.pop("start", None), more.pop("end", None)
    rows = market.engine.quoted(None, None, start, end, columns=names, **more).read_all()
    columns = [rows[name].to_pylist() for name in names]
    return columns[0] if len(columns) == 1 else list(zip(*columns, strict=True))


def test_trades_of_bhp_meet_the_quotes_of_the_files(tmp_path: Path) -> None:
    """Five days of real trades and quotes: books, spreads and sides equal SQL over the files."""
    files = [ASX / kind.name / "7078.csv" for kind in KINDS]
    if not all(file.is_file() for file in files):
        pytest.skip("no ASX data in ../shared/asx (ASX_FOLDER names another place)")
    market = Market(tmp_path)
    for kind, file in zip(KINDS, files, strict=True):
        rows, bad = read(kind, file, "BHP")
        assert not bad
        market.add(kind, rows)
    with duckdb.connect() as connection:
        found = connection.sql(_FROM_FILES, params=[str(f) for f in files]).to_arrow_table()
    got = market.engine.quoted("ASX", "BHP").read_all().select(found.column_names)
    assert got.num_rows == 91_631
    for name in found.column_names:
        same = pc.all(pc.equal(got[name], found[name].cast(got[name].type)), skip_nulls=True)
        assert same.as_py(), name
        assert got[name].null_count == found[name].null_count, name
    assert pc.mean(got["spread"]).as_py() > 0
    market.engine.close()


def test_a_quote_counts_from_its_own_time_and_the_last_of_one_time_wins(market: Market) -> None:
    """What came to the venue first is told by its sequence, as for the open of a bar."""
    market.quotes(("A", NOON, 1, 2), ("A", NOON + 5, 3, 5), ("A", NOON + 5, 4, 6))
    market.trades(("A", NOON - 1, 1), ("A", NOON, 1), ("A", NOON + 4, 1), ("A", NOON + 5, 1))
    assert asked(market, "bid_price", "ask_price", "spread", "mid", "quote_ts_event") == [
        (None, None, None, None, None),
        (1, 2, 1, Decimal("1.5"), NOON),
        (1, 2, 1, Decimal("1.5"), NOON),
        (4, 6, 2, 5, NOON + 5),
    ]


def test_an_empty_side_has_no_spread(market: Market) -> None:
    market.quotes(("A", NOON, 1, None), ("A", NOON + 1, None, 2))
    market.trades(("A", NOON, 1), ("A", NOON + 1, 1))
    assert asked(market, "bid_price", "bid_size", "ask_price", "spread", "mid") == [
        (1, 100, None, None, None),
        (None, None, 2, None, None),
    ]


def test_the_largest_prices_have_a_middle(market: Market) -> None:
    """Not rounded, though a middle may have nine digits behind the point."""
    high, low = Decimal("9999999999.99999999"), Decimal("9999999999.99999998")
    market.quotes(("A", NOON, low, high))
    market.trades(("A", NOON, 1))
    assert asked(market, "spread", "mid") == [
        (Decimal("0.00000001"), Decimal("9999999999.999999985"))
    ]


def test_another_symbol_or_exchange_has_another_book(market: Market) -> None:
    market.quotes(("A", NOON, 1, 2), ("B", NOON, 3, 4))
    market.quotes(("A", NOON, 5, 6), exchange="X")
    market.trades(("A", NOON, 1), ("B", NOON, 1), ("C", NOON, 1))
    market.trades(("A", NOON, 1), exchange="X")
    assert sorted(asked(market, "exchange", "symbol", "bid_price"), key=str) == [
        ("SIM", "A", 1), ("SIM", "B", 3), ("SIM", "C", None), ("X", "A", 5),
    ]  # fmt: skip


def test_a_quote_prevails_for_a_day_over_midnight_where_nothing_closes(market: Market) -> None:
    market.quotes(("A", NOON, 1, 2))
    market.trades(("A", NOON + 13 * H, 1), ("A", NOON + DAY, 1), ("A", NOON + DAY + 1, 1))
    assert asked(market, "bid_price") == [1, 1, None]


def test_a_quote_ends_with_its_session_where_the_exchange_closes(market: Market) -> None:
    """The book of the evening is not what the next morning's first trade meets."""
    day = int(dt.datetime(2014, 3, 10, 10, tzinfo=ZoneInfo("Australia/Sydney")).timestamp()) * S
    market.quotes(("A", day + 5 * H, 1, 2), exchange="ASX")
    market.trades(("A", day + 6 * H, 1), ("A", day + 21 * H, 2), exchange="ASX")
    assert asked(market, "bid_price", "side_tick") == [(1, "NONE"), (None, "NONE")]


def test_the_tick_rule_goes_by_the_last_different_price(market: Market) -> None:
    prices = [5, 5, 6, 6, 6, 5, 5, 7]
    market.trades(*(("A", NOON + n, price) for n, price in enumerate(prices)))
    sides = ["NONE", "NONE", "BUY", "BUY", "BUY", "SELL", "SELL", "BUY"]
    assert asked(market, "side_tick") == sides
    for n in range(8):
        assert asked(market, "side_tick", start=NOON + n) == sides[n:]
        assert asked(market, "side_tick", end=NOON + n + 1, limit=1) == sides[:1]


def test_the_tick_rule_forgets_after_a_day(market: Market) -> None:
    """The last trade of another price counts for a day, however often the price is repeated."""
    times = [0, H, 12 * H, 25 * H, 25 * H + 1]
    market.trades(*(("A", NOON + t, 1 if t == 0 else 2) for t in times))
    sides = ["NONE", "BUY", "BUY", "NONE", "NONE"]
    assert asked(market, "side_tick") == sides
    assert [asked(market, "side_tick", start=NOON + t)[0] for t in times] == sides


def test_a_limit_keeps_the_earliest_and_says_so(market: Market) -> None:
    market.quotes(("A", NOON, 1, 2))
    market.trades(*(("A", NOON + n // 2, n + 1) for n in range(9)))
    for most, cut in ((1, True), (4, True), (9, False)):
        rows = market.engine.quoted(None, "A", limit=most, columns=["price"])
        assert (rows.truncated, rows.read_all()["price"].to_pylist()) == (
            cut,
            [n + 1 for n in range(most)],
        )


def test_nothing_there_gives_nothing(market: Market) -> None:
    assert asked(market, "price") == []
    market.trades(("A", NOON, 1))
    assert asked(market, "price", start=NOON + 1) == []
    assert asked(market, "price", "bid_price", "side_tick") == [(1, None, "NONE")]


def test_an_unknown_column_is_named(market: Market) -> None:
    with pytest.raises(BadQuery, match="bid_prize"):
        market.engine.quoted(columns=["bid_prize"])


def test_an_answer_is_as_complete_as_its_quotes(market: Market) -> None:
    """A gap of the quotes counts, and the time through which both are valid."""
    market.trades(("A", NOON, 1))
    market.quotes(("A", NOON, 1, 2))
    whole = market.engine.quoted(None, "A")
    assert (whole.coverage, whole.valid_through) == (Coverage(), NEVER)
    market.quotes(("B", NOON + S, 1, 2))
    market.quotes(("A", NOON + 2 * S, 1, 2))  # the sequences go on over both symbols
    market.tell_gaps()
    cut = market.engine.quoted(None, "A")
    assert cut.coverage == Coverage(gaps=1, missing=1)
    assert market.engine.quoted(None, "A", end_ns=NOON).coverage == Coverage()
    assert market.engine.records(TRADES, None, "A").coverage == Coverage()


Event = tuple[str, str, int, Decimal, Decimal]  # exchange, symbol, ts_event, and two prices


def plainly(
    trades: list[Event], quotes: list[Event], start: int, end: int, period: Any
) -> list[tuple[Any, ...]]:
    """The same by loops; both lists in the venue's order."""
    answer = []
    for at, (exchange, symbol, ts, price, _) in enumerate(trades):
        if not start <= ts < end:
            continue

        def near(other: Event, of: tuple[Any, ...] = (exchange, symbol, ts)) -> bool:
            name, its, then = of
            same = other[:2] == (name, its) and period(name, other[2]) == period(name, then)
            return same and then - DAY <= other[2] <= then

        book = None
        for quote in quotes:
            if near(quote) and (book is None or quote[2] >= book[2]):
                book = quote
        before = sorted((t[2], n) for n, t in enumerate(trades) if near(t) and (t[2], n) < (ts, at))
        different = [trades[n][3] for _, n in before if trades[n][3] != price]
        side = "NONE" if not different else "BUY" if price > different[-1] else "SELL"
        answer.append((ts, exchange, symbol, price, *(book[2:] if book else (None,) * 3), side))
    return sorted(answer, key=str)


def sydney(exchange: str, ts: int) -> Any:
    """The session of a time within trading hours; nothing where there are none."""
    moment = dt.datetime.fromtimestamp(ts // S, ZoneInfo("Australia/Sydney"))
    return moment.date() if exchange == "ASX" else None


@pytest.mark.parametrize("seed", range(4))
def test_any_span_says_what_loops_say(market: Market, seed: int) -> None:
    """Few times, prices and symbols, so that many are equal; four days, two exchanges."""
    rng = random.Random(seed)
    opening = int(dt.datetime(2014, 3, 10, 10, tzinfo=ZoneInfo("Australia/Sydney")).timestamp()) * S

    def events(count: int) -> list[Event]:
        times = [rng.randrange(4) * DAY + rng.randrange(24) * 900 * S for _ in range(count)]
        return [
            (
                rng.choice(("ASX", "SIM")),
                rng.choice("AB"),
                opening + time,
                Decimal(rng.randrange(1, 4)),
                Decimal(rng.randrange(4, 7)),
            )
            for time in times  # not in order of time: a feed's rows step back in places
        ]

    traded, quoted = events(120), events(60)
    for exchange in ("ASX", "SIM"):
        own = [t[1:4] for t in traded if t[0] == exchange]
        market.trades(*own[:50], exchange=exchange)
        market.trades(*own[50:], exchange=exchange)
        market.quotes(*(q[1:] for q in quoted if q[0] == exchange), exchange=exchange)
    names = (
        "ts_event", "exchange", "symbol", "price", "quote_ts_event", "bid_price", "ask_price",
        "side_tick",
    )  # fmt: skip
    spans = [sorted(rng.randrange(opening, opening + 4 * DAY) for _ in "ab") for _ in range(8)]
    for start, end in [(opening, opening + 4 * DAY), *spans]:
        got = asked(market, *names, start=start, end=end)
        assert sorted(got, key=str) == plainly(traded, quoted, start, end, sydney)


def test_rows_in_hand_meet_each_other(market: Market) -> None:
    """Trades and quotes, committed or not: the answer is that of the committed ones."""
    quoted = [(s, NOON + n * S, n + 1, n + 3) for n in range(6) for s in "AB"]
    traded = [(s, NOON + n * S + 1, 1 + n % 3) for n in range(6) for s in "AB"]
    market.quotes(*quoted[:4])
    market.trades(*traded[:6])
    held = market.hold(TRADES, trades(*traded[6:], first=50))
    books = market.hold(QUOTES, quotes(*quoted[4:], first=50))
    names = ("symbol", "ts_event", "bid_price", "ask_price", "side_tick")
    span = {"start": NOON + S, "end": NOON + 5 * S}
    got = asked(market, *names, **span, fresh=held, quotes=books)
    wanted = [
        (s, NOON + n * S + 1, n + 1, n + 3, "SELL" if n == 3 else "BUY")
        for n in range(1, 5)
        for s in "AB"
    ]
    assert got == wanted
    stale = [(s, ts, min(bid, 2), min(ask, 4), side) for s, ts, bid, ask, side in wanted]
    assert asked(market, *names, **span, fresh=held) == stale
    market.add(TRADES, held.parts[0].rows.select(TRADES.columns.names), partition=1)
    market.add(QUOTES, books.parts[0].rows.select(QUOTES.columns.names), partition=1)
    assert asked(market, *names, **span) == wanted


def test_files_that_duckdb_cannot_name_are_joined_too(tmp_path: Path) -> None:
    """A folder with brackets, which to DuckDB is a pattern: both tables come through Arrow."""
    market = Market(tmp_path / "[a]")
    market.quotes(("A", NOON, 1, 2))
    market.trades(("A", NOON, 1), ("A", NOON + 1, 2))
    assert asked(market, "bid_price", "side_tick") == [(1, "NONE"), (1, "BUY")]
    market.engine.close()


def test_more_than_fits_into_memory_is_spilled(tmp_path: Path) -> None:
    """A million trades and as many quotes, of three symbols: every row comes all the same."""
    market = Market(tmp_path, query_memory_max=192 * 1024 * 1024)
    for kind in KINDS:
        market.add(kind, next(iter(Simulation(1, 3, 50_000, kind=kind))))
        name = table_name(market.settings, kind)
        files = [task.file for task in market.catalog.load_table(name).scan().plan_files()]
        Sink(market.catalog, name, market.settings).commit(files * 19, {}, {})
    rows = market.engine.quoted()
    first = next(rows)
    assert [path for path in (tmp_path / "spill").rglob("*") if path.is_file()]
    assert first.num_rows + sum(batch.num_rows for batch in rows) == 1_000_000
    market.engine.close()


async def test_over_http_and_as_a_command(market: Market) -> None:
    """`with=quote`, or `--with quote`; with anything else the parameter is named."""
    market.quotes(("A", NOON, 1, 2))
    market.trades(("A", NOON + 1, 1))
    app = web.Application(middlewares=middlewares())
    app.add_routes(routes(market.engine, ready=lambda: (True, {})))
    async with TestServer(app) as server, ClientSession() as session:
        async with session.get(server.make_url("/v1/trades?with=quote&symbol=A")) as response:
            (row,) = orjson.loads(await response.read())["data"]
        for path in ("/v1/trades?with=trade", "/v1/quotes?with=quote"):
            async with session.get(server.make_url(path)) as response:
                problem = orjson.loads(await response.read())
            assert (problem["status"], problem["parameter"]) == (400, "with")
    assert (row["mid"], row["quote_ts_event"], row["side_tick"]) == ("1.5", NOON, "NONE")
    assert list(row)[-len(QUOTED.names) :] == QUOTED.names
    environment = {"K2_DATA": str(market.settings.data)}
    told = CliRunner(env=environment).invoke(cli, ("trades", "--with", "quote", "--json"))
    assert orjson.loads(told.stdout) == row
