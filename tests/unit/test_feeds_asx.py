"""ASX files become exact, deterministic trade batches; bad rows are named and left out."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from k2.errors import FeedError
from k2.feeds.asx import BadRow, read
from k2.schemas import QUOTES, TRADES

ASX = Path(__file__).resolve().parents[3] / "shared" / "asx" / "trades"
needs_asx = pytest.mark.skipif(not ASX.is_dir(), reason="no ASX data in ../shared/asx")


def write(folder: Path, *lines: str, end: str = "\r\n") -> Path:
    path = folder / "trades.csv"
    path.write_bytes("".join(line + end for line in lines).encode())
    return path


def nanoseconds(text: str) -> int:
    """Sydney local time, ISO with milliseconds, to ns since the epoch; by zoneinfo, not polars."""
    local = dt.datetime.fromisoformat(text).replace(tzinfo=ZoneInfo("Australia/Sydney"))
    return int(local.replace(microsecond=0).timestamp()) * 10**9 + local.microsecond * 1000


def test_one_row_gives_every_column(tmp_path: Path) -> None:
    """Each column of a trade has the documented value and type."""
    path = write(tmp_path, "03/10/2014,07:57:14.754,36.667,20000,3,X,")
    table, bad = read(TRADES, path, "BHP")
    assert bad == []
    assert table.schema.equals(TRADES.columns)
    at = nanoseconds("2014-03-10T07:57:14.754")
    assert table.to_pylist() == [
        {
            "exchange": "ASX",
            "symbol": "BHP",
            "sequence": 1,
            "ts_event": at,
            "ts_recv": at,
            "price": Decimal("36.66700000"),
            "size": Decimal("20000.00000000"),
            "side": "NONE",
            "trade_id": None,
            "conditions": "3",
            "venue": "X",
        }
    ]


def test_sequence_is_row_order_within_a_date_even_when_times_step_back(tmp_path: Path) -> None:
    """Row order wins over time order, and every date starts at 1."""
    path = write(
        tmp_path,
        "03/10/2014,10:00:01.000,1,1,0,,",
        "03/10/2014,10:00:00.000,2,1,0,,",
        "03/11/2014,10:00:00.000,3,1,0,,",
        "03/10/2014,10:00:02.000,4,1,0,,",
    )
    table, _ = read(TRADES, path, "BHP")
    assert table["sequence"].to_pylist() == [1, 2, 1, 3]
    assert table["price"].to_pylist() == [1, 2, 3, 4]


def test_winter_and_summer_time_differ_by_an_hour(tmp_path: Path) -> None:
    """The zone's rules apply: UTC+11 in March, UTC+10 in June."""
    path = write(tmp_path, "03/10/2014,10:00:00.000,1,1,0,,", "06/10/2014,10:00:00.000,1,1,0,,")
    table, _ = read(TRADES, path, "BHP")
    times = table["ts_event"].to_pylist()
    hours = [dt.datetime.fromtimestamp(ns / 1e9, dt.UTC).hour for ns in times]
    assert hours == [23, 0]


def test_repeated_hour_is_its_first_pass_and_skipped_hour_is_bad(tmp_path: Path) -> None:
    """An ambiguous time is the earlier instant; a nonexistent one is a bad row."""
    path = write(tmp_path, "04/06/2014,02:30:00.000,1,1,0,,", "10/05/2014,02:30:00.000,1,1,0,,")
    table, bad = read(TRADES, path, "BHP")
    assert table["ts_event"].to_pylist() == [nanoseconds("2014-04-06T02:30:00.000")]
    assert [(b.line, "does not exist in Australia/Sydney" in b.reason) for b in bad] == [(2, True)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("", "empty line"),
        ("03/10/2014,10:00:00.000,1,1,0,", "6 fields, not 7"),
        ("03/10/2014,10:00:00.000,1,1,0,,,", "8 fields, not 7"),
        ("13/10/2014,10:00:00.000,1,1,0,,", "'13/10/2014 10:00:00.000' is not MM/DD/YYYY"),
        ("03/10/2014,24:00:00.000,1,1,0,,", "24:00:00.000' is not"),
        ("03/10/2014,10:00:00,1,1,0,,", "is not MM/DD/YYYY HH:MM:SS.mmm"),
        ("03/10/2014,10:00:00.000,abc,1,0,,", "price 'abc' is not a decimal"),
        ("03/10/2014,10:00:00.000,1e3,1,0,,", "price '1e3' is not a decimal"),
        ("03/10/2014,10:00:00.000,-1,1,0,,", "price '-1' is not a decimal"),
        ("03/10/2014,10:00:00.000,0.00,1,0,,", "price '0.00' is not a decimal above 0"),
        ("03/10/2014,10:00:00.000,1.123456789,1,0,,", "price '1.123456789'"),
        ("03/10/2014,10:00:00.000,12345678901,1,0,,", "at most 10 digits before"),
        ("03/10/2014,10:00:00.000,1,,0,,", "volume ''"),
        ("03/10/2014,10:00:00.000,1,0,0,,", "volume '0'"),
        ("03/10/2014,10:00:00.000,1,1,Q,,", "qualifiers 'Q' is not an integer code"),
    ],
)
def test_bad_row_is_named_and_keeps_its_number(tmp_path: Path, line: str, reason: str) -> None:
    """File, line and reason are reported; it is missing between the rows around it."""
    good = "03/10/2014,10:00:00.000,1,1,0,,"
    path = write(tmp_path, good, line, good)
    table, bad = read(TRADES, path, "BHP")
    assert table["sequence"].to_pylist() == [1, 3]
    assert [(b.file, b.line) for b in bad] == [(str(path), 2)]
    assert reason in bad[0].reason


