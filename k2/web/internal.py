"""What workers ask each other: POST /internal/fresh, the rows that are not committed yet."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa
from aiohttp import web

from k2.errors import BadQuery, PeerUnavailable, QueryTooLarge, SchemaMismatch
from k2.query.engine import check_bounds
from k2.query.fresh import Fresh, Held, choose, decode, encode
from k2.query.span import Span
from k2.schemas import GAPS, KINDS, Kind
from k2.settings import Settings
from k2.web.peers import Peers, detail, question

__all__ = ["Buffers", "InHand"]

PATH = "/internal/fresh"
MEDIA_TYPE = "application/vnd.apache.arrow.stream"


class InHand(NamedTuple):
    """This worker's own buffer: of a kind the records by source, and the findings."""

    held: Callable[[Kind], list[Held]]
    gaps: Callable[[], list[pa.Table]]


class Buffers:
    """The buffers of all workers: gives others this one's, and gathers theirs."""

    def __init__(self, peers: Peers, own: InHand, settings: Settings) -> None:
        self._peers, self._own = peers, own
        self._bytes_max = settings.query_memory_max // 4

    def routes(self) -> list[web.RouteDef]:
        return [web.post(PATH, self._view)]

    async def gather(self, kind: Kind, span: Span) -> Fresh:
        """The chosen rows that are in hand of the owners of all partitions of a kind.

        Raises:
            PeerUnavailable: an owner does not answer, or owns no more what it should; names it.
            QueryTooLarge: the rows take too much memory.
            BadQuery: names the parameter.
        """
        check_bounds(span.start_ns, span.end_ns)
        lost = ""
        for _ in range(2):  # once more if a worker does not own what the map says: it may be old
            asked = {url: _places(topics, kind) for url, topics in self._peers.owners().items()}
            answers = await asyncio.gather(*[self._of(url, kind, span) for url in asked])
            gathered = Fresh([], GAPS.empty_table())
            for (url, places), fresh in zip(asked.items(), answers, strict=True):
                parts = [part for part in fresh.parts if part.source[1:] in places]
                if missing := places - {part.source[1:] for part in parts}:
                    lost = f"worker {url}: it does not own {sorted(missing)}"
                    break
                gathered = gathered.with_(parts, fresh.gaps)
            else:
                return gathered.require_below(self._bytes_max)
        raise PeerUnavailable(lost)

    async def _of(self, url: str, kind: Kind, span: Span) -> Fresh:
        if url == self._peers.own:
            return await self._chosen(kind, span)
        answer = await self._peers.ask(url, PATH, _parameters(kind, span), 2 * self._bytes_max)
        if answer.status == QueryTooLarge.status:
            raise QueryTooLarge(f"worker {url}: {detail(answer.body)}")
        if answer.status != 200:
            raise PeerUnavailable(f"worker {url}: {answer.status}: {detail(answer.body)}")
        try:
            return await asyncio.to_thread(decode, answer.body, kind)
        except SchemaMismatch as exc:  # while releases change
            raise PeerUnavailable(f"worker {url}: {exc}") from exc

    async def _chosen(self, kind: Kind, span: Span) -> Fresh:
        self._peers.require_settled()
        # No await between these two: one moment of the buffer.
        held, gaps = self._own.held(kind), self._own.gaps()
        return await asyncio.to_thread(choose, kind, held, gaps, span, self._bytes_max)

    async def _view(self, request: web.Request) -> web.Response:
        query = await question(request, ("kind", "exchange", "symbol", "start", "end"))
        name = query.required("kind")
        kind = next((kind for kind in KINDS if kind.name == name), None)
        if kind is None:
            raise BadQuery("kind", f"{name!r} is no kind of record")
        span = Span(
            query.text("exchange"), query.names("symbol"), query.time("start"), query.time("end")
        )
        fresh = await self._chosen(kind, span)
        body = await asyncio.to_thread(encode, fresh, kind)
        return web.Response(body=body, content_type=MEDIA_TYPE)


def _places(topics: Mapping[str, Sequence[int]], kind: Kind) -> set[tuple[str, int]]:
    return {(topic, p) for topic, owned in topics.items() if kind.has_topic(topic) for p in owned}


def _parameters(kind: Kind, span: Span) -> dict[str, str]:
    """What `_view` reads; no name has a comma in it: all come from `Parameters.names`."""
    given = {
        "exchange": span.exchange,
        "symbol": None if span.symbols is None else ",".join(span.symbols),
        "start": span.start_ns,
        "end": span.end_ns,
    }
    return {"kind": kind.name, **{k: str(v) for k, v in given.items() if v is not None}}
