"""What an answer says of its own completeness, over a real SQLite catalog."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer
from click.testing import CliRunner

from k2.cli import cli
from k2.errors import CatalogUnavailable
from k2.feeds.simulate import Simulation
from k2.lake.acceptances import accept
from k2.lake.catalog import ensure_tables, gaps_name, open_catalog, table_name
from k2.lake.commit import Sink
from k2.lake.moves import Offsets
from k2.lake.offsets import Source
from k2.query.coverage import KnownGaps
from k2.query.engine import Engine
from k2.query.gaps import Selection
from k2.query.index import Tables
from k2.query.rows import Coverage
from k2.query.span import Span
from k2.schemas import GAPS, QUOTES, TRADES, Kind
from k2.sequence import Change, Rules, check, gap_rows
from k2.settings import Settings
from k2.web.answers import middlewares
from k2.web.views import routes
from tests.sequences import RULES, S, at, table

SOURCE = Source("c", "market.trades.sim", 0)
COMPLETE = Coverage()
INGEST_TIME = GAPS.field("ingest_time").type


class Lake:
    """Tables into which batches are committed as a worker does: the ledger, then the records.

    The records are left out: an answer's coverage follows from offsets and ledger alone.
    """

    def __init__(self, data: Path, rules: Rules = RULES) -> None:
        self.settings, self.rules = Settings(data=data), rules
        self.catalog = open_catalog(self.settings)
        ensure_tables(self.catalog, self.settings)
        self.engine = Engine(self.catalog, self.settings)
        self.states: dict[Any, Any] = {}
        self.at = 0

    def told(self, rows: Any, source: Source = SOURCE) -> list[Change]:
        """What the check tells of rows, or of a table of them."""
        batch = rows if isinstance(rows, pa.Table) else table(rows)
        got = check(self.states, batch, self.rules, source.topic)
        self.states.update(got.states)
        return got.changes

    def tell(self, changes: Sequence[Change], source: Source = SOURCE) -> None:
        """Commit rows of the ledger."""
        self.at += 1_000_000
        sink = Sink(self.catalog, gaps_name(self.settings), self.settings)
        rows = gap_rows(changes, *source, pa.scalar(self.at, INGEST_TIME))
        sink.commit(sink.write(rows), {}, {})

    def move(self, to: int, source: Source = SOURCE, kind: Kind = TRADES) -> None:
        """Commit the records' next offset."""
        sink = Sink(self.catalog, table_name(self.settings, kind), self.settings)
        sink.commit([], {}, {source: to})

    def coverage(
        self,
        symbols: str | list[str] | None = None,
        start: int | None = None,
        end: int | None = None,
        exchange: str | None = None,
        kind: Kind = TRADES,
    ) -> Coverage | None:
        return self.engine.records(kind, exchange, symbols, start, end).coverage


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path)


def test_nothing_is_missing_where_nothing_is(lake: Lake) -> None:
    """Neither without a commit, nor without findings, nor in the answer of bars."""
    assert lake.coverage() == COMPLETE
    lake.move(5)
    assert lake.coverage() == COMPLETE
    assert lake.engine.bars("SIM", "A", None, None, S).coverage == COMPLETE
    assert lake.engine.symbols().coverage == COMPLETE


@pytest.mark.parametrize(
    ("start", "end", "missing"),
    [
        (None, None, 4),
        (5 * S, 6 * S, 4),  # between the neighbours
        (9 * S, None, 4),  # at the time of the record behind: what is missing may have it too
        (9 * S + 1, None, 0),
        (None, 3 * S + 1, 4),
        (None, 3 * S, 0),  # the end is not in the span
    ],
)
def test_a_gap_counts_where_its_sequences_may_have_been(
    lake: Lake, start: int | None, end: int | None, missing: int
) -> None:
    """From the time of the record before to that of the record behind, both included."""
    lake.tell(lake.told(at((1, 3 * S), (6, 9 * S))))
    lake.move(2)
    wanted = Coverage(1, missing) if missing else COMPLETE
    assert lake.coverage("A", start, end) == wanted
    assert lake.engine.bars(None, "A", start, end, S).coverage == wanted


