"""The workers of a group, as one that is no member knows them: by asking.

`peers` names some of them; any one knows who owns what, those too that are not named. What it says
is kept for a moment, and asked for again once an owner proves to be none, or cannot be asked: it
may have gone, and its partitions have another owner.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

import aiohttp
import orjson
from aiohttp import web

from k2.errors import NotOwner, PeerUnavailable
from k2.query.room import Room
from k2.schemas import KINDS
from k2.settings import Settings
from k2.web.peers import OWNERS, Owners, Peers, all_of

__all__ = ["Remote"]

#: How long it is believed who owns what.
KEPT_S = 1.0


class Remote(Peers):
    """Asks the ingest workers."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings.group_secret)
        self._urls = settings.peer_urls
        self._topics = [kind.topic(name) for kind in KINDS for name in settings.exchange_names]
        self._session: aiohttp.ClientSession | None = None
        self._asking = asyncio.Lock()
        self._owners: Owners = {}
        self._asked_at = float("-inf")
        self._good = ""  # which of the peers has answered

    @property
    def own(self) -> None:
        """Nobody asks a query worker."""

    async def owners(self, *, again: bool = False) -> Owners:
        since = time.monotonic() - (0.0 if again else KEPT_S)
        async with self._asking:  # whoever waited has the answer of the one before
            if self._asked_at < since:
                asked_at = time.monotonic()
                self._owners = await self._told()
                self._asked_at = asked_at
            return self._owners

    async def _told(self) -> Owners:
        """What the first worker says that knows the owners of all topics."""
        body = await self.ask_any(OWNERS)
        try:
            owners: Owners = {
                str(url): {str(t): [int(p) for p in numbers] for t, numbers in topics.items()}
                for url, topics in orjson.loads(body).items()
            }
        except (ValueError, TypeError, AttributeError) as exc:  # while releases change
            raise PeerUnavailable(f"the peers' map of owners is none: {exc}") from exc
        owned = {topic for topics in owners.values() for topic in topics}
        if unread := [topic for topic in self._topics if topic not in owned]:
            raise PeerUnavailable(
                f"no ingest worker reads {', '.join(unread)}: K2_EXCHANGES is another one there"
            )
        return owners

    async def ask_any(self, path: str, params: Mapping[str, str] | None = None) -> bytearray:
        """What one of `peers` says: the one that answered last, or else the first that does.

        Raises:
            PeerUnavailable: none does; names each with its reason, and the setting.
        """
        if not self._urls:
            raise PeerUnavailable(
                "a query worker asks ingest workers for what is live: K2_PEERS names none of them"
            )
        said = []
        for url in sorted(self._urls, key=lambda url: url != self._good):
            try:
                body = await Peers.ask(self, url, path, params)
            except (PeerUnavailable, NotOwner) as exc:
                said.append(str(exc))
            else:
                self._good = url
                return body
        raise PeerUnavailable(f"no ingest worker of K2_PEERS answers: {'; '.join(said)}")

    async def ask_owners(self, path: str, params: Mapping[str, str]) -> list[bytearray]:
        """What every worker says that owns partitions.

        Raises:
            PeerUnavailable: one of them does not answer; names it.
        """
        for last_try in (False, True):
            owners = await self.owners(again=last_try)
            try:
                return await all_of(self.ask(url, path, params) for url in owners)
            except NotOwner as exc:
                if last_try:
                    raise PeerUnavailable(str(exc)) from exc
        raise AssertionError("unreachable")

    async def ask(
        self,
        url: str,
        path: str,
        params: Mapping[str, str] | None = None,
        room: Room | None = None,
    ) -> bytearray:
        """As any worker asks an owner; one that cannot be asked may be none any more: NotOwner."""
        try:
            return await super().ask(url, path, params, room)
        except PeerUnavailable as exc:
            raise NotOwner(str(exc)) from exc

    def require_settled(self) -> None:
        """Refuse once the worker stops."""
        if self._session is not None and self._session.closed:
            raise PeerUnavailable("the worker is stopping")

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession()
        return self._session

    async def close(self, site: web.Application) -> None:
        if self._session is not None:
            await self._session.close()
