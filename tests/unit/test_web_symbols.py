"""What is known of a symbol: one answer of several partitions, from whichever worker is asked."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from faust.types import TP
from k2.agents.assignment import Partition
from k2.agents.lane import Lane
from k2.tables.segments import Segments

from k2.app import App
from k2.dev.broker import free_port
from k2.errors import PeerUnavailable
from k2.lake.catalog import ensure_tables, open_catalog, table_name
from k2.lake.commit import Sink
from k2.lake.offsets import Source
from k2.live import Live, aggregate
from k2.live.forms import BAR_NS
from k2.schemas import KINDS, QUOTES, TRADES, Kind
from k2.sequence import Key, Rules, SymbolState, check
from k2.settings import Settings
from k2.web.answers import middlewares
from k2.web.known import Part, answer, decode, encode, part_of
from k2.web.symbols import Symbols, partition_of
from tests.by_hand import DECODER
from tests.group import assign, member, peers
from tests.unit.test_live import E8, batch

S = 10**9
DAY = 19_000
TOPIC, QUOTED = TRADES.topic("SIM"), QUOTES.topic("SIM")

#: Symbol, session, ts_event, sequence, price, size: as in test_live.
Row = tuple[Any, ...]


def live(kind: Kind, rows: list[Row]) -> Live:
    found = Live(kind, 0, lambda name, copied: None)
    whole = [(*row, True) for row in rows]
    found.add(aggregate(kind, *batch(kind, whole, 0)), len(rows))
    return found


def states(kind: Kind, rows: list[Row]) -> dict[Key, SymbolState]:
    table, _, _ = batch(kind, [(*row, True) for row in rows], 0)
    return check({}, table, Rules()).states


def part(kind: Kind, number: int, rows: list[Row], symbol: str = "A", *, bars: bool = True) -> Part:
    source = Source("c", kind.topic("SIM"), number)
    asked = live(kind, rows).ask("X", symbol, bars)
    return part_of(asked, source, states(kind, rows).get(("X", symbol)), bars=bars)


def told(*parts: Part, bars: bool = True) -> dict[str, Any]:
    found = answer("X", "A", parts, bars=bars)
    assert found is not None
    return found


def test_trade_quote_session_and_bars_are_of_one_moment() -> None:
    """Decimals as strings, times in ns, the vwap rounded once."""
    trades = [
        ("A", DAY, 5 * S, 1, 10 * E8, 3 * E8),
        ("A", DAY, 6 * S, 2, 11 * E8, 4 * E8),
        ("A", DAY, BAR_NS, 4, 9 * E8 + 1, E8 // 2),
        ("B", DAY, BAR_NS, 1, 1, 1),
    ]
    found = told(part(TRADES, 1, trades), part(QUOTES, 1, [("A", DAY, 7 * S, 1, 8 * E8, E8)]))
    assert found["trade"] == {
        "session": "2022-01-08", "sequence": 4, "ts_event": BAR_NS, "ts_recv": BAR_NS + 7,
        "price": "9.00000001", "size": "0.5", "side": "BUY", "trade_id": "t2",
        "conditions": None, "venue": None, "kafka_offset": 2,
    }  # fmt: skip
    assert (found["quote"]["bid_price"], found["quote"]["bid_size"]) == ("8", None)
    assert found["session"] == {
        "session": "2022-01-08", "trades": 3, "quotes": 1, "open": "10", "high": "11",
        "low": "9.00000001", "close": "9.00000001", "volume": "7.5", "vwap": "10.46666667",
        "notional": "78.500000005", "first_ts": 5 * S, "last_ts": BAR_NS,
    }  # fmt: skip
    assert [(bar["start"], bar["trades"], bar["vwap"]) for bar in found["bars"]] == [
        (0, 2, "10.57142857"),
        (BAR_NS, 1, "9.00000001"),
    ]
    assert [(p["topic"], p["partition"], p["next_offset"]) for p in found["as_of"]] == [
        (TOPIC, 1, 4),
        (QUOTED, 1, 1),
    ]


def test_sequences_tell_what_is_missing_and_whether_all_is_there() -> None:
    rows = [("A", DAY, n * S, n, E8, E8) for n in (1, 2, 6, 4, 2)]
    sequences = told(part(TRADES, 0, rows))["sequences"]
    assert sequences["quotes"] is None
    assert sequences["trades"] == {
        "session": "1970-01-01", "last_sequence": 6, "rows": 5, "health": "gaps", "open_gaps": 1,
        "missing": 2, "gaps_found": 1, "missing_found": 3, "late": 1, "duplicates": 1, "resets": 0,
        "gaps": [{
            "missing_first": 3, "missing_last": 5,
            "remaining": [{"first": 3, "last": 3}, {"first": 5, "last": 5}],
            "from_ts": 2 * S, "to_ts": 6 * S, "seen_at": 6 * S + 7,
        }],
    } | {"session": sequences["trades"]["session"]}  # fmt: skip
    rows += [("A", DAY, 9 * S, n, E8, E8) for n in (3, 5)]
    assert told(part(TRADES, 0, rows))["sequences"]["trades"]["health"] == "complete"


def test_parts_of_several_partitions_are_one_answer() -> None:
    """As if all records had been in one; the sequences are those of the last record's."""
    rows = [("A", DAY, n % 4 * BAR_NS, n, (n + 1) * E8, n * E8) for n in range(1, 9)]
    halves = part(TRADES, 0, rows[:4]), part(TRADES, 2, rows[4:7])
    apart, whole = told(*halves), told(part(TRADES, 1, rows[:7]))
    assert apart["session"] == whole["session"]
    assert apart["bars"] == whole["bars"]
    assert apart["trade"]["sequence"] == whole["trade"]["sequence"] == 7
    assert apart["sequences"]["trades"]["last_sequence"] == 7
    assert told(*halves[::-1])["sequences"] == apart["sequences"]


