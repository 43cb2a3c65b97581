"""Every route that a worker of a role serves, with the scope that it needs: no other is open."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

READ = {
    "/v1/trades", "/v1/quotes", "/v1/bars", "/v1/symbols", "/v1/symbols/{exchange}/{symbol}",
    "/v1/gaps", "/v1/instruments", "/v1/instruments/{exchange}/{symbol}", "/v1/silence",
    "/v1/snapshots",
    "/v1/status", "/v1/replay",
}  # fmt: skip
DOCS: dict[tuple[str, str], str | None] = {(p, "GET"): None for p in ("/openapi.json", "/docs")}
VIEWS = {**{(path, "GET"): "read" for path in READ}, ("/v1/sql", "POST"): "sql", **DOCS}
HEALTH: dict[tuple[str, str], str | None] = {
    (path, method): scope
    for path, scope in (("/live", None), ("/ready", None), ("/metrics", "read"))
    for method in ("GET", "HEAD")
}
INTERNAL = {
    (f"/internal/{name}", "POST"): "admin"
    for name in ("owners", "fresh", "symbol", "instruments", "silence")
}
#: What says that Faust is there. /table, /router, /graph and its statistics are off.
FAUSTS = {("/", method): "admin" for method in ("GET", "HEAD")}

#: As Faust's worker does, up to the socket: it finds K2's modules, and adds its own pages.
MEMBER = """
from k2.app import app

app.finalize()
app.discover()
app.web.init_server()
assert app.web.cors is not None
site = app.web.web_app
"""

QUERY = """
import asyncio
from k2.settings import load
from k2.web.query import site_of

async def made():
    return site_of(load())

site = asyncio.run(made())
"""

TOLD = """
import json, sys
from k2.web.keys import scope_of

parts = ("faust.", "confluent_kafka", "k2.app", "k2.agents", "k2.tables")
print(json.dumps({
    "routes": [[r.resource.canonical, r.method, scope_of(r.resource.canonical)]
               for r in site.router.routes()],
    "imported": [m for m in sys.modules if m.startswith(parts)],
}))
"""

#: Faust has variables of its own; none opens a page.
FAUST = {f"APP_WEB_{page}_ENABLED": "1" for page in ("TABLES", "ROUTER", "STATS", "GRAPH")}


def told(role: str, code: str, data: Path) -> dict[str, list[list[str]]]:
    env = dict(os.environ, K2_DATA=str(data), K2_ROLE=role, **FAUST)
    done = subprocess.run(
        [sys.executable, "-c", code + TOLD], env=env, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, list[list[str]]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    ("role", "code", "routes"),
    [
        ("all", MEMBER, {**VIEWS, **HEALTH, **INTERNAL, **FAUSTS}),
        ("ingest", MEMBER, {**HEALTH, **INTERNAL, **FAUSTS}),
        ("query", QUERY, {**VIEWS, **HEALTH}),
    ],
)
def test_routes_of_a_role_and_their_scopes(
    role: str, code: str, routes: dict[tuple[str, str], str | None], tmp_path: Path
) -> None:
    found = told(role, code, tmp_path)["routes"]
    assert {(path, method): scope for path, method, scope in found} == routes
    assert len(found) == len(routes)


def test_a_query_worker_imports_nothing_of_faust_kafka_or_agents(tmp_path: Path) -> None:
    assert told("query", QUERY, tmp_path)["imported"] == []


def test_faust_does_not_start_a_query_worker(tmp_path: Path) -> None:
    code = "import asyncio\nfrom k2.app import app\nasyncio.run(app.on_first_start())"
    done = subprocess.run(
        [sys.executable, "-c", code], env=dict(os.environ, K2_DATA=str(tmp_path), K2_ROLE="query"),
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "SettingError: role: query is no member of the group" in done.stderr
