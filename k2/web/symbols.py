"""GET /v1/symbols/{exchange}/{symbol}: what is known live of a symbol, whichever worker is asked.

The owner of the partition that the symbol's key falls into is asked first; where an exchange's
producer chooses partitions otherwise, all owners are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

from aiohttp import web
from aiokafka.partitioner import murmur2

from k2.errors import BadQuery, NotOwner, PeerUnavailable
from k2.lake.offsets import Source
from k2.schemas import KINDS
from k2.settings import Settings
from k2.web.answers import json_answer
from k2.web.choice import OF_EXCHANGE, OF_SYMBOL
from k2.web.known import Part, answer, decode, encode, part_of
from k2.web.params import FLAG, Parameter, Parameters
from k2.web.peers import Owners, Peers, all_of, question
from k2.web.routes import Route, in_json
from k2.web.shapes import symbol

if TYPE_CHECKING:
    from k2.agents.assignment import Partition

__all__ = ["Symbols", "partition_of"]

_PATH = "/v1/symbols/{exchange}/{symbol}"
_INTERNAL = "/internal/symbol"
_BARS = Parameter(
    "bars", FLAG, "`true`: with bars of a minute, of the running session.", "true", default="false"
)

#: Topic and partition.
Place = tuple[str, int]


def partition_of(exchange: str, symbol: str, partitions: int) -> int:
    """Where Kafka's default partitioner puts a symbol's key."""
    hashed: int = murmur2(f"{exchange}.{symbol}".encode())
    return (hashed & 0x7FFFFFFF) % partitions


class Symbols:
    """Answers for the partitions of this worker, and asks the others for theirs."""

    def __init__(
        self, peers: Peers, partition: Callable[[Place], Partition | None], settings: Settings
    ) -> None:
        """`partition`: that of a place, if this worker owns it now."""
        self._peers, self._partition = peers, partition
        self._exchanges = settings.exchange_names
        self._by_channel = frozenset(settings.exchanges_by_channel)

    def routes(self) -> list[Route]:
        return [
            Route(
                "GET", _PATH, self._symbol, "Ask", "One symbol, live", in_json(symbol()),
                "Its last trade and quote, statistics of the running session, and what its "
                "sequences miss; as of the last record that K2 has read.",
                (_BARS,), (OF_EXCHANGE, OF_SYMBOL), raises=(BadQuery, PeerUnavailable, 404),
            )
        ]  # fmt: skip

    def internal(self) -> list[web.RouteDef]:
        """What other workers ask."""
        return [web.post(_INTERNAL, self._internal)]

    async def _symbol(self, request: web.Request, query: Parameters) -> web.Response:
        bars = query[_BARS]
        exchange, symbol = request.match_info["exchange"], request.match_info["symbol"]
        if exchange not in self._exchanges:
            raise web.HTTPNotFound(reason=f"no exchange {exchange!r}"[:200])
        parts = await self._ask_all(exchange, symbol, bars)
        known = await asyncio.to_thread(answer, exchange, symbol, parts, bars=bars)
        if known is None:
            key = f"{exchange}.{symbol}"
            raise web.HTTPNotFound(reason=f"no record of {key!r} is known"[:200])
        return json_answer(request, known)

    async def _ask_all(self, exchange: str, symbol: str, bars: bool) -> list[Part]:
        """What the owners know of the symbol.

        Raises:
            PeerUnavailable: an owner does not answer, or nobody is known to own a partition.
        """
        numbers = _numbers(await self._peers.owners(), exchange)
        every = {(topic, p) for topic, count in numbers.items() for p in range(count)}
        likely = {(t, partition_of(exchange, symbol, count)) for t, count in numbers.items()}
        if exchange in self._by_channel:
            likely = every
        parts = await self._ask(likely, exchange, symbol, bars)
        if not any(part.latest.num_rows for part in parts) and every != likely:
            others = await self._ask(every - likely, exchange, symbol, bars)
            parts += [part for part in others if part.latest.num_rows]
        return parts

    async def _ask(
        self, places: Collection[Place], exchange: str, symbol: str, bars: bool
    ) -> list[Part]:
        for last_try in (False, True):
            asked = _shared(await self._peers.owners(again=last_try), places)
            asking = [
                self._of(url, own, exchange, symbol, bars) for url, own in sorted(asked.items())
            ]
            try:
                answers = await all_of(asking)
            except NotOwner as exc:  # the map may be old: look again once
                if last_try:
                    raise PeerUnavailable(str(exc)) from exc
            else:
                return sorted((part for parts in answers for part in parts), key=_source)
        raise AssertionError("unreachable")

    async def _of(
        self, url: str, places: Sequence[Place], exchange: str, symbol: str, bars: bool
    ) -> list[Part]:
        if url == self._peers.own:
            return await self._known(places, exchange, symbol, bars)
        params = {
            "exchange": exchange,
            "symbol": symbol,
            "places": ",".join(f"{topic}:{p}" for topic, p in places),
            "bars": str(bars).lower(),
        }
        return await asyncio.to_thread(decode, await self._peers.ask(url, _INTERNAL, params))

    async def _known(
        self, places: Collection[Place], exchange: str, symbol: str, bars: bool
    ) -> list[Part]:
        """What this worker knows, as the owner.

        Raises:
            NotOwner: one of the partitions is not its own.
            PeerUnavailable: partitions are being assigned.
        """
        self._peers.require_settled()
        asked = []
        counter = "" if exchange in self._by_channel else symbol
        for topic, number in places:
            partition = self._partition((topic, number))
            if partition is None:
                raise NotOwner(f"{topic}[{number}] is not owned here")
            try:
                live = partition.live.ask(exchange, symbol, bars)
            except LookupError as exc:  # the store is closed while partitions move
                raise PeerUnavailable(f"{partition.source}: being assigned: {exc}") from exc
            state = partition.sequences.states.get((exchange, counter))
            asked.append((live, partition.source, state))

        def parts() -> list[Part]:
            return [part_of(*each, bars=bars) for each in asked]

        return await asyncio.to_thread(parts)

    async def _internal(self, request: web.Request) -> web.Response:
        query = await question(request, ("exchange", "symbol", "places", "bars"))
        places = [_place(text) for text in query.names("places") or ()]
        parts = await self._known(
            places, query.required("exchange"), query.required("symbol"), query.flag("bars")
        )
        body = await asyncio.to_thread(encode, parts)
        return web.Response(body=body, content_type="application/json")


def _source(part: Part) -> Source:
    return part.source


def _place(text: str) -> Place:
    topic, _, number = text.rpartition(":")
    if not topic or not number.isdecimal():
        raise BadQuery("places", f"{text!r} is not TOPIC:PARTITION")
    return topic, int(number)


def _numbers(owners: Owners, exchange: str) -> dict[str, int]:
    """How many partitions each topic of an exchange has."""
    topics = [kind.topic(exchange) for kind in KINDS]
    return {t: sum(len(owned.get(t, ())) for owned in owners.values()) for t in topics}


def _shared(owners: Owners, places: Collection[Place]) -> dict[str, list[Place]]:
    """By owner, what it is asked for."""
    found = {
        url: sorted((t, p) for t, p in places if p in topics.get(t, ()))
        for url, topics in owners.items()
    }
    return {url: own for url, own in found.items() if own}
