"""Quotes beside trades: each once, as it was sent, through kills; and real ones to the digit."""

from __future__ import annotations

import json
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from k2.dev.broker import free_port
from k2.dev.stack import Stack
from k2.feeds.simulate import Journal, Simulation
from k2.schemas import QUOTES, TRADES
from k2.settings import Settings
from tests.integration.oracle import check, connect
from tests.integration.parts import (
    Feed,
    Worker,
    committed,
    environment,
    k2,
    rows_of,
    until,
    verify,
)

ASX = Path(os.environ.get("ASX_FOLDER", Path(__file__).resolve().parents[3] / "shared" / "asx"))
FILES = {"BHP": ASX / "quotes" / "7078.csv", "DVN": ASX / "quotes" / "7181.csv"}
SEED = 20_140_311
ROWS, RATE, KILLS = 300_000, 8_000.0, 3

pytestmark = [
    pytest.mark.slow,
    pytest.mark.parametrize("place", ["local"], indirect=True),
]

#: What the files say, in the form of the table: a side without orders is null.
_FILE = """
CREATE TABLE file AS
SELECT '{symbol}' AS symbol, strptime(column0, '%m/%d/%Y')::DATE AS session,
    row_number() OVER (PARTITION BY column0 ORDER BY n) AS sequence,
    epoch_ns(timezone('Australia/Sydney', strptime(column0 || column1, '%m/%d/%Y%H:%M:%S.%g')))
        AS ts_event,
    nullif(column2::DECIMAL(18, 8), 0) AS bid_price, nullif(column4::DECIMAL(18, 8), 0) AS bid_size,
    nullif(column3::DECIMAL(18, 8), 0) AS ask_price, nullif(column5::DECIMAL(18, 8), 0) AS ask_size
FROM (SELECT *, row_number() OVER () AS n FROM read_csv(?, header = false, all_varchar = true))
"""
_FIELDS = (
    "symbol, session, sequence, ts_event, bid_price, bid_size, ask_price, ask_size"  # of `file`
)


@pytest.fixture
def stack(place: Settings) -> Iterator[Stack]:
    settings = replace(place, port=free_port(), exchanges="ASX")
    with Stack(settings, embedded=False, tell=lambda line: None) as running:
        yield running


@pytest.mark.skipif(
    not all(path.is_file() for path in FILES.values()),
    reason="no ASX data in ../shared/asx (ASX_FOLDER names another place)",
)
def test_asx_files_come_out_to_the_last_digit_and_once(stack: Stack) -> None:
    """Every row of the files is in the table and no other; loading them again adds none."""
    settings = stack.settings
    total = _load(settings)
    _await_rows(stack, "quotes", total)
    verify(settings)
    _require_equal_files(settings, total)
    assert committed(settings, "rejects") == committed(settings) == 0
    _require_served(stack)

    _load(settings)
    _await_rows(stack, "rejects", total)
    verify(settings)
    _require_equal_files(settings, total)
    with connect(settings) as connection:
        found = connection.execute("SELECT reason, count(*) FROM rejects GROUP BY ALL").fetchall()
    assert found == [("duplicate", total)]


def test_sigkill_with_both_kinds_flowing_keeps_every_record_once(lake: Settings) -> None:
    """Trades and quotes come at once; each table has its own, with the journals' verdicts."""
    faults = {"gaps": 40, "duplicates": 60, "late": 40, "resets": 4}
    days = {
        kind: Simulation(SEED, 50, ROWS, **faults, kind=kind)  # type: ignore[arg-type]
        for kind in (TRADES, QUOTES)
    }
    streams = {kind: list(day) for kind, day in days.items()}
    totals = {kind.name: sum(day.journal.rows.values()) for kind, day in days.items()}
    moments = random.Random(SEED)
    worker = Worker(lake)
    killed_at = []
    with (
        Feed(streams[TRADES], TRADES.topic("SIM"), lake, RATE) as trades,
        Feed(streams[QUOTES], QUOTES.topic("SIM"), lake, RATE) as quotes,
        worker,
    ):
        for number in range(KILLS):
            share = (number + moments.random()) / (KILLS + 1)
            _await_tables(worker, {name: int(total * share) for name, total in totals.items()})
            time.sleep(moments.uniform(0.0, 0.3))  # no condition: any moment is meant
            worker.kill()
            killed_at.append({name: committed(lake, name) for name in totals})
            worker.start()
        for feed, kind in ((trades, TRADES), (quotes, QUOTES)):
            assert feed.done.result(timeout=120).count == days[kind].journal.sent
        _await_tables(worker, totals)
        worker.await_ready()  # not before: all may have been there when it was killed last
        worker.terminate()
    within = [all(0 < at[name] < totals[name] for name in totals) for at in killed_at]
    assert sum(within) >= 2, killed_at
    verify(lake)
    check(lake, streams[TRADES], days[TRADES].journal)
    _require_equal_stream(lake, streams[QUOTES], days[QUOTES].journal)


