"""The workers of the group: which of them owns a partition, and how it is asked.

Faust's assignor tells every worker, at the end of each rebalance, who was given what. In between
nobody knows; so a question is refused then, and is never put to the wrong worker. Whoever is asked
looks whether the partition is its own, since the map of a worker that was frozen is an old one.

A question is a POST, its parameters a form in the body: a worker may be asked for thousands of
partitions, and a URL has 8 KB.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping
from typing import Any, TypeVar

import aiohttp
import orjson
from aiohttp import web

from k2.app import App
from k2.errors import NotOwner, PeerUnavailable, QueryTooLarge
from k2.keys import authorization
from k2.query.room import Room
from k2.web.params import Parameters

__all__ = ["Owners", "Peers", "all_of", "question"]

FORM = "application/x-www-form-urlencoded"
ANSWER_TIMEOUT_S = 10.0
CONNECT_TIMEOUT_S = 2.0
ANSWER_BYTES_MAX = 64 * 1024 * 1024

_T = TypeVar("_T")

#: By URL of a worker: topic and partitions, ascending.
Owners = dict[str, dict[str, list[int]]]


class Peers:
    """The group as this worker knows it; on the event loop only."""

    def __init__(
        self, app: App, topics: Collection[str], partitions: Callable[[str], int | None]
    ) -> None:
        """`topics`: those that are ingested; `partitions`: how many a topic has, None: unknown."""
        self._app, self._topics, self._partitions = app, topics, partitions

    @property
    def own(self) -> str:
        """The URL by which the others know this worker."""
        return str(self._app.conf.canonical_url)

    def owners(self) -> Owners:
        """Return who owns what, each partition of each topic once.

        Raises:
            PeerUnavailable: partitions are being assigned, or not all are known to be.
        """
        self.require_settled()
        told: Mapping[str, Mapping[str, list[int]]]
        told = self._app.router.external_topics_metadata()
        found = {
            url: {t: sorted(partitions) for t, partitions in topics.items() if t in self._topics}
            for url, topics in told.items()
        }
        self._require_all(found)
        return {url: topics for url, topics in found.items() if topics}

    def require_settled(self) -> None:
        """Refuse while nobody knows who owns what.

        Raises:
            PeerUnavailable: partitions are being assigned, or this worker is stopping.
        """
        if self._app.should_stop:  # its HTTP client may be closed already
            raise PeerUnavailable(f"{self.own}: the worker is stopping")
        if self._app.rebalancing:
            raise PeerUnavailable(f"{self.own}: the group is rebalancing")

    def _require_all(self, found: Owners) -> None:
        for topic in sorted(self._topics):
            number = self._partitions(topic)
            if not number:
                raise PeerUnavailable(f"{self.own}: not assigned yet: {topic}")
            owned = [p for topics in found.values() for p in topics.get(topic, ())]
            if sorted(owned) != list(range(number)):
                lost = sorted(set(range(number)) - set(owned))
                # Faust's map has one entry a URL: of two workers with the same one is left.
                raise PeerUnavailable(
                    f"{topic}: nobody is known to own {lost}; for longer than a rebalance it means "
                    "that two workers advertise one URL (K2_ADVERTISE)"
                )

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
            async with self._app.http_client.post(
                f"{url.rstrip('/')}{path}",
                data=params,
                headers=authorization(self._app.settings.group_secret),
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
