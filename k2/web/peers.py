"""How a worker is asked by another one; `group` and `remote` know which of them owns what.

Whoever is asked looks whether the partition is its own, since the map of a worker that was frozen
is an old one.

A question is a POST, its parameters a form in the body: a worker may be asked for thousands of
partitions, and a URL has 8 KB.
"""

from __future__ import annotations

import abc
import asyncio
from collections.abc import Coroutine, Iterable, Mapping
from typing import Any, TypeVar

import aiohttp
import orjson
from aiohttp import web

from k2.errors import NotOwner, PeerUnavailable, QueryTooLarge
from k2.keys import authorization
from k2.query.room import Room
from k2.web.params import Parameters

__all__ = ["OWNERS", "Owners", "Peers", "all_of", "question"]

#: Who owns what, as a member of the group knows it; the answer is `Owners` in JSON.
OWNERS = "/internal/owners"
FORM = "application/x-www-form-urlencoded"
ANSWER_TIMEOUT_S = 10.0
CONNECT_TIMEOUT_S = 2.0
ANSWER_BYTES_MAX = 64 * 1024 * 1024

_T = TypeVar("_T")

#: By URL of a worker: topic and partitions, ascending.
Owners = dict[str, dict[str, list[int]]]


class Peers(abc.ABC):
    """The workers that own partitions; on the event loop only."""

    def __init__(self, group_secret: str) -> None:
        self._group_secret = group_secret

    @property
    @abc.abstractmethod
    def own(self) -> str | None:
        """The URL by which the others know this worker; None: they do not ask it."""

    @abc.abstractmethod
    async def owners(self, *, again: bool = False) -> Owners:
        """Return who owns what, each partition of each topic once.

        Args:
            again: what was known before has proved wrong.

        Raises:
            PeerUnavailable: partitions are being assigned, or not all are known to be.
        """

    @abc.abstractmethod
    def require_settled(self) -> None:
        """Refuse while nobody can be asked.

        Raises:
            PeerUnavailable: partitions are being assigned, or this worker is stopping.
        """

    @abc.abstractmethod
    def _client(self) -> aiohttp.ClientSession:
        """What asks over HTTP."""

    async def ask(
        self,
        url: str,
        path: str,
        params: Mapping[str, str] | None = None,
        room: Room | None = None,
    ) -> bytearray:
        """Put a question to one worker, which reads it by `question`.

        Args:
            room: for this answer and others that are gathered with it; None: for it alone.

        Raises:
            NotOwner: it says that it does not own what it was asked for.
            PeerUnavailable: it does not answer in time, or cannot; names it and says why.
            QueryTooLarge: there is no room for all of the answer, here or there.
        """
        self.require_settled()
        room = room or Room(ANSWER_BYTES_MAX, f"the most that worker {url} may answer")
        limit = aiohttp.ClientTimeout(total=ANSWER_TIMEOUT_S, sock_connect=CONNECT_TIMEOUT_S)
        try:
            async with self._client().post(
                f"{url.rstrip('/')}{path}",
                data=params,
                # Also of a question without parameters, whose body is empty.
                headers={"Content-Type": FORM, **authorization(self._group_secret)},
                timeout=limit,
                allow_redirects=False,
            ) as answer:
                body = bytearray()
                async for piece in answer.content.iter_chunked(256 * 1024):
                    room.take(len(piece))
                    body += piece
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            why = str(exc) or f"no answer within {ANSWER_TIMEOUT_S:g} s"
            raise PeerUnavailable(f"worker {url}: {why}") from exc
        if answer.status == NotOwner.status:
            raise NotOwner(f"worker {url}: {_detail(body)}")
        if answer.status == QueryTooLarge.status:
            raise QueryTooLarge(f"worker {url}: {_detail(body)}")
        if answer.status in (401, 403):
            raise PeerUnavailable(
                f"worker {url}: {answer.status}: {_detail(body)} (workers know each other by "
                "K2_GROUP_SECRET)"
            )
        if answer.status != 200:
            raise PeerUnavailable(f"worker {url}: {answer.status}: {_detail(body)}")
        return body


async def all_of(asking: Iterable[Coroutine[Any, Any, _T]]) -> list[_T]:
    """All answers, in their order; once one fails nobody goes on to gather the others."""
    tasks = [asyncio.ensure_future(each) for each in asking]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def question(request: web.Request, known: tuple[str, ...]) -> Parameters:
    """What another worker asks, in a body whose size and time `k2.web.slow` limits.

    Raises:
        BadQuery: names the parameter.
    """
    if request.content_type != FORM:
        raise web.HTTPUnsupportedMediaType(reason=f"not {FORM}")
    return Parameters(await request.post(), known)


def _detail(body: bytearray) -> str:
    """Why, from an answer in problem+json."""
    try:
        return str(orjson.loads(body)["detail"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace")