def test_the_running_session_is_the_newest_of_both_kinds() -> None:
    """Before its first trade a session has quotes and no price."""
    trades = part(TRADES, 0, [("A", DAY, 5, 1, E8, E8)])
    quotes = part(QUOTES, 0, [("A", DAY + 1, 6, 1, E8, E8)])
    found = told(trades, quotes)
    assert found["session"] == {"session": "2022-01-09", "trades": 0, "quotes": 1}
    assert found["bars"] == []
    assert found["trade"]["session"] == "2022-01-08"
    older = part(QUOTES, 0, [("A", DAY - 1, 6, 1, E8, E8)])
    assert told(trades, older)["session"]["quotes"] == 0
    assert told(quotes, bars=False)["trade"] is None
    assert "bars" not in told(quotes, bars=False)


def test_who_was_never_seen_is_not_known() -> None:
    assert answer("X", "C", [part(TRADES, 0, [("A", DAY, 5, 1, E8, E8)], "C")], bars=True) is None
    assert answer("X", "A", [], bars=False) is None


def test_a_volume_of_nothing_has_no_vwap() -> None:
    assert told(part(TRADES, 0, [("A", DAY, 5, 1, E8, 0)]))["session"]["vwap"] is None


def test_what_a_worker_tells_another_is_what_it_knows() -> None:
    parts = [part(TRADES, 0, [("A", DAY, 5, 1, E8, E8)]), part(QUOTES, 3, [("A", 1, 1, 1, 1, 1)])]
    assert decode(encode(parts)) == parts


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[1]",
        b"{}x",
        b'[{"source":["c","t",0]}]',
        b'[{"source":["c","market.trades.sim",0],"latest":"AAAA","bars":""}]',
    ],
)
def test_an_answer_of_another_release_is_refused(body: bytes) -> None:
    with pytest.raises(PeerUnavailable, match="another worker's answer"):
        decode(body)


def test_a_key_falls_where_the_producer_puts_it() -> None:
    """Kafka's murmur2, as in its own tests of the partitioner."""
    assert [partition_of("ASX", symbol, 8) for symbol in ("BHP", "RIO")] == [
        (3679539421 & 0x7FFFFFFF) % 8,
        partition_of("ASX", "RIO", 16) % 8,
    ]


class Owned(dict[TP, Partition]):
    """A worker's partitions; `missed` is called when it is asked for another."""

    missed: Callable[[], object] = staticmethod(lambda: None)

    def at(self, place: tuple[str, int]) -> Any:
        return self.get(TP(*place))

    def get(self, key: TP, default: Any = None) -> Any:
        if key not in self:
            self.missed()
        return super().get(key, default)