def test_times_may_fall_across_a_gap(lake: Lake) -> None:
    lake.tell(lake.told(at((1, 9 * S), (6, 3 * S))))
    lake.move(2)
    assert lake.coverage("A", 5 * S, 6 * S) == Coverage(1, 4)
    assert lake.coverage("A", 10 * S) == lake.coverage("A", None, 3 * S) == COMPLETE


def test_only_what_was_asked_for_counts(lake: Lake) -> None:
    """Symbols, exchange and kind; duplicates and the like are no gaps."""
    b = ("SIM", "B")
    lake.tell(lake.told([*at(1, 6, 6), (*b, 1, 0, 3), (*b, 9, 0, 4)]))
    quotes = Source("c", "market.quotes.sim", 0)
    lake.states.clear()
    lake.tell(lake.told(at(1, 3), quotes), quotes)
    lake.move(5)
    lake.move(5, quotes, QUOTES)
    assert lake.coverage() == lake.coverage(["A", "B"], exchange="SIM") == Coverage(2, 11)
    assert lake.coverage("A") == lake.coverage(["A", "C"]) == Coverage(1, 4)
    assert lake.coverage("B") == Coverage(1, 7)
    assert lake.coverage("C") == lake.coverage(exchange="ASX") == COMPLETE
    assert lake.coverage(kind=QUOTES) == Coverage(1, 1)


def test_a_gap_of_a_channel_counts_for_every_symbol_of_its_exchange(tmp_path: Path) -> None:
    lake = Lake(tmp_path, Rules(by_channel=frozenset(["SIM"])))
    lake.tell(lake.told([*at(1), ("SIM", "B", 6, 0, 1)]))
    lake.move(2)
    assert lake.coverage("C") == lake.coverage("A") == lake.coverage() == Coverage(1, 4)
    assert lake.coverage("C", exchange="ASX") == COMPLETE


def test_the_ledger_counts_as_it_stood_at_the_snapshot(lake: Lake) -> None:
    """It is ahead of the records between its commit and theirs: found, filled, and both."""
    lake.move(1)
    lake.tell(lake.told(at(1, 6)))
    assert lake.coverage() == COMPLETE
    lake.move(2)
    assert lake.coverage() == Coverage(1, 4)
    lake.tell(lake.told(at(2, 4, 5, offset=2)))
    assert lake.coverage() == Coverage(1, 4)
    lake.move(5)
    assert lake.coverage() == Coverage(1, 1)
    lake.tell(lake.told(at(3, offset=5)))
    lake.move(6)
    assert lake.coverage() == COMPLETE


def test_what_was_accepted_is_counted_apart_and_what_was_forgotten_is_missing(lake: Lake) -> None:
    """Until a record tells more of what was accepted."""
    changes = lake.told([*at(1, 6), ("SIM", "B", 1, 0, 2), ("SIM", "B", 9, 0, 3)])
    lake.tell(changes)
    lake.move(4)
    first, second = (row["gap_id"] for row in lake.engine.gaps(Selection()).read_all().to_pylist())
    accept(lake.catalog, lake.settings, [first], "cancelled")
    assert lake.coverage() == Coverage(1, 7, 4)
    lake.tell([replace(changes[1], status="forgotten", revision=2)])
    assert lake.coverage() == Coverage(1, 7, 4)
    accept(lake.catalog, lake.settings, [second], "cancelled")
    assert lake.coverage() == Coverage(0, 0, 11)
    lake.tell(lake.told(at(3, offset=4)))
    assert lake.coverage() == Coverage(0, 0, 11)  # the record is not in the answer yet
    lake.move(5)
    assert lake.coverage() == Coverage(1, 3, 7)


def test_more_is_missing_than_a_number_can_say(lake: Lake) -> None:
    low, high = -(2**63), 2**63 - 1
    b = ("SIM", "B")
    lake.tell(lake.told([*at(low, high), (*b, low, 0, 2), (*b, high, 0, 3)]))
    lake.move(4)
    assert lake.coverage() == Coverage(2, high)


