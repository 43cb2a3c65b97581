"""What aiohttp itself refuses is a problem with a request id, as all that K2 refuses."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from k2.settings import Settings
from k2.web.gate import protect
from k2.web.params import Parameters
from k2.web.routes import Route, in_json

HOST = "Host: localhost\r\n"
MINE = "X-Request-Id: mine-7\r\n"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[TestServer]:
    async def view(request: web.Request, query: Parameters) -> web.Response:
        return web.json_response({})

    site = web.Application(handler_args={"max_line_size": 4096, "max_field_size": 4096})
    protect(site, Settings(data=tmp_path, body_bytes_max=65_536))
    routes = [Route(method, "/v1/one", view, "Ask", "", in_json({})) for method in ("GET", "POST")]
    site.add_routes(routes)
    async with TestServer(site) as server:
        yield server


async def said(
    server: TestServer, request: str | bytes, *, closes: bool = False
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the answer to some bytes."""
    reader, writer = await asyncio.open_connection(server.host, server.port)
    try:
        writer.write(request if isinstance(request, bytes) else request.encode())
        head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)).decode()
        first, *rest = head.strip().split("\r\n")
        headers = {k.lower(): v.strip() for k, v in (line.split(":", 1) for line in rest)}
        body = await reader.readexactly(int(headers["content-length"]))
        if closes:
            assert await asyncio.wait_for(reader.read(), 10) == b""
        return int(first.split()[1]), headers, body
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("request_", "status", "kind"),
    [
        pytest.param(f"GET /nowhere HTTP/1.1\r\n{HOST}{MINE}\r\n", 404, "http", id="404"),
        pytest.param(f"PUT /v1/one HTTP/1.1\r\n{HOST}{MINE}\r\n", 405, "http", id="405"),
        pytest.param(
            f"POST /v1/one HTTP/1.1\r\n{HOST}{MINE}Content-Length: 70000\r\n\r\n",
            413, "request-too-large", id="413",
        ),
        pytest.param(
            f"GET /v1/one HTTP/1.1\r\n{HOST}{MINE}Expect: a miracle\r\n\r\n",
            417, "http", id="417 of a route",
        ),
        pytest.param(
            f"GET /nowhere HTTP/1.1\r\n{HOST}{MINE}Expect: a miracle\r\n\r\n",
            417, "http", id="417 of none",
        ),
        pytest.param(
            f"GET /v1/one?a=1 HTTP/1.1\r\n{HOST}{MINE}\r\n",
            400, "bad-query", id="a parameter that there is not",
        ),
        pytest.param(
            f"GET /v1/one?%ff=%fe HTTP/1.1\r\n{HOST}{MINE}\r\n",
            400, "bad-query", id="a query that is no UTF-8",
        ),
        pytest.param(
            f"POST /v1/one HTTP/1.1\r\n{HOST}{MINE}Content-Encoding: gzip\r\n"
            "Content-Length: 3\r\n\r\nabc",
            400, "http", id="a body that is not what it says",
        ),
    ],
)  # fmt: skip
async def test_refusals_name_the_request(
    server: TestServer, request_: str, status: int, kind: str
) -> None:
    found, headers, body = await said(server, request_)
    assert (found, headers["content-type"]) == (status, "application/problem+json")
    problem = json.loads(body)
    assert (problem["type"], problem["status"]) == (f"urn:k2:error:{kind}", status)
    assert headers["x-request-id"] == "mine-7"


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(b"no http at all\r\n\r\n", id="no request line"),
        pytest.param(b"GET / HTTP/1.1\r\nno header\r\n\r\n", id="no header"),
        pytest.param(b"GET / HTTP/1.1\r\nA: " + b"x" * 9000 + b"\r\n\r\n", id="a long header"),
        pytest.param(b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\n\r\n", id="a long line"),
        pytest.param(b"GET /v1/one HTTP/9.9\r\n\r\n", id="another version"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\xff\xfe\r\n\r\n", id="TLS"),
        pytest.param(
            b"POST /v1/one HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            id="two lengths",
        ),
    ],
)
async def test_what_is_no_http_is_a_problem_too(server: TestServer, request_: bytes) -> None:
    """aiohttp answers it before there is a request; the connection is closed behind it."""
    status, headers, body = await said(server, request_, closes=True)
    assert (status, headers["content-type"]) == (400, "application/problem+json")
    assert json.loads(body)["type"] == "urn:k2:error:http"
    assert headers["x-request-id"]
