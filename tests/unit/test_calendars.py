"""Sessions by calendar: what belongs to which, and what to none."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from k2.calendars import Calendar, load
from k2.errors import SettingError
from k2.feeds.asx import read
from k2.schemas import TRADES
from k2.sequence import Rules, check
from k2.settings import Settings

HOUR = 3600 * 10**9
MARGIN = 4 * HOUR
ASX_DATA = Path(__file__).parents[3] / "shared" / "asx"


def ns(text: str, zone: str = "Australia/Sydney") -> int:
    moment = datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)
    return int(moment.timestamp()) * 10**9


def place(calendar: Calendar | None, *times: int, margin: int = MARGIN) -> list[tuple[str, bool]]:
    """Session and whether out of session of each time, placed all at once and one by one."""
    assert calendar is not None
    days, outside = calendar.place(np.array(times, np.int64), margin)
    strange = np.zeros(len(times), bool) if outside is None else outside
    for i, time in enumerate(times):
        day, alone = calendar.place(np.array([time], np.int64), margin)
        assert (day[0], alone is not None) == (days[i], strange[i])
    dates = np.array(days, "datetime64[D]").astype(str).tolist()
    return list(zip(dates, strange.tolist(), strict=True))


def test_auctions_and_late_reports_belong_to_the_session() -> None:
    """The ASX opens at 10 and closes at 16; four hours around belong to it."""
    texts = ["06:00:00", "07:00:00", "10:00:00", "16:11:30", "20:00:00"]
    times = [ns(f"2014-03-11 {text}") for text in texts]
    assert place(load("XASX"), *times) == [("2014-03-11", False)] * 5


def test_night_weekend_and_holiday_are_out_of_session_with_their_own_date() -> None:
    texts = [
        "2014-03-11 05:59:59",
        "2014-03-11 20:00:01",
        "2014-03-15 12:00:00",
        "2014-04-18 11:00",
    ]
    expected = ["2014-03-11", "2014-03-11", "2014-03-15", "2014-04-18"]  # the last is Good Friday
    found = place(load("XASX"), *map(ns, texts))
    assert found == [(day, True) for day in expected]


def test_a_session_that_spans_midnight_has_one_date() -> None:
    """Chicago's futures trade from 17:00 on the day before."""
    times = [
        ns(f"2014-03-{text}", "America/Chicago") for text in ("10 18:00", "11 02:00", "11 15:00")
    ]
    assert place(load("CMES"), *times) == [("2014-03-11", False)] * 3


def test_margins_that_meet_are_divided_in_the_middle() -> None:
    """With a margin of a whole day nothing is out of session between two trading days."""
    close, opening = ns("2014-03-11 16:00"), ns("2014-03-12 10:00")
    middle = (close + opening) // 2
    found = place(load("XASX"), middle - 1, middle, margin=24 * HOUR)
    assert found == [("2014-03-11", False), ("2014-03-12", False)]


def test_daylight_saving_moves_the_hours() -> None:
    """10:00 in Sydney is 23:00 UTC in March and midnight UTC in June."""
    calendar = load("XASX")
    assert calendar is not None
    for day, text in (("2014-03-11", "2014-03-10 23:00"), ("2014-06-11", "2014-06-11 00:00")):
        number = (date.fromisoformat(day) - date(1970, 1, 1)).days
        assert calendar.open_of(number) == ns(text, "UTC")
    assert calendar.open_of((date(2014, 3, 15) - date(1970, 1, 1)).days) is None
    assert calendar.open_of(1 << 30) is None


def test_times_beyond_the_span_are_out_of_session() -> None:
    times = [0, ns("2250-01-03 12:00"), -(2**63), 2**63 - 1]
    assert place(load("XASX"), *times) == [
        ("1970-01-01", True), ("2250-01-03", True), ("1677-09-21", True), ("2262-04-12", True),
    ]  # fmt: skip


def test_a_calendar_that_begins_late_or_ends_early_is_used_as_far_as_it_goes() -> None:
    """Tokyo's is known from 1997."""
    calendar = load("XTKS")
    assert calendar is not None
    assert calendar.days[0] == (date(1997, 1, 6) - date(1970, 1, 1)).days


def test_what_never_closes_has_no_calendar() -> None:
    assert load("24/7") is None


def test_an_unknown_code_is_refused() -> None:
    with pytest.raises(SettingError, match="calendars: 'XASY' is no code of exchange-calendars"):
        load("XASY")


def test_no_time_has_no_session() -> None:
    assert place(load("XASX")) == []


@pytest.mark.skipif(not ASX_DATA.is_dir(), reason="real data: ../shared/asx is not there")
@pytest.mark.parametrize("company", ["7078", "7181", "3153"])
def test_real_trades_are_all_in_session(company: str) -> None:
    """Auctions before the open and after the close, five days of them, and no gap."""
    rows, _ = read(TRADES, ASX_DATA / "trades" / f"{company}.csv", company)
    n = rows.num_rows
    batch = rows.append_column(TRADES.batch.field("kafka_offset"), [np.arange(n)])
    got = check({}, batch, Rules.of(Settings()))
    assert got.changes == []
    local = rows.column("ts_event").to_numpy() + 11 * HOUR
    assert (got.sessions == local // (24 * HOUR)).all()