def test_a_source_that_was_moved_back_or_forgotten_keeps_its_gaps(lake: Lake) -> None:
    """Its rows stay in the table, so what is missing among them stays missing."""
    lake.tell(lake.told(at(1, 6)))
    lake.move(2)
    offsets = Offsets(lake.catalog, lake.settings)
    offsets.move(SOURCE, 0, "made anew")
    assert lake.coverage() == Coverage(1, 4)
    offsets.forget([SOURCE], "gone")
    assert lake.coverage() == Coverage(1, 4)


def test_rows_in_hand_count_below_their_bounds(lake: Lake) -> None:
    """A worker's buffer has rows of the ledger that the table does not have, or has too."""
    changes = lake.told(at(1, 6)) + lake.told(at(4, offset=2))
    lake.tell(changes[:1])
    lake.move(2)
    held = gap_rows(changes, *SOURCE, pa.scalar(9_000_000, INGEST_TIME))
    ledger = Tables(lake.catalog).load(gaps_name(lake.settings))
    known, span = KnownGaps(), Span(None, ["A"], None, None)
    assert known.coverage(ledger, span, {SOURCE: 2}, [held]) == Coverage(1, 4)
    assert known.coverage(ledger, span, {SOURCE: 3}, [held]) == Coverage(1, 3)


def test_without_a_ledger_nobody_knows(lake: Lake) -> None:
    """Tables from before it can be read all the same."""
    lake.move(1)
    lake.catalog.drop_table(gaps_name(lake.settings))
    rows = lake.engine.records(TRADES)
    assert rows.coverage is None
    assert rows.known is not None
    assert rows.known.plain()["coverage"] is None
    assert "coverage" not in rows.known.texts()


def test_a_file_of_the_ledger_that_is_gone_is_an_error_not_completeness(lake: Lake) -> None:
    lake.tell(lake.told(at(1, 6)))
    lake.move(2)
    (path,) = (lake.settings.data / "warehouse").rglob("*.parquet")
    path.unlink()
    with pytest.raises(CatalogUnavailable, match="gap ledger: data files"):
        lake.coverage()


def simulated(seed: int) -> tuple[Simulation, pa.Table]:
    simulation = Simulation(seed, symbols=3, rows=600, gaps=6, late=6, duplicates=3)
    stream = pa.concat_tables(simulation)
    offsets = pa.array(np.arange(stream.num_rows))
    return simulation, stream.append_column(TRADES.batch.field("kafka_offset"), offsets)


def places(simulation: Simulation, stream: pa.Table) -> list[tuple[str, int, int, int]]:
    """Symbol, times of the neighbours and size of what was left out, read from the stream."""
    found = []
    for entry in simulation.journal.entries:
        if entry.kind != "gap":
            continue
        own = stream.filter(pc.equal(stream["symbol"], entry.symbol))
        sequences = own["sequence"].to_pylist()
        before, behind = sequences.index(entry.first - 1), sequences.index(entry.last + 1)
        times = [own["ts_event"][row].as_py() for row in (before, behind)]
        found.append((entry.symbol, *times, entry.last - entry.first + 1))
    return found


@pytest.mark.parametrize("seed", range(4))
def test_answers_miss_what_the_simulator_left_out_and_nothing_else(
    tmp_path: Path, seed: int
) -> None:
    """Per symbol, and for spans that touch the neighbours of a gap or miss them by 1 ns."""
    lake, (simulation, stream) = Lake(tmp_path, Rules()), simulated(seed)
    for first in range(0, stream.num_rows, 97):
        batch = stream.slice(first, 97)
        if changes := lake.told(batch):
            lake.tell(changes)
        lake.move(first + batch.num_rows)
    left_out = places(simulation, stream)
    assert len(left_out) == 6
    edges = sorted({edge for _, *times, _ in left_out for edge in times})
    spans: list[tuple[int | None, int | None]] = [(None, None)]
    spans += [(edge + more, None) for edge in edges for more in (0, 1)]
    spans += [(None, edge + more) for edge in edges for more in (0, 1)]
    spans += list(pairwise(edges))
    symbols: list[str | None] = [None, *sorted(set(stream["symbol"].to_pylist()))]
    seen = set()
    for start, end in spans:
        for symbol in symbols:
            within = [
                size
                for name, before, behind, size in left_out
                if symbol in (None, name)
                and (start is None or max(before, behind) >= start)
                and (end is None or min(before, behind) < end)
            ]
            wanted = Coverage(len(within), sum(within))
            assert lake.coverage(symbol, start, end) == wanted, (symbol, start, end)
            seen.add(wanted)
    assert len(seen) > 6


