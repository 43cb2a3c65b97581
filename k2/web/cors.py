"""Which pages browsers let ask: none, but those of `cors_origins`."""

from __future__ import annotations

from aiohttp import hdrs, web
from aiohttp.typedefs import Middleware

from k2.errors import Forbidden
from k2.metrics import refused_total
from k2.web.answers import Handler

__all__ = ["Cors"]

_ALLOWED = {
    hdrs.ACCESS_CONTROL_ALLOW_METHODS: "GET, POST",
    hdrs.ACCESS_CONTROL_ALLOW_HEADERS: (
        "Authorization, X-API-Key, X-Request-Id, Content-Type, Last-Event-ID"
    ),
    hdrs.ACCESS_CONTROL_MAX_AGE: "600",
}


class Cors:
    """Headers for the origins that are named; for others there are none at all."""

    def __init__(self, origins: frozenset[str]) -> None:
        self._origins = origins

    def middleware(self) -> Middleware:
        """Answer what browsers ask before they send a key; stands before whatever wants one.

        Raises:
            Forbidden: a page of another origin opens a WebSocket.
        """

        @web.middleware
        async def preflight(request: web.Request, handler: Handler) -> web.StreamResponse:
            asks = hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers
            if request.method == hdrs.METH_OPTIONS and asks and self._is_named(request):
                return web.Response(status=204, headers=_ALLOWED)
            # Of a WebSocket browsers ask nothing before, and let any page read what it says.
            if request.headers.get(hdrs.UPGRADE, "").lower() == "websocket":
                self._require_own_origin(request)
            return await handler(request)

        return preflight

    async def on_prepare(self, request: web.Request, response: web.StreamResponse) -> None:
        """A signal, since the headers of a stream are sent within its view."""
        if not self._origins:
            return
        response.headers.add(hdrs.VARY, hdrs.ORIGIN)
        if self._is_named(request):
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = request.headers[hdrs.ORIGIN]
            response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = "*"

    def _require_own_origin(self, request: web.Request) -> None:
        origin = request.headers.get(hdrs.ORIGIN)
        own = (f"http://{request.host}".lower(), f"https://{request.host}".lower())
        if origin is not None and origin.lower() not in own and not self._is_named(request):
            refused_total.labels(Forbidden.__name__).inc()
            raise Forbidden(f"Origin {origin[:200]!r}: no WebSocket for its pages (cors_origins)")

    def _is_named(self, request: web.Request) -> bool:
        return request.headers.get(hdrs.ORIGIN, "").lower() in self._origins
