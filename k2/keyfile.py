"""The file of the API keys: one JSON object a key, with the hash of its secret; replaced whole."""

from __future__ import annotations

import datetime as dt
import fcntl
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from k2.errors import SettingError

__all__ = ["SCOPES", "Key", "create", "hashed", "read", "revoke", "shown"]

SCOPES = ("read", "sql", "admin")

_ID = re.compile(r"[0-9a-f]{8}")
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Key:
    """One key, without its secret; times are UTC."""

    id: str
    hash: str
    scopes: frozenset[str]
    created: dt.datetime
    expires: dt.datetime | None
    note: str

    def is_expired(self, now: dt.datetime) -> bool:
        return self.expires is not None and self.expires <= now


def hashed(secret: str) -> str:
    """What is kept of a secret, in hex."""
    # One round of SHA-256: a secret of 256 random bits cannot be guessed from it, however fast
    # guesses are. Slow hashes are for what people choose, and would cost time in every request.
    return hashlib.sha256(secret.encode()).hexdigest()


def read(path: Path) -> list[Key]:
    """Return all keys of a file, none where there is no file.

    Raises:
        SettingError: a line is no key; names file and line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as exc:
        raise SettingError(f"keys_file: {path}: {exc}") from exc
    keys = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            keys.append(_key(json.loads(line)))
        except (ValueError, LookupError, TypeError) as exc:
            raise SettingError(f"keys_file: {path}: line {number} is no key: {exc!r}") from exc
    if len({key.id for key in keys}) < len(keys):
        raise SettingError(f"keys_file: {path}: an id is there twice")
    return keys


def create(
    path: Path, scopes: Iterable[str], expires: dt.datetime | None, note: str
) -> tuple[Key, str]:
    """Add a key; return it with its text, which is told once and kept nowhere.

    Times are whole seconds; what is below is cut off.

    Raises:
        SettingError: the file is damaged, or cannot be written.
    """
    with _edited(path) as keys:
        taken = {key.id for key in keys}
        number = next(n for n in iter(lambda: secrets.token_hex(4), "") if n not in taken)
        secret = secrets.token_hex(32)
        created = dt.datetime.now(dt.UTC).replace(microsecond=0)
        ends = expires and expires.replace(microsecond=0)
        key = Key(number, hashed(secret), frozenset(scopes), created, ends, note)
        keys.append(key)
    return key, f"k2_{number}_{secret}"


def revoke(path: Path, ids: Iterable[str]) -> int:
    """Remove keys; return how many are left.

    Raises:
        SettingError: no key has one of the ids, and nothing is removed; or as `create`.
    """
    gone = set(ids)
    with _edited(path) as keys:
        if unknown := gone - {key.id for key in keys}:
            raise SettingError(f"{path}: no key has the id {', '.join(sorted(unknown))}")
        keys[:] = [key for key in keys if key.id not in gone]
        return len(keys)


@contextmanager
def _edited(path: Path) -> Iterator[list[Key]]:
    """The file's keys, to be changed; written at the end, unless an error comes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        # A lock of its own: the file itself is replaced under whoever waits for it.
        with path.with_name(f"{path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            keys = read(path)
            yield keys
            _write(path, keys)
    except OSError as exc:
        raise SettingError(f"keys_file: {path}: {exc}") from exc


def _write(path: Path, keys: Iterable[Key]) -> None:
    partial = path.with_name(f"{path.name}.part")
    partial.unlink(missing_ok=True)
    # Made with its mode: opened first and closed off later, it could be read in between.
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.writelines(json.dumps(_line(key)) + "\n" for key in keys)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _line(key: Key) -> dict[str, Any]:
    return {
        "id": key.id,
        "hash": key.hash,
        "scopes": [scope for scope in SCOPES if scope in key.scopes],
        "created": shown(key.created),
        "expires": shown(key.expires),
        "note": key.note,
    }


def _key(line: dict[str, Any]) -> Key:
    scopes = line["scopes"]
    if not isinstance(scopes, list) or not set(scopes) <= set(SCOPES):
        raise ValueError(f"scopes: {scopes!r}")
    if not _ID.fullmatch(line["id"]) or not _HASH.fullmatch(line["hash"]):
        raise ValueError("id or hash")
    expires = line["expires"]
    return Key(
        line["id"],
        line["hash"],
        frozenset(scopes),
        _time(line["created"]),
        None if expires is None else _time(expires),
        str(line["note"]),
    )


def _time(text: str) -> dt.datetime:
    time = dt.datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone")
    return time


def shown(time: dt.datetime | None) -> str | None:
    """A time as the file has it: seconds, UTC."""
    return None if time is None else f"{time.astimezone(dt.UTC):%Y-%m-%dT%H:%M:%SZ}"
