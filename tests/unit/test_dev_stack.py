"""The stack: whose tables are kept, who may use the folder, what init makes."""

from __future__ import annotations

import fcntl
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from k2.dev.stack import Stack, _environment, _ready, init, set_aside_tables
from k2.errors import K2Error, SettingError
from k2.lake.catalog import gaps_name, open_catalog, rejects_name, table_name
from k2.registry import open_registry
from k2.schemas import TRADES
from k2.settings import Settings

if TYPE_CHECKING:
    from conftest import Broker


def tables(data: Path) -> Path:
    file = data / "tables" / "worker-0" / "state"
    file.parent.mkdir(parents=True)
    file.write_text("x")
    return file


def test_tables_of_the_same_cluster_stay(tmp_path: Path) -> None:
    assert not set_aside_tables(tmp_path, "k2-a")
    kept = tables(tmp_path)
    assert not set_aside_tables(tmp_path, "k2-a")
    assert kept.exists()


def test_tables_of_another_cluster_go_and_the_warehouse_stays(tmp_path: Path) -> None:
    set_aside_tables(tmp_path, "k2-a")
    gone, row = tables(tmp_path), tmp_path / "warehouse"
    row.mkdir()
    assert set_aside_tables(tmp_path, "k2-b")
    assert not gone.exists()
    assert row.exists()


@pytest.mark.parametrize("memory", [None, "", "[]", "{}"])
def test_tables_of_an_unknown_cluster_go(tmp_path: Path, memory: str | None) -> None:
    if memory is not None:
        (tmp_path / "cluster.json").write_text(memory)
    gone = tables(tmp_path)
    assert set_aside_tables(tmp_path, "k2-a")
    assert not gone.exists()


def test_second_stack_in_a_folder_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "stack.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(K2Error, match="another `k2 up`"):
            Stack(Settings(data=tmp_path), embedded=True).start()


def test_no_workers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="workers: 0"):
        Stack(Settings(data=tmp_path), 0)


def test_workers_of_a_stack_have_a_secret_of_their_own(tmp_path: Path) -> None:
    """Made anew, unless one is given; it reaches them in their environment."""
    one, two = (Stack(Settings(data=tmp_path), 2).settings for _ in range(2))
    assert len(one.group_secret) == 64
    assert one.group_secret != two.group_secret
    assert _environment(one)["K2_GROUP_SECRET"] == one.group_secret
    given = Settings(data=tmp_path, group_secret="the same for all stacks")
    assert Stack(given, 2).settings.group_secret == given.group_secret


def test_stack_that_anybody_could_ask_is_refused_before_anything_starts(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path / "none", bind="0.0.0.0")
    with pytest.raises(SettingError, match=r"bind: 0\.0\.0\.0 is no loopback address"):
        Stack(settings, embedded=True).start()
    assert not settings.data.exists()


def test_query_workers_have_the_first_ports_and_know_the_others(tmp_path: Path) -> None:
    """Who asks the default port is answered; names of those that ingest stay what they were."""
    stack = Stack(Settings(data=tmp_path), 2, query=1)
    asked, *ingesting = [own for own, _ in stack._planned()]
    assert (asked.port, asked.role, asked.worker) == (6066, "query", "query-0")
    assert asked.peer_urls == ("http://127.0.0.1:6067", "http://127.0.0.1:6068")
    assert [(own.port, own.role, own.worker) for own in ingesting] == [
        (6067, "ingest", "0"), (6068, "ingest", "1"),
    ]  # fmt: skip
    assert asked.group_secret == ingesting[0].group_secret
    (alone,) = [own for own, _ in Stack(Settings(data=tmp_path))._planned()]
    assert (alone.port, alone.role, alone.worker) == (6066, "all", "0")


@pytest.mark.parametrize(
    ("role", "query", "message"),
    [("query", 0, "role: query: a stack's workers ingest"), ("all", -1, "query: -1 is below 0")],
)
def test_stack_without_anybody_who_ingests_is_refused(
    tmp_path: Path, role: str, query: int, message: str
) -> None:
    with pytest.raises(SettingError, match=message):
        Stack(Settings(data=tmp_path, role=role), query=query)


def test_one_url_for_several_workers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="advertise: http://k2 is one URL for 2 workers"):
        Stack(Settings(data=tmp_path, advertise="http://k2"), 2)


@pytest.mark.parametrize(
    ("status", "reasons", "up"),
    [
        (200, {}, True),
        (503, {"paused": ["market.trades.sim[0] waits"]}, True),
        (503, {"paused": ["market.trades.sim[0] waits"], "lake": "away"}, False),
        (503, {"group": "rebalancing"}, False),
        (500, {"paused": ["market.trades.sim[0] waits"]}, False),
        (503, None, False),
    ],
)
def test_a_worker_with_a_paused_partition_is_up(
    status: int, reasons: dict[str, object] | None, up: bool
) -> None:
    """It waits for an operator, who needs the stack; whatever else it says has to pass first."""

    class Ready(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps({"ready": status == 200, "reasons": reasons}).encode())

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Ready) as server:
        threading.Thread(target=server.handle_request).start()
        assert _ready(f"http://127.0.0.1:{server.server_port}") is up


@pytest.mark.slow
def test_init_makes_topics_tables_and_schemas_and_repeats(broker: Broker, tmp_path: Path) -> None:
    settings = Settings(data=tmp_path, broker=broker.address, exchanges="INIT")
    assert TRADES.topic("INIT") in init(settings)
    assert init(settings) == []
    catalog = open_catalog(settings)
    assert catalog.table_exists(table_name(settings, TRADES))
    assert all(catalog.table_exists(name(settings)) for name in (rejects_name, gaps_name))
    catalog.close()
    assert "market.trades.init-value" in open_registry(settings).subjects()
