"""Avro schemas by id: a file in the data folder, or a Confluent Schema Registry."""

from __future__ import annotations

import fcntl
import json
import os
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from k2.errors import RegistryUnavailable
from k2.settings import Settings

__all__ = ["FileRegistry", "HttpRegistry", "open_registry"]

ANSWER_TIMEOUT_S = 5.0

Schema = dict[str, Any]


class FileRegistry:
    """A JSON file shared by the processes of one machine; ids are never used twice."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[int, Schema] = {}

    def register(self, subject: str, schema: Schema) -> int:
        """Return the id of `schema`, which is then the newest version of `subject`."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._locked():
            stored = self._read()
            text = json.dumps(schema, sort_keys=True)
            for known, other in stored["schemas"].items():
                if json.dumps(other, sort_keys=True) == text:
                    schema_id = int(known)
                    break
            else:
                schema_id = 1 + max(map(int, stored["schemas"]), default=0)
                stored["schemas"][str(schema_id)] = schema
            versions = stored["subjects"].setdefault(subject, [])
            if schema_id not in versions:
                versions.append(schema_id)
            self._write(stored)
        return schema_id

    def get(self, schema_id: int) -> Schema | None:
        """Return the schema, or None if no such id was ever given."""
        if schema_id not in self._known:
            self._known = {int(known): schema for known, schema in self._read()["schemas"].items()}
        return self._known.get(schema_id)

    def subjects(self) -> dict[str, list[int]]:
        """Return the schema ids of each subject, oldest first."""
        subjects: dict[str, list[int]] = self._read()["subjects"]
        return subjects

    def _read(self) -> dict[str, Any]:
        try:
            stored: dict[str, Any] = json.loads(self._path.read_text())
        except FileNotFoundError:
            return {"schemas": {}, "subjects": {}}
        except (OSError, ValueError) as exc:
            raise RegistryUnavailable(f"{self._path}: not a readable registry: {exc}") from exc
        return stored

    def _write(self, stored: dict[str, Any]) -> None:
        # Replaced as a whole: a reader never sees half a file.
        scratch = self._path.with_suffix(f".{os.getpid()}.tmp")
        scratch.write_text(json.dumps(stored, indent=1))
        scratch.replace(self._path)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


class HttpRegistry:
    """Confluent's REST API; schemas are cached, because an id's schema never changes."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._known: dict[int, Schema] = {}
        self._lock = threading.Lock()

    def register(self, subject: str, schema: Schema) -> int:
        """Return the id of `schema`, which is then the newest version of `subject`."""
        body = json.dumps({"schema": json.dumps(schema)}).encode()
        answer = self._call(f"/subjects/{urllib.parse.quote(subject, safe='')}/versions", body)
        if answer is None:
            raise RegistryUnavailable(f"{self._url}: cannot register {subject}: not found")
        return int(answer["id"])

    def get(self, schema_id: int) -> Schema | None:
        """Return the schema, or None if the registry says that there is no such id.

        Raises:
            RegistryUnavailable: it does not answer; the record is not to be rejected for that.
        """
        with self._lock:
            if schema_id not in self._known:
                answer = self._call(f"/schemas/ids/{schema_id}")
                if answer is None:
                    return None
                self._known[schema_id] = json.loads(answer["schema"])
            return self._known[schema_id]

    def _call(self, path: str, body: bytes | None = None) -> dict[str, Any] | None:
        kind = {"Content-Type": "application/vnd.schemaregistry.v1+json"}
        request = urllib.request.Request(self._url + path, body, kind)
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_TIMEOUT_S) as answer:
                parsed: dict[str, Any] = json.load(answer)
        except urllib.error.HTTPError as exc:
            if exc.code == 404:
                return None
            raise RegistryUnavailable(f"{self._url}{path}: HTTP {exc.code}") from exc
        except (OSError, ValueError) as exc:
            raise RegistryUnavailable(f"{self._url}{path}: {exc}") from exc
        return parsed


def open_registry(settings: Settings) -> FileRegistry | HttpRegistry:
    """Open the registry at `registry_url`, or the file in `data` if there is none."""
    if settings.registry_url:
        return HttpRegistry(settings.registry_url)
    return FileRegistry(settings.data / "registry.json")
