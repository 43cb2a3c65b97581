"""Through which time rows are valid: what a worker sees, what commits carry, what answers say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer
from faust.types import TP
from k2.agents.assignment import Partition
from k2.agents.lane import Lane
from k2.agents.through import reached, seen
from k2.tables.segments import Segments

from k2.errors import SchemaMismatch
from k2.lake.catalog import ensure_tables, load_table, open_catalog, table_name
from k2.lake.commit import Sink
from k2.lake.moves import Offsets
from k2.lake.offsets import (
    THROUGH_PROPERTY,
    Source,
    Through,
    carry_through,
    decode_through,
    encode_through,
)
from k2.live import Live
from k2.query.engine import Engine
from k2.schemas import TRADES
from k2.settings import Settings
from k2.transport import Fetched, LogEnd
from k2.transport.fetched import RecordBatch
from k2.web.answers import middlewares
from k2.web.views import routes
from tests.by_hand import DECODER

A, B = (Source("c", "market.trades.sim", number) for number in (0, 1))
NEW_A, NEW_B = (Source("d", *source[1:]) for source in (A, B))
OTHER = Source("c", "market.trades.asx", 0)
MS = 1_000_000


@pytest.mark.parametrize(
    ("end", "newest_ms", "wanted"),
    [
        (LogEnd(10, 9 * MS), 5, 9 * MS),  # at the end: all that was there when we asked
        (LogEnd(8, 9 * MS), 5, 9 * MS),  # it has grown since we asked
        (LogEnd(11, 9 * MS), 5, 5 * MS),  # not at the end
        (LogEnd(11, 9 * MS), 20, 9 * MS),  # the producer's clock is ahead of ours
        (LogEnd(11, 9 * MS), -1, 0),  # no timestamp
        (LogEnd(), 5, 0),
    ],
)
def test_a_fetch_reaches_the_time_before_which_nothing_is_behind_it(
    end: LogEnd, newest_ms: int, wanted: int
) -> None:
    batches = [RecordBatch(n, 0, 1, 0, ms, False, b"") for n, ms in enumerate((newest_ms, -1))]
    assert reached(Fetched("t", 0, 0, 10, tuple(batches), 0, end=end)) == wanted
    if end.offset > 10:
        assert reached(Fetched("t", 0, 0, 10, (), 0, end=end)) == 0


def partition(source: Source, accepted: int, records_at: int | None, through: int) -> Partition:
    lane: Any = Lane(TRADES, DECODER, None)  # type: ignore[arg-type]  # nothing is written
    return Partition(
        source=source,
        lane=lane,
        next_offset=99,
        accepted=accepted,
        log_end=0,
        records_at=records_at,
        rejects_at=None,
        gaps_at=None,
        sequences=Segments({}),
        live=Live(TRADES, 0, lambda name, copied: None),
        epoch="",
        topic_id=None,
        through=through,
    )


@pytest.mark.parametrize(
    ("accepted", "records_at", "through", "end", "wanted"),
    [
        (7, 7, 0, LogEnd(7, 50), Through(7, 50)),  # idle since it was assigned
        (9, 7, 40, LogEnd(9, 50), Through(9, 50)),  # idle since the last batch
        (9, 7, 40, LogEnd(10, 50), Through(9, 40)),  # more has come, and is not in the buffer
        (3, 7, 40, LogEnd(7, 50), Through(7, 50)),  # read again for the states alone
        (9, 7, 60, LogEnd(9, 50), Through(9, 60)),
        (0, None, 0, LogEnd(0, 50), Through(0, 50)),  # never had a record
        (0, None, 0, LogEnd(1, 50), None),
        (7, 7, 0, None, None),
    ],
)
def test_what_is_in_hand_or_committed_says_how_far_a_partition_is(
    accepted: int, records_at: int | None, through: int, end: LogEnd | None, wanted: Through | None
) -> None:
    """Of the partitions of other workers nothing is known."""
    own = {TP(*A[1:]): partition(A, accepted, records_at, through)}
    ends = {} if end is None else {TP(*A[1:]): end}
    assert seen(own, ends, 2) == {A: wanted, B: None}


@pytest.mark.parametrize(
    ("known", "before", "after", "through", "wanted"),
    [
        # Whoever sees nothing carries forward.
        ({A: 5}, {A: 1}, {A: 2}, {}, {A: 5}),
        # What others wrote stays, and is never set back.
        ({A: 5, B: 6}, {A: 1, B: 1}, {A: 2, B: 1}, {A: Through(2, 7), B: None}, {A: 7, B: 6}),
        ({A: 5}, {A: 1}, {A: 2}, {A: Through(2, 4)}, {A: 5}),
        # Of some partitions nobody has said anything yet.
        ({}, {}, {A: 2}, {A: Through(2, 7), B: None}, {A: 7, B: None}),
        # The table has less than the worker thought: somebody else moved it.
        ({A: 5}, {A: 1}, {A: 1}, {A: Through(2, 7)}, {A: 5}),
        ({A: 5}, {A: 9}, {A: 1}, {A: Through(2, 7)}, {A: None}),
        ({A: 5}, {A: 9}, {A: 2}, {A: Through(2, 7)}, {A: 7}),
        # A log that never had a record.
        ({}, {}, {}, {A: Through(0, 7)}, {A: 7}),
        ({A: 5}, {}, {}, {}, {A: 5}),
        # Forgotten, or a former log of a topic that is read; other topics stay.
        ({A: 5, B: 6}, {A: 1, B: 1}, {B: 1}, {}, {B: 6}),
        (
            {A: 5, B: 6, OTHER: 4},
            {A: 1, B: 1},
            {A: 1, B: 1, NEW_A: 1},
            {NEW_A: Through(1, 9), NEW_B: None},
            {NEW_A: 9, NEW_B: None, OTHER: 4},
        ),
    ],
)
def test_times_are_carried_forward_by_source(
    known: Any, before: Any, after: Any, through: Any, wanted: Any
) -> None:
    assert carry_through(known, before, after, through) == wanted
    assert decode_through(encode_through(wanted)) == wanted


@pytest.mark.parametrize("text", ["{", '[["c","t",0]]', '[["c","t",0,"x"]]', "[1]"])
def test_times_that_k2_did_not_write_are_not_guessed(text: str) -> None:
    with pytest.raises(SchemaMismatch, match=THROUGH_PROPERTY):
        decode_through(text)


class Lake:
    def __init__(self, data: Path) -> None:
        self.settings = Settings(data=data, snapshots_keep=3, snapshot_age_min_ms=0)
        self.catalog = open_catalog(self.settings)
        ensure_tables(self.catalog, self.settings)
        self.name = table_name(self.settings, TRADES)
        self.sink = Sink(self.catalog, self.name, self.settings)
        self.engine = Engine(self.catalog, self.settings)

    def times(self) -> dict[Source, int | None]:
        summary = load_table(self.catalog, self.name).metadata.snapshots[-1].summary
        return decode_through(summary[THROUGH_PROPERTY] if summary else None)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path)


def test_two_workers_and_an_operator_share_one_map_that_outlives_its_snapshots(lake: Lake) -> None:
    """Also through conflicts: the second handle is stale at each of its commits."""
    other = Sink(lake.catalog, lake.name, lake.settings)
    for n in range(1, 15):
        former = n - 1 or None
        one = {A: Through(n, 10 * n), B: None}
        lake.sink.commit([], {A: former}, {A: n}, through=one)
        two = {A: None, B: Through(n, 10 * n + 1)}
        other.commit([], {B: former}, {B: n}, through=two)
        assert lake.times() == {A: 10 * n, B: 10 * n + 1}
    lake.sink.commit([], {}, {})
    assert lake.times() == {A: 140, B: 141}
    offsets = Offsets(lake.catalog, lake.settings)
    offsets.move(A, 20, "given up")
    assert lake.times() == {A: 140, B: 141}
    offsets.move(A, 3, "once more")
    assert lake.times() == {A: None, B: 141}
    offsets.forget([A], "gone")
    assert lake.times() == {B: 141}


async def test_an_answer_is_valid_through_the_least_time_of_all_partitions(lake: Lake) -> None:
    """In JSON, in a header, in Arrow's schema; null and no header while one is not known."""
    app = web.Application(middlewares=middlewares())
    app.add_routes(routes(lake.engine, ready=lambda: (True, {})))
    async with TestServer(app) as server, ClientSession() as session:

        async def get(path: str) -> tuple[str | None, bytes]:
            async with session.get(server.make_url(path)) as response:
                return response.headers.get("X-K2-Valid-Through"), await response.read()

        async def told(path: str) -> tuple[str | None, int | None]:
            header, body = await get(path)
            return header, orjson.loads(body)["valid_through"]

        assert await told("/v1/trades") == (None, None)
        lake.sink.commit([], {A: None}, {A: 2})  # as before this version
        assert await told("/v1/trades") == (None, None)
        lake.sink.commit([], {A: 2}, {A: 3}, through={A: Through(3, 70), B: None})
        assert await told("/v1/trades") == (None, None)
        lake.sink.commit([], {A: 3}, {A: 4}, through={A: Through(4, 90), B: Through(0, 80)})
        for path in ("/v1/trades", "/v1/trades?symbol=A&end=3", "/v1/bars?symbol=A"):
            assert await told(path) == ("80", 80)
        assert await told("/v1/quotes") == (None, None)
        header, body = await get("/v1/trades?format=arrow")
        schema = pa.ipc.open_stream(body).read_all().schema
        assert (header, schema.metadata[b"k2.valid-through"]) == ("80", b"80")
        assert lake.engine.records(TRADES).valid_through == 80
