"""Moments and ranges as people write them."""

import datetime as dt

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k2.errors import BadQuery
from k2.query.times import bounds_ns, iso, range_ns, time_ns

SECOND = 1_000_000_000
HOUR = 3600 * SECOND
DAY = 24 * HOUR
START = 1394409600 * SECOND  # 2014-03-10 00:00 UTC
NOW = START + 10 * DAY

ZONES = st.sampled_from(["", "Z", "+11:00", "-03:30", " 11:00"])
PARTS = st.sampled_from(["%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M:%S"])
TIMES = st.datetimes(dt.datetime(1970, 1, 2), dt.datetime(2200, 1, 1))


def written(moment: dt.datetime, form: str, zone: str) -> str:
    return moment.strftime(form) + zone


MOMENTS = (
    st.builds(written, TIMES, PARTS, ZONES)
    | TIMES.map(lambda moment: f"{moment:%Y-%m-%d}")
    | st.integers(10**15, 2**63 - 1).map(str)
    | st.integers(0, 10**18).map(iso)
    | st.sampled_from(["now", "-1h", "-1h30m", "-90us"])
)


@settings(deadline=None)
@given(MOMENTS, MOMENTS, st.sampled_from(["", "@"]))
def test_a_range_of_any_two_moments_is_read_as_these(first: str, last: str, at: str) -> None:
    """However many colons they have of their own."""
    start, end = (time_ns("t", text, NOW) for text in (first, last))
    if start < end:
        assert range_ns("range", f"{at}{first}:{last}", NOW) == (start, end)
    else:
        with pytest.raises(BadQuery, match="range"):
            range_ns("range", f"{at}{first}:{last}", NOW)


@settings(deadline=None)
@given(MOMENTS, st.sampled_from([("1h", HOUR), ("1d", DAY), ("1h30m", 3 * HOUR // 2), ("5ns", 5)]))
def test_a_duration_begins_at_the_first_moment(first: str, length: tuple[str, int]) -> None:
    text, ns = length
    start = time_ns("t", first, NOW)
    if start + ns < 2**63:
        assert range_ns("range", f"{first}:{text}", NOW) == (start, start + ns)
    assert bounds_ns(first, text, NOW) == (start, start + ns)


@pytest.mark.parametrize(
    ("text", "bounds"),
    [
        ("-1h:now", (NOW - HOUR, NOW)),
        ("2014-03-10:1d", (START, START + DAY)),
        ("@-2h:-1h", (NOW - 2 * HOUR, NOW - HOUR)),
        ("@-1m:@now", (NOW - 60 * SECOND, NOW)),
        ("-1w:end", (NOW - 7 * DAY, None)),
        ("2014-03-10:", (START, None)),
        ("start:2014-03-10", (None, START)),
        (":-1h", (None, NOW - HOUR)),
        (":", (None, None)),
        ("2014-03-10T11:00+11:00:250ms", (START, START + SECOND // 4)),
    ],
)
def test_ranges(text: str, bounds: tuple[int | None, int | None]) -> None:
    assert range_ns("range", text, NOW) == bounds


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("2014-03-10", "its end is missing"),
        ("", "its end is missing"),
        ("2014-03-10T10:00:00", "its end is missing"),
        ("1394409600:1h", "16 digits"),  # s in rpk, ns everywhere else in K2
        ("now:-1h", "is not before end"),
        (":1h", "no start"),
        ("yesterday:now", "'yesterday' is neither"),
        ("-1h:1x", "'1x' is neither"),
        ("2014-03-10:999999999999w", "outside 64 bits"),
    ],
)
def test_what_is_no_range_is_refused_with_the_reason(text: str, why: str) -> None:
    with pytest.raises(BadQuery, match=why) as caught:
        range_ns("range", text, NOW)
    assert caught.value.parameter == "range"


def test_start_and_end_have_the_same_grammar() -> None:
    assert bounds_ns("-1h", "now", NOW) == (NOW - HOUR, NOW)
    assert bounds_ns("2014-03-10", "1d", NOW) == (START, START + DAY)
    assert bounds_ns("start", "end", NOW) == bounds_ns(None, None, NOW) == (None, None)
    with pytest.raises(BadQuery, match="end"):
        bounds_ns(None, "1d", NOW)
