"""Bars: where they begin, what fills them, which trades count; against loops and the files."""

from __future__ import annotations

import datetime as dt
import os
import random
from collections.abc import Iterator
from decimal import ROUND_HALF_UP, Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import exchange_calendars
import pytest

from k2.errors import BadQuery
from k2.feeds.asx import read
from k2.feeds.simulate import Simulation
from k2.schemas import TRADES
from tests.market import Market, S, trades

ASX = Path(os.environ.get("ASX_FOLDER", Path(__file__).resolve().parents[3] / "shared" / "asx"))
M, H, DAY = 60 * S, 3600 * S, 86_400 * S

Trade = tuple[str, int, Decimal, Decimal]  # symbol, ts_event, price, size; in the venue's order
Session = tuple[int, int, int]  # the date's midnight, opens, closes

#: Bars straight from a file: sessions open at 10:00 in Sydney, rows of one day are in order.
_FROM_FILE = """
SELECT epoch_ns(timezone('Australia/Sydney', start)) AS start,
    arg_min(price, place) AS open, max(price) AS high, min(price) AS low,
    arg_max(price, place) AS close, sum(size) AS volume, sum(price * size) AS notional,
    count(*) AS trades
FROM (
    SELECT column2::DECIMAL(18, 8) AS price, column3::DECIMAL(18, 0) AS size,
        strptime(column0 || column1, '%m/%d/%Y%H:%M:%S.%g') AS time,
        {'time': column1, 'row': row_number() OVER ()} AS place,
        time_bucket(to_milliseconds(?), time, strptime(column0, '%m/%d/%Y') + to_hours(?)) AS start
    FROM read_csv(?, header = false, all_varchar = true) WHERE NOT list_contains(?, column4)
) GROUP BY ALL ORDER BY start
"""


@pytest.fixture
def market(tmp_path: Path) -> Iterator[Market]:
    with_markets = "ASX=XASX,NYSE=XNYS,SIM=24/7"
    made = Market(tmp_path, calendars=with_markets, timezones="EU=Europe/Berlin")
    yield made
    made.engine.close()


@pytest.fixture(scope="module")
def bhp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Market]:
    if not (file := ASX / "trades" / "7078.csv").is_file():
        pytest.skip("no ASX data in ../shared/asx (ASX_FOLDER names another place)")
    made = Market(tmp_path_factory.mktemp("bhp"))
    rows, bad = read(TRADES, file, "BHP")
    assert not bad
    made.add(TRADES, rows)
    yield made
    made.engine.close()


