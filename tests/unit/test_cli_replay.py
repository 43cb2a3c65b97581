"""`k2 replay`: lines on stdout, messages on stderr, clean ends, and a worker that breaks off."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from k2.schemas import QUOTES, TRADES
from tests.integration.parts import environment, k2
from tests.lakes import START, Lake, source

SECOND = 1_000_000_000


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    made = Lake(tmp_path_factory.mktemp("lake"))
    made.commit(TRADES, {source(TRADES, 0): [(n * SECOND, "A") for n in range(3000)]})
    made.commit(QUOTES, {source(QUOTES, 0): [(n * SECOND, "B") for n in range(3)]})
    return made


def run(lake: Lake, *arguments: str) -> subprocess.CompletedProcess[str]:
    return k2(environment(lake.settings), "replay", *arguments)


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_lines_are_the_records_and_stderr_says_what_they_were(lake: Lake) -> None:
    done = run(lake)
    records = lines(done.stdout)
    assert done.returncode == 0
    assert len(records) == 3003 + 2
    assert (
        done.stderr == f"k2: completed: 3,000 trades, 3 quotes, 0 gaps, {records[-1]['digest']}\n"
    )
    rest = run(lake, "--cursor", records[10]["cursor"], "--kind", "trades", "--symbol", "A")
    assert lines(rest.stdout)[1:-1] == [r for r in records[11:-1] if r["type"] == "trade"]
    few = lines(run(lake, "--end", str(START + 2 * SECOND)).stdout)
    assert [record["type"] for record in few[1:-1]] == ["quote", "trade"] * 2


def test_closed_pipe_and_ctrl_c_end_quietly(lake: Lake) -> None:
    argv = [sys.executable, "-m", "k2", "replay"]
    common = {"env": environment(lake.settings), "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(argv, stderr=subprocess.PIPE, **common) as child:
        assert child.stdout
        assert child.stderr
        assert json.loads(child.stdout.readline())["type"] == "replay_started"
        child.stdout.close()
        said = child.stderr.read()
        child.wait(20)
    assert "Traceback" not in said
    assert "Exception" not in said
    with subprocess.Popen([*argv, "--speed", "1"], stderr=subprocess.PIPE, **common) as child:
        assert child.stdout
        assert child.stderr
        for _ in range(3):
            child.stdout.readline()
        child.send_signal(signal.SIGINT)
        assert child.wait(20) == 130
        assert child.stderr.read() == ""


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--cursor", "x"], "k2: cursor: it is not one of K2"),
        (["--speed", "fast"], "k2: speed: 'fast' is not within"),
        (["--start", "2", "--end", "1"], "k2: start: 2 is not before end 1"),
        (["--url", "http://127.0.0.1:1"], "is a worker running there?"),
        (["--url", "host:6066"], "k2: url: 'host:6066' is not http(s)://host[:port]"),
    ],
)
def test_impossible_questions_are_one_line(lake: Lake, arguments: list[str], why: str) -> None:
    done = run(lake, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert why in done.stderr
    assert done.stderr.count("\n") == 1


def test_without_tables_it_says_how_to_make_them(tmp_path: Path) -> None:
    done = k2({**environment(), "K2_DATA": str(tmp_path / "none")}, "replay")
    assert done.returncode == 2
    assert "run `k2 init`" in done.stderr


class _Breaking(BaseHTTPRequestHandler):
    """A worker that breaks off in mid-line, then cannot be asked, and then goes on."""

    asked: list[str] = []  # noqa: RUF012 - of the one server of the test

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if len(self.asked) == 2:
            self.send_response(503)
            self.end_headers()
            self.wfile.write(b'{"detail": "rebalancing"}')
            return
        self.send_response(200)
        self.end_headers()
        if len(self.asked) == 1:
            self.wfile.write(b'{"type":"trade","cursor":"one"}\n{"type":"tra')
            return
        self.wfile.write(b'{"type":"trade","cursor":"two"}\n')
        self.wfile.write(b'{"type":"error","cursor":"two","detail":"no","retriable":false}\n')

    def log_message(self, *args: Any) -> None: ...


class _Refusing(BaseHTTPRequestHandler):
    """A worker that says which key it was sent; or sends whoever asks to another place."""

    def do_GET(self) -> None:
        self.send_response(302 if "symbol=MOVED" in self.path else 401)
        self.send_header("Location", "/v1/replay")
        self.end_headers()
        said = {"detail": f"sent: {self.headers['Authorization']}"}
        self.wfile.write(b"" if "symbol=MOVED" in self.path else json.dumps(said).encode())

    def log_message(self, *args: Any) -> None: ...


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_key_of_the_settings_is_sent_to_the_worker_and_to_nobody_else(lake: Lake) -> None:
    with serving(_Refusing) as url:
        for key, symbol, why in (
            ("k2_x", "A", "sent: Bearer k2_x"),
            ("", "A", "sent: None"),
            ("k2_x", "MOVED", "Found"),
        ):
            asking = environment(lake.settings, K2_API_KEY=key)
            done = k2(asking, "replay", "--url", f"{url}/", "--symbol", symbol)
            assert (done.returncode, done.stdout) == (2, "")
            assert done.stderr == f"k2: {url}/v1/replay: {why}\n"


def test_it_goes_on_where_a_worker_broke_off(lake: Lake) -> None:
    with serving(_Breaking) as breaking:
        done = run(lake, "--url", breaking, "--symbol", "A", "--follow")
    assert [r["cursor"] for r in lines(done.stdout)] == ["one", "two", "two"]
    assert done.returncode == 2
    assert done.stderr.endswith("k2: cursor: no\n")
    first, second, third = _Breaking.asked
    assert "symbol=A" in first
    assert "follow=true" in first
    assert "cursor" not in first
    assert "cursor=one" in second
    assert "cursor=one" in third
