"""A TCP proxy that loses connections in the middle of what is answered."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from k2.dev.broker import HOST
from k2.dev.server import Running

__all__ = ["Cuts"]

START_S = 10.0
_READ_BYTES = 64 * 1024


class Cuts(Running):
    """Before a server; a context manager. Half of the connections are reset, half are closed."""

    def __init__(
        self,
        address: tuple[str, int],
        lasting: Callable[[random.Random], int | None],
        seed: int = 0,
        alter: tuple[bytes, bytes] | None = None,
    ) -> None:
        """
        Args:
            address: of the server.
            lasting: after how many bytes of its answers a connection is lost; None: never.
            alter: what is put instead of what, of the same length, wherever it comes in one piece.
        """
        self.cut = 0
        self._address, self._lasting, self._alter = address, lasting, alter
        self._draw = random.Random(seed)
        self._open: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="cuts")

    @property
    def url(self) -> str:
        host, port = self._listener.sockets[0].getsockname()
        return f"http://{host}:{port}"

    def start(self) -> None:
        self._thread.start()
        self._run(self._begin())

    def stop(self) -> None:
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def refuse(self) -> None:
        """Take no connections any more."""
        self._run(self._close())

    def _run(self, doing: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(doing, self._loop).result(START_S)

    # -- in the proxy's own thread from here on

    async def _begin(self) -> None:
        self._listener = await asyncio.start_server(self._pass, HOST, 0)

    async def _close(self) -> None:
        self._listener.close()

    async def _end(self) -> None:
        await self._close()
        for writer in self._open:
            writer.transport.abort()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*others, return_exceptions=True)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            upward, up = await asyncio.open_connection(*self._address)
        except ConnectionError:
            writer.transport.abort()
            return
        self._open |= {up, writer}
        asked = asyncio.create_task(self._forward(reader, up, None))
        try:
            if not await self._forward(upward, writer, self._lasting(self._draw)):
                self.cut += 1
                if self._draw.random() < 0.5:
                    writer.transport.abort()
        except ConnectionError:
            pass  # the client has left
        finally:
            asked.cancel()
            up.transport.abort()
            writer.close()
            self._open -= {up, writer}

    async def _forward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, most: int | None
    ) -> bool:
        """Pass on all there is, or so many bytes; whether it was all."""
        while data := await reader.read(_READ_BYTES):
            if self._alter is not None:
                data = data.replace(*self._alter)
            if most is not None and len(data) >= most:
                writer.write(data[:most])
                await writer.drain()
                return False
            most = None if most is None else most - len(data)
            writer.write(data)
            await writer.drain()
        return True