@pytest.mark.parametrize("terms", [None, ["-off-market"]])
@pytest.mark.parametrize("interval", [S, M, 7 * M, H, DAY])
def test_bars_of_bhp_equal_sql_over_the_file(
    bhp: Market, interval: int, terms: list[str] | None
) -> None:
    """Five days of real trades, to the last digit of the average price."""
    hour = 0 if interval == DAY else 10
    without = ["1", "3", "9"] if terms else []
    with duckdb.connect() as connection:
        values = [interval // 1_000_000, hour, str(ASX / "trades" / "7078.csv"), without]
        found = connection.execute(_FROM_FILE, values)
        names = [column[0] for column in found.description]
        expected = [dict(zip(names, row, strict=True)) for row in found.fetchall()]
    for bar in expected:
        vwap = bar.pop("notional") / bar["volume"]
        bar["vwap"] = vwap.quantize(Decimal("1e-8"), ROUND_HALF_UP)
    got = bhp.bars("BHP", interval, conditions=terms)
    assert {(bar.pop("exchange"), bar.pop("symbol")) for bar in got} == {("ASX", "BHP")}
    assert got == expected
    assert len(got) >= 5


def ns(zone: str, *moment: int) -> int:
    return int(dt.datetime(*moment, tzinfo=ZoneInfo(zone)).timestamp()) * S  # type: ignore[misc,arg-type]


def test_hours_begin_with_the_session_on_both_sides_of_a_change_of_clocks(market: Market) -> None:
    """New York opens at 09:30; its clocks changed between these two sessions."""
    zone = "America/New_York"
    market.trades(
        ("A", ns(zone, 2014, 3, 7, 9, 30), 1),
        ("A", ns(zone, 2014, 3, 7, 10, 29, 59), 2),
        ("A", ns(zone, 2014, 3, 7, 10, 30), 3),
        ("A", ns(zone, 2014, 3, 10, 9, 29, 59), 4),  # before the open: the hour that ends there
        ("A", ns(zone, 2014, 3, 10, 9, 45), 5),
        exchange="NYSE",
    )
    assert [(bar["start"], bar["open"], bar["close"]) for bar in market.bars("A", H)] == [
        (ns(zone, 2014, 3, 7, 9, 30), 1, 2),
        (ns(zone, 2014, 3, 7, 10, 30), 3, 3),
        (ns(zone, 2014, 3, 10, 8, 30), 4, 4),
        (ns(zone, 2014, 3, 10, 9, 30), 5, 5),
    ]
    days = [bar["start"] for bar in market.bars("A", DAY)]
    assert days == [ns(zone, 2014, 3, 7), ns(zone, 2014, 3, 10)]


def test_what_never_closes_begins_at_midnight_utc(market: Market) -> None:
    """Seven hours do not divide a day: its last bar is a short one."""
    midnight = ns("UTC", 2024, 3, 11)
    market.trades(*(("BTC", midnight + hour * H, 1) for hour in range(0, 48, 2)))
    starts = [bar["start"] for bar in market.bars("BTC", 7 * H)]
    assert starts == [midnight + day * DAY + n * 7 * H for day in (0, 1) for n in range(4)]


@pytest.mark.parametrize(("day", "hours"), [((2014, 3, 30), 23), ((2014, 10, 26), 25)])
def test_a_day_that_is_not_of_24_hours_has_as_many_bars(
    market: Market, day: tuple[int, int, int], hours: int
) -> None:
    """Bars are of elapsed time, and end with the local date."""
    midnight = ns("Europe/Berlin", *day)
    market.trades(("A", midnight, 1), ("A", midnight + hours * H, 2), exchange="EU")
    bars = market.bars("A", H, fill="previous")
    assert [bar["start"] for bar in bars] == [midnight + n * H for n in range(hours + 1)]
    assert [bar["close"] for bar in bars] == [1] * hours + [2]
    assert [bar["start"] for bar in market.bars("A", DAY)] == [midnight, midnight + hours * H]


def test_fill_ends_where_a_half_day_closes(market: Market) -> None:
    """The session after Thanksgiving closes at 13:00; the next one is on Monday."""
    zone = "America/New_York"
    market.trades(("A", ns(zone, 2014, 11, 28, 9, 30), 1), exchange="NYSE")
    end = ns(zone, 2014, 12, 1, 10, 31)
    bars = market.bars("A", 30 * M, fill="previous", end=end)
    friday, monday = ns(zone, 2014, 11, 28, 9, 30), ns(zone, 2014, 12, 1, 9, 30)
    starts = [friday + n * 30 * M for n in range(7)] + [monday + n * 30 * M for n in range(3)]
    assert [bar["start"] for bar in bars] == starts
    assert [bar["close"] for bar in bars] == [1] * 7 + [None] * 3  # no price crosses the nights


def test_days_without_a_trade_are_filled_with_sessions_only(market: Market) -> None:
    """From Friday to Tuesday: no bar of the weekend, and no price from Friday."""
    zone = "Australia/Sydney"
    market.trades(("A", ns(zone, 2014, 3, 7, 11), 1), exchange="ASX")
    market.trades(("A", ns(zone, 2014, 3, 11, 11), 2), exchange="ASX")
    bars = market.bars("A", DAY, fill="previous")
    assert [(bar["start"], bar["close"], bar["trades"]) for bar in bars] == [
        (ns(zone, 2014, 3, 7), 1, 1),
        (ns(zone, 2014, 3, 10), None, 0),
        (ns(zone, 2014, 3, 11), 2, 1),
    ]
    weeks = market.bars("A", 7 * DAY, fill="null")
    # Seven days since the epoch begin on a Thursday.
    assert [(bar["start"], bar["trades"]) for bar in weeks] == [(ns(zone, 2014, 3, 6), 2)]


def test_a_named_exchange_has_bars_of_every_named_symbol(market: Market) -> None:
    """Also where no file has a trade; unnamed, only what traded is known to be of it."""
    start = ns("Australia/Sydney", 2014, 3, 10, 10)
    market.trades(("C", start + 9 * DAY, 1), exchange="ASX")
    asked = {"start": start, "end": start + 2 * M, "fill": "null"}
    bars = market.bars(["B", "A"], M, exchange="ASX", **asked)
    assert [(bar["start"], bar["symbol"]) for bar in bars] == [
        (start + n * M, symbol) for n in range(2) for symbol in "AB"
    ]
    assert {(bar["open"], bar["vwap"], bar["volume"], bar["trades"]) for bar in bars} == {
        (None, None, 0, 0)
    }
    assert market.bars(["A", "B"], M, **asked) == []
    market.trades(("B", start, 1), exchange="ASX")
    assert [bar["symbol"] for bar in market.bars(["A", "B"], M, **asked)] == ["B", "B"]


def test_nothing_is_filled_that_may_still_come(tmp_path: Path) -> None:
    """The end lies ahead of what is known: up to there, or up to the last trade."""
    start = ns("UTC", 2024, 3, 11, 12)
    for through, minutes in ((start + 3 * M, 3), (start, 2)):
        market = Market(tmp_path / str(minutes), through=through)
        market.trades(("A", start, 1), ("A", start + M, 1))
        bars = market.bars("A", M, start=start, end=start + H, fill="null")
        assert [bar["start"] for bar in bars] == [start + n * M for n in range(minutes)]
        market.engine.close()


def test_symbols_come_by_time_and_a_limit_keeps_the_earliest(market: Market) -> None:
    """By start, then exchange and symbol, whatever the order of the trades and partitions."""
    start = ns("UTC", 2024, 3, 11)
    market.trades(*((s, start + n * M, n + 1) for n in range(3) for s in "CA"))
    market.trades(*(("B", start + n * M, n + 1) for n in range(3)), exchange="X", partition=1)
    every = market.bars(["A", "B", "C"], M)
    wanted = [(n * M, *of) for n in range(3) for of in (("SIM", "A"), ("SIM", "C"), ("X", "B"))]
    assert [(b["start"] - start, b["exchange"], b["symbol"]) for b in every] == wanted
    rows = market.engine.bars(None, ["A", "B", "C"], None, None, M, 4)
    assert (rows.truncated, rows.read_all().to_pylist()) == (True, every[:4])
    filled = market.engine.bars(None, ["A", "B", "C"], None, None, S, 5, fill="previous")
    assert (filled.truncated, filled.read_all().num_rows) == (True, 5)
    exact = market.engine.bars(None, ["A", "B", "C"], None, None, M, 9, fill="previous")
    assert (exact.truncated, exact.read_all().num_rows) == (False, 9)


def test_conditions_choose_trades(market: Market) -> None:
    """A class is that of the trade's own exchange; several codes stand in one field."""
    start = ns("UTC", 2024, 3, 11)
    told = [None, "OPEN_AUCTION", "3", "3 9", "", "X,CLOSE_AUCTION"]
    market.trades(*(("A", start, 2**n, 1, code) for n, code in enumerate(told)))
    market.trades(*(("B", start, 2**n, 1, code) for n, code in enumerate(told)), exchange="ASX")

    def volume(*terms: str) -> list[int]:
        """Which trades of A and of B count, as bits."""
        bars = market.bars(["A", "B"], S, conditions=list(terms))
        sums = {bar["symbol"]: int(bar["vwap"] * bar["trades"]) for bar in bars}
        return [sums.get(symbol, 0) for symbol in "AB"]

    assert volume() == [0b111111, 0b111111]
    assert volume("auction") == [0b100010, 0]
    assert volume("-auction") == [0b011101, 0b111111]
    assert volume("off-market") == [0, 0b001100]
    assert volume("-auction", "-off-market") == volume("regular") == [0b011101, 0b110011]
    assert volume("3", "-9") == [0b000100, 0b000100]
    assert volume("regular", "9") == [0b011101, 0b111011]


def test_a_price_carried_on_is_of_a_trade_that_counts(market: Market) -> None:
    """An off-market price is left out before anything is filled with it."""
    start = ns("Australia/Sydney", 2014, 3, 10, 10)
    market.trades(
        ("A", start, 1), ("A", start + M, 9, 1, "3"), ("A", start + 3 * M, 2), exchange="ASX"
    )
    bars = market.bars("A", M, fill="previous", conditions=["-off-market"], start=start + M)
    assert [(bar["start"] - start, bar["close"]) for bar in bars] == [
        (M, 1),
        (2 * M, 1),
        (3 * M, 2),
    ]


def test_what_is_in_hand_is_carried_on(market: Market) -> None:
    """A price that no snapshot has yet fills the span behind it, as if it were committed."""
    start = ns("UTC", 2024, 3, 11, 12)
    market.trades(("A", start - M, 1), exchange="SIM")
    held = market.hold(TRADES, trades(("A", start, 2), ("A", start + 3 * M, 3), first=9))
    asked = {"start": start + M, "end": start + 5 * M, "fill": "previous"}
    assert [bar["close"] for bar in market.bars("A", M, fresh=held, **asked)] == [2, 2, 3, 3]
    assert [bar["close"] for bar in market.bars("A", M, **asked)] == [1] * 4


@pytest.mark.parametrize(
    ("parameter", "more"),
    [
        ("fill", {"fill": "linear"}),
        ("conditions", {"conditions": ["-"]}),
        ("conditions", {"conditions": [""]}),
    ],
)
def test_an_impossible_choice_names_its_parameter(
    market: Market, parameter: str, more: dict[str, Any]
) -> None:
    with pytest.raises(BadQuery) as caught:
        market.bars("A", M, **more)
    assert caught.value.parameter == parameter


def sydney(first: dt.date, last: dt.date) -> list[Session]:
    """Sessions by the library's own words."""
    calendar = exchange_calendars.get_calendar("XASX")
    return [
        (
            ns("Australia/Sydney", day.year, day.month, day.day),
            calendar.session_open(day).value,
            calendar.session_close(day).value,
        )
        for day in calendar.sessions_in_range(str(first), str(last))
    ]


def berlin(first: dt.date, last: dt.date) -> list[Session]:
    days = [first + dt.timedelta(days=n) for n in range((last - first).days + 2)]
    opens = [ns("Europe/Berlin", day.year, day.month, day.day) for day in days]
    return [(here, here, there) for here, there in pairwise(opens)]


def plainly(
    trades: list[Trade], sessions: list[Session], start: int, end: int, interval: int, fill: str
) -> list[dict[str, Any]]:
    """The same by loops over lists; every trade is within the hours of a session."""
    bars: dict[tuple[int, str], list[Trade]] = {}
    closes: dict[tuple[int, str], Decimal | None] = {}
    for midnight, opens, shut in sessions:
        own = [t for t in trades if opens <= t[1] < shut]
        step = interval if interval < DAY else shut - opens
        for begin in range(opens, shut, step):
            for symbol in sorted({trade[0] for trade in trades}):
                of = [t for t in own if t[0] == symbol and start <= t[1] < end]
                inside = [t for t in of if begin <= t[1] < begin + step]
                before = [t for t in own if t[0] == symbol and t[1] < max(begin, start)]
                if not inside and (fill == "none" or begin + step <= start or begin >= end):
                    continue
                if not inside and min(begin + step, shut) <= start:
                    continue
                key = begin if interval < DAY else midnight, symbol
                bars[key] = inside
                known = sorted(before, key=lambda t: t[1])[-1:]
                closes[key] = known[0][2] if known and fill == "previous" else None
    return [
        {
            "start": at,
            "symbol": symbol,
            "open": of[0][2] if of else closes[at, symbol],
            "high": max((t[2] for t in of), default=closes[at, symbol]),
            "low": min((t[2] for t in of), default=closes[at, symbol]),
            "close": of[-1][2] if of else closes[at, symbol],
            "volume": sum((t[3] for t in of), Decimal(0)),
            "trades": len(of),
        }
        for (at, symbol), of in sorted(bars.items())
    ]


@pytest.mark.parametrize(
    ("exchange", "sessions"),
    [
        ("ASX", sydney(dt.date(2014, 4, 3), dt.date(2014, 4, 9))),  # clocks back on Sunday, the 6th
        ("ASX", sydney(dt.date(2014, 10, 2), dt.date(2014, 10, 8))),  # clocks on; a holiday
        ("EU", berlin(dt.date(2014, 3, 29), dt.date(2014, 3, 31))),
        ("EU", berlin(dt.date(2014, 10, 25), dt.date(2014, 10, 27))),
    ],
    ids=["sydney-april", "sydney-october", "berlin-march", "berlin-october"],
)
def test_bars_equal_those_of_loops(market: Market, exchange: str, sessions: list[Session]) -> None:
    """Random trades of two symbols, spans that begin anywhere, every fill, odd intervals."""
    rng = random.Random(exchange)
    trades: list[Trade] = []
    for _ in range(150):
        _, opens, closes = rng.choice(sessions)
        ts = rng.randrange(opens, closes)
        trades.append((rng.choice("AB"), ts, Decimal(rng.randrange(1, 99)), Decimal(7)))
    trades.sort(key=lambda trade: trade[1])
    market.trades(*trades, exchange=exchange)
    around = H if exchange == "ASX" else 0  # what never closes has further days around these
    low, high = sessions[0][1] - around, sessions[-1][2] + around
    for interval in (97 * S, 7 * M, H, 5 * H, DAY):
        for fill in ("none", "null", "previous"):
            for _ in range(4):
                start, end = sorted((rng.randrange(low, high), rng.randrange(low, high)))
                wanted = plainly(trades, sessions, start, end, interval, fill)
                asked = {"start": start, "end": end, "fill": fill, "exchange": exchange}
                got = market.bars(["A", "B"], interval, **asked)
                for bar in got:
                    del bar["vwap"], bar["exchange"]
                assert got == wanted, (interval, asked)


def test_a_simulated_day_filled_is_the_day_and_what_is_between(market: Market) -> None:
    """Filled bars with trades are those without fill; the others have none, and are all there."""
    simulated = Simulation(seed=5, symbols=3, rows=4000)
    for chunk in simulated:
        market.add(TRADES, chunk)
    names, step = simulated.names, 90 * S
    traded = market.bars(names, step)
    filled = market.bars(names, step, fill="previous")
    assert [bar for bar in filled if bar["trades"]] == traded
    first, last = traded[0]["start"], traded[-1]["start"]
    grid = [(at, name) for at in range(first, last + step, step) for name in names]
    assert [(bar["start"], bar["symbol"]) for bar in filled] == grid
    closes: dict[str, Any] = {}
    for bar in filled:
        before = closes.get(bar["symbol"])
        if not bar["trades"]:
            assert [bar[name] for name in ("open", "high", "low", "close")] == [before] * 4
        closes[bar["symbol"]] = bar["close"]
    assert len(filled) > len(traded)