class Group:
    """Two workers with web servers, which share the partitions of trades and quotes."""

    def __init__(self, data: Path, partitions: int) -> None:
        settings = Settings(data=data, exchanges="SIM")
        self.catalog = open_catalog(settings)
        ensure_tables(self.catalog, settings)
        self.apps: list[App] = []
        self.owned: list[Owned] = []
        self.servers: list[TestServer] = []
        self.lanes = {
            kind: Lane(kind, DECODER, Sink(self.catalog, table_name(settings, kind), settings))
            for kind in KINDS
        }
        for _ in range(2):
            port = free_port()
            app, own = member(f"http://127.0.0.1:{port}", settings), Owned()
            views = Symbols(peers(app, partitions), own.at, settings)
            site = web.Application(middlewares=middlewares())
            site.add_routes([*views.routes(), *views.internal()])
            self.servers.append(TestServer(site, port=port))
            self.apps.append(app)
            self.owned.append(own)
        assign(*self.apps, partitions=partitions)
        for app, own in zip(self.apps, self.owned, strict=True):
            for topic, numbers in peers(app, partitions).assigned()[peers(app).own].items():
                for number in numbers:
                    own[TP(topic, number)] = self.partition(topic, number, [])

    def partition(self, topic: str, number: int, rows: list[Row]) -> Partition:
        kind = TRADES if topic == TOPIC else QUOTES
        named = [(*row, True) for row in rows]
        table, sessions, counted = batch(kind, named, 0)
        table = table.set_column(0, kind.batch.field(0), pa.array(["SIM"] * len(rows), pa.string()))
        known = Live(kind, 0, lambda name, copied: None)
        known.add(aggregate(kind, table, sessions, counted), len(rows))
        return Partition(
            source=Source("c", topic, number),
            lane=self.lanes[kind],
            next_offset=len(rows),
            accepted=len(rows),
            log_end=len(rows),
            records_at=None,
            rejects_at=None,
            gaps_at=None,
            sequences=Segments(check({}, table, Rules()).states),
            live=known,
            epoch="",
            topic_id=None,
        )

    def put(self, topic: str, number: int, rows: list[Row]) -> None:
        """Let the owner of a partition know its rows."""
        (own,) = (own for own in self.owned if TP(topic, number) in own)
        own[TP(topic, number)] = self.partition(topic, number, rows)

    async def get(self, asked: int, path: str) -> tuple[int, Any]:
        url = self.servers[asked].make_url(path)
        async with self.apps[asked].http_client.get(url) as told:
            return told.status, orjson.loads(await told.read())

    async def post(self, asked: int, question: Any) -> tuple[int, Any]:
        url = self.servers[asked].make_url("/internal/symbol")
        async with self.apps[asked].http_client.post(url, data=question) as told:
            return told.status, orjson.loads(await told.read())


@pytest.fixture
async def two(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Group]:
    """Of four partitions a topic, or as many as a test says."""
    running = Group(tmp_path, getattr(request, "param", 4))
    for server in running.servers:
        await server.start_server()
    yield running
    for server, app in zip(running.servers, running.apps, strict=True):
        await server.close()
        await app._maybe_close_http_client()
    running.catalog.close()


async def test_either_worker_answers_for_both(two: Group) -> None:
    """Whoever owns the partition of the symbol's key."""
    for symbol in ("A", "BB", "C", "D", "E"):
        number = partition_of("SIM", symbol, 4)
        two.put(TOPIC, number, [(symbol, DAY, 5, 1, 10 * E8, E8)])
        two.put(QUOTED, number, [(symbol, DAY, 6, 1, 9 * E8, E8)])
        one, other = [await two.get(n, f"/v1/symbols/SIM/{symbol}?bars=true") for n in (0, 1)]
        assert one == other
        status, known = one
        assert status == 200
        assert (known["trade"]["price"], known["quote"]["bid_price"]) == ("10", "9")
        assert known["session"]["trades"] == len(known["bars"]) == 1
        assert {(p["topic"], p["partition"]) for p in known["as_of"]} == {
            (TOPIC, number),
            (QUOTED, number),
        }


async def test_a_symbol_in_another_partition_is_found(two: Group) -> None:
    """Its producer chose partitions otherwise; in two of them, as by channels."""
    likely = partition_of("SIM", "A", 4)
    others = [(likely + 1) % 4, (likely + 2) % 4]
    for n, number in enumerate(others, 1):
        two.put(TOPIC, number, [("A", DAY, n, n, n * E8, E8)])
    for asked in (0, 1):
        status, known = await two.get(asked, "/v1/symbols/SIM/A")
        assert status == 200
        assert (known["session"]["trades"], known["trade"]["price"]) == (2, "2")


async def test_what_nobody_knows_is_not_found(two: Group) -> None:
    for path, detail in (
        ("/v1/symbols/SIM/A", "no record of 'SIM.A' is known"),
        ("/v1/symbols/NONE/A", "no exchange 'NONE'"),
        ("/v1/symbols/SIM/A%0Ab", r"no record of 'SIM.A\nb' is known"),
    ):
        status, problem = await two.get(0, path)
        assert (status, problem["status"]) == (404, 404)
        assert detail in problem["detail"]


