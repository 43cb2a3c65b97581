"""What a public route is: how it is asked, what it answers, and the view behind it.

A view is given the parameters that its route declares, and can read no other; the OpenAPI document
is made of the same declarations. So the two cannot drift apart.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import hdrs, web

from k2.errors import BadQuery, CatalogUnavailable, K2Error, PeerUnavailable, QueryTooLarge
from k2.web.formats import MEDIA_TYPES
from k2.web.params import Parameter, Parameters
from k2.web.shapes import BARE, Shape, envelope

__all__ = ["READS", "Answer", "Route", "View", "in_json", "in_rows"]

View = Callable[[web.Request, Parameters], Awaitable[web.StreamResponse]]

#: What reading the tables may end in.
READS = (BadQuery, QueryTooLarge, CatalogUnavailable, PeerUnavailable)


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """A good answer: by media type the JSON Schema of it; None: it is no JSON."""

    content: Mapping[str, Shape | None]
    says: str = "The answer."
    headers: tuple[str, ...] = ()  # beside X-Request-Id, of `HEADERS`
    also: Mapping[int, str] = field(default_factory=dict)  # further statuses, with the same body
    upgrade: str = ""  # what it says where it becomes a WebSocket


#: What the headers of answers say.
HEADERS = {
    "X-K2-Truncated": "`true` where the limit cut rows off.",
    "X-K2-Snapshot-Id": "The snapshot that the rows are of.",
    "X-K2-Valid-Through": "ns: all that Kafka had before is in.",
    "X-K2-Coverage": "`complete`, or what is missing of what was asked for.",
    "X-K2-Fresh": "`true` where rows may be among them that are in no snapshot yet.",
    "X-K2-Next": "The cursor of the next page, where rows were cut off.",
    "X-K2-Snapshots": "Of each table that a statement read, its snapshot.",
}
_BARE = ("X-K2-Truncated", "X-K2-Snapshot-Id", "X-K2-Valid-Through")


def in_rows(row: Shape, about: Mapping[str, Shape] = BARE, headers: tuple[str, ...] = ()) -> Answer:
    """Rows in any format.

    Args:
        row: of one.
        about: what stands beside them in JSON.
        headers: beside those that all rows have.
    """
    shapes = {"json": envelope(row, about), "ndjson": row, "csv": {"type": "string"}}
    content = {media: shapes.get(name) for name, media in MEDIA_TYPES.items()}
    return Answer(content, "Rows. NDJSON has one a line.", (*_BARE, *headers))


def in_json(shape: Shape, says: str = "The answer.", **more: Any) -> Answer:
    return Answer({"application/json": shape}, says, **more)


@dataclass(frozen=True, slots=True, eq=False)
class Route(web.AbstractRouteDef):
    """One route. `path` parameters, those of the query, and fields of a JSON body are declared."""

    method: str
    path: str
    view: View
    group: str
    title: str
    answer: Answer
    says: str = ""
    takes: tuple[Parameter[Any], ...] = ()  # of the query
    within: tuple[Parameter[Any], ...] = ()  # of the path
    beside: tuple[Parameter[Any], ...] = ()  # headers
    body: tuple[Parameter[Any], ...] = ()  # fields of a JSON object
    raises: tuple[type[K2Error] | int, ...] = (BadQuery,)  # or the status of an error of HTTP
    head: bool = False  # asked by HEAD too
    takes_any: bool = False  # whatever else stands in the query does not matter

    def register(self, router: web.UrlDispatcher) -> list[web.AbstractRoute]:
        """Add it to a server."""
        return [router.add_route(method, self.path, self._asked) for method in self.methods]

    @property
    def methods(self) -> tuple[str, ...]:
        return (self.method, hdrs.METH_HEAD) if self.head else (self.method,)

    async def _asked(self, request: web.Request) -> web.StreamResponse:
        known = tuple(parameter.name for parameter in self.takes)
        defaults = {p.name: p.default for p in self.takes if p.default is not None}
        given = {} if self.takes_any else request.query
        return await self.view(request, Parameters(given, known, defaults))