def test_repaired_row_has_the_number_that_was_missing(tmp_path: Path) -> None:
    """The repaired file differs from the first in that row alone."""
    rows = [f"03/10/2014,10:00:00.000,{price},1,0,," for price in (1, "oops", 3)]
    broken, _ = read(TRADES, write(tmp_path, *rows), "BHP")
    repaired, _ = read(TRADES, write(tmp_path, *[row.replace("oops", "2") for row in rows]), "BHP")
    assert repaired["sequence"].to_pylist() == [1, 2, 3]
    assert repaired.take([0, 2]).equals(broken)


def test_numbers_go_on_from_file_to_file_of_a_day(tmp_path: Path) -> None:
    """A day in two files is one day; another day begins at 1."""
    monday, tuesday = "03/10/2014,10:00:00.000,1,1,0,,", "03/11/2014,10:00:00.000,1,1,0,,"
    before: dict[str, int] = {}
    read(TRADES, write(tmp_path, monday, "junk", monday), "BHP", before=before)
    table, _ = read(TRADES, write(tmp_path, monday, tuesday), "BHP", before=before)
    assert table["sequence"].to_pylist() == [4, 1]


def test_bytes_that_are_not_utf8_spoil_only_their_row(tmp_path: Path) -> None:
    """A broken byte is a bad row, not the end of the file."""
    path = write(tmp_path, "03/10/2014,10:00:00.000,1,1,0,,")
    path.write_bytes(b"03/10/2014,10:00:00.000,\xff,1,0,,\r\n" + path.read_bytes())
    table, bad = read(TRADES, path, "BHP")
    assert table.num_rows == 1
    assert [b.line for b in bad] == [1]


def test_largest_and_smallest_price_are_exact(tmp_path: Path) -> None:
    """All 18 digits survive: no float is involved."""
    prices = ["9999999999.99999999", "0.00000001", "36.667", "007"]
    path = write(tmp_path, *(f"03/10/2014,10:00:00.000,{p},{p},0,," for p in prices), end="\n")
    table, bad = read(TRADES, path, "BHP")
    assert bad == []
    assert table["price"].to_pylist() == [Decimal(p) for p in prices]
    assert table["size"].to_pylist() == [Decimal(p) for p in prices]


def test_empty_file_is_an_empty_batch(tmp_path: Path) -> None:
    """No rows, no bad rows, the same schema."""
    table, bad = read(TRADES, write(tmp_path), "BHP")
    assert (table.num_rows, bad) == (0, [])
    assert table.schema.names == TRADES.batch.names[:-1]


def test_file_with_only_bad_rows_is_an_empty_batch(tmp_path: Path) -> None:
    """Every row may be bad."""
    table, bad = read(TRADES, write(tmp_path, "x", "y"), "BHP")
    assert table.num_rows == 0
    assert bad == [BadRow(str(tmp_path / "trades.csv"), n, "1 fields, not 7") for n in (1, 2)]


def test_missing_file_is_a_feed_error(tmp_path: Path) -> None:
    """The path and the system's reason are named."""
    with pytest.raises(FeedError, match=r"none\.csv: No such file"):
        read(TRADES, tmp_path / "none.csv", "BHP")


def test_empty_symbol_is_a_feed_error(tmp_path: Path) -> None:
    """A trade without symbol could not be told from another."""
    with pytest.raises(FeedError, match="must not be empty"):
        read(TRADES, write(tmp_path), "")


