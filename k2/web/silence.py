"""GET /v1/silence: who has been silent for too long, in this worker's partitions.

A query worker has none: it asks all owners, and puts together what they say.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import orjson
from aiohttp import web

from k2.errors import BadQuery, PeerUnavailable
from k2.web.answers import json_answer
from k2.web.choice import EXCHANGE
from k2.web.params import Parameters
from k2.web.peers import question
from k2.web.remote import Remote
from k2.web.routes import Route, in_json
from k2.web.shapes import SILENCE

__all__ = ["Report", "internal", "merged", "of_owners", "routes"]

_INTERNAL = "/internal/silence"

#: Takes an exchange, or None for all.
Report = Callable[[str | None], dict[str, Any]]


def routes(report: Callable[[str | None], Awaitable[dict[str, Any]]]) -> list[Route]:
    """The view over `report`."""

    async def silence(request: web.Request, query: Parameters) -> web.StreamResponse:
        return json_answer(request, await report(query[EXCHANGE]))

    return [
        Route(
            "GET", "/v1/silence", silence, "Watch", "Silence", in_json(SILENCE),
            "Who has been silent for too long, in the partitions of the worker that is asked; of a "
            "query worker in all.",
            (EXCHANGE,), raises=(BadQuery, PeerUnavailable),
        )
    ]  # fmt: skip


def internal(report: Report) -> list[web.RouteDef]:
    """What a query worker asks."""

    async def silence(request: web.Request) -> web.StreamResponse:
        query = await question(request, ("exchange",))
        return json_answer(request, report(query.text("exchange")))

    return [web.post(_INTERNAL, silence)]


def of_owners(remote: Remote) -> Callable[[str | None], Awaitable[dict[str, Any]]]:
    """Ask all workers that own partitions."""

    async def report(exchange: str | None) -> dict[str, Any]:
        params = {} if exchange is None else {"exchange": exchange}
        return merged([orjson.loads(each) for each in await remote.ask_owners(_INTERNAL, params)])

    return report


def merged(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One report of several workers': a topic is silent if it is wherever it is watched."""
    watching = [topic for each in reports for topic in each["watched"]]
    last: dict[str, dict[str, Any]] = {}
    said: list[str] = []
    for row in (row for each in reports for row in each["topics"]):
        said.append(row["topic"])
        last[row["topic"]] = max(
            last.get(row["topic"], row), row, key=lambda row: row["last_ts_event"] or 0
        )
    limits: dict[str, Any] = {}
    for each in reports:
        for name, known in each["limits"].items():
            limits[name] = known | {"open": known["open"] or limits.get(name, known)["open"]}
    symbols = [row for each in reports for row in each["symbols"]]
    symbols.sort(key=lambda row: (row["exchange"], row["kind"], row["symbol"] or ""))
    return {
        "watched": sorted(set(watching)),
        "limits": dict(sorted(limits.items())),
        "topics": [
            row for topic, row in sorted(last.items()) if said.count(topic) == watching.count(topic)
        ],
        "symbols": symbols,
    }
