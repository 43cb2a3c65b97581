"""The orders of a reader while its replay runs: pause, resume, speed, seek."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson

from k2.errors import BadQuery
from k2.query.times import check_bounds
from k2.replay.pace import SPEED_MAX

__all__ = ["Control", "speed_of"]

#: Refusals that wait to be told.
REFUSED_MAX = 16


class Control:
    """What a reader may ask for while a replay runs."""

    def __init__(self, end_ns: int | None = None) -> None:
        """`end_ns`: where the replay ends; None: nowhere."""
        self._end_ns = end_ns
        self.paused = False
        self.speed: float | None = None  # to change to
        self.seek: int | None = None  # ns, to go on at
        self.refused: list[str] = []  # why orders were not taken, to be told
        self.changed = asyncio.Event()

    def take(self, text: str | bytes) -> None:
        """Take an order as it came; a wrong one is refused, and changes nothing."""
        try:
            self.order(orjson.loads(text))
        except orjson.JSONDecodeError as exc:
            self.refused.append(f"not JSON: {exc}")
        except BadQuery as exc:
            self.refused.append(str(exc))
        del self.refused[:-REFUSED_MAX]  # whoever sends wrong orders all the time may read slowly
        self.changed.set()

    def order(self, message: Any) -> None:
        """Take `{"op": "pause"|"resume"|"speed"|"seek", "speed": x, "to": ns}`.

        Raises:
            BadQuery: it is nothing of the kind.
        """
        op = message.get("op") if isinstance(message, dict) else None
        if op in ("pause", "resume"):
            self.paused = op == "pause"
        elif op == "speed":
            self.speed = speed_of(message.get("speed"))
        elif op == "seek":
            to = message.get("to")
            if isinstance(to, bool) or not isinstance(to, int):
                raise BadQuery("to", f"{to!r} is not a time in ns")
            check_bounds(to, self._end_ns)
            self.seek = to
        else:
            raise BadQuery("op", f"{op!r} is not one of pause, resume, speed, seek")

    async def wait(self, seconds: float) -> None:
        """Wait for an order, but not longer."""
        try:
            await asyncio.wait_for(self.changed.wait(), seconds)
        except TimeoutError:
            return


def speed_of(value: Any) -> float:
    """A speed: 0, or how many times as fast as time.

    Raises:
        BadQuery: it is none.
    """
    try:
        speed = -1.0 if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        speed = -1.0
    if not 0 <= speed <= SPEED_MAX:
        raise BadQuery("speed", f"{value!r} is not within 0..{SPEED_MAX:.0f}")
    return speed
