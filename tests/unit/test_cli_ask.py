"""Commands that ask a worker: what it says, what it refuses, and what is no worker at all."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import orjson
import pytest
from click.testing import CliRunner, Result

from k2.cli import cli
from k2.dev.broker import free_port

NOBODY = {"limits": {}, "topics": [], "symbols": []}
KNOWN = {"session": None, "trade": {"price": "1"}, "quote": None, "sequences": {}}
#: Path: status and body.
ANSWERS = {
    "/v1/silence?exchange=A+%26": (200, orjson.dumps(NOBODY)),
    "/v1/symbols/S%2FX/%C3%A9?bars=true": (200, orjson.dumps(KNOWN)),
    "/v1/symbols/S/A": (404, orjson.dumps({"detail": "no record of 'S.A' is known"})),
    "/v1/symbols/S/B": (503, orjson.dumps({"detail": "the group is rebalancing"})),
    "/v1/symbols/S/C": (502, b"<html>"),
    "/v1/symbols/S/D": (200, b"<html>"),
    "/v1/symbols/S/E": (200, b"1"),
    "/v1/silence": (400, orjson.dumps({"detail": "exchange: unknown parameter"})),
}


class Worker(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/v1/symbols/S/MOVED":
            self.send_response(302)
            port = self.headers["Host"].rpartition(":")[2]
            self.send_header("Location", f"http://localhost:{port}/v1/key")
            self.end_headers()
            return
        if self.path in ("/v1/symbols/S/KEY", "/v1/key"):
            status, body = 400, orjson.dumps({"detail": f"sent: {self.headers['Authorization']}"})
        else:
            status, body = ANSWERS[self.path]
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Worker) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def k2(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


def test_the_key_of_the_settings_is_sent_to_the_worker_and_to_nobody_else(url: str) -> None:
    for path, key, said in (("KEY", "k2_x", "Bearer k2_x"), ("KEY", "", "None"),
                            ("MOVED", "k2_x", "None")):  # fmt: skip
        asked = CliRunner().invoke(
            cli, ["symbol", "S", path, "--url", url], env={"K2_API_KEY": key}
        )
        assert asked.exit_code == 2
        assert f"sent: {said}" in asked.stderr


def test_what_is_asked_is_quoted_and_the_answer_shown(url: str) -> None:
    """The URL may end with a slash."""
    shown = k2("symbol", "S/X", "é", "--bars", "--url", f"{url}/", "--json")
    assert (shown.exit_code, orjson.loads(shown.stdout)) == (0, KNOWN)
    shown = k2("silence", "--exchange", "A &", "--url", url, "--json")
    assert (shown.exit_code, orjson.loads(shown.stdout)) == (0, NOBODY)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("symbol", "S", "A"), "/v1/symbols/S/A: no record of 'S.A' is known"),
        (("symbol", "S", "B"), "/v1/symbols/S/B: the group is rebalancing"),
        (("symbol", "S", "C"), "/v1/symbols/S/C: HTTP Error 502: Bad Gateway"),
        (("symbol", "S", "D"), "is a worker running there?"),
        (("symbol", "S", "E"), "is a worker running there?"),
        (("silence",), "/v1/silence: exchange: unknown parameter"),
    ],
)
def test_what_a_worker_refuses_is_one_line_with_its_reason(
    url: str, arguments: tuple[str, ...], said: str
) -> None:
    done = k2(*arguments, "--url", url)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"k2: {url}/v1/")
    assert done.stderr.endswith(f"{said}\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", [("symbol", "S", "A"), ("silence",)])
def test_where_no_worker_is_the_place_is_named(command: tuple[str, ...]) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    done = k2(*command, "--url", nobody)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"k2: {nobody}/v1/")
    assert done.stderr.endswith("Connection refused: is a worker running there?\n")
    done = k2(*command, "--url", "host:6066")
    assert (done.exit_code, done.stderr) == (
        2,
        "k2: url: 'host:6066' is not http(s)://host[:port]\n",
    )
