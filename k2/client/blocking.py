"""The client that blocks, by urllib3."""

from __future__ import annotations

import contextlib
import http.client
import time
from collections.abc import Generator, Iterator
from typing import Any, TypeVar
from weakref import WeakSet

import urllib3

from k2.client.answers import Replay, Rows
from k2.client.ask import Ask
from k2.client.course import Course
from k2.client.errors import ClientError, CutOff
from k2.client.pages import Give, Head, Open, Page, Pages, Pause, Read, Steps, value
from k2.client.resources import CONNECT_TIMEOUT_S, Resources, closed, place, unreachable

__all__ = ["Client"]

T = TypeVar("T")
_READ_BYTES = 256 * 1024
#: Connections that are kept for the next requests.
_KEPT = 16
_LOST = (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError)


class Client(Resources[Rows, dict[str, Any], Replay]):
    """Asks one worker; may be shared by threads. What it gives, one thread reads.

    with Client("http://127.0.0.1:6066") as k2:
        frame = k2.trades(symbol="BHP", range="2014-03-10:1d").polars()
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
        self.base, self.headers = place(url, key)
        self.connect_timeout_s = connect_timeout_s
        self.closed = False
        self.pool = urllib3.PoolManager(maxsize=_KEPT, retries=False)
        self._wires: WeakSet[_Wire] = WeakSet()

    def close(self) -> None:
        """Close every connection, also of answers that are being read, by other threads too."""
        self.closed = True
        for wire in list(self._wires):
            wire.wake()
            wire.close()
        self.pool.clear()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def _rows(self, pages: Pages) -> Rows:
        given = self._done(pages.steps())
        page = next(given)
        assert isinstance(page, Page)
        return Rows(given, page)

    def _value(self, ask: Ask, *fine: int) -> dict[str, Any]:
        (found,) = self._done(value(ask, *fine))
        return found

    def _replay(self, course: Course) -> Replay:
        return Replay(course, self._done(course.steps()))

    def _done(self, steps: Steps[T]) -> Generator[T, None, None]:
        wire = _Wire(self)
        self._wires.add(wire)
        return _done(steps, wire)


def _done(steps: Steps[T], wire: _Wire) -> Generator[T, None, None]:
    """Do what a generator says, and give what it gives."""
    try:
        step = next(steps)
        while True:
            if isinstance(step, Give):
                yield step.item
                step = next(steps)
                continue
            try:
                came = wire.do(step)
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

    def __init__(self, client: Client) -> None:
        self._client = client
        self._answer: urllib3.BaseHTTPResponse | None = None
        self._body: Iterator[bytes] = iter(())

    def do(self, step: Open | Read | Pause) -> Head | bytes | None:
        """
        Raises:
            Unreachable, CutOff: the connection is not there, or is lost.
        """
        match step:
            case Open(ask):
                return self._open(ask)
            case Read():
                return self._read()
            case Pause(seconds):
                self.close()
                time.sleep(seconds)
                return None

    def _open(self, ask: Ask) -> Head:
        self.close()
        client = self._client
        if client.closed:
            raise closed(client.base)
        try:
            self._answer = answer = client.pool.request(
                ask.method,
                client.base + ask.target,
                body=ask.body,
                headers={**ask.headers, **client.headers},
                timeout=urllib3.Timeout(connect=client.connect_timeout_s, read=ask.silent_s),
                preload_content=False,
                redirect=False,  # the key is for this worker, not for another place
            )
        except _LOST as exc:
            raise unreachable(client.base, exc) from exc
        self._body = answer.stream(_READ_BYTES)
        named = {name.lower(): text for name, text in answer.headers.items()}
        return Head(answer.status, answer.reason or "", named)

    def _read(self) -> bytes:
        try:
            return next(self._body, b"")
        except (*_LOST, ValueError) as exc:  # or it was closed meanwhile, by another thread
            raise CutOff(f"{self._client.base}: {exc}") from exc

    def wake(self) -> None:
        """Let a thread that waits for bytes go on; there may be none, or no connection any more."""
        if (answer := self._answer) is not None:
            with contextlib.suppress(ValueError, RuntimeError, OSError):
                answer.shutdown()

    def close(self) -> None:
        answer, self._answer = self._answer, None
        self._body = iter(())
        if answer is not None:
            answer.close()
