"""When the exchanges' sessions begin and end: by their calendars, else by their local dates."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

import numpy as np

from k2 import calendars
from k2.calendars import Calendar
from k2.settings import Settings

__all__ = ["Hours", "Sessions"]

_EPOCH = date(1970, 1, 1)
_S = 1_000_000_000


class Hours(NamedTuple):
    """A session: its date, and [opens, closes) in ns since the epoch, UTC."""

    day: date
    opens: int
    closes: int


class Sessions:
    """The sessions of all exchanges that the settings tell of; those of any other are UTC's days.

    Raises:
        SettingError: an exchange's calendar does not exist; from every method.
    """

    def __init__(self, settings: Settings) -> None:
        self._zones = settings.exchange_zones
        self._codes = settings.exchange_calendars

    @property
    def closing(self) -> list[str]:
        """The exchanges that close: those with a calendar, but for the one that never does."""
        return [name for name, code in self._codes.items() if code != calendars.ALWAYS_OPEN]

    def opens(self, exchange: str, day: date) -> int:
        """When the session of that date opens; without one, the date's midnight."""
        calendar = self._calendar(exchange)
        found = calendar.open_of((day - _EPOCH).days) if calendar else None
        return self.midnight(exchange, day) if found is None else found

    def midnight(self, exchange: str, day: date) -> int:
        """When the date begins where the exchange is."""
        calendar = self._calendar(exchange)
        return _midnight(day, calendar.zone if calendar else self._zones.get(exchange, "UTC"))

    def meeting(self, exchange: str, start_ns: int, end_ns: int) -> Iterator[Hours]:
        """The sessions of which some is in [start_ns, end_ns), ascending."""
        if start_ns >= end_ns:
            return
        if (calendar := self._calendar(exchange)) is not None:
            first = int(np.searchsorted(calendar.closes, start_ns, side="right"))
            last = int(np.searchsorted(calendar.opens, end_ns, side="left"))
            for at in range(first, last):
                day = _EPOCH + timedelta(days=int(calendar.days[at]))
                yield Hours(day, int(calendar.opens[at]), int(calendar.closes[at]))
            return
        zone = self._zones.get(exchange, "UTC")
        day = datetime.fromtimestamp(start_ns // _S, ZoneInfo(zone)).date()
        while (opens := _midnight(day, zone)) < end_ns:
            following = day + timedelta(days=1)
            yield Hours(day, opens, _midnight(following, zone))
            day = following

    def _calendar(self, exchange: str) -> Calendar | None:
        return calendars.load(self._codes.get(exchange, calendars.ALWAYS_OPEN))


def _midnight(day: date, zone: str) -> int:
    return int(datetime.combine(day, datetime.min.time(), ZoneInfo(zone)).timestamp()) * _S
