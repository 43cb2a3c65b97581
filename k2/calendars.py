"""Which trading session a time belongs to: by an exchange's calendar, or by its local date.

Sessions come from exchange-calendars, which knows holidays, half days and sessions that span
midnight. The library (with pandas: 0.4 s and 60 MB) is loaded when the first record of an exchange
with a calendar arrives; what K2 keeps of a calendar is three arrays.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt

from k2.errors import SettingError

__all__ = ["ALWAYS_OPEN", "FIRST_YEAR", "LAST_YEAR", "Calendar", "load", "local_dates"]

#: The calendar of what never closes: its sessions are local dates, and nothing is out of session.
ALWAYS_OPEN = "24/7"
#: Sessions are known from the first day of this year to the last of that one, or as the calendar
#: has them; any other time is out of session.
FIRST_YEAR, LAST_YEAR = 1990, 2049

_QUARTER_S = 900
_DAY_S = 86_400
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Int64s = npt.NDArray[np.int64]
Days = npt.NDArray[np.int32]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Calendar:
    """Sessions of one exchange, ascending; times in ns since the epoch, UTC."""

    zone: str
    days: Days  # each session's date, as days since the epoch
    opens: Int64s
    closes: Int64s
    begins: Int64s  # from here to the next a time is nearest to this session

    def place(self, times: Int64s, margin_ns: int) -> tuple[Days, Flags | None]:
        """Give each time its session.

        Args:
            times: n times, in any order.
            margin_ns: before the open and after the close a time still belongs to the session:
                auctions, and what is reported late.

        Returns:
            n sessions, and which times are out of session: None where none is. Those keep their
            local date, so that they are not mixed up with the records of a session.
        """
        if not len(times):
            return np.zeros(0, np.int32), None
        low, high = int(times.min()), int(times.max())
        first, last = np.searchsorted(self.begins, [low, high], side="right").tolist()
        if first == last:
            # What a live stream nearly always is: all of one session.
            at: Any = first - 1
            sessions = np.full(len(times), self.days[at], np.int32)
            if self.opens[at] - margin_ns <= low and high <= self.closes[at] + margin_ns:
                return sessions, None
        else:
            at = np.searchsorted(self.begins, times, side="right") - 1
            sessions = self.days[at]
        outside = (times < self.opens[at] - margin_ns) | (times > self.closes[at] + margin_ns)
        if not outside.any():
            return sessions, None
        sessions[outside] = local_dates(times[outside], self.zone)
        return sessions, outside

    def open_of(self, day: int) -> int | None:
        """When the session of that date opens; None if there is none."""
        at = int(np.searchsorted(self.days, day))
        if at == len(self.days) or int(self.days[at]) != day:
            return None
        return int(self.opens[at])


@lru_cache(maxsize=64)
def load(code: str) -> Calendar | None:
    """Return the sessions of a calendar by its code, as XASX; None for `ALWAYS_OPEN`.

    Raises:
        SettingError: exchange-calendars has no such code.
    """
    if code == ALWAYS_OPEN:
        return None
    import exchange_calendars
    from exchange_calendars.errors import InvalidCalendarName

    try:
        # The default span is known to every calendar; the class tells how far it may go.
        kind = type(exchange_calendars.get_calendar(code))
    except InvalidCalendarName as exc:
        raise SettingError(f"calendars: {code!r} is no code of exchange-calendars") from exc
    start, end = f"{FIRST_YEAR}-01-01", f"{LAST_YEAR}-12-31"
    if (least := kind.bound_min()) is not None:
        start = max(start, least.date().isoformat())
    if (most := kind.bound_max()) is not None:
        end = min(end, most.date().isoformat())
    sessions = kind(start=start, end=end)
    opens, closes = (
        column.dt.tz_convert(None).to_numpy("datetime64[ns]").astype(np.int64)
        for column in (sessions.opens, sessions.closes)
    )
    begins = np.empty(len(opens), np.int64)
    begins[0] = np.iinfo(np.int64).min
    begins[1:] = closes[:-1] + (opens[1:] - closes[:-1]) // 2
    days = sessions.sessions.to_numpy("datetime64[D]").astype(np.int32)
    return Calendar(str(sessions.tz), days, opens, closes, begins)


def local_dates(times: Int64s, zone: str) -> Days:
    """Return the local date in `zone` of each time (ns, UTC), as days since the epoch."""
    seconds = times // 1_000_000_000
    if zone != "UTC" and len(times):
        # Zones have changed their offset on whole quarters of an hour UTC for a century: one
        # look-up a quarter in the batch, not one a row.
        quarters = seconds // _QUARTER_S
        low = int(quarters.min())
        span = int(quarters.max()) - low + 1
        if span > 1 << 16:  # stray timestamps must not make the look-up table grow
            distinct, place = np.unique(quarters, return_inverse=True)
            seconds = seconds + np.array([_utc_offset_s(zone, q) for q in distinct.tolist()])[place]
        else:
            place = quarters - low
            table = np.zeros(span, np.int64)
            table[place] = 1
            for q in np.flatnonzero(table).tolist():
                table[q] = _utc_offset_s(zone, low + q)
            seconds = seconds + table[place]
    return (seconds // _DAY_S).astype(np.int32)


@lru_cache(maxsize=1 << 16)
def _utc_offset_s(zone: str, quarter: int) -> int:
    moment = _EPOCH + timedelta(seconds=quarter * _QUARTER_S)
    offset = moment.astimezone(ZoneInfo(zone)).utcoffset() or timedelta()
    return int(offset.total_seconds())
