"""What workers ask each other: POST /internal/fresh, the rows that are not committed yet."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa
from aiohttp import web

from k2.errors import BadQuery, NotOwner, PeerUnavailable, SchemaMismatch
from k2.lake.offsets import Source
from k2.lake.offsets import decode as decode_offsets
from k2.lake.offsets import encode as encode_offsets
from k2.query.fresh import Fresh, Held, choose, decode, encode
from k2.query.room import Room
from k2.query.span import Span
from k2.query.times import check_bounds
from k2.schemas import GAPS, KINDS, Kind
from k2.settings import Settings
from k2.web.peers import Owners, Peers, all_of, question

__all__ = ["NOTHING", "Buffers", "InHand"]

PATH = "/internal/fresh"
MEDIA_TYPE = "application/vnd.apache.arrow.stream"


class InHand(NamedTuple):
    """This worker's own buffer: of a kind the records by source, and the findings."""

    held: Callable[[Kind], list[Held]]
    gaps: Callable[[], list[pa.Table]]


NOTHING = InHand(lambda kind: [], lambda: [])


class Buffers:
    """The buffers of all workers: gives others this one's, and gathers theirs."""

    def __init__(self, peers: Peers, own: InHand, settings: Settings) -> None:
        """`own`: what this worker has; `NOTHING` of one that owns no partition."""
        self._peers, self._own = peers, own
        self._memory_max = settings.query_memory_max

    def routes(self) -> list[web.RouteDef]:
        return [web.post(PATH, self._view)]

    async def gather(
        self, kind: Kind, span: Span, after: Mapping[Source, int] | None = None
    ) -> Fresh:
        """The chosen rows that are in hand of the owners of all partitions of a kind.

        Args:
            after: next offsets of what is known already; rows below are not given.

        Raises:
            PeerUnavailable: an owner does not answer, or owns no more what it should; names it.
            QueryTooLarge: the rows take too much memory.
            BadQuery: names the parameter.
        """
        check_bounds(span.start_ns, span.end_ns)
        for last_try in (False, True):
            try:
                owners = await self._peers.owners(again=last_try)
                return await self._gather(owners, kind, span, after or {})
            except NotOwner as exc:  # the map may be old: look again once, with empty hands
                if last_try:
                    raise PeerUnavailable(str(exc)) from exc
        raise AssertionError("unreachable")

    async def _gather(
        self, owners: Owners, kind: Kind, span: Span, after: Mapping[Source, int]
    ) -> Fresh:
        room = self._room()
        asked = {url: _places(topics, kind) for url, topics in owners.items()}
        answers = await all_of(self._of(url, kind, span, room, after) for url in asked)
        gathered = Fresh([], GAPS.empty_table())
        for (url, places), fresh in zip(asked.items(), answers, strict=True):
            parts = [part for part in fresh.parts if part.source[1:] in places]
            if missing := places - {part.source[1:] for part in parts}:
                raise NotOwner(f"worker {url}: it does not own {sorted(missing)}")
            gathered = gathered.with_(parts, fresh.gaps)
        return gathered

    def _room(self) -> Room:
        """For the answers of all workers together, as they arrive, and for what one sends."""
        limit = f"a quarter of query_memory_max ({self._memory_max})"
        remedy = "ask for less time or fewer symbols, or without `fresh`"
        return Room(self._memory_max // 4, f"{limit}: {remedy}")

    async def _of(
        self, url: str, kind: Kind, span: Span, room: Room, after: Mapping[Source, int]
    ) -> Fresh:
        if url == self._peers.own:
            return await self._chosen(kind, span, room, after)
        body = await self._peers.ask(url, PATH, _parameters(kind, span, after), room)
        try:
            return await asyncio.to_thread(decode, body, kind)
        except SchemaMismatch as exc:  # while releases change
            raise PeerUnavailable(f"worker {url}: {exc}") from exc

    async def _chosen(
        self, kind: Kind, span: Span, room: Room, after: Mapping[Source, int]
    ) -> Fresh:
        self._peers.require_settled()
        # No await between these two: one moment of the buffer.
        held, gaps = self._own.held(kind), self._own.gaps()
        return await asyncio.to_thread(choose, kind, held, gaps, span, room, after)

    async def _view(self, request: web.Request) -> web.Response:
        query = await question(request, ("kind", "exchange", "symbol", "start", "end", "after"))
        name = query.required("kind")
        kind = next((kind for kind in KINDS if kind.name == name), None)
        if kind is None:
            raise BadQuery("kind", f"{name!r} is no kind of record")
        span = Span(
            query.text("exchange"), query.names("symbol"), query.time("start"), query.time("end")
        )
        try:
            after = decode_offsets(query.text("after"))
        except SchemaMismatch as exc:
            raise BadQuery("after", "it has no offsets") from exc
        fresh = await self._chosen(kind, span, self._room(), after)
        body = await asyncio.to_thread(encode, fresh, kind)
        return web.Response(body=body, content_type=MEDIA_TYPE)


def _places(topics: Mapping[str, Sequence[int]], kind: Kind) -> set[tuple[str, int]]:
    return {(topic, p) for topic, owned in topics.items() if kind.has_topic(topic) for p in owned}


def _parameters(kind: Kind, span: Span, after: Mapping[Source, int]) -> dict[str, str]:
    """What `_view` reads; no name has a comma in it: all come from `Parameters.names`."""
    given = {
        "exchange": span.exchange,
        "symbol": None if span.symbols is None else ",".join(span.symbols),
        "start": span.start_ns,
        "end": span.end_ns,
        "after": encode_offsets(after) if after else None,
    }
    return {"kind": kind.name, **{k: str(v) for k, v in given.items() if v is not None}}
