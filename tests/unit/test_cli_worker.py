"""`k2 worker --role query`: what it refuses at once, and how it ends."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from k2.dev.broker import free_port
from k2.lake.catalog import ensure_tables, open_catalog
from k2.settings import Settings
from tests.integration.parts import environment, k2


def test_arguments_of_fausts_worker_are_refused(tmp_path: Path) -> None:
    env = environment(Settings(data=tmp_path))
    done = k2(env, "worker", "--role", "query", "--", "--web-port", "1")
    assert done.returncode == 2
    assert "--web-port 1: a query worker is none of Faust's" in done.stderr


def test_an_address_that_anybody_could_ask_is_refused(tmp_path: Path) -> None:
    done = k2(environment(Settings(data=tmp_path), K2_BIND="0.0.0.0", K2_ROLE="query"), "worker")
    assert done.returncode == 2
    assert "bind: 0.0.0.0 is no loopback address" in done.stderr


def test_a_port_that_is_in_use_is_refused_by_its_number(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        env = environment(Settings(data=tmp_path, port=port))
        done = k2(env, "worker", "--role", "query")
    assert done.returncode == 2
    assert f"k2: port: {port} on 127.0.0.1: " in done.stderr
    assert "in use" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    """It needs no broker, and no peers for what is committed; nothing is left behind."""
    settings = Settings(data=tmp_path, port=free_port(), broker="127.0.0.1:1")
    ensure_tables(open_catalog(settings), settings)
    argv = [sys.executable, "-m", "k2", "worker", "--role", "query"]
    with subprocess.Popen(
        argv, env=environment(settings, K2_ROLE="all"), stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    ) as worker:  # fmt: skip
        try:
            until = time.monotonic() + 60
            while not _answers(f"{settings.url}/v1/trades"):
                assert time.monotonic() < until
                assert worker.poll() is None
                time.sleep(0.05)
            worker.send_signal(number)
            said = worker.communicate(timeout=30)[0]
        finally:
            worker.kill()
    assert worker.returncode == 0, said
    assert f"answers at {settings.url}; asks nobody (K2_PEERS)" in said
    assert "k2: stopping; a second signal ends it at once" in said
    assert "Traceback" not in said


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError:
        raise
    except OSError:
        return False
