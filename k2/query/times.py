"""Times and intervals as text: read from parameters, and written for people."""

from __future__ import annotations

import re
from datetime import date as Date  # noqa: N812
from datetime import datetime, timedelta, timezone

from k2.errors import BadQuery

__all__ = ["date", "interval_ns", "iso", "time_ns"]

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)  # noqa: UP017 - reads the same everywhere
_UNITS_NS = {
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
    "d": 86_400_000_000_000,
}
_FRACTION = re.compile(r"^(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d)[.,](\d{1,9})(.*)$")


def time_ns(name: str, value: str) -> int:
    """ns since the epoch of `value`: an integer of ns, or ISO 8601 (without a zone: UTC).

    Raises:
        BadQuery: neither; `name` is the parameter.
    """
    if re.fullmatch(r"-?[0-9]{1,19}", value):
        return int(value)
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
        raise BadQuery(name, f"{value!r} is neither ns since the epoch nor ISO 8601") from exc
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)  # noqa: UP017
    return (moment - _EPOCH) // timedelta(microseconds=1) * 1000 + nanoseconds


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
