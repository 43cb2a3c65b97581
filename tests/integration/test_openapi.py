"""The OpenAPI document beside a worker that runs: what it is asked, it answers as documented."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import aiohttp
import jsonschema_rs
import pyarrow as pa
import pytest

from k2.dev.stack import init
from k2.feeds.producer import produce
from k2.feeds.simulate import Simulation
from k2.keys import authorization
from k2.schemas import QUOTES
from tests.integration.parts import Worker, committed, environment, get, k2, until
from tests.integration.places import local

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
#: Where nothing of the query is read, and whatever stands in it does no harm.
UNREAD = ("/live", "/ready", "/metrics")
ROWS = 3000
SEED = 20240311
#: `K2_OPENAPI_S=900 pytest tests/integration/test_openapi.py` asks for longer.
ASK_S = int(os.environ.get("K2_OPENAPI_S", "60"))
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_headers_conformance,response_schema_conformance,negative_data_rejection,"
    "unsupported_method,allow_header_conformance,ignored_auth,rows_are_as_documented"
)


class Served(NamedTuple):
    """A worker with records, and a key for all of its views."""

    worker: Worker
    key: str
    document: dict[str, Any]
    symbols: list[str]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with local(tmp_path_factory.mktemp("openapi") / "data") as place:
        settings = replace(
            place, key_rate_max=100_000, key_burst_max=100_000, silence_limits="SIM=60:60"
        )
        init(settings)
        done = k2(environment(settings), "keys", "create", "--scope", "read", "--scope", "sql")
        assert done.returncode == 0, done.stderr
        days = [
            Simulation(3, 6, ROWS, gaps=3, late=1, duplicates=2),
            Simulation(3, 6, ROWS, gaps=2, kind=QUOTES),
        ]
        for day in days:
            produce([pa.concat_tables(day)], day.kind.topic("SIM"), settings)
        known = settings.data / "instruments.csv"
        known.write_text(
            "exchange,symbol,name,tick_size,listed\nSIM,S00001,One,0.005,1990-01-02\nSIM,S00002,,,\n"
        )
        put = k2(environment(settings), "load", "--kind", "instruments", str(known))
        assert put.returncode == 0, put.stderr
        with Worker(settings) as worker:
            worker.await_ready()
            for day in days:
                rows = sum(day.journal.rows.values())
                until(lambda n=day.kind.name, r=rows: committed(settings, n) == r, 60, worker.tail)
            document = json.loads(get(f"{worker.url}/openapi.json")[2])
            yield Served(worker, done.stdout.strip(), document, days[0].names)


def test_whatever_is_asked_is_answered_as_documented(served: Served, tmp_path: Path) -> None:
    """No 5xx, and no status, media type, header or body that the document does not have."""
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{served.worker.url}/openapi.json"),
        *("--url", served.worker.url, "--checks", CHECKS, "--seed", str(SEED)),
        *("--header", f"Authorization: Bearer {served.key}", "--phases", "coverage,fuzzing"),
        *("--max-time", str(ASK_S), "--request-timeout", "60", "--generation-database", "none"),
        *("--continue-on-failure", "--no-color", "--max-examples", "100000"),
    ]
    more = {
        "SCHEMATHESIS_HOOKS": "tests.integration.questions",
        "K2_TEST_SYMBOLS": ",".join(served.symbols),
        "K2_URL": served.worker.url,
        "PYTHONPATH": str(ROOT),
    }
    log = tmp_path / "schemathesis.log"
    with log.open("w") as out:
        done = subprocess.run(
            command, cwd=tmp_path, env=environment(**more), stdout=out, stderr=subprocess.STDOUT,
            timeout=ASK_S + 120, check=False,
        )  # fmt: skip
    assert done.returncode == 0, log.read_text()[-20_000:]


def test_every_parameter_of_the_document_is_read_and_no_other(served: Served) -> None:
    """Nothing is refused by whoever reads it; what is not there is refused as unknown."""
    for path, methods in served.document["paths"].items():
        if "get" not in methods or path in UNREAD:
            continue
        taken = methods["get"].get("parameters", [])
        named = [each["name"] for each in taken if each["in"] == "query"]
        url = served.worker.url + path.format(exchange="SIM", symbol="S00001")
        needed = {each["name"]: "S00001" for each in taken if each.get("required")}
        for name in [*named, "nonsense"]:
            others = {n: v for n, v in needed.items() if n in named and n != name}
            status, body = _asked(f"{url}?{urlencode({**others, name: ''})}", served.key)
            problem = json.loads(body)
            assert (status, problem["parameter"]) == (400, name), (path, name, problem)
            assert ("unknown" in problem["detail"]) == (name == "nonsense"), (path, name)


def _asked(url: str, key: str) -> tuple[int, bytes]:
    request = urllib.request.Request(url, headers=authorization(key))
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, refused.read()


@pytest.fixture(scope="module")
def line(served: Served) -> jsonschema_rs.Draft202012Validator:
    """What the document says of a line of a replay."""
    content = served.document["paths"]["/v1/replay"]["get"]["responses"]["200"]["content"]
    schema = content["application/x-ndjson"]["schema"]
    components = {"components": served.document["components"]}
    return jsonschema_rs.Draft202012Validator({**schema, **components})


@pytest.mark.parametrize("form", ["ndjson", "sse"])
async def test_a_replay_that_follows_says_what_is_documented(
    served: Served, line: jsonschema_rs.Draft202012Validator, form: str
) -> None:
    """All of the history, the findings in it, and what comes behind it."""
    seen: set[str] = set()
    url = f"{served.worker.url}/v1/replay?follow=true&format={form}"
    async with (
        asyncio.timeout(60),
        aiohttp.ClientSession(headers=authorization(served.key)) as session,
        session.get(url) as answer,
    ):
        assert answer.status == 200
        async for text in answer.content:
            told = text if form == "ndjson" else text.removeprefix(b"data: ")
            if told == text and form == "sse":
                assert text == b"\n" or text.startswith(b"id: ")
                continue
            record = json.loads(told)
            line.validate(record)
            seen.add(record["type"])
            if record["type"] == "heartbeat":
                break
    assert seen == {"replay_started", "trade", "quote", "gap", "replay_completed", "heartbeat"}


async def test_what_a_websocket_says_is_documented(
    served: Served, line: jsonschema_rs.Draft202012Validator
) -> None:
    seen: list[str] = []
    url = f"{served.worker.url}/v1/replay?symbol=S00001&speed=1000"
    orders = [{"op": "pause"}, {"op": "resume"}, {"op": "dance"}, {"op": "speed", "speed": 0}]
    async with (
        asyncio.timeout(60),
        aiohttp.ClientSession(headers=authorization(served.key)) as session,
        session.ws_connect(url) as socket,
    ):
        for order in orders:
            await socket.send_json(order)
        async for message in socket:
            for text in message.data.splitlines():
                record = json.loads(text)
                line.validate(record)
                seen.append(record["type"])
    assert {"refused", "speed", "trade", "gap", "replay_started"} <= set(seen)
    assert seen[-1] == "replay_completed"
