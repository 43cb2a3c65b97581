"""GET /metrics, /live and /ready: what whoever runs a worker asks, whatever its role."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from k2.web.answers import headers_of, json_answer

__all__ = ["Ready", "routes"]

#: Gives (ready or not, reasons).
Ready = Callable[[], tuple[bool, dict[str, Any]]]


def routes(ready: Ready) -> list[web.RouteDef]:
    """The views; `ready` is called at each question."""

    async def metrics(request: web.Request) -> web.StreamResponse:
        headers = {"Content-Type": CONTENT_TYPE_LATEST, **headers_of(request)}
        return web.Response(body=generate_latest(), headers=headers)

    async def live(request: web.Request) -> web.StreamResponse:
        return json_answer(request, {"live": True})

    async def is_ready(request: web.Request) -> web.StreamResponse:
        fine, reasons = ready()
        return json_answer(request, {"ready": fine, "reasons": reasons}, 200 if fine else 503)

    return [
        web.get("/metrics", metrics),
        web.get("/live", live),
        web.get("/ready", is_ready),
    ]
