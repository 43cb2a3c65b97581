"""Workers as processes: refused where anybody could ask, and closed to whoever has no key."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from dataclasses import replace

import pyarrow as pa
import pytest

from k2.feeds.producer import produce
from k2.feeds.simulate import Simulation
from k2.keys import authorization
from k2.schemas import TRADES
from k2.settings import Settings
from tests.integration.parts import Worker, environment, k2, until

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("place", ["local"], indirect=True)]

ROWS = 2000
GROUP_SECRET = "known to these two workers only"


def ask(url: str, key: str = "") -> tuple[int, bytes]:
    """Workers are asked by POST for what is theirs."""
    data = b"kind=trades" if "/internal/" in url else None
    request = urllib.request.Request(url, data, authorization(key))
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, refused.read()


@pytest.mark.parametrize(
    ("arguments", "more"),
    [
        pytest.param(["worker"], {"K2_BIND": "0.0.0.0"}, id="by the setting"),
        pytest.param(["worker", "--", "--web-bind", "0.0.0.0"], {}, id="by Faust's option"),
        pytest.param(["up"], {"K2_BIND": "0.0.0.0"}, id="as a stack"),
    ],
)
def test_a_worker_on_all_addresses_without_keys_does_not_start(
    lake: Settings, arguments: list[str], more: dict[str, str]
) -> None:
    done = k2(environment(lake, **more), *arguments)
    assert done.returncode != 0
    said = done.stderr + done.stdout
    assert "bind: 0.0.0.0 is no loopback address" in said
    assert "`k2 keys create --scope read`" in said
    assert "Worker ready" not in said


def test_workers_with_keys_answer_those_who_may_and_each_other(lake: Settings) -> None:
    """By a rebalance or a revocation nobody gets in who had not, or stays in who may not."""
    settings = replace(lake, group_secret=GROUP_SECRET)

    def key(*scopes: str) -> str:
        options = [part for scope in scopes for part in ("--scope", scope)]
        done = k2(environment(settings), "keys", "create", *options)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    read, admin = key("read"), key("admin")
    day = Simulation(5, 20, ROWS)
    produce([pa.concat_tables(day)], TRADES.topic("SIM"), settings)
    with Worker(settings, "a") as one, Worker(settings, "b") as two:
        for worker in (one, two):
            worker.await_ready()
        for worker in (one, two):
            for path, needed in (("/v1/symbols", read), ("/", admin), ("/internal/fresh", admin)):
                assert ask(worker.url + path)[0] == 401, path
                assert ask(worker.url + path, GROUP_SECRET + "?")[0] == 401, path
                other = read if needed == admin else admin
                assert ask(worker.url + path, other)[0] == 403, path
            assert ask(f"{worker.url}/v1/symbols", read)[0] == 200
            assert ask(f"{worker.url}/", admin)[0] == 200
            assert ask(f"{worker.url}/internal/fresh", admin)[0] in (200, 503)  # rebalancing
            for path in ("/table/", "/router/", "/graph", "/stats"):  # Faust's: they are off
                assert ask(worker.url + path, admin)[0] == 404, path

            def all_rows(url: str = worker.url) -> bool:
                status, body = ask(f"{url}/v1/trades?fresh=true&limit=1000000", read)
                return status == 200 and json.loads(body)["count"] == sum(day.journal.rows.values())

            until(all_rows, 60, worker.tail)  # each asks the other for its rows

        asked = k2(environment(settings, K2_API_KEY=read), "silence", "--url", one.url, "--json")
        assert asked.returncode == 0, asked.stderr
        refused = k2(environment(settings), "silence", "--url", one.url)
        assert refused.returncode == 2
        assert "an API key is needed" in refused.stderr

        revoked = k2(environment(settings), "keys", "revoke", read.split("_")[1])
        assert revoked.returncode == 0, revoked.stderr
        for worker in (one, two):
            until(lambda url=worker.url: ask(f"{url}/v1/symbols", read)[0] == 401, 10, worker.tail)
            worker.terminate()
            for secret in (read, admin, GROUP_SECRET):
                assert secret not in worker.log()
