"""The client that is awaited, by aiohttp."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from typing import Any, TypeVar
from weakref import WeakSet

import aiohttp
from yarl import URL

from k2.client.answers import AsyncReplay, AsyncRows
from k2.client.ask import Ask
from k2.client.course import Course
from k2.client.errors import ClientError, CutOff
from k2.client.pages import Give, Head, Open, Page, Pages, Pause, Read, Steps, value
from k2.client.resources import CONNECT_TIMEOUT_S, Resources, closed, place, unreachable

__all__ = ["AsyncClient"]

T = TypeVar("T")
_LOST = (aiohttp.ClientError, TimeoutError, OSError)


class AsyncClient(Resources[Awaitable[AsyncRows], Awaitable[dict[str, Any]], AsyncReplay]):
    """Asks one worker, on one event loop.

    async with AsyncClient("http://127.0.0.1:6066") as k2:
        rows = await k2.trades(symbol="BHP", range="2014-03-10:1d")
        frame = await rows.polars()
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        key: str | None = None,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
    ) -> None:
        """Nothing is sent yet.

        Args:
            url: of a worker; None: that of this machine's settings.
            key: API key; None: K2_API_KEY.
        """
        self.base, self._headers = place(url, key)
        self.connect_timeout_s = connect_timeout_s
        self.closed = False
        self._made: aiohttp.ClientSession | None = None
        self._wires: WeakSet[_Wire] = WeakSet()

    async def close(self) -> None:
        """Close every connection, also of answers that are being read."""
        self.closed = True
        for wire in list(self._wires):
            wire.close()
        if self._made is not None:
            await self._made.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.close()

    @property
    def session(self) -> aiohttp.ClientSession:
        """Made with the first request, on its event loop."""
        if self._made is None:
            self._made = aiohttp.ClientSession(
                headers=self._headers,
                connector=aiohttp.TCPConnector(limit=0),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._made

    async def _rows(self, pages: Pages) -> AsyncRows:
        given = self._done(pages.steps())
        page = await anext(given)
        assert isinstance(page, Page)
        return AsyncRows(given, page)

    async def _value(self, ask: Ask, *fine: int) -> dict[str, Any]:
        (found,) = [one async for one in self._done(value(ask, *fine))]
        return found

    def _replay(self, course: Course) -> AsyncReplay:
        return AsyncReplay(course, self._done(course.steps()))

    def _done(self, steps: Steps[T]) -> AsyncGenerator[T, None]:
        wire = _Wire(self)
        self._wires.add(wire)
        return _done(steps, wire)


async def _done(steps: Steps[T], wire: _Wire) -> AsyncGenerator[T, None]:
    """Do what a generator says, and give what it gives."""
    try:
        step = next(steps)
        while True:
            if isinstance(step, Give):
                yield step.item
                step = next(steps)
                continue
            try:
                came = await wire.do(step)
            except ClientError as exc:
                step = steps.throw(exc)
            else:
                step = steps.send(came)
    except StopIteration:
        return
    finally:
        steps.close()
        wire.close()


class _Wire:
    """One request after the other; what was open before is closed."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._answer: aiohttp.ClientResponse | None = None

    async def do(self, step: Open | Read | Pause) -> Head | bytes | None:
        """
        Raises:
            Unreachable, CutOff: the connection is not there, or is lost.
        """
        match step:
            case Open(ask):
                return await self._open(ask)
            case Read():
                return await self._read()
            case Pause(seconds):
                self.close()
                await asyncio.sleep(seconds)
                return None

    async def _open(self, ask: Ask) -> Head:
        self.close()
        client = self._client
        if client.closed:
            raise closed(client.base)
        limit = aiohttp.ClientTimeout(
            total=None, sock_connect=client.connect_timeout_s, sock_read=ask.silent_s
        )
        try:
            self._answer = answer = await client.session.request(
                ask.method,
                URL(client.base + ask.target, encoded=True),
                data=ask.body,
                headers=ask.headers,
                timeout=limit,
                allow_redirects=False,  # the key is for this worker, not for another place
            )
        except _LOST as exc:
            raise unreachable(client.base, exc) from exc
        named = {name.lower(): text for name, text in answer.headers.items()}
        return Head(answer.status, answer.reason or "", named)

    async def _read(self) -> bytes:
        if self._answer is None:
            return b""
        try:
            return await self._answer.content.readany()
        except _LOST as exc:
            raise CutOff(f"{self._client.base}: {exc or type(exc).__name__}") from exc

    def close(self) -> None:
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.close()