def test_the_ledger_is_kept_in_bounded_memory_and_read_again_where_it_must(tmp_path: Path) -> None:
    """Asked after each commit, an engine that keeps all, one that keeps little and a new one agree.

    More commits than it takes for manifests to be merged.
    """
    lake = Lake(tmp_path)
    kept, little = KnownGaps(), KnownGaps(rows_kept_max=7)
    for n in range(30):
        lake.tell(lake.told(at((2 * n + 1, n * S), offset=n)))
        lake.move(n + 1)
        ledger = Tables(lake.catalog).load(gaps_name(lake.settings))
        for span in (Span(None, None, None, None), Span(None, ["A"], n * S // 2, None)):
            found = [k.coverage(ledger, span, {SOURCE: n + 1}) for k in (kept, little, KnownGaps())]
            first = max(0, -(-(span.start_ns or 0) // S))
            assert found == [Coverage(size := min(n, n - first + 1), size)] * 3
    assert (kept._rows_kept, little._rows_kept) == (29, 7)
    assert len(little._kept) == 7


async def test_every_format_says_what_is_missing(lake: Lake) -> None:
    """A header in all of them; JSON behind the rows, Arrow in its schema too."""
    lake.tell(lake.told(at((1, 3 * S), (6, 9 * S))))
    lake.move(2)
    app = web.Application(middlewares=middlewares())
    app.add_routes(routes(lake.engine, ready=lambda: (True, {})))
    async with TestServer(app) as server, ClientSession() as session:

        async def get(path: str) -> tuple[str | None, bytes]:
            async with session.get(server.make_url(path)) as response:
                return response.headers.get("X-K2-Coverage"), await response.read()

        for path in ("trades?symbol=A", "bars?symbol=A"):
            said, body = await get(f"/v1/{path}")
            told = {"complete": False, "gaps": 1, "missing": 4, "accepted": 0}
            assert (said, orjson.loads(body)["coverage"]) == ("gaps=1; missing=4", told)
        said, body = await get("/v1/quotes?end=3")
        told = {"complete": True, "gaps": 0, "missing": 0, "accepted": 0}
        assert (said, orjson.loads(body)["coverage"]) == ("complete", told)
        said, body = await get("/v1/trades?format=arrow")
        metadata = pa.ipc.open_stream(body).read_all().schema.metadata
        assert (said, metadata[b"k2.coverage"]) == ("gaps=1; missing=4", b"gaps=1; missing=4")
        for form in ("csv", "ndjson"):
            assert (await get(f"/v1/trades?format={form}"))[0] == "gaps=1; missing=4"
        said, body = await get("/v1/gaps")
        assert (said, "coverage" in orjson.loads(body)) == (None, False)


def test_the_commands_say_on_stderr_what_is_missing(lake: Lake) -> None:
    def stderr(*arguments: str) -> str:
        runner = CliRunner(env={"K2_DATA": str(lake.settings.data)})
        result = runner.invoke(cli, [*arguments, "--symbol", "A", "--csv"])
        assert result.exit_code == 0, result.output
        assert len(result.stdout.splitlines()) == 1  # the header
        return result.stderr.removeprefix("k2: no rows\n")

    lake.tell(lake.told(at((1, 3 * S), (6, 9 * S))))
    lake.move(2)
    missing = "k2: not complete: 4 sequences are missing, in 1 gaps that may lie in what was asked"
    assert stderr("trades").startswith(missing)
    assert stderr("bars").startswith(missing)
    assert stderr("quotes") == stderr("trades", "--end", "3") == ""
    (row,) = lake.engine.gaps(Selection()).read_all().to_pylist()
    accept(lake.catalog, lake.settings, [row["gap_id"]], "cancelled")
    assert stderr("trades") == "k2: complete but for 4 missing sequences that were accepted\n"
    lake.catalog.drop_table(gaps_name(lake.settings))
    assert stderr("trades").startswith("k2: no gap ledger")
