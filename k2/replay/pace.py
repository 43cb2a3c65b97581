"""When each record is due: event time, made to pass `speed` times as fast as time does."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["SPEED_MAX", "STEP_S", "Pace"]

#: Records are sent in steps of about this time.
STEP_S = 0.02
SPEED_MAX = 1e6


class Pace:
    """The clock of one replay; it begins with the first record after a start, pause or seek.

    A reader that takes longer than a step to take what it is sent stops the clock meanwhile: the
    replay becomes slower, and is not caught up with.
    """

    def __init__(self, speed: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`speed`: 0 is as fast as it goes; `clock`: s."""
        self._speed, self._clock = speed, clock
        self._began: tuple[int, float] | None = None  # event time, ns, and when it was due

    @property
    def speed(self) -> float:
        return self._speed

    def change(self, speed: float) -> None:
        """Let time pass at another speed, from the time it is now on."""
        if self._began is not None and self._speed:
            self._began = (self._now(*self._began), self._clock())
        else:
            self._began = None
        self._speed = speed

    def rest(self) -> None:
        """Let the clock begin anew, with the next record."""
        self._began = None

    def due(self, ts_event: int) -> int | None:
        """Through which event time, ns, records are due, `ts_event` being the next; None: all."""
        if not self._speed:
            return None
        if self._began is None:
            self._began = (ts_event, self._clock())
        return self._now(*self._began)

    def until(self, ts_event: int) -> float:
        """In how many seconds a record is due that is not yet; at least a step."""
        if self._began is None or not self._speed:
            return 0.0
        return max(STEP_S, (ts_event - self._now(*self._began)) / self._speed / 1e9)

    def sent(self, seconds: float) -> None:
        """Tell how long the reader took to take what it was sent."""
        if self._began is not None and seconds > STEP_S:
            event, began = self._began
            self._began = (event, began + seconds - STEP_S)

    def _now(self, event: int, began: float) -> int:
        return event + int((self._clock() - began) * self._speed * 1e9)
