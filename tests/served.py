"""A web application on a server as Faust makes it, in a thread of its own."""

from __future__ import annotations

import asyncio
import http.client
import threading
from types import TracebackType
from typing import Any

import orjson
from aiohttp import web

WAIT_S = 30.0


class Served:
    """Serves from `with` to its end."""

    def __init__(self, app: web.Application) -> None:
        self._app = app
        self._begun = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    def __enter__(self) -> Served:
        self._thread.start()
        assert self._begun.wait(WAIT_S)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(WAIT_S)

    async def _serve(self) -> None:
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        runner = web.AppRunner(self._app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.address: tuple[str, int] = runner.addresses[0]
        self._begun.set()
        await self._ended.wait()
        await runner.cleanup()

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(*self.address, timeout=60)

    def post(
        self, path: str, body: bytes | dict[str, Any], **headers: str
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """Status, headers and body of the answer."""
        connection = self.connection()
        try:
            data = body if isinstance(body, bytes) else orjson.dumps(body)
            sent = {"Content-Type": "application/json", **headers}
            connection.request("POST", path, data, sent)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()
