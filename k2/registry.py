"""Schemas by id: Confluent's Schema Registry, or a file that does the same without a server."""

from __future__ import annotations

import fcntl
import json
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from k2.errors import RegistryUnavailable
from k2.settings import Settings

__all__ = ["FileRegistry", "HttpRegistry", "open_registry"]

Schema = dict[str, Any]

_TIMEOUT_S = 5.0
_CONTENT = "application/vnd.schemaregistry.v1+json"


class FileRegistry:
    """Ids and schemas in one JSON file, shared by any number of threads and processes.

    The file is replaced as a whole, so that readers need no lock; writers take one on a file
    beside it. Ids start at 1 and are never given away twice.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._known: dict[int, Schema] = {}
        self._seen: tuple[int, int, int] | None = None

    def register(self, subject: str, schema: Schema) -> int:
        """Return the id of `schema`, giving it the next one when it is new.

        Raises:
            RegistryUnavailable: the file cannot be read or written.
        """
        with self._alone():
            content = self._read()
            ids = {_canonical(known): int(key) for key, known in content["schemas"].items()}
            schema_id = ids.get(_canonical(schema)) or max(ids.values(), default=0) + 1
            versions = content["subjects"].setdefault(subject, [])
            if schema_id not in versions:
                versions.append(schema_id)
                content["schemas"][str(schema_id)] = schema
                self._write(content)
            return schema_id

    def get(self, schema_id: int) -> Schema | None:
        """Return a schema; None: no such id.

        Raises:
            RegistryUnavailable: the file is there, but is no registry.
        """
        schema = self._known.get(schema_id)
        if schema is not None:
            return schema
        with self._lock:
            # A stream of values with an unknown id must not read the file for each of them.
            seen = self._stamp()
            if seen != self._seen:
                schemas = self._read()["schemas"]
                self._known = {int(key): schema for key, schema in schemas.items()}
                self._seen = seen
            return self._known.get(schema_id)

    def subjects(self) -> list[str]:
        """Return the names under which schemas were registered, sorted."""
        return sorted(self._read()["subjects"])

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            stat = self._path.stat()
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise RegistryUnavailable(f"{self._path}: cannot be read: {exc}") from exc
        return stat.st_ino, stat.st_mtime_ns, stat.st_size

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            return {"subjects": {}, "schemas": {}}
        except (OSError, ValueError) as exc:
            raise RegistryUnavailable(f"{self._path}: cannot be read: {exc}") from exc
        if not isinstance(content, dict) or not {"subjects", "schemas"} <= content.keys():
            raise RegistryUnavailable(f"{self._path}: is no schema registry")
        return content

    def _write(self, content: dict[str, Any]) -> None:
        new = self._path.with_suffix(".new")
        try:
            with new.open("w") as file:
                json.dump(content, file, indent=1)
                file.flush()
                # Values with this id may be in Kafka for good as soon as we return it.
                os.fsync(file.fileno())
            new.replace(self._path)
        except OSError as exc:
            raise RegistryUnavailable(f"{self._path}: cannot be written: {exc}") from exc

    @contextmanager
    def _alone(self) -> Iterator[None]:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            file = self._path.with_suffix(".lock").open("w")
        except OSError as exc:
            raise RegistryUnavailable(f"{self._path}: cannot be locked: {exc}") from exc
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed
            yield


class HttpRegistry:
    """Confluent's REST API. An id's schema never changes: it is asked for once."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._known: dict[int, Schema] = {}

    def register(self, subject: str, schema: Schema) -> int:
        """Return the id of `schema` under `subject`.

        Raises:
            RegistryUnavailable: no answer, or a refusal (an incompatible schema, say).
        """
        path = f"/subjects/{quote(subject, safe='')}/versions"
        answer = self._ask(path, {"schema": json.dumps(schema)})
        try:
            return int(answer["id"])
        except (KeyError, TypeError, ValueError) as exc:
            raise RegistryUnavailable(f"{self._url}{path}: answered without an id") from exc

    def get(self, schema_id: int) -> Schema | None:
        """Return a schema; None: no such id.

        Raises:
            RegistryUnavailable: no answer.
        """
        if schema_id in self._known:
            return self._known[schema_id]
        answer = self._ask(f"/schemas/ids/{schema_id}")
        if answer is None:
            return None
        try:
            text = answer["schema"]
        except (KeyError, TypeError) as exc:
            raise RegistryUnavailable(f"{self._url}: answered without a schema") from exc
        try:
            schema: Schema = json.loads(text)
        except (TypeError, ValueError):
            # Protobuf, say: known, and no Avro. The value is at fault, not the registry.
            schema = {"type": str(answer.get("schemaType", "not Avro"))}
        self._known[schema_id] = schema
        return schema

    def subjects(self) -> list[str]:
        """Return the names under which schemas were registered, sorted.

        Raises:
            RegistryUnavailable: no answer.
        """
        return sorted(self._ask("/subjects") or [])

    def _ask(self, path: str, body: Schema | None = None) -> Any:
        """Return the parsed answer; None: 404."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self._url + path, data, {"Content-Type": _CONTENT, "Accept": _CONTENT}
        )
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
                return json.load(response)
        except urllib.error.HTTPError as exc:
            with exc:
                if exc.code == 404 and body is None:
                    return None
                said = exc.read(1000).decode(errors="replace")
            raise RegistryUnavailable(f"{self._url}{path}: {exc.code}: {said}") from exc
        except (OSError, ValueError) as exc:
            raise RegistryUnavailable(f"{self._url}{path}: {exc}") from exc


def _canonical(schema: Schema) -> str:
    return json.dumps(schema, sort_keys=True)


def open_registry(settings: Settings) -> FileRegistry | HttpRegistry:
    """The registry that the settings name; without a URL, the file in the data folder."""
    if settings.registry_url:
        return HttpRegistry(settings.registry_url)
    return FileRegistry(settings.data / "registry.json")