@needs_asx
def test_real_bhp_file_equals_a_scalar_reading() -> None:
    """91,631 real rows: each value equals what plain Python makes of the text."""
    table, bad = read(TRADES, ASX / "7078.csv", "BHP")
    assert (table.num_rows, bad) == (91_631, [])
    lines = (ASX / "7078.csv").read_bytes().decode().split("\r\n")[:-1]
    rows = table.to_pydict()
    seen: dict[str, int] = {}
    for index, line in enumerate(lines):
        date, time, price, volume, qualifiers, venue, _ = line.split(",")
        seen[date] = seen.get(date, 0) + 1
        assert rows["sequence"][index] == seen[date]
        assert rows["price"][index] == Decimal(price)
        assert rows["size"][index] == Decimal(volume)
        assert rows["conditions"][index] == qualifiers
        assert rows["venue"][index] == (venue or None)
        if index % 97 == 0:
            month, day, year = date.split("/")
            assert rows["ts_event"][index] == nanoseconds(f"{year}-{month}-{day}T{time}")


@needs_asx
@pytest.mark.parametrize(("company", "count"), [("7181", 232), ("3153", 11)])
def test_small_real_files_load_whole(company: str, count: int) -> None:
    """The other files of the data set have no bad row."""
    table, bad = read(TRADES, ASX / f"{company}.csv", "X")
    assert (table.num_rows, bad) == (count, [])


def test_a_quote_with_a_side_of_zeros_has_that_side_empty(tmp_path: Path) -> None:
    """Each column of a quote has the documented value and type."""
    path = write(
        tmp_path,
        "03/10/2014,05:43:45.676,37.7,0.0,300,0",
        "03/10/2014,05:43:45.676,37.7,37.73,300,600",
        "03/11/2014,05:43:45.676,0,37.73,0,600",
    )
    table, bad = read(QUOTES, path, "BHP")
    assert bad == []
    assert table.schema.equals(QUOTES.columns)
    assert table["sequence"].to_pylist() == [1, 2, 1]
    at = nanoseconds("2014-03-10T05:43:45.676")
    assert table.to_pylist()[0] == {
        "exchange": "ASX",
        "symbol": "BHP",
        "sequence": 1,
        "ts_event": at,
        "ts_recv": at,
        "bid_price": Decimal("37.70000000"),
        "bid_size": Decimal("300.00000000"),
        "ask_price": None,
        "ask_size": None,
        "conditions": None,
        "venue": None,
    }
    sides = table.select(["bid_price", "bid_size", "ask_price", "ask_size"]).to_pylist()[1:]
    assert [[*side.values()] for side in sides] == [
        [Decimal("37.7"), 300, Decimal("37.73"), 600],
        [None, None, Decimal("37.73"), 600],
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("03/10/2014,10:00:00.000,1,2,3", "5 fields, not 6"),
        ("03/10/2014,10:00:00.000,1,2,3,4,5", "7 fields, not 6"),
        ("03/10/2014,10:00:00.000,-1,2,3,4", "bid '-1' is not a decimal"),
        ("03/10/2014,10:00:00.000,1,2,x,4", "bid_volume 'x' is not a decimal"),
        ("03/10/2014,10:00:00.000,1,0,3,4", "ask '0' with ask_volume '4': only an empty side"),
        ("03/10/2014,10:00:00.000,1,2,0,4", "bid '1' with bid_volume '0': only an empty side"),
        ("03/10/2014,10:00,1,2,3,4", "is not MM/DD/YYYY HH:MM:SS.mmm"),
    ],
)
def test_a_bad_quote_is_named_and_keeps_its_number(tmp_path: Path, line: str, reason: str) -> None:
    """The rows around it load, and the next one shows the gap."""
    good = "03/10/2014,10:00:00.000,1,2,3,4"
    table, (bad,) = read(QUOTES, write(tmp_path, good, line, good), "BHP")
    assert (bad.line, reason in bad.reason) == (2, True), bad.reason
    assert table["sequence"].to_pylist() == [1, 3]


@needs_asx
def test_real_quotes_load_whole() -> None:
    """Every row of the largest file, and 15 empty sides in all files."""
    folder = ASX.parent / "quotes"
    found = {name: read(QUOTES, folder / f"{name}.csv", name) for name in ("7078", "7181", "3153")}
    assert [table.num_rows for table, _ in found.values()] == [77_849, 549, 60]
    assert all(bad == [] for _, bad in found.values())
    assert sum(table["ask_price"].null_count for table, _ in found.values()) == 15
