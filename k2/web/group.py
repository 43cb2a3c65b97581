"""The workers of the group, as a member knows them.

Faust's assignor tells every worker, at the end of each rebalance, who was given what. In between
nobody knows; so a question is refused then, and is never put to the wrong worker. Query workers are
no members: they ask one by POST /internal/owners.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import aiohttp
import orjson
from aiohttp import web

from k2.app import App
from k2.errors import PeerUnavailable
from k2.web.peers import OWNERS, Owners, Peers, question

__all__ = ["Group"]


class Group(Peers):
    """Faust's map."""

    def __init__(
        self, app: App, topics: Collection[str], partitions: Callable[[str], int | None]
    ) -> None:
        """`topics`: those that are ingested; `partitions`: how many a topic has, None: unknown."""
        super().__init__(app.settings.group_secret)
        self._app, self._topics, self._partitions = app, topics, partitions

    def routes(self) -> list[web.RouteDef]:
        return [web.post(OWNERS, self._view)]

    @property
    def own(self) -> str:
        """The URL by which the others know this worker."""
        return str(self._app.conf.canonical_url)

    async def owners(self, *, again: bool = False) -> Owners:
        """As `assigned`: Faust's map is always the newest."""
        return self.assigned()

    def assigned(self) -> Owners:
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

    def _client(self) -> aiohttp.ClientSession:
        client: aiohttp.ClientSession = self._app.http_client
        return client

    async def _view(self, request: web.Request) -> web.Response:
        await question(request, ())
        return web.Response(body=orjson.dumps(self.assigned()), content_type="application/json")
