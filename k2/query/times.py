"""Times, ranges and intervals as text: read from parameters, and written for people.

A moment is an integer of ns since the epoch, ISO 8601 (a day alone is its midnight; without a zone
it is UTC), `now`, or what was so long ago: `-1h`, `-1h30m`. A range is `first:end`, as rpk has it,
with or without its `@`: `-1h:now`, `2014-03-10:1d`, `@-2h:-1h`. Its first part is a moment, or
`start`, or left out; its end is one, a duration from the first, or `end`, or left out.
"""

from __future__ import annotations

import re
import time
from datetime import date as Date  # noqa: N812
from datetime import datetime, timedelta, timezone

from k2.errors import BadQuery

__all__ = [
    "NS_MAX",
    "NS_MIN",
    "bounds_ns",
    "check_bounds",
    "date",
    "interval_ns",
    "iso",
    "range_ns",
    "time_ns",
]

NS_MIN, NS_MAX = -(2**63), 2**63 - 1

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)  # noqa: UP017 - reads the same everywhere
_UNITS_NS = {
    "ns": 1,
    "us": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
    "d": 86_400_000_000_000,
    "w": 604_800_000_000_000,
}
_DURATION = re.compile(r"(?:[0-9]{1,12}(?:ns|us|ms|s|m|h|d|w))+")
#: rpk takes short numbers for seconds or ms, K2 all for ns: neither is guessed in a range.
_SHORT = re.compile(r"-?[0-9]{1,15}")
_FRACTION = re.compile(r"^(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d)[.,](\d{1,9})(.*)$")


def time_ns(name: str, value: str, now_ns: int | None = None) -> int:
    """ns since the epoch of a moment.

    Args:
        name: the parameter.
        now_ns: what `now` means; None: the clock's.

    Raises:
        BadQuery: it is none.
    """
    if re.fullmatch(r"-?[0-9]{1,19}", value):
        return int(value)
    now_ns = time.time_ns() if now_ns is None else now_ns
    if value == "now":
        return now_ns
    if value.startswith("-") and (past := _duration_ns(value[1:])) is not None:
        return now_ns - past
    # datetime has microseconds only: the fraction is taken off, so that no digit is lost.
    # A '+' of a zone that the client did not encode arrives as a space.
    text, nanoseconds = value.strip(), 0
    text = re.sub(r" (\d\d:?\d\d)$", r"+\1", text) if len(text) > 19 else text
    if match := _FRACTION.match(text):
        text = match[1] + match[3]
        nanoseconds = int(match[2].ljust(9, "0"))
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as exc:
        raise BadQuery(
            name, f"{value!r} is neither ns since the epoch nor ISO 8601, nor like now or -1h"
        ) from exc
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)  # noqa: UP017
    return (moment - _EPOCH) // timedelta(microseconds=1) * 1000 + nanoseconds


def bounds_ns(
    start: str | None, end: str | None, now_ns: int | None = None
) -> tuple[int | None, int | None]:
    """[start, end) of two parameters of these names; `end` may be a duration from `start`.

    Raises:
        BadQuery: one is no moment; or a duration has nothing to begin at.
    """
    now_ns = time.time_ns() if now_ns is None else now_ns
    first = None if start in (None, "start") else time_ns("start", start, now_ns)
    if end in (None, "end"):
        return first, None
    if (length := _duration_ns(end)) is None:
        return first, time_ns("end", end, now_ns)
    if first is None:
        raise BadQuery("end", f"{end!r} is a duration, and there is no start that it begins at")
    return first, first + length


def check_bounds(start_ns: int | None, end_ns: int | None) -> None:
    """Refuse what is no span of time.

    Raises:
        BadQuery: names the parameter.
    """
    for name, value in (("start", start_ns), ("end", end_ns)):
        if value is not None and not NS_MIN <= value <= NS_MAX:
            raise BadQuery(name, f"{value} is outside 64 bits")
    if start_ns is not None and end_ns is not None and start_ns >= end_ns:
        raise BadQuery("start", f"{start_ns} is not before end {end_ns}")


def range_ns(name: str, value: str, now_ns: int | None = None) -> tuple[int | None, int | None]:
    """[start, end) of `first:end`; None: without that bound.

    Raises:
        BadQuery: it is no range, or could be two; `name` is the parameter.
    """
    text = value.strip().removeprefix("@")
    now_ns = time.time_ns() if now_ns is None else now_ns
    found: list[tuple[int | None, int | None]] = []
    why = "its end is missing"
    # A time has colons too: the range's is the one with a moment on either side.
    for at in (place for place, letter in enumerate(text) if letter == ":"):
        first, end = text[:at], text[at + 1 :].removeprefix("@")
        if _SHORT.fullmatch(first) or _SHORT.fullmatch(end):
            why = "a number is ns since the epoch, of 16 digits or more"
            continue
        try:
            bounds = bounds_ns(first or None, end or None, now_ns)
            check_bounds(*bounds)
            found.append(bounds)
        except BadQuery as exc:
            why = str(exc)
    if len(found) != 1:
        if found:
            why = "it could be two"
        elif _is_moment(text, now_ns):
            why = "its end is missing"
        raise BadQuery(name, f"{value!r} is not like -1h:now or 2014-03-10:1d: {why}")
    return found[0]


def _is_moment(text: str, now_ns: int) -> bool:
    try:
        time_ns("", text, now_ns)
    except BadQuery:
        return False
    return True


def _duration_ns(text: str) -> int | None:
    """ns of `1h30m`; None: it is no duration."""
    if not _DURATION.fullmatch(text):
        return None
    return sum(int(n) * _UNITS_NS[unit] for n, unit in re.findall(r"([0-9]+)([a-z]+)", text))


def date(name: str, value: str) -> Date:
    """The date `2014-03-10`.

    Raises:
        BadQuery: not of that form; `name` is the parameter.
    """
    try:
        return datetime.strptime(value, "%Y-%m-%d").date()
    except ValueError as exc:
        raise BadQuery(name, f"{value!r} is not a date like 2014-03-10") from exc


def interval_ns(name: str, value: str) -> int:
    """ns of `250ms`, `1s`, `5m`, `1h`, `1d`.

    Raises:
        BadQuery: not of that form; the engine checks the bounds.
    """
    match = re.fullmatch(r"([1-9][0-9]{0,8})(ms|s|m|h|d)", value)
    if match is None:
        raise BadQuery(name, f"{value!r} is not like 250ms, 1s, 5m, 1h or 1d")
    return int(match[1]) * _UNITS_NS[match[2]]


def iso(ns: int) -> str:
    """ISO 8601 in UTC with all nine digits; `time_ns` reads it back."""
    seconds, nanoseconds = divmod(ns, 1_000_000_000)
    moment = _EPOCH + timedelta(seconds=seconds)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{nanoseconds:09}Z"
