"""Who may ask what: each request's API key, its scope, and the limits of the key.

| path | needs |
|---|---|
| /live, /ready, /openapi.json, /docs | nothing |
| /metrics | read, or a client on this machine |
| /v1/sql | sql |
| /v1/* | read |
| /internal/* | the group's secret, or admin |
| all else, such as Faust's own pages | admin |

Without any keys file all is open to whoever reaches a loopback address; see `k2.keys`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Middleware

from k2.errors import Forbidden, TooManyRequests, Unauthorized
from k2.keyfile import Key
from k2.keys import Keyring, is_loopback, same_secret
from k2.metrics import refused_total
from k2.settings import Settings
from k2.web.answers import Handler
from k2.web.limits import Limits

__all__ = ["Guard", "scope_of"]

_LOG = logging.getLogger(__name__)
OPEN = ("/live", "/ready", "/openapi.json", "/docs")
METRICS = "/metrics"
INTERNAL = "/internal/"


def scope_of(path: str) -> str | None:
    """The scope that a route needs, by its path as it was registered; None: open to all."""
    if path in OPEN:
        return None
    if path == "/v1/sql" or path.startswith("/v1/sql/"):
        return "sql"
    if path == METRICS or path.startswith("/v1/"):
        return "read"
    return "admin"


class Guard:
    """Lets requests through to the views, or refuses them."""

    def __init__(self, keyring: Keyring, limits: Limits, settings: Settings) -> None:
        self._keyring, self._limits = keyring, limits
        self._asking: dict[asyncio.Transport, Key] = {}
        self._group_secret = settings.group_secret
        self._host = urlsplit(settings.url).hostname

    def middleware(self) -> Middleware:
        @web.middleware
        async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
            try:
                key = self._key(request)
                if key is None:
                    return await handler(request)
                with self._limits.admit(key.id), self._known(request.transport, key):
                    return await handler(request)
            except (Unauthorized, Forbidden, TooManyRequests) as exc:
                refused_total.labels(type(exc).__name__).inc()
                raise

        return guard

    @contextmanager
    def _known(self, transport: asyncio.Transport | None, key: Key) -> Iterator[None]:
        if transport is None:  # gone already
            yield
            return
        self._asking[transport] = key  # one request at a time
        try:
            yield
        finally:
            del self._asking[transport]

    def look(self) -> None:
        """Cut off whoever has a key that is good no more: a replay that follows has no end."""
        good = set(self._keyring.good()) if self._asking else set()
        for transport, key in self._asking.items():
            if key not in good and not transport.is_closing():
                _LOG.info("the API key %s is good no more: its request is cut off", key.id)
                refused_total.labels(Unauthorized.__name__).inc()
                transport.abort()

    def _key(self, request: web.Request) -> Key | None:
        """The key by which a request is let through; None: it needs none.

        Raises:
            Unauthorized: it needs one, and has none that is good.
            Forbidden: it has one that may not do this.
        """
        path, scope = _asked(request)
        if path in OPEN:
            return None
        if not self._keyring.needed and _is_local(request, "sockname"):
            self._require_own_host(request)
            return None
        given = _given(request)
        if (
            path.startswith(INTERNAL)
            and self._group_secret
            and same_secret(given, self._group_secret)
        ):
            return None
        if not given:
            if path == METRICS and _is_local(request, "peername"):
                return None
            raise Unauthorized("an API key is needed: Authorization: Bearer k2_...")
        key = self._keyring.find(given)
        if scope is not None and scope not in key.scopes:
            raise Forbidden(f"the API key {key.id} lacks the scope {scope}")
        return key

    def _require_own_host(self, request: web.Request) -> None:
        # A page of any site can have its own name resolve to 127.0.0.1, and would then be let
        # read all by the browser: names are what tells it from us.
        host = request.headers.get("Host", "")
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            name = ""
        if host and not is_loopback(name) and name != self._host:
            raise Forbidden(f"Host {host[:200]!r}: without API keys only names of this machine")


def _asked(request: web.Request) -> tuple[str, str | None]:
    """Path and scope of the route that was found; with none any key learns that there is none."""
    if request.match_info.http_exception is not None:
        return "", None
    resource = request.match_info.route.resource
    path = "" if resource is None else resource.canonical
    return path, scope_of(path)


def _given(request: web.Request) -> str:
    scheme, _, text = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return text.strip()
    return request.headers.get("X-API-Key", "").strip()


def _is_local(request: web.Request, end: str) -> bool:
    """Whether one end of the connection is a loopback address."""
    address = None if request.transport is None else request.transport.get_extra_info(end)
    return isinstance(address, tuple) and is_loopback(str(address[0]))
