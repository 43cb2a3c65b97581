"""GET /metrics, /live and /ready: what whoever runs a worker asks, whatever its role."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from k2.web.answers import headers_of, json_answer
from k2.web.params import Parameters
from k2.web.routes import Answer, Route, in_json
from k2.web.shapes import LIVE, READY

__all__ = ["Ready", "routes"]

#: Gives (ready or not, reasons).
Ready = Callable[[], tuple[bool, dict[str, Any]]]


def routes(ready: Ready) -> list[Route]:
    """The views; `ready` is called at each question."""

    async def metrics(request: web.Request, _: Parameters) -> web.StreamResponse:
        headers = {"Content-Type": CONTENT_TYPE_LATEST, **headers_of(request)}
        return web.Response(body=generate_latest(), headers=headers)

    async def live(request: web.Request, _: Parameters) -> web.StreamResponse:
        return json_answer(request, {"live": True})

    async def is_ready(request: web.Request, _: Parameters) -> web.StreamResponse:
        fine, reasons = ready()
        return json_answer(request, {"ready": fine, "reasons": reasons}, 200 if fine else 503)

    return [
        Route(
            "GET", "/metrics", metrics, "Watch", "Metrics", Answer({"text/plain": None}),
            "For Prometheus.", raises=(), head=True, takes_any=True,
        ),
        Route(
            "GET", "/live", live, "Watch", "Live", in_json(LIVE),
            "The process is there, and its event loop runs.", raises=(), head=True, takes_any=True,
        ),
        Route(
            "GET", "/ready", is_ready, "Watch", "Ready",
            in_json(READY, "It is ready.", also={503: "It is not, and says why."}),
            "Whether it can do what its role is.", raises=(), head=True, takes_any=True,
        ),
    ]  # fmt: skip
