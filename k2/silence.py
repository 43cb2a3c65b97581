"""Which symbols and topics have been silent for too long, while their exchange is open.

The time of a symbol's last record is the `ts_event` in its state's header: it is there for all
symbols at once, the same after a restart and for the next owner of the partition, and what sessions
are told by. A feed that is late by more than the limit is silent by it, too.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt

from k2.calendars import Calendar

__all__ = ["Hours", "hours", "quiet"]

_S = 1_000_000_000

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Hours:
    """A moment in the running session; times in ns since the epoch, UTC."""

    now: int
    since: int  # a record from here on is of the running session or of the one before
    open: int  # no clock starts before: the running session's open, `since` of what never closes


def hours(calendar: Calendar | None, zone: str, now: int) -> Hours | None:
    """Return the running session; None: the exchange is closed, and nobody is silent.

    Args:
        calendar: None: the exchange never closes, its sessions are local dates, and a clock goes
            on over midnight.
        zone: of the dates of an exchange without calendar.
        now: ns since the epoch, UTC.
    """
    if calendar is None:
        local = dt.datetime.fromtimestamp(now // _S, ZoneInfo(zone))
        yesterday = local.date() - dt.timedelta(days=1)
        midnight = dt.datetime.combine(yesterday, dt.time(), ZoneInfo(zone))
        since = int(midnight.timestamp()) * _S
        return Hours(now, since, since)
    at = int(np.searchsorted(calendar.begins, now, side="right")) - 1
    if not calendar.opens[at] <= now < calendar.closes[at]:
        return None
    return Hours(now, int(calendar.begins[max(at - 1, 0)]), int(calendar.opens[at]))


def quiet(last: Int64s, moment: Hours, limit_s: int) -> npt.NDArray[np.intp]:
    """Return the places of those that are silent, ascending.

    Args:
        last: n times of last records, ns.
        limit_s: above 0.
    """
    waited = moment.now - np.maximum(last, moment.open)
    return np.flatnonzero((last >= moment.since) & (waited > limit_s * _S))
