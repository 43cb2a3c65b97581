"""How an answer is taken up, page by page. No I/O: generators say what is to be done next.

A generator yields a step: `Open` a request, `Read` of its answer, `Pause`, or `Give` a piece to
the caller; and is sent what came of it, or thrown what went wrong.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

import orjson
import pyarrow as pa

from k2.client.arrow import Batches
from k2.client.ask import Ask
from k2.client.errors import ClientError, CutOff, refusal
from k2.client.told import Told

__all__ = ["Give", "Head", "Open", "Page", "Pages", "Pause", "Read", "Steps", "opened", "value"]

T = TypeVar("T")
#: A problem is shorter; a proxy's page may be longer.
_PROBLEM_BYTES_MAX = 64 * 1024


class Head(NamedTuple):
    """The beginning of an answer; headers by their names in small letters."""

    status: int
    reason: str
    headers: Mapping[str, str]


class Open(NamedTuple):
    """Ask; what was open before is closed. Sent back: a `Head`."""

    ask: Ask


class Read(NamedTuple):
    """Sent back: some bytes of the answer as they are, b"" behind its end."""


class Pause(NamedTuple):
    """Wait."""

    seconds: float


class Give(NamedTuple, Generic[T]):
    """What the caller gets."""

    item: T


Steps = Generator[Open | Read | Pause | Give[T], Any, None]


def opened(ask: Ask, *fine: int) -> Generator[Open | Read, Any, Head]:
    """Ask, and take up a refusal.

    Args:
        fine: other statuses than 200 that are answers.

    Raises:
        Refused: the worker answers with a problem.
        ClientError: the answer is of another type than it should be.
    """
    head: Head = yield Open(ask)
    kind = head.headers.get("content-type", "").partition(";")[0]
    if head.status in (200, *fine) and kind == ask.accept:
        return head
    if head.status == 200:
        raise ClientError(f"{ask.path}: the answer is {kind or 'of no type'}, not {ask.accept}")
    body = b""
    while len(body) < _PROBLEM_BYTES_MAX and (data := (yield Read())):
        body += data
    raise refusal(head.status, head.reason, head.headers, body)


def value(ask: Ask, *fine: int) -> Steps[dict[str, Any]]:
    """Gives one JSON object.

    Raises:
        Refused: as `opened`.
        CutOff: it was not whole.
    """
    yield from opened(ask, *fine)
    body = b""
    while data := (yield Read()):
        body += data
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        raise CutOff(f"{ask.path}: the answer is no whole JSON: {exc}") from exc
    yield Give(found)


class Page(NamedTuple):
    """What is given: the schema first, and with each page what is known of it."""

    told: Told
    schema: pa.Schema


class Pages:
    """The rows of one answer, however many requests they take."""

    def __init__(self, ask: Ask, limit: int | None = None, page_rows: int | None = None) -> None:
        """
        Args:
            limit: rows in all; None: all there are.
            page_rows: rows of one request at most; None: as many as the worker gives.
        """
        if page_rows is not None and page_rows < 1:
            raise ValueError(f"page_rows: {page_rows} is below 1")
        self._ask, self._limit, self._page_rows = ask, limit, page_rows

    def steps(self) -> Steps[Page | pa.RecordBatch]:
        """
        Raises:
            Refused: as `opened`.
            CutOff: an answer was not whole.
        """
        ask, left = self._ask, self._limit
        while True:
            sizes = [size for size in (left, self._page_rows) if size is not None]
            head = yield from opened(ask.but(limit=min(sizes, default=None)))
            told, rows = Told.read(head.headers), Batches()
            begun = False
            while data := (yield Read()):
                batches = rows.feed(data)
                if rows.schema is not None and not begun:
                    begun = True
                    yield Give(Page(told, rows.schema))
                for batch in batches:
                    left = None if left is None else left - batch.num_rows
                    yield Give(batch)
            if not rows.ended:
                raise CutOff(f"{ask.path}: the answer ended before its end")
            if told.next is None or left == 0:
                return
            ask = ask.but(cursor=told.next)