def _load(settings: Settings) -> int:
    """Load all files; how many rows they have."""
    total = 0
    for symbol, path in FILES.items():
        options = ("--format", "asx", "--kind", "quotes", "--symbol", symbol, "--json")
        done = k2(environment(settings), "load", *options, str(path))
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout)
        assert (said["topic"], said["bad_rows"]) == ("market.quotes.asx", 0)
        total += said["count"]
    return total


def _await_rows(stack: Stack, table: str, rows: int) -> None:
    def there() -> bool:
        for child in stack._children():
            child.check()
        return committed(stack.settings, table) >= rows

    until(there, 60, lambda: f"{rows} rows in {table}, but {committed(stack.settings, table)}")


def _await_tables(worker: Worker, rows: dict[str, int]) -> None:
    def there() -> bool:
        worker.child.check()
        return all(committed(worker.settings, name) >= least for name, least in rows.items())

    until(there, 120, lambda: f"{rows} rows; end of the log:\n{worker.tail()}")


def _require_equal_files(settings: Settings, total: int) -> None:
    assert committed(settings, "quotes") == total
    with connect(settings) as connection:
        for symbol, path in FILES.items():
            connection.execute(_FILE.format(symbol=symbol), [str(path)])
            own = f"SELECT {_FIELDS} FROM quotes WHERE symbol = '{symbol}' AND exchange = 'ASX'"
            for one, other in ((own, f"SELECT {_FIELDS} FROM file"), ("FROM file", own)):
                only = connection.execute(f"({one}) EXCEPT ALL ({other}) LIMIT 3").fetchall()
                assert only == [], f"{symbol}: only in {one}"
            connection.execute("DROP TABLE file")
        verdicts = "SELECT verdict, count(*) FROM quotes GROUP BY ALL"
        days = "SELECT count(*) FROM (SELECT DISTINCT symbol, session FROM quotes)"
        ((sessions,),) = connection.execute(days).fetchall()
        firsts, resets = len(FILES), sessions - len(FILES)  # sequences begin anew with each day
        assert dict(connection.execute(verdicts).fetchall()) == {
            "first": firsts,
            "ok": total - sessions,
            "reset": resets,
        }


def _require_served(stack: Stack) -> None:
    """The view and the command give the first quote of the day, its empty side as null."""
    ranged = "start=2014-03-09T13:00Z&end=2014-03-10T13:00Z&limit=1"
    (row,) = rows_of(f"{stack.views[0]}/v1/quotes?exchange=ASX&symbol=BHP&{ranged}")
    assert (row["bid_price"], row["bid_size"]) == ("37.7", "300")
    assert (row["ask_price"], row["ask_size"], row["verdict"]) == (None, None, "first")
    options = ("--symbol", "BHP", "--exchange", "ASX", "--limit", "1", "--json")
    done = k2(environment(stack.settings), "quotes", *options)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == row


def _require_equal_stream(settings: Settings, stream: list[pa.Table], journal: Journal) -> None:
    """The table of quotes is the stream without what came again, and has the journal's verdicts."""
    fields = ", ".join(QUOTES.columns.names)
    with connect(settings) as connection:
        connection.register("stream", pa.concat_tables(stream))
        assert _count(connection, "quotes") == sum(journal.rows.values())
        # A duplicate is the same record in every field; the simulation makes no two others alike.
        for one, other in (("quotes", "stream"), ("stream", "quotes")):
            sql = f"(SELECT {fields} FROM {one}) EXCEPT (SELECT {fields} FROM {other})"
            assert connection.execute(f"{sql} LIMIT 3").fetchall() == [], f"only in {one}"
        found = connection.execute("SELECT verdict, count(*) FROM quotes GROUP BY ALL").fetchall()
        entries = Counter(entry.kind for entry in journal.entries)
        wanted = {"gap": len(journal.gaps()), "late": entries["late"], "reset": entries["reset"]}
        assert {verdict: n for verdict, n in found if verdict in wanted} == wanted
        sql = "SELECT symbol, sequence FROM rejects WHERE kafka_topic = 'market.quotes.sim'"
        repeated = Counter(connection.execute(sql).fetchall())
        assert repeated == Counter(
            (e.symbol, e.first) for e in journal.entries if e.kind == "duplicate"
        )


def _count(connection: duckdb.DuckDBPyConnection, table: str) -> int:
    ((rows,),) = connection.execute(f"SELECT count(*) FROM {table}").fetchall()
    return int(rows)
