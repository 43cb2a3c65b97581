"""The gap ledger read by the engine, the command and the view: each finding as it stands now."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer
from click.testing import CliRunner, Result

from k2.cli import cli
from k2.errors import BadQuery
from k2.lake.acceptances import accept
from k2.lake.catalog import ensure_tables, gaps_name, open_catalog
from k2.lake.commit import Sink
from k2.lake.offsets import Source
from k2.lake.replays import operator
from k2.query.engine import Engine
from k2.query.gaps import LISTED, Selection
from k2.schemas import GAPS
from k2.sequence import check, gap_rows
from k2.settings import Settings
from k2.web.answers import middlewares
from k2.web.views import routes
from tests.sequences import RULES, Row, S, at, table

SOURCE = Source("c", "market.trades.sim", 0)
B: Any = ("SIM", "B")
#: A: 2..5 are missing, 4 comes late, then 7..29 are missing, then 30 comes again. B: 2 is missing.
BATCHES: list[list[Row]] = [
    [*at(1, (6, 1 * S))],
    [*at((4, 2 * S), (30, 5 * S), (30, 6 * S), offset=2)],
    [(*B, 1, 7 * S, 5), (*B, 3, 8 * S, 6)],
]


class Lake:
    """A ledger in which each batch was committed by itself, a second after the other."""

    def __init__(self, data: Path) -> None:
        self.settings = Settings(data=data)
        self.catalog = open_catalog(self.settings)
        ensure_tables(self.catalog, self.settings)
        self.engine = Engine(self.catalog, self.settings)
        self.states: dict[Any, Any] = {}
        self.at = 0

    def tell(self, rows: list[Row]) -> None:
        self.at += 1_000_000
        got = check(self.states, table(rows), RULES)
        self.states.update(got.states)
        told = gap_rows(got.changes, *SOURCE, pa.scalar(self.at, GAPS.field("ingest_time").type))
        sink = Sink(self.catalog, gaps_name(self.settings), self.settings)
        sink.commit(sink.write(told), {}, {SOURCE: 100})

    def rows(self, limit: int | None = None, **which: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]]
        found = self.engine.gaps(Selection(**which), limit).read_all().to_pylist()
        return found

    def k2(self, *arguments: str) -> Result:
        env = {"K2_DATA": str(self.settings.data)}
        return CliRunner(env=env).invoke(cli, ["gaps", *arguments])


@pytest.fixture
def empty(tmp_path: Path) -> Lake:
    return Lake(tmp_path)


@pytest.fixture
def lake(empty: Lake) -> Lake:
    for rows in BATCHES:
        empty.tell(rows)
    return empty


def brief(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    names = ("symbol", "kind", "status", "missing_first", "missing_last", "severity")
    return [tuple(row[name] for name in names) for row in rows]


FIRST = ("A", "gap", "partly_filled", 2, 5, "warn")
SECOND = ("A", "gap", "open", 7, 29, "page")
AGAIN = ("A", "duplicates", "open", 30, 30, "warn")
OTHER = ("B", "gap", "open", 2, 2, "warn")


def test_an_empty_ledger_has_no_findings(empty: Lake) -> None:
    rows = empty.engine.gaps(Selection())
    assert (rows.schema, rows.snapshot_id, rows.read_all().num_rows) == (LISTED, None, 0)
    assert empty.k2().stderr == "k2: no findings\n"


def test_each_finding_is_its_newest_row_by_the_time_it_was_seen(lake: Lake) -> None:
    """Whole: what remains of it, and where it is; times in ns."""
    rows = lake.rows()
    assert brief(rows) == [FIRST, SECOND, AGAIN, OTHER]
    first = rows[0]
    assert first["remaining"] == [{"first": 2, "last": 3}, {"first": 5, "last": 5}]
    assert (first["revision"], first["remaining_count"], first["count"]) == (2, 3, 4)
    assert (first["seen_at"], first["filled_at"]) == (1 * S, 2 * S)
    assert (first["from_offset"], first["to_offset"], first["kafka_offset"]) == (0, 1, 2)
    assert first["ingest_time"] == 2 * S


@pytest.mark.parametrize(
    ("which", "wanted"),
    [
        ({"exchange": "SIM"}, [FIRST, SECOND, AGAIN, OTHER]),
        ({"exchange": "ASX"}, []),
        ({"symbols": ["B"]}, [OTHER]),
        ({"symbols": ["B", "A"], "kinds": ["duplicates", "reset"]}, [AGAIN]),
        ({"start_ns": 1 * S + 1, "end_ns": 8 * S}, [SECOND, AGAIN]),
        ({"start_ns": 1 * S, "end_ns": 1 * S + 1}, [FIRST]),
        # What was open when it was new is not asked for: what it is now counts.
        ({"statuses": ["open"]}, [SECOND, AGAIN, OTHER]),
        ({"statuses": ["partly_filled", "filled"]}, [FIRST]),
        ({"severities": ["page"]}, [SECOND]),
        ({"severities": ["warn"], "statuses": ["open"], "kinds": ["gap"]}, [OTHER]),
    ],
)
def test_findings_are_chosen(lake: Lake, which: dict[str, Any], wanted: list[Any]) -> None:
    assert brief(lake.rows(**which)) == wanted


def test_a_session_is_chosen_by_its_date(lake: Lake) -> None:
    day = lake.rows()[0]["session"]
    assert len(lake.rows(session=day)) == 4
    assert lake.rows(session=day.replace(year=1971)) == []


def test_a_limit_keeps_the_newest_and_says_that_it_cut(lake: Lake) -> None:
    assert brief(lake.rows(limit=2)) == [AGAIN, OTHER]
    assert lake.engine.gaps(Selection(), 3).truncated
    assert not lake.engine.gaps(Selection(), 4).truncated  # of five rows, one is not the newest


@pytest.mark.parametrize("name", ["kinds", "statuses", "severities"])
def test_words_that_mean_nothing_are_refused(name: str) -> None:
    with pytest.raises(BadQuery, match="nope: not one of"):
        Selection(**{name: ("nope",)})  # type: ignore[arg-type]


def test_an_accepted_finding_is_a_row_more_that_says_who_and_why(lake: Lake) -> None:
    """It holds until a record tells more of it."""
    first, second = (row["gap_id"] for row in lake.rows()[:2])
    added = accept(lake.catalog, lake.settings, [second, first], "the venue cancelled them")
    assert {row["gap_id"] for row in added} == {first, second}
    rows = lake.rows(statuses=["accepted"])
    assert brief(rows) == [(*FIRST[:2], "accepted", 2, 5, "info"),
                           (*SECOND[:2], "accepted", 7, 29, "info")]  # fmt: skip
    assert {row["operator"] for row in rows} == {operator()}
    assert {row["reason"] for row in rows} == {"the venue cancelled them"}
    assert [row["revision"] for row in rows] == [2, 1]
    assert rows[0]["remaining"] == [{"first": 2, "last": 3}, {"first": 5, "last": 5}]
    lake.tell([*at((5, 9 * S), offset=7)])
    assert brief(lake.rows(symbols=["A"], kinds=["gap"]))[0] == FIRST
    assert [row["status"] for row in lake.rows(history_of=first)] == [
        "open", "partly_filled", "accepted", "partly_filled",
    ]  # fmt: skip
    sink = Sink(lake.catalog, gaps_name(lake.settings), lake.settings)
    assert sink.offsets() == {SOURCE: 100}


def test_an_acceptance_follows_the_row_of_a_clock_that_is_ahead(lake: Lake) -> None:
    lake.at = 4_000_000_000_000_000
    lake.tell([(*B, 9, 9 * S, 7)])
    (row,) = (row for row in lake.rows() if row["missing_first"] == 4)
    accept(lake.catalog, lake.settings, [row["gap_id"]], "fine")
    (now,) = (other for other in lake.rows() if other["gap_id"] == row["gap_id"])
    assert (now["status"], now["ingest_time"]) == ("accepted", row["ingest_time"] + 1000)


def test_nothing_is_accepted_if_one_cannot_be(lake: Lake) -> None:
    """Unknown, filled, or for no reason."""
    lake.tell([(*B, 2, 9 * S, 7)])
    before = lake.rows()
    first, *_, filled = (row["gap_id"] for row in before)
    assert before[-1]["status"] == "filled"
    for ids, reason, message in (
        ([first, "nope"], "fine", "nope: no such finding"),
        ([first, filled], "fine", f"{filled}: filled"),
        ([first], "  ", "empty"),
    ):
        with pytest.raises(BadQuery, match=message):
            accept(lake.catalog, lake.settings, ids, reason)
    assert lake.rows() == before


def test_the_command_shows_chooses_and_accepts(lake: Lake) -> None:
    """A table for people; JSON and CSV with every column; refusals are one line, exit code 2."""
    shown = lake.k2()
    assert shown.exit_code == 0, shown.output
    lines = [line for line in shown.stdout.splitlines() if "SIM" in line]
    assert [line.split()[2] for line in lines] == ["A", "A", "A", "B"]
    assert "market.trades.sim[0]@0..1" in lines[0]
    found = [orjson.loads(line) for line in lake.k2("--json", "--kind", "gap").stdout.splitlines()]
    assert brief(found) == [FIRST, SECOND, OTHER]
    assert list(found[0]) == GAPS.names
    rows = list(csv.DictReader(io.StringIO(lake.k2("--csv", "--severity", "page").stdout)))
    assert [orjson.loads(row["remaining"]) for row in rows] == [[{"first": 7, "last": 29}]]
    gap_id = found[1]["gap_id"]
    done = lake.k2("accept", gap_id, found[2]["gap_id"], gap_id, "--reason", "a test")
    assert done.exit_code == 0, done.output
    assert len(done.stdout.splitlines()) == 2
    assert f"{gap_id}: gap of SIM A 7..29: accepted by {operator()}" in done.stdout
    assert "a test" in lake.k2("--status", "accepted").stdout
    history = lake.k2("--history", gap_id, "--json").stdout.splitlines()
    assert [orjson.loads(line)["status"] for line in history] == ["open", "accepted"]
    refused = lake.k2("accept", "nope", "--reason", "a test")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "nope: no such finding" in refused.stderr
    assert lake.k2("--session", "Monday").exit_code == 2


async def test_the_view_answers_in_every_format_and_names_what_is_wrong(lake: Lake) -> None:
    app = web.Application(middlewares=middlewares())
    app.add_routes(routes(lake.engine, ready=lambda: (True, {})))
    async with TestServer(app) as server, ClientSession() as session:

        async def get(query: str) -> tuple[int, bytes]:
            async with session.get(server.make_url(f"/v1/gaps?{query}")) as response:
                return response.status, await response.read()

        _, body = await get("symbol=A,B&kind=gap&status=open&severity=warn,page&limit=5")
        answer = orjson.loads(body)
        assert (brief(answer["data"]), answer["truncated"]) == ([SECOND, OTHER], False)
        assert answer["data"][0]["session"] == "1970-01-01"
        _, body = await get("format=arrow&start=1970-01-01T00:00:08Z")
        told = pa.ipc.open_stream(body).read_all()
        assert (told.schema, told.num_rows) == (LISTED, 1)
        _, body = await get("format=csv&session=1970-01-01&exchange=SIM&end=1970-01-02")
        assert len(body.splitlines()) == 5
        for query, name in (
            ("kind=nope", "kind"),
            ("session=nope", "session"),
            ("status=open,", "status"),
            ("start=2&end=1", "start"),
            ("interval=1m", "interval"),
        ):
            status, body = await get(query)
            assert (status, orjson.loads(body)["parameter"]) == (400, name)
