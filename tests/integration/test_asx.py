"""Real ASX trades through the running stack: what comes out is what stands in the files."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import pytest

from k2.dev.broker import free_port
from k2.dev.stack import Stack
from k2.settings import Settings
from tests.integration.oracle import connect
from tests.integration.parts import committed, environment, k2, rows_of, until, verify

ASX = Path(os.environ.get("ASX_FOLDER", Path(__file__).resolve().parents[3] / "shared" / "asx"))
FILES = {"BHP": ASX / "trades" / "7078.csv", "DVN": ASX / "trades" / "7181.csv"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(path.is_file() for path in FILES.values()),
        reason="no ASX data in ../shared/asx (ASX_FOLDER names another place)",
    ),
]

#: A day's first and last trade: by time, and by the row in the file where times are equal, on both
#: sides (K2: by sequence, which is the row's number in its day). Times step backwards in places.
_BARS = """
SELECT strptime(column0, '%m/%d/%Y')::DATE AS day,
    arg_min(price, place) AS open, max(price) AS high, min(price) AS low,
    arg_max(price, place) AS close, sum(volume) AS volume, count(*) AS trades
FROM (
    SELECT *, column2::DECIMAL(18, 8) AS price, column3::DECIMAL(30, 8) AS volume,
        {'time': column1, 'row': row_number() OVER ()} AS place
    FROM read_csv(?, header = false, all_varchar = true)
) GROUP BY ALL ORDER BY ALL
"""


@pytest.fixture
def stack(place: Settings) -> Iterator[Stack]:
    settings = replace(place, port=free_port(), exchanges="ASX")
    with Stack(settings, embedded=False, tell=lambda line: None) as running:
        yield running


def test_files_come_out_to_the_last_digit_and_once(stack: Stack) -> None:
    """Counts and daily bars equal the files'; loading them again changes neither."""
    expected = {symbol: _expected(path) for symbol, path in FILES.items()}
    total = sum(bar["trades"] for bars in expected.values() for bar in bars)
    _load(stack)
    _await_rows(stack, "trades", total)
    verify(stack.settings)
    assert {symbol: _bars(stack, symbol) for symbol in FILES} == expected
    assert committed(stack.settings, "rejects") == 0

    _load(stack)
    _await_rows(stack, "rejects", total)
    verify(stack.settings)
    assert committed(stack.settings) == total
    assert {symbol: _bars(stack, symbol) for symbol in FILES} == expected
    reasons = "SELECT reason, symbol, count(*) FROM rejects GROUP BY ALL ORDER BY ALL"
    wanted = [("duplicate", s, sum(bar["trades"] for bar in expected[s])) for s in sorted(FILES)]
    with connect(stack.settings) as connection:
        assert connection.execute(reasons).fetchall() == wanted
        verdicts = "SELECT verdict, count(*) FROM trades GROUP BY ALL ORDER BY ALL"
        days = sum(len(bars) for bars in expected.values())
        firsts, resets = len(FILES), days - len(FILES)  # sequences begin anew with each day
        wanted = [("first", firsts), ("ok", total - days), ("reset", resets)]
        assert connection.execute(verdicts).fetchall() == wanted


def _load(stack: Stack) -> None:
    for symbol, path in FILES.items():
        options = ("--format", "asx", "--kind", "trades", "--symbol", symbol)
        done = k2(environment(stack.settings), "load", *options, str(path))
        assert done.returncode == 0, done.stderr


def _await_rows(stack: Stack, table: str, rows: int) -> None:
    def there() -> bool:
        for child in stack._children():
            child.check()
        return committed(stack.settings, table) >= rows

    until(there, 60, lambda: f"{rows} rows in {table}, but {committed(stack.settings, table)}")


def _expected(path: Path) -> list[dict[str, Any]]:
    """Daily bars straight from the file, in the form of `_bars`."""
    zone = ZoneInfo("Australia/Sydney")
    bars = []
    with duckdb.connect() as connection:
        found = connection.execute(_BARS, [str(path)])
        names = [column[0] for column in found.description]
        for row in found.fetchall():
            bar = dict(zip(names, row, strict=True))
            midnight = dt.datetime.combine(bar.pop("day"), dt.time(), zone)
            bars.append({"start": int(midnight.timestamp()) * 10**9, **bar})
    return bars


def _bars(stack: Stack, symbol: str) -> list[dict[str, Any]]:
    """Daily bars by HTTP; texts as exact decimals, the average price left out."""
    rows = rows_of(f"{stack.views[0]}/v1/bars?exchange=ASX&symbol={symbol}&interval=1d")
    for row in rows:
        assert (row.pop("exchange"), row.pop("symbol")) == ("ASX", symbol)
        del row["vwap"]
    return [{n: Decimal(v) if isinstance(v, str) else v for n, v in row.items()} for row in rows]
