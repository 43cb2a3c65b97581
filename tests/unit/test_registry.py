"""Registries: real files, real processes, a real HTTP server of Confluent's shape."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from k2.errors import RegistryUnavailable
from k2.registry import FileRegistry, HttpRegistry, open_registry
from k2.schemas import TRADES
from k2.settings import Settings

OTHER = {"type": "record", "name": "Other", "fields": [{"name": "a", "type": "long"}]}


def test_a_schema_keeps_its_id_across_subjects_and_instances(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "registry.json"
    first = FileRegistry(path)
    assert first.register("a-value", TRADES.avro) == 1
    assert first.register("b-value", OTHER) == 2
    second = FileRegistry(path)
    assert second.register("c-value", TRADES.avro) == 1
    assert second.get(1) == TRADES.avro
    assert second.get(2) == OTHER
    assert first.subjects() == ["a-value", "b-value", "c-value"]


def test_an_id_registered_elsewhere_is_seen_after_it_was_unknown(tmp_path: Path) -> None:
    path = tmp_path / "registry.json"
    reader = FileRegistry(path)
    assert reader.get(1) is None
    FileRegistry(path).register("a-value", TRADES.avro)
    assert reader.get(1) == TRADES.avro
    assert reader.get(2) is None
    FileRegistry(path).register("a-value", OTHER)
    assert reader.get(2) == OTHER


def test_two_processes_never_share_an_id(tmp_path: Path) -> None:
    """Each registers 40 schemas of its own and one common one."""
    path = tmp_path / "registry.json"
    script = """
import sys
from pathlib import Path
from k2.registry import FileRegistry
registry = FileRegistry(Path(sys.argv[1]))
for i in range(40):
    registry.register(sys.argv[2], {"type": "fixed", "name": f"{sys.argv[2]}{i}", "size": 1})
    registry.register("common", {"type": "fixed", "name": "common", "size": 2})
"""
    children = [subprocess.Popen([sys.executable, "-c", script, str(path), name]) for name in "ab"]
    assert [child.wait(60) for child in children] == [0, 0]
    registry = FileRegistry(path)
    names = {registry.get(i)["name"] for i in range(1, 82)}  # type: ignore[index]
    assert names == {f"{name}{i}" for name in "ab" for i in range(40)} | {"common"}
    assert registry.get(82) is None


@pytest.mark.parametrize("content", ["{", "[]", '{"subjects": {}}'])
def test_a_broken_file_is_refused_and_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "registry.json"
    path.write_text(content)
    registry = FileRegistry(path)
    with pytest.raises(RegistryUnavailable, match=r"registry\.json"):
        registry.get(1)
    with pytest.raises(RegistryUnavailable):
        registry.register("a", OTHER)
    assert path.read_text() == content


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RegistryUnavailable, match="locked"):
        FileRegistry(tmp_path / "file" / "registry.json").register("a", OTHER)


def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "registry.new").mkdir()
    with pytest.raises(RegistryUnavailable, match="written"):
        FileRegistry(tmp_path / "registry.json").register("a", OTHER)


class Confluent(BaseHTTPRequestHandler):
    """The part of the REST API that K2 uses, over lists in the server."""

    server: Any

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, status: int, body: Any) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        subject = self.path.split("/")[2]
        if subject == "refused":
            return self._answer(409, {"error_code": 409, "message": "incompatible"})
        if subject == "odd":
            return self._answer(200, {})
        schemas = self.server.schemas
        if body["schema"] not in schemas:
            schemas.append(body["schema"])
        self.server.subjects.add(subject)
        return self._answer(200, {"id": schemas.index(body["schema"]) + 1})

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if self.path == "/subjects":
            return self._answer(200, sorted(self.server.subjects))
        number = int(self.path.removeprefix("/schemas/ids/"))
        if number == 500:
            return self._answer(500, b"boom")
        if number == 501:
            return self._answer(200, {"id": 1})
        if number == 503:
            return self._answer(200, {"schema": 'syntax = "proto3";', "schemaType": "PROTOBUF"})
        if number == 502:
            return self._answer(200, b"<html>")
        if number > len(self.server.schemas):
            return self._answer(404, {"error_code": 40403, "message": "Schema not found"})
        return self._answer(200, {"schema": self.server.schemas[number - 1]})


@pytest.fixture
def confluent() -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Confluent)
    server.schemas, server.subjects, server.asked = [], set(), []
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_http_registers_and_asks_once_for_an_id(confluent: Any) -> None:
    registry = HttpRegistry(confluent.url + "/")
    assert registry.register("a-value", TRADES.avro) == 1
    assert registry.register("b/value", OTHER) == 2
    reader = HttpRegistry(confluent.url)
    assert [reader.get(1), reader.get(2), reader.get(1)] == [TRADES.avro, OTHER, TRADES.avro]
    assert confluent.asked == ["/schemas/ids/1", "/schemas/ids/2"]
    assert reader.subjects() == ["a-value", "b%2Fvalue"]


def test_http_does_not_remember_an_unknown_id(confluent: Any) -> None:
    registry = HttpRegistry(confluent.url)
    assert registry.get(1) is None
    HttpRegistry(confluent.url).register("a-value", TRADES.avro)
    assert registry.get(1) == TRADES.avro


@pytest.mark.parametrize(
    ("schema_id", "said"), [(500, "boom"), (501, "without a schema"), (502, "http")]
)
def test_http_trouble_is_not_an_unknown_id(confluent: Any, schema_id: int, said: str) -> None:
    with pytest.raises(RegistryUnavailable, match=said):
        HttpRegistry(confluent.url).get(schema_id)


def test_http_schema_of_another_kind_is_known_and_no_avro(confluent: Any) -> None:
    """Its values are at fault, not the registry: waiting for it would stop the partition."""
    assert HttpRegistry(confluent.url).get(503) == {"type": "PROTOBUF"}


def test_http_refusal_says_what_the_registry_said(confluent: Any) -> None:
    with pytest.raises(RegistryUnavailable, match="incompatible"):
        HttpRegistry(confluent.url).register("refused", OTHER)
    with pytest.raises(RegistryUnavailable, match="without an id"):
        HttpRegistry(confluent.url).register("odd", OTHER)


def test_no_server_is_unavailable() -> None:
    with pytest.raises(RegistryUnavailable):
        HttpRegistry("http://127.0.0.1:1").get(1)


def test_settings_choose_the_registry(tmp_path: Path) -> None:
    registry = open_registry(Settings(data=tmp_path))
    registry.register("a-value", OTHER)
    assert (tmp_path / "registry.json").exists()
    assert isinstance(open_registry(Settings(registry_url="http://x")), HttpRegistry)
