"""GET /openapi.json and GET /docs: what there is to ask, for programs and for people."""

from __future__ import annotations

from collections.abc import Sequence

import orjson
from aiohttp import web

from k2.errors import BadQuery
from k2.settings import Settings
from k2.web.answers import headers_of
from k2.web.openapi import document
from k2.web.page import POLICY, page
from k2.web.params import Parameters
from k2.web.routes import Answer, Route, in_json

__all__ = ["routes"]


def routes(others: Sequence[Route], settings: Settings) -> list[Route]:
    """The views over all public routes, these two among them; `others`: the rest."""

    async def openapi(request: web.Request, _: Parameters) -> web.StreamResponse:
        headers = headers_of(request)
        return web.Response(body=told, content_type="application/json", headers=headers)

    async def docs(request: web.Request, _: Parameters) -> web.StreamResponse:
        headers = {"Content-Security-Policy": POLICY, **headers_of(request)}
        return web.Response(text=shown, content_type="text/html", headers=headers)

    own = [
        Route(
            "GET", "/openapi.json", openapi, "Read", "OpenAPI",
            in_json({"type": "object"}), "This document, as OpenAPI 3.1.", raises=(BadQuery,),
        ),
        Route(
            "GET", "/docs", docs, "Read", "Page", Answer({"text/html": {"type": "string"}}),
            "This document as a page: no scripts, and nothing from elsewhere.", raises=(BadQuery,),
        ),
    ]  # fmt: skip
    found = document([*others, *own], settings)
    told, shown = orjson.dumps(found), page(found, settings.url)
    return own
