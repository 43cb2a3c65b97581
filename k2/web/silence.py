"""GET /v1/silence: who has been silent for too long in this worker's partitions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aiohttp import web

from k2.web.answers import json_answer
from k2.web.params import Parameters

__all__ = ["routes"]


def routes(report: Callable[[str | None], dict[str, Any]]) -> list[web.RouteDef]:
    """The view over `report`, which takes an exchange, or None for all."""

    async def silence(request: web.Request) -> web.StreamResponse:
        query = Parameters(request.query, ("exchange",))
        return json_answer(request, report(query.text("exchange")))

    return [web.get("/v1/silence", silence, allow_head=False)]
