"""One replay for one reader: history in its pace, then what is live, under the reader's control.

It reads ahead by one window, sends nothing before the reader has taken what was sent before, and
drops nothing: whoever reads slowly has a slow replay.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa

from k2.errors import BadQuery, CatalogUnavailable, PeerUnavailable
from k2.query.rows import Stop
from k2.query.span import Span
from k2.query.times import NS_MAX
from k2.replay.archive import Archive, Moment, Selection
from k2.replay.control import Control
from k2.replay.cursor import START, Cursor, Pin, Position
from k2.replay.digest import Digest
from k2.replay.history import History
from k2.replay.live import Gather, Live
from k2.replay.pace import Pace

__all__ = ["THREADS", "Play", "Reader"]

#: Of their own: replays and queries do not wait for each other's threads.
THREADS = ThreadPoolExecutor(4, thread_name_prefix="k2-replay")
HEARTBEAT_S = 5.0
#: How often the workers are asked for what is new.
POLL_S = 0.05
#: Rows of one piece; what is written at once, and how far a command can be late.
PIECE_ROWS = 32_768
_STOP_EVERY_S = 0.02
_T = TypeVar("_T")


class Reader(Protocol):
    """Where a replay goes; each call returns when there is room for more."""

    async def rows(self, rows: pa.Table) -> None: ...

    async def say(self, what: dict[str, Any]) -> None: ...


@dataclass(slots=True)
class _Begun:
    """What is being read: a pin, from a position on."""

    moment: Moment
    pin: Pin
    which: Selection
    after: Position  # live, if the pin is: no history is left
    since: str | int | None = None  # the cursor or the time, ns, that it was begun at


class Play:
    """Call `prepare`, then `run`."""

    def __init__(
        self,
        archive: Archive,
        which: Selection,
        speed: float = 0.0,
        cursor: str | None = None,
        follow: Gather | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`follow`: how to ask the workers for what comes behind the history; None: it ends there.

        Raises:
            BadQuery: to follow, there must be no end.
        """
        if follow is not None and which.end_ns is not None:
            raise BadQuery("end", "not together with follow")
        self._follow = follow
        self.control = Control(which.end_ns)
        self._archive, self._which, self._text = archive, which, cursor
        self._pace = Pace(speed, clock)
        self._said = 0.0  # when something was sent last
        self._cursor = ""  # of the last record that was sent
        self._begun: _Begun

    @property
    def cursor(self) -> str:
        """Of the last record that was sent."""
        return self._cursor

    async def prepare(self) -> None:
        """Load the tables, and take up the cursor; fails before anything is sent.

        Raises:
            BadQuery: the cursor is none of this lake.
            CatalogUnavailable: a table cannot be loaded.
            PeerUnavailable: the workers must be asked, and cannot.
        """
        if self._text is None:
            moment = await self._in_thread(self._archive.now)
            self._begun = _Begun(moment, moment.pin, self._which, START)
            return
        moment, cursor = await self._taken_up(self._text)
        if cursor.pin.live and self._follow is None:
            raise BadQuery("cursor", "it is of a live record: ask with follow=true")
        self._begun = _Begun(moment, cursor.pin, self._which, cursor.position, self._text)

    async def _taken_up(self, text: str) -> tuple[Moment, Cursor]:
        try:
            return await self._in_thread(lambda: self._archive.at(text))
        except BadQuery:
            if self._follow is None:
                raise
        # It may be of a topic of which nothing is committed yet: the owners know it.
        nothing = Span(start_ns=NS_MAX)
        asked = [await self._follow(kind, nothing, {}) for kind in self._which.kinds]
        known = {part.source for fresh in asked for part in fresh.parts}
        return await self._in_thread(lambda: self._archive.at(text, known))

    async def run(self, reader: Reader) -> None:
        """Replay to the end; if it follows, until the reader has gone.

        Raises:
            CatalogUnavailable, QueryTooLarge: as `History.read`.
            ConnectionError: the reader is gone.
        """
        while True:
            begun = self._begun
            self._cursor = begun.pin.cursor(begun.after)
            await self._say(reader, "replay_started", speed=self._pace.speed, since=begun.since)
            if begun.pin.live:
                await self._live(reader, Cursor(begun.pin, begun.after))
            else:
                digest = await self._history(reader, begun)
                if digest is not None:
                    done = await self._completed(reader, begun, digest)
                    if self._follow is None:
                        return
                    await self._live(reader, Cursor(done, START))
            await self._sought()

    async def _completed(self, reader: Reader, begun: _Begun, digest: Digest) -> Pin:
        done = Pin(begun.pin.following, begun.pin.seen, live=True)
        self._cursor = done.cursor(START)
        counts = {f"{name}s": count for name, count in digest.counts.items()}
        await self._say(reader, "replay_completed", **counts, digest=digest.text, since=begun.since)
        return done

    async def _sought(self) -> None:
        """Begin anew at another time: of the same pin, or behind what is live of a new one."""
        to, self.control.seek = self.control.seek, None
        given, begun = self._which, self._begun
        which = Selection(given.kinds, given.exchange, given.symbols, to, given.end_ns)
        self._pace.rest()
        moment, pin = begun.moment, begun.pin
        if self._follow is not None:
            moment = await self._in_thread(self._archive.now)
            pin = moment.pin
        self._begun = _Begun(moment, pin, which, START, to)

    async def _live(self, reader: Reader, cursor: Cursor) -> None:
        """Send what comes, as it comes, until the reader wants another time."""
        assert self._follow is not None
        live = Live(self._archive, self._follow, self._which, cursor, self._in_thread, Stop())
        why = ""
        while not await self._ordered(reader):
            began = time.monotonic()
            try:
                async for rows in live.round():
                    for first in range(0, rows.num_rows, PIECE_ROWS):
                        await self._send(reader, rows.slice(first, PIECE_ROWS))
                        if self.control.seek is not None:
                            return
                why = ""
            except (PeerUnavailable, CatalogUnavailable) as exc:
                # While partitions change hands, or the catalog is away: it goes on where it is.
                if not why:
                    why = str(exc)
                    await self._say(reader, "waiting", detail=why)
            self._cursor = live.cursor
            await self._rest(reader, max(0.0, POLL_S - (time.monotonic() - began)))

    async def _send(self, reader: Reader, rows: pa.Table) -> None:
        began = time.monotonic()
        await reader.rows(rows)
        self._said = time.monotonic()
        self._pace.sent(self._said - began)
        self._cursor = rows["cursor"][-1].as_py()

    async def _history(self, reader: Reader, begun: _Begun) -> Digest | None:
        """Send all of a history; None: the reader wants another time."""
        stop = Stop()
        given = (begun.moment, begun.pin, begun.which, begun.after, stop)
        reading: list[asyncio.Future[Any]] = []
        history: History | None = None

        def read(call: Callable[[], _T]) -> asyncio.Future[_T]:
            reading[:] = [self._in_thread(call)]
            return reading[0]

        try:
            history = await self._waited(reader, read(lambda: History(self._archive, *given)))
            ahead = read(history.read)
            while (rows := await self._waited(reader, ahead)) is not None:
                ahead = read(history.read)
                async for piece in self._pieces(reader, rows):
                    await self._send(reader, piece)
                if self.control.seek is not None:
                    return None
            return history.digest
        finally:
            await _ended(reading, stop)
            if history is not None:
                history.close()

    async def _pieces(self, reader: Reader, rows: pa.Table) -> AsyncIterator[pa.Table]:
        """Rows as they become due; ends where the reader wants another time."""
        times = rows["ts_event"].to_numpy()
        at, count = 0, len(times)
        while at < count:
            if await self._ordered(reader):
                return
            due = self._pace.due(int(times[at]))
            end = count if due is None else int(np.searchsorted(times, due, side="right"))
            if end > at:
                end = min(end, at + PIECE_ROWS)
                yield rows.slice(at, end - at)
                at = end
            else:
                await self._rest(reader, self._pace.until(int(times[at])))

    async def _ordered(self, reader: Reader) -> bool:
        """Do what the reader has asked for, wait while it pauses; whether it wants another time."""
        control = self.control
        paused = False
        while True:
            control.changed.clear()
            while control.refused:
                await self._say(reader, "refused", detail=control.refused.pop(0))
            if control.speed is not None:
                self._pace.change(control.speed)
                control.speed = None
                await self._say(reader, "speed", speed=self._pace.speed)
            if control.seek is not None:
                return True
            if control.paused != paused:
                paused = control.paused
                self._pace.rest()
                await self._say(reader, "paused" if paused else "resumed")
            if not paused:
                return False
            await self._rest(reader, HEARTBEAT_S)

    async def _rest(self, reader: Reader, seconds: float) -> None:
        """Wait until an order comes, a time has passed, or something should be heard of us."""
        left = max(0.0, self._said + HEARTBEAT_S - time.monotonic())
        await self.control.wait(min(seconds, left))
        await self._beat(reader)

    async def _beat(self, reader: Reader) -> None:
        if time.monotonic() - self._said >= HEARTBEAT_S:
            await self._say(reader, "heartbeat")

    async def _waited(self, reader: Reader, task: asyncio.Future[_T]) -> _T:
        """What a thread finds; heartbeats meanwhile, so that a reader who is gone is noticed."""
        while not (await asyncio.wait([task], timeout=HEARTBEAT_S))[0]:
            await self._beat(reader)
        return task.result()

    async def _say(self, reader: Reader, kind: str, **more: Any) -> None:
        self._said = time.monotonic()
        await reader.say({"type": kind, **more, "cursor": self._cursor})

    def _in_thread(self, call: Callable[[], _T]) -> asyncio.Future[_T]:
        return asyncio.get_running_loop().run_in_executor(THREADS, call)


async def _ended(reading: list[asyncio.Future[Any]], stop: Stop) -> None:
    """Interrupt what a thread still reads, and wait for it."""
    for task in reading:
        while not task.done():
            stop.now()
            await asyncio.wait([task], timeout=_STOP_EVERY_S)
        if not task.cancelled():
            task.exception()  # looked at, so that nobody logs the interrupted query