@pytest.mark.parametrize(
    ("query", "parameter"), [("bars=yes", "bars"), ("x=1", "x"), ("bars=", "bars")]
)
async def test_a_parameter_that_is_wrong_is_named(two: Group, query: str, parameter: str) -> None:
    status, problem = await two.get(0, f"/v1/symbols/SIM/A?{query}")
    assert (status, problem["parameter"]) == (400, parameter)


async def test_a_partition_that_its_owner_does_not_have_is_asked_for_later(two: Group) -> None:
    """The map of the group is ahead of the worker, or behind it; the other one is named."""
    number = partition_of("SIM", "A", 4)
    for own in two.owned:
        own.pop(TP(TOPIC, number), None)
    for asked in (0, 1):
        status, problem = await two.get(asked, "/v1/symbols/SIM/A")
        assert status == 503
        assert f"{TOPIC}[{number}] is not owned here" in problem["detail"]


async def test_an_owner_that_is_none_any_more_is_looked_up_again(two: Group) -> None:
    """As by an asker whose map is older than a rebalance."""
    asker, former = two.owned
    asker |= former
    former.clear()
    former.missed = lambda: assign(two.apps[0])  # meanwhile it is told
    number = partition_of("SIM", "A", 4)
    two.put(TOPIC, number, [("A", DAY, 5, 1, 10 * E8, E8)])
    assert len(peers(two.apps[0]).assigned()) == 2
    status, known = await two.get(0, "/v1/symbols/SIM/B")  # all partitions are asked for
    assert status == 404
    assert len(peers(two.apps[0]).assigned()) == 1
    status, known = await two.get(0, "/v1/symbols/SIM/A")
    assert (status, known["trade"]["price"]) == (200, "10")


async def test_nothing_is_said_while_partitions_are_assigned(two: Group) -> None:
    """Nor when the store is closed already, and Faust has not said so yet."""
    number = partition_of("SIM", "A", 4)
    (own,) = (own for own in two.owned if TP(TOPIC, number) in own)
    written = two.partition(TOPIC, number, [("A", DAY, 5, 1, E8, E8)])
    written.live.take()
    written.live.written(written.live.writing(1))
    own[TP(TOPIC, number)] = written  # in a table that has nothing
    for asked in (0, 1):
        status, problem = await two.get(asked, "/v1/symbols/SIM/A")
        assert status == 503
        assert "being assigned" in problem["detail"]
    two.apps[0].rebalancing = True
    assert (await two.get(0, "/v1/symbols/SIM/A"))[0] == 503


@pytest.mark.parametrize("two", [600], indirect=True)
async def test_a_worker_is_asked_for_hundreds_of_partitions_at_once(two: Group) -> None:
    """Of a symbol that is not where its key falls; and of one that nobody knows."""
    likely = partition_of("SIM", "A", 600)
    for n in (1, 2):  # of both workers
        two.put(TOPIC, (likely + n) % 600, [("A", DAY, n, n, n * E8, E8)])
    for asked in (0, 1):
        status, known = await two.get(asked, "/v1/symbols/SIM/A")
        assert (status, known.get("session", known)["trades"]) == (200, 2)
        assert (await two.get(asked, "/v1/symbols/SIM/B"))[0] == 404


async def test_what_a_worker_refuses_is_told_with_its_reason(two: Group) -> None:
    """As by one of another release, which knows no such question."""
    url, port = peers(two.apps[1]).own, two.servers[1].port
    await two.servers[1].close()
    other = TestServer(web.Application(middlewares=middlewares()), port=port)
    await other.start_server()
    status, problem = await two.get(0, "/v1/symbols/SIM/A")  # unknown, so both are asked
    await other.close()
    assert (status, problem["detail"]) == (503, f"worker {url}: 404: Not Found")


@pytest.mark.parametrize("places", ["x", "x:", ":1", "x:-1"])
async def test_places_are_topics_and_partitions(two: Group, places: str) -> None:
    asked = {"exchange": "SIM", "symbol": "A", "places": places}
    status, problem = await two.post(0, asked)
    assert (status, problem["parameter"]) == (400, "places")


async def test_a_question_is_a_form(two: Group) -> None:
    status, problem = await two.post(0, b"exchange=SIM")
    assert (status, problem["detail"]) == (415, "not application/x-www-form-urlencoded")
    assert (await two.get(0, "/internal/symbol"))[0] == 405


def test_decimals_are_plain() -> None:
    """No exponent, whatever the size."""
    rows = [("A", DAY, 5, n, 10**18 - 1, 10**18 - 1) for n in range(200)]
    session = told(part(TRADES, 0, rows))["session"]
    price = Decimal("9999999999.99999999")
    assert session["volume"] == "1999999999999.999998"
    assert session["notional"] == "19999999999999999960000.00000000000002"
    assert session["vwap"] == str(price)
